"""Run a VMM, record what it asks of KVM, and say what that cost by memslots and would by attributes.

`kvmattr record -- qemu-system-x86_64 -accel kvm ...` runs the command under strace, which must be installed. The
recording is an strace log that `kvmattr replay` and `kvmattr show` read. The command keeps its terminal; signals reach
it, and its exit code is this one's. Calls of KVM_RUN, which say nothing of memory, are left out of the recording.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from io import RawIOBase
from pathlib import Path

from kvmattr.measure.forwarding import forwarding
from kvmattr.trace.files import replay_file

HELP = "run a VMM and record its memslots and attributes"

#: Calls that make, change, copy and close VMs, and those by which processes share descriptors.
_CALLS = "ioctl,close,close_range,dup,dup2,dup3,fcntl,clone,clone3,fork,vfork"
_PID = re.compile(rb"[0-9]+")
_NO_COMMAND = 127


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvmattr record`."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE",
                        help="the recording (default: the command's name, the time and .strace)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what to run")


def run(arguments: argparse.Namespace) -> int:
    """Run and record; the command's exit code, 128 and the signal's number if one ended it, 2 for what is missing."""
    words: list[str] = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        return _wrong("expected -- COMMAND ...")
    if shutil.which("strace") is None:
        return _wrong("strace not found: install the package strace of your system (apt-get install strace)")
    if shutil.which(words[0]) is None:
        print(f"kvmattr record: {words[0]}: command not found", file=sys.stderr)
        return _NO_COMMAND
    output = arguments.output or Path(f"{Path(words[0]).name}-{time.strftime('%Y%m%d-%H%M%S')}.strace")
    try:
        with output.open("wb", buffering=0) as file:
            code, left_out, failed = _recorded(words, file)
    except OSError as error:
        return _wrong(f"{output}: {error.strerror}")
    if failed is not None:
        unwritten = _wrong(f"{output}: {failed.strerror}: the recording is not whole")
        return code or unwritten
    print(f"kvmattr record: {output}, without {left_out:,} calls of KVM_RUN", file=sys.stderr)
    _summarize(output)
    return code


def _recorded(words: list[str], file: RawIOBase) -> tuple[int, int, OSError | None]:
    """Run; the exit code, the calls that were left out, and what kept the recording from being written."""
    with tempfile.TemporaryDirectory(prefix="kvmattr-record-") as scratch:
        fifo = os.path.join(scratch, "strace")
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        # -D: strace is a grandchild, so that the command is ours: its exit code, its terminal, our signals.
        command = ["strace", "-D", "-f", "-q", "-y", "-ttt", "-v", "-e", f"trace={_CALLS}", "-e", "signal=none",
                   "-o", fifo, "--", *words]
        with forwarding() as started:
            process = subprocess.Popen(command)
            started.append(process)
            copying = _Copy(reading, file, process)
            copying.start()
            code = process.wait()
            copying.join()
    return (code if code >= 0 else 128 - code), copying.left_out, copying.failed


class _Copy(threading.Thread):
    """Copies strace's lines into the recording until strace has ended, without those of KVM_RUN."""

    def __init__(self, reading: int, file: RawIOBase, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._reading = reading
        self._file = file
        self._process = process
        self._running: set[bytes] = set()
        self.left_out = 0
        self.failed: OSError | None = None

    def run(self) -> None:
        """Until the last writer is gone; where nobody comes, until the command has ended."""
        rest, came, ended_at = b"", False, 0.0
        while True:
            try:
                part = os.read(self._reading, 1 << 16)
            except BlockingIOError:
                came = True
                time.sleep(0.01)
                continue
            if not part:
                # Before strace has opened its end, and after it closed it.
                if self._process.poll() is not None:
                    ended_at = ended_at or time.monotonic()
                if came or (ended_at and time.monotonic() - ended_at > 1):
                    break
                time.sleep(0.01)
                continue
            came = True
            *lines, rest = (rest + part).split(b"\n")
            self._keep(lines)
        if rest:
            self._keep([rest])
        os.close(self._reading)

    def _keep(self, lines: list[bytes]) -> None:
        kept = [line + b"\n" for line in lines if not self._is_run(line)]
        if self.failed is None:     # else strace must still be read, or the command would wait for it
            try:
                self._file.write(b"".join(kept))
            except OSError as error:
                self.failed = error

    def _is_run(self, line: bytes) -> bool:
        """Whether a line is of KVM_RUN; a call that another thread's line cut in two is told by its thread."""
        found = _PID.match(line)
        thread = found[0] if found else b""
        if b"<... ioctl resumed>" in line and thread in self._running:
            self._running.discard(thread)
            return True
        if b", KVM_RUN" not in line:
            return False
        self.left_out += 1
        if line.rstrip().endswith(b"<unfinished ...>"):
            self._running.add(thread)
        return True


def _summarize(output: Path) -> None:
    """What `kvmattr replay` says of the recording, or why it cannot."""
    from kvmattr.trace.text import summary_text
    try:
        print(summary_text(replay_file(output)), file=sys.stderr, end="")
    except (ValueError, OSError) as error:
        print(f"kvmattr record: {error}", file=sys.stderr)


def _wrong(message: str) -> int:
    print(f"kvmattr record: {message}", file=sys.stderr)
    return 2
