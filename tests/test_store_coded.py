"""Single pages of blocks with three and more values: changed in place, and encoded anew when that pays."""

import numpy as np
import pytest

from kvmattr import AttributeMap

PAGES = 4 * 512


@pytest.fixture
def rng():
    return np.random.default_rng(20221122)


def leaves(m):
    stats = m.stats()
    return {kind: stats[f"{kind}_leaves"] for kind in ("bitmap", "palette", "run", "byte") if stats[f"{kind}_leaves"]}


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


@pytest.mark.parametrize(("old", "kind"), [([1, 2, 3], "palette"), ([1, 2, 3, 4, 5], "byte")])
def test_in_place(old, kind):
    """A value that the block has already needs no new leaf."""
    m = filled(np.resize(np.array(old, np.uint8), 512))
    assert leaves(m) == {kind: 1}
    allocated = m.stats()["leaf_allocations"]
    for gfn in range(1, 10):
        assert m.write(gfn, gfn + 1, old[(gfn + 1) % len(old)])
        m.validate()
    assert leaves(m) == {kind: 1}
    assert m.stats()["leaf_allocations"] == allocated


def test_a_fourth_value_fits_a_palette():
    m = filled(np.resize(np.array([1, 2, 3], np.uint8), 512))
    assert m.write(7, 8, 200)
    m.validate()
    assert leaves(m) == {"palette": 1}
    assert m.write(8, 9, 201)           # a fifth does not
    m.validate()
    assert leaves(m) == {"byte": 1}
    assert (m[7], m[8], m[9]) == (200, 201, 1)


@pytest.mark.parametrize(("values", "kind"), [(2, "bitmap"), (4, "palette")])
def test_there_and_back(values, kind):
    """A page that gets a value of its own and loses it again leaves its block as small as it was."""
    m = filled(np.resize(np.arange(values, dtype=np.uint8), 512))
    bytes_before = m.nbytes
    for gfn in (7, 8, 300):
        assert m.or_(gfn, gfn + 1, 8)
        m.validate()
        assert leaves(m) == {"palette" if values == 2 else "byte": 1}
        assert m.and_(gfn, gfn + 1, 7)
        m.validate()
        assert leaves(m) == {kind: 1}
        assert m.nbytes == bytes_before


def test_encodings_become_small_again():
    a = np.resize(np.array([1, 2, 3, 4, 5], np.uint8), 512)
    m = filled(a)
    seen = []
    for gfn in range(1, 512):           # from the second page on, one by one, to two values
        m.write(gfn, gfn + 1, 1 + gfn % 2)
        m.validate()
        if leaves(m) not in seen:
            seen.append(leaves(m))
    assert seen[0] == {"byte": 1}
    assert seen[-1] == {"bitmap": 1}
    for gfn in range(512):              # and to one
        m.write(gfn, gfn + 1, 9)
        m.validate()
    assert leaves(m) == {}
    assert m.uniform(0, 512) == 9


def test_runs_grow_and_join():
    a = np.zeros(512, np.uint8)
    a[100:200], a[300:400] = 1, 2
    m = filled(a)
    assert leaves(m) == {"run": 1}
    for gfn, value in [(150, 3), (151, 3), (149, 3), (99, 1), (200, 1), (299, 2), (150, 1), (149, 1), (151, 1),
                       (511, 2), (510, 2), (511, 0), (510, 0), (1, 7), (2, 7), (1, 0), (2, 0)]:
        assert m.write(gfn, gfn + 1, value)
        a[gfn] = value
        m.validate()
        assert leaves(m) == {"run": 1}
        assert np.array_equal(m.to_numpy(0, 512), a)
    assert m.runs().tolist() == [(0, 99, 0), (99, 201, 1), (201, 299, 0), (299, 400, 2), (400, 512, 0)]
    for gfn in range(299, 400):         # the third value goes: two are a bitmap
        m.write(gfn, gfn + 1, 0)
        m.validate()
    assert leaves(m) == {"bitmap": 1}


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
