"""One recorded VM: what its log says that was done, with what its VMM does without a line.

QEMU since 9.1 sets each new memslot with a guest_memfd PRIVATE and has no event for it; it writes
kvm_convert_memory before it looks whether there is a guest_memfd behind the range, without which it asks KVM
nothing (accel/kvm/kvm-all.c). So a session keeps the recorded memslots, as far as the log tells them.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right, insort
from typing import Any, NamedTuple

import numpy as np

from kvmattr import uapi
from kvmattr.trace.calls import ASKED, Call
from kvmattr.trace.operations import (
    IMPLIED,
    NO_TIME,
    RECORDED,
    ROW,
    SET,
    UNKNOWN,
    Record,
    SetAttributes,
    SetSlot,
    row_of,
)
from kvmattr.trace.trace import Trace

#: Rows are handed on in blocks of so many.
_ROWS = 4096
#: So many of the last rows are kept back: a line that follows may say that one was not done.
_KEPT_BACK = 64
#: Threads write their lines a little out of order: so many nanoseconds say nothing. So many are of another clock or
#: zone.
_IN_ORDER, _ANOTHER_CLOCK = 10**7, 3500 * 10**9
#: QEMU converts host pages; it is not built for smaller ones.
_HOST_PAGE = uapi.PAGE_SIZE


#: As this machine words them, in whose language a log mostly is.
_ERRNOS = {os.strerror(number): number for number in errno.errorcode}


class _Slot(NamedTuple):
    number: int
    start: int
    stop: int
    guest_memfd: bool
    userspace_addr: int


class Guest:
    """A VM of the log: who made it, and the trace of its calls.

    `number` counts the log's VMs from 1; `made_on` is the line of its KVM_CREATE_VM, 0 if the log has none.
    """

    def __init__(self, number: int, name: str, pid: int | None = None, file: int | None = None,
                 made_on: int = 0, *, default_private: bool | None = None) -> None:
        self.number = number
        self.pid = pid
        self.file = file
        self.made_on = made_on
        #: The first line that has a call on it.
        self.first_line = made_on
        #: The processes or threads that have made calls on it.
        self.pids: set[int] = set() if pid is None else {pid}
        self.calls = 0
        #: What its lines call it, by kind of name; what shows that it is not the VM before.
        self.names: dict[str, str] = {}
        self.why: str | None = None
        self.trace = Trace(name)
        self.trace.is_log = True
        self._default_private = default_private
        self._rows: list[tuple[Any, ...]] = []
        self._slots: dict[int, _Slot] = {}
        # The same in order of address, an address space each.
        self._places: dict[int, list[tuple[int, int]]] = {}
        #: Whether its log has memslots.
        self.has_slots = False
        self._first_slot: int | None = None
        #: The newest time of a line; how many lines came after newer ones, the first of them, and by how much at most.
        self._newest = NO_TIME
        self._late = self._late_line = self._late_by = 0

    def apply(self, call: Call, line: int, time: int = NO_TIME) -> None:
        """Take one recorded call."""
        self.calls += 1
        self.first_line = self.first_line or line
        if time != NO_TIME:
            if _IN_ORDER < self._newest - time < _ANOTHER_CLOCK:
                self._late, self._late_line = self._late + 1, self._late_line or line
                self._late_by = max(self._late_by, self._newest - time)
            elif time > self._newest or self._newest - time >= _ANOTHER_CLOCK:
                self._newest = time
        if call.pid is not None:
            self.pids.add(call.pid)
        for note in call.notes:
            self.trace.tell_unread(line, note)
        record = call.record
        if isinstance(record, SetSlot):
            self._add(row_of(record, line, call.answer, RECORDED, time))
            if call.answer in (0, UNKNOWN):
                self._slot(record, line)
                if self._sets_private(call):
                    private = SetAttributes(record.guest_phys_addr, record.memory_size,
                                            uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
                    self._add(row_of(private, line, UNKNOWN, IMPLIED, time))
                    self.trace.default_private += 1
        elif isinstance(record, SetAttributes) and call.kind == ASKED:
            why = self._why_not(record)
            if why is None:
                self._add(row_of(record, line, call.answer, RECORDED, time))
            else:
                self._not_done(record, line, why)
        else:
            self._add(row_of(record, line, call.answer, RECORDED, time))

    def refuse(self, record: SetAttributes, why: str) -> bool:
        """A line says that this change of attributes, one of the last, was not done; whether it was found."""
        for at in reversed(range(max(len(self._rows) - _KEPT_BACK, 0), len(self._rows))):
            kind, origin, _, file, line, words, time = self._rows[at]
            if kind == SET and words[:3] == record[:3]:
                answer = _ERRNOS.get(why)
                if answer is not None:
                    self._rows[at] = (kind, origin, answer, file, line, words, time)
                    return True
                del self._rows[at]
                self.trace.default_private -= origin == IMPLIED
                self._not_done(record, line, why)
                return True
        return False

    def contradicts(self, record: Record | None, answer: int) -> str | None:
        """What a call that KVM took would not have been in this VM, in words; None where nothing speaks against it.

        KVM takes no other size and no other userspace address for a memslot that exists, and none over another.
        """
        if answer != 0 or not isinstance(record, SetSlot) or record.memory_size == 0:
            return None
        start, stop = record.guest_phys_addr, record.guest_phys_addr + record.memory_size
        known = self._slots.get(record.slot)
        if known is not None and (known.stop - known.start != record.memory_size
                                  or known.userspace_addr != record.userspace_addr):
            return f"slot {record.slot} is made again elsewhere, and no line has deleted it"
        over = next((slot for slot in self._over(record.slot, start, stop) if slot.number != record.slot), None)
        if over is not None:
            return f"slot {record.slot} is made over slot {over.number}, which no line has deleted"
        return None

    def begins_again(self, record: SetSlot) -> bool:
        """Whether a call that contradicts makes the memslot that a VM of this kind makes first."""
        return record.slot == self._first_slot

    def finish(self) -> Trace:
        """The whole trace."""
        self._flush(0)
        if self._late:
            others = f" ({self._late:,} lines are)" if self._late > 1 else ""
            self.trace.tell_note(self._late_line, f"older than a line before it{others}, by up to"
                                 f" {self._late_by / 10**9:.3f} s: lines count in the order in which they stand")
        return self.trace

    def _not_done(self, record: SetAttributes, line: int, why: str) -> None:
        direction = "private" if record.attributes else "shared"
        self.trace.tell_note(line, f"conversion of [{record.address:#x}, {record.address + record.size:#x})"
                             f" to {direction} not done: {why}")
        self.trace.not_done += 1

    def _sets_private(self, call: Call) -> bool:
        record = call.record
        assert isinstance(record, SetSlot)
        if record.memory_size == 0 or not record.flags & uapi.KVM_MEM_GUEST_MEMFD or call.answer != 0:
            return False
        return call.default_private if self._default_private is None else self._default_private

    def _why_not(self, record: SetAttributes) -> str | None:
        """Why QEMU does not ask KVM for a conversion; None where it does."""
        start, stop = record.address, record.address + record.size
        if record.size == 0:
            return "its size is 0"
        if start % _HOST_PAGE or stop % _HOST_PAGE:
            return "it is not of whole pages"
        if not self.has_slots:
            self.trace.tell_once("no memslot in the log before its conversions: each is taken as done")
            return None
        slot = self._first_in(start, stop)
        if slot is None:
            # The log may begin after the slot was made.
            return None if self.trace.begins_in_the_middle else "no memslot is there"
        return None if slot.guest_memfd else f"no guest_memfd is behind it, in slot {slot.number}"

    def _first_in(self, start: int, stop: int) -> _Slot | None:
        """The memslot of address space 0 with the lowest address in the range: QEMU looks at that one alone."""
        places = self._places.get(0, [])
        at = bisect_right(places, (start, 1 << 64)) - 1
        for place in places[max(at, 0):at + 2]:
            slot = self._slots[place[1]]
            if slot.start < stop and slot.stop > start:
                return slot
        return None

    def _slot(self, record: SetSlot, line: int) -> None:
        self.has_slots = True
        known = self._remove(record.slot)
        start, stop = record.guest_phys_addr, record.guest_phys_addr + record.memory_size
        if record.memory_size == 0:
            if not known and not self.trace.begins_in_the_middle:
                self.trace.begins_in_the_middle = line
                self.trace.tell_note(line, f"slot {record.slot} is deleted, which no line made: the log begins in the"
                                     " middle")
            return
        if self._first_slot is None:
            self._first_slot = record.slot
        # KVM takes no slot over another one, so what is there must have been deleted.
        for slot in self._over(record.slot, start, stop):
            self._remove(slot.number)
        guest_memfd = bool(record.flags & uapi.KVM_MEM_GUEST_MEMFD)
        self._slots[record.slot] = _Slot(record.slot, start, stop, guest_memfd, record.userspace_addr)
        insort(self._places.setdefault(record.slot >> uapi.KVM_ADDRESS_SPACE_SHIFT, []), (start, record.slot))

    def _over(self, number: int, start: int, stop: int) -> list[_Slot]:
        """The memslots of this slot's address space that have addresses of a range."""
        places = self._places.get(number >> uapi.KVM_ADDRESS_SPACE_SHIFT, [])
        at = max(bisect_right(places, (start, 1 << 64)) - 1, 0)
        slots = (self._slots[place[1]] for place in places[at:bisect_left(places, (stop, 0))])
        return [slot for slot in slots if slot.stop > start]

    def _remove(self, number: int) -> bool:
        slot = self._slots.pop(number, None)
        if slot is None:
            return False
        places = self._places[number >> uapi.KVM_ADDRESS_SPACE_SHIFT]
        del places[bisect_left(places, (slot.start, number))]
        return True

    def _add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self._flush(_KEPT_BACK)

    def _flush(self, kept: int) -> None:
        stop = len(self._rows) - kept
        if stop > 0:
            self.trace.append(np.array(self._rows[:stop], dtype=ROW))
            del self._rows[:stop]
