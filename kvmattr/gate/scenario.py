"""What the gate judges: scenarios and claims, found in a plain Python file or behind an entry point.

A file is read for every Scenario and Claim at its top level; nothing else registers anything::

    from kvmattr import AttributeMap
    from kvmattr.gate import Work, scenario

    @scenario(sizes=[64, 256, 1024, 4096, 16384], growth="constant")
    def convert_page(earlier):
        guest = AttributeMap(1 << 24)
        ...
        return Work(run, maps=[guest], operations=64)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

#: How fast a count may grow with the size: the steepest log-log slope that a declared growth allows.
GROWTH = {"constant": 0.1, "linear": 1.1}

#: A slope of fewer sizes says nothing.
FEWEST_SIZES = 5


@dataclass(frozen=True)
class Work:
    """A scenario at one size, ready to run.

    ``run`` is counted and timed. It must do the same operations each time and leave the maps such that it can
    run again. ``maps`` are those whose counters and bytes are read, one of each family. ``check``, called
    after the clock has stopped, raises AssertionError if ``run`` did not do what it should.
    """

    run: Callable[[], object]
    maps: Sequence[Any]
    operations: int = 1
    check: Callable[[], object] | None = None


@dataclass(frozen=True)
class Scenario:
    """A workload at several sizes. ``growth``, if declared, limits the slope of its counts over the sizes.

    ``group`` is a name by which thresholds may be chosen, ``threshold`` how many times slower its cells may be;
    with ``must_work`` a cell that does less than before, or is faster, fails as one that is slower does.
    """

    name: str
    prepare: Callable[[int], Work]
    sizes: tuple[int, ...]
    growth: str | None = None
    timed: bool = True
    group: str | None = None
    threshold: float | None = None
    must_work: bool = False


@dataclass(frozen=True)
class Versus:
    """Two ways to do the same work, run in turn in one process."""

    faster: Callable[[], object]
    slower: Callable[[], object]


@dataclass(frozen=True)
class Claim:
    """The faster way beats the slower one at least so many times."""

    name: str
    prepare: Callable[[], Versus]
    at_least: float


def scenario(*, sizes: Sequence[int], growth: str | None = None, timed: bool = True, group: str | None = None,
             threshold: float | None = None, must_work: bool = False) -> Callable[[Callable[[int], Work]], Scenario]:
    """Make a Scenario of a function that prepares the work for one size.

    ``sizes`` are positive and rise. ``growth`` ("constant" or "linear") is that of the counts an operation;
    where it is declared there are at least 5 sizes. The largest one is timed against another build unless
    ``timed`` is False. ``group``, ``threshold`` (a ratio above 1) and ``must_work`` as in :class:`Scenario`.

    >>> @scenario(sizes=[1, 2])
    ... def nothing_at_all(size): return Work(lambda: None, maps=[])
    >>> nothing_at_all.name
    'nothing-at-all'
    """
    chosen = tuple(sizes)
    if not chosen or chosen[0] < 1 or any(a >= b for a, b in pairwise(chosen)):
        raise ValueError(f"sizes {list(chosen)}: a scenario needs sizes of 1 or more that rise")
    if growth is not None and growth not in GROWTH:
        raise ValueError(f"growth {growth!r}: one of {', '.join(GROWTH)}")
    if growth is not None and len(chosen) < FEWEST_SIZES:
        raise ValueError(f"{len(chosen)} sizes: a slope needs at least {FEWEST_SIZES}")

    if threshold is not None and not 1 < threshold < float("inf"):
        raise ValueError(f"threshold {threshold!r}: a ratio above 1, for example 1.10")

    def make(prepare: Callable[[int], Work]) -> Scenario:
        return Scenario(prepare.__name__.replace("_", "-"), prepare, chosen, growth, timed, group, threshold,
                        must_work)
    return make


def claim(*, at_least: float) -> Callable[[Callable[[], Versus]], Claim]:
    """Make a Claim of a function that prepares the two ways. Choose a threshold far from what is measured."""
    if not at_least > 0:
        raise ValueError(f"at_least {at_least!r}: a ratio above 0")

    def make(prepare: Callable[[], Versus]) -> Claim:
        return Claim(prepare.__name__.replace("_", "-"), prepare, at_least)
    return make


def found_in(module: ModuleType) -> tuple[list[Scenario], list[Claim]]:
    """The scenarios and claims at a module's top level, in the order of the file."""
    values = list(vars(module).values())
    return ([value for value in values if isinstance(value, Scenario)],
            [value for value in values if isinstance(value, Claim)])
