"""Long commands that say that they live: a build of minutes in silence looks like one that hangs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvmattr.gate.verdict import CannotTell
from kvmattr.measure import status

#: Seconds between two signs of life: on a terminal the line is overwritten, in a log each one is a line.
_TERMINAL, _LOG = 1.0, 20.0

#: So much of what a command said is told where it failed.
_LAST_LINES = 15


def run(command: Sequence[str], words: str, *, cwd: Path | None = None,
        environment: Mapping[str, str] | None = None, failed: Callable[[int], str]) -> None:
    """Run a command, with its progress on stderr under these words. CannotTell with what ``failed`` makes of its exit
    code and with the last lines that it said; OSError if there is no such command."""
    interval = _TERMINAL if sys.stderr.isatty() else _LOG
    started = time.monotonic()
    # In a log each sign of life is a line: what is said first tells that it began.
    status.overwritten(words, last=interval == _LOG)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=subprocess.STDOUT)
        code = None
        try:
            while code is None:
                try:
                    code = process.wait(interval)
                except subprocess.TimeoutExpired:
                    status.overwritten(f"{words}: {time.monotonic() - started:.0f} s", last=interval == _LOG)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    status.overwritten(f"{words}: {f'failed ({code})' if code else 'done'} after {time.monotonic() - started:.0f} s",
                       last=True)
    if code:
        raise CannotTell("\n".join([failed(code), *last]))
