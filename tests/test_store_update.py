"""write, or_, and_, update, fill, clear: which pages become what, and what the answer and `version` say."""

from itertools import pairwise

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation

EVERYTHING = 2**52


def test_write_replaces_or_sets_and_keeps(Map):
    m = Map(1024)
    assert m.write(10, 20, 0b0101) is True
    assert m.or_(15, 25, 0b0010) is True
    assert m.and_(0, 18, 0b0110) is True
    assert m.runs(0, 32).tolist() == [
        (0, 10, 0),
        (10, 15, 0b0100),
        (15, 18, 0b0110),
        (18, 20, 0b0111),
        (20, 25, 0b0010),
        (25, 32, 0),
    ]


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [(Operation.WRITE, 0b1010_0101), (Operation.OR, 0b1010_1111), (Operation.AND, 0b1010_0000)],
)
def test_bits_outside_the_mask_never_change(Map, operation, wanted):
    m = Map(600, 0b1010_1010)
    m.update(511, 513, 0b0101_0101, operation, mask=0x0F)
    assert m.runs().tolist() == [(0, 511, 0b1010_1010), (511, 513, wanted), (513, 600, 0b1010_1010)]


def test_the_whole_operation_table(Map):
    """Every operation with every pair of a few interesting bytes and masks, by the definition."""
    interesting = [0, 1, 0x0F, 0x55, 0x80, 0xFE, 0xFF]
    m = Map(8)
    for old in interesting:
        for attributes in interesting:
            for mask in interesting:
                for operation, new in ((0, attributes), (1, old | attributes), (2, old & attributes)):
                    m.write(2, 3, old)
                    wanted = (old & ~mask) | (new & mask)
                    assert m.update(2, 3, attributes, operation=operation, mask=mask) is (wanted != old)
                    assert m.get(2) == wanted
    assert m.count(0, 8, 0) >= 7


@pytest.mark.parametrize("size", [1, 64, 511, 512, 513, 512**2, 512**3 + 1, EVERYTHING])
def test_true_only_if_a_page_changed(WideMap, size):
    m = WideMap()
    version = m.version
    assert m.write(0, size, 0) is False
    assert m.and_(0, size, 0xFF) is False
    assert m.or_(0, size, 0) is False
    assert m.update(0, size, 0xFF, Operation.WRITE, 0) is False
    assert m.version == version
    assert m.write(0, size, 3) is True
    assert m.version > version
    version = m.version
    assert m.write(0, size, 3) is False
    assert m.or_(0, size, 1) is False
    assert m.and_(0, size, 7) is False
    assert m.update(0, size, 0xF0, Operation.AND, 0xF0) is False
    assert m.version == version


def test_one_differing_page_in_the_middle_decides(Map):
    """An OR over a fragmented range changes something exactly if one page lacks the bit."""
    m = Map(2**15)
    m[0 : 2**15] = np.resize(np.array([1, 3], dtype=np.uint8), 2**15)
    assert m.or_(0, 2**15, 1) is False
    assert m.and_(0, 2**15, 3) is False
    for gfn in (0, 511, 512, 777, 2**14, 2**15 - 1):
        m[gfn] = 2
        assert m.or_(0, 2**15, 1) is True
        assert m.or_(0, 2**15, 1) is False
        m[gfn] = 0x83
        assert m.and_(0, 2**15, 0x7F) is True
        assert m.and_(0, 2**15, 0x7F) is False
        assert m.get(gfn) == 3


def test_pending_operations_compose(Map):
    """Operations over a fragmented range are applied in order, however they are kept meanwhile."""
    n = 2**16
    pages = np.resize(np.array([0, 1, 2, 0x80], dtype=np.uint8), n)
    m = Map(n)
    m[0:n] = pages
    for start, stop in ((0, n), (512, n - 512), (1, n - 1), (1024, 2048), (1000, 1001), (0, n)):
        m.or_(start, stop, 0x04)
        pages[start:stop] |= 0x04
        m.and_(start, stop, 0xFB)
        pages[start:stop] &= 0xFB
        m.update(start, stop, 0x08, Operation.WRITE, 0x18)
        pages[start:stop] = (pages[start:stop] & ~np.uint8(0x18)) | 0x08
        m.validate()
        assert np.array_equal(m.to_numpy(0, n), pages)
    m.and_(0, n, 0x08)
    m.validate()
    assert m.uniform(0, n) == 8
    assert m.run_count == 1


def test_a_pending_operation_reaches_pages_written_before_it_only(Map):
    m = Map(2**18)
    m[0 : 2**18] = np.resize(np.array([0, 1], dtype=np.uint8), 2**18)
    m.or_(0, 2**18, 0x10)
    m[5] = 0
    m.write(700, 1300, 2)
    m.or_(0, 2**18, 0x20)
    assert m[4:7].tolist() == [0x30, 0x20, 0x30]
    assert m[699:702].tolist() == [0x31, 0x22, 0x22]
    m.validate()


