"""Rounds in which arms take turns, on one CPU and without the garbage collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

Arm = TypeVar("Arm")


def turns(arms: Sequence[Arm], rounds: int) -> Iterator[tuple[int, Arm]]:
    """The round and the arm whose turn it is: forwards in even rounds, backwards in odd ones.

    What disturbs the machine for a while hits neighbours alike, and none of them is always the first.

    >>> [(index, arm) for index, arm in turns("AB", 2)]
    [(0, 'A'), (0, 'B'), (1, 'B'), (1, 'A')]
    """
    for index in range(rounds):
        for arm in arms if index % 2 == 0 else reversed(arms):
            yield index, arm


@contextmanager
def undisturbed() -> Iterator[None]:
    """Stay on one CPU, the last that we may use (the first serve most interrupts), without the collector."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    collected = gc.isenabled()
    if cpus:
        os.sched_setaffinity(0, {max(cpus)})
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
        if cpus:
            os.sched_setaffinity(0, cpus)
