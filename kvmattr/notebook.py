"""What a notebook shows of a map: its size and its first runs, a picture, its runs as a DataFrame."""

from __future__ import annotations

import importlib
from html import escape
from itertools import islice
from operator import index as as_integer
from typing import TYPE_CHECKING, Any, SupportsIndex

from kvmattr.measure import extras, figures

if TYPE_CHECKING:
    from kvmattr._core import AttributeMap
    from kvmattr.profiles import Profile
    from kvmattr.vm import VM

#: So many runs of a map are in its HTML.
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


class Picture:
    """A picture that a notebook shows by itself; ``figure`` is matplotlib's, to change before it is shown."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure

    def _repr_png_(self) -> bytes:
        return figures.drawn(self.figure, "png", dpi=96)

    def save(self, path: str) -> None:
        """Write the picture as PNG, SVG or PDF, by the name's ending."""
        figures.save(self.figure, path)


def plot(
    subject: AttributeMap | VM,
    start: SupportsIndex = 0,
    stop: SupportsIndex | None = None,
    *,
    abi: str | Profile | None = None,
) -> Picture:
    """Draw the pages [start, stop) of a map or a VM: each kind of page in a panel, its share in each cell.

    The picture of ``kvmattr show --picture``. ``stop``: by default where what is set ends. ``abi``: what the bits
    mean, for a map (default ``rfc``); a VM knows. Of a VM its memslots are in the picture too. Time and memory by the
    number of runs. ImportError without matplotlib, ValueError for a range that is empty or not in the map.

    >>> from kvmattr import AttributeMap
    >>> m = AttributeMap(1 << 20); m[0x8000:0x10000] = 1
    >>> plot(m).save("/dev/null")  # doctest: +SKIP
    """
    from kvmattr import access_map, picture
    from kvmattr.profiles import profile_named
    from kvmattr.vm import VM

    if isinstance(subject, VM):
        if abi is not None:
            raise ValueError("abi: a VM has its own profile, leave it out")
        shown = access_map.Shown("VM", access_map.effective_attributes(subject), subject.profile, subject.memslots)
    else:
        shown = access_map.Shown("AttributeMap", subject, profile_named("rfc" if abi is None else abi), None)
    npages, start = len(shown.attributes), as_integer(start)
    end = picture.rounded(access_map.end_of(shown), npages) if stop is None else as_integer(stop)
    if not 0 <= start < end <= npages:
        raise ValueError(f"pages [{start}, {end}): a picture needs 0 <= start < stop <= {npages}")
    return Picture(picture.figure_of(shown, start, end))


def runs_frame(attribute_map: AttributeMap, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> Any:
    """Return the runs of [start, stop) as a pandas DataFrame: start, stop, pages and attributes of each.

    Gfns and pages are uint64, attributes uint8. Time and memory by the number of runs. ImportError without pandas.

    >>> from kvmattr import AttributeMap
    >>> m = AttributeMap(100); m[10:20] = 3
    >>> runs_frame(m).pages.tolist()  # doctest: +SKIP
    [10, 10, 80]
    """
    extras.require("pandas", what="a DataFrame of runs")
    pandas: Any = importlib.import_module("pandas")     # nobody needs its stubs to check ours
    runs = attribute_map.runs(start, stop)
    return pandas.DataFrame({"start": runs["start"], "stop": runs["stop"], "pages": runs["stop"] - runs["start"],
                             "attributes": runs["attributes"]})
