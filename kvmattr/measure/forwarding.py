"""Signals that are meant for a command which we run for somebody."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from types import FrameType

#: Ctrl-C comes to the command from its terminal; these are sent to one process.
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


@contextlib.contextmanager
def forwarding() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within it signals that are sent to us go to the process that is put into the list."""
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    names = [*_FORWARDED, *(() if _has_terminal() else ("SIGINT", "SIGQUIT"))]
    before = {getattr(signal, name): signal.signal(getattr(signal, name), forward) for name in names}
    if _has_terminal():
        # The terminal sends Ctrl-C to the command as well; a handler, because an ignored signal would be inherited.
        before |= {number: signal.signal(number, lambda number, frame: None)
                   for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    """Whether we are in the foreground of a terminal."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
