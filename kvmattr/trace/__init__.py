"""Traces: formats in and out, generators, recording, and their replay.

>>> from kvmattr.trace import SetAttributes, line_of
>>> line_of(SetAttributes(address=0x1000, size=0x1000, attributes=1))
'set 0x1000 0x1000 0x1 0x0'
"""

from kvmattr.trace.native import line_of
from kvmattr.trace.operations import GetAttributes, Machine, Record, SetAttributes, SetSlot
from kvmattr.trace.reading import Trace, TraceError, read

__all__ = [
    "GetAttributes",
    "Machine",
    "Record",
    "SetAttributes",
    "SetSlot",
    "Trace",
    "TraceError",
    "line_of",
    "read",
]
