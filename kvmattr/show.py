"""Draw a map: as text, one line a run as in /proc/PID/maps, or as a picture of the address space.

What is drawn is a trace (any format that replay reads) at its end or at a line or time, or a map that
AttributeMap.save wrote; of a trace also what became of a page, and a timeline of all of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr._core import AttributeMap
from kvmattr.measure.writing import opened
from kvmattr.memslots import MemslotTable
from kvmattr.profiles import PROFILES, Profile, profile_named
from kvmattr.protection import Access
from kvmattr.trace import Trace, machine_for, read, replay
from kvmattr.trace.answers import Answering
from kvmattr.trace.command import add_reading_arguments, reading_options
from kvmattr.trace.history import history, history_text
from kvmattr.trace.moments import until
from kvmattr.trace.text import remarks
from kvmattr.vm import VM

HELP = "draw a map, a trace's end or a saved file, as text or as a picture"

#: A saved map begins with this, a trace with text.
_SAVED = b"kvmattr\x1a"
#: Cells of a picture: each stands for an equal share of the range, row by row.
_COLUMNS, _ROWS = 256, 64


class Shown(NamedTuple):
    """What can be drawn: attributes, what their bits mean, and the memslots, if there are any."""

    name: str
    attributes: AttributeMap
    profile: Profile
    memslots: MemslotTable | None


class Line(NamedTuple):
    """Pages [start, stop) with one protection: `slot` is None where no memslot is."""

    start: int
    stop: int
    access: Access
    private: bool
    slot: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvmattr show`."""
    parser.add_argument("source", metavar="FILE", help="a trace, - for one on standard input, or a saved map")
    parser.add_argument("--abi", choices=list(PROFILES), help="what the attribute bits mean"
                        " (default: the trace's profile, rfc for a saved map)")
    add_reading_arguments(parser)
    parser.add_argument("--range", metavar="START-STOP", help="guest-physical addresses, hexadecimal"
                        " (default: from 0 to the end of what is set)")
    parser.add_argument("--picture", metavar="FILE", help="draw a picture instead: PNG, SVG or PDF by name")
    parser.add_argument("--at", metavar="LINE|TIME", help="the trace up to this line, or up to this time as its lines"
                        " write it")
    parser.add_argument("--history", metavar="GPA", help="each line that changes the page of this guest-physical"
                        " address, hexadecimal, with time, slot and attributes")
    parser.add_argument("--timeline", metavar="FILE", help="draw a picture of addresses against time instead")


def run(arguments: argparse.Namespace) -> int:
    """Draw; 0, 1 if answers differ from the recorded ones with --strict, 2 for what cannot be read or drawn."""
    differs = False
    try:
        if is_saved(arguments.source):
            for name in ("at", "history", "timeline"):
                if getattr(arguments, name) is not None:
                    raise ValueError(f"--{name}: a saved map has no lines")
            draw(load(arguments.source, arguments.abi), arguments)
        else:
            with read(arguments.source, **reading_options(arguments)) as trace:
                differs = _run(trace, arguments) and arguments.strict
    except (ValueError, OSError, ImportError) as error:
        print(f"kvmattr show: {error}", file=sys.stderr)
        return 2
    return 1 if differs else 0


