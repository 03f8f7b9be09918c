"""What Python sees of a map: length, what it refuses to be, and which arguments go by keyword."""

import inspect

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation

EVERYTHING = 2**52


def test_length_is_the_number_of_pages(Map):
    assert len(Map(1)) == 1
    assert len(Map(12345)) == 12345


def test_defaults_of_the_constructor(WideMap):
    m = WideMap()
    assert len(m) == EVERYTHING
    assert m.uniform(0, EVERYTHING) == 0
    assert WideMap(npages=10, default=3).runs().tolist() == [(0, 10, 3)]


def test_nobody_walks_all_pages_by_accident(Map):
    m = Map(10)
    with pytest.raises(TypeError, match="not iterable"):
        iter(m)
    with pytest.raises(TypeError, match=r"container|find\(\)"):
        assert 3 in m
    with pytest.raises(TypeError, match="unhashable"):
        hash(m)
    with pytest.raises(TypeError, match="to_numpy"):
        np.asarray(m)
    with pytest.raises(TypeError, match="to_numpy"):
        np.array(m, dtype=np.uint8)
    for name in ("__iter__", "__contains__", "__hash__"):
        assert getattr(Map, name) is None


def test_negative_gfns_do_not_count_from_the_end(Map):
    m = Map(10)
    with pytest.raises(IndexError, match="-1"):
        m[-1]
    with pytest.raises(ValueError, match="-3"):
        m[-3:]
    with pytest.raises(ValueError, match="-3"):
        m[0:-3] = 1
    with pytest.raises(IndexError, match="-1"):
        m[-1] = 0


def test_slices_have_step_one_and_are_not_clamped(Map):
    m = Map(10)
    assert m[2:4:1].tolist() == [0, 0]
    for wrong in (
        slice(0, 10, 2),
        slice(0, 10, -1),
        slice(10, 0, -1),
        slice(0, 11),
        slice(5, 4),
        slice(11, 11),
    ):
        with pytest.raises(ValueError, match=r"\d"):
            m[wrong]
        with pytest.raises(ValueError, match=r"\d"):
            m[wrong] = 1
        with pytest.raises(ValueError, match=r"\d"):
            del m[wrong]
    assert m.run_count == 1


def test_truth_is_not_a_walk_either(WideMap):
    assert bool(WideMap())


def test_keywords(Map):
    """operation, mask, out, stop and npages are promised by keyword."""
    m = Map(1000)
    m.update(0, 10, 3, operation=Operation.OR, mask=1)
    m.update_many(np.array([20]), np.array([30]), 3, operation=Operation.OR, mask=2)
    m.put(np.array([40]), 3, operation=Operation.WRITE, mask=3)
    m.put_bitmap(50, np.array([1], dtype=np.uint8), 3, operation=Operation.OR, mask=3, npages=1)
    assert [m.get(gfn) for gfn in (0, 20, 40, 50)] == [1, 2, 3, 3]
    assert m.find(0, 2, mask=2, stop=1000) == 20
    assert m.count(0, 1000, 1, mask=1) == 12
    assert m.all(0, 10, 1, mask=1)
    assert m.any(0, 10, 1, mask=1)
    assert len(bytes(m.bitmap(0, 1000, mask=1))) == 125
    assert m.runs(5, stop=15).tolist() == [(5, 10, 1), (10, 15, 0)]
    assert m.values(0, stop=10).tolist() == [1]
    out = np.empty(10, dtype=np.uint8)
    m.to_numpy(0, 10, out=out)
    assert m.take(np.arange(10), out=out) is out


def test_numpy_integers_are_integers(Map):
    m = Map(1000)
    for kind in (np.uint8, np.int16, np.uint32, np.int64, np.uint64):
        m.write(kind(1), kind(3), kind(5))
        m[kind(7)] = kind(9)
        assert m.get(kind(2)) == m[kind(1)] == 5
        assert m.run(kind(7)) == (7, 8, 9)
        assert m.count(kind(0), kind(100), kind(5)) == 2
        m.clear()


def test_the_store_is_final():
    with pytest.raises(TypeError, match="AttributeMap"):
        type("Wrong", (AttributeMap,), {})


def test_the_store_documents_itself():
    for name, method in inspect.getmembers(AttributeMap):
        if not name.startswith("_"):
            assert method.__doc__, f"{name} has no docstring"


def test_stats_and_nbytes():
    m = AttributeMap(2**24)
    assert type(m.nbytes) is int
    assert m.nbytes <= 16384
    stats = m.stats()
    assert type(stats) is dict
    assert all(type(key) is str for key in stats)
    m[np.arange(0, 2**20, 2)] = 1
    assert m.nbytes > 2**20 // 8


def test_bytes_come_back_when_pages_go_uniform():
    """The tree that a test builds ends empty: what is live is what it was."""
    m = AttributeMap(2**30)
    before = m.nbytes
    random = np.random.default_rng(1)
    m.put(random.integers(0, 2**30, 20_000, dtype=np.uint64), random.integers(1, 9, 20_000, dtype=np.uint8))
    assert m.nbytes > before
    kept = m.snapshot()
    m.clear()
    assert kept.run_count > 20_000
    kept.validate()
    del kept
    m.validate()
    assert m.nbytes == before
    gfns = random.integers(0, 2**30, 20_000, dtype=np.uint64)
    m.put(gfns, 3)
    m.put(gfns, 0)
    m.update(0, 2**30, 0, Operation.AND, 0xFF)
    m.validate()
    assert m.nbytes == before


def test_a_snapshot_costs_nothing_until_a_page_changes():
    m = AttributeMap(2**24)
    m[0 : 2**20] = np.resize(np.array([0, 1], dtype=np.uint8), 2**20)
    before = m.nbytes
    kept = [m.snapshot() for _ in range(100)]
    assert m.nbytes <= before + 100 * 512
    for snapshot in kept:
        assert snapshot == m
