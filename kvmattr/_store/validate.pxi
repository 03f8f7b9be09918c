# validate(): every invariant computed anew, the first broken one named.

cdef struct Audit:
    const Family *family
    uint32_t *seen[SEGMENTS]    # references found to each handle, one cell for two granules
    uint64_t nodes
    uint64_t leaves
    uint64_t run_lists
    uint64_t live_bytes
    const char *broken          # the first broken invariant, or NULL
    int broken_level
    uint64_t broken_gfn


cdef inline bint audit_fail(Audit *audit, const char *what, int level, uint64_t gfn) noexcept nogil:
    if audit.broken == NULL:
        audit.broken = what
        audit.broken_level = level
        audit.broken_gfn = gfn
    return False


cdef bint audit_line(Audit *audit, const kvmattr_line *line, uint64_t gfn) noexcept nogil:
    """A run line has the shape of one."""
    cdef int i
    if line.count < (2 if line.turns else 3) or line.count > LINE_RUNS:
        return audit_fail(audit, "a run line has 3 .. LINE_RUNS runs, or 2 after a turn", 2, gfn)
    if line.turns > MOST_TURNS:
        return audit_fail(audit, "a run line had at most MOST_TURNS turns", 2, gfn)
    for i in range(line.count - 1):
        if line.starts[i] <= (line.starts[i - 1] if i else 0) or line.starts[i] >= PAGES_PER_BLOCK:
            return audit_fail(audit, "a run line's starts rise within its block", 2, gfn)
        if line.values[i] == line.values[i + 1]:
            return audit_fail(audit, "neighbours in a run line differ", 2, gfn)
    for i in range(line.count - 1, KVMATTR_LINE_STARTS):
        if line.starts[i] != KVMATTR_NO_START:
            return audit_fail(audit, "a run line's free starts are beyond its block", 2, gfn)
    return True


