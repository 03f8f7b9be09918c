"""What is shown while something long runs: rich's bar on a terminal, where installed, else one line a step."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO, cast

from kvmattr.measure import writing


def overwritten(text: str = "", *, last: bool = False) -> None:
    """On a terminal, a line on standard error that the next call overwrites (nothing clears it); elsewhere nothing.

    ``last``: it stays, and elsewhere it is written too.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _losing() -> Iterator[None]:
    """A full disk costs the words, not the command; that a reader has gone is for the command to know."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


@contextmanager
def forgiving_stderr() -> Iterator[None]:
    """Within it standard error takes everything: what it cannot write is lost, and where it is closed, all of it."""
    before = sys.stderr
    if before is None:
        # On its own number: else the next file that is opened has it, and gets what C code complains of.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != 2:
            os.dup2(nowhere, 2)
            os.close(nowhere)
        sys.stderr = os.fdopen(2, "w", closefd=False)
    else:
        sys.stderr = cast(TextIO, writing.Guarded(before, _losing))
    try:
        yield
    finally:
        sys.stderr = before


class Advance(Protocol):
    """Called once a step, with what is about to run."""

    def __call__(self, label: str) -> None:
        """Say what is about to run."""


@contextmanager
def progress(expected: Sequence[float]) -> Iterator[Advance]:
    """A context whose value is called at the start of each step; ``expected``: seconds of each, as forecast.

    What is left is told by the forecast, corrected by what the steps so far took.
    """
    if sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        yield from _bar(expected)
    else:
        yield from _lines(expected)


def duration(seconds: float) -> str:
    """Minutes and seconds, hours where there are.

    >>> duration(75), duration(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def left(expected: Sequence[float], done: int, elapsed: float) -> float | None:
    """Seconds that the steps from ``done`` on will take, if they keep the pace of those before; None at first.

    >>> left([1, 1, 2], 2, 4.0)
    4.0
    """
    past = sum(expected[:done])
    return sum(expected[done:]) * elapsed / past if past > 0 else None


def _bar(expected: Sequence[float]) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    started, total = time.monotonic(), len(expected)
    with Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn(),
                  TextColumn("{task.fields[left]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=max(sum(expected), 1e-9), done=f"0/{total}", left="")
        seen = 0

        def advance(label: str) -> None:
            nonlocal seen
            bar.update(task, description=f"{label:<30}", completed=sum(expected[:seen]), done=f"{seen}/{total}",
                       left=_left(expected, seen, started))
            seen += 1
        yield advance


def _lines(expected: Sequence[float]) -> Iterator[Advance]:
    seen, started = 0, time.monotonic()

    def advance(label: str) -> None:
        nonlocal seen
        more = _left(expected, seen, started)
        seen += 1
        print(f"[{seen}/{len(expected)}] {duration(time.monotonic() - started)} {label}{more and f' ({more})'}",
              file=sys.stderr, flush=True)
    yield advance


def _left(expected: Sequence[float], done: int, started: float) -> str:
    seconds = left(expected, done, time.monotonic() - started)
    return "" if seconds is None else f"{duration(seconds)} left"
