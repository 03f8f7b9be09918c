"""What Python programs hand to a map: lists of mixed integers, ranges, Series, bytes; and each is read once."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation
from kvmattr.memslots import SplittingBaseline


def a_map() -> AttributeMap:
    m = AttributeMap(1000)
    m[10:20] = 3
    return m


@pytest.mark.parametrize("gfns", [
    [5, 15],
    range(5, 16, 10),
    array("Q", [5, 15]),
    memoryview(array("q", [5, 15])),
    [np.uint64(5), 15],                 # numpy alone would make floats of these
    [np.uint64(5), np.int8(15)],
    np.array([5, np.uint64(15)], dtype=object),
], ids=str)
def test_every_kind_of_gfns(gfns: object) -> None:
    m = a_map()
    assert m.take(gfns).tolist() == m[gfns].tolist() == [0, 3]      # type: ignore[call-overload,arg-type]
    m[gfns] = 7         # type: ignore[index]
    assert m.put(gfns, [1, 2]) == 2     # type: ignore[arg-type]
    assert m.update_many(gfns, [6, np.uint64(16)], [np.uint64(3), 4]) == 2      # type: ignore[arg-type]
    assert (m[5], m[15], m[14]) == (3, 4, 3)
    del m[gfns]         # type: ignore[arg-type]
    assert m.take(gfns).tolist() == [0, 0]      # type: ignore[arg-type]


def test_columns_of_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    m = a_map()
    frame = m.to_frame()
    assert m[frame["start"]].tolist() == [0, 3, 0]
    m[pandas.Index([1, 2])] = pandas.Series([5, 6])
    assert (m[1], m[2]) == (5, 6)
    assert AttributeMap.from_runs(frame) == a_map()
    with pytest.raises(ValueError, match=r"^runs lack the fields attributes: need start, stop, attributes$"):
        AttributeMap.from_runs(frame[["start", "stop"]])


@pytest.mark.parametrize("key", [
    None, ..., 1.0, "1", b"1", bytearray(b"1"), (1, 2), (), np.float64(1), np.True_, {1}], ids=repr)
def test_what_is_no_index(key: object) -> None:
    m = a_map()
    text = rf"^index must be an integer, a slice or an array of integers, not {type(key).__name__}$"
    for call in (m.__getitem__, lambda key: m.__setitem__(key, 1), m.__delitem__):
        with pytest.raises(TypeError, match=text):
            call(key)   # type: ignore[operator]
    assert m == a_map()


@pytest.mark.parametrize(("gfns", "kind"), [
    (None, "NoneType"), ({1, 2}, "set"), ([1, None], "NoneType"), ([1, 2.5], "float"), ([1, "2"], "<U21"),
    (np.array([1, 2.5], dtype=object), "float"), ([2.5, 1 << 70], "float"), (np.array([1.0]), "float64"),
], ids=repr)
def test_what_is_no_integer_is_named(gfns: object, kind: str) -> None:
    m = a_map()
    for call in (m.take, lambda gfns: m.put(gfns, 1), lambda gfns: m.update_many(gfns, 20, 1)):
        with pytest.raises(TypeError, match=rf"^(gfns|starts) must be integers, not {kind}$"):
            call(gfns)      # type: ignore[operator]
    assert m == a_map()


def test_an_object_that_is_an_integer_is_an_index() -> None:
    class Gfn:
        def __index__(self) -> int:
            return 15

    m = a_map()
    assert m[Gfn()] == 3        # type: ignore[call-overload]
    m[Gfn()] = 9
    assert m.run(15) == (15, 16, 9)
    del m[Gfn()]
    assert m[15] == 0
    assert m[np.array(12)].shape == ()      # an array without dimensions is one, as in take


def test_an_array_of_another_library_is_an_array() -> None:
    class Tensor:
        def __init__(self, *numbers: int) -> None:
            self.numbers = numbers

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return np.array(self.numbers)

        def __index__(self) -> int:
            if len(self.numbers) > 1:
                raise TypeError("only tensors of one element are an index")
            return self.numbers[0]

    m = a_map()
    assert m[Tensor(5, 15)].tolist() == [0, 3]      # type: ignore[call-overload]
    m[Tensor(5, 15)] = Tensor(1, 2)     # type: ignore[assignment]
    assert (m[5], m[15], m.get(Tensor(15))) == (1, 2, 2)


def test_bytes_are_values() -> None:
    m = a_map()
    m[1:4] = b"\1\2\3"
    assert m[0:5].tobytes() == b"\0\1\2\3\0"
    assert m.put([5, 6], b"\7\7", Operation.OR, b"\1\2") == 2
    assert m[5:7].tobytes() == b"\1\2"
    assert AttributeMap.from_numpy(b"\1\1\2").runs().tolist() == [(0, 2, 1), (2, 3, 2)]
    with pytest.raises(ValueError, match=r"^cannot write an array of shape \(2,\) to a range of 3 pages$"):
        m[1:4] = b"ab"


def test_a_map_is_not_walked_backwards() -> None:
    with pytest.raises(TypeError, match="not reversible"):
        reversed(a_map())       # type: ignore[call-overload]


def test_a_bitmap_with_a_value_for_each_bit() -> None:
    m = AttributeMap(1000)
    assert m.put_bitmap(0, b"\x0f", [1, 2, 3, 4], npages=4) == 4
    assert m.put_bitmap(8, b"\xff", [7]) == 8       # one value for all bits, as everywhere
    assert m.put_bitmap(16, b"\x05", np.uint8([[9]]), npages=1 << 70) == 2
    assert m[0:20].tolist() == [1, 2, 3, 4, 0, 0, 0, 0] + [7] * 8 + [9, 0, 9, 0]
    before = m.copy()
    for arguments, npages, text in (
        ((0, b"\x0f", [1] * 8), 4, r"^lengths do not broadcast: npages 4, attributes, operation, mask \(8,\)$"),
        ((0, b"\xff", [1] * 4), None, r"^bit 7 is set beyond npages 4$"),
        ((996, b"\xff", [1] * 8), None, r"^bit 7 is set: gfn 1003 is outside \[0, 1000\)$"),
        ((0, b"\xff", [1] * 8), -(1 << 70), r"^npages -1180591620717411303424: need 0 or more$"),
    ):
        with pytest.raises(ValueError, match=text):
            m.put_bitmap(*arguments, npages=npages)     # type: ignore[arg-type]
    assert m == before


@pytest.mark.parametrize("Kind", [AttributeMap, SplittingBaseline])
def test_integers_that_change_the_array_when_they_are_compared(Kind: type) -> None:
    """As another thread may between any two looks at an array. Red where an array is looked at twice."""
    class Meddling(int):
        def __lt__(self, other: object) -> bool:
            for cells in values, operations, masks:
                cells[:] = 258
            return False

        __gt__ = __le__ = __ge__ = __lt__

    m = Kind(1000)
    values, operations, masks = (np.empty(2, dtype=object) for _ in range(3))
    for number, cells in zip((3, 1, 3), (values, operations, masks), strict=True):
        cells[:] = Meddling(number)
    assert m.update_many([1, 4], [2, 5], values, operations, masks) == 2
    if Kind is AttributeMap:
        values[:] = operations[:] = Meddling(1)
        assert m.put([6, 7], values, operations) == 2
        values[:] = Meddling(2)
        m[8:10] = values
        m.validate()
        assert m[5:11].tolist() == [0, 1, 1, 2, 2, 0]
    assert m.runs(0, 6).tolist() == [(0, 1, 0), (1, 2, 3), (2, 4, 0), (4, 5, 3), (5, 6, 0)]
