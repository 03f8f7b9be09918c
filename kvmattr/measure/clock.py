"""Two clocks around a call, and the yardstick: fixed work that other times are divided by.

The thread's CPU time leaves out what other processes take while a round is interrupted; wall time has what a
call waits for. Which of them is judged depends on the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kvmattr.measure import _yardstick

#: Words of the yardstick's table, 256 KiB: it lives in a second-level cache, as a small map does.
_WORDS = 1 << 15
#: Steps of one reading, a millisecond or less, and the steps that its result is given for.
_STEPS, _GIVEN_FOR = 100_000, 1_000


class Took(NamedTuple):
    """Nanoseconds of one piece of work by both clocks."""

    wall: float
    cpu: float


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Took]:
    """Call it: its answer, and what it took. Asking the clocks adds some 0.3 us to the CPU time.

    >>> answer, took = timed(sum, [1, 2])
    >>> answer, took.wall > 0
    (3, True)
    """
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    answer = work(*arguments)
    wall_after, cpu_after = time.perf_counter_ns(), time.thread_time_ns()
    return answer, Took(float(wall_after - wall), float(cpu_after - cpu))


class Yardstick:
    """The same user-space work on every machine, kernel and version: what a time is divided by between runs."""

    def __init__(self) -> None:
        self._table = np.random.default_rng(0).integers(0, 1 << 63, _WORDS, np.uint64)

    def read(self) -> Took:
        """Nanoseconds of 1,000 steps, from some 100,000: now, on this CPU."""
        _, took = timed(_yardstick.walk, self._table, _STEPS)
        return Took(*(each * _GIVEN_FOR / _STEPS for each in took))
