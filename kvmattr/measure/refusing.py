"""How a command refuses what it was asked: one line that says why, told by the command line, and the exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvmattr.measure.text import reason


class Refused(Exception):
    """Something is wrong with what was asked: ``str()`` says what, in one line."""


@contextmanager
def refusing() -> Iterator[None]:
    """Within it what cannot be read, is not what it must be or is not installed is :class:`Refused`."""
    try:
        yield
    except BrokenPipeError:     # of standard output: that its reader has gone is no fault of what was asked
        raise
    except (OSError, ValueError, ImportError) as error:
        raise Refused(reason(error)) from error
