# The memslot table and the records that it hands out.

class Memslot(NamedTuple):
    """One memslot as it was when it was looked up.

    ``start`` and ``stop`` are gfns, ``stop`` exclusive; ``userspace_addr`` and ``guest_memfd_offset`` are
    bytes; ``flags`` are ``KVM_MEM_...``; ``guest_memfd`` is the bound `GuestMemfd`, closed or not, or None.

    >>> table = MemslotTable()
    >>> table.set_region(3, 0, 0x100000, 0x2000, 0x7F0000000000)
    >>> slot = table.lookup(0x101)
    >>> slot.id, slot.npages, hex(slot.guest_phys_addr), slot.memory_size
    (3, 2, '0x100000', 8192)
    """

    id: int
    address_space: int
    start: int
    stop: int
    userspace_addr: int
    flags: int
    guest_memfd: object
    guest_memfd_offset: int

    @property
    def npages(self):
        """Pages in the slot."""
        return self.stop - self.start

    @property
    def guest_phys_addr(self):
        """The first byte's guest-physical address."""
        return self.start << PAGE_SHIFT

    @property
    def memory_size(self):
        """Bytes in the slot."""
        return self.npages << PAGE_SHIFT


cdef object memslot_of(const Slot *slot, int space, uint16_t index, object file):
    return Memslot(index - 1, space, slot.start, slot.stop, slot.userspace_addr, slot.flags & SLOT_FLAGS, file,
                   slot.guest_memfd_offset)


cdef inline object file_of(MemslotTable table, int space, uint16_t index):
    return table.guest_memfds.get(<uint32_t> space << ADDRESS_SPACE_SHIFT | <uint32_t> (index - 1))


cdef object memslot_record(MemslotTable table, int space, uint16_t index):
    """The record with this index, None if it is not in use. What it tells is of one moment."""
    cdef Slot slot
    with cython.critical_section(table):
        slot = table.spaces[space].records[index]
        file = file_of(table, space, index)
    return memslot_of(&slot, space, index, file) if slot.stop else None


cdef list memslot_records(MemslotTable table, int space, uint64_t start, uint64_t stop):
    """The slots that hold pages of [start, stop), in order, all of one moment: no Python code runs while they are
    copied, and no record is read after."""
    cdef SlotSet *slots = &table.spaces[space]
    cdef uint32_t capacity, count, i
    cdef uint16_t index
    cdef Slot *copies
    cdef uint16_t *indices
    cdef list files, found = []
    cdef bint complete = False
    while not complete:
        with cython.critical_section(table):
            capacity = slots.used
        files = [None] * capacity           # may run a collection, and so anything
        copies = <Slot *> malloc((sizeof(Slot) + sizeof(uint16_t)) * capacity + 1)
        if copies == NULL:
            raise MemoryError(f"no memory for the records of {capacity} memslots")
        indices = <uint16_t *> (copies + capacity)
        count = 0
        with cython.critical_section(table):
            index = slot_reaching(slots, start)
            while index and slots.records[index].start < stop and count < capacity:
                copies[count] = slots.records[index]
                indices[count] = index
                if copies[count].flags & GUEST_MEMFD:
                    files[count] = file_of(table, space, index)
                count += 1
                index = slot_after(slots, index)
            complete = index == 0 or slots.records[index].start >= stop
        if not complete:                    # there are more by now
            free(copies)
    try:
        for i in range(count):
            found.append(memslot_of(&copies[i], space, indices[i], files[i]))
        return found
    finally:
        free(copies)


cdef SlotSet *space_of(MemslotTable table, object address_space) except NULL:
    return &table.spaces[between(address_space, 0, table.address_spaces - 1, "address_space")]


cdef int refuse_owned(MemslotTable table) except -1:
    """A VM's memslots change under its lock alone, or a batch beside walks a tree that changes."""
    if table.owned:
        raise RuntimeError("these memslots are a VM's: its set_user_memory_region changes them, under its lock")
    return 0


