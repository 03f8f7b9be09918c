"""Per-page memory attributes for KVM guests: the public names, nothing else."""

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
