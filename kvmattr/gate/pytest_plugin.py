"""The fixture ``assert_cost``: counts and slopes in a plain test. pytest finds it by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kvmattr.gate import Work


class AssertCost:
    """Call it with an operation and its maps; ``slope`` judges growth over sizes."""

    def __call__(self, operation: Callable[[], object], *maps: Any, **at_most: int) -> dict[str, int]:
        """Run the operation once and fail if a counter rose by more than is allowed; all counts.

        ``maps``: one of each family. ``at_most``: names of ``stats()`` counters, e.g. ``node_allocations=2``;
        nodes_visited and pages_compared need the counting build: ValueError for one that is not there.
        """
        from kvmattr.gate.counting import measure
        from kvmattr.gate.scenario import Work
        __tracebackhide__ = True
        if not maps or not at_most:
            raise ValueError("assert_cost(operation, map, ..., counter=limit): a map and a limit at least")
        counts, _ = measure(Work(operation, maps))
        above = [f"{name} {counts[name]}, at most {at_most[name]}" for name in _known(counts, at_most)
                 if counts[name] > at_most[name]]
        if above:
            pytest.fail("cost: " + "; ".join(above))
        return counts

    def slope(self, prepare: Callable[[int], Work], sizes: Sequence[int], *counters: str,
              below: float = 0.1) -> dict[str, float]:
        """Prepare and run each size and fail if a counter's log-log slope is not below the limit; all slopes.

        ``counters``: those to judge, by default all that this build has. ``below`` 0.1 is O(1), 1.1 is O(n).
        """
        from kvmattr.gate.counting import SLOPED, measure
        from kvmattr.gate.scenario import FEWEST_SIZES
        from kvmattr.gate.slopes import slope
        __tracebackhide__ = True
        if len(sizes) < FEWEST_SIZES:
            raise ValueError(f"{len(sizes)} sizes: a slope needs at least {FEWEST_SIZES}")
        works = [prepare(size) for size in sizes]
        counts = [measure(work)[0] for work in works]
        judged = _known(counts[0], counters) if counters else [name for name in SLOPED if name in counts[0]]
        slopes = {name: slope(sizes, [each[name] for each in counts], [work.operations for work in works])
                  for name in judged}
        steep = [f"{name} grows with slope {value:.3f}, not below {below}: {[each[name] for each in counts]} "
                 f"at {list(sizes)}" for name, value in slopes.items() if value >= below]
        if steep:
            pytest.fail("cost: " + "; ".join(steep))
        return slopes


def _known(counts: dict[str, int], names: Any) -> list[str]:
    for name in names:
        if name not in counts:
            raise ValueError(f"counter {name!r}: this build of kvmattr counts {', '.join(counts)}")
    return list(names)


@pytest.fixture(scope="session")
def assert_cost() -> AssertCost:
    """Assert costs in the store's own counters: ``assert_cost(run, map, node_copies=0)`` and
    ``assert_cost.slope(prepare, sizes)``."""
    return AssertCost()
