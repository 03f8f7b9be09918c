"""The Unicorn bridge: what the VM refuses, the guest cannot do, and a change counts from the next access on."""

from __future__ import annotations

import gc
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmattr import VM, Access, Exit, Operation, uapi

unicorn: Any = pytest.importorskip("unicorn")
from unicorn import x86_const as x86  # noqa: E402

from kvmattr.bridges.unicorn import Guest, PagingError  # noqa: E402

SIZE = 1 << 20
CODE, DATA = 0x1000, 0x8000
PAGE = uapi.PAGE_SIZE
NO_READ, NO_WRITE, NO_EXEC = uapi.KVM_MEM_ATTR_NO_READ, uapi.KVM_MEM_ATTR_NO_WRITE, uapi.KVM_MEM_ATTR_NO_EXEC
PRIVATE = uapi.KVM_MEM_ATTR_PRIVATE

LOAD = bytes.fromhex("488b03")  # mov rax, [rbx]
STORE = bytes.fromhex("488903")  # mov [rbx], rax
ADD = bytes.fromhex("480103")  # add [rbx], rax
JUMP = bytes.fromhex("ffe3")  # jmp rbx
#: inc rax; mov [rbx], rax; inc rcx; jmp to the first: a block that is chained to itself.
LOOP = bytes.fromhex("48ffc0 488903 48ffc1 ebf5")
INCREMENT, NOP = bytes.fromhex("48ffc0"), b"\x90"


def machine(flags: int = 0) -> VM:
    vm = VM(no_exec=True, exec_only=True, write_only=True)
    vm.set_user_memory_region(0, 0, SIZE, flags=flags)
    return vm


def engine_with(code: bytes, mode: int = unicorn.UC_MODE_64) -> Any:
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
    engine.mem_map(0, SIZE, unicorn.UC_PROT_ALL)
    engine.mem_write(CODE, code)
    return engine


def guest_with(code: bytes, vm: VM | None = None, rbx: int = DATA, **options: Any) -> Guest:
    guest = Guest(vm or machine(), engine_with(code), **options)
    guest.engine.reg_write(x86.UC_X86_REG_RBX, rbx)
    return guest


def rax(guest: Guest) -> int:
    return int(guest.engine.reg_read(x86.UC_X86_REG_RAX))


def protect(guest: Guest, address: int, attributes: int, operation: Operation = Operation.WRITE) -> None:
    guest.vm.set_memory_attributes(address & -PAGE, PAGE, attributes, operation)


def run(guest: Guest, code: bytes, **options: Any) -> Exit | None:
    return guest.run(CODE, CODE + len(code), **options)


# What is refused ----------------------------------------------------------------------------------------------

ACCESSES = [(LOAD, Access.READ), (STORE, Access.WRITE), (JUMP, Access.EXEC)]


@pytest.mark.parametrize("attributes", range(0, 16, 2))
@pytest.mark.parametrize(("code", "access"), ACCESSES, ids=["load", "store", "jump"])
def test_an_access_exits_as_the_vm_says(code: bytes, access: Access, attributes: int) -> None:
    guest = guest_with(code, rbx=DATA + 0x18)
    guest.engine.mem_write(DATA, b"\x90" * PAGE)
    protect(guest, DATA, attributes)
    expected = guest.vm.access(DATA + 0x18, access)
    until = DATA + 0x19 if access == Access.EXEC else CODE + len(code)
    guest.engine.reg_write(x86.UC_X86_REG_RAX, 77)
    assert guest.run(CODE, until) == expected
    if expected:
        assert guest.pc == (DATA + 0x18 if access == Access.EXEC else CODE)
        assert rax(guest) == 77
        assert guest.engine.mem_read(DATA, PAGE) == b"\x90" * PAGE


@pytest.mark.parametrize(("code", "access", "size"), [(LOAD, Access.READ, 8), (STORE, Access.WRITE, 8),
                                                     (JUMP, Access.EXEC, 1)], ids=["load", "store", "jump"])
def test_without_a_memslot_the_exact_address_exits_as_mmio(code: bytes, access: Access, size: int) -> None:
    guest = guest_with(code, rbx=DATA + 0x123)
    guest.vm.set_user_memory_region(0, 0, 0)
    guest.vm.set_user_memory_region(0, 0, DATA)
    expected = Exit(uapi.KVM_EXIT_MMIO, 0, DATA + 0x123, size, access == Access.WRITE)
    assert guest.vm.access(DATA + 0x123, access, size) == expected
    assert guest.run(CODE, CODE + len(code)) == expected
    assert guest.run(CODE, CODE + len(code)) == expected


def test_an_address_that_is_mapped_nowhere_is_mmio_too_and_no_other_hook_hears_of_it() -> None:
    guest = guest_with(LOAD, rbx=1 << 40)
    heard: list[Any] = []
    guest.engine.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, lambda *event: heard.append(event))
    assert run(guest, LOAD) == guest.vm.access(1 << 40, Access.READ, 8)
    assert not heard


@pytest.mark.parametrize("code", [STORE, ADD], ids=["store", "add"])
def test_a_write_to_a_read_only_memslot_is_mmio_and_reads_go_on(code: bytes) -> None:
    guest = guest_with(code, machine(uapi.KVM_MEM_READONLY), rbx=DATA + 8)
    guest.engine.mem_write(DATA + 8, b"\x05")
    guest.engine.reg_write(x86.UC_X86_REG_RAX, 7)
    assert run(guest, code) == Exit(uapi.KVM_EXIT_MMIO, 0, DATA + 8, 8, True)
    assert guest.engine.mem_read(DATA + 8, 1) == b"\x05"
    guest.engine.mem_write(CODE, LOAD)
    assert run(guest, LOAD) is None
    assert rax(guest) == 5


