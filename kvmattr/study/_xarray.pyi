import numpy as np
from numpy.typing import NDArray

class XArray:
    def update_many(
        self,
        starts: NDArray[np.uint64],
        stops: NDArray[np.uint64],
        attributes: NDArray[np.uint8],
        operations: NDArray[np.uint8],
    ) -> int: ...
    def lookup(self, gfns: NDArray[np.uint64], out: NDArray[np.uint8]) -> None: ...
    def has(
        self,
        starts: NDArray[np.uint64],
        stops: NDArray[np.uint64],
        attributes: NDArray[np.uint8],
        out: NDArray[np.uint8],
    ) -> None: ...
    def mixed(self, small: NDArray[np.uint8], large: NDArray[np.uint8]) -> None: ...
    def runs(self, npages: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]: ...
    @property
    def nodes(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
