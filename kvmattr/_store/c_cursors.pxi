# Cursors: places in a map, for programs that look up pages near each other.

# While its family belongs to one thread a cursor looks at the map itself: a pinned root would make that thread's next
# update copy its way. In a shared family it pins, so that between two changes it needs no lock.
cdef struct Cursor:
    kvmattr_cursor window       # what kvmattr.h shows; first
    const Map *map
    uint64_t block              # of the last page looked up, one value a page
    uint32_t seal
    bint pins
    Map pinned


cdef void cursor_unpin(Cursor *cursor) noexcept nogil:
    if cursor.pins:
        unpin(&cursor.pinned)
        cursor.pins = False


cdef const Map *cursor_view(Cursor *cursor) noexcept nogil:
    """The map's newest state, in a form that stays while this thread looks at it."""
    cdef const Map *map = cursor.map
    cdef bint entered
    if map.seal & SEAL_READ_ONLY or not family_shared(map.family):
        cursor_unpin(cursor)
        cursor.window.seen = map.version
        return map
    if not cursor.pins or kvmattr_read_version(&map.version) != cursor.window.seen:
        entered = family_enter(map.family)
        if cursor.pins:
            map_drop(&cursor.pinned)
        map_share(&cursor.pinned, map)
        family_leave(map.family, entered)
        cursor.pins = True
        cursor.window.seen = cursor.pinned.version
    return &cursor.pinned


cdef inline int cursor_uniform(Cursor *cursor, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    """The cursor is on pages of one value, as far as was seen."""
    stop = stop if stop < cursor.map.pages else cursor.map.pages
    cursor.window.start = start
    cursor.window.count = stop - start
    cursor.window.index = 0
    cursor.window.values[0] = value
    return value


cdef int cursor_move(Cursor *cursor, const Map *map, uint64_t gfn) noexcept nogil:
    """Look up a page, and keep what the way to it tells about its neighbours.

    A mixed block is decoded when it is asked for a second page: a random access would not use it.
    """
    cdef const Family *family = map.family
    cdef uint64_t base, span
    cdef RunList runs
    cdef Way way
    cdef int i
    if gfn >= level_span(map.level):
        return cursor_uniform(cursor, level_span(map.level), map.pages, map.rest)
    way = way_down(family, &map.root, map.level, 2, gfn, WAY_COMPOSES)
    if entry_handle(way.entry) and way.shift == level_shift(2):
        if cursor.block != gfn >> 9:
            cursor.block = gfn >> 9
            way_compose(&way)
            return cursor_uniform(cursor, gfn, gfn + 1,
                                  way_value(&way, leaf_raw(family, entry_handle(way.entry), gfn & 511)))
        leaf_decode(family, way.entry, <uint8_t>way.keep, <uint8_t>way.toggle, cursor.window.values)
        base = gfn & ~<uint64_t>511
        cursor.window.start = base
        cursor.window.count = 512 if map.pages - base > 512 else map.pages - base
        cursor.window.index = 511
        return cursor.window.values[gfn & 511]
    span = <uint64_t>1 << way.shift
    base = gfn & ~(span - 1)
    if entry_handle(way.entry) == 0:
        return cursor_uniform(cursor, base, base + span, way_value(&way, entry_first(way.entry)))
    runs = run_list_at(family, entry_handle(way.entry))
    i = run_find(&runs, gfn - base)
    way_compose(&way)
    return cursor_uniform(cursor, base + run_start(&runs, i), base + run_stop(&runs, i, span),
                          way_value(&way, runs.values[i]))


cdef int api_cursor_open(const kvmattr_map *handle, kvmattr_cursor **window) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Cursor *cursor
    if map == NULL:
        return KVMATTR_BAD_MAP
    if window == NULL:
        return KVMATTR_BAD_POINTER
    cursor = <Cursor *>calloc(1, sizeof(Cursor))
    if cursor == NULL:
        return KVMATTR_NO_MEMORY
    cursor.window.version = &map.version
    cursor.map = map
    cursor.block = <uint64_t>-1
    cursor.seal = SEAL_CURSOR
    window[0] = &cursor.window
    return 0


cdef int api_cursor_seek(kvmattr_cursor *window, uint64_t gfn) noexcept nogil:
    cdef Cursor *cursor = <Cursor *>window
    if cursor == NULL or cursor.seal != SEAL_CURSOR:
        return KVMATTR_BAD_POINTER
    if gfn >= cursor.map.pages:
        return KVMATTR_BAD_GFN
    return cursor_move(cursor, cursor_view(cursor), gfn)


cdef int api_cursor_close(kvmattr_cursor *window) noexcept nogil:
    cdef Cursor *cursor = <Cursor *>window
    if cursor == NULL or cursor.seal != SEAL_CURSOR:
        return KVMATTR_BAD_POINTER
    cursor_unpin(cursor)
    seal_break(&cursor.seal)
    if not KVMATTR_DEBUG_BUILD:
        free(cursor)
    return 0
