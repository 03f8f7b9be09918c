"""What a VMM with memslots alone asks of KVM for each update, worked out before the clock starts.

A real VMM must find the slots that a range touches, delete them and create the pieces. That bookkeeping is
left out of what is timed, which favours memslots: the kernel's work alone is charged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import AttributeMap, uapi
from kvmattr.study.work import Batch

#: The largest memslot that is a whole number of 1 GiB pages: a bigger guest has several, cut at its multiples.
SLOT_PAGES = uapi.KVM_MEM_MAX_NR_PAGES >> 18 << 18

#: First page, page behind the last, attributes.
_Piece = tuple[int, int, int]


class SlotPlan:
    """The slots over ``[0, npages)``, one a run (more where a run is longer than a slot may be), and the calls
    that an update needs.

    Attributes 1 become a read-only slot: the one restriction that a memslot can express. ``userspace_addr``
    is where the guest's memory begins in the VMM.
    """

    def __init__(self, npages: int, userspace_addr: int) -> None:
        self._userspace_addr = userspace_addr
        self._map = AttributeMap(npages)
        self._slot_of = {piece: slot for slot, piece in enumerate(self._pieces(0, npages))}
        self._free: list[int] = []

    def plan(self, batch: Batch) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The calls for ``batch``, and for each update the number of calls up to its end."""
        calls: list[tuple[int, _Piece]] = []
        ends = np.empty(len(batch), np.int64)
        for index, (start, stop, attributes, _) in enumerate(batch.rows()):
            calls += self._update(start, stop, attributes)
            ends[index] = len(calls)
        return self._records(calls), ends

    def load(self, batch: Batch, limit: int) -> tuple[int, NDArray[Any]]:
        """Do updates until ``limit`` slots are in use: how many, and the calls that create the slots."""
        done = 0
        while done < len(batch) and len(self._slot_of) < limit:
            self.plan(batch.part(done, done + 1))
            done += 1
        return done, self.slots()

    def runs(self) -> NDArray[Any]:
        """The runs of the state: the slots, and those that only the largest slot's size keeps apart as one."""
        return self._map.runs()

    def slots(self) -> NDArray[Any]:
        """The calls that would create every slot of the state."""
        return self._records([(slot, piece) for piece, slot in sorted(self._slot_of.items())])

    def _pieces(self, start: int, stop: int) -> list[_Piece]:
        """The runs of a stretch, cut where a slot has to end."""
        return [(max(low, edge), min(high, edge + SLOT_PAGES), attributes)
                for low, high, attributes in self._map.runs(start, stop).tolist()
                for edge in range(low // SLOT_PAGES * SLOT_PAGES, high, SLOT_PAGES)]

    def _update(self, start: int, stop: int, attributes: int) -> list[tuple[int, _Piece]]:
        # With the runs beside it: the new pieces may merge with those.
        around = self._map.run(max(start, 1) - 1).start, self._map.run(min(stop, len(self._map) - 1)).stop
        old = self._pieces(*around)
        self._map.write(start, stop, attributes)
        new = self._pieces(*around)
        # KVM refuses overlapping slots: every old piece must be gone before the first new one comes.
        gone = [self._slot_of.pop(piece) for piece in old if piece not in new]
        self._free += gone
        made = [piece for piece in new if piece not in self._slot_of]
        for piece in made:
            # Past the last slot this counts on: the kernel, not the plan, decides where the table ends.
            self._slot_of[piece] = self._free.pop() if self._free else len(self._slot_of)
        return [*((slot, (0, 0, 0)) for slot in gone), *((self._slot_of[piece], piece) for piece in made)]

    def _records(self, calls: list[tuple[int, _Piece]]) -> NDArray[Any]:
        rows = np.array([(slot, *piece) for slot, piece in calls], np.uint64).reshape(-1, 4)
        slot, start, stop, attributes = rows.T
        records = np.zeros(len(calls), uapi.USERSPACE_MEMORY_REGION)
        records["slot"] = slot
        records["flags"] = np.where(attributes != 0, uapi.KVM_MEM_READONLY, 0)
        records["guest_phys_addr"] = start << np.uint64(uapi.PAGE_SHIFT)
        records["memory_size"] = (stop - start) << np.uint64(uapi.PAGE_SHIFT)
        records["userspace_addr"] = records["guest_phys_addr"] + np.uint64(self._userspace_addr)
        return records
