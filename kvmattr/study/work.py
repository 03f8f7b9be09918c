"""What the study gives to every backend: batches of updates, and the state that they must lead to."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kvmattr.measure.checked import printable
from kvmattr.operation import Operation

#: Pages of the blocks that KVM maps huge: 2 MiB and 1 GiB.
BLOCKS = (1 << 9, 1 << 18)
#: A run as every backend reports it: the dtype of ``AttributeMap.runs``.
RUN = np.dtype([("start", "<u8"), ("stop", "<u8"), ("attributes", "u1")])


@dataclass(frozen=True)
class Batch:
    """Updates in order: ``[starts[i], stops[i])`` gets ``attributes[i]`` by ``operations[i]``.

    ``starts`` and ``stops``: uint64[n], gfns. ``attributes`` and ``operations``: uint8[n].
    """

    starts: NDArray[np.uint64]
    stops: NDArray[np.uint64]
    attributes: NDArray[np.uint8]
    operations: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.starts)

    def part(self, first: int, last: int) -> Batch:
        """The updates ``first`` to ``last`` (half-open), without a copy."""
        return Batch(*(column[first:last] for column in vars(self).values()))

    def rows(self) -> Iterator[tuple[int, int, int, Operation]]:
        """The updates one by one, as Python numbers."""
        return zip(self.starts.tolist(), self.stops.tolist(), self.attributes.tolist(),
                   map(Operation, self.operations.tolist()), strict=True)

    @property
    def pages(self) -> int:
        """Pages touched, counted once for each update that touches them."""
        return int((self.stops - self.starts).sum())

    @classmethod
    def of(cls, starts: Any, length: int, attributes: int, operation: Operation = Operation.WRITE) -> Self:
        """Ranges of one length that all get the same attributes."""
        first = np.ascontiguousarray(starts, dtype=np.uint64)
        return cls(first, first + np.uint64(length), np.full(len(first), attributes, np.uint8),
                   np.full(len(first), operation, np.uint8))

    @classmethod
    def joined(cls, *batches: Batch) -> Self:
        """Batches one after the other."""
        return cls(*map(np.concatenate, zip(*(vars(batch).values() for batch in batches), strict=True)))

    @classmethod
    def empty(cls) -> Self:
        """No update at all: what a call costs before it does anything."""
        return cls.of([], 1, 0)


class Failed(Exception):
    """A backend could not go on: ``done`` updates of the batch stand, ``why`` says what stopped the next."""

    def __init__(self, done: int, why: str) -> None:
        super().__init__(f"failed after {done} updates: {why}")
        self.done = done
        self.why = why


class Stopped(Exception):
    """A backend reached the time limit of its cell; the text says after how long and where."""


class Unsupported(Exception):
    """A backend has no way to express what a scenario asks of it; the text says what."""


def described(error: BaseException) -> str:
    """An exception in one line: its type, its text and the place in the code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return one_line(f"{type(error).__name__}: {error}{place}")


def one_line(words: object) -> str:
    """What others have to say, without line ends and without what would act on a terminal."""
    return str(printable(" ".join(str(words).split())))


def applied(before: Any, attributes: Any, operation: Operation) -> Any:
    """What pages become, as numbers or as arrays.

    >>> applied(3, 4, Operation.OR), applied(3, 5, Operation.AND), applied(3, 4, Operation.WRITE)
    (7, 1, 4)
    """
    if operation is Operation.WRITE:
        return attributes
    return before | attributes if operation is Operation.OR else before & attributes


