import numpy as np
from numpy.typing import NDArray

from kvmattr import AttributeMap

def has(
    attribute_map: AttributeMap,
    starts: NDArray[np.uint64],
    stops: NDArray[np.uint64],
    attributes: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    """For each range, into ``out``: do all its pages have these attributes?

    The GIL is kept: without it the map would have to be shared with C first, which adds a lock to every
    later call.
    """
