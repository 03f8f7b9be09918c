"""Times and memory in files of two refs, times judged by the statistics of ``--base``.

Runs of either ref come in pairs: the i-th file of the head with the i-th of the base, best made in turn on
one machine. With fewer than five files each, the rounds inside them are paired. Either way the control is what the
base does against itself: each pair against its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvmattr.gate import time_files
from kvmattr.gate.limits import DEFAULT, Limits
from kvmattr.gate.time_files import TimeFile, Times
from kvmattr.gate.timing import FAR, WIDEST, Pairs, judge
from kvmattr.gate.verdict import CannotTell, Judgement, Usage, Verdict

#: The findings' check. It is not "time": files were judged once, and cannot be measured again.
CHECK = "files"

#: Fewer pairs have no interval worth the name.
FEWEST_PAIRS = 5

#: Rounds inside files are taken together in so many stretches, so that one slow round is not a pair.
_STRETCHES = 20

#: By how much two runs of the same code commonly differ, which the rounds of one run do not show. Where the rounds
#: differ by more among themselves, so may two runs: other work comes and goes between them too.
BETWEEN_RUNS = 1.05


def judge_files(judgement: Judgement, base: Sequence[Path], head: Sequence[Path], limits: Limits, *,
                same_machine: bool = False) -> None:
    """Judge every benchmark; Usage for files that are none, CannotTell for files of different machines unless the
    caller knows better."""
    if not base or len(base) != len(head):
        raise Usage(f"{len(base)} files of the base and {len(head)} of the head: they are paired one to one")
    theirs, ours = ([time_files.read(path) for path in side] for side in (base, head))
    files = [*theirs, *ours]
    _check_files(files)
    _check_commits(judgement, theirs, ours)
    _check_machines(judgement, files, same_machine)
    expected, measured = (set(side[0].times).intersection(*(each.times for each in side)) for side in (theirs, ours))
    if not expected & measured:
        raise CannotTell("the files have no benchmark in common (hyperfine: --command-name gives both one name)")
    limits.check({name: each.times[name].group for each in ours for name in each.times})
    skipped = []
    for name in sorted(expected | measured):
        if name not in measured or name not in expected:
            judgement.add("missing", name, Verdict.UNDECIDED,
                          f"not in every file of the {'head' if name in expected else 'base'}")
            continue
        troubles = [f"{each.path}: {wrong}" for each in files if (wrong := each.times[name].wrong)]
        if all(each.times[name].skipped for each in files):
            skipped.append(name)
        elif troubles:
            judgement.add(CHECK, name, Verdict.UNDECIDED, f"{troubles[0]}: there is no ratio of that")
        else:
            judgement.add(CHECK, name, *_judged(name, [each.times[name] for each in ours],
                                                [each.times[name] for each in theirs], limits))
    if skipped:
        judgement.not_judged.append(f"what every file skips ({', '.join(skipped)})")
    if others := sorted({name for each in files for name in each.others}):
        judgement.not_judged.append(f"what measures neither time nor memory ({', '.join(others)})")
    if len(base) < FEWEST_PAIRS:
        judgement.notes.append(
            f"{len(base)} file{'s' if len(base) > 1 else ''} a side, fewer than {FEWEST_PAIRS}: what differs between "
            "two runs can hardly be told from what differs between the refs, so the limit is "
            f"{BETWEEN_RUNS:g} times as wide, or as wide as the rounds differ; {FEWEST_PAIRS} files each say more")


def _check_files(files: list[TimeFile]) -> None:
    """A measurement that is compared with itself passes whatever was done."""
    seen: dict[bytes, TimeFile] = {}
    for each in files:
        if each.tool != files[0].tool:
            raise Usage(f"{each.path} is a file of {each.tool}, {files[0].path} one of {files[0].tool}: both sides are "
                        "measured by one tool")
        if (other := seen.setdefault(each.digest, each)) is not each:
            raise Usage(f"{each.path} is given twice" if each.path == other.path else
                        f"{each.path} is the same file as {other.path}: each run of a benchmark has a file of its own")


def _check_commits(judgement: Judgement, base: list[TimeFile], head: list[TimeFile]) -> None:
    """Of the head there is one; a file of another was left there by an earlier run."""
    ours, theirs = (sorted({each.commit[:12] for each in side if each.commit}) for side in (head, base))
    if len(ours) > 1:
        raise CannotTell(f"the files of the head are of several commits ({', '.join(ours)}): measure them again")
    if ours and ours == theirs:
        judgement.notes.append(f"both sides are of commit {ours[0]}: one code, but for what is not committed")


def _check_machines(judgement: Judgement, files: list[TimeFile], same_machine: bool) -> None:
    found = []
    for word in time_files.FINGERPRINT:
        known = [each for each in files if word in each.machine]
        other = next((each for each in known if each.machine[word] != known[0].machine[word]), None)
        if other is not None:
            found.append(f"{other.path}: {word} is {other.machine[word]!r}, in {known[0].path} it is "
                         f"{known[0].machine[word]!r}")
    if found and same_machine:
        judgement.notes.extend(f"{text} (--same-machine)" for text in found)
    elif found:
        raise CannotTell(f"{'; '.join(found)}. Times of two machines or interpreters cannot be compared; measure both "
                         "sides in one job, or say --same-machine if it is one")
    if not any(each.machine for each in files):
        judgement.notes.append("the files do not say on which machine they were made")


def _judged(name: str, head: list[Times], base: list[Times], limits: Limits) -> tuple[Verdict, str, float | None]:
    versions = {each.version for each in [*head, *base]} - {None}
    if len(versions) > 1:
        return Verdict.UNDECIDED, ("the benchmark itself is not the same in all files (asv's version of its code, "
                                   "pytest-benchmark's timer): measure both refs with one"), None
    if head[0].unit == "bytes":
        return _judged_bytes(name, head, base, limits)
    pairs = _pairs(head, base)
    if len(pairs.head) < FEWEST_PAIRS:
        return Verdict.UNDECIDED, (
            f"{len(pairs.head)} pair{'s' * (len(pairs.head) != 1)}; at least {FEWEST_PAIRS} are needed: more files, or "
            "files with their rounds (pytest-benchmark: --benchmark-json or --benchmark-save-data, asv: "
            "--record-samples)"), None
    group = head[0].group
    between = 1.0 if len(base) >= FEWEST_PAIRS else max(
        BETWEEN_RUNS, *(_spread(each.samples) for each in [*head, *base]))
    return judge(pairs, limits.of(name, group), must_work=limits.working(name, group), between=between)


def _judged_bytes(name: str, head: list[Times], base: list[Times],
                  limits: Limits) -> tuple[Verdict, str, float | None]:
    """Memory hardly varies: one number a file is enough, and what the files of a side differ by widens the limit."""
    ours, theirs = ([each.median for each in side] for side in (head, base))
    ratio = float(np.median(ours) / np.median(theirs))
    threshold = limits.of(name)
    limit = threshold * max(max(side) / min(side) for side in (ours, theirs))
    text = f"{ratio:.3f}x the base's bytes; limit {limit:.3f}x"
    if limit > WIDEST * threshold / DEFAULT and ratio < FAR * limit:
        return Verdict.UNDECIDED, f"{text}: the files of a side differ by {limit / threshold:.3f}x", ratio
    if ratio > limit:
        return Verdict.REGRESSION, text, ratio
    if limits.working(name) and ratio < 1 / limit:
        return Verdict.REGRESSION, f"{text}: it does not do its work (fail if faster)", ratio
    return Verdict.PASS, text, ratio


def _spread(rounds: Sequence[float]) -> float:
    """By how much a round commonly differs from the others of its file: a ratio, from the middle half of them."""
    low, high = np.quantile(np.log(rounds), [0.25, 0.75])
    return float(np.exp((high - low) / 1.349))


def _pairs(head: list[Times], base: list[Times]) -> Pairs:
    if len(base) >= FEWEST_PAIRS:
        ours, theirs = ([each.median for each in side] for side in (head, base))
        # The base against itself: each pair's neighbour.
        neighbours = [theirs[i ^ 1 if i ^ 1 < len(theirs) else i - 1] for i in range(len(theirs))]
        return Pairs(ours, theirs, neighbours)
    pairs = Pairs()
    for i in range(len(base)):
        ours, theirs = _stretches(head[i], base[i])
        if len(base) == 1:
            neighbours = [theirs[j ^ 1 if j ^ 1 < len(theirs) else j] for j in range(len(theirs))]
        else:
            other = base[i ^ 1 if i ^ 1 < len(base) else i - 1]
            neighbours, theirs = _stretches(other, base[i], len(theirs))
            ours = ours[:len(theirs)]
        pairs.head += ours
        pairs.base += theirs
        pairs.twin += neighbours
    return pairs


def _stretches(ours: Times, theirs: Times, most: int = _STRETCHES) -> list[list[float]]:
    count = min(most, len(ours.samples), len(theirs.samples))
    return [[float(np.median(part)) for part in np.array_split(np.asarray(side.samples), count)] if count else []
            for side in (ours, theirs)]
