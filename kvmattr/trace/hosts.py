"""Where a recording was made: how far user space reaches there, which KVM compares a userspace_addr with.

Linux: x86-64 ends at 2^47 less a page (with five levels at 2^56 less a page, for who asks for it), arm64 at 2^48
(2^52 with LVA), s390x at 2^53.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvmattr import uapi
from kvmattr.trace.trace import Trace

#: Where user space ends, by what `--host` takes.
USER_SPACE: Final = {
    "x86-64": uapi.TASK_SIZE_MAX,
    "x86-64-la57": (1 << 56) - uapi.PAGE_SIZE,
    "arm64": 1 << 52,
    "s390x": 1 << 53,
}


class Host(NamedTuple):
    """A host, and how it is known: "" if it was given, or is x86-64 for want of other signs."""

    name: str
    why: str = ""

    @property
    def user_space(self) -> int:
        """Where its user space ends, in bytes."""
        return USER_SPACE[self.name]


def host_for(trace: Trace, given: str | None = None) -> Host:
    """The host that a trace was recorded on: as given, else as its log shows.

    ValueError for a name that is none. A log shows it by the name of QEMU's program, or by an accepted
    userspace_addr that x86-64 with four levels does not have: arm64's, or beyond that the first with room.

    >>> with Trace("made") as trace:
    ...     host_for(trace).name, host_for(trace, "s390x").user_space == 1 << 53
    ('x86-64', True)
    """
    if given is not None:
        if given not in USER_SPACE:
            raise ValueError(f"host {given!r}: must be one of {', '.join(USER_SPACE)}")
        return Host(given)
    named = trace.host
    if named is not None and trace.userspace_end <= USER_SPACE[named]:
        return Host(named, "" if named == "x86-64" else "by the name of its QEMU")
    for name in ("x86-64", "arm64", "s390x", "x86-64-la57"):
        if trace.userspace_end <= USER_SPACE[name]:
            break
    why = "" if name == "x86-64" else (f"by the accepted userspace_addr of line {trace.userspace_line}, which ends at"
                                       f" {trace.userspace_end:#x}")
    return Host(name, why)
