"""Recording: every call that is made on a machine, as a native trace that replays to the same answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EEXIST, EINTR, EINVAL
from itertools import chain
from typing import TextIO

from kvmattr import uapi
from kvmattr.hosts import HOSTS, X86_64
from kvmattr.profiles import PROFILES
from kvmattr.trace.native import line_of
from kvmattr.trace.operations import (
    CreateFile,
    GetAttributes,
    Machine,
    PunchHole,
    Record,
    SetAttributes,
    SetFileAttributes,
    SetSlot,
)
from kvmattr.trace.writing import open_text
from kvmattr.vm import VM

#: Numbers of a KVM_SET_MEMORY_ATTRIBUTES2 whose reserved words are 0, as every line's are.
_NO_RESERVED_WORDS = 5
#: Refusals that follow from the arguments and from the calls before, so that a replay gives them again.
_REPEATABLE = (EINVAL, EEXIST)


@contextmanager
def record(vm: VM, path: str | os.PathLike[str]) -> Iterator[VM]:
    """Write every call made on `vm` inside the `with` block to a native trace, gzipped for a `.gz` name.

    The trace begins with the machine's `vm` line and the calls that make its present slots and attributes,
    so that a replay starts where the recording did. Calls that KVM refuses for their arguments are written
    too, others that changed nothing are not; a `restore` is written as what it changed. Calls of several threads are
    written in the order in which they took effect. What cannot be written (a full disk) fails no call: it is raised
    when the block ends.

    Of guest_memfds a trace has their creation, KVM_SET_MEMORY_ATTRIBUTES2 and the holes that are punched; that one
    is closed, linked or pinned it cannot say.

    ValueError for a profile of one's own, which no trace can name, and for slots whose guest_memfd is closed.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> vm = VM()
    >>> with TemporaryDirectory() as folder:
    ...     with record(vm, folder + "/a.trace"):
    ...         _ = vm.set_memory_attributes(0x1000, 0x1000, 1)
    ...     print(Path(folder, "a.trace").read_text(), end="")
    vm rfc private=1 phys_bits=52 nr_memslots=32764
    set 0x1000 0x1000 0x1 0x0
    """
    list(_machine_and_slots(vm))    # a machine that no trace can say is refused before there is a file
    with open_text(path, in_place=True) as file:
        recorder = _Recorder(file)
        vm.add_listener(recorder)
        try:
            vm._locked(None, (), recorder.begin, vm)
            yield vm
        finally:
            vm.remove_listener(recorder)
        if recorder.failed is not None:
            raise recorder.failed


def _machine_and_slots(vm: VM) -> Iterator[Record | Machine]:
    profile, table = vm.profile, vm.memslots
    if profile not in PROFILES.values():
        raise ValueError(f"profile {profile.name!r}: a trace can name {', '.join(PROFILES)} alone")
    options = {"private": int(table.private_memory), "phys_bits": table.phys_bits,
               "nr_memslots": table.nr_memslots}
    options |= {name: 1 for name, value in vm.capabilities._asdict().items() if value}
    if vm.host not in HOSTS.values():
        raise ValueError(f"host {vm.host.name!r}: a trace can name {', '.join(HOSTS)} alone")
    yield Machine(profile.name, options, None if vm.host is X86_64 else vm.host.name)
    files = vm.guest_memfds()
    for handle, file in files:
        yield CreateFile(handle, file.size, file.flags)
        if profile.file_attributes and file.attributes is not None:
            new = 0 if file.flags & uapi.GUEST_MEMFD_FLAG_INIT_SHARED else profile.private
            for start, stop, attributes in file.attributes.iter_runs():
                if attributes != new:
                    yield SetFileAttributes(handle, start << uapi.PAGE_SHIFT, (stop - start) << uapi.PAGE_SHIFT,
                                            attributes)
    handles = {id(file): handle for handle, file in files}
    for slot in table:
        if slot.id >= table.nr_memslots:
            continue  # KVM's own, which no call makes
        bound = handles.get(id(slot.guest_memfd))
        if slot.guest_memfd is not None and bound is None:
            raise ValueError(f"slot {slot.id}: its guest_memfd is closed, which no trace can say")
        number = slot.address_space << uapi.KVM_ADDRESS_SPACE_SHIFT | slot.id
        yield SetSlot(number, slot.flags, slot.guest_phys_addr, slot.memory_size, slot.userspace_addr, bound,
                      slot.guest_memfd_offset if bound is not None else 0)


class _Recorder:
    """A listener of calls, who writes what replays to the same answers."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._begun = False
        #: What kept a call from being written; nothing is written after it.
        self.failed: Exception | None = None

    def begin(self, vm: VM) -> None:
        """Write what there is, under the machine's lock, and from then on every call."""
        attributes = (SetAttributes(start << uapi.PAGE_SHIFT, (stop - start) << uapi.PAGE_SHIFT, value)
                      for start, stop, value in vm.attributes.iter_runs() if value)
        self._file.writelines(line_of(each) + "\n" for each in chain(_machine_and_slots(vm), attributes))
        self._begun = True

    def called(self, call: str, numbers: tuple[int, ...], answer: int) -> None:
        """Write a call that succeeded, or that a replay will refuse again."""
        if not self._begun or self.failed is not None or (answer < 0 and -answer not in _REPEATABLE):
            return
        try:
            if (made := _record_of(call, numbers, answer)) is not None:
                self._file.write(line_of(made) + "\n")
        except Exception as error:
            self.failed = error
        except BaseException:   # a signal's; the call stands all the same
            self.failed = OSError(EINTR, "a signal interrupted the recorder: the recording is not whole")
            raise


def _record_of(call: str, numbers: tuple[int, ...], answer: int) -> Record | None:
    """The line of a call; None for one that a trace cannot say."""
    match call:
        case "set_memory_attributes":
            return SetAttributes(*numbers)
        case "get_memory_attributes":
            return GetAttributes(*numbers)
        case "set_user_memory_region" | "set_user_memory_region2":
            return SetSlot(*numbers)
        case "create_guest_memfd" if answer >= 0:
            return CreateFile(answer, *numbers)
        case "set_memory_attributes2" if len(numbers) == _NO_RESERVED_WORDS:
            return SetFileAttributes(*numbers)
        case "fallocate_guest_memfd" if numbers[1] & uapi.FALLOC_FL_PUNCH_HOLE and min(numbers) >= 0:
            return PunchHole(numbers[0], *numbers[2:])
        case _:
            return None
