"""The native trace format, one operation a line: what a line may say, in both directions.

::

    # comment
    vm PROFILE [private=0|1] [no_exec=0|1] [exec_only=0|1] [write_only=0|1] [phys_bits=N] [nr_memslots=N] [host=NAME]
    set ADDR SIZE ATTRS FLAGS
    get ADDR SIZE
    slot ID FLAGS GPA SIZE [HVA [GUEST_MEMFD OFFSET]]
    gmem GUEST_MEMFD SIZE FLAGS
    gset GUEST_MEMFD OFFSET SIZE ATTRS FLAGS
    gpunch GUEST_MEMFD OFFSET SIZE

Numbers are decimal or 0x hexadecimal. `_native.pyx` is the quick road for the plain lines of a long trace;
this module defines the format, and every line that the quick road does not take comes here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kvmattr.hosts import HOSTS
from kvmattr.trace.operations import (
    CreateFile,
    GetAttributes,
    Machine,
    PunchHole,
    Record,
    SetAttributes,
    SetFileAttributes,
    SetSlot,
)

EXPECTED = {
    "set": "set ADDR SIZE ATTRS FLAGS",
    "get": "get ADDR SIZE",
    "slot": "slot ID FLAGS GPA SIZE [HVA [GUEST_MEMFD OFFSET]]",
    "gmem": "gmem GUEST_MEMFD SIZE FLAGS",
    "gset": "gset GUEST_MEMFD OFFSET SIZE ATTRS FLAGS",
    "gpunch": "gpunch GUEST_MEMFD OFFSET SIZE",
    "vm": "vm PROFILE [private=0|1] [no_exec=0|1] [exec_only=0|1] [write_only=0|1] [phys_bits=N]"
          " [nr_memslots=N] [host=NAME]",
}
OPTIONS = ("private", "no_exec", "exec_only", "write_only", "phys_bits", "nr_memslots")
_BOOLEAN = OPTIONS[:4]
_COUNTS = {"set": (4,), "get": (2,), "slot": (4, 5, 7), "gmem": (3,), "gset": (5,), "gpunch": (3,)}
_RECORDS: dict[str, Callable[..., Record]] = {
    "get": GetAttributes, "slot": SetSlot, "gmem": CreateFile, "gset": SetFileAttributes, "gpunch": PunchHole}
_LIMITS = {"ID": 2**32, "GUEST_MEMFD": 2**31}
_SLOT_FLAGS_LIMIT = 2**32
#: No number of ours has more digits, leading zeros aside; Python refuses to read some of thousands.
_DIGITS = 40
_QUOTED = 120
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+", re.ASCII)


class Mismatch(ValueError):
    """A line names one of our calls and does not parse; the text says what was expected."""


def clip(text: str) -> str:
    """The text as it is quoted in an error: control characters spelled, cut after 120 characters.

    >>> clip("a\\x1b[0m"), len(clip("x" * 1000))
    ("'a\\\\x1b[0m'", 125)
    """
    return repr(text) if len(text) <= _QUOTED else repr(text[:_QUOTED]) + "..."


def number(text: str, name: str, limit: int = 2**64) -> int:
    """A decimal or 0x number in [0, limit)."""
    if _NUMBER.fullmatch(text) is None:
        raise Mismatch(f"expected a decimal or 0x number for {name}, found {clip(text)}")
    if len(text.lstrip("0xX")) > _DIGITS:
        raise Mismatch(f"expected {name} below {limit:#x}, found a number of {len(text)} digits")
    value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
    if value >= limit:
        raise Mismatch(f"expected {name} below {limit:#x}, found {text}")
    return value


def parse(words: Sequence[str]) -> Record | Machine:
    """The operation of a native line, given as its words; the first is a key of EXPECTED.

    >>> parse("set 0x1000 4096 0x8 0".split())
    SetAttributes(address=4096, size=4096, attributes=8, flags=0)
    >>> parse("get 0x1000".split())
    Traceback (most recent call last):
    kvmattr.trace.native.Mismatch: expected 'get ADDR SIZE', found 1 number
    """
    name = words[0]
    if name == "vm":
        return _machine(words[1:])
    names = EXPECTED[name].replace("[", "").replace("]", "").split()[1:]
    given = words[1:]
    if len(given) not in _COUNTS[name]:
        count = f"{len(given)} number{'' if len(given) == 1 else 's'}"
        raise Mismatch(f"expected {EXPECTED[name]!r}, found {count}")
    values: list[int] = []
    for word, what in zip(given, names, strict=False):
        if what == "GUEST_MEMFD" and word == "-1" and name == "slot":
            values.append(-1)
        else:
            limit = _SLOT_FLAGS_LIMIT if (name, what) == ("slot", "FLAGS") else _LIMITS.get(what, 2**64)
            values.append(number(word, what, limit))
    if name == "set":
        return SetAttributes(*values)
    return _RECORDS[name](*values)


def _machine(words: Sequence[str]) -> Machine:
    if not words or "=" in words[0]:
        raise Mismatch(f"expected {EXPECTED['vm']!r}, found no profile")
    options: dict[str, int] = {}
    host = None
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if name == "host" and equals:
            if host is not None:
                raise Mismatch("expected host once, found it again")
            if value not in HOSTS:
                raise Mismatch(f"expected one of {', '.join(HOSTS)} for host, found {clip(value)}")
            host = value
            continue
        if name not in OPTIONS or not equals:
            raise Mismatch(f"expected one of {', '.join(OPTIONS)}, host with '=', found {clip(word)}")
        if name in options:
            raise Mismatch(f"expected {name} once, found it again")
        options[name] = number(value, name, 2 if name in _BOOLEAN else 2**16)
    return Machine(words[0], options, host)


def line_of(record: Record | Machine) -> str:
    """The native line of a record, without its end of line.

    >>> line_of(SetAttributes(0x1000, 0x2000, 8))
    'set 0x1000 0x2000 0x8 0x0'
    >>> line_of(Machine("linux", {"private": 1, "phys_bits": 40}))
    'vm linux private=1 phys_bits=40'
    """
    if isinstance(record, SetAttributes):
        return f"set {record.address:#x} {record.size:#x} {record.attributes:#x} {record.flags:#x}"
    if isinstance(record, GetAttributes):
        return f"get {record.address:#x} {record.size:#x}"
    if isinstance(record, Machine):
        options = (f"{name}={value}" for name, value in record.options.items())
        host = [] if record.host is None else [f"host={record.host}"]
        return " ".join(["vm", record.profile, *options, *host])
    if isinstance(record, CreateFile):
        return f"gmem {record.guest_memfd} {record.size:#x} {record.flags:#x}"
    if isinstance(record, SetFileAttributes):
        return (f"gset {record.guest_memfd} {record.offset:#x} {record.size:#x} {record.attributes:#x}"
                f" {record.flags:#x}")
    if isinstance(record, PunchHole):
        return f"gpunch {record.guest_memfd} {record.offset:#x} {record.size:#x}"
    line = (f"slot {record.slot} {record.flags:#x} {record.guest_phys_addr:#x} {record.memory_size:#x}"
            f" {record.userspace_addr:#x}")
    if record.guest_memfd is None:
        return line
    return f"{line} {record.guest_memfd} {record.guest_memfd_offset:#x}"
