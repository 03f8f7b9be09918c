"""Another thread writes to an array between any two loads of it: each moment is tried, without luck (read_watch.py).

Which legal values a call uses then is nobody's promise. That it uses legal ones, or refuses, and that the map stays
sound, is. ``test_store_arguments_change.py`` does it with threads, and larger arrays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kvmattr import AttributeMap
from tests.read_watch import Watched, moments

PAGES = 1 << 16
COUNT = 130          # two groups of 64, and two
RANDOM = np.random.default_rng(1)
GFNS = RANDOM.choice(PAGES // 8 - 1, COUNT, replace=False) * 8       # 8 pages from each are no other's
VALUES = RANDOM.integers(0, 4, COUNT)
OUTSIDE = np.resize(np.array([PAGES, 0, 1 << 40, PAGES - 1, -1, 1 << 52, -(1 << 63), (1 << 63) - 1]), COUNT)
ILLEGAL = np.resize(np.array([256, 3, -1, 258, 1 << 40, 0]), COUNT)
CONTENT = RANDOM.integers(0, 4, PAGES).astype(np.uint8)
CONTENT[:PAGES // 2] = np.repeat(RANDOM.integers(0, 4, PAGES // 128), 64)

Call = Callable[[AttributeMap, np.ndarray], object]
#: A name: the array, what another thread writes over it, and the call.
CALLS: dict[str, tuple[np.ndarray, np.ndarray, Call]] = {}
for _type in (np.int64, np.uint64, np.int32):
    _gfns, _outside = GFNS.astype(_type), OUTSIDE.astype(_type)
    CALLS |= {
        f"{_type.__name__}, put": (_gfns, _outside, lambda m, a: m.put(a, VALUES)),
        f"{_type.__name__}, put of one value": (_gfns, _outside, lambda m, a: m.put(a, 1)),
        f"{_type.__name__}, take": (_gfns, _outside, lambda m, a: m.take(a)),
        f"{_type.__name__}, an index": (_gfns, _outside, lambda m, a: m[a]),
        f"{_type.__name__}, an assigned index": (_gfns, _outside, lambda m, a: m.__setitem__(a, 2)),
        f"{_type.__name__}, starts": (_gfns, _outside, lambda m, a: m.update_many(a, GFNS + 8, 1)),
        f"{_type.__name__}, stops": (_gfns + _type(8), _outside, lambda m, a: m.update_many(GFNS, a, VALUES)),
        f"{_type.__name__}, every other": (
            np.repeat(_gfns, 2), np.repeat(_outside, 2), lambda m, a: m.put(a[::2], VALUES)),
    }
#: The same, with the highest value that is legal: each cell is for pages of its own.
CELLS: dict[str, tuple[np.ndarray, np.ndarray, Call, int]] = {}
for _type in (np.int64, np.int16, np.uint8):
    _values, _illegal = VALUES.astype(_type), (ILLEGAL & 0xFF if _type is np.uint8 else ILLEGAL).astype(_type)
    CELLS |= {
        f"{_type.__name__}, values of put": (_values, _illegal, lambda m, a: m.put(GFNS, a), 255),
        f"{_type.__name__}, values of update_many": (
            _values, _illegal, lambda m, a: m.update_many(GFNS, GFNS + 8, a), 255),
        f"{_type.__name__}, operations": (_values % 3, _illegal % 3 if _type is np.uint8 else _illegal,
                                          lambda m, a: m.put(GFNS, VALUES, a), 2),
        f"{_type.__name__}, masks": (_values, _illegal, lambda m, a: m.put(GFNS, VALUES, 0, a), 255),
        f"{_type.__name__}, masks of update_many": (
            _values, _illegal, lambda m, a: m.update_many(GFNS, GFNS + 8, VALUES, 0, a), 255),
        f"{_type.__name__}, values of a range": (
            _values, _illegal, lambda m, a: m.__setitem__(slice(5, 5 + COUNT), a), 255),
        f"{_type.__name__}, values of an index": (_values, _illegal, lambda m, a: m.__setitem__(GFNS, a), 255),
        f"{_type.__name__}, from_numpy": (
            _values, _illegal, lambda m, a: m.__setitem__(slice(0, COUNT), AttributeMap.from_numpy(a)[0:COUNT]), 255),
    }


_uniform, _mixed = np.full(1500, 2, np.uint8), RANDOM.integers(0, 4, 1500).astype(np.uint8)
for _name, _first, _then in (("to mixed", _uniform, _mixed), ("to uniform", _mixed, _uniform),
                             ("to others", _uniform, _uniform ^ 1)):
    CELLS |= {
        f"a range at the end {_name}": (
            _first, _then, lambda m, a: m.__setitem__(slice(PAGES - 1500, PAGES), a), 255),
        f"from_numpy, {_name}": (
            _first, _then, lambda m, a: m.__setitem__(slice(0, 1500), AttributeMap.from_numpy(a)[0:1500]), 255),
    }


@pytest.mark.parametrize("name", CALLS)
def test_at_each_moment(name: str) -> None:
    array, over, call = CALLS[name]
    watched = Watched(array, over)
    m = AttributeMap.from_numpy(CONTENT)
    for moment in moments(watched, lambda a: call(AttributeMap.from_numpy(CONTENT), a)):
        changed = m.copy()
        refused = ""
        try:
            watched.during(lambda a: call(changed, a), moment)      # noqa: B023 - called here
        except (IndexError, ValueError, OverflowError) as refusal:
            refused = str(refusal)
        assert refused == "" or any(why in refused for why in (
            "outside", "need 0 <= start", "operation", "changed while they were read")), refused
        changed.validate()
        assert changed.values().max() <= 3


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_used_as_they_were_read(name: str) -> None:
    """Each page is as the one or the other writes it, and what is illegal is refused, whatever its low bits are."""
    array, over, call, highest = CELLS[name]
    watched = Watched(array, over)
    m = AttributeMap.from_numpy(CONTENT)
    right, other = m.copy(), m.copy()
    call(right, array)
    call(other, np.where((over >= 0) & (over <= highest), over, array))
    for moment in moments(watched, lambda a: call(m.copy(), a)):
        changed = m.copy()
        refused = ""
        try:
            watched.during(lambda a: call(changed, a), moment)      # noqa: B023 - called here
        except ValueError as refusal:
            refused = str(refusal)
            assert any(why in refused for why in ("outside 0..255", "is none of WRITE", "changed while they were read"))
        changed.validate()
        values = changed.to_numpy(0, PAGES)
        wanted = [CONTENT] if refused else [right.to_numpy(0, PAGES), other.to_numpy(0, PAGES)]
        assert np.logical_or.reduce([values == each for each in wanted]).all()


def test_a_bitmap() -> None:
    bits = RANDOM.integers(0, 1 << 62, COUNT).astype(np.uint64)
    watched = Watched(bits, ~bits)
    m = AttributeMap.from_numpy(CONTENT)

    def call(changed: AttributeMap, a: np.ndarray) -> None:
        changed.put_bitmap(64, a, 1)
        changed.validate()

    for moment in moments(watched, lambda a: call(m.copy(), a)):
        changed = m.copy()
        watched.during(lambda a: call(changed, a), moment)          # noqa: B023 - called here
        assert np.array_equal(changed.to_numpy(0, 64), CONTENT[:64])
        assert np.array_equal(changed.to_numpy(64 + 64 * COUNT, PAGES), CONTENT[64 + 64 * COUNT:])


def test_bytes_of_a_map() -> None:
    """What was summed up is what is read, or it is refused."""
    small = AttributeMap.from_numpy(CONTENT[:2000])
    other = AttributeMap.from_numpy(CONTENT[2000:4000])
    data, over = (np.frombuffer(each.to_bytes(), np.uint8) for each in (small, other))
    length = min(data.size, over.size)
    over = np.concatenate([over[:length], data[length:]])
    watched = Watched(data, over)
    for moment in moments(watched, AttributeMap.from_bytes):
        try:
            read = watched.during(AttributeMap.from_bytes, moment)
        except ValueError:
            continue
        assert isinstance(read, AttributeMap)
        read.validate()
        assert read in (small, other)
