"""QEMU's trace events kvm_set_user_memory and kvm_convert_memory, as all of its backends print them.

Three spellings: that of the log, syslog, ftrace and dtrace backends (`Slot#0 flags=0x0 ...`, whatever stands
before it), that of simpletrace.py (`1.5 pid=7 as=0x0 slot=0x0 ...`) and that of LTTng's readers (`{ as = 0,
slot = 0, ... }`). Fields are read by their exact names, which grew in 7.0, in 9.1 and in trees between. What
makes an event is its first field: a line that only mentions the name is none.
"""

from __future__ import annotations

import re

from kvmattr import uapi
from kvmattr.trace.calls import ASKED, Call, Incomplete, descriptor, errno_of
from kvmattr.trace.native import Mismatch, clip, number
from kvmattr.trace.operations import SetAttributes, SetSlot

SLOT_EVENT, CONVERT_EVENT = "kvm_set_user_memory", "kvm_convert_memory"

_SLOT = "kvm_set_user_memory [AddrSpace#N] Slot#N flags=0xN gpa=0xN size=0xN ua=0xN [...] ret=N"
_CONVERT = "kvm_convert_memory start 0xN size 0xN shared_to_private|private_to_shared"

#: The fields of the slot event by the names that have been printed for them.
_FIELDS = {
    "AddrSpace": "AddrSpace", "Slot": "Slot", "flags": "flags", "gpa": "gpa", "size": "size", "ua": "ua",
    "ret": "ret", "guest_memfd": "fd", "guest_memfd_offset": "offset", "restricted_fd": "fd",
    "restricted_offset": "offset", "fd": "fd", "fd_offset": "offset", "as": "AddrSpace", "slot": "Slot",
    "guest_phys_addr": "gpa", "memory_size": "size", "userspace_addr": "ua", "gmem_fd": "fd",
    "gmem_offset": "offset",
}
_REQUIRED = ("Slot", "flags", "gpa", "size", "ua", "ret")
#: A guest_memfd whose descriptor is not in the line is a file of its own for each memslot.
_UNNAMED = 1 << 24
#: What the simple and the LTTng backend print of every event.
_CONTEXT = {"pid", "cpu_id", "vpid", "vtid", "tid", "procname", "pthread_id", "hostname"}
# The lookbehind keeps this linear: a name is tried from its first character only.
_FIELD = re.compile(r"(?<![A-Za-z0-9_])([A-Za-z_][A-Za-z0-9_]*) ?[=#] ?([^\s,}]*)")
_VALUE = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|[0-9]+)(?![A-Za-z0-9_])")
_PLAIN = re.compile(r'[^"\\\x1b\r]*')

_SLOT_SHAPE = re.compile(r"\s+(?:(AddrSpace|Slot)#|[0-9.]+\s+pid=[0-9]|(?:flags|gpa|size|ua|as|slot)=)|:\s*\{")
#: Fields of the slot event, to be found in this order and near each other, and of the other one.
_SOME_FIELDS = re.compile(r"\b(?:(?:(gpa|guest_phys_addr)|((?:memory_)?size)|(ua|userspace_addr))\s?[=:]"
                          r"|start 0x[0-9a-fA-F]{1,16},? size 0x)")
_NEAR = 80
#: A conversion, however its numbers are written.
_CONVERSION = re.compile(r"\b(?:start|size|kvm_convert_memory)[ =:;,|\t]{1,3}(?:0x)?[0-9a-fA-F].{1,60}?"
                         r"(?:shared_to_private|private_to_shared)")
#: What QEMU says where a conversion, or setting a new memslot PRIVATE, was not done.
_REFUSED = re.compile(r"failed to set memory \((0x[0-9a-f]{1,16})\+(0x[0-9a-f]{1,16})\) with attr (0x[0-9a-f]{1,16})"
                      r" error '([^']{0,200})'", re.IGNORECASE)
_NO_FILE = re.compile(r"Convert non guest_memfd backed memory region \((0x[0-9a-f]{1,16}) ?, ?\+ ?(0x[0-9a-f]{1,16})\)"
                      r" to (shared|private)")
_CONVERT_SHAPE = re.compile(r"\s+(?:start[\s=]|[0-9.]+\s+pid=[0-9])|:\s*\{")
_CONVERT_TEXT = re.compile(r"\s+start\s+(\S+)\s+size\s+(\S+)\s+(\w+)")
_DIRECTIONS = {"shared_to_private": uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE, "private_to_shared": 0}
#: The first field, of which a line that was cut may hold the beginning.
_FIRST = {SLOT_EVENT: ("AddrSpace#", "Slot#"), CONVERT_EVENT: ("start ",)}


def is_event(name: str, rest: str, *, alone: bool) -> bool:
    """Whether what follows the name is an event's beginning. `alone`: nothing stands before the name.

    >>> is_event("kvm_set_user_memory", " Slot#0 flags=0x0", alone=True)
    True
    >>> is_event("kvm_set_user_memory", " -m size=4G", alone=False)
    False
    """
    shape = _SLOT_SHAPE if name == SLOT_EVENT else _CONVERT_SHAPE
    if shape.match(rest) is not None:
        return True
    word = rest.strip()
    return bool(word or alone) and any(first.startswith(word) for first in _FIRST[name])