def _run(trace: Trace, arguments: argparse.Namespace) -> bool:
    """Draw what was asked for of a trace; whether answers differ from the recorded ones."""
    end = until(trace, arguments.at) if arguments.at is not None else None

    def machine() -> VM:
        return machine_for(trace, arguments.abi, arguments.phys_bits, arguments.host)

    vm = machine()
    summary = replay(trace, vm, compare=False, model_answers=arguments.model_answers, end=end)
    if arguments.host is not None:
        summary.machine_why = ""
    for remark in remarks(summary):
        print(f"kvmattr show: {remark}", file=sys.stderr)
    if arguments.history is not None or arguments.timeline is not None:
        again = machine()
        answering = Answering(again, steered=not arguments.model_answers, name=trace.name)
        if arguments.history is not None:
            gfn = _page(arguments.history, len(again.attributes))
            changes = history(trace, answering, gfn, end)
            sys.stdout.writelines(line + "\n" for line in history_text(again, changes, trace.clock))
        else:
            from kvmattr import timeline

            start, stop = _range(arguments.range) if arguments.range else (0, timeline.end_of(trace))
            found = timeline.timeline(trace, answering, start, min(stop, len(again.attributes)), end)
            timeline.draw(found, trace.name, start, stop, arguments.timeline)
    else:
        draw(Shown(trace.name, vm.attributes, vm.profile, vm.memslots if trace.slot_calls else None), arguments)
    return summary.different > 0


def draw(shown: Shown, arguments: argparse.Namespace) -> None:
    """Draw a map as text or as a picture."""
    npages = len(shown.attributes)
    start, stop = _range(arguments.range) if arguments.range else (0, end_of(shown))
    if stop > npages:
        raise ValueError(f"range {arguments.range}: the map ends at {npages << 12:#x}")
    if arguments.picture and not arguments.range:
        stop = rounded(stop, npages)
    if arguments.picture:
        picture(shown, start, stop, arguments.picture)
    else:
        sys.stdout.writelines(line + "\n" for line in text(shown, start, stop))


