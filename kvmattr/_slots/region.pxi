# KVM_SET_USER_MEMORY_REGION: its checks in KVM's order, and what it then does to the set.

cdef int check_fields(MemslotTable table, uint32_t number, uint32_t flags, uint64_t address, uint64_t nbytes,
                      uint64_t host, uint64_t offset, bint region2) except -1:
    """KVM's checks of the structure alone, in KVM's order; each is EINVAL."""
    cdef uint32_t known = LOG_DIRTY | READONLY
    cdef uint32_t valid = LOG_DIRTY | READONLY if table.readonly_memslots else LOG_DIRTY
    cdef uint64_t unaligned = table.page_size - 1
    cdef uint32_t id = number & 0xFFFF
    cdef uint32_t space = number >> ADDRESS_SPACE_SHIFT
    if not region2 and flags & ~known:
        raise OSError(EINVAL, f"flags are {flags:#x}: KVM_SET_USER_MEMORY_REGION knows {known:#x}")
    if id >= table.spaces[0].nr_memslots:
        raise OSError(EINVAL, f"slot id is {id}: it must be below nr_memslots, {table.spaces[0].nr_memslots}")
    if table.guest_memfd and flags & GUEST_MEMFD:
        valid = GUEST_MEMFD     # excludes the other two
    if flags & ~valid:
        raise OSError(EINVAL, f"flags are {flags:#x}: " + (
            "KVM_MEM_GUEST_MEMFD excludes all others" if valid == GUEST_MEMFD else
            "this host has no KVM_MEM_READONLY" if flags & READONLY & ~valid else
            "KVM_MEM_GUEST_MEMFD needs a VM with private memory" if not flags & ~(valid | GUEST_MEMFD) else
            f"KVM_SET_USER_MEMORY_REGION2 knows {valid | GUEST_MEMFD:#x}"))
    if nbytes & unaligned:
        raise OSError(EINVAL, f"memory_size is {nbytes:#x}: it must be a multiple of {table.page_size:#x}")
    if address & unaligned:
        raise OSError(EINVAL, f"guest_phys_addr is {address:#x}: it must be a multiple of {table.page_size:#x}")
    if host & unaligned:
        raise OSError(EINVAL, f"userspace_addr is {host:#x}: it must be a multiple of {table.page_size:#x}")
    if host > table.user_space_end or nbytes > table.user_space_end - host:
        raise OSError(EINVAL, f"userspace_addr {host:#x} + memory_size {nbytes:#x} passes the end of user "
                              f"space, {table.user_space_end:#x}")
    if flags & GUEST_MEMFD:
        if offset & unaligned:
            raise OSError(EINVAL, f"guest_memfd_offset is {offset:#x}: it must be a multiple of "
                                  f"{table.page_size:#x}")
        if offset + nbytes < offset:
            raise OSError(EINVAL, f"guest_memfd_offset {offset:#x} + memory_size {nbytes:#x} passes 2^64")
    if space >= <uint32_t> table.address_spaces:
        raise OSError(EINVAL, f"slot {number:#x} names address space {space}: there are "
                              f"{table.address_spaces}")
    if address + nbytes < address:
        raise OSError(EINVAL, f"guest_phys_addr {address:#x} + memory_size {nbytes:#x} passes 2^64 - 1")
    if nbytes >> PAGE_SHIFT > MAX_NR_PAGES:
        raise OSError(EINVAL, f"memory_size {nbytes:#x} is {nbytes >> PAGE_SHIFT} pages: a memslot has at "
                              f"most {MAX_NR_PAGES}")
    return 0


cdef int check_overlap(MemslotTable table, SlotSet *slots, uint16_t index, const Slot *new) except -1:
    """EEXIST if new overlaps a slot other than its own record's."""
    cdef uint16_t other = slot_reaching(slots, new.start)
    if other == index:
        other = slot_after(slots, other)
    if other and slots.records[other].start < new.stop:
        raise OSError(EEXIST, f"[{new.start << PAGE_SHIFT:#x}, {new.stop << PAGE_SHIFT:#x}) overlaps memslot "
                              f"{other - 1}, [{slots.records[other].start << PAGE_SHIFT:#x}, "
                              f"{slots.records[other].stop << PAGE_SHIFT:#x})")
    return 0


