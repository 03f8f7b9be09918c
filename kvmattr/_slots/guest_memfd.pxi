# The file behind private memory, as far as memslots see it.

@cython.final
cdef class GuestMemfd:
    """GuestMemfd(table, size, flags=0, serves_shared=False)\n--\n\n\
A guest_memfd as a memslot table sees it: a file of ``size`` bytes whose ranges are bound to memslots.

    ``GuestMemfd(table, size)`` is KVM_CREATE_GUEST_MEMFD on the VM that owns ``table``: OSError(EINVAL) for a
    size that is 0, negative as a signed number, or no multiple of the page size. ``flags`` are the
    ``GUEST_MEMFD_FLAG_...`` that it was created with, ``serves_shared`` says that guests find shared pages in the
    file too, not at userspace_addr. Only memslots of that table can bind it. After `close` its slots remain,
    without private memory.

    Source: virt/kvm/guest_memfd.c; the rows of CREATE_GUEST_MEMFD as observed on Linux 6.12.

    >>> table = MemslotTable(private_memory=True, resolve_guest_memfd={7: None}.get)
    >>> GuestMemfd(table, 4096).size
    4096
    """

    cdef readonly MemslotTable table
    cdef readonly uint64_t size
    cdef readonly uint64_t flags
    cdef readonly bint serves_shared
    cdef readonly bint closed
    cdef list ranges            # (first byte, byte after the last, the structure's ``slot``), in order

    def __cinit__(self, MemslotTable table not None, object size, flags=0, bint serves_shared=False):
        cdef uint64_t nbytes = field(size, 64, "size")
        if nbytes == 0 or nbytes >= <uint64_t> 1 << 63 or nbytes & (table.page_size - 1):
            raise OSError(EINVAL, f"size is {nbytes:#x}: a guest_memfd has 1 .. 2^63 - 1 bytes "
                                  "in whole pages")
        self.table = table
        self.size = nbytes
        self.flags = field(flags, 64, "flags")
        self.serves_shared = serves_shared
        self.ranges = []

    @property
    def bindings(self):
        """``(first byte, byte after the last, slot)`` of each bound range, in file order."""
        return tuple(self.ranges)

    def close(self):
        """Close the file: its memslots stay, immutable, and have no private memory any more."""
        cdef SlotSet *slots
        cdef uint32_t number
        self.closed = True
        for _, _, number in self.ranges:
            slots = &self.table.spaces[number >> ADDRESS_SPACE_SHIFT]
            slots.records[(number & 0xFFFF) + 1].flags &= ~GUEST_MEMFD_OPEN
        self.ranges.clear()

    cdef int bind(self, uint64_t offset, uint64_t nbytes, uint32_t number) except -1:
        """Bind a range to a slot; OSError outside the file (EINVAL) or on a bound range. Changes no slot."""
        if offset + nbytes > self.size:
            raise OSError(EINVAL, f"guest_memfd_offset {offset:#x} + memory_size {nbytes:#x} passes the end "
                                  f"of the guest_memfd, which has {self.size:#x} bytes")
        cdef Py_ssize_t place = bisect_left(self.ranges, (offset,))
        if (place < len(self.ranges) and self.ranges[place][0] < offset + nbytes
                or place > 0 and self.ranges[place - 1][1] > offset):
            raise OSError(self.table.bound_twice, f"the guest_memfd's range [{offset:#x}, "
                                                  f"{offset + nbytes:#x}) is already bound to a memslot")
        self.ranges.insert(place, (offset, offset + nbytes, number))
        return 0

    cdef int unbind(self, uint64_t offset) except -1:
        """Forget the range that starts at offset, unless closing the file has done so already."""
        if not self.closed:
            del self.ranges[bisect_left(self.ranges, (offset,))]
        return 0
