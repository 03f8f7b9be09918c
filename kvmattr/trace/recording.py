"""Recording: every call that is made on a machine, as a native trace that replays to the same answers."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EEXIST, EINVAL
from functools import partial
from operator import index
from threading import RLock
from typing import Any, TextIO

import numpy as np

from kvmattr import uapi
from kvmattr._core import AttributeMap
from kvmattr.hosts import HOSTS, X86_64
from kvmattr.operation import Operation
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

#: Refusals that follow from the arguments and from the calls before, so that a replay gives them again.
_REPEATABLE = (EINVAL, EEXIST)


@contextmanager
def record(vm: VM, path: str | os.PathLike[str]) -> Iterator[VM]:
    """Write every call made on `vm` inside the `with` block to a native trace, gzipped for a `.gz` name.

    The trace begins with the machine's `vm` line and the calls that make its present slots and attributes,
    so that a replay starts where the recording did. Calls that KVM refuses for their arguments are written
    too, others that changed nothing are not; a `restore` is written as what it changed. Calls of several
    threads are recorded one at a time. A machine that is not recorded pays nothing: the recorder stands
    before the methods of this one.

    Of guest_memfds a trace has their creation, KVM_SET_MEMORY_ATTRIBUTES2 and the holes that are punched; that one
    is closed, linked or pinned it cannot say.

    ValueError for a profile of one's own, which no trace can name, for slots whose guest_memfd is closed, and for a
    machine that is being recorded already.

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
    if "ioctl" in vars(vm):
        raise ValueError("this VM is being recorded already")
    beginning = list(_present_state(vm))
    with open_text(path, in_place=True) as file:
        recorder = _Recorder(vm, file)
        for line in beginning:
            file.write(line_of(line) + "\n")
        recorder.start()
        try:
            yield vm
        finally:
            recorder.stop()


def _present_state(vm: VM) -> Iterator[Record | Machine]:
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
    for start, stop, attributes in vm.attributes.iter_runs():
        if attributes:
            yield SetAttributes(start << uapi.PAGE_SHIFT, (stop - start) << uapi.PAGE_SHIFT, attributes)


