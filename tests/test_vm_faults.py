"""Faults, protection, mapping levels and invalidation, beyond the rows that were observed."""

import re

import pytest

from kvmattr import VM, Access, Exit, Operation, uapi

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
R, W, X = Access.READ, Access.WRITE, Access.EXEC
FAULT, MMIO = uapi.KVM_EXIT_MEMORY_FAULT, uapi.KVM_EXIT_MMIO
PRIVATE, NO_WRITE, NO_EXEC = uapi.KVM_MEM_ATTR_PRIVATE, uapi.KVM_MEM_ATTR_NO_WRITE, uapi.KVM_MEM_ATTR_NO_EXEC
NONE = uapi.KVM_MEM_ATTR_NO_READ | NO_WRITE | NO_EXEC


@pytest.fixture
def vm():
    """1 MiB plain, 1 MiB read-only, 1 MiB with a guest_memfd, then a hole."""
    vm = VM(no_exec=True)
    vm.set_user_memory_region(0, 0, MIB)
    vm.set_user_memory_region(1, MIB, MIB, flags=uapi.KVM_MEM_READONLY)
    file = vm.create_guest_memfd(MIB)
    vm.set_user_memory_region2(2, 2 * MIB, MIB, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=file)
    return vm


@pytest.mark.parametrize("access", [Access(value) for value in range(1, 8)], ids=str)
def test_flags_are_the_refused_bits(vm, access):
    for attributes, allowed in [
        (NO_WRITE, R | X),
        (NO_EXEC, R | W),
        (NO_WRITE | NO_EXEC, R),
        (NONE, Access(0)),
    ]:
        for gpa, private in ((0, 0), (2 * MIB, PRIVATE)):
            vm.set_memory_attributes(gpa, PAGE, attributes | private)
            refused = access & ~allowed
            expected = (
                Exit(FAULT, refused | (8 if private else 0), gpa, PAGE, bool(access & W)) if refused else None
            )
            assert vm.access(gpa + 8, access, 8) == expected


@pytest.mark.parametrize(("attribute", "claimed", "flags"), [(0, True, 8), (PRIVATE, False, 0)])
def test_a_mismatch_reports_the_access_alone(vm, attribute, claimed, flags):
    for gpa in (0, MIB, 2 * MIB, 3 * MIB):
        vm.set_memory_attributes(gpa, PAGE, attribute | NONE)
        assert vm.access(gpa, R | W | X, private=claimed) == Exit(FAULT, flags, gpa, PAGE, True)


def test_claims_that_match(vm):
    vm.set_memory_attributes(2 * MIB, PAGE, PRIVATE)
    assert vm.access(2 * MIB, W, private=True) is None
    assert vm.access(2 * MIB + PAGE, W, private=False) is None
    vm.set_memory_attributes(0, PAGE, PRIVATE)
    assert vm.access(0, R, private=True) == Exit(FAULT, 8, 0, PAGE, False)


def test_order_of_the_checks(vm):
    vm.set_memory_attributes(0, 4 * MIB, NONE)
    assert vm.access(3 * MIB, R) == Exit(MMIO, 0, 3 * MIB, 1, False)  # before what an attribute forbids
    assert vm.access(MIB, W) == Exit(FAULT, 2, MIB, PAGE, True)  # an attribute before the read-only memslot
    vm.set_memory_attributes(3 * MIB, PAGE, NONE | PRIVATE)
    assert vm.access(3 * MIB, R) == Exit(FAULT, 8, 3 * MIB, PAGE, False)  # PRIVATE before everything


