"""Figures of matplotlib as files: the format that a name asks for, and the bytes."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from kvmattr.measure import extras, writing

#: Formats that a file's name may ask for.
FORMATS = ("png", "svg", "pdf")


def require(what: str = "a picture") -> None:
    """Raise ImportError, which says what to install for it, without matplotlib."""
    extras.require("matplotlib", what=what)


def format_of(place: writing.Place, option: str = "") -> str:
    """The format that a name ends in, png where it has no ending. ValueError for another; ``option`` is what took it.

    >>> format_of("costs.SVG"), format_of("/dev/stdout")
    ('svg', 'png')
    """
    name = Path(place).suffix.removeprefix(".").lower() or "png"
    if name not in FORMATS:
        raise ValueError(f"{option}{option and ' '}{os.fspath(place)}: a picture's name ends in .png, .svg or .pdf")
    return name


def drawn(figure: Any, file_format: str, dpi: int = 160, **words: Any) -> bytes:
    """The file's content."""
    content = BytesIO()
    figure.savefig(content, format=file_format, dpi=dpi, **words)
    return content.getvalue()


def save(figure: Any, place: writing.Place) -> None:
    """Write a figure in the format that the name ends in. ValueError, CannotWrite."""
    writing.write(place, drawn(figure, format_of(place), dpi=120))
