"""get, take, to_numpy, bitmap, uniform, all, any, count, values: answers are exact, whatever is stored."""

import subprocess
import sys

import numpy as np
import pytest

from kvmattr import AttributeMap

EVERYTHING = 2**52


@pytest.fixture
def mixed(Map):
    """Blocks of each kind side by side, and the pages they hold."""
    n = 4096
    pages = np.zeros(n, dtype=np.uint8)
    pages[512:1024] = np.resize([0, 1], 512)
    pages[1024:1536] = np.resize([1, 2, 4, 1, 1], 512)
    pages[1536:2048] = np.arange(512) // 2
    pages[2048:3072] = 0xFF
    pages[3073:3080] = 3
    pages[4095] = 9
    m = Map(n)
    m[0:n] = pages
    return m, pages


RANGES = [
    (0, 4096),
    (0, 512),
    (511, 513),
    (512, 1024),
    (513, 1023),
    (600, 1600),
    (1536, 2048),
    (2048, 3072),
    (2000, 3100),
    (3072, 4096),
    (4095, 4096),
    (4000, 4095),
    (576, 640),
    (577, 639),
]


def test_get_take_and_to_numpy_agree(mixed):
    m, pages = mixed
    assert [m.get(gfn) for gfn in range(4096)] == pages.tolist()
    assert [m[gfn] for gfn in range(0, 4096, 37)] == pages[::37].tolist()
    assert type(m.get(4095)) is int
    gfns = np.random.default_rng(1).integers(0, 4096, 3000)
    assert np.array_equal(m.take(gfns), pages[gfns])
    assert np.array_equal(m[gfns], pages[gfns])
    for start, stop in RANGES:
        got = m.to_numpy(start, stop)
        assert got.dtype == np.uint8
        assert np.array_equal(got, pages[start:stop])
        assert np.array_equal(m[start:stop], pages[start:stop])
    assert np.array_equal(m[:], pages)


def test_attributes_are_the_interpreters_own_integers():
    """Each is counted when it is handed out, and nothing of it is changed."""
    m = AttributeMap(256)
    m[:] = np.arange(256)
    counted = [sys.getrefcount(m.get(gfn)) for gfn in range(256)]
    for gfn in range(256):
        for _ in range(1000):
            m.get(gfn)
    assert [m.get(gfn) for gfn in range(256)] == list(range(256))
    # Others have references to these integers too, but not a thousand more.
    assert all(abs(sys.getrefcount(m.get(gfn)) - before) < 500 for gfn, before in enumerate(counted))
    script = "import sys; before = sys.getrefcount(5); import kvmattr; print(sys.getrefcount(5) - before < 10000)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64, ">u8", ">i4"])
def test_gfns_may_be_of_any_integer_type_and_stride(mixed, dtype):
    m, pages = mixed
    gfns = (np.arange(0, 250) % 128).astype(dtype)
    assert np.array_equal(m.take(gfns), pages[gfns.astype(int)])
    assert np.array_equal(m.take(gfns[::-3]), pages[gfns[::-3].astype(int)])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65])
def test_take_of_every_small_number_of_pages(mixed, count):
    """Kernels work in groups of lanes: the last group is a partial one."""
    m, pages = mixed
    gfns = np.linspace(500, 4095, count).astype(np.uint64)
    got = m.take(gfns)
    assert got.dtype == np.uint8
    assert got.shape == (count,)
    assert np.array_equal(got, pages[gfns])


def test_out_is_filled_and_returned(mixed):
    m, pages = mixed
    out = np.full(20, 77, dtype=np.uint8)
    assert m.take(np.arange(510, 520), out=out[5:15]) is not None
    assert out[:5].tolist() == out[15:].tolist() == [77] * 5
    assert np.array_equal(out[5:15], pages[510:520])
    whole = np.empty(4096, dtype=np.uint8)
    assert m.to_numpy(0, 4096, out=whole) is whole
    assert np.array_equal(whole, pages)
    assert m.take(np.arange(4096), whole) is whole


