"""Log-log plots of medians with their spread, one figure for each scenario and kind."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from kvmattr.measure import text
from kvmattr.measure.writing import write
from kvmattr.study import scenarios
from kvmattr.study.extras import require
from kvmattr.study.results import KINDS, Result

#: Okabe and Ito's palette: told apart by most colour-blind readers, and on white and black alike.
_COLOURS = {
    "store": "#0072b2", "memslots": "#d55e00", "numpy": "#009e73", "xarray": "#cc79a7",
    "store-get-write": "#56b4e9", "kvm-memslots": "#d55e00", "kvm-memslots-vcpu": "#e69f00",
    "kvm-attributes": "#0072b2", "mprotect": "#009e73", "empty-ioctl": "#888888",
    "unicorn": "#cc79a7", "pyroaring": "#009e73", "sortedcontainers": "#e69f00",
}
_MARKERS = "osD^vP*X"
#: Inches. So small that the text can still be read where a phone shows the figure 340 pixels wide.
_SIZE = (4.5, 3.6)
#: Letters of a figure's width, for its title, and for its legend with the marks.
_TITLE_LETTERS, _LEGEND_LETTERS = 52, 50


@dataclass(frozen=True)
class Plot:
    """One figure: ``stem`` names its files, ``title`` says which backends it has, ``figure`` is matplotlib's."""

    stem: str
    scenario: str
    title: str
    figure: Any


def plots(results: Sequence[Result]) -> Iterator[Plot]:
    """A figure wherever a scenario was measured at two sizes or more, on the backends of one kind."""
    require("matplotlib")
    for scenario in scenarios.ALL.values():
        for kind in dict.fromkeys(result.kind for result in results):
            cells = [result for result in results if result.scenario == scenario.name and result.kind == kind]
            if len({cell.size for cell in cells if cell.status == "ok"}) > 1:
                yield Plot(f"{scenario.name}-{kind}", scenario.name, f"{kind}: {KINDS[kind]}",
                           _figure(cells, scenario))


def _figure(cells: Sequence[Result], scenario: scenarios.Scenario) -> Any:
    # The object interface, never pyplot: no global state, no display, nothing to close.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    ends: list[tuple[int, str, str]] = []
    for index, backend in enumerate(dict.fromkeys(cell.backend for cell in cells)):
        own = [cell for cell in cells if cell.backend == backend]
        colour = _COLOURS.get(backend, f"C{index}")
        measured = [(cell.size, cell.spread) for cell in own
                    if cell.status == "ok" and cell.spread is not None]
        if measured:
            sizes = [size for size, _ in measured]
            axes.fill_between(sizes, [spread.p10 for _, spread in measured],
                              [spread.p90 for _, spread in measured], color=colour, alpha=0.2, linewidth=0)
            axes.plot(sizes, [spread.median for _, spread in measured], color=colour,
                      marker=_MARKERS[index % len(_MARKERS)], label=backend)
        reached = [cell.reached for cell in own if cell.status == "failed" and cell.reached]
        if reached and scenario.size_name == "earlier conversions":
            ends.append((min(reached), backend, colour))
    for line, (end, backend, colour) in enumerate(ends):
        axes.axvline(end, color=colour, linestyle=":")
        # Above the axes, where no curve can cross it.
        axes.annotate(f"{backend} ends at {end:,}", (end, 1), (3, 2 + 10 * line), color=colour, fontsize="small",
                      xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="right", va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(scenario.size_name)
    axes.set_ylabel(scenario.unit.replace("ns/", "time per ") if scenario.unit != "bytes" else "bytes")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.tick(round(value), scenario.size_name)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.quantity(value, scenario.unit)))
    if scenario.size_name in text.MEMORY_SIZES:
        axes.set_xticks(sorted({cell.size for cell in cells}))
        axes.minorticks_off()
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, axes)
    return figure


def _add_legend(figure: Any, axes: Any) -> None:
    """Below the axes, read line by line; matplotlib itself fills column by column."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels)
    while columns > 1 and columns * (max(map(len, labels)) + 4) > _LEGEND_LETTERS:
        columns -= 1
    order = [index for column in range(columns) for index in range(column, len(labels), columns)]
    figure.legend([handles[index] for index in order], [labels[index] for index in order], frameon=False,
                  fontsize="small", loc="outside lower center", ncols=columns)


def save_plots(results: Sequence[Result], directory: Path) -> list[Path]:
    """Write ``SCENARIO-KIND.png`` and ``.svg`` for every plot; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots(results):
        title = f"{scenarios.ALL[plot.scenario].question} ({plot.title.partition(':')[0]})"
        plot.figure.suptitle(textwrap.fill(title, _TITLE_LETTERS), fontsize="medium")
        for suffix in ("png", "svg"):
            path = directory / f"{plot.stem}.{suffix}"
            drawn = BytesIO()
            plot.figure.savefig(drawn, format=suffix, dpi=160, facecolor="white")
            write(path, drawn.getvalue())
            written.append(path)
    return written


def inline_svg(plot: Plot) -> str:
    """The figure as an ``<svg>`` element for a page: as wide as its place, in the page's own text colour."""
    import matplotlib

    buffer = StringIO()
    # Ids in one page must differ: matplotlib derives them from this salt.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.stem}):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r'<svg \1\2role="img" ', svg, count=1)
    return svg.replace("#000000", "currentColor").replace("stroke: #b0b0b0", "stroke: currentColor")
