import numpy as np
from numpy.typing import NDArray

def mprotect_many(
    address: int,
    starts: NDArray[np.uint64],
    stops: NDArray[np.uint64],
    attributes: NDArray[np.uint8],
) -> tuple[int, int]: ...