@pytest.mark.parametrize("mask", [0xFF, 1, 2, 0x80, 0xFE, 0])
def test_range_questions_agree_with_the_pages(mixed, mask):
    m, pages = mixed
    for start, stop in RANGES:
        part = pages[start:stop]
        assert np.array_equal(
            np.frombuffer(bytes(m.bitmap(start, stop, mask)), np.uint8),
            np.packbits(part & mask != 0, bitorder="little"),
        )
        assert m.values(start, stop).tolist() == np.unique(part).tolist()
        for attributes in (0, 1, 2, 3, 4, 0xFF, 0x80, 0xFE):
            matching = (part & mask) == attributes
            assert m.count(start, stop, attributes, mask) == np.count_nonzero(matching)
            assert m.all(start, stop, attributes, mask) is bool(matching.all())
            assert m.any(start, stop, attributes, mask) is bool(matching.any())
            first = np.flatnonzero(matching)
            assert m.find(start, attributes, mask=mask, stop=stop) == (start + first[0] if first.size else -1)


def test_uniform_is_the_value_or_none(mixed):
    m, pages = mixed
    for start, stop in RANGES:
        distinct = np.unique(pages[start:stop])
        assert m.uniform(start, stop) == (int(distinct[0]) if len(distinct) == 1 else None)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 511, 513])
def test_bitmap_pads_with_zeros(Map, n):
    m = Map(1024, 0xFF)
    for start in (0, 3, 500):
        packed = bytes(m.bitmap(start, start + n))
        assert len(packed) == (n + 7) // 8
        assert int.from_bytes(packed, "little") == (1 << n) - 1


def test_empty_ranges_have_answers(Map):
    m = Map(1000, 3)
    for at in (0, 1, 512, 1000):
        assert m.count(at, at, 3) == 0
        assert m.all(at, at, 5) is True
        assert m.any(at, at, 3) is False
        assert m.uniform(at, at) is None
        assert m.find(at, 3, stop=at) == -1
        assert m.values(at, at).tolist() == []
        assert m.values(at, at).dtype == np.uint8
        assert m.runs(at, at).tolist() == []
        assert list(m.iter_runs(at, at)) == []
        assert m.to_numpy(at, at).tolist() == []
        assert bytes(m.bitmap(at, at)) == b""
    assert m.find(1000, 3) == -1
    assert m.take(np.empty(0, dtype=np.uint64)).tolist() == []


def test_values_are_looked_at_again_after_loose_updates(Map):
    """Single-page updates that bring a block back to one value must not leave a stale summary behind."""
    m = Map(2**18)
    for gfn in range(0, 2000, 3):
        m[gfn] = 5
    for gfn in range(0, 2000, 3):
        m[gfn] = 0
    assert m.values().tolist() == [0]
    assert m.uniform(0, 2**18) == 0
    assert m.any(0, 2**18, 5) is False
    assert m.all(0, 2**18, 0) is True
    assert m.or_(0, 2**18, 0) is False
    m.validate()
    assert m.run_count == 1


def test_questions_about_everything(WideMap):
    m = WideMap()
    assert m.count(0, EVERYTHING, 0) == EVERYTHING
    m[2**51 + 12345] = 6
    assert m.count(0, EVERYTHING, 0) == EVERYTHING - 1
    assert m.count(0, EVERYTHING, 0, 1) == EVERYTHING
    assert m.find(0, 6) == 2**51 + 12345
    assert m.find(2**51 + 12346, 6) == -1
    assert m.find(0, 4, mask=4) == 2**51 + 12345
    assert m.values().tolist() == [0, 6]
    assert m.all(0, EVERYTHING, 0, 1) is True
    assert m.all(0, EVERYTHING, 0, 3) is False
    assert m.any(0, 2**51, 6) is False
    assert m.uniform(0, EVERYTHING) is None
    assert m.uniform(2**51 + 12346, EVERYTHING) == 0
