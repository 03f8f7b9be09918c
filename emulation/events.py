"""Conversions on this kernel, recorded by its own event with each tool that is here, and read back.

`python -m emulation.events DIRECTORY` writes a log a tool and form to the directory, `conversions.json` with what was
done, and says of each log whether it is read as that; more words pick recorders (cat, perf, trace-cmd, strace). Needs
root, a VM type with private memory, and a kernel of emulation/tracing.config; perf, trace-cmd and strace where they
are installed. The same with `--convert` makes the conversions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.trace import SetAttributes, read

EVENT = "kvm_vm_set_mem_attributes"
TRACING = Path("/sys/kernel/tracing")
_PAGE, _MIB, _GIB = 1 << 12, 1 << 20, 1 << 30
#: (address, size, attributes) of the main thread, then of another one.
CONVERSIONS = [
    [(0, 4 * _GIB, 8), (_MIB, _PAGE, 0), (2 * _MIB, 2 * _MIB, 0), (2 * _MIB + _PAGE, _PAGE, 8)],
    [(4 * _GIB, 16 * _PAGE, 8), (0xFED4_5000, _PAGE, 0), (1 << 39, _PAGE, 8)],
]
#: KVM refuses these, and has no event for them.
REFUSED = [(0, _PAGE, 1), (0, _PAGE + 1, 8), (0, 0, 8)]
#: In memory: perf maps what it writes.
_DATA = "/run/events.data"
_SUBJECT = [sys.executable, "-P", "-B", "-m", "emulation.events", "--convert"]


def convert() -> None:
    """Make the conversions on a new VM: some by this thread, some by another."""
    with kvm.KernelVM(kvm.private_vm_type() or 0) as vm:
        vm.ioctl(uapi.KVM_SET_USER_MEMORY_REGION2, bytes(uapi.kvm_userspace_memory_region2(
            0, 0, 0, 8 * _GIB, 0x7F00_0000_0000, 0, 0)))

        def change(ranges: list[tuple[int, int, int]]) -> None:
            for each in ranges:
                vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, bytes(uapi.linux_kvm_memory_attributes(*each, 0)))

        change(CONVERSIONS[0])
        for each in REFUSED:
            try:
                change([each])
            except OSError:
                continue
            raise SystemExit(f"this kernel takes {each}")
        thread = threading.Thread(target=change, args=(CONVERSIONS[1],), name="CPU 0/KVM")
        thread.start()
        thread.join()


def _write(name: str, words: str) -> None:
    (TRACING / name).write_text(words)


def _ftrace(directory: Path, name: str, options: dict[str, str], subjects: int = 1) -> Path:
    """What the kernel's own file `trace` has."""
    for option, value in options.items():
        _write(f"options/{option}", value)
    _write("trace", "")
    _write(f"events/kvm/{EVENT}/enable", "1")
    running = [subprocess.Popen(_SUBJECT) for _ in range(subjects)]
    for each in running:
        each.wait()
    _write(f"events/kvm/{EVENT}/enable", "0")
    out = directory / f"{name}.log"
    out.write_text((TRACING / "trace").read_text())
    for option, value in options.items():
        _write(f"options/{option}", str(1 - int(value)))
    return out


def _said(out: Path, words: list[str]) -> Path:
    with out.open("w") as file:
        subprocess.run(words, stdout=file, stderr=subprocess.DEVNULL, check=True)
    return out


def _run(words: list[str]) -> None:
    """Run a recorder; what it says is seen if it fails."""
    said = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          check=False)
    if said.returncode:
        raise ValueError(f"{words[0]} ended with code {said.returncode}: {said.stdout.strip()}")


#: Logs, and of how many VMs each is.
Logs = Iterator[tuple[Path, int]]


def by_ftrace(directory: Path) -> Logs:
    """The kernel's own file, in each of its forms."""
    yield _ftrace(directory, "ftrace", {}), 1
    yield _ftrace(directory, "ftrace-tgid", {"record-tgid": "1"}), 1
    yield _ftrace(directory, "ftrace-latency", {"latency-format": "1"}), 1
    yield _ftrace(directory, "ftrace-plain", {"irq-info": "0"}), 1
    yield _ftrace(directory, "ftrace-verbose", {"verbose": "1", "latency-format": "1"}), 1
    if (TRACING / "options" / "fields").exists():
        yield _ftrace(directory, "ftrace-fields", {"fields": "1"}), 1
    yield _ftrace(directory, "ftrace-two", {"record-tgid": "1"}, subjects=2), 2


def by_perf(directory: Path) -> Logs:
    """perf script."""
    _run(["perf", "record", "-o", _DATA, "-e", f"kvm:{EVENT}", "-a", "--", *_SUBJECT])
    yield _said(directory / "perf.log", ["perf", "script", "-i", _DATA]), 1
    fields = "comm,pid,tid,cpu,time,event,trace"
    yield _said(directory / "perf-pid.log", ["perf", "script", "-i", _DATA, "-F", fields]), 1
    yield _said(directory / "perf-ns.log", ["perf", "script", "--ns", "-i", _DATA]), 1


def by_trace_cmd(directory: Path) -> Logs:
    """trace-cmd report."""
    _run(["trace-cmd", "record", "-o", _DATA, "-e", f"kvm:{EVENT}", *_SUBJECT])
    yield _said(directory / "trace-cmd.log", ["trace-cmd", "report", "-i", _DATA]), 1
    yield _said(directory / "trace-cmd-raw.log", ["trace-cmd", "report", "-R", "-i", _DATA]), 1
    yield _said(directory / "trace-cmd-latency.log", ["trace-cmd", "report", "-l", "-i", _DATA]), 1


def by_strace(directory: Path) -> Logs:
    """`kvmattr record`, which puts the events between strace's lines."""
    recording = directory / "record.strace"
    _run([sys.executable, "-P", "-B", "-m", "kvmattr", "record", "--events", "-o", str(recording), "--", *_SUBJECT])
    yield recording, 1


#: By the program that each needs.
RECORDERS = {"cat": by_ftrace, "perf": by_perf, "trace-cmd": by_trace_cmd, "strace": by_strace}


def _wrong(log: Path, vms: int) -> str | None:
    """What is wrong with how a log is read; None for nothing."""
    wanted = sorted(SetAttributes(*each) for ranges in CONVERSIONS for each in ranges)
    for number in range(1, vms + 1):
        with read(log, vm=number if vms > 1 else None) as trace:
            found = sorted(record for record in trace if isinstance(record, SetAttributes))
            if trace.unread and log.suffix == ".log":
                return f"not read: {trace.unread[0]}"
        if found != wanted:
            return f"{len(found)} conversions, {len(set(found) ^ set(wanted))} of them others than were made"
    return None


def main(words: list[str]) -> int:
    """Convert, or record and read back; 1 if a log is read wrongly."""
    if words == ["--convert"]:
        convert()
        return 0
    directory, failed = Path(words[0]), False
    (directory / "conversions.json").write_text(json.dumps(CONVERSIONS) + "\n")
    for program, recorder in RECORDERS.items():
        if words[1:] and program not in words[1:]:
            continue
        if shutil.which(program) is None:
            print(f"{program}: not installed", flush=True)
            continue
        try:
            for log, vms in recorder(directory):
                wrong = _wrong(log, vms)
                failed |= wrong is not None
                print(f"{log.name}: {wrong or 'read as it was done'}", flush=True)
        except (ValueError, OSError, subprocess.CalledProcessError) as error:
            failed = True
            print(f"{program}: {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
