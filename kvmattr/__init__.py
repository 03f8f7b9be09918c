"""Per-page memory attributes for KVM guests: the public names, nothing else."""

from kvmattr._core import AttributeMap
from kvmattr.faults import Exit
from kvmattr.operation import Operation
from kvmattr.protection import Access
from kvmattr.vm import VM

__all__ = ["VM", "Access", "AttributeMap", "Exit", "Operation"]
__version__ = "0.1.0"
