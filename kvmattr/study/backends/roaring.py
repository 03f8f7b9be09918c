"""A compressed bitmap of the converted pages: one attribute bit, the closest that a Python library comes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr.operation import Operation
from kvmattr.study.backends.base import ROW_BYTES, Backend
from kvmattr.study.work import Batch, Footprint, Unsupported, coalesced


class Roaring(Backend):
    """``pyroaring.BitMap64`` of the private pages; each update is one call from Python."""

    name = "pyroaring"
    kind = "library"
    library = "pyroaring"
    one_bit = "a bitmap has one attribute bit"
    about = "pyroaring.BitMap64 of the converted pages: one attribute bit"

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """A bit a page at most; and the updates as Python numbers."""
        return footprint.npages // 8 + footprint.updates * ROW_BYTES

    def __init__(self, npages: int) -> None:
        from pyroaring import BitMap64

        self._npages = npages
        self._private: Any = BitMap64()

    def prepare(self, batch: Batch) -> list[tuple[int, int, int, Operation]]:
        """Python numbers: the library takes no arrays of ranges."""
        return list(batch.rows())

    def update(self, prepared: list[tuple[int, int, int, Operation]]) -> None:
        add, remove = self._private.add_range, self._private.remove_range
        for start, stop, attributes, _ in prepared:
            (add if attributes else remove)(start, stop)

    def runs(self) -> NDArray[Any]:
        """From each edge to the next: never page by page, a whole guest has too many."""
        shared = self._private.flip(0, self._npages)
        starts, attributes = [0], [int(0 in self._private)]
        while starts[-1] < self._npages:
            other = shared if attributes[-1] else self._private
            edge = other.next_set_bit(starts[-1]) if other and other.max() >= starts[-1] else self._npages
            starts.append(edge)
            attributes.append(1 - attributes[-1])
        return coalesced(starts[:-1], starts[1:], attributes[:-1])

    def has(self, ranges: Batch) -> NDArray[np.bool_]:
        """``contains_range`` for private; a range that must be shared is beyond one call."""
        if not ranges.attributes.all():
            raise Unsupported("pyroaring has no query for an empty range")
        answers = map(self._private.contains_range, ranges.starts.tolist(), ranges.stops.tolist())
        return np.fromiter(answers, np.bool_, len(ranges))

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        private = self._private
        return np.fromiter((gfn in private for gfn in gfns.tolist()), np.uint8, len(gfns))
