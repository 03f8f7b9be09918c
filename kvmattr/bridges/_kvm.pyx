"""A batch of ioctls on one file descriptor without Python between them.

One memslot call takes the kernel tens of microseconds, an empty one about one: a Python loop would be a
visible part of what the study measures.
"""

from libc.errno cimport errno

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int descriptor, unsigned long request, ...)


def ioctl_many(int descriptor, unsigned long request, const unsigned char[:, ::1] records):
    """Issue ``request`` once for each row of ``records``, in order, and stop at the first that fails.

    ``records``: uint8[n, size of the structure], C-contiguous. Returns ``(done, error)``: how many calls
    succeeded and the errno of the one after them, 0 when all did. The GIL is released.
    """
    cdef Py_ssize_t done = 0
    cdef Py_ssize_t count = records.shape[0]
    cdef int error = 0
    with nogil:
        while done < count:
            if ioctl(descriptor, request, &records[done, 0]) < 0:
                error = errno
                break
            done += 1
    return done, error
