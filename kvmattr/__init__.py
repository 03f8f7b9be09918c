"""Per-page memory attributes for KVM guests: the public names, nothing else."""

from kvmattr.operation import Operation

__all__ = ["Operation"]
__version__ = "0.1.0"
