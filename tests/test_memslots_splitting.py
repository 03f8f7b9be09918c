"""SplittingBaseline: always one memslot a run, KVM's limit to the slot, and counters of what it cost."""

from __future__ import annotations

import errno
import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmattr import AttributeMap, Operation
from kvmattr.memslots import MemslotTable, SplittingBaseline

NR_MEMSLOTS = 32764
ISOLATED = 16381        # 1 + 2k <= 32764


def runs_of(pages: np.ndarray) -> list[tuple[int, int, int]]:
    cuts = [0, *(np.flatnonzero(np.diff(pages.astype(int))) + 1).tolist(), len(pages)]
    return [(start, stop, int(pages[start])) for start, stop in itertools.pairwise(cuts)]


def updated(pages: np.ndarray, start: int, stop: int, attributes: int, operation: int,
            mask: int) -> np.ndarray:
    new = pages.copy()
    part = new[start:stop]
    result = {0: np.full_like(part, attributes), 1: part | attributes, 2: part & attributes}[operation]
    new[start:stop] = part & (0xFF ^ mask) | result & mask
    return new


NPAGES = 1100
marks = st.sampled_from([0, 1, 2, 7, 511, 512, 513, 1024, NPAGES - 1, NPAGES]) | st.integers(0, NPAGES)
updates = st.tuples(
    st.one_of(st.tuples(marks, marks).map(sorted), marks.map(lambda start: [start, min(start + 1, NPAGES)])),
    st.sampled_from([0, 1, 1, 3, 0xFF]), st.sampled_from(Operation), st.sampled_from([0xFF, 0xFF, 1, 6, 0]))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([1, 4, 12, NR_MEMSLOTS]), st.lists(updates, max_size=60))
def test_random_updates_against_a_dense_array(nr_memslots: int, operations: list[Any]) -> None:
    baseline = SplittingBaseline(NPAGES, nr_memslots)
    pages = np.zeros(NPAGES, np.uint8)
    for (start, stop), attributes, operation, mask in operations:
        new = updated(pages, start, stop, attributes, operation, mask)
        if len(runs_of(new)) > nr_memslots:
            with pytest.raises(OSError, match=f"needs {len(runs_of(new))} memslots") as caught:
                baseline.update(start, stop, attributes, operation, mask)
            assert caught.value.errno == errno.EINVAL
        else:
            changed = baseline.update(start, stop, attributes, operation, mask)
            assert changed is (not np.array_equal(pages, new))
            pages = new
        assert baseline.runs().tolist() == runs_of(pages)
        assert baseline.run_count == baseline.stats()["memslots"] == len(runs_of(pages))
        assert [baseline.get(gfn) for gfn in (0, start - (start == NPAGES), stop - (stop > 0))] == [
            pages[0], pages[start - (start == NPAGES)], pages[stop - (stop > 0)]]
        baseline.validate()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(updates, max_size=40))
def test_equals_the_store(operations: list[Any]) -> None:
    baseline, store = SplittingBaseline(NPAGES), AttributeMap(NPAGES)
    for (start, stop), *rest in operations:
        assert baseline.update(start, stop, *rest) is store.update(start, stop, *rest)
        runs = store.runs()
        assert baseline.runs().dtype == runs.dtype
        assert baseline.runs().tobytes() == runs.tobytes()
        assert baseline.run_count == store.run_count
        assert baseline.runs(start, stop).tobytes() == store.runs(start, stop).tobytes()


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 6), st.lists(updates, max_size=40))
def test_without_rollback_the_refused_update_leaves_a_hole(nr: int, operations: list[Any]) -> None:
    baseline = SplittingBaseline(NPAGES, nr, rollback=False)
    pages = np.zeros(NPAGES, int)           # -1: in a hole
    for (start, stop), attributes, operation, mask in operations:
        new = updated(pages.astype(np.uint8), start, stop, attributes, operation, mask)
        new = np.where(pages < 0, pages, new)
        if mask == 0xFF and attributes == {0: attributes, 1: 0xFF, 2: 0}[operation]:
            new[start:stop] = attributes     # asks for no old value, so it fills holes
        slots = [run for run in runs_of(new) if run[2] >= 0]
        try:
            changed = baseline.update(start, stop, attributes, operation, mask)
        except OSError:
            assert len(slots) > nr
            made = baseline.runs().tolist()
            # What is left: slots that were not touched, and the new ones up to the gfn where the hole begins.
            assert set(made) < set(slots)
            assert len(made) == nr
            new[:] = -1
            for first, last, value in made:
                new[first:last] = value
        else:
            assert changed is bool((new != pages).any())
            assert baseline.runs().tolist() == slots
        pages = new
        assert baseline.stats()["pages_in_holes"] == (pages < 0).sum()
        baseline.validate()


