# Handles: the maps that C, C++ and Cython hold, and what is done to a whole one. Each is a Map with a seal.
#
# Nothing here needs the GIL but what takes or gives a Python object.

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


cdef inline bint look_enter(const Map *map) noexcept nogil:
    """Take the mutex for a look-up in a map that may change meanwhile."""
    return not map.seal & SEAL_READ_ONLY and family_enter(map.family)


cdef inline void seal_break(uint32_t *seal) noexcept nogil:
    """So that a later use is refused while the memory is still as it was. A plain store before free() is one that the
    compiler takes out."""
    kvmattr_store_int(<int *>seal, SEAL_BROKEN)


cdef void map_end(Map *map) noexcept nogil:
    """The end of a map that C made. The debug build keeps its memory, so that a later use finds the broken seal."""
    map_leave_family(map, True)
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
    """Let C use the Map of a Python object. A live view shows the Map of its owner, which may be changed there. Who has
    the handle already reads the seal without the mutex, so it is not written again. C looks into a snapshot without
    the mutex, so from now on nothing of it is moved."""
    cdef Map *map = holder.map
    cdef uint32_t wanted = SEAL | (SEAL_READ_ONLY if holder.frozen and holder.owner is None else 0)
    cdef bint entered = family_enter(map.family)
    if map.seal != wanted:          # a copy's may be that of the map that it was made of
        map.seal = wanted
    if wanted & SEAL_READ_ONLY:
        map.movable = False
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
    return share(map, False, CALL_COPY)


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
    map = map_twin(map, True, NULL)
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
