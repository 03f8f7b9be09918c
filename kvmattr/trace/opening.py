"""Opening a recording: plain, gzip, xz or zstd; UTF-8 or UTF-16; cut into pieces of whole lines.

What is compressed may not grow without end: a file of a kilobyte must not fill the disk. What does not keep
to that is unpacked by its owner, who then knows its size.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import lzma
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

#: Text is read in pieces of this many bytes; a line may not be longer than one.
PIECE = 1 << 20
#: A compressed file may hold this many bytes of text, and so many times its own size beyond.
UNPACKED, RATIO = 4 << 20, 250
#: So much is unpacked before any of it is read: reading calls takes far longer than unpacking them.
_AHEAD = 24 << 20
#: And for each compressed byte, of at least a kilobyte, so many of the lines that Python looks at, which cost about a
#: second of computing a mebibyte. gzip comes no further with lines of a call each; xz and zstd could.
LOOKED_AT, _LEAST = 1280, 1 << 10
#: What a decoder of xz may keep in memory. The zstd library has a limit of 128 MiB itself.
_DECODER_MEMORY = 128 << 20
#: Compressed bytes that a decoder is given at a time.
_STEP = 512

_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
#: What is no text and nothing that is unpacked here: the first bytes, what they are of, and what helps.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"BZh", "bzip2 data", "bunzip2"), (b"]\0\0", "lzma data", "unlzma"), (b"\x04\x22M\x18", "lz4 data", "unlz4"),
    (b"PK\x03\x04", "a zip archive", "unzip it"), (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"\x17\x08Dtracing", "trace-cmd's binary recording", "trace-cmd report"),
    (b"PERFILE2", "perf's binary recording", "perf script"),
    (b"\xff" * 8 + b"\xb4\x29\xa4\x0a", "QEMU's binary recording", "scripts/simpletrace.py"),
    (b"\xc1\x1f\xfc\xc1", "a binary recording in CTF", "babeltrace2"))
#: Where tar has a word of its own in a file's header.
_TAR = slice(257, 262)
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class Damaged(ValueError):
    """The bytes are not what their first ones promise."""


class Readable(Protocol):
    """What pieces are read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


def pieces(file: io.BufferedReader) -> Iterator[tuple[bytes, float]]:
    """The text of an open file in pieces of whole lines; the last line gets a newline if it has none.

    With each piece comes how many bytes of lines may be looked at in all up to its end (LOOKED_AT). Raises Damaged for
    damaged or over-long contents, for a line of more than PIECE bytes, and for zstd where nothing can read it.
    """
    rest = b""
    unpacked = _unpacked(file)
    text = _decoded(unpacked.read if unpacked is not None else file.read)
    while piece := text(PIECE):
        room = unpacked.room if unpacked is not None else math.inf
        whole, newline, piece = piece.rpartition(b"\n")
        if newline:
            yield rest + whole + newline, room
            rest = b""
        rest += piece
        if len(rest) > PIECE:
            raise Damaged(f"expected lines of at most {PIECE} bytes, found a longer one")
    if rest:
        yield rest + b"\n", unpacked.room if unpacked is not None else math.inf


def _unpacked(file: io.BufferedReader) -> _Unpacked | None:
    """The contents of a compressed file; None for one that is not."""
    start = file.peek(len(_XZ))
    if start.startswith(_GZIP):
        return _Unpacked("gzipped", lambda raw: gzip.GzipFile(fileobj=raw), file)
    if start.startswith(_XZ):
        return _Unpacked("xz", _xz, file)
    if start.startswith(_ZSTD):
        return _Unpacked("zstd", _zstd, file)
    return None


