"""A recording's calls once more, on a VM of the running kernel: its answers beside the recorded, and what each took."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure import text
from kvmattr.trace.answers import Answering, errno_name
from kvmattr.trace.operations import UNKNOWN, SetAttributes, SetSlot, records_of
from kvmattr.trace.trace import Trace
from kvmattr.vm import VM

#: Differences are counted all, and kept up to this many.
KEPT = 10
#: Bytes of a guest_memfd that stands for a recorded one, whose size a recording may not tell: it takes no memory.
_FILE_BYTES = 1 << 46


@dataclass(slots=True)
class OnKvm:
    """What the kernel answered and took, call by call."""

    kernel: str
    calls: int = 0
    #: Calls that this kernel has no VM for: attributes, or a guest_memfd.
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
    files: dict[int, int] = {}
    answering = Answering(model, steered=False, name=trace.name)
    with kvm.KernelVM(vm_type or uapi.KVM_X86_DEFAULT_VM) as vm:
        try:
            for block in trace.blocks():
                modelled = answering.apply(block).modelled
                for index, record in enumerate(records_of(block)):
                    call = _call(vm, record, files, vm_type is not None)
                    if call is None:
                        result.not_run += isinstance(record, (SetAttributes, SetSlot))
                        continue
                    answer, nanoseconds = _issued(vm, *call)
                    took.append(nanoseconds)
                    lines.append(int(block["line"][index]))
                    _note(result, lines[-1], int(block["answer"][index]), int(modelled[index]), answer)
        finally:
            for descriptor in files.values():
                os.close(descriptor)
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
        f", {result.not_run:,} not run, because it has no VM for them" if result.not_run else "")
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


def _call(vm: kvm.KernelVM, record: object, files: dict[int, int], attributes: bool) -> tuple[int, bytes] | None:
    """The request and its structure, None for what is no call or what this VM has not."""
    if isinstance(record, SetAttributes):
        structure = uapi.linux_kvm_memory_attributes(*record)
        return (uapi.KVM_SET_MEMORY_ATTRIBUTES, bytes(structure)) if attributes else None
    if not isinstance(record, SetSlot):
        return None
    if record.guest_memfd is None:
        return uapi.KVM_SET_USER_MEMORY_REGION, bytes(uapi.kvm_userspace_memory_region(*record[:5]))
    file = 0
    if record.flags & uapi.KVM_MEM_GUEST_MEMFD and record.guest_memfd >= 0:
        if record.guest_memfd not in files:
            try:
                files[record.guest_memfd] = int(vm.ioctl(uapi.KVM_CREATE_GUEST_MEMFD,
                                                         bytearray(uapi.kvm_create_guest_memfd(_FILE_BYTES))))
            except OSError:
                return None
        file = files[record.guest_memfd]
    region = uapi.kvm_userspace_memory_region2(*record[:5], record.guest_memfd_offset, file)
    return uapi.KVM_SET_USER_MEMORY_REGION2, bytes(region)


def _issued(vm: kvm.KernelVM, request: int, structure: bytes) -> tuple[int, int]:
    began = perf_counter_ns()
    try:
        vm.ioctl(request, structure)
        answer = 0
    except OSError as error:
        answer = error.errno or 0
    return answer, perf_counter_ns() - began


def _note(result: OnKvm, line: int, recorded: int, modelled: int, answer: int) -> None:
    name = errno_name(answer)
    result.answers[name] = result.answers.get(name, 0) + 1
    if answer != modelled or recorded not in (UNKNOWN, answer):
        result.different += 1
        if len(result.differences) < KEPT:
            known = "" if recorded == UNKNOWN else errno_name(recorded)
            result.differences.append((line, known, errno_name(modelled), name))