@pytest.mark.parametrize("refused", [DATA, DATA + PAGE])
@pytest.mark.parametrize(("code", "bit"), [(LOAD, NO_READ), (STORE, NO_WRITE)], ids=["load", "store"])
def test_a_straddling_access_answers_with_the_page_that_refuses(code: bytes, bit: int, refused: int) -> None:
    guest = guest_with(code, rbx=DATA + PAGE - 3)
    protect(guest, refused, bit)
    guest.engine.reg_write(x86.UC_X86_REG_RAX, 2**64 - 1)
    access = Access.READ if code == LOAD else Access.WRITE
    assert run(guest, code) == guest.vm.access(DATA + PAGE - 3, access, 8) is not None
    assert guest.engine.mem_read(DATA, 2 * PAGE) == bytes(2 * PAGE)


def test_a_straddling_access_whose_first_page_is_mmio_counts_its_part() -> None:
    guest = guest_with(LOAD, rbx=SIZE + PAGE - 3)
    assert run(guest, LOAD) == guest.vm.access(SIZE + PAGE - 3, Access.READ, 8)


# PRIVATE ------------------------------------------------------------------------------------------------------


def private_machine(guest_memfd: bool = True) -> VM:
    vm = VM()
    memory = vm.create_guest_memfd(SIZE) if guest_memfd else -1
    flags = uapi.KVM_MEM_GUEST_MEMFD if guest_memfd else 0
    vm.set_user_memory_region2(0, 0, SIZE, flags=flags, guest_memfd=memory)
    return vm


@pytest.mark.parametrize("stored", [0, PRIVATE])
@pytest.mark.parametrize("claimed", [None, False, True])
def test_private_of_access_and_attribute_must_agree(claimed: bool | None, stored: int) -> None:
    vm = private_machine()
    vm.set_memory_attributes(0, SIZE, PRIVATE if claimed else 0)
    guest = guest_with(LOAD, vm, private=claimed)
    protect(guest, DATA, stored)
    expected = vm.access(DATA, Access.READ, 8, private=claimed)
    assert (expected is None) == (claimed is None or bool(stored) == claimed)
    assert run(guest, LOAD) == expected


@pytest.mark.parametrize(("option", "shared"), [("shared_bit", 1), ("private_bit", 0)])
def test_an_address_bit_says_whether_the_access_is_private(option: str, shared: int) -> None:
    vm = private_machine()
    bit = 1 << 46
    code = CODE | (bit if shared else 0)
    guest = guest_with(LOAD, vm, **{option: 46})
    guest.engine.mem_write(DATA, b"\x2a")
    protect(guest, DATA, PRIVATE)
    for address, private in ((DATA, not shared), (DATA | bit, bool(shared))):
        guest.engine.reg_write(x86.UC_X86_REG_RBX, address)
        private = not private if option == "shared_bit" else bool(address & bit)
        private = not address & bit if option == "shared_bit" else bool(address & bit)
        answer = guest.run(code, code + len(LOAD))
        assert answer == vm.access(DATA, Access.READ, 8, private=private)
        assert (answer is None) == private
    guest.engine.reg_write(x86.UC_X86_REG_RBX, DATA | (0 if shared else bit))
    assert guest.run(code, code + len(LOAD)) is None
    assert rax(guest) == 0x2A


def test_private_without_a_guest_memfd_exits_and_closing_one_takes_effect() -> None:
    vm = private_machine(guest_memfd=False)
    guest = guest_with(LOAD, vm)
    protect(guest, DATA, PRIVATE)
    assert run(guest, LOAD) == vm.access(DATA, Access.READ, 8) == Exit(39, 8, DATA, PAGE, False)
    vm.set_user_memory_region(0, 0, 0)
    memory = vm.create_guest_memfd(SIZE)
    vm.set_user_memory_region2(0, 0, SIZE, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=memory)
    assert run(guest, LOAD) is None
    vm.close_guest_memfd(memory)
    assert run(guest, LOAD) == Exit(39, 8, DATA, PAGE, False)


# Changes ------------------------------------------------------------------------------------------------------


def test_a_handler_mends_the_attributes_and_the_guest_goes_on() -> None:
    guest = guest_with(ADD)
    guest.engine.reg_write(x86.UC_X86_REG_RAX, 3)
    protect(guest, DATA, NO_READ | NO_WRITE | NO_EXEC)
    seen: list[Exit] = []

    def handler(refused: Exit) -> bool:
        seen.append(refused)
        protect(guest, refused.gpa, ~refused.flags << 1 & 0xE, Operation.AND)  # flag f is attribute f << 1
        return True

    assert run(guest, ADD, handler=handler) is None
    assert [refused.flags for refused in seen] == [1, 2]
    assert guest.engine.mem_read(DATA, 8) == (3).to_bytes(8, "little")  # once, not once a try


def test_a_handler_that_declines_ends_the_run() -> None:
    guest = guest_with(STORE)
    protect(guest, DATA, NO_WRITE)
    assert run(guest, STORE, handler=lambda refused: None) == guest.vm.access(DATA, Access.WRITE)


