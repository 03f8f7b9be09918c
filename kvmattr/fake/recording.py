"""The recording of a fake or shadow run: an strace log, which ``kvmattr replay`` and ``show`` read.

Structures, answers and times are exact, also of requests that strace itself does not decode. Descriptors are
numbered anew, so that each number is one file for the whole recording; a line's process is the one that called.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import IO, Protocol

from kvmattr import uapi
from kvmattr.fake.files import Ioctl
from kvmattr.fake.server import Channel, Made, tell
from kvmattr.measure.refusing import Refused
from kvmattr.measure.writing import CannotWrite, Place, opened

#: Every request of uapi by its number; of two with one number, the first.
NAMES: dict[int, str] = {}
for _name, _value in vars(uapi).items():
    if uapi.is_request(_name, _value):
        NAMES.setdefault(_value, _name)

_STRUCTURES: dict[int, tuple[type[ctypes.Structure], tuple[str, ...]]] = {
    uapi.KVM_SET_USER_MEMORY_REGION: (uapi.kvm_userspace_memory_region, (
        "slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr")),
    uapi.KVM_SET_USER_MEMORY_REGION2: (uapi.kvm_userspace_memory_region2, (
        "slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr", "guest_memfd_offset", "guest_memfd")),
    uapi.KVM_SET_MEMORY_ATTRIBUTES: (uapi.linux_kvm_memory_attributes, ("address", "size", "attributes", "flags")),
    uapi.KVM_SET_MEMORY_ATTRIBUTES2: (uapi.kvm_memory_attributes2, (
        "offset", "size", "attributes", "flags", "error_offset")),
    uapi.KVM_CREATE_GUEST_MEMFD: (uapi.kvm_create_guest_memfd, ("size", "flags")),
    uapi.KVM_PRE_FAULT_MEMORY: (uapi.kvm_pre_fault_memory, ("gpa", "size", "flags")),
}


def name_of(request: int) -> str:
    """A request as a log names it.

    >>> name_of(uapi.KVM_CREATE_VM), name_of(0xAE99)
    ('KVM_CREATE_VM', '_IOC(_IOC_NONE, 0xae, 0x99, 0)')
    """
    if request in NAMES:
        return NAMES[request]
    directions = ("_IOC_NONE", "_IOC_WRITE", "_IOC_READ", "_IOC_READ|_IOC_WRITE")
    size = uapi.size_of(request)
    return (f"_IOC({directions[request >> 30 & 3]}, {request >> 8 & 0xFF:#x}, {request & 0xFF:#x},"
            f" {hex(size) if size else 0})")


def argument_of(asked: Ioctl) -> str:
    """The third argument as a log shows it: the structure's fields where it has been read."""
    known = _STRUCTURES.get(asked.request)
    if known is None or asked.structure is None:
        return hex(asked.argument)
    structure, names = known
    read = structure.from_buffer_copy(asked.structure)
    fields = []
    for name in names:
        value = getattr(read, name)
        if name == "guest_memfd":
            value = ctypes.c_int32(value).value if asked.bound is None else asked.bound
            fields.append(f"{name}={value}")
        else:
            fields.append(f"{name}={value if name == 'slot' else hex(value)}")
    return "{" + ", ".join(fields) + "}"


def result_of(result: int, error: int) -> str:
    """What stands behind the ``=`` of a log.

    >>> result_of(0, 0), result_of(-1, errno.EEXIST)
    ('0', '-1 EEXIST (File exists)')
    """
    return f"-1 {errno.errorcode.get(error, error)} ({os.strerror(error)})" if error else str(result)


class Numbered(Protocol):
    """A file as a recording names it."""

    @property
    def number(self) -> int:
        """Which."""

    @property
    def kind(self) -> str:
        """What."""

    @property
    def pid(self) -> int:
        """Whose."""


class Recording:
    """Writes a log; KVM_RUN, which says nothing of memory, is left out.

    ``place``: as all of kvmattr's outputs. What was written stands if the process dies. Raises CannotWrite on
    entering; a disk that refuses later keeps :attr:`failed`, and the programs go on.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.failed: CannotWrite | None = None
        self.lines = 0
        self._opened = opened(place, in_place=True)
        self._file: IO[bytes] = self._opened.__enter__()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._opened.__exit__(None, None, None)
        except CannotWrite as error:
            self.failed = self.failed or error

    def exit_code(self, code: int) -> int:
        """The command's; that its recording is not whole is told, and Refused where the command went well."""
        if self.failed is not None:
            text = f"{self.failed}: the recording is not whole"
            if code == 0:
                raise Refused(text)
            tell(text)
        return code

    def flush(self) -> None:
        """Let what was written stand."""
        self._write(None)

    def made(self, channel: Channel, parent: Made | None, asked: Ioctl, made: Made) -> None:
        """A call made a file."""
        kind = made.kind
        if parent is None:
            self._line(channel.pid, f'openat(AT_FDCWD, "{kind}", {asked.argument:#x}) = {made.number}<{kind}>')
        else:
            self._line(channel.pid, f"{self._ioctl(parent, asked)} = {made.number}<{kind}>")

    def answered(self, channel: Channel, made: Made, asked: Ioctl, result: int, error: int) -> None:
        """A call was answered."""
        if asked.request != uapi.KVM_RUN:
            self._line(channel.pid, f"{self._ioctl(made, asked)} = {result_of(result, error)}")

    def fallocated(self, channel: Channel, made: Made, mode: int, offset: int, size: int, error: int) -> None:
        """fallocate(2) was answered."""
        result = result_of(-1 if error else 0, error)
        self._line(channel.pid, f"fallocate({made.number}<{made.kind}>, {mode:#x}, {offset}, {size}) = {result}")

    def closed(self, made: Numbered) -> None:
        """The last descriptor of a file is gone."""
        self._line(made.pid, f"close({made.number}<{made.kind}>) = 0")

    def raw(self, pid: int, text: str, nanoseconds: int) -> None:
        """A call that was answered elsewhere, with its time since 1970."""
        self._line(pid, text, nanoseconds)

    def _ioctl(self, made: Made, asked: Ioctl) -> str:
        return f"ioctl({made.number}<{made.kind}>, {name_of(asked.request)}, {argument_of(asked)})"

    def _line(self, pid: int, text: str, nanoseconds: int | None = None) -> None:
        seconds, rest = divmod((time.time_ns() if nanoseconds is None else nanoseconds) // 1000, 1_000_000)
        self.lines += 1
        self._write(f"{pid} {seconds}.{rest:06} {text}\n".encode())

    def _write(self, data: bytes | None) -> None:
        if self.failed is not None:
            return
        try:
            if data is None:
                self._file.flush()
            else:
                self._file.write(data)
        except CannotWrite as error:
            self.failed = error
