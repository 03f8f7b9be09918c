"""pytest-benchmark's JSON of two refs, judged by the same paired statistics.

Runs of either ref come in pairs: the i-th file of the head with the i-th of the base, best made in turn on
one machine. With one file each, the rounds inside them are paired instead. Either way the control is what the
base does against itself: each pair against its neighbour.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvmattr.gate.timing import Pairs, judge
from kvmattr.gate.verdict import CannotTell, Report, Usage, Verdict

#: Fewer pairs have no interval worth the name.
FEWEST_PAIRS = 5

#: Rounds inside one file are taken together in so many stretches, so that one slow round is not a pair.
_STRETCHES = 20

_MACHINE = ("node", "machine", "python_implementation", "python_version")


def judge_files(report: Report, base: Sequence[Path], head: Sequence[Path], threshold: float) -> None:
    """Judge every benchmark; Usage for files that are none, CannotTell for another machine or Python."""
    if not base or len(base) != len(head):
        raise Usage(f"{len(base)} files of the base and {len(head)} of the head: they are paired one to one")
    ours, theirs = [_read(path) for path in head], [_read(path) for path in base]
    _same_machine([*base, *head], [*theirs, *ours])
    expected = set.intersection(*(set(_benchmarks(data)) for data in theirs))
    measured = set.intersection(*(set(_benchmarks(data)) for data in ours))
    if not expected & measured:
        raise CannotTell("the files have no benchmark in common")
    for name in sorted(expected | measured):
        if name not in measured or name not in expected:
            report.add("missing", name, Verdict.UNDECIDED,
                       f"not in every file of the {'head' if name in expected else 'base'}")
            continue
        pairs = _pairs([_benchmarks(data)[name] for data in ours],
                       [_benchmarks(data)[name] for data in theirs])
        if len(pairs.head) < FEWEST_PAIRS:
            report.add("time", name, Verdict.UNDECIDED,
                       f"{len(pairs.head)} pairs; at least {FEWEST_PAIRS} are needed: more files, or one of "
                       "either ref saved with --benchmark-save-data")
        else:
            report.add("time", name, *judge(pairs, threshold))
    if len(base) == 1:
        report.notes.append("one file each: what differs between two runs of pytest cannot be told from what "
                            "differs between the refs; several runs in turn can")


def _read(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data["benchmarks"], list) or not isinstance(data["machine_info"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise Usage(f"{path}: not a JSON file of pytest-benchmark") from None
    return data


def _benchmarks(data: dict[str, Any]) -> dict[str, Any]:
    return {each["fullname"]: each["stats"] for each in data["benchmarks"]}


def _same_machine(paths: Sequence[Path], files: Sequence[dict[str, Any]]) -> None:
    for path, data in zip(paths, files, strict=True):
        for word in _MACHINE:
            first, this = files[0]["machine_info"].get(word), data["machine_info"].get(word)
            if first != this:
                raise CannotTell(f"{path}: {word} is {this!r}, in {paths[0]} it is {first!r}; times of two "
                                 "machines or interpreters cannot be compared")


def _pairs(head: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> Pairs:
    if len(base) > 1:
        ours, theirs = ([float(stats["median"]) for stats in side] for side in (head, base))
    else:
        ours, theirs = _stretches(head[0].get("data", []), base[0].get("data", []))
    # The base against itself: each pair's neighbour.
    neighbours = [theirs[i ^ 1] for i in range(len(theirs) // 2 * 2)]
    neighbours += theirs[len(neighbours):]
    return Pairs(ours, theirs, neighbours)


def _stretches(ours: Sequence[float], theirs: Sequence[float]) -> tuple[list[float], list[float]]:
    count = min(_STRETCHES, len(ours), len(theirs))
    if count == 0:
        return [], []
    return ([float(np.median(part)) for part in np.array_split(np.asarray(ours), count)],
            [float(np.median(part)) for part in np.array_split(np.asarray(theirs), count)])
