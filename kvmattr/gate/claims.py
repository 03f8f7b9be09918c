"""Claims: one way beats another at least so many times, both in one process and in interleaved rounds."""

from __future__ import annotations

import math

from kvmattr.gate.process import CellError, Worker
from kvmattr.gate.timing import MOST_ROUNDS, ROUNDS, SAMPLE_SECONDS
from kvmattr.gate.verdict import Judgement, Verdict
from kvmattr.measure.rounds import turns
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
        if ratio.low >= each["at_least"]:
            judgement.add("claims", each["name"], Verdict.PASS, text)
            if ratio.median < _FAR * each["at_least"]:
                judgement.notes.append(f"claim {each['name']} is near its threshold: {text}")
        elif ratio.high < each["at_least"]:
            judgement.add("claims", each["name"], Verdict.REGRESSION, text)
        else:
            judgement.add("claims", each["name"], Verdict.UNDECIDED, text)


def _measure(worker: Worker, name: str, at_least: float) -> tuple[Ratio, int]:
    """The ratio, from more rounds while its interval holds the threshold."""
    worker.ask("open_claim", name=name)
    ways = ("faster", "slower")

    def seconds(way: str, repeat: int) -> float:
        return float(worker.ask("run_claim", way=way, repeat=repeat)) / repeat
    repeats = {way: min(max(1, math.ceil(SAMPLE_SECONDS / max(seconds(way, 1), 1e-9))), _MOST_REPEATS) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    while True:
        for _ in range(ROUNDS):
            for index, way in turns(ways, 2):       # there and back is one round
                if index == 0:
                    times[way].append(0.0)
                times[way][-1] += seconds(way, repeats[way])
        ratio = Ratio.of(times["slower"], times["faster"])
        rounds = len(times["faster"])
        if not ratio.low < at_least <= ratio.high or rounds >= MOST_ROUNDS:
            return ratio, rounds
