"""The gate's checks, one after another: what each needs, and in which order they speak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import kvmattr
from kvmattr.gate import baseline as baselines
from kvmattr.gate import builds, claims, instructions, timing
from kvmattr.gate.baseline import Baseline
from kvmattr.gate.limits import Limits
from kvmattr.gate.process import CellError, Side, Worker, without_randomisation
from kvmattr.gate.project import Project
from kvmattr.gate.verdict import CannotTell, Judgement, Usage, Verdict
from kvmattr.measure.status import overwritten


@dataclass(frozen=True)
class Gate:
    """What is judged, and how. ``source`` None: the installed kvmattr, which has no counting build."""

    scenarios: Sequence[str]
    source: Path | None
    limits: Limits = field(default_factory=Limits)
    plant: str | None = None

    def tree(self, mode: str = "") -> Path:
        """The build in which time is judged; in the mode ``counting`` that whose counts are."""
        return builds.build(self.source, mode) if self.source else installed()


def installed() -> Path:
    """The directory of the kvmattr that this process has imported."""
    return Path(kvmattr.__file__).parent.parent


@dataclass
class Measured:
    """What the counting stage found; ``scenarios`` are what the worker told of them, ``operations`` how many
    each SCENARIO/SIZE does."""

    now: Baseline = field(default_factory=Baseline)
    counted: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    scenarios: list[dict[str, Any]] = field(default_factory=list)
    operations: dict[str, int] = field(default_factory=dict)

    @property
    def cells(self) -> dict[str, str | None]:
        """Each SCENARIO/SIZE and its group."""
        return {f"{each['name']}/{size}": each["group"] for each in self.scenarios for size in each["sizes"]}


def measure(gate: Gate, judgement: Judgement, *, with_claims: bool = True) -> Measured:
    """Calls, counts, bytes and slopes of every cell, and the claims: the counting build makes the store look slower,
    never faster."""
    found = Measured()
    unseen, idle = [], []
    with Worker(gate.tree("counting"), gate.scenarios, plant=gate.plant) as worker:
        found.counted = worker.ask("build")["counting"]
        found.scenarios = worker.loaded["scenarios"]
        if gate.source and not found.counted:
            raise CannotTell(f"wrong build loaded: {worker.loaded['file']} does not count what it visits")
        for each in found.scenarios:
            answers = {}
            for size in each["sizes"]:
                cell = f"{each['name']}/{size}"
                overwritten(cell)
                try:
                    answers[size] = worker.ask("count", name=each["name"], size=size)
                except CellError as error:
                    found.failed[cell] = str(error)
            seen = {size: answer for size, answer in answers.items() if answer["counts"]}
            if len(seen) < len(answers):
                unseen.append(each["name"])
            if not all(answer["calls"] for answer in seen.values()):
                idle.append(each["name"])
            found.now.add(each["name"], seen)
            found.operations |= {f"{each['name']}/{size}": answer["operations"] for size, answer in seen.items()}
        if with_claims:
            claims.judge_claims(judgement, worker)
    if unseen:
        judgement.notes.append(f"no maps, so nothing is counted: {', '.join(unseen)} (judged by time alone, with "
                               "--base)")
    if idle:
        judgement.notes.append(f"no call of the store in the maps of {', '.join(idle)}: are they those that it uses?")
    if not found.now.counts and not found.failed:
        raise CannotTell("no cells: the scenarios have no maps to count, or there are no scenarios")
    return found


def judge_counts(judgement: Judgement, gate: Gate, expected: Baseline, found: Measured) -> None:
    """Calls, counts, slopes and memory against the baseline; what could not be measured is a doubt."""
    limits = gate.limits.with_declared(found.scenarios)
    limits.check(found.cells)
    for cell, error in found.failed.items():
        judgement.add("missing", cell, Verdict.UNDECIDED, f"it raised {error}")
    now = found.now
    both = {key.rsplit("/", 1)[0] for key in expected.counts} & {key.rsplit("/", 1)[0] for key in now.counts}
    baselines.judge_calls(judgement, expected, now, both, limits)
    baselines.judge_exact(judgement, "counts", expected.counts, now.counts, limits)
    baselines.judge_slopes(judgement, expected.slopes, now.slopes, found.scenarios)
    held = now.bytes if not expected.without_calls else {
        key: value for key, value in now.bytes.items() if not key.endswith("/maps")}     # older than this number
    baselines.judge_exact(judgement, "memory", expected.bytes, held, limits)
    baselines.judge_presence(judgement, {key for key in expected.counts.keys() | expected.bytes.keys()
                                         if key.rsplit("/", 1)[0] not in found.failed},
                             now.counts.keys() | held.keys())


@dataclass(frozen=True)
class Pair:
    """Builds to be timed: head, base and the base's twin; ``shifted`` makes the base with another layout."""

    head: Path | Side
    base: Path | Side
    twin: Path | Side
    shifted: Callable[[], Path | Side]


