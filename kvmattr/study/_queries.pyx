# cython: freethreading_compatible=True
"""Batches of range queries on an AttributeMap, without Python between them: by its public C layer."""

from libc.stdint cimport uint8_t, uint64_t

cimport kvmattr

kvmattr.import_api()


def has(attribute_map, const uint64_t[::1] starts, const uint64_t[::1] stops, const uint8_t[::1] attributes,
        uint8_t[::1] out):
    """For each range, into ``out``: do all its pages have these attributes?

    The GIL is kept: without it the map would have to be shared with C first, which adds a lock to every
    later call.
    """
    cdef const kvmattr.Map *map = kvmattr.view_of(attribute_map)
    cdef int answer
    cdef Py_ssize_t i
    for i in range(starts.shape[0]):
        answer = kvmattr.all(map, starts[i], stops[i], attributes[i], 0xFF)
        if answer < 0:
            raise ValueError(f"[{starts[i]}, {stops[i]}): {kvmattr.error_text(answer).decode()}")
        out[i] = answer
