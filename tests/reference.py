"""Slow and obviously right: what an AttributeMap must answer, written from its documentation alone.

`DenseMap` keeps one byte a page in a numpy array, so each answer is one line of numpy over all pages.
`SparseMap` keeps a sorted list of runs, so that the same questions can be asked of 2^52 pages.
Both have the methods of `kvmattr.AttributeMap`; the suite runs over all three, and the state
machine lets one of these two shadow the store operation by operation.

`ReferenceMap` below them checks arguments and puts every way of writing in terms of `_edit`.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from kvmattr import Operation, Run

RUN = np.dtype([("start", "<u8"), ("stop", "<u8"), ("attributes", "u1")])
CHANGE = np.dtype([("start", "<u8"), ("stop", "<u8"), ("old", "u1"), ("new", "u1")])
NODE_ENTRIES = 512
MAX_PAGES = 2**52


def updated(old: Any, attributes: int, operation: int, mask: int) -> Any:
    """What pages of value `old` (an int or an array) become."""
    if operation == Operation.WRITE:
        new = attributes
    elif operation == Operation.OR:
        new = old | attributes
    else:
        new = old & attributes
    return (old & (0xFF ^ mask)) | (new & mask)


def checked_byte(value: Any, name: str) -> int:
    number = operator.index(value)
    if not 0 <= number <= 0xFF:
        raise ValueError(f"{name} must be in 0..255, not {number}")
    return number


def checked_operation(value: Any) -> Operation:
    number = operator.index(value)
    if number not in list(Operation):
        raise ValueError(f"operation must be WRITE (0), OR (1) or AND (2), not {number}")
    return Operation(number)


def integers(value: Any, name: str) -> np.ndarray:
    """`value` as an array of Python ints, so that no later check can overflow."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuO":
        raise TypeError(f"{name} must be integers, not {array.dtype}")
    flat = [operator.index(item) for item in array.ravel().tolist()]
    exact = np.empty(len(flat), dtype=object)
    exact[:] = flat
    return exact.reshape(array.shape)


def checked_out(out: np.ndarray | None, length: int) -> np.ndarray:
    if out is None:
        return np.empty(length, dtype=np.uint8)
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8:
        raise TypeError(f"out must be a uint8 array, not {getattr(out, 'dtype', type(out).__name__)}")
    if out.shape != (length,) or not out.flags.writeable:
        raise ValueError(f"out must be writable and of shape ({length},), not {out.shape}")
    return out


