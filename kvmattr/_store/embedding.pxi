# What C, C++ and Cython call: the functions of include/kvmattr.h, which says what each one does.
#
# Each checks what it is given, takes the mutex as the Python methods do, and calls the tree. Nothing here needs
# the GIL but what takes or gives a Python object.

from cpython.pycapsule cimport PyCapsule_New
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort

cdef extern from *:
    "#define KVMATTR_BUILDS_CORE"

cdef extern from "kvmattr.h" nogil:
    const int KVMATTR_ABI_VERSION
    const int KVMATTR_NO_MEMORY, KVMATTR_BAD_MAP, KVMATTR_READ_ONLY, KVMATTR_BAD_GFN, KVMATTR_BAD_RANGE
    const int KVMATTR_BAD_OPERATION, KVMATTR_BAD_PAGES, KVMATTR_BAD_POINTER, KVMATTR_NOT_YOURS
    const int KVMATTR_NOT_SHARED, KVMATTR_AND

    ctypedef struct kvmattr_map:
        pass

    ctypedef struct kvmattr_run:
        uint64_t start
        uint64_t stop
        uint8_t attributes

    ctypedef struct kvmattr_change:
        uint64_t start
        uint64_t stop
        uint8_t before
        uint8_t after

    ctypedef int (*kvmattr_run_callback)(void *context, const kvmattr_run *run) noexcept nogil
    ctypedef int (*kvmattr_change_callback)(void *context, const kvmattr_change *change) noexcept nogil

    ctypedef struct kvmattr_cursor:
        const uint64_t *version
        uint64_t seen
        uint64_t start
        uint64_t count
        uint64_t index
        uint8_t values[512]

    ctypedef struct kvmattr_api:
        uint32_t abi_version
        uint32_t struct_size
        const char *(*error_text)(int error) noexcept nogil
        kvmattr_map *(*map_of)(object attribute_map) except NULL
        const kvmattr_map *(*view_of)(object attribute_map) except NULL
        object (*object_of)(const kvmattr_map *map)
        int (*create)(uint64_t pages, uint8_t attributes, kvmattr_map **map) noexcept nogil
        int (*copy)(const kvmattr_map *map, kvmattr_map **copy) noexcept nogil
        int (*destroy)(kvmattr_map *map) noexcept nogil
        int (*share)(kvmattr_map *map) noexcept nogil
        int (*unshare)(kvmattr_map *map) noexcept nogil
        uint64_t (*pages)(const kvmattr_map *map) noexcept nogil
        const uint64_t *(*version)(const kvmattr_map *map) noexcept nogil
        int (*get)(const kvmattr_map *map, uint64_t gfn) noexcept nogil
        int (*take)(const kvmattr_map *map, const uint64_t *gfns, uint8_t *attributes, size_t count) noexcept nogil
        int (*all)(const kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes,
                   uint8_t mask) noexcept nogil
        int (*run)(const kvmattr_map *map, uint64_t gfn, kvmattr_run *run) noexcept nogil
        int (*runs)(const kvmattr_map *map, uint64_t start, uint64_t stop, kvmattr_run_callback callback,
                    void *context) noexcept nogil
        int (*diff)(const kvmattr_map *map, const kvmattr_map *before, uint64_t start, uint64_t stop,
                    kvmattr_change_callback callback, void *context) noexcept nogil
        int (*update)(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                      uint8_t mask) noexcept nogil
        int (*update_changes)(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                              uint8_t mask, kvmattr_change_callback callback, void *context) noexcept nogil
        int (*snapshot)(const kvmattr_map *map, const kvmattr_map **snapshot) noexcept nogil
        int (*release)(const kvmattr_map *snapshot) noexcept nogil
        int (*restore)(kvmattr_map *map, const kvmattr_map *source) noexcept nogil
        int (*cursor_open)(const kvmattr_map *map, kvmattr_cursor **cursor) noexcept nogil
        int (*cursor_seek)(kvmattr_cursor *cursor, uint64_t gfn) noexcept nogil
        int (*cursor_close)(kvmattr_cursor *cursor) noexcept nogil


