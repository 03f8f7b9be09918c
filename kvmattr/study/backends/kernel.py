"""What the backends of the running kernel share: a VM of their own, and memslots over addresses without memory."""

from __future__ import annotations

import errno
from typing import Any

from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure import text
from kvmattr.measure.machine import physical_address_bits
from kvmattr.study.backends.base import Backend
from kvmattr.study.mapping import Mapping
from kvmattr.study.slot_plan import SlotPlan
from kvmattr.study.work import Unsupported

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

    def __init__(self, npages: int, vm_type: int = uapi.KVM_X86_DEFAULT_VM) -> None:
        # Reserved, never touched: KVM wants addresses that user space could have, not memory behind them.
        self._memory = Mapping(npages)
        self._plan = SlotPlan(npages, self._memory.address)
        try:
            self._vm = kvm.KernelVM(vm_type)
        except OSError:
            self._memory.close()
            raise
        try:
            self._create(self._plan.slots())
        except BaseException:
            self.close()
            raise

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

    def close(self) -> None:
        """Close the VM, then give back the addresses."""
        self._vm.close()
        self._memory.close()