class _Recorder:
    """Stands before the methods of one machine, by attributes of the instance, and writes what goes through.

    The compiled path of a machine has no hook for this, and so no cost of it. A method that a machine calls
    on itself comes through here as well: only the outermost call is the user's.
    """

    def __init__(self, vm: VM, file: TextIO) -> None:
        self._vm = vm
        self._file = file
        self._lock = RLock()
        self._inside = False
        self._calls: dict[str, RecordsOf] = {
            "ioctl": partial(_of_ioctl, vm),
            "set_memory_attributes": partial(_of_set, vm.profile.mail_calls),
            "set_memory_attributes_many": _of_set_many,
            "get_memory_attributes": _of_get,
            "set_user_memory_region": _of_region,
            "set_user_memory_region2": _of_region2,
            "gmem_ioctl": _of_gmem_ioctl,
            "set_memory_attributes2": _of_set2,
            "set_memory_attributes2_many": _of_set2_many,
            "fallocate_guest_memfd": _of_fallocate,
            "punch_hole": _of_punch,
        }

    def start(self) -> None:
        """Begin to record."""
        for name, records_of in self._calls.items():
            setattr(self._vm, name, partial(self._call, getattr(self._vm, name), records_of))
        self._vm.restore = partial(self._restore, self._vm.restore)  # type: ignore[method-assign]
        self._vm.create_guest_memfd = partial(  # type: ignore[method-assign]
            self._create_file, self._vm.create_guest_memfd)

    def stop(self) -> None:
        """Record no more."""
        for name in (*self._calls, "restore", "create_guest_memfd"):
            delattr(self._vm, name)

    def _call(self, method: Callable[..., Any], records_of: RecordsOf, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            if self._inside:
                return method(*args, **kwargs)
            try:
                # Before the call, which may write its answer over its argument.
                records = records_of(*args, **kwargs)
            except TypeError:
                records = []  # no arguments that the method would take either
            self._inside = True
            try:
                result = method(*args, **kwargs)
            except BaseException as error:
                done = getattr(error, "done", 0)
                refused = isinstance(error, OSError) and error.errno in _REPEATABLE
                self._write(records[:done])
                self._write(records[done:done + refused])
                raise
            finally:
                self._inside = False
            self._write(records)
            return result

    def _restore(self, method: Callable[[AttributeMap], None], saved: AttributeMap) -> None:
        with self._lock:
            before = self._vm.snapshot()
            self._inside = True
            try:
                method(saved)
            finally:
                self._inside = False
            for start, stop, _old, new in self._vm.attributes.diff(before).tolist():
                self._write([SetAttributes(start << uapi.PAGE_SHIFT, (stop - start) << uapi.PAGE_SHIFT, new)])

    def _create_file(self, method: Callable[..., int], size: int, flags: int = 0) -> int:
        """A file is written when it is there: its handle is its number in the trace. The ioctl comes here, too."""
        with self._lock:
            handle = method(size, flags)
            self._write([CreateFile(handle, index(size), index(flags))])
            return handle

    def _write(self, records: Iterable[Record]) -> None:
        self._file.writelines(line_of(record) + "\n" for record in records)


# One function a method, with its signature: the records that it stands for.


def _of_set(mail_calls: bool, address: int, size: int, attributes: int, operation: int = Operation.WRITE,
            flags: int = 0) -> list[Record]:
    last = index(operation) | index(flags) << (32 if mail_calls else 0)
    return [SetAttributes(index(address), index(size), index(attributes), last)]


def _of_set_many(records: Any) -> list[Record]:
    array = np.ascontiguousarray(records)
    if array.ndim != 1 or array.dtype not in (uapi.MEMORY_ATTRIBUTES, uapi.LINUX_MEMORY_ATTRIBUTES):
        return []
    words = array.view("<u8").reshape(-1, 4).tolist()
    return [SetAttributes(*fields) for fields in words]


def _of_get(address: int, size: int) -> list[Record]:
    return [GetAttributes(index(address), index(size))]


def _of_region(slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int = 0,
               flags: int = 0) -> list[Record]:
    fields = (slot, flags, guest_phys_addr, memory_size, userspace_addr)
    return [SetSlot(*(index(field) for field in fields))]


def _of_region2(slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int = 0, flags: int = 0,
                guest_memfd: int = -1, guest_memfd_offset: int = 0) -> list[Record]:
    fields = (slot, flags, guest_phys_addr, memory_size, userspace_addr, guest_memfd, guest_memfd_offset)
    return [SetSlot(*(index(field) for field in fields))]


def _of_ioctl(vm: VM, request: int, arg: Any = 0, mutate_flag: bool = True) -> list[Record]:
    structure = _STRUCTURES.get(index(request) & 0xFFFFFFFF)
    memory = memoryview(arg).cast("B")  # TypeError for an int
    if structure is None or len(memory) < structure.size:
        return []
    fields = structure.unpack_from(memory)
    match request & 0xFFFFFFFF:
        case uapi.KVM_SET_MEMORY_ATTRIBUTES:
            return [SetAttributes(*fields)]
        case uapi.KVM_GET_MEMORY_ATTRIBUTES:
            return [GetAttributes(*fields[:2])]
        case uapi.KVM_SET_USER_MEMORY_REGION:
            return [SetSlot(*fields)]
        case uapi.KVM_SET_USER_MEMORY_REGION2:
            slot, flags, address, size, userspace, offset, guest_memfd = fields[:7]
            return [SetSlot(slot, flags, address, size, userspace, guest_memfd, offset)]
        case uapi.KVM_MEMORY_ENCRYPT_REG_REGION:
            return [SetAttributes(fields[0], fields[1], vm.profile.private, Operation.OR)]
        case _:
            others = vm.supported_attributes & ~vm.profile.private
            return [SetAttributes(fields[0], fields[1], others, Operation.AND)]


def _of_set2(handle: int, offset: int, size: int, attributes: int, flags: int = 0) -> list[Record]:
    return [SetFileAttributes(*(index(field) for field in (handle, offset, size, attributes, flags)))]


def _of_set2_many(handle: int, records: Any) -> list[Record]:
    array = np.ascontiguousarray(records)
    if array.ndim != 1 or array.dtype != uapi.MEMORY_ATTRIBUTES2:
        return []
    words = array.view("<u8").reshape(-1, 16)
    # A reserved word that is not 0 is refused, and no line has it.
    return [SetFileAttributes(index(handle), *fields[:4]) for fields in words.tolist() if not any(fields[5:])]


def _of_gmem_ioctl(handle: int, request: int, arg: Any = 0, mutate_flag: bool = True) -> list[Record]:
    memory = memoryview(arg).cast("B")  # TypeError for an int
    if index(request) & 0xFFFFFFFF != uapi.KVM_SET_MEMORY_ATTRIBUTES2 or len(memory) < _SET2.size:
        return []
    fields = _SET2.unpack_from(memory)
    return [] if any(fields[5:]) else [SetFileAttributes(index(handle), *fields[:4])]


def _of_fallocate(handle: int, mode: int, offset: int, size: int) -> list[Record]:
    return _of_punch(handle, offset, size) if mode & uapi.FALLOC_FL_PUNCH_HOLE else []


def _of_punch(handle: int, offset: int, size: int) -> list[Record]:
    fields = index(handle), index(offset), index(size)
    return [] if min(fields) < 0 else [PunchHole(*fields)]


RecordsOf = Callable[..., list[Record]]
_SET2 = struct.Struct("<16Q")
_STRUCTURES = {
    uapi.KVM_SET_MEMORY_ATTRIBUTES: struct.Struct("<QQQQ"),
    uapi.KVM_GET_MEMORY_ATTRIBUTES: struct.Struct("<QQQQ"),
    uapi.KVM_SET_USER_MEMORY_REGION: struct.Struct("<IIQQQ"),
    uapi.KVM_SET_USER_MEMORY_REGION2: struct.Struct("<IIQQQQi116x"),
    uapi.KVM_MEMORY_ENCRYPT_REG_REGION: struct.Struct("<QQ"),
    uapi.KVM_MEMORY_ENCRYPT_UNREG_REGION: struct.Struct("<QQ"),
}
