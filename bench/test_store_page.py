"""What does one page cost, to look up and to change, after k earlier changes? Peers, hot and cold.

*cold*: 10,000 random pages of a 64 GiB guest a round, after 32 MB of something else went through the cache.
*hot*: the same number of look-ups in 4096 neighbours, nothing in between. A tree wins cold what it loses
hot: its bytes are few. Read across k: an array pays the same at every k, a list of runs pays for its runs.
The call itself is in every figure.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from bench.peers import FAST, PEERS, make

NPAGES = 1 << 24
CALLS = 10_000
SWEPT = np.zeros(32 << 20, np.uint8)


def changed(peer: str, earlier: int) -> tuple[Any, list[int]]:
    """A guest with that many single pages set, and the pages."""
    guest = make(peer, NPAGES)
    gfns = random.Random(earlier).sample(range(1, NPAGES - 1), earlier)
    if peer == "kvmattr":
        guest.map.put(gfns, 1)
    else:
        for gfn in gfns:
            guest.write(gfn, gfn + 1, 1)
    return guest, gfns


def at_most(peer: str, earlier: int) -> None:
    if peer not in FAST and earlier > 1000:
        pytest.skip(f"{peer} takes minutes to get there")


@pytest.mark.parametrize("earlier", [0, 1000, 100_000])
@pytest.mark.parametrize("peer", PEERS)
def test_get_cold(benchmark: Any, peer: str, earlier: int) -> None:
    at_most(peer, earlier)
    guest, gfns = changed(peer, earlier)
    rng = random.Random(1)
    get, expected = guest.get, set(gfns)
    benchmark.group = f"get {CALLS} random pages, cold, {earlier} pages set"
    drawn: list[int] = []

    def draw() -> None:
        drawn[:] = rng.choices(range(NPAGES), k=CALLS)
        SWEPT[:] += 1

    def look_up() -> list[Any]:
        return [get(gfn) for gfn in drawn]

    found = benchmark.pedantic(look_up, setup=draw, rounds=9, iterations=1)
    assert [bool(value) for value in found] == [gfn in expected for gfn in drawn]


@pytest.mark.parametrize("peer", PEERS)
def test_get_hot(benchmark: Any, peer: str) -> None:
    guest, gfns = changed(peer, 1000)
    rng = random.Random(2)
    drawn = [gfns[0] // 4096 * 4096 + rng.randrange(4096) for _ in range(CALLS)]
    get, expected = guest.get, set(gfns)
    benchmark.group = f"get {CALLS} pages among 4096 neighbours, hot, 1000 pages set"
    found = benchmark.pedantic(lambda: [get(gfn) for gfn in drawn], rounds=9, iterations=1, warmup_rounds=1)
    assert [bool(value) for value in found] == [gfn in expected for gfn in drawn]


@pytest.mark.parametrize("earlier", [0, 1000, 100_000])
@pytest.mark.parametrize("peer", PEERS)
def test_toggle(benchmark: Any, peer: str, earlier: int) -> None:
    """1000 random pages set and taken back by 2000 calls (100 and 200 for the slow ones: see the group)."""
    at_most(peer, earlier)
    guest, _ = changed(peer, earlier)
    before = guest.pages()
    pages = 1000 if peer in FAST else 10
    drawn = [gfn for gfn in random.Random(3).sample(range(NPAGES), 2 * pages) if not before[gfn]][:pages]
    write = guest.write
    benchmark.group = f"toggle {pages} random pages by a call each, {earlier} pages set"

    def toggle() -> None:
        for gfn in drawn:
            write(gfn, gfn + 1, 1)
        for gfn in drawn:
            write(gfn, gfn + 1, 0)

    benchmark.pedantic(toggle, rounds=9, iterations=1, warmup_rounds=1)
    assert guest.pages() == before
    write(drawn[0], drawn[0] + 1, 1)
    assert guest.get(drawn[0]) == 1
