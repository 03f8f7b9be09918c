"""Traces: formats in and out, generators, recording, and their replay.

>>> from kvmattr.trace import SetAttributes, line_of
>>> line_of(SetAttributes(address=0x1000, size=0x1000, attributes=1))
'set 0x1000 0x1000 0x1 0x0'
"""

from kvmattr.trace.files import replay_file, replay_files
from kvmattr.trace.generators import GENERATORS
from kvmattr.trace.native import line_of
from kvmattr.trace.operations import (
    CreateFile,
    GetAttributes,
    Machine,
    PunchHole,
    Record,
    SetAttributes,
    SetFileAttributes,
    SetSlot,
)
from kvmattr.trace.reading import read
from kvmattr.trace.recording import record
from kvmattr.trace.replaying import Summary, machine_for, replay
from kvmattr.trace.text import summary_text
from kvmattr.trace.trace import Trace, TraceError
from kvmattr.trace.writing import write

__all__ = [
    "GENERATORS",
    "CreateFile",
    "GetAttributes",
    "Machine",
    "PunchHole",
    "Record",
    "SetAttributes",
    "SetFileAttributes",
    "SetSlot",
    "Summary",
    "Trace",
    "TraceError",
    "line_of",
    "machine_for",
    "read",
    "record",
    "replay",
    "replay_file",
    "replay_files",
    "summary_text",
    "write",
]
