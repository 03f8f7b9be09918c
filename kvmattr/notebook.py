"""What a notebook shows of a map: its size and its first runs."""

from __future__ import annotations

from html import escape
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmattr._core import AttributeMap

SHOWN_RUNS = 20


def map_html(attribute_map: AttributeMap) -> str:
    """Return an HTML table of a map's first runs, of which a map may have millions.

    >>> from kvmattr import AttributeMap
    >>> m = AttributeMap(1000); m[10:20] = 3
    >>> print(map_html(m)[:51])
    <table><caption>AttributeMap of 1,000 pages, 3 runs
    """
    runs = list(islice(attribute_map.iter_runs(), SHOWN_RUNS))
    rows = "".join(
        f"<tr><td>{start:#x}</td><td>{stop:#x}</td><td>{stop - start:,}</td><td>{attributes:#04x}</td></tr>"
        for start, stop, attributes in runs
    )
    more = attribute_map.run_count - len(runs)
    if more > 0:
        rows += f"<tr><td colspan=4>and {more:,} more</td></tr>"
    caption = escape(repr(attribute_map).strip("<>"))
    return (f"<table><caption>{caption}</caption><thead><tr><th>start</th><th>stop</th><th>pages</th>"
            f"<th>attributes</th></tr></thead><tbody>{rows}</tbody></table>")
