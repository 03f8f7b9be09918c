# cython: freethreading_compatible=True
"""A dense array, one attribute byte a page: what numpy does for ``a[start:stop] = v`` and ``== v``, in batches.

The loops are compiled so that the dense array is charged for its pages and not for Python's calls, as the
other models are.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memset


def update_many(uint8_t[::1] pages, const uint64_t[::1] starts, const uint64_t[::1] stops,
                const uint8_t[::1] attributes, const uint8_t[::1] operations):
    """Apply ranges in order to ``pages`` (uint8[npages]); operations: 0 WRITE, 1 OR, 2 AND. GIL released."""
    cdef Py_ssize_t i
    cdef uint64_t page
    cdef uint8_t value
    with nogil:
        for i in range(starts.shape[0]):
            value = attributes[i]
            if operations[i] == 0:
                memset(&pages[starts[i]], value, stops[i] - starts[i])
            elif operations[i] == 1:
                for page in range(starts[i], stops[i]):
                    pages[page] |= value
            else:
                for page in range(starts[i], stops[i]):
                    pages[page] &= value


def has(const uint8_t[::1] pages, const uint64_t[::1] starts, const uint64_t[::1] stops,
        const uint8_t[::1] attributes, uint8_t[::1] out):
    """For each range, not empty, into ``out``: do all its pages have these attributes? GIL released.

    All equal the first if each equals the next: one memcmp of the range with itself, a page on, which the C
    library does in vectors and which ends at the first difference.
    """
    cdef Py_ssize_t i
    cdef const uint8_t *first
    with nogil:
        for i in range(starts.shape[0]):
            first = &pages[starts[i]]
            out[i] = first[0] == attributes[i] and memcmp(first, first + 1, stops[i] - starts[i] - 1) == 0