cdef int region_set(MemslotTable table, slot, flags, guest_phys_addr, memory_size, userspace_addr, bint region2,
                    guest_memfd, guest_memfd_offset) except -1:
    """One call of `MemslotTable.set_region`: its fields checked in KVM's order, then one change."""
    cdef uint32_t number = field(slot, 32, "slot")
    cdef uint32_t flag_bits = field(flags, 32, "flags")
    cdef uint64_t address = field(guest_phys_addr, 64, "guest_phys_addr")
    cdef uint64_t nbytes = field(memory_size, 64, "memory_size")
    cdef uint64_t host = field(userspace_addr, 64, "userspace_addr")
    cdef uint64_t offset = field(guest_memfd_offset, 64, "guest_memfd_offset")
    cdef SlotSet *slots
    cdef uint16_t index
    cdef Slot new

    check_fields(table, number, flag_bits, address, nbytes, host, offset, region2)
    slots = &table.spaces[number >> ADDRESS_SPACE_SHIFT]
    index = (number & 0xFFFF) + 1
    if nbytes == 0:
        region_delete(table, slots, index, number)
        return 0
    memset(&new, 0, sizeof(Slot))
    new.start = address >> PAGE_SHIFT
    new.stop = new.start + (nbytes >> PAGE_SHIFT)
    new.flags = flag_bits
    new.userspace_addr = host
    if slots.records[index].stop == 0:
        new.guest_memfd_offset = offset if flag_bits & GUEST_MEMFD else 0
        region_create(table, slots, index, number, &new, guest_memfd)
    else:
        region_modify(table, slots, index, &new)
    return 0


