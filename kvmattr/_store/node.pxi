# Nodes: 512 entries, made, copied where they are shared, and updated as whole subtrees.

cdef inline Entry node_entry(Family *family, uint32_t handle) noexcept nogil:
    """The entry for a node of ours, V computed from its entries; a uniform node is freed on the spot, unless a dead one
    that is not yet taken apart leads to it, too."""
    cdef Entry *entries = node_at(family, handle)
    cdef PageInfo *info = page_info(family, handle >> 9)
    cdef uint8_t varying = kernels.summary(entries)
    info.loosened = 0
    if varying == 0:
        # No bit varies, so no entry has a handle: nothing below needs a release.
        varying = entry_first(entries[0])
        info.references -= 1
        if info.references == 0:
            count_node(family, -1)
            family.counters.node_frees += 1
            page_give_back(family, handle >> 9)
        return entry_uniform(varying)
    return entry_make(handle, 0xff, 0, varying, entry_first(entries[0]))


cdef inline bint node_became_uniform(PageInfo *info, const Entry *entries, int first, int last) noexcept nogil:
    """Whether a node is uniform now that two neighbouring entries, or one, have changed. Mostly some other tells that
    it is not, and the one that told so last is asked first."""
    cdef Entry e = entries[0]
    cdef int i = 2 * info.apart
    if entry_handle(e) or entries[first] != e or entries[last] != e or entries[i] != e or entries[i + 1] != e:
        return False
    for i in range(0, 512, 2):
        if entries[i] != e or entries[i + 1] != e:
            info.apart = <uint8_t>(i >> 1)
            return False
    return True


cdef uint32_t node_uniform(Family *family, int level, uint8_t value) noexcept nogil:
    cdef uint32_t handle = node_new(family, level)
    cdef Entry *entries = node_at(family, handle)
    cdef Entry e = entry_uniform(value)
    cdef int i
    for i in range(512):
        entries[i] = e
    return handle


cdef inline uint32_t node_own(Family *family, uint32_t handle, int level) noexcept nogil:
    """A node with the same entries that is ours alone: itself, or a copy that shares its children."""
    cdef PageInfo *info = page_info(family, handle >> 9)
    kvmattr_assert(info.kind == PAGE_NODE and info.level == level)
    if info.references == 1:
        return handle
    return node_copy(family, handle, level)


cdef uint32_t node_copy(Family *family, uint32_t handle, int level) noexcept nogil:
    cdef uint32_t copy = node_new(family, level)
    cdef PageInfo *info = page_info(family, handle >> 9)
    cdef Entry *entries = node_at(family, copy)
    cdef int i
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


cdef Entry runs_build(Family *family, int level, const uint64_t *starts, const uint8_t *values, int count,
                      uint64_t base) noexcept nogil:
    """The entry of `level` for the pages from `base` on: runs[0] holds page `base`, the others start later and
    below its end. As a leaf, a run list, or a node where a list would be too long."""
    cdef uint8_t[512] block
    cdef Runs runs
    cdef int i, start, stop
    if count == 1:
        return entry_uniform(values[0])
    if level == 2:
        for i in range(count):
            start = <int>(starts[i] - base) if i else 0
            stop = <int>(starts[i + 1] - base) if i + 1 < count else 512
            memset(block + start, values[i], stop - start)
        return leaf_store(family, 0, block, 0)
    if count <= RUN_LIST_RUNS:
        runs.count = count
        for i in range(count):
            runs.starts[i] = starts[i] - base if i else 0
            runs.values[i] = values[i]
        return run_list_store(family, 0, &runs)
    return node_entry(family, node_of_runs(family, level, starts, values, count, base))


cdef enum:
    FEWER_BLOCKS = 16       # blocks more that became uniform than pages were converted, before it is asked what is left
    FEWER_RUNS = RUN_LIST_RUNS // 4


