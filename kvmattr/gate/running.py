"""Long commands that say that they live: a build of minutes in silence looks like one that hangs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Seconds between two signs of life: on a terminal the line is overwritten, in a log each one is a line.
_TERMINAL, _LOG = 1.0, 20.0


def run(command: Sequence[str], words: str, *, cwd: Path | None = None,
        environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command, with its progress on stderr under these words: its exit code, and all that it said."""
    terminal = sys.stderr.isatty()
    started, interval = time.monotonic(), _TERMINAL if terminal else _LOG
    print(words, file=sys.stderr, end="" if terminal else "\n", flush=True)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    code = process.wait(interval)
                    break
                except subprocess.TimeoutExpired:
                    text = f"{words}: {time.monotonic() - started:.0f} s"
                    print(f"\r\033[K{text}" if terminal else text, file=sys.stderr, end="" if terminal else "\n",
                          flush=True)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said.seek(0)
        output = said.read().decode(errors="replace")
    text = f"{words}: {'done' if code == 0 else f'failed ({code})'} after {time.monotonic() - started:.0f} s"
    print(f"\r\033[K{text}" if terminal else text, file=sys.stderr, flush=True)
    return code, output
