"""Leaves of fields and run lines: which a block gets, and single pages of it changed in place."""

import numpy as np
import pytest

from kvmattr import AttributeMap

PAGES = 4 * 512


@pytest.fixture
def rng():
    return np.random.default_rng(20221122)


def leaves(m):
    stats = m.stats()
    kinds = ("bitmap_leaves", "two_bit_leaves", "four_bit_leaves", "byte_leaves", "run_lines")
    return {kind: stats[kind] for kind in kinds if stats[kind]}


def filled(a):
    m = AttributeMap.from_numpy(a)
    m.validate()
    return m


@pytest.mark.parametrize("values", [3, 4, 5, 8])
@pytest.mark.parametrize("runs", [6, 30, 45, 512], ids="{} runs a block".format)
def test_pages_one_by_one(values, runs, rng):
    starts = np.unique(np.concatenate([[0], rng.integers(0, PAGES, runs * 4)]))
    a = np.repeat(rng.integers(0, values, len(starts), np.uint8), np.diff(np.append(starts, PAGES)))
    m = filled(a)
    before, kept = m.snapshot(), a.copy()
    for step in range(600):
        gfn, value = int(rng.integers(PAGES)), int(rng.integers(values))
        assert m.write(gfn, gfn + 1, value) == (a[gfn] != value)
        a[gfn] = value
        if step % 7 == 0:
            m.validate()
    assert np.array_equal(m.to_numpy(0, PAGES), a)
    assert np.array_equal(before.to_numpy(0, PAGES), kept)
    m.validate()


@pytest.mark.parametrize("values", [3, 4, 8])
def test_put_counts_what_changed(values, rng):
    a = rng.integers(0, values, PAGES, np.uint8)
    m = filled(a)
    gfns, attributes = rng.integers(0, PAGES, 5000), rng.integers(0, values, 5000, np.uint8)
    changed = 0
    for gfn, value in zip(gfns.tolist(), attributes.tolist(), strict=True):
        changed += a[gfn] != value
        a[gfn] = value
    assert m.put(gfns, attributes) == changed
    assert np.array_equal(m.to_numpy(0, PAGES), a)
    m.validate()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1], "bitmap_leaves"),
        ([3, 200], "bitmap_leaves"),
        ([0, 1, 2], "two_bit_leaves"),
        ([0, 1, 2, 3], "two_bit_leaves"),
        ([0, 5, 2, 7], "two_bit_leaves"),           # bits 0 and 2 vary together: they may share a bit of the field
        ([0, 1, 4], "four_bit_leaves"),
        (range(16), "four_bit_leaves"),
        ([0x80, 0x81, 0xA0, 0xC0, 0xF1], "byte_leaves"),    # bits 4 and 0 vary apart
        ([0, 1, 0x82, 0x44], "four_bit_leaves"),
        ([0, 1, 16], "byte_leaves"),
        (range(256), "byte_leaves"),
    ],
)
def test_the_narrowest_fields_that_tell_the_values_apart(values, kind):
    a = np.resize(np.array(values, np.uint8), 512)
    m = filled(a)
    assert leaves(m) == {kind: 1}
    assert np.array_equal(m.to_numpy(0, 512), a)


@pytest.mark.parametrize("old", [[1, 2, 3], [1, 2, 3, 4, 5], range(200)])
def test_in_place(old):
    """A value that the block has already needs no new leaf."""
    m = filled(np.resize(np.array(old, np.uint8), 512))
    kind, allocated = leaves(m), m.stats()["leaf_allocations"]
    for gfn in range(1, 10):
        assert m.write(gfn, gfn + 1, old[(gfn + 1) % len(old)])
        m.validate()
    assert leaves(m) == kind
    assert m.stats()["leaf_allocations"] == allocated