cdef int allocate(MemslotTable table, SlotSet *slots, Slot *new) except -1:
    """The architecture's checks and the blocks of a slot that gets a place: EINVAL, ENOMEM."""
    cdef MetadataSize size = metadata_size(slots, new.start, new.stop)
    cdef uint64_t askew = new.start << PAGE_SHIFT | new.stop << PAGE_SHIFT | new.userspace_addr
    if askew & (table.memslot_alignment - 1):
        raise OSError(EINVAL, f"[{new.start << PAGE_SHIFT:#x}, {new.stop << PAGE_SHIFT:#x}) at userspace_addr "
                              f"{new.userspace_addr:#x}: memslots of this host are multiples of "
                              f"{table.memslot_alignment:#x}")
    if new.flags & GUEST_MEMFD and table.guest_memfd_needs_mmap and not new.flags & GUEST_MEMFD_ALONE:
        raise OSError(EINVAL, "this host's memslots take a guest_memfd only if it serves shared pages too: "
                              "create it with GUEST_MEMFD_FLAG_MMAP")
    if new.stop > <uint64_t> 1 << (table.phys_bits - PAGE_SHIFT):
        raise OSError(EINVAL, f"[{new.start << PAGE_SHIFT:#x}, {new.stop << PAGE_SHIFT:#x}) ends beyond the "
                              f"guest's {table.phys_bits} physical address bits")
    new.metadata = malloc(size.block_bytes)
    if new.metadata == NULL:
        raise OSError(ENOMEM, f"no memory for {size.block_bytes} bytes of memslot metadata")
    return 0


cdef int allocate_dirty_bitmaps(MemslotTable table, SlotSet *slots, Slot *new) except -1:
    """ENOMEM, or the zeroed bitmaps of a slot with LOG_DIRTY."""
    cdef uint64_t nbytes = dirty_bitmaps_size(new.start, new.stop)
    new.extra.dirty_bitmaps = malloc(nbytes)
    if new.extra.dirty_bitmaps == NULL:
        raise OSError(ENOMEM, f"no memory for {nbytes} bytes of dirty bitmaps")
    memset(new.extra.dirty_bitmaps, 0, nbytes)
    return 0


cdef GuestMemfd resolved(MemslotTable table, object descriptor):
    """The open guest_memfd of this table behind a descriptor. Runs Python code, which may change the table."""
    file = None if table.resolve_guest_memfd is None else table.resolve_guest_memfd(descriptor)
    if file is None or isinstance(file, GuestMemfd) and kvmattr_load_int(&(<GuestMemfd> file).is_shut):
        raise OSError(EBADF, f"guest_memfd is {descriptor}: no such file is open")
    if not isinstance(file, GuestMemfd):
        raise OSError(EINVAL, f"guest_memfd is {descriptor}: that file is no guest_memfd")
    if (<GuestMemfd> file).table is not table:
        raise OSError(EINVAL, f"guest_memfd is {descriptor}: it belongs to another VM")
    return file


cdef int region_create(MemslotTable table, SlotSet *slots, uint16_t index, uint32_t number, Slot *new,
                       object descriptor) except -1:
    cdef GuestMemfd file = None
    cdef uint64_t installed = slots.counters.sets_installed
    check_overlap(table, slots, index, new)
    if new.flags & GUEST_MEMFD:
        file = resolved(table, descriptor)
        if slots.counters.sets_installed != installed:
            if slots.records[index].stop:
                return region_modify(table, slots, index, new)
            check_overlap(table, slots, index, new)
        file.bind(new.guest_memfd_offset, (new.stop - new.start) << PAGE_SHIFT, new.start, number)
        if file.serves_shared:
            new.flags |= GUEST_MEMFD_ALONE
    try:
        if new.flags & LOG_DIRTY:
            allocate_dirty_bitmaps(table, slots, new)
        allocate(table, slots, new)
        if file is not None:
            table.guest_memfds[number] = file
            new.flags |= GUEST_MEMFD_OPEN
            new.extra.file_map = file.file_map
    except BaseException:
        if new.flags & LOG_DIRTY:
            free(new.extra.dirty_bitmaps)
        free(new.metadata)
        if file is not None:
            file.unbind(new.guest_memfd_offset)
        raise
    metadata_build(slots, new, new.metadata)
    if new.flags & LOG_DIRTY:
        slots.counters.dirty_bitmap_bytes += dirty_bitmaps_size(new.start, new.stop)
    kvmattr_gate_close(&table.gate)
    slot_create(slots, index, new)
    kvmattr_gate_open(&table.gate)
    return 0


