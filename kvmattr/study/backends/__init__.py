"""The backends of the study, by name. A new one is added to ``ALL``; docs/study.md shows how to write it."""

from __future__ import annotations

from kvmattr.study.backends.base import Backend
from kvmattr.study.backends.dense import Dense
from kvmattr.study.backends.floor import EmptyIoctl
from kvmattr.study.backends.kvm_memslots import KernelMemslots, KernelMemslotsWithVcpu
from kvmattr.study.backends.store import Store
from kvmattr.study.backends.store_get_write import StoreGetWrite

ALL: dict[str, type[Backend]] = {
    backend.name: backend for backend in (
        Store, StoreGetWrite, Dense, KernelMemslots, KernelMemslotsWithVcpu, EmptyIoctl)
}

__all__ = ["ALL", "Backend"]
