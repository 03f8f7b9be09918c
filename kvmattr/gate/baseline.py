"""The committed baseline: exact counts and bytes, slopes, and instruction counts where asked for."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmattr.gate.counting import COUNTING_ONLY, SLOPED
from kvmattr.gate.scenario import GROWTH
from kvmattr.gate.slopes import slope
from kvmattr.gate.verdict import Report, Usage, Verdict

SCHEMA = 1

#: A slope may move by this much from the baseline's before it counts as another growth.
_SLOPE_CHANGE = 0.1


@dataclass
class Baseline:
    """Keys are SCENARIO/SIZE/COUNTER in counts and bytes, SCENARIO/COUNTER in slopes, SCENARIO/SIZE in
    instructions, which belong to one interpreter."""

    counts: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    interpreter: str | None = None
    instructions: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a baseline file; Usage tells what is wrong with it."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Usage(f"{path}: no such baseline; --update-baseline writes one") from None
        except (OSError, ValueError) as error:
            raise Usage(f"{path}: not a baseline: {error}") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise Usage(f"{path}: a baseline of schema {found!r}; this gate reads schema {SCHEMA}")
        unknown = sorted(set(data) - {"schema", "counts", "bytes", "slopes", "instructions"})
        if unknown:
            raise Usage(f"{path}: unknown part {unknown[0]!r}; a baseline has counts, bytes, slopes and "
                        "instructions, and never times")
        instructions = data.get("instructions", {"interpreter": None, "counts": {}})
        try:
            return cls(_numbers(path, data, "counts", int, "SCENARIO/SIZE/COUNTER"),
                       _numbers(path, data, "bytes", int, "SCENARIO/SIZE/COUNTER"),
                       _numbers(path, data, "slopes", (int, float), "SCENARIO/COUNTER"),
                       instructions["interpreter"], _numbers(path, instructions, "counts", int, "SCENARIO/SIZE"))
        except (KeyError, TypeError) as error:
            raise Usage(f"{path}: not a baseline: {error!r}") from None

    @property
    def counted(self) -> bool:
        """Whether it has what only the counting build counts."""
        return any(key.rsplit("/", 1)[-1] in COUNTING_ONLY for key in self.counts)

    def write(self, path: Path) -> None:
        """Write it, sorted, so that a change reads well as a diff."""
        data: dict[str, Any] = {"schema": SCHEMA, "counts": self.counts, "bytes": self.bytes,
                                "slopes": self.slopes}
        if self.instructions:
            data["instructions"] = {"interpreter": self.interpreter, "counts": self.instructions}
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(aside, path)


def _numbers(path: Path, data: dict[str, Any], part: str, kind: Any, form: str) -> dict[str, Any]:
    """A part of the file; what compares with nothing (a NaN) or belongs to nothing would never be judged."""
    numbers = data[part]
    if not isinstance(numbers, dict):
        raise Usage(f"{path}: {part} is a {type(numbers).__name__}, not an object")
    for key, value in numbers.items():
        if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
            raise Usage(f"{path}: {part} has {key!r}: {value!r}, which is not a number of its kind")
        if key.count("/") != form.count("/"):
            raise Usage(f"{path}: {part} has the key {key!r}, which is not {form}")
    return numbers


def fitted(counts: dict[str, int], operations: dict[str, int]) -> dict[str, float]:
    """The slope of each counter of each scenario over its sizes (those with at least two); ``operations`` has
    the number of operations of each SCENARIO/SIZE."""
    series: dict[str, dict[int, int]] = {}
    for key, value in counts.items():
        scenario, size, counter = key.rsplit("/", 2)
        if counter in SLOPED:
            series.setdefault(f"{scenario}/{counter}", {})[int(size)] = value
    return {name: slope(sorted(cells), [cells[size] for size in sorted(cells)],
                        [operations[f"{name.rsplit('/', 1)[0]}/{size}"] for size in sorted(cells)])
            for name, cells in series.items() if len(cells) > 1}


def judge_exact(report: Report, check: str, expected: dict[str, int], measured: dict[str, int]) -> None:
    """Every number of the baseline against what was measured, exactly."""
    for key in sorted(measured.keys() & expected.keys(), key=_by_size):
        now, then = measured[key], expected[key]
        if now == then:
            report.add(check, key, Verdict.PASS, str(now), now, then)
        else:
            verdict = Verdict.REGRESSION if now > then else Verdict.BETTER
            report.add(check, key, verdict, f"{now}, the baseline has {then}{_change(now, then)}", now, then)


def judge_presence(report: Report, expected: set[str], measured: set[str]) -> None:
    """What only one side has was not judged, and a gate that judges nothing must not be green. Not so for the
    counters of the counting build: where one side was made without it, they are told as left out."""
    expected_extra, measured_extra = ({key for key in side if key.rsplit("/", 1)[1] in COUNTING_ONLY}
                                      for side in (expected, measured))
    if expected_extra and not measured_extra:
        expected = expected - expected_extra
        report.notes.append(f"left out: {' and '.join(COUNTING_ONLY)} ({len(expected_extra)} numbers); they "
                            "need the counting build, and that needs kvmattr's sources")
    if measured_extra and not expected_extra:
        measured = measured - measured_extra
        report.notes.append(f"left out: {' and '.join(COUNTING_ONLY)}: the baseline has none of them; "
                            "--update-baseline adds them")
    for cell in sorted({key.rsplit("/", 1)[0] for key in expected - measured}, key=_by_size):
        report.add("missing", cell, Verdict.UNDECIDED, "the baseline has it, this run did not measure it")
    for cell in sorted({key.rsplit("/", 1)[0] for key in measured - expected}, key=_by_size):
        report.add("missing", cell, Verdict.UNDECIDED, "not in the baseline: --update-baseline accepts it")


def judge_slopes(report: Report, expected: dict[str, float], measured: dict[str, float],
                 growth: dict[str, str]) -> None:
    """Each slope against the growth that its scenario declares, and against the baseline's."""
    for key, now in sorted(measured.items()):
        declared = growth.get(key.rsplit("/", 1)[0])
        limit = GROWTH[declared] if declared else float("inf")
        then = expected.get(key)
        if now >= limit:
            report.add("slopes", key, Verdict.REGRESSION,
                       f"{now:.3f}; declared {declared} allows less than {limit}", now, then)
        elif then is not None and now > then + _SLOPE_CHANGE:
            report.add("slopes", key, Verdict.REGRESSION, f"{now:.3f}, the baseline has {then:.3f}", now, then)
        elif declared or then is not None:
            report.add("slopes", key, Verdict.PASS, f"{now:.3f}", now, then)


def _by_size(key: str) -> list[tuple[int, str]]:
    """For sorting: scenario, then size as a number, then counter."""
    return [(int(word), "") if word.isdigit() else (0, word) for word in key.split("/")]


def _change(now: int, then: int) -> str:
    return f" ({now - then:+}{f', {100 * (now - then) / then:+.1f} %' if then else ''})"
