"""A recording's calls once more, on a VM of the running kernel: its answers beside the recorded, and what each took."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter_ns
from types import TracebackType
from typing import Self

import numpy as np

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure import text
from kvmattr.trace.answers import Answering, errno_name
from kvmattr.trace.operations import (
    UNKNOWN,
    CreateFile,
    FileRecord,
    GetAttributes,
    PunchHole,
    SetAttributes,
    SetSlot,
    records_of,
)
from kvmattr.trace.trace import Trace
from kvmattr.vm import VM

#: Differences are counted all, and kept up to this many.
KEPT = 10
#: Bytes of a guest_memfd that stands for a recorded one, whose size a recording may not tell: it takes no memory.
_FILE_BYTES = 1 << 46
#: Of fallocate.
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


@dataclass(slots=True)
class OnKvm:
    """What the kernel answered and took, call by call."""

    kernel: str
    calls: int = 0
    #: Calls that this kernel has no VM or no file for.
    not_run: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    #: (line, recorded, model, kernel): answers that are not all the same; an empty word: not recorded.
    different: int = 0
    differences: list[tuple[int, str, str, str]] = field(default_factory=list)
    #: Nanoseconds a call.
    median: float = 0.0
    p99: float = 0.0
    worst: float = 0.0
    worst_line: int = 0


def on_kvm(trace: Trace, model: VM) -> OnKvm:
    """Issue a trace's calls to a new VM of the running kernel, timing each, and ask ``model`` the same.

    ``userspace_addr`` is the recorded one: KVM wants an address that could be, not memory. Slots of a guest_memfd get a
    new file. Each call is issued whatever was recorded of it. Raises OSError if /dev/kvm does not open, and ValueError
    for a trace whose attributes are not the kernel's.
    """
    if trace.attribute_calls and model.profile.private != uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE:
        raise ValueError(f"{trace.name} speaks {model.profile.name}: the kernel's attributes are those of linux")
    vm_type = kvm.private_vm_type()
    result = OnKvm(os.uname().release)
    took: list[int] = []
    lines: list[int] = []
    answering = Answering(model, steered=False, name=trace.name)
    with kvm.KernelVM(vm_type or uapi.KVM_X86_DEFAULT_VM) as vm, _Calls(vm, attributes=vm_type is not None) as calls:
        for block in trace.blocks():
            modelled = answering.apply(block).modelled
            for index, record in enumerate(records_of(block)):
                if isinstance(record, GetAttributes):
                    continue    # a look at the map, which no ioctl gives
                call = calls.of(record)
                if call is None:
                    result.not_run += 1
                    continue
                began = perf_counter_ns()
                answer = call()
                took.append(perf_counter_ns() - began)
                lines.append(int(block["line"][index]))
                _note(result, lines[-1], int(block["answer"][index]), int(modelled[index]), answer)
    result.calls = len(took)
    if took:
        times = np.asarray(took, np.float64)
        result.median, result.p99 = (float(each) for each in np.percentile(times, (50, 99)))
        worst = int(times.argmax())
        result.worst, result.worst_line = float(times[worst]), lines[worst]
    return result


def on_kvm_text(result: OnKvm) -> Iterator[str]:
    """The lines for people."""
    yield f"on this kernel ({result.kernel}): {result.calls:,} call{'s' * (result.calls != 1)}" + (
        f", {result.not_run:,} not run, because it has no VM or file for them" if result.not_run else "")
    if not result.calls:
        return
    yield "answers: " + ", ".join(f"{'success' if name == '0' else name} {count:,}"
                                  for name, count in sorted(result.answers.items()))
    median, p99, worst = (text.quantity(each, "ns") for each in (result.median, result.p99, result.worst))
    yield f"time a call: median {median}, 99th percentile {p99}, worst {worst} (line {result.worst_line:,})"
    for line, recorded, modelled, answer in result.differences:
        yield f"line {line}: recorded {recorded or 'nothing'}, model {modelled}, kernel {answer}"
    if result.different > len(result.differences):
        yield f"and {result.different - len(result.differences):,} more such lines"


class _Calls:
    """Records as calls on a VM of the kernel and on its guest_memfds, which are closed at the end."""

    def __init__(self, vm: kvm.KernelVM, *, attributes: bool) -> None:
        self._vm = vm
        self._attributes = attributes
        #: The descriptors of recorded files; None for one that this kernel did not make.
        self._files: dict[int, int | None] = {}
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def of(self, record: SetAttributes | SetSlot | FileRecord) -> Callable[[], int] | None:
        """The call of a record, which gives its errno; None for what this kernel has no VM or file for."""
        if isinstance(record, SetAttributes):
            attributes = bytes(uapi.linux_kvm_memory_attributes(*record))
            return (lambda: self._ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes)) if self._attributes else None
        if isinstance(record, CreateFile):
            return lambda: self._create(record)
        if isinstance(record, SetSlot):
            return self._slot(record)
        file = self._file(record.guest_memfd)
        if file is None:
            return None
        if isinstance(record, PunchHole):
            return lambda: _punch_hole(file, record.offset, record.size)
        change = uapi.kvm_memory_attributes2()
        change.offset, change.size, change.attributes, change.flags = record[1:]
        return lambda: _errno(lambda: fcntl.ioctl(file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, bytearray(change)))

    def _slot(self, record: SetSlot) -> Callable[[], int] | None:
        if record.guest_memfd is None:
            region = bytes(uapi.kvm_userspace_memory_region(*record[:5]))
            return lambda: self._ioctl(uapi.KVM_SET_USER_MEMORY_REGION, region)
        file: int | None = 0
        if record.flags & uapi.KVM_MEM_GUEST_MEMFD and record.guest_memfd >= 0:
            file = self._file(record.guest_memfd)
            if file is None:
                return None
        region2 = bytes(uapi.kvm_userspace_memory_region2(*record[:5], record.guest_memfd_offset, file))
        return lambda: self._ioctl(uapi.KVM_SET_USER_MEMORY_REGION2, region2)

    def _ioctl(self, request: int, structure: bytes) -> int:
        return _errno(lambda: self._vm.ioctl(request, structure))

    def _create(self, record: CreateFile) -> int:
        self._files[record.guest_memfd] = None
        return _errno(lambda: self._made(record))

    def _made(self, record: CreateFile) -> None:
        structure = bytearray(uapi.kvm_create_guest_memfd(record.size, record.flags))
        made = int(self._vm.ioctl(uapi.KVM_CREATE_GUEST_MEMFD, structure))
        self._descriptors.append(made)
        self._files[record.guest_memfd] = made

    def _file(self, number: int) -> int | None:
        """The file of a number; one that no line has made is made as large as can be."""
        if number not in self._files:
            self._create(CreateFile(number, _FILE_BYTES))
        return self._files[number]


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _punch_hole(file: int, offset: int, size: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return ctypes.get_errno() if libc.fallocate(file, _PUNCH_HOLE | _KEEP_SIZE, offset, size) else 0


def _note(result: OnKvm, line: int, recorded: int, modelled: int, answer: int) -> None:
    name = errno_name(answer)
    result.answers[name] = result.answers.get(name, 0) + 1
    if answer != modelled or recorded not in (UNKNOWN, answer):
        result.different += 1
        if len(result.differences) < KEPT:
            known = "" if recorded == UNKNOWN else errno_name(recorded)
            result.differences.append((line, known, errno_name(modelled), name))
