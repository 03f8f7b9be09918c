"""Cost against size, for the plot of docs/costs.md: does an operation grow as the structure says?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.against_numpy import diff, restore, runs
from bench.guest import Guest, same
from bench.rounds import Arms, compare
from kvmattr import AttributeMap

ROUNDS = 10


@dataclass(frozen=True)
class Curve:
    """One panel: what is done, what grows, the sizes, and the two arms at a size."""

    name: str
    size: str
    sizes: Callable[[Guest], list[int]]
    make: Callable[[Guest, int], Arms]


def powers(limit: int, base: int) -> list[int]:
    return [size for size in (base**exponent for exponent in range(40)) if size <= limit]


def or_over(guest: Guest, length: int) -> Arms:
    """OR and AND over an unaligned range; every other page is set. Both change every page."""
    m, a = guest.fragmented()

    def store(start: int) -> None:
        m.or_(start, start + length, 2)
        m.and_(start, start + length, 0xFD)

    def in_place(start: int) -> None:
        window = a[start : start + length]
        np.bitwise_or(window, 2, out=window)
        np.bitwise_and(window, 0xFD, out=window)

    return Arms(draw=lambda: int(guest.rng.integers(0, guest.pages - length + 1)), store=store,
                numpy={"in place": in_place}, check=lambda start, ours, theirs: same(m, a), calls=2)


def runs_of(guest: Guest, count: int) -> Arms:
    """A guest of about that many runs: half as many single pages, evenly spread."""
    m, a = AttributeMap(guest.pages), np.zeros(guest.pages, np.uint8)
    gfns = np.arange(max(count // 2, 1)) * (guest.pages // max(count // 2, 1)) + 1
    m.put(gfns, 1)
    a[gfns] = 1
    return runs(m, a)


def changes(guest: Guest) -> list[int]:
    return powers(guest.earlier, 10)


CURVES = [
    Curve("or_ over an unaligned range, every other page set", "pages", lambda guest: powers(guest.pages, 4), or_over),
    Curve("restore of a fragmented guest", "changed pages", changes,
          lambda guest, count: restore(guest, *guest.fragmented(), count)),
    Curve("diff of two fragmented guests", "changed pages", changes, diff),
    Curve("runs", "runs", lambda guest: powers(guest.pages // 4, 4)[1:], runs_of),
]


def measure_curve(curve: Curve, guest: Guest, rounds: int = ROUNDS) -> dict[str, Any]:
    sizes = curve.sizes(guest)
    samples = [compare(curve.make(guest, size), rounds) for size in sizes]
    return {
        "name": curve.name,
        "size": curve.size,
        "sizes": sizes,
        "store_ns": [float(np.median(sample.store)) for sample in samples],
        "numpy_ns": [float(np.median(sample.numpy)) for sample in samples],
        "checked": sum(sample.checked for sample in samples),
    }
