"""Interleaved rounds: the store and numpy take turns on the same work, and every round's answers are
compared.

A round draws its arguments before the clock starts, runs both arms on them, times beside them a *floor*
that does what is common to both (the Python loop, the call of the arm) and nothing else, and checks the
answers when the clocks have stopped. Rounds come in pairs, the store first in one and numpy in the other
(ABBA): whoever is first reads what was drawn from memory, the other from the cache. What is quoted is the
median of the pairs' ratios, both arms less the floor.

The clock is the thread's CPU time: nothing that is measured here waits or uses a second thread, and what
other processes take while a round is interrupted is not the round's. Caches that they empty are; the table
names the load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import thread_time_ns
from typing import Any

import numpy as np


class WrongResult(Exception):
    """An arm did not do the work that it was timed on."""


def nothing(drawn: Any) -> None:
    """The floor of an arm that is one call."""


def loop(drawn: Any) -> None:
    """The floor of an arm that is one call for each of what was drawn."""
    for _ in drawn:
        pass


@dataclass(frozen=True)
class Arms:
    """The work of one row. ``draw`` makes a round's arguments, off the clock, and may bring both sides back
    to where they were; ``numpy`` has the forms that might be the fastest, by name; ``check`` gets what was
    drawn and what both answered.
    """

    draw: Callable[[], Any]
    store: Callable[[Any], Any]
    numpy: dict[str, Callable[[Any], Any]]
    check: Callable[[Any, Any, Any], bool]
    floor: Callable[[Any], Any] = nothing
    calls: int = 1  # operations of the store in a round, and of numpy where not said
    numpy_calls: int | None = None


@dataclass(frozen=True)
class Alone:
    """The work of a row without an opponent: a time against a limit. ``work`` may return its own time in ns
    where the clock must run for a part of it only."""

    draw: Callable[[], Any]
    work: Callable[[Any], Any]
    check: Callable[[Any, Any], bool]
    floor: Callable[[Any], Any] = nothing
    calls: int = 1
    own_clock: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table: what is done in it and what is aimed at. ``make`` gets the guest."""

    name: str
    target: float | None
    rounds: int
    make: Callable[[Any], Any]


def adding(rows: list[Row], rounds: int) -> Callable[..., Callable[[Any], Any]]:
    """A decorator that makes a row of a function: its name, its target, and where it takes others its rounds."""

    def row(name: str, target: float | None, rounds: int = rounds) -> Callable[[Any], Any]:
        def add(make: Any) -> Any:
            rows.append(Row(name, target, rounds, make))
            return make

        return add

    return row


@dataclass
class Samples:
    """What the rounds of one row gave: ns per operation, and how many rounds were checked."""

    store: list[float] = field(default_factory=list)
    numpy: list[float] = field(default_factory=list)
    form: str = ""
    checked: int = 0

    @property
    def ratios(self) -> list[float]:
        """Of pairs of rounds: one sample has each arm first once."""
        ours, theirs = (np.reshape(side, (-1, 2)).sum(axis=1) for side in (self.store, self.numpy))
        ratios: list[float] = (ours / theirs).tolist()
        return ratios


def timed(work: Callable[[Any], Any], drawn: Any) -> tuple[int, Any]:
    before = thread_time_ns()
    answer = work(drawn)
    return thread_time_ns() - before, answer


def round_of(arms: Arms, form: str, store_first: bool, samples: Samples) -> None:
    drawn, turns = arms.draw(), [arms.store, arms.floor, arms.numpy[form]]
    took = [timed(work, drawn) for work in (turns if store_first else reversed(turns))]
    (ours, answer), (floor, _), (theirs, expected) = took if store_first else reversed(took)
    if not arms.check(drawn, answer, expected):
        raise WrongResult(f"the store and {form!r} differ")
    # A floor that was interrupted must not make an arm free.
    samples.store.append(max(ours - floor, 1) / arms.calls)
    samples.numpy.append(max(theirs - floor, 1) / (arms.numpy_calls or arms.calls))
    samples.checked += 1


def compare(arms: Arms, rounds: int) -> Samples:
    """Find the fastest of numpy's forms in three rounds of each, which take turns and warm both sides up, then
    measure against it, in an even number of rounds.
    """
    tried = {form: Samples() for form in arms.numpy}
    for index in range(3):
        for form, trial in tried.items():
            round_of(arms, form, index % 2 == 0, trial)
    samples = Samples(form=min(tried, key=lambda form: min(tried[form].numpy)))
    for index in range(rounds + rounds % 2):
        round_of(arms, samples.form, index % 2 == 0, samples)
    return samples


def time_alone(alone: Alone, rounds: int) -> Samples:
    """The rounds of work that has no opponent, after one that warms up."""
    samples = Samples()
    for index in range(rounds + 1):
        drawn = alone.draw()
        floor, _ = timed(alone.floor, drawn)
        elapsed, answer = timed(alone.work, drawn)
        if not alone.check(drawn, answer):
            raise WrongResult("the store did not do what was timed")
        if alone.own_clock:
            elapsed, floor = answer, 0
        if index:
            samples.store.append(max(elapsed - floor, 1) / alone.calls)
            samples.checked += 1
    return samples


def hot_scalar_ns() -> float:
    """numpy's scalar ``a[i]`` on 4096 hot pages: the yardstick of this machine for absolute times."""
    a = np.zeros(4096, np.uint8)
    gfns = np.random.default_rng(0).integers(0, 4096, 20_000).tolist()

    def look(drawn: list[int]) -> None:
        for gfn in drawn:
            a[gfn]

    looks, loops = zip(*((timed(look, gfns)[0], timed(loop, gfns)[0]) for _ in range(15)), strict=True)
    return (min(looks) - min(loops)) / len(gfns)
