"""The plainest store: a numpy array with one byte a page."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr.study import _loops
from kvmattr.study.backends.base import Backend
from kvmattr.study.work import Batch, Footprint, coalesced


class Dense(Backend):
    """One byte a page in one array: fast in small guests, and it pays for every page of a big one."""

    name = "numpy"
    kind = "model"
    about = "a dense numpy array, one byte a page"

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """One byte a page, and as much again while pages are compared."""
        return 2 * footprint.npages

    def __init__(self, npages: int) -> None:
        # Written, unlike np.zeros: else the rounds would pay for the first touch of each 4 KiB of it.
        self.pages = np.full(npages, 0, np.uint8)

    def update(self, prepared: Batch) -> None:
        _loops.update_array(self.pages, prepared.starts, prepared.stops, prepared.attributes, prepared.operations)

    def runs(self) -> NDArray[Any]:
        edges = np.concatenate([[0], np.flatnonzero(self.pages[1:] != self.pages[:-1]) + 1])
        stops = np.append(edges[1:], len(self.pages))
        return coalesced(edges, stops, self.pages[edges])

    export = runs

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """numpy's fastest gather; its index must be signed."""
        return self.pages.take(gfns.view(np.int64), mode="wrap")

    def has(self, ranges: Batch) -> NDArray[np.bool_]:
        return _loops.array_has(self.pages, ranges.starts, ranges.stops, ranges.attributes)

    def snapshot_restore(self, prepared: Batch) -> None:
        before = self.pages.copy()
        self.update(prepared)
        self.pages[:] = before

    def migrate(self, prepared: Batch) -> int:
        before = self.pages.copy()
        self.update(prepared)
        return int(np.count_nonzero(self.pages != before))

    def nbytes(self) -> int:
        return self.pages.nbytes
