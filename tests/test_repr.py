"""What a machine, its memslots, a profile and an exit say when they are printed."""

import pickle

import pytest

from kvmattr import VM, Exit
from kvmattr.memslots import MemslotTable
from kvmattr.profiles import LINUX, RFC, Profile


@pytest.mark.parametrize(("fields", "said"), [
    ((39, 2 | 8, 0x5000, 0x1000, True),
     "Exit(MEMORY_FAULT, flags=WRITE|PRIVATE, gpa=0x5000, size=0x1000, is_write=True)"),
    ((39, 1 | 4, 0, 0x1000, False), "Exit(MEMORY_FAULT, flags=READ|EXEC, gpa=0x0, size=0x1000, is_write=False)"),
    ((6, 0, 2**64 - 1, 1, False), "Exit(MMIO, flags=0, gpa=0xffffffffffffffff, size=0x1, is_write=False)"),
    ((17, 0x42, 1, 1, False), "Exit(0x11, flags=WRITE|0x40, gpa=0x1, size=0x1, is_write=False)"),
])
def test_an_exit_is_named(fields, said):
    assert repr(Exit(*fields)) == said
    assert Exit(*fields) == fields
    assert repr(pickle.loads(pickle.dumps(Exit(*fields)))) == said


def test_a_profile_names_its_bits():
    assert repr(LINUX) == "<Profile linux: KVM_MEMORY_ATTRIBUTE_PRIVATE=0x8 (Linux 6.8 to 6.17)>"
    assert repr(Profile("mine", no_write=128)) == "<Profile mine: NO_WRITE=0x80>"
    assert repr(Profile("nothing")) == "<Profile nothing: no attributes>"
    assert repr(RFC.Attributes(5)) == "<Attributes.KVM_MEM_ATTR_PRIVATE|KVM_MEM_ATTR_NO_WRITE: 5>"


def test_a_machine_says_what_it_is_and_holds():
    vm = VM(Profile("mine", private=2))
    assert repr(vm) == "<VM mine, private memory, host x86-64: 0 memslots, 1 run of attributes>"
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=1 << 20)
    vm.set_memory_attributes(0x1000, 0x1000, 2)
    assert repr(vm) == "<VM mine, private memory, host x86-64: 1 memslot, 3 runs of attributes>"
    assert repr(VM("linux", private=False, host="arm64")).startswith("<VM linux, no private memory, host arm64: 0 ")


def test_a_machine_that_was_not_made_can_be_printed():
    class Lazy(VM):
        def __init__(self):
            pass

    assert "Lazy object at 0x" in repr(Lazy())


def test_a_table_says_how_many_memslots_it_has():
    table = MemslotTable(10)
    assert repr(table) == "<MemslotTable: 0 memslots of at most 10, generation 0x0>"
    table.set_region(3, 0, 0, 0x2000, 0x7F0000000000)
    assert repr(table) == f"<MemslotTable: 1 memslot of at most 10, generation {table.generation:#x}>"
    assert repr(MemslotTable(7, address_spaces=2)) == (
        "<MemslotTable: 0 memslots of at most 7 in each of 2 address spaces, generation 0x0>")


def test_an_invalidation_and_a_guest_memfd_say_what_they_hold():
    vm = VM("linux-7.2")
    assert repr(vm.invalidation) == "<Invalidation: sequence 0, 0 in progress, no hull>"
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=1 << 20)
    vm.set_memory_attributes(0x1000, 0x2000, 8)
    assert repr(vm.invalidation) == "<Invalidation: sequence 1, 0 in progress, hull 0x1..0x3>"
    vm.invalidation.begin()
    assert repr(vm.invalidation) == "<Invalidation: sequence 1, 1 in progress, no hull>"
    vm.invalidation.add(4, 5)
    vm.invalidation.end()
    handle = vm.create_guest_memfd(1 << 20, 1)
    file = vm.guest_memfd(handle)
    assert repr(file) == "<GuestMemfd of 0x100000 bytes, flags 0x1>"
    vm.close_guest_memfd(handle)
    assert repr(file) == "<GuestMemfd of 0x100000 bytes, flags 0x1, closed>"
