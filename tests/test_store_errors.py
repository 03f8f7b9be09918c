"""Bad input: the right exception, a text that holds the value and the rule, and nothing changed."""

import re

import numpy as np
import pytest

from kvmattr import AttributeMap

PAGES = 2000
HUGE = [2**31, 2**32, 2**52 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 5, 2**200]
OUTSIDE = [PAGES + 1, *HUGE, -1, -PAGES, -(2**31), -(2**63), -(2**63) - 1, -(2**64), -(2**64) + 5, -(2**200)]


@pytest.fixture
def m(Map):
    """A map with something in it, which every test here must leave as it is."""
    m = Map(PAGES, 3)
    m[512:1024] = np.resize(np.array([0, 1], dtype=np.uint8), 512)
    m[1024:1300] = np.resize(np.array([1, 2, 4], dtype=np.uint8), 276)
    state = m.runs().tobytes(), m.version, m.nbytes
    yield m
    assert (m.runs().tobytes(), m.version, m.nbytes) == state
    m.validate()


def raises(kind, value, call, *arguments, **keywords):
    """The call raises this kind with the value in the text."""
    with pytest.raises(kind, match=re.escape(str(value))) as caught:
        call(*arguments, **keywords)
    assert not isinstance(caught.value, OverflowError)


@pytest.mark.parametrize("gfn", [PAGES, *OUTSIDE])
def test_a_gfn_outside_is_an_index_error(m, gfn):
    for call in (m.get, m.__getitem__, m.run, m.level):
        raises(IndexError, gfn, call, gfn)
    raises(IndexError, gfn, m.__setitem__, gfn, 1)


@pytest.mark.parametrize("gfn", [gfn for gfn in (PAGES, *OUTSIDE) if -(2**63) <= gfn < 2**64])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_one_gfn_outside_stops_a_batch_before_it_begins(m, gfn, place):
    gfns = np.zeros(100, dtype=np.int64 if gfn < 2**63 else np.uint64)
    gfns[place] = gfn
    raises(IndexError, gfn, m.take, gfns)
    raises(IndexError, gfn, m.__getitem__, gfns)
    raises(IndexError, gfn, m.put, gfns, 77)
    raises(IndexError, gfn, m.__setitem__, gfns, 77)


@pytest.mark.parametrize("gfn", [2**64, -(2**63) - 1, 2**200])
def test_gfns_too_long_for_any_integer_type(m, gfn):
    raises(IndexError, gfn, m.take, [0, gfn])
    raises(IndexError, gfn, m.put, [0, gfn], 1)


@pytest.mark.parametrize("bound", OUTSIDE)
def test_a_bound_outside_is_a_value_error(m, bound):
    for ends in ((0, bound), (bound, PAGES), (bound, bound)):
        for call in (m.write, m.or_, m.and_, m.update, m.all, m.any, m.count):
            raises(ValueError, bound, call, *ends, 1)
        for call in (m.to_numpy, m.bitmap, m.uniform, m.values, m.runs, m.iter_runs):
            raises(ValueError, bound, call, *ends)
        raises(ValueError, bound, m.find, ends[0], 1, stop=ends[1])
        raises(ValueError, bound, m.diff, m, *ends)
        raises(ValueError, bound, m.__getitem__, slice(*ends))
        raises(ValueError, bound, m.__setitem__, slice(*ends), 1)
        raises(ValueError, bound, m.__delitem__, slice(*ends))
    raises(ValueError, bound, m.find, bound, 1)
    raises(ValueError, bound, m.put_bitmap, bound, np.array([1], dtype=np.uint8), 1)


def test_a_range_that_ends_before_it_starts(m):
    for call in (m.write, m.or_, m.and_, m.update, m.all, m.any, m.count):
        raises(ValueError, 20, call, 20, 10, 1)
    for call in (m.to_numpy, m.bitmap, m.uniform, m.values, m.runs, m.iter_runs):
        raises(ValueError, 20, call, 20, 10)
    raises(ValueError, 20, m.find, 20, 1, stop=10)
    raises(ValueError, 20, m.diff, m, 20, 10)
    raises(ValueError, 20, m.update_many, np.array([0, 20]), np.array([5, 10]), 1)


