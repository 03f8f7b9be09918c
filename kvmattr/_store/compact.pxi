# Bounded slack: what an update leaves to be tidied is tidied after it, a slice at a time.
#
# Dropped nodes are taken apart, free pages are given back, and where records have become sparse in their slabs the live
# ones are moved together, so that pages become free. A pass over the records goes in slices, one node each,
# remembering only a gfn: a record is found from above, through its entry, which is the one place that names it.
# Only what one map alone holds is moved, never under a pin, so no reader can see it. A pass
# begins when slack has grown by as much as it may be, which bounds what moving costs by what was freed.

cdef inline uint64_t allowed_slack(const Family *family) noexcept nogil:
    return family.counters.live_bytes // 8 + SPARE_SLACK + (system_pages - 1) * PAGE_BYTES


cdef inline uint32_t kept_pages() noexcept nogil:
    """Free pages that are kept, beside those that stand between others in one system page."""
    return KEPT_PAGES + system_pages - 1


cdef void spare_give_back(Family *family) noexcept nogil:
    """A slice of the free pages goes back: half of those that may be kept, too, but where pages were missed since.
    A guest whose pages are converted there and back would ask the system for them each time: a tenth of what such
    conversions take. One that only shrinks is rid of several at once."""
    cdef uint32_t more = family.free_count - kept_pages()
    if family.missed == 0:
        more += kept_pages() // 2
    family.missed -= more if more < family.missed else family.missed
    arena_trim(family, <int>(more if more < TRIM_SLICE else TRIM_SLICE))


cdef void family_settle(Family *family) noexcept nogil:
    """One slice of whatever is to be tidied; called under the mutex after an update."""
    if family.dead_nodes:
        release_slice(family)
    if family.free_count > kept_pages() + (family.pages_in_use >> 5):
        spare_give_back(family)
    if family.moving != NULL:
        compact_slice(family)
    elif arena_slack(family) > allowed_slack(family):
        if family.free_count > kept_pages():
            spare_give_back(family)
        elif arena_slack(family) > family.slack_settled + allowed_slack(family) // 2:
            compact_begin(family)
    elif arena_slack(family) < family.slack_settled:
        family.slack_settled = arena_slack(family)
    family.untidy = slice_is_due(family)


cdef bint slice_is_due(const Family *family) noexcept nogil:
    """Whether there is something to tidy, whatever comes next. Whoever drops a node or frees a page marks the family
    as untidy, so that an update that does neither need not look."""
    return (family.dead_nodes != 0 or family.moving != NULL
            or family.free_count > kept_pages() + (family.pages_in_use >> 5))


cdef void family_tidy(Family *family) noexcept nogil:
    """All slices at once, for whoever asks what the family holds."""
    release_dead(family, -1)
    if family.moving == NULL and arena_slack(family) > allowed_slack(family):
        compact_begin(family)
    while family.moving != NULL:
        compact_slice(family)
    if family.free_count > kept_pages() // 2:
        arena_trim(family, <int>(family.free_count - kept_pages() // 2))


cdef void compact_begin(Family *family) noexcept nogil:
    """Mark the slabs that are less than 7/8 full; nothing new goes into them."""
    cdef uint32_t page, next_page
    cdef PageInfo *info
    cdef int size_class
    for size_class in range(RECORD_CLASSES):
        page = family.partial[size_class]
        while page:
            info = page_info(family, page)
            next_page = info.next
            if 8 * info.references < 7 * slab_records(size_class):
                slab_unlist(family, info, size_class)
                info.tidy.leaving = 1
                info.next = family.leaving[size_class]
                if info.next:
                    page_info(family, info.next).previous = page
                family.leaving[size_class] = page
            page = next_page
    family.moving = family.maps
    family.moving_gfn = 0


cdef void compact_end(Family *family) noexcept nogil:
    """What could not be emptied has room for new records again."""
    cdef uint32_t page
    cdef PageInfo *info
    cdef int size_class
    for size_class in range(RECORD_CLASSES):
        while family.leaving[size_class]:
            page = family.leaving[size_class]
            info = page_info(family, page)
            slab_unlist(family, info, size_class)
            info.tidy.leaving = 0
            slab_list(family, page, info, size_class)
    family.moving = NULL
    family.slack_settled = arena_slack(family)


cdef void compact_slice(Family *family) noexcept nogil:
    """Move the records that one node leads to, and remember where to go on."""
    cdef Map *map = family.moving
    cdef Entry *slot = &map.root
    cdef int level = map.level, at
    cdef uint64_t gfn = family.moving_gfn
    cdef MetChildren met
    # At most one new slab for each size class, and each node's records fit into few pages.
    if gfn >= level_span(level) or not map.movable or arena_reserve(family, RESERVE_PAGES) < 0:
        compact_next(family)
        return
    if entry_handle(map.root) and (level == 2 or not is_node(entry_handle(map.root))):
        record_move(family, slot)
        compact_next(family)
        return
    while leads_to_node(slot[0]) and reference_count(family, entry_handle(slot[0]))[0] == 1:
        # *slot is an entry of `level` that covers gfn. Records from there on, up to the next child that is a node.
        met = node_meets(family, slot[0], level, gfn & (level_span(level) - 1), level_span(level), 0xff, 0)
        level -= 1
        at = met.first
        while at < 512:
            if at % KVMATTR_HANDLES == 0 and not kvmattr_any_handle(&met.entries[at]):
                at += KVMATTR_HANDLES           # of a guest's first conversions most entries are uniform
                continue
            slot = <Entry *>&met.entries[at]
            if level > 2 and leads_to_node(slot[0]):
                break
            if entry_handle(slot[0]):
                record_move(family, slot)
            at += 1
        if at > met.first:
            family.moving_gfn = (gfn & ~(level_span(level + 1) - 1)) + child_begin(&met, at)
            return
    family.moving_gfn = (gfn | (level_span(level) - 1)) + 1


cdef inline void compact_next(Family *family) noexcept nogil:
    family.moving = family.moving.next
    family.moving_gfn = 0
    if family.moving == NULL:
        compact_end(family)


cdef inline void record_move(Family *family, Entry *slot) noexcept nogil:
    """A record that only this entry names, out of a slab that is being emptied."""
    cdef uint32_t handle = entry_handle(slot[0]), copy
    cdef PageInfo *info = page_info(family, handle >> 9)
    cdef int size_class
    if not info.tidy.leaving or reference_count(family, handle)[0] != 1:
        return
    family.rearranged += 1
    size_class = info.kind - PAGE_SLAB
    copy = record_take(family, size_class)
    if size_class < LIST_CLASSES:
        memcpy(address_of(family, copy), address_of(family, handle), class_bytes[size_class])
    else:
        memcpy(address_of(family, copy), leaf_at(family, handle), class_bytes[size_class])
        copy |= handle & KVMATTR_TAG
        leaf_references(family, copy)[0] = 1
    record_give_back(family, handle)
    slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | copy
