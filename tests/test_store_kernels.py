"""What the kernels do for whole nodes and groups of pages, against a dense array."""

from __future__ import annotations

import numpy as np
import pytest

from kvmattr import AttributeMap

NODE = 2**18
PAGES = 2 * NODE + 700


def fragmented() -> tuple[AttributeMap, np.ndarray]:
    """A gibibyte, and some more, of blocks of two values: most of them begin with one value and end with the other."""
    dense = np.random.default_rng(1).integers(0, 2, PAGES).astype(np.uint8) * 3 + 1
    dense[0:NODE:512] = 1
    dense[511:NODE:512] = 4
    m = AttributeMap(PAGES, 1)
    m[0:PAGES] = dense
    return m, dense


def test_run_count_of_whole_nodes() -> None:
    m, dense = fragmented()
    assert m.run_count == np.count_nonzero(dense[1:] != dense[:-1]) + 1 == len(m.runs())


@pytest.mark.parametrize("attributes", [1, 4])
@pytest.mark.parametrize("mask", [0xFF, 1, 4])
def test_count_of_whole_nodes(attributes: int, mask: int) -> None:
    m, dense = fragmented()
    assert m.count(0, PAGES, attributes & mask, mask) == np.count_nonzero((dense & mask) == attributes & mask)


@pytest.mark.parametrize("stop", [1, 63, 64, 65, 128, 447, 448, 449, 511, 512])
def test_diff_ends_inside_a_block_of_the_same_two_values(stop: int) -> None:
    m, dense = fragmented()
    before = m.snapshot()
    m.put(np.arange(513, 1023, dtype=np.uint64), 5, 1)
    m.put(np.arange(513, 1023, dtype=np.uint64), dense[513:1023] ^ 5)
    differing = 512 + np.flatnonzero(m.to_numpy(512, 512 + stop) != before.to_numpy(512, 512 + stop))
    changes = m.diff(before, 512, 512 + stop)
    assert np.array_equal(np.concatenate([np.arange(a, b) for a, b, _, _ in changes] or [[]]), differing)
    assert len(differing) == min(max(stop - 1, 0), 510)


@pytest.mark.parametrize("value", [1, 4])
def test_a_batch_that_takes_a_leafs_last_other_page_leaves_no_leaf(value: int) -> None:
    """Groups of single pages are flips of bits, until one of them would leave the block with one value."""
    m, dense = fragmented()
    dense[512] = value
    m[512] = value
    leaves = m.stats()["bitmap_leaves"]
    assert m.put(np.arange(513, 1024 + 200, dtype=np.uint64), value) == np.count_nonzero(dense[513:1224] != value)
    m.validate()
    assert m.uniform(512, 1024) == value
    assert m.stats()["bitmap_leaves"] == leaves - 1
