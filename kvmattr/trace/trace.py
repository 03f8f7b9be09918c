"""A whole trace: its operations as rows, and what was told of the lines that it was read from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.trace.operations import (
    BLOCK_ROWS,
    FILE,
    FILE_SET,
    IMPLIED,
    KINDS,
    ROW,
    SET,
    SLOT,
    Block,
    Machine,
    Record,
    records_of,
)

#: Rows are kept in memory up to this many bytes, in a temporary file beyond.
IN_MEMORY = 64 << 20
#: Lines of which something is told are counted all, and kept up to this many.
KEPT = 20


class TraceError(ValueError):
    """A trace that cannot be read: the text names file, line and what was expected."""


class Told(NamedTuple):
    """A line and what is to be said of it."""

    line: int
    text: str


class Trace:
    """A whole trace, parsed: its operations in order, and what is known of all of them.

    Iterating gives one record an operation; `blocks()` gives the same as arrays of at most 65536 rows. Both
    may be had any number of times. What the VMM is known to do without a line is among them, with `origin`
    IMPLIED. A trace holds a temporary file when it is long: close it, or use `with`.
    """

    def __init__(self, name: str, machine: Machine | None = None) -> None:
        self.name = name
        #: What the `vm` line says, if there is one.
        self.machine = machine
        #: Whether it is the log of a real VMM, not a native trace.
        self.is_log = False
        self.lines = 0
        self.unrelated = 0
        self.operations = 0
        #: Operations without a line of their own.
        self.implied = 0
        self.slot_calls = 0
        self.attribute_calls = 0
        #: Calls that concern guest_memfd files, and those of them that set attributes.
        self.file_calls = 0
        self.file_conversions = 0
        #: Pages below the highest end that a slot call, or one that sets an attribute, names.
        self.slot_npages = 0
        self.attribute_npages = 0
        #: Whether a slot call that was not refused names the second address space: machines with private memory
        #: have none.
        self.second_address_space = False
        #: Whether a slot call that KVM accepted binds a guest_memfd.
        self.guest_memfds = False
        #: The highest end in user space of a slot call that KVM accepted, and its line.
        self.userspace_end = 0
        self.userspace_line = 0
        #: Which host the log names, if it does.
        self.host: str | None = None
        #: Which clock the lines have: "seconds", "day", or None.
        self.clock: str | None = None
        #: Lines that name one of our calls and were not read, or not all of them; how many there are.
        self.unread: list[Told] = []
        self.unread_count = 0
        #: Lines that were read and of which there is something to say; how many there are.
        self.notes: list[Told] = []
        self.note_count = 0
        #: Lines that only mention one of our names.
        self.mentions = 0
        #: Memslots that QEMU set PRIVATE without a line, and conversions that it did not ask KVM for.
        self.default_private = 0
        self.not_done = 0
        #: The first line that shows that the log does not begin with the VM, 0 if none does.
        self.begins_in_the_middle = 0
        self._rows: IO[bytes] | None = None

    @classmethod
    def from_blocks(cls, name: str, blocks: Iterable[Block], machine: Machine | None = None) -> Self:
        """A trace of operations that were made, not read."""
        trace = cls(name, machine)
        for block in blocks:
            trace.append(block)
        return trace

    def append(self, block: Block) -> None:
        """Add a block's operations at the end."""
        if not len(block):
            return
        if self._rows is None:
            self._rows = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._rows.seek(0, os.SEEK_END)
        self._rows.write(np.ascontiguousarray(block).data)
        self.operations += len(block)
        implied = block["origin"] == IMPLIED
        self.implied += int(np.count_nonzero(implied))
        kinds = np.bincount(block["kind"][~implied], minlength=KINDS)
        self.attribute_calls += int(kinds[SET])
        self.slot_calls += int(kinds[SLOT:FILE].sum())
        self.file_calls += int(kinds[FILE:].sum())
        self.file_conversions += int(kinds[FILE_SET])
        words = block["words"][(block["kind"] == SET) & (block["words"][:, 2] != 0)]
        self.attribute_npages = max(self.attribute_npages, _highest_end(words[:, 0], words[:, 1]))
        slots = block[(block["kind"] >= SLOT) & (block["kind"] < FILE)]
        words = slots["words"]
        self.slot_npages = max(self.slot_npages, _highest_end(words[:, 2], words[:, 3]))
        # A refused call shows nothing: machines with private memory refuse it for that.
        spaces = words[slots["answer"] <= 0, 0] >> np.uint64(uapi.KVM_ADDRESS_SPACE_SHIFT)
        self.second_address_space |= bool(spaces.any())
        accepted = slots[(slots["answer"] == 0) & (words[:, 3] != 0)]
        if len(accepted):
            self.guest_memfds |= bool((accepted["words"][:, 1] & np.uint64(uapi.KVM_MEM_GUEST_MEMFD)).any())
            ends = accepted["words"][:, 4] + accepted["words"][:, 3]
            highest = int(ends.argmax())
            if int(ends[highest]) > self.userspace_end:
                self.userspace_end, self.userspace_line = int(ends[highest]), int(accepted["line"][highest])

    def tell_unread(self, line: int, text: str) -> None:
        """Say why a line that names one of our calls was not read."""
        self.unread_count += 1
        if len(self.unread) < KEPT:
            self.unread.append(Told(line, text))

    def tell_note(self, line: int, text: str) -> None:
        """Say something of a line that was read."""
        self.note_count += 1
        if len(self.notes) < KEPT:
            self.notes.append(Told(line, text))

    def tell_once(self, text: str) -> None:
        """Say something of the whole trace; once, however often it is said."""
        if not any(note.text == text for note in self.notes):
            self.tell_note(0, text)

    def blocks(self) -> Iterator[Block]:
        """The operations in order, as arrays of ROW."""
        for start in range(0, self.operations, BLOCK_ROWS):
            if self._rows is None:
                raise ValueError(f"{self.name}: the trace was closed")
            self._rows.seek(start * ROW.itemsize)
            count = min(BLOCK_ROWS, self.operations - start)
            yield np.frombuffer(self._rows.read(count * ROW.itemsize), dtype=ROW)

    def __iter__(self) -> Iterator[Record]:
        for block in self.blocks():
            yield from records_of(block)

    def __len__(self) -> int:
        return self.operations

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the rows back; the trace cannot be read any more."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def _highest_end(addresses: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> int:
    """Pages below the highest end of these byte ranges, leaving out those that no call would accept."""
    ends = addresses + sizes
    accepted = (ends > addresses) & ((addresses | sizes) % np.uint64(uapi.PAGE_SIZE) == 0)
    return int(ends[accepted].max(initial=0)) // uapi.PAGE_SIZE