def test_the_first_page_with_a_new_bit_needs_no_new_leaf():
    """Where three of the field's four bits are in use, the fourth is kept for the attribute of that number."""
    m = filled(np.resize(np.array([0, 1, 2, 4], np.uint8), 512))
    assert leaves(m) == {"four_bit_leaves": 1}
    allocated = m.stats()["leaf_allocations"]
    assert m.put([7, 8, 9, 0], [8, 9, 15, 12]) == 4
    m.validate()
    assert m.take([7, 8, 9, 0]).tolist() == [8, 9, 15, 12]
    assert m.stats()["leaf_allocations"] == allocated
    assert m.write(10, 11, 16)          # the bit of 1's number is in use
    m.validate()
    assert leaves(m) == {"byte_leaves": 1}


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "in a batch"])
@pytest.mark.parametrize("values", [2, 4, 16, 256])
def test_bits_that_vary_no_longer_are_noticed(values, batch):
    """A bit is gone with the last page that had it, and with the last page the leaf."""
    m = filled(np.resize(np.arange(values, dtype=np.uint8), 512 * 3))
    for bit in reversed(range(values.bit_length() - 1)):
        gfns = np.flatnonzero(m.to_numpy(512, 1024) >> bit & 1) + 512
        if batch:
            m.put(gfns, m.take(gfns) & ~np.uint8(1 << bit))
        for gfn in [] if batch else gfns.tolist():
            m.and_(gfn, gfn + 1, 0xFF ^ 1 << bit)
        m.validate()
        assert m.all(512, 1024, 0, 1 << bit)
    assert m.uniform(512, 1024) == 0
    assert sum(leaves(m).values()) == 2


def test_fields_become_narrow_when_a_range_is_written():
    m = filled(np.resize(np.arange(16, dtype=np.uint8), 512))
    for gfn in range(1, 511):           # the first page and the last go the way of a range
        m.write(gfn, gfn + 1, gfn % 2)
        m.validate()
    assert leaves(m) == {"four_bit_leaves": 1}
    m.write(511, 512, 1)
    m.validate()
    assert leaves(m) == {"bitmap_leaves": 1}
    for gfn in range(512):              # and to one
        m.write(gfn, gfn + 1, 9)
        m.validate()
    assert leaves(m) == {}
    assert m.uniform(0, 512) == 9


def test_runs_grow_and_join():
    a = np.zeros(512, np.uint8)
    a[100:200], a[300:400] = 1, 4
    m = filled(a)
    assert leaves(m) == {"run_lines": 1}
    for gfn, value in [(150, 3), (151, 3), (149, 3), (99, 1), (200, 1), (299, 4), (150, 1), (149, 1), (151, 1),
                       (511, 4), (510, 4), (511, 0), (510, 0), (1, 7), (2, 7), (1, 0), (2, 0)]:
        assert m.write(gfn, gfn + 1, value)
        a[gfn] = value
        m.validate()
        assert leaves(m) == {"run_lines": 1}
        assert np.array_equal(m.to_numpy(0, 512), a)
    assert m.runs().tolist() == [(0, 99, 0), (99, 201, 1), (201, 299, 0), (299, 400, 4), (400, 512, 0)]
    for gfn in range(299, 400):         # the third value goes, but the line had turns
        m.write(gfn, gfn + 1, 0)
        m.validate()
    assert leaves(m) == {"run_lines": 1}
    m.write(120, 130, 0)                # two values are one bit a page
    m.validate()
    assert leaves(m) == {"bitmap_leaves": 1}


def test_a_pending_bit_stays_pending():
    """An operation on the whole block is in its entry: single pages are stored beneath it."""
    a = np.resize(np.array([0, 1, 4, 5, 8], np.uint8), 1024)
    m = filled(a)
    m.or_(0, 512, 16)
    m.update(0, 512, 0xFF, mask=0)      # nothing
    a[:512] |= 16
    for gfn, value in [(5, 1), (6, 17), (7, 16), (8, 255)]:
        m.write(gfn, gfn + 1, value)
        a[gfn] = value
        m.validate()
    assert np.array_equal(m.to_numpy(0, 1024), a)
