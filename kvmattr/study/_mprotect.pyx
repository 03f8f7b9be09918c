# cython: freethreading_compatible=True
"""A batch of mprotect calls without Python between them."""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from posix.mman cimport PROT_READ, PROT_WRITE, mprotect

cdef enum:
    PAGE_SHIFT = 12


def mprotect_many(uint64_t address, const uint64_t[::1] starts, const uint64_t[::1] stops,
                  const uint8_t[::1] attributes):
    """Protect ranges of the mapping at ``address``, in order: attributes 0 is read-write, else read-only.

    Returns ``(done, error)``: how many calls succeeded and the errno of the next, or 0. GIL released.
    """
    cdef Py_ssize_t done = 0
    cdef int error = 0
    cdef int protection
    with nogil:
        while done < starts.shape[0]:
            protection = PROT_READ if attributes[done] else PROT_READ | PROT_WRITE
            if mprotect(<void *> (address + (starts[done] << PAGE_SHIFT)),
                        (stops[done] - starts[done]) << PAGE_SHIFT, protection) < 0:
                error = errno
                break
            done += 1
    return done, error
