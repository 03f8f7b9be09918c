"""Writing traces in the native format."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, TextIO, cast

import numpy as np

from kvmattr.measure import writing
from kvmattr.trace.answers import errno_name
from kvmattr.trace.native import line_of
from kvmattr.trace.operations import Machine, Record, records_of
from kvmattr.trace.trace import Trace


def write(path: str | os.PathLike[str], records: Iterable[Record], machine: Machine | None = None) -> int:
    """Write a native trace, gzipped if the name ends in `.gz`; return the number of operations.

    `machine` becomes the `vm` line. `records` may be a Trace: a log of any format is rewritten in ours, with what
    its VMM did without a line; calls that KVM refused become comments, since they changed nothing. A regular file is
    written whole or not at all; `-` is standard output. Raises CannotWrite, an OSError.

    >>> from tempfile import TemporaryDirectory
    >>> from kvmattr.trace import SetAttributes, read
    >>> with TemporaryDirectory() as folder:
    ...     count = write(folder + "/a.trace.gz", [SetAttributes(0, 4096, 8)], Machine("linux", {}))
    ...     with read(folder + "/a.trace.gz") as trace:
    ...         count, trace.machine.profile, list(trace)
    (1, 'linux', [SetAttributes(address=0, size=4096, attributes=8, flags=0)])
    """
    count = 0
    with open_text(path) as file:
        if machine is not None:
            file.write(line_of(machine) + "\n")
        for record, refused in _with_answers(records):
            if refused:
                file.write(f"# refused, {errno_name(refused)}: {line_of(record)}\n")
            else:
                file.write(line_of(record) + "\n")
                count += 1
    return count


def _with_answers(records: Iterable[Record]) -> Iterator[tuple[Record, int]]:
    if isinstance(records, Trace):
        for block in records.blocks():
            answers = np.maximum(block["answer"], 0).tolist()
            yield from zip(records_of(block), answers, strict=True)
    else:
        yield from ((record, 0) for record in records)


@contextmanager
def open_text(path: str | os.PathLike[str], *, in_place: bool = False) -> Iterator[TextIO]:
    """A text file to write a trace to, whole or not at all; with ``in_place`` what was written stays, come what may.

    A gzip header has no time and no name: equal traces, equal files.
    """
    with writing.opened(path, in_place=in_place) as raw, ExitStack() as files:
        binary: IO[bytes] = raw
        if os.fspath(path).endswith(".gz"):
            packed = files.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
            binary = cast("IO[bytes]", packed)
        text = io.TextIOWrapper(binary, encoding="ascii", newline="\n")
        files.callback(text.detach)     # which writes what is left, and leaves the file to its owner
        yield text