def has_fields(text: str) -> bool:
    """Whether a line that is no event has its fields all the same.

    >>> has_fields("gpa=0x0 and size=0x1000 ua=0x0"), has_fields("size=0x1000 gpa=0x0 ua=0x0")
    (True, False)
    """
    # One pass: an expression for all three would try each first one with each second one.
    if _CONVERSION.search(text) is not None:
        return True
    gpa = size = -_NEAR - 1
    for found in _SOME_FIELDS.finditer(text):
        if found.lastindex is None or (found.lastindex == 3 and found.start() - size <= _NEAR):
            return True
        if found.lastindex == 1:
            gpa = found.end()
        elif found.lastindex == 2 and found.start() - gpa <= _NEAR:
            size = found.end()
    return False


def refusal(text: str) -> tuple[SetAttributes, str] | None:
    """What QEMU says was not done, and why in its words; None for other lines.

    >>> refusal("qemu: failed to set memory (0x1000+0x2000) with attr 0x0 error 'Cannot allocate memory'")
    (SetAttributes(address=4096, size=8192, attributes=0, flags=0), 'Cannot allocate memory')
    """
    if found := _REFUSED.search(text):
        return SetAttributes(*(int(word, 16) for word in found.groups()[:3])), found[4]
    if found := _NO_FILE.search(text):
        attributes = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE if found[3] == "private" else 0
        return SetAttributes(int(found[1], 16), int(found[2], 16), attributes), "no guest_memfd is behind it"
    return None


def begins_list(rest: str) -> bool:
    """Whether what follows the name begins a list of its fields on lines of their own."""
    return rest.strip() == ":"


def parse(name: str, rest: str) -> Call:
    """The call of an event, given its name and all that follows it in the line.

    >>> parse("kvm_convert_memory", " start 0x1000 size 0x2000 shared_to_private").record
    SetAttributes(address=4096, size=8192, attributes=8, flags=0)
    """
    if name == CONVERT_EVENT:
        return _convert(rest)
    # An event ends where a quote, an escape or the like begins: what stands behind is of who passed it on.
    plain = _PLAIN.match(rest)
    text = rest if rest.startswith(":") or plain is None else plain[0]
    fields, unknown = _fields(text)
    cut = len(text) == len(rest)
    missing = [field for field in _REQUIRED if field not in fields]
    if not missing and "fd" in fields and "offset" not in fields:
        missing = ["guest_memfd_offset"]
    if missing:
        text = f"expected {_SLOT!r}, found no {missing[0]}"
        raise Incomplete(text) if cut else Mismatch(text)
    address_space = _number(fields, "AddrSpace", 2**16) if "AddrSpace" in fields else 0
    slot = _number(fields, "Slot", 2**32) | address_space << uapi.KVM_ADDRESS_SPACE_SHIFT
    record = SetSlot(slot, _number(fields, "flags", 2**32), _number(fields, "gpa"), _number(fields, "size"),
                     _number(fields, "ua"))
    flags = record.flags
    if "fd" in fields:
        record = record._replace(guest_memfd=descriptor(_word(fields["fd"][1])),
                                 guest_memfd_offset=_number(fields, "offset"))
    # Trees with restricted memory, before guest_memfd was merged, set nothing PRIVATE by themselves.
    default_private = "fd" in fields and not fields["fd"][0].startswith("restricted")
    notes = tuple(f"unknown field {name}" for name in unknown)
    answer = errno_of(_word(fields["ret"][1]))
    if "fd" not in fields and flags & uapi.KVM_MEM_GUEST_MEMFD and record.memory_size:
        # QEMU's first trees for private memory had the flag and not yet the field.
        call = Call(record._replace(guest_memfd=_UNNAMED + (slot & 0xFFFFFF)), answer, notes=notes)
        if cut:
            raise Incomplete("expected guest_memfd", call)
        return call
    return Call(record, answer, default_private=default_private, notes=notes)


def _fields(text: str) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The known fields, each with the name that it has here and its value; the names of unknown ones."""
    fields: dict[str, tuple[str, str]] = {}
    unknown: list[str] = []
    for name, value in _FIELD.findall(text):
        known = _FIELDS.get(name)
        if known is None:
            if name not in _CONTEXT:
                unknown.append(clip(name))
        elif known in fields:
            raise Mismatch(f"expected {name} once, found it again")
        else:
            fields[known] = name, value
    return fields, unknown[:4]


def _word(value: str) -> str:
    """The number that a value begins with, without what is glued to it: a bracket, a comma, a quote."""
    found = _VALUE.match(value)
    return found[0] if found is not None else value


def _number(fields: dict[str, tuple[str, str]], field: str, limit: int = 2**64) -> int:
    name, value = fields[field]
    return number(_word(value), name, limit)


def _convert(rest: str) -> Call:
    found = _CONVERT_TEXT.match(rest)
    if found is not None:
        start, size, direction = found.groups()
    else:
        fields = {name: value.strip("\"'") for name, value in _FIELD.findall(rest.replace("=b'", "='"))}
        start, size, direction = (fields.get(name, "") for name in ("start", "size", "msg"))
    if direction not in _DIRECTIONS:
        text = f"expected {_CONVERT!r}, found {clip(CONVERT_EVENT + rest)}"
        whole = _PLAIN.match(rest)
        cut = whole is None or len(whole[0]) == len(rest)
        raise Incomplete(text) if cut and not direction else Mismatch(text)
    record = SetAttributes(number(start, "start"), number(size, "size"), _DIRECTIONS[direction])
    return Call(record, kind=ASKED)
