"""copy, snapshot, restore, diff, ==: maps of one family keep their own pages."""

import copy

import numpy as np
import pytest

from tests.reference import CHANGE


def fragmented(Map, npages=4096):
    m = Map(npages)
    m[0:2048] = np.resize(np.array([0, 1], dtype=np.uint8), 2048)
    m[2048:3072] = np.resize(np.array([1, 2, 3], dtype=np.uint8), 1024)
    m[3072:3584] = (np.arange(512) % 100).astype(np.uint8)
    return m


def test_a_copy_and_its_source_go_their_own_ways(Map):
    m = fragmented(Map)
    pages = m.to_numpy(0, 4096)
    twin = m.copy()
    assert type(twin) is type(m)
    assert twin == m
    m.or_(0, 4096, 0x40)
    m[5] = 9
    twin.and_(100, 3000, 0x02)
    twin[3100] = 0xAA
    changed = pages | 0x40
    changed[5] = 9
    pages[100:3000] &= 2
    pages[3100] = 0xAA
    assert np.array_equal(m.to_numpy(0, 4096), changed)
    assert np.array_equal(twin.to_numpy(0, 4096), pages)
    assert twin != m
    m.validate()
    twin.validate()


@pytest.mark.parametrize("page", [0, 511, 2048, 2100, 3072, 3583, 4095])
def test_a_snapshot_stays_as_it_was(Map, page):
    m = fragmented(Map)
    pages = m.to_numpy(0, 4096)
    kept = m.snapshot()
    m[page] = 0xEE
    assert kept.get(page) == pages[page]
    m.or_(0, 4096, 0x80)
    m.clear()
    assert np.array_equal(kept.to_numpy(0, 4096), pages)
    kept.validate()
    m.validate()


def test_every_writing_method_of_a_snapshot_raises(Map):
    m = fragmented(Map)
    kept = m.snapshot()
    before, version = kept.runs().tobytes(), kept.version
    some = np.array([1, 2])
    for write in (
        lambda: kept.write(0, 1, 1),
        lambda: kept.or_(0, 1, 1),
        lambda: kept.and_(0, 1, 1),
        lambda: kept.update(0, 1, 1),
        lambda: kept.update_many(some, some + 1, 1),
        lambda: kept.put(some, 1),
        lambda: kept.put_bitmap(0, np.array([1], dtype=np.uint8), 1),
        lambda: kept.fill(0),
        lambda: kept.clear(),
        lambda: kept.restore(m),
        lambda: kept.__setitem__(0, 1),
        lambda: kept.__setitem__(slice(0, 9), 1),
        lambda: kept.__setitem__(slice(0, 2), some),
        lambda: kept.__setitem__(some, 1),
        lambda: kept.__delitem__(slice(0, 9)),
        lambda: kept.write(0, 0, 1),
        lambda: kept.put(np.empty(0, dtype=np.uint64), 1),
    ):
        with pytest.raises(TypeError, match="read-only"):
            write()
    assert kept.runs().tobytes() == before
    assert kept.version == version


def test_a_copy_of_a_snapshot_is_writable(Map):
    m = fragmented(Map)
    kept = m.snapshot()
    twin = kept.copy()
    assert twin.write(0, 4096, 1) is True
    assert kept == m
    again = kept.snapshot()
    assert again == m
    with pytest.raises(TypeError, match="read-only"):
        again.write(0, 1, 1)


def test_restore_brings_the_pages_back_and_raises_the_version(Map):
    m = fragmented(Map)
    kept = m.snapshot()
    version = m.version
    m.restore(kept)
    assert m.version > version
    m.write(0, 4096, 3)
    version = m.version
    assert m.restore(kept) is None
    assert m.version > version
    assert m == kept
    m[0] = 7
    assert kept.get(0) == 0
    m.restore(kept)
    m.restore(m)
    assert m == kept
    m.validate()


def test_restore_from_a_map_of_another_family(Map):
    m, other = fragmented(Map), Map(4096, 5)
    other[7:700] = 8
    m.restore(other)
    assert m == other
    other[7] = 1
    m[8] = 2
    assert m.get(7) == 8
    assert other.get(8) == 8
    m.validate()
    other.validate()


def test_restore_keeps_the_default(Map):
    """`==` compares pages, not defaults, and restore brings pages."""
    m, other = Map(1000, 5), Map(1000, 6)
    m.restore(other)
    assert m == other
    del m[0:10]
    assert m.runs().tolist() == [(0, 10, 5), (10, 1000, 6)]


def test_defaults_are_copied(Map):
    m = Map(100, 5)
    m.fill(1)
    for twin in (m.copy(), copy.copy(m), copy.deepcopy(m)):
        twin.clear()
        assert twin.uniform(0, 100) == 5
    assert m.uniform(0, 100) == 1


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_the_copy_module(Map, make):
    m = fragmented(Map)
    twin = make(m)
    assert twin == m
    twin[0] = 77
    assert m.get(0) == 0
    m[1] = 78
    assert twin.get(1) == 1


