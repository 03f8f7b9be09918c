"""A run of pages, as the store's ``run`` returns it."""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    """A maximal range of pages [start, stop), in gfns, with one attribute byte.

    >>> run = Run(256, 512, 5)
    >>> run.stop - run.start, run == (256, 512, 5)
    (256, True)
    """

    start: int
    stop: int
    attributes: int
