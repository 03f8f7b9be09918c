# cython: language_level=3
"""What other compiled code may ask of the machine (see ``Watcher`` in _vm.pyx)."""

from libc.stdint cimport uint8_t, uint64_t

# What a page does to an access when it is no MEMORY_FAULT, whose flags are never negative.
cdef enum:
    NO_FAULT = -1
    MMIO = -2

cdef class Watcher:
    cdef object machine
    cdef int watch(self, machine) except -1
    cdef int unwatch(self) except -1
    cdef void changed(self) noexcept
    cdef int look_up(self, uint64_t gpa, uint64_t wanted, int claimed, uint8_t *allowed) noexcept
    cdef int look_up_flat(self, uint64_t gpa, uint64_t wanted, int claimed, uint8_t *allowed) noexcept
    cdef exit(self, int fault, uint64_t gpa, uint64_t size, uint64_t wanted)
