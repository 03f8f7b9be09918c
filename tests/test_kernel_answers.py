"""The running kernel against what other kernels were seen to answer; `python3 dev.py kernel` runs it on one of yours.

``data/kvm-*`` holds random operations with a kernel's answers, line by line (test_kvm_conformance.py runs them on the
model). Here the same operations go to /dev/kvm. Attributes are read back page by page: every edge of the recorded
runs and a sample between them.
"""

import errno
from pathlib import Path

import numpy as np
import pytest

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure.machine import physical_address_bits
from kvmattr.study.mapping import Mapping

DATA = Path(__file__).parent / "data"
TRACES = sorted(DATA.glob("kvm-*/*.trace"))
PAGE = uapi.PAGE_SIZE
#: The machine that the recordings were made on had so many bits of guest-physical address.
PHYS_BITS = 40
_SAMPLE = 256


def reason_not_to_run() -> str | None:
    reason = kvm.missing()
    if reason is not None:
        return reason
    if kvm.private_vm_type() is None:
        return "this kernel makes no VM with private memory: `python3 dev.py kernel` emulates one that does"
    if not kvm.system_extension(uapi.KVM_CAP_PRE_FAULT_MEMORY):
        return "this kernel cannot read attributes back (KVM_PRE_FAULT_MEMORY, Linux 6.11)"
    return None


NOT_HERE = reason_not_to_run()
needs_attributes = pytest.mark.skipif(NOT_HERE is not None, reason=str(NOT_HERE))


@pytest.fixture
def vm():
    with kvm.KernelVM(kvm.private_vm_type() or 0) as machine:
        yield machine


@pytest.fixture(scope="module")
def memory():
    """Addresses for the largest memslot: reserved, never touched."""
    mapping = Mapping(1 << (PHYS_BITS - uapi.PAGE_SHIFT))
    yield mapping.address
    mapping.close()


def answer(vm, request, structure):
    try:
        vm.ioctl(request, bytes(structure))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "0"


def recorded_runs(line, start, stop):
    """The runs of an expected ``get``: gfn, end, private."""
    runs = []
    for word in line.split()[2:]:
        address, pages, value = word.split(":")
        first = int(address, 16) // PAGE
        runs.append((first, first + int(pages), value == "P"))
    assert runs[0][0] == start
    assert runs[-1][1] == stop
    return runs


@needs_attributes
@pytest.mark.parametrize("trace", TRACES, ids=[f"{path.parent.name}-{path.stem}" for path in TRACES])
def test_recorded_answers(vm, memory, trace):
    operations = trace.read_text().splitlines()
    expected = trace.with_suffix(".expected").read_text().splitlines()
    if trace.stem.startswith("slots") and physical_address_bits() != PHYS_BITS:
        pytest.skip(f"recorded on {PHYS_BITS} bits of physical address, this machine has {physical_address_bits()}")
    random = np.random.default_rng(1)
    for index, (operation, wanted) in enumerate(zip(operations, expected, strict=True)):
        kind, *words = operation.split()
        numbers = [int(word, 0) for word in words]
        if kind == "set":
            got = answer(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.linux_kvm_memory_attributes(*numbers))
            assert (index, got) == (index, wanted.split()[1]), operation
        elif kind == "slot":
            number, flags, gpa, size = numbers
            got = answer(vm, uapi.KVM_SET_USER_MEMORY_REGION,
                         uapi.kvm_userspace_memory_region(number, flags, gpa, size, memory))
            assert (index, got) == (index, wanted.split()[1]), operation
        else:
            start, stop = numbers[0] // PAGE, sum(numbers) // PAGE
            runs = recorded_runs(wanted, start, stop)
            edges = np.array([edge for first, end, _ in runs for edge in (first, end - 1)], np.uint64)
            gfns = np.unique(np.append(edges, random.integers(start, stop, _SAMPLE, dtype=np.uint64)))
            run_of = np.searchsorted(np.array([first for first, _, _ in runs]), gfns, side="right") - 1
            private = np.array([value for _, _, value in runs])[run_of]
            different = gfns[vm.read_private(gfns) != private]
            assert len(different) == 0, f"{operation}: {len(different)} pages differ, the first {different[0]:#x}"


@needs_attributes
def test_reading_back(vm, memory):
    region = uapi.kvm_userspace_memory_region(0, 0, 0, 600 * PAGE, memory)
    assert answer(vm, uapi.KVM_SET_USER_MEMORY_REGION, region) == "0"
    gfns = np.arange(700, dtype=np.uint64)
    assert not vm.read_private(gfns).any()
    for first, stop in ((0, 1), (511, 513), (599, 601), (650, 651)):
        change = uapi.linux_kvm_memory_attributes(first * PAGE, (stop - first) * PAGE, 8, 0)
        assert answer(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, change) == "0"
    assert np.flatnonzero(vm.read_private(gfns)).tolist() == [0, 511, 512, 599, 600, 650]
    back = uapi.linux_kvm_memory_attributes(0, 600 * PAGE, 0, 0)
    assert answer(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, back) == "0"
    assert np.flatnonzero(vm.read_private(gfns[::-1])).tolist() == [49, 99]


@needs_attributes
def test_reading_back_where_memory_can_be_read(vm):
    """A shared page that KVM can map is shared too, and a private one is not."""
    mapping = Mapping(600, protection=1)
    region = uapi.kvm_userspace_memory_region(0, 0, 0, 600 * PAGE, mapping.address)
    assert answer(vm, uapi.KVM_SET_USER_MEMORY_REGION, region) == "0"
    gfns = np.arange(600, dtype=np.uint64)
    assert not vm.read_private(gfns).any()
    change = uapi.linux_kvm_memory_attributes(5 * PAGE, 2 * PAGE, 8, 0)
    assert answer(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, change) == "0"
    assert np.flatnonzero(vm.read_private(gfns)).tolist() == [5, 6]
    vm.close()
    mapping.close()
