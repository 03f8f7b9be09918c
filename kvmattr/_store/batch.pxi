# Who holds the mutex, what a reader without the GIL holds, and batches of updates without the GIL.
#
# Who takes the mutex: whoever changes a family or reads its current state, but only while some thread writes
# without the GIL (family.announced; always on free-threaded builds). Bulk readers pin the root under it and
# read without it. A writer that will drop the GIL announces itself while it still holds it.

cdef enum:
    PUT_GROUP = 512             # single pages for each hold of the mutex: at most about 25 us
    UPDATE_GROUP = 32           # ranges for each hold: at most about 50 us
    PREFETCH_GROUP = 16         # pages whose leaves are asked for at once
    BATCH_SLICE = 1 << 16       # operations between two looks at signals
    TAKE_GROUP = 2048           # gfns that stay in the first-level cache between check and walk


cdef inline bint family_enter(Family *family) noexcept nogil:
    if KVMATTR_FREE_THREADED or family.announced:
        pthread_mutex_lock(&family.mutex)
        return True
    return False

cdef inline void family_leave(Family *family, bint entered) noexcept nogil:
    if entered:
        pthread_mutex_unlock(&family.mutex)

cdef inline void family_announce(Family *family, int change) noexcept nogil:
    pthread_mutex_lock(&family.mutex)
    family.announced += change
    pthread_mutex_unlock(&family.mutex)


cdef void pin(Map *pinned, const Map *map) noexcept nogil:
    """Hold a map's present state: a bulk read goes over *pinned, without the mutex and without the GIL."""
    cdef bint entered = family_enter(map.family)
    map_share(pinned, map)
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


cdef inline kvmattr_walk walk_of(const Map *map) noexcept nogil:
    cdef kvmattr_walk walk
    walk.bias = map.family.bias
    walk.root = map.root
    walk.span = level_span(map.level)
    walk.level = map.level
    walk.nsegments = map.family.segment_count
    walk.rest = map.rest
    walk.get = walk_get
    return walk


# ---- batches: groups under the mutex, without the GIL ----

cdef bint take_checked(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t count,
                       uint64_t pages) noexcept nogil:
    """The attributes of pages, a cacheful at a time; False at the first cacheful with a gfn outside the map."""
    cdef size_t done = 0, some
    while done < count:
        some = count - done if count - done < TAKE_GROUP else TAKE_GROUP
        if kernels.largest(gfns + done, some) >= pages:
            return False
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


cdef inline void prefetch_group(const Map *map, const uint64_t *gfns, size_t first, size_t upto) noexcept nogil:
    """The lines of this group's pages, all asked for before the first is needed."""
    cdef size_t i, last = first + PREFETCH_GROUP
    for i in range(first, last if last < upto else upto):
        map_prefetch(map, gfns[i])


cdef bint batch_run(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Apply operations up to number `upto`, in order. False when out of memory at operation `done`."""
    cdef size_t group, i = batch.done
    cdef UpdateResult result = UPDATE_UNCHANGED
    while i < upto:
        group = i + (PUT_GROUP if batch.stops == NULL else UPDATE_GROUP)
        group = group if group < upto else upto
        pthread_mutex_lock(&map.family.mutex)
        if batch.stops == NULL:
            while i < group:
                if i & (PREFETCH_GROUP - 1) == 0 or i == batch.done:
                    prefetch_group(map, batch.starts, i, upto)
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
