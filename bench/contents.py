#!/usr/bin/env python3
"""How does what a guest holds change the store's place beside a dense numpy array? A row a content, a column a call.

    python bench/contents.py                                 the table; four minutes
    python bench/contents.py --results bench/results/NAME    writes NAME.txt too
    python bench/contents.py --quick                         a tiny guest, seconds; figures mean nothing

Each cell is store / numpy's fastest form, the median of pairs of interleaved rounds on the thread's CPU time, and
behind it the limit that the project set itself. Above 1 numpy wins. `take` and `put` are of a million random pages
over the whole guest, `to_numpy` of 1 GiB, `count` of a bit and `runs` over all; `get` and `write` are calls for one
random page each. Values to write are drawn from the content's, so some pages stay as they are; `kept` is `put` while
a snapshot of the map is kept, after rounds that copied what they share. `update_many` is of ranges of 1 to 512 pages
and beside the same with two values, not beside numpy. The answers of every round are compared. What changes the guest
comes last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

from bench.against_numpy import get, runs, take, writes  # noqa: E402
from bench.guest import TINY, Guest, Pages, same  # noqa: E402
from bench.report import asked, show  # noqa: E402
from bench.rounds import Arms, compare  # noqa: E402
from kvmattr import AttributeMap  # noqa: E402
from kvmattr.measure.machine import Load  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402

ROUNDS = 12
COLUMNS = ("take", "get", "to_numpy", "count", "runs", "put", "kept", "write", "update_many")
#: An update with more values may take so much longer than one with two.
MANY_VALUES = 1.33


@dataclass(frozen=True)
class Content:
    """What a guest holds: how to draw it, which values are written to it, and the limits of its cells."""

    name: str
    draw: Callable[[Guest], Pages]
    values: tuple[int, ...]
    limits: tuple[float | None, ...]        # of COLUMNS; None: told for comparison
    megabytes: float
    sparse: bool = False        # at the beginning of a map of 2^52 pages


def anywhere(*values: int) -> Callable[[Guest], Pages]:
    return lambda guest: guest.rng.choice(np.array(values, np.uint8), guest.pages)


def every_other(guest: Guest) -> Pages:
    return (np.arange(guest.pages) & 1).astype(np.uint8)


def scattered(guest: Guest) -> Pages:
    pages = np.zeros(guest.pages, np.uint8)
    pages[guest.gfns(guest.earlier)] = guest.rng.integers(0, 8, guest.earlier)
    return pages


def ranges(count: int, longest: int, values: int) -> Callable[[Guest], Pages]:
    def draw(guest: Guest) -> Pages:
        pages = np.zeros(guest.pages, np.uint8)
        for _ in range(min(count, guest.earlier)):
            start = int(guest.rng.integers(0, guest.pages))
            pages[start:start + int(guest.rng.integers(1, longest))] = guest.rng.integers(0, values)
        return pages

    return draw


CONTENTS = (
    Content("uniform, in 2^52 pages", lambda guest: np.zeros(guest.pages, np.uint8), (0,),
            (.45, .15, .6, .01, None, 1.5, 1.7, .6, None), .02, sparse=True),
    Content("40 big ranges, in 2^52 pages", ranges(40, 1 << 18, 4), (0, 1, 2, 3),
            (.5, .22, .6, .02, .02, 1.6, 1.8, .65, MANY_VALUES), .05, sparse=True),
    Content("every other page", every_other, (0, 1),
            (.6, .28, .85, .08, None, 1.3, 1.5, .55, None), 2.5),
    Content("4 values, two bits", anywhere(0, 1, 2, 3), (0, 1, 2, 3),
            (.65, .3, .85, .15, None, 1.4, 1.6, .55, MANY_VALUES), 4.7),
    Content("{0, 1, 4}", anywhere(0, 1, 4), (0, 1, 4),
            (.7, .33, .85, .2, None, 1.4, 1.6, .55, MANY_VALUES), 9.0),
    Content("16 values", anywhere(*range(16)), tuple(range(16)),
            (.75, .35, .95, .3, None, 1.4, 1.6, .6, MANY_VALUES), 9.0),
    Content("256 values", anywhere(*range(256)), tuple(range(256)),
            (1.1, .65, 1.1, .6, None, 2.0, 2.2, .75, MANY_VALUES), 18),
    Content("1e5 pages of 8 values", scattered, tuple(range(8)),
            (.95, .33, 1.2, .55, .45, 2.0, 2.2, .7, MANY_VALUES), 2.6),
    Content("1e5 ranges of 16 values", ranges(100_000, 64, 16), tuple(range(16)),
            (.95, .33, 1.2, .55, .45, 2.0, 2.2, .7, MANY_VALUES), 2.6),
)


def put_arms(guest: Guest, m: AttributeMap, a: Pages, values: tuple[int, ...]) -> Arms:
    drawn_from = np.array(values, np.uint8)

    def write(drawn: Any) -> None:
        a[drawn[0]] = drawn[1]

    return Arms(draw=lambda: (guest.gfns(guest.batch), guest.rng.choice(drawn_from, guest.batch)),
                store=lambda drawn: m.put(*drawn), numpy={"a[i] = v": write},
                check=lambda drawn, ours, theirs: bool(np.array_equal(m.take(drawn[0]), a[drawn[0]])))


def read_arms(guest: Guest, m: AttributeMap, a: Pages) -> Arms:
    def window() -> tuple[int, int]:
        start = int(guest.rng.integers(0, (guest.pages - guest.gigabyte) // 512)) * 512
        return start, start + guest.gigabyte

    return Arms(draw=window, store=lambda at: m.to_numpy(*at), numpy={"copy": lambda at: a[at[0]:at[1]].copy()},
                check=lambda at, ours, theirs: bool(np.array_equal(ours, theirs)))


def count_arms(guest: Guest, m: AttributeMap, a: Pages) -> Arms:
    return Arms(draw=lambda: 1, store=lambda bit: m.count(0, guest.pages, bit, bit),
                numpy={"count_nonzero": lambda bit: int(np.count_nonzero(a & bit))},
                check=lambda bit, ours, theirs: ours == theirs)


def write_arms(guest: Guest, m: AttributeMap, a: Pages, values: tuple[int, ...]) -> Arms:
    """`write` of one page, a call each."""
    drawn_from = np.array(values, np.uint8)

    def draw() -> Any:
        gfns = guest.gfns(guest.calls)
        attributes = guest.rng.choice(drawn_from, len(gfns))
        return list(zip(gfns.tolist(), (gfns + 1).tolist(), attributes.tolist(), strict=True))

    def loop(drawn: Any) -> None:
        for _start, _stop, _attributes in drawn:
            pass

    return writes(m, a, draw, guest.calls, loop)


def update_many_arms(guest: Guest, m: AttributeMap, a: Pages, values: tuple[int, ...]) -> Arms:
    """Ranges with the content's values, and the same ranges with two of them in a map of their own."""
    drawn_from = np.array(values, np.uint8)
    two = (m.copy(), a.copy())

    def draw() -> Any:
        starts = guest.gfns(guest.earlier // 2)
        stops = np.minimum(starts + guest.rng.integers(1, 513, len(starts)), guest.pages)
        return starts, stops, guest.rng.choice(drawn_from, len(starts)), guest.rng.choice(drawn_from[:2], len(starts))

    def right(drawn: Any, *_: Any) -> bool:
        starts, stops, attributes, of_two = (column.tolist() for column in drawn)
        for start, stop, value, other in zip(starts, stops, attributes, of_two, strict=True):
            a[start:stop] = value
            two[1][start:stop] = other
        return same(m, a) and same(*two)

    return Arms(draw=draw, store=lambda drawn: m.update_many(*drawn[:3]),
                numpy={"two values": lambda drawn: two[0].update_many(drawn[0], drawn[1], drawn[3])}, check=right)


def measure(content: Content, guest: Guest, rounds: int) -> list[float]:
    """The median ratios of COLUMNS, then the megabytes before anything was put."""
    a = content.draw(guest)
    m = AttributeMap(1 << 52 if content.sparse else guest.pages)
    m[0:guest.pages] = a
    megabytes = m.nbytes / 1e6

    def ratio(arms: Arms) -> float:
        return float(np.median(compare(arms, rounds).ratios))

    put = put_arms(guest, m, a, content.values)
    cells = [ratio(take(guest, m, a, given=False)), ratio(get(guest, m, a, guest.calls)), ratio(read_arms(guest, m, a)),
             ratio(count_arms(guest, m, a)), ratio(runs(m, a)), ratio(put)]
    kept = m.snapshot()
    for _ in range(4):
        drawn = put.draw()
        put.store(drawn)
        put.numpy["a[i] = v"](drawn)
    cells.append(ratio(put))
    del kept
    cells.append(ratio(write_arms(guest, m, a, content.values)))
    cells.append(ratio(update_many_arms(guest, m, a, content.values)))
    if not same(m, a):
        raise SystemExit(f"{content.name}: the map is not the array")
    return [*cells, megabytes]


def cell(value: float, limit: float | None) -> str:
    if limit is None:
        return f"{value:.2g}"
    return f"{value:.2g} / {limit:.2g}{'' if value <= limit else ' *'}"


def main() -> None:
    words = asked(__doc__)
    guest, rounds = (TINY, 2) if words.quick else (replace(Guest(), calls=250_000), ROUNDS)
    load = Load.now()
    rows = []
    for content in CONTENTS:
        measured = measure(content, guest, rounds)
        limits = [*content.limits, content.megabytes]
        rows.append([content.name, *map(cell, measured, limits)])
        print(f"{content.name}: done", file=sys.stderr, flush=True)
    show(fitted(["store / numpy, limit", *COLUMNS, "MB"], rows, 190), "* over its limit", load, words.results)


if __name__ == "__main__":
    main()
