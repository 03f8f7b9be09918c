# The one update `new = (old & k) ^ x`, of a page or of a range.
#
# An update goes in three steps: is there anything to change (query.pxi), is there memory for the worst case
# (arena_reserve), then change it, which cannot fail any more.

cdef enum:
    LOOSE_UPDATES = 64      # single-entry updates of a node before its V is computed anew


cdef void entry_update(Family *family, Entry *slot, int level, uint64_t lo, uint64_t hi, uint8_t k,
                       uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi) of the subtree at *slot, which lies in memory of ours."""
    cdef Entry e = slot[0]
    cdef uint32_t handle
    cdef Entry *entries
    cdef PageInfo *info
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
    info = page_info(family, handle >> 9)
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
    # Where one entry changed, or two neighbours, V can be widened without looking at the others, unless it may
    # have become uniform or has been widened often enough to be worth a fresh look.
    if few:
        info.loosened += 1
        if info.loosened < LOOSE_UPDATES and not node_seems_uniform(entries, first, last):
            slot[0] = entry_make(handle, 0xff, 0,
                                 entry_varying(e) | entry_varying(entries[first]) | entry_varying(entries[last])
                                 | (entry_first(entries[first]) ^ entry_first(entries[0]))
                                 | (entry_first(entries[last]) ^ entry_first(entries[0]))
                                 | (entry_first(entries[0]) ^ entry_first(e)),
                                 entry_first(entries[0]))
            return
    slot[0] = node_entry(family, handle)


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
        # A copy may hold this leaf as its root: then no put may flip a bit of it in place.
        if level == 3 and reference_count(family, entry_handle(e))[0] != 1:
            page_info(family, handle >> 9).shares = 1
        map.root = node_entry(family, handle)
    map.level = level


cdef void map_lower(Map *map) noexcept nogil:
    """Take levels off while all that is stored lies below the root node's first entry."""
    cdef Entry top = entry_uniform(map.rest)
    cdef Entry *entries
    cdef uint32_t handle
    cdef int i
    while map.level > 2:
        handle = entry_handle(map.root)
        if (handle == 0 or not is_node(handle) or page_info(map.family, handle >> 9).references != 1
                or entry_k(map.root) != 0xff or entry_x(map.root) != 0):
            return
        entries = node_at(map.family, handle)
        for i in range(1, 512):
            if entries[i] != top:
                return
        map.root = entries[0]
        map.level -= 1
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


