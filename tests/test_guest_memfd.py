"""guest_memfd with attributes of its own: KVM_SET_MEMORY_ATTRIBUTES2, faults and invalidation by binding.

Each check of the call is a test that names it; what is called must answer in the order of the kernel, and a call
that fails changes nothing.
"""

import errno
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmattr import VM, Access, uapi
from kvmattr.profiles import PROFILES
from tests.kvm_calls import GIB, GUEST_MEMFD, HVA, MIB, PAGE, answer, errno_of, region, region2

PRIVATE = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
MMAP, INIT_SHARED = uapi.GUEST_MEMFD_FLAG_MMAP, uapi.GUEST_MEMFD_FLAG_INIT_SHARED
SET2 = uapi.KVM_SET_MEMORY_ATTRIBUTES2
GMEM = [name for name, profile in PROFILES.items() if profile.file_attributes]
FAULT, MMIO = uapi.KVM_EXIT_MEMORY_FAULT, uapi.KVM_EXIT_MMIO


def bound(flags=0, size=MIB, gpa=MIB, abi="gmem"):
    """A machine, the handle of a file, and the file bound as memslot 1."""
    vm = VM(abi)
    file = vm.create_guest_memfd(size, flags)
    assert region2(vm, 1, GUEST_MEMFD, gpa, size, HVA, file) == 0
    return vm, file


def set2(vm, file, offset, size, attributes, **others):
    """One call through ioctl: the answer and the structure; what fails has changed neither pages nor sequence."""
    change = uapi.kvm_memory_attributes2(offset=offset, size=size, attributes=attributes)
    for name, value in others.items():
        if name == "reserved":
            change.reserved[value] = 1
        else:
            setattr(change, name, value)
    pages = vm.guest_memfd(file).attributes
    before, sequence = pages.snapshot(), vm.invalidation.sequence
    result = answer(vm.gmem_ioctl, file, SET2, change)
    if result:
        assert pages == before
        assert vm.invalidation.sequence == sequence
    return result, change


# Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abi", PROFILES)
@pytest.mark.parametrize("private", [False, True])
def test_creation_flags_are_the_capabilitys(abi, private):
    vm = VM(abi, private=private)
    known = vm.check_extension(uapi.KVM_CAP_GUEST_MEMFD_FLAGS)
    for flags in (*range(9), 1 << 63):
        assert errno_of(vm.create_guest_memfd, MIB, flags) == ("EINVAL" if flags & ~known else 0)
    with pytest.raises(OSError, match="flags are 0x100"):
        vm.create_guest_memfd(0, 0x100)  # a bad flag before a bad size


@pytest.mark.parametrize("abi", PROFILES)
def test_a_new_file_is_private_or_shared(abi):
    vm = VM(abi, private=False)
    known = vm.check_extension(uapi.KVM_CAP_GUEST_MEMFD_FLAGS)
    for flags in range(4):
        if not flags & ~known:
            pages = vm.guest_memfd(vm.create_guest_memfd(MIB, flags)).attributes
            assert pages.uniform(0, 256) == (0 if flags & INIT_SHARED else vm.profile.private)
            assert len(pages) == 256
            with pytest.raises(TypeError):
                pages[0] = 1


@pytest.mark.parametrize("abi", PROFILES)
def test_handles(abi):
    vm, other = VM(abi), VM(abi)
    file = vm.create_guest_memfd(MIB)
    assert vm.guest_memfd(file).size == MIB
    for handle in (-1, 0, file + 1000):
        assert answer(vm.guest_memfd, handle) == "EBADF"
        assert answer(vm.gmem_ioctl, handle, SET2, bytearray(128)) == "EBADF"
        assert answer(vm.punch_hole, handle, 0, PAGE) == "EBADF"
        assert answer(vm.close_guest_memfd, handle) == "EBADF"
    assert answer(other.close_guest_memfd, file) == "EBADF"
    vm.close_guest_memfd(file)
    assert answer(vm.guest_memfd, file) == "EBADF"


def test_attributes_outlive_binding_and_holes():
    vm, file = bound()
    vm.set_memory_attributes2(file, 0x3000, 0x2000, 0)
    before = vm.guest_memfd(file).attributes.snapshot()
    vm.punch_hole(file, 0, MIB)
    assert region(vm, 1, 0, MIB, 0) == 0
    assert region2(vm, 7, GUEST_MEMFD, 8 * MIB, MIB, HVA, file) == 0
    assert vm.guest_memfd(file).attributes == before
    assert [vm.is_private(8 * MIB + offset) for offset in (0x2000, 0x3000, 0x4000, 0x5000)] == [
        True, False, False, True]