class Reference:
    """The right answer, by the plainest means: a dense array of the stretches that no update divides.

    The edges of all updates cut the guest into at most 2n + 1 stretches whose pages always agree; one array
    element a stretch is exact at every guest size. Each update is one slice of that array.
    """

    def __init__(self, npages: int, *batches: Batch) -> None:
        self.npages = npages
        edges = [np.array([0, npages], np.uint64)]
        for batch in batches:
            edges += [batch.starts, batch.stops]
        # Sorted and told apart here: numpy's unique of many integers goes by hashes, some ten times as long.
        every = np.sort(np.concatenate(edges))
        self._edges = every[np.concatenate([[True], every[1:] != every[:-1]])]
        self._values = np.zeros(len(self._edges) - 1, np.uint8)

    def answer(self, action: str, argument: Any) -> Any:
        """Do what a round asks of a backend, and give the right answer; None where there is none to compare."""
        asked = getattr(self, action, None)
        return None if asked is None else asked() if argument is None else asked(argument)

    def update(self, batch: Batch) -> None:
        """Do the updates: no answer."""
        self.apply(batch)

    def apply(self, batch: Batch) -> Self:
        """Do the updates in order; all their edges must be among those given on construction."""
        values = self._values
        first, last = np.searchsorted(self._edges, batch.starts), np.searchsorted(self._edges, batch.stops)
        if (last - first == 1).all() and (batch.operations == int(Operation.WRITE)).all():
            values[first] = batch.attributes    # one element each; of several writes to one, the last stays
            return self
        for low, high, attributes, operation in zip(first.tolist(), last.tolist(), batch.attributes,
                                                    map(Operation, batch.operations.tolist()), strict=True):
            values[low:high] = applied(values[low:high], attributes, operation)
        return self

    def runs(self) -> NDArray[Any]:
        """The state as coalesced runs over the whole guest."""
        return coalesced(self._edges[:-1], self._edges[1:], self._values)

    export = runs

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """The attributes of single pages."""
        return self._values[np.searchsorted(self._edges, gfns, side="right") - 1]

    def has(self, ranges: Batch) -> NDArray[np.bool_]:
        """For each range: do all its pages have the attributes given with it?"""
        runs = self.runs()
        first = np.searchsorted(runs["start"], ranges.starts, side="right") - 1
        answers: NDArray[np.bool_] = ((runs["attributes"][first] == ranges.attributes)
                                      & (runs["stop"][first] >= ranges.stops))
        return answers

    def mixed(self) -> NDArray[np.bool_]:
        """For each block of 2 MiB, then of 1 GiB, that lies in the guest: do its attributes differ?"""
        return mixed_blocks(self.runs())

    def migrate(self, batch: Batch) -> int:
        """Do the updates and tell how many pages differ from what they were before."""
        before = self._values.copy()
        self.apply(batch)
        return int(np.diff(self._edges)[self._values != before].sum())


def coalesced(starts: Any, stops: Any, attributes: Any) -> NDArray[Any]:
    """Adjacent stretches, in order, as runs: neighbours with equal attributes become one."""
    values = np.asarray(attributes, np.uint8)
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    first = np.concatenate([[0], changes])
    last = np.concatenate([changes - 1, [len(values) - 1]])
    runs = np.empty(len(first), RUN)
    runs["start"] = np.asarray(starts, np.uint64)[first]
    runs["stop"] = np.asarray(stops, np.uint64)[last]
    runs["attributes"] = values[first]
    return runs


def mixed_blocks(runs: NDArray[Any]) -> NDArray[np.bool_]:
    """Which whole blocks of 2 MiB, then of 1 GiB, hold more than one run: those with a run's start inside."""
    npages, starts = int(runs["stop"][-1]), runs["start"]
    levels = []
    for block in BLOCKS:
        mixed = np.zeros(npages // block + 1, np.bool_)
        mixed[(starts[starts % block != 0] // block).astype(np.intp)] = True
        levels.append(mixed[:npages // block])
    return np.concatenate(levels)


def pages_to_runs(gfns: NDArray[np.uint64], attributes: NDArray[np.uint8], npages: int) -> NDArray[Any]:
    """Pages in order with their attributes as runs over the whole guest; every other page has 0."""
    # Each page is a stretch, and so is what lies between two of them.
    edges = np.unique(np.concatenate([np.array([0, npages], np.uint64), gfns, gfns + np.uint64(1)]))
    values = np.zeros(len(edges) - 1, np.uint8)
    values[np.searchsorted(edges, gfns)] = attributes
    return coalesced(edges[:-1], edges[1:], values)


@dataclass(frozen=True)
class Footprint:
    """What a cell will hold, known before it starts, so that a backend can say what memory it needs.

    ``setup`` leads to the state; ``more`` are the updates of a round, as if none of them took anything back.
    """

    npages: int
    setup: Batch
    more: Batch

    @cached_property
    def pages(self) -> int:
        """Pages that the updates touch, at most the guest."""
        return min(self.npages, self.setup.pages + self.more.pages)

    @property
    def updates(self) -> int:
        """Number of updates."""
        return len(self.setup) + len(self.more)