@pytest.mark.parametrize("bound", [bound for bound in OUTSIDE if -(2**63) <= bound < 2**64])
def test_bounds_of_a_batch_are_checked_before_it_begins(m, bound):
    kind = np.int64 if bound < 2**63 else np.uint64
    raises(ValueError, bound, m.update_many, np.array([0, 1]), np.array([5, bound], dtype=kind), 77)
    raises(ValueError, bound, m.update_many, np.array([0, bound], dtype=kind), PAGES, 77)


@pytest.mark.parametrize("bound", [-1, PAGES + 1, 2**63 - 1, 2**64, -(2**63) - 1, 2**200])
def test_bounds_of_a_batch_may_be_lists(m, bound):
    raises(ValueError, bound, m.update_many, [0, bound], [5, PAGES], 77)
    raises(ValueError, bound, m.update_many, [0, 1], [5, bound], 77)


@pytest.mark.parametrize("value", [256, *HUGE, -1, -255, -(2**63) - 1, -(2**200)])
def test_attributes_and_masks_are_bytes(Map, m, value):
    for call in (m.write, m.or_, m.and_, m.update, m.all, m.any, m.count):
        raises(ValueError, value, call, 0, 10, value)
        raises(ValueError, value, call, 5, 5, value)
    for call in (m.update, m.all, m.any, m.count):
        raises(ValueError, value, call, 0, 10, 1, mask=value)
    raises(ValueError, value, m.find, 0, value)
    raises(ValueError, value, m.find, 0, 1, mask=value)
    raises(ValueError, value, m.bitmap, 0, 10, mask=value)
    raises(ValueError, value, m.fill, value)
    raises(ValueError, value, m.put, np.array([1, 2]), value)
    raises(ValueError, value, m.put, np.array([1, 2]), 1, mask=value)
    raises(ValueError, value, m.put_bitmap, 0, np.array([1], dtype=np.uint8), value)
    raises(ValueError, value, m.put_bitmap, 0, np.array([1], dtype=np.uint8), 1, mask=value)
    raises(ValueError, value, m.update_many, np.array([0]), np.array([9]), value)
    raises(ValueError, value, m.update_many, np.array([0]), np.array([9]), 1, mask=value)
    raises(ValueError, value, m.__setitem__, 5, value)
    raises(ValueError, value, m.__setitem__, slice(0, 10), value)
    raises(ValueError, value, m.__setitem__, np.array([1, 2]), value)
    raises(ValueError, value, Map, 10, value)


@pytest.mark.parametrize("value", [256, 2**40, -1, -(2**63)])
def test_arrays_of_attributes_are_bytes(m, value):
    values = np.array([77, value])
    raises(ValueError, value, m.put, np.array([1, 2]), values)
    raises(ValueError, value, m.put, np.array([1, 2]), 77, mask=values)
    raises(ValueError, value, m.update_many, np.array([1, 2]), 5, values)
    raises(ValueError, value, m.update_many, np.array([1, 2]), 5, 77, mask=values)
    raises(ValueError, value, m.__setitem__, slice(0, 2), values)
    raises(ValueError, value, m.__setitem__, np.array([1, 2]), values)


@pytest.mark.parametrize("operation", [3, 255, -1, 2**64])
def test_an_unknown_operation(m, operation):
    raises(ValueError, operation, m.update, 0, 10, 77, operation=operation)
    raises(ValueError, operation, m.put, np.array([1]), 77, operation=operation)
    raises(ValueError, operation, m.put_bitmap, 0, np.array([1], dtype=np.uint8), 77, operation=operation)
    raises(ValueError, operation, m.update_many, np.array([0]), np.array([9]), 77, operation=operation)
    raises(
        ValueError, operation, m.update_many, np.array([0, 1]), np.array([9, 9]), 77, operation=[0, operation]
    )


