"""Time against another build: pairs in one breath, a twin of the base as control, doubt where it is due.

A round is ABCCBA: head, base, base's twin and back, so that what drifts hits all three alike. The verdict is
the bootstrap interval of the median of the rounds' ratios against a threshold that the control widens: what
moves between two copies of the same build is the machine, not the change. Rounds go on only while it is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvmattr.gate.limits import DEFAULT
from kvmattr.gate.verdict import Verdict
from kvmattr.measure.rounds import turns
from kvmattr.measure.statistics import Ratio

#: A sample repeats its operation for at least so long: far above the clock's and a context switch's grain.
SAMPLE_SECONDS = 0.002
ROUNDS, MOST_ROUNDS = 10, 60

#: The default threshold, pushed beyond this by the control, cannot see what the gate exists for: the machine is unfit.
#: A wider one may be pushed by as much.
WIDEST = 1.25

#: So many times beyond the limit is no noise, on any machine.
FAR = 2.0

#: However far the control widens the threshold, what may be slower than this is not passed.
PASSED = 1.20

Sample = Callable[[], float]


@dataclass
class Pairs:
    """Times of rounds, one of each arm a round."""

    head: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    twin: list[float] = field(default_factory=list)


def measured(*arms: Sample) -> Iterator[list[list[float]]]:
    """The times of each arm so far, after ROUNDS more rounds each time it is asked for, up to MOST_ROUNDS.

    In a round every arm runs once forwards and once backwards: what both took is its time.
    """
    times: list[list[float]] = [[] for _ in arms]
    for _ in range(0, MOST_ROUNDS, ROUNDS):
        for index, arm in turns(range(len(arms)), 2 * ROUNDS):
            if index % 2 == 0:
                times[arm].append(0.0)
            times[arm][-1] += arms[arm]()
        yield times


def judge(pairs: Pairs, threshold: float, *, must_work: bool = False,
          between: float = 1.0) -> tuple[Verdict, str, float]:
    """REGRESSION if head is surely slower than the widened threshold, PASS if surely not (and surely not by
    much), else UNDECIDED; in words, and the ratio. What ``must_work`` may not be surely faster by as much either.
    ``between``: what is known to differ between two runs and does not show in the pairs."""
    ratio = Ratio.of(pairs.head, pairs.base)
    widened = threshold * between * widening(Ratio.of(pairs.twin, pairs.base))
    text = (f"{ratio.median:.3f}x the base's time [{ratio.low:.3f}, {ratio.high:.3f}] in {len(pairs.head)} "
            f"rounds; limit {widened:.3f}x")
    if widened > WIDEST * max(1.0, threshold / DEFAULT) and ratio.low < FAR * widened:
        what = "its copies differ" if between == 1 else "two runs of it may differ"
        return Verdict.UNDECIDED, f"{text}: too noisy, {what} by {widened / threshold:.3f}x", ratio.median
    if ratio.low > widened:
        return Verdict.REGRESSION, text, ratio.median
    if must_work and ratio.low < 1 / widened:
        if ratio.high < 1 / widened:
            return Verdict.REGRESSION, f"{text}: it does not do its work (fail if faster)", ratio.median
        return Verdict.UNDECIDED, f"{text}: it may be faster than {1 / widened:.3f}x (fail if faster)", ratio.median
    if ratio.high < 1 / FAR:
        text += "; does it still do its work? (--fail-if-faster makes this red)"
    if ratio.high < min(widened, max(PASSED, threshold)):
        return Verdict.PASS, text, ratio.median
    return Verdict.UNDECIDED, text, ratio.median


def widening(control: Ratio) -> float:
    """How far apart two copies of one build may be, by their interval: 1 or more."""
    return max(1.0, control.high, 1 / control.low)


def compare(head: Sample, base: Sample, twin: Sample, threshold: float, *,
            reverse: bool = False, must_work: bool = False) -> tuple[Verdict, str, float]:
    """Rounds until the verdict is clear or there have been enough of them."""
    arms = (head, base, twin)
    for times in measured(*(arms[::-1] if reverse else arms)):
        verdict, text, ratio = judge(Pairs(*(times[::-1] if reverse else times)), threshold, must_work=must_work)
        if verdict is not Verdict.UNDECIDED:
            break
    return verdict, text, ratio


def repeats(run: Callable[[int], float]) -> int:
    """How often to run for one sample of at least SAMPLE_SECONDS."""
    repeat = 1
    while (seconds := run(repeat)) < SAMPLE_SECONDS:
        repeat = max(repeat + 1, math.ceil(repeat * min(10.0, 1.2 * SAMPLE_SECONDS / max(seconds, 1e-9))))
    return repeat