@pytest.mark.parametrize("at", [0, 2**9, 2**18, 2**27, 2**36, 2**45, EVERYTHING])
def test_ranges_across_the_block_edges_of_every_level(WideMap, at):
    m = WideMap()
    for reach in (1, 2, 511, 512, 513, 2**18 + 1):
        start, stop = max(0, at - reach), min(EVERYTHING, at + reach)
        assert m.write(start, stop, 5) is True
        m.validate()
        assert m.run(start) == (start, stop, 5)
        assert m.count(0, EVERYTHING, 5) == stop - start
        assert m.write(start, stop, 0) is True
        m.validate()
    assert m.run_count == 1


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_page_of_a_block_stands_for_it(shared):
    """Entries know the value of the first page below them: queries that ask no more follow each change of it."""
    npages = 3 * 2**18 + 100
    pages = np.resize(np.array([1, 5], dtype=np.uint8), npages)
    pages[2**18 : 2**18 + 512] = np.resize(np.array([1, 5, 4, 1], dtype=np.uint8), 512)  # a coded leaf
    pages[2**18 + 1024 : 2**18 + 2048] = 5
    m = AttributeMap(npages)
    m[0:npages] = pages
    kept = m.snapshot() if shared else None
    before = pages.copy()
    rng = np.random.default_rng(2)
    edges = [0, 512, 1024, 2**18 - 512, 2**18, 2**18 + 512, 2**18 + 1024, 2**18 + 1536, 2**19, 3 * 2**18]
    for turn in range(300):
        gfn = int(rng.choice(edges)) if turn % 3 else 512 * int(rng.integers(0, npages // 512))
        attributes = int(rng.choice([1, 5, 5, 1, 7]))
        assert m.write(gfn, gfn + 1, attributes) == (pages[gfn] != attributes)
        pages[gfn] = attributes
        assert m.get(gfn) == attributes
        assert m.find(gfn, attributes) == gfn
        assert m.all(gfn, gfn + 1, attributes)
        assert m.run(gfn)[2] == attributes
        assert m.uniform(gfn, gfn + 2) == (attributes if pages[gfn + 1] == attributes else None)
        if turn % 10 == 0:
            m.validate()
            assert m.count(0, npages, 4, 4) == np.count_nonzero(pages & 4)
    assert np.array_equal(m[:], pages)
    assert kept is None or np.array_equal(kept[:], before)


def test_fill_and_clear_return_none_and_always_raise_the_version(Map):
    m = Map(1000, 7)
    m[3] = 1
    assert m.fill(9) is None
    assert m.uniform(0, 1000) == 9
    version = m.version
    m.fill(9)
    assert m.version > version
    version = m.version
    assert m.clear() is None
    assert m.uniform(0, 1000) == 7
    assert m.version > version
    version = m.version
    m.clear()
    assert m.version > version


def test_empty_ranges_change_nothing(Map):
    m = Map(1000, 3)
    version = m.version
    for at in (0, 1, 512, 1000):
        assert m.write(at, at, 1) is False
        assert m.or_(at, at, 4) is False
        assert m.and_(at, at, 0) is False
        assert m.update(at, at, 1, mask=1) is False
        m[at:at] = 5
        m[at:at] = np.empty(0, dtype=np.uint8)
        del m[at:at]
    assert m.version == version
    assert m.runs().tolist() == [(0, 1000, 3)]


def test_python_words_for_updates(Map):
    m = Map(2000, 1)
    m[5] = 2
    m[10:20] = 3
    m[30:34] = np.array([4, 5, 6, 7], dtype=np.uint8)
    m[np.array([40, 42])] = 8
    m[np.array([50, 52])] = np.array([9, 10], dtype=np.uint8)
    assert m.runs(0, 60).tolist() == [
        (0, 5, 1),
        (5, 6, 2),
        (6, 10, 1),
        (10, 20, 3),
        (20, 30, 1),
        (30, 31, 4),
        (31, 32, 5),
        (32, 33, 6),
        (33, 34, 7),
        (34, 40, 1),
        (40, 41, 8),
        (41, 42, 1),
        (42, 43, 8),
        (43, 50, 1),
        (50, 51, 9),
        (51, 52, 1),
        (52, 53, 10),
        (53, 60, 1),
    ]
    del m[0:2000]
    assert m.runs().tolist() == [(0, 2000, 1)]
    m[:] = 6
    m[:2] = 1
    m[1998:] = 1
    assert m.runs().tolist() == [(0, 2, 1), (2, 1998, 6), (1998, 2000, 1)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint64])
def test_assigned_arrays_may_be_of_any_integer_type_and_stride(Map, dtype):
    pages = (np.arange(3000) % 100).astype(dtype)
    m = Map(4000)
    m[7:1507] = pages[::2]
    assert np.array_equal(m.to_numpy(7, 1507), pages[::2].astype(np.uint8))
    m.validate()


def test_an_assigned_array_is_one_operation(Map):
    m = Map(4000)
    pages = np.resize(np.array([1, 2, 3], dtype=np.uint8), 2000)
    version = m.version
    m[100:2100] = pages
    assert m.version > version
    version = m.version
    m[100:2100] = pages
    assert m.version == version
    pages[1999] = 9
    m[100:2100] = pages
    assert m.version > version


@pytest.mark.parametrize(("values", "wide"), [(4, "two_bit_leaves"), (16, "four_bit_leaves"), (256, "byte_leaves")])
def test_a_block_written_by_ranges_takes_a_line_again(values, wide):
    """Fields that ranges have left few runs of are stored as such; a search finds each run's ends in either."""
    rng = np.random.default_rng(values)
    pages = rng.integers(0, values, 512).astype(np.uint8)
    m = AttributeMap(512)
    m[:] = pages
    assert m.stats()[wide] == 1
    for start in range(0, 512, 40):
        m.write(start, min(start + 40, 512), start // 40 % values)
        pages[start:start + 40] = start // 40 % values
        for gfn in (0, start, min(start + 40, 511), 511):
            run = m.run(gfn)
            differs = np.flatnonzero(np.diff(pages)) + 1
            ends = [0, *differs.tolist(), 512]
            assert (run.start, run.stop) in pairwise(ends)
            assert run.start <= gfn < run.stop
            assert m.find(0, int(pages[gfn])) == int(np.flatnonzero(pages == pages[gfn])[0])
        m.validate()
    assert np.array_equal(m.to_numpy(0, 512), pages)
    assert m.stats()[wide] == 0 or values == 4
    assert m.stats()["run_lines"] == (values != 4)
