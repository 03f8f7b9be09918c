import numpy as np
from numpy.typing import NDArray

def update_many(
    pages: NDArray[np.uint8],
    starts: NDArray[np.uint64],
    stops: NDArray[np.uint64],
    attributes: NDArray[np.uint8],
    operations: NDArray[np.uint8],
) -> None: ...
def has(
    pages: NDArray[np.uint8],
    starts: NDArray[np.uint64],
    stops: NDArray[np.uint64],
    attributes: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None: ...
