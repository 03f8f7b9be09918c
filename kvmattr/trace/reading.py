"""Reading traces: any of the formats, plain or gzipped, from a file or standard input, in bounded memory.

A trace is read to its end before anything of it is used, so that a damaged last line costs nobody a
half-applied trace. What was read is kept as rows of 64 bytes, in memory up to 64 MB and in a temporary file
beyond.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.trace import _native, logs, native, strace
from kvmattr.trace.operations import BLOCK_ROWS, ROW, SET, SLOT, Block, Machine, Record, records_of, row_of

#: Text is read in pieces of this many bytes; a line may not be longer than one.
PIECE = 1 << 20
#: Rows are kept in memory up to this many bytes, in a temporary file beyond.
IN_MEMORY = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_MARKS = (b"kvm_", b"ioctl")


class TraceError(ValueError):
    """A trace that cannot be read: the text names file, line and what was expected."""


class Trace:
    """A whole trace, parsed: its operations in order, and what is known of all of them.

    Iterating gives one record an operation; `blocks()` gives the same as arrays of at most 65536 rows. Both
    may be had any number of times. A trace holds a temporary file when it is long: close it, or use `with`.
    """

    def __init__(self, name: str, machine: Machine | None = None) -> None:
        self.name = name
        #: What the `vm` line says, if there is one.
        self.machine = machine
        #: Whether it is the log of a real VMM, not a native trace.
        self.is_log = False
        self.lines = 0
        self.unrelated = 0
        self.operations = 0
        self.slot_calls = 0
        self.attribute_calls = 0
        #: Pages below the highest end that a slot call, or one that sets an attribute, names.
        self.slot_npages = 0
        self.attribute_npages = 0
        #: Whether a slot call names the second address space: machines with private memory have none.
        self.second_address_space = False
        self._rows: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115

    @classmethod
    def from_blocks(cls, name: str, blocks: Iterable[Block], machine: Machine | None = None) -> Self:
        """A trace of operations that were made, not read."""
        trace = cls(name, machine)
        for block in blocks:
            trace.append(block)
        return trace

    def append(self, block: Block) -> None:
        """Add a block's operations at the end."""
        self._rows.seek(0, os.SEEK_END)
        self._rows.write(np.ascontiguousarray(block).data)
        kinds = np.bincount(block["kind"], minlength=4)
        self.operations += len(block)
        self.attribute_calls += int(kinds[SET])
        self.slot_calls += int(kinds[SLOT:].sum())
        words = block["words"][(block["kind"] == SET) & (block["words"][:, 2] != 0)]
        self.attribute_npages = max(self.attribute_npages, _highest_end(words[:, 0], words[:, 1]))
        words = block["words"][block["kind"] >= SLOT]
        self.slot_npages = max(self.slot_npages, _highest_end(words[:, 2], words[:, 3]))
        self.second_address_space |= bool((words[:, 0] >> np.uint64(uapi.KVM_ADDRESS_SPACE_SHIFT)).any())

    def blocks(self) -> Iterator[Block]:
        """The operations in order, as arrays of ROW."""
        for start in range(0, self.operations, BLOCK_ROWS):
            self._rows.seek(start * ROW.itemsize)
            count = min(BLOCK_ROWS, self.operations - start)
            yield np.frombuffer(self._rows.read(count * ROW.itemsize), dtype=ROW)

    def __iter__(self) -> Iterator[Record]:
        for block in self.blocks():
            yield from records_of(block)

    def __len__(self) -> int:
        return self.operations

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the rows back; the trace cannot be read any more."""
        self._rows.close()


def _highest_end(addresses: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> int:
    """Pages below the highest end of these byte ranges, leaving out those that no call would accept."""
    ends = addresses + sizes
    accepted = (ends > addresses) & ((addresses | sizes) % np.uint64(uapi.PAGE_SIZE) == 0)
    return int(ends[accepted].max(initial=0)) // uapi.PAGE_SIZE


def read(path: str | os.PathLike[str], progress: Callable[[int], Any] | None = None) -> Trace:
    """Read the trace in `path`, or standard input for `-`; gzip is recognised by its first bytes.

    The formats are recognised line by line: native, QEMU's trace log, strace, the kernel's trace event. Lines
    that name none of our calls are counted in `unrelated`. `progress` is called with the number of lines so
    far, once a piece of 1 MiB. Native lines are parsed by compiled code, logs by regular expressions.

    Raises TraceError, with file, line and what was expected, for a line that names one of our calls and does
    not parse, and for a file without any call; OSError when the file cannot be read.

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
    if os.fspath(path) == "-":
        with open(sys.stdin.fileno(), "rb", closefd=False) as file:
            return _read(file, "<stdin>", progress)
    with Path(path).open("rb") as file:
        return _read(file, os.fspath(path), progress)


