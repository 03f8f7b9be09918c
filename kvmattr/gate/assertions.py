"""Costs in a plain test: what behind the fixture ``assert_cost`` is."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from kvmattr.gate.counting import difference, measure, slopes, totals
from kvmattr.gate.scenario import FEWEST_SIZES, Work


class AssertCost:
    """Call it with an operation and its maps; ``slope`` judges growth over sizes."""

    def __call__(self, operation: Callable[[], object], *maps: Any, **at_most: int) -> dict[str, int]:
        """Run the operation once and fail if a counter rose by more than is allowed; what rose, and by how much.

        ``maps``: one of each family. ``at_most``: names of ``stats()`` counters, which every build has:
        ``calls=2`` (of the store, all kinds together), ``update_calls=1, update_pages=512``, ``snapshot_calls=0``,
        ``node_allocations=2``. nodes_visited and pages_compared need the counting build: ValueError for a counter
        that is not there.
        """
        __tracebackhide__ = True
        if not maps or not at_most:
            raise ValueError("assert_cost(operation, map, ..., counter=limit): a map and a limit at least")
        before = totals(maps)
        operation()
        after = totals(maps)
        rose = difference(before, after, after)
        above = [f"{name} {rose[name]}, at most {at_most[name]}" for name in _known(rose, at_most)
                 if rose[name] > at_most[name]]
        if above:
            pytest.fail("cost: " + "; ".join(above))
        return rose

    def slope(self, prepare: Callable[[int], Work], sizes: Sequence[int], *counters: str,
              below: float = 0.1) -> dict[str, float]:
        """Prepare and run each size and fail if a counter's log-log slope is not below the limit; all slopes.

        ``counters``: those to judge, by default all that this build has: each kind of call that was made, and what
        they cost. ``below`` 0.1 is O(1), 1.1 is O(n).
        """
        __tracebackhide__ = True
        if len(sizes) < FEWEST_SIZES:
            raise ValueError(f"{len(sizes)} sizes: a slope needs at least {FEWEST_SIZES}")
        works = [prepare(size) for size in sizes]
        counts = [{**cost.counts, **cost.calls} for cost in map(measure, works)]
        found = slopes(sizes, counts, [work.operations for work in works], _known(ChainMap(*counts), counters))
        steep = [f"{name} grows with slope {value:.3f}, not below {below}: {[each.get(name, 0) for each in counts]} "
                 f"at {list(sizes)}" for name, value in found.items() if value >= below]
        if steep:
            pytest.fail("cost: " + "; ".join(steep))
        return found


def _known(counts: Mapping[str, int], names: Any) -> list[str]:
    for name in names:
        if name not in counts:
            raise ValueError(f"counter {name!r}: this build of kvmattr counts {', '.join(sorted(counts))}")
    return list(names)