@cython.final
cdef class MemslotTable:
    """MemslotTable(nr_memslots=32764, *, phys_bits=52, address_spaces=1, private_memory=False, metadata='tdp', \
resolve_guest_memfd=None, guest_memfd=None, bound_twice=22, host=...)\n--\n\n\
The memslots of a VM, with the rules, the errnos and the costs of KVM's own table.

    ``nr_memslots`` is the number of slot ids of each address space, ``phys_bits`` the guest's MAXPHYADDR,
    ``address_spaces`` 1 or 2 (2: x86 with SMM), ``private_memory`` whether the VM type has guest_memfd slots.
    ``metadata='tdp'`` builds what a kernel with two-dimensional paging and no write tracking allocates for a
    slot, one u32 per 2 MiB and per 1 GiB; ``'full'`` builds rmap and gfn_track too (10 bytes a page). Both
    count all three in `stats`. ``guest_memfd`` says whether memslots may have one, private memory or not (None:
    with private memory alone), ``bound_twice`` is the errno of a second memslot on a range of one. ``host`` is a
    `kvmattr.hosts.Host`: alignment, the end of user space, memslots of KVM's own. ``resolve_guest_memfd`` maps
    a file descriptor to its `GuestMemfd`, to None if it is not open, to anything else if it is another kind of
    file; it is called at the place where KVM looks up the descriptor. ValueError or TypeError for arguments
    that make no table.

    Iterating yields every `Memslot`, as of now, in gfn order, one address space after the other.

    Source: __kvm_set_memory_region and kvm_set_memslot in virt/kvm/kvm_main.c,
    kvm_arch_prepare_memory_region in arch/x86/kvm/x86.c, as observed on Linux 6.12.

    >>> table = MemslotTable()
    >>> table.set_region(0, 0, 0, 0x200000, 0x7F0000000000)
    >>> table.set_region(1, 0, 0x100000, 0x200000, 0x7F0000000000)
    Traceback (most recent call last):
    FileExistsError: [Errno 17] [0x100000, 0x300000) overlaps memslot 0, [0x0, 0x200000)
    >>> [(slot.id, slot.start, slot.stop) for slot in table]
    [(0, 0, 512)]
    """

    def __cinit__(self, nr_memslots=uapi.KVM_USER_MEM_SLOTS, *, phys_bits=52, address_spaces=1,
                  private_memory=False, metadata="tdp", resolve_guest_memfd=None, guest_memfd=None,
                  int bound_twice=EINVAL, host=X86_64):
        cdef int space
        cdef uint32_t nr = between(nr_memslots, 1, MAX_NR_MEMSLOTS, "nr_memslots")
        cdef MetadataKind kind = metadata_kind(metadata)
        self.phys_bits = between(phys_bits, 32, 52, "phys_bits")
        self.address_spaces = between(address_spaces, 1, MAX_ADDRESS_SPACES, "address_spaces")
        self.private_memory = private_memory
        self.guest_memfd = private_memory if guest_memfd is None else guest_memfd
        self.bound_twice = bound_twice
        self.host = host
        self.user_space_end = host.user_space_end
        self.page_size = host.page_size
        self.memslot_alignment = host.memslot_alignment or host.page_size
        self.readonly_memslots = host.readonly_memslots
        self.guest_memfd_needs_mmap = host.guest_memfd_needs_mmap
        self.guest_memfds = {}
        if resolve_guest_memfd is not None and not callable(resolve_guest_memfd):
            raise TypeError(f"resolve_guest_memfd is {resolve_guest_memfd!r}: it must be callable or None")
        self.resolve_guest_memfd = resolve_guest_memfd
        for space in range(self.address_spaces):
            slots_open(&self.spaces[space], nr, kind, uapi.KVM_INTERNAL_MEM_SLOTS)

    def __dealloc__(self):
        cdef int space
        for space in range(MAX_ADDRESS_SPACES):
            slots_close(&self.spaces[space])

    @property
    def nr_memslots(self):
        """Slot ids of each address space."""
        return self.spaces[0].nr_memslots

    @property
    def metadata(self):
        """``'tdp'`` or ``'full'``."""
        return METADATA_NAMES[self.spaces[0].metadata]

    @property
    @cython.critical_section
    def generation(self):
        """Number of sets of memslots installed so far; moves with every change, never back."""
        return self.spaces[0].counters.sets_installed + self.spaces[1].counters.sets_installed

    @cython.critical_section
    def __len__(self):
        return self.spaces[0].used + self.spaces[1].used

    def __repr__(self):
        slots, spaces = len(self), self.address_spaces
        return (f"<MemslotTable: {slots:,} memslot{'' if slots == 1 else 's'} of at most {self.nr_memslots:,}"
                f"{'' if spaces == 1 else f' in each of {spaces} address spaces'}, generation {self.generation:#x}>")

    def __iter__(self):
        cdef int space
        slots = []
        for space in range(self.address_spaces):
            slots += memslot_records(self, space, 0, MAX_GFN)
        return iter(slots)

    @cython.critical_section
    def set_region(self, slot, flags, guest_phys_addr, memory_size, userspace_addr=0, *, bint region2=False,
                   guest_memfd=-1, guest_memfd_offset=0):
        """Create, move, delete or change a memslot: KVM_SET_USER_MEMORY_REGION, ``region2``: ...REGION2.

        Arguments are the structure's fields: ``slot`` is the id with the address space in its upper 16 bits,
        addresses and sizes are bytes; ``memory_size`` 0 deletes. ``guest_memfd`` is a file descriptor for
        ``resolve_guest_memfd``; it and its offset count only with KVM_MEM_GUEST_MEMFD.

        Raises OSError with KVM's errno, in KVM's order: EINVAL for flags, ids, alignment, ranges and what a
        slot cannot change into, EEXIST for an overlap, EBADF for a closed descriptor, EINVAL for a
        guest_memfd that does not fit, EINVAL beyond ``phys_bits``, ENOMEM. ValueError or TypeError
        for what does not fit its field. RuntimeError for the memslots of a VM: its own calls change them, under its
        lock. A call that raises has changed nothing.

        O(log memslots), plus the metadata of a slot that is created or moved: 4 bytes each 2 MiB. Source:
        __kvm_set_memory_region in virt/kvm/kvm_main.c.

        >>> table = MemslotTable(phys_bits=40)
        >>> table.set_region(0, 0, 1 << 40, 4096)
        Traceback (most recent call last):
        OSError: [Errno 22] [0x10000000000, 0x10000001000) ends beyond the guest's 40 physical address bits
        """
        refuse_owned(self)
        region_set(self, slot, flags, guest_phys_addr, memory_size, userspace_addr, region2, guest_memfd,
                   guest_memfd_offset)

    @cython.critical_section
    def _set_region(self, slot, flags, guest_phys_addr, memory_size, userspace_addr=0, *, bint region2=False,
                    guest_memfd=-1, guest_memfd_offset=0):
        """`set_region` for the VM that has the table, under its lock."""
        region_set(self, slot, flags, guest_phys_addr, memory_size, userspace_addr, region2, guest_memfd,
                   guest_memfd_offset)

    @cython.critical_section
    def own_regions(self, regions):
        """Make KVM's own memslots, ``(guest_phys_addr, memory_size)`` each, numbered from nr_memslots on.

        At most three, in every address space. OSError: EEXIST over a memslot or if they are there already,
        EINVAL, ENOMEM, and RuntimeError for the memslots of a VM, having changed nothing. Source:
        __x86_set_memory_region in arch/x86/kvm/x86.c.

        >>> table = MemslotTable()
        >>> table.own_regions([(0xFEE00000, 4096)])
        >>> table.lookup(0xFEE00).id
        32764
        """
        refuse_owned(self)
        own_create_all(self, list(regions))

    @cython.critical_section
    def _own_regions(self, regions):
        """`own_regions` for the VM that has the table, under its lock."""
        own_create_all(self, list(regions))

    def lookup(self, gfn, address_space=0):
        """The `Memslot` that holds a gfn, or None. O(log memslots); at once for the slot found last.

        IndexError for a gfn outside [0, 2^52), ValueError for an address space that the table does not have.
        Source: search_memslots and __gfn_to_memslot in include/linux/kvm_host.h.

        >>> MemslotTable().lookup(5) is None
        True
        """
        cdef SlotSet *slots = space_of(self, address_space)
        cdef uint64_t wanted = page(gfn, MAX_GFN)
        cdef const Slot *slot
        cdef Slot found
        cdef uint16_t index
        with cython.critical_section(self):
            slot = slot_at(slots, wanted)
            index = slot - slots.records if slot != NULL else 0
            found = slots.records[index]
            file = file_of(self, slots - &self.spaces[0], index) if index else None
        return memslot_of(&found, slots - &self.spaces[0], index, file) if index else None

    def slot(self, slot):
        """The `Memslot` with this id (address space in the upper 16 bits, as in `set_region`), or None. O(1).

        >>> MemslotTable().slot(0) is None
        True
        """
        cdef uint32_t number = field(slot, 32, "slot")
        cdef int space = number >> ADDRESS_SPACE_SHIFT
        cdef uint32_t id = number & 0xFFFF
        if space >= self.address_spaces or id >= self.spaces[space].nr_records:
            return None
        return memslot_record(self, space, id + 1)

    def overlapping(self, start, stop, address_space=0):
        """The `Memslot` records that hold pages of the gfns [start, stop), in gfn order, as a list.

        O(log memslots + result). ValueError for a range that is not within [0, 2^52] or an address space that
        the table does not have.

        >>> table = MemslotTable()
        >>> table.set_region(0, 0, 0, 0x2000)
        >>> [slot.id for slot in table.overlapping(1, 100)], table.overlapping(2, 100)
        ([0], [])
        """
        cdef SlotSet *slots = space_of(self, address_space)
        cdef uint64_t first, last
        page_range(start, stop, MAX_GFN, &first, &last)
        return [] if first == last else memslot_records(self, slots - &self.spaces[0], first, last)

    def stats(self):
        """What the table holds now, and what its changes have cost since it was made, as a dict of int.

        ``memslots``, ``pages``, ``metadata_held_bytes``: now. ``slots_created``, ``slots_deleted``,
        ``slots_moved``, ``slots_flags_changed``, ``slots_copied`` (INVALID stand-ins, and new records of
        changed slots), ``sets_installed``, ``large_page_bytes`` and ``dirty_bitmap_bytes`` (built),
        ``rmap_bytes`` and ``gfn_track_bytes`` (built with metadata='full', else what would have been):
        counters.

        >>> table = MemslotTable()
        >>> table.set_region(0, 0, 0, 1 << 40)
        >>> table.stats()["large_page_bytes"]  # 2^19 blocks of 2 MiB, 2^10 of 1 GiB
        2101248
        """
        cdef SlotSet spaces[2]
        cdef int space
        with cython.critical_section(self):     # all of one moment
            spaces[0], spaces[1] = self.spaces[0], self.spaces[1]
        totals = slots_stats(&spaces[0])
        for space in range(1, self.address_spaces):
            for name, value in slots_stats(&spaces[space]).items():
                totals[name] += value
        return totals

    def validate(self):
        """Recompute every invariant; AssertionError names the first that is broken. O(memslots).

        Of bindings of guest_memfds it is the caller's to see that none changes meanwhile.
        """
        cdef int space
        cdef const char *fault
        for space in range(self.address_spaces):
            with cython.critical_section(self):
                fault = slots_fault(&self.spaces[space])
            if fault != NULL:
                raise AssertionError(f"address space {space}: {fault.decode()}")
        bound = {(number, id(file)) for number, file in self.guest_memfds.items() if not file.closed}
        listed = {(number, id(file)) for file in set(self.guest_memfds.values())
                  for _, _, number in file.bindings}
        if bound != listed:
            raise AssertionError("a guest_memfd's bindings are not those of the memslots")
