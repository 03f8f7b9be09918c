# cython: freethreading_compatible=True
"""The work of the yardstick: a chain of multiplications that no compiler can shorten."""

from libc.stdint cimport uint64_t


def chain(uint64_t steps):
    """Do so many steps, each of which needs the one before; the last value. GIL released.

    It lives in registers: what others do to the caches must not move what times are divided by.
    """
    cdef uint64_t value = 1, _
    with nogil:
        for _ in range(steps):
            value = (value ^ (value >> 33)) * <uint64_t> 6364136223846793005 + 1
    return value