def test_a_change_between_two_runs_counts_also_for_what_is_translated_and_looked_up() -> None:
    guest = guest_with(STORE)
    assert run(guest, STORE) is None
    protect(guest, DATA, NO_WRITE)
    assert run(guest, STORE) == Exit(39, 2, DATA, PAGE, True)
    protect(guest, DATA, 0)
    assert run(guest, STORE) is None
    protect(guest, CODE, NO_EXEC)
    assert run(guest, STORE) == Exit(39, 4, CODE, PAGE, False)
    protect(guest, CODE, 0)
    assert run(guest, STORE) is None
    guest.vm.set_user_memory_region(0, 0, 0)
    guest.vm.set_user_memory_region(0, 0, SIZE, flags=uapi.KVM_MEM_READONLY)
    assert run(guest, STORE) == Exit(6, 0, DATA, 8, True)
    guest.vm.set_user_memory_region(0, 0, 0)
    assert run(guest, STORE) == Exit(6, 0, CODE, 1, False)


def test_every_way_to_change_the_vm_empties_the_tlb() -> None:
    guest = guest_with(STORE)
    vm, before = guest.vm, guest.vm.snapshot()
    record = uapi.kvm_memory_attributes(DATA, PAGE, NO_WRITE)
    records = np.zeros(2, uapi.MEMORY_ATTRIBUTES)
    records["address"], records["size"], records["attributes"] = DATA, PAGE, [0, NO_WRITE]
    for change in (lambda: vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, record),
                   lambda: vm.set_memory_attributes_many(records),
                   lambda: vm.set_memory_attributes(0, 1 << 40, NO_WRITE, Operation.OR)):
        assert run(guest, STORE) is None
        change()
        assert run(guest, STORE) == Exit(39, 2, DATA, PAGE, True)
        vm.restore(before)
    assert run(guest, STORE) is None


COUNTED = 5


def loop_and_change_at(kind: int, address: int, attributes: int) -> tuple[Guest, Exit | None, list[int]]:
    """Run LOOP until a change, made by a hook of this kind at its COUNTED-th call, stops it."""
    guest = guest_with(LOOP)
    calls: list[int] = []

    def hook(engine: Any, *event: Any) -> None:
        calls.append(engine.reg_read(x86.UC_X86_REG_RIP))
        if len(calls) == COUNTED:
            protect(guest, address, attributes)

    guest.engine.hook_add(kind, hook)
    return guest, guest.run(CODE, CODE + 0x100, count=10_000), calls


@pytest.mark.parametrize(("kind", "done", "stored"), [
    (unicorn.UC_HOOK_BLOCK, COUNTED, COUNTED - 1),
    (unicorn.UC_HOOK_CODE, 2, 1),
    (unicorn.UC_HOOK_MEM_WRITE, COUNTED + 1, COUNTED),
], ids=["block", "code", "memory"])
def test_a_write_is_refused_after_a_change_from_a_hook(kind: int, done: int, stored: int) -> None:
    guest, refused, _ = loop_and_change_at(kind, DATA, NO_WRITE)
    assert refused == Exit(39, 2, DATA, PAGE, True)
    assert guest.pc == CODE + 3
    assert rax(guest) == done
    assert guest.engine.mem_read(DATA, 8) == stored.to_bytes(8, "little")


@pytest.mark.parametrize(("kind", "pc", "done", "stored"), [
    (unicorn.UC_HOOK_BLOCK, CODE, COUNTED - 1, COUNTED - 1),
    (unicorn.UC_HOOK_CODE, CODE, 1, 1),
    (unicorn.UC_HOOK_MEM_WRITE, CODE + 6, COUNTED, COUNTED),
], ids=["block", "code", "memory"])
def test_a_running_block_is_left_when_its_page_loses_exec(kind: int, pc: int, done: int, stored: int) -> None:
    guest, refused, calls = loop_and_change_at(kind, CODE, NO_EXEC)
    assert refused == Exit(39, 4, CODE, PAGE, False)
    assert guest.pc == pc
    assert rax(guest) == done
    assert guest.engine.mem_read(DATA, 8) == stored.to_bytes(8, "little")
    assert len(calls) == COUNTED


@pytest.mark.parametrize("kind", [unicorn.UC_HOOK_BLOCK, unicorn.UC_HOOK_CODE, unicorn.UC_HOOK_MEM_WRITE],
                         ids=["block", "code", "memory"])
def test_a_change_elsewhere_does_not_disturb_the_loop(kind: int) -> None:
    guest, refused, calls = loop_and_change_at(kind, DATA + PAGE, NO_WRITE)
    assert refused is None
    assert rax(guest) == 2500
    assert guest.engine.mem_read(DATA, 2) == (2500).to_bytes(2, "little")
    assert len(calls) == {unicorn.UC_HOOK_CODE: 10_000, unicorn.UC_HOOK_BLOCK: 2501}.get(kind, 2500)


def test_memory_hooks_that_change_the_page_under_the_access_at_every_access() -> None:
    """Unicorn uses its TLB entry after the hook: emptying the TLB in there would crash the process."""
    guest = guest_with(LOOP)
    attributes = [NO_EXEC, 0]

    def hook(engine: Any, *event: Any) -> None:
        protect(guest, DATA, attributes[0])
        attributes.reverse()

    guest.engine.hook_add(unicorn.UC_HOOK_MEM_WRITE | unicorn.UC_HOOK_MEM_READ, hook)
    assert guest.run(CODE, CODE + 0x100, count=40_000) is None
    assert rax(guest) == 10_000


def test_a_hook_on_memory_added_between_two_runs_is_noticed() -> None:
    guest = guest_with(LOOP)
    assert guest.run(CODE, CODE + 0x100, count=40) is None
    guest.engine.hook_add(unicorn.UC_HOOK_MEM_WRITE, lambda *event: protect(guest, DATA, NO_WRITE))
    guest.engine.ctl_flush_tb()
    assert guest.run(CODE, CODE + 0x100, count=40) == Exit(39, 2, DATA, PAGE, True)
    assert rax(guest) == 12


