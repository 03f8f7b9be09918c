"""What does a page conversion cost after k earlier ones, by memslots and by attributes?

The family of the mail's argument. Both sides hold a 64 GiB guest (16,777,216 pages) in which k isolated
pages are converted; timed is one more isolated page there and back, two conversions a round. How to read it:
a split costs what the metadata of the slot costs, so ``spread`` (conversions all over the guest, the slots
shrink as k grows) and ``packed`` (conversions at the low end, the same big slot is split each time) are
different answers. The memslot side is a model of the kernel's data structures: system calls, the wait for
vCPUs to leave the old set and zapping are not in it.

At 16,381 isolated conversions the next one is refused: there the baseline pays for trying and rolling back,
and the store converts.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from kvmattr import AttributeMap
from kvmattr.memslots import SplittingBaseline

NPAGES = 1 << 24
ISOLATED = 16381            # 1 + 2k memslots <= 32764
EARLIER = [0, 100, 1000, 10_000, ISOLATED - 1]

BACKENDS = {"memslots": SplittingBaseline, "store": AttributeMap}


def converted(backend: str, place: str, earlier: int) -> tuple[Any, int]:
    """A guest with isolated conversions, and one more page that is as far from them as they are apart."""
    guest = BACKENDS[backend](NPAGES)
    distance = 4 if place == "packed" else NPAGES // (earlier + 1)
    for i in range(earlier):
        guest.write(i * distance + distance // 2, i * distance + distance // 2 + 1, 1)
    gfn = earlier * distance + distance // 2
    assert guest.run_count == 2 * earlier + 1
    assert guest.get(gfn) == 0
    return guest, gfn


@pytest.mark.parametrize("earlier", EARLIER)
@pytest.mark.parametrize("place", ["spread", "packed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_convert_a_page_and_back(benchmark: Any, backend: str, place: str, earlier: int) -> None:
    guest, gfn = converted(backend, place, earlier)
    benchmark.group = f"convert a page and back, {place}, after {earlier} conversions"

    def convert() -> None:
        guest.write(gfn, gfn + 1, 1)
        guest.write(gfn, gfn + 1, 0)

    benchmark(convert)
    assert guest.run_count == 2 * earlier + 1
    assert guest.write(gfn, gfn + 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_more_at_the_limit(benchmark: Any, backend: str) -> None:
    """Memslots: delete, two creations, EINVAL, and all of it back. The store: a conversion and back."""
    guest, gfn = converted(backend, "spread", ISOLATED)
    benchmark.group = "one more conversion at the limit"
    benchmark.extra_info["refused"] = backend == "memslots"

    def convert() -> None:
        try:
            guest.write(gfn, gfn + 1, 1)
            guest.write(gfn, gfn + 1, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    benchmark(convert)
    assert guest.run_count == 2 * ISOLATED + 1
    assert guest.get(gfn) == 0


@pytest.mark.parametrize("pages", [1 << 18, 1 << 21, 1 << 24, 1 << 27])
def test_first_split_of_a_slot(benchmark: Any, pages: int) -> None:
    """How the first split grows with the slot: a u32 per 2 MiB and 1 GiB is built left and right of the page,
    and again when the three slots become one."""
    guest = SplittingBaseline(pages)
    gfn = pages // 2 + 1
    benchmark.group = f"split a slot of {pages >> 18} GiB and merge it"

    def split_and_merge() -> None:
        guest.write(gfn, gfn + 1, 1)
        guest.write(gfn, gfn + 1, 0)

    benchmark(split_and_merge)
    assert guest.runs().tolist() == [(0, pages, 0)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_or_over_every_run(benchmark: Any, backend: str) -> None:
    """A read-modify-write of a guest of 20,001 runs: 20,001 slots deleted and created, or one word."""
    guest, _ = converted(backend, "spread", 10_000)
    benchmark.group = "OR and AND over 20,001 runs"

    def rmw() -> None:
        guest.or_(0, NPAGES, 2)
        guest.and_(0, NPAGES, 1)

    benchmark.pedantic(rmw, rounds=5, iterations=1, warmup_rounds=1)
    assert guest.run_count == 20_001


@pytest.mark.parametrize("backend", BACKENDS)
def test_get(benchmark: Any, backend: str) -> None:
    """A look-up that the slot found last does not answer, among 32,761 runs; 1000 pages a round."""
    guest, _ = converted(backend, "spread", ISOLATED - 1)
    gfns = [(i * 7919 * 4099) % NPAGES for i in range(1000)]
    get = guest.get
    benchmark.group = "get of 1000 scattered pages among 32,761 runs"
    values = benchmark(lambda: [get(gfn) for gfn in gfns])
    assert set(values) <= {0, 1}
