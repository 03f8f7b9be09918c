"""The terminal's table: one for each scenario and kind, sizes down, backends across."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmattr.measure import text
from kvmattr.measure.table import fitted, width
from kvmattr.study.results import DEFECTS, FLOOR, Comparison, Result

if TYPE_CHECKING:
    from kvmattr.study.report import Report

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


def tables(report: Report) -> list[Table]:
    """The tables of a report, in the order of its results."""
    ratios, found = report.ratios, []
    for scenario_name, scenario in report.scenarios.items():
        cells = [result for result in report.results if result.scenario == scenario_name]
        for kind in dict.fromkeys(cell.kind for cell in cells):
            own = [cell for cell in cells if cell.kind == kind]
            absent, present = _absent(own)
            if present == [FLOOR]:      # a floor under nothing
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
    words = spread.words(cell.unit)
    if ratio is None:
        return words
    return f"{words} x{text.digits(ratio.ratio.median)}{'' if ratio.ratio.told_apart else '?'}"


def plain(report: Report, columns: int | None = None) -> str:
    """All tables as text, without any library, and below each scenario what was expected of it and seen."""
    columns = columns or width()
    lines: list[str] = []
    shown = tables(report)
    for number, table in enumerate(shown):
        lines += ["", *wrapped(f"{table.scenario} ({table.kind}): {table.title}", columns)]
        if table.rows:
            lines.append(fitted(table.header, table.rows, columns))
        lines += [line for note in table.notes for line in wrapped(note, columns, "  ", "  ")]
        if number + 1 == len(shown) or shown[number + 1].scenario != table.scenario:
            lines += [line for seen in report.seen if seen.scenario == table.scenario
                      for line in wrapped(seen.words, columns, "  ", "  ")]
    return "\n".join([*lines[1:], "", *wrapped(LEGEND, columns)])


def wrapped(words: str, columns: int, indent: str = "", further: str = "") -> list[str]:
    """Words as lines, indented by ``indent`` and from the second line on by ``further`` as well."""
    return textwrap.wrap(words, columns, initial_indent=indent, subsequent_indent=indent + further,
                         break_long_words=False, break_on_hyphens=False)
