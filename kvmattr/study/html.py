"""One self-contained page: no network, no file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmattr.measure import text
from kvmattr.measure.extras import require
from kvmattr.study import table
from kvmattr.study.results import DEFECTS, KINDS, NOT_HERE, STATUSES

if TYPE_CHECKING:
    from kvmattr.study.growth import Seen
    from kvmattr.study.report import Report

_TEMPLATE = Path(__file__).with_name("report.html")


def render(report: Report) -> str:
    """The page as text."""
    require("matplotlib", "jinja2")
    import jinja2

    from kvmattr.study.plots import inline_svg, plots

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    drawn: dict[str, list[dict[str, str]]] = {}
    for plot in plots(report):
        drawn.setdefault(plot.scenario, []).append({"title": plot.title, "svg": inline_svg(plot)})
    by_scenario: dict[str, list[table.Table]] = {}
    for part in table.tables(report):
        by_scenario.setdefault(part.scenario, []).append(part)
    seen: dict[str, list[Seen]] = {}
    for each in report.seen:
        seen.setdefault(each.scenario, []).append(each)
    return environment.from_string(_TEMPLATE.read_text()).render(
        report=report, sentences=report.sentences, plots=drawn,
        tables=by_scenario, scenarios=report.scenarios, seen=seen, rows=_rows(report), statuses=STATUSES,
        defects=DEFECTS, kinds=KINDS, machine=_machine(report.machine), legend=table.LEGEND)


def _rows(report: Report) -> list[dict[str, Any]]:
    """The sortable table: each cell that could run, what is shown of it and what it is sorted by."""
    rows = []
    for result in report.results:
        if result.status in NOT_HERE:
            continue
        compared = report.ratios.get((result.scenario, result.size, result.backend))
        rows.append({
            "result": result, "size": text.size(result.size, report.scenarios[result.scenario].size_name),
            "median": result.spread.words(result.unit) if result.spread else "",
            "median_key": result.spread.median if result.spread else -1,
            "ratio": compared.ratio.words if compared else "", "ratio_key": compared.ratio.median if compared else -1})
    return rows


def _machine(machine: dict[str, Any]) -> dict[str, str]:
    """The machine as label and text; KVM's capabilities become labels of their own."""
    shown = {key.replace("_", " "): str(value) for key, value in machine.items()
             if key not in ("kvm", "memory_bytes")}
    shown["memory"] = text.quantity(machine["memory_bytes"], "bytes")
    shown |= {f"KVM {key.replace('_', ' ')}": str(value) for key, value in machine["kvm"].items()}
    return shown
