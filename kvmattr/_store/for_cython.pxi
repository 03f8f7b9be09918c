# What other Cython code calls (declared in _core.pxd): one tree operation each, on the Map of an
# AttributeMap. The caller holds the family's mutex around them where it must (map_enter, map_leave), so that
# several make one step; a writer that gives up the GIL announces itself before (map_announce).

cdef Map *map_of(object attribute_map) except NULL:
    """The Map inside an AttributeMap, valid as long as that lives."""
    return (<AttributeMap?>attribute_map).map

cdef bint map_enter(Map *map) noexcept nogil:
    """Take the mutex if another thread may write now; tell whether it was taken, for map_leave."""
    return family_enter(map.family)

cdef void map_leave(Map *map, bint entered) noexcept nogil:
    family_leave(map.family, entered)

cdef void map_filled(Map *map) noexcept nogil:
    """After an update, when nobody waits for the caller any more: what it filled becomes huge pages (huge.pxi), which
    may take milliseconds, once for 2 MiB."""
    family_filled(map.family)

cdef void map_announce(Map *map, int change) noexcept nogil:
    """+1 before a writer gives up the GIL, -1 when it has it back."""
    family_announce(map.family, change)

cdef void map_called(Map *map, int call, uint64_t items) noexcept nogil:
    """Count a call of a machine that is about so many pages or ranges; without the mutex."""
    count_entering(map.family, call, items)

cdef uint8_t map_page(const Map *map, uint64_t gfn) noexcept nogil:
    """The attributes of one page."""
    count_one(map.family, CALL_GET)
    return map_get(map, gfn)

cdef uint8_t map_look_up(Map *map, uint64_t gfn) noexcept nogil:
    """The same for a caller that has not entered."""
    cdef bint entered
    cdef uint8_t value
    if KVMATTR_FREE_THREADED:
        return family_look_up(map, gfn)
    entered = family_enter(map.family)
    value = map_page(map, gfn)
    family_leave(map.family, entered)
    return value

cdef bint map_block_is_uniform(const Map *map, uint64_t gfn, int level) noexcept nogil:
    """Whether all pages of the naturally aligned block of a level (2: 2 MiB) around gfn are equal."""
    cdef uint64_t start = gfn & ~(level_span(level) - 1)
    cdef Way way
    if gfn < level_span(map.level) and map.level >= level:
        way = way_down(map.family, &map.root, map.level, level, gfn, WAY_COMPOSES)
        # What is pending above may leave nothing of what varies below.
        if entry_varying(way.entry) & way.keep == 0:
            return True
        if way.shift == level_shift(2):
            return not has_exact_v(entry_handle(way.entry)) and fields_agree(map.family, way.entry, way.keep)
    return map_find(map, start, start + level_span(level), map_get(map, start), 0xff, False) < 0

cdef uint64_t map_run_stop(const Map *map, uint64_t gfn, uint64_t stop) noexcept nogil:
    """How far the run that holds gfn extends, at most to stop."""
    cdef int64_t found = map_find(map, gfn, stop, map_get(map, gfn), 0xff, False)
    count_one(map.family, CALL_RUN)
    return stop if found < 0 else <uint64_t>found

