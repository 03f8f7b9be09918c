"""The quick road for logs: the plainest line of each writer, read by one expression.

What is not exactly such a line takes the general road, which reads it alike: a test holds one against the other.
Numbers are as long here as they fit for certain, so that nothing needs a second look.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from kvmattr import uapi
from kvmattr.trace.calls import ASKED, Call
from kvmattr.trace.operations import SetAttributes, SetSlot
from kvmattr.trace.sources import Source, source_of_task

#: A time: its clock and nanoseconds.
Time = tuple[str, int] | None

_HEX = rb"0x([0-9a-fA-F]{1,16})"
_SECONDS = rb"([0-9]{1,9}|1[0-9]{9})\.([0-9]{6}|[0-9]{9})"
_PREFIX = rb"(?:([0-9]{1,10})@" + _SECONDS + rb":)?"
_END = rb"\r?\n"
_QEMU: Final = re.compile(
    _PREFIX + rb"kvm_set_user_memory (?:AddrSpace#([0-9]{1,4}) )?Slot#([0-9]{1,9}) flags=0x([0-9a-fA-F]{1,8})"
    rb" gpa=" + _HEX + rb" size=" + _HEX + rb" ua=" + _HEX
    + rb"(?: guest_memfd=(-1|[0-9]{1,9}) guest_memfd_offset=" + _HEX + rb")? ret=(?:0|-([1-9][0-9]{0,2}))" + _END)
_CONVERT: Final = re.compile(_PREFIX + rb"kvm_convert_memory start " + _HEX + rb" size " + _HEX
                             + rb" (?:(shared_to_private)|private_to_shared)" + _END)
_KERNEL: Final = re.compile(
    rb" {0,20}([A-Za-z0-9_./ -]{1,24}?)-([0-9]{1,10}) +(?:\( *([0-9]{1,10}|-+)\) +)?\[[0-9]{3,4}\] +"
    rb"(?:[A-Za-z0-9.#]{4,8} +)?" + _SECONDS + rb": kvm_vm_set_mem_attributes: "
    rb"0x([0-9a-fA-F]{1,13}|0{1,3}[0-9a-fA-F]{13}) -- 0x([0-9a-fA-F]{1,13}|0{1,3}[0-9a-fA-F]{13}) \[" + _HEX
    + rb"\]" + _END)
_NUMBER = rb"(0|0x[0-9a-f]{1,16}|[1-9][0-9]{0,18})"
_STRACE: Final = re.compile(
    rb"(?:\[pid +([0-9]{1,10})\] |([0-9]{1,10}) {1,6})?(?:([0-9]{1,9}|1[0-9]{9})\.([0-9]{6}) |([0-9]{2}):([0-9]{2}):"
    rb"([0-9]{2})(?:\.([0-9]{6}))? )?ioctl\(([0-9]{1,9})(?:<anon_inode:\[?kvm-vm\]?>)?, KVM_SET_USER_MEMORY_REGION, "
    rb"\{slot=([0-9]{1,9}), flags=(0|KVM_MEM_[A-Z_|]{1,80}), guest_phys_addr=" + _NUMBER + rb", memory_size=" + _NUMBER
    + rb", userspace_addr=" + _NUMBER + rb"\}\) {1,40}= 0(?: <[0-9]{1,6}\.[0-9]{6}>)?" + _END)
_FLAGS: Final = {b"0": 0, b"KVM_MEM_READONLY": uapi.KVM_MEM_READONLY,
                 b"KVM_MEM_LOG_DIRTY_PAGES": uapi.KVM_MEM_LOG_DIRTY_PAGES,
                 b"KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY": uapi.KVM_MEM_LOG_DIRTY_PAGES | uapi.KVM_MEM_READONLY}
_SECOND: Final = 10**9


class Plain(NamedTuple):
    """A line: its call, when it was written, where the next one begins; who wrote it, or which descriptor it used."""

    call: Call
    time: Time
    end: int
    source: Source | None
    file: int = -1


def event(text: bytes, start: int) -> Plain | None:
    """QEMU's events, in the line that begins here.

    >>> event(b"7@1.000005:kvm_convert_memory start 0x1000 size 0x1000 shared_to_private\\n", 0).call.record
    SetAttributes(address=4096, size=4096, attributes=8, flags=0)
    """
    found = _QEMU.match(text, start)
    if found is None:
        found = _CONVERT.match(text, start)
        if found is None:
            return None
        thread, seconds, fraction, address, size, private = found.groups()
        record = SetAttributes(int(address, 16), int(size, 16), uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0)
        return Plain(Call(record, kind=ASKED), _time(seconds, fraction), found.end(), _source(thread))
    thread, seconds, fraction, space, slot, flags, gpa, size, ua, file, offset, errno = found.groups()
    number = int(slot) | int(space) << uapi.KVM_ADDRESS_SPACE_SHIFT if space else int(slot)
    words = number, int(flags, 16), int(gpa, 16), int(size, 16), int(ua, 16)
    if file is not None:
        call = Call(SetSlot(*words, int(file), int(offset, 16)), int(errno or 0), default_private=True)
    elif words[1] & uapi.KVM_MEM_GUEST_MEMFD:
        return None     # its file may be on the next line
    else:
        call = Call(SetSlot(*words), int(errno or 0))
    return Plain(call, _time(seconds, fraction), found.end(), _source(thread))


def kernel(text: bytes, start: int) -> Plain | None:
    """The kernel's event as ftrace and trace-cmd write it, in the line that begins here."""
    found = _KERNEL.match(text, start)
    if found is None:
        return None
    task, thread, process, seconds, fraction, first, end, attributes = found.groups()
    gfn, stop = int(first, 16), int(end, 16)
    if stop <= gfn:
        return None
    record = SetAttributes(gfn << 12, (stop - gfn) << 12, int(attributes, 16))
    return Plain(Call(record, 0), _time(seconds, fraction), found.end(), _source_of_task(task, thread, process))


def region(text: bytes, start: int) -> Plain | None:
    """An accepted KVM_SET_USER_MEMORY_REGION of strace, in the line that begins here."""
    found = _STRACE.match(text, start)
    if found is None:
        return None
    (bracketed, leading, seconds, fraction, hour, minute, second, part, file, slot, names, *words) = found.groups()
    flags = _FLAGS.get(names)
    if flags is None:
        return None
    time: Time = None
    if seconds is not None:
        time = _time(seconds, fraction)
    elif hour is not None:
        time = "day", (int(hour) * 3600 + int(minute) * 60 + int(second)) * _SECOND + int(part or 0) * 1000
    gpa, size, ua = (int(word, 0) for word in words)
    thread = bracketed or leading
    call = Call(SetSlot(int(slot), flags, gpa, size, ua), 0, pid=int(thread) if thread else None)
    return Plain(call, time, found.end(), None, int(file))


ROADS: Final = (event, region, kernel)


def _time(seconds: bytes | None, fraction: bytes | None) -> Time:
    if seconds is None or fraction is None:
        return None
    return "seconds", int(seconds) * _SECOND + int(fraction) * (1000 if len(fraction) == 6 else 1)


@lru_cache(1024)
def _source(thread: bytes | None) -> Source:
    return Source(thread=int(thread)) if thread is not None else Source()


@lru_cache(1024)
def _source_of_task(task: bytes, thread: bytes, process: bytes | None) -> Source:
    return source_of_task(task.decode(), int(thread), process.decode() if process and process.isdigit() else None)
