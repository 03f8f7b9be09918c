"""Two states of something, several runs of each: which cells changed, by how much, and which cannot be told.

A run's own rounds say nothing of the next run: between runs of unchanged code a machine moves a ratio by more
than its interval within one run. So a run counts as **one** number a cell: the logarithm of the fastest tenth of
its rounds, divided by that of the yardstick (fixed work in user space, read in each of the same rounds). Whatever
disturbs a round makes it slower, so the fastest ones of two runs differ least; a tenth of them is the same of many
rounds and of few. A run that lies far above the others of its side was disturbed as a whole: one in five may be
set aside, and is told. How the numbers vary is taken from the runs of one side, of both, and of those that are given
as unchanged. Few runs show that badly, many cells show it well: each cell's variance is drawn towards what cells have
in the middle, as far as the cells agree (Smyth's moderated t, 2004). A change is called one where chance would
show so large a difference of a smaller change than the margin (McCarthy and Smyth's treat, 2009) too rarely, at a
level that is shared out among the cells (Holm, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmattr.measure.statistics import Variance, chance, half_width, moderated, stepped
from kvmattr.study.report import Report
from kvmattr.study.results import FASTEST, FLOOR, Result

#: A cell of fewer samples says nothing of its run.
LEAST_SAMPLES = 5
#: A verdict of a comparison is wrong, whichever it is, with this probability.
_LEVEL = 0.05
#: So many times slower or faster is no change: code that merely lies elsewhere in memory does as much.
MARGIN = 1.05
#: Others' CPUs, on average, by which the two sides may differ, and the margin where they differ more: what load
#: does to caches and clocks is no change of what was measured. Copying memory on every CPU makes unchanged look-ups
#: up to 1.6 times slower (bench/compare_proof.py).
LOAD, LOAD_MARGIN = 0.25, 1.75
#: "same" is said where a change of this size would have been seen.
SEEN = 1.25
#: A run was disturbed where it lies so many standard deviations above the median of its side, and of this share of
#: a side's runs at most: what happens more often is no disturbance.
_DISTURBED, _DISTURBED_SHARE = 4.0, 0.2
#: Of a normal variable: its standard deviation in median absolute deviations.
_DEVIATIONS = 1.4826
#: Bytes are counted, not measured.
_BYTES_MARGIN = 1.01


@dataclass(frozen=True)
class Row:
    """One cell on both sides. ``ratio``: how many times as much B takes, with its interval, in yardsticks.

    ``verdict``: "slower", "faster" or "same"; "open" could not be told, "broken" was measured on side A alone,
    "mended" on side B alone, "" has nothing to judge. ``note``: why, or what else there is to say.
    """

    scenario: str
    size: int
    backend: str
    kind: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str
    note: str
    #: The same ratio against the floor of an empty ioctl, for calls into the kernel.
    floor_ratio: float | None = None


@dataclass(frozen=True)
class Compared:
    """All rows, and the warnings that stand above them."""

    rows: list[Row]
    warnings: list[str]

    def of(self, *verdicts: str) -> list[Row]:
        """The rows with these verdicts."""
        return [row for row in self.rows if row.verdict in verdicts]

    @property
    def exit_code(self) -> int:
        """0 nothing is slower; 1 something is, or is broken; 3 it could not be told of every cell, or of none."""
        if self.of("slower", "broken"):
            return 1
        return 3 if self.of("open") or not self.of("faster", "same", "mended") else 0

    @property
    def summary(self) -> str:
        """One line: the outcome and how many cells it rests on."""
        word = {0: "PASS", 1: "SLOWER", 3: "COULD NOT TELL"}[self.exit_code]
        words = {"same": "the same", "open": "could not be told"}
        said = [f"{len(rows)} {words.get(verdict, verdict)}" for verdict in
                ("slower", "broken", "faster", "mended", "same", "open") if (rows := self.of(verdict))]
        return f"{word}: {', '.join(said) or 'no cell was judged'}"

    def as_record(self) -> dict[str, Any]:
        """The JSON document."""
        return {"schema": 1, "summary": self.summary, "exit_code": self.exit_code, "warnings": self.warnings,
                "rows": [dict(vars(row)) for row in self.rows]}


Place = tuple[str, int, str]


def compare(a: Sequence[Report], b: Sequence[Report], same: Sequence[Report] = ()) -> Compared:
    """Judge every cell that both sides have; ``same``: runs of one unchanged state, which show what runs vary by."""
    a, b, same, repeated = _distinct(a, b, same)
    sides = [_results(reports) for reports in (a, b, same)]
    cells = [_Cell(place, sides) for place in sides[0] if place in sides[1]]
    judged = [cell for cell in cells if cell.judged]
    _set_disturbed_aside(judged)
    for cell, variance in moderated({cell: found for cell in judged if (found := _variance(cell.groups))}).items():
        cell.variance = variance
    for cell, level in stepped({cell: cell.chance for cell in judged if cell.variance}, _LEVEL).items():
        cell.level = level
    apart = sum(cell.loaded for cell in judged)
    return Compared([cell.row() for cell in cells], [*repeated, *_warnings(a, b, apart, len(judged))])


class _Cell:
    """One cell of both sides, and the numbers that its runs count as: of A, of B and of the unchanged state."""

    #: How the runs of one state vary, None where nothing shows it.
    variance: Variance | None = None
    #: What it is judged at.
    level = 0.0
    #: What there is to say of runs that were set aside.
    disturbed = ""

    def __init__(self, place: Place, sides: Sequence[Mapping[Place, list[Result]]]) -> None:
        self.a, self.b = sides[0][place], sides[1][place]
        self.groups = [[value for cell in side.get(place, ()) if (value := _value(cell)) is not None]
                       for side in sides]
        self.why_not = _why_not([*self.a, *self.b])
        self.judged = bool(self.groups[0] and self.groups[1] and not self.why_not and self.a[0].unit != "bytes")
        self.loaded = abs(_loads(self.a) - _loads(self.b)) > LOAD
        self._margin = math.log(LOAD_MARGIN if self.loaded else MARGIN)
        self._floor_ratio = _floor(sides, place)

    @property
    def _difference(self) -> float:
        return float(np.mean(self.groups[1]) - np.mean(self.groups[0]))

    @property
    def _uncertainty(self) -> tuple[float, int]:
        """The standard error of the difference, and its degrees of freedom."""
        assert self.variance is not None
        return (math.sqrt(self.variance.value * (1 / len(self.groups[0]) + 1 / len(self.groups[1]))),
                self.variance.freedom)

    @property
    def chance(self) -> float:
        """How probable so large a difference is where there is no change."""
        return chance(self._difference, *self._uncertainty, self._margin)

    def row(self) -> Row:
        """What is told of it."""
        one, shown = self.a[0], [_shown(cells) for cells in (self.a, self.b)]
        ratio = low = high = None
        ended = _ends(self.a, self.b)
        if ended is not None:
            verdict, note = ended
        elif one.unit == "bytes":
            ratio = low = high = (shown[1] or 0.0) / max(shown[0] or 0.0, 1.0)
            verdict, note = (("slower", "more") if ratio > _BYTES_MARGIN else
                             ("faster", "less") if ratio < 1 / _BYTES_MARGIN else ("same", ""))
        elif not self.judged:
            verdict, note = "open", self.why_not
        else:
            ratio = _ratio(self._difference)
            verdict, note = "open", "one run a side says nothing of the next: give several, or --same"
            if self.variance is not None:
                half, note = half_width(*self._uncertainty, self._margin, self.level), self.disturbed
                least, most = self._difference - half, self._difference + half
                low, high = _ratio(least), _ratio(most)
                # The interval's end beyond the margin is the verdict.
                verdict = ("slower" if least > self._margin else "faster" if most < -self._margin else
                           "same" if least >= -math.log(SEEN) and most <= math.log(SEEN) else "open")
        return Row(one.scenario, one.size, one.backend, one.kind, one.unit, shown[0], shown[1], ratio, low, high,
                   verdict, note, self._floor_ratio)


def _ratio(difference: float) -> float:
    return math.exp(min(difference, 700))


def _ends(a: list[Result], b: list[Result]) -> tuple[str, str] | None:
    """The verdict where a side was not measured in every run; None where both were."""
    ok = [all(cell.status == "ok" for cell in cells) for cells in (a, b)]
    if all(ok):
        return None
    said = [_end(cells) for cells in (a, b)]
    if not any(ok):
        return "", said[0] if said[0] == said[1] else f"{said[0]} -> {said[1]}"
    ended, verdict, words = ((b, "broken", f"was measured, {said[1]}") if ok[0] else
                             (a, "mended", f"{said[0]}, was measured then"))
    known = all(cell.status in ("failed", "wrong", "error", "stopped") for cell in ended)
    return verdict if known else "", words


def _end(cells: list[Result]) -> str:
    bad = next((cell for cell in cells if cell.status != "ok"), cells[0])
    return bad.note if bad.status == "failed" and bad.note else bad.status


def _why_not(cells: list[Result]) -> str:
    """Why a cell that was measured in these runs cannot be judged; "" where it can."""
    fewest = min((len(cell.samples) for cell in cells if cell.status == "ok"), default=0)
    if fewest < LEAST_SAMPLES:
        return f"{fewest} samples in a run, {LEAST_SAMPLES} are needed"
    return "" if all(cell.yardstick for cell in cells) else "no yardstick: measured by an older version"


def _distinct(*sides: Sequence[Report]) -> tuple[list[Report], list[Report], list[Report], list[str]]:
    """Every run once a side (a copy of a file is no other run), and what there is to say of those that came again."""
    kept = [[report for index, report in enumerate(side) if report not in side[:index]] for side in sides]
    a, b, same = kept
    said = [f"{name} has {len(side) - len(once)} runs that are there already: each run counts once."
            for name, side, once in zip(("A", "B", "--same"), sides, kept, strict=True) if len(once) < len(side)]
    common = sum(report in b for report in a)
    if common:
        said.append(f"A and B have {common} runs in common: they make the sides alike.")
    return a, b, [report for report in same if report not in a and report not in b], said


def _results(reports: Sequence[Report]) -> dict[Place, list[Result]]:
    """The results of one side by their place, one a report."""
    found: dict[Place, list[Result]] = {}
    for report in reports:
        for result in report.results:
            if result.status not in ("unsupported", "unavailable"):
                found.setdefault((result.scenario, result.size, result.backend), []).append(result)
    return found


def _value(cell: Result) -> float | None:
    """The one number of a run."""
    if cell.status != "ok" or not cell.yardstick:
        return None
    return math.log(cell.fastest / float(np.quantile(cell.yardstick, FASTEST)))


def _set_disturbed_aside(cells: Sequence[_Cell]) -> None:
    """Take the runs that were disturbed as a whole out of the groups of each cell, which says so."""
    scales = {cell: _DEVIATIONS * float(np.median(apart)) for cell in cells
              if (apart := [abs(value - float(np.median(group))) for group in cell.groups for value in group
                            if len(group) > 1])}
    typical = float(np.median(list(scales.values()))) if scales else 0.0
    for cell in cells:
        limit = _DISTURBED * max(scales.get(cell, 0.0), typical)
        said = []
        for side, group in zip("AB ", cell.groups, strict=True):
            middle, count = float(np.median(group)) if group else 0.0, len(group)
            far = sorted(value for value in group if value - middle > limit)
            worst = far[max(len(far) - int(count * _DISTURBED_SHARE), 0):]
            for value in worst:
                group.remove(value)
            if worst and side != " ":
                said.append(f"{len(worst)} of {count} runs of {side} set aside: disturbed, "
                            f"{_ratio(worst[-1] - middle):.3g}x the others")
        cell.disturbed = "; ".join(said)


def _variance(groups: Sequence[Sequence[float]]) -> Variance | None:
    """How the runs of one state vary, from all groups together."""
    freedom = sum(len(group) - 1 for group in groups if group)
    if not freedom:
        return None
    return Variance(sum(float(np.var(group)) * len(group) for group in groups if group) / freedom, freedom)


def _floor(sides: Sequence[Mapping[Place, list[Result]]], place: Place) -> float | None:
    """How many times as far from the floor a call into the kernel is in B; medians over the runs."""
    floor: Place = (place[0], place[1], FLOOR)
    if sides[0][place][0].kind != "kernel" or place == floor:
        return None
    ratios = []
    for side in sides[:2]:
        own, under = _shown(side[place]), _shown(side.get(floor, []))
        if own is None or under is None:
            return None
        ratios.append(own / under)
    return ratios[1] / ratios[0]


def _shown(cells: Sequence[Result]) -> float | None:
    """The middle of what the runs say, as it is judged."""
    fastest = [cell.fastest for cell in cells if cell.status == "ok" and cell.samples]
    return float(np.median(fastest)) if fastest else None


def _loads(cells: Sequence[Result]) -> float:
    """CPUs that others took while a cell's unit ran, on average over its runs."""
    loads = [cell.load.get("other_cpus", 0) + cell.load.get("stolen_cpus", 0) for cell in cells if cell.load]
    return float(np.mean(loads)) if loads else 0.0


def _warnings(a: Sequence[Report], b: Sequence[Report], apart: int, judged: int) -> list[str]:
    said = []
    for what in ("host", "cpu", "kernel", "kvmattr", "python", "numpy"):
        values = [sorted({str(report.machine[what]) for report in side}) for side in (a, b)]
        if any(len(each) > 1 for each in values):
            said.append(f"One side has runs of different {what}: {' and '.join(sorted({*values[0], *values[1]}))}.")
        elif values[0] != values[1] and what in ("host", "cpu"):
            said.append(f"The sides ran on different machines ({what}: {values[0][0]} and {values[1][0]}): what "
                        "follows compares the machines as well.")
    if apart:
        means = [float(np.mean([report.load["other_cpus"] + report.load["stolen_cpus"] for report in side]))
                 for side in (a, b)]
        said.append(f"The load differed (others took {means[0]:.2f} CPUs in A, {means[1]:.2f} in B, on average): in "
                    f"{apart} of {judged} cells only what is beyond {LOAD_MARGIN:g}x is called a change.")
    if any(report.interrupted for report in (*a, *b)):
        said.append("A run was interrupted: its last cells are missing.")
    return said