@pytest.mark.parametrize("wrong", [1.0, 1.5, "1", b"1", None, (), {}, 1j, np.float64(1)])
def test_what_is_no_integer_is_a_type_error(Map, m, wrong):
    for call in (m.get, m.run, m.level, m.fill):
        with pytest.raises(TypeError):
            call(wrong)
    for call in (m.write, m.or_, m.and_, m.update, m.all, m.any, m.count):
        for arguments in ((wrong, 10, 1), (0, wrong, 1), (0, 10, wrong)):
            with pytest.raises(TypeError):
                call(*arguments)
    for keyword in ("operation", "mask"):
        with pytest.raises(TypeError):
            m.update(0, 10, 1, **{keyword: wrong})
    with pytest.raises(TypeError):
        m[wrong]
    with pytest.raises(TypeError):
        m[wrong] = 1
    with pytest.raises(TypeError):
        m[5] = wrong
    with pytest.raises(TypeError):
        Map(10, wrong)
    with pytest.raises(TypeError):
        Map(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        np.array([True, False]),
        np.array([1.0, 2.0]),
        np.array(["1"]),
        np.array([1, 2], dtype="m8[s]"),
        np.array([None, 1]),
    ],
    ids=lambda a: str(a.dtype),
)
def test_index_arrays_are_of_integers(m, wrong):
    for call in (m.take, m.__getitem__):
        with pytest.raises(TypeError):
            call(wrong)
    with pytest.raises(TypeError):
        m.put(wrong, 1)
    with pytest.raises(TypeError):
        m[wrong] = 1
    with pytest.raises(TypeError):
        m.update_many(wrong, PAGES, 1)
    with pytest.raises(TypeError):
        m.update_many(0, wrong, 1)


@pytest.mark.parametrize(
    "wrong", [np.array([1.0, 2.0]), np.array(["1", "2"]), np.array([1j, 2]), [1.5, 2.5]], ids=str
)
def test_arrays_of_attributes_are_of_integers(m, wrong):
    with pytest.raises(TypeError):
        m[0:2] = wrong
    with pytest.raises(TypeError):
        m.put(np.array([1, 2]), wrong)
    with pytest.raises(TypeError):
        m.update_many(np.array([1, 2]), 5, wrong)


def test_lengths_that_do_not_broadcast(m):
    two, three = np.array([1, 2]), np.array([5, 6, 7])
    for call, arguments in (
        (m.put, (two, three)),
        (m.put, (two, 1, three % 3)),
        (m.put, (two, 1, 0, three)),
        (m.update_many, (two, three, 1)),
        (m.update_many, (two, 9, three)),
        (m.update_many, (two, 9, 1, 0, three)),
    ):
        raises(ValueError, 3, call, *arguments)
    raises(ValueError, 3, m.__setitem__, slice(0, 2), three)
    raises(ValueError, 2, m.__setitem__, slice(0, 0), two)
    raises(ValueError, 3, m.__setitem__, two, three)


def test_out_must_fit(m):
    with pytest.raises(ValueError, match="5"):
        m.take(np.arange(4), out=np.empty(5, dtype=np.uint8))
    with pytest.raises(ValueError, match="5"):
        m.to_numpy(0, 4, out=np.empty(5, dtype=np.uint8))
    for kind in (np.int8, np.uint16, np.float64, bool):
        with pytest.raises(TypeError, match=np.dtype(kind).name):
            m.take(np.arange(4), out=np.empty(4, dtype=kind))
        with pytest.raises(TypeError, match=np.dtype(kind).name):
            m.to_numpy(0, 4, out=np.empty(4, dtype=kind))
    for wrong in (bytearray(4), [0, 0, 0, 0], "out"):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            m.take(np.arange(4), out=wrong)
    constant = np.full(4, 55, dtype=np.uint8)
    constant.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        m.take(np.arange(4), out=constant)
    with pytest.raises(ValueError, match="writable"):
        m.to_numpy(0, 4, out=constant)
    assert constant.tolist() == [55] * 4


def test_a_bad_gfn_leaves_out_alone_or_says_so(m):
    with pytest.raises(IndexError, match=str(PAGES)):
        m.take(np.array([PAGES] + [0] * 9), out=np.empty(10, dtype=np.uint8))


@pytest.mark.parametrize(
    "bits",
    [
        np.array([1.0]),
        np.array([1], dtype=np.int8),
        np.array([1], dtype=np.uint32),
        np.array([1], dtype=">u8"),
        np.array([True]),
    ],
    ids=lambda a: str(a.dtype),
)
def test_bits_are_bytes_or_little_endian_words(m, bits):
    with pytest.raises(TypeError):
        m.put_bitmap(0, bits, 1)


