"""A moment of a recording: up to a line, or up to a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kvmattr.trace.operations import NO_TIME, Block
from kvmattr.trace.times import parse_time
from kvmattr.trace.trace import Trace


class Until(NamedTuple):
    """The operations up to a line, or up to a time on the recording's clock, both included."""

    line: int | None = None
    time: int | None = None

    def cut(self, block: Block) -> Block:
        """What of a block is not later."""
        if self.line is not None:
            return block[block["line"] <= self.line]
        later = np.flatnonzero((block["time"] != NO_TIME) & (block["time"] > self.time))
        return block[:later[0]] if len(later) else block


def until(trace: Trace, words: str) -> Until:
    """What `--at` says: a number of a line, or a time as the trace writes it.

    ValueError for what is neither, for a line that the trace does not have, and for a time on another clock.

    >>> with Trace("made") as trace:
    ...     trace.lines = 9
    ...     until(trace, "7")
    Until(line=7, time=None)
    """
    if words.isascii() and words.isdecimal():
        if len(words) > 18 or not 1 <= int(words) <= trace.lines:
            raise ValueError(f"at {words}: must be a line of the {trace.lines} of {trace.name}, or a time")
        return Until(line=int(words))
    found = parse_time(words)
    if found is None:
        raise ValueError(f"at {words!r}: expected a line, or a time such as 10:00:00.5, 1234.5 or 2025-01-01T10:00:00")
    if trace.clock is None:
        raise ValueError(f"at {words}: no line of {trace.name} has a time: give a line")
    if found[0] != trace.clock:
        have = {"day": "times of day", "seconds": "seconds or dates"}[trace.clock]
        raise ValueError(f"at {words}: the lines of {trace.name} have {have}")
    return Until(time=found[1])