def test_linux_never_reports_exec():
    vm = VM("linux")
    vm.set_user_memory_region(0, 0, MIB)
    vm.set_memory_attributes(0, PAGE, uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    assert vm.access(0, R | W | X).flags == uapi.KVM_MEMORY_EXIT_FLAG_PRIVATE


def test_the_first_page_that_exits_answers(vm):
    assert vm.access(MIB - 4, R, 8) is None
    assert vm.access(MIB - 4, W, 8) == Exit(MMIO, 0, MIB, 4, True)
    assert vm.access(3 * MIB - 4, R, 8) == Exit(MMIO, 0, 3 * MIB, 4, False)
    assert vm.access(3 * MIB + 4094, R, 8) == Exit(MMIO, 0, 3 * MIB + 4094, 2, False)
    vm.set_memory_attributes(16 * PAGE, PAGE, NO_WRITE)
    vm.set_memory_attributes(20 * PAGE, PAGE, NONE)
    assert vm.access(0, W, 3 * MIB) == Exit(FAULT, 2, 16 * PAGE, PAGE, True)
    assert vm.access(0, R, 3 * MIB) == Exit(FAULT, 1, 20 * PAGE, PAGE, False)
    assert vm.access(21 * PAGE, R, 3 * MIB - 21 * PAGE) is None


def test_a_huge_access_costs_its_runs():
    """A terabyte of equal pages is one step; page by page this test would not end."""
    vm = VM()
    for slot in range(2):
        vm.set_user_memory_region(slot, slot << 42, 1 << 42)
    vm.set_memory_attributes((1 << 43) - PAGE, PAGE, NO_WRITE)
    assert vm.access(0, R | X, 1 << 43) is None
    assert vm.access(0, W, 1 << 43) == Exit(FAULT, 2, (1 << 43) - PAGE, PAGE, True)
    assert vm.access(2**64 - 1, R) == Exit(MMIO, 0, 2**64 - 1, 1, False)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0, 0), ValueError, "access 0: must be READ, WRITE, EXEC or several of them"),
        ((0, 8), ValueError, "access 0x8: must be in 0..0x7"),
        ((-1, 1), ValueError, "gpa -0x1: must be in 0..0xffffffffffffffff"),
        ((1 << 64, 1), ValueError, "gpa 0x10000000000000000: must be in 0..0xffffffffffffffff"),
        ((0, 1, 0), ValueError, "gpa 0x0, size 0x0: must be at least a byte, and end at or below 2^64"),
        (
            (2**64 - 1, 1, 2),
            ValueError,
            "gpa 0xffffffffffffffff, size 0x2: must be at least a byte, and end at or below 2^64",
        ),
        (("0", 1), TypeError, "gpa '0': must be an integer"),
    ],
)
def test_bad_accesses(vm, arguments, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        vm.access(*arguments)


def test_protection_is_memslot_and_attributes(vm):
    assert [vm.protection(gpa) for gpa in (0, MIB, 2 * MIB, 3 * MIB)] == [
        R | W | X,
        R | X,
        R | W | X,
        Access(0),
    ]
    vm.set_memory_attributes(0, 4 * MIB, NO_EXEC)
    assert [vm.protection(gpa) for gpa in (0, MIB, 2 * MIB, 3 * MIB)] == [R | W, R, R | W, Access(0)]


def test_a_closed_guest_memfd_has_no_memory():
    vm = VM()
    file = vm.create_guest_memfd(MIB)
    vm.set_user_memory_region2(0, 0, MIB // 2, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=file)
    vm.set_user_memory_region2(
        1, MIB, MIB // 2, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=file, guest_memfd_offset=MIB // 2
    )
    vm.set_memory_attributes(0, MIB, PRIVATE)
    sequence = vm.invalidation.sequence
    assert vm.access(0, R) is None
    vm.close_guest_memfd(file)
    assert vm.access(0, R) == Exit(FAULT, 8, 0, PAGE, False)
    assert (vm.invalidation.sequence, vm.invalidation.hull) == (sequence + 1, (0, (MIB + MIB // 2) // PAGE))
    with pytest.raises(OSError, match=f"guest_memfd is {file}: this VM has no such file open"):
        vm.close_guest_memfd(file)
    vm.close_guest_memfd(vm.create_guest_memfd(MIB))
    assert vm.invalidation.sequence == sequence + 1


# Mapping levels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpa", "size", "hva", "level"),
    [
        (0, GIB, 0, 3),
        (0, GIB, GIB, 3),
        (GIB, GIB, 7 * GIB, 3),
        (0, GIB, 2 * MIB, 2),
        (0, GIB, PAGE, 1),
        (2 * MIB, GIB, 2 * MIB, 2),
        (0, GIB - PAGE, 0, 2),
        (0, 2 * MIB - PAGE, 0, 1),
        (PAGE, GIB, PAGE, 1),
        (0, 1 << 39, 0, 3),
    ],
)
def test_memslots_limit_the_level(gpa, size, hva, level):
    vm = VM()
    assert vm.mapping_level(gpa) == 1
    vm.set_user_memory_region(0, gpa, size, hva)
    assert vm.mapping_level(gpa + size // 4) == (level if gpa != PAGE else 2)
    if gpa == PAGE:
        assert vm.mapping_level(gpa) == level


@pytest.mark.parametrize("offset", [0, GIB, 2 * MIB, PAGE])
def test_no_kernel_compares_the_offset_of_the_guest_memfd(offset):
    vm = VM()
    file = vm.create_guest_memfd(4 * GIB)
    vm.set_user_memory_region2(
        0, 0, GIB, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=file, guest_memfd_offset=offset
    )
    assert vm.mapping_level(0) == 3


def test_mixed_attributes_limit_the_level():
    vm = VM()
    vm.set_user_memory_region(0, 0, 4 * GIB)
    vm.set_memory_attributes(2 * MIB, PAGE, NO_WRITE)
    levels = [vm.mapping_level(gpa) for gpa in (0, 2 * MIB, 4 * MIB, GIB)]
    assert levels == [2, 1, 2, 3]
    vm.set_memory_attributes(2 * MIB, 2 * MIB, NO_WRITE)
    assert [vm.mapping_level(gpa) for gpa in (0, 2 * MIB, GIB)] == [2, 2, 3]
    vm.set_memory_attributes(0, GIB, NO_WRITE)
    assert vm.mapping_level(2 * MIB) == 3


@pytest.mark.parametrize(("start", "size"), [(2 * MIB, 2 * MIB), (0, GIB)])
def test_a_level_where_all_that_varied_was_taken_away(start, size):
    """The pages lose a bit that the store does not know to be gone, and by one operation all others."""
    vm = VM(no_exec=True)
    vm.set_user_memory_region(0, 0, 4 * GIB)
    for values in ((0, NO_WRITE, NO_EXEC, NO_WRITE | NO_EXEC), (0, NO_WRITE)):
        for page in range(512):
            vm.set_memory_attributes(2 * MIB + page * PAGE, PAGE, values[page * 7 % 11 % len(values)])
        assert (vm.mapping_level(2 * MIB), vm.mapping_level(4 * MIB)) == (1, 2)
    vm.set_memory_attributes(start, size, NO_EXEC, Operation.AND)
    assert (vm.mapping_level(2 * MIB), vm.mapping_level(4 * MIB)) == (3, 3)


# Invalidation ----------------------------------------------------------------------------------------------


def test_only_effective_changes_of_memslots_count():
    vm = VM()
    vm.set_user_memory_region(0, MIB, MIB)
    vm.set_user_memory_region(1, 4 * MIB, MIB)
    assert vm.invalidation.hull is None
    vm.set_memory_attributes(16 * MIB, MIB, PRIVATE)  # no memslot
    vm.set_memory_attributes(MIB, MIB, 0)  # no change
    assert (vm.invalidation.sequence, vm.invalidation.hull) == (0, None)
    vm.set_memory_attributes(0, 32 * MIB, PRIVATE)  # two memslots, one change
    assert (vm.invalidation.sequence, vm.invalidation.hull) == (1, (256, 5 * 256))
    vm.set_memory_attributes(MIB, PAGE, PRIVATE)
    assert (vm.invalidation.sequence, vm.invalidation.hull) == (1, (256, 5 * 256))


def test_hull_holds_the_whole_range_and_huge_pages_across_its_ends():
    vm = VM()
    vm.set_user_memory_region(0, 0, 4 * GIB)
    vm.set_memory_attributes(GIB + 2 * MIB + PAGE, PAGE, PRIVATE)
    assert vm.invalidation.hull == (1 << 18, 2 << 18)  # the 1 GiB page could be mapped so far
    vm.set_memory_attributes(GIB + 2 * MIB, 2 * PAGE, PRIVATE)
    assert vm.invalidation.hull == ((1 << 18) + 512, (1 << 18) + 514)  # both are mixed already
    vm.set_memory_attributes(GIB + 4 * MIB + PAGE, PAGE, PRIVATE)
    assert vm.invalidation.hull == ((1 << 18) + 1024, (1 << 18) + 1536)


def test_two_address_spaces_are_one_invalidation():
    vm = VM(private=False)
    vm.set_user_memory_region(0, 0, MIB)
    vm.set_user_memory_region(1 << 16, 4 * MIB, MIB)
    vm.set_memory_attributes(0, 32 * MIB, NO_WRITE)
    assert (vm.invalidation.sequence, vm.invalidation.hull) == (1, (0, 5 * 256))


def test_retry():
    vm = VM()
    vm.set_user_memory_region(0, 0, MIB)
    invalidation = vm.invalidation
    sequence = invalidation.sequence
    assert not invalidation.retry(sequence)
    invalidation.begin()
    invalidation.add(10, 20)
    assert invalidation.retry(sequence)
    assert [invalidation.retry(sequence, gfn) for gfn in (9, 10, 19, 20)] == [False, True, True, False]
    invalidation.begin()  # a second one at the same time: the hull grows over both
    invalidation.add(30, 31)
    invalidation.end()
    assert invalidation.hull == (10, 31)
    assert invalidation.retry(sequence + 1, 25)
    invalidation.end()
    assert invalidation.in_progress == 0
    assert [invalidation.retry(sequence + 2, gfn) for gfn in (10, None)] == [False, False]
    assert [invalidation.retry(sequence, gfn) for gfn in (100, None)] == [True, True]


def test_invalidations_that_cannot_be():
    invalidation = VM().invalidation
    with pytest.raises(ValueError, match=r"^a change must begin and add a range before it ends$"):
        invalidation.end()
    with pytest.raises(ValueError, match=r"^no change is in progress: begin one first$"):
        invalidation.add(0, 1)
    invalidation.begin()
    with pytest.raises(ValueError, match=r"^range 0x5..0x5: start must be below stop$"):
        invalidation.add(5, 5)
    with pytest.raises(ValueError, match=r"^a change must begin and add a range before it ends$"):
        invalidation.end()


def test_a_pending_operation_can_make_a_block_uniform():
    """AND over a GiB takes the bit in which one block varies; another block keeps the operation pending above both."""
    vm = VM(no_exec=True)
    vm.set_user_memory_region(0, 0, 1 << 31, userspace_addr=1 << 40)
    vm.set_memory_attributes(0x1000, 0x1000, 1)                     # PRIVATE: mixed in block 0
    vm.set_memory_attributes(0x201000, 0x1000, 4)                   # NO_WRITE: mixed in block 1
    assert (vm.mapping_level(0), vm.mapping_level(0x200000)) == (1, 1)
    vm.set_memory_attributes(0, 1 << 30, 0xE, Operation.AND)
    assert (vm.mapping_level(0), vm.mapping_level(0x200000)) == (2, 1)
