"""run, runs, iter_runs, run_count, find, level: where equal pages begin and end."""

from itertools import pairwise

import numpy as np
import pytest

from tests.reference import RUN

EVERYTHING = 2**52
BLOCKS = [1, 512, 512**2, 512**3, 512**4, 512**5]


def test_runs_are_packed_coalesced_and_clipped(Map):
    m = Map(5000)
    m.write(100, 200, 1)
    m.write(200, 300, 1)
    m.write(1024, 1536, 2)
    runs = m.runs()
    assert runs.dtype == RUN
    assert runs.dtype.itemsize == 17
    assert runs.tolist() == [(0, 100, 0), (100, 300, 1), (300, 1024, 0), (1024, 1536, 2), (1536, 5000, 0)]
    assert m.runs(150, 1100).tolist() == [(150, 300, 1), (300, 1024, 0), (1024, 1100, 2)]
    assert m.runs(1024, 1025).tolist() == [(1024, 1025, 2)]
    assert m.runs(4999).tolist() == [(4999, 5000, 0)]
    assert m.runs(5000).tolist() == []
    assert m.runs(0, stop=100).tolist() == [(0, 100, 0)]


def test_runs_go_on_across_blocks_of_different_kinds(Map):
    """Uniform blocks, bitmap leaves and byte leaves meet: equal pages on both sides are one run."""
    m = Map(8 * 512)
    m.write(0, 8 * 512, 4)
    m[100] = 5
    m[512:1024] = np.resize(np.array([4, 5, 6], dtype=np.uint8), 512)
    m.write(1020, 1030, 4)
    m[2 * 512 + 100] = 9
    wanted = m.to_numpy(0, 8 * 512)
    edges = [0, *(np.flatnonzero(np.diff(wanted)) + 1).tolist(), 8 * 512]
    assert m.runs().tolist() == [(a, b, int(wanted[a])) for a, b in pairwise(edges)]
    assert m.run_count == len(edges) - 1
    for start, stop, attributes in m.runs().tolist():
        for gfn in {start, (start + stop) // 2, stop - 1}:
            assert m.run(gfn) == (start, stop, attributes)
    m.validate()


def mixed_blocks(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """Blocks of every kind in random order; many begin or end with a value of their own."""
    pages = np.zeros((blocks, 512), np.uint8)
    for block in pages:
        kind = rng.integers(8)
        low, high, third = rng.integers(0, 4, 3)
        block[:] = low
        if kind == 1:
            block[rng.integers(0, 512, 3)] = high
        elif kind == 2:
            block[rng.choice([0, 1, 63, 64, 447, 448, 510, 511], 2)] = high
        elif kind == 3:
            block[1::2] = high
        elif kind == 4:
            block[rng.integers(0, 512, 40)] = high
        elif kind == 5:
            block[100:200], block[300] = high, third
        elif kind == 6:
            block[::2], block[::3] = high, third
        elif kind == 7:
            block[rng.integers(512) :] = high
    return pages.ravel()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("operation", [(0xFF, 0), (0xFE, 0), (0xFD, 1), (0, 5)])
def test_runs_of_blocks_of_every_kind(Map, seed, operation):
    """Whole nodes and parts of them, with an operation pending above: what a range of blocks lists in one go."""
    rng = np.random.default_rng(seed)
    npages = 2 * 512 * 512
    m = Map(npages)
    pages = np.zeros(npages, np.uint8)
    for first in (0, 512 - 40, 512 + 7):
        some = mixed_blocks(rng, 70)
        m[512 * first : 512 * (first + 70)] = some
        pages[512 * first : 512 * (first + 70)] = some
    kept, added = operation
    m.and_(0, npages, kept)
    m.or_(0, npages, added)
    pages = pages & kept | added
    for start, stop in ((0, npages), (5, npages - 5), (512 * 3, 512 * 36), (512 * 480 + 1, 512 * 600)):
        edges = np.flatnonzero(np.diff(pages[start:stop])) + 1 + start
        runs = m.runs(start, stop)
        assert runs["start"].tolist() == [start, *edges.tolist()]
        assert runs["stop"].tolist() == [*edges.tolist(), stop]
        assert (runs["attributes"] == pages[runs["start"].astype(np.int64)]).all()


def test_run_gives_plain_ints(Map):
    m = Map(1000, 2)
    m[7] = 3
    assert [type(item) for item in m.run(7)] == [int, int, int]
    assert m.run(7) == (7, 8, 3)
    assert m.run(0) == (0, 7, 2)
    assert m.run(999) == (8, 1000, 2)


def test_a_run_may_end_far_away(WideMap):
    m = WideMap()
    assert m.run(12345) == (0, EVERYTHING, 0)
    m.write(2**30 + 3, 2**51 - 7, 1)
    for gfn in (2**30 + 3, 2**40, 2**51 - 8):
        assert m.run(gfn) == (2**30 + 3, 2**51 - 7, 1)
    assert m.run(2**51 - 7) == (2**51 - 7, EVERYTHING, 0)
    m[2**40] = 0
    assert m.run(2**40 - 1) == (2**30 + 3, 2**40, 1)
    assert m.run_count == 5


def test_iter_runs_gives_the_same_lazily(Map):
    m = Map(2**15)
    m[np.arange(0, 2**15, 5)] = 1
    assert [tuple(int(item) for item in run) for run in m.iter_runs()] == m.runs().tolist()
    some = m.iter_runs(1000, stop=2000)
    assert iter(some) is some
    assert [tuple(int(item) for item in run) for run in some] == m.runs(1000, 2000).tolist()


def test_run_count_follows_every_kind_of_change(Map):
    m = Map(4096)
    assert m.run_count == 1
    m[10] = 1
    assert m.run_count == 3
    m[11] = 1
    assert m.run_count == 3
    m.put(np.array([13, 15]), 1)
    assert m.run_count == 7
    m.or_(0, 4096, 1)
    assert m.run_count == 1
    m[512:1024] = np.resize(np.array([0, 1], dtype=np.uint8), 512)
    assert m.run_count == 513
    kept = m.snapshot()
    m.clear()
    assert m.run_count == 1
    m.restore(kept)
    assert m.run_count == 513
    assert kept.run_count == 513


def test_find_starts_and_stops_where_it_is_told(Map):
    m = Map(4096)
    m.write(600, 610, 3)
    assert m.find(0, 3) == 600
    assert m.find(605, 3) == 605
    assert m.find(610, 3) == -1
    assert m.find(0, 3, mask=0xFF, stop=600) == -1
    assert m.find(0, 3, stop=601) == 600
    assert m.find(0, 1, mask=1) == 600
    assert m.find(600, 0) == 610
    assert m.find(0, 0, mask=0) == 0
    assert m.find(0, 1, mask=2) == -1
    assert m.find(4096, 0) == -1


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_level_is_the_highest_uniform_aligned_block(WideMap, level):
    npages = 2 * BLOCKS[level]
    m = WideMap(npages)
    block = BLOCKS[level]
    assert m.level(0) == m.level(block) == m.level(npages - 1) == level + 1
    m[block] = 1
    assert m.level(0) == m.level(block - 1) == level + 1
    assert m.level(block) == 1
    for below in range(1, level + 1):
        assert m.level(block + BLOCKS[below - 1]) == below
    m[block] = 0
    assert m.level(block) == level + 1


def test_level_stops_at_the_end_of_the_map(Map):
    m = Map(512 + 511)
    assert m.level(0) == m.level(511) == 2
    assert m.level(512) == m.level(1022) == 1
    assert Map(511).level(0) == 1
    assert Map(512).level(0) == 2
    assert Map(512**2 - 1).level(512**2 - 2) == 1
    assert Map(512**2 - 1).level(0) == 2


def test_level_does_not_need_a_uniform_map_but_a_uniform_block(Map):
    """A block of one value counts although its neighbours differ, also when it is made of many updates."""
    m = Map(512 * 8)
    for gfn in range(512, 1024):
        m[gfn] = 7
    assert m.level(512) == m.level(1023) == 2
    m.write(1024, 2048, 7)
    assert m.level(1500) == 2


def test_level_at_most_six(WideMap):
    assert WideMap().level(0) == 6
    assert WideMap().level(EVERYTHING - 1) == 6
