#!/usr/bin/env python3
"""What does a guest's first conversion cost, beside KVM's own xarray as the study models it?

    python bench/conversions.py                                 the table; half a minute
    python bench/conversions.py --results bench/results/NAME    writes NAME.txt too
    python bench/conversions.py --quick                         few conversions; figures mean nothing

A guest of 64 GiB has k random pages converted. Fresh pages are converted and converted back: one at a time
(`single`), or 1,024 and then these back (`batch`). Each cell is the store's time for that, by one of its calls, over
the xarray's in the same process and the same turns: the median of pairs of interleaved rounds on the thread's CPU
time. Above 1 the xarray wins. `write` is a Python call a page, the others are one call a round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

from bench.guest import Gfns, Guest  # noqa: E402
from bench.machine import records_of  # noqa: E402
from bench.report import asked, show  # noqa: E402
from bench.rounds import Arms, compare  # noqa: E402
from kvmattr import VM, AttributeMap  # noqa: E402
from kvmattr.measure.machine import Load  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402
from kvmattr.study._xarray import XArray  # noqa: E402

EARLIER = (1, 10, 100, 1000, 10_000)
TURNS = {"single": 1, "batch": 1024}
FRESH = 4096
ROUNDS = 16
LIMIT = 1.0


def there_and_back(fresh: Gfns, at_once: int) -> tuple[Gfns, Any]:
    """The gfns to convert in order, and to what."""
    gfns = np.stack([fresh.reshape(-1, at_once)] * 2, axis=1).ravel()
    return gfns, np.tile(np.repeat(np.array([1, 0], np.uint8), at_once), len(fresh) // at_once)


def roads(guest: Guest, early: Gfns) -> dict[str, tuple[Callable[..., Any], AttributeMap]]:
    """The store's ways to convert, each with a map of its own in which `early` are converted."""
    def written(m: AttributeMap) -> Callable[..., None]:
        write = m.write

        def calls(drawn: Any) -> None:
            for start, stop, attributes in drawn["calls"]:
                write(start, stop, attributes)

        return calls

    vm = VM()
    vm.set_memory_attributes_many(records_of(early, 1))
    maps = [AttributeMap(guest.pages) for _ in range(3)]
    for m in maps:
        m.put(early, 1)
    return {
        "put": (lambda drawn: maps[0].put(drawn["gfns"], drawn["attributes"]), maps[0]),
        "update_many": (lambda drawn: maps[1].update_many(drawn["gfns"], drawn["stops"], drawn["attributes"]), maps[1]),
        "write": (written(maps[2]), maps[2]),
        "SET batch": (lambda drawn: vm.set_memory_attributes_many(drawn["records"]), vm.attributes),
    }


def measure(guest: Guest, earlier: int, at_once: int, fresh: int, rounds: int) -> list[float]:
    """The ratio of each road of the store to the xarray."""
    pages = guest.rng.choice(guest.pages, earlier + 2 * fresh, replace=False)
    early, others = pages[:earlier], pages[earlier:]
    array = XArray()

    def set_in_array(gfns: Gfns, attributes: Any) -> None:
        array.update_many(gfns.astype(np.uint64), gfns.astype(np.uint64) + np.uint64(1), attributes,
                          np.zeros(len(gfns), np.uint8))

    set_in_array(early, np.ones(earlier, np.uint8))

    def draw() -> dict[str, Any]:
        gfns, attributes = there_and_back(guest.rng.choice(others, fresh, replace=False), at_once)
        starts = gfns.astype(np.uint64)
        return {"gfns": starts, "stops": starts + np.uint64(1), "attributes": attributes,
                "operations": np.zeros(len(gfns), np.uint8), "records": records_of(gfns, attributes),
                "calls": list(zip(gfns.tolist(), (gfns + 1).tolist(), attributes.tolist(), strict=True))}

    ratios = []
    for name, (road, m) in roads(guest, early).items():
        def right(drawn: dict[str, Any], *_: Any, m: AttributeMap = m) -> bool:
            return m.count(0, guest.pages, 1) == earlier and bool((m.take(early) == 1).all())

        def loop(drawn: dict[str, Any], name: str = name) -> None:
            if name == "write":
                for _start, _stop, _attributes in drawn["calls"]:
                    pass

        arms = Arms(draw=draw, store=road, numpy={"xarray": lambda drawn: array.update_many(
            drawn["gfns"], drawn["stops"], drawn["attributes"], drawn["operations"])}, check=right, floor=loop)
        ratios.append(float(np.median(compare(arms, rounds).ratios)))
    return ratios


def main() -> None:
    words = asked(__doc__)
    guest, load = Guest(), Load.now()
    fresh, rounds = (1024, 2) if words.quick else (FRESH, ROUNDS)
    rows = []
    for turn, at_once in TURNS.items():
        for earlier in EARLIER:
            measured = measure(guest, earlier, at_once, fresh, rounds)
            rows.append([f"{turn}, k = {earlier:,}",
                         *(f"{value:.2g}{'' if value <= LIMIT else ' *'}" for value in measured)])
            print(f"{rows[-1][0]}: done", file=sys.stderr, flush=True)
    show(fitted(["store / xarray", "put", "update_many", "write", "SET batch"], rows, 100), f"* over {LIMIT:g}", load,
         words.results)


if __name__ == "__main__":
    main()
