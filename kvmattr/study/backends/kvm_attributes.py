"""Real attributes: KVM_SET_MEMORY_ATTRIBUTES on a VM of the running kernel."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure.machine import memslot_bytes
from kvmattr.study.backends.base import Backend, is_one_bit
from kvmattr.study.mapping import Mapping
from kvmattr.study.work import Batch, Failed, Footprint


class KernelAttributes(Backend):
    """One call an update, over one slot; the merged interface has WRITE and PRIVATE alone."""

    name = "kvm-attributes"
    kind = "kernel"
    about = "real KVM memory attributes (Linux 6.8 and later, a VM type with private memory)"

    @classmethod
    def missing(cls) -> str | None:
        """/dev/kvm must open and make a VM whose memory can be private."""
        reason = kvm.missing()
        if reason is not None:
            return reason
        try:
            with kvm.KernelVM(uapi.KVM_X86_SW_PROTECTED_VM) as vm:
                supported = vm.check_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES)
        except OSError:
            return "kernel has no VM type with private memory (CONFIG_KVM_SW_PROTECTED_VM)"
        if not supported & uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE:
            return "kernel has no KVM_CAP_MEMORY_ATTRIBUTES with PRIVATE"
        return None

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """9 bytes a page where pages lie together, a node of 576 where they lie apart; and the slot's metadata."""
        return min(footprint.pages * 576, footprint.npages * 10) + memslot_bytes(footprint.npages)

    @classmethod
    def unsupported(cls, batch: Batch) -> str | None:
        """WRITE of one attribute is all."""
        return None if is_one_bit(batch) else "this kernel's interface has WRITE of PRIVATE alone"

    def __init__(self, npages: int) -> None:
        self._memory = Mapping(npages)
        self._vm = kvm.KernelVM(uapi.KVM_X86_SW_PROTECTED_VM)
        slot = np.zeros(1, uapi.USERSPACE_MEMORY_REGION)
        slot["memory_size"] = npages * uapi.PAGE_SIZE
        slot["userspace_addr"] = self._memory.address
        self._vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, slot)

    def prepare(self, batch: Batch) -> NDArray[Any]:
        """One structure an update."""
        records = np.zeros(len(batch), uapi.LINUX_MEMORY_ATTRIBUTES)
        records["address"] = batch.starts * np.uint64(uapi.PAGE_SIZE)
        records["size"] = (batch.stops - batch.starts) * np.uint64(uapi.PAGE_SIZE)
        records["attributes"] = batch.attributes * np.uint64(uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        return records

    def update(self, prepared: NDArray[Any]) -> None:
        """The calls."""
        try:
            self._vm.ioctl_many(uapi.KVM_SET_MEMORY_ATTRIBUTES, prepared)
        except kvm.BatchError as error:
            raise Failed(error.done, errno.errorcode[error.args[0]]) from error

    def runs(self) -> None:
        """The merged interface has no way to read attributes back."""

    def close(self) -> None:
        """Close the VM, then give back the addresses."""
        self._vm.close()
        self._memory.close()