class ReferenceMap(ABC):
    """Arguments, errors and every way of writing; a subclass holds the pages and answers questions."""

    __iter__ = None
    __contains__ = None
    __hash__ = None

    def __init__(self, npages: int = MAX_PAGES, default: int = 0) -> None:
        self._npages = operator.index(npages)
        if not 0 <= self._npages <= MAX_PAGES:
            raise ValueError(f"npages must be in 0..2**52, not {npages}")
        self._default = checked_byte(default, "default")
        self._version = 0
        self._read_only = False

    # What a subclass gives: the pages.

    @abstractmethod
    def _edit(self, start: int, stop: int, change: Callable[[Any], Any]) -> int:
        """Replace each page of the range by `change(page)`; the number of pages that are now different."""

    @abstractmethod
    def _assign(self, start: int, pages: np.ndarray) -> bool:
        """Let the pages from `start` on be `pages`; whether any is now different."""

    @abstractmethod
    def _adopt(self, other: Any) -> None:
        """Hold the pages that `other` holds."""

    # Arguments.

    def _checked_gfn(self, gfn: Any) -> int:
        number = operator.index(gfn)
        if not 0 <= number < self._npages:
            raise IndexError(f"gfn {number} is outside [0, {self._npages})")
        return number

    def _checked_gfns(self, gfns: Any) -> np.ndarray:
        array = integers(gfns, "gfns")
        for gfn in array.flat:
            self._checked_gfn(gfn)
        return array

    def _checked_range(self, start: Any, stop: Any) -> tuple[int, int]:
        start, stop = operator.index(start), operator.index(stop)
        if not 0 <= start <= stop <= self._npages:
            raise ValueError(f"range [{start}, {stop}) is not 0 <= start <= stop <= {self._npages}")
        return start, stop

    def _checked_tail(self, start: Any, stop: Any) -> tuple[int, int]:
        """A range whose end is the map's where none is given."""
        return self._checked_range(start, self._npages if stop is None else stop)

    def _checked_slice(self, index: slice) -> tuple[int, int]:
        if index.step is not None and operator.index(index.step) != 1:
            raise ValueError(f"a slice of pages has step 1, not {index.step}")
        return self._checked_tail(0 if index.start is None else index.start, index.stop)

    def _check_same_size(self, other: Any) -> None:
        if not isinstance(other, type(self)):
            raise TypeError(f"other must be a {type(self).__name__}, not {type(other).__name__}")
        if other._npages != self._npages:
            raise ValueError(f"other has {other._npages} pages, not {self._npages}")

    def _check_writable(self) -> None:
        if self._read_only:
            raise TypeError("this map is read-only")

    def _note(self, changed: int) -> int:
        self._version += bool(changed)
        return changed

    # Update.

    def write(self, start: int, stop: int, attributes: int) -> bool:
        return self.update(start, stop, attributes)

    def or_(self, start: int, stop: int, attributes: int) -> bool:
        return self.update(start, stop, attributes, Operation.OR)

    def and_(self, start: int, stop: int, attributes: int) -> bool:
        return self.update(start, stop, attributes, Operation.AND)

    def update(
        self, start: int, stop: int, attributes: int, operation: int = Operation.WRITE, mask: int = 0xFF
    ) -> bool:
        self._check_writable()
        start, stop = self._checked_range(start, stop)
        attributes = checked_byte(attributes, "attributes")
        operation = checked_operation(operation)
        mask = checked_byte(mask, "mask")
        return bool(
            self._note(self._edit(start, stop, lambda old: updated(old, attributes, operation, mask)))
        )

    def update_many(
        self, starts: Any, stops: Any, attributes: Any, operation: Any = Operation.WRITE, mask: Any = 0xFF
    ) -> int:
        self._check_writable()
        calls = list(
            zip(
                *(
                    column.flat
                    for column in np.broadcast_arrays(
                        integers(starts, "starts"),
                        integers(stops, "stops"),
                        integers(attributes, "attributes"),
                        integers(operation, "operation"),
                        integers(mask, "mask"),
                    )
                ),
                strict=True,
            )
        )
        for start, stop, one_attributes, one_operation, one_mask in calls:
            self._checked_range(start, stop)
            checked_byte(one_attributes, "attributes")
            checked_operation(one_operation)
            checked_byte(one_mask, "mask")
        return sum(self.update(*call) for call in calls)

    def put(self, gfns: Any, attributes: Any, operation: Any = Operation.WRITE, mask: Any = 0xFF) -> int:
        self._check_writable()
        gfns = self._checked_gfns(gfns)
        return self.update_many(gfns, gfns + 1, attributes, operation, mask)

    def put_bitmap(
        self,
        start: int,
        bits: Any,
        attributes: int,
        operation: int = Operation.WRITE,
        mask: int = 0xFF,
        npages: int | None = None,
    ) -> int:
        self._check_writable()
        start, _ = self._checked_tail(start, None)
        array = (
            np.frombuffer(bits, dtype=np.uint8) if isinstance(bits, bytes | bytearray) else np.asarray(bits)
        )
        if array.dtype not in (np.dtype("u1"), np.dtype("<u8")):
            raise TypeError(f"bits must be uint8 or little-endian uint64, not {array.dtype}")
        chosen = np.flatnonzero(np.unpackbits(array.view(np.uint8), bitorder="little"))
        limit = self._npages - start if npages is None else operator.index(npages)
        if chosen.size and (chosen[-1] >= limit or start + int(chosen[-1]) >= self._npages):
            raise ValueError(f"bit {chosen[-1]} is set, but only {limit} pages follow gfn {start}")
        return self.put(
            [start + int(bit) for bit in chosen] or np.empty(0, np.uint64), attributes, operation, mask
        )

    def fill(self, attributes: int) -> None:
        self._check_writable()
        attributes = checked_byte(attributes, "attributes")
        self._edit(0, self._npages, lambda old: updated(old, attributes, Operation.WRITE, 0xFF))
        self._version += 1

    def clear(self) -> None:
        self.fill(self._default)

    def restore(self, other: Any) -> None:
        self._check_writable()
        self._check_same_size(other)
        self._adopt(other)
        self._version += 1

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check_writable()
        if isinstance(index, slice):
            start, stop = self._checked_slice(index)
            if not isinstance(value, list | np.ndarray):
                self.write(start, stop, value)
                return
            pages = integers(value, "attributes")
            for attributes in pages.flat:
                checked_byte(attributes, "attributes")
            self._note(self._assign(start, np.broadcast_to(pages.astype(np.uint8), stop - start)))
        elif isinstance(index, list | np.ndarray):
            self.put(index, value)
        else:
            gfn = self._checked_gfn(index)
            self.write(gfn, gfn + 1, value)

    def __delitem__(self, index: Any) -> None:
        self[index] = self._default

    # Look up: what does not depend on how the pages are held.

    def __len__(self) -> int:
        return self._npages

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.to_numpy(*self._checked_slice(index))
        if isinstance(index, list | np.ndarray):
            return self.take(index)
        return self.get(index)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("a map does not become an array by accident: use to_numpy(start, stop)")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._npages == other._npages and self.runs().tobytes() == other.runs().tobytes()

    def get(self, gfn: int) -> int:
        gfn = self._checked_gfn(gfn)
        return int(self.to_numpy(gfn, gfn + 1)[0])

    def take(self, gfns: Any, out: np.ndarray | None = None) -> np.ndarray:
        gfns = self._checked_gfns(gfns)
        out = checked_out(out, len(gfns))
        out[:] = [self.get(gfn) for gfn in gfns]
        return out

    def bitmap(self, start: int, stop: int, mask: int = 0xFF) -> np.ndarray:
        return np.packbits(self.to_numpy(start, stop) & checked_byte(mask, "mask") != 0, bitorder="little")

    def uniform(self, start: int, stop: int) -> int | None:
        distinct = self.values(start, stop)
        return int(distinct[0]) if len(distinct) == 1 else None

    def all(self, start: int, stop: int, attributes: int, mask: int = 0xFF) -> bool:
        start, stop = self._checked_range(start, stop)
        return self.count(start, stop, attributes, mask) == stop - start

    def any(self, start: int, stop: int, attributes: int, mask: int = 0xFF) -> bool:
        return self.count(start, stop, attributes, mask) != 0

    def run(self, gfn: int) -> Run:
        gfn = self._checked_gfn(gfn)
        runs = self.runs()
        start, stop, attributes = runs[np.searchsorted(runs["start"], gfn, "right") - 1].item()
        return Run(start, stop, attributes)

    def iter_runs(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int]]:
        return iter(self.runs(start, stop).tolist())

    @property
    def run_count(self) -> int:
        return len(self.runs())

    def level(self, gfn: int) -> int:
        gfn = self._checked_gfn(gfn)
        level = 1
        while True:
            size = NODE_ENTRIES**level
            start = gfn // size * size
            if start + size > self._npages or self.uniform(start, start + size) is None:
                return level
            level += 1

    # Whole maps.

    def copy(self) -> Any:
        twin = type(self)(self._npages, self._default)
        twin._adopt(self)
        twin._version = self._version
        return twin

    def __copy__(self) -> Any:
        return self.copy()

    def snapshot(self) -> Any:
        twin = self.copy()
        twin._read_only = True
        return twin

    @property
    def version(self) -> int:
        return self._version

    def validate(self) -> None:
        """What the store checks against its tree, here against the definition of a run."""
        runs = self.runs()
        assert (runs["start"][1:] == runs["stop"][:-1]).all(), "runs tile the pages"
        assert (runs["attributes"][1:] != runs["attributes"][:-1]).all(), "neighbouring runs differ"


