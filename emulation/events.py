"""Conversions on this kernel, recorded by its own event with each tool that is here, and read back.

`python -m emulation.events DIRECTORY` writes a log a tool and form to the directory, `conversions.json` with what was
done, and says of each log whether it is read as that. Needs root, a VM type with private memory, and a kernel of
emulation/tracing.config; perf and trace-cmd where they are installed. The same with `--convert` makes the conversions.
"""

from __future__ import annotations

import json
import os
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


def _quiet(words: list[str]) -> None:
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def _logs(directory: Path) -> Iterator[tuple[Path, int]]:
    """Each log, and of how many VMs it is."""
    yield _ftrace(directory, "ftrace", {}), 1
    yield _ftrace(directory, "ftrace-tgid", {"record-tgid": "1"}), 1
    yield _ftrace(directory, "ftrace-latency", {"latency-format": "1"}), 1
    yield _ftrace(directory, "ftrace-plain", {"irq-info": "0"}), 1
    yield _ftrace(directory, "ftrace-verbose", {"verbose": "1", "latency-format": "1"}), 1
    if (TRACING / "options" / "fields").exists():
        yield _ftrace(directory, "ftrace-fields", {"fields": "1"}), 1
    yield _ftrace(directory, "ftrace-two", {"record-tgid": "1"}, subjects=2), 2
    data = str(directory / "data")
    if shutil.which("perf"):
        _quiet(["perf", "record", "-o", data, "-e", f"kvm:{EVENT}", "-a", "--", *_SUBJECT])
        yield _said(directory / "perf.log", ["perf", "script", "-i", data]), 1
        fields = "comm,pid,tid,cpu,time,event,trace"
        yield _said(directory / "perf-pid.log", ["perf", "script", "-i", data, "-F", fields]), 1
        yield _said(directory / "perf-ns.log", ["perf", "script", "--ns", "-i", data]), 1
        os.remove(data)
    if shutil.which("trace-cmd"):
        _quiet(["trace-cmd", "record", "-o", data, "-e", f"kvm:{EVENT}", *_SUBJECT])
        yield _said(directory / "trace-cmd.log", ["trace-cmd", "report", "-i", data]), 1
        yield _said(directory / "trace-cmd-raw.log", ["trace-cmd", "report", "-R", "-i", data]), 1
        yield _said(directory / "trace-cmd-latency.log", ["trace-cmd", "report", "-l", "-i", data]), 1
        os.remove(data)
    if shutil.which("strace"):
        recording = directory / "record.strace"
        subprocess.run([sys.executable, "-P", "-B", "-m", "kvmattr", "record", "--events", "-o", str(recording), "--",
                        *_SUBJECT], check=True)
        yield recording, 1


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
    for log, vms in _logs(directory):
        try:
            wrong = _wrong(log, vms)
        except ValueError as error:
            wrong = str(error)
        failed |= wrong is not None
        print(f"{log.name}: {wrong or 'read as it was done'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
