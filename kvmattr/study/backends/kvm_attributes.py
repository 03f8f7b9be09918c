"""Real attributes: KVM_SET_MEMORY_ATTRIBUTES on a VM of the running kernel."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure.machine import memslot_bytes
from kvmattr.study.backends.base import measured_seconds_a_page
from kvmattr.study.backends.kernel import KernelBackend
from kvmattr.study.work import Batch, Footprint


class KernelAttributes(KernelBackend):
    """One call an update, over one slot; the merged interface has WRITE and PRIVATE alone."""

    name = "kvm-attributes"
    one_bit = "this kernel's interface has WRITE of PRIVATE alone"
    about = "real KVM memory attributes (Linux 6.8 and later, a VM type with private memory)"

    @classmethod
    def missing(cls) -> str | None:
        """/dev/kvm must open and make a VM whose memory can be private."""
        reason = super().missing()
        if reason is not None:
            return reason
        if not kvm.system_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES) & uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE:
            return ("kernel has no KVM_CAP_MEMORY_ATTRIBUTES with PRIVATE (Linux 6.8 and later with "
                    "CONFIG_KVM_SW_PROTECTED_VM have it; `python3 dev.py kernel` emulates one)")
        if kvm.private_vm_type() is None:
            return "kernel has attributes, but makes no VM whose memory can be private"
        return None

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """9 bytes a page where pages lie together, a node of 576 where they lie apart; and the slot's metadata."""
        return min(footprint.pages * 576, footprint.npages * 10) + memslot_bytes(footprint.npages)

    @classmethod
    @cache
    def seconds_a_page(cls) -> float:
        """Measured once, of a VM without memslots: a set is linear in its pages, and uninterruptible."""
        with kvm.KernelVM(kvm.private_vm_type() or 0) as vm:
            return measured_seconds_a_page(lambda sets: vm.ioctl_many(uapi.KVM_SET_MEMORY_ATTRIBUTES, _records(sets)))

    def __init__(self, npages: int) -> None:
        super().__init__(npages, kvm.private_vm_type() or 0)

    def prepare(self, batch: Batch) -> NDArray[Any]:
        return _records(batch)

    def update(self, prepared: NDArray[Any]) -> None:
        self._call(uapi.KVM_SET_MEMORY_ATTRIBUTES, prepared)

    def runs(self) -> None:
        """The merged interface has no way to list attributes."""

    def probe(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """KVM_PRE_FAULT_MEMORY page by page, on a vCPU that is made after all has been measured."""
        return self._vm.read_private(gfns).view(np.uint8)


def _records(batch: Batch) -> NDArray[Any]:
    records = np.zeros(len(batch), uapi.LINUX_MEMORY_ATTRIBUTES)
    records["address"] = batch.starts * np.uint64(uapi.PAGE_SIZE)
    records["size"] = (batch.stops - batch.starts) * np.uint64(uapi.PAGE_SIZE)
    records["attributes"] = batch.attributes * np.uint64(uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    return records
