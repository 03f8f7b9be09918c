"""Medians, their intervals and ratios of pairs; nothing here knows what was measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmattr.measure import text

#: Enough for intervals that do not move in the digits that are printed.
_RESAMPLES = 2000
_CONFIDENCE = 95


def interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """The bootstrap interval of the median at 95 %: seeded, so the same samples give the same interval."""
    medians = np.median(samples[_chosen(len(samples))], axis=1)
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(medians, (tail, 100 - tail))
    return float(low), float(high)


@functools.lru_cache(16)
def _chosen(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))


@dataclass(frozen=True)
class Spread:
    """What a list of samples comes to: median, 10th and 90th percentile, interval of the median."""

    median: float
    p10: float
    p90: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Spread:
        """Of at least one sample.

        >>> Spread.of([3.0, 1.0, 2.0]).median
        2.0
        """
        values = np.asarray(samples, np.float64)
        p10, median, p90 = np.percentile(values, (10, 50, 90))
        return cls(float(median), float(p10), float(p90), *interval(values))

    def words(self, unit: str) -> str:
        """The median with its 10th and 90th percentile.

        >>> Spread.of([1000, 2000, 3000]).words("ns/call")
        '2 us (1.2..2.8)'
        """
        return text.spread(self.median, self.p10, self.p90, unit)


@dataclass(frozen=True)
class Ratio:
    """How many times as much one arm takes as another, from rounds in which both ran."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float], reference: list[float]) -> Ratio:
        """The median of the ratios round by round, with its interval: pairs share what disturbs a round.

        >>> Ratio.of([20.0, 40.0], [10.0, 20.0])
        Ratio(median=2.0, low=2.0, high=2.0)
        """
        paired = min(len(samples), len(reference))
        ratios = np.asarray(samples[:paired]) / np.asarray(reference[:paired])
        return cls(float(np.median(ratios)), *interval(ratios))

    @property
    def told_apart(self) -> bool:
        """False when the interval holds 1: the run could not say which of the two is faster."""
        return not self.low <= 1 <= self.high

    @property
    def words(self) -> str:
        """The ratio with its interval, and a question mark where it is not told apart from 1."""
        low, high = text.digits(self.low), text.digits(self.high)
        return f"{text.digits(self.median)} ({low}..{high}){'' if self.told_apart else ' ?'}"


