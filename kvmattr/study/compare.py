"""Compare two states of a machine, a kernel or a version, from several reports of each.

  kvmattr compare --a old1.json old2.json old3.json --b new1.json new2.json
  kvmattr compare A.json B.json --same 1.json 2.json 3.json 4.json

The second has one run a side, and runs of unchanged code to show what runs vary by. Take the runs of both sides in
turns, on an equally busy machine; ten short runs a side tell more than five long ones. Of each run a cell gives one
number: its fastest rounds, divided by fixed work in the same rounds. How much these numbers vary is taken from several
runs, never from the rounds of one. A cell is "slower" or "faster" if its interval, widened for the number of cells,
lies beyond 1.05x (1.75x where the load differed), and "same" if a change of 1.25x would have been seen; else it could
not be told.

Exit codes: 0 nothing is slower; 1 something is, or is broken; 2 usage, or a file that cannot be read or written;
3 it could not be told.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from kvmattr.measure import figures, text, writing
from kvmattr.measure.extras import require
from kvmattr.measure.refusing import Refused, refusing
from kvmattr.measure.table import fitted, width
from kvmattr.study.comparing import Compared, Row, compare
from kvmattr.study.plots import both_sides
from kvmattr.study.report import Report, load
from kvmattr.study.table import wrapped

HELP = "compare JSON reports of kvmattr scaling: several of one state with several of another"

EXIT_USAGE = 2
_HEADER = ["size", "backend", "A", "B", "B / A", "verdict"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``kvmattr compare``."""
    parser.add_argument("reports", nargs="*", metavar="REPORT.json", help="one of A and one of B")
    parser.add_argument("--a", nargs="+", default=[], metavar="A.json", help="reports of the one state")
    parser.add_argument("--b", nargs="+", default=[], metavar="B.json", help="reports of the other")
    parser.add_argument("--same", nargs="+", default=[], metavar="S.json",
                        help="reports of one unchanged state on this machine, which show what runs vary by")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON; - is standard output")
    parser.add_argument("--figure", metavar="FILE", help="draw both sides as .png, .svg or .pdf (needs kvmattr[study])")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; the exit code. Raises Refused."""
    with refusing():
        paths_a, paths_b = _sides(arguments)
        if arguments.figure:
            figures.format_of(arguments.figure, "--figure")
            require("matplotlib")
        writing.check(arguments.json, arguments.figure, read=[*paths_a, *paths_b, *arguments.same])
        a, b, same = ([load(path) for path in paths] for paths in (paths_a, paths_b, arguments.same))
    compared = compare(a, b, same)
    if not compared.rows:
        raise Refused("A and B have no cell in common")
    files: list[tuple[str | None, Callable[[], str | bytes]]] = [
        (arguments.json, lambda: json.dumps(compared.as_record(), indent=1) + "\n"),
        (arguments.figure, lambda: figures.drawn(both_sides(a, b, compared.rows), figures.format_of(arguments.figure),
                                                 facecolor="white"))]
    errors = writing.write_each((place, make) for place, make in files if place)
    print(shown(a, b, compared), file=writing.people(arguments.json, arguments.figure))
    writing.tell("compare", [place for place, _ in files if place], errors)
    return EXIT_USAGE if errors else compared.exit_code


def shown(a: Sequence[Report], b: Sequence[Report], compared: Compared, columns: int | None = None) -> str:
    """The comparison for people: what was compared, warnings, a table a scenario, the summary."""
    columns = columns or width()
    lines = [line for name, side in (("A", a), ("B", b)) for line in wrapped(f"{name}: {_described(side)}", columns)]
    lines += [line for words in compared.warnings for line in wrapped(words, columns)]
    names = {scenario: asked.size_name for report in (*a, *b) for scenario, asked in report.scenarios.items()}
    for scenario in dict.fromkeys(row.scenario for row in compared.rows):
        rows = [row for row in compared.rows if row.scenario == scenario]
        lines += ["", f"{scenario} ({rows[0].unit})",
                  fitted([names[scenario], *_HEADER[1:]], [_cells(row, names[scenario]) for row in rows], columns)]
    return "\n".join([*lines, "", compared.summary])


def _sides(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    if arguments.reports and (arguments.a or arguments.b):
        raise ValueError("give two reports, or --a and --b, not both")
    if arguments.reports:
        if len(arguments.reports) != 2:
            raise ValueError(f"{len(arguments.reports)} reports: expected two, or --a A.json ... --b B.json ...")
        return [arguments.reports[0]], [arguments.reports[1]]
    if not (arguments.a and arguments.b):
        raise ValueError("expected two reports, or --a A.json ... --b B.json ...")
    return arguments.a, arguments.b


def _described(side: Sequence[Report]) -> str:
    machine = side[0].machine
    runs = f"{len(side)} runs" if len(side) > 1 else "1 run"
    return (f"{runs}, {machine['host']}, {machine['cpu']}, kernel {machine['kernel']}, kvmattr "
            f"{machine['kvmattr']}, from {machine['started']}")


def _cells(row: Row, size_name: str) -> list[str]:
    ratio = ""
    if row.ratio is not None:
        ratio = f"{text.digits(row.ratio)}x"
        if row.low is not None and row.high is not None and row.low != row.high:
            ratio += f" ({text.digits(row.low)}..{text.digits(row.high)})"
    verdict = "could not tell" if row.verdict == "open" else row.verdict
    words = f"{verdict}: {row.note}" if verdict and row.note else verdict or row.note
    if row.floor_ratio is not None:
        words += f", {text.digits(row.floor_ratio)}x over the floor"
    return [text.size(row.size, size_name), row.backend,
            *("" if value is None else text.quantity(value, row.unit) for value in (row.a, row.b)), ratio, words]
