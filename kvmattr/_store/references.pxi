# Who refers to what: nodes, run lists and leaves with their reference counts, how they come to be and how they go.

# ---- counters: the one place where they change ----

cdef inline void count_node(Family *family, int change) noexcept nogil:
    family.counters.nodes += change
    family.counters.live_bytes += change * PAGE_BYTES


cdef inline void count_leaf(Family *family, uint32_t handle, int change) noexcept nogil:
    cdef int size_class = page_info(family, handle >> 9).kind - PAGE_SLAB
    if size_class < LIST_CLASSES:
        family.counters.run_lists += change
    elif handle & KVMATTR_LINE:
        family.counters.run_lines += change
    else:
        family.counters.leaves[handle & 3] += change
    family.counters.live_bytes += change * <int>class_bytes[size_class]


cdef uint32_t node_new(Family *family, int level) noexcept nogil:
    cdef uint32_t page = page_take(family, PAGE_NODE)
    cdef PageInfo *info = page_info(family, page)
    info.references = 1
    info.level = <uint8_t>level
    count_node(family, 1)
    family.counters.node_allocations += 1
    return page << 9


cdef uint32_t leaf_new(Family *family, int tag) noexcept nogil:
    """A leaf with one reference; its content is still to be written."""
    cdef uint32_t handle = record_take(family, LIST_CLASSES + (tag & 3)) | <uint32_t>tag
    leaf_references(family, handle)[0] = 1
    count_leaf(family, handle, 1)
    family.counters.leaf_allocations += 1
    return handle


cdef uint32_t list_new(Family *family, int size_class) noexcept nogil:
    """A run list with one reference; its content is still to be written."""
    cdef uint32_t handle = record_take(family, size_class)
    cdef Record *record = <Record *>address_of(family, handle)
    record.references = 1
    record.size_class = <uint16_t>size_class
    count_leaf(family, handle, 1)
    family.counters.leaf_allocations += 1
    return handle
cdef inline uint32_t *leaf_references(const Family *family, uint32_t handle) noexcept nogil:
    """Where the references to a leaf are counted."""
    cdef int wide = handle & 3                          # a line has the size of a leaf of 1 bit
    cdef uint32_t place = (handle & (PAGE_GRANULES - 1)) >> (3 + wide)
    cdef uint32_t page = handle >> 9
    if wide == 3:
        place += 8 * (page & ((1 << (SEGMENT_SHIFT - 9)) - 1))
        return &family.segments[page >> (SEGMENT_SHIFT - 9)].counts[place]
    return <uint32_t *>address_of(family, page << 9) + place


cdef inline uint32_t *reference_count(const Family *family, uint32_t handle) noexcept nogil:
    """Where the references to a node, a run list or a leaf are counted."""
    cdef PageInfo *info = page_info(family, handle >> 9)
    if is_node(handle):
        return &info.references
    if info.kind < PAGE_SLAB + LIST_CLASSES:
        return &(<Record *>address_of(family, handle)).references
    return leaf_references(family, handle)

cdef inline void retain(const Family *family, uint32_t handle) noexcept nogil:
    if handle:
        reference_count(family, handle)[0] += 1


cdef void release(Family *family, uint32_t handle) noexcept nogil:
    """Drop one reference. A record without any is freed at once, a node is queued: taking it apart
    touches 512 entries, and a dropped terabyte must not stall whoever dropped it."""
    cdef uint32_t *count
    cdef PageInfo *info
    if not handle:
        return
    count = reference_count(family, handle)
    kvmattr_assert(count[0] > 0)
    count[0] -= 1
    if count[0]:
        return
    if is_node(handle):
        info = page_info(family, handle >> 9)
        info.kind = PAGE_DEAD
        info.next = family.dead_nodes
        family.dead_nodes = handle >> 9
        family.dead_count += 1
        family.untidy = True
        count_node(family, -1)
        family.counters.node_frees += 1
    else:
        count_leaf(family, handle, -1)
        family.counters.leaf_frees += 1
        record_give_back(family, handle)


cdef void release_dead(Family *family, int entries) noexcept nogil:
    """Take dead nodes apart, up to so many entries of them (all for a negative number). How far a node has come is
    kept where its references were counted."""
    cdef uint32_t page
    cdef PageInfo *info
    cdef Entry *cells
    cdef int first, stop, i
    while entries and family.dead_nodes:
        page = family.dead_nodes
        info = page_info(family, page)
        first = <int>info.references
        stop = first + entries if 0 < entries < 512 - first else 512
        if entries > 0:
            entries -= stop - first
        info.references = <uint32_t>stop
        if stop == 512:
            # Out of the list first: what it leads to may become dead and go there.
            family.dead_nodes = info.next
            family.dead_count -= 1
        cells = node_at(family, page << 9)
        for i in range(first, stop):
            release(family, entry_handle(cells[i]))
        if stop == 512:
            info.references = 0
            page_give_back(family, page)


cdef inline void release_slice(Family *family) noexcept nogil:
    """Take the next slice of what is dead apart."""
    cdef uint32_t entries = DEAD_SLICE + DEAD_SLICE_MORE * family.dead_count
    release_dead(family, <int>(entries if entries < DEAD_SLICE_MOST else DEAD_SLICE_MOST))


cdef int arena_reserve(Family *family, uint32_t pages) noexcept nogil:
    """Make sure that so many pages can be taken. -1 when out of memory; then nothing has changed."""
    while available_pages(family) < pages:
        if family.dead_nodes:
            release_slice(family)       # what waits to be freed is memory that we have
        elif family_grow(family) < 0:
            return -1
    return 0