def test_a_memslot_taken_away_by_a_hook() -> None:
    guest = guest_with(LOOP)
    guest.vm.set_user_memory_region(0, 0, 0)
    guest.vm.set_user_memory_region(0, 0, DATA)
    guest.vm.set_user_memory_region(1, DATA, PAGE)
    blocks: list[int] = []

    def hook(*event: Any) -> None:
        blocks.append(1)
        if len(blocks) == COUNTED:
            guest.vm.set_user_memory_region(1, DATA, 0)

    guest.engine.hook_add(unicorn.UC_HOOK_BLOCK, hook)
    assert guest.run(CODE, CODE + 0x100, count=1000) == Exit(6, 0, DATA, 8, True)
    assert rax(guest) == COUNTED


def test_a_change_from_another_thread_counts_from_the_next_run_on_at_the_latest() -> None:
    guest = guest_with(LOOP)
    blocks: list[int] = []

    def hook(*event: Any) -> None:
        blocks.append(1)
        if len(blocks) == COUNTED:
            thread = threading.Thread(target=protect, args=(guest, DATA, NO_WRITE))
            thread.start()
            thread.join()

    guest.engine.hook_add(unicorn.UC_HOOK_BLOCK, hook)
    assert guest.run(CODE, CODE + 0x100, count=1000) is None
    assert guest.run(CODE, CODE + 0x100, count=1000) == Exit(39, 2, DATA, PAGE, True)


def test_listeners_go_on_hearing_and_may_not_change() -> None:
    guest = guest_with(STORE)

    class Curious:
        answers: list[Exit | None]

        def prepare(self, changes: Any) -> None:
            self.answers = [guest.vm.access(DATA, Access.WRITE)]

        def commit(self, changes: Any) -> None:
            self.answers.append(guest.vm.access(DATA, Access.WRITE))

        abort = prepare

    listener = Curious()
    guest.vm.add_listener(listener)
    assert run(guest, STORE) is None
    protect(guest, DATA, NO_WRITE)
    assert listener.answers == [None, Exit(39, 2, DATA, PAGE, True)]
    assert run(guest, STORE) == Exit(39, 2, DATA, PAGE, True)


# Code that changes ---------------------------------------------------------------------------------------------


def test_self_modifying_code_obeys_and_is_seen() -> None:
    """mov byte ptr [rip+2], 0xc1 changes the next instruction, inc rax, into inc rcx."""
    code = bytes.fromhex("c60502000000c1") + INCREMENT
    guest = guest_with(code)
    protect(guest, CODE, NO_WRITE)
    assert run(guest, code) == Exit(39, 2, CODE, PAGE, True)
    assert guest.engine.mem_read(CODE, len(code)) == code
    protect(guest, CODE, 0)
    assert guest.run(guest.pc, CODE + len(code)) is None
    assert (rax(guest), guest.engine.reg_read(x86.UC_X86_REG_RCX)) == (0, 1)
    protect(guest, CODE, NO_EXEC)
    assert run(guest, code) == Exit(39, 4, CODE, PAGE, False)


def test_code_written_on_a_page_that_then_may_be_executed() -> None:
    guest = guest_with(STORE + JUMP)
    guest.engine.reg_write(x86.UC_X86_REG_RAX, int.from_bytes(INCREMENT + NOP * 5, "little"))
    protect(guest, DATA, NO_EXEC)

    def handler(refused: Exit) -> bool:
        protect(guest, refused.gpa, NO_WRITE)  # W^X
        return refused.flags == Access.EXEC

    assert guest.run(CODE, DATA + 8, handler=handler) is None
    assert rax(guest) == int.from_bytes(INCREMENT + NOP * 5, "little") + 1
    assert run(guest, STORE) == Exit(39, 2, DATA, PAGE, True)


def test_a_block_across_two_pages_needs_both() -> None:
    code = INCREMENT * 4
    first = CODE + PAGE - 5  # the second instruction straddles
    guest = guest_with(b"")
    guest.engine.mem_write(first, code)
    assert guest.run(first, first + len(code)) is None
    protect(guest, CODE + PAGE, NO_EXEC)
    assert guest.run(first, first + len(code)) == Exit(39, 4, CODE + PAGE, PAGE, False)
    protect(guest, CODE + PAGE, 0)
    protect(guest, CODE, NO_EXEC)
    assert guest.run(first, first + len(code)) == Exit(39, 4, CODE, PAGE, False)
    protect(guest, CODE, 0)
    assert guest.run(first, first + len(code)) is None


# Fetches: neither too early nor by a user's hook -------------------------------------------------------------------


def edge_guest(code: bytes, at: int, mode: int = unicorn.UC_MODE_64) -> Guest:
    """nops on two pages with ``code`` at ``at``, and the second page may not be executed."""
    engine = engine_with(b"", mode)
    engine.mem_write(CODE, NOP * 2 * PAGE)
    engine.mem_write(at, code)
    guest = Guest(machine(), engine)
    protect(guest, CODE + PAGE, NO_EXEC)
    return guest


EDGE = CODE + PAGE
REFUSED = Exit(39, 4, EDGE, PAGE, False)


