#!/usr/bin/env python3
"""Draw docs/costs.svg from a results file of table.py: how costs grow, and every ratio beside its target.

python bench/plot.py bench/results/NAME.json [--out docs/costs.svg]
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

from kvmattr.measure import figures, writing  # noqa: E402
from kvmattr.measure.machine import in_words  # noqa: E402

STORE, NUMPY, TARGET = "#0b6e99", "#b0622b", "#444444"


def draw_curve(axes: Any, curve: dict[str, Any]) -> None:
    axes.loglog(curve["sizes"], curve["numpy_ns"], "s-", color=NUMPY, markersize=3, label="numpy")
    axes.loglog(curve["sizes"], curve["store_ns"], "o-", color=STORE, markersize=3, label="kvmattr")
    axes.set(title=textwrap.fill(curve["name"], 36), xlabel=curve["size"])
    axes.set_yticks([1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8],
                    ["100 ns", "1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms"])
    times = [*curve["store_ns"], *curve["numpy_ns"]]
    axes.set_ylim(min(times) / 2, max(times) * 2)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.legend(frameon=False)


def draw_ratios(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = rows[::-1]
    for y, row in enumerate(rows):
        ratio = row["ratio"]
        axes.plot([ratio["p10"], ratio["p90"]], [y, y], color=STORE, linewidth=1)
        axes.plot(ratio["median"], y, "o", color=STORE, markersize=4,
                  label="kvmattr / numpy, p10 .. p90" if y == 0 else None)
        if row["target"] is not None:
            axes.plot(row["target"], y, "|", color=TARGET, markersize=10,
                      label="at most" if y == len(rows) - 1 else None)
    axes.set_xscale("log")
    axes.axvline(1, color=NUMPY, linewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel("time of the store over time of numpy's fastest form")
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.legend(frameon=False, loc="lower left")


def drawn(table: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 13), layout="constrained")
    grid = figure.add_gridspec(4, 2)
    for index, curve in enumerate(table["curves"]):
        draw_curve(figure.add_subplot(grid[index // 2, index % 2]), curve)
    draw_ratios(figure.add_subplot(grid[2:, :]), [row for row in table["rows"] if row["kind"] == "ratio"])
    figure.suptitle(f"{in_words(table['machine'])}; kernels {table['machine']['kernels']}", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "costs.svg")
    arguments = parser.parse_args()
    try:
        figures.require(str(arguments.out))
    except ImportError as error:
        raise SystemExit(f"plot.py: {error}") from None
    import matplotlib

    # The same figures give the same file: no date, no random ids.
    with matplotlib.rc_context({"svg.hashsalt": "kvmattr", "svg.fonttype": "none", "font.size": 9,
                                "axes.spines.top": False, "axes.spines.right": False}):
        writing.write(arguments.out, figures.drawn(drawn(json.loads(arguments.results.read_text())), "svg",
                                                   metadata={"Date": None}))


if __name__ == "__main__":
    main()
