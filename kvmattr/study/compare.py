"""Two reports side by side.

Times of different runs are shown but never judged: what else a machine does moves them. Ratios are: both arms
of a ratio ran in the same rounds. A ratio changed if its 95 % intervals in the two reports do not meet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from kvmattr.measure import text
from kvmattr.study import scenarios, table
from kvmattr.study.report import Report, load
from kvmattr.study.results import Comparison, Result, comparisons

HELP = "compare two JSON reports of kvmattr scaling"

_HEADER = ["scenario", "size", "backend", "A", "B", "ratio in A", "ratio in B", "verdict"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``kvmattr compare``."""
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison. 0, or 2 if a file cannot be read or the reports have nothing in common."""
    try:
        first, second = load(arguments.a), load(arguments.b)
    except (OSError, ValueError) as error:
        print(f"kvmattr compare: {error}", file=sys.stderr)
        return 2
    rows = list(compared(first, second))
    if not rows:
        print(f"kvmattr compare: {arguments.a} and {arguments.b} have no cell in common", file=sys.stderr)
        return 2
    for name, report in (("A", first), ("B", second)):
        machine = report.machine
        print(f"{name}: {machine['host']}, {machine['cpu']}, kernel {machine['kernel']}, "
              f"kvmattr {machine['kvmattr']}, {machine['started']}")
    print()
    print(table.aligned(_HEADER, rows))
    return 0


def compared(first: Report, second: Report) -> Iterator[list[str]]:
    """The rows: every cell that both reports have."""
    others = {_place(result): result for result in second.results}
    ratios_a, ratios_b = _ratios(first), _ratios(second)
    for result in first.results:
        other = others.get(_place(result))
        if other is None or (result.status == other.status == "unsupported"):
            continue
        a, b = ratios_a.get(_place(result)), ratios_b.get(_place(result))
        yield [result.scenario, text.size(result.size, scenarios.size_name(result.scenario)), result.backend,
               _shown(result), _shown(other), _ratio(a), _ratio(b), verdict(result, other, a, b)]


def verdict(first: Result, second: Result, a: Comparison | None, b: Comparison | None) -> str:
    """What may be said of one cell in two reports."""
    if first.status != second.status:
        return f"was {first.status}, is {second.status}"
    if first.status != "ok":
        return "same end" if first.note == second.note else f"{first.note} -> {second.note}"
    if a is None or b is None or a.reference != b.reference:
        return ""
    if b.ratio.low > a.ratio.high:
        return f"slower against {a.reference}"
    if b.ratio.high < a.ratio.low:
        return f"faster against {a.reference}"
    return "no difference seen"


def _place(cell: Result | Comparison) -> tuple[str, int, str]:
    return cell.scenario, cell.size, cell.backend


def _ratios(report: Report) -> dict[tuple[str, int, str], Comparison]:
    return {_place(ratio): ratio for ratio in comparisons(report.results)}


def _shown(result: Result) -> str:
    spread = result.spread
    return text.quantity(spread.median, result.unit) if spread else result.status


def _ratio(ratio: Comparison | None) -> str:
    if ratio is None:
        return ""
    median, low, high = map(text.digits, (ratio.ratio.median, ratio.ratio.low, ratio.ratio.high))
    return f"{median} ({low}..{high})"
