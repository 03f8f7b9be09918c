"""The machine below KVM: where user space ends, page size, alignment, and the memslots that KVM owns."""

import errno
import re

import pytest

from kvmattr import VM, Access, uapi
from kvmattr.hosts import HOSTS, X86_64, Host, host_named
from tests.kvm_calls import GUEST_MEMFD, HVA, MIB, PAGE, READONLY, answer, region, region2

ENDS = {"x86-64": (1 << 47) - PAGE, "x86-64-la57": (1 << 56) - PAGE, "arm64": 1 << 48, "arm64-lva": 1 << 52,
        "arm64-16k": 1 << 48, "arm64-64k": 1 << 52, "s390": 1 << 53}


@pytest.mark.parametrize("host", HOSTS)
def test_user_space_ends_where_the_host_says(host):
    vm = VM("linux", host=host)
    size = MIB
    assert region(vm, 0, 0, 0, size, ENDS[host] - size) == 0
    assert region(vm, 1, 0, size, size, ENDS[host]) == "EINVAL"
    assert vm.host is HOSTS[host]


def test_the_slot_of_the_arm64_report():
    """A recording of Graviton: refused by x86-64's limit, which is not its own."""
    slot = (0, 0, 0x80000000, 12884901888, 0xFFFCB0000000)
    assert region(VM("linux"), *slot) == "EINVAL"
    assert region(VM("linux", host="arm64"), *slot) == 0


@pytest.mark.parametrize(("host", "page"), [("x86-64", 1 << 12), ("arm64-16k", 1 << 14), ("arm64-64k", 1 << 16)])
def test_a_page_of_the_host_is_the_unit(host, page):
    vm = VM("linux", host=host)
    half = page // 2
    assert region(vm, 0, 0, 0, MIB + half) == "EINVAL"
    assert region(vm, 0, 0, half, MIB) == "EINVAL"
    assert region(vm, 0, 0, 0, MIB, HVA + half) == "EINVAL"
    assert answer(vm.set_memory_attributes, half, page, 8) == "EINVAL"
    assert answer(vm.set_memory_attributes, 0, half, 8) == "EINVAL"
    assert answer(vm.create_guest_memfd, MIB + half) == "EINVAL"
    file = vm.create_guest_memfd(MIB)
    assert answer(vm.punch_hole, file, half, page) == "EINVAL"
    assert region(vm, 0, 0, 0, MIB) == 0
    assert answer(vm.pre_fault_memory, half, page) == "EINVAL"
    assert vm.set_memory_attributes(page, page, 8) == 0
    assert vm.access(2 * page - 1, Access.READ) == (uapi.KVM_EXIT_MEMORY_FAULT, 8, page, page, False)
    assert vm.access(MIB + page - 2, Access.READ, 4) == (uapi.KVM_EXIT_MMIO, 0, MIB + page - 2, 2, False)
    assert vm.pre_fault_memory(0, MIB) == page


def test_s390_wants_memslots_in_mebibytes():
    vm = VM("linux", host="s390")
    assert region(vm, 0, 0, 0, MIB + PAGE) == "EINVAL"
    assert region(vm, 0, 0, 0, MIB, HVA + PAGE) == "EINVAL"
    assert region(vm, 0, READONLY, 0, MIB) == "EINVAL"
    assert region(vm, 0, 0, 0, MIB) == 0
    # The architecture is asked last: an overlap is found before.
    assert region(vm, 1, 0, 0, MIB + PAGE) == "EEXIST"
    assert vm.check_extension(uapi.KVM_CAP_READONLY_MEM) == 0
    assert vm.set_memory_attributes(PAGE, PAGE, 8) == 0


@pytest.mark.parametrize(("profile", "flags", "expected"), [
    ("linux-7.2", 0, "EINVAL"), ("linux-7.2", uapi.GUEST_MEMFD_FLAG_MMAP, 0), ("linux-6.18", 0, "EINVAL"),
])
def test_arm64_binds_only_files_that_serve_shared_pages(profile, flags, expected):
    vm = VM(profile, private=False, host="arm64")
    file = vm.create_guest_memfd(MIB, flags)
    assert region2(vm, 0, GUEST_MEMFD, 0, MIB, HVA, file) == expected
    if expected:
        assert vm.memslots.slot(0) is None
        assert not list(vm.memslots)
        assert region(vm, 0, 0, 0, MIB) == 0  # nothing of the refused slot is left


