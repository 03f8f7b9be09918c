"""Tables of text that fit the terminal: one line a row where it is wide enough, else wrapped, else in parts."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence

#: Between two columns.
_GAP = "  "
#: A cell is not wrapped into lines shorter than this.
_NARROWEST = 12


def width() -> int:
    """Columns of the terminal, or of ``COLUMNS``; 80 where output goes elsewhere."""
    return shutil.get_terminal_size((80, 24)).columns


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None = None,
           left: Collection[int] = ()) -> str:
    """Columns set to the right (those of ``left``, by number, to the left) under a ruled header, in ``columns`` letters
    (None: what the terminal has).

    Cells that are too wide are wrapped; where that is not enough, the columns after the first go into parts
    below one another, each of which begins with the first column again.

    >>> print(fitted(["k", "store"], [["1", "20 ns"], ["100", "21 ns"]], 80))
      k  store
    ---  -----
      1  20 ns
    100  21 ns
    """
    columns = columns or width()
    parts = _parts(header, rows, columns)
    return "\n\n".join(_aligned([[row[index] for index in part] for row in [header, *rows]], columns,
                                [index in left for index in part]) for part in parts)


def _parts(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int) -> list[list[int]]:
    """Which columns stand beside one another: all, if their narrowest forms fit."""
    narrow = [max(_narrowest(row[index]) for row in [header, *rows]) for index in range(len(header))]
    parts = [[0]]
    used = narrow[0]
    for index in range(1, len(header)):
        if used + len(_GAP) + narrow[index] > columns and len(parts[-1]) > 1:
            parts.append([0])
            used = narrow[0]
        parts[-1].append(index)
        used += len(_GAP) + narrow[index]
    return parts


def _narrowest(cell: str) -> int:
    """As wide as its longest word, or as a short line of words."""
    return max((len(word) for word in cell.split()), default=0) if len(cell) <= _NARROWEST else max(
        _NARROWEST, *(len(word) for word in cell.split()))


def _aligned(rows: list[list[str]], columns: int, left: list[bool]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    least = [max(map(_narrowest, column)) for column in zip(*rows, strict=True)]
    room = columns - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room:       # the widest gives way first
        shrinkable = [index for index in range(len(widths)) if widths[index] > least[index]]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda index: widths[index])] -= 1
    lines = []
    for number, row in enumerate(rows):
        wrapped = [textwrap.wrap(cell, max(size, 1), break_long_words=False, break_on_hyphens=False) or [""]
                   for cell, size in zip(row, widths, strict=True)]
        for line in range(max(map(len, wrapped))):
            words = [cell[line] if line < len(cell) else "" for cell in wrapped]
            lines.append(_GAP.join(word.ljust(size) if to_left else word.rjust(size)
                                   for word, size, to_left in zip(words, widths, left, strict=True)).rstrip())
        if number == 0:
            lines.append(_GAP.join("-" * size for size in widths))
    return "\n".join(lines)
