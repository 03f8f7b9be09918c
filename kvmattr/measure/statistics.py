"""Medians, their intervals and ratios of pairs; nothing here knows what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Enough for intervals that do not move in the digits that are printed.
_RESAMPLES = 2000
_CONFIDENCE = 95


def interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """The bootstrap interval of the median at 95 %: seeded, so the same samples give the same interval."""
    chosen = np.random.default_rng(0).integers(0, len(samples), (_RESAMPLES, len(samples)))
    medians = np.median(samples[chosen], axis=1)
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(medians, (tail, 100 - tail))
    return float(low), float(high)


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
