"""Medians, their intervals and ratios of pairs; nothing here knows what was measured."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


@functools.lru_cache(64)
def student_quantile(tail: float, freedom: int) -> float:
    """The t that is passed, on either side, with the probability ``tail``; the inverse of :func:`student_tail`.

    >>> round(student_quantile(0.05, 8), 3)
    2.306
    """
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > tail:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return high
