# cython: freethreading_compatible=True
"""Batches without Python between their operations, for backends that have no call of their own for them."""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memset
from posix.mman cimport PROT_READ, PROT_WRITE, mprotect

import numpy as np

cimport kvmattr

kvmattr.import_api()

cdef enum:
    PAGE_SHIFT = 12


def update_array(uint8_t[::1] pages, const uint64_t[::1] starts, const uint64_t[::1] stops,
                 const uint8_t[::1] attributes, const uint8_t[::1] operations):
    """Apply ranges in order to an array of one byte a page; operations: 0 WRITE, 1 OR, 2 AND. GIL released."""
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


def array_has(const uint8_t[::1] pages, const uint64_t[::1] starts, const uint64_t[::1] stops,
              const uint8_t[::1] attributes):
    """For each range of such an array, not empty: do all its pages have these attributes? GIL released.

    All equal the first if each equals the next: one memcmp of the range with itself, a page on, which the C
    library does in vectors and which ends at the first difference.
    """
    cdef Py_ssize_t i
    cdef const uint8_t *first
    answers = np.empty(starts.shape[0], np.bool_)
    cdef uint8_t[::1] out = answers.view(np.uint8)
    with nogil:
        for i in range(starts.shape[0]):
            first = &pages[starts[i]]
            out[i] = first[0] == attributes[i] and memcmp(first, first + 1, stops[i] - starts[i] - 1) == 0
    return answers


def map_has(attribute_map, const uint64_t[::1] starts, const uint64_t[::1] stops, const uint8_t[::1] attributes):
    """For each range of an AttributeMap: do all its pages have these attributes? By its public C layer.

    The GIL is kept: without it the map would have to be shared with C first, which adds a lock to every
    later call.
    """
    cdef const kvmattr.Map *map = kvmattr.view_of(attribute_map)
    cdef int answer
    cdef Py_ssize_t i
    answers = np.empty(starts.shape[0], np.bool_)
    cdef uint8_t[::1] out = answers.view(np.uint8)
    for i in range(starts.shape[0]):
        answer = kvmattr.all(map, starts[i], stops[i], attributes[i], 0xFF)
        if answer < 0:
            raise ValueError(f"[{starts[i]}, {stops[i]}): {kvmattr.error_text(answer).decode()}")
        out[i] = answer
    return answers


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
