# Open run lists: pages of a batch change the runs in buffers, and each list is stored once.
#
# A page that is put into a run list by itself finds its way down, moves the runs behind it and mostly the record, too.
# A batch of a guest's first conversions meets the same lists again and again. So it opens them, as many as there are
# places, each in that of its number: a list's runs lie in a buffer until all are closed, at the latest when the mutex
# is given back, so nobody sees a list that is behind. There is memory to store all of them as long as any is open:
# what is done to them cannot fail, and a batch stops between two operations as ever. In between the batch may update
# pages of other subtrees; as an open list's old record stays where it is, no node above it becomes uniform meanwhile.

cdef enum:
    OPEN_LISTS = 64                 # 36 KB: about what the first-level cache holds
    # While some are open: 18 pages to store all (64 records, at least seven to a page, and a page begun in each of
    # their nine classes), 28 for the update of another page, one for a list in place of a node, and 13 for records that
    # are moved after it. So the reserve of one update is enough, and a small map needs no second segment.
    OPEN_RESERVE = RESERVE_PAGES

cdef enum ListAnswer:
    LIST_FULL = -1
    LIST_UNCHANGED = 0
    LIST_CHANGED = 1

cdef struct OpenList:
    uint64_t gfn                # a page of it
    uint8_t varying             # what its pages' new values differ in from the old ones; 0: nothing has changed
    bint loose
    uint64_t[64] place          # its record while it is open, with room for as many runs as it may have

cdef struct OpenLists:
    int level                   # of the entries that lead to them
    int count                   # of those that were opened
    uint64_t changed            # pages
    uint64_t taken              # bit i: place i
    OpenList[OPEN_LISTS] lists


cdef inline bint known_above(const Map *map, uint64_t gfn) noexcept nogil:
    """Whether a page is beyond the root, or one that entries of nodes know (see page_update)."""
    return gfn & (level_span(3) - 1) == 0 or gfn + 1 == map.pages or gfn >= level_span(map.level)


cdef inline int list_level(const Map *map, uint64_t gfn, Entry *e) noexcept nogil:
    """The level of the entry above a page that leads to a run list, and *e the entry. 0 where there is none, or where
    something on the way to it is pending or another map's too."""
    cdef Way way = way_down(map.family, &map.root, map.level, 2, gfn, WAY_SHARES)
    cdef uint32_t handle = entry_handle(way.entry)
    e[0] = way.entry
    if way.shift == level_shift(2) or handle == 0 or is_node(handle) or way.shared:
        return 0
    return way_level(&way)


cdef OpenList *list_open(Map *map, OpenLists *lists, uint64_t gfn) noexcept nogil:
    """The open list that holds a page, which no entry above knows. NULL where none does: it lies in no list, or
    another one has its place."""
    cdef int level = lists.level, shift, place
    cdef OpenList *list
    cdef Entry e
    if lists.taken == 0:
        level = list_level(map, gfn, &e)
        if level == 0:
            return NULL
        lists.level = level
    shift = level_shift(level)
    place = <int>((gfn >> shift) % OPEN_LISTS)
    list = &lists.lists[place]
    if lists.taken >> place & 1:
        return list if (list.gfn ^ gfn) >> shift == 0 else NULL
    if list_level(map, gfn, &e) != level:
        return NULL
    list.gfn = gfn
    list.varying = 0
    list.loose = False
    list_load(map.family, e, open_record(list))
    lists.taken |= <uint64_t>1 << place
    lists.count += 1
    return list


cdef inline bint lists_reserve(Map *map) noexcept nogil:
    """Whether there is memory to store all lists, and for an update of another page before that."""
    return available_pages(map.family) >= OPEN_RESERVE or arena_reserve(map.family, OPEN_RESERVE) == 0


cdef inline void lists_none(OpenLists *lists) noexcept nogil:
    """None is open, and none has been."""
    lists.taken = lists.changed = 0
    lists.count = 0
    lists.level = 3


cdef inline Record *open_record(const OpenList *list) noexcept nogil:
    return <Record *>&list.place[0]


