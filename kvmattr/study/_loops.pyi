import numpy as np
from numpy.typing import NDArray

from kvmattr import AttributeMap

_Gfns = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]

def update_array(pages: _Bytes, starts: _Gfns, stops: _Gfns, attributes: _Bytes, operations: _Bytes) -> None:
    """Apply ranges in order to an array of one byte a page; operations: 0 WRITE, 1 OR, 2 AND. GIL released."""
def array_has(pages: _Bytes, starts: _Gfns, stops: _Gfns, attributes: _Bytes) -> NDArray[np.bool_]:
    """For each range of such an array, not empty: do all its pages have these attributes? GIL released.

    All equal the first if each equals the next: one memcmp of the range with itself, a page on, which the C
    library does in vectors and which ends at the first difference.
    """
def map_has(attribute_map: AttributeMap, starts: _Gfns, stops: _Gfns, attributes: _Bytes) -> NDArray[np.bool_]:
    """For each range of an AttributeMap: do all its pages have these attributes? By its public C layer.

    The GIL is kept: without it the map would have to be shared with C first, which adds a lock to every
    later call.
    """
def mprotect_many(address: int, starts: _Gfns, stops: _Gfns, attributes: _Bytes) -> tuple[int, int]:
    """Protect ranges of the mapping at ``address``, in order: attributes 0 is read-write, else read-only.

    Returns ``(done, error)``: how many calls succeeded and the errno of the next, or 0. GIL released.
    """
