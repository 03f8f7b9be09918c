# Look-ups, updates and snapshots for C, C++ and Cython. include/kvmattr.h says what each function does.
#
# Each checks what it is given, takes the mutex as the Python methods do, and calls the tree. None needs the GIL.

# ---- look up ----

# A simulator calls api_get for each access, and what it costs is how many look-ups the processor has under way at once:
# the number of instructions. So it goes by itself where nothing is pending on the way to a leaf of fields or a uniform
# entry, and leaves everything else to map_get.

# Called through pointers, so that no compiler takes them into their caller, which then needs no frame on the stack.
cdef int (*get_apart)(const Map *map, uint64_t gfn) noexcept nogil
cdef int (*get_entering)(const Map *map, uint64_t gfn) noexcept nogil
get_apart = get_any
get_entering = get_shared


cdef int get_any(const Map *map, uint64_t gfn) noexcept nogil:
    """A page of any map that nobody else writes."""
    return map_get(map, gfn)


cdef int get_shared(const Map *map, uint64_t gfn) noexcept nogil:
    """A page of a map that another thread may write."""
    cdef bint entered = family_enter(map.family)
    cdef int value = map_get(map, gfn)
    family_leave(map.family, entered)
    return value


cdef inline uint32_t fields_raw(const Family *family, uint32_t handle, uint64_t gfn) noexcept nogil:
    """What a leaf of fields stores for a page; the handle 0 of a uniform block reads zeros."""
    kvmattr_count_pages(family, 1)
    return kvmattr_field_raw(leaf_at(family, handle), wide_of(handle), gfn & 511)


cdef int api_get(const kvmattr_map *handle, uint64_t gfn) noexcept nogil:
    cdef const Map *map = opened(handle)
    cdef Family *family
    cdef Way way
    if map == NULL:
        return KVMATTR_BAD_MAP
    if gfn >= map.pages:
        return KVMATTR_BAD_GFN
    family = map.family
    if not map.seal & SEAL_READ_ONLY and family_shared(family):
        return get_entering(map, gfn)
    if gfn >> level_shift(map.level):
        return map.rest
    way = way_down(family, &map.root, map.level, 2, gfn, 0)
    if way.shift > level_shift(2):
        return entry_first(way.entry) if entry_handle(way.entry) == 0 else get_apart(map, gfn)
    if is_line(entry_handle(way.entry)):
        return get_apart(map, gfn)
    return <uint8_t>((fields_raw(family, entry_handle(way.entry), gfn) & <uint32_t>(way.entry >> KVMATTR_K))
                     ^ <uint32_t>(way.entry >> KVMATTR_X))


cdef int api_take(const kvmattr_map *handle, const uint64_t *gfns, uint8_t *attributes, size_t count) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef const Map *view = map
    cdef Map pinned
    cdef uint64_t wrong
    cdef bint pins
    if map == NULL:
        return KVMATTR_BAD_MAP
    if count and (gfns == NULL or attributes == NULL):
        return KVMATTR_BAD_POINTER
    if count and kernels.largest(gfns, count) >= map.pages:
        return KVMATTR_BAD_GFN
    pins = not map.seal & SEAL_READ_ONLY and family_shared(map.family)
    if pins:
        pin(&pinned, map)
        view = &pinned
    take_pages(view, gfns, attributes, count, True, &wrong)
    if pins:
        unpin(&pinned)
    return 0


cdef inline bint bad_range(const Map *map, uint64_t start, uint64_t stop) noexcept nogil:
    return start > stop or stop > map.pages


cdef int api_all(const kvmattr_map *handle, uint64_t start, uint64_t stop, uint8_t attributes,
                 uint8_t mask) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef bint entered
    cdef int64_t found
    if map == NULL:
        return KVMATTR_BAD_MAP
    if bad_range(map, start, stop):
        return KVMATTR_BAD_RANGE
    entered = look_enter(map)
    found = map_find(map, start, stop, attributes, mask, False)
    family_leave(map.family, entered)
    return found < 0


cdef int api_run(const kvmattr_map *handle, uint64_t gfn, kvmattr_run *run) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef bint entered
    if map == NULL:
        return KVMATTR_BAD_MAP
    if run == NULL:
        return KVMATTR_BAD_POINTER
    if gfn >= map.pages:
        return KVMATTR_BAD_GFN
    entered = look_enter(map)
    run.attributes = map_get(map, gfn)
    map_run(map, gfn, &run.start, &run.stop)
    family_leave(map.family, entered)
    return 0


cdef struct RunCall:
    kvmattr_run_callback callback
    void *context
    int result