def _read(file: BufferedReader, name: str, progress: Callable[[int], Any] | None) -> Trace:
    parser = _Parser(name)
    plain = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP_MAGIC else file
    try:
        for piece in _pieces(plain, parser):
            parser.feed(piece)
            if progress is not None:
                progress(parser.line - 1)
        return parser.finish()
    except BaseException as error:
        parser.trace.close()
        if isinstance(error, EOFError | gzip.BadGzipFile):
            raise TraceError(f"{name}:{parser.line}: expected more gzipped data: {error}") from error
        raise


def _pieces(file: BufferedIOBase, parser: _Parser) -> Iterator[bytes]:
    """The file in pieces of whole lines; the last line gets a newline if it has none."""
    rest = b""
    while piece := file.read(PIECE):
        whole, newline, piece = (rest + piece).rpartition(b"\n")
        if newline:
            yield whole + newline
        rest = piece
        if len(rest) > PIECE:
            where = f"{parser.name}:{parser.line}"
            raise TraceError(f"{where}: expected lines of at most {PIECE} bytes, found a longer one")
    if rest:
        yield rest + b"\n"


class _Parser:
    """Text in, rows out. `line` is the number of the next line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.trace = Trace(name)
        self.line = 1
        self._rows = np.zeros(BLOCK_ROWS, dtype=ROW)
        self._filled = 0
        self._settled = False
        self._strace = strace.Reader()

    def feed(self, text: bytes) -> None:
        """Take whole lines."""
        start = 0
        while start < len(text):
            filled = self._filled
            start, self.line, self._filled = _native.parse(text, start, self.line, self._rows, filled)
            if self._filled > filled:
                self._settle(is_log=False)
            if self._filled == BLOCK_ROWS:
                self._flush()
            elif start < len(text):
                stop = text.index(b"\n", start)
                self._other(text[start:stop])
                start = stop + 1
                self.line += 1

    def finish(self) -> Trace:
        """The trace, once all text was taken."""
        trace = self.trace
        trace.lines = self.line - 1
        for line, number in self._strace.unfinished():
            self.line = number
            self._other(line.encode())
        self._flush()
        if trace.operations == 0:
            raise TraceError(f"{self.name}: expected a trace, found no call of ours in {trace.lines} lines"
                             " (formats: native, QEMU's trace log, strace, kvm_vm_set_mem_attributes)")
        return trace

    def _other(self, line: bytes) -> None:
        """A line that the quick road left: a rarer native line, a log's, an unrelated or a damaged one."""
        words = line.split(b"#", 1)[0].split(None, 1)
        try:
            if words and words[0] in (b"set", b"get", b"slot", b"vm"):
                self._native_line(line)
            elif any(mark in line for mark in _MARKS):
                self._log_line(line.decode(errors="replace").rstrip())
            else:
                self.trace.unrelated += 1
        except native.Mismatch as mismatch:
            raise TraceError(f"{self.name}:{self.line}: {mismatch}") from None

    def _native_line(self, line: bytes) -> None:
        record = native.parse(line.decode(errors="replace").split("#", 1)[0].split())
        if not isinstance(record, Machine):
            self._settle(is_log=False)
            self._add(logs.Call(record), self.line)
        elif self.trace.operations or self._filled or self.trace.machine is not None:
            raise native.Mismatch("expected one vm line, before the first operation")
        else:
            self.trace.machine = record

    def _log_line(self, line: str) -> None:
        call = self._strace.parse(line, self.line) if "ioctl" in line else logs.parse(line)
        if call is not None:
            self._add(call, self.line)
        elif not self._strace.awaits(line):
            self.trace.unrelated += 1

    def _add(self, call: logs.Call, line: int) -> None:
        self._settle(is_log=True)
        self._rows[self._filled] = row_of(call.record, line, call.answer)
        self._filled += 1
        if self._filled == BLOCK_ROWS:
            self._flush()

    def _settle(self, *, is_log: bool) -> None:
        """The first call settles what kind of trace this is."""
        if not self._settled:
            self._settled = True
            self.trace.is_log = is_log

    def _flush(self) -> None:
        self.trace.append(self._rows[:self._filled])
        self._filled = 0
