"""The backends of the study, by name. A new one is added to ``ALL``; docs/study.md shows how to write it."""

from __future__ import annotations

from kvmattr.study.backends.base import Backend
from kvmattr.study.backends.dense import Dense
from kvmattr.study.backends.kernel import EmptyIoctl
from kvmattr.study.backends.kvm_attributes import KernelAttributes
from kvmattr.study.backends.kvm_memslots import KernelMemslots, KernelMemslotsWithVcpu
from kvmattr.study.backends.memslots import Memslots
from kvmattr.study.backends.mprotect import Mprotect
from kvmattr.study.backends.roaring import Roaring
from kvmattr.study.backends.sorted_runs import SortedRuns
from kvmattr.study.backends.store import Store, StoreGetWrite
from kvmattr.study.backends.unicorn import Unicorn
from kvmattr.study.backends.xarray import XArrayModel
from kvmattr.study.work import described, one_line

ALL: dict[str, type[Backend]] = {
    backend.name: backend for backend in (
        Store, StoreGetWrite, Memslots, XArrayModel, Dense, KernelAttributes, KernelMemslots,
        KernelMemslotsWithVcpu, Mprotect, EmptyIoctl, Roaring, SortedRuns, Unicorn)
}

__all__ = ["ALL", "Backend", "missing"]


def missing(name: str) -> str | None:
    """Why a backend cannot run on this machine, or None. One that fails when it is asked cannot."""
    try:
        reason = ALL[name].missing()
        return None if reason is None else one_line(reason)
    except Exception as error:
        return described(error)
