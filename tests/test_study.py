"""The study's machinery: what it measures with, how a cell ends, and that a wrong backend is called wrong."""

import itertools
import re
import signal

import numpy as np
import pytest

from kvmattr import Operation
from kvmattr.measure import clock, ending, extras
from kvmattr.measure.clock import Took
from kvmattr.measure.statistics import Ratio, Spread
from kvmattr.study import arm as arm_module
from kvmattr.study import backends, runner, scenarios, table
from kvmattr.study.arm import Arm, Work
from kvmattr.study.backends import Backend
from kvmattr.study.report import Report
from kvmattr.study.results import Result, comparisons
from kvmattr.study.runner import Options, Unit
from kvmattr.study.scenarios import Scenario, Workload
from kvmattr.study.work import Batch, Failed, Reference, coalesced, pages_to_runs

BRIEF = Options(rounds=3, round_seconds=0.001, cell_seconds=30)


class TestWork:
    def test_reference_by_hand(self):
        reference = Reference(100, Batch.of([10, 12], 5, 1))
        reference.apply(Batch.of([10], 5, 1)).apply(Batch.of([12], 5, 6, Operation.OR))
        assert reference.runs().tolist() == [(0, 10, 0), (10, 12, 1), (12, 15, 7), (15, 17, 6), (17, 100, 0)]
        reference.apply(Batch.of([12], 5, 2, Operation.AND))
        assert reference.lookup(np.array([0, 11, 12, 16, 99], np.uint64)).tolist() == [0, 1, 2, 2, 0]
        assert reference.migrate(Batch.of([10], 5, 2)) == 2

    def test_reference_equals_a_dense_array(self):
        random = np.random.default_rng(3)
        starts = random.integers(0, 900, 200).astype(np.uint64)
        batch = Batch(starts, starts + random.integers(1, 100, 200).astype(np.uint64),
                      *(random.integers(0, top, 200).astype(np.uint8) for top in (8, 3)))
        dense = np.zeros(1000, np.uint8)
        for start, stop, attributes, operation in batch.rows():
            before = dense[start:stop]
            dense[start:stop] = {Operation.WRITE: np.full_like(before, attributes),
                                 Operation.OR: before | attributes,
                                 Operation.AND: before & attributes}[operation]
        reference = Reference(1000, batch).apply(batch)
        assert np.array_equal(reference.lookup(np.arange(1000, dtype=np.uint64)), dense)
        pages = np.arange(1000, dtype=np.uint64)
        assert np.array_equal(reference.runs(), coalesced(pages, pages + np.uint64(1), dense))

    def test_a_question_about_ranges_is_answered_as_page_by_page(self):
        random = np.random.default_rng(4)
        starts = random.integers(0, 900, 60).astype(np.uint64)
        batch = Batch(starts, starts + random.integers(1, 90, 60).astype(np.uint64),
                      random.integers(0, 2, 60).astype(np.uint8), np.zeros(60, np.uint8))
        reference = Reference(1000, batch).apply(batch)
        dense = reference.lookup(np.arange(1000, dtype=np.uint64))
        starts = random.integers(0, 990, 500).astype(np.uint64)
        asked = Batch(starts, starts + random.integers(1, 10, 500).astype(np.uint64),
                      random.integers(0, 3, 500).astype(np.uint8), np.zeros(500, np.uint8))
        wanted = [bool((dense[start:stop] == attributes).all()) for start, stop, attributes, _ in asked.rows()]
        assert 20 < sum(wanted) < 480
        assert reference.has(asked).tolist() == wanted

    def test_pages_to_runs(self):
        gfns = np.array([0, 1, 5, 9], np.uint64)
        runs = pages_to_runs(gfns, np.array([1, 1, 2, 2], np.uint8), 10)
        assert runs.tolist() == [(0, 2, 1), (2, 5, 0), (5, 6, 2), (6, 9, 0), (9, 10, 2)]
        assert pages_to_runs(gfns[:0], np.zeros(0, np.uint8), 10).tolist() == [(0, 10, 0)]


