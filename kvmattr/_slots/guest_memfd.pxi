# The file behind private memory, as memslots see it. Its attributes in _memslots.pxd.

@cython.final
cdef class GuestMemfd:
    """GuestMemfd(table, size, flags=0, serves_shared=False)\n--\n\n\
A guest_memfd of a machine: a file of ``size`` bytes whose ranges are bound to memslots.

    ``GuestMemfd(table, size)`` is KVM_CREATE_GUEST_MEMFD on the VM that owns ``table``: OSError(EINVAL) for a
    size that is 0, negative as a signed number, or no multiple of the page size. ``flags`` are the
    ``GUEST_MEMFD_FLAG_...`` that it was created with, ``serves_shared`` says that guests find shared pages in the
    file too, not at userspace_addr. Only memslots of that table can bind it. After `close` its slots remain,
    without private memory. ``pages`` is what a VM keeps of the file's pages, None without a VM.

    Source: virt/kvm/guest_memfd.c; the rows of CREATE_GUEST_MEMFD as observed on Linux 6.12.

    >>> table = MemslotTable(private_memory=True, resolve_guest_memfd={7: None}.get)
    >>> GuestMemfd(table, 4096).size
    4096
    """

    def __cinit__(self, MemslotTable table not None, object size, flags=0, bint serves_shared=False):
        cdef uint64_t nbytes = field(size, 64, "size")
        if nbytes == 0 or nbytes >= <uint64_t> 1 << 63 or nbytes & (table.page_size - 1):
            raise OSError(EINVAL, f"size is {nbytes:#x}: a guest_memfd has 1 .. 2^63 - 1 bytes "
                                  "in whole pages")
        self.table = table
        self.size = nbytes
        self.flags = field(flags, 64, "flags")
        self.serves_shared = serves_shared
        self.ranges = NULL

    def __dealloc__(self):
        free(self.ranges)

    def __repr__(self):
        """Its size and flags, and whether it is closed."""
        state = ", closed" if self.closed else ""
        return f"<GuestMemfd of {self.size:#x} bytes, flags {self.flags:#x}{state}>"

    @property
    def closed(self):
        """Whether the file is closed: its memslots stay, without private memory."""
        return kvmattr_load_int(&self.is_shut) != 0

    @property
    def attributes(self):
        """The attributes of each page of the file, a read-only AttributeMap; None without a VM."""
        return None if self.pages is None else self.pages.attributes

    @property
    def bindings(self):
        """``(first byte, byte after the last, slot)`` of each bound range, in file order."""
        cdef size_t place, count, capacity
        cdef Binding *copies
        cdef list found = []
        while True:
            with cython.critical_section(self.table):
                capacity = self.count
            copies = <Binding *> malloc(capacity * sizeof(Binding) + 1)
            if copies == NULL:
                raise MemoryError(f"no memory for {capacity} bindings of a guest_memfd")
            with cython.critical_section(self.table):
                count = self.count
                if 0 < count <= capacity:
                    memcpy(copies, self.ranges, count * sizeof(Binding))
            if count <= capacity:
                break
            free(copies)            # there are more by now
        try:
            for place in range(count):
                found.append((copies[place].start << PAGE_SHIFT, copies[place].stop << PAGE_SHIFT,
                              copies[place].number))
            return tuple(found)
        finally:
            free(copies)

    def pin(self, offset, size=PAGE_SIZE):
        """Hold the pages of the bytes [offset, offset + size) once more: none of them can become private.

        As a device does that reads or writes them. By page; ValueError for what is not within the file.
        """
        self.pages.pin(offset, size)

    def unpin(self, offset, size=PAGE_SIZE):
        """Hold the pages once less; ValueError, and nothing is changed, if one is not held."""
        self.pages.unpin(offset, size)

    def close(self):
        """Close the file: its memslots stay, immutable, and have no private memory any more.

        RuntimeError for a file of a VM: its `close_guest_memfd` does this, under its lock.
        """
        if self.table.owned:
            raise RuntimeError("this guest_memfd is a VM's: its close_guest_memfd closes it, under its lock")
        self.shut()

    cdef void shut(self) noexcept:
        cdef size_t place
        with cython.critical_section(self.table):
            kvmattr_store_int(&self.is_shut, 1)
            kvmattr_gate_close(&self.table.gate)
            for place in range(self.count):
                self.slot_of(place).flags &= ~GUEST_MEMFD_OPEN
            kvmattr_gate_open(&self.table.gate)
            self.count = 0

    cdef Slot *slot_of(self, size_t place) noexcept nogil:
        """The memslot of a binding."""
        cdef uint32_t number = self.ranges[place].number
        return &self.table.spaces[number >> ADDRESS_SPACE_SHIFT].records[(number & 0xFFFF) + 1]

    cdef list spans(self, uint64_t start, uint64_t stop):
        """``(first page, page after the last, gfn of the first)`` of what is bound in [start, stop)."""
        cdef size_t place = binding_reaching(self.ranges, self.count, start)
        cdef uint64_t first
        cdef list found = []
        while place < self.count and self.ranges[place].start < stop:
            first = max(start, self.ranges[place].start)
            found.append((first, min(stop, self.ranges[place].stop),
                          self.ranges[place].gfn + (first - self.ranges[place].start)))
            place += 1
        return found

    cdef int bind(self, uint64_t offset, uint64_t nbytes, uint64_t gfn, uint32_t number) except -1:
        """Bind a range to a slot; OSError outside the file (EINVAL) or on a bound range. Changes no slot."""
        cdef uint64_t start = offset >> PAGE_SHIFT, stop = (offset + nbytes) >> PAGE_SHIFT
        cdef size_t place
        cdef Binding *grown
        if offset + nbytes > self.size:
            raise OSError(EINVAL, f"guest_memfd_offset {offset:#x} + memory_size {nbytes:#x} passes the end "
                                  f"of the guest_memfd, which has {self.size:#x} bytes")
        place = binding_reaching(self.ranges, self.count, start)
        if place < self.count and self.ranges[place].start < stop:
            raise OSError(self.table.bound_twice, f"the guest_memfd's range [{offset:#x}, "
                                                  f"{offset + nbytes:#x}) is already bound to a memslot")
        if self.count == self.capacity:
            grown = <Binding *> realloc(self.ranges, 2 * (self.capacity + 1) * sizeof(Binding))
            if grown == NULL:
                raise OSError(ENOMEM, f"no memory for {self.count + 1} bindings of a guest_memfd")
            self.ranges = grown
            self.capacity = 2 * (self.capacity + 1)
        memmove(&self.ranges[place + 1], &self.ranges[place], (self.count - place) * sizeof(Binding))
        self.ranges[place] = Binding(start, stop, gfn, number)
        self.count += 1
        return 0

    cdef int unbind(self, uint64_t offset) except -1:
        """Forget the range that starts at offset, unless closing the file has done so already."""
        cdef size_t place
        if not self.is_shut:
            place = binding_reaching(self.ranges, self.count, offset >> PAGE_SHIFT)
            self.count -= 1
            memmove(&self.ranges[place], &self.ranges[place + 1], (self.count - place) * sizeof(Binding))
        return 0