# ---- handles: a Map with a seal ----

cdef enum:
    SEAL = 0x6b764d30           # "kvM0"; the two low bits say what may be done with it
    SEAL_READ_ONLY = 1
    SEAL_OURS = 2               # made by C, so C ends it
    SEAL_BROKEN = 0x6b764d3f    # released: memory that only the debug build keeps
    SEAL_CURSOR = 0x6b764363    # "kvCc"


cdef inline Map *opened(const kvmattr_map *handle) noexcept nogil:
    """The Map of a handle, or NULL if it is none."""
    cdef Map *map = <Map *>handle
    if map == NULL or map.seal & ~<uint32_t>(SEAL_READ_ONLY | SEAL_OURS) != SEAL:
        return NULL
    return map


cdef inline bint look_enter(const Map *map, int call, uint64_t items) noexcept nogil:
    """Take the mutex for a look-up in a map that may change meanwhile, and count it there."""
    cdef bint entered
    if map.seal & SEAL_READ_ONLY:
        return False
    entered = family_enter(map.family)
    count_call(map.family, call, items)
    return entered


cdef inline void seal_break(uint32_t *seal) noexcept nogil:
    """So that a later use is refused while the memory is still as it was. A plain store before free() is one that the
    compiler takes out."""
    kvmattr_store_int(<int *>seal, SEAL_BROKEN)


cdef void map_end(Map *map) noexcept nogil:
    """The end of a map that C made. The debug build keeps its memory, so that a later use finds the broken seal."""
    map_leave_family(map)
    seal_break(&map.seal)
    if not KVMATTR_DEBUG_BUILD:
        free(map)


cdef void audit_or_abort(Map *map) noexcept nogil:
    """The debug build's check after each operation; the mutex is held."""
    cdef Audit audit
    if KVMATTR_DEBUG_BUILD and not audit_family(&audit, map.family) and audit.broken != NULL:
        fprintf(stderr, "kvmattr: broken invariant: %s (level %d, gfn %llu)\n", audit.broken, audit.broken_level,
                <unsigned long long>audit.broken_gfn)
        abort()


cdef const char *api_error_text(int error) noexcept nogil:
    if error >= 0:
        return "no error"
    if error == KVMATTR_NO_MEMORY:
        return "out of memory: nothing has changed"
    if error == KVMATTR_BAD_MAP:
        return "NULL, not a map, or a map that was released or destroyed"
    if error == KVMATTR_READ_ONLY:
        return "a snapshot is read-only: change a copy of it"
    if error == KVMATTR_BAD_GFN:
        return "gfn is outside the map: need gfn < pages"
    if error == KVMATTR_BAD_RANGE:
        return "bad range: need start <= stop <= pages"
    if error == KVMATTR_BAD_OPERATION:
        return "operation is none of WRITE = 0, OR = 1, AND = 2"
    if error == KVMATTR_BAD_PAGES:
        return "a map has at most 2^52 pages, and two maps need the same number"
    if error == KVMATTR_BAD_POINTER:
        return "a pointer is NULL, or not to an open cursor"
    if error == KVMATTR_NOT_YOURS:
        return "destroy what create and copy made, release what snapshot made; Python's maps belong to Python"
    if error == KVMATTR_NOT_SHARED:
        return "the family was not shared"
    return "unknown error"


# ---- between C and Python ----

cdef void seal(AttributeMap holder) noexcept:
    """Let C use the Map of a Python object. A live view shows the Map of its owner, which may be changed there."""
    cdef Map *map = holder.map
    cdef bint entered = family_enter(map.family)
    map.seal = SEAL | (SEAL_READ_ONLY if holder.frozen and holder.owner is None else 0)
    family_leave(map.family, entered)


cdef kvmattr_map *api_map_of(object attribute_map) except NULL:
    if not isinstance(attribute_map, AttributeMap):
        raise TypeError(f"need an AttributeMap, not {type(attribute_map).__name__}")
    if (<AttributeMap>attribute_map).frozen:
        raise_readonly()
    seal(<AttributeMap>attribute_map)
    return <kvmattr_map *>(<AttributeMap>attribute_map).map


