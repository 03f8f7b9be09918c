"""Does the gate see what it is for? Planted regressions, and the unchanged tree, through the whole gate.

``--selftest`` runs each case once, with the regression planted in every scenario. ``--prove N`` runs each N
times with an artificial load beside it, planted in one scenario a run, another one each time: that is harder to
see. An interrupted proof tells what it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmattr.gate import builds
from kvmattr.gate.process import start
from kvmattr.gate.stages import Gate, Measured, Pair, installed, judge_counts, judge_times, measure
from kvmattr.gate.verdict import EXIT_PASS, EXIT_REGRESSION, EXIT_UNDECIDED, CannotTell, Judgement, Verdict
from kvmattr.measure.machine import cpu_model
from kvmattr.measure.table import fitted


@dataclass(frozen=True)
class Case:
    """One thing to plant: which check has to catch it, and which exit codes are right."""

    plant: str | None
    words: str
    check: str
    exits: tuple[int, ...]
    timed: bool = False


CASES = (
    Case(None, "unchanged: counts, slopes, memory, claims", "", (EXIT_PASS,)),
    Case(None, "unchanged: time against a copy", "", (EXIT_PASS, EXIT_UNDECIDED), timed=True),
    Case("linear", "an operation costs as much as the size", "slopes", (EXIT_REGRESSION,)),
    Case("slow", "every operation takes 1.3 times as long", "time", (EXIT_REGRESSION, EXIT_UNDECIDED),
         timed=True),
    Case("memory", "what is replaced is never freed", "memory", (EXIT_REGRESSION,)),
    Case("page", "a range is read with one call a page", "calls", (EXIT_REGRESSION,)),
    Case("copy", "every operation makes a copy", "calls", (EXIT_REGRESSION,)),
    Case("snapshot", "a snapshot is kept for ever", "memory", (EXIT_REGRESSION,)),
    Case("batch", "a batch is forgotten: page by page", "calls", (EXIT_REGRESSION,)),
    Case("hidden", "a slope below the smallest size", "counts", (EXIT_REGRESSION,)),
    Case("missing", "a scenario is no longer run", "missing", (EXIT_UNDECIDED,)),
)

#: What runs beside: it fights for a core, the memory bus and the last-level cache, as a neighbour in CI does.
#: It ends with the process that started it, however that ends.
_LOAD = """
import os
import numpy as np
memory, parent = np.zeros(1 << 25, np.uint8), os.getppid()
while os.getppid() == parent:
    memory += 1
"""

#: So many findings of a run that was judged wrongly are told.
_SHOWN = 5


@dataclass
class Tally:
    """What came of the runs of one case so far."""

    case: Case
    exits: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    right: int = 0

    def run(self, gate: Gate, reference: Measured, number: int | None = None) -> str:
        """One run, planted in one scenario (the ``number``-th that can have it) or in all; what came of it, in words.
        A wrong judgement is printed with its findings."""
        where = None if number is None else _scenario_for(self.case, reference, number)
        begun = time.monotonic()
        judged = _judged(gate, self.case, reference, where)
        self.seconds.append(time.monotonic() - begun)
        self.exits[judged.exit_code] += 1
        told = judged.of(Verdict.REGRESSION, Verdict.UNDECIDED)
        caught = sorted({finding.check for finding in told})
        words = f"exit {judged.exit_code}{', caught by ' + ', '.join(caught) if caught else ''}"
        # The exit code is right, and the check that has to see it has seen it, in the scenario where it is.
        seen = [finding for finding in told if finding.check == self.case.check
                and (where is None or finding.cell.startswith(f"{where}/"))]
        if judged.exit_code in self.case.exits and (seen or not self.case.check):
            self.right += 1
            return words
        run = "" if number is None else f"run {number + 1}, "
        print(f"NOT OK  {run}{self.case.words}{f', in {where}' if where else ''}: {words}",
              *(f"          {each.verdict.value}: {each.check} {each.cell}: {each.text}" for each in told[:_SHOWN]),
              *([f"          ... and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []), sep="\n", flush=True)
        return words

    def row(self) -> list[str]:
        """A line of the proof's table."""
        return [self.case.words, *(str(self.exits[code]) for code in (EXIT_PASS, EXIT_REGRESSION, EXIT_UNDECIDED)),
                f"{self.right} of {len(self.seconds)}",
                f"{statistics.median(self.seconds):.1f}" if self.seconds else "-"]


