"""Show a guest's memory map: as text, one line a run as in /proc/PID/maps, or as a picture of the address space.

FILE is a trace (any format that replay reads) or a map that AttributeMap.save wrote. Of a trace the end is shown, or
the state at a line or time (--at), each line that changed a page (--history), or all of it over time (--timeline).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvmattr import timeline, uapi
from kvmattr._core import AttributeMap
from kvmattr.access_map import Shown, effective_attributes, end_of, text
from kvmattr.measure import figures, writing
from kvmattr.measure.refusing import refusing
from kvmattr.picture import figure_of, rounded
from kvmattr.profiles import PROFILES, profile_named
from kvmattr.trace import Trace, machine_for, read, replay
from kvmattr.trace.answers import Answering
from kvmattr.trace.command import add_reading_arguments, reading_options
from kvmattr.trace.history import history, history_text
from kvmattr.trace.moments import until
from kvmattr.trace.text import remarks
from kvmattr.vm import VM

HELP = "show the memory map of a trace or a saved map, as text or as a picture"

#: A saved map begins with this, a trace with text.
_SAVED = b"kvmattr\x1a"


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
    """Draw; 0, 1 if answers differ from the recorded ones with --strict. Raises Refused for what cannot be drawn."""
    differs = False
    with refusing():
        writing.check(arguments.picture, arguments.timeline, read=[] if arguments.source == "-" else [arguments.source])
        if is_saved(arguments.source):
            for name in ("at", "history", "timeline"):
                if getattr(arguments, name) is not None:
                    raise ValueError(f"--{name}: a saved map has no lines")
            draw(load(arguments.source, arguments.abi), arguments)
        else:
            with read(arguments.source, **reading_options(arguments)) as trace:
                differs = _run(trace, arguments) and arguments.strict
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
            for line in history_text(again, changes, trace.clock):
                print(line)
        else:
            start, stop = _range(arguments.range) if arguments.range else (0, timeline.end_of(trace))
            found = timeline.timeline(trace, answering, start, min(stop, len(again.attributes)), end)
            timeline.draw(found, trace.name, start, stop, arguments.timeline)
    else:
        draw(Shown(trace.name, effective_attributes(vm), vm.profile, vm.memslots if trace.slot_calls else None),
             arguments)
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
        figures.save(figure_of(shown, start, stop), arguments.picture)
    else:
        for line in text(shown, start, stop):
            print(line)


def is_saved(source: str) -> bool:
    """Whether a file is a saved map; a trace if not."""
    if source == "-":
        return False
    with Path(source).open("rb") as file:
        return file.read(len(_SAVED)) == _SAVED


def load(source: str, abi: str | None = None) -> Shown:
    """A saved map."""
    return Shown(source, AttributeMap.load(source), profile_named(abi or "rfc"), None)


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