cdef const kvmattr_map *api_view_of(object attribute_map) except NULL:
    if not isinstance(attribute_map, AttributeMap):
        raise TypeError(f"need an AttributeMap, not {type(attribute_map).__name__}")
    seal(<AttributeMap>attribute_map)
    return <const kvmattr_map *>(<AttributeMap>attribute_map).map


cdef object api_object_of(const kvmattr_map *handle):
    cdef Map *map = opened(handle)
    if map == NULL:
        raise ValueError(api_error_text(KVMATTR_BAD_MAP).decode())
    count_entering(map.family, CALL_COPY, 0)
    return share(map, False)


# ---- maps ----

cdef int api_create(uint64_t pages, uint8_t attributes, kvmattr_map **handle) noexcept nogil:
    cdef Map *map
    if handle == NULL:
        return KVMATTR_BAD_POINTER
    if pages > <uint64_t>1 << 52:
        return KVMATTR_BAD_PAGES
    map = map_new(pages, attributes)
    if map == NULL:
        return KVMATTR_NO_MEMORY
    map.seal = SEAL | SEAL_OURS
    handle[0] = <kvmattr_map *>map
    return 0


cdef int api_copy(const kvmattr_map *handle, kvmattr_map **copy) noexcept nogil:
    cdef Map *map = opened(handle)
    if map == NULL:
        return KVMATTR_BAD_MAP
    if copy == NULL:
        return KVMATTR_BAD_POINTER
    count_entering(map.family, CALL_COPY, 0)
    map = map_twin(map, False)
    if map == NULL:
        return KVMATTR_NO_MEMORY
    map.seal = SEAL | SEAL_OURS
    copy[0] = <kvmattr_map *>map
    return 0


cdef int api_destroy(kvmattr_map *handle) noexcept nogil:
    cdef Map *map = opened(handle)
    if map == NULL:
        return KVMATTR_BAD_MAP
    if map.seal != SEAL | SEAL_OURS:
        return KVMATTR_NOT_YOURS
    map_end(map)
    return 0


cdef int api_share(kvmattr_map *handle) noexcept nogil:
    cdef Map *map = opened(handle)
    if map == NULL:
        return KVMATTR_BAD_MAP
    family_announce(map.family, 1)
    return 0


cdef int api_unshare(kvmattr_map *handle) noexcept nogil:
    cdef Map *map = opened(handle)
    if map == NULL:
        return KVMATTR_BAD_MAP
    if kvmattr_load_int(&map.family.announced) == 0:
        return KVMATTR_NOT_SHARED
    family_announce(map.family, -1)
    return 0


cdef uint64_t api_pages(const kvmattr_map *handle) noexcept nogil:
    cdef Map *map = opened(handle)
    return map.pages if map != NULL else 0


# Memory order: the word is stored with release order after the last page of a change, under the mutex. A client that
# loads it with acquire order (kvmattr_load) and then asks for pages gets that state or a later one, as get, take and
# seek lock or pin after the load. A cursor's window is its own copy: between two loads of an equal word there was no
# change.
cdef const uint64_t *api_version(const kvmattr_map *handle) noexcept nogil:
    cdef Map *map = opened(handle)
    return &map.version if map != NULL else NULL


# ---- look up ----

# A simulator calls api_get for each access, and what it costs is how many look-ups the processor has under way at once:
# the number of instructions. So the way through nodes to a leaf of fields is here three times: with nothing pending,
# which takes no more than it must; with operations to compose; and for everything else, which is map_get.

cdef inline bint leads_to_node(Entry e) noexcept nogil:
    """Whether the entry's handle is a node's: not uniform, no run list."""
    return entry_handle(e) != 0 and is_node(entry_handle(e))


cdef inline bint leads_to_node_unchanged(Entry e) noexcept nogil:
    """The same, and no operation is pending: k is 0xff and x is 0."""
    return e & <uint64_t>0xffff000001ff == <uint64_t>0xff00000000


