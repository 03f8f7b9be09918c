import numpy as np
from numpy.typing import NDArray

def walk(table: NDArray[np.uint64], steps: int) -> int: ...
