import numpy as np
from numpy.typing import NDArray

class XArray:
    """Attributes of pages in an xarray, as KVM keeps them; ranges are not checked (the study makes them)."""
    def update_many(
        self,
        starts: NDArray[np.uint64],
        stops: NDArray[np.uint64],
        attributes: NDArray[np.uint8],
        operations: NDArray[np.uint8],
    ) -> int:
        """Set ranges in order, GIL released; returns how many were set before memory ran out."""
    def lookup(self, gfns: NDArray[np.uint64], out: NDArray[np.uint8]) -> None:
        """The attributes of single pages, one walk each, into ``out``. GIL released."""
    def has(
        self,
        starts: NDArray[np.uint64],
        stops: NDArray[np.uint64],
        attributes: NDArray[np.uint8],
        out: NDArray[np.uint8],
    ) -> None:
        """For each range, into ``out``: do all its pages have these attributes? GIL released."""
    def mixed(self, small: NDArray[np.uint8], large: NDArray[np.uint8]) -> None:
        """Which blocks hold unequal attributes: those of 2 MiB into ``small``, of 1 GiB into ``large``.

        As KVM finds it when a slot is made: a small block against its first page, a large one by its small
        ones and their first pages.
        """
    def runs(self, npages: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """The runs of ``[0, npages)``, not empty: ``(starts, attributes)`` as uint64 and uint8 arrays, in order."""
    @property
    def nodes(self) -> int:
        """Nodes in use."""
    @property
    def nbytes(self) -> int:
        """Bytes of the nodes: 576 each, as in the kernel."""
