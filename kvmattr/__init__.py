"""Per-page memory attributes for KVM guests: the public names, nothing else."""

from kvmattr._core import AttributeMap
from kvmattr.operation import Operation

__all__ = ["AttributeMap", "Operation"]
__version__ = "0.1.0"