cdef bint audit_entry(Audit *audit, Entry e, int level, uint64_t gfn, uint8_t *first, uint8_t *varying) noexcept nogil:
    """Check one subtree; report the value of its first page and the bits that really vary."""
    cdef const Family *family = audit.family
    cdef uint32_t handle = entry_handle(e), page = handle >> 9
    cdef uint32_t *seen
    cdef const PageInfo *info
    cdef MetChildren met
    cdef RunList runs
    cdef uint8_t[512] block
    cdef uint8_t[5] vary
    cdef uint8_t child_first, child_varying, raw_first = 0, raw_varying = 0
    cdef int i, segment = handle >> SEGMENT_SHIFT
    if handle == 0:
        first[0] = entry_first(e)
        varying[0] = 0
        if e != entry_uniform(entry_first(e)):
            return audit_fail(audit, "a uniform entry has k = 0, V = 0 and x = F", level, gfn)
        return True
    if segment >= family.segment_count or segment == 0:
        return audit_fail(audit, "a handle names a segment of the family", level, gfn)
    if (page & ((1 << (SEGMENT_SHIFT - 9)) - 1)) >= family.segments[segment].touched:
        return audit_fail(audit, "a handle names a page that was handed out", level, gfn)
    info = page_info(family, page)
    if entry_varying(e) == 0:
        return audit_fail(audit, "an entry in which nothing varies is uniform", level, gfn)
    # A leaf's tag is no part of its place.
    seen = &audit.seen[segment][(handle & ((1 << SEGMENT_SHIFT) - 1) & ~(KVMATTR_TAG if level == 2 else 0)) >> 1]
    seen[0] += 1
    if level > 2 and is_node(handle):
        if info.kind != PAGE_NODE:
            return audit_fail(audit, "a node's page is marked as a node", level, gfn)
        if info.level != level:
            return audit_fail(audit, "a node's page tells its level", level, gfn)
        met = node_meets(family, e, level, 0, level_span(level), 0xff, 0)
        raw_first = entry_first(met.entries[0])
        if seen[0] > 1:
            # Met before, through another reference: what is below was checked and counted then.
            raw_varying = entry_varying(e)
            met.last = -1
        for i in range(met.first, met.last + 1):
            if not audit_entry(audit, met.entries[i], level - 1, gfn + child_begin(&met, i), &child_first,
                               &child_varying):
                return False
            raw_varying |= child_varying | (child_first ^ raw_first)
            handle = entry_handle(met.entries[i])
            if not info.shares and handle and (reference_count(family, handle)[0] != 1 or level > 3 and is_node(handle)
                                               and page_info(family, handle >> 9).shares):
                return audit_fail(audit, "only a node marked so shares what lies below it", level, gfn)
        if seen[0] == 1:
            audit.nodes += 1
            audit.live_bytes += PAGE_BYTES
    elif is_node(handle):
        return audit_fail(audit, "a block is stored in a leaf", level, gfn)
    elif level > 2:
        if info.kind < PAGE_SLAB or info.kind >= PAGE_SLAB + LIST_CLASSES:
            return audit_fail(audit, "a run list lies in a slab of its kind", level, gfn)
        runs = run_list_at(family, handle)
        if runs.count < 2 or runs.count > RUN_LIST_RUNS:
            return audit_fail(audit, "a run list has 2 .. RUN_LIST_RUNS runs", level, gfn)
        if (<const Record *>address_of(family, handle)).size_class != info.kind - PAGE_SLAB:
            return audit_fail(audit, "a run list's size class is its slab's", level, gfn)
        if run_list_size(runs.count) > class_bytes[info.kind - PAGE_SLAB]:
            return audit_fail(audit, "a run list fits its record", level, gfn)
        raw_first = runs.values[0]
        for i in range(1, runs.count):
            if run_start(&runs, i) <= run_start(&runs, i - 1) or run_start(&runs, i) >= level_span(level):
                return audit_fail(audit, "a run list's starts rise within its subtree", level, gfn)
            if runs.values[i] == runs.values[i - 1]:
                return audit_fail(audit, "neighbours in a run list differ", level, gfn)
            raw_varying |= runs.values[i] ^ raw_first
        if (raw_varying & entry_k(e)) != entry_varying(e):
            return audit_fail(audit, "a run list's V is exact", level, gfn)
        if seen[0] == 1:
            audit.run_lists += 1
            audit.live_bytes += class_bytes[info.kind - PAGE_SLAB]
    else:
        if info.kind != PAGE_SLAB + LIST_CLASSES + wide_of(handle):
            return audit_fail(audit, "a leaf lies in a slab of its size", level, gfn)
        if is_line(handle) and not audit_line(audit, line_at(family, handle), gfn):
            return False
        leaf_decode(family, entry_make(handle, 0xff, 0, 0, 0), 0xff, 0, block)
        raw_first = block[0]
        kernels.relate(block, vary)
        raw_varying = vary[0]
        if raw_varying == 0:
            return audit_fail(audit, "a block that is uniform is no leaf", level, gfn)
        if has_exact_v(handle) and raw_varying & entry_k(e) != entry_varying(e):
            return audit_fail(audit, "V of a run line and of a leaf of one bit is exact", level, gfn)
        if entry_varying(e) & ~entry_k(e):
            return audit_fail(audit, "V of a leaf has no bit that k leaves out", level, gfn)
        if seen[0] == 1:
            audit.leaves += 1
            audit.live_bytes += class_bytes[info.kind - PAGE_SLAB]
    first[0] = (raw_first & entry_k(e)) ^ entry_x(e)
    varying[0] = raw_varying & entry_k(e)
    if first[0] != entry_first(e):
        return audit_fail(audit, "F is the value of the first page", level, gfn)
    if varying[0] & ~entry_varying(e):
        return audit_fail(audit, "V has every bit that varies below", level, gfn)
    return True


cdef bint audit_free_pages(Audit *audit) noexcept nogil:
    """Every page that was handed out is in use, listed as free, or part of a system page that is listed as clean."""
    cdef const Family *family = audit.family
    cdef uint32_t page = family.free_pages, previous = 0, free_pages = 0, clean = 0
    cdef uint64_t touched = 0
    cdef int segment
    while page and free_pages < family.free_count:
        if page_info(family, page).kind != PAGE_FREE or page_info(family, page).previous != previous:
            return audit_fail(audit, "the list of free pages names free pages, both ways", 0, 0)
        free_pages += 1
        previous = page
        page = page_info(family, page).next
    if page or free_pages != family.free_count:
        return audit_fail(audit, "the family counts its free pages", 0, 0)
    page = family.clean_pages
    while page and clean < family.clean_count:
        if page & (system_pages - 1) or not pages_are(family, page, PAGE_CLEAN):
            return audit_fail(audit, "the list of clean pages names whole free pages of the system", 0, 0)
        clean += system_pages
        page = page_info(family, page).next
    if page or clean != family.clean_count:
        return audit_fail(audit, "the family counts its clean pages", 0, 0)
    for segment in range(1, family.segment_count):
        touched += family.segments[segment].touched
    if touched != <uint64_t>family.pages_in_use + free_pages + clean:
        return audit_fail(audit, "a page is in use, free or clean", 0, 0)
    return True