def test_equality_is_of_pages(Map):
    """However a map came to its pages: encodings, pending operations and histories do not count."""
    m, other = fragmented(Map), Map(4096, 3)
    for start, stop, attributes in m.runs().tolist():
        other.write(start, stop, attributes)
    assert m == other
    assert (m != other) is False
    other.or_(0, 4096, 0x10)
    assert m != other
    m.put(np.arange(4096), 0x10, 1)
    assert m == other
    other[4095] ^= 1
    assert m != other
    assert Map(10) != Map(11)
    assert (Map(10) == 5) is False
    assert Map(10) != "x"
    assert (Map(10) == None) is False  # noqa: E711


def test_diff_is_packed_coalesced_and_clipped(Map):
    m = fragmented(Map)
    kept = m.snapshot()
    assert m.diff(kept).dtype == CHANGE
    assert m.diff(kept).dtype.itemsize == 18
    assert m.diff(kept).tolist() == []
    m.or_(4, 8, 0x10)
    m.write(3600, 3700, 7)
    assert m.diff(kept).tolist() == [
        (4, 5, 0, 0x10),
        (5, 6, 1, 0x11),
        (6, 7, 0, 0x10),
        (7, 8, 1, 0x11),
        (3600, 3700, 0, 7),
    ]
    assert m.diff(kept, 6, 3650).tolist() == [(6, 7, 0, 0x10), (7, 8, 1, 0x11), (3600, 3650, 0, 7)]
    assert kept.diff(m, 3690).tolist() == [(3690, 3700, 7, 0)]
    assert m.diff(kept, stop=5).tolist() == [(4, 5, 0, 0x10)]
    assert m.diff(kept, 5, 5).tolist() == []


def test_diff_of_a_pending_operation(Map):
    """Equal blocks under different pending operations are different contents."""
    m = fragmented(Map)
    kept = m.snapshot()
    m.or_(0, 4096, 0x80)
    pages = kept.to_numpy(0, 4096)
    changes = m.diff(kept)
    assert sum(int(change["stop"] - change["start"]) for change in changes) == 4096
    for start, stop, old, new in changes.tolist():
        assert (pages[start:stop] == old).all()
        assert new == old | 0x80
    assert [change[:2] for change in changes.tolist()] == [run[:2] for run in kept.runs().tolist()]


def test_a_leaf_that_is_a_root_stays_shared_when_the_map_grows_higher(Map):
    """The copy holds as its root what the map now holds below a new node."""
    m = Map(2**20)
    m.put(np.arange(1, 512, 2), 1)
    twin = m.copy()
    m[1000] = 1
    m[5] = 0
    assert twin.get(5) == 1
    m.validate()


def test_diff_with_another_family(Map):
    m, other = fragmented(Map), Map(4096)
    changes = m.diff(other).tolist()
    assert changes == [
        (start, stop, 0, attributes) for start, stop, attributes in m.runs().tolist() if attributes
    ]


def test_a_page_changed_and_changed_back_does_not_differ(Map):
    m = fragmented(Map)
    kept = m.snapshot()
    for page in (0, 2048, 3100, 4000):
        old = m.get(page)
        m[page] = 0x77
        m[page] = old
    assert m.diff(kept).tolist() == []
    assert m == kept


def test_many_generations(Map):
    """Snapshots of every step, dropped in an order of their own: each says what it saw."""
    random = np.random.default_rng(5)
    m = Map(4096)
    pages = np.zeros(4096, dtype=np.uint8)
    kept = []
    for step in range(60):
        start, stop = sorted(random.integers(0, 4097, 2).tolist())
        value = int(random.integers(0, 4))
        if step % 3 == 0:
            m.write(start, stop, value)
            pages[start:stop] = value
        elif step % 3 == 1:
            m.or_(start, stop, value)
            pages[start:stop] |= value
        else:
            gfns = random.integers(0, 4096, 50)
            m.put(gfns, value)
            pages[gfns] = value
        kept.append((m.snapshot(), pages.copy()))
        if len(kept) > 20:
            snapshot, wanted = kept.pop(int(random.integers(0, len(kept))))
            assert np.array_equal(snapshot.to_numpy(0, 4096), wanted)
            del snapshot
            m.validate()
    while kept:
        m.restore(kept[0][0])
        for snapshot, wanted in kept:
            assert np.array_equal(snapshot.to_numpy(0, 4096), wanted)
            snapshot.validate()
        assert np.array_equal(m.to_numpy(0, 4096), kept[0][1])
        kept.pop(0)