cdef inline int mixed_blocks(const Entry *entries) noexcept nogil:
    """How many entries of a node of level 3 are not uniform."""
    cdef const Entry *some
    cdef int group, i, mixed = 0
    for group in range(PAGES_PER_BLOCK // KVMATTR_HANDLES):
        some = &entries[KVMATTR_HANDLES * group]
        if kvmattr_any_handle(some):
            for i in range(KVMATTR_HANDLES):
                mixed += entry_handle(some[i]) != 0
    return mixed


cdef bint few_runs(const Family *family, const Entry *entries, Runs *runs) noexcept nogil:
    """The runs below a node of level 3. False where there are more than FEWER_RUNS."""
    cdef const Entry *some
    cdef BlockRuns block
    cdef Entry last = ~entries[0]
    cdef uint64_t start, differ
    cdef int group, i, run
    runs.count = 0
    for group in range(PAGES_PER_BLOCK // KVMATTR_HANDLES):
        some = &entries[KVMATTR_HANDLES * group]
        differ = 0
        for i in range(KVMATTR_HANDLES):
            differ |= some[i] ^ last
        if differ == 0:             # of a guest's first conversions most blocks go on as the one before them
            continue
        for i in range(KVMATTR_HANDLES):
            start = PAGES_PER_BLOCK * <uint64_t>(KVMATTR_HANDLES * group + i)
            if entry_handle(some[i]) == 0:
                runs_append(runs, start, entry_first(some[i]))
            elif block_runs(family, some[i], LINE_RUNS, &block):
                for run in range(block.count):
                    runs_append(runs, start + block.starts[run], block.values[run])
            else:
                return False
            if runs.count > FEWER_RUNS:
                return False
        last = entry_uniform(runs.values[runs.count - 1])
    return True


cdef inline void node_fills(PageInfo *info) noexcept nogil:
    """A page of a node is converted, mostly the first of its block."""
    info.tidy.emptied -= info.tidy.emptied != 0


cdef inline bint node_empties(PageInfo *info) noexcept nogil:
    """A block of a node became uniform: whether so many more did than were converted that few may be left."""
    info.tidy.emptied += info.tidy.emptied < FEWER_BLOCKS
    return info.tidy.emptied == FEWER_BLOCKS


cdef bint node_to_list(Family *family, Entry *slot) noexcept nogil:
    """A run list in place of a node of level 3 of ours, below an entry on which nothing is pending, if few runs are
    left: what a list once burst into would else stay a node. If there are more, it is asked again after some
    conversions, the later the more there are, so that a list does not burst with each of the waves in which many pages
    come and go; and those go by the entries, as a batch's next pages may be uniform in their leaves already. False: it
    stays."""
    cdef uint32_t handle = entry_handle(slot[0])
    cdef const Entry *entries = node_at(family, handle)
    cdef int mixed = mixed_blocks(entries), rest = FEWER_BLOCKS + 2 * mixed
    cdef Runs runs
    page_info(family, handle >> 9).tidy.emptied = <uint8_t>(rest if rest < 255 else 255)
    if (2 * mixed > FEWER_RUNS or available_pages(family) == 0 or not few_runs(family, entries, &runs)
            or runs.count == 1):
        return False
    slot[0] = run_list_store(family, 0, &runs)
    release(family, handle)
    return True


cdef uint32_t node_of_runs(Family *family, int level, const uint64_t *starts, const uint8_t *values, int count,
                           uint64_t base) noexcept nogil:
    """A node of `level` with these runs below it."""
    cdef uint32_t handle = node_new(family, level)
    cdef Entry *entries = node_at(family, handle)
    cdef uint64_t child_base, child_stop
    cdef int i, first = 0, last
    for i in range(512):
        child_base = base + (<uint64_t>i << level_shift(level - 1))
        child_stop = child_base + level_span(level - 1)
        while first + 1 < count and starts[first + 1] <= child_base:
            first += 1
        last = first + 1
        while last < count and starts[last] < child_stop:
            last += 1
        entries[i] = runs_build(family, level - 1, starts + first, values + first, last - first, child_base)
    return handle