FALLOCATE = [  # mode, offset, size -> errno, on a file of 1 MiB
    ((1, 0, PAGE), 0), ((1, MIB - PAGE, PAGE), 0), ((1, MIB, PAGE), "EINVAL"), ((1, 0, 1), "EINVAL"),
    ((0, 0, PAGE), "EOPNOTSUPP"), ((2, 0, PAGE), "EOPNOTSUPP"), ((3, 0, PAGE), 0), ((3, 1, PAGE), "EINVAL"),
    ((3, 0, PAGE + 1), "EINVAL"), ((3, MIB, PAGE), 0), ((3, 0, 4 * MIB), 0), ((3, 0, 0), "EINVAL"),
    ((3, -PAGE, PAGE), "EINVAL"), ((7, 0, PAGE), "EOPNOTSUPP"), ((0x10, 0, 0), "EINVAL"),
    ((3, (1 << 63) - PAGE, PAGE), "EFBIG"), ((1, 1 << 62, 1 << 62), "EFBIG"), ((0x40, 0, PAGE), "EOPNOTSUPP"),
    ((0x40, 1, (1 << 63) - 1), "EFBIG"), ((0x10, 0, PAGE), "EOPNOTSUPP"), ((9, 1 << 62, 1 << 62), "EOPNOTSUPP"),
]


@pytest.mark.parametrize(("arguments", "expected"), FALLOCATE)
def test_fallocate(arguments, expected):
    vm = VM("linux")
    assert answer(vm.fallocate_guest_memfd, vm.create_guest_memfd(MIB), *arguments) == expected


