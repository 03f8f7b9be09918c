"""Log-log plots of medians with their spread, one figure for each scenario and kind."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmattr.measure import figures, text
from kvmattr.measure.extras import require
from kvmattr.measure.statistics import Spread
from kvmattr.study.results import FLOOR, KINDS, Result

if TYPE_CHECKING:
    from kvmattr.study.comparing import Row
    from kvmattr.study.report import Report

#: Okabe and Ito's palette: told apart by most colour-blind readers, and on white and black alike.
_COLOURS = {
    "store": "#0072b2", "memslots": "#d55e00", "numpy": "#009e73", "xarray": "#cc79a7",
    "store-get-write": "#56b4e9", "kvm-memslots": "#d55e00", "kvm-memslots-vcpu": "#e69f00",
    "kvm-attributes": "#0072b2", "mprotect": "#009e73", "empty-ioctl": "#888888",
    "unicorn": "#cc79a7", "pyroaring": "#009e73", "sortedcontainers": "#e69f00",
}
#: Verdicts of a comparison: colour and words.
_VERDICTS = {"slower": ("#d55e00", "slower"), "faster": ("#009e73", "faster"), "same": ("#0072b2", "same")}
#: Ratios that a figure shows at most where the interval, not the ratio itself, lies beyond.
_FAR = (0.1, 10.0)
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
    kind: str
    title: str
    figure: Any


#: Backend -> size -> the lowest, the middle and the highest of what was measured.
_Curves = dict[str, dict[int, tuple[float, float, float]]]


def plots(report: Report) -> Iterator[Plot]:
    """A figure wherever a scenario was measured at two sizes or more, on the backends of one kind."""
    require("matplotlib")
    from matplotlib.figure import Figure  # the object interface, never pyplot: no global state, no display

    for name, scenario in report.scenarios.items():
        for kind in dict.fromkeys(result.kind for result in report.results):
            curves = _curves([report], name, kind, _of_rounds)
            if len({size for sizes in curves.values() for size in sizes}) > 1:
                figure = Figure(figsize=_SIZE, layout="constrained")
                axes = figure.subplots()
                _draw(axes, curves)
                _mark_ends(axes, [cell for cell in report.results if (cell.scenario, cell.kind) == (name, kind)],
                           scenario.size_name, list(curves))
                _label_axes(axes, scenario.size_name, report.unit_of(name))
                _add_legend(figure, axes)
                yield Plot(f"{_file_name(name)}-{kind}", name, kind, f"{kind}: {KINDS[kind]}", figure)


def _curves(reports: Sequence[Report], scenario: str, kind: str,
            summed: Callable[[list[Result]], tuple[float, float, float]]) -> _Curves:
    """What was measured in one report or several; a floor under nothing is left out."""
    cells: dict[str, dict[int, list[Result]]] = {}
    for report in reports:
        for cell in report.results:
            if (cell.scenario, cell.kind, cell.status) == (scenario, kind, "ok") and cell.samples:
                cells.setdefault(cell.backend, {}).setdefault(cell.size, []).append(cell)
    return {} if list(cells) == [FLOOR] else {
        backend: {size: summed(own) for size, own in sorted(sizes.items())} for backend, sizes in cells.items()}


def _of_rounds(cells: list[Result]) -> tuple[float, float, float]:
    spread = Spread.of(cells[0].samples)
    return spread.p10, spread.median, spread.p90


def _of_runs(cells: list[Result]) -> tuple[float, float, float]:
    """Each run counts by its fastest rounds, as it is judged."""
    values = sorted(cell.fastest for cell in cells)
    return values[0], values[len(values) // 2], values[-1]


def _file_name(scenario: str) -> str:
    """A scenario's name, which may come from a report of somebody else, as a part of a file's name.

    >>> _file_name("conversion-2m"), _file_name("../../etc/x")
    ('conversion-2m', '______etc_x')
    """
    return re.sub(r"[^0-9A-Za-z_-]", "_", scenario)


def _draw(axes: Any, curves: _Curves, line: str = "-", labels: bool = True) -> None:
    """A line and a band a backend, in its colour and with its mark."""
    for number, (backend, points) in enumerate(curves.items()):
        low, middle, high = zip(*points.values(), strict=True)
        colour = _COLOURS.get(backend, f"C{number}")
        axes.fill_between(list(points), low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(list(points), middle, line, color=colour, marker=_MARKERS[number % len(_MARKERS)],
                  label=_literal(backend) if labels else None)


def _mark_ends(axes: Any, cells: Sequence[Result], size_name: str, drawn: list[str]) -> None:
    """Where a backend came to its end, if that is told in what the axis counts."""
    ends: dict[str, int] = {}
    for cell in cells:
        if cell.status == "failed" and cell.reached and size_name == "earlier conversions":
            ends[cell.backend] = min(cell.reached, ends.get(cell.backend, cell.reached))
    for line, (backend, end) in enumerate(ends.items()):
        colour = _COLOURS.get(backend, f"C{drawn.index(backend) if backend in drawn else line}")
        axes.axvline(end, color=colour, linestyle=":")
        # Above the axes, where no curve can cross it.
        axes.annotate(f"{_literal(backend)} ends at {end:,}", (end, 1), (3, 2 + 10 * line), color=colour,
                      fontsize="small", xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      ha="right", va="bottom")


def _label_axes(axes: Any, size_name: str, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set(xscale="log", yscale="log", xlabel=_literal(size_name),
             ylabel=_literal(unit.replace("ns/", "time per ")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.tick(round(value), size_name)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.quantity(value, unit)))
    if size_name in text.MEMORY_SIZES:
        axes.set_xticks(sorted({float(size) for line in axes.get_lines() for size in line.get_xdata()}))
        axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if high < 10 * low:     # noise would fill the figure, and a flat curve look steep
        low, high = axes.set_ylim(math.sqrt(low * high / 10), math.sqrt(low * high * 10))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1, )))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Any, axes: Any) -> None:
    """Below the axes, read line by line; matplotlib itself fills column by column."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), _LEGEND_LETTERS // (max(map(len, labels)) + 4)))
    order = [index for column in range(columns) for index in range(column, len(labels), columns)]
    figure.legend([handles[index] for index in order], [labels[index] for index in order], frameon=False,
                  fontsize="small", loc="outside lower center", ncols=columns)