# Called through pointers, so that no compiler takes them into their caller, which then needs no frame on the stack.
cdef int (*get_apart)(const Map *map, uint64_t gfn) noexcept nogil
cdef int (*get_composed_apart)(const Map *map, uint64_t gfn) noexcept nogil
cdef int (*get_entering)(const Map *map, uint64_t gfn) noexcept nogil
get_apart = get_any
get_composed_apart = get_composed
get_entering = get_shared


cdef int get_any(const Map *map, uint64_t gfn) noexcept nogil:
    """A page of any map that nobody else writes."""
    return map_get(map, gfn)


cdef int get_shared(const Map *map, uint64_t gfn) noexcept nogil:
    """A page of a map that another thread may write."""
    cdef bint entered = family_enter(map.family)
    cdef int value = map_get(map, gfn)
    count_one(map.family, CALL_GET)
    family_leave(map.family, entered)
    return value


cdef int get_composed(const Map *map, uint64_t gfn) noexcept nogil:
    """A page below the root of a map that nobody else writes; maps of up to 512 GiB have no loop here."""
    cdef const Family *family = map.family
    cdef Entry e = map.root
    cdef uint32_t keep = 0xff, toggle = 0
    cdef int level = map.level
    if level > 4 or level > 2 and not leads_to_node(e):
        return get_apart(map, gfn)
    if level == 4:
        toggle = <uint8_t>(e >> 40)
        keep = <uint8_t>(e >> 32)
        e = node_at(family, entry_handle(e))[gfn >> level_shift(3)]
        if not leads_to_node(e):
            return get_apart(map, gfn)
    if level > 2:
        toggle ^= <uint32_t>(e >> 40) & keep
        keep &= <uint32_t>(e >> 32)
        e = node_at(family, entry_handle(e))[(gfn >> level_shift(2)) & 511]
    if is_line(entry_handle(e)):
        return get_apart(map, gfn)
    toggle ^= <uint32_t>(e >> 40) & keep
    keep &= <uint32_t>(e >> 32)
    return <uint8_t>((fields_raw(family, entry_handle(e), gfn) & keep) ^ toggle)


cdef inline uint32_t fields_raw(const Family *family, uint32_t handle, uint64_t gfn) noexcept nogil:
    """What a leaf of fields stores for a page; the handle 0 of a uniform block reads zeros."""
    kvmattr_count_pages(family, 1)
    return kvmattr_field_raw(leaf_at(family, handle), wide_of(handle), gfn & 511)


cdef int api_get(const kvmattr_map *handle, uint64_t gfn) noexcept nogil:
    cdef const Map *map = <const Map *>handle
    cdef Family *family
    cdef Entry e
    cdef int shift
    if map == NULL:
        return KVMATTR_BAD_MAP
    # What opened() looks at, in an order in which counting a look-up costs no instruction more.
    if map.seal & ~<uint32_t>SEAL_OURS == SEAL:
        if gfn >= map.pages:
            return KVMATTR_BAD_GFN
        family = map.family
        if family_shared(family):
            return get_entering(map, gfn)
        count_one(family, CALL_GET)
    elif map.seal & ~<uint32_t>SEAL_OURS != SEAL | SEAL_READ_ONLY:
        return KVMATTR_BAD_MAP
    else:
        if gfn >= map.pages:
            return KVMATTR_BAD_GFN
        family = map.family
    shift = level_shift(map.level)
    if gfn >> shift:
        return map.rest
    e = map.root
    while shift > 9:
        if not leads_to_node_unchanged(e):
            return entry_first(e) if entry_handle(e) == 0 else get_composed_apart(map, gfn)
        shift -= 9
        e = node_at(family, entry_handle(e))[(gfn >> shift) & 511]
    if is_line(entry_handle(e)):
        return get_apart(map, gfn)
    return <uint8_t>((fields_raw(family, entry_handle(e), gfn) & <uint32_t>(e >> 32)) ^ <uint32_t>(e >> 40))


