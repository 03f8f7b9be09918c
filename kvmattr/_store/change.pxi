# The change new = (old & k) ^ x of a part of a subtree, and of a map, for which there is memory. It cannot fail.

cdef enum:
    LOOSE_UPDATES = 64      # single-entry updates of a node before its V is computed anew


cdef inline Entry node_entry_after(Family *family, uint32_t handle, const Entry *entries, Entry before, int first,
                                   int last) noexcept nogil:
    """The entry for a node of ours, `before` until one entry below it changed, or two neighbours: V can be widened
    without looking at the others, unless the node may have become uniform, or V was widened often enough to be worth a
    fresh look."""
    cdef PageInfo *info = page_info(family, handle >> 9)
    info.loosened += 1
    if info.loosened >= LOOSE_UPDATES or node_became_uniform(info, entries, first, last):
        return node_entry(family, handle)
    return entry_make(handle, 0xff, 0,
                      entry_varying(before) | entry_varying(entries[first]) | entry_varying(entries[last])
                      | (entry_first(entries[first]) ^ entry_first(entries[0]))
                      | (entry_first(entries[last]) ^ entry_first(entries[0]))
                      | (entry_first(entries[0]) ^ entry_first(before)),
                      entry_first(entries[0]))


cdef void entry_update(Family *family, Entry *slot, int level, uint64_t lo, uint64_t hi, uint8_t k,
                       uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi) of the subtree at *slot, which lies in memory of ours."""
    cdef Entry e = slot[0]
    cdef uint32_t handle
    cdef Entry *entries
    cdef Runs runs
    cdef int shift, first, last, i
    cdef bint few = True
    cdef uint64_t base
    kvmattr_assert(lo < hi and hi <= level_span(level))
    if hi - lo == level_span(level):
        entries_apply(family, slot, 1, k, x)
        return
    handle = entry_handle(e)
    if level == 2:
        leaf_update(family, slot, <int>lo, <int>hi, k, x)
        return
    if handle == 0 or not is_node(handle):
        if run_list_write(family, slot, lo, hi, level_span(level), k, x):
            return
        runs_load(family, e, &runs)
        runs_apply(&runs, lo, hi, level_span(level), k, x)
        if runs.count == 1:
            release(family, handle)
            slot[0] = entry_uniform(runs.values[0])
        elif runs.count <= RUN_LIST_RUNS:
            slot[0] = run_list_store(family, handle, &runs)
        else:
            release(family, handle)
            slot[0] = runs_build(family, level, runs.starts, runs.values, runs.count, 0)
        return
    # A node. Make it ours, bring down what is pending on it, then go on below.
    handle = node_own(family, handle, level)
    entries = node_at(family, handle)
    if entry_k(e) != 0xff or entry_x(e) != 0:
        entries_apply(family, entries, 512, entry_k(e), entry_x(e))
    shift = level_shift(level - 1)
    first = <int>(lo >> shift)
    last = <int>((hi - 1) >> shift)
    if first == last:
        base = <uint64_t>first << shift
        entry_update(family, &entries[first], level - 1, lo - base, hi - base, k, x)
    else:
        i = first
        few = last == first + 1
        if lo & (level_span(level - 1) - 1):
            entry_update(family, &entries[i], level - 1, lo & (level_span(level - 1) - 1),
                         level_span(level - 1), k, x)
            i += 1
        else:
            few = False
        if hi & (level_span(level - 1) - 1):
            entries_apply(family, &entries[i], last - i, k, x)
            entry_update(family, &entries[last], level - 1, 0, hi & (level_span(level - 1) - 1), k, x)
        else:
            entries_apply(family, &entries[i], last + 1 - i, k, x)
            few = False
    slot[0] = node_entry_after(family, handle, entries, e, first, last) if few else node_entry(family, handle)


# ---- the map: a root and what lies above it ----

cdef void map_heighten(Map *map) noexcept nogil:
    """One level more: the root covers 512 times as many pages, those that it gains have the value `rest`."""
    cdef Family *family = map.family
    cdef Entry e = map.root
    cdef uint32_t handle = entry_handle(e)
    cdef uint64_t span = level_span(map.level)
    cdef Runs runs
    cdef Entry *entries
    cdef int level = map.level + 1
    if handle == 0 and entry_first(e) == map.rest:
        pass
    elif handle == 0 or (map.level > 2 and not is_node(handle)):
        runs_load(family, e, &runs)
        runs_append(&runs, span, map.rest)
        release(family, handle)
        if runs.count <= RUN_LIST_RUNS:
            map.root = run_list_store(family, 0, &runs)
        else:
            map.root = runs_build(family, level, runs.starts, runs.values, runs.count, 0)
    else:
        handle = node_uniform(family, level, map.rest)
        entries = node_at(family, handle)
        entries[0] = e
        # A copy may hold this leaf or node as its root: then no put may flip a bit of it in place.
        page_info(family, handle >> 9).shares = (reference_count(family, entry_handle(e))[0] != 1 or level > 3
                                                 and page_info(family, entry_handle(e) >> 9).shares)
        map.root = node_entry(family, handle)
    map.level = level


cdef void map_lower(Map *map) noexcept nogil:
    """Take levels off while all that is stored lies below the root node's first entry. Mostly another one has
    something: that which told so last is asked first."""
    cdef Entry top = entry_uniform(map.rest)
    cdef Entry *entries
    cdef PageInfo *info
    cdef uint32_t handle
    cdef int i
    while map.level > 2:
        handle = entry_handle(map.root)
        if handle == 0 or not is_node(handle):
            return      # before a page is asked: where nothing is stored any more there may be none
        info = page_info(map.family, handle >> 9)
        if info.references != 1 or entry_k(map.root) != 0xff or entry_x(map.root) != 0:
            return
        entries = node_at(map.family, handle)
        i = 2 * info.apart
        if entries[i + 1] != top or (i and entries[i] != top):
            return
        for i in range(1, 512):
            if entries[i] != top:
                info.apart = <uint8_t>(i >> 1)
                return
        map.root = entries[0]
        map.level -= 1
        map.family.rearranged += 1
        entries[0] = top            # its reference went to the root
        release(map.family, handle)


cdef inline void map_fit_height(Map *map, uint64_t start) noexcept nogil:
    """As many levels as what is stored needs, after an update from page `start` on."""
    if entry_handle(map.root) == 0:
        if entry_first(map.root) == map.rest:
            map.level = 2
    elif start >= level_span(map.level - 1):
        map_lower(map)


cdef void map_change(Map *map, uint64_t start, uint64_t stop, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on [start, stop), not empty; the worst case is reserved."""
    cdef uint64_t covered
    map.family.rearranged += 1
    # The pages above npages always equal the last one, so that an update that reaches npages covers whole
    # subtrees to the end of the space (a 64 GiB guest in a root of 512 GiB needs one word for an OR over all).
    if stop == map.pages:
        while level_span(map.level) <= start:
            map_heighten(map)
        stop = level_span(map.level)
        map.rest = (map.rest & k) ^ x
    else:
        while level_span(map.level) < stop:
            map_heighten(map)
    entry_update(map.family, &map.root, map.level, start, stop, k, x)
    map_fit_height(map, start)
    kvmattr_raise_version(&map.version, 1)
    family_settle(map.family)
