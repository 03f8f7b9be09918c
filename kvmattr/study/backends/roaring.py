"""A compressed bitmap of the converted pages: one attribute bit, the closest that a Python library comes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import Operation
from kvmattr.study import extras
from kvmattr.study.backends.base import Backend
from kvmattr.study.work import Batch, Unsupported, pages_to_runs


class Roaring(Backend):
    """``pyroaring.BitMap64`` of the private pages; each update is one call from Python."""

    name = "pyroaring"
    kind = "library"
    about = "pyroaring.BitMap64 of the converted pages: one attribute bit"

    @classmethod
    def missing(cls) -> str | None:
        """The library must be installed."""
        return extras.missing("pyroaring")

    def __init__(self, npages: int) -> None:
        from pyroaring import BitMap64

        self._npages = npages
        self._private: Any = BitMap64()

    def prepare(self, batch: Batch) -> list[tuple[int, int, int, Operation]]:
        """Python numbers: the library takes no arrays of ranges."""
        if (batch.attributes > 1).any() or (batch.operations != Operation.WRITE).any():
            raise Unsupported("a bitmap has one attribute bit")
        return list(batch.rows())

    def update(self, prepared: list[tuple[int, int, int, Operation]]) -> None:
        """``add_range`` or ``remove_range`` an update."""
        add, remove = self._private.add_range, self._private.remove_range
        for start, stop, attributes, _ in prepared:
            (add if attributes else remove)(start, stop)

    def runs(self) -> NDArray[Any]:
        """Every private page, coalesced."""
        gfns = np.fromiter(self._private, np.uint64, len(self._private))
        return pages_to_runs(gfns, np.ones(len(gfns), np.uint8), self._npages)

    def has(self, ranges: Batch) -> NDArray[np.bool_]:
        """``contains_range`` for private; a range that must be shared is beyond one call."""
        if not ranges.attributes.all():
            raise Unsupported("pyroaring has no query for an empty range")
        answers = map(self._private.contains_range, ranges.starts.tolist(), ranges.stops.tolist())
        return np.fromiter(answers, np.bool_, len(ranges))

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """One ``in`` a page."""
        private = self._private
        return np.fromiter((gfn in private for gfn in gfns.tolist()), np.uint8, len(gfns))
