"""Runs in a sorted Python map: what one writes without a library for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr.operation import Operation
from kvmattr.study.backends.base import ROW_BYTES, Backend
from kvmattr.study.work import Batch, Footprint, applied, coalesced


class SortedRuns(Backend):
    """``sortedcontainers.SortedDict`` from the first page of each run to its attributes."""

    name = "sortedcontainers"
    kind = "library"
    library = "sortedcontainers"
    about = "sortedcontainers.SortedDict of runs, split and merged in Python"

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """Two runs an update, each two numbers, a place in a dict and one in a list; and the updates themselves."""
        return footprint.updates * (2 * 200 + ROW_BYTES)

    def __init__(self, npages: int) -> None:
        from sortedcontainers import SortedDict

        self._npages = npages
        self._runs: Any = SortedDict({0: 0})

    def prepare(self, batch: Batch) -> list[tuple[int, int, int, Operation]]:
        return list(batch.rows())

    def update(self, prepared: list[tuple[int, int, int, Operation]]) -> None:
        """Cut at both ends, change what lies between, merge with the neighbours."""
        for start, stop, attributes, operation in prepared:
            self._cut(start)
            if stop < self._npages:
                self._cut(stop)
            inside = list(self._runs.irange(start, stop, (True, False)))
            for first in inside:
                self._runs[first] = applied(self._runs[first], attributes, operation)
            for first in (*inside, stop):
                self._merge(first)

    def _cut(self, gfn: int) -> None:
        if gfn not in self._runs:
            self._runs[gfn] = self._runs.peekitem(self._runs.bisect_left(gfn) - 1)[1]

    def _merge(self, gfn: int) -> None:
        index = self._runs.bisect_left(gfn)
        if index > 0 and gfn in self._runs and self._runs.peekitem(index - 1)[1] == self._runs[gfn]:
            del self._runs[gfn]

    def runs(self) -> NDArray[Any]:
        starts = list(self._runs)
        return coalesced(starts, [*starts[1:], self._npages], list(self._runs.values()))

    export = runs

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        runs = self._runs
        return np.fromiter((runs.peekitem(runs.bisect_right(gfn) - 1)[1] for gfn in gfns.tolist()),
                           np.uint8, len(gfns))
