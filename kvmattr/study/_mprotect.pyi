import numpy as np
from numpy.typing import NDArray

def mprotect_many(
    address: int,
    starts: NDArray[np.uint64],
    stops: NDArray[np.uint64],
    attributes: NDArray[np.uint8],
) -> tuple[int, int]:
    """Protect ranges of the mapping at ``address``, in order: attributes 0 is read-write, else read-only.

    Returns ``(done, error)``: how many calls succeeded and the errno of the next, or 0. GIL released.
    """
