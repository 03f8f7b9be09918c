"""Real memslots: KVM_SET_USER_MEMORY_REGION on a VM of the running kernel."""

from __future__ import annotations

import errno
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure.machine import memslot_bytes
from kvmattr.study.backends.kernel import KernelBackend
from kvmattr.study.work import RUN, Batch, Failed, Footprint, Stopped

#: So near the limit every conversion is a real one, so that the kernel itself says which is the last.
_LEFT_TO_SPLIT = 64
#: Slots that are created between two looks at the clock.
_PART = 32


class KernelMemslots(KernelBackend):
    """Delete the slot, create its pieces, in the running kernel; converted pages become read-only slots."""

    name = "kvm-memslots"
    one_bit = "a memslot can say read-only and nothing else"
    about = "real KVM memslots, split and merged through /dev/kvm"
    slow = True

    @classmethod
    def missing(cls) -> str | None:
        """/dev/kvm must open and know read-only slots."""
        reason = super().missing()
        if reason is None and not kvm.system_extension(uapi.KVM_CAP_READONLY_MEM):
            reason = "kernel has no KVM_CAP_READONLY_MEM"
        return reason

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """The kernel's metadata of the slots, which together are as big as the guest."""
        return memslot_bytes(footprint.npages)

    def load(self, setup: Batch, seconds: float) -> int:
        """Create the slots of the state outright, but leave the last below the limit to be split."""
        if not len(setup):
            return 0
        limit = self._vm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS) - _LEFT_TO_SPLIT
        whole_guest = self._plan.slots()
        whole_guest["memory_size"] = 0
        done, slots = self._plan.load(setup, limit)
        self._vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, whole_guest)
        started = time.perf_counter()
        for first in range(0, len(slots), _PART):
            if first and time.perf_counter() - started > seconds:
                raise Stopped(f"stopped after {seconds:g} s with {first} of {len(slots)} slots created")
            self._vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, slots[first:first + _PART])
        return done

    def prepare(self, batch: Batch) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The VMM's bookkeeping: which slots go, which come."""
        return self._plan.plan(batch)

    def update(self, prepared: tuple[NDArray[Any], NDArray[np.int64]]) -> None:
        calls, ends = prepared
        try:
            self._call(uapi.KVM_SET_USER_MEMORY_REGION, calls)
        except Failed as failure:
            raise Failed(int(np.searchsorted(ends, failure.done, side="right")), failure.why) from failure

    def runs(self) -> NDArray[Any]:
        """What the kernel confirms of the planned state, slot by slot.

        KVM cannot list its slots, but it refuses to change READONLY of a slot that exists (EINVAL) and
        accepts an identical call: together they prove the slot's id, place, size and flags. The planned slots
        cover the guest, so no other can stand there. What is not confirmed is missing from the answer.
        """
        slots = self._plan.slots()
        confirmed = slots[[self._is_there(record) for record in slots]]
        if len(confirmed) == len(slots):
            return self._plan.runs()
        runs = np.empty(len(confirmed), RUN)
        runs["start"] = confirmed["guest_phys_addr"] >> np.uint64(uapi.PAGE_SHIFT)
        runs["stop"] = runs["start"] + (confirmed["memory_size"] >> np.uint64(uapi.PAGE_SHIFT))
        runs["attributes"] = confirmed["flags"] & uapi.KVM_MEM_READONLY != 0
        return runs

    def _is_there(self, record: Any) -> bool:
        other = record.copy()
        other["flags"] ^= uapi.KVM_MEM_READONLY
        return self._answer(other) == errno.EINVAL and self._answer(record) == 0

    def _answer(self, record: Any) -> int:
        try:
            self._vm.ioctl(uapi.KVM_SET_USER_MEMORY_REGION, record.tobytes())
        except OSError as error:
            return error.errno or 0
        return 0


class KernelMemslotsWithVcpu(KernelMemslots):
    """The same in a VM that has a vCPU: KVM must then also tell it that the slots have changed."""

    name = "kvm-memslots-vcpu"
    about = "real KVM memslots in a VM that has one (idle) vCPU"

    def __init__(self, npages: int) -> None:
        super().__init__(npages)
        self._vm.create_vcpu()
