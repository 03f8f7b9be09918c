#!/usr/bin/env python3
"""What does a protection cost a guest on Unicorn: through kvmattr, and through ``mem_protect``?

The same guest in both: one region, mapped from one address. Three tables:

* one protection change after k pages were protected before, from Python. "a new page" becomes read-only for the first
  time: ``mem_protect`` splits the region that the page is in, and copies it: its cost follows that region's size, so it
  falls as the k pages, spread over the guest, leave smaller regions. "a page again" is protected and unprotected
  where it was split off before, which is the best case of ``mem_protect``: there the number of regions counts;
* the same and the access after it, which pays for what the change threw away (ours: the whole TLB);
* running code with nothing changing: Unicorn's own TLB against the bridge's, for a loop that stays in a page and
  for one that walks over more pages than a TLB holds.

    python bench/unicorn_table.py [--size-mib 1024] [--rounds 5]

Times are medians over the rounds of the thread's CPU time, both sides measured in turns; x is theirs / ours, so below
1 we lose.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable

import unicorn
from unicorn import UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL, UC_PROT_EXEC, UC_PROT_READ, Uc
from unicorn.x86_const import UC_X86_REG_RBX, UC_X86_REG_RCX, UC_X86_REG_RDX

from kvmattr import VM, uapi
from kvmattr.bridges.unicorn import Guest
from kvmattr.measure.machine import describe, in_words
from kvmattr.measure.rounds import turns

PAGE = uapi.PAGE_SIZE
NO_WRITE = uapi.KVM_MEM_ATTR_NO_WRITE
READ_ONLY = UC_PROT_READ | UC_PROT_EXEC
CODE, DATA = 0x1000, 0x100000
STORE = bytes.fromhex("488903")  # mov [rbx], rax
#: again: mov [rbx], rax; add rbx, rdx; and rbx, mask; or rbx, DATA's bit; dec rcx; jnz again
WALK = bytes.fromhex("488903 4801d3 4881e3ffffff07 4881cb00000004 48ffc9 75e7")
FIRST_WALKED = 1 << 26

Pair = tuple[Callable[[int], None], Callable[[int], None]]  # protect a page, unprotect it


def engine_of(size: int, code: bytes) -> Uc:
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.mem_map(0, size, UC_PROT_ALL)
    engine.mem_write(CODE, code)
    return engine


def guest_of(size: int, code: bytes) -> Guest:
    vm = VM()
    vm.set_user_memory_region(slot=0, guest_phys_addr=0, memory_size=size)
    return Guest(vm, engine_of(size, code))


def ours(guest: Guest) -> Pair:
    change = guest.vm.set_memory_attributes
    return lambda address: change(address, PAGE, NO_WRITE), lambda address: change(address, PAGE, 0)


def theirs(engine: Uc) -> Pair:
    return (lambda address: engine.mem_protect(address, PAGE, READ_ONLY),
            lambda address: engine.mem_protect(address, PAGE, UC_PROT_ALL))


def seconds(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def interleaved(rounds: int, *calls: Callable[[], float]) -> list[float]:
    times: dict[Callable[[], float], list[float]] = {call: [] for call in calls}
    for _, call in turns(calls, rounds):
        times[call].append(call())
    return [statistics.median(each) for each in times.values()]


def row(label: str, our: float, their: float, unit: float, name: str) -> None:
    print(f"{label:>40} {our * unit:>12.2f} {their * unit:>14.2f} {name:<3} {their / our:>9.2f}x", flush=True)


def changes(size: int, earlier: int, rounds: int) -> None:
    guest, engine = guest_of(size, STORE), engine_of(size, STORE)
    pairs = ours(guest), theirs(engine)
    stride = (size - DATA) // (earlier + 1) // PAGE * PAGE
    for protect, _ in pairs:
        for index in range(earlier):
            protect(DATA + index * stride + PAGE)
    place = DATA + (earlier // 2) * stride
    for machine in (guest.engine, engine):
        machine.reg_write(UC_X86_REG_RBX, place + PAGE * 2)

    def change(pair: Pair, run: Callable[[int, int], object], counted: bool) -> float:
        """Protect and unprotect, each with a full TLB to throw away; the access counts or does not."""
        spent = 0.0
        for call in pair:
            run(CODE, CODE + len(STORE))
            spent += seconds(lambda call=call: call(place))
            if counted:
                spent += seconds(lambda: run(CODE, CODE + len(STORE)))
        return spent / 2

    regions = f"{earlier} before, {len(list(engine.mem_regions()))} regions"
    run_ours, run_theirs = guest.run, engine.emu_start
    times = interleaved(rounds, *(fresh(protect, place + PAGE * 3) for protect, _ in pairs))
    row(f"{regions}: a new page", *times, 1e6, "us")
    change(pairs[0], run_ours, False)  # split the page off, which the rounds would count once
    change(pairs[1], run_theirs, False)
    for label, counted in (("a page again", False), ("and the next access", True)):
        times = interleaved(rounds, lambda counted=counted: change(pairs[0], run_ours, counted),
                            lambda counted=counted: change(pairs[1], run_theirs, counted))
        row(label, *times, 1e6, "us")


def fresh(protect: Callable[[int], None], first: int) -> Callable[[], float]:
    """Each call protects a page that no call has protected before, with unprotected ones on both sides."""
    pages = itertools.count(first, 2 * PAGE)
    return lambda: seconds(lambda: protect(next(pages)))


def running(size: int, label: str, stride: int, iterations: int, rounds: int) -> None:
    guest, engine = guest_of(size, WALK), engine_of(size, WALK)

    def walk(machine: Uc, run: Callable[[int, int], object]) -> float:
        machine.reg_write(UC_X86_REG_RBX, FIRST_WALKED)
        machine.reg_write(UC_X86_REG_RDX, stride)
        machine.reg_write(UC_X86_REG_RCX, iterations)
        return seconds(lambda: run(CODE, CODE + len(WALK))) / iterations

    both = interleaved(rounds, lambda: walk(guest.engine, guest.run), lambda: walk(engine, engine.emu_start))
    row(label, *both, 1e9, "ns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=1024, help="memory of the guest (at least 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--earlier", type=int, nargs="*", default=[0, 4, 16, 64],
                        help="pages protected before; mem_protect needs minutes for some hundred")
    options = parser.parse_args()
    size = max(options.size_mib, 256) << 20
    print(f"{in_words(describe())}; Unicorn {unicorn.__version__}; a guest of {size >> 20} MiB; load "
          f"{os.getloadavg()[0]:.1f}\n")
    print(f"{'one protection change':>40} {'kvmattr':>12} {'mem_protect':>14}")
    for earlier in options.earlier:
        changes(size, earlier, options.rounds)
    print(f"\n{'running code, one store a turn':>40} {'kvmattr':>12} {'own TLB':>14}")
    running(size, "same page", 0, 5_000_000, options.rounds)
    running(size, "walk: a new page each time", PAGE, 500_000, options.rounds)


if __name__ == "__main__":
    main()
