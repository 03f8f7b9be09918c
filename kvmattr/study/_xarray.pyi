import numpy as np
from numpy.typing import NDArray

_Gfns = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]

class XArray:
    """Attributes of pages in an xarray, as KVM keeps them; ranges are not checked (the study makes them)."""
    def update_many(self, starts: _Gfns, stops: _Gfns, attributes: _Bytes, operations: _Bytes) -> int:
        """Set ranges in order, GIL released; returns how many were set before memory ran out."""
    def lookup(self, gfns: _Gfns) -> _Bytes:
        """The attributes of single pages, one walk each. GIL released."""
    def has(self, starts: _Gfns, stops: _Gfns, attributes: _Bytes) -> NDArray[np.bool_]:
        """For each range: do all its pages have these attributes? GIL released."""
    def mixed(self, small: _Bytes, large: _Bytes) -> None:
        """Which blocks hold unequal attributes: those of 2 MiB into ``small``, of 1 GiB into ``large``.

        As KVM finds it when a slot is made: a small block against its first page, a large one by its small
        ones and their first pages.
        """
    def runs(self, npages: int) -> tuple[_Gfns, _Bytes]:
        """The runs of ``[0, npages)``, not empty: ``(starts, attributes)`` as uint64 and uint8 arrays, in order."""
    @property
    def nodes(self) -> int:
        """Nodes in use."""
    @property
    def nbytes(self) -> int:
        """Bytes of the nodes: 576 each, as in the kernel."""