cdef int api_take(const kvmattr_map *handle, const uint64_t *gfns, uint8_t *attributes, size_t count) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef const Map *view = map
    cdef Map pinned
    cdef kvmattr_walk walk
    cdef uint64_t wrong
    cdef bint pins
    if map == NULL:
        return KVMATTR_BAD_MAP
    if count and (gfns == NULL or attributes == NULL):
        return KVMATTR_BAD_POINTER
    if count and kernels.largest(gfns, count) >= map.pages:
        return KVMATTR_BAD_GFN
    pins = not map.seal & SEAL_READ_ONLY and family_shared(map.family)
    if not map.seal & SEAL_READ_ONLY:
        count_entering(map.family, CALL_TAKE, count)
    if pins:
        pin(&pinned, map)
        view = &pinned
    walk = walk_of(view)
    take_pages(&walk, gfns, attributes, count, view.pages, True, &wrong)
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
    entered = look_enter(map, CALL_SEARCH, stop - start)
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
    entered = look_enter(map, CALL_RUN, 0)
    run.attributes = map_get(map, gfn)
    map_run(map, gfn, &run.start, &run.stop)
    family_leave(map.family, entered)
    return 0


cdef struct RunCall:
    kvmattr_run_callback callback
    void *context
    int result
    uint64_t runs
    kvmattr_run run             # here and not on the stack of each call: that pays for counting them