@pytest.mark.parametrize("before", [256, 4, 2])
def test_what_stands_before_the_edge_has_run_when_the_fetch_beyond_it_exits(before: int) -> None:
    guest = edge_guest(bytes.fromhex("ffc0") * (before // 2), EDGE - before)
    assert guest.run(EDGE - before, EDGE + 0x100) == REFUSED
    assert (rax(guest), guest.pc) == (before // 2, EDGE)
    assert guest.run(guest.pc, EDGE + 0x100) == REFUSED
    protect(guest, EDGE, 0)
    assert guest.run(guest.pc, EDGE + 0x100) is None
    assert rax(guest) == before // 2


@pytest.mark.parametrize("mode", [unicorn.UC_MODE_16, unicorn.UC_MODE_32, unicorn.UC_MODE_64])
@pytest.mark.parametrize("across", range(1, 5))
def test_an_instruction_across_the_edge_exits_there_and_those_before_it_have_run(mode: int, across: int) -> None:
    """40 times inc through a two-byte form, then mov eax, imm32 with ``across`` of its bytes beyond the edge."""
    before = bytes.fromhex("fec3") * 40
    mov = bytes.fromhex("66b878563412") if mode == unicorn.UC_MODE_16 else bytes.fromhex("b878563412")
    at = EDGE - len(mov) + across
    guest = edge_guest(before + mov, at - len(before), mode)
    assert guest.run(at - len(before), EDGE + 0x100) == REFUSED
    assert guest.pc == at
    assert guest.engine.reg_read(x86.UC_X86_REG_BL) == 40
    protect(guest, EDGE, 0)
    assert guest.run(guest.pc, EDGE + 0x100) is None
    assert guest.engine.reg_read(x86.UC_X86_REG_EAX) == 0x12345678


def test_exits_come_in_the_order_of_the_guest() -> None:
    guest = edge_guest(bytes.fromhex("c604250080000055"), EDGE - 96)  # mov byte [DATA], 0x55
    protect(guest, DATA, NO_WRITE)
    exits: list[tuple[int, int, int]] = []

    def handler(refused: Exit) -> bool:
        exits.append((refused.flags, refused.gpa, guest.pc))
        protect(guest, refused.gpa, 0)
        return True

    assert guest.run(EDGE - 0x80, EDGE + 0x10, handler=handler) is None
    assert exits == [(2, DATA, EDGE - 96), (4, EDGE, EDGE)]


def test_a_page_that_is_never_reached_gives_no_exit() -> None:
    guest = edge_guest(bytes.fromhex("31c9f7f1"), EDGE - 32)  # xor ecx, ecx; div ecx
    interrupts: list[int] = []
    guest.engine.hook_add(unicorn.UC_HOOK_INTR,
                          lambda engine, number, _: (interrupts.append(number), engine.emu_stop()))
    assert guest.run(EDGE - 64, EDGE + 0x10) is None
    assert interrupts == [0]
    away = edge_guest(bytes.fromhex("eb80"), EDGE - 2)  # jmp back, from the last bytes of the page
    assert away.run(EDGE - 2, EDGE - 0x80) is None
    assert away.last_exit is None


@pytest.mark.parametrize(("count", "expected"), [(10, None), (16, None), (17, REFUSED)])
def test_count_holds_over_a_block_that_was_cut(count: int, expected: Exit | None) -> None:
    guest = edge_guest(bytes.fromhex("ffc0") * 16, EDGE - 32)
    assert guest.run(EDGE - 32, EDGE + 0x100, count=count) == expected
    assert rax(guest) == min(count, 16)


def test_a_fetch_without_a_memslot_is_mmio_when_the_guest_comes_there() -> None:
    guest = edge_guest(bytes.fromhex("ffc0") * 8, EDGE - 16)
    guest.vm.set_user_memory_region(0, 0, 0)
    guest.vm.set_user_memory_region(0, 0, EDGE)
    assert guest.run(EDGE - 16, EDGE + 0x100) == Exit(6, 0, EDGE, 1, False)
    assert (rax(guest), guest.pc) == (8, EDGE)


@pytest.mark.parametrize("kind", [unicorn.UC_HOOK_MEM_UNMAPPED, unicorn.UC_HOOK_MEM_INVALID])
@pytest.mark.parametrize(("code", "access", "size"), [
    (LOAD, Access.READ, 8), (STORE, Access.WRITE, 8), (JUMP, Access.EXEC, 1), (bytes.fromhex("ff33"), Access.READ, 8),
    (bytes.fromhex("0fb603"), Access.READ, 1), (bytes.fromhex("0f1103"), Access.WRITE, 8),
], ids=["load", "store", "jump", "push", "byte", "vector"])
def test_a_hook_that_maps_what_is_missing_gives_no_memory_that_the_vm_lacks(kind: int, code: bytes, access: Access,
                                                                           size: int) -> None:
    where = SIZE + 0x2008
    guest = guest_with(code, rbx=where)
    guest.engine.reg_write(x86.UC_X86_REG_RSP, DATA + 0x100)
    seen: list[int] = []

    def lazily(engine: Any, kind: int, address: int, *rest: Any) -> bool:
        seen.append(address)
        engine.mem_map(address & -PAGE, PAGE)
        return True

    guest.engine.hook_add(kind, lazily)
    for _ in range(2):
        assert guest.run(CODE, CODE + len(code)) == Exit(6, 0, where, size, access == Access.WRITE)
        assert not seen
        assert [region[:2] for region in guest.engine.mem_regions()] == [(0, SIZE - 1)]
    guest.vm.set_user_memory_region(1, SIZE, SIZE)  # now the VM has it, the engine not: the hook is asked, as ever
    guest.run(CODE, where if access == Access.EXEC else CODE + len(code), timeout=1_000_000)
    assert seen in ([where], [])
    assert bool(seen) == (access != Access.EXEC)


def test_a_write_across_two_pages_writes_its_part_in_memory_before_the_mmio_exits() -> None:
    guest = guest_with(STORE, rbx=SIZE - 3)
    guest.engine.reg_write(x86.UC_X86_REG_RAX, 0x8877665544332211)
    assert run(guest, STORE) == Exit(6, 0, SIZE, 5, True)
    assert guest.engine.mem_read(SIZE - 4, 4) == bytes.fromhex("00112233")
    guest.engine.mem_write(CODE, LOAD)
    assert run(guest, LOAD) == Exit(6, 0, SIZE, 5, False)
    assert rax(guest) == 0x8877665544332211


def test_segments_of_other_modes_count_in_the_address_of_mmio() -> None:
    engine = engine_with(bytes.fromhex("a03412"), unicorn.UC_MODE_16)  # mov al, [0x1234]
    engine.reg_write(x86.UC_X86_REG_DS, 0x2000)
    vm = VM()
    vm.set_user_memory_region(0, 0, 0x10000)
    guest = Guest(vm, engine)
    assert guest.run(CODE, CODE + 3) == Exit(6, 0, 0x21234, 1, False)


# Frameworks that start the engine themselves -----------------------------------------------------------------------


def test_emu_start_of_others_keeps_the_exit() -> None:
    guest = guest_with(INCREMENT + STORE)
    code = INCREMENT + STORE
    protect(guest, DATA, NO_WRITE)
    with pytest.raises(unicorn.UcError) as raised:
        guest.engine.emu_start(CODE, CODE + len(code))
    assert guest.last_exit == Exit(39, 2, DATA, PAGE, True)
    assert raised.value.__notes__ == [f"kvmattr: the VM refused an access at {CODE + 3:#x}: {guest.last_exit}"]
    assert guest.pc == CODE + 3
    protect(guest, DATA, 0)
    guest.engine.emu_start(guest.pc, until=CODE + len(code), timeout=0, count=0)
    assert guest.last_exit is None
    assert rax(guest) == 1


def test_on_exit_mends_for_emu_start_and_for_run_without_a_handler() -> None:
    seen: list[Exit] = []

    def mend(refused: Exit) -> bool:
        seen.append(refused)
        protect(guest, refused.gpa, 0)
        return len(seen) < 3

    guest = guest_with(STORE, on_exit=mend)
    for number, start in enumerate((guest.engine.emu_start, guest.run), 1):
        protect(guest, DATA, NO_WRITE)
        start(CODE, CODE + len(STORE))
        assert seen == [Exit(39, 2, DATA, PAGE, True)] * number
    protect(guest, DATA, NO_WRITE)
    assert guest.run(CODE, CODE + len(STORE)) == Exit(39, 2, DATA, PAGE, True)  # the third is declined
    protect(guest, DATA, NO_WRITE)
    assert guest.run(CODE, CODE + len(STORE), handler=lambda refused: False) == Exit(39, 2, DATA, PAGE, True)
    assert len(seen) == 3
    with pytest.raises(TypeError, match=r"^on_exit 5: must be a function of an Exit, or None$"):
        Guest(machine(), engine_with(NOP), on_exit=5)  # type: ignore[arg-type]


def test_a_run_within_a_run_is_unicorns() -> None:
    guest = guest_with(INCREMENT + STORE)
    guest.engine.mem_write(CODE + PAGE, INCREMENT * 2)
    done: list[int] = []

    def hook(engine: Any, *event: Any) -> None:
        if not done:
            done.append(1)
            engine.emu_start(CODE + PAGE, CODE + PAGE + 6)

    guest.engine.hook_add(unicorn.UC_HOOK_CODE, hook, begin=CODE, end=CODE)
    guest.engine.emu_start(CODE, CODE + 6)
    assert done
    assert guest.engine.mem_read(DATA, 1)[0] in (1, 2, 3)


def test_flat_asks_attributes_alone() -> None:
    vm = VM(no_exec=True)
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    top = 0xFFFFFFFFFF600000    # where no memslot can be
    for address in (CODE, DATA, top):
        engine.mem_map(address, PAGE)
    engine.mem_write(CODE, STORE + JUMP)
    engine.mem_write(top, INCREMENT)
    engine.reg_write(x86.UC_X86_REG_RBX, DATA)
    with Guest(vm, engine, flat=True) as guest:
        assert guest.run(CODE, CODE + 3) is None
        protect(guest, DATA, NO_WRITE)
        assert guest.run(CODE, CODE + 3) == Exit(39, 2, DATA, PAGE, True)
        engine.reg_write(x86.UC_X86_REG_RBX, top)
        assert guest.run(CODE + 3, top + 3) is None
        assert rax(guest) == 1
        protect(guest, top, NO_EXEC)
        assert guest.run(CODE + 3, top + 3) == Exit(39, 4, top, PAGE, False)
        protect(guest, top, PRIVATE)
        assert guest.run(CODE + 3, top + 3) is None     # private is no reason to refuse: nobody claims otherwise
        engine.reg_write(x86.UC_X86_REG_RBX, 0x50000)   # memory that nobody has is the engine's affair
        with pytest.raises(unicorn.UcError, match="UC_ERR_WRITE_UNMAPPED"):
            guest.run(CODE, CODE + 3)
        assert guest.last_exit is None


def test_a_snapshot_of_another_engine_is_refused_and_changes_nothing() -> None:
    vm = machine()
    guest, other = guest_with(INCREMENT, vm), guest_with(INCREMENT, vm)
    assert run(other, INCREMENT) is None
    saved = other.snapshot()
    protect(guest, DATA, NO_WRITE)
    with pytest.raises(ValueError, match=r"^the snapshot is of another engine, <.*>: must be of <.*>$"):
        guest.restore(saved)
    assert vm.protection(DATA) == Access.READ | Access.EXEC
    assert rax(guest) == 0
    other.restore(saved)
    assert vm.protection(DATA) == Access.READ | Access.WRITE | Access.EXEC


# A model beside it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_random_guests_exit_as_the_model_says(seed: int) -> None:
    """Changes of attributes and memslots between single accesses; the VM's own answer is the expected one."""
    rng = random.Random(seed)
    guest = guest_with(NOP)
    vm, engine = guest.vm, guest.engine
    engine.mem_write(CODE, LOAD + STORE + JUMP)
    places = {Access.READ: (CODE, CODE + 3), Access.WRITE: (CODE + 3, CODE + 6), Access.EXEC: (CODE + 6, None)}
    vm.set_user_memory_region(0, 0, 0)
    vm.set_user_memory_region(0, 0, 4 * PAGE)
    for address in range(DATA, DATA + 16 * PAGE, PAGE):
        engine.mem_write(address, NOP * PAGE)
    engine.reg_write(x86.UC_X86_REG_RAX, int.from_bytes(NOP * 8, "little"))
    exits = 0
    for _ in range(400):
        what = rng.randrange(10)
        page = DATA + rng.randrange(16) * PAGE
        if what < 3:
            vm.set_memory_attributes(page, PAGE * rng.randint(1, 4), rng.randrange(16) & ~PRIVATE,
                                     rng.choice(list(Operation)))
        elif what == 3:
            slot = (page - DATA) // PAGE + 1
            exists = vm.memslots.slot(slot) is not None
            flags = 0 if exists else rng.choice([0, uapi.KVM_MEM_READONLY])
            vm.set_user_memory_region(slot, page, 0 if exists else PAGE, flags=flags)
        else:
            access = rng.choice(list(Access))
            begin, until = places[access]
            address = page + 8 * rng.randrange(500)
            engine.reg_write(x86.UC_X86_REG_RBX, address)
            size = 1 if access == Access.EXEC else 8
            expected = vm.access(address, access, size)
            assert guest.run(begin, address + 1 if until is None else until) == expected
            exits += expected is not None
    assert 50 < exits < 250
    assert len(list(engine.mem_regions())) == 1


@pytest.mark.parametrize("seed", range(4))
def test_protections_are_those_of_every_page(seed: int) -> None:
    rng = random.Random(seed)
    guest = guest_with(NOP)
    vm = guest.vm
    vm.set_user_memory_region(0, 0, 0)
    for slot in range(seed * 2):
        flags = rng.choice([0, uapi.KVM_MEM_READONLY])
        vm.set_user_memory_region(slot, rng.randrange(8) * PAGE + slot * 16 * PAGE, rng.randint(1, 8) * PAGE,
                                  flags=flags)
    for _ in range(20):
        vm.set_memory_attributes(rng.randrange(128) * PAGE, rng.randint(1, 16) * PAGE, rng.randrange(16))
    start, pages = rng.randrange(10), 120
    listed = guest.protections(start * PAGE, pages * PAGE)
    expected = [int(vm.protection((start + page) * PAGE)) for page in range(pages)]
    assert np.repeat(listed["protection"], (listed["size"] // PAGE).astype(int)).tolist() == expected
    assert listed["address"][0] == start * PAGE
    assert (listed["address"][1:] == listed["address"][:-1] + listed["size"][:-1]).all()
    assert (listed["protection"][1:] != listed["protection"][:-1]).all()


def test_protections_of_nothing_and_bad_ranges() -> None:
    guest = guest_with(NOP)
    assert guest.protections(0, SIZE).tolist() == [(0, SIZE, 7)]
    assert guest.protections(SIZE, 1 << 50).tolist() == [(SIZE, 1 << 50, 0)]
    for address, size in ((1, PAGE), (0, PAGE + 1), (0, 0), (0, -PAGE)):
        text = f"^address {address:#x}, size {size:#x}: must be multiples of 4096, and size above 0$"
        with pytest.raises(ValueError, match=text):
            guest.protections(address, size)


# Snapshot and restore --------------------------------------------------------------------------------------------


def test_snapshot_and_restore_of_attributes_and_context() -> None:
    guest = guest_with(INCREMENT + STORE)
    code = INCREMENT + STORE
    protect(guest, DATA, NO_WRITE)
    saved = guest.snapshot()
    for _ in range(3):
        assert run(guest, code, handler=lambda refused: not protect(guest, DATA, 0)) is None
        assert rax(guest) == 1
        protect(guest, CODE, NO_EXEC)  # possible while a snapshot exists
        guest.restore(saved)
        assert rax(guest) == 0
        assert guest.vm.attributes == saved.attributes
        assert guest.vm.protection(DATA) == Access.READ | Access.EXEC
        assert run(guest, code) == Exit(39, 2, DATA, PAGE, True)
        guest.restore(saved)


def test_snapshot_with_memory() -> None:
    guest = guest_with(STORE)
    both = unicorn.UC_CTL_CONTEXT_CPU | unicorn.UC_CTL_CONTEXT_MEMORY
    guest.engine.ctl(unicorn.UC_CTL_CONTEXT_MODE, unicorn.UC_CTL_IO_WRITE, both)
    guest.engine.reg_write(x86.UC_X86_REG_RAX, 1)
    assert run(guest, STORE) is None
    saved = guest.snapshot()
    for _ in range(3):
        guest.engine.reg_write(x86.UC_X86_REG_RAX, 2)
        assert run(guest, STORE) is None
        assert guest.engine.mem_read(DATA, 1) == b"\x02"
        protect(guest, DATA, NO_WRITE)
        guest.restore(saved)
        assert guest.engine.mem_read(DATA, 1) == b"\x01"


# What is not accepted ----------------------------------------------------------------------------------------------


def test_a_guest_with_paging_on_is_refused() -> None:
    text = (r"^the guest has paging on \(CR0\.PG\): the bridge takes the place of its MMU, so its addresses must "
            r"be guest-physical ones$")
    engine = engine_with(NOP, unicorn.UC_MODE_32)
    guest = Guest(machine(), engine)
    assert run(guest, NOP) is None
    engine.reg_write(x86.UC_X86_REG_CR0, 0x80000011)
    with pytest.raises(PagingError, match=text):
        run(guest, NOP)
    guest.close()
    with pytest.raises(PagingError, match=text):
        Guest(machine(), engine)


def test_a_guest_that_turns_paging_on_is_stopped_there() -> None:
    code = bytes.fromhex("0f20c0 0fbae81f 0f22c0") + bytes.fromhex("41") * 3  # CR0 |= PG; inc ecx
    engine = engine_with(code, unicorn.UC_MODE_32)
    guest = Guest(machine(), engine)
    with pytest.raises(PagingError):
        run(guest, code)
    assert engine.reg_read(x86.UC_X86_REG_ECX) == 0


@pytest.mark.parametrize(("mode", "segment"), [(unicorn.UC_MODE_16, 0), (unicorn.UC_MODE_16, 0x80),
                                               (unicorn.UC_MODE_32, None)])
def test_other_modes(mode: int, segment: int | None) -> None:
    code = bytes.fromhex("c60600800540") if mode == unicorn.UC_MODE_16 else bytes.fromhex("c6050080000005 40")
    guest = Guest(machine(), engine_with(code, mode))
    if segment is not None:
        guest.engine.reg_write(x86.UC_X86_REG_CS, segment)
    protect(guest, DATA, NO_WRITE)
    assert run(guest, code) == Exit(39, 2, DATA, PAGE, True)
    assert guest.pc == CODE
    assert run(guest, code, handler=lambda refused: not protect(guest, DATA, 0)) is None
    assert guest.engine.mem_read(DATA, 1) == b"\x05"
    assert guest.engine.reg_read(x86.UC_X86_REG_AX) == 1


def test_other_errors_are_unicorns() -> None:
    guest = guest_with(bytes.fromhex("0f0b"))  # ud2
    with pytest.raises(unicorn.UcError, match="UC_ERR_INSN_INVALID"):
        guest.run(CODE, CODE + 2)
    guest.vm.set_user_memory_region(1, SIZE, SIZE)  # memory for the VM, none for the engine
    guest.engine.mem_write(CODE, LOAD)
    guest.engine.reg_write(x86.UC_X86_REG_RBX, SIZE)
    with pytest.raises(unicorn.UcError, match="UC_ERR_READ_UNMAPPED"):
        run(guest, LOAD)


def test_bad_arguments() -> None:
    engine = engine_with(NOP)
    with pytest.raises(TypeError, match=r"^None: must be a VM$"):
        Guest(None, engine)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^'engine': must be a unicorn\.Uc$"):
        Guest(machine(), "engine")
    with pytest.raises(ValueError, match=r"^architecture 2: must be UC_ARCH_X86 \(4\)$"):
        Guest(machine(), unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM))
    with pytest.raises(ValueError, match=r"^private True, shared_bit 46, private_bit None: must be at most one of"):
        Guest(machine(), engine, private=True, shared_bit=46)
    for number in (11, 64):
        with pytest.raises(ValueError, match=rf"^shared_bit {number}: must be in 12\.\.63, a bit of the page's"):
            Guest(machine(), engine, shared_bit=number)
    guest = Guest(machine(), engine)
    with pytest.raises(ValueError, match=r"has a guest already, close that first$"):
        Guest(machine(), engine)
    guest.close()
    Guest(machine(), engine).close()


def test_without_unicorn_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(ImportError, match=r"^this needs unicorn: pip install 'kvmattr\[unicorn\]'$"):
        Guest(machine(), object())


# Lives --------------------------------------------------------------------------------------------------------


def test_close_takes_the_bridge_out() -> None:
    with guest_with(STORE) as guest:
        protect(guest, DATA, NO_WRITE)
        assert run(guest, STORE) is not None
    guest.engine.emu_start(CODE, CODE + 3)
    guest.close()
    protect(guest, DATA, 0)


@pytest.mark.parametrize("kept", ["engine", "vm", "guest"])
def test_parts_may_go_in_any_order(kept: str) -> None:
    guest = guest_with(STORE)
    engine, vm = guest.engine, guest.vm
    protect(guest, DATA, NO_WRITE)
    assert run(guest, STORE) is not None
    if kept == "engine":
        del guest, vm
        gc.collect()
        with pytest.raises(unicorn.UcError):
            engine.emu_start(CODE, CODE + 3)
    elif kept == "vm":
        del guest, engine
        gc.collect()
        vm.set_memory_attributes(0, SIZE, NO_EXEC)
    else:
        del engine, vm
        gc.collect()
        assert run(guest, STORE) is not None


def test_two_engines_share_a_vm() -> None:
    vm = machine()
    guests = [guest_with(STORE, vm) for _ in range(2)]
    assert [run(guest, STORE) for guest in guests] == [None, None]
    protect(guests[0], DATA, NO_WRITE)
    assert [run(guest, STORE) for guest in guests] == [Exit(39, 2, DATA, PAGE, True)] * 2


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent / "examples" / "unicorn_guest.py"
    if not path.exists():
        pytest.skip("the examples are not beside the tests")
    scope: dict[str, Any] = {"__name__": "example"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    scope["main"]()
    assert "went on" in capsys.readouterr().out
