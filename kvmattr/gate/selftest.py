"""Does the gate see what it is for? Planted regressions, and the unchanged tree, through the whole gate.

``--selftest`` runs each case once, ``--prove N`` so many times with an artificial load beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kvmattr.gate import builds
from kvmattr.gate.stages import Gate, Measured, installed, judge_counts, judge_times, measure
from kvmattr.gate.verdict import EXIT_PASS, EXIT_REGRESSION, EXIT_UNDECIDED, CannotTell, Report, Verdict


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


def selftest(gate: Gate) -> bool:
    """Run every case once and print what came of it; whether each was judged rightly."""
    reference = measure(gate, Report(), with_claims=False)
    sound = True
    for case in CASES:
        report = _judged(gate, case, reference)
        right = _right(case, report)
        sound &= right
        caught = sorted({finding.check for finding in report.of(Verdict.REGRESSION, Verdict.UNDECIDED)})
        print(f"{'ok' if right else 'NOT OK':6}  {case.words}: exit {report.exit_code}"
              f"{', caught by ' + ', '.join(caught) if caught else ''}", flush=True)
    return sound


def prove(gate: Gate, runs: int) -> bool:
    """Every case so many times under load; prints one line a case. Whether no run was judged wrongly."""
    reference = measure(gate, Report(), with_claims=False)
    print(f"{runs} runs of each case, one core loaded (a process that rewrites 32 MiB without a pause)")
    print(f"{'case':44} {'pass':>5} {'red':>5} {'could not tell':>15} {'judged rightly':>15}", flush=True)
    sound = True
    with _load():
        for case in CASES:
            exits: Counter[int] = Counter()
            right = 0
            for _ in range(runs):
                report = _judged(gate, case, reference)
                exits[report.exit_code] += 1
                right += _right(case, report)
            sound &= right == runs
            print(f"{case.words:44} {exits[EXIT_PASS]:5} {exits[EXIT_REGRESSION]:5} "
                  f"{exits[EXIT_UNDECIDED]:15} {f'{right} of {runs}':>15}", flush=True)
    return sound


def _judged(gate: Gate, case: Case, reference: Measured) -> Report:
    """The gate's own report on the tree with a case planted."""
    report = Report()
    planted = dataclasses.replace(gate, plant=case.plant)
    try:
        if case.timed:
            if gate.source is None:
                plain = twin = installed()
            else:
                plain, twin = builds.build(gate.source), builds.build(gate.source, twin=True)
            judge_times(report, planted, plain, twin, plain)
        else:
            judge_counts(report, reference.now, measure(planted, report))
    except CannotTell as error:
        report.add("missing", "all", Verdict.UNDECIDED, str(error))
    return report


def _right(case: Case, report: Report) -> bool:
    caught = {finding.check for finding in report.of(Verdict.REGRESSION, Verdict.UNDECIDED)}
    return report.exit_code in case.exits and (not case.check or case.check in caught)


@contextlib.contextmanager
def _load() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-P", "-c", _LOAD])
    try:
        yield
    finally:
        process.kill()
        process.wait()
