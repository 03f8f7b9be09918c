# The functions for C once calls are counted: each asks its plain twin, and counts what that did not refuse.
#
# A look-up from C takes some 100 instructions, of which one more is 1 %. So nothing is counted until somebody asks for
# counts: the first stats() of a process puts these into the table that clients call through (capi). What two stats()
# differ by is exact. Counting takes the mutex of a shared family, also for a look-up in a snapshot, which else takes
# none; where there is no GIL it adds as one step.

cdef inline int count_if_done(const kvmattr_map *handle, int call, uint64_t items, int result) noexcept nogil:
    """Count a call that gave this result, if it was one."""
    if result >= 0:
        count_entering((<Map *>handle).family, call, items)
    return result


cdef int counted_copy(const kvmattr_map *handle, kvmattr_map **copy) noexcept nogil:
    return count_if_done(handle, CALL_COPY, 0, api_copy(handle, copy))

cdef int counted_get(const kvmattr_map *handle, uint64_t gfn) noexcept nogil:
    return count_if_done(handle, CALL_GET, 0, api_get(handle, gfn))

cdef int counted_take(const kvmattr_map *handle, const uint64_t *gfns, uint8_t *attributes,
                      size_t count) noexcept nogil:
    return count_if_done(handle, CALL_TAKE, count, api_take(handle, gfns, attributes, count))

cdef int counted_all(const kvmattr_map *handle, uint64_t start, uint64_t stop, uint8_t attributes,
                     uint8_t mask) noexcept nogil:
    return count_if_done(handle, CALL_SEARCH, stop - start, api_all(handle, start, stop, attributes, mask))

cdef int counted_run_at(const kvmattr_map *handle, uint64_t gfn, kvmattr_run *run) noexcept nogil:
    return count_if_done(handle, CALL_RUN, 0, api_run(handle, gfn, run))

cdef int counted_update(kvmattr_map *handle, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                        uint8_t mask) noexcept nogil:
    return count_if_done(handle, CALL_UPDATE, stop - start,
                         api_update(handle, start, stop, attributes, operation, mask))

cdef int counted_snapshot(const kvmattr_map *handle, const kvmattr_map **snapshot) noexcept nogil:
    return count_if_done(handle, CALL_SNAPSHOT, 0, api_snapshot(handle, snapshot))

cdef int counted_restore(kvmattr_map *handle, const kvmattr_map *source) noexcept nogil:
    return count_if_done(handle, CALL_RESTORE, 0, api_restore(handle, source))

cdef int counted_seek(kvmattr_cursor *window, uint64_t gfn) noexcept nogil:
    cdef int result = api_cursor_seek(window, gfn)
    if result >= 0:
        count_entering((<Cursor *>window).map.family, CALL_SEEK, 0)
    return result


# ---- with callbacks, which may do anything: end the map, for one ----

cdef struct CountedRuns:
    kvmattr_run_callback for_run
    kvmattr_change_callback for_change
    void *context
    uint64_t runs

cdef int count_run(void *context, const kvmattr_run *run) noexcept nogil:
    cdef CountedRuns *count = <CountedRuns *>context
    count.runs += 1
    return count.for_run(count.context, run)

cdef int count_change(void *context, const kvmattr_change *change) noexcept nogil:
    cdef CountedRuns *count = <CountedRuns *>context
    count.runs += 1
    return count.for_change(count.context, change)

cdef int counted_runs(const kvmattr_map *handle, uint64_t start, uint64_t stop, kvmattr_run_callback callback,
                      void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map pinned
    cdef CountedRuns count = [callback, NULL, context, 0]
    cdef int result
    if map == NULL or callback == NULL:
        return api_runs(handle, start, stop, callback, context)
    pin(&pinned, map)
    result = api_runs(handle, start, stop, count_run, &count)
    if result >= 0 or count.runs:       # what the callback returned may be anything
        count_entering(pinned.family, CALL_RUNS, count.runs)
    unpin(&pinned)
    return result

cdef int counted_diff(const kvmattr_map *handle, const kvmattr_map *before, uint64_t start, uint64_t stop,
                      kvmattr_change_callback callback, void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map pinned
    cdef CountedRuns count = [NULL, callback, context, 0]
    cdef int result
    if map == NULL or callback == NULL:
        return api_diff(handle, before, start, stop, callback, context)
    pin(&pinned, map)
    result = api_diff(handle, before, start, stop, count_change, &count)
    if result >= 0 or count.runs:
        count_entering(pinned.family, CALL_DIFF, count.runs)
    unpin(&pinned)
    return result

cdef int counted_update_changes(kvmattr_map *handle, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                                uint8_t mask, kvmattr_change_callback callback, void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map pinned
    cdef CountedRuns count = [NULL, callback, context, 0]
    cdef int result
    if map == NULL or callback == NULL:
        return api_update_changes(handle, start, stop, attributes, operation, mask, callback, context)
    pin(&pinned, map)
    result = api_update_changes(handle, start, stop, attributes, operation, mask, count_change, &count)
    if result >= 0 or count.runs:
        count_entering(pinned.family, CALL_UPDATE, stop - start)
    unpin(&pinned)
    return result
