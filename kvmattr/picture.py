"""Pictures of a guest's memory: for each kind of page that occurs a panel, with its share in each cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.access_map import Line, Shown, lines
from kvmattr.measure import figures, text
from kvmattr.memslots import MemslotTable
from kvmattr.protection import Access

#: Cells of a picture: each stands for an equal share of the range, row by row.
_COLUMNS, _ROWS = 256, 64


def rounded(stop: int, npages: int) -> int:
    """Where a picture from page 0 to `stop` ends: with cells of whole pages, and addresses that are round."""
    cells = _COLUMNS * _ROWS if stop > _COLUMNS * _ROWS else _COLUMNS
    return min(npages, -(-stop // cells) * cells)


def _kinds(line: Line, slots: bool) -> dict[str, bool]:
    """What a picture can show of pages, a panel each."""
    hole = slots and line.slot is None
    return {
        "private": line.private,
        "no memslot": hole,
        "no read": not hole and not line.access & Access.READ,
        "no write": not hole and not line.access & Access.WRITE,
        "no exec": not hole and not line.access & Access.EXEC,
    }


def shares(shown: Shown, start: int, stop: int, cells: int) -> dict[str, NDArray[np.float64]]:
    """For each kind of page that occurs in [start, stop): its share in each of so many equal cells, in 0..1.

    Time and memory by the number of runs. Where no kind occurs, `private` is there with zeros.
    """
    drawn = list(lines(shown, start, stop))
    edges = np.linspace(start, stop, cells + 1)
    stops = np.array([start, *(line.stop for line in drawn)], dtype=np.float64)
    pages = np.diff(stops)
    found: dict[str, NDArray[np.float64]] = {}
    kinds = [_kinds(line, shown.memslots is not None) for line in drawn]
    for name in kinds[0]:
        has = np.array([kind[name] for kind in kinds])
        if has.any():
            # Pages of the kind below each edge; their differences are what the cells hold.
            below = np.interp(edges, stops, np.append(0.0, np.cumsum(pages * has)))
            found[name] = np.diff(below) / np.diff(edges)
    return found or {"private": np.zeros(cells)}


def holes(memslots: MemslotTable, start: int, stop: int, cells: int) -> NDArray[np.float64]:
    """The share of pages of [start, stop) that have no memslot, in each of so many equal cells, in 0..1.

    What `shares` has as `no memslot`, by the number of memslots alone.
    """
    slots = [(max(start, slot.start), min(stop, slot.stop)) for slot in memslots.overlapping(start, stop, 0)]
    edges = np.linspace(start, stop, cells + 1)
    places = np.array([start, *(place for slot in slots for place in slot), stop], dtype=np.float64)
    # Pages without one below each place: they grow from the end of each memslot to the beginning of the next.
    gaps = np.diff(places)
    gaps[1::2] = 0
    below = np.interp(edges, places, np.append(0.0, np.cumsum(gaps)))
    share: NDArray[np.float64] = np.diff(below) / np.diff(edges)
    return share


def figure_of(shown: Shown, start: int, stop: int) -> Any:
    """The range as a heat map, matplotlib's Figure: for each kind of page that occurs, its share in each cell.

    Cells go through the addresses row by row, from the top left. ImportError names what to install.
    """
    rows = max(1, min(_ROWS, (stop - start) // _COLUMNS))
    columns = min(_COLUMNS, stop - start)
    found = {name: share.reshape(rows, columns) for name, share in shares(shown, start, stop, rows * columns).items()}
    size = (stop - start) << uapi.PAGE_SHIFT
    figure, panels = heat_maps(
        f"{Path(shown.name).name}: {start << 12:#x} to {stop << 12:#x}, {text.memory(size // rows)} a row, "
        f"{text.memory(size // (rows * columns))} a cell", found)
    ticks = np.unique(np.linspace(0, rows - 1, min(rows, 5)).astype(int))
    for axes in panels:
        axes.set_yticks(ticks, [f"{(start + (stop - start) * row // rows) << 12:#x}" for row in ticks.tolist()])
        axes.set_xticks([])
    return figure


def heat_maps(title: str, found: dict[str, NDArray[np.float64]], **image: Any) -> tuple[Any, list[Any]]:
    """A figure with a panel a kind of page, and the panels' axes. ImportError names what to install."""
    figures.require("a picture")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 2.6 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(len(found), squeeze=False)[:, 0].tolist()
    for axes, (kind, share) in zip(panels, found.items(), strict=True):
        drawn = axes.imshow(share * 100, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=100,
                            **image)
        axes.set_title(kind, loc="left")
        figure.colorbar(drawn, ax=axes, label="% of pages")
    return figure, panels