class TestStatistics:
    def test_spread(self):
        spread = Spread.of([float(number) for number in range(1, 102)])
        assert (spread.median, spread.p10, spread.p90) == (51, 11, 91)
        assert spread.low < 51 < spread.high

    def test_ratio_is_of_pairs(self):
        # A round that is ten times as slow for both arms says nothing against either.
        reference = [10.0, 100.0, 12.0, 11.0]
        ratio = Ratio.of([30.0, 300.0, 36.0, 33.0], reference)
        assert (ratio.median, ratio.low, ratio.high, ratio.told_apart) == (3, 3, 3, True)

    def test_what_cannot_be_told_apart(self):
        ratio = Ratio.of([9.0, 11.0, 10.0, 10.5, 9.5], [10.0] * 5)
        assert not ratio.told_apart


@pytest.mark.parametrize("name", scenarios.ALL)
def test_every_scenario_makes_the_same_work_again(name):
    scenario = scenarios.ALL[name]
    assert scenario.question.endswith("?")
    assert set(scenario.quick_sizes) <= {*scenario.sizes, *(16 * scenarios.GIB, )}
    one, two = (scenario.make(scenario.sizes[1], np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one.setup.starts, two.setup.starts)
    assert (one.setup.stops <= one.npages).all()
    operations = min(one.operations, 64)
    first, again = one.argument(0, operations), two.argument(0, operations)
    if isinstance(first, Batch):
        assert np.array_equal(first.starts, again.starts)
        assert (first.stops <= one.npages).all()
        assert (first.starts < first.stops).all()
        if one.action == "update" and not one.whole:
            assert len(first) == operations
            reference = Reference(one.npages, one.setup, first).apply(one.setup)
            before = reference.runs()
            # The rounds leave the state as it was, however many there are.
            assert np.array_equal(reference.apply(first).runs(), before)
            assert not np.array_equal(reference.apply(first.part(0, operations // 2 | 1)).runs(), before)
    elif first is not None:
        assert np.array_equal(first, again)


def test_a_round_at_10000_earlier_conversions_stays_below_the_slot_limit():
    workload = scenarios.ALL["conversion"].make(10_000, np.random.default_rng(1))
    converted = np.cumsum(workload.argument(0, workload.operations).attributes.astype(int) * 2 - 1)
    assert converted.max() + 10_000 < 16_381
    assert converted[-1] == 0


def _workload(npages: int = 1000, whole: bool = False) -> Workload:
    def argument(index: int, operations: int) -> Batch:
        pages = np.arange(operations // 2) * 2 + 101
        return Batch.joined(Batch.of(pages, 1, 1), Batch.of(pages, 1, 0))
    return Workload(npages, Batch.of(np.arange(1, 99, 2), 1, 1), "update", argument, 8, whole)


SCENARIO = Scenario("conversion", "?", (), "earlier conversions", "ns/conversion", (49, ), (),
                    lambda *_: _workload())


class Array(Backend):
    """A right and simple backend, for tests that break it in one way."""

    name, kind, about = "array", "model", "test"

    def __init__(self, npages):
        self.pages = np.zeros(npages, np.uint8)
        self.calls = 0

    def update(self, prepared):
        self.calls += 1
        for start, stop, attributes, _ in prepared.rows():
            self.pages[start:stop] = attributes

    def runs(self):
        pages = np.arange(len(self.pages))
        return coalesced(pages, pages + 1, self.pages)


def _result(backend: type[Backend], seconds: float = 30, workload: Workload | None = None) -> Result:
    tested = Arm(backend, SCENARIO, 49, Work(workload or _workload()), seconds)
    tested.open()
    if tested.alive:
        tested.warm_up(0.001)
    for index in range(3):
        tested.sample(index)
    tested.check()
    tested.close()
    return tested.result()


class TestHowACellEnds:
    def test_ok(self):
        result = _result(Array)
        assert (result.status, len(result.samples), result.note) == ("ok", 3, "")
        assert result.operations % 2 == 0
        assert min(result.samples) > 0
        assert result.overhead is not None

    def test_a_backend_that_does_nothing_in_the_rounds_is_wrong(self):
        class Idle(Array):
            def update(self, prepared):
                if self.calls < 1:
                    super().update(prepared)
        result = _result(Idle)
        assert (result.status, result.samples) == ("wrong", [])
        assert result.note.startswith("its state is [")

    @pytest.mark.parametrize("kept", ["index % 2 == 0", "index % 2", "index % 4 < 2", "index < 100", "index >= 8"])
    @pytest.mark.parametrize("scenario", ["conversion", "conversion-single", "rmw"])
    def test_a_backend_that_does_some_updates_is_wrong(self, kept, scenario):
        """Also where what it leaves out is converted and converted back alike."""
        class Some(backends.ALL["store"]):
            loaded = False

            def prepare(self, batch):
                keep = [bool(eval(kept)) for index in range(len(batch))] if self.loaded else slice(None)
                return super().prepare(Batch(*(column[keep] for column in vars(batch).values())))
        if scenario == "rmw" and kept != "index % 2 == 0":
            return  # of one range, which has the last update's state whatever was before
        workload = scenarios.ALL[scenario].make(10, np.random.default_rng(1))
        tested = Arm(Some, scenarios.ALL[scenario], 10, Work(workload), 30)
        tested.open()
        Some.loaded = True
        tested.warm_up(0.001, 512)
        tested.sample(0)
        tested.check()
        assert tested.result().status == "wrong"

    def test_what_differs_is_told_from_where_it_does(self):
        class Late(Array):
            def lookup(self, gfns):
                return np.append(np.zeros(max(len(gfns) - 1, 0), np.uint8), np.uint8(3))[:len(gfns)]
        workload = Workload(4096, Batch.empty(), "lookup",
                            lambda index, operations: np.arange(operations, dtype=np.uint64), 2048)
        note = _result(Late, workload=workload).note
        assert re.fullmatch(r"lookup gave \[3\] from \[[0-9,]+\] on, should be \[0\]", note)

    def test_a_wrong_answer_is_wrong(self, monkeypatch):
        class Liar(Array):
            def lookup(self, gfns):
                return np.ones(len(gfns), np.uint8)
        workload = Workload(1000, Batch.empty(), "lookup",
                            lambda index, operations: np.arange(operations, dtype=np.uint64), 8)
        result = _result(Liar, workload=workload)
        assert result.status == "wrong"
        assert result.note == "lookup gave [1 1 1 1 1 1 1 1], should be [0 0 0 0 0 0 0 0]"

    def test_failing_in_the_setup(self):
        class Full(Array):
            def update(self, prepared):
                raise Failed(7, "EINVAL")
        result = _result(Full)
        assert (result.status, result.note, result.reached) == ("failed", "failed at k = 8: EINVAL", 7)

    def test_what_ended_is_closed_at_once(self):
        class Full(Array):
            closed = 0

            def update(self, prepared):
                raise Failed(0, "ENOMEM")

            def close(self):
                Full.closed += 1
        tested = Arm(Full, SCENARIO, 49, Work(_workload()), 30)
        tested.open()
        assert Full.closed == 1
        tested.close()
        assert Full.closed == 1

    @pytest.mark.parametrize("warmed", [0, 1])
    def test_failing_in_a_round(self, warmed):
        class Full(Array):
            def update(self, prepared):
                # 49 earlier updates take three calls; the first round warms up, then come two calls a round.
                if self.calls >= 3 + warmed * 10:
                    raise Failed(1, "ENOMEM")
                super().update(prepared)
        result = _result(Full)
        assert (result.status, result.note) == ("failed", "failed at k = 51: ENOMEM")

    @pytest.mark.parametrize(("place", "where"), [
        ("missing", ""), ("__init__", "in the setup: "), ("load", "in the setup: "),
        ("prepare", "in the setup: "), ("update", "in the setup: "), ("runs", "in the check: "),
        ("close", "on closing: "),
    ])
    def test_what_nobody_expected_ends_the_cell_alone(self, place, where):
        def broken(*arguments):
            raise ZeroDivisionError("this and\nthat")
        result = _result(type("Broken", (Array, ), {place: classmethod(broken) if place == "missing" else broken}))
        assert result.status == "error"
        assert re.fullmatch(rf"{where}ZeroDivisionError: this and that \(test_study\.py:\d+\)", result.note)
        assert len(result.samples) == (3 if place in ("runs", "close") else 0)

    def test_failing_within_a_snapshot(self, monkeypatch):
        class Full(Array):
            def snapshot_restore(self, prepared):
                raise Failed(len(prepared) - 1, "ENOMEM")
        monkeypatch.setitem(backends.ALL, "full", Full)
        (result, ) = runner.run_unit(Unit("snapshot", 1, ("full", )), BRIEF)
        assert (result.status, result.note, result.reached) == ("failed", "failed at k = 101: ENOMEM", 100)

    def test_an_unexpected_exception_in_a_round(self):
        class Broken(Array):
            def update(self, prepared):
                if self.calls >= 12:
                    raise KeyError("lost")
                super().update(prepared)
        result = _result(Broken)
        assert result.status == "error"
        assert result.note.startswith("KeyError: 'lost' (test_study.py:")

    def test_a_signal_that_a_library_made_an_error_of_ends_the_run(self):
        class Converts(Array):
            def update(self, prepared):
                try:
                    signal.raise_signal(signal.SIGTERM)
                except KeyboardInterrupt:
                    raise TypeError("incompatible function arguments") from None
        with pytest.raises(KeyboardInterrupt, match="ended by SIGTERM"), ending.signals_interrupt():
            _result(Converts)

    def test_a_library_that_exits_ends_its_cell(self):
        class Exits(Array):
            def update(self, prepared):
                raise SystemExit(3)
        result = _result(Exits)
        assert (result.status, result.note.partition(" (")[0]) == ("error", "in the setup: SystemExit: 3")

    def test_what_ended_a_cell_first_is_told(self):
        class Twice(Array):
            def update(self, prepared):
                raise Failed(2, "ENOMEM")

            def close(self):
                raise ValueError("and this")
        assert _result(Twice).note == "failed at k = 3: ENOMEM"

    def test_out_of_memory(self):
        class Big(Array):
            def __init__(self, npages):
                raise MemoryError("cannot have it")
        assert _result(Big).note == "in the setup: cannot have it"

    def test_stopped(self):
        result = _result(Array, seconds=0)
        assert (result.status, result.samples) == ("stopped", [])
        assert result.note.startswith("stopped after 0 s")

    def test_indivisible_work_is_stopped_too(self, monkeypatch):
        now = [0]
        monkeypatch.setattr(clock.time, "perf_counter_ns", lambda: now[0])

        class Slow(Array):
            def update(self, prepared):
                now[0] += 20_000_000
        updates = Batch.of(np.arange(1, 999, 2), 1, 1)
        workload = Workload(1000, Batch.empty(), "update", lambda index, operations: updates, 499, whole=True)
        result = _result(Slow, seconds=0.05, workload=workload)
        assert (result.status, result.samples) == ("stopped", [])
        # Parts that took less than 50 ms are twice as many the next time: 8, 16 and 32 updates.
        assert (result.note, result.reached) == ("stopped after 0.05 s at k = 56", 56)

    def test_memory_of_the_rounds_counts_before_the_start(self, monkeypatch):
        monkeypatch.setattr(arm_module, "available_bytes", lambda: 4_000_000_000)
        whole = scenarios.ALL["whole"]
        tebibytes = 4 * scenarios.TIB
        workload = whole.make(tebibytes, np.random.default_rng(1))
        tested = Arm(backends.ALL["xarray"], whole, tebibytes, Work(workload), 30)
        tested.open()
        tested.close()
        assert tested.result().status == "refused"

    def test_refused_before_it_starts(self, monkeypatch):
        class Huge(Array):
            @classmethod
            def bytes_needed(cls, footprint):
                return 1001

            def __init__(self, npages):
                raise AssertionError("was started")
        monkeypatch.setattr(arm_module, "available_bytes", lambda: 4000)
        result = _result(Huge)
        assert (result.status, result.note) == ("refused", "would take 1 kB of 4 kB free")

    def test_a_call_longer_than_the_limit_is_refused_before_it_starts_and_forecast(self, monkeypatch):
        class Long(Array):
            @classmethod
            def seconds_a_page(cls):
                return 2.5

            def __init__(self, npages):
                raise AssertionError("was started")
        result = _result(Long, seconds=4)      # its updates are of one page, there and back
        assert (result.status, result.note) == (
            "refused", "would take 5 s in calls that nothing can interrupt, of 4 s")
        monkeypatch.setattr(arm_module, "available_bytes", lambda: 1 << 50)
        monkeypatch.setattr(backends.ALL["xarray"], "seconds_a_page", lambda: 1e-6)
        units = [Unit("whole", 16 * scenarios.GIB, ("store", "xarray"))]
        # 8.4 s a round: two of them, because the limit of the cell then is passed, beside 10 of 0.1 s.
        forecast = runner.forecast(units, Options(rounds=8, round_seconds=0.1, cell_seconds=10))
        assert forecast.cells == 2
        assert forecast.low == forecast.high == pytest.approx(1 + 2 * 2 * 16 * scenarios.GIB * 1e-6)
        assert runner.forecast(units, Options(rounds=8, round_seconds=0.1, cell_seconds=8)).cells == 1

    def test_the_state_that_cannot_be_listed_is_probed(self):
        class Probed(Array):
            def runs(self):
                return None

            def probe(self, gfns):
                return self.pages[gfns.astype(np.intp)]

        class Idle(Probed):
            def update(self, prepared):
                pass

        class Next(Probed):
            def update(self, prepared):
                super().update(Batch(prepared.starts, prepared.stops + np.uint64(1), prepared.attributes,
                                     prepared.operations))

        class Unreadable(Probed):
            def probe(self, gfns):
                raise OSError(95, "Operation not supported")

        class Stateless(Probed):
            def probe(self, gfns):
                return None
        assert (_result(Probed).status, _result(Probed).note) == ("ok", "")
        assert _result(Idle).status == "wrong"
        assert re.fullmatch(r"page 0x\w+ reads back as 0, should be 1 \(\d+ of the \d+ pages that were probed differ\)",
                            _result(Idle).note)
        assert _result(Next).status == "wrong"
        assert _result(Stateless).note == "its state was not checked: it has neither runs nor single pages to show"
        assert _result(type("Floor", (Stateless, ), {"stateless": True})).note == ""
        unread = _result(Unreadable)
        assert (unread.status, unread.note) == ("ok", "its state was not checked: Operation not supported")
        assert "array at 49: its state was not checked: Operation not supported" in table.plain(
            Report({}, {}, {}, [unread]), 200)

    def test_probed_pages(self):
        setup = Batch.of(np.arange(100, 200_000, 20), 1, 1)
        rounds = [Batch.of([10, 50], 5, 1), Batch.of([1_000_000], 1, 0)]
        gfns = arm_module.probed_pages(1_000_001, [setup, *rounds])
        assert {9, 10, 14, 15, 49, 50, 54, 55, 999_999, 1_000_000} <= set(gfns.tolist())
        assert (np.diff(gfns) > 0).all()
        assert gfns[-1] == 1_000_000
        touched = np.isin(setup.starts, gfns).sum()
        assert 4096 <= touched < 4250
        assert 3 * 4096 < len(gfns) < 4 * 4096 + 20

    def test_unavailable_and_unsupported(self):
        class Absent(Array):
            @classmethod
            def missing(cls):
                return "kernel has no such thing"

        class Unable(Array):
            @classmethod
            def unsupported(cls, batch):
                return "has one bit"

            def __init__(self, npages):
                raise AssertionError("was started")
        assert (_result(Absent).status, _result(Absent).note) == ("unavailable", "kernel has no such thing")
        assert (_result(Unable).status, _result(Unable).note) == ("unsupported", "has one bit")
        workload = Workload(10, Batch.empty(), "export", lambda *_: None, 1)
        assert _result(Array, workload=workload).note == "has no export of runs"


class TestRunner:
    def test_all_arms_take_turns_forwards_and_backwards(self, monkeypatch):
        turns = []

        class First(Array):
            name = "first"

            def update(self, prepared):
                turns.append(self.name)
                super().update(prepared)

        class Second(First):
            name = "second"
        monkeypatch.setattr(backends, "ALL", {"first": First, "second": Second})
        monkeypatch.setitem(scenarios.ALL, "conversion", Scenario(
            "conversion", "?", (), "earlier conversions", "ns", (1, ), (), lambda *_: _workload(whole=True)))
        results = runner.run_unit(Unit("conversion", 1, ("first", "second")), Options(3, 0.001, 30))
        assert [result.status for result in results] == ["ok", "ok"]
        # Setup, warm-up and five empty calls of each come first; the last of each is the check's.
        assert turns[-8:-2] == ["first", "second", "second", "first", "first", "second"]

    @pytest.mark.parametrize(("seconds", "samples"), [(10.0, 7), (1e-9, 3)])
    def test_short_rounds_are_more(self, seconds, samples, monkeypatch):
        monkeypatch.setattr(backends, "ALL", {"array": Array})
        monkeypatch.setitem(scenarios.ALL, "conversion", SCENARIO)
        (result, ) = runner.run_unit(Unit("conversion", 49, ("array", )), Options(3, seconds, 30, most=7))
        assert (result.status, len(result.samples)) == ("ok", samples)

    @pytest.mark.parametrize("kind", ["model", "kernel"])
    def test_an_interruption_while_the_rounds_are_chosen_makes_them_no_shorter(self, kind, monkeypatch):
        calls = itertools.count()

        def interrupted(work, *arguments):
            """Every other call takes three times as long as a round should, and next to no time of the CPU."""
            return work(*arguments), Took(1e4 if next(calls) % 2 else 3e6, 1e4)
        monkeypatch.setattr(arm_module, "timed", interrupted)
        assert _result(type("Interrupted", (Array, ), {"kind": kind})).operations == 8

    def test_every_arm_gets_the_same_arrays_and_its_own_copy(self, monkeypatch):
        class Spoils(Array):
            name = "spoils"

            def update(self, prepared):
                super().update(prepared)
                prepared.attributes[:] = 77

        def make(size, random):
            def argument(index, operations):
                pages = random.choice(900, operations // 2, replace=False)      # another one at every call
                return Batch.joined(Batch.of(pages, 1, 1), Batch.of(pages, 1, 0))
            return Workload(1000, Batch.empty(), "update", argument, 8)
        monkeypatch.setattr(backends, "ALL", {"spoils": Spoils, "array": Array})
        monkeypatch.setitem(scenarios.ALL, "conversion", Scenario(
            "conversion", "?", (), "earlier conversions", "ns", (1, ), (), make))
        made = []
        monkeypatch.setattr(arm_module, "Reference", lambda *arguments: made.append(1) or Reference(*arguments))
        results = runner.run_unit(Unit("conversion", 1, ("spoils", "array")), Options(3, 10.0, 30))
        assert [result.status for result in results] == ["ok", "ok"]
        assert len(made) == 1       # both did the same

    def test_units_keep_their_backends_together(self):
        units = runner.plan(["conversion", "rmw"], ["store", "memslots", "store-get-write"], quick=True)
        assert {unit.backends for unit in units if unit.scenario == "conversion"} == {("store", "memslots")}
        assert [unit.backends for unit in units if unit.scenario == "rmw"] == [
            ("store", "memslots", "store-get-write")]

    def test_a_broken_unit_is_an_error_in_its_cells_and_the_rest_is_measured(self, monkeypatch):
        def broken(size, random):
            raise ValueError("no such size")
        monkeypatch.setitem(scenarios.ALL, "has", Scenario(
            "has", "?", (), "block size", "ns", (1, ), (), broken))
        units = [Unit("has", 1, ("store", "numpy")), Unit("conversion", 10, ("store", ))]
        results = [result for unit in runner.run(units, BRIEF) for result in unit]
        assert [(result.scenario, result.backend, result.status) for result in results] == [
            ("has", "store", "error"), ("has", "numpy", "error"), ("conversion", "store", "ok")]
        assert results[0].note.startswith("ValueError: no such size (test_study.py:")

    def test_an_exception_between_the_arms_ends_those_that_were_alive(self, monkeypatch):
        def broken(arm, index):
            raise RuntimeError("between")
        monkeypatch.setattr(Arm, "sample", broken)
        results = runner.run_unit(Unit("conversion", 10, ("store", "unicorn")), BRIEF)
        assert results[0].status == "error"
        assert results[0].note.startswith("RuntimeError: between (test_study.py:")
        assert results[1].status in ("refused", "unavailable")

    def test_the_forecast_leaves_out_what_cannot_run(self, monkeypatch):
        units = [Unit("export", 10, ("store", "pyroaring")), Unit("conversion", 10, ("store", "kvm-memslots"))]
        options = Options(rounds=8, round_seconds=0.5, cell_seconds=60)
        monkeypatch.setattr(backends.ALL["kvm-memslots"], "missing", classmethod(lambda cls: "no"))
        assert runner.forecast(units, options) == runner.Forecast(2, 10.0, 10.0, (5.0, 5.0))
        monkeypatch.setattr(backends.ALL["kvm-memslots"], "missing", classmethod(lambda cls: None))
        monkeypatch.setattr(backends.ALL["kvm-memslots"], "bytes_needed", classmethod(lambda cls, footprint: 0))
        assert runner.forecast(units, options) == runner.Forecast(3, 15.0, 70.0, (5.0, 10.0))
        # What would be refused and what cannot be expressed does not count either.
        monkeypatch.setattr(backends.ALL["kvm-memslots"], "bytes_needed", classmethod(lambda cls, footprint: 1 << 60))
        assert runner.forecast(units, options).cells == 2
        assert runner.forecast([Unit("rmw", 10, ("store", "mprotect"))], options).cells == 1
        assert runner.forecast([Unit("guest", 1 << 30, ("store", "xarray", "unicorn"))], options).cells == 2

    def test_a_backend_of_few_scenarios_makes_no_empty_units(self):
        assert runner.plan(["guest"], ["kvm-memslots-vcpu"], quick=False) == []
        assert {unit.scenario for unit in runner.plan(list(scenarios.ALL), ["kvm-memslots-vcpu"], quick=False)} == {
            "conversion", "conversion-single", "whole"}


def cell(backend: str, samples: list[float], kind: str = "model", **changes) -> Result:
    fields = {"scenario": "conversion", "backend": backend, "kind": kind, "size": 100,
              "unit": "ns/conversion", "status": "ok" if samples else "failed", "samples": samples,
              "operations": 2} | changes
    return Result(**fields)


def test_ratios_stay_within_a_kind_and_a_unit():
    results = [cell("store", [1.0, 1.0]), cell("memslots", [5.0, 5.0]), cell("kvm-memslots", [9.0], "kernel"),
               cell("empty-ioctl", [1.0], "kernel"), cell("numpy", [2.0], size=200)]
    assert [(ratio.backend, ratio.reference, ratio.ratio.median) for ratio in comparisons(results)] == [
        ("memslots", "store", 5.0)]


def test_a_missing_library_names_the_extra():
    extras.EXTRA_OF["nosuchlibrary"] = "study"
    try:
        with pytest.raises(ImportError) as raised:
            extras.require("json", "nosuchlibrary")
    finally:
        del extras.EXTRA_OF["nosuchlibrary"]
    assert str(raised.value) == "nosuchlibrary not installed: pip install 'kvmattr[study]'"
