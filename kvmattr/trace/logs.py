"""QEMU's trace log and the kernel's trace event, one line at a time.

Fields are found by name, never by position: QEMU's lines grew in 8.2 and in 9.1 and have changed their names
since. A line may carry any prefix: QEMU's log writes `PID@SECONDS.MICROSECONDS:`, the kernel task and time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kvmattr import uapi
from kvmattr.trace.native import Mismatch, number
from kvmattr.trace.operations import UNKNOWN, Record, SetAttributes, SetSlot


class Call(NamedTuple):
    """One recorded call and how it went: an errno, 0, or UNKNOWN."""

    record: Record
    answer: int = UNKNOWN


_QEMU_SLOT = "kvm_set_user_memory [AddrSpace#N] Slot#N flags=0xN gpa=0xN size=0xN ua=0xN [...] ret=N"
_QEMU_CONVERT = "kvm_convert_memory start 0xN size 0xN shared_to_private|private_to_shared"
_EVENT = "kvm_vm_set_mem_attributes: 0xFIRST -- 0xEND [0xATTRIBUTES]"

# The event's colon tells it from lines of the function tracer, which name the same function.
_NAMED = re.compile(r"(?:^|[\s:])(kvm_set_user_memory(?=\s|$)|kvm_convert_memory(?=\s|$)"
                    r"|kvm_vm_set_mem_attributes(?=:))(.*)", re.DOTALL)
_QEMU_FIELD = re.compile(r"(\S+?)[=#](\S+)")
_CONVERT_FIELDS = re.compile(r"\s+start\s+(\S+)\s+size\s+(\S+)\s+(shared_to_private|private_to_shared)\s*")
_EVENT_FIELDS = re.compile(r":\s+(\S+)\s+--\s+(\S+)\s+\[(\S+)\]\s*")
_SIGNED = re.compile(r"-?[0-9]+", re.ASCII)


def parse(line: str) -> Call | None:
    """The call of a QEMU trace line or of the kernel's event; None for a line that names neither.

    >>> parse("7@1.5:kvm_convert_memory start 0x1000 size 0x2000 shared_to_private").record
    SetAttributes(address=4096, size=8192, attributes=8, flags=0)
    """
    found = _NAMED.search(line)
    if found is None:
        return None
    name, rest = found.groups()
    if name == "kvm_set_user_memory":
        return _qemu_slot(rest)
    if name == "kvm_convert_memory":
        fields = _CONVERT_FIELDS.fullmatch(rest)
        if fields is None:
            raise Mismatch(f"expected {_QEMU_CONVERT!r}, found {name + rest!r}")
        to_private = fields[3] == "shared_to_private"
        attributes = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE if to_private else 0
        return Call(SetAttributes(number(fields[1], "start"), number(fields[2], "size"), attributes))
    fields = _EVENT_FIELDS.fullmatch(rest)
    if fields is None:
        raise Mismatch(f"expected {_EVENT!r}, found {name + rest!r}")
    first, end = number(fields[1], "first gfn", 2**52), number(fields[2], "end gfn", 2**52)
    if end <= first:
        raise Mismatch(f"expected an end gfn above the first gfn {first:#x}, found {end:#x}")
    # The kernel writes the event for a call that it has accepted.
    return Call(SetAttributes(first << 12, (end - first) << 12, number(fields[3], "attributes")), 0)


def _qemu_slot(rest: str) -> Call:
    fields = dict(_QEMU_FIELD.findall(rest))
    missing = [name for name in ("Slot", "flags", "gpa", "size", "ua", "ret") if name not in fields]
    if missing:
        raise Mismatch(f"expected {_QEMU_SLOT!r}, found no {missing[0]}")
    address_space = number(fields.get("AddrSpace", "0"), "AddrSpace", 2**16)
    slot = number(fields["Slot"], "Slot", 2**32) | address_space << uapi.KVM_ADDRESS_SPACE_SHIFT
    if _SIGNED.fullmatch(fields["ret"]) is None:
        raise Mismatch(f"expected a decimal number for ret, found {fields['ret']!r}")
    # ret is 0 or a negative errno.
    answer = abs(int(fields["ret"]))
    record = SetSlot(slot, number(fields["flags"], "flags", 2**32), number(fields["gpa"], "gpa"),
                     number(fields["size"], "size"), number(fields["ua"], "ua"))
    # The guest_memfd and its offset have had several names; no other field's name holds "fd".
    names = {"offset" if "offset" in name else "fd": text for name, text in fields.items() if "fd" in name}
    if "fd" in names:
        record = record._replace(guest_memfd=descriptor(names["fd"]),
                                 guest_memfd_offset=number(names.get("offset", "0"), "guest_memfd_offset"))
    return Call(record, answer)


def descriptor(text: str) -> int:
    """A file descriptor. Some print -1 as the u32 that it is in the structure; strace -y adds a path."""
    text = text.partition("<")[0]
    if text == "-1":
        return -1
    value = number(text, "guest_memfd", 2**32)
    return value - 2**32 if value >= 2**31 else value
