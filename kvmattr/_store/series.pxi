# Series: updates one after another, each with its answer, for a caller that has something to do between two of them.
#
# A batch knows all its operations before it begins. The machine does not: it asks of each record whether it is legal
# and what it invalidates, which depends on those before it. So it takes the mutex, makes as many updates as one hold
# allows, and gives it back. Meanwhile single pages that lie in run lists go to open lists where that pays, as in a
# batch (openlists.pxi); what the caller reads in between, it reads through here.

cdef void series_begin(Series *series, size_t count) noexcept nogil:
    """For so many updates. Where there is no memory for open lists, none are opened."""
    cdef OpenLists *lists = NULL
    if count > LISTED_PAGES:
        lists = <OpenLists *>malloc(sizeof(OpenLists))
    if lists != NULL:
        lists_none(lists)
    series.lists = lists
    series.left = series.balance = 0
    series.opens = False
    series.rest = 0
    series.stretch = LISTED_PAGES


cdef void series_end(Series *series) noexcept nogil:
    free(series.lists)


cdef void series_store(Map *map, Series *series) noexcept nogil:
    """Store what is open, before anything reads the tree."""
    if series.lists != NULL:
        lists_close(map, <OpenLists *>series.lists)


cdef bint series_enter(Map *map, Series *series) noexcept nogil:
    """Take the mutex for one hold, if another thread may write now; tell whether it was taken, for series_leave."""
    cdef bint entered = family_shared(map.family)
    if entered:
        family_lock_group(map.family)
    series.left = HELD_MOST
    return entered


cdef void series_leave(Map *map, Series *series, bint entered) noexcept nogil:
    series_store(map, series)
    if series.lists != NULL:
        lists_none(<OpenLists *>series.lists)
    if series.opens:
        series.stretch = LISTED_PAGES
    series.opens = False
    if map.family.untidy:
        family_settle(map.family)
    family_leave(map.family, entered)


cdef void series_rest(Map *map, Series *series) noexcept nogil:
    """Open lists do not pay: they are left alone for a while."""
    series_store(map, series)
    series.opens = False
    series.rest = series.stretch
    series.stretch = <uint32_t>longer(series.stretch)


cdef inline UpdateResult series_update(Map *map, Series *series, uint64_t start, uint64_t stop, uint8_t k,
                                       uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on [start, stop), not empty, the next update of a hold; as map_update. Mostly a page of which
    the list is open already."""
    cdef OpenLists *lists = <OpenLists *>series.lists
    cdef OpenList *list
    cdef ListAnswer answer
    if series.opens and stop - start == 1:
        list = list_opened(map, lists, start)
        if list != NULL:
            answer = list_put(lists, list, start, k, x)
            if answer != LIST_FULL:
                series.balance += 1
                series.left -= HELD_SET + HELD_LISTED
                return <UpdateResult><int>answer
    return series_other(map, series, start, stop, k, x)


cdef UpdateResult series_other(Map *map, Series *series, uint64_t start, uint64_t stop, uint8_t k,
                               uint8_t x) noexcept nogil:
    """The same of a range, or of a page that no open list has."""
    series.left -= HELD_SET
    if stop - start != 1:
        series_store(map, series)
        series.left -= HELD_RANGE
        return range_update(map, start, stop, k, x)
    if series.lists != NULL and series.rest == 0:
        return series_page(map, series, start, k, x)
    series.rest -= series.rest != 0
    series.left -= HELD_PAGE
    return page_update(map, start, k, x)


cdef UpdateResult series_page(Map *map, Series *series, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """The next update, of a page, with lists open if they pay."""
    cdef OpenLists *lists = <OpenLists *>series.lists
    cdef UpdateResult result
    cdef Entry e
    cdef int before = lists.count
    cdef bint listed = False
    if not series.opens:
        if known_above(map, gfn) or not list_level(map, gfn, &e):
            series_rest(map, series)
            series.left -= HELD_PAGE
            return page_update(map, gfn, k, x)
        series.opens = True
        series.balance = 0
    if lists.taken == 0 and not lists_reserve(map):
        return UPDATE_NO_MEMORY
    result = unlisted_update(map, lists, gfn, k, x, &listed)
    series.balance += 1 if listed else -1
    series.left -= (HELD_LISTED if listed else HELD_PAGE) + HELD_PAGE * (lists.count - before)
    if not lists_pay(series.balance):
        series_rest(map, series)
    return result


cdef const Record *series_record(const Series *series, uint64_t gfn) noexcept nogil:
    """The record of the open list that holds a page, or NULL."""
    if series.lists == NULL:
        return NULL
    return lists_record(<const OpenLists *>series.lists, gfn)
