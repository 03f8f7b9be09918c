"""Regressions planted from outside, by adding to what a scenario runs: what ``--selftest`` must see caught."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from kvmattr.gate.scenario import Scenario, Work

#: How much slower the planted slowdown is.
SLOWER = 1.3

#: So that a planted O(n) does not take for ever.
_MOST_CHANGES = 20_000

#: How many pages are asked about one by one: one block.
_PAGES = 512


class _Ran(NamedTuple):
    """A run that a plant adds to. ``smallest``: its scenario's smallest size; ``seconds``: CPU time that it took;
    ``kept``: what all runs of a cell leave behind."""

    work: Work
    size: int
    smallest: int
    seconds: float
    kept: list[Any]


def planted(scenarios: dict[str, Scenario], plant: str) -> dict[str, Scenario]:
    """The scenarios with one of the regressions in each of them (``missing``: without the first of them), or,
    as in ``slow@SCENARIO``, in one alone."""
    plant, _, only = plant.partition("@")
    if plant == "missing":
        gone = only or next(iter(scenarios), "")
        return {name: each for name, each in scenarios.items() if name != gone}
    return {name: dataclasses.replace(each, prepare=_with(each, _PLANTS[plant])) if only in ("", name) else each
            for name, each in scenarios.items()}


def _with(scenario: Scenario, plant: Callable[[_Ran], None]) -> Callable[[int], Work]:
    def prepare(size: int) -> Work:
        work = scenario.prepare(size)
        kept: list[Any] = []

        def run() -> object:
            start = time.process_time()
            result = work.run()
            plant(_Ran(work, size, scenario.sizes[0], time.process_time() - start, kept))
            return result
        return dataclasses.replace(work, run=run)
    return prepare


def _linear(ran: _Ran) -> None:
    """Each operation also changes as many pages, each in a block of its own, as the size is times the smallest."""
    _changed_copies(ran, min(ran.work.operations * (ran.size // ran.smallest), _MOST_CHANGES))


def _slow(ran: _Ran) -> None:
    # In CPU time: while another process has the CPU nothing becomes slower, nor is the delay served.
    stop = time.process_time() + (SLOWER - 1) * ran.seconds
    while time.process_time() < stop:
        pass


def _memory(ran: _Ran) -> None:
    """Each run leaves what it replaced behind, as if the last reference were forgotten."""
    ran.kept.extend(_changed_copies(ran, 32, apart=2))


def _page(ran: _Ran) -> None:
    """A range is read page by page, a call each."""
    for each in ran.work.maps:
        for gfn in range(min(len(each), _PAGES)):
            each.get(gfn)


def _copy(ran: _Ran) -> None:
    """Each operation makes a copy that it needs not."""
    for each in ran.work.maps:
        for _ in range(min(ran.work.operations, _MOST_CHANGES)):
            each.copy()


def _snapshot(ran: _Ran) -> None:
    """Each run takes a snapshot that nobody lets go of."""
    ran.kept.extend(each.snapshot() for each in ran.work.maps)


def _batch(ran: _Ran) -> None:
    """Pages are updated one by one where put() takes them all; what they hold stays."""
    for each in ran.work.maps:
        copy = each.copy()              # some maps are a machine's, and read-only
        for gfn in range(min(len(copy), _PAGES)):
            copy[gfn] = copy[gfn]


def _hidden(ran: _Ran) -> None:
    """A cost that grows with the size up to the smallest one that is measured: no slope is left to be seen."""
    _changed_copies(ran, min(ran.smallest, _PAGES))


_PLANTS = {"linear": _linear, "slow": _slow, "memory": _memory, "page": _page, "copy": _copy, "snapshot": _snapshot,
           "batch": _batch, "hidden": _hidden}


def _changed_copies(ran: _Ran, pages: int, apart: int = 512) -> list[Any]:
    """A copy of each map in which so many single pages were written: from the second on, so far apart, and where the
    map ends from its beginning (a page that comes twice is as it was)."""
    copies = [each.copy() for each in ran.work.maps]
    for copy in copies:
        for i in range(pages):
            gfn = (apart * i + 1) % len(copy)
            copy.write(gfn, gfn + 1, copy.get(gfn) ^ 0x80)
    return copies
