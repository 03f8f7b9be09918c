"""MemslotTable against KVM's answers: each row that Linux 6.12 printed for KVM_SET_USER_MEMORY_REGION."""

from __future__ import annotations

import errno
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmattr import uapi
from kvmattr.memslots import GuestMemfd, Memslot, MemslotTable

LOG, READONLY, GMEM = uapi.KVM_MEM_LOG_DIRTY_PAGES, uapi.KVM_MEM_READONLY, uapi.KVM_MEM_GUEST_MEMFD
MIB, HVA, PAGE = 1 << 20, 0x7F0000000000, 4096
# Descriptors of the recorded run: a guest_memfd of 1 MiB, a file of another kind, another VM's guest_memfd.
FILE, PIPE, FOREIGN, CLOSED = 3, 4, 5, -1

OK = 0
EINVAL, EEXIST, EBADF = errno.EINVAL, errno.EEXIST, errno.EBADF


def make(kind: str, **arguments: Any) -> MemslotTable:
    """t0: the default VM type; t1: KVM_X86_SW_PROTECTED_VM. Both with 40 physical address bits."""
    files: dict[int, object] = {PIPE: "a pipe"}
    table = MemslotTable(phys_bits=40, address_spaces=2 if kind == "t0" else 1, private_memory=kind == "t1",
                         resolve_guest_memfd=files.get, **arguments)
    files[FILE] = GuestMemfd(table, MIB)
    files[FOREIGN] = GuestMemfd(MemslotTable(private_memory=True), MIB)
    return table


def answer(table: MemslotTable, *arguments: Any, **keywords: Any) -> int:
    """The errno, 0 for success; a failed call must leave every slot as it was."""
    before, installed = list(table), table.generation
    try:
        table.set_region(*arguments, **keywords)
    except OSError as error:
        code, text = error.errno, error.strerror
    else:
        code, text = OK, "success"
    table.validate()
    assert code == OK or (list(table), table.generation) == (before, installed)
    assert text
    return int(code or 0)


def v1(slot: int, gpa: int, size: int, hva: int = HVA, flags: int = 0) -> tuple[tuple[int, ...], Any]:
    return (slot, flags, gpa, size, hva), {}


def v2(slot: int, gpa: int, size: int, hva: int = HVA, flags: int = 0, fd: int = CLOSED,
       offset: int = 0) -> tuple[tuple[int, ...], Any]:
    return (slot, flags, gpa, size, hva), {"region2": True, "guest_memfd": fd, "guest_memfd_offset": offset}


