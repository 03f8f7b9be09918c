# Who holds the mutex, what a reader without the GIL holds, and batches of updates without the GIL.
#
# Who takes the mutex: whoever changes a family or reads its current state, but only while some thread writes
# without the GIL (family.announced; always on free-threaded builds). Bulk readers pin the root under it and
# read without it. A writer that will drop the GIL announces itself while it still holds it.

cdef enum:
    PUT_GROUP = 512             # single pages for each hold of the mutex: at most about 25 us
    UPDATE_GROUP = 32           # ranges for each hold: at most about 50 us
    LOCATED = 64                # pages whose leaves are asked for at once
    BATCH_SLICE = 1 << 16       # operations between two looks at signals
    TAKE_GROUP = 2048           # gfns that stay in the first-level cache between check and walk


cdef inline bint family_shared(const Family *family) noexcept nogil:
    """Whether its mutex is to be taken: the GIL does not keep all others away."""
    return KVMATTR_FREE_THREADED or kvmattr_load_int(&family.announced) != 0

cdef inline bint family_enter(Family *family) noexcept nogil:
    if family_shared(family):
        pthread_mutex_lock(&family.mutex)
        return True
    return False

cdef inline void family_leave(Family *family, bint entered) noexcept nogil:
    if entered:
        pthread_mutex_unlock(&family.mutex)

cdef inline void family_announce(Family *family, int change) noexcept nogil:
    pthread_mutex_lock(&family.mutex)
    kvmattr_store_int(&family.announced, family.announced + change)
    pthread_mutex_unlock(&family.mutex)


cdef void pin(Map *pinned, const Map *map) noexcept nogil:
    """Hold a map's present state: a bulk read goes over *pinned, without the mutex and without the GIL."""
    cdef bint entered = family_enter(map.family)
    map_share(pinned, map)
    pinned.pinned_by = <uintptr_t>pthread_self()
    family_leave(map.family, entered)

cdef void unpin(Map *pinned) noexcept nogil:
    cdef bint entered = family_enter(pinned.family)
    map_drop(pinned)
    family_leave(pinned.family, entered)


cdef uint8_t walk_get(const kvmattr_walk *walk, uint64_t gfn) noexcept nogil:
    # bias is the family's first field, so the walk needs no pointer to the family beside it.
    if gfn >= walk.span:
        return walk.rest
    return tree_get(<const Family *>walk.bias, walk.root, walk.level, gfn)


cdef uint8_t walk_coded(const kvmattr_walk *walk, uint32_t handle, uint32_t page) noexcept nogil:
    return leaf_raw(<const Family *>walk.bias, handle, page)


cdef inline kvmattr_walk walk_of(const Map *map) noexcept nogil:
    cdef kvmattr_walk walk
    walk.bias = map.family.bias
    walk.root = map.root
    walk.span = level_span(map.level)
    walk.level = map.level
    walk.nsegments = kvmattr_load_int(&map.family.segment_count)
    walk.rest = map.rest
    walk.get = walk_get
    walk.coded = walk_coded
    return walk


# ---- whole maps ----

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


cdef Map *map_twin(const Map *source) noexcept nogil:
    """One map more with the content of `source`; NULL when out of memory."""
    cdef Map *map = <Map *>malloc(sizeof(Map))
    cdef bint entered
    if map != NULL:
        entered = family_enter(source.family)
        map_share(map, source)
        family_leave(source.family, entered)
    return map


cdef void map_leave_family(Map *map) noexcept nogil:
    """Give up what a map holds; the last one takes the family with it."""
    cdef Family *family = map.family
    cdef bint entered = family_enter(family)
    cdef bint last
    map_drop(map)
    last = family.maps == NULL
    if not last:
        release_dead(family, -1)
    family_leave(family, entered)
    if last:
        family_free(family)


cdef void map_free(Map *map) noexcept nogil:
    map_leave_family(map)
    free(map)


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
    unpin(&pinned)
    return result


# ---- batches: groups under the mutex, without the GIL ----

cdef bint take_pages(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t count, uint64_t pages,
                     bint checked) noexcept nogil:
    """The attributes of pages, a cacheful at a time; False at the first cacheful with a gfn outside the map, for
    which nobody looks if all were checked before."""
    cdef size_t done = 0, some, i
    cdef bint uniform = entry_handle(walk.root) == 0 and entry_first(walk.root) == walk.rest
    while done < count:
        some = count - done if count - done < TAKE_GROUP else TAKE_GROUP
        if not checked and kernels.largest(gfns + done, some) >= pages:
            return False
        if uniform:
            memset(out + done, walk.rest, some)
        elif KVMATTR_COUNTING_BUILD:
            for i in range(some):
                out[done + i] = walk.get(walk, gfns[done + i])
        else:
            kernels.take(walk, gfns + done, out + done, some)
        done += some
    return True


# Arrays of a batch; a step of 0 uses the first cell for all.
cdef struct Batch:
    const uint64_t *starts
    const uint64_t *stops       # NULL: single pages
    const uint8_t *k
    const uint8_t *x
    size_t step
    size_t done
    uint64_t changed


cdef inline int put_flips(Map *map, Batch *batch, size_t first, size_t upto) noexcept nogil:
    """Flip the bits of as many of the next pages as can be changed by that, all located before the first is
    touched; the number of pages that are done. It ends at a page that needs more, since what that does may move
    the leaves of those after it."""
    cdef kvmattr_walk walk = walk_of(map)
    cdef size_t at = first * batch.step
    cdef uint64_t changed = 0
    cdef int done = kernels.put(&walk, batch.starts + first, LOCATED if upto - first > LOCATED else <int>(upto - first),
                                batch.k + at, batch.x + at, batch.step, map.pages - 1, &changed)
    batch.changed += changed
    kvmattr_raise_version(&map.version, changed)
    return done


cdef bint batch_run(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Apply operations up to number `upto`, in order. False when out of memory at operation `done`."""
    cdef size_t group, i = batch.done
    cdef size_t beside = 0
    cdef int flipped
    cdef UpdateResult result = UPDATE_UNCHANGED
    while i < upto:
        group = i + (PUT_GROUP if batch.stops == NULL else UPDATE_GROUP)
        group = group if group < upto else upto
        pthread_mutex_lock(&map.family.mutex)
        if batch.stops == NULL:
            while i < group:
                # While nobody shares with this map, every leaf is its own.
                if not KVMATTR_COUNTING_BUILD and map.family.maps.next == NULL and upto - i >= LOCATED and i >= beside:
                    flipped = put_flips(map, batch, i, upto)
                    i += flipped
                    # Where hardly any page is a plain flip, looking ahead does not pay for a while.
                    if flipped < LOCATED // 8:
                        beside = i + LOCATED
                    if flipped == LOCATED:
                        continue
                result = map_put(map, batch.starts[i], batch.k[i * batch.step], batch.x[i * batch.step])
                if result < 0:
                    break
                batch.changed += result
                i += 1
        else:
            while i < group:
                result = map_update(map, batch.starts[i], batch.stops[i], batch.k[i * batch.step],
                                    batch.x[i * batch.step])
                if result < 0:
                    break
                batch.changed += result
                i += 1
        pthread_mutex_unlock(&map.family.mutex)
        batch.done = i
        if result < 0:
            return False
    return True
