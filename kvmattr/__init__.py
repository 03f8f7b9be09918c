"""Per-page memory attributes for KVM guests.

`AttributeMap` stores a byte of attributes for each 4 KiB page of a guest. `VM` is a model of a KVM machine on top of
one: it answers KVM's memory calls. `Operation` is what an update does, `Access` what a guest tries, `Exit` how KVM ends
an access that it does not let through.

>>> from kvmattr import VM, Access, AttributeMap
>>> m = AttributeMap(1 << 24)                   # a 64 GiB guest
>>> m.write(0, 1 << 18, 1), m[5]                # its first GiB gets the attributes 1; something changed
(True, 1)
>>> m.run(1 << 18)                              # the range of equal pages around one
Run(start=262144, stop=16777216, attributes=0)
>>> VM().access(0x1000, Access.WRITE)           # a machine without a memslot: no memory is there
Exit(MMIO, flags=0, gpa=0x1000, size=0x1, is_write=True)

In modules of their own: `kvmattr.profiles`, the kernels that a VM answers as; `kvmattr.uapi`, KVM's constants and
structures; `kvmattr.memslots`, `kvmattr.notebook`, `kvmattr.trace`, `kvmattr.fake`, `kvmattr.study`, `kvmattr.gate` and
`kvmattr.bridges`. ``kvmattr --help`` has the commands.
"""

from typing import TYPE_CHECKING, Any

from kvmattr import _starting as _starting
from kvmattr._core import AttributeMap
from kvmattr._version import __version__ as __version__
from kvmattr.embedding import get_include
from kvmattr.faults import Exit
from kvmattr.operation import Operation
from kvmattr.protection import Access
from kvmattr.run import Run
from kvmattr.vm import VM

if TYPE_CHECKING:
    from kvmattr.trace import record

__all__ = ["VM", "Access", "AttributeMap", "Exit", "Operation", "Run", "get_include", "record"]


def __getattr__(name: str) -> Any:
    """``record`` on first use: the parsers of the trace formats are not needed by whoever embeds the store."""
    if name == "record":
        from kvmattr.trace import record

        return record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
