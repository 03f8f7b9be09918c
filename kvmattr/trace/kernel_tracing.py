"""The kernel's own event of a conversion, recorded through tracefs for a command and its children.

An instance of one's own under /sys/kernel/tracing/instances keeps this apart from what else is traced, and goes at the
end. It needs the right to write there, which root has, and a kernel that has the event (Linux 6.17, with attributes).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/kernel/tracing")
EVENT: Final = "kvm/kvm_vm_set_mem_attributes"
#: The clock that events are told by; strace -ttt has the other.
_CLOCK: Final = "mono"
_TIME = re.compile(rb"\s([0-9]{1,11})\.([0-9]{6}): ")


def missing(root: Path = ROOT, event: str = EVENT) -> str | None:
    """Why the kernel's event cannot be recorded here, in words, or None.

    >>> missing(Path("/nowhere"))
    '/nowhere is not there: mount -t tracefs nodev /nowhere (as root)'
    """
    instances = root / "instances"
    try:
        if not instances.is_dir():
            return f"{root} is not there: mount -t tracefs nodev {root} (as root)"
    except PermissionError:
        return f"no right to look into {root}: root has it"
    if not os.access(instances, os.W_OK | os.X_OK):
        return f"no right to write into {instances}: root has it"
    if not (root / "events" / event).is_dir():
        return f"this kernel has no event {event.replace('/', ':')} (Linux 6.17 and later, with attributes)"
    return None


def _wall_beyond_monotonic() -> int:
    """How far the wall clock is ahead of the kernel's, in nanoseconds: of several looks at both, by the shortest. This
    process may have to wait for the processor between two looks."""
    looks = []
    for _ in range(10):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after - before, wall - before))
    return min(looks)[1]


class Events:
    """Records from ``start`` to ``stop`` what this process's children do; ``keep`` gets each line with its time.

    Times are those of the wall clock, in nanoseconds; a line's own time is written anew in them. Raises OSError where
    `missing` has not found what is missing.
    """

    def __init__(self, keep: Callable[[int, bytes], None], root: Path = ROOT, event: str = EVENT) -> None:
        self._keep = keep
        self._event = event
        self._place = root / "instances" / f"kvmattr-{os.getpid()}"
        self._offset = _wall_beyond_monotonic()
        self._reading: int | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0

    def start(self) -> None:
        """Make the instance and begin; children made from now on are recorded."""
        self._place.mkdir()
        try:
            self._write("trace_clock", _CLOCK)
            self._write("options/event-fork", "1")
            self._write("set_event_pid", str(os.getpid()))
            self._write(f"events/{self._event}/enable", "1")
            self._reading = os.open(self._place / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._remove()
            raise
        self._thread.start()

    def stop(self) -> None:
        """Keep what is left, and take the instance away."""
        with contextlib.suppress(OSError):
            self._write(f"events/{self._event}/enable", "0")
        self._stopping.set()
        self._thread.join()
        if self._reading is not None:
            os.close(self._reading)
        self._remove()

    def _run(self) -> None:
        rest = b""
        while True:
            last = self._stopping.is_set()
            part = self._read()
            while part:
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    self._take(line)
                part = self._read()
            if last:
                return
            self._stopping.wait(0.02)

    def _read(self) -> bytes:
        assert self._reading is not None
        try:
            return os.read(self._reading, 1 << 16)
        except BlockingIOError:
            return b""

    def _take(self, line: bytes) -> None:
        found = _TIME.search(line)
        if found is None:
            # What the kernel says of lost events has no time of its own.
            self._keep(0, line)
            return
        self.count += 1
        nanoseconds = int(found[1]) * 10**9 + int(found[2]) * 1000 + self._offset
        seconds = b" %d.%06d: " % (nanoseconds // 10**9, nanoseconds % 10**9 // 1000)
        self._keep(nanoseconds, line[:found.start()] + seconds + line[found.end():])

    def _write(self, name: str, words: str) -> None:
        (self._place / name).write_text(words)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._place.rmdir()