@pytest.mark.parametrize("step", [2, 1000])
def test_16381_isolated_conversions_and_then_einval(step: int) -> None:
    baseline = SplittingBaseline(ISOLATED * step + step + 2)
    for i in range(ISOLATED):
        assert baseline.write(1 + i * step, 2 + i * step, 1)
    assert baseline.run_count == NR_MEMSLOTS - 1
    before, stats = baseline.runs().tobytes(), baseline.stats()
    gfn = 1 + ISOLATED * step
    text = f"updating [{gfn}, {gfn + 1}) needs 32765 memslots: nr_memslots is 32764"
    with pytest.raises(OSError, match="needs 32765 memslots") as caught:
        baseline.write(gfn, gfn + 1, 1)
    assert (caught.value.errno, caught.value.strerror) == (errno.EINVAL, text)
    assert baseline.runs().tobytes() == before
    assert baseline.get(gfn) == 0
    # The old slot went, left and middle came and went, the old slot came again.
    after = baseline.stats()
    assert after["slots_deleted"] - stats["slots_deleted"] == 3
    assert after["slots_created"] - stats["slots_created"] == 3
    assert after["highest_memslots"] == NR_MEMSLOTS
    assert after["metadata_held_bytes"] == stats["metadata_held_bytes"]
    baseline.validate()
    # A conversion beside another one needs no more slots than there are, nor does undoing one.
    assert baseline.write(2, 3, 1)
    assert baseline.write(1, 3, 0)
    assert baseline.run_count == NR_MEMSLOTS - 3
    baseline.validate()


def test_the_hole_that_the_real_one_leaves() -> None:
    baseline = SplittingBaseline(2 * ISOLATED + 100, rollback=False)
    for i in range(ISOLATED):
        baseline.write(1 + 2 * i, 2 + 2 * i, 1)
    gfn = 2 * ISOLATED + 50
    with pytest.raises(OSError, match="needs 32765 memslots: nr_memslots is 32764; a hole is left"):
        baseline.write(gfn, gfn + 1, 1)
    assert baseline.runs().tolist()[-2:] == [(2 * ISOLATED, gfn, 0), (gfn, gfn + 1, 1)]
    assert baseline.stats()["pages_in_holes"] == 49
    with pytest.raises(LookupError, match=f"gfn {gfn + 1} lies in a hole: no memslot holds it"):
        baseline.get(gfn + 1)
    baseline.validate()
    # OR has nothing to work on there; a write that merges with its neighbour mends it.
    assert not baseline.or_(gfn + 1, gfn + 50, 2)
    assert baseline.write(gfn + 1, gfn + 50, 1)
    assert baseline.stats()["pages_in_holes"] == 0


