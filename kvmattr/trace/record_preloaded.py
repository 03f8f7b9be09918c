"""Record a program through the library that `kvmattr shadow` preloads: no strace, and each structure as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvmattr.bridges import kvm
from kvmattr.fake.files import Kept
from kvmattr.fake.launch import CannotCatch, check_program, environment, library
from kvmattr.fake.recording import Recording
from kvmattr.fake.running import run_and_serve
from kvmattr.fake.script import Script
from kvmattr.fake.server import Server
from kvmattr.fake.shadow import Shadow, host_of_kernel, profile_of_kernel
from kvmattr.measure.machine import physical_address_bits


def cannot(program: str) -> str | None:
    """Why the calls of a program cannot be caught here; None where they can."""
    missing = kvm.missing()
    if missing is not None:
        return missing
    try:
        library()
        check_program(program)
    except CannotCatch as wrong:
        return str(wrong)
    return None


def recorded(words: Sequence[str], output: Path) -> tuple[int, list[str], OSError | None]:
    """Run a command that can be caught; its exit code, what is to be told, and why the recording is not whole.

    Raises OSError where the recording cannot be begun or the command not started.
    """
    kept = Kept(profile_of_kernel(), Script(), host_of_kernel(), physical_address_bits() or 52)
    with Recording(str(output)) as recording:
        shadow = Shadow(kept, recording, lambda difference: None)
        server = Server(kept, shadow=shadow)
        try:
            code = run_and_serve(server, words, environment(server.path, "shadow"), idle=recording.flush)
        finally:
            server.close()
    told = [f"{output} written, {recording.lines:,} calls; those of KVM_RUN left out"]
    if not server.clients:
        told.append(f"{words[0]} never opened /dev/kvm through the C library; `--by strace` sees every call")
    else:
        told.append(shadow.cost_text())
    if shadow.differences:
        count = len(shadow.differences)
        differ = "answers differ" if count > 1 else "answer differs"
        told.append(f"{count:,} {differ} from the model's: `kvmattr shadow` tells which")
    return code, told, recording.failed
