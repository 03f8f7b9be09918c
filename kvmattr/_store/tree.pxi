# The tree: look-up of a page, and the one update `new = (old & k) ^ x` on a range.
#
# An update goes in three steps: is there anything to change (query.pxi), is there memory for the worst case
# (arena_reserve), then change it, which cannot fail any more.

cdef inline uint8_t tree_get(const Family *family, Entry e, int level, uint64_t page) noexcept nogil:
    """The attributes of one page below an entry: compose the operations on the way down."""
    cdef uint32_t handle = entry_handle(e)
    cdef uint32_t keep = 0xff, toggle = 0
    while level > 2:
        if handle == 0:
            return <uint8_t>((entry_x(e) & keep) ^ toggle)
        toggle ^= <uint32_t>(e >> 40) & keep
        keep &= <uint32_t>(e >> 32)
        if not is_node(handle):
            return <uint8_t>((run_list_raw(family, handle, page & (level_span(level) - 1)) & keep) ^ toggle)
        kvmattr_count_visit(family)
        e = kvmattr_foreseen(family.bias, handle)[(page >> (9 * (level - 2))) & 511]
        handle = entry_handle(e)
        level -= 1
    toggle ^= <uint32_t>(e >> 40) & keep
    keep &= <uint32_t>(e >> 32)
    return <uint8_t>((leaf_raw(family, handle, page & 511) & keep) ^ toggle)


cdef enum:
    LOOSE_UPDATES = 64      # single-entry updates of a node before its V is computed anew


cdef inline uint8_t map_get(const Map *map, uint64_t gfn) noexcept nogil:
    if gfn >= level_span(map.level):
        return map.rest
    return tree_get(map.family, map.root, map.level, gfn)


cdef inline Entry node_entry(Family *family, uint32_t handle) noexcept nogil:
    """The entry for a node of ours, V computed from its entries; a uniform node is freed on the spot."""
    cdef Entry *entries = node_at(family, handle)
    cdef uint8_t varying = kernels.summary(entries)
    page_info(family, handle >> 9).loosened = 0
    if varying == 0:
        # No bit varies, so no entry has a handle: nothing below needs a release.
        varying = entry_first(entries[0])
        count_node(family, -1)
        family.counters.node_frees += 1
        page_give_back(family, handle >> 9)
        return entry_uniform(varying)
    return entry_make(handle, 0xff, 0, varying, entry_first(entries[0]))


cdef uint32_t node_uniform(Family *family, int level, uint8_t value) noexcept nogil:
    cdef uint32_t handle = node_new(family, level)
    cdef Entry *entries = node_at(family, handle)
    cdef Entry e = entry_uniform(value)
    cdef int i
    for i in range(512):
        entries[i] = e
    return handle


cdef uint32_t node_own(Family *family, uint32_t handle, int level) noexcept nogil:
    """A node with the same entries that is ours alone: itself, or a copy that shares its children."""
    cdef PageInfo *info = page_info(family, handle >> 9)
    cdef Entry *entries
    cdef uint32_t copy
    cdef int i
    kvmattr_assert(info.kind == PAGE_NODE and info.level == level)
    if info.references == 1:
        return handle
    copy = node_new(family, level)
    info = page_info(family, handle >> 9)
    entries = node_at(family, copy)
    memcpy(entries, node_at(family, handle), PAGE_BYTES)
    for i in range(512):
        retain(family, entry_handle(entries[i]))
    info.references -= 1
    info.shares = 1
    page_info(family, copy >> 9).shares = 1
    family.counters.node_copies += 1
    return copy


cdef void entries_apply(Family *family, Entry *entries, int count, uint8_t k, uint8_t x) noexcept nogil:
    """The operation on whole subtrees, one word each. Those in which nothing varies any more are dropped."""
    cdef int i
    if kernels.apply(entries, count, keep_word(k), toggle_word(x)):
        for i in range(count):
            if entry_handle(entries[i]) and entry_varying(entries[i]) == 0:
                release(family, entry_handle(entries[i]))
                entries[i] = entry_uniform(entry_first(entries[i]))


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
        if info.loosened < LOOSE_UPDATES and not (
                entry_handle(entries[first]) == 0 and entries[first] == entries[last]
                and entries[first] == entries[0] and entries[first] == entries[511]):
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
    if entry_handle(map.root) == 0:
        if entry_first(map.root) == map.rest:
            map.level = 2
    elif start >= level_span(map.level - 1):
        map_lower(map)
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


# One page in a block that can take it: nothing is pending on the way, and the page is none whose value the
# entries above know (the first of its block, the last of the map). What is shared on the way is copied first.

cdef inline Entry *map_own(Map *map, uint64_t gfn, uint8_t varying) noexcept nogil:
    """The entry of a block, after the nodes on the way to it have become ours. `varying` are the bits by which the
    page's new value will differ from the old one: what varies below was known, and these come to it."""
    cdef Family *family = map.family
    cdef Entry *slot = &map.root
    cdef uint32_t handle
    cdef int level = map.level
    kvmattr_assert(gfn & 511 != 0 and gfn + 1 != map.pages)
    while level > 2:
        handle = node_own(family, entry_handle(slot[0]), level)
        slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | handle | <uint64_t>varying << 48
        slot = &node_at(family, handle)[(gfn >> (9 * (level - 2))) & 511]
        level -= 1
    return slot