def test_rmw_of_the_full_span_at_the_limit() -> None:
    baseline = SplittingBaseline(NR_MEMSLOTS)
    for gfn in range(1, NR_MEMSLOTS, 2):
        if gfn < NR_MEMSLOTS - 1:
            baseline.write(gfn, gfn + 1, 1)
    baseline.write(NR_MEMSLOTS - 1, NR_MEMSLOTS, 1)
    assert baseline.run_count == NR_MEMSLOTS
    created = baseline.stats()["slots_created"]
    assert baseline.or_(0, NR_MEMSLOTS, 4)          # every slot is replaced, none is added
    assert baseline.stats()["slots_created"] == created + NR_MEMSLOTS
    assert baseline.runs()["attributes"].tolist() == [4, 5] * (NR_MEMSLOTS // 2)
    baseline.validate()
    assert not baseline.or_(0, NR_MEMSLOTS, 4)
    assert baseline.and_(0, NR_MEMSLOTS, 4)         # all become equal: one slot
    assert baseline.runs().tolist() == [(0, NR_MEMSLOTS, 4)]
    baseline.validate()


def test_counters_of_one_conversion() -> None:
    baseline = SplittingBaseline(1 << 18)           # 1 GiB

    def cost(*arguments: Any) -> dict[str, int]:
        before = baseline.stats()
        baseline.update(*arguments)
        after = baseline.stats()
        return {name: after[name] - before[name] for name in (
            "slots_deleted", "slots_created", "slots_touched", "sets_installed", "pages_without_slot",
            "large_page_bytes")}

    # One slot becomes three: deleting installs two sets, creating one. [0, 512), [512, 513), [513, 2^18).
    assert cost(512, 513, 1) == {
        "slots_deleted": 1, "slots_created": 3, "slots_touched": 4, "sets_installed": 5,
        "pages_without_slot": 1 << 18, "large_page_bytes": 4 * ((1 + 1) + (1 + 1) + (511 + 1))}
    # Growing it by a page changes two slots and merges; the untouched first slot stays.
    assert cost(513, 514, 1) == {
        "slots_deleted": 2, "slots_created": 2, "slots_touched": 4, "sets_installed": 6,
        "pages_without_slot": (1 << 18) - 512, "large_page_bytes": 4 * ((1 + 1) + (511 + 1))}
    # The same again asks KVM for nothing.
    assert set(cost(512, 514, 1).values()) == {0}
    # Back: three slots become one.
    assert cost(512, 514, 0) == {
        "slots_deleted": 3, "slots_created": 1, "slots_touched": 4, "sets_installed": 7,
        "pages_without_slot": 1 << 18, "large_page_bytes": 4 * (512 + 1)}
    stats = baseline.stats()
    assert (stats["highest_memslots"], stats["pages_in_holes"]) == (3, 0)


@pytest.mark.parametrize("metadata", ["tdp", "full"])
def test_metadata_held_is_that_of_a_table_with_the_same_slots(metadata: Any) -> None:
    baseline = SplittingBaseline(5000, metadata=metadata)
    for gfn in (0, 511, 513, 1024, 4999):
        baseline.write(gfn, gfn + 1, gfn & 0xFF | 1)
    table = MemslotTable(metadata=metadata)
    for id, (start, stop, _) in enumerate(baseline.runs().tolist()):
        table.set_region(id, 0, start << 12, (stop - start) << 12, start << 12)
    assert baseline.stats()["metadata_held_bytes"] == table.stats()["metadata_held_bytes"]
    assert baseline.metadata == metadata


def test_memory_follows_the_slots() -> None:
    baseline = SplittingBaseline(1 << 18)
    small = baseline.nbytes
    for gfn in range(0, 20000, 2):
        baseline.write(gfn, gfn + 1, 1)
    assert baseline.nbytes - small >= 20000 * 64
    baseline.write(0, 1 << 18, 0)
    assert baseline.stats()["metadata_held_bytes"] == 4 * (512 + 1)


def test_runs_are_clipped() -> None:
    baseline = SplittingBaseline(100)
    baseline.write(10, 20, 1)
    spans = [(0, 5), (5, 15), (10, 20), (19, 21), (20,), (100, 100), (7, 7)]
    assert [baseline.runs(*span).tolist() for span in spans] == [[(0, 5, 0)], [(5, 10, 0), (10, 15, 1)],
                                                                 [(10, 20, 1)],
                                                                 [(19, 20, 1), (20, 21, 0)],
                                                                 [(20, 100, 0)], [], []]
    assert (baseline.npages, len(baseline), baseline.nr_memslots) == (100, 100, NR_MEMSLOTS)
    assert baseline.rollback


HUGE = 10**5000


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda b: b.get(64), IndexError, "gfn 64 is outside [0, 64)"),
    (lambda b: b.get(-1), IndexError, "gfn -1 is outside [0, 64)"),
    (lambda b: b.get(HUGE), IndexError, f"gfn {HUGE:#x} is outside [0, 64)"),
    (lambda b: b.get(1.0), TypeError, "'float' object cannot be interpreted as an integer"),
    (lambda b: b.write(2, 1, 0), ValueError, "range [2, 1): need 0 <= start <= stop <= 64"),
    (lambda b: b.or_(-1, 1, 0), ValueError, "range [-1, 1): need 0 <= start <= stop <= 64"),
    (lambda b: b.and_(0, 65, 0), ValueError, "range [0, 65): need 0 <= start <= stop <= 64"),
    (lambda b: b.update(0, -HUGE, 0), ValueError, f"range [0, {-HUGE:#x}): need 0 <= start <= stop <= 64"),
    (lambda b: b.update(-HUGE, "1", 0), TypeError, "'str' object cannot be interpreted as an integer"),
    (lambda b: b.runs(3, 2), ValueError, "range [3, 2): need 0 <= start <= stop <= 64"),
    (lambda b: b.write(0, 0, 256), ValueError, "attributes 256 is outside 0..255"),
    (lambda b: b.update(0, 64, -1), ValueError, "attributes -1 is outside 0..255"),
    (lambda b: b.update(0, 64, 1, 0, 256), ValueError, "mask 256 is outside 0..255"),
    (lambda b: b.update(0, 64, 1, 3), ValueError, "operation 3 is none of WRITE = 0, OR = 1, AND = 2"),
    (lambda b: b.update(0, 64, 1, 2.0), TypeError, "'float' object cannot be interpreted as an integer"),
    (lambda b: SplittingBaseline(0), ValueError, "npages is 0: it must be 1 .. 34359738367"),
    (lambda b: SplittingBaseline(1 << 35), ValueError, "npages is 34359738368: it must be 1 .. 34359738367"),
    (lambda b: SplittingBaseline(1, 0), ValueError, "nr_memslots is 0: it must be 1 .. 65535"),
    (lambda b: SplittingBaseline(1, metadata=0), ValueError, "metadata is 0: it must be one of tdp, full"),
], ids=lambda value: value[:40] if isinstance(value, str) else None)
def test_bad_arguments(call: Any, error: type[Exception], text: str) -> None:
    baseline = SplittingBaseline(64)
    with pytest.raises(error) as caught:
        call(baseline)
    assert str(caught.value) == text
    assert baseline.runs().tolist() == [(0, 64, 0)]


LITTLE_MEMORY = """
import resource
from kvmattr.memslots import SplittingBaseline

baseline = SplittingBaseline(1 << 24, metadata="full")      # some 160 MB of metadata
baseline.write(5, 6, 1)
before, counted = baseline.runs().tolist(), baseline.stats()
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + (64 << 20), resource.RLIM_INFINITY))
for _ in range(3):
    try:
        baseline.write(1 << 23, (1 << 23) + 1, 1)
    except MemoryError as error:
        assert str(error) == "no memory for the memslots of [8388608, 8388609)", error
    else:
        raise AssertionError("the memory sufficed")
    baseline.validate()
    assert (baseline.runs().tolist(), baseline.stats()) == (before, counted)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_out_of_memory_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr
