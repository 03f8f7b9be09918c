"""kvmattr's own scenarios and claims: one for each cost that docs/costs.md promises.

Gfns come from a multiplicative sequence, not from a generator whose stream may change with numpy: the same on
every machine for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import VM, AttributeMap
from kvmattr.gate.scenario import Versus, Work, claim, scenario
from kvmattr.memslots import SplittingBaseline
from kvmattr.uapi import KVM_MEM_ATTR_NO_WRITE, KVM_MEM_ATTR_PRIVATE

GUEST = 1 << 24                     # pages of a 64 GiB guest
OPERATIONS = 64
#: Earlier conversions: from two in each block on, so that every size has mixed blocks nearly everywhere.
MANY = [1 << n for n in range(16, 21)]
_GOLDEN = 0x9E3779B97F4A7C15        # 2^64 divided by the golden ratio: its multiples scatter evenly


def scattered(count: int, pages: int, first: int = 1) -> NDArray[np.uint64]:
    """``count`` gfns all over a guest of 2^n pages, the same ones each time."""
    steps = np.arange(first, first + count, dtype=np.uint64) * np.uint64(_GOLDEN)
    gfns: NDArray[np.uint64] = steps >> np.uint64(65 - pages.bit_length())
    return gfns


def converted(earlier: int, pages: int = GUEST) -> AttributeMap:
    """A guest in which scattered pages were converted before."""
    guest = AttributeMap(pages)
    guest.put(scattered(earlier, pages), 1)
    return guest


def alternating(pages: int, values: int = 2) -> AttributeMap:
    """A guest in which each page differs from the one before it."""
    guest = AttributeMap(pages)
    guest[0:pages] = (np.arange(pages) * 7 % values).astype(np.uint8)
    return guest


def over_and_over(work: Callable[[], object]) -> Callable[[], None]:
    """A run of so many operations."""
    def run() -> None:
        for _ in range(OPERATIONS):
            work()
    return run


def each_way(guest: AttributeMap, gfns: NDArray[np.uint64], pages: int = 1) -> Callable[[], None]:
    """Convert ranges of so many pages at these gfns, and back again."""
    places = [int(gfn) // pages * pages for gfn in gfns]

    def run() -> None:
        for gfn in places:
            guest.write(gfn, gfn + pages, 3)
        for gfn in places:
            guest.write(gfn, gfn + pages, 0)
    return run


# ---- conversions ----

@scenario(sizes=MANY, growth="constant")
def convert_page_after_many(earlier: int) -> Work:
    """One 4 KiB conversion after so many others."""
    guest = converted(earlier)
    return Work(each_way(guest, scattered(OPERATIONS, GUEST, earlier + 1)), [guest], 2 * OPERATIONS)


@scenario(sizes=[1 << n for n in range(20, 41, 4)], growth="constant")
def convert_block_as_guest_grows(pages: int) -> Work:
    """One 2 MiB conversion in guests of 4 GiB to 4 PiB."""
    guest = AttributeMap(pages)
    return Work(each_way(guest, scattered(OPERATIONS, pages), 512), [guest], 2 * OPERATIONS)


@scenario(sizes=[1 << n for n in range(15, 24, 2)], growth="constant")
def set_all_of_fragmented(pages: int) -> Work:
    """OR and AND of one bit over a guest in which every other page is private."""
    guest = alternating(pages)
    return Work(over_and_over(lambda: (guest.or_(0, pages, 8), guest.and_(0, pages, 0xF7))), [guest], 2 * OPERATIONS)


@scenario(sizes=[1 << n for n in range(8, 17, 2)], growth="constant")
def convert_batch(count: int) -> Work:
    """put() of scattered pages of a fragmented guest, there and back."""
    guest = alternating(1 << 20)
    gfns = scattered(count, 1 << 20)
    return Work(lambda: (guest.put(gfns, 8, 1), guest.put(gfns, 0xF7, 2)), [guest], 2 * count)


@scenario(sizes=[256, 1024, 4096, 16384, 65536])
def convert_over_whole_space(count: int) -> Work:
    """Single pages scattered over 2^52: what sparse spaces cost in memory. Few are in run lists, more are below nodes
    of one level, then of two: what a page visits grows with their number, as much as the baseline says. Open lists are
    stored whenever a group of the batch ends; where that is shows in the records that are allocated on the way, a few
    in a hundred, and in the free pages that they leave (slack), of which up to twelve are kept."""
    guest = AttributeMap(1 << 52)
    gfns = scattered(count, 1 << 52)

    def run() -> None:
        guest.clear()
        guest.put(gfns, 1)
    return Work(run, [guest], count)


@scenario(sizes=[1 << n for n in range(13, 18)], growth="constant")
def many_values(pages: int) -> Work:
    """Every page another of eight values, written one by one."""
    guest = AttributeMap(pages)
    gfns = np.arange(pages, dtype=np.uint64)
    values = (gfns * 5 % 8).astype(np.uint8)

    def run() -> None:
        guest.clear()
        guest.put(gfns, values)
    return Work(run, [guest], pages)


# ---- questions ----

@scenario(sizes=MANY, growth="constant")
def look_up(earlier: int) -> Work:
    """get() and take() of scattered pages."""
    guest = converted(earlier)
    gfns = scattered(OPERATIONS, GUEST, 5)
    places = gfns.tolist()

    def run() -> None:
        for gfn in places:
            guest.get(gfn)
        guest.take(gfns)
    return Work(run, [guest], 2 * OPERATIONS)


@scenario(sizes=[1 << n for n in range(19, 24)], growth="constant")
def ask_of_fragmented(pages: int) -> Work:
    """all, any and level of a guest whose every page differs in one bit from the next."""
    guest = alternating(pages)

    def ask() -> None:
        assert guest.all(0, pages, 0, 0xFE)
        assert not guest.any(0, pages, 2, 2)
        assert guest.level(pages // 2) == 1
    return Work(over_and_over(ask), [guest], 3 * OPERATIONS)


@scenario(sizes=[1 << n for n in range(12, 21, 2)], growth="linear")
def walk(count: int) -> Work:
    """runs, count and run_count after so many conversions."""
    guest = converted(count)

    def run() -> None:
        runs = len(guest.runs())
        assert guest.count(0, GUEST, 1) * 2 + 1 >= runs
    return Work(run, [guest], 1)


# ---- whole maps ----

@scenario(sizes=MANY, growth="constant")
def write_under_snapshot(earlier: int) -> Work:
    """A snapshot, then one conversion: a path is copied, not the guest."""
    guest = converted(earlier)
    places = scattered(OPERATIONS, GUEST, earlier + 1).tolist()

    def run() -> None:
        for gfn in places:
            held = guest.snapshot()
            guest.write(gfn, gfn + 1, 3)
            guest.restore(held)
    return Work(run, [guest], 3 * OPERATIONS)


@scenario(sizes=[16, 64, 256, 1024, 4096], growth="linear")
def difference(changed: int) -> Work:
    """diff() of a guest with a million conversions and its snapshot, so many pages apart."""
    guest = converted(1 << 20)
    before = guest.snapshot()
    gfns = scattered(changed, GUEST, 3 << 20)
    guest.put(gfns, 2)

    def check() -> None:
        found = len(guest.diff(before))
        assert found == changed, f"{found} runs differ, {changed} were changed"
    return Work(lambda: guest.diff(before), [guest], check=check)


# ---- the machine ----

@scenario(sizes=[1 << n for n in range(12, 17)])
def set_memory_attributes(earlier: int) -> Work:
    """KVM_SET_MEMORY_ATTRIBUTES of a page, legality and listeners included, after so many others. A block of few runs
    changes in its record, one of many takes another: how much that grows is what the baseline says."""
    pages = 1 << 20
    vm = VM()
    vm.set_user_memory_region(0, 0, pages << 12)
    for gfn in scattered(earlier, pages).tolist():
        vm.set_memory_attributes(gfn << 12, 4096, KVM_MEM_ATTR_PRIVATE)
    places = [gfn << 12 for gfn in scattered(OPERATIONS, pages, earlier + 1).tolist()]

    def run() -> None:
        for address in places:
            vm.set_memory_attributes(address, 4096, KVM_MEM_ATTR_NO_WRITE)
            vm.set_memory_attributes(address, 4096, 0)
    return Work(run, [vm.attributes], 2 * OPERATIONS)


# ---- claims ----

@claim(at_least=5)
def attributes_beat_memslots_at_1000_ranges() -> Versus:
    """A page conversion there and back above 1000 others that lie together: each splits the big slot that is
    left, whose metadata is made anew."""
    def converting(guest: Any) -> Callable[[], None]:
        for gfn in range(2, 4002, 4):
            guest.write(gfn, gfn + 1, 1)
        return each_way(guest, np.arange(4002, 4002 + 4 * OPERATIONS, 4, dtype=np.uint64))
    return Versus(converting(AttributeMap(GUEST)), converting(SplittingBaseline(GUEST)))


@claim(at_least=50)
def one_bit_of_fragmented_guest_beats_a_dense_array() -> Versus:
    """OR over 4 GiB in which every page differs from the next, by the tree and by a numpy array."""
    pages = 1 << 20
    guest = alternating(pages)
    dense = guest[0:pages]
    return Versus(lambda: (guest.or_(0, pages, 8), guest.and_(0, pages, 0xF7)),
                  lambda: (np.bitwise_or(dense, 8, out=dense), np.bitwise_and(dense, 0xF7, out=dense)))