def selftest(gate: Gate, judgement: Judgement) -> None:
    """Run every case once and print what came of it; each is a finding."""
    reference = measure(gate, Judgement(), with_claims=False)
    for case in CASES:
        tally = Tally(case)
        words = tally.run(gate, reference)
        if tally.right:
            print(f"ok      {case.words}: {words}", flush=True)
        judgement.add("selftest", case.words, Verdict.PASS if tally.right else Verdict.REGRESSION, words)


def prove(gate: Gate, runs: int, judgement: Judgement) -> None:
    """Every case so many times under load; prints one line a case, and each wrong judgement when it happens.
    Ctrl-C or SIGTERM: the line tells the runs that were made."""
    reference = measure(gate, Judgement(), with_claims=False)
    _copies(gate.source).shifted()      # builds are made before the load is on
    tallies = [Tally(case) for case in CASES]
    begun, finished = time.monotonic(), 0
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, {platform.python_implementation()} "
          f"{platform.python_version()}, load {os.getloadavg()[0]:.1f} before", flush=True)
    try:
        with _load():
            for number in range(runs):
                for tally in tallies:
                    tally.run(gate, reference, number)
                finished = number + 1
                print(f"run {finished} of {runs}: {(time.monotonic() - begun) / 60:.1f} min, "
                      f"{sum(len(tally.seconds) - tally.right for tally in tallies)} judged wrongly so far",
                      file=sys.stderr, flush=True)
    finally:
        print(f"{finished} runs of each case{'' if finished == runs else f' of {runs}: INTERRUPTED'}, one core "
              f"loaded (a process that rewrites 32 MiB without a pause), {(time.monotonic() - begun) / 60:.0f} "
              "minutes")
        print(fitted(["case", "pass", "red", "could not tell", "judged rightly", "s a run"],
                     [tally.row() for tally in tallies], 120, left=(0,)), flush=True)
        for tally in tallies:
            made = len(tally.seconds)
            verdict = Verdict.PASS if tally.right == made else Verdict.REGRESSION
            judgement.add("proof", tally.case.words, verdict if made else Verdict.UNDECIDED,
                          f"{tally.right} of {made} runs judged rightly: {tally.exits[EXIT_PASS]} pass, "
                          f"{tally.exits[EXIT_REGRESSION]} red, {tally.exits[EXIT_UNDECIDED]} could not tell")


def _scenario_for(case: Case, reference: Measured, number: int) -> str | None:
    """In which scenario a run's regression is planted: those that can have it take turns."""
    if case.plant is None:
        return None
    names = [each["name"] for each in reference.scenarios
             if (case.plant != "linear" or _can_grow(each, reference)) and (each["timed"] or not case.timed)]
    return str(names[number % len(names)]) if names else None


def _can_grow(scenario: dict[str, Any], reference: Measured) -> bool:
    """Constant so far, in sizes that are not the number of operations itself: n operations of cost n each, at a
    scenario's largest size, take too long to be planted."""
    operations = {reference.operations.get(f"{scenario['name']}/{size}") for size in scenario["sizes"]}
    return scenario["growth"] == "constant" and len(operations) == 1


def _judged(gate: Gate, case: Case, reference: Measured, where: str | None) -> Judgement:
    """The gate's own judgement on the tree with a case planted, in one scenario or in all."""
    judgement = Judgement()
    plant = f"{case.plant}@{where}" if case.plant and where else case.plant
    planted = dataclasses.replace(gate, plant=plant)
    try:
        if case.timed:
            judge_times(judgement, planted, _copies(gate.source))
        else:
            judge_counts(judgement, planted, reference.now, measure(planted, judgement))
    except CannotTell as error:
        judgement.add("missing", "all", Verdict.UNDECIDED, str(error))
    return judgement


def _copies(source: Path | None) -> Pair:
    """The tree against itself."""
    if source is None:
        return Pair(installed(), installed(), installed(), installed)
    plain = builds.build(source)
    return Pair(plain, builds.build(source, twin=True), plain, lambda: builds.build(source, shifted=True))


@contextlib.contextmanager
def _load() -> Iterator[None]:
    process = start([sys.executable, "-P", "-c", _LOAD])
    try:
        yield
    finally:
        process.kill()
        process.wait()
