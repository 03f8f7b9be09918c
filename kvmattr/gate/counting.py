"""What one run of a scenario costs in calls, counts and bytes (differences of ``stats()``), and how that grows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kvmattr.gate.scenario import Work

#: Effort that every build counts, and effort that only the counting build does.
ALWAYS = ("node_allocations", "node_frees", "node_copies",
          "leaf_allocations", "leaf_frees", "leaf_conversions")
COUNTING_ONLY = ("nodes_visited", "pages_compared")
COUNTERS = ALWAYS + COUNTING_ONLY

#: Freeing more is not a cost of its own: a slope is fitted on what an operation reads, copies and builds.
SLOPED = tuple(name for name in COUNTERS if not name.endswith("_frees"))

#: What is held after a run; maps are those of the family that are alive, snapshots among them.
HELD = ("bytes", "slack", "maps")

#: What a call may be about, in the names of the counters beside ``update_calls``: ``update_pages``.
ITEMS = ("pages", "runs", "ranges")


class Cost(NamedTuple):
    """Of one run: public calls by kind with the pages, runs or ranges they named, effort, what is held after it."""

    calls: dict[str, int]
    counts: dict[str, int]
    bytes: dict[str, int]


def call_counters(names: Iterable[str]) -> list[str]:
    """Which of the names in ``stats()`` are counters of calls.

    >>> call_counters(["bytes", "runs", "calls", "put_calls", "put_pages", "leaf_frees"])
    ['put_calls', 'put_pages']
    """
    known = dict.fromkeys(names)        # in the order given
    return [name for name in known if name.endswith("_calls")
            or (name.rpartition("_")[2] in ITEMS and f"{name.rpartition('_')[0]}_calls" in known)]


def totals(maps: Iterable[Any], names: Iterable[str] | None = None) -> dict[str, int]:
    """The sums of these stats over maps (one of each family), by default of all numbers; those that this build
    lacks are left out."""
    stats = [each.stats() for each in maps]
    chosen = names if names is not None else {name for each in stats for name, value in each.items()
                                              if isinstance(value, int)}
    return {name: sum(each[name] for each in stats) for name in chosen if all(name in each for each in stats)}


def difference(before: Mapping[str, int], after: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """What was added to these counters, which are numbers modulo 2^64."""
    return {name: (after[name] - before[name]) % (1 << 64) for name in names if name in after and name in before}


def measure(work: Work) -> Cost:
    """Run once: what was called and counted, and what the maps hold afterwards. Kinds of calls that were not made
    are left out.

    The bytes are those of nodes and leaves: an empty map's own, which depend on the platform, are taken off.
    Without maps there are no numbers: not zeros, which would always pass.
    """
    before = totals(work.maps)
    work.run()
    after = totals(work.maps)
    if work.check is not None:
        work.check()
    if not work.maps:
        return Cost({}, {}, {})
    calls = {name: value for name, value in difference(before, after, call_counters(after)).items() if value}
    held = {name: after[name] for name in HELD if name in after}
    held["bytes"] -= type(work.maps[0])(1).nbytes * len(work.maps)
    return Cost(calls, difference(before, after, COUNTERS), held)


def slope(sizes: Sequence[int], counts: Sequence[int], operations: Sequence[int]) -> float:
    """The slope of a straight line through both logarithms: 0 for a count an operation that does not depend on the
    size, 1 for one that is proportional to it.

    An operation is taken to cost one more than was counted: nothing and next to nothing are then nearly the
    same, and no logarithm of 0 comes up.

    >>> slope([1, 10, 100, 1000, 10000], [7, 7, 7, 7, 7], [1, 1, 1, 1, 1])
    0.0
    >>> slope([1, 10, 100, 1000, 10000], [30, 300, 3000, 30000, 300000], [1, 1, 1, 1, 1])
    0.997
    """
    costs = [math.log(1 + count / number) for count, number in zip(counts, operations, strict=True)]
    # Rounded to what is printed and stored: the last bits of a logarithm differ between platforms.
    return round(statistics.linear_regression(list(map(math.log, sizes)), costs).slope, 3) + 0.0


def slopes(sizes: Sequence[int], counts: Sequence[Mapping[str, int]], operations: Sequence[int],
           names: Sequence[str] = ()) -> dict[str, float]:
    """The slopes of these counters, by default of each kind of call that was made and of what they cost.

    ``counts``: calls and counts at each size. Of calls their number is fitted: how many pages one is about is the
    scenario's business.
    """
    made = sorted({name for each in counts for name in each if name.endswith("_calls")})
    return {name: slope(sizes, [each.get(name, 0) for each in counts], operations)
            for name in names or [*made, *(name for name in SLOPED if name in counts[0])]}
