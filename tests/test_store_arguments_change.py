"""Another thread writes to the arrays that a call was given, while it runs without the GIL.

Which legal values the call uses then is nobody's promise. That it uses legal ones, and that the map stays sound, is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation

PAGES = 1 << 20
COUNT = 1 << 20         # milliseconds without the GIL, in which some thousand cells are changed
ROUNDS = 8

# What is written over a right cell: outside the map in every way, and right ones elsewhere.
HOSTILE = np.array([0, PAGES - 1, PAGES, 1 << 40, (1 << 52) - 1, 1 << 52, 1 << 63, (1 << 64) - 1, 511, 512], np.uint64)


@contextmanager
def changed_meanwhile(*arrays: np.ndarray) -> Iterator[None]:
    """Threads that write hostile cells to arrays and mend them at once, over and over, until the end of the block."""
    stop = threading.Event()

    def change(array: np.ndarray, seed: int) -> None:
        random = np.random.default_rng(seed)
        places = random.integers(0, array.size, 4096).tolist()
        bad = HOSTILE.view(np.int64).astype(array.dtype).tolist()
        while not stop.is_set():
            # A few cells at a time, so that the check before a call mostly finds nothing, and the call may.
            for number, at in enumerate(places):
                good = array[at]
                array[at] = bad[number % len(bad)]
                array[at] = good

    threads = [threading.Thread(target=change, args=(array, seed)) for seed, array in enumerate(arrays)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def tried(call: Callable[[], object]) -> None:
    """Call it; arrays that are hostile at the moment of the check are refused, and nothing else may happen."""
    refused = ""
    try:
        call()
    except (IndexError, ValueError) as refusal:
        refused = str(refusal)
    assert refused == "" or "outside" in refused or "need 0 <= start" in refused


def a_map() -> AttributeMap:
    m = AttributeMap(PAGES)
    random = np.random.default_rng(1)
    m[0:PAGES // 2] = random.integers(0, 2, PAGES // 2).astype(np.uint8)
    m[PAGES // 2:PAGES - 1024] = random.integers(0, 16, PAGES // 2 - 1024).astype(np.uint8)
    return m


@pytest.mark.parametrize("snapshot", [False, True])
def test_put(snapshot: bool) -> None:
    m = a_map()
    gfns = np.random.default_rng(2).integers(0, PAGES, COUNT).astype(np.uint64)
    values = np.random.default_rng(3).integers(0, 2, COUNT).astype(np.uint8)
    operations = np.arange(COUNT) % 3
    with changed_meanwhile(gfns, values):
        for _ in range(ROUNDS):
            kept = m.snapshot() if snapshot else None
            tried(lambda: m.put(gfns, values))
            tried(lambda: m.put(gfns, 1, Operation.OR))
            tried(lambda: m.put(gfns, values, operations, values))
            del kept
            m.validate()


def test_update_many() -> None:
    m = a_map()
    starts = np.random.default_rng(2).integers(0, PAGES - 600, COUNT // 8).astype(np.uint64)
    stops = starts + np.random.default_rng(3).integers(0, 600, COUNT // 8).astype(np.uint64)
    values = np.random.default_rng(4).integers(0, 4, COUNT // 8).astype(np.uint8)
    with changed_meanwhile(starts, stops, values):
        for _ in range(3):
            tried(lambda: m.update_many(starts, stops, values))
            m.validate()


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_take(dtype: type) -> None:
    m = a_map()
    gfns = np.random.default_rng(2).integers(0, PAGES, COUNT).astype(dtype)
    out = np.zeros(COUNT, np.uint8)     # untouched where all takes are refused
    with changed_meanwhile(gfns):
        for _ in range(3 * ROUNDS):
            tried(lambda: m.take(gfns))
            tried(lambda: m.take(gfns, out=out))
            assert out.max() < 16


def test_put_bitmap() -> None:
    m = a_map()
    bits = np.random.default_rng(2).integers(0, 1 << 63, PAGES // 64).astype(np.uint64)
    with changed_meanwhile(bits):
        for _ in range(ROUNDS):
            tried(lambda: m.put_bitmap(0, bits, 1))
            tried(lambda: m.put_bitmap(64, bits[:-2], 3))
            m.validate()


def test_a_range_from_an_array() -> None:
    m = a_map()
    values = np.random.default_rng(2).integers(0, 2, PAGES).astype(np.uint8)
    with changed_meanwhile(values):
        for _ in range(ROUNDS):
            m[0:PAGES] = values
            m[3:PAGES - 5] = values[3:PAGES - 5]
            m.validate()


def test_bytes_of_a_map() -> None:
    whole = a_map()
    sound = np.frombuffer(whole.to_bytes(), np.uint8)
    data = sound.copy()
    with changed_meanwhile(data):
        for _ in range(ROUNDS):
            try:
                read = AttributeMap.from_bytes(data)
            except ValueError:
                continue
            assert read == whole
            read.validate()


def unaligned(cells: np.ndarray) -> np.ndarray:
    """The same cells, one byte beside where the processor would like them."""
    moved = np.frombuffer(b"\0" + cells.tobytes(), np.uint8)[1:].view(cells.dtype)
    assert not moved.flags.aligned
    return moved


def test_unaligned_arrays() -> None:
    m, n = a_map(), a_map()
    gfns = np.arange(0, 5000, 3).astype(np.uint64)
    assert np.array_equal(m.take(unaligned(gfns)), m.take(gfns))
    assert m.put(unaligned(gfns), 7) == n.put(gfns, 7)
    assert m.update_many(unaligned(gfns), unaligned(gfns + np.uint64(2)), 3) == n.update_many(gfns, gfns + 2, 3)
    assert m == n


def test_out_may_lie_over_the_gfns() -> None:
    m = a_map()
    gfns = np.random.default_rng(5).integers(0, PAGES, 5000).astype(np.uint64)
    want = m.take(gfns.copy())
    out = gfns.view(np.uint8)[:5000]
    assert m.take(gfns, out=out) is out
    assert np.array_equal(out, want)


def test_an_out_that_lies_about_itself() -> None:
    class Liar(np.ndarray):
        size = property(lambda self: 100_000)  # type: ignore[assignment]
        dtype = property(lambda self: np.dtype(np.uint8))  # type: ignore[assignment]

    m = a_map()
    liar = np.zeros(8, np.uint8).view(Liar)
    with pytest.raises(ValueError, match=r"^out has 8 cells: need 100000$"):
        m.take(np.zeros(100_000, np.uint64), out=liar)
    with pytest.raises(ValueError, match=r"^out has 8 cells: need 100000$"):
        m.to_numpy(0, 100_000, out=liar)
    with pytest.raises(TypeError, match=r"^out must be a uint8 array, not float64$"):
        m.to_numpy(0, 8, out=np.zeros(8).view(Liar))


class Shrinks:
    """Becomes an array, and meanwhile gives another array's memory back; another thread may do the same."""

    def __init__(self, other: np.ndarray, becomes: np.ndarray) -> None:
        self.other, self.becomes = other, becomes

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        self.other.resize(1, refcheck=False)
        return self.becomes


