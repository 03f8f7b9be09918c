"""SplittingBaseline.update_many and take: the calls that the study times, against update and get."""

import numpy as np
import pytest

from kvmattr.memslots import SplittingBaseline

NPAGES = 1000


def test_equals_one_update_after_the_other():
    random = np.random.default_rng(7)
    starts = random.integers(0, NPAGES, 400)
    stops = np.minimum(starts + random.integers(0, 60, 400), NPAGES)
    attributes, operations, masks = (random.integers(0, top, 400) for top in (8, 3, 256))
    batch, single = SplittingBaseline(NPAGES), SplittingBaseline(NPAGES)
    changed = batch.update_many(starts, stops, attributes, operations, masks)
    one_by_one = [single.update(*map(int, row)) for row in
                  zip(starts, stops, attributes, operations, masks, strict=True)]
    assert changed == sum(one_by_one)
    assert np.array_equal(batch.runs(), single.runs())
    gfns = np.arange(NPAGES)
    assert batch.take(gfns).tolist() == [single.get(gfn) for gfn in range(NPAGES)]


def test_stops_at_the_slot_limit_and_says_how_far_it_came():
    baseline = SplittingBaseline(NPAGES, nr_memslots=7)
    odd = np.arange(1, 21, 2)
    with pytest.raises(OSError, match="needs 9 memslots") as raised:
        baseline.update_many(odd, odd + 1, 1)
    assert raised.value.done == 3
    assert baseline.run_count == 7


@pytest.mark.parametrize(("arguments", "error", "text"), [
    (([5], [3], 1), ValueError, "range [5, 3): need 0 <= start <= stop <= 1000"),
    (([-1], [3], 1), ValueError, "range [-1, 3): need 0 <= start <= stop <= 1000"),
    (([2**70], [2**71], 1), ValueError,
     "range [1180591620717411303424, 2361183241434822606848): need 0 <= start <= stop <= 1000"),
    (([0, 1], [3, 4], [1, 256]), ValueError, "attributes 256 is outside 0..255"),
    (([0], [3], [1], [3]), ValueError, "operation 3 is none of WRITE = 0, OR = 1, AND = 2"),
    (([0], [3], [1], 0, -1), ValueError, "mask -1 is outside 0..255"),
    (([0, 1], [3, 4, 5], 1), ValueError,
     "lengths do not broadcast: starts (2,), stops (3,), attributes (), operation (), mask ()"),
    (([0.5], [1], 1), TypeError, "starts has dtype float64: it must be an integer type"),
])
def test_bad_arguments_change_nothing(arguments, error, text):
    baseline = SplittingBaseline(NPAGES)
    with pytest.raises(error) as raised:
        baseline.update_many(*arguments)
    assert str(raised.value) == text
    assert baseline.runs().tolist() == [(0, NPAGES, 0)]


def test_take_refuses_pages_outside_and_in_holes():
    baseline = SplittingBaseline(NPAGES, nr_memslots=3, rollback=False)
    with pytest.raises(IndexError, match=r"gfn 1000 is outside \[0, 1000\)"):
        baseline.take([0, NPAGES])
    with pytest.raises(OSError, match="a hole is left"):
        baseline.update_many([10, 20], [11, 21], 1)
    with pytest.raises(LookupError, match="lies in a hole: no memslot holds it"):
        baseline.take(np.arange(NPAGES))
