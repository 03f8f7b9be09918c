"""Regressions planted from outside, by wrapping what a scenario runs: what ``--selftest`` must see caught."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from kvmattr.gate.scenario import Scenario, Work

#: How much slower the planted slowdown is.
SLOWER = 1.3

#: So that a planted O(n) does not take for ever.
_MOST_CHANGES = 20_000

#: How many pages are asked about one by one: one block.
_PAGES = 512


def planted(scenarios: dict[str, Scenario], plant: str) -> dict[str, Scenario]:
    """The scenarios with one of the regressions in each of them (``missing``: without the first of them), or,
    as in ``slow@SCENARIO``, in one alone."""
    plant, _, only = plant.partition("@")
    if plant == "missing":
        gone = only or next(iter(scenarios), "")
        return {name: each for name, each in scenarios.items() if name != gone}
    wrap = {"linear": _linear, "slow": _slow, "memory": _memory, "page": _page, "copy": _copy, "snapshot": _snapshot,
            "batch": _batch, "hidden": _hidden}[plant]
    return {name: dataclasses.replace(each, prepare=_wrapped(each, wrap)) if only in ("", name) else each
            for name, each in scenarios.items()}


def _wrapped(scenario: Scenario,
             wrap: Callable[[Work, int, int], Callable[[], object]]) -> Callable[[int], Work]:
    def prepare(size: int) -> Work:
        work = scenario.prepare(size)
        return dataclasses.replace(work, run=wrap(work, size, scenario.sizes[0]))
    return prepare


def _linear(work: Work, size: int, smallest: int) -> Callable[[], object]:
    """Each operation also changes as many pages, each in a block of its own, as the size is times the smallest."""
    times = size // smallest

    def run() -> object:
        result = work.run()
        _change_copies(work.maps, min(work.operations * times, _MOST_CHANGES))
        return result
    return run


def _slow(work: Work, size: int, smallest: int) -> Callable[[], object]:
    def run() -> object:
        # In CPU time: while another process has the CPU nothing becomes slower, nor is the delay served.
        start = time.process_time()
        result = work.run()
        stop = time.process_time()
        stop += (SLOWER - 1) * (stop - start)
        while time.process_time() < stop:
            pass
        return result
    return run


def _memory(work: Work, size: int, smallest: int) -> Callable[[], object]:
    """Each run leaves what it replaced behind, as if the last reference were forgotten."""
    kept: list[Any] = []

    def run() -> object:
        kept.extend(_altered_copies(work.maps))
        return work.run()
    return run


def _page(work: Work, size: int, smallest: int) -> Callable[[], object]:
    """A range is read page by page, a call each."""
    def run() -> object:
        for each in work.maps:
            for gfn in range(min(len(each), _PAGES)):
                each.get(gfn)
        return work.run()
    return run


def _copy(work: Work, size: int, smallest: int) -> Callable[[], object]:
    """Each operation makes a copy that it needs not."""
    def run() -> object:
        for each in work.maps:
            for _ in range(min(work.operations, _MOST_CHANGES)):
                each.copy()
        return work.run()
    return run


def _snapshot(work: Work, size: int, smallest: int) -> Callable[[], object]:
    """Each run takes a snapshot that nobody lets go of."""
    kept: list[Any] = []

    def run() -> object:
        result = work.run()
        kept.extend(each.snapshot() for each in work.maps)
        return result
    return run


def _batch(work: Work, size: int, smallest: int) -> Callable[[], object]:
    """Pages are updated one by one where put() takes them all; what they hold stays."""
    def run() -> object:
        result = work.run()
        for each in work.maps:
            copy = each.copy()              # some maps are a machine's, and read-only
            for gfn in range(min(len(copy), _PAGES)):
                copy[gfn] = copy[gfn]
        return result
    return run


def _hidden(work: Work, size: int, smallest: int) -> Callable[[], object]:
    """A cost that grows with the size up to the smallest one that is measured: no slope is left to be seen."""
    pages = min(size, smallest, _PAGES)

    def run() -> object:
        result = work.run()
        _change_copies(work.maps, pages)
        return result
    return run


def _change_copies(maps: Iterable[Any], pages: int) -> None:
    """So many pages of a copy of each map, each in a block of its own."""
    for each in maps:
        copy = each.copy()
        for i in range(pages):
            gfn = (512 * i + 1) % len(copy)
            copy.write(gfn, gfn + 1, copy.get(gfn) ^ 0x80)


def _altered_copies(maps: Iterable[Any]) -> list[Any]:
    copies = [each.copy() for each in maps]
    for copy in copies:
        for gfn in range(1, min(len(copy) - 1, 65), 2):
            copy.write(gfn, gfn + 1, copy.get(gfn) ^ 0x80)
    return copies
