"""What one run of a scenario costs in counts and bytes: differences of ``stats()``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvmattr.gate.scenario import Work

#: Effort that every build counts, and effort that only the counting build does.
ALWAYS = ("node_allocations", "node_frees", "node_copies",
          "leaf_allocations", "leaf_frees", "leaf_conversions")
COUNTING_ONLY = ("nodes_visited", "pages_compared")
COUNTERS = ALWAYS + COUNTING_ONLY

#: Freeing more is not a cost of its own: a slope is fitted on what an operation reads, copies and builds.
SLOPED = tuple(name for name in COUNTERS if not name.endswith("_frees"))

BYTES = ("bytes", "slack")


def totals(maps: Iterable[Any], names: Iterable[str]) -> dict[str, int]:
    """The sums of these stats over maps (one of each family); those that this build lacks are left out."""
    stats = [each.stats() for each in maps]
    return {name: sum(each[name] for each in stats) for name in names
            if all(name in each for each in stats)}


def measure(work: Work) -> tuple[dict[str, int], dict[str, int]]:
    """Run once: what it counted, and what the maps hold afterwards.

    The bytes are those of nodes and leaves: an empty map's own, which depend on the platform, are taken off.
    Without maps there are no numbers: not zeros, which would always pass.
    """
    before = totals(work.maps, COUNTERS)
    work.run()
    after = totals(work.maps, COUNTERS)
    held = totals(work.maps, BYTES)
    if work.check is not None:
        work.check()
    if not work.maps:
        return {}, {}
    held["bytes"] -= type(work.maps[0])(1).nbytes * len(work.maps)
    return {name: after[name] - before[name] for name in after}, held
