"""What else does Python have to keep attributes in, and what does one page or one range cost there, a call each?

*cold*: 10,000 random pages of a 64 GiB guest a round, after 32 MB of something else went through the cache. *hot*: as
many look-ups among 4096 neighbours, nothing in between. A tree wins cold what it loses hot: its bytes are few. Read
down the lengths of a range: an array follows them, the store does not; 511, 512 and 513 pages show its block of 512.
bitarray holds one bit a page, the others a byte. pyroaring and a map of runs of sortedcontainers are backends of the
study: `kvmattr scaling --backend pyroaring --backend sortedcontainers`.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvmattr import AttributeMap

PAGES = 1 << 24
CALLS = 10_000
SWEPT = np.zeros(32 << 20, np.uint8)
#: A peer behind three words: write a range, get a page, and all pages as bytes.
Peer = tuple[Callable[[int, int, int], Any], Callable[[int], Any], Callable[[], bytes]]


def store() -> Peer:
    m = AttributeMap(PAGES)
    return m.write, m.get, lambda: m[:].tobytes()


def of_slices(array: Any, all_pages: Callable[[], bytes]) -> Peer:
    """A sequence whose slices take one value."""
    def write(start: int, stop: int, attributes: int) -> None:
        array[start:stop] = attributes

    return write, array.__getitem__, all_pages


def numpy_array() -> Peer:
    array = np.zeros(PAGES, np.uint8)
    return of_slices(array, array.tobytes)


def bit_array() -> Peer:
    pytest.importorskip("bitarray")
    array = importlib.import_module("bitarray").bitarray(PAGES)
    array.setall(0)
    return of_slices(array, array.unpack)


def byte_array() -> Peer:
    array = bytearray(PAGES)

    def write(start: int, stop: int, attributes: int) -> None:
        if stop - start == 1:
            array[start] = attributes
        else:
            array[start:stop] = bytes((attributes,)) * (stop - start)

    return write, array.__getitem__, lambda: bytes(array)


PEERS = {"kvmattr": store, "numpy": numpy_array, "bytearray": byte_array, "bitarray": bit_array}
of_each_peer = pytest.mark.parametrize("peer", PEERS)
after_some = pytest.mark.parametrize("earlier", [0, 1000, 100_000])


def changed(peer: str, earlier: int) -> tuple[Peer, list[int]]:
    """A guest with that many single pages set, and the pages."""
    guest = PEERS[peer]()
    gfns = random.Random(earlier).sample(range(1, PAGES - 1), earlier)
    for gfn in gfns:
        guest[0](gfn, gfn + 1, 1)
    return guest, gfns


@after_some
@of_each_peer
def test_get_cold(benchmark: Any, peer: str, earlier: int) -> None:
    (_, get, _), gfns = changed(peer, earlier)
    rng, expected, drawn = random.Random(1), set(gfns), list[int]()
    benchmark.group = f"get {CALLS} random pages, cold, {earlier} pages set"

    def draw() -> None:
        drawn[:] = rng.choices(range(PAGES), k=CALLS)
        SWEPT[:] += 1

    found = benchmark.pedantic(lambda: [get(gfn) for gfn in drawn], setup=draw, rounds=9, iterations=1)
    assert [bool(value) for value in found] == [gfn in expected for gfn in drawn]


@of_each_peer
def test_get_hot(benchmark: Any, peer: str) -> None:
    (_, get, _), gfns = changed(peer, 1000)
    rng, expected = random.Random(2), set(gfns)
    drawn = [gfns[0] // 4096 * 4096 + rng.randrange(4096) for _ in range(CALLS)]
    benchmark.group = f"get {CALLS} pages among 4096 neighbours, hot, 1000 pages set"
    found = benchmark.pedantic(lambda: [get(gfn) for gfn in drawn], rounds=9, iterations=1, warmup_rounds=1)
    assert [bool(value) for value in found] == [gfn in expected for gfn in drawn]


@after_some
@of_each_peer
def test_toggle(benchmark: Any, peer: str, earlier: int) -> None:
    """1000 random pages set and taken back by 2000 calls."""
    (write, get, all_pages), _ = changed(peer, earlier)
    before = all_pages()
    drawn = [gfn for gfn in random.Random(3).sample(range(PAGES), 2000) if not before[gfn]][:1000]
    benchmark.group = f"toggle 1000 random pages by a call each, {earlier} pages set"

    def toggle() -> None:
        for attributes in (1, 0):
            for gfn in drawn:
                write(gfn, gfn + 1, attributes)

    benchmark.pedantic(toggle, rounds=9, iterations=1, warmup_rounds=1)
    assert all_pages() == before
    write(drawn[0], drawn[0] + 1, 1)
    assert get(drawn[0]) == 1


@pytest.mark.benchmark(max_time=0.1)
@pytest.mark.parametrize("length", [1, 511, 512, 513, 5120, 51_200, 512_000, 5_120_000])
@of_each_peer
def test_write_a_range(benchmark: Any, peer: str, length: int) -> None:
    """Written and taken back in a uniform guest: each of the two updates changes every page."""
    write, get, all_pages = PEERS[peer]()
    start, stop = 1 << 18, (1 << 18) + length
    benchmark.group = f"write {length} pages at a block's begin and take them back, uniform guest"

    def write_and_back() -> None:
        write(start, stop, 1)
        write(start, stop, 0)

    benchmark(write_and_back)
    write(start, stop, 1)
    assert [get(gfn) for gfn in (start - 1, start, stop - 1, stop)] == [0, 1, 1, 0]
    assert sum(all_pages()) == length
