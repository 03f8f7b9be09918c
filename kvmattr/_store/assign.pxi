# Blocks of given values: an array written to a range of a map.
#
# Another thread may change the caller's array meanwhile. So what is written is what one look at a block has seen: the
# one value that all of it had, or a copy.

cdef bint block_in_list(Family *family, Entry *slot, int level, uint64_t page, int count,
                        const uint8_t *values) noexcept nogil:
    """Write values[0 .. count) from `page` on to the run list at *slot, or to one in place of a uniform entry. False,
    with nothing done, where it would be too long."""
    cdef Runs old, new
    cdef uint64_t start = page & (level_span(level) - 1), stop = start + count
    cdef int i = 0, at
    runs_load(family, slot[0], &old)
    new.count = 0
    while i < old.count and old.starts[i] < start:
        runs_append(&new, old.starts[i], old.values[i])
        i += 1
    for at in range(count):
        if new.count > RUN_LIST_RUNS:
            return False
        runs_append(&new, start + at, values[at])
    while i < old.count and old.starts[i] <= stop:
        i += 1
    if stop < level_span(level):
        runs_append(&new, stop, old.values[i - 1])
    while i < old.count and new.count <= RUN_LIST_RUNS:
        runs_append(&new, old.starts[i], old.values[i])
        i += 1
    if new.count > RUN_LIST_RUNS:
        return False
    if new.count == 1:
        release(family, entry_handle(slot[0]))
        slot[0] = entry_uniform(new.values[0])
    else:
        slot[0] = run_list_store(family, entry_handle(slot[0]), &new)
    return True


cdef void entry_store(Family *family, Entry *slot, int level, uint64_t page, int lo, int hi,
                      const uint8_t *values) noexcept nogil:
    """Write values[0 .. hi - lo) to the pages [lo, hi) of the block that holds `page`."""
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef Entry *entries
    cdef uint8_t[512] block
    cdef Runs runs
    cdef int at
    if level == 2:
        if hi - lo < 512:
            leaf_decode(family, e, 0xff, 0, block)
            memcpy(block + lo, values, hi - lo)
            values = block
        slot[0] = leaf_store(family, handle, values, 0)
        return
    if (handle == 0 or not is_node(handle)) and block_in_list(family, slot, level, page, hi - lo, values):
        return
    if handle == 0:
        handle = node_uniform(family, level, entry_first(e))
    elif not is_node(handle):
        runs_load(family, e, &runs)
        release(family, handle)
        handle = node_of_runs(family, level, runs.starts, runs.values, runs.count, 0)
    else:
        handle = node_own(family, handle, level)
        if entry_k(e) != 0xff or entry_x(e) != 0:
            entries_apply(family, node_at(family, handle), 512, entry_k(e), entry_x(e))
    entries = node_at(family, handle)
    at = index_of(page, level)
    entry_store(family, &entries[at], level - 1, page, lo, hi, values)
    slot[0] = node_entry_after(family, handle, entries, e, at, at)


cdef int map_store(Map *map, uint64_t start, uint64_t stop, const uint8_t *values) noexcept nogil:
    """Write values to [start, stop), block by block, into a map built aside. -1 when out of memory: then some
    blocks are written, and the caller drops the map."""
    cdef uint8_t[512] block
    cdef uint8_t[128] one
    cdef uint64_t at = start, upto
    cdef uint8_t last = 0
    cdef int count
    while at < stop:
        if arena_reserve(map.family, RESERVE_PAGES) < 0:
            return -1
        kvmattr_read_once(&last, values + (at - start), 1)
        memset(one, last, 128)
        upto = at
        while upto < stop:      # as many uniform blocks of this value as follow are one write
            count = block_rest(upto, stop)
            if not kvmattr_given_is(values + (upto - start), one, 0, count):
                break
            upto += count
        if upto > at:
            map_change(map, at, upto, 0, last)
            at = upto
            continue
        count = block_rest(at, stop)
        kvmattr_read_once(block, values + (at - start), count)
        while level_span(map.level) < at + count:
            map_heighten(map)
        entry_store(map.family, &map.root, map.level, at, <int>(at & 511), <int>(at & 511) + count, block)
        last = block[count - 1]
        at += count
    # The pages above npages equal the last one: one write brings them there.
    if stop == map.pages:
        map_change(map, stop - 1, stop, 0, last)
    return 0


cdef inline int block_rest(uint64_t at, uint64_t stop) noexcept nogil:
    """The pages from `at` to the end of its block, or to `stop`."""
    return <int>(512 - (at & 511) if stop - at > 512 - (at & 511) else stop - at)


cdef bint map_holds(const Map *map, uint64_t start, uint64_t stop, const uint8_t *values) noexcept nogil:
    """Whether the pages [start, stop) have these values already."""
    cdef uint8_t[4096] pages
    cdef uint64_t at = start, count
    while at < stop:
        count = stop - at if stop - at < 4096 else 4096
        map_pages(map, at, at + count, pages)
        if not kvmattr_given_is(values + (at - start), pages, 128, count):
            return False
        at += count
    return True