cdef UpdateResult map_update(Map *map, uint64_t start, uint64_t stop, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on [start, stop), checked by the caller, with exact news of whether it changed any
    page. Out of memory changes nothing."""
    if start >= stop:
        return UPDATE_UNCHANGED
    if not map_would_change(map, start, stop, k, x):
        return UPDATE_UNCHANGED
    if available_pages(map.family) < RESERVE_PAGES and arena_reserve(map.family, RESERVE_PAGES) < 0:
        return UPDATE_NO_MEMORY
    map_change(map, start, stop, k, x)
    return UPDATE_CHANGED


# One page in a block that can take it: nothing is pending on the way, and the page is none whose value the entries of
# nodes know (the first below a node, the last of the map). What is shared on the way is copied first.

cdef inline Entry *map_own(Map *map, uint64_t gfn, uint8_t varying) noexcept nogil:
    """The entry of a block, after the nodes on the way to it have become ours. `varying` are the bits by which the
    page's new value will differ from the old one: what varies below was known, and these come to it."""
    cdef Family *family = map.family
    cdef Entry *slot = &map.root
    cdef uint32_t handle
    cdef int level = map.level
    kvmattr_assert(gfn & (level_span(3) - 1) != 0 and gfn + 1 != map.pages)
    while level > 2:
        handle = node_own(family, entry_handle(slot[0]), level)
        slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | handle | <uint64_t>varying << 48
        slot = &node_at(family, handle)[(gfn >> (9 * (level - 2))) & 511]
        level -= 1
    return slot


cdef void entry_tighten(Family *family, Entry *slot, int level, uint64_t page) noexcept nogil:
    """V of the leaf that holds a page anew, after one of its bits may have ceased to vary, and what nodes above it can
    tell at once if it became uniform. All on the way is ours, and nothing is pending there."""
    cdef uint32_t handle = entry_handle(slot[0])
    cdef Entry *entries
    cdef int at
    if level == 2:
        if handle and not is_line(handle):
            fields_settle(family, slot)
        return
    entries = node_at(family, handle)
    at = <int>((page >> level_shift(level - 1)) & 511)
    entry_tighten(family, &entries[at], level - 1, page)
    if node_seems_uniform(entries, at, at):
        slot[0] = node_entry(family, handle)


cdef void map_tighten(Map *map, uint64_t gfn) noexcept nogil:
    """What the entries above a page that was written may not know yet."""
    map.family.rearranged += 1
    entry_tighten(map.family, &map.root, map.level, gfn)
    map_fit_height(map, gfn)
    family_settle(map.family)


cdef inline bint field_put(Map *map, Entry *slot, uint64_t gfn, uint8_t value) noexcept nogil:
    """Give a page of a leaf of fields of ours another value, which fits and varies in V only; the version rises. False
    if a bit may vary no longer: then the entries above must hear of it (map_tighten)."""
    cdef Entry e = slot[0]
    cdef int wide = wide_of(entry_handle(e))
    cdef uint32_t bit = (gfn & 511) << wide
    cdef uint64_t *where = leaf_at(map.family, entry_handle(e)) + (bit >> 6)
    cdef uint64_t field = kvmattr_field_masks[wide] << (bit & 63)
    cdef uint64_t old = where[0]
    where[0] = (old & ~field) | (kvmattr_everywhere(kvmattr_fold(wide, value ^ entry_x(e))) & field)
    if gfn & 511 == 0:
        # The F of the entries above is another block's.
        slot[0] = entry_make(entry_handle(e), entry_k(e), entry_x(e), entry_varying(e), value)
    kvmattr_raise_version(&map.version, 1)
    return not kvmattr_field_lost(where, wide, old ^ where[0])


cdef UpdateResult map_set(Map *map, uint64_t gfn, uint8_t value, uint8_t varying) noexcept nogil:
    """Give a page another value that fits its leaf of fields, or the second value of its uniform block. `varying` is
    what the value differs from the old one in."""
    cdef Family *family = map.family
    cdef Entry *slot
    cdef uint32_t handle
    if available_pages(family) < RESERVE_PAGES and arena_reserve(family, RESERVE_PAGES) < 0:
        return UPDATE_NO_MEMORY
    slot = map_own(map, gfn, varying)
    handle = entry_handle(slot[0])
    if handle == 0:
        handle = leaf_new(family, 0)
        memset(leaf_at(family, handle), 0, 64)
        slot[0] = entry_make(handle, varying, entry_x(slot[0]), varying, entry_first(slot[0]))
    else:
        handle = leaf_own(family, handle)
        slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | handle | <uint64_t>varying << 48
    if field_put(map, slot, gfn, value):
        family_settle(family)
    else:
        map_tighten(map, gfn)
    return UPDATE_CHANGED


cdef UpdateResult map_set_in_line(Map *map, uint64_t gfn, uint8_t value, uint8_t varying) noexcept nogil:
    """The same in a run line, which may become another leaf by it."""
    cdef Family *family = map.family
    cdef Entry *slot
    if available_pages(family) < RESERVE_PAGES and arena_reserve(family, RESERVE_PAGES) < 0:
        return UPDATE_NO_MEMORY
    slot = map_own(map, gfn, varying)
    line_update(family, slot, <int>(gfn & 511), <int>(gfn & 511) + 1, 0, value)
    kvmattr_raise_version(&map.version, 1)
    if entry_handle(slot[0]):
        family_settle(family)
    else:
        map_tighten(map, gfn)
    return UPDATE_CHANGED


cdef inline UpdateResult map_put(Map *map, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """The update of one page. In a leaf of fields of ours, with a value that fits, it is the write of a field, and of
    the entry's F for the first page of a block; in one that is shared and in a uniform block it is that after a copy;
    a run line is written anew; everything else goes the way of a range."""
    cdef Family *family = map.family
    cdef Entry e = map.root
    cdef PageInfo *info
    cdef uint32_t handle = entry_handle(e)
    cdef int level = map.level
    cdef bint ours = True
    cdef bint shared = False
    cdef uint8_t old, new, change
    cdef Entry *slot = &map.root
    if gfn >= level_span(level) or gfn & (level_span(3) - 1) == 0 or gfn + 1 == map.pages:
        return map_update(map, gfn, gfn + 1, k, x)
    while level > 2:
        if handle == 0 or not is_node(handle) or entry_k(e) != 0xff or entry_x(e) != 0:
            return map_update(map, gfn, gfn + 1, k, x)
        info = page_info(family, handle >> 9)
        ours &= info.references == 1
        shared = info.shares
        slot = &node_at(family, handle)[(gfn >> (9 * (level - 2))) & 511]
        e = slot[0]
        handle = entry_handle(e)
        level -= 1
    old = (leaf_raw(family, handle, gfn & 511) & entry_k(e)) ^ entry_x(e)
    new = (old & k) ^ x
    if new == old:
        return UPDATE_UNCHANGED
    if is_line(handle):
        return map_set_in_line(map, gfn, new, new ^ old)
    if handle == 0:
        return map_set(map, gfn, new, new ^ old)
    change = new ^ entry_x(e)
    if kvmattr_fold(wide_of(handle), change) & entry_k(e) != change:
        return map_update(map, gfn, gfn + 1, k, x)
    if (not ours or (new ^ entry_first(e)) & ~entry_varying(e)
            or ((shared or map.level == 2) and leaf_references(family, handle)[0] != 1)):
        return map_set(map, gfn, new, new ^ old)
    if not field_put(map, slot, gfn, new):
        map_tighten(map, gfn)
    return UPDATE_CHANGED


cdef void map_fill(Map *map, uint8_t value) noexcept nogil:
    release(map.family, entry_handle(map.root))
    map.root = entry_uniform(value)
    map.rest = value
    map.level = 2
    kvmattr_raise_version(&map.version, 1)
    family_settle(map.family)