cdef bint call_run(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    cdef RunCall *call = <RunCall *>sink.context
    cdef kvmattr_run run
    run.start = start
    run.stop = stop
    run.attributes = value
    call.result = call.callback(call.context, &run)
    return call.result == 0


cdef int api_runs(const kvmattr_map *handle, uint64_t start, uint64_t stop, kvmattr_run_callback callback,
                  void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map pinned
    cdef RunCall call
    cdef RunSink sink = sink_to(call_run, &call)
    if map == NULL:
        return KVMATTR_BAD_MAP
    if callback == NULL:
        return KVMATTR_BAD_POINTER
    if bad_range(map, start, stop):
        return KVMATTR_BAD_RANGE
    call.callback = callback
    call.context = context
    call.result = 0
    pin(&pinned, map)               # the callback may change the map
    map_runs(&pinned, start, stop, &sink)
    unpin(&pinned)
    return call.result


cdef struct ChangeCall:
    kvmattr_change_callback callback
    void *context
    int result


cdef bint call_change(DiffSink *sink, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    cdef ChangeCall *call = <ChangeCall *>sink.context
    cdef kvmattr_change change
    change.start = start
    change.stop = stop
    change.before = old
    change.after = new
    call.result = call.callback(call.context, &change)
    return call.result == 0


cdef int call_changes(const Map *old, const Map *new, uint64_t start, uint64_t stop,
                      kvmattr_change_callback callback, void *context) noexcept nogil:
    cdef ChangeCall call
    cdef DiffSink sink
    call.callback = callback
    call.context = context
    call.result = 0
    sink.emit = call_change
    sink.context = &call
    maps_diff(old, new, start, stop, &sink)
    return call.result


cdef int api_diff(const kvmattr_map *handle, const kvmattr_map *before, uint64_t start, uint64_t stop,
                  kvmattr_change_callback callback, void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map *other = opened(before)
    cdef Map old, new
    cdef int result
    if map == NULL or other == NULL:
        return KVMATTR_BAD_MAP
    if callback == NULL:
        return KVMATTR_BAD_POINTER
    if map.pages != other.pages:
        return KVMATTR_BAD_PAGES
    if bad_range(map, start, stop):
        return KVMATTR_BAD_RANGE
    pin(&old, other)
    pin(&new, map)
    result = call_changes(&old, &new, start, stop, callback, context)
    unpin(&new)
    unpin(&old)
    return result


# ---- update ----

cdef int refused_update(const Map *map, uint64_t start, uint64_t stop, int operation) noexcept nogil:
    if map == NULL:
        return KVMATTR_BAD_MAP
    if map.seal & SEAL_READ_ONLY:
        return KVMATTR_READ_ONLY
    if bad_range(map, start, stop):
        return KVMATTR_BAD_RANGE
    if operation < 0 or operation > KVMATTR_AND:
        return KVMATTR_BAD_OPERATION
    return 0


cdef int api_update(kvmattr_map *handle, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                    uint8_t mask) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Change change
    cdef UpdateResult result
    cdef bint entered
    cdef int refused = refused_update(map, start, stop, operation)
    if refused:
        return refused
    change = change_of(attributes, operation, mask)
    entered = family_enter(map.family)
    result = map_update(map, start, stop, change.k, change.x)
    if KVMATTR_DEBUG_BUILD:
        audit_or_abort(map)
    family_leave(map.family, entered)
    family_filled(map.family)
    return KVMATTR_NO_MEMORY if result < 0 else <int>result


cdef int api_update_changes(kvmattr_map *handle, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                            uint8_t mask, kvmattr_change_callback callback, void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map old, new
    cdef Change change
    cdef UpdateResult result
    cdef bint entered
    cdef int answer
    cdef int refused = refused_update(map, start, stop, operation)
    if refused:
        return refused
    if callback == NULL:
        return KVMATTR_BAD_POINTER
    change = change_of(attributes, operation, mask)
    # The states before and after are held within one hold of the mutex, so that no other update is between them.
    entered = family_enter(map.family)
    map_share(&old, map)
    old.pinned_by = <uintptr_t>pthread_self()
    result = map_update(map, start, stop, change.k, change.x)
    map_share(&new, map)
    new.pinned_by = old.pinned_by
    if KVMATTR_DEBUG_BUILD:
        audit_or_abort(map)
    family_leave(map.family, entered)
    family_filled(map.family)
    answer = KVMATTR_NO_MEMORY if result < 0 else <int>result
    if result > 0:
        answer = call_changes(&old, &new, start, stop, callback, context)
        answer = answer if answer else 1
    unpin(&new)
    unpin(&old)
    return answer


# ---- snapshots ----

cdef int api_snapshot(const kvmattr_map *handle, const kvmattr_map **snapshot) noexcept nogil:
    cdef Map *map = opened(handle)
    if map == NULL:
        return KVMATTR_BAD_MAP
    if snapshot == NULL:
        return KVMATTR_BAD_POINTER
    map = map_twin(map, False, NULL)
    if map == NULL:
        return KVMATTR_NO_MEMORY
    map.seal = SEAL | SEAL_READ_ONLY | SEAL_OURS
    snapshot[0] = <const kvmattr_map *>map
    return 0


cdef int api_release(const kvmattr_map *snapshot) noexcept nogil:
    cdef Map *map = opened(snapshot)
    if map == NULL:
        return KVMATTR_BAD_MAP
    if map.seal != SEAL | SEAL_READ_ONLY | SEAL_OURS:
        return KVMATTR_NOT_YOURS
    map_end(map)
    return 0


cdef int api_restore(kvmattr_map *handle, const kvmattr_map *source) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map *other = opened(source)
    if map == NULL or other == NULL:
        return KVMATTR_BAD_MAP
    if map.seal & SEAL_READ_ONLY:
        return KVMATTR_READ_ONLY
    if map.pages != other.pages:
        return KVMATTR_BAD_PAGES
    return KVMATTR_NO_MEMORY if map_restore(map, other) < 0 else 0
