"""The kernel's event kvm_vm_set_mem_attributes, as ftrace, trace-cmd, perf, bpftrace and LTTng print it.

Forms of its text: `0xFIRST -- 0xEND [0xATTRIBUTES]`, merged in Linux 6.17; the same behind a dot for a part of
a longer request, as it was first posted; `gfn 0x.., cnt 0x.., attributes 0x..` of the series of 2024. Tools that
print the fields themselves write `start=.. end=.. attr=..`, with an equals sign, a colon or a space between.
"""

from __future__ import annotations

import re

from kvmattr.trace.calls import Call, Incomplete
from kvmattr.trace.native import Mismatch, clip, number
from kvmattr.trace.operations import SetAttributes

EVENT = "kvm_vm_set_mem_attributes"
_EXPECTED = "kvm_vm_set_mem_attributes: 0xFIRST -- 0xEND [0xATTRIBUTES]"
_GFNS = 2**52

# The event's text follows a colon or a bracket; the function tracer's lines name a function of this name.
_SHAPE = re.compile(r"\s*[:(]\s*(?:\[FAILED TO PARSE\]\s*)?(?:\.\s+)?(?:0x[0-9a-fA-F]|[.{]|gfn\b|start\b|[0-9]"
                    r"|(?:end|cnt|attr|attributes)\s?[=: ]\s?(?:0x)?[0-9a-fA-F])"
                    r"|\s+(?:\{\s*)?\.?(?:start|gfn)\b\s?[=:]?")
#: The fields of the event in a form that is not known: a probe's, a tracer of functions'.
_FIELDS = re.compile(r"(?<![A-Za-z0-9_])(?:start|gfn|end|cnt)\s?[=:]\s?(?:0x)?[0-9a-fA-F]+.{1,40}?"
                     r"(?:start|gfn|end|cnt)\s?[=:]\s?(?:0x)?[0-9a-fA-F]"
                     r"|kvm_vm_set_mem_attributes[\s:;,|]{1,3}0x[0-9a-fA-F]{1,16}[\s;,|]{1,3}0x[0-9a-fA-F]")
_RANGE = re.compile(r"\s*[:(]?\s*(?:\.\s+)?(\w+)\s+--\s+(\w+)\s+\[(\w+)\]")
_FIELD = re.compile(r"(?<![A-Za-z0-9_])(gfn|cnt|attributes|start|end|attr)\s?[=: ]\s?([^\s,}\])]+)")


def is_event(rest: str) -> bool:
    """Whether what follows the name is the event's text.

    >>> is_event(": 0x0000000000000100 -- 0x0000000000000300 [0x8]"), is_event(" <-kvm_vm_ioctl")
    (True, False)
    """
    return _SHAPE.match(rest) is not None


def has_fields(text: str) -> bool:
    """Whether a line that is no event has its fields all the same."""
    return _FIELDS.search(text) is not None


def parse(rest: str) -> Call:
    """The call of an event, given all that follows its name in the line.

    The kernel writes it once it has checked the arguments, so it counts as accepted; memory may still have
    run out, which no line tells.

    >>> parse(": 0x100 -- 0x300 [0x8]").record
    SetAttributes(address=1048576, size=2097152, attributes=8, flags=0)
    """
    found = _RANGE.match(rest)
    if found is not None:
        first, end, attributes = (
            number(word, name, limit) for word, name, limit in
            zip(found.groups(), ("first gfn", "end gfn", "attributes"), (_GFNS, _GFNS, 2**64), strict=True))
    else:
        fields = dict(_FIELD.findall(rest))
        value = fields.get("attributes", fields.get("attr"))
        if value is None or not ({"gfn", "cnt"} <= fields.keys() or {"start", "end"} <= fields.keys()):
            text = f"expected {_EXPECTED!r}, found {clip(EVENT + rest)}"
            raise Mismatch(text) if "]" in rest or ")" in rest else Incomplete(text)
        first = number(fields["gfn" if "gfn" in fields else "start"], "first gfn", _GFNS)
        if "cnt" in fields:
            end = first + number(fields["cnt"], "cnt", _GFNS)
        else:
            end = number(fields["end"], "end gfn", _GFNS)
        attributes = number(value, "attributes")
    if end <= first:
        raise Mismatch(f"expected an end gfn above the first gfn {first:#x}, found {end:#x}")
    if end > _GFNS:
        raise Mismatch(f"expected an end gfn of at most {_GFNS:#x}, found {end:#x}")
    return Call(SetAttributes(first << 12, (end - first) << 12, attributes), 0)
