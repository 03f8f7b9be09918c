"""Claims: one way beats another at least so many times, both in one process and in interleaved rounds."""

from __future__ import annotations

import math
from functools import partial

from kvmattr.gate.process import CellError, Worker
from kvmattr.gate.timing import SAMPLE_SECONDS, Sample, measured
from kvmattr.gate.verdict import Judgement, Verdict
from kvmattr.measure.statistics import Ratio

#: A claim that holds by less than this is too near its threshold to be trusted on another machine.
_FAR = 1.5

#: So often a way is run for one sample, however little it takes.
_MOST_REPEATS = 10_000


def judge_claims(judgement: Judgement, worker: Worker) -> None:
    """Every claim that the worker knows."""
    for each in worker.loaded["claims"]:
        try:
            ratio, rounds = _measure(worker, each["name"], each["at_least"])
        except CellError as error:
            judgement.add("claims", each["name"], Verdict.UNDECIDED, str(error))
            continue
        text = (f"{ratio.median:.1f}x [{ratio.low:.1f}, {ratio.high:.1f}], claimed {each['at_least']:g}x "
                f"({rounds} rounds)")
        verdict = (Verdict.PASS if ratio.low >= each["at_least"] else
                   Verdict.REGRESSION if ratio.high < each["at_least"] else Verdict.UNDECIDED)
        judgement.add("claims", each["name"], verdict, text)
        if verdict is Verdict.PASS and ratio.median < _FAR * each["at_least"]:
            judgement.notes.append(f"claim {each['name']} is near its threshold: {text}")


def _measure(worker: Worker, name: str, at_least: float) -> tuple[Ratio, int]:
    """The ratio, from more rounds while its interval holds the threshold."""
    worker.ask("open_claim", name=name)

    def seconds(way: str, repeat: int) -> float:
        return float(worker.ask("run", way=way, repeat=repeat)) / repeat

    def arm(way: str) -> Sample:
        repeat = min(max(1, math.ceil(SAMPLE_SECONDS / max(seconds(way, 1), 1e-9))), _MOST_REPEATS)
        return partial(seconds, way, repeat)
    for faster, slower in measured(arm("faster"), arm("slower")):
        ratio = Ratio.of(slower, faster)
        if not ratio.low < at_least <= ratio.high:
            break
    return ratio, len(faster)