def gfns_to_shrink() -> np.ndarray:
    return np.zeros(100_000, np.uint64)


def test_an_array_whose_size_is_another_while_it_is_used() -> None:
    m = a_map()
    m[0] = 0
    before = m.copy()
    became = r"^an array of 800000 bytes became one of 8 while it was used$"
    values = np.zeros(100_000, np.uint8)
    ends = gfns_to_shrink() + np.uint64(1)
    calls: tuple[Callable[[np.ndarray], object], ...] = (
        lambda gfns: m.put(gfns, Shrinks(gfns, values)),
        lambda gfns: m.put(gfns, 1, Shrinks(gfns, values)),
        lambda gfns: m.put(gfns, values, 0, Shrinks(gfns, values)),
        lambda gfns: m.update_many(gfns, Shrinks(gfns, ends), 1),
        lambda gfns: m.update_many(gfns, ends, Shrinks(gfns, values)))
    for call in calls:
        with pytest.raises(ValueError, match=became):
            call(gfns_to_shrink())
    stops = gfns_to_shrink() + np.uint64(1)
    with pytest.raises(ValueError, match=became):
        m.update_many(gfns_to_shrink(), stops, Shrinks(stops, values))
    # What was held before is held again after each that had to become an array: here it has one cell by then.
    assert m.put(gfns_to_shrink(), values, 0, Shrinks(values, np.full(100_000, 0xff, np.uint8))) == 0
    assert values.size == 1
    assert m == before
    m.validate()


def test_an_out_that_shrinks_the_gfns() -> None:
    class Out:
        """Says that it is an array, which numpy asks of its class."""

        @property
        def __class__(self) -> type:  # type: ignore[override]
            gfns.resize(1, refcheck=False)
            return np.ndarray

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            return np.zeros(100_000, np.uint8)

    m = a_map()
    gfns = gfns_to_shrink()
    with pytest.raises(ValueError, match=r"^an array of 800000 bytes became one of 8 while it was used$"):
        m.take(gfns, out=Out())  # type: ignore[arg-type]


class Counts:
    """One for all: an integer whose reading gives another array's memory back."""

    def __init__(self, other: np.ndarray, value: int) -> None:
        self.other, self.value = other, value

    def __index__(self) -> int:
        self.other.resize(1, refcheck=False)
        return self.value


class HasNoDimension(Counts):
    """The same, when it is asked for its dimensions."""

    @property
    def ndim(self) -> int:
        self.other.resize(1, refcheck=False)
        return 0

    def __index__(self) -> int:
        return self.value