def _literal(words: str) -> str:
    """Words of a report as matplotlib shall show them: a dollar begins no formula, a leading _ hides no label."""
    return words.replace("$", r"\$").lstrip("_") or " "


def files(report: Report, directory: Path) -> Iterator[tuple[Path, Callable[[], bytes]]]:
    """``SCENARIO-KIND.png`` and ``.svg`` for every plot: paths, and functions that draw what they shall hold."""
    for plot in plots(report):
        title = f"{report.scenarios[plot.scenario].question} ({plot.kind})"
        plot.figure.suptitle(textwrap.fill(_literal(title), _TITLE_LETTERS), fontsize="medium")
        for suffix in ("png", "svg"):
            yield directory / f"{plot.stem}.{suffix}", partial(figures.drawn, plot.figure, suffix, facecolor="white")


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


def both_sides(a: Sequence[Report], b: Sequence[Report], compared: Sequence[Row]) -> Any:
    """One figure for a comparison: a panel wherever both sides have two sizes, A in full lines, B in broken ones; below
    them the ratio of each cell with its interval.

    A point is the middle of the runs, each of which counts by its fastest rounds, as it is judged; the band goes from
    the lowest to the highest of them.
    """
    from matplotlib.figure import Figure

    panels = {(scenario, kind): [_curves(side, scenario, kind, _of_runs) for side in (a, b)]
              for scenario, kind in dict.fromkeys((result.scenario, result.kind) for result in a[0].results)}
    panels = {panel: sides for panel, sides in panels.items()
              if all(any(len(points) > 1 for points in side.values()) for side in sides)}
    judged = [row for row in compared if row.ratio is not None]
    heights = [*[_SIZE[1]] * -(-len(panels) // 2), 1 + 0.2 * len(judged)]
    figure = Figure(figsize=(2 * _SIZE[0], sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    names = {name: asked.size_name for report in a for name, asked in report.scenarios.items()}
    for index, ((scenario, kind), sides) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[index // 2, index % 2])
        axes.set_title(_literal(f"{scenario} ({kind})"), fontsize="medium")
        for side, line in zip(sides, ("-", "--"), strict=True):
            _draw(axes, side, line, labels=side is sides[0])
        _label_axes(axes, names[scenario], a[0].unit_of(scenario))
        axes.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    if panels:
        figure.suptitle("A in full lines, B in broken ones", fontsize="medium")
    _ratios(figure.add_subplot(grid[-1, :]), judged, names)
    return figure


def _ratios(axes: Any, rows: Sequence[Row], size_names: Mapping[str, str]) -> None:
    """A line a cell: its ratio and the interval, in the colour of its verdict."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = set[str]()
    low, high = 0.5, 2.0
    for place, row in enumerate(rows):
        ratio = row.ratio or 0.0
        ends = [each if each is not None else ratio for each in (row.low, row.high)]
        # What cannot be told may reach anywhere: its interval leaves the panel.
        low, high = min(low, ratio / 1.1, max(ends[0], _FAR[0])), max(high, ratio * 1.1, min(ends[1], _FAR[1]))
        verdict = _VERDICTS.get(row.verdict, ("#888888", "could not tell"))
        axes.plot(ends, [place, place], color=verdict[0], linewidth=2,
                  label="" if verdict[1] in shown else verdict[1])
        axes.plot(ratio, place, "o", color=verdict[0], markersize=4)
        shown.add(verdict[1])
    axes.set(xscale="log", xlim=(low, high), xlabel="B / A, with its interval")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{text.digits(value)}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_literal(f"{row.scenario} {text.size(row.size, size_names[row.scenario])} "
                                                f"{row.backend}") for row in rows], fontsize="x-small")
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.grid(True, axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        axes.legend(fontsize="x-small", frameon=False)