def test_a_hole_counts_where_it_is_bound():
    vm = VM("gmem")
    file = vm.create_guest_memfd(MIB)
    sequence = vm.invalidation.sequence
    vm.punch_hole(file, 0, MIB)
    assert vm.invalidation.sequence == sequence
    assert region2(vm, 1, GUEST_MEMFD, 16 * MIB, MIB // 2, HVA, file, MIB // 4) == 0
    vm.punch_hole(file, 0, MIB // 4)
    assert vm.invalidation.sequence == sequence
    vm.punch_hole(file, MIB // 2, 8 * MIB)
    assert vm.invalidation.sequence == sequence + 1
    assert vm.invalidation.hull == ((16 * MIB + MIB // 4) >> 12, (16 * MIB + MIB // 2) >> 12)


# KVM_SET_MEMORY_ATTRIBUTES2: the checks in their order -----------------------------------------------------


@pytest.mark.parametrize("abi", PROFILES)
def test_the_call_is_on_files_of_in_place_conversion_alone(abi):
    vm = VM(abi)
    file = vm.create_guest_memfd(MIB)
    change = uapi.kvm_memory_attributes2(offset=0, size=PAGE, attributes=0)
    assert answer(vm.ioctl, SET2, change) == "ENOTTY"
    assert answer(vm.gmem_ioctl, file, SET2, change) == (0 if abi in GMEM else "ENOTTY")
    assert errno_of(vm.set_memory_attributes2, file, 0, PAGE, 0) == (0 if abi in GMEM else "ENOTTY")
    assert errno_of(vm.set_memory_attributes2_many, file, np.zeros(0, uapi.MEMORY_ATTRIBUTES2)) == (
        0 if abi in GMEM else "ENOTTY")
    for request in (uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.KVM_CHECK_EXTENSION, 0xC020AED2, 0x4080AED2, "x", None):
        assert answer(vm.gmem_ioctl, file, request, bytearray(128)) == "ENOTTY"


@pytest.mark.parametrize(("abi", "expected"), [
    ("gmem", {"vm": 0, "file": 8, 0: "ENOTTY", 8: "ENOTTY"}),
    ("gmem-vm-attributes", {"vm": 0, "file": 8, 0: 0, 8: "EINVAL"}),
])
def test_the_vms_own_attributes(abi, expected):
    vm = VM(abi)
    assert vm.check_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES) == vm.supported_attributes == expected["vm"]
    assert vm.check_extension(uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) == expected["file"]
    assert VM(abi, private=False).check_extension(uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) == 0
    for attributes in (0, 8):
        change = uapi.linux_kvm_memory_attributes(0, PAGE, attributes, 0)
        assert answer(vm.ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES, change) == expected[attributes]
        assert answer(vm.set_memory_attributes, 0, PAGE, attributes) == expected[attributes]
        many = np.zeros(1, uapi.LINUX_MEMORY_ATTRIBUTES)
        many["size"], many["attributes"] = PAGE, attributes
        assert answer(vm.set_memory_attributes_many, many) == expected[attributes]
    assert vm.attributes.run_count == 1


@pytest.mark.parametrize("arg", [0, 1 << 63, None, b"", bytes(127), bytearray(32)])
def test_efault_is_first(arg):
    vm, file = bound()
    assert answer(vm.gmem_ioctl, file, SET2, arg) == "EFAULT"


def test_each_check_has_its_text():
    vm, file = bound()
    cases = [
        ({"flags": 1}, "flags 0x1: must be 0"),
        ({"flags": 1, "reserved": 3}, "flags 0x1: must be 0"),
        ({"reserved": 0, "attributes": 1}, "reserved[0] 0x1: must be 0"),
        ({"reserved": 10}, "reserved[10] 0x1: must be 0"),
        ({"attributes": 1}, "attributes 0x1: must be within the supported 0x8"),
        ({"attributes": 9, "size": 0}, "attributes 0x9: must be within the supported 0x8"),
        ({"size": 0, "offset": 1}, "size 0: must be a multiple of 4096 above 0"),
        ({"offset": 2**64 - PAGE, "size": 2 * PAGE}, "offset 0xfffffffffffff000, size 0x2000: the end must be below"
                                                     " 2^64"),
        ({"offset": 1, "size": PAGE + 1}, "offset 0x1: must be a multiple of 4096"),
        ({"size": PAGE + 1}, "size 0x1001: must be a multiple of 4096"),
        ({"offset": MIB, "size": PAGE}, "offset 0x100000, size 0x1000: must end within the guest_memfd, which has"
                                        " 0x100000 bytes"),
        ({"offset": 0, "size": MIB + PAGE}, "offset 0x0, size 0x101000: must end within the guest_memfd, which has"
                                            " 0x100000 bytes"),
        ({"offset": 1 << 62, "size": PAGE}, "offset 0x4000000000000000, size 0x1000: must end within the guest_memfd,"
                                            " which has 0x100000 bytes"),
    ]
    for fields, text in cases:
        fields = {"offset": 0, "size": PAGE, "attributes": 0} | fields
        assert set2(vm, file, **fields)[0] == "EINVAL"
        change = uapi.kvm_memory_attributes2(**{name: fields[name] for name in ("offset", "size", "attributes")})
        change.flags = fields.get("flags", 0)
        if "reserved" in fields:
            change.reserved[fields["reserved"]] = 1
        with pytest.raises(OSError, match=re.escape(text)) as caught:
            vm.gmem_ioctl(file, SET2, change)
        assert caught.value.args == (errno.EINVAL, text)
        assert change.error_offset == 0


def test_a_vm_without_private_memory():
    vm = VM("gmem", private=False)
    file = vm.create_guest_memfd(MIB, MMAP | INIT_SHARED)
    for attributes in (0, 8):
        with pytest.raises(OSError, match="the guest_memfd's VM has no private memory") as caught:
            vm.set_memory_attributes2(file, 0, PAGE, attributes)
        assert caught.value.errno == errno.EINVAL


def test_what_comes_in_as_error_offset_is_not_looked_at():
    vm, file = bound()
    result, change = set2(vm, file, 0, PAGE, 0, error_offset=77)
    assert (result, change.error_offset) == (0, 77)
    assert set2(vm, file, 0, PAGE, 1, error_offset=77)[1].error_offset == 77


def test_method_fields():
    vm, file = bound()
    for fields in ((-1, PAGE, 0), (0, 1 << 64, 0), (0, PAGE, -1)):
        with pytest.raises(ValueError, match=r"must be in 0\.\.0xffffffffffffffff"):
            vm.set_memory_attributes2(file, *fields)
    with pytest.raises(TypeError, match="offset 'x': must be an integer"):
        vm.set_memory_attributes2(file, "x", PAGE, 0)
    assert answer(vm.set_memory_attributes2, file, 0, PAGE, 0, flags=1) == "EINVAL"


def test_a_forked_process_or_another_vm_may_call():
    """There is no check of the process: whoever has the file may call."""
    vm, file = bound()
    assert VM("gmem").set_memory_attributes2(file, 0, PAGE, 0) == 0
    assert vm.guest_memfd(file).attributes[0] == 0


# What it does ----------------------------------------------------------------------------------------------


def test_equal_neighbours_merge_and_a_call_without_change_does_nothing():
    vm, file = bound()
    pages = vm.guest_memfd(file).attributes
    assert set2(vm, file, 0, MIB, PRIVATE)[0] == 0
    assert vm.invalidation.sequence == 0
    set2(vm, file, 0x4000, PAGE, 0)
    set2(vm, file, 0x5000, PAGE, 0)
    assert pages.runs().tolist() == [(0, 4, 8), (4, 6, 0), (6, 256, 8)]
    assert vm.invalidation.sequence == 2
    set2(vm, file, 0x4000, 2 * PAGE, 0)
    assert vm.invalidation.sequence == 2
    version = pages.version
    set2(vm, file, 0x4000, PAGE, 0)
    assert pages.version == version


def test_a_page_in_use_cannot_become_private():
    vm, file = bound(INIT_SHARED)
    held = vm.guest_memfd(file)
    held.pin(0x9000, 2 * PAGE)
    held.pin(0x9000)
    result, change = set2(vm, file, 0, MIB, PRIVATE)
    assert (result, change.error_offset) == ("EAGAIN", 0x9000)
    result, change = set2(vm, file, 0xA000, PAGE, PRIVATE)
    assert (result, change.error_offset) == ("EAGAIN", 0xA000)
    assert set2(vm, file, 0x8000, PAGE, PRIVATE)[0] == 0
    held.unpin(0x9000)
    assert set2(vm, file, 0x8000, 2 * PAGE, PRIVATE)[0] == "EAGAIN"
    held.unpin(0x9000, 2 * PAGE)
    assert set2(vm, file, 0, MIB, PRIVATE)[0] == 0
    with pytest.raises(ValueError, match="page 0x9 is not pinned"):
        held.unpin(0x9000)
    # To shared, and where nothing would change, nobody asks.
    held.pin(0)
    assert set2(vm, file, 0, MIB, PRIVATE)[0] == 0
    assert set2(vm, file, 0, MIB, 0)[0] == 0


def test_unpin_is_all_or_nothing():
    vm, file = bound(INIT_SHARED)
    held = vm.guest_memfd(file)
    held.pin(0x1000)
    with pytest.raises(ValueError, match="page 0x2 is not pinned"):
        held.unpin(0x1000, 2 * PAGE)
    assert set2(vm, file, 0x1000, PAGE, PRIVATE)[0] == "EAGAIN"
    for offset, size in ((1, PAGE), (0, 0), (MIB, PAGE), (0, MIB + PAGE)):
        with pytest.raises(ValueError, match="must be whole pages within the file's 256"):
            held.pin(offset, size)


def test_the_structure_comes_back_on_failure_only():
    vm, file = bound(INIT_SHARED)
    vm.guest_memfd(file).pin(0x3000)
    change = uapi.kvm_memory_attributes2(offset=0, size=MIB, attributes=PRIVATE, error_offset=5)
    for buffer in (bytearray(change), np.frombuffer(bytes(change), uapi.MEMORY_ATTRIBUTES2).copy()):
        with pytest.raises(OSError, match="offset 0x3000: the page is in use") as caught:
            vm.gmem_ioctl(file, SET2, buffer)
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.error_offset == 0x3000
        assert uapi.kvm_memory_attributes2.from_buffer_copy(buffer).error_offset == 0x3000
    # What cannot be written is a copy, as fcntl makes one: the error tells.
    for buffer, mutate in ((bytes(change), True), (bytearray(change), False)):
        with pytest.raises(OSError, match="in use") as caught:
            vm.gmem_ioctl(file, SET2, buffer, mutate)
        assert caught.value.error_offset == 0x3000
        assert bytes(buffer) == bytes(change)
    good = bytes(uapi.kvm_memory_attributes2(offset=0x4000, size=PAGE, attributes=PRIVATE))
    assert vm.gmem_ioctl(file, SET2, good) == good
    assert vm.gmem_ioctl(file, SET2, good + b"more") == good + b"more"
    assert vm.gmem_ioctl(file, SET2 | 1 << 32, bytearray(good)) == 0


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - PAGE])
def test_a_file_of_any_size(size):
    vm = VM("gmem")
    file = vm.create_guest_memfd(size)
    assert vm.set_memory_attributes2(file, 0, size, 0) == 0
    assert vm.guest_memfd(file).attributes.run_count == 1
    assert set2(vm, file, 0, size + PAGE, 0)[0] == "EINVAL"


# Batches ---------------------------------------------------------------------------------------------------


def records_of(*changes):
    records = np.zeros(len(changes), uapi.MEMORY_ATTRIBUTES2)
    for record, (offset, size, attributes) in zip(records, changes, strict=True):
        record["offset"], record["size"], record["attributes"] = offset, size, attributes
    return records


def test_a_batch():
    vm, file = bound(INIT_SHARED)
    records = records_of((0, PAGE, PRIVATE), (PAGE, PAGE, PRIVATE), (0, PAGE, PRIVATE), (PAGE, PAGE, 0))
    assert vm.set_memory_attributes2_many(file, records) == 3
    assert vm.guest_memfd(file).attributes[0:3].tolist() == [8, 0, 0]
    assert vm.invalidation.sequence == 3
    vm.guest_memfd(file).pin(0x7000)
    with pytest.raises(OSError, match="in use") as caught:
        vm.set_memory_attributes2_many(file, records_of((PAGE, PAGE, 8), (0x6000, 0x4000, 8), (0, PAGE, 0)))
    assert (caught.value.done, caught.value.error_offset, caught.value.errno) == (1, 0x7000, errno.EAGAIN)
    with pytest.raises(OSError, match="attributes 0x4") as caught:
        vm.set_memory_attributes2_many(file, records_of((PAGE, PAGE, 0), (PAGE, PAGE, 4)))
    assert caught.value.done == 1
    assert vm.guest_memfd(file).attributes[0:3].tolist() == [8, 0, 0]


def test_a_batch_of_what_is_none():
    vm, file = bound()
    assert vm.set_memory_attributes2_many(file, np.zeros(0, uapi.MEMORY_ATTRIBUTES2)) == 0
    for records in (np.zeros(1, uapi.MEMORY_ATTRIBUTES), np.zeros((1, 1), uapi.MEMORY_ATTRIBUTES2), [1]):
        with pytest.raises(TypeError, match=r"must be one-dimensional, of uapi.MEMORY_ATTRIBUTES2"):
            vm.set_memory_attributes2_many(file, records)


def test_a_long_batch_is_the_same_as_single_calls():
    vm, file = bound(INIT_SHARED, size=64 * MIB)
    rng = np.random.default_rng(1)
    records = np.zeros(10000, uapi.MEMORY_ATTRIBUTES2)
    records["offset"] = rng.integers(0, 1 << 13, len(records)) * PAGE
    records["size"] = rng.integers(1, 64, len(records)) * PAGE
    records["attributes"] = rng.integers(0, 2, len(records)) * 8
    one, alone = bound(INIT_SHARED, size=64 * MIB)
    changed = 0
    for record in records:
        before = one.invalidation.sequence
        one.set_memory_attributes2(alone, *(int(record[name]) for name in ("offset", "size", "attributes")))
        changed += one.invalidation.sequence - before
    assert vm.set_memory_attributes2_many(file, records) == changed
    assert vm.guest_memfd(file).attributes == one.guest_memfd(alone).attributes
    assert vm.invalidation.sequence == one.invalidation.sequence


# Faults and levels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("abi", GMEM)
def test_private_is_what_the_bound_page_says(abi):
    vm, file = bound(MMAP, abi=abi)
    assert vm.is_private(MIB)
    assert vm.access(MIB, Access.READ) is None
    assert vm.access(MIB, Access.READ, private=False) == (FAULT, 0, MIB, PAGE, False)
    vm.set_memory_attributes2(file, 0, PAGE, 0)
    assert not vm.is_private(MIB)
    assert vm.access(MIB, Access.READ) is None
    assert vm.access(MIB, Access.READ, private=True) == (FAULT, 8, MIB, PAGE, False)
    # Two slots, the second half first: the page of the file counts, not the gfn.
    assert region(vm, 1, 0, MIB, 0) == 0
    assert region2(vm, 1, GUEST_MEMFD, MIB, MIB // 2, HVA, file, MIB // 2) == 0
    assert region2(vm, 2, GUEST_MEMFD, MIB + MIB // 2, MIB // 2, HVA, file) == 0
    assert [vm.is_private(gpa) for gpa in (MIB, MIB + MIB // 2, MIB + MIB // 2 + PAGE)] == [True, False, True]
    assert vm.access(MIB, Access.WRITE, MIB) is None
    assert vm.access(MIB, Access.READ, MIB, private=True) == (FAULT, 8, MIB + MIB // 2, PAGE, False)


@pytest.mark.parametrize("abi", GMEM)
def test_holes_plain_slots_and_closed_files_are_shared(abi):
    vm, file = bound(abi=abi)
    assert region(vm, 0, 0, 0, MIB // 2) == 0
    assert vm.access(MIB // 2, Access.READ) == (MMIO, 0, MIB // 2, 1, False)
    assert vm.access(0, Access.READ) is None
    assert vm.access(0, Access.READ, private=True) == (FAULT, 8, 0, PAGE, False)
    vm.close_guest_memfd(file)
    assert not vm.is_private(MIB)
    left = vm.access(MIB + 5, Access.READ)
    assert left == (FAULT, 0, MIB, PAGE, False)
    assert left.errno == errno.EFAULT
    assert answer(vm.pre_fault_memory, MIB, PAGE) == "EFAULT"
    assert answer(vm.pre_fault_memory, 2 * MIB, PAGE) == "ENOENT"


@pytest.mark.parametrize(("abi", "flags", "private", "shared_exit"), [
    ("linux-6.18", MMAP, False, None), ("linux-6.18", MMAP, True, None),
    ("linux-7.2", 0, False, None), ("linux-7.2", MMAP, False, 0), ("linux-7.2", MMAP, True, 0),
    ("linux-7.2", 0, True, None), ("gmem", 0, True, 0), ("gmem", 0, False, 0),
])
def test_whose_shared_pages_come_from_the_file(abi, flags, private, shared_exit):
    vm = VM(abi, private=private)
    file = vm.create_guest_memfd(MIB, flags)
    assert region2(vm, 1, GUEST_MEMFD, MIB, MIB, HVA, file) == 0
    vm.close_guest_memfd(file)
    left = vm.access(MIB, Access.READ)
    assert left is None if shared_exit is None else left == (FAULT, shared_exit, MIB, PAGE, False)


def test_exits_carry_the_errno_of_the_run():
    vm, file = bound(INIT_SHARED)
    assert vm.access(0, Access.READ).errno == 0
    assert vm.access(MIB, Access.READ, private=True).errno == errno.EFAULT
    vm.fail_page(file, 0x3123)
    assert vm.invalidation.sequence == 1
    assert vm.access(MIB, Access.READ, 0x3000) is None
    failed = vm.access(MIB + 0x2FFF, Access.WRITE, 2)
    assert failed == (FAULT, 0, MIB + 0x3000, PAGE, True)
    assert failed.errno == uapi.EHWPOISON
    vm.set_memory_attributes2(file, 0, MIB, PRIVATE)
    assert vm.access(MIB, Access.READ, MIB).flags == PRIVATE
    assert vm.access(MIB, Access.READ, MIB).errno == uapi.EHWPOISON
    vm.punch_hole(file, 0x3000, PAGE)
    assert vm.access(MIB, Access.READ, MIB) is None
    with pytest.raises(ValueError, match="must be within the guest_memfd"):
        vm.fail_page(file, MIB)


def test_a_page_that_failed_before_another_machine_had_a_file_of_it():
    one, other = VM("gmem"), VM("gmem")
    file = one.create_guest_memfd(MIB, INIT_SHARED)
    one.fail_page(file, 0x3000)
    again = other.link_guest_memfd(file)
    assert region2(other, 0, GUEST_MEMFD, 0, MIB, HVA, again) == 0
    assert other.access(0x2000, Access.READ) is None
    assert other.access(0x3000, Access.READ).errno == uapi.EHWPOISON


def test_a_failed_page_that_is_not_used_is_none():
    vm, file = bound(abi="linux")
    vm.fail_page(file, 0)
    assert vm.access(MIB, Access.READ) is None  # shared: from userspace_addr
    vm.set_memory_attributes(MIB, PAGE, PRIVATE)
    assert vm.access(MIB, Access.READ).errno == uapi.EHWPOISON


def test_mapping_level_follows_the_file():
    vm = VM("gmem")
    file = vm.create_guest_memfd(4 * GIB, MMAP)
    assert region2(vm, 0, GUEST_MEMFD, 0, 2 * GIB, 0, file, 2 * MIB) == 0
    assert vm.mapping_level(0) == 3
    vm.set_memory_attributes2(file, 2 * MIB + 4 * MIB, PAGE, 0)
    assert [vm.mapping_level(gpa) for gpa in (0, 4 * MIB, 6 * MIB, GIB)] == [2, 1, 2, 3]
    vm.set_memory_attributes2(file, 0, 2 * MIB, 0)  # not bound
    assert vm.mapping_level(0) == 2


# Invalidation and listeners --------------------------------------------------------------------------------


def test_one_step_where_it_is_bound_and_no_widening():
    vm = VM("gmem")
    file = vm.create_guest_memfd(8 * GIB)
    assert region2(vm, 0, GUEST_MEMFD, 4 * GIB, GIB, HVA, file, GIB) == 0
    assert region2(vm, 1, GUEST_MEMFD, 2 * GIB, GIB, HVA, file, 2 * GIB) == 0
    vm.set_memory_attributes2(file, 0, GIB, 0)
    assert vm.invalidation.sequence == 0
    assert vm.invalidation.hull is None
    vm.set_memory_attributes2(file, GIB, PAGE, 0)
    assert (vm.invalidation.sequence, vm.invalidation.hull) == (1, (4 * GIB >> 12, (4 * GIB >> 12) + 1))
    vm.set_memory_attributes2(file, 2 * GIB - PAGE, 2 * PAGE, 0)
    assert (vm.invalidation.sequence, vm.invalidation.hull) == (2, (2 * GIB >> 12, 5 * GIB >> 12))
    assert vm.invalidation.in_progress == 0


def two_machines():
    """Two machines that have bound two halves of the same pages, the second one at another place."""
    one, other = VM("gmem"), VM("gmem")
    file = one.create_guest_memfd(MIB, INIT_SHARED)
    again = other.link_guest_memfd(file)
    assert region2(one, 0, GUEST_MEMFD, 0, MIB, HVA, file) == 0
    assert region2(other, 0, GUEST_MEMFD, 16 * MIB, MIB // 2, HVA, again, MIB // 2) == 0
    return one, other, file, again


def test_every_machine_that_has_bound_it_hears():
    one, other, file, again = two_machines()
    one.set_memory_attributes2(file, 0, PAGE, PRIVATE)
    assert (one.invalidation.sequence, other.invalidation.sequence) == (1, 0)
    other.set_memory_attributes2(again, MIB - PAGE, PAGE, PRIVATE)
    assert (one.invalidation.sequence, other.invalidation.sequence) == (2, 1)
    assert one.invalidation.hull == (255, 256)
    assert other.invalidation.hull == (0x1000 + 127, 0x1000 + 128)
    assert one.is_private(MIB - PAGE)
    assert other.is_private(16 * MIB + MIB // 2 - PAGE)
    other.guest_memfd(again).pin(0x5000)
    assert answer(one.set_memory_attributes2, file, 0, MIB, PRIVATE) == "EAGAIN"
    other.guest_memfd(again).unpin(0x5000)
    one.punch_hole(file, 0, MIB)
    assert (one.invalidation.sequence, other.invalidation.sequence) == (3, 2)
    records = records_of((0, MIB, PRIVATE), (0, MIB, 0))
    assert one.set_memory_attributes2_many(file, records) == 2
    assert (one.invalidation.sequence, other.invalidation.sequence) == (5, 4)
    other.close_guest_memfd(again)
    assert other.access(16 * MIB, Access.READ).flags == 0
    one.set_memory_attributes2(file, 0, MIB, PRIVATE)
    assert other.invalidation.sequence == 5  # the closing alone
    assert answer(VM("linux-7.2").link_guest_memfd, file) == "EINVAL"


def test_another_machines_file_cannot_be_bound():
    _one, other, file, _ = two_machines()
    assert region2(other, 1, GUEST_MEMFD, 0, PAGE, HVA, file) == "EINVAL"


class Ear:
    def __init__(self, refuses=False):
        self.heard = []
        self.refuses = refuses

    def prepare(self, changes):
        self.heard.append(("prepare", changes.tolist()))
        if self.refuses:
            raise RuntimeError("no")

    def commit(self, changes):
        self.heard.append(("commit", changes.tolist()))

    def abort(self, changes):
        self.heard.append(("abort", changes.tolist()))


def test_listeners_hear_gfns_of_their_machine():
    one, other, file, _ = two_machines()
    ears = [Ear(), Ear()]
    one.add_listener(ears[0])
    other.add_listener(ears[1])
    one.set_memory_attributes2(file, MIB // 2 - PAGE, 2 * PAGE, PRIVATE)
    assert ears[0].heard == [("prepare", [(127, 129, 0, 8)]), ("commit", [(127, 129, 0, 8)])]
    assert ears[1].heard == [("prepare", [(0x1000, 0x1001, 0, 8)]), ("commit", [(0x1000, 0x1001, 0, 8)])]
    one.set_memory_attributes2(file, 0, PAGE, PRIVATE)
    assert len(ears[0].heard) == 4
    assert len(ears[1].heard) == 2  # nothing of it is bound there
    one.set_memory_attributes2(file, 0, PAGE, PRIVATE)
    assert len(ears[0].heard) == 4


def test_a_listener_refuses_for_all():
    one, other, file, _ = two_machines()
    machines = sorted((one, other), key=id)
    kind, strict = Ear(), Ear(refuses=True)
    machines[0].add_listener(kind)
    machines[1].add_listener(strict)
    before = one.guest_memfd(file).attributes.snapshot()
    with pytest.raises(RuntimeError, match="no"):
        one.set_memory_attributes2(file, MIB // 2, PAGE, PRIVATE)
    assert one.guest_memfd(file).attributes == before
    assert [what for what, _ in kind.heard] == ["prepare", "abort"]
    assert (one.invalidation.sequence, other.invalidation.sequence) == (0, 0)
    assert one.invalidation.in_progress == other.invalidation.in_progress == 0
    machines[1].remove_listener(strict)
    assert one.set_memory_attributes2(file, MIB // 2, PAGE, PRIVATE) == 0


def test_a_listener_may_not_change_what_it_hears_of():
    vm, file = bound()
    refused = []

    class Meddler(Ear):
        def prepare(self, changes):
            refused.append(answer(vm.set_memory_attributes2, file, 0, PAGE, 0))
            refused.append(answer(vm.punch_hole, file, 0, PAGE))
            refused.append(answer(vm.close_guest_memfd, file))

    vm.add_listener(Meddler())
    vm.set_memory_attributes2(file, 0, 2 * PAGE, 0)
    assert refused == ["EBUSY"] * 3


def test_changes_of_many_bindings_come_in_few_calls():
    vm = VM("gmem")
    file = vm.create_guest_memfd(MIB)
    for page in range(256):
        assert region2(vm, page, GUEST_MEMFD, 2 * page * PAGE, PAGE, HVA, file, (255 - page) * PAGE) == 0
    ear = Ear()
    vm.add_listener(ear)
    vm.set_memory_attributes2(file, 0, MIB, 0)
    (_, prepared), (_, committed) = ear.heard
    assert prepared == committed
    assert sorted(prepared) == [(2 * page, 2 * page + 1, 8, 0) for page in range(256)]
    assert vm.invalidation.hull == (0, 511)


# Against a plain model -------------------------------------------------------------------------------------

PAGES = 32
OFFSETS = st.integers(0, PAGES - 1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["set", "bind", "unbind", "pin", "unpin", "punch"]), OFFSETS,
                          st.integers(1, 8), st.booleans()), max_size=30), st.booleans())
def test_random_calls_against_a_plain_model(calls, shared):
    vm = VM("gmem")
    file = vm.create_guest_memfd(PAGES * PAGE, INIT_SHARED if shared else 0)
    pages = [0 if shared else 8] * PAGES
    pins, bindings, sequence = [0] * PAGES, {}, 0
    for kind, first, length, flag in calls:
        stop = min(first + length, PAGES)
        touched = range(first, stop)
        bound_there = any(page in touched for binding in bindings.values() for page in binding)
        if kind == "set":
            value = 8 if flag else 0
            expected = 0
            if any(pages[page] != value for page in touched):
                if value and any(pins[page] for page in touched):
                    expected = "EAGAIN"
                else:
                    pages[first:stop] = [value] * (stop - first)
                    sequence += bound_there
            assert answer(vm.set_memory_attributes2, file, first * PAGE, (stop - first) * PAGE, value) == expected
        elif kind == "bind":
            got = region2(vm, first, GUEST_MEMFD, first * MIB, (stop - first) * PAGE, HVA, file, first * PAGE)
            if first not in bindings and not bound_there:
                assert got == 0
                bindings[first] = touched
            else:
                assert got in ("EEXIST", "EINVAL")
        elif kind == "unbind":
            assert region(vm, first, 0, 0, 0) == (0 if bindings.pop(first, None) else "EINVAL")
            sequence = vm.invalidation.sequence  # deleting counts as KVM's memslots do: not this test's subject
        elif kind == "punch":
            vm.punch_hole(file, first * PAGE, (stop - first) * PAGE)
            sequence += bound_there
        elif kind == "pin":
            vm.guest_memfd(file).pin(first * PAGE, PAGE)
            pins[first] += 1
        elif pins[first]:
            vm.guest_memfd(file).unpin(first * PAGE, PAGE)
            pins[first] -= 1
        assert vm.guest_memfd(file).attributes[0:PAGES].tolist() == pages
        assert vm.invalidation.sequence == sequence
        assert vm.guest_memfd(file).bindings == tuple(
            (binding[0] * PAGE, (binding[-1] + 1) * PAGE, number) for number, binding in sorted(bindings.items()))
        for number, binding in bindings.items():
            for place, page in enumerate(binding):
                assert vm.is_private(number * MIB + place * PAGE) == bool(pages[page])
    vm.memslots.validate()