@pytest.mark.parametrize("kind", [Counts, HasNoDimension])
@pytest.mark.parametrize("count", [20, 100_000])
def test_an_integer_that_shrinks_the_arrays(kind: Any, count: int) -> None:
    m = a_map()
    before = m.copy()
    values = np.zeros(count, np.uint8)
    became = rf"^an array of {8 * count} bytes became one of 8 while it was used$"
    calls: list[Callable[[Any, Any], int]] = [
        lambda gfns, stops: m.put(gfns, kind(gfns, 1)),
        lambda gfns, stops: m.put(gfns, 1, kind(gfns, 0)),
        lambda gfns, stops: m.put(gfns, 1, 0, kind(gfns, 0xFF)),
        lambda gfns, stops: m.put(gfns, values, kind(gfns, 0)),
        lambda gfns, stops: m.put(gfns, values, 0, kind(gfns, 0xFF)),
        lambda gfns, stops: m.update_many(gfns, stops, kind(gfns, 1)),
        lambda gfns, stops: m.update_many(gfns, stops, kind(stops, 1)),
        lambda gfns, stops: m.update_many(gfns, stops, values, 0, kind(stops, 1)),
    ]
    for call in calls:
        gfns = np.arange(count, dtype=np.uint64) % np.uint64(len(m))
        with pytest.raises(ValueError, match=became):
            call(gfns, gfns + np.uint64(1))
    gfns = np.zeros(count, np.uint64)
    assert m.put(gfns, values, 0, kind(values, 0)) == 0     # the one cell that is left is for all
    assert values.size == 1
    assert m == before
    m.validate()


class Strides(Counts):
    """An integer whose reading makes all cells of another array its first."""

    def __index__(self) -> int:
        self.other.strides = (0,)
        return self.value


@pytest.mark.filterwarnings("ignore:Setting the strides:DeprecationWarning")
def test_an_integer_that_changes_the_strides_of_an_array() -> None:
    m = a_map()
    before = m.copy()
    values = np.full(20, 7, np.uint8)
    calls: list[Callable[[Any, Any], int]] = [
        lambda gfns, stops: m.put(gfns, Strides(gfns, 1)),
        lambda gfns, stops: m.put(gfns, values, 0, Strides(gfns, 0xFF)),
        lambda gfns, stops: m.update_many(gfns, stops, 1, 0, Strides(gfns, 0xFF)),
        lambda gfns, stops: m.update_many(gfns, stops, Strides(stops, 1)),
    ]
    for call in calls:
        gfns = np.arange(20, dtype=np.uint64)
        with pytest.raises(ValueError, match=r"^ndarray is not C-contiguous$"):
            call(gfns, gfns + np.uint64(1))
        assert m == before


def test_an_out_that_shrinks_the_gfns_when_it_becomes_an_array() -> None:
    """It is looked at twice: what it says, and then the memory of what it becomes."""

    class Out:
        asked = 0

        @property
        def __class__(self) -> type:  # type: ignore[override]
            return np.ndarray

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            self.asked += 1
            if self.asked == 2:
                gfns.resize(1, refcheck=False)
            return np.zeros(100_000, np.uint8)

    m = a_map()
    gfns = gfns_to_shrink()
    with pytest.raises(ValueError, match=r"^an array of 800000 bytes became one of 8 while it was used$"):
        m.take(gfns, out=Out())  # type: ignore[arg-type]


def test_arrays_of_two_dimensions_broadcast() -> None:
    m = AttributeMap(100)
    assert m.put([[1, 2, 3], [4, 5, 6]], [[1], [2]]) == 6
    assert m.to_numpy(0, 8).tolist() == [0, 1, 1, 1, 2, 2, 2, 0]
    assert m.put(np.array([[1, 2, 3], [4, 5, 6]]), [4, 8, 16], Operation.OR, [[0xff], [8]]) == 4
    assert m.to_numpy(0, 8).tolist() == [0, 5, 9, 17, 2, 10, 2, 0]
    assert m.update_many([[10], [20]], [[15], [25]], [[1, 2]]) == 4
    assert m[12] == m[22] == 2
    assert m.put(np.array([[1, 2]], dtype=object), [[0], [3]]) == 4
    assert m.to_numpy(0, 3).tolist() == [0, 3, 3]
    with pytest.raises(IndexError, match=r"^gfn -1 is outside \[0, 100\)$"):
        m.put([[1, -1]], 1)
    with pytest.raises(ValueError, match=r"^lengths do not broadcast: gfns \(2, 3\), attributes \(2,\)$"):
        m.put([[1, 2, 3], [4, 5, 6]], [1, 2])


def test_bits_of_any_memoryview() -> None:
    m = AttributeMap(100)
    assert m.put_bitmap(0, memoryview(b"\x05\xff\x01\xff")[::2], 3) == 3
    assert m.to_numpy(0, 10).tolist() == [3, 0, 3, 0, 0, 0, 0, 0, 3, 0]
