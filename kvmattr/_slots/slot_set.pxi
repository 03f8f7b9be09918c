# Changes of a set of memslots, with the steps of kvm_set_memslot (virt/kvm/kvm_main.c). Both generations hold
# the same slots except during a change: it is made in the inactive one, which is then installed for the
# lookups, and made again in the one that was active. A slot that goes or moves is first replaced by an
# INVALID copy, in a set of its own, so that no vCPU maps it while its mappings are zapped: deleting and
# moving install two sets, creating and changing flags one.

cdef int slots_open(SlotSet *slots, uint32_t nr_memslots, MetadataKind metadata, uint32_t own=0) except -1:
    """``own``: numbers of memslots after nr_memslots, for KVM's own, as far as 16 bits hold them."""
    cdef uint32_t nr_records = min(nr_memslots + own, <uint32_t> MAX_NR_MEMSLOTS)
    memset(slots, 0, sizeof(SlotSet))
    # Untouched records cost address space alone: 2 MiB for KVM's 32764.
    slots.records = <Slot *> calloc(nr_records + 1, sizeof(Slot))
    if slots.records == NULL:
        raise MemoryError(f"no memory for the records of {nr_memslots} memslots")
    slots.nr_memslots = nr_memslots
    slots.nr_records = nr_records
    slots.metadata = metadata
    return 0


cdef void slots_close(SlotSet *slots) noexcept nogil:
    cdef uint16_t index
    if slots.records == NULL:
        return
    index = slot_after(slots, 0)
    while index:
        free(slots.records[index].metadata)
        if slots.records[index].flags & LOG_DIRTY:
            free(slots.records[index].extra.dirty_bitmaps)
        index = slot_after(slots, index)
    free(slots.records)
    slots.records = NULL


cdef inline void install(SlotSet *slots) noexcept nogil:
    slots.active ^= 1
    slots.counters.sets_installed += 1


cdef inline void slots_insert(SlotSet *slots, uint16_t index) noexcept nogil:
    tree_insert(slots, 1 - slots.active, index)
    install(slots)
    tree_insert(slots, 1 - slots.active, index)


cdef inline void slots_remove(SlotSet *slots, uint16_t index) noexcept nogil:
    install(slots)              # the set in which the slot is INVALID
    slots.counters.slots_copied += 1
    tree_remove(slots, 1 - slots.active, index)
    tree_remove(slots, slots.active, index)


cdef inline void slot_create(SlotSet *slots, uint16_t index, const Slot *contents) noexcept nogil:
    """Make an unused record a slot. Takes over the blocks that contents names."""
    slots.records[index] = contents[0]
    slots_insert(slots, index)
    slots.used += 1
    slots.pages += contents.stop - contents.start
    slots.metadata_bytes += metadata_size(slots, contents.start, contents.stop).block_bytes
    slots.counters.slots_created += 1


cdef inline Slot slot_delete(SlotSet *slots, uint16_t index) noexcept nogil:
    """Make a slot an unused record. Gives its contents, blocks included, back to the caller."""
    cdef Slot contents = slots.records[index]
    slots_remove(slots, index)
    install(slots)
    memset(&slots.records[index], 0, sizeof(Slot))
    slots.used -= 1
    slots.pages -= contents.stop - contents.start
    slots.metadata_bytes -= metadata_size(slots, contents.start, contents.stop).block_bytes
    slots.counters.slots_deleted += 1
    return contents


cdef inline void slot_move(SlotSet *slots, uint16_t index, const Slot *contents) noexcept nogil:
    """Put a slot elsewhere. Frees its old metadata and takes over the blocks that contents names."""
    cdef const Slot *old = &slots.records[index]
    slots.metadata_bytes -= metadata_size(slots, old.start, old.stop).block_bytes
    slots_remove(slots, index)
    free(slots.records[index].metadata)
    slots.records[index] = contents[0]
    slots_insert(slots, index)
    slots.metadata_bytes += metadata_size(slots, contents.start, contents.stop).block_bytes
    slots.counters.slots_copied += 1
    slots.counters.slots_moved += 1


cdef inline void slot_change_flags(SlotSet *slots, uint16_t index, const Slot *contents) noexcept nogil:
    """Change what is not the place. The kernel swaps in a new record; here the record changes where it is."""
    slots.records[index].flags = contents.flags
    slots.records[index].extra = contents.extra
    install(slots)
    slots.counters.slots_copied += 1
    slots.counters.slots_flags_changed += 1


cdef const char *slots_fault(const SlotSet *slots) noexcept nogil:
    """The first broken invariant of a set, or NULL."""
    cdef const Slot *slot
    cdef const char *fault
    cdef uint64_t pages = 0, reached = 0, metadata_bytes = 0
    cdef uint32_t count
    cdef uint16_t index
    cdef int generation
    if slots.records[0].stop or slots.records[0].height[0] or slots.records[0].height[1]:
        return "record 0 is in use"
    for generation in range(2):
        count = 0
        fault = tree_fault(slots, generation, slots.roots[generation], &count)
        if fault != NULL:
            return fault
        if count != slots.used:
            return "a tree does not hold all memslots in use"
    index = slot_after(slots, 0)
    while index:
        slot = &slots.records[index]
        if slot.start >= slot.stop:
            return "a memslot is empty"
        if slot.start < reached:
            return "memslots overlap or are out of order"
        if slot.metadata == NULL:
            return "a memslot has no metadata"
        reached = slot.stop
        pages += slot.stop - slot.start
        metadata_bytes += metadata_size(slots, slot.start, slot.stop).block_bytes
        index = slot_after(slots, index)
    if pages != slots.pages:
        return "the number of pages in memslots is wrong"
    if metadata_bytes != slots.metadata_bytes:
        return "the number of metadata bytes is wrong"
    return NULL


cdef dict slots_stats(const SlotSet *slots):
    return {"memslots": slots.used, "pages": slots.pages, "metadata_held_bytes": slots.metadata_bytes,
            **slots.counters}
