# cython: freethreading_compatible=True
"""Many ioctls on one file descriptor without Python between them.

One memslot call takes the kernel tens of microseconds, an empty one about one: a Python loop would be a
visible part of what the study measures.
"""

from libc.errno cimport EAGAIN, EFAULT, ENOENT, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int descriptor, unsigned long request, ...)

cdef struct kvm_pre_fault_memory:
    uint64_t gpa
    uint64_t size
    uint64_t flags
    uint64_t padding[5]

cdef enum:
    #: Where struct kvm_run has its exit reason, and the flags of KVM_EXIT_MEMORY_FAULT.
    EXIT_REASON = 8
    FAULT_FLAGS = 32
    KVM_EXIT_UNKNOWN = 0
    KVM_EXIT_MEMORY_FAULT = 39
    KVM_MEMORY_EXIT_FLAG_PRIVATE = 8
    PAGE_SHIFT = 12


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


def read_private(int vcpu, unsigned long request, unsigned char[::1] shared, const uint64_t[::1] gfns,
                 unsigned char[::1] out):
    """Ask KVM for each page whether it is private: ``request`` is KVM_PRE_FAULT_MEMORY.

    ``vcpu``: its file descriptor; ``shared``: the vCPU's struct kvm_run. ``out[i]`` becomes 1 where ``gfns[i]``
    is private. Returns ``(done, error)`` as ``ioctl_many`` does; a signal ends it with EINTR. The GIL is
    released.

    A page that is private and has no guest_memfd behind it cannot be mapped: EFAULT, and the exit says that the
    access was a private one. Every other outcome is that of a shared access: done, no memslot (ENOENT), or memory
    that user space itself may not read (EFAULT without such an exit).
    """
    cdef Py_ssize_t done = 0
    cdef Py_ssize_t count = gfns.shape[0]
    cdef int error = 0
    cdef kvm_pre_fault_memory page
    cdef uint32_t reason = KVM_EXIT_UNKNOWN
    cdef uint64_t flags = 0
    if out.shape[0] != count or shared.shape[0] < FAULT_FLAGS + 8:
        raise ValueError("out must be as long as gfns, and shared as long as struct kvm_run")
    with nogil:
        while done < count:
            memset(&page, 0, sizeof(page))
            page.gpa = gfns[done] << PAGE_SHIFT
            page.size = 1 << PAGE_SHIFT
            reason = KVM_EXIT_UNKNOWN
            memcpy(&shared[EXIT_REASON], &reason, sizeof(reason))
            out[done] = 0
            if ioctl(vcpu, request, &page) < 0:
                error = errno
                if error == EAGAIN:
                    error = 0
                    continue
                if error == EFAULT:
                    memcpy(&reason, &shared[EXIT_REASON], sizeof(reason))
                    memcpy(&flags, &shared[FAULT_FLAGS], sizeof(flags))
                    out[done] = reason == KVM_EXIT_MEMORY_FAULT and flags & KVM_MEMORY_EXIT_FLAG_PRIVATE != 0
                elif error != ENOENT:
                    break
                error = 0
            done += 1
    return done, error
