"""The guests that the table measures: how large, how fragmented; one content as a map and as an array."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvmattr import AttributeMap

Pages = NDArray[np.uint8]
Gfns = NDArray[np.int64]


@dataclass(frozen=True)
class Guest:
    """Sizes in pages and counts of one run of the table, and where its random numbers come from."""

    pages: int = 1 << 24  # 64 GiB
    gigabyte: int = 1 << 18
    terabyte: int = 1 << 28
    batch: int = 1_000_000  # gfns of a take, a put
    earlier: int = 100_000  # pages that were changed before
    calls: int = 1_000_000  # calls of a row that is a loop of calls
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(20221122))

    def gfns(self, count: int) -> Gfns:
        """Random pages over the whole guest, as numpy wants them for the fastest take."""
        return self.rng.integers(0, self.pages, count, np.int64)

    def windows(self, count: int, aligned: bool) -> list[tuple[int, int]]:
        """Windows of 1 GiB over the whole guest; if not aligned, neither end is a multiple of anything."""
        if aligned:
            starts = self.rng.integers(0, self.pages // self.gigabyte, count) * self.gigabyte
        else:
            starts = self.rng.integers(0, (self.pages - self.gigabyte) // 2, count) * 2 + 1
        return [(start, start + self.gigabyte) for start in starts.tolist()]

    def uniform(self) -> tuple[AttributeMap, Pages]:
        """The array is written: one that never was is a single page of zeros, mapped everywhere."""
        return AttributeMap(self.pages), np.full(self.pages, 0, np.uint8)

    def changed(self, count: int | None = None) -> tuple[AttributeMap, Pages]:
        """After single-page writes of 1 to so many random pages, ``earlier`` if not said."""
        m, a = self.uniform()
        gfns = self.gfns(self.earlier if count is None else count)
        m.put(gfns, 1)
        a[gfns] = 1
        return m, a

    def fragmented(self, value: int = 1) -> tuple[AttributeMap, Pages]:
        """Every other page has ``value``."""
        a = np.zeros(self.pages, np.uint8)
        a[1::2] = value
        return alternating(self.pages, value), a

    def short_ranges(self, count: int) -> tuple[Gfns, Gfns]:
        """Starts and stops of random unaligned ranges of 4 KiB .. 2 MiB."""
        lengths = self.rng.integers(1, 513, count)
        starts = self.rng.integers(0, self.pages - lengths)
        return starts, starts + lengths


#: Seconds instead of minutes, and figures that mean nothing: the table's own test.
TINY = Guest(pages=1 << 18, gigabyte=1 << 12, terabyte=1 << 20, batch=10_000, earlier=1000, calls=1000)


def alternating(pages: int, value: int = 1) -> AttributeMap:
    """A map of which every other page has ``value``: fragmented to the last page."""
    m = AttributeMap(pages)
    m.put_bitmap(0, np.full(pages // 8, 0xAA, np.uint8), value)
    return m


def same(m: AttributeMap, a: Pages) -> bool:
    """All pages of the map are those of the array."""
    return bool(np.array_equal(m.to_numpy(0, len(a)), a))
