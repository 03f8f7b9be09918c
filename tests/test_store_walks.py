"""take and put walk down to many pages at once; get and write, to one. Both must come to the same, wherever the ways
lead: through operations that wait at several levels, to run lists, beyond the root, to each encoding of a leaf.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from kvmattr import AttributeMap, Operation

GIB = 1 << 18

Gfns = NDArray[np.uint64]
Pages = NDArray[np.uint8]


def scattered() -> AttributeMap:
    """Run lists below nodes of several levels, among uniform parts."""
    m = AttributeMap(1 << 52, 8)
    rng = np.random.default_rng(1)
    for span in (1 << 52, 1 << 43, 1 << 34, 1 << 27):
        m.put(rng.integers(0, span, 300), rng.integers(0, 9, 300).astype(np.uint8))
    return m


def waiting() -> AttributeMap:
    """Operations that wait at the root, above whole GiBs, above single blocks."""
    m = AttributeMap(1 << 24)
    for start in range(0, 1 << 24, 4 * GIB):
        m.put_bitmap(start, np.full(GIB // 8, 0xA6, np.uint8), 1)
    m.write(GIB, 2 * GIB, 3)
    m.or_(0, 16 * GIB, 4)
    m.or_(8 * GIB, 9 * GIB, 9)
    m.and_(12 * GIB, 13 * GIB, 5)
    m.or_(512, 1024, 2)
    m.or_(0, 1 << 24, 32)
    return m


def encoded() -> AttributeMap:
    """Uniform blocks, fields of each width and run lines side by side, under a waiting operation."""
    m = AttributeMap(1 << 24)
    rng = np.random.default_rng(2)
    for block in range(0, 4096, 8):
        pages = np.arange(512 * block, 512 * block + 512)
        m.put(pages[::2], 1)
        m.put(pages + 512, rng.integers(0, 4, 512).astype(np.uint8))
        m.put(pages + 1024, rng.integers(0, 200, 512).astype(np.uint8))
        m.update_many(pages[::100] + 1536, pages[::100] + 1570, np.arange(6))
        m.write(512 * block + 2048, 512 * block + 2560, 7)
    m.or_(0, 512 * 2048, 16)
    return m


def low() -> AttributeMap:
    """Content in the lowest pages only: the rest lies beyond the root."""
    m = AttributeMap(1 << 30, 2)
    m.put(np.arange(1, GIB, 3), 6)
    return m


def single_block() -> AttributeMap:
    m = AttributeMap(512, 4)
    m.put(np.arange(0, 512, 5), 1)
    return m


def single_list() -> AttributeMap:
    m = AttributeMap(1 << 50)
    m.put(np.array([1 << 49, 1 << 40, 1 << 20, 7, 0]), np.arange(1, 6, dtype=np.uint8))
    assert m.stats()["nodes"] == 0
    return m


def overlaid() -> AttributeMap:
    """Every page mixed with its neighbours, and one operation that waits above all of them."""
    m = AttributeMap(1 << 24)
    m.put_bitmap(0, np.full(1 << 21, 0x66, np.uint8), 1)
    m.or_(0, 1 << 24, 2)
    return m


CONTENTS = [scattered, waiting, encoded, low, single_block, single_list, overlaid]


def interesting(m: AttributeMap, count: int) -> Gfns:
    """In no order, some of them twice: pages at the ends of runs, the first and last of blocks and of GiBs, the map's
    ends, pages anywhere and in the lowest parts."""
    rng = np.random.default_rng(count)
    runs = m.runs()
    ends = rng.choice(np.concatenate([runs["start"], runs["stop"] - 1]), count)
    anywhere = rng.integers(0, len(m), count).astype(np.uint64)
    lowest = rng.integers(0, min(len(m), 1 << 24), count).astype(np.uint64)
    edges = np.concatenate([anywhere & ~np.uint64(511), lowest | np.uint64(511), lowest & ~np.uint64(GIB - 1)])
    gfns = np.concatenate([ends, ends + np.uint64(1), anywhere, lowest, edges, np.array([0, len(m) - 1], np.uint64)])
    return rng.choice(gfns[gfns < len(m)], count)


@pytest.mark.parametrize("count", [1, 31, 63, 64, 65, 127, 128, 129, 1000, 5000])
@pytest.mark.parametrize("content", CONTENTS)
def test_take_of_many_pages_is_get_of_each(content: Callable[[], AttributeMap], count: int) -> None:
    m = content()
    gfns = interesting(m, count)
    assert m.take(gfns).tolist() == [m.get(gfn) for gfn in gfns.tolist()]


def few_ranges(count: int, begin: int, span: int, seed: int) -> AttributeMap:
    """So many runs, written range by range, that begin in the `span` pages from `begin` on."""
    m = AttributeMap(1 << 52, 7)
    rng = np.random.default_rng(seed)
    ends = begin + np.sort(rng.choice(span, count - 1, replace=False)).astype(np.int64)
    for number, (start, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        m[start:stop] = number % 5
    if count > 1:
        m[int(ends[-1]):] = 6
    assert m.run_count == count
    return m


@pytest.mark.parametrize(("begin", "span"), [(1, 3000), (1, 1 << 24), (1 << 45, 1 << 21),
                                             ((1 << 52) - (1 << 30), 1 << 29), (1, 1 << 51)])
@pytest.mark.parametrize("runs", [1, 2, 8, 9, 57, 64, 65, 300, 511, 512, 513, 900])
def test_take_from_a_guest_of_few_ranges(runs: int, begin: int, span: int) -> None:
    m = few_ranges(runs, begin, span, runs)
    for _ in range(3):
        for count in (1, 100, 200, 20_000):
            gfns = interesting(m, count)
            found = m.runs()
            wanted = found["attributes"][np.searchsorted(found["start"], gfns, "right") - 1]
            assert np.array_equal(m.take(gfns), wanted)
            assert wanted[-50:].tolist() == [m.get(gfn) for gfn in gfns[-50:].tolist()]
        # And again after some pages were converted, and with something waiting above them.
        m.put(interesting(m, 20), 3)
        m.or_(begin, begin + span // 2, 8)


@pytest.mark.parametrize("operation", list(Operation))
@pytest.mark.parametrize("content", CONTENTS)
def test_put_of_many_pages_is_update_of_each(content: Callable[[], AttributeMap], operation: Operation) -> None:
    together, single = content(), content()
    gfns = interesting(single, 3000)
    # Half of them flip what is there: only such pages are flipped in groups.
    attributes = np.where(np.arange(3000) & 1, single.take(gfns) ^ 1, np.arange(3000) % 7).astype(np.uint8)
    assert_puts_agree(together, single, gfns, attributes, operation)


@pytest.mark.parametrize("count", [64, 3000])
@pytest.mark.parametrize("content", CONTENTS)
def test_put_of_one_value_that_the_leaves_may_have(content: Callable[[], AttributeMap], count: int) -> None:
    for value in [*content().values()[:3].tolist(), 1]:
        together, single = content(), content()
        gfns = interesting(single, count)
        assert_puts_agree(together, single, gfns, np.full(count, value, np.uint8), Operation.WRITE)


def assert_puts_agree(
    together: AttributeMap, single: AttributeMap, gfns: Gfns, attributes: Pages, operation: Operation
) -> None:
    version = together.version
    changed = [
        single.update(gfn, gfn + 1, value, operation)
        for gfn, value in zip(gfns.tolist(), attributes.tolist(), strict=True)
    ]
    assert together.put(gfns, attributes, operation) == sum(changed)
    assert together.version >= version + sum(changed)
    assert together == single
    together.validate()