def test_one_address_space_is_no_capability():
    arm = VM("linux", private=False, host="arm64")
    assert arm.check_extension(uapi.KVM_CAP_MULTI_ADDRESS_SPACE) == 0
    assert region(arm, 1 << 16, 0, 0, MIB) == "EINVAL"
    assert arm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS) == 32767
    assert region(arm, 32766, 0, 0, MIB) == 0
    assert region(arm, 32767, 0, MIB, MIB) == "EINVAL"


# Memslots of KVM's own -------------------------------------------------------------------------------------

APIC = 0xFEE00000


def test_the_irqchip_brings_the_apic_page():
    vm = VM("linux-7.2", private=False)
    assert region(vm, 0, 0, APIC, PAGE) == 0
    assert answer(vm.create_irqchip) == "EEXIST"  # the user's memslot is in the way
    assert region(vm, 0, 0, APIC, 0) == 0
    assert vm.ioctl(uapi.KVM_CREATE_IRQCHIP) == 0
    assert answer(vm.create_irqchip) == "EEXIST"
    assert region(vm, 0, 0, APIC, PAGE) == "EEXIST"
    assert region(vm, 1 << 16, 0, 0, 1 << 32, 0) == "EEXIST"
    assert region(vm, 32764, 0, APIC, 0) == "EINVAL"  # its number is not the user's to delete
    assert [(slot.address_space, slot.start) for slot in vm.memslots] == [(0, APIC >> 12), (1, APIC >> 12)]
    assert vm.access(APIC, Access.READ) is None
    assert region(vm, 0, 0, APIC - PAGE, PAGE) == 0
    vm.memslots.validate()


def test_all_of_kvms_memslots_or_none():
    vm = VM(host=Host("two", irqchip_memslots=((APIC, PAGE), (APIC + MIB, PAGE))))
    assert region(vm, 0, 0, APIC + MIB, PAGE) == 0
    assert answer(vm.create_irqchip) == "EEXIST"
    assert [slot.id for slot in vm.memslots] == [0]
    vm.memslots.validate()


def test_hosts_without_apicv_have_none():
    vm = VM(host=Host("no APICv", irqchip_memslots=()))
    assert vm.create_irqchip() == 0
    assert region(vm, 0, 0, APIC, PAGE) == 0


def test_no_numbers_left_for_kvm():
    with pytest.raises(OSError, match=r"^\[Errno 12\] 65535 memslots leave no numbers for KVM's own$") as caught:
        VM(nr_memslots=65535).create_irqchip()
    assert caught.value.errno == errno.ENOMEM


# Records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "message"), [
    ({"page_size": 2048}, "page_size 0x800 must be a power of two in 0x1000..0x200000"),
    ({"page_size": 12288}, "page_size 0x3000 must be a power of two in 0x1000..0x200000"),
    ({"memslot_alignment": 2048}, "memslot_alignment 0x800 must be 0, or a power of two in 0x1000..0x10000000000"),
    ({"user_space_end": 0}, "user_space_end 0x0 must be in 0x1..0xffffffffffffffff"),
    ({"address_spaces": 3}, "address_spaces 3 must be 1 or 2"),
    ({"irqchip_memslots": ((0, PAGE),) * 4}, "irqchip_memslots are 4, must be at most 3"),
    ({"irqchip_memslots": ((1, PAGE),)}, "irqchip_memslots 0x1, 0x1000 must be whole pages below 2^52"),
])
def test_hosts_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=f"^host 'mine': {re.escape(message)}$"):
        Host("mine", **fields)


def test_names():
    assert host_named("x86-64") is X86_64
    with pytest.raises(ValueError, match=r"^host 'vax': must be one of x86-64, .*, s390, or a Host$"):
        VM(host="vax")
