"""What the gate measured over the commits: a line of JSON a run, and a plot of what moved."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from kvmattr.gate import repository
from kvmattr.gate.baseline import Baseline
from kvmattr.gate.verdict import CannotTell, Judgement, Usage
from kvmattr.measure import figures, writing

SCHEMA = 1
_NUMBERS = ("calls", "counts", "bytes", "times")


def append(place: Path, directory: Path, now: Baseline, judgement: Judgement) -> None:
    """Add a run's numbers to a history file. CannotWrite as the file system does."""
    line = json.dumps({
        "schema": SCHEMA, "commit": repository.head(directory),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "exit_code": judgement.exit_code, "calls": now.calls, "counts": now.counts, "bytes": now.bytes,
        "times": {each.cell: each.measured for each in judgement.findings
                  if each.check == "time" and each.measured is not None and math.isfinite(each.measured)},
    }, sort_keys=True)
    # A run that was killed may have left half a line.
    cut = place.is_file() and place.read_bytes()[-1:] not in (b"", b"\n")
    writing.write(place, "\n" * cut + line + "\n", append=True)


def read(place: Path) -> list[dict[str, Any]]:
    """The runs in a history file, in order; Usage for one that is none."""
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"{place}: no history: {error}") from None
    runs = []
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
            if run["schema"] != SCHEMA:
                raise Usage(f"{place}: line {number} has schema {run['schema']!r}; this gate reads schema {SCHEMA}")
            if not all(isinstance(run[part], dict) for part in _NUMBERS):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise Usage(f"{place}: line {number} is not a line of a history") from None
        runs.append(run)
    return runs


def moved(runs: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """By scenario, each number that was not the same in all runs, NaN where a run has not got it; ratios of time are
    all there. A kind of call that a run has not got was not made in it.

    >>> runs = [{"calls": {"a/1/put_calls": n}, "counts": {"a/1/node_copies": 3}, "bytes": {}, "times": {}}
    ...         for n in (1, 512)]
    >>> moved(runs)
    {'a': {'1/put_calls': [1.0, 512.0]}}
    """
    found: dict[str, dict[str, list[float]]] = {}
    for part in _NUMBERS:
        for key in sorted({key for run in runs for key in run[part]}):
            scenario, _, rest = key.partition("/")
            values = [float(run[part].get(key, 0 if part == "calls" else math.nan)) for run in runs]
            if part == "times" or len({value for value in values if not math.isnan(value)}) > 1:
                found.setdefault(scenario, {})[rest + " time" * (part == "times")] = values
    return found


def plot(place: Path, target: Path) -> str:
    """Draw what moved, by scenario, over the commits; what was drawn, in words."""
    runs = read(place)
    if len(runs) < 2:
        raise CannotTell(f"{place}: {len(runs)} run{'s' * (len(runs) != 1)}; a plot over commits needs 2 or more")
    try:
        kind = figures.format_of(target, "--plot-history")
        figures.require("--plot-history")
    except ValueError as error:
        raise Usage(str(error)) from None
    except ImportError as error:
        raise CannotTell(str(error)) from None
    from matplotlib.figure import Figure

    series = moved(runs)
    names = [(run["commit"] or "?")[:7] + "+" * str(run["commit"]).endswith("+") for run in runs]
    figure = Figure(figsize=(max(6.0, 0.4 * len(runs)), 3.2 * max(1, len(series))), layout="constrained")
    panels = figure.subplots(max(1, len(series)), 1, squeeze=False)[:, 0]
    for panel, (scenario, lines) in zip(panels, sorted(series.items()), strict=False):
        panel.set_title(scenario)
        panel.set_ylabel("times the first run's; time: the base's")
        for name, values in lines.items():
            is_ratio = name.endswith(" time")
            first = 1.0 if is_ratio else next((value for value in values if value and not math.isnan(value)), 1.0)
            panel.plot([value / first for value in values], "o" if is_ratio else "o-", label=name)
        panel.set_xticks(range(len(runs)), names, rotation=90)
        panel.legend(fontsize="small")
    if not series:
        panels[0].set_title(f"no number moved in {len(runs)} runs")
        panels[0].set_axis_off()
    writing.write(target, figures.drawn(figure, kind))
    return f"{target}: {sum(map(len, series.values()))} numbers that moved in {len(runs)} runs"
