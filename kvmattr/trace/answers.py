"""One machine answers a trace: every operation as it was recorded to go, and what the model says of it."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter_ns
from typing import NamedTuple, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.memslots import Memslot
from kvmattr.trace.operations import (
    FILE,
    GET,
    RECORDED,
    SET,
    Block,
    CreateFile,
    FileRecord,
    PunchHole,
    SetSlot,
    records_of,
    stretches,
)
from kvmattr.trace.trace import TraceError
from kvmattr.vm import VM

#: The last byte of the 2^64 can never be named, neither in KVM nor here.
_ADDRESS_LIMIT = 1 << 64
#: Hears of a slot call that went well: the memslot before it, None for a new one, and the call.
SlotChanged = Callable[[Memslot | None, SetSlot], None]

_LARGEST_GUEST_MEMFD = (1 << 63) - uapi.PAGE_SIZE


#: Metadata of memslots is built as KVM builds it: so many bytes may be held, and built in all.
METADATA_HELD, METADATA_BUILT = 128 << 20, 2 << 30


class Answers(NamedTuple):
    """Errnos of a block's operations: how they went here, and what the model would have said of each."""

    done: NDArray[np.int16]
    modelled: NDArray[np.int16]


class Answering:
    """Applies blocks of a trace to a VM. `set_ns` and `slot_ns` are the time that the VM's calls took.

    `steered`: the recorded answer decides where there is one. A call that was refused changes nothing; one
    that was accepted is done, and what stands in its way must have gone before.
    """

    def __init__(self, vm: VM, out: TextIO | None = None, slot_changed: SlotChanged | None = None, *,
                 steered: bool = True, name: str = "") -> None:
        self.vm = vm
        self.operations = 0
        self.set_ns = 0
        self.slot_ns = 0
        #: Deletions that the recorded VMM made without a line of their own, see `_accepted`.
        self.silent_deletions = 0
        #: What calls that were tried and undone have added to the table's counts.
        self.undone: Counter[str] = Counter()
        self._out = out
        self._slot_changed = slot_changed
        self._steered = steered
        self._name = name
        self._guest_memfds: dict[int, int] = {}
        self._slots: dict[int, SetSlot] = {}
        self._metadata: dict[int, int] = {}
        self._held = self._built = 0

    def apply(self, block: Block) -> Answers:
        """Run a block's operations in order. Writes how they went, a line each, to `out`."""
        done = np.zeros(len(block), dtype=np.int16)
        modelled = np.zeros(len(block), dtype=np.int16)
        start = 0
        for piece in stretches(block):
            kind = int(piece["kind"][0])
            stop = start + len(piece)
            if kind == SET:
                done[start:stop], modelled[start:stop] = self._sets(piece)
                self._print_errnos(done[start:stop], piece)
            elif kind == GET:
                for index in range(len(piece)):
                    address, size = piece["words"][index, :2].tolist()
                    done[start + index] = modelled[start + index] = self._get(address, size)
            elif kind >= FILE:
                for index, record in enumerate(records_of(piece)):
                    answer = int(piece["answer"][index])
                    done[start + index], modelled[start + index] = self._file(cast(FileRecord, record), answer)
                self._print_errnos(done[start:stop], piece)
            else:
                answers, lines = piece["answer"].tolist(), piece["line"].tolist()
                for index, record in enumerate(records_of(piece)):
                    assert isinstance(record, SetSlot)
                    self._bound(record, lines[index])
                    done[start + index], modelled[start + index] = self._slot(record, answers[index])
                self._print_errnos(done[start:stop], piece)
            start = stop
        return Answers(done, modelled)

    def _print_errnos(self, errnos: NDArray[np.int16], piece: Block) -> None:
        errnos = errnos[piece["origin"] == RECORDED]
        if self._out is not None:
            names = {number: errno_name(number) for number in np.unique(errnos).tolist()}
            numbered = enumerate(errnos.tolist(), self.operations)
            self._out.writelines(f"{index} {names[number]}\n" for index, number in numbered)
        self.operations += len(errnos)

    def _sets(self, piece: Block) -> Answers:
        refused = piece["answer"] > 0
        records = np.ascontiguousarray(piece["words"][:, :4]).view(uapi.MEMORY_ATTRIBUTES)[:, 0]
        if not self._steered or not refused.any():
            errnos = self._set_many(records)
            return Answers(errnos, errnos)
        done, modelled = piece["answer"].astype(np.int16), np.zeros(len(piece), dtype=np.int16)
        cuts = np.flatnonzero(refused[1:] != refused[:-1]) + 1
        for start, stop in pairwise([0, *cuts.tolist(), len(piece)]):
            if refused[start]:
                before, spent = self.vm.snapshot(), self.set_ns
                modelled[start:stop] = self._set_many(records[start:stop])
                self.vm.restore(before)
                self.set_ns = spent
            else:
                done[start:stop] = modelled[start:stop] = self._set_many(records[start:stop])
        return Answers(done, modelled)

    def _set_many(self, records: NDArray[np.void]) -> NDArray[np.int16]:
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

    def _slot(self, record: SetSlot, answer: int) -> tuple[int, int]:
        """One slot call: how it went, and what the model says of it."""
        if answer > 0 and self._steered:
            return answer, self._refused(record)
        if answer == 0:
            return self._accepted(record)
        error = self._change(record)
        return error, error

    def _change(self, record: SetSlot) -> int:
        """Make a slot call, and tell of it if it went well."""
        old = self.vm.memslots.slot(record.slot)
        error = self._call(record)
        if error == 0:
            if record.memory_size:
                self._slots[record.slot] = record
            else:
                self._slots.pop(record.slot, None)
            if self._slot_changed is not None:
                self._slot_changed(old, record)
        return error

    def _accepted(self, record: SetSlot) -> tuple[int, int]:
        """A call that KVM took when it was recorded.

        QEMU turns READONLY on or off by deleting the slot first, and traces only the call that follows. KVM
        takes no such change of a slot that exists, so an accepted one proves that the deletion was there. So
        does one over another slot, or with another size; of those QEMU has no custom, and they are told.
        """
        table = self.vm.memslots
        old = table.slot(record.slot)
        if record.memory_size and old and (old.flags ^ record.flags) & uapi.KVM_MEM_READONLY:
            self._change(record._replace(memory_size=0))
            self.silent_deletions += 1
        error = self._change(record)
        if error == 0 or not self._steered:
            return error, error
        old = table.slot(record.slot)
        if record.memory_size == 0:
            if old is None:
                # Made before the recording began: the deletion itself is the proof.
                return 0, 0
            return self._change(SetSlot(record.slot, 0, 0, 0, 0)), error
        space = record.slot >> uapi.KVM_ADDRESS_SPACE_SHIFT
        start = record.guest_phys_addr >> uapi.PAGE_SHIFT
        stop = start + (record.memory_size >> uapi.PAGE_SHIFT)
        gone = [] if old is None else [record.slot]
        if start < stop <= len(self.vm.attributes) and space < table.address_spaces:
            gone += [slot.id | space << uapi.KVM_ADDRESS_SPACE_SHIFT for slot in table.overlapping(start, stop, space)]
        for number in dict.fromkeys(gone):
            self._change(SetSlot(number, 0, 0, 0, 0))
        result = self._change(record)
        if result:
            # A host with a larger user space than was said: the memslot is there.
            record = record._replace(userspace_addr=record.userspace_addr % (1 << 30))
            result = self._change(record)
        if result and record.flags & uapi.KVM_MEM_GUEST_MEMFD:
            # A kernel with other rules for guest_memfd: the memslot is there, whatever is behind it.
            flags = record.flags & ~uapi.KVM_MEM_GUEST_MEMFD
            result = self._change(record._replace(flags=flags, guest_memfd=None, guest_memfd_offset=0))
        return result, error

    def _refused(self, record: SetSlot) -> int:
        """What the model says of a call that KVM refused: tried, and undone if it went well."""
        table, spent = self.vm.memslots, self.slot_ns
        before, old = table.stats(), self._slots.get(record.slot)
        error = self._call(record)
        if error == 0:
            self._call(record._replace(memory_size=0) if old is None else old)
            after = table.stats()
            self.undone.update({name: after[name] - before[name] for name in after})
        self.slot_ns = spent
        return error

    def _bound(self, record: SetSlot, line: int) -> None:
        """TraceError where the metadata of the slots takes more memory or time than any guest needs."""
        pages = record.memory_size >> uapi.PAGE_SHIFT
        if pages > uapi.KVM_MEM_MAX_NR_PAGES:
            return
        size = pages // 128
        self._held += size - self._metadata.get(record.slot, 0)
        self._metadata[record.slot] = size
        self._built += size
        if self._held > METADATA_HELD or self._built > METADATA_BUILT:
            what = f"{self._held:,} bytes of metadata" if self._held > METADATA_HELD else \
                f"{self._built:,} bytes of metadata in all"
            limit = METADATA_HELD if self._held > METADATA_HELD else METADATA_BUILT
            raise TraceError(f"{self._name}:{line}: expected memslots that need at most {limit:,} bytes of metadata"
                             f"{'' if limit == METADATA_HELD else ' in all'}, found {what}")

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

    def _file(self, record: FileRecord, answer: int) -> tuple[int, int]:
        """One call that concerns a guest_memfd: how it went, and what the model says of it."""
        try:
            undo = self._change_file(record)
        except OSError as error:
            modelled = error.errno or errno.EINVAL
            return (answer if answer > 0 and self._steered else modelled), modelled
        if answer <= 0 or not self._steered:
            return 0, 0
        undo()
        return answer, 0

    def _change_file(self, record: FileRecord) -> Callable[[], None]:
        """Make the call; what takes it back."""
        if isinstance(record, CreateFile):
            handle = self.vm.create_guest_memfd(record.size, record.flags)
            before = self._guest_memfds.get(record.guest_memfd)
            self._guest_memfds[record.guest_memfd] = handle

            def uncreate() -> None:
                self.vm.close_guest_memfd(handle)
                if before is None:
                    del self._guest_memfds[record.guest_memfd]
                else:
                    self._guest_memfds[record.guest_memfd] = before

            return uncreate
        handle = self._guest_memfd(record.guest_memfd)
        if isinstance(record, PunchHole):
            self.vm.punch_hole(handle, record.offset, record.size)
            return lambda: None
        attributes = self.vm.guest_memfd(handle).attributes
        assert attributes is not None
        start, stop = (min(byte >> uapi.PAGE_SHIFT, len(attributes)) for byte in
                       (record.offset, record.offset + record.size))
        runs = attributes.runs(start, stop).tolist()
        self.vm.set_memory_attributes2(handle, *record[1:])

        def unset() -> None:
            for first, last, old in runs:
                self.vm.set_memory_attributes2(handle, first << 12, (last - first) << 12, old)

        return unset

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
