# Whole maps: how they come to be, are linked in their family, shared, pinned, built aside, and end.

cdef void map_link(Map *map) noexcept nogil:
    map.previous = NULL
    map.next = map.family.maps
    if map.next != NULL:
        map.next.previous = map
    map.family.maps = map


cdef void map_unlink(Map *map) noexcept nogil:
    if map.family.moving == map:
        compact_next(map.family)
    if map.previous != NULL:
        map.previous.next = map.next
    else:
        map.family.maps = map.next
    if map.next != NULL:
        map.next.previous = map.previous


cdef void map_share(Map *map, const Map *source) noexcept nogil:
    """Make *map hold what another map of the family holds: one reference more to its root. It is how a
    snapshot, a copy and a pinned root come to be."""
    map[0] = source[0]
    map.pinned_by = 0
    map.movable = False
    retain(map.family, entry_handle(map.root))
    map_link(map)


cdef void map_drop(Map *map) noexcept nogil:
    """Give up a map's content and its place in the family, which the last one out must free."""
    release(map.family, entry_handle(map.root))
    map_unlink(map)


cdef void map_swing(Map *map, Map *aside) noexcept nogil:
    """Let *map hold what was built aside, whose own hold ends. What it held before is still to be tidied."""
    release(map.family, entry_handle(map.root))
    map.root = aside.root
    map.level = aside.level
    map.rest = aside.rest
    kvmattr_raise_version(&map.version, 1)
    map_unlink(aside)


cdef void pin(Map *pinned, const Map *map) noexcept nogil:
    """Hold a map's present state: a bulk read goes over *pinned, without the mutex and without the GIL."""
    cdef bint entered = family_enter(map.family)
    map_share(pinned, map)
    pinned.pinned_by = <uintptr_t>pthread_self()
    family_leave(map.family, entered)

cdef void unpin(Map *pinned) noexcept nogil:
    """The map itself may have ended meanwhile, in a callback: then this was the family's last."""
    map_leave_family(pinned, False)


cdef Map *map_new(uint64_t pages, uint8_t value) noexcept nogil:
    """A map of its own family; NULL when out of memory."""
    cdef Family *family = family_new()
    cdef Map *map = <Map *>calloc(1, sizeof(Map))
    if family == NULL or map == NULL:
        if family != NULL:
            family_free(family)
        free(map)
        return NULL
    map.family = family
    map.pages = pages
    map.level = 2
    map.movable = True
    map.root = entry_uniform(value)
    map.rest = value
    map.default = value
    map_link(map)
    return map


cdef inline Map *map_twin(const Map *source, bint movable, const int *call) noexcept nogil:
    """One map more with the content of `source`, for a call of that kind if one is given; NULL when out of memory."""
    cdef Map *map = <Map *>malloc(sizeof(Map))
    cdef bint entered
    if map != NULL:
        entered = family_enter(source.family)
        if call != NULL:
            count_one(source.family, call[0])
        map_share(map, source)
        map.movable = movable
        family_leave(source.family, entered)
    return map


cdef void map_leave_family(Map *map, bint frees) noexcept nogil:
    """Give up what a map holds, and free it now or with later updates; the last one takes the family with it."""
    cdef Family *family = map.family
    cdef bint entered = family_enter(family)
    cdef bint last
    map_drop(map)
    last = family.maps == NULL
    if frees and not last:
        release_dead(family, -1)
    family_leave(family, entered)
    if last:
        family_free(family)


cdef void map_free(Map *map) noexcept nogil:
    map_leave_family(map, True)
    free(map)


# ---- a map of another family ----

cdef struct Copying:
    Map *target
    bint failed


cdef bint copy_run(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    cdef Copying *copying = <Copying *>sink.context
    cdef Map *target = copying.target
    if start >= stop or value == target.rest:
        return True
    if arena_reserve(target.family, RESERVE_PAGES) < 0:
        copying.failed = True
        return False
    map_change(target, start, stop, 0, value)
    return True


cdef int map_import(Map *target, const Map *source) noexcept nogil:
    """Make *target, empty and built aside, equal to a map of another family. -1 when out of memory."""
    cdef Copying copying
    cdef RunSink sink = sink_to(copy_run, &copying)
    target.root = entry_uniform(source.rest)
    target.rest = source.rest
    target.level = 2
    copying.target = target
    copying.failed = False
    map_runs(source, 0, source.pages, &sink)
    return -1 if copying.failed else 0


cdef int map_restore(Map *map, const Map *source) noexcept nogil:
    """Take over the content of a map of as many pages. -1 when out of memory: then nothing has changed."""
    cdef Map aside, pinned
    cdef bint entered
    cdef int result = 0
    if source.family == map.family:
        entered = family_enter(map.family)
        map_share(&aside, source)
        map_swing(map, &aside)
        release_slice(map.family)
        family_leave(map.family, entered)
        return 0
    pin(&pinned, source)
    entered = family_enter(map.family)
    aside = map[0]
    map_link(&aside)
    result = map_import(&aside, &pinned)
    if result < 0:
        map_drop(&aside)
    else:
        map_swing(map, &aside)
        family_settle(map.family)
    family_leave(map.family, entered)
    family_filled(map.family)
    unpin(&pinned)
    return result
