"""A picture of a recording: addresses against time, a panel for each kind of page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.access_map import Shown, effective_attributes
from kvmattr.measure import figures
from kvmattr.picture import heat_maps, holes, shares
from kvmattr.trace.answers import Answering
from kvmattr.trace.moments import Until
from kvmattr.trace.operations import FILE, NO_TIME, SLOT, Block
from kvmattr.trace.trace import Trace

#: Cells of a picture: addresses, and moments of which each is the state at its end.
_ADDRESSES, _MOMENTS = 256, 200
#: How often one moment is looked into for memory that is gone and comes back.
_GAPS = 16


class Timeline(NamedTuple):
    """For each kind of page its share, in 0..1, of each cell: addresses by moments; and where the moments are.

    `moments` are seconds from the first line with a time, or lines where not each line has one.
    """

    shares: dict[str, NDArray[np.float64]]
    moments: NDArray[np.float64]
    unit: str


def end_of(trace: Trace) -> int:
    """Pages below the highest end that a call of the trace names, at least one."""
    return max(1, trace.slot_npages, trace.attribute_npages)


def timeline(trace: Trace, answering: Answering, start: int, stop: int, end: Until | None = None) -> Timeline:
    """Run a trace and look at the pages [start, stop) at equal distances of time.

    Each moment shows the state at its end, and memory that had no memslot at any time within it. Time: that of
    the replay, and for each of 200 moments that of the runs that there are then.
    """
    positions, unit = _positions(trace, end)
    if not len(positions):
        raise ValueError(f"{trace.name}: no operation before the moment that was asked for")
    edges = np.linspace(positions[0], positions[-1], _MOMENTS + 1)[1:]
    columns = _Columns(answering, trace.slot_calls > 0, start, stop)
    column, seen = 0, 0
    for block in trace.blocks():
        block = end.cut(block) if end is not None else block
        at = positions[seen:seen + len(block)]
        seen += len(block)
        done = 0
        while column < _MOMENTS:
            reached = int(np.searchsorted(at, edges[column], side="right"))
            if reached == len(at) and seen < len(positions):
                break  # the next block may have more before this moment
            columns.apply(block[done:reached])
            columns.write(column)
            done = max(done, reached)
            column += 1
        columns.apply(block[done:])
    return Timeline(columns.found, edges, unit)


class _Columns:
    """The picture while it is made: what there is now, and what was gone since the last moment."""

    def __init__(self, answering: Answering, slots: bool, start: int, stop: int) -> None:
        self.found: dict[str, NDArray[np.float64]] = {}
        self._answering = answering
        self._slots = slots
        self._part = (start, stop, min(_ADDRESSES, stop - start))
        self._now = self._look()
        self._gone: NDArray[np.float64] | None = None

    def apply(self, block: Block) -> None:
        """Run operations, and look where slots were deleted before others are made."""
        if not len(block):
            return
        deletes = (block["kind"] >= SLOT) & (block["kind"] < FILE) & (block["words"][:, 3] == 0)
        cuts = np.flatnonzero(deletes[:-1] & ~deletes[1:]) + 1
        done = 0
        for cut in cuts[np.linspace(0, len(cuts) - 1, min(len(cuts), _GAPS)).astype(int)].tolist():
            self._answering.apply(block[done:cut])
            done = cut
            gone = holes(self._answering.vm.memslots, *self._part)
            if self._slots and gone.any():
                self._gone = gone if self._gone is None else np.maximum(self._gone, gone)
        self._answering.apply(block[done:])
        self._now = self._look()

    def write(self, column: int) -> None:
        """Draw a moment."""
        drawn = dict(self._now)
        if self._gone is not None:
            drawn["no memslot"] = np.maximum(self._gone, drawn.get("no memslot", 0.0))
            self._gone = None
        for name, share in drawn.items():
            self.found.setdefault(name, np.zeros((self._part[2], _MOMENTS)))[:, column] = share

    def _look(self) -> dict[str, NDArray[np.float64]]:
        vm = self._answering.vm
        shown = Shown("", effective_attributes(vm), vm.profile, vm.memslots if self._slots else None)
        return shares(shown, *self._part)


def _positions(trace: Trace, end: Until | None) -> tuple[NDArray[np.float64], str]:
    """Where each operation stands: its time in seconds, or its line; never before the one before it."""
    if not trace.operations:
        return np.empty(0), "line"
    blocks = [end.cut(block) if end is not None else block for block in trace.blocks()]
    times = np.concatenate([block["time"] for block in blocks])
    timed = bool((times != NO_TIME).all())
    places = (times - times[:1]) / 1e9 if timed else np.concatenate([block["line"] for block in blocks]).astype(float)
    return np.maximum.accumulate(places), "s" if timed else "line"


def draw(found: Timeline, name: str, start: int, stop: int, path: str) -> None:
    """Draw a timeline: time to the right, addresses upward. ImportError names what to install."""
    first, last = float(found.moments[0]), float(found.moments[-1])
    last = last if last > first else first + 1
    figure, panels = heat_maps(f"{Path(name).name}: {start << uapi.PAGE_SHIFT:#x} to {stop << uapi.PAGE_SHIFT:#x}",
                               found.shares, origin="lower", extent=(first, last, start, stop))
    ticks = np.linspace(start, stop, 5)
    for axes in panels:
        axes.set_yticks(ticks, [f"{int(tick) << uapi.PAGE_SHIFT:#x}" for tick in ticks])
        axes.set_xlabel("seconds since the first call" if found.unit == "s" else "line")
    figures.save(figure, path)
