"""Run a program on the real /dev/kvm, and compare each memory call's answer with the model's.

`kvmattr shadow -- qemu-system-x86_64 -accel kvm ...`: the kernel answers; the model is asked the same, and a difference
is told with its call. The program runs at KVM's speed but for those calls, whose added cost is told at the end. The
profile is that of the running kernel unless `--abi` names one. The exit code is the program's; where that is 0 and
there were differences, 1.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from kvmattr.bridges import kvm
from kvmattr.fake.files import Kept
from kvmattr.fake.launch import CannotCatch, check_program, environment, library
from kvmattr.fake.recording import Recording
from kvmattr.fake.running import EXIT_NO_COMMAND, command_of, run_and_serve
from kvmattr.fake.script import Script
from kvmattr.fake.server import Server, tell
from kvmattr.fake.shadow import Difference, Shadow, host_of_kernel, profile_of_kernel
from kvmattr.hosts import HOSTS, host_named
from kvmattr.measure.machine import physical_address_bits
from kvmattr.measure.refusing import Refused
from kvmattr.profiles import PROFILES, profile_named

HELP = "run a program on the real /dev/kvm and compare its answers with the model's"

EXIT_DIFFERENT = 1
#: Differences are told as they are found, up to so many.
_TOLD = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvmattr shadow`."""
    parser.add_argument("--abi", choices=PROFILES, help="the profile to compare with (default: the running kernel's)")
    parser.add_argument("--record", metavar="FILE", help="write the calls and answers as a log for kvmattr replay")
    parser.add_argument("--phys-bits", type=int, choices=range(32, 53), metavar="N",
                        help="memslots end at or below 2^N (default: this machine's)")
    parser.add_argument("--host", choices=HOSTS, help="the machine below (default: this one)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what to run")


def run(arguments: argparse.Namespace) -> int:
    """Run it; the command's exit code, 1 for differences, 127 if there is no such command. Raises Refused, and
    CannotWrite for the recording."""
    words = command_of(arguments.words)
    if not words:
        raise Refused("expected -- COMMAND ...")
    missing = kvm.missing()
    if missing is not None:
        raise Refused(f"{missing}; `kvmattr fake` needs none")
    try:
        library()
        check_program(words[0])
    except FileNotFoundError:
        print(f"kvmattr shadow: {words[0]}: command not found", file=sys.stderr)
        return EXIT_NO_COMMAND
    except CannotCatch as wrong:
        raise Refused(str(wrong)) from wrong
    profile = profile_of_kernel() if arguments.abi is None else profile_named(arguments.abi)
    host = host_of_kernel() if arguments.host is None else host_named(arguments.host)
    bits = arguments.phys_bits or physical_address_bits() or 52
    kept = Kept(profile, Script(), host, bits)
    with ExitStack() as stack:
        recording = None if arguments.record is None else stack.enter_context(Recording(arguments.record))
        told = _Told()
        shadow = Shadow(kept, recording, told)
        server = Server(kept, shadow=shadow)
        stack.callback(server.close)
        try:
            code = run_and_serve(server, words, environment(server.path, "shadow"),
                                 idle=None if recording is None else recording.flush)
        except OSError as error:
            raise Refused(f"{words[0]}: {error.strerror}") from error
    _tell_the_end(server, shadow, words[0])
    return (code if recording is None else recording.exit_code(code)) or (EXIT_DIFFERENT if shadow.differences else 0)


class _Told:
    """Tells the first differences, each as it comes."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, difference: Difference) -> None:
        self._count += 1
        if self._count <= _TOLD:
            tell(f"shadow: {difference}")


def _tell_the_end(server: Server, shadow: Shadow, name: str) -> None:
    if not server.clients:
        tell(f"shadow: {name} never opened /dev/kvm through the C library: nothing was compared")
        return
    count, vms = len(shadow.differences), len(shadow.kept.vms)
    tell(f"shadow: {shadow.compared:,} of {shadow.calls:,} calls compared with {shadow.kept.profile.name}, "
         f"{vms} VM{'s' * (vms != 1)}: {count or 'no'} difference{'s' * (count != 1)}")
    if count > _TOLD:
        tell(f"shadow: {count - _TOLD} of them were not told")
    for why, times in shadow.passed.most_common():
        tell(f"shadow: not compared: {why}, {times:,} call{'s' * (times != 1)}")
    tell(f"shadow: {shadow.cost_text()}")