def student_tail(t: float, freedom: int) -> float:
    """The probability that Student's t is farther from 0 than ``t``, with so many degrees of freedom.

    The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4.

    >>> round(student_tail(2.776445, 4), 6), round(student_tail(12.7062, 1), 6)
    (0.05, 0.05)
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        total, term = 0.0, cosine
        for number in range(3, freedom + 1, 2):
            total += term
            term *= cosine * cosine * (number - 1) / number
        within = (angle + sine * total) * 2 / math.pi
    else:
        total, term = 0.0, 1.0
        for number in range(2, freedom + 1, 2):
            total += term
            term *= cosine * cosine * (number - 1) / number
        within = sine * total
    return max(1 - within, 0.0)


@dataclass(frozen=True)
class Variance:
    """A variance that was estimated, and the degrees of freedom that its estimate has."""

    value: float
    freedom: int


#: Beyond so many degrees of freedom Student's t is the normal distribution to the digits that are printed.
_MANY = 1000

Key = TypeVar("Key")


def moderated(variances: Mapping[Key, Variance]) -> dict[Key, Variance]:
    """Each variance drawn towards the common one of all, as far as they agree with one another.

    Few values show their variance badly, many groups of few values show well what it is in the middle and by how
    much the groups differ in it: that counts as ``prior`` further degrees of freedom of each group (Smyth, 2004,
    section 6.2). Middle and spread are taken by medians, so that single groups that vary wildly move neither; a
    group that varies more than chance allows is not drawn at all. Groups that never varied are drawn up, not left
    at 0.

    >>> drawn = moderated({name: Variance(value, 4) for name, value in zip("abc", (1.0, 2.0, 4.0))})
    >>> [(round(one.value, 1), one.freedom) for one in drawn.values()]
    [(1.7, 10), (2.1, 10), (2.9, 10)]
    """
    varied = [one for one in variances.values() if one.value > 0]
    if len(varied) < 2:
        return dict(variances)
    logs = np.array([math.log(one.value) - digamma(one.freedom) + math.log(one.freedom / 2) for one in varied])
    middle = float(np.median(logs))
    spread = (1.4826 * float(np.median(np.abs(logs - middle)))) ** 2
    own = float(np.mean([trigamma(one.freedom) for one in varied]))
    prior = next((freedom for freedom in range(1, _MANY) if trigamma(freedom) <= spread - own), _MANY)
    common = math.exp(middle + digamma(prior) - math.log(prior / 2))
    drawn = {}
    for key, one in variances.items():
        if one.value > common * _by_chance(one.freedom):
            drawn[key] = one
        elif prior == _MANY:
            drawn[key] = Variance(common, _MANY)
        else:
            freedom = prior + one.freedom
            drawn[key] = Variance((prior * common + one.freedom * one.value) / freedom, min(freedom, _MANY))
    return drawn


def _by_chance(freedom: int) -> float:
    """How many times its true value an estimated variance is at most, but for one in a hundred.

    The chi-square quantile over its freedom by Wilson and Hilferty's cube.
    """
    return (1 - 2 / (9 * freedom) + 2.326 * math.sqrt(2 / (9 * freedom))) ** 3


@functools.lru_cache(_MANY)
def digamma(twice: int) -> float:
    """The derivative of the logarithm of the gamma function at ``twice / 2``.

    >>> round(digamma(2), 4), round(digamma(1), 4)
    (-0.5772, -1.9635)
    """
    at_start = -0.5772156649015329 - (2 * math.log(2) if twice % 2 else 0)
    return at_start + sum(2 / step for step in range(2 - twice % 2, twice, 2))


@functools.lru_cache(_MANY)
def trigamma(twice: int) -> float:
    """The second derivative of the logarithm of the gamma function at ``twice / 2``.

    >>> round(trigamma(2), 4), round(trigamma(1), 4)
    (1.6449, 4.9348)
    """
    at_start = math.pi ** 2 / (2 if twice % 2 else 6)
    return at_start - sum(4 / step ** 2 for step in range(2 - twice % 2, twice, 2))


def chance(difference: float, error: float, freedom: int, margin: float) -> float:
    """How probable so large a difference is, at most, while the true one is no larger than ``margin`` either way.

    ``error``: the standard error of the difference, with so many degrees of freedom. With a margin of 0 this is the
    t-test of both sides. With one, a change must be shown to lie beyond it (McCarthy and Smyth, 2009: "treat").

    >>> round(chance(2.306, 1.0, 8, 0.0), 4), round(chance(2.306, 1.0, 8, 1.0), 4)
    (0.05, 0.1193)
    """
    if error == 0:
        return 0.0 if abs(difference) > margin else 1.0
    return sum(_above((abs(difference) + side) / error, freedom) for side in (-margin, margin))


def half_width(error: float, freedom: int, margin: float, level: float) -> float:
    """Half of the interval that lies beyond ``margin`` exactly where :func:`chance` is below ``level``.

    >>> round(half_width(1.0, 8, 0.0, 0.05), 3), round(half_width(1.0, 8, 10.0, 0.05), 3)
    (2.306, 1.86)
    """
    if error == 0:
        return 0.0
    low, high = 0.0, error
    while chance(margin + high, error, freedom, margin) > level:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(margin + middle, error, freedom, margin) > level else (low, middle)
    return high


def stepped(chances: Mapping[Key, float], level: float) -> dict[Key, float]:
    """The level that each of several tests is judged at, so that all are right together with 1 - ``level`` (Holm).

    The most improbable is judged at a part of the level for each test; once it is told, one fewer is left to err.
    Those that are not told share the level of the first of them.

    >>> stepped({"a": 0.001, "b": 0.02, "c": 0.04}, 0.06)
    {'a': 0.02, 'b': 0.03, 'c': 0.06}
    >>> stepped({"a": 0.03, "b": 0.02, "c": 0.001}, 0.03)
    {'a': 0.015, 'b': 0.015, 'c': 0.01}
    """
    levels, reached = dict[Key, float](), 0
    for tested, key in enumerate(sorted(chances, key=lambda each: chances[each])):
        if tested == reached and chances[key] <= level / (len(chances) - tested):
            reached += 1
        levels[key] = level / (len(chances) - min(tested, reached))
    return {key: levels[key] for key in chances}


def _above(t: float, freedom: int) -> float:
    """The probability that Student's t is above ``t``."""
    return student_tail(t, freedom) / 2 if t >= 0 else 1 - student_tail(t, freedom) / 2