cdef inline uint64_t leaves_counted(const Counters *has) noexcept nogil:
    return has.leaves[0] + has.leaves[1] + has.leaves[2] + has.leaves[3] + has.run_lines


cdef bint audit_references(Audit *audit) noexcept nogil:
    """Every record and node has as many references as were found, and what nobody refers to is free."""
    cdef const Family *family = audit.family
    cdef const PageInfo *info
    cdef uint32_t page, handle, found, live, number
    cdef int record
    cdef uint64_t in_use = 0
    cdef int segment, size_class
    for segment in range(1, family.segment_count):
        for page in range(family.segments[segment].touched):
            info = &family.segments[segment].pages[page]
            number = <uint32_t>segment << (SEGMENT_SHIFT - 9) | page
            if info.kind <= PAGE_FREE:
                continue
            in_use += 1
            if info.kind == PAGE_DEAD:
                return audit_fail(audit, "no dead node is left when all were taken apart", 0, 0)
            if info.kind == PAGE_NODE:
                if audit.seen[segment][page << 8] != info.references:
                    return audit_fail(audit, "a node has as many references as refer to it", info.level, 0)
                continue
            size_class = info.kind - PAGE_SLAB
            live = 0
            for record in range(class_first[size_class], class_places[size_class]):
                handle = number << 9 | record_offset(size_class, record)
                found = audit.seen[segment][(handle & ((1 << SEGMENT_SHIFT) - 1)) >> 1]
                if size_class >= LIST_CLASSES:
                    handle |= <uint32_t>(size_class - LIST_CLASSES)
                if found:
                    live += 1
                    if reference_count(family, handle)[0] != found:
                        return audit_fail(audit, "a leaf has as many references as refer to it", 2, 0)
            if live != info.references:
                return audit_fail(audit, "a slab counts its live records", 2, 0)
    if in_use != family.pages_in_use:
        return audit_fail(audit, "the family counts its pages in use", 0, 0)
    if not audit_free_pages(audit):
        return False
    if (audit.nodes != family.counters.nodes or audit.run_lists != family.counters.run_lists
            or audit.live_bytes != family.counters.live_bytes
            or audit.leaves != leaves_counted(&family.counters)):
        return audit_fail(audit, "the counters tell what is live", 0, 0)
    return True


cdef bint audit_family(Audit *audit, Family *family) noexcept nogil:
    """Check all maps of a family. False with audit.broken set, or with NULL there when out of memory."""
    cdef const Map *map
    cdef uint8_t first, varying
    cdef int segment
    cdef bint sound = True
    memset(audit, 0, sizeof(Audit))
    audit.family = family
    if slice_is_due(family) and not family.untidy:
        return audit_fail(audit, "a family of which a slice is due is marked as untidy", 0, 0)
    release_dead(family, -1)
    for segment in range(1, family.segment_count):
        audit.seen[segment] = <uint32_t *>calloc(family.segments[segment].touched + 1, 1024)
        if audit.seen[segment] == NULL:
            sound = False
    map = family.maps
    while sound and map != NULL:
        sound = audit_entry(audit, map.root, map.level, 0, &first, &varying)
        if sound and level_span(map.level) > map.pages and map.pages:
            if map_find(map, map.pages, level_span(map.level), map_get(map, map.pages - 1), 0xff, False) >= 0:
                sound = audit_fail(audit, "the pages above npages equal the last one", map.level, map.pages)
        if sound and map.pages and map.rest != map_get(map, map.pages - 1):
            sound = audit_fail(audit, "the rest equals the last page", map.level, map.pages)
        map = map.next
    sound = sound and audit_references(audit)
    for segment in range(1, family.segment_count):
        free(audit.seen[segment])
    return sound
