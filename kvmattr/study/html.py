"""One self-contained page: no network, no file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvmattr.measure import text
from kvmattr.measure.extras import require
from kvmattr.study import table
from kvmattr.study.plots import inline_svg, plots
from kvmattr.study.results import DEFECTS, KINDS, NOT_HERE, STATUSES

if TYPE_CHECKING:
    from kvmattr.study.report import Report

_TEMPLATE = Path(__file__).with_name("report.html")


def render(report: Report) -> str:
    """The page as text."""
    require("matplotlib", "jinja2")
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    environment.filters |= {"size": text.size, "quantity": text.quantity, "words": lambda name: name.replace("_", " ")}
    return environment.from_string(_TEMPLATE.read_text()).render(
        report=report, plots=list(plots(report)), inline_svg=inline_svg, tables=table.tables(report),
        legend=table.LEGEND, statuses=STATUSES, defects=DEFECTS, not_here=NOT_HERE, kinds=KINDS)
