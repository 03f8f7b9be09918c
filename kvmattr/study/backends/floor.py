"""The floor of every kernel row: an ioctl that does nothing."""

from __future__ import annotations

import numpy as np

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.study.backends.base import Backend
from kvmattr.study.backends.kernel import IS_FAKE
from kvmattr.study.work import Batch


class EmptyIoctl(Backend):
    """KVM_CHECK_EXTENSION for a capability that no kernel has, once an update: the way in and out."""

    name = "empty-ioctl"
    kind = "model" if IS_FAKE else "kernel"
    elsewhere = IS_FAKE
    stateless = True
    about = "the floor: an ioctl on a VM that does nothing"

    @classmethod
    def missing(cls) -> str | None:
        """/dev/kvm must open."""
        return kvm.missing()

    def __init__(self, npages: int) -> None:
        self._vm = kvm.KernelVM()

    def prepare(self, batch: Batch) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """One word an update; its address is the capability that is asked for."""
        return np.zeros(len(batch), np.uint64)

    def update(self, prepared: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        """The empty calls."""
        self._vm.ioctl_many(uapi.KVM_CHECK_EXTENSION, prepared)

    def runs(self) -> None:
        """It keeps no state."""

    def close(self) -> None:
        """Close the VM."""
        self._vm.close()