cdef int region_modify(MemslotTable table, SlotSet *slots, uint16_t index, Slot *new) except -1:
    cdef Slot old = slots.records[index]
    cdef uint32_t id = index - 1
    cdef bint moves = new.start != old.start
    if (new.flags | old.flags) & GUEST_MEMFD:
        raise OSError(EINVAL, f"memslot {id} exists: KVM_MEM_GUEST_MEMFD is for new memslots alone, which "
                              "can then only be deleted")
    if new.userspace_addr != old.userspace_addr:
        raise OSError(EINVAL, f"userspace_addr is {new.userspace_addr:#x}: memslot {id} has "
                              f"{old.userspace_addr:#x}, which cannot change")
    if new.stop - new.start != old.stop - old.start:
        raise OSError(EINVAL, f"memory_size is {(new.stop - new.start) << PAGE_SHIFT:#x}: memslot {id} has "
                              f"{(old.stop - old.start) << PAGE_SHIFT:#x}, which cannot change")
    if (new.flags ^ old.flags) & READONLY:
        raise OSError(EINVAL, f"flags are {new.flags:#x}: memslot {id} has {old.flags:#x}, and "
                              "KVM_MEM_READONLY cannot change")
    if not moves and new.flags == old.flags:
        return 0
    if moves:
        check_overlap(table, slots, index, new)
    new.extra.dirty_bitmaps = old.extra.dirty_bitmaps if new.flags & LOG_DIRTY else NULL
    try:
        if new.flags & LOG_DIRTY and new.extra.dirty_bitmaps == NULL:
            allocate_dirty_bitmaps(table, slots, new)
        if moves:
            allocate(table, slots, new)
    except BaseException:
        if new.extra.dirty_bitmaps != old.extra.dirty_bitmaps:
            free(new.extra.dirty_bitmaps)
        raise
    if old.extra.dirty_bitmaps == NULL and new.extra.dirty_bitmaps != NULL:
        slots.counters.dirty_bitmap_bytes += dirty_bitmaps_size(new.start, new.stop)
    if moves:
        metadata_build(slots, new, new.metadata)
    kvmattr_gate_close(&table.gate)
    if moves:
        slot_move(slots, index, new)
    else:
        slot_change_flags(slots, index, new)
    kvmattr_gate_open(&table.gate)
    if new.extra.dirty_bitmaps == NULL:
        free(old.extra.dirty_bitmaps)
    return 0


cdef int region_delete(MemslotTable table, SlotSet *slots, uint16_t index, uint32_t number) except -1:
    cdef Slot old
    cdef GuestMemfd file
    if slots.records[index].stop == 0:
        raise OSError(EINVAL, f"memory_size is 0: there is no memslot {index - 1} to delete")
    file = table.guest_memfds.pop(number, None)
    if file is not None:
        file.unbind(slots.records[index].guest_memfd_offset)
    kvmattr_gate_close(&table.gate)
    old = slot_delete(slots, index)
    kvmattr_gate_open(&table.gate)
    free(old.metadata)
    if old.flags & LOG_DIRTY:
        free(old.extra.dirty_bitmaps)
    return 0


cdef int own_create(MemslotTable table, SlotSet *slots, uint16_t index, uint64_t address,
                    uint64_t nbytes) except -1:
    """Make one memslot of KVM's own: EEXIST where another is, or it is there already."""
    cdef Slot new
    memset(&new, 0, sizeof(Slot))
    new.start = address >> PAGE_SHIFT
    new.stop = new.start + (nbytes >> PAGE_SHIFT)
    if slots.records[index].stop:
        raise OSError(EEXIST, f"memslot {index - 1}: KVM has made its own there already")
    check_overlap(table, slots, index, &new)
    allocate(table, slots, &new)
    metadata_build(slots, &new, new.metadata)
    kvmattr_gate_close(&table.gate)
    slot_create(slots, index, &new)
    kvmattr_gate_open(&table.gate)
    return 0


cdef int own_create_all(MemslotTable table, list regions) except -1:
    """KVM's own memslots, in every address space: all of them or, with the error of the first, none."""
    cdef uint32_t first = table.spaces[0].nr_memslots + 1
    cdef list made = []
    cdef int space
    cdef uint16_t index
    cdef uint64_t address, nbytes
    cdef Slot old
    if table.spaces[0].nr_memslots + len(regions) > table.spaces[0].nr_records:
        raise OSError(ENOMEM, f"{table.spaces[0].nr_memslots} memslots leave no numbers for KVM's own")
    try:
        for number, (address, nbytes) in enumerate(regions):
            for space in range(table.address_spaces):
                own_create(table, &table.spaces[space], first + <uint32_t> number, address, nbytes)
                made.append((space, first + <uint32_t> number))
    except BaseException:
        for space, index in made:
            kvmattr_gate_close(&table.gate)
            old = slot_delete(&table.spaces[space], index)
            kvmattr_gate_open(&table.gate)
            free(old.metadata)
        raise
    return 0
