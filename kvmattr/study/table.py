"""The terminal's table: one for each scenario and kind, sizes down, backends across."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from kvmattr.measure import text
from kvmattr.study import scenarios
from kvmattr.study.results import DEFECTS, Comparison, Result, comparisons

LEGEND = ("median (10th..90th percentile); x: times the reference of the same kind, measured in the same "
          "rounds (model: store, kernel: kvm-attributes); x...?: could not be told apart from 1")


@dataclass(frozen=True)
class Table:
    """One scenario on the backends of one kind: a header, rows of cells, and the notes that stand below."""

    scenario: str
    title: str
    kind: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables(results: Sequence[Result]) -> list[Table]:
    """The tables of a report, in the order of its results."""
    ratios = {(ratio.scenario, ratio.size, ratio.backend): ratio for ratio in comparisons(results)}
    found = []
    for scenario_name in dict.fromkeys(result.scenario for result in results):
        scenario = scenarios.ALL[scenario_name]
        cells = [result for result in results if result.scenario == scenario_name]
        for kind in dict.fromkeys(cell.kind for cell in cells):
            own = [cell for cell in cells if cell.kind == kind]
            absent, present = _absent(own)
            if present == ["empty-ioctl"]:      # a floor under nothing
                present = []
            if all(cell.status == "unsupported" for cell in own):
                continue
            by_place = {(cell.size, cell.backend): cell for cell in own}
            rows = [[text.size(size, scenario.size_name),
                     *(cell_text(by_place.get((size, name)), ratios.get((scenario_name, size, name)))
                       for name in present)] for size in dict.fromkeys(cell.size for cell in own)]
            notes = [f"{name}: {why}" for name, why in absent.items()]
            notes += _refusals(own, scenario.size_name, present)
            notes += [f"{cell.backend} at {text.size(cell.size, scenario.size_name)}: {cell.note}"
                      for cell in own if cell.status in DEFECTS or
                      (cell.status == "failed" and cell.reached is None) or (cell.status == "ok" and cell.note)]
            found.append(Table(scenario_name, scenario.question, kind, [scenario.size_name, *present],
                               rows if present else [], notes))
    return found


def _absent(cells: Sequence[Result]) -> tuple[dict[str, str], list[str]]:
    """Backends that ran at no size, with the reason, and the others."""
    absent: dict[str, str] = {}
    present: list[str] = []
    for name in dict.fromkeys(cell.backend for cell in cells):
        own = [cell for cell in cells if cell.backend == name]
        if all(cell.status in ("unavailable", "unsupported", "refused") for cell in own):
            absent[name] = own[0].note
        else:
            present.append(name)
    return absent, present


def _refusals(cells: Sequence[Result], size_name: str, present: Sequence[str]) -> list[str]:
    """One line a backend that ran at some sizes and was refused at others: where first, and what it would take."""
    said = []
    for name in present:
        refused = [cell for cell in cells if cell.backend == name and cell.status == "refused"]
        if refused:
            sizes = text.listed([text.size(cell.size, size_name) for cell in refused])
            first = text.size(refused[0].size, size_name)
            said.append(f"{name} refused at {sizes}: at {first} it {refused[0].note}")
    return said


def cell_text(cell: Result | None, ratio: Comparison | None) -> str:
    """What stands in one cell."""
    if cell is None:
        return ""
    spread = cell.spread
    if cell.status != "ok" or spread is None:
        return cell.note if cell.status in ("failed", "stopped") else cell.status
    words = text.spread(spread.median, spread.p10, spread.p90, cell.unit)
    if ratio is None:
        return words
    return f"{words} x{text.digits(ratio.ratio.median)}{'' if ratio.ratio.told_apart else '?'}"


def plain(results: Sequence[Result]) -> str:
    """All tables as text, without any library."""
    lines: list[str] = []
    for table in tables(results):
        lines += ["", f"{table.scenario} ({table.kind}): {table.title}"]
        if table.rows:
            lines.append(aligned(table.header, table.rows))
        lines += [f"  {note}" for note in table.notes]
    return "\n".join([*lines[1:], "", *textwrap.wrap(LEGEND, 100)])


def aligned(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, set to the right, under a ruled header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    ruled = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in ruled)