def rounded(stop: int, npages: int) -> int:
    """Where a picture from page 0 to `stop` ends: with cells of whole pages, and addresses that are round."""
    cells = _COLUMNS * _ROWS if stop > _COLUMNS * _ROWS else _COLUMNS
    return min(npages, -(-stop // cells) * cells)


def is_saved(source: str) -> bool:
    """Whether a file is a saved map; a trace if not."""
    if source == "-":
        return False
    with Path(source).open("rb") as file:
        return file.read(len(_SAVED)) == _SAVED


def load(source: str, abi: str | None = None) -> Shown:
    """A saved map."""
    return Shown(source, AttributeMap.load(source), profile_named(abi or "rfc"), None)


def end_of(shown: Shown) -> int:
    """Where what is set ends: the last attribute or memslot, at least one page."""
    attributes = shown.attributes
    last_start, _stop, last = attributes.run(len(attributes) - 1)
    end = len(attributes) if last else last_start
    slots = shown.memslots
    return max(1, end, *(slot.stop for slot in slots)) if slots is not None else max(1, end)


def lines(shown: Shown, start: int, stop: int) -> Iterator[Line]:
    """The runs of equal protection and memslot in [start, stop), in order, of address space 0.

    The effective protection is what the memslot gives and the attributes leave. Without memslots, that of a
    full one.
    """
    slots = iter(shown.memslots.overlapping(start, stop, 0) if shown.memslots is not None else ())
    slot = next(slots, None)
    for run_start, run_stop, attributes in shown.attributes.iter_runs(start, stop):
        allowed = shown.profile.allowed(attributes)
        private = bool(attributes & shown.profile.private)
        while run_start < run_stop:
            while slot is not None and slot.stop <= run_start:
                slot = next(slots, None)
            if shown.memslots is None:
                piece = Line(run_start, run_stop, allowed, private, None)
            elif slot is None or slot.start >= run_stop:
                piece = Line(run_start, run_stop, Access(0), private, None)
            elif slot.start > run_start:
                piece = Line(run_start, slot.start, Access(0), private, None)
            else:
                given = ~Access.WRITE if slot.flags & uapi.KVM_MEM_READONLY else ~Access(0)
                piece = Line(run_start, min(run_stop, slot.stop), allowed & given, private, slot.id)
            yield piece
            run_start = piece.stop


def text(shown: Shown, start: int, stop: int) -> Iterator[str]:
    """Lines as in /proc/PID/maps: addresses, rights (p private, s shared), pages, memslot.

    Where nothing is mapped and nothing is set there is no line, as there.
    """
    for line in lines(shown, start, stop):
        if shown.memslots is not None and line.slot is None and not line.private:
            continue
        letters = zip("rwx", Access, strict=True)
        rights = "".join(letter if line.access & access else "-" for letter, access in letters)
        rights += "p" if line.private else "s"
        where = "" if shown.memslots is None else " no slot" if line.slot is None else f" slot {line.slot}"
        yield f"{line.start << 12:016x}-{line.stop << 12:016x} {rights} {line.stop - line.start}{where}"


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


def picture(shown: Shown, start: int, stop: int, path: str) -> None:
    """Draw the range as a heat map into a file. ImportError names what to install."""
    save(figure_of(shown, start, stop), path)


def figure_of(shown: Shown, start: int, stop: int) -> Any:
    """The range as a heat map, matplotlib's Figure: for each kind of page that occurs, its share in each cell.

    Cells go through the addresses row by row, from the top left. ImportError names what to install.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a picture needs matplotlib: pip install 'kvmattr[study]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(1, min(_ROWS, (stop - start) // _COLUMNS))
    columns = min(_COLUMNS, stop - start)
    found = shares(shown, start, stop, rows * columns)
    size = (stop - start) << uapi.PAGE_SHIFT
    figure = Figure(figsize=(10, 1.2 + 2.6 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{Path(shown.name).name}: {start << 12:#x} to {stop << 12:#x},"
                    f" {_bytes(size // rows)} a row, {_bytes(size // (rows * columns))} a cell")
    ticks = np.unique(np.linspace(0, rows - 1, min(rows, 5)).astype(int))
    labels = [f"{(start + (stop - start) * row // rows) << 12:#x}" for row in ticks.tolist()]
    panels = figure.subplots(len(found), squeeze=False)[:, 0]
    for axes, (name, share) in zip(panels, found.items(), strict=True):
        image = axes.imshow(share.reshape(rows, columns) * 100, aspect="auto", interpolation="nearest",
                            cmap="viridis", vmin=0, vmax=100)
        axes.set_title(name, loc="left")
        axes.set_yticks(ticks, labels)
        axes.set_xticks([])
        figure.colorbar(image, ax=axes, label="% of pages")
    return figure


def save(figure: Any, path: str) -> None:
    """Write a figure of matplotlib's in the format that the name ends in."""
    kind = Path(path).suffix.removeprefix(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"{path}: a picture's name ends in .png, .svg or .pdf")
    with opened(path) as file:
        figure.savefig(file, dpi=120, format=kind)


def _bytes(count: int) -> str:
    """
    >>> _bytes(4096), _bytes(3 << 30), _bytes(1000)
    ('4 KiB', '3 GiB', '1000 bytes')
    """
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >> shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} bytes"


def _range(words: str) -> tuple[int, int]:
    """The gfns of START-STOP.

    >>> _range("0x1000-3000")
    (1, 3)
    """
    first, dash, last = words.partition("-")
    try:
        start, stop = int(first, 16), int(last, 16)
    except ValueError:
        dash = ""
        start = stop = 0
    if not dash or start >= stop or start % 4096 or stop % 4096 or start < 0:
        raise ValueError(f"range {words!r}: expected START-STOP, hexadecimal multiples of 0x1000,"
                         " START below STOP")
    return start >> 12, stop >> 12


def _page(words: str, npages: int) -> int:
    """The gfn of a guest-physical address.

    >>> _page("0xfed45000", 1 << 52) == 0xfed45
    True
    """
    try:
        address = int(words, 16) if len(words) < 40 else -1
    except ValueError:
        address = -1
    if not 0 <= address < npages << uapi.PAGE_SHIFT:
        raise ValueError(f"history {words[:40]!r}: expected a guest-physical address, hexadecimal, below"
                         f" {npages << uapi.PAGE_SHIFT:#x}")
    return address >> uapi.PAGE_SHIFT