cdef UpdateResult map_flip(Map *map, uint64_t gfn, uint8_t varying) noexcept nogil:
    """Give one page the other value of its bitmap leaf, which keeps both, or the second value of its uniform
    block."""
    cdef Family *family = map.family
    cdef Entry *slot
    cdef uint32_t handle, copy
    if available_pages(family) < RESERVE_PAGES and arena_reserve(family, RESERVE_PAGES) < 0:
        return UPDATE_NO_MEMORY
    slot = map_own(map, gfn, varying)
    handle = entry_handle(slot[0])
    if handle == 0 or reference_count(family, handle)[0] != 1:
        copy = leaf_new(family, BITMAP_CLASS, 0)
        memcpy(address_of(family, copy), address_of(family, handle), 64)    # of handle 0 zeros
        release(family, handle)
        slot[0] = entry_make(copy, varying, entry_x(slot[0]), varying, entry_first(slot[0]))
        handle = copy
    (<uint64_t *>address_of(family, handle))[(gfn >> 6) & 7] ^= <uint64_t>1 << (gfn & 63)
    kvmattr_raise_version(&map.version, 1)
    family_settle(family)
    return UPDATE_CHANGED


cdef UpdateResult map_recode(Map *map, uint64_t gfn, uint8_t k, uint8_t x, uint8_t raw, uint8_t varying) noexcept nogil:
    """Change one page of a coded leaf, to be stored as `raw`, in place if its encoding has room."""
    cdef Family *family = map.family
    cdef Entry *slot
    cdef const Record *record
    cdef uint32_t handle, copy
    # Enough for both ways at once: the range must not run out of memory after what is shared was copied.
    if available_pages(family) < RESERVE_PAGES + RECODE_PAGES and \
            arena_reserve(family, RESERVE_PAGES + RECODE_PAGES) < 0:
        return UPDATE_NO_MEMORY
    slot = map_own(map, gfn, varying)
    handle = entry_handle(slot[0])
    if reference_count(family, handle)[0] != 1:
        record = <const Record *>address_of(family, handle)
        copy = leaf_new(family, record_class(record), record_kind(record))
        # Its references and coding are its own.
        memcpy(&(<Record *>address_of(family, copy)).count, &record.count,
               class_bytes[record_class(record)] - sizeof(uint32_t) - sizeof(uint8_t))
        release(family, handle)
        slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | copy
    if not leaf_change(family, slot, <int>(gfn & 511), raw):
        return map_update(map, gfn, gfn + 1, k, x)
    kvmattr_raise_version(&map.version, 1)
    family_settle(family)
    return UPDATE_CHANGED


cdef inline UpdateResult map_put(Map *map, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """The update of one page. In a bitmap leaf of ours that holds both the old and the new value it is a flip
    of one bit (and of its entry's F, for the first page of a block); in one that is shared and in a uniform block
    it is that after a copy; coded leaves are changed in place where they have room; everything else goes the way of
    a range."""
    cdef Family *family = map.family
    cdef Entry e = map.root
    cdef PageInfo *info
    cdef uint32_t handle = entry_handle(e)
    cdef int level = map.level
    cdef bint ours = True
    cdef bint shared = False
    cdef bint first = gfn & 511 == 0
    cdef uint8_t old, new
    cdef uint64_t *words
    cdef uint64_t word, bit
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
    if is_coded(handle):
        old = (leaf_raw(family, handle, gfn & 511) & entry_k(e)) ^ entry_x(e)
        new = (old & k) ^ x
        if new == old:
            return UPDATE_UNCHANGED
        if entry_k(e) == 0xff and not first:
            return map_recode(map, gfn, k, x, new ^ entry_x(e), new ^ old)
        return map_update(map, gfn, gfn + 1, k, x)
    kvmattr_count_pages(family, 1)
    words = <uint64_t *>address_of(family, handle) + ((gfn >> 6) & 7)
    word = words[0]
    bit = <uint64_t>1 << (gfn & 63)
    old = entry_x(e) ^ (entry_k(e) if word & bit else 0)
    new = (old & k) ^ x
    if new == old:
        return UPDATE_UNCHANGED
    if handle == 0 and not first:
        return map_flip(map, gfn, new ^ old)
    if (new ^ old) != entry_k(e):
        return map_update(map, gfn, gfn + 1, k, x)
    word ^= bit
    # The leaf may be uniform now, only if this word is.
    if word + 1 <= 1 and words_uniform(words - ((gfn >> 6) & 7), (gfn >> 6) & 7, word):
        return map_update(map, gfn, gfn + 1, k, x)
    if not ours or ((shared or map.level == 2) and reference_count(family, handle)[0] != 1):
        return map_update(map, gfn, gfn + 1, k, x) if first else map_flip(map, gfn, new ^ old)
    words[0] = word
    if first:
        # The block's F. The F of the entries above is another block's, and V has what the leaf's values differ in.
        slot[0] = e ^ <uint64_t>entry_k(e) << 56
    kvmattr_raise_version(&map.version, 1)
    return UPDATE_CHANGED


cdef void map_fill(Map *map, uint8_t value) noexcept nogil:
    release(map.family, entry_handle(map.root))
    map.root = entry_uniform(value)
    map.rest = value
    map.level = 2
    kvmattr_raise_version(&map.version, 1)
    family_settle(map.family)
