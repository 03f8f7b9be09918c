"""Which host a recording was made on: as given, or as its log shows."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvmattr.hosts import HOSTS, Host, host_named
from kvmattr.trace.trace import Trace

#: Names that people use beside those of `kvmattr.hosts`.
ALIASES: Final = {"s390x": "s390"}
NAMES: Final = (*HOSTS, *ALIASES)
#: In which order hosts are tried for an accepted userspace_addr, by what is likely.
_TRIED = ("x86-64", "arm64", "arm64-lva", "s390", "x86-64-la57")


class Found(NamedTuple):
    """A host, and how it is known: "" if it was given, or is x86-64 for want of other signs."""

    host: Host
    why: str = ""


def host_for(trace: Trace, given: str | Host | None = None) -> Found:
    """The host that a trace was recorded on.

    ValueError for a name that is none. A log shows its host by the name of QEMU's program, or by an accepted
    userspace_addr that x86-64 with four levels of page tables does not have.

    >>> with Trace("made") as trace:
    ...     host_for(trace).host.name, host_for(trace, "s390x").host.name
    ('x86-64', 's390')
    """
    if given is not None:
        return Found(host_named(ALIASES.get(given, given) if isinstance(given, str) else given))
    named = HOSTS[trace.host or "x86-64"]
    if trace.userspace_end <= named.user_space_end:
        return Found(named, "" if named.name == "x86-64" else "by the name of its QEMU")
    host = next((HOSTS[name] for name in _TRIED if trace.userspace_end <= HOSTS[name].user_space_end), None)
    if host is None:        # none has such an address: the recorded answer is at odds with all
        return Found(named, "" if named.name == "x86-64" else "by the name of its QEMU")
    return Found(host, f"by the accepted userspace_addr of line {trace.userspace_line}, which ends at"
                       f" {trace.userspace_end:#x}")