cdef bint call_run(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    cdef RunCall *call = <RunCall *>sink.context
    call.run.start = start
    call.run.stop = stop
    call.run.attributes = value
    call.runs += 1
    call.result = call.callback(call.context, &call.run)
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
    call.runs = 0
    pin(&pinned, map)               # the callback may change the map
    map_runs(&pinned, start, stop, &sink)
    count_entering(pinned.family, CALL_RUNS, call.runs)
    unpin(&pinned)
    return call.result


cdef struct ChangeCall:
    kvmattr_change_callback callback
    void *context
    int result
    uint64_t runs
    kvmattr_change change


cdef bint call_change(DiffSink *sink, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    cdef ChangeCall *call = <ChangeCall *>sink.context
    call.change.start = start
    call.change.stop = stop
    call.change.before = old
    call.change.after = new
    call.runs += 1
    call.result = call.callback(call.context, &call.change)
    return call.result == 0


cdef int call_changes(const Map *old, const Map *new, uint64_t start, uint64_t stop,
                      kvmattr_change_callback callback, void *context, uint64_t *runs) noexcept nogil:
    cdef ChangeCall call
    cdef DiffSink sink
    call.callback = callback
    call.context = context
    call.result = 0
    call.runs = 0
    sink.emit = call_change
    sink.context = &call
    maps_diff(old, new, start, stop, &sink)
    runs[0] = call.runs
    return call.result


cdef int api_diff(const kvmattr_map *handle, const kvmattr_map *before, uint64_t start, uint64_t stop,
                  kvmattr_change_callback callback, void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map *other = opened(before)
    cdef Map old, new
    cdef uint64_t runs
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
    result = call_changes(&old, &new, start, stop, callback, context, &runs)
    count_entering(new.family, CALL_DIFF, runs)
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
    count_call(map.family, CALL_UPDATE, stop - start)
    if stop - start == 1:
        result = map_put(map, start, change.k, change.x)
    else:
        result = map_update(map, start, stop, change.k, change.x)
    if KVMATTR_DEBUG_BUILD:
        audit_or_abort(map)
    family_leave(map.family, entered)
    return KVMATTR_NO_MEMORY if result < 0 else <int>result


cdef int api_update_changes(kvmattr_map *handle, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                            uint8_t mask, kvmattr_change_callback callback, void *context) noexcept nogil:
    cdef Map *map = opened(handle)
    cdef Map old, new
    cdef Change change
    cdef UpdateResult result
    cdef uint64_t runs
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
    count_call(map.family, CALL_UPDATE, stop - start)
    map_share(&old, map)
    old.pinned_by = <uintptr_t>pthread_self()
    result = map_update(map, start, stop, change.k, change.x)
    map_share(&new, map)
    new.pinned_by = old.pinned_by
    if KVMATTR_DEBUG_BUILD:
        audit_or_abort(map)
    family_leave(map.family, entered)
    answer = KVMATTR_NO_MEMORY if result < 0 else <int>result
    if result > 0:
        answer = call_changes(&old, &new, start, stop, callback, context, &runs)
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
    count_entering(map.family, CALL_SNAPSHOT, 0)
    map = map_twin(map, False)
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
    count_entering(map.family, CALL_RESTORE, 0)
    return KVMATTR_NO_MEMORY if map_restore(map, other) < 0 else 0


# ---- cursors ----

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
        if not map.seal & SEAL_READ_ONLY:
            count_one(map.family, CALL_SEEK)
        cursor_unpin(cursor)
        cursor.window.seen = map.version
        return map
    if not cursor.pins or kvmattr_read_version(&map.version) != cursor.window.seen:
        entered = family_enter(map.family)
        count_one(map.family, CALL_SEEK)
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
    cdef Entry e = map.root
    cdef int level = map.level
    cdef uint32_t keep = 0xff, toggle = 0
    cdef uint64_t base = 0, page
    cdef const uint64_t *starts
    cdef const uint8_t *values
    cdef const Record *record
    cdef int i
    if gfn >= level_span(level):
        return cursor_uniform(cursor, level_span(level), map.pages, map.rest)
    while entry_handle(e):
        if level == 2:
            base = gfn & ~<uint64_t>511
            if cursor.block != gfn >> 9:
                cursor.block = gfn >> 9
                return cursor_uniform(cursor, gfn, gfn + 1, <uint8_t>(
                    (((leaf_raw(family, entry_handle(e), gfn & 511) & entry_k(e)) ^ entry_x(e)) & keep) ^ toggle))
            leaf_decode(family, e, <uint8_t>keep, <uint8_t>toggle, cursor.window.values)
            cursor.window.start = base
            cursor.window.count = 512 if map.pages - base > 512 else map.pages - base
            cursor.window.index = 511
            return cursor.window.values[gfn & 511]
        toggle ^= entry_x(e) & keep
        keep &= entry_k(e)
        if not is_node(entry_handle(e)):
            base = gfn & ~(level_span(level) - 1)
            page = gfn - base
            record = run_list_at(family, entry_handle(e), &starts, &values)
            i = run_list_find(starts, record.count, page)
            return cursor_uniform(cursor, base + (starts[i - 1] if i > 0 else 0),
                                  base + (starts[i] if i < record.count - 1 else level_span(level)),
                                  <uint8_t>((values[i] & keep) ^ toggle))
        e = node_at(family, entry_handle(e))[(gfn >> level_shift(level - 1)) & 511]
        level -= 1
    base = gfn & ~(level_span(level) - 1)
    return cursor_uniform(cursor, base, base + level_span(level), <uint8_t>((entry_first(e) & keep) ^ toggle))


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


# ---- the table ----

cdef kvmattr_api api

api.abi_version = KVMATTR_ABI_VERSION
api.struct_size = sizeof(kvmattr_api)
api.error_text = api_error_text
api.map_of = api_map_of
api.view_of = api_view_of
api.object_of = api_object_of
api.create = api_create
api.copy = api_copy
api.destroy = api_destroy
api.share = api_share
api.unshare = api_unshare
api.pages = api_pages
api.version = api_version
api.get = api_get
api.take = api_take
api.all = api_all
api.run = api_run
api.runs = api_runs
api.diff = api_diff
api.update = api_update
api.update_changes = api_update_changes
api.snapshot = api_snapshot
api.release = api_release
api.restore = api_restore
api.cursor_open = api_cursor_open
api.cursor_seek = api_cursor_seek
api.cursor_close = api_cursor_close

C_API = PyCapsule_New(&api, "kvmattr._core.C_API", NULL)
