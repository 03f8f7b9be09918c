"""docs/conversion.svg: what a conversion costs on a real kernel, drawn from emulation/linux-7.2.13.json.

    python -m emulation.figure
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvmattr.measure import figures, writing

HERE = Path(__file__).resolve().parent
COUNTED = HERE / "linux-7.2.13.json"
FIGURE = HERE.parent / "docs" / "conversion.svg"
#: Colours that most colour-blind readers can tell apart.
_COLOURS = {"attributes": "#0072b2", "memslots": "#d55e00"}


def drawn(counted: dict[str, Any]) -> Any:
    """Instructions a conversion against earlier conversions, matplotlib's Figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for way, line in (("one at a time", "-"), ("batched", "--")):
        for name, colour in _COLOURS.items():
            points = [(row["earlier"], row[name]) for row in counted["rows"] if row["way"] == way]
            there = [(earlier, count) for earlier, count in points if isinstance(count, int)]
            axes.plot(*zip(*there, strict=True), line, marker="o", markersize=4, color=colour, label=f"{name}, {way}")
            if len(there) < len(points) and line == "-":
                axes.annotate("EINVAL: all memslots are in use", there[-1], (-4, 8), color=colour,
                              textcoords="offset points", ha="center", fontsize="small")
    axes.set(xscale="log", yscale="log", xlabel="pages converted before", ylabel="instructions a conversion",
             ylim=(2000, 250_000))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def main() -> None:
    """Write the figure; the same numbers give the same file."""
    figures.require(str(FIGURE))
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "kvmattr", "svg.fonttype": "none", "font.size": 9}):
        content = figures.drawn(drawn(json.loads(COUNTED.read_text())), "svg", facecolor="white",
                                metadata={"Date": None})
    writing.write(FIGURE, content)


if __name__ == "__main__":
    main()
