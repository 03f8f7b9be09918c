#!/usr/bin/env python3
"""How does what a guest holds change the store's place beside a dense numpy array? A row a content, a column a call.

    python bench/contents.py                                 the table; two minutes
    python bench/contents.py --results bench/results/NAME    writes NAME.txt too
    python bench/contents.py --quick                         a tiny guest, seconds; figures mean nothing

Each cell is store / numpy's fastest form, the median of pairs of interleaved rounds on the thread's CPU time, and
behind it the limit that the project set itself. Above 1 numpy wins. `take` and `put` are of a million random pages over
the whole guest, `to_numpy` of 1 GiB, `count` of a bit over all; `put` draws its values from the content's, so some
pages stay as they are; `kept` is `put` while a snapshot of the map is kept, after rounds that copied what they share.
The answers of every round are compared. The last two columns come last because they change what the guest holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

from bench.guest import TINY, Guest, Pages, same  # noqa: E402
from bench.rounds import Arms, compare  # noqa: E402
from kvmattr import AttributeMap  # noqa: E402
from kvmattr.measure import writing  # noqa: E402
from kvmattr.measure.machine import Load, describe, in_words  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402

ROUNDS = 12
COLUMNS = ("take", "to_numpy", "count", "put", "kept")


@dataclass(frozen=True)
class Content:
    """What a guest holds: how to draw it, which values are written to it, and the limits of its cells."""

    name: str
    draw: Callable[[Guest], Pages]
    values: tuple[int, ...]
    limits: tuple[float, float, float, float, float]
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
    Content("uniform, in 2^52 pages", lambda guest: np.zeros(guest.pages, np.uint8), (0,), (.45, .60, .01, 1.5, 1.7),
            .02, sparse=True),
    Content("40 big ranges, in 2^52 pages", ranges(40, 1 << 18, 4), (0, 1, 2, 3), (.50, .60, .02, 1.6, 1.8), .05,
            sparse=True),
    Content("every other page", every_other, (0, 1), (.60, .85, .08, 1.3, 1.5), 2.5),
    Content("4 values, two bits", anywhere(0, 1, 2, 3), (0, 1, 2, 3), (.65, .85, .15, 1.4, 1.6), 4.7),
    Content("{0, 1, 4}", anywhere(0, 1, 4), (0, 1, 4), (.70, .85, .20, 1.4, 1.6), 9.0),
    Content("16 values", anywhere(*range(16)), tuple(range(16)), (.75, .95, .30, 1.4, 1.6), 9.0),
    Content("256 values", anywhere(*range(256)), tuple(range(256)), (1.1, 1.1, .60, 2.0, 2.2), 18),
    Content("1e5 pages of 8 values", scattered, tuple(range(8)), (.95, 1.2, .55, 2.0, 2.2), 2.6),
    Content("1e5 ranges of 16 values", ranges(100_000, 64, 16), tuple(range(16)), (.95, 1.2, .55, 2.0, 2.2), 2.6),
)


def take_arms(guest: Guest, m: AttributeMap, a: Pages) -> Arms:
    return Arms(draw=lambda: guest.gfns(guest.batch), store=m.take,
                numpy={"take": lambda gfns: np.take(a, gfns, mode="wrap"), "a[i]": lambda gfns: a[gfns]},
                check=lambda gfns, ours, theirs: bool(np.array_equal(ours, theirs)))


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


def measure(content: Content, guest: Guest, rounds: int) -> list[float]:
    """The median ratios of COLUMNS, then the megabytes before anything was put."""
    a = content.draw(guest)
    m = AttributeMap(1 << 52 if content.sparse else guest.pages)
    m[0:guest.pages] = a
    megabytes = m.nbytes / 1e6
    def ratio(arms: Arms) -> float:
        return float(np.median(compare(arms, rounds).ratios))

    put = put_arms(guest, m, a, content.values)
    cells = [ratio(take_arms(guest, m, a)), ratio(read_arms(guest, m, a)), ratio(count_arms(guest, m, a)), ratio(put)]
    kept = m.snapshot()
    for _ in range(4):
        drawn = put.draw()
        put.store(drawn)
        put.numpy["a[i] = v"](drawn)
    cells.append(ratio(put))
    del kept
    if not same(m, a):
        raise SystemExit(f"{content.name}: the map is not the array")
    return [*cells, megabytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    guest, rounds = (TINY, 2) if words.quick else (Guest(), ROUNDS)
    load = Load.now()
    rows = []
    for content in CONTENTS:
        measured = measure(content, guest, rounds)
        limits = [*content.limits, content.megabytes]
        rows.append([content.name, *(f"{value:.2g} / {limit:.2g}{'' if value <= limit else ' *'}"
                                     for value, limit in zip(measured, limits, strict=True))])
        print(f"{content.name}: done", file=sys.stderr, flush=True)
    text = "\n".join([
        fitted(["store / numpy, limit", *COLUMNS, "MB"], rows, 132), "", "* over its limit",
        f"{in_words(describe())}; {AttributeMap(1).stats()['kernels']}",
        "meanwhile: " + ", ".join(f"{name} {value:.2f}" for name, value in Load.now().since(load).items()),
    ])
    print(text)
    if words.results:
        writing.write(f"{words.results}.txt", text + "\n")


if __name__ == "__main__":
    main()
