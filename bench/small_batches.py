#!/usr/bin/env python3
"""What does a call with few pages cost, beside numpy? A row a size of a batch, a column a call.

    python bench/small_batches.py                                 the table; half a minute
    python bench/small_batches.py --results bench/results/NAME    writes NAME.txt too
    python bench/small_batches.py --quick                         few calls; figures mean nothing

A 64 GiB guest of 16 values. Each cell is the store's time of a call with so many random pages, and that over numpy's
on the dense array, in the same process and the same turns: the median of pairs of interleaved rounds on the thread's
CPU time, less the loop. `one` is `put` of one value for all, `each` of a uint8 array, `int64` of an array of that type
and `list` of a list. Above 1 numpy wins: a call of either side looks at its arguments first, and the store at more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

from bench.guest import Guest, Pages, same  # noqa: E402
from bench.report import asked, show  # noqa: E402
from bench.rounds import Arms, compare, loop  # noqa: E402
from kvmattr import AttributeMap  # noqa: E402
from kvmattr.measure.machine import Load  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402

SIZES = (1, 10, 32, 100, 1000)
PAGES_A_ROUND = 20_000
ROUNDS = 16
#: What `put` is given for each page.
GIVEN: dict[str, Callable[[Pages], Any]] = {
    "one": lambda values: int(values[0]),
    "each": lambda values: values,
    "int64": lambda values: values.astype(np.int64),
    "list": lambda values: values.tolist(),
}


def each(call: Callable[[Any, Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda drawn: [call(gfns, given) for gfns, given in drawn]


def measure(guest: Guest, m: AttributeMap, a: Pages, size: int, calls: int, rounds: int) -> list[str]:
    """The cells of a row."""
    cells = []

    def cell(given: Callable[[Pages], Any], store: Any, numpy: Any, check: Callable[..., bool]) -> None:
        def draw() -> Any:
            return [(guest.gfns(size), given(guest.rng.integers(0, 16, size, np.uint8))) for _ in range(calls)]

        samples = compare(Arms(draw=draw, store=each(store), numpy={"a[i]": each(numpy)}, check=check, floor=loop,
                               calls=calls), rounds)
        cells.append(f"{np.median(samples.store) / 1000:.2f} us, {np.median(samples.ratios):.1f}")

    for given in GIVEN.values():
        cell(given, m.put, a.__setitem__, lambda drawn, *_: all(
            np.array_equal(m.take(gfns), a[gfns]) for gfns, _given in drawn))
    cell(GIVEN["one"], lambda gfns, _: m.take(gfns), lambda gfns, _: a[gfns],
         lambda drawn, ours, theirs: all(map(np.array_equal, ours, theirs)))
    return cells


def main() -> None:
    words = asked(__doc__)
    guest, load = Guest(), Load.now()
    rounds = 2 if words.quick else ROUNDS
    a = guest.rng.integers(0, 16, guest.pages, np.uint8)
    m = AttributeMap.from_numpy(a)
    rows = []
    for size in SIZES:
        calls = 2 if words.quick else PAGES_A_ROUND // size
        rows.append([f"{size:,}", *measure(guest, m, a, size, calls, rounds)])
    if not same(m, a):
        raise SystemExit("the map is not the array")
    show(fitted(["pages", *(f"put, {given}" for given in GIVEN), "take"], rows, 120),
         "a call of the store, and over numpy's", load, words.results)


if __name__ == "__main__":
    main()
