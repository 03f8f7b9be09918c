"""What a VMM with memslots alone asks of KVM for each update, worked out before the clock starts.

A real VMM must find the slots that a range touches, delete them and create the pieces. That bookkeeping is
left out of what is timed, which favours memslots: the kernel's work alone is charged.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.study.work import Batch, coalesced

#: The largest memslot that is a whole number of 1 GiB pages: a bigger guest has several, cut at its multiples.
SLOT_PAGES = uapi.KVM_MEM_MAX_NR_PAGES >> 18 << 18


class SlotPlan:
    """The slots over ``[0, npages)``, one a run (more where a run is longer than a slot may be), and the calls
    that an update needs.

    Attributes 1 become a read-only slot: the one restriction that a memslot can express. ``userspace_addr``
    is where the guest's memory begins in the VMM.
    """

    def __init__(self, npages: int, userspace_addr: int) -> None:
        self._npages = npages
        self._userspace_addr = userspace_addr
        self._starts = list(range(0, npages, SLOT_PAGES))
        self._attributes = [0] * len(self._starts)
        self._slots = list(range(len(self._starts)))
        self._free: list[int] = []
        self._next = len(self._slots)

    def plan(self, batch: Batch) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The calls for ``batch``, and for each update the number of calls up to its end."""
        calls: list[tuple[int, int, int, int]] = []
        ends = np.empty(len(batch), np.int64)
        for index, (start, stop, attributes, _) in enumerate(batch.rows()):
            self._update(calls, start, stop, attributes)
            ends[index] = len(calls)
        return self._records(calls), ends

    def load(self, batch: Batch, limit: int) -> tuple[int, NDArray[Any]]:
        """Do updates until ``limit`` slots are in use: how many, and the calls that create the slots."""
        done = 0
        while done < len(batch) and len(self._starts) < limit:
            self.plan(batch.part(done, done + 1))
            done += 1
        return done, self.slots()

    def runs(self) -> NDArray[Any]:
        """The runs of the state: the slots, and those that only the largest slot's size keeps apart as one."""
        return coalesced(self._starts, [*self._starts[1:], self._npages], self._attributes)

    def slots(self) -> NDArray[Any]:
        """The calls that would create every slot of the state."""
        stops = [*self._starts[1:], self._npages]
        return self._records(list(zip(self._slots, self._attributes, self._starts, stops, strict=True)))

    def _update(self, calls: list[tuple[int, int, int, int]], start: int, stop: int, attributes: int) -> None:
        # One slot more at each side: the new pieces may merge with those neighbours.
        first = max(bisect_right(self._starts, start) - 2, 0)
        last = min(bisect_left(self._starts, stop) + 1, len(self._starts))
        bounds = [*self._starts[first:last], self._starts[last] if last < len(self._starts) else self._npages]
        old = list(zip(bounds, bounds[1:], self._attributes[first:last], strict=False))
        new = _updated(old, start, stop, attributes)
        kept = set(old).intersection(new)
        slot_of = dict(zip(old, self._slots[first:last], strict=True))
        # KVM refuses overlapping slots: every old piece must be gone before the first new one comes.
        for piece, slot in slot_of.items():
            if piece not in kept:
                calls.append((slot, 0, 0, 0))
                self._free.append(slot)
        for piece in new:
            if piece not in kept:
                slot_of[piece] = self._take_slot()
                calls.append((slot_of[piece], piece[2], piece[0], piece[1]))
        self._starts[first:last] = [piece[0] for piece in new]
        self._attributes[first:last] = [piece[2] for piece in new]
        self._slots[first:last] = [slot_of[piece] for piece in new]

    def _take_slot(self) -> int:
        # Past the last slot this counts on: the kernel, not the plan, decides where the table ends.
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def _records(self, calls: list[tuple[int, int, int, int]]) -> NDArray[Any]:
        slot, attributes, start, stop = (np.array(column, np.uint64) for column in
                                         (zip(*calls, strict=True) if calls else [()] * 4))
        records = np.zeros(len(calls), uapi.USERSPACE_MEMORY_REGION)
        records["slot"] = slot
        records["flags"] = np.where(attributes != 0, uapi.KVM_MEM_READONLY, 0)
        records["guest_phys_addr"] = start << np.uint64(uapi.PAGE_SHIFT)
        records["memory_size"] = (stop - start) << np.uint64(uapi.PAGE_SHIFT)
        records["userspace_addr"] = records["guest_phys_addr"] + np.uint64(self._userspace_addr)
        return records


def _updated(old: list[tuple[int, int, int]], start: int, stop: int,
             attributes: int) -> list[tuple[int, int, int]]:
    """The pieces after a write to ``[start, stop)``: cut at its two ends, changed within, merged."""
    new: list[tuple[int, int, int]] = []
    for low, high, before in old:
        inside = max(low, start), min(high, stop)
        for left, right, value in ((low, min(high, start), before), (*inside, attributes),
                                   (max(low, stop), high, before)):
            if left >= right:
                continue
            if new and new[-1][2] == value and left % SLOT_PAGES:
                new[-1] = (new[-1][0], right, value)
            else:
                new.append((left, right, value))
    return new
