"""What hypothesis draws: gfns, ranges and attributes where a 512-way tree has its edges."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from hypothesis import strategies as st

from kvmattr import Operation

NODE_ENTRIES = 512


def examples(count: int) -> int:
    """How many examples a test of the store has: as many as it says, or KVMATTR_TEST_SHARE of them, where each takes
    long (an emulated machine). They are the first of the same ones."""
    return max(1, round(count * float(os.environ.get("KVMATTR_TEST_SHARE", "1"))))


# A byte of packed bits, a word of a bitmap leaf, the width of a block at each level: and one page about them.
LENGTHS = sorted(
    {max(1, width + d) for width in (1, 8, 64, *(NODE_ENTRIES**k for k in range(1, 6))) for d in (-1, 0, 1)}
    | {2, 3, 5, 100, 1000, 2 * 512, 3 * 512, 5 * 512**2}
)
STRIDES = (1, 2, 3, 7, 8, 63, 64, 65, 511, 512, 513, 1024, 512**2 - 1, 512**2, 512**2 + 512, 512**3, 512**4)

attributes = st.one_of(st.sampled_from([0, 1, 0, 1, 8, 0xFF]), st.integers(0, 0xFF))
operations = st.sampled_from(Operation)
masks = st.one_of(st.just(0xFF), st.sampled_from([1 << bit for bit in range(8)]), st.integers(0, 0xFF))


def edges(npages: int, bases: Iterable[int] = (0,)) -> list[int]:
    """The bounds in [0, npages] where a node, a leaf or a word begins or ends, and the next ones."""
    marks = {0, npages}
    for base in bases:
        marks |= {base + mark for mark in (8, 64, 128, 448, 576, 640)}
        marks |= {
            base + multiple * NODE_ENTRIES**level for level in range(6) for multiple in (0, 1, 2, 3, 511, 512)
        }
    marks |= {2**power for power in range(53)} | {npages - mark for mark in (64, 512, 513, 512**2)}
    near = {mark + d for mark in marks for d in (-2, -1, 0, 1, 2)}
    return sorted(mark for mark in near if 0 <= mark <= npages)


def bounds(npages: int, bases: Iterable[int] = (0,)) -> st.SearchStrategy[int]:
    """A bound in [0, npages]: at an edge, in the few blocks about a base (draws meet there), anywhere."""
    bases = [base for base in bases if base <= npages]
    near_base = st.builds(
        lambda base, offset: min(max(base + offset, 0), npages),
        st.sampled_from(bases),
        st.integers(-1100, 1600),
    )
    return st.one_of(st.sampled_from(edges(npages, bases)), near_base, near_base, st.integers(0, npages))


def gfns(npages: int, bases: Iterable[int] = (0,)) -> st.SearchStrategy[int]:
    return bounds(npages, bases).map(lambda bound: min(bound, npages - 1))


def ranges(npages: int, bases: Iterable[int] = (0,)) -> st.SearchStrategy[tuple[int, int]]:
    """[start, stop): two bounds, a bound and a length, or the aligned block of some level about a page."""

    def block(gfn: int, level: int) -> tuple[int, int]:
        size = NODE_ENTRIES**level
        start = gfn // size * size
        return start, min(start + size, npages)

    bound = bounds(npages, bases)
    return st.one_of(
        st.tuples(bound, bound).map(lambda pair: (min(pair), max(pair))),
        st.builds(
            lambda start, length: (start, min(start + length, npages)), bound, st.sampled_from(LENGTHS)
        ),
        st.builds(block, gfns(npages, bases), st.integers(0, 5)),
    )


@st.composite
def patterns(draw: st.DrawFn, max_length: int) -> np.ndarray:
    """Pages for m[a:b]: of two values, three or four, or many; periodic, in runs, or at random."""
    palette = draw(
        st.lists(attributes, min_size=1, max_size=4) | st.lists(attributes, min_size=5, max_size=40)
    )
    length = min(draw(st.sampled_from(LENGTHS)), max_length)
    kind = draw(st.sampled_from(["periodic", "runs", "random"]))
    if kind == "periodic":
        chosen = np.arange(length) % len(palette)
    else:
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        chosen = random.integers(0, len(palette), length)
        if kind == "runs":
            chosen = np.repeat(chosen, random.integers(1, 40, length))[:length]
    return np.array(palette, dtype=np.uint8)[chosen]


@st.composite
def combs(draw: st.DrawFn, npages: int, bases: Iterable[int] = (0,)) -> tuple[np.ndarray, np.ndarray]:
    """starts and stops of short ranges at one distance: they fragment each level that it spans."""
    start = draw(gfns(npages, bases))
    stride = draw(st.sampled_from(STRIDES))
    count = min(draw(st.sampled_from([2, 29, 57, 63, 64, 600])), -(-(npages - start) // stride))
    starts = start + stride * np.arange(count, dtype=np.uint64)
    width = draw(st.sampled_from([1, 1, 2, max(1, stride // 2), max(1, stride - 1)]))
    return starts, np.minimum(starts + np.uint64(width), np.uint64(npages))


def neighbours(points: Iterable[int], npages: int) -> list[int]:
    """The gfns at and beside these points that lie in the map."""
    return sorted({point + d for point in points for d in (-1, 0, 1) if 0 <= point + d < npages})
