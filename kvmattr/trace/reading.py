"""Reading traces: any of the formats, plain or compressed, from a file or standard input, in bounded memory.

A trace is read to its end before anything of it is used, so that a damaged last line costs nobody a
half-applied trace. What was read is kept as rows of 72 bytes, in memory up to 64 MB and in a temporary file
beyond.

The first line that is ours settles whether the file is a native trace, in which a damaged line is an error,
or a log of somebody else, in which a line that names one of our calls is read, or told as not read.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvmattr.trace import _native, kernel_event, layers, native, plain, qemu, strace
from kvmattr.trace.calls import Call, Incomplete
from kvmattr.trace.descriptors import Descriptors
from kvmattr.trace.opening import LOOKED_AT, Damaged, pieces
from kvmattr.trace.operations import BLOCK_ROWS, NO_TIME, ROW, Machine, row_of
from kvmattr.trace.owners import Owners
from kvmattr.trace.session import Guest
from kvmattr.trace.sources import Source, source_of
from kvmattr.trace.times import Clock
from kvmattr.trace.trace import KEPT, Trace, TraceError

#: A text longer than this is no call of ours, whatever it names.
_LONGEST = 1 << 14
#: What looking at a line costs beside its bytes, in bytes.
_LINE_BYTES = 12
#: A call may be cut into so many lines, as mail programs do.
_MOST_LINES = 8
#: Comments with one of our names that are kept until it is known whether the file is a log.
_MOST_COMMENTS = 10_000

#: Threads of a VM that are listed.
_LISTED = 8

# What a line must hold for Python to look at it.
_NAMES = (b"kvm_set_user_memory", b"kvm_convert_memory", b"kvm_vm_set_mem_attributes")
_REQUESTS = (
    b"KVM_SET_USER_MEMORY_REGION", b"KVM_SET_MEMORY_ATTRIBUTES", b"KVM_CREATE_VM", b"KVM_CREATE_GUEST_MEMFD",
    b"4020ae46", b"40a0ae49", b"4020aed2", b"c080aed2", b"c040aed4", b"0xae01", b"0xae, 0x",
    b"4020AE46", b"40A0AE49", b"4020AED2", b"C080AED2", b"C040AED4", b"0xAE01")
_OTHER_CALLS = (b" resumed>", b"close(", b"dup(", b"dup2(", b"dup3(", b"F_DUPFD", b"close_range(", b"clone(",
                b"clone3(", b"fork(", b"FALLOC_FL_PUNCH_HOLE", b"kvm_userspace_memory_region")
_SIGNS = (b"EVENTS", b"events!", b"PERF_RECORD_LOST", b"Lost ", b"lost ", b"Dropped_Event", b"messages from",
          b"kernel messages", b"rate-limiting", b"message repeated", b"printk messages", b"discarded ",
          b"entries-in-buffer", b"overrun: ", b"failed to set memory (", b"Convert non guest_memfd",
          b"starting up libvirt", b"qemu-system-", b'"MESSAGE":[', b'"MESSAGE": [', b'"MESSAGE" : [')
#: The beginnings of our names in UTF-16, which PowerShell appends to files of other text; head and tail name files.
_ODD = (b"k\0v\0m\0_\0", b"K\0V\0M\0_\0", b"==> ")
_native.look_for((*_ODD, *_NAMES, *_REQUESTS, *_OTHER_CALLS, *_SIGNS))

_EVENT = re.compile(r"(kvm_set_user_memory|kvm_convert_memory|kvm_vm_set_mem_attributes)(?![A-Za-z0-9_])")
_OURS = re.compile(r"kvm_set_user_memory|kvm_convert_memory|kvm_vm_set_mem_attributes|kvm_userspace_memory_region"
                   r"|KVM_SET_USER_MEMORY_REGION|KVM_SET_MEMORY_ATTRIBUTES")
#: The beginning of one of our structures.
_STRUCTURE = re.compile(r"\{\s?(?:slot|address|offset)\s?[=:][^{}]{0,400}?(?:guest_phys_addr|attributes)\s?[=:]")
#: A request by its number, as ltrace, sysdig and others print it.
_NUMBERED = re.compile(r"(?:ioctl|request|cmd)\W.{0,80}?(?<![0-9a-f])(?:0x)?(?:4020ae46|40a0ae49|4020aed2|c080aed2)"
                       r"(?![0-9a-f])", re.IGNORECASE)
#: A call of another kind whose argument, a string, holds what looks like one of ours.
_ECHO = re.compile(r"(?<![A-Za-z0-9_])(?:p?writev?(?:64|2)?|p?readv?(?:64|2)?|send(?:to|msg|mmsg)|recv(?:from|msg|mmsg)"
                   r"|execve|execveat)\(")
#: What tells of lost lines, with their number where it is known.
_LOST = re.compile(r"\[LOST (?:([0-9]{1,18}) )?EVENTS\]|\[(?:([0-9]{1,18}) )?EVENTS DROPPED\]"
                   r"|LOST ([0-9]{1,18}) events!|PERF_RECORD_LOST(?:_SAMPLES)?\s+lost ([0-9]{1,18})"
                   r"|Lost ([0-9]{1,18}) (?:events|samples)"
                   r"|lost ([0-9]{1,18}) (?:chunks|samples)|Dropped_Event .{0,80}num_events_dropped=(0x[0-9a-f]{1,16})"
                   r"|Suppressed ([0-9]{1,18}) messages from|Missed ([0-9]{1,18}) kernel messages"
                   r"|\b([0-9]{1,18}) messages lost due to rate-limiting|begin to drop messages due to rate-limiting"
                   r"|([0-9]{1,18}) printk messages dropped"
                   r"|racer (?:may have )?discarded (?:([0-9]{1,18}) )?(?:event|packet)"
                   r"|^\s*overrun: ([1-9][0-9]{0,17})\s*\Z")
#: What is left in ftrace's buffer, and how much was written to it.
_BUFFERED = re.compile(r"entries-in-buffer/entries-written: ([0-9]{1,18})/([0-9]{1,18})")
#: syslog daemons write what is repeated once.
_REPEATED = re.compile(r"message repeated ([0-9]{1,18}) times")
#: What head and tail write before the lines of a file.
_FILE_HEADER = re.compile(r"==> (.{1,255}?)(?:\.[0-9]{1,3})? <==\s*")
_HOST = re.compile(r"qemu-system-(aarch64|s390x|x86_64|i386)")
_HOSTS = {"aarch64": "arm64", "s390x": "s390", "x86_64": "x86-64", "i386": "x86-64"}
_QEMU_PREFIX = re.compile(r"\s*[0-9]{1,10}@[0-9.]{1,30}:")
# How a line goes on that a mail program has cut: with a field of the call, or its end.
_GOES_ON = re.compile(
    r"\s*(?:(?:AddrSpace|Slot)#|(?:flags|gpa|size|ua|ret|guest_memfd|guest_memfd_offset|restricted_fd"
    r"|restricted_offset|fd|fd_offset|guest_phys_addr|memory_size|userspace_addr|address|attributes)=|start\s"
    r"|size\s|shared_to_private|private_to_shared|--|0x[0-9a-fA-F]+ |\[0x|KVM_MEM|\|?KVM_|\}|\)|=\s|\{)")
_FORMATS = "formats: native, QEMU's trace log, strace, kvm_vm_set_mem_attributes"


def read(path: str | os.PathLike[str], progress: Callable[[int], Any] | None = None, *, strict: bool = False,
         vm: int | None = None, pid: int | Sequence[int] | None = None, one_vm: bool = False,
         default_private: bool | None = None) -> Trace:
    """Read the trace in `path`, or standard input for `-`; gzip, xz and zstd are known by their first bytes.

    The formats are recognised line by line: native, QEMU's trace log, strace, the kernel's trace event. Lines
    that name none of our calls are counted in `unrelated`. In a log, a line that names one and cannot be read
    is told in `unread`, with `strict` an error. `vm` (as numbered in the error that lists them) or `pid`, a process or
    thread or several, pick one VM of several; `one_vm`: the events of QEMU and of the kernel, which name no VM, are
    of one, whatever speaks against it. `default_private`: whether the VMM sets memslots with a guest_memfd PRIVATE
    without a line (None: as the QEMU does that writes such a line). `progress` is called with the number of lines
    so far, once a piece of 1 MiB.

    Raises TraceError, with file, line and what was expected, for a damaged native line, for a file without
    any call, for a log of several VMs without a choice, and for damaged or boundless compressed data; OSError
    when the file cannot be read.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.trace")
    ...     _ = path.write_text("set 0x1000 0x1000 1 0\\nget 0 0x2000\\n")
    ...     trace = read(path)
    >>> with trace:
    ...     list(trace)
    [SetAttributes(address=4096, size=4096, attributes=1, flags=0), GetAttributes(address=0, size=8192)]
    """
    name = "<stdin>" if os.fspath(path) == "-" else os.fspath(path)
    parser = Parser(name, strict=strict, vm=vm, pid=pid, one_vm=one_vm, default_private=default_private)
    if name == "<stdin>":
        with open(sys.stdin.fileno(), "rb", closefd=False) as file:
            return _read(file, parser, progress)
    with Path(path).open("rb") as file:
        return _read(file, parser, progress)


def _read(file: BufferedReader, parser: Parser, progress: Callable[[int], Any] | None) -> Trace:
    try:
        for piece, room in pieces(file):
            parser.feed(piece, room)
            if progress is not None:
                progress(parser.line - 1)
        return parser.finish()
    except BaseException as error:
        parser.close()
        if isinstance(error, Damaged):
            raise TraceError(f"{parser.name}:{parser.line}: {error}") from error
        raise


@lru_cache(2)
def _has_fields_beside(line: str, *, of_kernel: bool) -> bool:
    """Whether a line of JSON has an event's fields beside the string that names it."""
    return line.lstrip().startswith("{") and (kernel_event if of_kernel else qemu).has_fields(line.replace('"', ""))


