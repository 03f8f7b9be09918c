"""What is shown while the study runs: rich's bar on a terminal, where installed, else one line a unit."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called once a step, with what is about to run."""

    def __call__(self, label: str) -> None:
        """Say what is about to run."""


@contextmanager
def progress(total: int) -> Iterator[Advance]:
    """A context whose value is called at the start of each of ``total`` steps."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        yield from _bar(total)
    else:
        yield from _lines(total)


def _bar(total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(),
                  TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=total)
        seen = 0

        def advance(label: str) -> None:
            nonlocal seen
            bar.update(task, description=label, completed=seen)
            seen += 1
        yield advance


def _lines(total: int) -> Iterator[Advance]:
    seen, started = 0, time.monotonic()

    def advance(label: str) -> None:
        nonlocal seen
        seen += 1
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        print(f"[{seen}/{total}] {minutes}:{seconds:02} {label}", file=sys.stderr, flush=True)
    yield advance
