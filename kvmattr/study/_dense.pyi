import numpy as np
from numpy.typing import NDArray

def update_many(
    pages: NDArray[np.uint8],
    starts: NDArray[np.uint64],
    stops: NDArray[np.uint64],
    attributes: NDArray[np.uint8],
    operations: NDArray[np.uint8],
) -> None:
    """Apply ranges in order to ``pages`` (uint8[npages]); operations: 0 WRITE, 1 OR, 2 AND. GIL released."""
def has(
    pages: NDArray[np.uint8],
    starts: NDArray[np.uint64],
    stops: NDArray[np.uint64],
    attributes: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    """For each range, not empty, into ``out``: do all its pages have these attributes? GIL released.

    All equal the first if each equals the next: one memcmp of the range with itself, a page on, which the C
    library does in vectors and which ends at the first difference.
    """