# (row, call, answer of t0, answer of t1), in order, on one table: the recorded run.
ROWS: list[tuple[str, Any, int, int]] = [
    ("create slot0 gpa 1M size 1M", v1(0, MIB, MIB), OK, OK),
    ("same again (no change)", v1(0, MIB, MIB), OK, OK),
    ("gpa unaligned", v1(1, 4 * MIB + 1, MIB), EINVAL, EINVAL),
    ("size unaligned", v1(1, 4 * MIB, MIB + 1), EINVAL, EINVAL),
    ("size 1", v1(1, 4 * MIB, 1), EINVAL, EINVAL),
    ("userspace_addr unaligned", v1(1, 4 * MIB, MIB, HVA + 1), EINVAL, EINVAL),
    ("userspace_addr kernel half", v1(1, 4 * MIB, MIB, 1 << 63), EINVAL, EINVAL),
    ("userspace_addr 1<<47", v1(1, 4 * MIB, MIB, 1 << 47), EINVAL, EINVAL),
    ("userspace_addr + size ends at 1<<47", v1(1, 4 * MIB, MIB, (1 << 47) - MIB), EINVAL, EINVAL),
    ("userspace_addr + size ends at TASK_SIZE_MAX", v1(1, 4 * MIB, MIB, (1 << 47) - PAGE - MIB), OK, OK),
    ("  (delete it)", v1(1, 0, 0), OK, OK),
    ("userspace_addr 0, unmapped", v1(1, 4 * MIB, MIB, 0), OK, OK),
    ("  (delete it)", v1(1, 0, 0), OK, OK),
    ("overlap whole", v1(1, MIB, MIB), EEXIST, EEXIST),
    ("overlap tail by one page", v1(1, 2 * MIB - PAGE, MIB), EEXIST, EEXIST),
    ("overlap head by one page", v1(1, PAGE, MIB), EEXIST, EEXIST),
    ("superset", v1(1, 0, 4 * MIB), EEXIST, EEXIST),
    ("adjacent after", v1(1, 2 * MIB, MIB), OK, OK),
    ("adjacent before", v1(2, 0, MIB), OK, OK),
    ("shrink", v1(0, MIB, MIB - PAGE), EINVAL, EINVAL),
    ("grow", v1(0, MIB, MIB + PAGE), EINVAL, EINVAL),
    ("userspace_addr change", v1(0, MIB, MIB, HVA + PAGE), EINVAL, EINVAL),
    ("flags-only: READONLY on", v1(0, MIB, MIB, flags=READONLY), EINVAL, EINVAL),
    ("flags-only: LOG_DIRTY on", v1(0, MIB, MIB, flags=LOG), OK, OK),
    ("flags-only: LOG_DIRTY off", v1(0, MIB, MIB), OK, OK),
    ("move to free gpa 8M", v1(0, 8 * MIB, MIB), OK, OK),
    ("move + shrink", v1(0, 16 * MIB, MIB - PAGE), EINVAL, EINVAL),
    ("move + flags LOG_DIRTY", v1(0, 16 * MIB, MIB, flags=LOG), OK, OK),
    ("move back, flags off", v1(0, MIB, MIB), OK, OK),
    ("move onto slot1", v1(0, 2 * MIB, MIB), EEXIST, EEXIST),
    ("delete slot1", v1(1, 0, 0), OK, OK),
    ("move overlapping own old place", v1(0, MIB + PAGE, MIB), OK, OK),
    ("move down overlapping own old place", v1(0, MIB, MIB), OK, OK),
    ("delete slot1 again (non-existing)", v1(1, 0, 0), EINVAL, EINVAL),
    ("delete slot2 with wrong gpa & hva (ignored)", v1(2, 64 * MIB, 0, HVA + 64 * MIB), OK, OK),
    ("delete slot0 with unaligned gpa", v1(0, MIB + 1, 0), EINVAL, EINVAL),
    ("delete slot0 with unaligned hva", v1(0, MIB, 0, HVA + 1), EINVAL, EINVAL),
    ("delete slot0 with kernel hva", v1(0, MIB, 0, 1 << 63), EINVAL, EINVAL),
    ("delete slot0 with unknown flags", v1(0, MIB, 0, flags=8), EINVAL, EINVAL),
    ("delete slot0 with READONLY flag", v1(0, MIB, 0, flags=READONLY), OK, OK),
    ("recreate slot0 READONLY", v1(0, MIB, MIB, flags=READONLY), OK, OK),
    ("flags-only READONLY off", v1(0, MIB, MIB), EINVAL, EINVAL),
    ("flags-only READONLY|LOG", v1(0, MIB, MIB, flags=READONLY | LOG), OK, OK),
    ("delete slot0", v1(0, 0, 0), OK, OK),
    ("slot id NR-1", v1(32763, MIB, MIB), OK, OK),
    ("delete slot id NR-1", v1(32763, 0, 0), OK, OK),
    ("slot id NR", v1(32764, MIB, MIB), EINVAL, EINVAL),
    ("slot id 32766", v1(32766, MIB, MIB), EINVAL, EINVAL),
    ("slot id 32767", v1(32767, MIB, MIB), EINVAL, EINVAL),
    ("slot id 65535", v1(65535, MIB, MIB), EINVAL, EINVAL),
    ("as_id 1 slot 0", v1(1 << 16, MIB, MIB), OK, EINVAL),
    ("as_id 0 slot 0, same gpa as as_id 1", v1(0, MIB, MIB), OK, OK),
    ("delete as_id 1 slot 0", v1(1 << 16, 0, 0), OK, EINVAL),
    ("delete slot 0", v1(0, 0, 0), OK, OK),
    ("as_id 2 slot 0", v1(2 << 16, MIB, MIB), EINVAL, EINVAL),
    ("as_id 0xffff slot 0", v1(0xFFFF << 16, MIB, MIB), EINVAL, EINVAL),
    ("size 2^43 (npages 2^31, over max)", v1(0, 0, 1 << 43), EINVAL, EINVAL),
    ("size 2^43-4096 (npages 2^31-1; over maxphyaddr)", v1(0, 0, (1 << 43) - PAGE), EINVAL, EINVAL),
    ("size 2^40 at 0 (exactly maxphyaddr)", v1(0, 0, 1 << 40, 0), OK, OK),
    ("  (delete it)", v1(0, 0, 0), OK, OK),
    ("one page at 2^40-4096", v1(0, (1 << 40) - PAGE, PAGE), OK, OK),
    ("  move beyond maxphyaddr", v1(0, 1 << 40, PAGE), EINVAL, EINVAL),
    ("  (delete it)", v1(0, 0, 0), OK, OK),
    ("one page at 2^40", v1(0, 1 << 40, PAGE), EINVAL, EINVAL),
    ("two pages straddling 2^40", v1(0, (1 << 40) - PAGE, 2 * PAGE), EINVAL, EINVAL),
    ("size wraps: gpa 2^64-4096 size 8192", v1(0, (1 << 64) - PAGE, 2 * PAGE), EINVAL, EINVAL),
    ("gpa 2^64-4096 size 4096 (sum 0)", v1(0, (1 << 64) - PAGE, PAGE), EINVAL, EINVAL),
    ("size 2^63 at 2^63", v1(0, 1 << 63, 1 << 63), EINVAL, EINVAL),
    *[(f"v1 flag bit {bit}", v1(0, MIB, MIB, flags=1 << bit), EINVAL, EINVAL) for bit in range(2, 32)],
    *[(f"v2 flag bit {bit}", v2(0, MIB, MIB, flags=1 << bit), EINVAL, EINVAL) for bit in range(3, 32)],
    ("v2 flag bit 2 with fd -1", v2(0, MIB, MIB, flags=GMEM), EINVAL, EBADF),
    ("v2 READONLY|LOG_DIRTY create", v2(0, MIB, MIB, flags=READONLY | LOG), OK, OK),
    ("  (delete it)", v2(0, 0, 0), OK, OK),
    ("alias: slot 0", v1(0, MIB, MIB), OK, OK),
    ("alias: slot 1 on the same userspace page", v1(1, 2 * MIB, MIB), OK, OK),
    ("  (delete)", v1(0, 0, 0), OK, OK),
    ("  (delete)", v1(1, 0, 0), OK, OK),
    ("GUEST_MEMFD flag through v1", v1(0, MIB, MIB, flags=GMEM), EINVAL, EINVAL),
    ("GUEST_MEMFD|READONLY", v2(0, MIB, MIB, flags=GMEM | READONLY, fd=FILE), EINVAL, EINVAL),
    ("GUEST_MEMFD|LOG_DIRTY", v2(0, MIB, MIB, flags=GMEM | LOG, fd=FILE), EINVAL, EINVAL),
    ("offset unaligned", v2(0, MIB, PAGE, flags=GMEM, fd=FILE, offset=1), EINVAL, EINVAL),
    ("offset+size wraps", v2(0, MIB, 2 * PAGE, flags=GMEM, fd=FILE, offset=(1 << 64) - PAGE), EINVAL, EINVAL),
    ("offset+size > file size", v2(0, MIB, MIB, flags=GMEM, fd=FILE, offset=PAGE), EINVAL, EINVAL),
    ("size > file size", v2(0, MIB, MIB + PAGE, flags=GMEM, fd=FILE), EINVAL, EINVAL),
    ("bad fd -1", v2(0, MIB, MIB, flags=GMEM, fd=CLOSED), EINVAL, EBADF),
    ("fd not a guest_memfd", v2(0, MIB, MIB, flags=GMEM, fd=PIPE), EINVAL, EINVAL),
    ("fd of another VM", v2(0, MIB, MIB, flags=GMEM, fd=FOREIGN), EINVAL, EINVAL),
    ("userspace_addr 0 unmapped", v2(0, MIB, MIB // 2, 0, GMEM, FILE), EINVAL, OK),
    ("  (delete)", v2(0, 0, 0), EINVAL, OK),
    ("userspace_addr unaligned", v2(0, MIB, MIB, HVA + 1, GMEM, FILE), EINVAL, EINVAL),
    ("GUEST_MEMFD ok", v2(0, MIB, MIB // 2, flags=GMEM, fd=FILE), EINVAL, OK),
    ("same call again (nothing changes)", v2(0, MIB, MIB // 2, flags=GMEM, fd=FILE), EINVAL, EINVAL),
    ("drop GUEST_MEMFD flag", v2(0, MIB, MIB // 2), OK, EINVAL),
    ("v1 flags 0", v1(0, MIB, MIB // 2), OK, EINVAL),
    ("add LOG_DIRTY, no GM", v2(0, MIB, MIB // 2, flags=LOG), OK, EINVAL),
    ("move with GM", v2(0, 8 * MIB, MIB // 2, flags=GMEM, fd=FILE), EINVAL, EINVAL),
    ("move without GM", v2(0, 8 * MIB, MIB // 2), OK, EINVAL),
    ("  (move back)", v2(0, MIB, MIB // 2), OK, EINVAL),
    ("plain slot 5 made", v2(5, 32 * MIB, MIB // 2), OK, OK),
    ("plain slot 5: add GUEST_MEMFD", v2(5, 32 * MIB, MIB // 2, flags=GMEM, fd=FILE), EINVAL, EINVAL),
    ("  (delete 5)", v2(5, 0, 0), OK, OK),
    ("second slot, bound range", v2(1, 4 * MIB, MIB // 2, flags=GMEM, fd=FILE, offset=PAGE), EINVAL, EINVAL),
    ("second slot, free range", v2(1, 4 * MIB, MIB // 2, flags=GMEM, fd=FILE, offset=MIB // 2), EINVAL, OK),
    ("gpa overlap AND bad fd", v2(2, MIB, PAGE, flags=GMEM), EINVAL, EEXIST),
    ("gpa overlap AND range already bound", v2(2, MIB, PAGE, flags=GMEM, fd=FILE), EINVAL, EEXIST),
    ("gpa overlap AND unknown flag", v2(2, MIB, PAGE, flags=8), EINVAL, EINVAL),
    ("gpa overlap AND beyond maxphyaddr", v2(2, MIB, 1 << 41, 0), EEXIST, EEXIST),
    ("bad fd AND beyond maxphyaddr", v2(2, 1 << 40, PAGE, flags=GMEM), EINVAL, EBADF),
    ("delete gmem slot 0 flags 0", v2(0, 0, 0), OK, OK),
    ("beyond maxphyaddr, then the same range", v2(0, 1 << 40, MIB // 2, flags=GMEM, fd=FILE), EINVAL, EINVAL),
    ("rebind same gmem range after delete", v2(0, MIB, MIB // 2, flags=GMEM, fd=FILE), EINVAL, OK),
    ("delete gmem slot 1 with GM flag and bad fd", v2(1, 0, 0, flags=GMEM), EINVAL, OK),
]


@pytest.mark.parametrize("kind", ["t0", "t1"])
def test_every_recorded_row(kind: str) -> None:
    table = make(kind)
    wrong = []
    for row, (arguments, keywords), *expected in ROWS:
        got = answer(table, *arguments, **keywords)
        if got != expected[kind == "t1"]:
            wrong.append((row, errno.errorcode.get(got, got), expected[kind == "t1"]))
    assert wrong == []


@pytest.mark.parametrize("kind", ["t0", "t1"])
@pytest.mark.parametrize(("size", "expected"), [
    (MIB, OK), (2**63 - PAGE, OK), (0, EINVAL), (1, EINVAL), (MIB + 1, EINVAL), (1 << 63, EINVAL)])
def test_guest_memfd_sizes(kind: str, size: int, expected: int) -> None:
    if expected == OK:
        file = GuestMemfd(make(kind), size)
        assert (file.size, file.closed, file.bindings) == (size, False, ())
    else:
        with pytest.raises(OSError, match=f"size is {size:#x}: a guest_memfd has") as caught:
            GuestMemfd(make(kind), size)
        assert caught.value.errno == expected


def test_every_error_says_value_and_rule() -> None:
    table = make("t1")
    table.set_region(0, LOG, MIB, MIB, HVA)
    table.set_region(7, GMEM, 64 * MIB, PAGE, HVA, region2=True, guest_memfd=FILE)
    v = {"region2": True, "guest_memfd": FILE}
    for arguments, keywords, text in [
        ((1, 4, 0, PAGE, HVA), {}, "flags are 0x4: KVM_SET_USER_MEMORY_REGION knows 0x3"),
        ((40000, 0, 0, PAGE, HVA), {}, "slot id is 40000: it must be below nr_memslots, 32764"),
        ((1, 8, 0, PAGE, HVA), v, "flags are 0x8: KVM_SET_USER_MEMORY_REGION2 knows 0x7"),
        ((1, 5, 0, PAGE, HVA), v, "flags are 0x5: KVM_MEM_GUEST_MEMFD excludes all others"),
        ((1, 0, 0, 1, HVA), {}, "memory_size is 0x1: it must be a multiple of 0x1000"),
        ((1, 0, 1, PAGE, HVA), {}, "guest_phys_addr is 0x1: it must be a multiple of 0x1000"),
        ((1, 0, 0, PAGE, 1), {}, "userspace_addr is 0x1: it must be a multiple of 0x1000"),
        ((1, 0, 0, PAGE, 0x7FFFFFFFF000), {},
         "userspace_addr 0x7ffffffff000 + memory_size 0x1000 passes the end of user space, 0x7ffffffff000"),
        ((1, 4, 0, PAGE, HVA), v | {"guest_memfd_offset": 1},
         "guest_memfd_offset is 0x1: it must be a multiple of 0x1000"),
        ((1, 4, 0, 0x2000, HVA), v | {"guest_memfd_offset": 2**64 - PAGE},
         "guest_memfd_offset 0xfffffffffffff000 + memory_size 0x2000 passes 2^64"),
        ((0x10001, 0, 0, PAGE, HVA), {}, "slot 0x10001 names address space 1: there are 1"),
        ((1, 0, 2**64 - PAGE, PAGE, HVA), {},
         "guest_phys_addr 0xfffffffffffff000 + memory_size 0x1000 passes 2^64 - 1"),
        ((1, 0, 0, 1 << 43, 0), {},
         "memory_size 0x80000000000 is 2147483648 pages: a memslot has at most 2147483647"),
        ((1, 0, 0, 0, HVA), {}, "memory_size is 0: there is no memslot 1 to delete"),
        ((7, 0, 64 * MIB, PAGE, HVA), {},
         "memslot 7 exists: KVM_MEM_GUEST_MEMFD is for new memslots alone, which can then only be deleted"),
        ((0, LOG, MIB, MIB, 0), {},
         "userspace_addr is 0x0: memslot 0 has 0x7f0000000000, which cannot change"),
        ((0, LOG, MIB, PAGE, HVA), {}, "memory_size is 0x1000: memslot 0 has 0x100000, which cannot change"),
        ((0, 2, MIB, MIB, HVA), {}, "flags are 0x2: memslot 0 has 0x1, and KVM_MEM_READONLY cannot change"),
        ((1, 0, 0, 2 * MIB, HVA), {}, "[0x0, 0x200000) overlaps memslot 0, [0x100000, 0x200000)"),
        ((1, 4, 0, PAGE, HVA), v | {"guest_memfd": CLOSED}, "guest_memfd is -1: no such file is open"),
        ((1, 4, 0, PAGE, HVA), v | {"guest_memfd": PIPE}, "guest_memfd is 4: that file is no guest_memfd"),
        ((1, 4, 0, PAGE, HVA), v | {"guest_memfd": FOREIGN}, "guest_memfd is 5: it belongs to another VM"),
        ((1, 4, 0, PAGE, HVA), v | {"guest_memfd_offset": MIB},
         "guest_memfd_offset 0x100000 + memory_size 0x1000 passes the end of the guest_memfd, "
         "which has 0x100000 bytes"),
        ((1, 4, 0, PAGE, HVA), v, "the guest_memfd's range [0x0, 0x1000) is already bound to a memslot"),
        ((1, 0, 1 << 40, PAGE, HVA), {},
         "[0x10000000000, 0x10000001000) ends beyond the guest's 40 physical address bits"),
    ]:
        with pytest.raises(OSError, match=re.escape(text)) as caught:
            table.set_region(*arguments, **keywords)
        assert caught.value.strerror == text
    plain = make("t0")
    with pytest.raises(OSError, match="flags are 0x4: KVM_MEM_GUEST_MEMFD needs a VM with private memory"):
        plain.set_region(0, GMEM, 0, PAGE, HVA, region2=True, guest_memfd=FILE)


HUGE = 10**5000


@pytest.mark.parametrize("value", [-1, 1 << 64, -HUGE, HUGE], ids=["-1", "2**64", "-huge", "huge"])
def test_what_does_not_fit_its_field(value: int) -> None:
    table = MemslotTable()
    for place in range(5):
        arguments = [0, 0, 0, PAGE, 0]
        arguments[place] = value
        with pytest.raises(ValueError, match=r"must fit an unsigned field of (32|64) bits"):
            table.set_region(*arguments)
    with pytest.raises(ValueError, match=r"guest_memfd_offset is .* must fit an unsigned field of 64 bits"):
        table.set_region(0, 0, 0, PAGE, 0, guest_memfd_offset=value)
    with pytest.raises(IndexError, match=r"gfn .* is outside \[0, 4503599627370496\)"):
        table.lookup(value)
    with pytest.raises(ValueError, match=r"range \[.*\): need 0 <= start <= stop <= 4503599627370496"):
        table.overlapping(0, value)
    with pytest.raises(ValueError, match=r"address_space is .*: it must be 0 \.\. 0"):
        table.lookup(0, value)
    assert list(table) == []


@pytest.mark.parametrize(("arguments", "error", "text"), [
    ({"nr_memslots": 0}, ValueError, "nr_memslots is 0: it must be 1 .. 65535"),
    ({"nr_memslots": 65536}, ValueError, "nr_memslots is 65536: it must be 1 .. 65535"),
    ({"phys_bits": 31}, ValueError, "phys_bits is 31: it must be 32 .. 52"),
    ({"phys_bits": 53}, ValueError, "phys_bits is 53: it must be 32 .. 52"),
    ({"address_spaces": 3}, ValueError, "address_spaces is 3: it must be 1 .. 2"),
    ({"metadata": "rmap"}, ValueError, "metadata is 'rmap': it must be one of tdp, full"),
    ({"resolve_guest_memfd": 3}, TypeError, "resolve_guest_memfd is 3: it must be callable or None"),
])
def test_arguments_that_make_no_table(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        MemslotTable(**arguments)
    assert str(caught.value) == text


def test_lookup_and_records() -> None:
    table = make("t1")
    table.set_region(9, LOG, 2 * MIB, MIB, HVA)
    table.set_region(3, GMEM, 0, PAGE, HVA + MIB, region2=True, guest_memfd=FILE, guest_memfd_offset=PAGE)
    slot = table.lookup(512)
    assert slot == Memslot(9, 0, 512, 768, HVA, LOG, None, 0)
    assert (slot.npages, slot.guest_phys_addr, slot.memory_size) == (256, 2 * MIB, MIB)
    private = table.slot(3)
    assert private is not None
    assert isinstance(private.guest_memfd, GuestMemfd)
    assert (private.flags, private.guest_memfd_offset) == (GMEM, PAGE)
    assert private.guest_memfd.bindings == ((PAGE, 2 * PAGE, 3),)
    assert [table.lookup(gfn) is not None for gfn in (0, 1, 511, 512, 767, 768)] == [
        True, False, False, True, True, False]
    assert [slot.id for slot in table] == [3, 9]
    assert [[slot.id for slot in table.overlapping(*span)] for span in
            [(0, 1), (1, 512), (1, 513), (0, 513), (767, 2**52), (768, 2**52), (5, 5), (600, 600)]] == [
        [3], [], [9], [3, 9], [9], [], [], []]
    assert [table.slot(number) for number in (0, 32764, 65535, 1 << 16, 2**32 - 1)] == [None] * 5


def test_closing_a_guest_memfd_leaves_its_slots() -> None:
    table = make("t1")
    table.set_region(0, GMEM, 0, PAGE, HVA, region2=True, guest_memfd=FILE)
    slot = table.slot(0)
    assert slot is not None
    slot.guest_memfd.close()
    slot.guest_memfd.close()
    table.validate()
    assert table.slot(0) == slot
    assert (slot.guest_memfd.closed, slot.guest_memfd.bindings) == (True, ())
    assert answer(table, 0, 0, 0, PAGE, HVA) == EINVAL
    assert answer(table, 1, GMEM, MIB, PAGE, HVA, region2=True, guest_memfd=FILE) == EBADF
    assert answer(table, 0, 0, 0, 0) == OK


def test_the_descriptor_is_looked_up_after_overlap_and_only_for_guest_memfd() -> None:
    asked = []
    table = MemslotTable(private_memory=True, resolve_guest_memfd=asked.append)
    table.set_region(0, 0, 0, PAGE, guest_memfd=77)
    assert answer(table, 1, GMEM, 0, PAGE, region2=True, guest_memfd=77) == EEXIST
    assert asked == []
    assert answer(table, 1, GMEM, PAGE, PAGE, region2=True, guest_memfd=77) == EBADF
    assert asked == [77]


def test_an_error_of_the_resolver_changes_nothing() -> None:
    def resolve(descriptor: int) -> object:
        raise RuntimeError(descriptor)

    table = MemslotTable(private_memory=True, resolve_guest_memfd=resolve)
    with pytest.raises(RuntimeError, match="5"):
        table.set_region(1, GMEM, PAGE, PAGE, region2=True, guest_memfd=5)
    assert list(table) == []


@pytest.mark.parametrize("address_space", [0, 1])
def test_every_slot_of_an_address_space_can_be_used(address_space: int) -> None:
    table = MemslotTable(address_spaces=2)
    order = list(range(32764))
    random.Random(1).shuffle(order)
    for id in order:
        table.set_region(address_space << 16 | id, 0, id << 13, PAGE)
    table.validate()
    assert len(table) == 32764
    for id in order[:100]:
        assert table.lookup(id << 1, address_space).id == id
        assert table.lookup(id << 1, 1 - address_space) is None
    for id in order:
        table.set_region(address_space << 16 | id, 0, 0, 0)
    table.validate()
    assert (len(table), table.stats()["metadata_held_bytes"]) == (0, 0)


def metadata_bytes(start: int, stop: int) -> dict[str, int]:
    """By counting, without shifts: blocks of each size that the slot touches."""
    blocks = [len({gfn // size for gfn in {*range(start, stop, size), stop - 1}}) for size in (512, 512**2)]
    return {"large_page_bytes": 4 * sum(blocks), "rmap_bytes": 8 * (stop - start + sum(blocks)),
            "gfn_track_bytes": 2 * (stop - start)}


@pytest.mark.parametrize("kind", ["tdp", "full"])
@pytest.mark.parametrize(("start", "stop"), [
    (0, 1), (511, 513), (512, 1024), (511, 1024), (512**2 - 1, 512**2 + 1), (0, 512**2), (3, 600000)])
def test_metadata_follows_the_size(kind: Any, start: int, stop: int) -> None:
    table = MemslotTable(metadata=kind)
    expected = metadata_bytes(start, stop)
    held = sum(expected.values()) if kind == "full" else expected["large_page_bytes"]
    table.set_region(0, 0, start * PAGE, (stop - start) * PAGE, start * PAGE)
    stats = table.stats()
    assert {name: stats[name] for name in expected} == expected
    assert (stats["metadata_held_bytes"], stats["pages"]) == (held, stop - start)
    # A move builds it anew for the new place and gives the old back; flags build dirty bitmaps alone.
    table.set_region(0, 0, 0x100000 * PAGE, (stop - start) * PAGE, start * PAGE)
    moved = metadata_bytes(0x100000, 0x100000 + stop - start)
    table.set_region(0, LOG, 0x100000 * PAGE, (stop - start) * PAGE, start * PAGE)
    stats = table.stats()
    held = sum(moved.values()) if kind == "full" else moved["large_page_bytes"]
    assert {name: stats[name] - expected[name] for name in expected} == moved
    assert stats["metadata_held_bytes"] == held
    assert stats["dirty_bitmap_bytes"] == 2 * 8 * -(-(stop - start) // 64)
    table.set_region(0, 0, 0, 0)
    assert table.stats()["metadata_held_bytes"] == 0


def test_what_each_change_installs_and_copies() -> None:
    table = MemslotTable()

    def cost(*arguments: int) -> tuple[int, int]:
        before = table.stats()
        table.set_region(*arguments)
        after = table.stats()
        assert table.generation == after["sets_installed"]
        return tuple(after[name] - before[name] for name in ("sets_installed", "slots_copied"))  # type: ignore

    assert cost(0, 0, 0, PAGE) == (1, 0)            # created
    assert cost(0, LOG, 0, PAGE) == (1, 1)          # flags: a record replaces another
    assert cost(0, LOG, 0, PAGE) == (0, 0)          # nothing to change
    assert cost(0, LOG, PAGE, PAGE) == (2, 2)       # moved: an INVALID copy first
    assert cost(0, 0, 0, 0) == (2, 1)               # deleted: the same
    counted = {name: table.stats()[name] for name in ("slots_created", "slots_flags_changed", "slots_moved",
                                                     "slots_deleted", "memslots", "pages")}
    assert counted == {"slots_created": 1, "slots_flags_changed": 1, "slots_moved": 1, "slots_deleted": 1,
                       "memslots": 0, "pages": 0}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 40), st.integers(0, 9),
                          st.sampled_from([0, LOG, READONLY])), max_size=80))
def test_random_changes_against_a_dict(calls: list[tuple[int, int, int, int]]) -> None:
    table = MemslotTable(nr_memslots=10)
    slots: dict[int, tuple[int, int, int]] = {}
    for id, start, npages, flags in calls:
        others = {other: place for other, place in slots.items() if other != id}
        overlaps = any(start < stop and first < start + npages for first, stop, _ in others.values())
        old = slots.get(id)
        if id >= 10 or (npages == 0 and old is None):
            expected = EINVAL
        elif npages == 0:
            del slots[id]
            expected = OK
        elif old and (old[1] - old[0] != npages or (old[2] ^ flags) & READONLY):
            expected = EINVAL
        elif overlaps:
            expected = EEXIST
        else:
            slots[id] = (start, start + npages, flags)
            expected = OK
        assert answer(table, id, flags, start * PAGE, npages * PAGE) == expected
        assert {slot.id: (slot.start, slot.stop, slot.flags) for slot in table} == slots
        for gfn in range(50):
            found = table.lookup(gfn)
            assert (found and found.id) == next((i for i, (a, b, _) in slots.items() if a <= gfn < b), None)


@pytest.mark.parametrize("meanwhile", [(5, 0, 1 << 20), (0, 1 << 30, 1 << 20)])
def test_a_slot_that_appears_while_the_file_is_looked_up(meanwhile):
    """``resolve_guest_memfd`` is Python code: it may change the table, or give the GIL to another thread that does."""
    slot, address, size = meanwhile

    def resolve(descriptor):
        if not len(table):
            table.set_region(slot, 0, address, size)
        return file

    table = MemslotTable(private_memory=True, resolve_guest_memfd=resolve)
    file = GuestMemfd(table, 1 << 20)
    with pytest.raises(OSError, match="overlaps memslot 5" if slot == 5 else "is for new memslots alone"):
        table.set_region(0, uapi.KVM_MEM_GUEST_MEMFD, 0, 1 << 20, region2=True, guest_memfd=1)
    assert [found.id for found in table] == [slot]
    assert file.bindings == ()
    table.validate()