cdef UpdateResult map_apply(Map *map, uint64_t start, uint64_t stop, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on [start, stop), not empty; UPDATE_NO_MEMORY has changed nothing."""
    count_call(map.family, CALL_UPDATE, stop - start)
    return map_update(map, start, stop, k, x)


# ---- many updates, with something to do between two of them (series.pxi) ----

cdef void map_series_begin(Series *series, size_t count) noexcept nogil:
    """A series of so many updates of one map, over one hold of the mutex or several. It cannot fail."""
    series_begin(series, count)

cdef void map_series_end(Series *series) noexcept nogil:
    series_end(series)

cdef bint map_series_enter(Map *map, Series *series) noexcept nogil:
    """As map_enter, for one hold of many in a row: whoever waits for the mutex has it first."""
    return series_enter(map, series)

cdef void map_series_leave(Map *map, Series *series, bint entered) noexcept nogil:
    """As map_leave; what the series has changed is in the tree from now on."""
    series_leave(map, series, entered)

cdef bint map_series_expects(const Map *map, const Series *series) noexcept nogil:
    """Whether the next updates are to be told of some pages ahead, by map_series_expect. Open lists are near."""
    return not series.opens and leaves_far(map)

cdef void map_series_expect(const Map *map, uint64_t gfn) noexcept nogil:
    """Ask the memory for what an update of a page will need: its leaf."""
    cdef Way way
    cdef uint32_t handle
    if gfn >= level_span(map.level):
        return
    way = way_down(map.family, &map.root, map.level, 2, gfn, WAY_COMPOSES)
    handle = entry_handle(way.entry)
    if way.shift == level_shift(2):
        kvmattr_prefetch(leaf_at(map.family, handle) + ((gfn & 511) << wide_of(handle) >> 6))

cdef UpdateResult map_series_apply(Map *map, Series *series, uint64_t start, uint64_t stop, uint8_t k,
                                   uint8_t x) noexcept nogil:
    """As map_apply. What is asked of the map before map_series_leave may miss it, but for the next function's answer
    and after map_series_store."""
    count_call(map.family, CALL_UPDATE, stop - start)
    return series_update(map, series, start, stop, k, x)

cdef bint map_series_block_is_uniform(const Map *map, Series *series, uint64_t gfn, int level) noexcept nogil:
    """As map_block_is_uniform."""
    cdef const Record *record = series_record(series, gfn)
    cdef RunList runs
    cdef uint64_t start, span
    cdef int run
    series.left -= HELD_QUESTION
    if record == NULL:
        return map_block_is_uniform(map, gfn, level)
    # Open lists are at level 3 or above: the block lies in this one, or is all that it covers.
    span = level_span((<const OpenLists *>series.lists).level)
    start = gfn & (span - 1) & ~(level_span(level) - 1)
    runs = run_list_of(record)
    run = run_find(&runs, start)
    return run_stop(&runs, run, span) >= start + level_span(level)

cdef void map_series_store(Map *map, Series *series) noexcept nogil:
    """What the series has changed so far is in the tree now, to be read within the same hold."""
    series_store(map, series)


# ---- what differs, one run at a time ----

cdef struct ChangeVisit:
    ChangeVisitor visit
    void *context
    uint64_t runs

cdef bint visit_change(DiffSink *sink, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    cdef ChangeVisit *visited = <ChangeVisit *>sink.context
    visited.runs += 1
    return visited.visit(visited.context, start, stop, old, new)

cdef void map_changes(const Map *before, const Map *after, uint64_t start, uint64_t stop, ChangeVisitor visit,
                      void *context) noexcept nogil:
    """Visit each maximal run of [start, stop) in which two maps of as many pages differ, in order, until the visitor
    returns False. Both states are held meanwhile, so it goes without the mutex; without the GIL only if both families
    were announced to."""
    cdef Map old, new
    cdef ChangeVisit visited
    cdef DiffSink sink
    visited.visit = visit
    visited.context = context
    visited.runs = 0
    sink.emit = visit_change
    sink.context = &visited
    pin(&old, before)
    pin(&new, after)
    maps_diff(&old, &new, start, stop, &sink)
    count_entering(new.family, CALL_DIFF, visited.runs)
    unpin(&new)
    unpin(&old)


cdef int map_refused(const Map *map, uint64_t start, uint64_t stop, const uint8_t *refused) noexcept nogil:
    """A value v with refused[v] of some page in [start, stop), or -1: for checks before an update."""
    cdef int found = -1
    if start >= stop:
        return -1
    count_call(map.family, CALL_SEARCH, stop - start)
    if start < root_stop(map, stop):
        found = entry_refused(map.family, map.root, map.level, start, root_stop(map, stop), 0xff, 0, refused)
    if found < 0 and rest_start(map, start) < stop and refused[map.rest]:
        found = map.rest
    return found
