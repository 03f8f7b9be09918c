"""What a trace is made of: one record type an operation, and the array row that holds any of them.

A *record* is what people read and write one at a time. A *block* is an array of rows, what the replay works
on: a million operations are 72 MB of rows, and none of them is a Python object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SET: Final = 0
GET: Final = 1
SLOT: Final = 2
#: A slot call with a guest_memfd, which KVM has only in KVM_SET_USER_MEMORY_REGION2.
SLOT2: Final = 3

#: Calls that concern a guest_memfd file: its creation, KVM_SET_MEMORY_ATTRIBUTES2, a hole punched.
FILE: Final = 4
FILE_SET: Final = 5
FILE_HOLE: Final = 6
KINDS: Final = 7

#: `answer` of an operation whose trace does not tell how it went.
UNKNOWN: Final = -1
#: The userspace address of a slot whose trace does not name one.
DEFAULT_USERSPACE_ADDRESS: Final = 0x7F00_0000_0000
#: Rows in a block: 4.5 MB, large enough that the cost of a block is nothing to that of its rows.
BLOCK_ROWS: Final = 65536

#: Where an operation comes from: a line of its own, or what the VMM is known to do without one.
RECORDED: Final = 0
IMPLIED: Final = 1
#: `time` of an operation whose line has no time.
NO_TIME: Final = -1

#: One operation. `words` are the numbers of its native line in their order; `answer` is the recorded errno;
#: `line` is the line of the trace that it came from; `time` is in nanoseconds of the recording's own clock.
#: `_native.pyx` writes this layout.
ROW: Final = np.dtype([
    ("kind", "u1"), ("origin", "u1"), ("answer", "<i2"), ("guest_memfd", "<i4"), ("line", "<u8"),
    ("words", "<u8", (6,)), ("time", "<i8"),
], align=True)

Block = NDArray[np.void]


class SetAttributes(NamedTuple):
    """KVM_SET_MEMORY_ATTRIBUTES; `flags` is the structure's last u64: operation | flags << 32 in `rfc`."""

    address: int
    size: int
    attributes: int
    flags: int = 0


class GetAttributes(NamedTuple):
    """The attributes of a range, all runs of it."""

    address: int
    size: int


class SetSlot(NamedTuple):
    """KVM_SET_USER_MEMORY_REGION, or ...REGION2 when `guest_memfd` is a file descriptor (-1: none bound)."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int = DEFAULT_USERSPACE_ADDRESS
    guest_memfd: int | None = None
    guest_memfd_offset: int = 0


class CreateFile(NamedTuple):
    """KVM_CREATE_GUEST_MEMFD; `guest_memfd` is the number that stands for the file in the trace."""

    guest_memfd: int
    size: int
    flags: int = 0


class SetFileAttributes(NamedTuple):
    """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd: bytes of the file."""

    guest_memfd: int
    offset: int
    size: int
    attributes: int
    flags: int = 0


class PunchHole(NamedTuple):
    """fallocate with FALLOC_FL_PUNCH_HOLE on a guest_memfd."""

    guest_memfd: int
    offset: int
    size: int


FileRecord = CreateFile | SetFileAttributes | PunchHole
#: One operation of a trace.
Record = SetAttributes | GetAttributes | SetSlot | FileRecord


class Machine(NamedTuple):
    """The `vm` line: the ABI profile and what else `VM` is to be called with.

    >>> Machine("linux", {"phys_bits": 40}).options["phys_bits"]
    40
    """

    profile: str
    options: dict[str, int]
    #: A name of `kvmattr.hosts`; None for x86-64.
    host: str | None = None


def rows_of(records: Iterable[Record], first_line: int = 1) -> Block:
    """The block that holds these records.

    >>> list(records_of(rows_of([SetAttributes(0, 4096, 1), GetAttributes(0, 8192)])))
    [SetAttributes(address=0, size=4096, attributes=1, flags=0), GetAttributes(address=0, size=8192)]
    """
    rows = [row_of(record, first_line + index) for index, record in enumerate(records)]
    return np.array(rows, dtype=ROW)


def row_of(record: Record, line: int, answer: int = UNKNOWN, origin: int = RECORDED,
           time: int = NO_TIME) -> tuple[Any, ...]:
    """One record as the tuple that an array of ROW takes."""
    if isinstance(record, SetAttributes):
        return (SET, origin, answer, -1, line, (*record, 0, 0), time)
    if isinstance(record, GetAttributes):
        return (GET, origin, answer, -1, line, (*record, 0, 0, 0, 0), time)
    if not isinstance(record, SetSlot):
        file, *numbers = record
        kind = {CreateFile: FILE, SetFileAttributes: FILE_SET, PunchHole: FILE_HOLE}[type(record)]
        return (kind, origin, answer, file, line, (*numbers, *(0,) * (6 - len(numbers))), time)
    *words, guest_memfd, offset = record
    if guest_memfd is None:
        return (SLOT, origin, answer, -1, line, (*words, 0), time)
    return (SLOT2, origin, answer, guest_memfd, line, (*words, offset), time)


def records_of(block: Block) -> Iterator[Record]:
    """The rows of a block as records."""
    kinds = block["kind"].tolist()
    words = block["words"].tolist()
    for index, (kind, word) in enumerate(zip(kinds, words, strict=True)):
        if kind == SET:
            yield SetAttributes(*word[:4])
        elif kind == GET:
            yield GetAttributes(*word[:2])
        elif kind == FILE:
            yield CreateFile(int(block["guest_memfd"][index]), *word[:2])
        elif kind == FILE_SET:
            yield SetFileAttributes(int(block["guest_memfd"][index]), *word[:4])
        elif kind == FILE_HOLE:
            yield PunchHole(int(block["guest_memfd"][index]), *word[:2])
        else:
            slot = SetSlot(*word[:5])
            yield slot if kind == SLOT else slot._replace(
                guest_memfd=int(block["guest_memfd"][index]), guest_memfd_offset=word[5])


def stretches(block: Block) -> Iterator[Block]:
    """The block cut where the kind of operation changes, so that each piece can go as one batch."""
    if len(block):
        kinds = block["kind"]
        cuts = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(block)]
        for start, stop in pairwise(cuts):
            yield block[start:stop]