cdef inline const Record *lists_record(const OpenLists *lists, uint64_t gfn) noexcept nogil:
    """The record of the open list that holds a page; NULL where none does."""
    cdef int shift = level_shift(lists.level), place
    if lists.taken == 0:
        return NULL
    place = <int>((gfn >> shift) % OPEN_LISTS)
    if lists.taken >> place & 1 == 0 or (lists.lists[place].gfn ^ gfn) >> shift:
        return NULL
    return open_record(&lists.lists[place])


cdef inline OpenList *list_opened(const Map *map, OpenLists *lists, uint64_t gfn) noexcept nogil:
    """The open list that holds a page, which no entry above knows; NULL where none does."""
    cdef int shift = level_shift(lists.level)
    cdef uint64_t place = (gfn >> shift) % OPEN_LISTS
    if (lists.taken >> place & 1 == 0 or (lists.lists[place].gfn ^ gfn) >> shift or gfn & (level_span(3) - 1) == 0
            or gfn + 1 == map.pages):
        return NULL
    return &lists.lists[place]


cdef inline ListAnswer list_put(OpenLists *lists, OpenList *list, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on a page of an open list. LIST_FULL, with nothing done: it would have too many runs."""
    cdef uint64_t span = level_span(lists.level)
    cdef uint32_t done = kernels.list_put(open_record(list), gfn & (span - 1), span, k, x, RUN_LIST_RUNS)
    if done == KVMATTR_LIST_FULL:
        return LIST_FULL
    list.varying |= <uint8_t>done
    lists.changed += done != 0
    return LIST_CHANGED if done else LIST_UNCHANGED


cdef void lists_close(Map *map, OpenLists *lists) noexcept nogil:
    """Store the lists that have changed. What the entries above may not know yet they are told when all are stored: a
    node that seems uniform without one of them must not go."""
    cdef Family *family = map.family
    cdef uint64_t left = lists.taken, changed = lists.changed
    cdef OpenList *list
    cdef Entry *slot
    while left:
        list = &lists.lists[kvmattr_first_bit(left)]
        left &= left - 1
        if list.varying == 0:
            continue
        slot = way_own(map, list.gfn, lists.level, list.varying, &list.loose)
        if open_record(list).count > 1:
            slot[0] = run_list_copy(family, entry_handle(slot[0]), open_record(list))
        else:
            release(family, entry_handle(slot[0]))
            slot[0] = entry_uniform(kvmattr_list_values(open_record(list), 1)[0])
            list.loose = True
    kvmattr_raise_version(&map.version, changed)
    left = lists.taken
    while left:
        list = &lists.lists[kvmattr_first_bit(left)]
        left &= left - 1
        if list.varying and list.loose and list.gfn < level_span(map.level):
            map_tighten(map, list.gfn)
    if changed:
        family_settle(family)
    lists.taken = lists.changed = 0


cdef inline UpdateResult listed_update(Map *map, OpenLists *lists, uint64_t gfn, uint8_t k, uint8_t x,
                                       bint *listed) noexcept nogil:
    """new = (old & k) ^ x on a page, in an open list if it lies in a list; else by itself, and what it may touch is
    stored before. Mostly its list is open already."""
    cdef OpenList *list = list_opened(map, lists, gfn)
    cdef ListAnswer answer = LIST_FULL
    if list != NULL:
        answer = list_put(lists, list, gfn, k, x)
    listed[0] = answer != LIST_FULL
    if answer != LIST_FULL:
        return <UpdateResult><int>answer
    return unlisted_update(map, lists, gfn, k, x, listed)


cdef UpdateResult unlisted_update(Map *map, OpenLists *lists, uint64_t gfn, uint8_t k, uint8_t x,
                                  bint *listed) noexcept nogil:
    """The same where no open list has the page, or where that has no room."""
    cdef OpenList *list = NULL
    cdef ListAnswer answer
    if not known_above(map, gfn):
        list = list_open(map, lists, gfn)
        if list != NULL:
            answer = list_put(lists, list, gfn, k, x)
            if answer != LIST_FULL:
                listed[0] = True
                return <UpdateResult><int>answer
            lists_close(map, lists)
    else:
        lists_close(map, lists)
    return page_update(map, gfn, k, x) if lists_reserve(map) else UPDATE_NO_MEMORY