#: Shifts what lies on the stack and behind the environment: the second look is at another layout of memory.
_PADDING = {"KVMATTR_GATE_PADDING": "x" * 1000}


def judge_times(judgement: Judgement, gate: Gate, pair: Pair) -> None:
    """Each timed cell against the base, the twin as control; a suspect has to be slower twice, the second
    time in fresh processes, in reverse order, and with the shifted base as control: what its layout alone
    changes widens the threshold."""
    def start(tree: Path | Side, **words: Any) -> Worker:
        # Where a process's memory lies moves times by a fifth: it shall lie alike in copies of one build.
        return Worker(tree, gate.scenarios, prefix=without_randomisation(), **words)
    with (start(pair.head, plant=gate.plant) as ours, start(pair.base) as theirs,
          start(pair.twin) as control):
        if ours.loaded["helpers"]:
            judgement.not_judged.append("what lies beside the scenarios and is not installed "
                                        f"({', '.join(ours.loaded['helpers'])}): both sides have the working tree's")
        cells = instructions.timed_cells(ours)
        limits = gate.limits.with_declared(ours.loaded["scenarios"])
        verdicts = {cell: _timed([ours, theirs, control], cell, limits) for cell in cells}
    suspects = [cell for cell in cells if verdicts[cell][0] is Verdict.REGRESSION]
    if suspects:
        with (start(pair.shifted(), environment=_PADDING) as control,
              start(pair.base, environment=_PADDING) as theirs,
              start(pair.head, environment=_PADDING, plant=gate.plant) as ours):
            for cell in suspects:
                again, text, ratio = _timed([ours, theirs, control], cell, limits, reverse=True)
                # Slow once and not again: that is no regression, and no pass either.
                verdict = Verdict.REGRESSION if again is Verdict.REGRESSION else Verdict.UNDECIDED
                verdicts[cell] = verdict, f"{verdicts[cell][1]}; again in reverse order: {text}", ratio
    for (name, size), (verdict, text, ratio) in verdicts.items():
        judgement.add("time", f"{name}/{size}", verdict, text, ratio)
    if not any(verdict is not Verdict.UNDECIDED for verdict, _, _ in verdicts.values()):
        judgement.add("time", "all", Verdict.UNDECIDED, "no cell could be timed against the base")


def _timed(workers: list[Worker], cell: tuple[str, int], limits: Limits, *,
           reverse: bool = False) -> tuple[Verdict, str, float | None]:
    name, size = cell
    overwritten(f"{name}/{size}: time" + (", again" if reverse else ""))
    try:
        for worker in workers:
            worker.ask("open", name=name, size=size)
    except CellError as error:
        return Verdict.UNDECIDED, f"not in both builds: {error}", None
    repeat = timing.repeats(lambda count: float(workers[1].ask("run", repeat=count)))
    head, base, twin = (partial(worker.ask, "run", repeat=repeat) for worker in workers)
    return timing.compare(head, base, twin, limits.of(f"{name}/{size}"), reverse=reverse,
                          must_work=limits.working(f"{name}/{size}"))


def judge_base(judgement: Judgement, gate: Gate, ref: str, project: Project | None = None, *,
               with_instructions: bool) -> None:
    """Time, and instructions if asked for, against a git ref: both plain builds side by side, or one kvmattr and the
    code of a project that embeds it at both commits."""
    head: Path | Side
    base: Callable[..., Path | Side]
    if project is not None:
        head, base = project.head(), partial(project.base, ref)
    elif gate.source is None:
        raise CannotTell(f"--base {ref} needs kvmattr's sources in a git repository (--source)")
    else:
        head, base = builds.build(gate.source), partial(builds.build, builds.checkout(gate.source, ref))
    pair = Pair(head, base(), base(twin=True), partial(base, shifted=True))
    try:
        judge_times(judgement, gate, pair)
    except Usage as error:
        # The scenarios were loaded with the head before: it is the base that they do not fit.
        raise CannotTell(f"--base {ref}: the scenarios cannot be loaded with it: {error}") from None
    if with_instructions:
        instructions.judge(judgement, instructions.count(pair.base, gate.scenarios),
                           instructions.count(pair.head, gate.scenarios))