class _Line(NamedTuple):
    """A line as it stands in the file, and whose it is by those that passed it on."""

    text: str
    names: tuple[tuple[str, str], ...] = ()


class _Held:
    """The beginning of a call that the next line may go on with. `partial`: it surely does, without a space.

    `text`: from the end of the line's last whole call on.
    """

    def __init__(self, text: str, raw: _Line, line: int, incomplete: Incomplete, partial: bool) -> None:
        self.text = text
        self.raw = raw
        self.line = line
        self.incomplete = incomplete
        self.partial = partial
        self.lines = 1


class Parser:
    """Text in, rows out. `line` is the number of the next line."""

    def __init__(self, name: str, *, strict: bool = False, vm: int | None = None,
                 pid: int | Sequence[int] | None = None, one_vm: bool = False,
                 default_private: bool | None = None) -> None:
        self.name = name
        self.line = 1
        self._strict = strict
        self._vm = vm
        self._pids = frozenset(() if pid is None else (pid,) if isinstance(pid, int) else pid)
        self._default_private = default_private
        self._native = Trace(name)
        self._rows = np.zeros(BLOCK_ROWS, dtype=ROW)
        self._filled = 0
        #: None until the first operation settles it.
        self._is_log: bool | None = None
        #: The last line that had a call.
        self._before = 0
        #: Lines that are comments, unless the file turns out a log.
        self._comments: list[tuple[int, str]] = []
        #: The first line that looks native and does not parse: an error, unless the file turns out a log.
        self._damaged: tuple[int, str] | None = None
        self._odd = 0
        self._unrelated = 0
        #: What is told of the file, whichever of its VMs is chosen.
        self._file = Trace(name)
        self._guests: list[Guest] = []
        #: The VMs of events, QEMU's and the kernel's, which name none.
        self._owners = Owners(self._new_guest, pids=self._pids, one=one_vm)
        self._clock = Clock()
        self._descriptors = Descriptors(
            self._new_guest, lambda file: Owners(self._new_guest, file, pids=self._pids, one=one_vm))
        self._strace = strace.Reader(self._descriptors, self._file.tell_note)
        self._held: _Held | None = None
        #: Bytes of lines that were looked at, and how many may be.
        self._looked_at = 0
        self._room = math.inf
        #: The file that head or tail says the lines are of.
        self._header: tuple[tuple[str, str], ...] = ()
        #: Which quick road took the last line.
        self._road = 0

    def close(self) -> None:
        """Give everything back."""
        for trace in (self._native, self._file, *(guest.trace for guest in self._guests)):
            trace.close()

    # Lines -------------------------------------------------------------------------------------------------

    def feed(self, text: bytes, room: float = math.inf) -> None:
        """Take whole lines. `room`: how many bytes of lines may be looked at, from the first line on."""
        self._room = room
        text = layers.uncoloured(text)
        start, end = 0, len(text)
        while start < end:
            if self._held is None:
                if self._is_log and not self._header:
                    start = self._plain_lines(text, start)
                    if start == end:
                        break
                elif not self._is_log:
                    filled = self._filled
                    start, self.line, self._filled = _native.parse(text, start, self.line, self._rows, filled,
                                                                   self._is_log is None)
                    if self._filled > filled:
                        self._settle(is_log=False)
                    if self._filled == BLOCK_ROWS:
                        self._flush()
                        continue
                if start < end:
                    begin, self.line, skipped = _native.next_line(text, start, self.line, not self._is_log)
                    self._unrelated += skipped
                    if begin != start and not self._is_log:
                        start = begin
                        continue  # it may be a plain native line, or several
                    start = begin
            if start < end:
                stop = text.index(b"\n", start)
                self._take(text[start:stop])
                start = stop + 1
                self.line += 1

    def _look_at(self, size: int) -> None:
        """Count a line that is looked at; its newline does not count."""
        self._looked_at += size + _LINE_BYTES
        if self._looked_at > self._room:
            raise Damaged(f"expected compressed data with at most {LOOKED_AT} times their size in lines that may be"
                          " calls: unpack the file first")

    def _plain_lines(self, text: bytes, start: int) -> int:
        """Take the lines of a log that the quick road reads; where the first other one begins."""
        road, misses = self._road, 0
        while start < len(text) and misses < len(plain.ROADS):
            found = plain.ROADS[road](text, start)
            if found is None:
                road = (road + 1) % len(plain.ROADS)
                misses += 1
                continue
            misses = 0
            self._look_at(found.end - start - 1)
            self._plain_line(found)
            self.line += 1
            start = found.end
        self._road = road
        return start

    def _plain_line(self, found: plain.Plain) -> None:
        call, guest = found.call, None
        try:
            if found.source is None:
                guest = self._descriptors.process(call.pid).guest(found.file, call.record, call.answer, self.line)
            else:
                if found.source.thread is not None:
                    guest = self._descriptors.guest_of(found.source.thread)
                if guest is None:
                    guest = self._owners.guest(found.source, call.record, call.answer, self.line,
                                               gaps=self._descriptors.gaps)
        except native.Mismatch as mismatch:
            self._unread(self.line, str(mismatch))
            return
        if guest is not None:
            self._before = self.line
            guest.apply(call, self.line, self._clock.take(found.time))

    def finish(self) -> Trace:
        """The trace, once all text was taken."""
        if self._is_log is None:
            self._take_comments()
        if self._held is not None:
            self._give_up(at_end=True)
        for call, line in self._strace.unfinished():
            try:
                found = self._strace.complete(call, line)
            except native.Mismatch as mismatch:
                self._unread(line, str(mismatch))
                continue
            if not isinstance(found, bool):
                self._apply(found[1], found[0], line, NO_TIME)
        self._flush()
        chosen = self._chosen()
        chosen.lines, chosen.unrelated = self.line - 1, self._unrelated
        chosen.clock = self._clock.kind
        for trace in (self._native, self._file, *(guest.trace for guest in self._guests)):
            if trace is not chosen:
                trace.close()
        return chosen

    def _take(self, raw: bytes) -> None:
        self._look_at(len(raw))
        if b" resumed>" in raw and self._held is None and not self._strace.waits and not (
                b"KVM_SET" in raw or b"kvm_" in raw or b"guest_phys_addr=" in raw or b"attributes=" in raw):
            # The end of a call that is none of ours: half the lines of a VMM's threads.
            self._unrelated += 1
            return
        if b"\0_\0" in raw:
            raw = raw.replace(b"\0", b"")
        line = raw.decode(errors="replace")
        if self._held is not None:
            if self._goes_on(line):
                return
            self._give_up()
        if not self._is_log:
            words = line.split("#", 1)[0].split()
            if words and words[0] in native.EXPECTED:
                self._native_line(words)
                return
            if not words and self._is_comment(line):
                return
        if not self._log_line(line):
            self._unrelated += 1

    def _native_line(self, words: list[str]) -> None:
        try:
            record = native.parse(words)
            if isinstance(record, Machine) and (
                    self._native.machine is not None or self._native.operations or self._filled):
                raise native.Mismatch("expected one vm line, before the first operation")
        except native.Mismatch as mismatch:
            if self._is_log is False:
                raise TraceError(f"{self.name}:{self.line}: {mismatch}") from None
            self._odd += 1
            self._damaged = self._damaged or (self.line, str(mismatch))
            return
        if isinstance(record, Machine):
            self._odd += 1
            self._native.machine = record
            return
        self._settle(is_log=False)
        self._rows[self._filled] = row_of(record, self.line)
        self._filled += 1
        if self._filled == BLOCK_ROWS:
            self._flush()

    def _is_comment(self, line: str) -> bool:
        """Keep a comment of a native trace, which in a log may be a call: behind `##[debug]`, a root's prompt."""
        kept = line.lstrip().startswith("#") and len(self._comments) < _MOST_COMMENTS
        if kept and self._is_log is None:
            self._comments.append((self.line, line))
        return kept

    def _take_comments(self) -> None:
        """The file is a log: what looked like comments are its lines."""
        comments, self._comments, number = self._comments, [], self.line
        for self.line, line in comments:
            if not self._log_line(line):
                self._unrelated += 1
        self.line = number

    def _settle(self, *, is_log: bool) -> None:
        """The first operation settles what kind of file this is."""
        if self._is_log is not None:
            return
        self._is_log = is_log
        if is_log:
            self._unrelated += self._odd
            self._native.machine = self._damaged = None
            self._take_comments()
        elif self._damaged is not None:
            line, text = self._damaged
            raise TraceError(f"{self.name}:{line}: {text}")

    def _flush(self) -> None:
        self._native.append(self._rows[:self._filled])
        self._filled = 0

    # Logs --------------------------------------------------------------------------------------------------

    def _log_line(self, raw: str) -> bool:
        """Whether a line of a log has anything to do with us."""
        header = _FILE_HEADER.fullmatch(raw) if raw.startswith("==> ") else None
        if header is not None:
            self._header = (("file", header[1]),)
            return False
        ours = False
        for text in layers.texts(raw):
            ours |= self._text(text.text, _Line(raw, (*text.names, *self._header)), text.partial)
        if not ours and "\x1b" in raw:
            # A sequence of the terminal that was cut would take the next letters with it.
            ours = self._text(raw.replace("\x1b", ""), _Line(raw, self._header), False)
        return ours

    def _text(self, text: str, raw: _Line, partial: bool) -> bool:
        if len(text) > _LONGEST:
            if _OURS.search(text) is None:
                return False
            self._unread(self.line, f"expected a call of at most {_LONGEST} characters, found {len(text)}")
            return True
        if partial and _OURS.search(text) is not None:
            whole = Incomplete("expected the rest of the line, which the next was to have")
            self._held = _Held(text, raw, self.line, whole, partial)
            return True
        try:
            return self._calls(text, raw)
        except Incomplete as incomplete:
            self._held = _Held(text[incomplete.begin:], raw, self.line, incomplete, partial)
        except native.Mismatch as mismatch:
            self._unread(self.line, str(mismatch))
        return True

    def _calls(self, text: str, raw: _Line) -> bool:
        """Apply what a text has of calls; whether it has anything to do with us."""
        events = list(_EVENT.finditer(text))
        if not events:
            return self._sign(text) or self._strace_line(text, raw.text)
        if "message repeated" in text and (repeated := _REPEATED.search(text)) is not None:
            self._unread(self.line, f"this call was made {repeated[1]} times, and is read once")
        echo = _ECHO.search(text)
        has_fields: dict[bool, bool] = {}
        done, source, time = 0, Source(raw.names), NO_TIME
        ours = False
        for index, found in enumerate(events):
            stop = events[index + 1].start() if index + 1 < len(events) else len(text)
            rest, name = text[found.end():stop], found[1]
            of_kernel = name == kernel_event.EVENT
            alone = index == 0 and (raw.text.strip() == name
                                    or _QEMU_PREFIX.fullmatch(text, 0, found.start()) is not None)
            is_event = kernel_event.is_event(rest) if of_kernel else qemu.is_event(name, rest, alone=alone)
            if not is_event and of_kernel not in has_fields:
                has_fields[of_kernel] = ((kernel_event if of_kernel else qemu).has_fields(text)
                                         or _has_fields_beside(raw.text, of_kernel=of_kernel))
            if not is_event and (has_fields[of_kernel] or (not of_kernel and qemu.begins_list(rest))):
                self._unread(self.line, f"{name} with its fields, in a form that is not known")
            elif not is_event:
                self._file.mentions += 1
            elif echo is not None and echo.start() < found.start():
                self._unread(self.line, f"{name} inside of what another call has written or read")
            else:
                try:
                    call = kernel_event.parse(rest) if name == kernel_event.EVENT else qemu.parse(name, rest)
                except Incomplete as incomplete:
                    if index + 1 == len(events):
                        incomplete.begin = events[index - 1].end() if index else 0
                        raise
                    if incomplete.call is None:
                        raise native.Mismatch(str(incomplete)) from None
                    call = incomplete.call
                # Of what stands before it, and where that has none, of the call before.
                before = text[done:found.start()]
                whose = source_of(before, rest, raw.names)
                source = whose if whose != Source(raw.names) else source
                later = self._time(before) if done else self._time(before, raw.text)
                time = later if later != NO_TIME else time
                done = found.start()
                self._event(call, self.line, source, time)
            ours = True
        return ours

    def _event(self, call: Call, line: int, source: Source, time: int) -> None:
        """Take an event, which names no VM: that of its thread where strace has told, else as its source tells."""
        known = self._descriptors.guest_of(source.thread) if source.thread is not None else None
        if known is not None:
            self._apply(call, known, line, time)
            return
        owner = self._owners.guest(source, call.record, call.answer, line, gaps=self._descriptors.gaps)
        if owner is not None:
            self._apply(call, owner, line, time)

    def _strace_line(self, text: str, raw: str) -> bool:
        if " resumed>" in text and not self._strace.waits and _OURS.search(text) is None and "{" not in text:
            return False
        if '"' in text and _ECHO.search(text) is not None and _OURS.search(text) is not None:
            self._file.mentions += 1
            return True
        found = self._strace.read(text, self.line)
        if not isinstance(found, bool):
            at = text.find("ioctl")
            self._apply(found[1], found[0], self.line, self._time(text[:at] if at >= 0 else text, raw))
            if len(_STRUCTURE.findall(text)) > 1:
                self._unread(self.line, "another call stands in this line behind the first: not read")
            return True
        resumed = " resumed>" in text
        if not found and (resumed or _OURS.search(text) is not None) and _STRUCTURE.search(text) is not None:
            self._unread(self.line, "the end of a call whose beginning the log lacks" if resumed else
                         "a request of ours with its structure, in a form that is not known")
            return True
        if not found and _NUMBERED.search(text) is not None:
            self._unread(self.line, "a request of ours by its number, in a form that is not known")
            return True
        if not found and _OURS.search(text) is not None:
            # An error message, a comment: it names the request and is no call.
            self._file.mentions += 1
            return True
        return found

    def _sign(self, text: str) -> bool:
        """Take a line that tells something of the log itself: events lost, a new start, the host."""
        host = _HOST.search(text)
        if host is not None and self._file.host is None:
            self._file.host = _HOSTS[host[1]]
        if "starting up libvirt" in text:
            self._owners.begin_again()
        repeated = _REPEATED.search(text)
        if repeated is not None and self._before == self.line - 1:
            self._unread(self.line, f"the call of the line before was made {repeated[1]} more times")
            return True
        refusal = qemu.refusal(text)
        if refusal is not None:
            return any(guest.refuse(*refusal) for guest in self._guests[:-_LISTED - 1:-1])
        buffered = _BUFFERED.search(text)
        if buffered is not None and int(buffered[1]) < int(buffered[2]):
            lost = int(buffered[2]) - int(buffered[1])
            self._unread(self.line, f"{lost} events of {buffered[2]} were overwritten: the buffer was too small")
            return True
        found = _LOST.search(text)
        if found is None:
            return False
        count = next((group for group in found.groups() if group is not None), None)
        number = "" if count is None else f"{int(count, 0 if count.startswith('0x') else 10)} "
        self._unread(self.line, f"{number}events or lines were lost here")
        return True

    def _time(self, *texts: str) -> int:
        """When a line was written, by the first of these texts that tells; a native trace has no times."""
        return self._clock.read(*texts) if self._is_log is not False else NO_TIME

    def _apply(self, call: Call, guest: Guest, line: int, time: int) -> None:
        self._settle(is_log=True)
        self._before = self.line
        if self._strict and call.notes:
            self._unread(line, call.notes[0])
        if not self._is_log:
            # A native trace may have lines of logs among its own.
            self._rows[self._filled] = row_of(call.record, line, call.answer)
            self._filled += 1
            if self._filled == BLOCK_ROWS:
                self._flush()
            return
        guest.apply(call, line, time)

    def _unread(self, line: int, text: str) -> None:
        if self._strict or self._is_log is False:
            raise TraceError(f"{self.name}:{line}: {text}")
        self._file.tell_unread(line, text)
        self._descriptors.gaps = True

    def _goes_on(self, line: str) -> bool:
        """Whether this line goes on with the call that the one before has begun."""
        held = self._held
        assert held is not None
        pieces = [text for text in layers.texts(line) if text.text]
        if len(pieces) != 1 or _EVENT.search(pieces[0].text) is not None:
            return False
        if not held.partial and _GOES_ON.match(pieces[0].text) is None:
            return False
        held.lines += 1
        joined = held.text + pieces[0].text if held.partial else f"{held.text.rstrip()} {pieces[0].text.lstrip()}"
        if held.lines > _MOST_LINES or len(joined) > _LONGEST:
            return False
        number, self.line = self.line, held.line
        self._held = None
        try:
            if pieces[0].partial:
                raise held.incomplete
            self._calls(joined, held.raw)
        except Incomplete as incomplete:
            held.text, held.incomplete, held.partial = joined, incomplete, pieces[0].partial
            self._held = held
        except native.Mismatch as mismatch:
            self._unread(held.line, str(mismatch))
        finally:
            self.line = number
        return True

    def _give_up(self, *, at_end: bool = False) -> None:
        """Tell the call that no line went on with, or take it as it is. `at_end`: there is no other line."""
        held, self._held = self._held, None
        assert held is not None
        if not at_end and not held.partial and held.lines == 1 and _EVENT.fullmatch(held.text.strip()):
            # A list of events, as QEMU takes it; the last line of a log may have been cut there.
            self._file.mentions += 1
        elif held.incomplete.call is None:
            self._unread(held.line, str(held.incomplete))
        else:
            found = _EVENT.search(held.text)
            before, rest = ("", held.text) if found is None else (held.text[:found.start()], held.text[found.end():])
            try:
                self._event(held.incomplete.call, held.line, source_of(before, rest, held.raw.names),
                            self._time(held.text, held.raw.text))
            except native.Mismatch as mismatch:
                self._unread(held.line, str(mismatch))

    # VMs ---------------------------------------------------------------------------------------------------

    def _new_guest(self, pid: int | None, file: int | None, line: int) -> Guest:
        guest = Guest(len(self._guests) + 1, self.name, pid, file, line, default_private=self._default_private)
        self._guests.append(guest)
        return guest

    def _chosen(self) -> Trace:
        if not self._is_log:
            if self._native.operations == 0:
                self._nothing()
            for told in self._file.unread:  # from before the first operation
                raise TraceError(f"{self.name}:{told.line}: {told.text}")
            self._native.mentions = self._file.mentions
            return self._native
        candidates = [guest for guest in self._guests if guest.calls]
        if self._vm is not None:
            candidates = [guest for guest in candidates if guest.number == self._vm]
        if self._pids:
            candidates = [guest for guest in candidates if not self._pids.isdisjoint(guest.pids)]
        if len(candidates) != 1:
            few = [guest for guest in self._guests if guest.calls]
            listed = "; ".join(_description(guest) for guest in few[:10])
            more = f"; and {len(few) - 10} more" if len(few) > 10 else ""
            asked = [f"--vm {self._vm}"] * (self._vm is not None) + [f"--pid {pid}" for pid in sorted(self._pids)]
            found = f"{len(few)} VMs" if not asked else f"{len(candidates) or 'none'} for {' '.join(asked)}"
            # QEMU's and the kernel's events name no VM.
            unnamed = any(guest.file is None for guest in few)
            one = "; --one-vm takes QEMU's and the kernel's events as of one VM" if unnamed else ""
            raise TraceError(f"{self.name}: expected calls of one VM, found {found}: choose by --vm or --pid:"
                             f" {listed}{more}{one}")
        for owners in (self._owners, self._descriptors):
            owners.finish(lambda text: self._file.tell_note(0, text))
        trace = candidates[0].finish()
        if self._native.operations:
            trace.tell_note(0, f"{self._native.operations} native lines in a log: not applied")
        for told in self._file.unread:
            trace.tell_unread(*told)
        trace.unread_count += self._file.unread_count - len(self._file.unread)
        trace.unread.sort()
        trace.notes = sorted([*self._file.notes, *trace.notes])[:KEPT]
        trace.note_count += self._file.note_count
        trace.mentions, trace.host = self._file.mentions, self._file.host
        return trace

    def _nothing(self) -> None:
        """There is no operation: say what is wrong with the first line that could have been one."""
        for line, text in [self._damaged] if self._damaged is not None else self._file.unread[:1]:
            raise TraceError(f"{self.name}:{line}: {text}")
        raise TraceError(f"{self.name}: expected a trace, found no call of ours in {self.line - 1} lines"
                         f" ({_FORMATS})")


def _description(guest: Guest) -> str:
    made = f"made on line {guest.made_on}" if guest.made_on else f"first on line {guest.first_line}"
    process = f" by process {guest.pid}" if guest.pid is not None else ""
    file = f", descriptor {guest.file}" if guest.file is not None else ""
    threads = sorted(guest.pids) if guest.pid is None else []
    threaded = (f" by thread{'s' * (len(threads) > 1)} {', '.join(map(str, threads[:_LISTED]))}"
                f"{' ...' * (len(threads) > _LISTED)}") if threads else ""
    named = "".join(f", {kind} {native.clip(name)}" for kind, name in list(guest.names.items())[:_LISTED])
    why = f" ({guest.why})" if guest.why else ""
    return (f"VM {guest.number} {made}{process}{threaded}{file}{named}, {guest.calls}"
            f" call{'' if guest.calls == 1 else 's'}{why}")