def _decoded(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The same in UTF-8 where the first two bytes are UTF-16's byte order mark, as Windows' tools write it."""
    first = read(PIECE)
    for start, what, helps in _OTHERS:
        if first.startswith(start):
            raise Damaged(f"expected text, plain or in gzip, xz or zstd, found {what}: {helps} first")
    if first[_TAR] == b"ustar":
        raise Damaged("expected one file's text, found a tar archive: unpack it first")
    name = _UTF16.get(first[:2])
    decoder = codecs.getincrementaldecoder(name)("replace") if name else None

    def convert(data: bytes) -> bytes:
        return decoder.decode(data, final=not data).encode() if decoder is not None else data

    waiting = [first[2:] if name else first]

    def piece(size: int) -> bytes:
        # A decoder may keep all of a short piece back, which is not the end.
        while True:
            data = waiting.pop() if waiting else read(size)
            result = convert(data)
            if result or not data:
                return result

    return piece


class _Counting(io.RawIOBase):
    """The compressed file, and how many of its bytes were read."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto1(buffer)
        self.count += count
        return count


class _Unpacked:
    """A compressed file's contents, up to the limit of their size."""

    def __init__(self, name: str, make: Callable[[Any], Readable], file: io.BufferedReader) -> None:
        self._name = name
        self._raw = _Counting(file)
        self._contents = make(io.BufferedReader(self._raw, _STEP << 3))
        self._size = 0
        self._ahead: deque[bytes] | None = None

    @property
    def room(self) -> int:
        """How many bytes of lines may be looked at, by what was read of the compressed file so far."""
        return LOOKED_AT * max(self._raw.count, _LEAST)

    def read(self, size: int) -> bytes:
        """At most so many bytes. Before the first are given, what is surely too much is refused."""
        if self._ahead is None:
            self._ahead = deque()
            while self._size <= _AHEAD and (data := self._unpack(PIECE)):
                self._ahead.append(data)
        return self._ahead.popleft() if self._ahead else self._unpack(size)

    def _unpack(self, size: int) -> bytes:
        try:
            data = self._contents.read(size)
        except _DAMAGE as error:
            raise Damaged(f"expected more {self._name} data: {error}") from error
        self._size += len(data)
        if self._size > UNPACKED + RATIO * self._raw.count:
            raise Damaged(f"expected {self._name} data that grow to at most {RATIO} times their size, and"
                          f" {UNPACKED >> 20} MiB: unpack the file first")
        return data


class _Streams:
    """Compressed streams one after another, through decoders that tell whether a stream has ended."""

    def __init__(self, new: Callable[[], Any], raw: io.BufferedReader) -> None:
        self._new = new
        self._raw = raw
        self._decoder = new()

    def read(self, size: int, /) -> bytes:
        """At most so many bytes."""
        while True:
            if self._decoder.eof:
                # xz pads streams with zeros.
                more = self._decoder.unused_data.lstrip(b"\0") or self._raw.read1(_STEP)
                if not more:
                    return b""
                if not more.lstrip(b"\0"):
                    continue
                self._decoder = self._new()
                data = self._decoder.decompress(more.lstrip(b"\0"), size)
            elif self._decoder.needs_input:
                more = self._raw.read1(_STEP)
                if not more:
                    raise EOFError("the file ends before the stream does")
                data = self._decoder.decompress(more, size)
            else:
                data = self._decoder.decompress(b"", size)
            if data:
                return bytes(data)


class _Zstandard:
    """A decoder of the package zstandard in the manner of the standard library's; its output has no limit.

    A step of compressed data is small, so that what it can become is small too: 128 KiB for each four bytes.
    """

    needs_input = True

    def __init__(self) -> None:
        self._decoder = _ZSTD_MODULE.ZstdDecompressor().decompressobj()

    def decompress(self, data: bytes, _size: int) -> bytes:
        """All that these bytes become."""
        return bytes(self._decoder.decompress(data))

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        return bool(self._decoder.eof)

    @property
    def unused_data(self) -> bytes:
        """What stands behind the end of the stream."""
        return bytes(self._decoder.unused_data)


def _xz(raw: io.BufferedReader) -> Readable:
    return _Streams(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_MEMORY), raw)


def _zstd_module() -> tuple[str, Any]:
    for name in ("compression.zstd", "zstandard"):
        try:
            return name, importlib.import_module(name)
        except ImportError:
            continue
    return "", None


_ZSTD_NAME, _ZSTD_MODULE = _zstd_module()
#: What decoders raise for damaged data.
_DAMAGE: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
if _ZSTD_MODULE is not None:
    _DAMAGE += (_ZSTD_MODULE.ZstdError,)


def _zstd(raw: io.BufferedReader) -> Readable:
    if _ZSTD_MODULE is None:
        raise Damaged("zstd needs Python 3.14 or the package zstandard: pip install 'kvmattr[zstd]'")
    return _Streams(_Zstandard if _ZSTD_NAME == "zstandard" else _ZSTD_MODULE.ZstdDecompressor, raw)
