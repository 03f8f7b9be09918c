"""KVM's own attribute storage, modelled: an xarray with one entry a page."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr.study._xarray import XArray
from kvmattr.study.backends.base import Backend, measured_seconds_a_page
from kvmattr.study.work import BLOCKS, Batch, Failed, Footprint, coalesced

_NODE_BYTES = 576
_NODE_PAGES = 64


class XArrayModel(Backend):
    """Check, reserve each page, store each page: what KVM does, without its locks, callbacks and zapping."""

    name = "xarray"
    kind = "model"
    about = "KVM's algorithm over an xarray: check, reserve each page, store each page"

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """A node for every 64 pages, or for each update where they lie apart (with as much again above)."""
        leaves = min(footprint.pages // _NODE_PAGES + 2 * footprint.updates,
                     footprint.npages // _NODE_PAGES + 1)
        return 2 * leaves * _NODE_BYTES

    @classmethod
    @cache
    def seconds_a_page(cls) -> float:
        return measured_seconds_a_page(cls(1 << 14).update)

    def __init__(self, npages: int) -> None:
        self._npages = npages
        self._array = XArray()

    def update(self, prepared: Batch) -> None:
        done = self._array.update_many(prepared.starts, prepared.stops, prepared.attributes, prepared.operations)
        if done < len(prepared):
            raise Failed(done, "ENOMEM")

    def runs(self) -> NDArray[Any]:
        starts, attributes = self._array.runs(self._npages)
        return coalesced(starts, np.append(starts[1:], np.uint64(self._npages)), attributes)

    #: KVM has no other way to see where a run ends.
    export = runs

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """One walk from the root a page."""
        return self._array.lookup(gfns)

    def has(self, ranges: Batch) -> NDArray[np.bool_]:
        """kvm_range_has_memory_attributes a range."""
        return self._array.has(ranges.starts, ranges.stops, ranges.attributes)

    def mixed(self) -> NDArray[np.bool_]:
        """kvm_mmu_init_memslot_memory_attributes: every block of 2 MiB, then the children of 1 GiB."""
        small, large = (self._npages // block for block in BLOCKS)
        out = np.empty(small + large, np.uint8)
        self._array.mixed(out[:small], out[small:])
        return out.view(np.bool_)

    def nbytes(self) -> int:
        return self._array.nbytes
