"""Writing traces in the native format."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from kvmattr.trace.answers import errno_name
from kvmattr.trace.native import line_of
from kvmattr.trace.operations import Machine, Record, records_of
from kvmattr.trace.trace import Trace


def write(path: str | os.PathLike[str], records: Iterable[Record], machine: Machine | None = None) -> int:
    """Write a native trace, gzipped if the name ends in `.gz`; return the number of operations.

    `machine` becomes the `vm` line. `records` may be a Trace: a log of any format is rewritten in ours, with what
    its VMM did without a line; calls that KVM refused become comments, since they changed nothing.

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


def open_text(path: str | os.PathLike[str]) -> TextIO:
    """A text file to write a trace to. A gzip header has no time and no name: equal traces, equal files."""
    if not os.fspath(path).endswith(".gz"):
        return Path(path).open("w", encoding="ascii", newline="\n")
    raw = Path(path).open("wb")  # noqa: SIM115 - closed by the wrapper around it
    return io.TextIOWrapper(_Gzip(raw), encoding="ascii", newline="\n")


class _Gzip(gzip.GzipFile):
    """A gzip stream that closes the file under it, which GzipFile leaves to whoever opened it."""

    def __init__(self, raw: io.BufferedWriter) -> None:
        super().__init__(filename="", mode="wb", fileobj=raw, mtime=0)
        self._raw = raw

    def close(self) -> None:
        super().close()
        self._raw.close()
