"""A machine without noise, for what the gate times: a line of Python takes a microsecond there, and all else nothing.

What a test times beside other work may be in doubt, as the gate then says. With this clock, equal code takes equal time
to the last digit, on every machine and under any load, and all else is the gate's own: its commits, builds, workers,
rounds and verdicts.
"""

from __future__ import annotations

import os
from pathlib import Path

#: A Python loads this before anything else. The frames that are there when the clock is first read count nothing: what
#: a worker times begins in frames of its own.
_LOADED_FIRST = """
import sys, time

lines = 0

def line(frame, event, argument):
    global lines
    lines += event == "line"
    return line

def process_time():
    sys.settrace(line)
    return lines / 1e6

if any(word.endswith("/worker.py") for word in sys.orig_argv):
    time.process_time = process_time
"""


def quiet_path(directory: Path, *more: str | Path) -> str:
    """A PYTHONPATH with which the gate's workers run on such a machine; it is made in ``directory``."""
    (directory / "quiet").mkdir(exist_ok=True)
    (directory / "quiet" / "sitecustomize.py").write_text(_LOADED_FIRST)
    return os.pathsep.join(map(str, (directory / "quiet", *more)))
