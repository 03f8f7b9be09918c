"""Run a VMM, record what it asks of KVM, and say what that cost by memslots and would by attributes.

`kvmattr record -- qemu-system-x86_64 -accel kvm ...` runs the command under strace or, where that is not installed,
with the library of `kvmattr shadow` preloaded (`--by`). The recording is an strace log that `kvmattr replay` and
`kvmattr show` read. The command keeps its terminal; signals reach it, and its exit code is this one's. Calls of
KVM_RUN, which say nothing of memory, are left out of the recording. strace does not read the structure of
KVM_SET_MEMORY_ATTRIBUTES, and the library does: under strace, where the kernel has an event for that and lets us record
it, the events stand in the recording, by their time, in place of those calls.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left, insort
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

from kvmattr.measure.forwarding import forwarding
from kvmattr.measure.writing import CannotWrite
from kvmattr.trace import kernel_tracing, record_preloaded
from kvmattr.trace.files import replay_file

HELP = "run a VMM and record its memslots and attributes"

#: Calls that make, change, copy and close VMs, and those by which processes share descriptors.
_CALLS = "ioctl,close,close_range,dup,dup2,dup3,fcntl,clone,clone3,fork,vfork,fallocate"
_PID = re.compile(rb"[0-9]+")
_STAMP = re.compile(rb"[0-9]+ +([0-9]{9,11})\.([0-9]{6}) ")
#: As strace spells the request, by what it knows of it.
_CONVERSION = re.compile(rb", (?:KVM_SET_MEMORY_ATTRIBUTES\b|_IOC\(_IOC_WRITE, 0xae, 0xd2, 0x20\)|0x4020aed2\b)")
_NO_COMMAND = 127
_NO_STRACE = "strace not found: install the package strace of your system (apt-get install strace)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvmattr record`."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE",
                        help="the recording (default: the command's name, the time and .strace)")
    parser.add_argument("--by", choices=("strace", "library"), help="what catches the calls: strace sees every program;"
                        " our preloaded library reads each structure, needs no strace, costs microseconds a call, and"
                        " sees what is called through the C library (default: strace if it is installed)")
    parser.add_argument("--events", action=argparse.BooleanOptionalAction, help="record the kernel's event of a"
                        " conversion, too (default: where the kernel has it and permits it)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what to run")


def run(arguments: argparse.Namespace) -> int:
    """Run and record; the command's exit code, 128 and the signal's number if one ended it, 2 for what is missing."""
    words: list[str] = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        return _wrong("expected -- COMMAND ...")
    strace = shutil.which("strace") is not None
    if arguments.by == "strace" and not strace:
        return _wrong(_NO_STRACE)
    if shutil.which(words[0]) is None:
        print(f"kvmattr record: {words[0]}: command not found", file=sys.stderr)
        return _NO_COMMAND
    if arguments.by == "library" or not strace:
        return _by_library(arguments, words)
    absent = kernel_tracing.missing() if arguments.events in (None, True) else "--no-events"
    if arguments.events and absent is not None:
        return _wrong(f"--events: {absent}")
    try:
        output = _output(arguments, words)
        file = output.open("wb", buffering=0)
    except OSError as error:
        return _wrong(str(CannotWrite.because(error.filename, error)))
    try:
        with file:
            code, copied = _recorded(words, file, events=absent is None)
    except OSError as error:
        return _wrong(f"{error.filename or words[0]}: {error.strerror}")
    if copied.failed is not None:
        unwritten = _wrong(f"{CannotWrite.because(output, copied.failed)}: the recording is not whole")
        return code or unwritten
    left_out = f", {copied.left_out:,} calls of KVM_RUN left out" if copied.left_out else ""
    print(f"kvmattr record: {output} written{left_out}", file=sys.stderr)
    if copied.events:
        print(f"kvmattr record: conversions are the kernel's events, {copied.events:,}, in place of"
              f" {copied.conversions:,} calls", file=sys.stderr)
    elif copied.conversions and absent is not None:
        print(f"kvmattr record: {copied.conversions:,} calls of KVM_SET_MEMORY_ATTRIBUTES are not read by strace, and"
              f" the kernel's events were not recorded: {absent}", file=sys.stderr)
    _summarize(output)
    return code


def _by_library(arguments: argparse.Namespace, words: list[str]) -> int:
    why = record_preloaded.cannot(words[0])
    if why is not None:
        return _wrong(why if arguments.by else f"{_NO_STRACE}; the preloaded library cannot stand in: {why}")
    if arguments.events:
        return _wrong("--events: the kernel's events come beside strace's lines alone; the library reads the calls")
    try:
        output = _output(arguments, words)
    except OSError as error:
        return _wrong(str(CannotWrite.because(error.filename, error)))
    try:
        code, told, failed = record_preloaded.recorded(words, output)
    except CannotWrite as error:
        return _wrong(str(error))
    except OSError as error:
        return _wrong(f"{words[0]}: {error.strerror}")
    if failed is not None:
        unwritten = _wrong(f"{failed}: the recording is not whole")
        return code or unwritten
    for line in told:
        print(f"kvmattr record: {line}", file=sys.stderr)
    _summarize(output)
    return code


def _output(arguments: argparse.Namespace, words: list[str]) -> Path:
    """Where to: what was asked for, or a file of a name of our own, made here. What has that name, a recording of the
    same second or a link that somebody put there, stays."""
    if arguments.output:
        return Path(arguments.output)
    name = f"{Path(words[0]).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        output = Path(f"{name}-{number}.strace" if number > 1 else f"{name}.strace")
        with contextlib.suppress(FileExistsError):
            output.touch(exist_ok=False)
            break
    return output


def _recorded(words: list[str], file: RawIOBase, *, events: bool) -> tuple[int, _Copy]:
    """Run; the exit code, and what was copied."""
    with tempfile.TemporaryDirectory(prefix="kvmattr-record-") as scratch:
        fifo = os.path.join(scratch, "strace")
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        # -D: strace is a grandchild, so that the command is ours: its exit code, its terminal, our signals.
        command = ["strace", "-D", "-f", "-q", "-y", "-ttt", "-v", "-e", f"trace={_CALLS}", "-e", "signal=none",
                   "-o", fifo, "--", *words]
        copying = _Copy(reading, file, events=events)
        with forwarding() as started, copying.recording_events():
            process = subprocess.Popen(command)
            started.append(process)
            copying.follow(process)
            code = process.wait()
            copying.join()
        copying.finish()
    return (code if code >= 0 else 128 - code), copying


class _Copy(threading.Thread):
    """Copies strace's lines into the recording until strace has ended, without those of KVM_RUN.

    With ``events`` the kernel's lines come between them by their time: lines wait for a second before they are
    written, since the two do not come in order.
    """

    def __init__(self, reading: int, file: RawIOBase, *, events: bool) -> None:
        super().__init__(daemon=True)
        self._reading = reading
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None
        self._running: set[bytes] = set()
        self._converting: set[bytes] = set()
        self._events = kernel_tracing.Events(self._keep_event) if events else None
        self._lock = threading.Lock()
        #: (time, number, line), the earliest first.
        self._waiting: list[tuple[int, int, bytes]] = []
        self._number = self._latest = 0
        self.left_out = 0
        #: Calls of KVM_SET_MEMORY_ATTRIBUTES, and the kernel's events.
        self.conversions = self.events = 0
        self.failed: OSError | None = None

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Begin, with the command that strace runs."""
        self._process = process
        self.start()

    @contextlib.contextmanager
    def recording_events(self) -> Iterator[None]:
        """Within it the kernel's events are recorded, if they are."""
        if self._events is None:
            yield
            return
        self._events.start()
        try:
            yield
        finally:
            self._events.stop()
            self.events = self._events.count

    def finish(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write(len(self._waiting))

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
                assert self._process is not None
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
        kept = [line for line in lines if not self._is_run(line) and not self._is_conversion(line)]
        with self._lock:
            for line in kept:
                found = _STAMP.match(line)
                self._add(int(found[1]) * 10**9 + int(found[2]) * 1000 if found else 0, line)
            self._write(len(self._waiting) if self._events is None else self._settled())

    def _keep_event(self, time_ns: int, line: bytes) -> None:
        with self._lock:
            self._add(time_ns, line)

    def _add(self, time_ns: int, line: bytes) -> None:
        """Put a line in its place; one without a time stays behind the one before."""
        self._latest = time_ns or self._latest
        self._number += 1
        insort(self._waiting, (self._latest, self._number, line))

    def _settled(self) -> int:
        """How many lines are so old that none comes before them any more."""
        return bisect_left(self._waiting, (time.time_ns() - 10**9,))

    def _write(self, count: int) -> None:
        ready = self._waiting[:count]
        del self._waiting[:count]
        if self.failed is None:     # else strace must still be read, or the command would wait for it
            try:
                self._file.write(b"".join(line + b"\n" for _, _, line in ready))
            except OSError as error:
                self.failed = error

    def _is_conversion(self, line: bytes) -> bool:
        """Whether a line is of a call that the kernel's event stands for, which must have gone well."""
        found = _PID.match(line)
        thread = found[0] if found else b""
        if b"<... ioctl resumed>" in line and thread in self._converting:
            self._converting.discard(thread)
            return True
        if _CONVERSION.search(line) is None:
            return False
        self.conversions += 1
        if self._events is None or (b") = " in line and b") = 0" not in line):
            return False
        if line.rstrip().endswith(b"<unfinished ...>"):
            self._converting.add(thread)
        return True

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
