"""A VM's memslots and files change through the VM alone: its lock guards what a batch beside walks."""

from __future__ import annotations

import pytest

from kvmattr import VM, uapi
from kvmattr.memslots import GuestMemfd, MemslotTable


@pytest.fixture
def vm():
    vm = VM("linux-7.2")
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=1 << 20)
    return vm


def slots(vm):
    return list(vm.memslots), vm.memslots.generation


def test_set_region_of_a_vms_table_is_refused(vm):
    before = slots(vm)
    with pytest.raises(RuntimeError, match=r"^these memslots are a VM's: its set_user_memory_region changes them, "
                                           r"under its lock$"):
        vm.memslots.set_region(1, 0, 1 << 20, 1 << 20)
    with pytest.raises(RuntimeError, match=r"^these memslots are a VM's"):
        vm.memslots.own_regions([(0xFEE00000, 4096)])
    assert slots(vm) == before


def test_close_of_a_vms_file_is_refused(vm):
    handle = vm.create_guest_memfd(1 << 20)
    vm.set_user_memory_region2(1, 1 << 20, 1 << 20, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=handle)
    with pytest.raises(RuntimeError, match=r"^this guest_memfd is a VM's: its close_guest_memfd closes it, under its "
                                           r"lock$"):
        vm.guest_memfd(handle).close()
    assert len(vm.guest_memfd(handle).bindings) == 1
    vm.close_guest_memfd(handle)


def test_a_table_of_its_own_is_changed_as_before():
    table = MemslotTable(private_memory=True, resolve_guest_memfd={}.get)
    table.set_region(0, 0, 0, 1 << 20)
    table.own_regions([(0xFEE00000, 4096)])
    GuestMemfd(table, 4096).close()
    assert len(table) == 2
