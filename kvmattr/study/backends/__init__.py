"""The backends of the study, by name. A new one is added to ``ALL``; docs/study.md shows how to write it."""

from __future__ import annotations

from kvmattr.study.backends.base import Backend
from kvmattr.study.backends.dense import Dense
from kvmattr.study.backends.floor import EmptyIoctl
from kvmattr.study.backends.kvm_attributes import KernelAttributes
from kvmattr.study.backends.kvm_memslots import KernelMemslots, KernelMemslotsWithVcpu
from kvmattr.study.backends.memslots import Memslots
from kvmattr.study.backends.mprotect import Mprotect
from kvmattr.study.backends.roaring import Roaring
from kvmattr.study.backends.sorted_runs import SortedRuns
from kvmattr.study.backends.store import Store
from kvmattr.study.backends.store_get_write import StoreGetWrite
from kvmattr.study.backends.unicorn import Unicorn
from kvmattr.study.backends.xarray import XArrayModel

ALL: dict[str, type[Backend]] = {
    backend.name: backend for backend in (
        Store, StoreGetWrite, Memslots, XArrayModel, Dense, KernelAttributes, KernelMemslots,
        KernelMemslotsWithVcpu, Mprotect, EmptyIoctl, Roaring, SortedRuns, Unicorn)
}

__all__ = ["ALL", "Backend"]