class DenseMap(ReferenceMap):
    """One byte a page."""

    def __init__(self, npages: int, default: int = 0) -> None:
        super().__init__(npages, default)
        self._pages = np.full(npages, default, dtype=np.uint8)

    def _edit(self, start: int, stop: int, change: Callable[[Any], Any]) -> int:
        old = self._pages[start:stop].copy()
        self._pages[start:stop] = change(old)
        return int(np.count_nonzero(old != self._pages[start:stop]))

    def _assign(self, start: int, pages: np.ndarray) -> bool:
        changed = not np.array_equal(self._pages[start : start + len(pages)], pages)
        self._pages[start : start + len(pages)] = pages
        return changed

    def _adopt(self, other: DenseMap) -> None:
        self._pages[:] = other._pages

    @property
    def nbytes(self) -> int:
        return self._pages.nbytes

    def to_numpy(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        start, stop = self._checked_range(start, stop)
        out = checked_out(out, stop - start)
        out[:] = self._pages[start:stop]
        return out

    def count(self, start: int, stop: int, attributes: int, mask: int = 0xFF) -> int:
        start, stop = self._checked_range(start, stop)
        attributes, mask = checked_byte(attributes, "attributes"), checked_byte(mask, "mask")
        return int(np.count_nonzero((self._pages[start:stop] & mask) == attributes))

    def values(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        start, stop = self._checked_tail(start, stop)
        return np.unique(self._pages[start:stop])

    def find(self, start: int, attributes: int, *, mask: int = 0xFF, stop: int | None = None) -> int:
        start, stop = self._checked_tail(start, stop)
        attributes, mask = checked_byte(attributes, "attributes"), checked_byte(mask, "mask")
        matches = np.flatnonzero((self._pages[start:stop] & mask) == attributes)
        return start + int(matches[0]) if matches.size else -1

    def runs(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        start, stop = self._checked_tail(start, stop)
        pages = self._pages[start:stop]
        if not pages.size:
            return np.empty(0, dtype=RUN)
        edges = np.flatnonzero(pages[1:] != pages[:-1]) + 1
        runs = np.empty(len(edges) + 1, dtype=RUN)
        runs["start"] = start + np.concatenate(([0], edges))
        runs["stop"] = start + np.concatenate((edges, [len(pages)]))
        runs["attributes"] = pages[np.concatenate(([0], edges))]
        return runs

    def diff(self, other: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        self._check_same_size(other)
        start, stop = self._checked_tail(start, stop)
        changes: list[tuple[int, int, int, int]] = []
        for page in np.flatnonzero(self._pages[start:stop] != other._pages[start:stop]) + start:
            pair = (int(other._pages[page]), int(self._pages[page]))
            if changes and changes[-1][1:] == (page, *pair):
                changes[-1] = (changes[-1][0], int(page) + 1, *pair)
            else:
                changes.append((int(page), int(page) + 1, *pair))
        return np.array(changes, dtype=CHANGE)


class SparseMap(ReferenceMap):
    """Runs in order: run i begins at `_starts[i]`, has `_values[i]`, and ends where the next begins."""

    def __init__(self, npages: int = MAX_PAGES, default: int = 0) -> None:
        super().__init__(npages, default)
        self._starts = [0]
        self._values = [self._default]

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The runs that meet [start, stop), clipped to it."""
        if start == stop:
            return []
        first, last = bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop)
        edges = [start, *self._starts[first + 1 : last], stop]
        return list(zip(edges[:-1], edges[1:], self._values[first:last], strict=True))

    def _replace(self, start: int, stop: int, pieces: list[tuple[int, int, int]]) -> None:
        """Let [start, stop) consist of `pieces`, joining equal neighbours there and at both ends."""
        before = self._pieces(self._starts[bisect_left(self._starts, start) - 1], start) if start else []
        after = self._pieces(stop, min(stop + 1, self._npages))
        starts, values = [], []
        for piece_start, _, value in (*before, *pieces, *after):
            if not values or values[-1] != value:
                starts.append(piece_start)
                values.append(value)
        first = bisect_left(self._starts, before[0][0] if before else start)
        last = bisect_right(self._starts, stop) if after else len(self._starts)
        self._starts[first:last] = starts
        self._values[first:last] = values

    def _edit(self, start: int, stop: int, change: Callable[[Any], Any]) -> int:
        old = self._pieces(start, stop)
        if not old:
            return 0
        new = [(piece_start, piece_stop, change(value)) for piece_start, piece_stop, value in old]
        self._replace(start, stop, new)
        return sum(b - a for (a, b, value), (_, _, was) in zip(new, old, strict=True) if value != was)

    def _assign(self, start: int, pages: np.ndarray) -> bool:
        stop = start + len(pages)
        if start == stop or np.array_equal(self.to_numpy(start, stop), pages):
            return False
        self._replace(start, stop, [(start + i, start + i + 1, int(value)) for i, value in enumerate(pages)])
        return True

    def _adopt(self, other: SparseMap) -> None:
        self._starts = list(other._starts)
        self._values = list(other._values)

    @property
    def nbytes(self) -> int:
        return RUN.itemsize * len(self._starts)

    def get(self, gfn: int) -> int:
        return self._values[bisect_right(self._starts, self._checked_gfn(gfn)) - 1]

    def to_numpy(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        start, stop = self._checked_range(start, stop)
        out = checked_out(out, stop - start)
        for piece_start, piece_stop, value in self._pieces(start, stop):
            out[piece_start - start : piece_stop - start] = value
        return out

    def count(self, start: int, stop: int, attributes: int, mask: int = 0xFF) -> int:
        start, stop = self._checked_range(start, stop)
        attributes, mask = checked_byte(attributes, "attributes"), checked_byte(mask, "mask")
        return sum(b - a for a, b, value in self._pieces(start, stop) if value & mask == attributes)

    def values(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        pieces = self._pieces(*self._checked_tail(start, stop))
        return np.array(sorted({value for _, _, value in pieces}), dtype=np.uint8)

    def find(self, start: int, attributes: int, *, mask: int = 0xFF, stop: int | None = None) -> int:
        start, stop = self._checked_tail(start, stop)
        attributes, mask = checked_byte(attributes, "attributes"), checked_byte(mask, "mask")
        return next((a for a, _, value in self._pieces(start, stop) if value & mask == attributes), -1)

    def runs(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.array(self._pieces(*self._checked_tail(start, stop)), dtype=RUN)

    def diff(self, other: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        self._check_same_size(other)
        start, stop = self._checked_tail(start, stop)
        edges = sorted(
            {edge for each in (self, other) for piece in each._pieces(start, stop) for edge in piece[:2]}
        )
        changes: list[tuple[int, int, int, int]] = []
        for left, right in pairwise(edges):
            pair = (other.get(left), self.get(left))
            if pair[0] == pair[1]:
                continue
            if changes and changes[-1][1:] == (left, *pair):
                changes[-1] = (changes[-1][0], right, *pair)
            else:
                changes.append((left, right, *pair))
        return np.array(changes, dtype=CHANGE)


def plain(answer: Any) -> Any:
    """An answer as something that `==` compares whole: an array with its dtype, else with its type."""
    if isinstance(answer, np.ndarray):
        return answer.dtype, answer.shape, answer.tobytes()
    return type(answer), answer


def assert_same(store: Any, model: Any) -> None:
    """Both hold the same pages."""
    assert len(store) == len(model)
    got, wanted = store.runs(), model.runs()
    if plain(got) != plain(wanted):
        differing = next(
            (i for i, (a, b) in enumerate(zip(got.tolist(), wanted.tolist(), strict=False)) if a != b),
            min(len(got), len(wanted)),
        )
        raise AssertionError(
            f"run {differing} of {len(got)} (of {len(wanted)} wanted): "
            f"{got[differing : differing + 2]}, wanted {wanted[differing : differing + 2]}"
        )
