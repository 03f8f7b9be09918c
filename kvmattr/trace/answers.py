"""One machine answers a trace: every operation as it was recorded, and what KVM would have said to it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import perf_counter_ns
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.memslots import Memslot
from kvmattr.trace.operations import GET, SET, Block, SetSlot, records_of, stretches
from kvmattr.vm import VM

#: The last byte of the 2^64 can never be named, neither in KVM nor here.
_ADDRESS_LIMIT = 1 << 64
#: Hears of a slot call that went well: the memslot before it, None for a new one, and the call.
SlotChanged = Callable[[Memslot | None, SetSlot], None]

_LARGEST_GUEST_MEMFD = (1 << 63) - uapi.PAGE_SIZE


class Answering:
    """Applies blocks of a trace to a VM. `set_ns` and `slot_ns` are the time that the VM's calls took."""

    def __init__(self, vm: VM, out: TextIO | None = None, slot_changed: SlotChanged | None = None) -> None:
        self.vm = vm
        self.operations = 0
        self.set_ns = 0
        self.slot_ns = 0
        #: Deletions that the recorded VMM made without a line of their own, see `_slot`.
        self.silent_deletions = 0
        self._out = out
        self._slot_changed = slot_changed
        self._guest_memfds: dict[int, int] = {}

    def apply(self, block: Block) -> NDArray[np.int16]:
        """Run a block's operations in order; their errnos. Writes their answers, one line each, to `out`."""
        errnos = np.zeros(len(block), dtype=np.int16)
        start = 0
        for piece in stretches(block):
            kind = int(piece["kind"][0])
            stop = start + len(piece)
            if kind == SET:
                errnos[start:stop] = self._sets(piece)
                self._print_errnos(errnos[start:stop])
            elif kind == GET:
                for index in range(len(piece)):
                    address, size = piece["words"][index, :2].tolist()
                    errnos[start + index] = self._get(address, size)
            else:
                answers = piece["answer"].tolist()
                for index, record in enumerate(records_of(piece)):
                    assert isinstance(record, SetSlot)
                    errnos[start + index] = self._slot(record, accepted=answers[index] == 0)
                self._print_errnos(errnos[start:stop])
            start = stop
        return errnos

    def _print_errnos(self, errnos: NDArray[np.int16]) -> None:
        if self._out is not None:
            names = {number: errno_name(number) for number in np.unique(errnos).tolist()}
            numbered = enumerate(errnos.tolist(), self.operations)
            self._out.writelines(f"{index} {names[number]}\n" for index, number in numbered)
        self.operations += len(errnos)

    def _sets(self, piece: Block) -> NDArray[np.int16]:
        records = np.ascontiguousarray(piece["words"][:, :4]).view(uapi.MEMORY_ATTRIBUTES)[:, 0]
        errnos = np.zeros(len(records), dtype=np.int16)
        start = 0
        while start < len(records):
            began = perf_counter_ns()
            try:
                self.vm.set_memory_attributes_many(records[start:])
            except OSError as error:
                self.set_ns += perf_counter_ns() - began
                # The batch ends at the first call that KVM refuses; the trace goes on after it.
                start += error.done  # type: ignore[attr-defined]
                errnos[start] = error.errno or errno.EINVAL
                start += 1
            else:
                self.set_ns += perf_counter_ns() - began
                break
        return errnos

    def _get(self, address: int, size: int) -> int:
        """The map itself is asked, not the ioctl: a trace may look at what a profile has no call for."""
        index = self.operations
        self.operations += 1
        stop = address + size
        if size == 0 or stop >= _ADDRESS_LIMIT or (address | size) % uapi.PAGE_SIZE:
            if self._out is not None:
                self._out.write(f"{index} EINVAL\n")
            return errno.EINVAL
        if self._out is not None:
            self._out.write(f"{index} get")
            for run in self.vm.attributes.iter_runs(address >> 12, stop >> 12):
                self._out.write(" " + self._run_text(*run))
            self._out.write("\n")
        return 0

    def _run_text(self, start: int, stop: int, attributes: int) -> str:
        """A run as ADDR:PAGES:S or :P; where the profile takes rights away, they follow as `-rwx`."""
        profile = self.vm.profile
        letter = "P" if attributes & profile.private else "S"
        bits = ((profile.no_read, "r"), (profile.no_write, "w"), (profile.no_exec, "x"))
        refused = "".join(name for bit, name in bits if attributes & bit)
        return f"{start << 12:#x}:{stop - start}:{letter}{'-' * bool(refused)}{refused}"

    def _slot(self, record: SetSlot, *, accepted: bool) -> int:
        """One slot call. `accepted`: the recording says that KVM took it.

        QEMU turns READONLY on or off by deleting the slot first, and traces only the call that follows. KVM
        takes no such change of a slot that exists, so an accepted one proves that the deletion was there.
        """
        old = self.vm.memslots.slot(record.slot)
        if accepted and record.memory_size and old and (old.flags ^ record.flags) & uapi.KVM_MEM_READONLY:
            self._call(record._replace(memory_size=0))
            self.silent_deletions += 1
        error = self._call(record)
        if error == 0 and self._slot_changed is not None:
            self._slot_changed(old, record)
        return error

    def _call(self, record: SetSlot) -> int:
        slot, flags, address, size, userspace, guest_memfd, offset = record
        request = uapi.KVM_SET_USER_MEMORY_REGION
        structure: uapi.kvm_userspace_memory_region | uapi.kvm_userspace_memory_region2
        structure = uapi.kvm_userspace_memory_region(slot, flags, address, size, userspace)
        if guest_memfd is not None:
            request = uapi.KVM_SET_USER_MEMORY_REGION2
            if flags & uapi.KVM_MEM_GUEST_MEMFD and guest_memfd >= 0:
                guest_memfd = self._guest_memfd(guest_memfd)
            structure = uapi.kvm_userspace_memory_region2(slot, flags, address, size, userspace, offset,
                                                          guest_memfd & 0xFFFFFFFF)
        began = perf_counter_ns()
        try:
            self.vm.ioctl(request, structure)
        except OSError as error:
            return error.errno or errno.EINVAL
        finally:
            self.slot_ns += perf_counter_ns() - began
        return 0

    def _guest_memfd(self, recorded: int) -> int:
        """The machine's file for a recorded descriptor, made when first met: traces do not tell its size."""
        if recorded not in self._guest_memfds:
            structure = uapi.kvm_create_guest_memfd(size=_LARGEST_GUEST_MEMFD)
            self._guest_memfds[recorded] = int(self.vm.ioctl(uapi.KVM_CREATE_GUEST_MEMFD, structure))
        return self._guest_memfds[recorded]


def errno_name(number: int) -> str:
    """The name of an errno, 0 for success.

    >>> errno_name(0), errno_name(17)
    ('0', 'EEXIST')
    """
    return errno.errorcode.get(number, str(number)) if number else "0"
