"""Who wrote an event: its process or thread, as far as the line tells, and who passed it on.

QEMU's log, ftrace and perf name the thread; a QEMU changes memslots by its main thread and by those of its
vCPUs, so several threads may be one VM. simpletrace, SystemTap, LTTng and ftrace's `record-tgid` name the
process. A container's name, a sandbox or a syslog daemon's tag names the one whose output it was.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_QEMU = re.compile(r"(?<![0-9])([0-9]{1,10})@[0-9]{1,11}\.[0-9]{1,9}:\Z")
#: QEMU since 10.2, by `-msg`: a time, the guest's name, the program's, and which thread.
_CONTEXT = re.compile(r"\(([0-9]{1,10}):([^():]{1,64})\): \Z")
_GUEST = re.compile(r"(?<!\S)(?![0-9]{4}-[0-9]{2}-[0-9]{2}T)([A-Za-z0-9][^\s:]{0,127}) "
                    r"qemu(?:-[a-z0-9_-]{1,40})?(?:: |\()")
_STAP = re.compile(r"(?<![0-9])([0-9]{1,10})@[0-9]{13,19}\s+\Z")
_FTRACE = re.compile(r"(.{0,64}?)-([0-9]{1,10})\s+(?:\(\s*([0-9]{1,10}|-+)\)\s+)?\[[0-9]{3,4}\]\s")
_LATENCY = re.compile(r"(.{0,64}?)-([0-9]{1,10})\s+[0-9]{1,4}[A-Za-z0-9.#]{4,8}\s+[0-9]{1,15}(?:us|\.[0-9])")
_VERBOSE = re.compile(r"\s*(.{1,64}?)\s+([0-9]{1,10})\s+[0-9]{1,4} [0-9]{1,4} [0-9a-f]{8} [0-9a-f]{8,16} "
                      r"\[[0-9a-f]{8,16}\]\s")
_PERF = re.compile(r"(.{0,64}?)\s(?:([0-9]{1,10})/)?\s*([0-9]{1,10})\s+\[[0-9]{3,4}\]\s")
_PERF_TRACE = re.compile(r"(?:.{0,64}?\s)?(\S.{0,30}?)/([0-9]{1,10}) kvm:\Z")
_PIDS = re.compile(r"(?<![A-Za-z0-9_])(qemuPid|qemu_pid|vpid|pid|vtid|tid)\s?[=:]\s?([0-9]{1,10})(?![A-Za-z0-9_])")
_NAMED = re.compile(r"(?<![A-Za-z0-9_])((?:sandbox|container|pod|domain|vm)(?:_?(?:id|name|ID))?)="
                    r"\"?([A-Za-z0-9][A-Za-z0-9_./:-]{0,127})")
#: Names of threads of which a VM has one each: QEMU's, Firecracker's, Cloud Hypervisor's, crosvm's.
_VCPU = re.compile(r"(?:CPU [0-9]{1,5}/(?:KVM|TCG)|(?:[a-z]{1,10}_)?vcpu[-_ ]?[0-9]{1,5})\s*\Z")


class Source(NamedTuple):
    """Who wrote a line, as far as it tells.

    `names`: pairs of a kind of name and the name; two lines with other names of one kind are of two VMs. `thread`
    may be one of several of a VM, and None; `vcpu` is the name of a thread of which a VM has one, or empty.
    """

    names: tuple[tuple[str, str], ...] = ()
    thread: int | None = None
    vcpu: str = ""


NOBODY = Source()


def source_of(before: str, rest: str, names: tuple[tuple[str, str], ...] = ()) -> Source:
    """The source of an event, given what stands before and behind its name, and how those that passed it on name it.

    >>> source_of("7@12.5:", " Slot#0")
    Source(names=(), thread=7, vcpu='')
    >>> source_of(" CPU 0/KVM-101 (100) [002] .....   12.3: ", ": 0x0 -- 0x1 [0x8]")
    Source(names=(('process', '100'),), thread=101, vcpu='CPU 0/KVM')
    >>> source_of("", " 1.5 pid=7 as=0x0", (("container", "vm-1"),))
    Source(names=(('container', 'vm-1'), ('pid', '7')), thread=None, vcpu='')
    >>> source_of("vm-1 qemu-system-x86_64: (7:CPU 1/KVM): ", " start 0x0")
    Source(names=(('guest', 'vm-1'),), thread=7, vcpu='CPU 1/KVM')
    """
    if not before and not names and "pid" not in rest:
        return NOBODY
    thread = process = None
    task = alone = ""
    if found := _QEMU.search(before):
        thread = int(found[1])
    elif found := _CONTEXT.search(before):
        task, thread = found[2], int(found[1])
        alone = task if task == "main" else ""
    elif found := _STAP.search(before):
        process = found[1]
    elif found := _FTRACE.match(before):
        task, thread = found[1], int(found[2])
        process = found[3] if found[3] and found[3].isdecimal() else None
    elif found := _LATENCY.match(before) or _VERBOSE.match(before):
        task, thread = found[1], int(found[2])
    elif found := _PERF.match(before):
        task, process, thread = found[1], found[2], int(found[3])
    elif found := _PERF_TRACE.match(before):
        task, thread = found[1], int(found[2])
    given = dict(names)
    if found := _GUEST.search(before):
        given["guest"] = found[1]
    if process is not None:
        given["process"] = process
    for text in (before, rest):
        for name, value in _PIDS.findall(text):
            if name.endswith("tid"):
                thread = int(value)
            else:
                given.setdefault(name, value)
        if "=" in text:
            for name, value in _NAMED.findall(text):
                given.setdefault(name, value)
    return Source(tuple(given.items()), thread, alone or _vcpu(task))


def source_of_task(task: str, thread: int, process: str | None) -> Source:
    """The source of a thread's line that has no other names."""
    return Source((("process", process),) if process is not None else (), thread, _vcpu(task))


def _vcpu(task: str) -> str:
    found = _VCPU.search(task)
    return found[0].strip() if found is not None else ""
