"""kvmattr compare: what it calls a change, what it does not, and what it cannot tell."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from kvmattr import cli
from kvmattr.measure.statistics import Variance, chance, half_width, moderated, stepped, student_tail
from kvmattr.study import comparing
from kvmattr.study.comparing import compare
from kvmattr.study.report import Report
from kvmattr.study.results import Result

MACHINE = {"host": "here", "kernel": "6.12", "cpu": "a CPU", "cpus": 2, "memory_bytes": 8_000_000_000,
           "python": "3.11", "numpy": "2", "kvmattr": "0", "kvm": {"memslots": 32764}, "started": "2026-11-22"}
METHOD = {"rounds": 9, "round_seconds": 0.1, "cell_seconds": 10}
#: Twenty cells, whose times lie far apart.
CELLS = [("conversion", size, backend, kind) for size in (1, 100, 1_000, 10_000)
         for backend, kind in (("store", "model"), ("memslots", "model"), ("numpy", "model"),
                               ("kvm-memslots", "kernel"), ("empty-ioctl", "kernel"))]


def run_of(random: np.random.Generator, *, load: float = 0.0, between: float = 0.03, rounds: int = 9,
           planted: dict[tuple[str, int], float] | None = None, shift: float = 0.0) -> Report:
    """A run of unchanged code as machines do it: each cell drifts with the run, and a load moves it further."""
    results = []
    for index, (scenario, size, backend, kind) in enumerate(CELLS):
        true = 10.0 * (index + 1) * (planted or {}).get((backend, size), 1.0)
        clock = math.exp(random.normal(0, 0.2))     # the machine's pace, which the yardstick shares
        drift = math.exp(random.normal(0, between) + shift * load * random.uniform(0, 1))
        noise = np.exp(np.abs(random.normal(0, 0.05 + 0.15 * load, rounds)))     # what disturbs makes slower
        results.append(Result(
            scenario, backend, kind, size, "ns/conversion", "ok", samples=(true * clock * drift * noise).tolist(),
            operations=64, host="here", clock="cpu", wall=(true * clock * noise).tolist(),
            yardstick=(2000 * clock * np.exp(np.abs(random.normal(0, 0.05 * load, rounds)))).tolist(),
            load={"seconds": 1.0, "other_cpus": load, "stolen_cpus": 0.0}))
    return Report(MACHINE, METHOD, {"seconds": 20.0, "other_cpus": load, "stolen_cpus": 0.0}, results)


def side(random: np.random.Generator, runs: int = 5, **words) -> list[Report]:
    return [run_of(random, **words) for _ in range(runs)]


class TestStudent:
    @pytest.mark.parametrize(("t", "freedom", "tail"), [    # from printed tables
        (6.3138, 1, 0.1), (4.3027, 2, 0.05), (5.8409, 3, 0.01), (2.3060, 8, 0.05), (1.9600, 100_000, 0.05)])
    def test_tail_and_quantile(self, t, freedom, tail):
        assert student_tail(t, freedom) == pytest.approx(tail, rel=1e-3)
        assert student_tail(-t, freedom) == student_tail(t, freedom)
        assert half_width(1, freedom, 0, tail) == pytest.approx(t, rel=1e-3)

    def test_the_middle(self):
        for freedom in (1, 2, 7, 8):
            assert student_tail(0, freedom) == pytest.approx(1)

    def test_far_out(self):
        assert half_width(1, 1, 0, 0.05 / 400) == pytest.approx(5093, rel=1e-3)


class TestBeyondAMargin:
    def test_the_interval_and_the_chance_say_the_same(self):
        for difference, error, freedom, margin in itertools.product((0.0, 0.1, 0.3, -0.5), (0.01, 0.1), (3, 20),
                                                                    (0.0, 0.05, 0.2)):
            for level in (0.05, 0.001):
                half = half_width(error, freedom, margin, level)
                assert (abs(difference) - half > margin) == (chance(difference, error, freedom, margin) < level)

    def test_of_changes_as_large_as_the_margin_no_more_are_called_larger_than_the_level(self):
        random = np.random.default_rng(0)
        for true in (0.0, 0.1):
            groups = random.normal(0, 0.1, (2000, 2, 5)) + np.array([[0.0], [true]])
            errors = np.sqrt(groups.var(axis=2, ddof=1).sum(axis=1) / 5)
            apart = groups.mean(axis=2)[:, 1] - groups.mean(axis=2)[:, 0]
            called = sum(chance(one, error, 8, 0.1) < 0.05 for one, error in zip(apart, errors, strict=True))
            assert called <= 0.06 * len(groups)
            assert called >= 0.03 * len(groups) or true == 0

    def test_nothing_varies(self):
        assert (chance(0.2, 0, 5, 0.1), chance(0.1, 0, 5, 0.1), half_width(0, 5, 0.1, 0.05)) == (0, 1, 0)

    def test_a_level_is_shared_out(self):
        chances = dict(zip("abcde", (0.5, 0.011, 0.001, 0.012, 0.9), strict=True))
        # By equal parts, 0.01 each, one would have been told; after it the others have more.
        assert stepped(chances, 0.05) == pytest.approx(
            {"c": 0.01, "b": 0.0125, "d": 0.05 / 3, "a": 0.025, "e": 0.025})
        assert stepped({}, 0.05) == {}


class TestProof:
    """20 comparisons of unchanged code: the wrong verdicts are counted, and so are the planted ones that are found."""

    def verdicts(self, **loaded) -> float:
        wrong = total = 0
        for seed in range(20):
            random = np.random.default_rng(seed)
            compared = compare(side(random), side(random, **loaded))
            wrong += len(compared.of("slower", "faster"))
            total += len(compared.rows)
        assert total == 20 * len(CELLS)
        return wrong / total

    def test_unchanged_and_quiet(self):
        assert self.verdicts() <= 1 / 20

    def test_unchanged_quiet_against_loaded(self):
        assert self.verdicts(load=1.5, shift=0.1) <= 1 / 20

    def test_the_intervals_within_runs_would_have_failed(self):
        """What was judged before: two runs, each with the interval of its own rounds."""
        from kvmattr.measure.statistics import Ratio
        wrong = 0
        for seed in range(20):
            random = np.random.default_rng(seed)
            pair = []
            for each in (run_of(random), run_of(random)):
                cells = {(cell.backend, cell.size): cell for cell in each.results}
                pair.append({place: Ratio.of(cell.samples, cells["store", place[1]].samples)
                             for place, cell in cells.items() if cell.kind == "model" and place[0] != "store"})
            wrong += sum(pair[0][place].high < pair[1][place].low or pair[1][place].high < pair[0][place].low
                         for place in pair[0])
        assert wrong / (20 * 8) > 1 / 20

    @pytest.mark.parametrize("load", [0.0, 1.0])
    def test_a_planted_change_is_found(self, load):
        found = 0
        for seed in range(20):
            random = np.random.default_rng(seed)
            planted = {("store", 1_000): 1.3, ("kvm-memslots", 100): 1 / 1.3}
            compared = compare(side(random, load=load), side(random, load=load, planted=planted))
            verdicts = {(row.backend, row.size): row.verdict for row in compared.rows}
            found += (verdicts["store", 1_000] == "slower") + (verdicts["kvm-memslots", 100] == "faster")
            assert compared.exit_code == 1 or verdicts["store", 1_000] != "slower"
        assert found >= 36


def disturb(reports: list[Report], numbers: list[int], backend: str, size: int, times: float) -> list[Report]:
    """In these runs one cell was disturbed as a whole."""
    for number in numbers:
        reports[number] = Report(MACHINE, METHOD, reports[number].load, [
            replace(cell, samples=[times * each for each in cell.samples])
            if (cell.backend, cell.size) == (backend, size) else cell for cell in reports[number].results])
    return reports


class TestDisturbedRuns:
    def test_one_in_five_is_set_aside_and_told(self):
        random = np.random.default_rng(1)
        planted = {("store", 100): 1.3, ("numpy", 100): 1.3}
        b = disturb(side(random, planted=planted), [3], "store", 100, 25)
        rows = {(row.backend, row.size): row for row in compare(side(random), b).rows}
        assert rows["store", 100].verdict == rows["numpy", 100].verdict == "slower"
        assert rows["store", 100].ratio < 1.6
        assert re.fullmatch(r"1 of 5 runs of B set aside: disturbed, 2[0-9.]+x the others", rows["store", 100].note)
        assert rows["numpy", 100].note == ""

    def test_what_happens_more_often_is_no_disturbance(self):
        random = np.random.default_rng(1)
        b = disturb(side(random), [1, 3], "store", 100, 25)
        row = next(row for row in compare(side(random), b).rows if (row.backend, row.size) == ("store", 100))
        assert row.ratio > 2
        assert "24" in row.note or "25" in row.note or "26" in row.note

    def test_of_four_runs_none_is_set_aside(self):
        random = np.random.default_rng(1)
        b = disturb(side(random, 4), [3], "store", 100, 25)
        row = next(row for row in compare(side(random, 4), b).rows if (row.backend, row.size) == ("store", 100))
        assert (row.verdict, row.note) == ("open", "")

    def test_a_fast_run_is_no_disturbance(self):
        random = np.random.default_rng(1)
        b = disturb(side(random), [3], "store", 100, 1 / 25)
        row = next(row for row in compare(side(random), b).rows if (row.backend, row.size) == ("store", 100))
        assert (row.verdict, row.note) == ("open", "")


class TestModerated:
    """Cells whose variances agree are judged by all of them; one that varies wildly keeps its own."""

    def test_equal_variances_become_one(self):
        random = np.random.default_rng(0)
        drawn = moderated({key: Variance(float(np.var(random.normal(0, 2, 9), ddof=1)), 8) for key in range(200)})
        together = [one for one in drawn.values() if one.freedom > 50]
        assert len(together) >= 190     # one in a hundred varies more than chance allows, by chance
        assert all(3 < one.value < 5 for one in together)

    def test_one_that_varies_wildly_moves_no_other(self):
        calm = {key: Variance(1.0 + key / 10, 8) for key in range(9)}
        with_wild = moderated({**calm, "wild": Variance(1e6, 8)})
        assert with_wild["wild"] == Variance(1e6, 8)
        assert all(0.5 < with_wild[key].value < 3 for key in calm)

    def test_one_alone_keeps_its_own(self):
        assert moderated({"a": Variance(2.0, 3)}) == {"a": Variance(2.0, 3)}
        assert moderated({}) == {}


class TestWhatIsSaid:
    def test_one_run_a_side_says_nothing(self):
        random = np.random.default_rng(1)
        compared = compare(side(random, 1), side(random, 1, planted={("store", 1): 3.0}))
        assert {row.verdict for row in compared.rows} == {"open"}
        assert compared.rows[0].note == "one run a side says nothing of the next: give several, or --same"
        assert (compared.exit_code, compared.summary) == (3, "COULD NOT TELL: 20 could not be told")

    def test_a_run_counts_once(self):
        """A file named twice, or copied, says nothing of how runs vary."""
        random = np.random.default_rng(1)
        a, b = side(random, 1), side(random, 1, planted={("store", 1): 3.0})
        compared = compare(a * 5, b * 3, a)
        assert {row.verdict for row in compared.rows} == {"open"}
        assert compared.warnings == ["A has 4 runs that are there already: each run counts once.",
                                     "B has 2 runs that are there already: each run counts once."]
        assert compare([*a, *b], b).warnings == ["A and B have 1 runs in common: they make the sides alike."]

    def test_runs_of_unchanged_code_bound_it(self):
        random = np.random.default_rng(1)
        same = side(random, 6)
        compared = compare(side(random, 1), side(random, 1, planted={("store", 1): 2.0}), same)
        assert [(row.backend, row.size) for row in compared.of("slower")] == [("store", 1)]
        assert compared.of("faster") == []

    def test_under_five_samples_nothing_is_said(self):
        random = np.random.default_rng(1)
        compared = compare(side(random, rounds=4), side(random, rounds=4, planted={("store", 1): 3.0}))
        assert {(row.verdict, row.note) for row in compared.rows} == {
            ("open", "4 samples in a run, 5 are needed")}

    def test_a_load_that_differs_is_told_and_asks_for_more(self):
        random = np.random.default_rng(1)
        planted = {("store", 1): 1.2, ("numpy", 1): 2.0}
        quiet = compare(side(random, between=0.005), side(random, between=0.005, planted=planted))
        assert {row.backend for row in quiet.of("slower")} == {"store", "numpy"}
        apart = compare(side(random, between=0.005), side(random, between=0.005, planted=planted, load=0.8))
        assert {row.backend for row in apart.of("slower")} == {"numpy"}
        assert apart.warnings == [
            "The load differed (others took 0.00 CPUs in A, 0.80 in B, on average): in 20 of 20 cells only what is "
            "beyond 1.75x is called a change."]

    def test_the_floor_moves_with_the_kernel(self):
        random = np.random.default_rng(1)
        planted = {("kvm-memslots", 1): 2.0, ("empty-ioctl", 1): 2.0}
        rows = {(row.backend, row.size): row
                for row in compare(side(random), side(random, planted=planted)).rows}
        assert rows["empty-ioctl", 1].verdict == rows["kvm-memslots", 1].verdict == "slower"
        assert rows["kvm-memslots", 1].floor_ratio == pytest.approx(1, abs=0.4)
        assert rows["empty-ioctl", 1].floor_ratio is None
        assert rows["store", 1].floor_ratio is None

    @pytest.mark.parametrize(("status", "verdict", "code"), [
        ("failed", "broken", 1), ("error", "broken", 1), ("refused", "", 0)])
    def test_a_cell_that_ends_otherwise(self, status, verdict, code):
        random = np.random.default_rng(3)
        a, b = side(random, between=0.001), side(random, between=0.001)
        for report in b:
            report.results[1] = Result("conversion", "memslots", "model", 1, "ns/conversion", status, "why")
        compared = compare(a, b)
        assert (compared.rows[1].verdict, compared.exit_code) == (verdict, code)
        assert compared.rows[1].note == f"was measured, {'why' if status == 'failed' else status}"
        back = compare(b, a)
        assert back.rows[1].verdict == ("mended" if verdict else "")
        assert back.exit_code == 0

    def test_bytes_are_counted(self):
        def reports(count: float) -> list[Report]:
            cell = Result("memory", "store", "model", 10, "bytes", "ok", samples=[count] * 3)
            return [Report(MACHINE, METHOD, {"other_cpus": 0.0, "stolen_cpus": 0.0}, [cell])]
        assert [compare(reports(1000), reports(count)).rows[0].verdict for count in (1000, 1009, 1011, 900)] == [
            "same", "same", "slower", "faster"]

    def test_other_machines_are_told(self):
        random = np.random.default_rng(1)
        a, b = side(random, 2), side(random, 2)
        b[0].machine.update()
        b = [Report({**MACHINE, "cpu": "another", "kernel": kernel}, METHOD, report.load, report.results)
             for kernel, report in zip(("6.12", "6.13"), b, strict=True)]
        assert compare(a, b).warnings == [
            "The sides ran on different machines (cpu: a CPU and another): what follows compares the machines as well.",
            "One side has runs of different kernel: 6.12 and 6.13."]


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(1)
    paths = {}
    for name, planted in (("a", None), ("b", {("store", 1): 1.5})):
        paths[name] = []
        for number in range(5):
            path = tmp_path / f"{name}{number}.json"
            run_of(random, planted=planted).save(path)
            paths[name].append(str(path))
    return paths


def test_the_figure_has_every_cell():
    pytest.importorskip("matplotlib")
    from kvmattr.study.plots import both_sides
    random = np.random.default_rng(1)
    a, b = side(random), side(random, planted={("store", 1): 2.0, ("numpy", 100): 0.5})
    rows = compare(a, b).rows
    model, kernel, ratios = both_sides(a, b, rows).axes
    assert [axes.get_title() for axes in (model, kernel)] == ["conversion (model)", "conversion (kernel)"]
    assert [label.get_text() for label in ratios.get_yticklabels()] == [
        f"conversion {row.size:,} {row.backend}" for row in rows]
    assert [label.get_text() for label in ratios.get_legend().get_texts()] == ["slower", "same", "faster"]
    # One run a side: ratios without intervals; nothing in common: an empty panel.
    assert both_sides(a[:1], b[:1], compare(a[:1], b[:1]).rows).axes[-1].get_legend().get_texts()
    assert both_sides(a, b, []).axes[-1].get_legend() is None


class TestCommand:
    def test_prints_writes_and_returns(self, files, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        written = tmp_path / "c.json", tmp_path / "c.svg"
        assert cli.main(["compare", "--a", *files["a"], "--b", *files["b"], "--json", str(written[0]),
                         "--figure", str(written[1])]) == 1
        out, err = capsys.readouterr()
        assert out.startswith("A: 5 runs, here, a CPU, kernel 6.12, kvmattr 0, from 2026-11-22\nB: 5 runs")
        assert out.rstrip().splitlines()[-1].startswith("SLOWER: 1 slower")
        assert all(len(line) <= 80 for line in out.splitlines())
        assert err == f"written: {written[0]}, {written[1]}\n"
        record = json.loads(written[0].read_text())
        assert record["exit_code"] == 1
        assert [row["backend"] for row in record["rows"] if row["verdict"] == "slower"] == ["store"]
        assert "<svg" in written[1].read_text()

    def test_json_to_stdout_leaves_the_table_to_stderr(self, files, capsys):
        assert cli.main(["compare", "--a", *files["a"], "--b", *files["a"], "--json", "-"]) in (0, 3)
        out, err = capsys.readouterr()
        assert json.loads(out)["schema"] == 1
        assert "conversion (ns/conversion)" in err

    @pytest.mark.parametrize(("words", "complaint"), [
        ([], "expected two reports, or --a A.json ... --b B.json ..."),
        (["{a}"], "1 reports: expected two, or --a A.json ... --b B.json ..."),
        (["{a}", "{a}", "--a", "{a}"], "give two reports, or --a and --b, not both"),
        (["--a", "{a}"], "expected two reports, or --a A.json ... --b B.json ..."),
        (["{a}", "{a}", "--figure", "x.jpg"], "--figure x.jpg: a picture's name ends in .png, .svg or .pdf"),
        (["{a}", "/nowhere/b.json"], "/nowhere/b.json: No such file or directory"),
        (["{a}", "{a}", "--json", "/nowhere/c.json"],
         "/nowhere/c.json cannot be written: no such directory: /nowhere"),
    ])
    def test_usage(self, words, complaint, files, capsys):
        assert cli.main(["compare", *(word.replace("{a}", files["a"][0]) for word in words)]) == 2
        assert capsys.readouterr().err == f"kvmattr compare: {complaint}\n"

    def test_nothing_in_common(self, files, tmp_path, capsys):
        other = tmp_path / "other.json"
        Report(MACHINE, METHOD, {"other_cpus": 0.0, "stolen_cpus": 0.0}, []).save(other)
        assert cli.main(["compare", files["a"][0], str(other)]) == 2
        assert capsys.readouterr().err == "kvmattr compare: A and B have no cell in common\n"


def test_the_margins_agree_with_what_the_help_says():
    from kvmattr.study import compare as command
    assert f"{comparing.MARGIN:g}x" in command.__doc__
    assert f"{comparing.LOAD_MARGIN:g}x" in command.__doc__
