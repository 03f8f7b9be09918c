"""The work of the yardstick: a chain of multiplications and look-ups that no compiler can shorten."""

from libc.stdint cimport uint64_t


def walk(const uint64_t[::1] table, uint64_t steps):
    """Do so many steps, each of which needs the one before; the last value. GIL released.

    ``table``: a power of two of words.
    """
    cdef uint64_t value = 1, mask = table.shape[0] - 1, step
    with nogil:
        for step in range(steps):
            value = value * <uint64_t> 6364136223846793005 + table[(value >> 33) & mask]
    return value
