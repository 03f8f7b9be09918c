"""The store and what one would use without it, behind three words: write, get and pages.

A peer that is not installed is left out of a family, and pytest says so. bitarray and pyroaring
hold one attribute bit.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from kvmattr import AttributeMap


class Store:
    def __init__(self, pages: int) -> None:
        self.map = AttributeMap(pages)
        self.write, self.get = self.map.write, self.map.get

    def pages(self) -> bytes:
        return self.map[:].tobytes()


class Numpy:
    def __init__(self, pages: int) -> None:
        self.array = np.zeros(pages, np.uint8)

    def write(self, start: int, stop: int, attributes: int) -> None:
        self.array[start:stop] = attributes

    def get(self, gfn: int) -> int:
        return self.array[gfn]

    def pages(self) -> bytes:
        return self.array.tobytes()


class ByteArray:
    def __init__(self, pages: int) -> None:
        self.array = bytearray(pages)
        self.get = self.array.__getitem__

    def write(self, start: int, stop: int, attributes: int) -> None:
        if stop - start == 1:
            self.array[start] = attributes
        else:
            self.array[start:stop] = bytes((attributes,)) * (stop - start)

    def pages(self) -> bytes:
        return bytes(self.array)


class BitArray:
    def __init__(self, pages: int) -> None:
        self.array = importlib.import_module("bitarray").bitarray(pages)
        self.array.setall(0)
        self.get = self.array.__getitem__

    def write(self, start: int, stop: int, attributes: int) -> None:
        self.array[start:stop] = attributes

    def pages(self) -> bytes:
        return self.array.unpack()


class Roaring:
    def __init__(self, pages: int) -> None:
        self.size = pages
        self.set = importlib.import_module("pyroaring").BitMap()
        self.get = self.set.__contains__

    def write(self, start: int, stop: int, attributes: int) -> None:
        (self.set.add_range if attributes else self.set.remove_range)(start, stop)

    def pages(self) -> bytes:
        array = np.zeros(self.size, np.uint8)
        array[np.fromiter(self.set, np.int64, len(self.set))] = 1
        return array.tobytes()


class SortedRuns:
    """The first page of each run, in a sortedcontainers.SortedDict: split at both ends, merged with the
    neighbours.
    """

    def __init__(self, pages: int) -> None:
        self.size = pages
        self.runs = importlib.import_module("sortedcontainers").SortedDict({0: 0})

    def get(self, gfn: int) -> int:
        return self.runs.peekitem(self.runs.bisect_right(gfn) - 1)[1]

    def write(self, start: int, stop: int, attributes: int) -> None:
        runs = self.runs
        after = self.get(stop) if stop < self.size else None
        before = self.get(start - 1) if start else None
        for first in list(runs.irange(start, stop)):
            del runs[first]
        if before != attributes:
            runs[start] = attributes
        if after is not None and after != attributes:
            runs[stop] = after

    def pages(self) -> bytes:
        starts = list(self.runs)
        return np.repeat(
            np.array(list(self.runs.values()), np.uint8), np.diff([*starts, self.size])
        ).tobytes()


class IntervalTree:
    def __init__(self, pages: int) -> None:
        self.size = pages
        self.tree = importlib.import_module("intervaltree").IntervalTree()
        self.tree.addi(0, pages, 0)

    def get(self, gfn: int) -> int:
        (interval,) = self.tree.at(gfn)
        return interval.data

    def write(self, start: int, stop: int, attributes: int) -> None:
        """Chopped out and put in; what has the same attributes on either side is joined."""
        self.tree.chop(start, stop)
        for gfn in (start - 1, stop):
            for neighbour in list(self.tree.at(gfn)):
                if neighbour.data == attributes:
                    self.tree.remove(neighbour)
                    start, stop = min(start, neighbour.begin), max(stop, neighbour.end)
        self.tree.addi(start, stop, attributes)

    def pages(self) -> bytes:
        array = np.zeros(self.size, np.uint8)
        for interval in self.tree:
            array[interval.begin : interval.end] = interval.data
        return array.tobytes()


class Portion:
    def __init__(self, pages: int) -> None:
        self.size = pages
        self.portion = importlib.import_module("portion")
        self.map = self.portion.IntervalDict({self.portion.closedopen(0, pages): 0})
        self.get = self.map.__getitem__

    def write(self, start: int, stop: int, attributes: int) -> None:
        self.map[self.portion.closedopen(start, stop)] = attributes

    def pages(self) -> bytes:
        array = np.zeros(self.size, np.uint8)
        for intervals, attributes in self.map.items():
            for interval in intervals:
                array[interval.lower : interval.upper] = attributes
        return array.tobytes()


PEERS = {
    "kvmattr": Store,
    "numpy": Numpy,
    "bytearray": ByteArray,
    "bitarray": BitArray,
    "pyroaring": Roaring,
    "sortedcontainers": SortedRuns,
    "intervaltree": IntervalTree,
    "portion": Portion,
}
#: Those that keep up with a guest that is fragmented; an interval tree takes 50 us and more an update.
FAST = [name for name in PEERS if name not in ("intervaltree", "portion")]


def make(name: str, pages: int) -> Any:
    """A peer of this name, all pages 0; skips the benchmark where its library is not installed."""
    if name not in ("kvmattr", "numpy", "bytearray"):
        pytest.importorskip(name)
    return PEERS[name](pages)