def test_maps_of_other_sizes_and_other_things(Map, m):
    other = Map(PAGES + 1)
    raises(ValueError, PAGES + 1, m.restore, other)
    raises(ValueError, PAGES + 1, m.diff, other)
    for wrong in (None, 5, "map", np.zeros(PAGES, dtype=np.uint8)):
        raises(TypeError, type(wrong).__name__, m.restore, wrong)
        raises(TypeError, type(wrong).__name__, m.diff, wrong)


@pytest.mark.parametrize("npages", [2**52 + 1, 2**63, 2**64, 2**200, -1, -(2**63) - 1])
def test_the_number_of_pages(Map, npages):
    raises(ValueError, npages, Map, npages)


EXACT = [
    (lambda m: m.get(2000), IndexError, "gfn 2000 is outside [0, 2000)"),
    (lambda m: m[-1], IndexError, "gfn -1 is outside [0, 2000)"),
    (lambda m: m.take(np.array([1, -5])), IndexError, "gfn -5 is outside [0, 2000)"),
    (
        lambda m: m.put(np.array([1, 2**64 - 1], dtype=np.uint64), 1),
        IndexError,
        "gfn 18446744073709551615 is outside [0, 2000)",
    ),
    (lambda m: m.write(0, 2001, 1), ValueError, "range [0, 2001): need 0 <= start <= stop <= 2000"),
    (
        lambda m: m.write(-(2**70), 5, 1),
        ValueError,
        "range [-1180591620717411303424, 5): need 0 <= start <= stop <= 2000",
    ),
    (lambda m: m.update_many([0, 9], [5, 8], 1), ValueError, "range [9, 8): need 0 <= start <= stop <= 2000"),
    (lambda m: m[7:3], ValueError, "range [7, 3): need 0 <= start <= stop <= 2000"),
    (lambda m: m[0:10:2], ValueError, "slice step 2: need 1"),
    (lambda m: m.write(0, 5, 256), ValueError, "attributes 256 is outside 0..255"),
    (lambda m: m.put(np.array([1]), np.array([-7])), ValueError, "attributes -7 is outside 0..255"),
    (lambda m: m.count(0, 5, 1, 300), ValueError, "mask 300 is outside 0..255"),
    (lambda m: AttributeMap(10, 256), ValueError, "default 256 is outside 0..255"),
    (
        lambda m: AttributeMap(2**52 + 1),
        ValueError,
        "npages 4503599627370497 is outside 0..4503599627370496 (2^52)",
    ),
    (lambda m: m.update(0, 5, 1, 3), ValueError, "operation 3 is none of WRITE = 0, OR = 1, AND = 2"),
    (
        lambda m: m.put(np.array([1]), 1, np.array([9])),
        ValueError,
        "operation 9 is none of WRITE = 0, OR = 1, AND = 2",
    ),
    (lambda m: m.take(np.array([True])), TypeError, "gfns must be integers, not bool"),
    (lambda m: m["a"], TypeError, "index must be an integer, a slice or an array of integers, not str"),
    (lambda m: m.take(np.arange(4), out=np.empty(5, np.uint8)), ValueError, "out has 5 cells: need 4"),
    (
        lambda m: m.take(np.arange(4), out=np.empty(4, np.int8)),
        TypeError,
        "out must be a uint8 array, not int8",
    ),
    (
        lambda m: m.restore(AttributeMap(5)),
        ValueError,
        "can only restore a map of as many pages: 5 is not 2000",
    ),
    (lambda m: m.restore(None), TypeError, "can only restore an AttributeMap, not NoneType"),
    (
        lambda m: m.snapshot().clear(),
        TypeError,
        "a snapshot or live view is read-only: change a copy() of it",
    ),
    (
        iter,
        TypeError,
        "an AttributeMap is not iterable (it may have 2^52 pages): use iter_runs() or to_numpy()",
    ),
    (
        np.asarray,
        TypeError,
        "an AttributeMap is not converted to an array by itself (it may have 2^52 pages): "
        "use to_numpy(start, stop)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), EXACT, ids=[text for _, _, text in EXACT])
def test_exact_texts(call, kind, text):
    with pytest.raises(kind) as caught:
        call(AttributeMap(PAGES, 3))
    assert str(caught.value) == text
