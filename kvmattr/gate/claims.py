"""Claims: one way beats another at least so many times, both in one process and in interleaved rounds."""

from __future__ import annotations

import math

from kvmattr.gate.process import CellError, Worker
from kvmattr.gate.timing import MOST_ROUNDS, ROUNDS, SAMPLE_SECONDS
from kvmattr.gate.verdict import Report, Verdict
from kvmattr.measure.statistics import Ratio

#: A claim that holds by less than this is too near its threshold to be trusted on another machine.
_FAR = 1.5


def judge_claims(report: Report, worker: Worker) -> None:
    """Every claim that the worker knows."""
    for each in worker.loaded["claims"]:
        try:
            ratio, rounds = _measure(worker, each["name"], each["at_least"])
        except CellError as error:
            report.add("claims", each["name"], Verdict.UNDECIDED, str(error))
            continue
        text = (f"{ratio.median:.1f}x [{ratio.low:.1f}, {ratio.high:.1f}], claimed {each['at_least']:g}x "
                f"({rounds} rounds)")
        if ratio.low >= each["at_least"]:
            report.add("claims", each["name"], Verdict.PASS, text)
            if ratio.median < _FAR * each["at_least"]:
                report.notes.append(f"claim {each['name']} is near its threshold: {text}")
        elif ratio.high < each["at_least"]:
            report.add("claims", each["name"], Verdict.REGRESSION, text)
        else:
            report.add("claims", each["name"], Verdict.UNDECIDED, text)


def _measure(worker: Worker, name: str, at_least: float) -> tuple[Ratio, int]:
    """The ratio, from more rounds while its interval holds the threshold."""
    worker.ask("open_claim", name=name)
    fast, slow = worker.ask("run_claim", faster=1, slower=1)
    faster, slower = (max(1, math.ceil(2 * SAMPLE_SECONDS / max(seconds, 1e-9))) for seconds in (fast, slow))
    faster, slower = min(faster, 10_000), min(slower, 10_000)
    quick: list[float] = []
    slowly: list[float] = []
    while True:
        for _ in range(ROUNDS):
            fast, slow = worker.ask("run_claim", faster=faster, slower=slower)
            quick.append(fast / faster)
            slowly.append(slow / slower)
        ratio = Ratio.of(slowly, quick)
        if not ratio.low < at_least <= ratio.high or len(quick) >= MOST_ROUNDS:
            return ratio, len(quick)
