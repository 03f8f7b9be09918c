"""What the backends of the running kernel share (a VM, memslots over addresses without memory), and their floor."""

from __future__ import annotations

import errno
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure import text
from kvmattr.measure.machine import physical_address_bits
from kvmattr.study.backends.base import Backend
from kvmattr.study.mapping import Mapping
from kvmattr.study.slot_plan import SlotPlan
from kvmattr.study.work import Batch, Failed, Unsupported

#: No row of a fake device may stand among those of a kernel.
IS_FAKE = kvm.is_fake()


class KernelBackend(Backend):
    """A VM of ``vm_type`` with memslots over the whole guest, as few as KVM allows.

    Under ``kvmattr fake`` it measures the model, a socket away, and says so.
    """

    kind = "kernel"
    elsewhere = IS_FAKE

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if IS_FAKE:
            cls.kind, cls.about = "model", f"{cls.name} on a fake /dev/kvm: the model, a socket away"

    @classmethod
    def missing(cls) -> str | None:
        return kvm.missing()

    def __init__(self, npages: int, vm_type: int = uapi.KVM_X86_DEFAULT_VM) -> None:
        with ExitStack() as held:
            # Reserved, never touched: KVM wants addresses that user space could have, not memory behind them.
            memory = held.enter_context(closing(Mapping(npages)))
            self._vm = held.enter_context(kvm.KernelVM(vm_type))
            self._plan = SlotPlan(npages, memory.address)
            self._create(self._plan.slots())
            self._held = held.pop_all()

    def _create(self, slots: NDArray[Any]) -> None:
        """The memslots of a new VM; where they pass the end of physical addresses, in those words."""
        try:
            self._vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, slots)
        except kvm.BatchError as error:
            bits = physical_address_bits()
            end = int(slots[error.done]["guest_phys_addr"] + slots[error.done]["memory_size"])
            if error.errno == errno.EINVAL and bits is not None and end > 1 << bits:
                reach = text.size(1 << (bits - uapi.PAGE_SHIFT), "guest size")
                raise Unsupported(f"this machine has {bits} bits of physical address: KVM refuses memslots beyond "
                                  f"{reach}") from error
            raise

    def _call(self, request: int, structures: NDArray[Any]) -> None:
        """A call for each structure; Failed says how many were answered."""
        try:
            self._vm.ioctl_many(request, structures)
        except kvm.BatchError as error:
            raise Failed(error.done, errno.errorcode[error.args[0]]) from error

    def close(self) -> None:
        """Close the VM, then give back the addresses."""
        self._held.close()


class EmptyIoctl(KernelBackend):
    """KVM_CHECK_EXTENSION for a capability that no kernel has, once an update: the way in and out. No memslots."""

    name = "empty-ioctl"
    stateless = True
    about = "the floor: an ioctl on a VM that does nothing"

    def __init__(self, npages: int) -> None:
        self._held = ExitStack()
        self._vm = self._held.enter_context(kvm.KernelVM())

    def prepare(self, batch: Batch) -> NDArray[np.uint64]:
        """One word an update; its address is the capability that is asked for."""
        return np.zeros(len(batch), np.uint64)

    def update(self, prepared: NDArray[np.uint64]) -> None:
        self._vm.ioctl_many(uapi.KVM_CHECK_EXTENSION, prepared)

    def runs(self) -> None:
        """It keeps no state."""
