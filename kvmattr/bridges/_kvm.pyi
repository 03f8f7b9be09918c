import numpy as np
from numpy.typing import NDArray

def ioctl_many(
    descriptor: int, request: int, records: NDArray[np.uint8]
) -> tuple[int, int]: ...
def read_private(
    vcpu: int, request: int, shared: memoryview, gfns: NDArray[np.uint64], out: NDArray[np.uint8]
) -> tuple[int, int]: ...
