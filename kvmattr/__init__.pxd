# cython: language_level=3
"""What other Cython code may cimport: the functions of kvmattr.h under short names, all without the GIL.

    cimport kvmattr
    kvmattr.import_api()                        # once, at the top of the module

    cdef kvmattr.Map *map = kvmattr.map_of(attribute_map)
    if kvmattr.get(map, gfn) & 4: ...

Compile with ``include_dirs=[kvmattr.get_include()]``; numpy is not needed. kvmattr.h says what each function does and
docs/embedding.md what it costs. Functions that return int give a value >= 0 or a negative error, whose text
``error_text`` has; ``import_api``, ``map_of``, ``view_of`` and ``object_of`` raise.
"""

from libc.stdint cimport uint8_t, uint64_t

cdef extern from "Python.h":
    pass

cdef extern from "kvmattr.h":
    int import_api "kvmattr_import"() except -1

    ctypedef struct Map "kvmattr_map":
        pass

    Map *map_of "kvmattr_map_of"(object attribute_map) except NULL
    const Map *view_of "kvmattr_view_of"(object attribute_map) except NULL
    object object_of "kvmattr_object_of"(const Map *map)

cdef extern from "kvmattr.h" nogil:
    const int WRITE "KVMATTR_WRITE"
    const int OR "KVMATTR_OR"
    const int AND "KVMATTR_AND"

    const int NO_MEMORY "KVMATTR_NO_MEMORY"
    const int BAD_MAP "KVMATTR_BAD_MAP"
    const int READ_ONLY "KVMATTR_READ_ONLY"
    const int BAD_GFN "KVMATTR_BAD_GFN"
    const int BAD_RANGE "KVMATTR_BAD_RANGE"
    const int BAD_OPERATION "KVMATTR_BAD_OPERATION"
    const int BAD_PAGES "KVMATTR_BAD_PAGES"
    const int BAD_POINTER "KVMATTR_BAD_POINTER"
    const int NOT_YOURS "KVMATTR_NOT_YOURS"
    const int NOT_SHARED "KVMATTR_NOT_SHARED"
    const int NOT_IMPORTED "KVMATTR_NOT_IMPORTED"

    ctypedef struct Run "kvmattr_run":
        uint64_t start
        uint64_t stop
        uint8_t attributes

    ctypedef struct Change "kvmattr_change":
        uint64_t start
        uint64_t stop
        uint8_t before
        uint8_t after

    ctypedef struct Cursor "kvmattr_cursor":
        const uint64_t *version
        uint64_t seen
        uint64_t start
        uint64_t count
        uint64_t index
        uint8_t values[512]

    ctypedef int (*RunCallback "kvmattr_run_callback")(void *context, const Run *run) noexcept nogil
    ctypedef int (*ChangeCallback "kvmattr_change_callback")(void *context, const Change *change) noexcept nogil

    const char *error_text "kvmattr_error_text"(int error)

    int create "kvmattr_create"(uint64_t pages, uint8_t attributes, Map **map)
    int copy "kvmattr_copy"(const Map *map, Map **copy)
    int destroy "kvmattr_destroy"(Map *map)
    int share "kvmattr_share"(Map *map)
    int unshare "kvmattr_unshare"(Map *map)
    uint64_t pages "kvmattr_pages"(const Map *map)
    const uint64_t *version "kvmattr_version"(const Map *map)
    uint64_t load "kvmattr_load"(const uint64_t *word)

    int get "kvmattr_get"(const Map *map, uint64_t gfn)
    int take "kvmattr_take"(const Map *map, const uint64_t *gfns, uint8_t *attributes, size_t count)
    int all "kvmattr_all"(const Map *map, uint64_t start, uint64_t stop, uint8_t attributes, uint8_t mask)
    int run_at "kvmattr_run_at"(const Map *map, uint64_t gfn, Run *run)
    int runs "kvmattr_runs"(const Map *map, uint64_t start, uint64_t stop, RunCallback callback, void *context)
    int diff "kvmattr_diff"(const Map *map, const Map *before, uint64_t start, uint64_t stop,
                            ChangeCallback callback, void *context)

    int write "kvmattr_write"(Map *map, uint64_t start, uint64_t stop, uint8_t attributes)
    int or_ "kvmattr_or"(Map *map, uint64_t start, uint64_t stop, uint8_t attributes)
    int and_ "kvmattr_and"(Map *map, uint64_t start, uint64_t stop, uint8_t attributes)
    int update "kvmattr_update"(Map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                                uint8_t mask)
    int update_changes "kvmattr_update_changes"(Map *map, uint64_t start, uint64_t stop, uint8_t attributes,
                                                int operation, uint8_t mask, ChangeCallback callback,
                                                void *context)

    int snapshot "kvmattr_snapshot"(const Map *map, const Map **snapshot)
    int release "kvmattr_release"(const Map *snapshot)
    int restore "kvmattr_restore"(Map *map, const Map *source)

    int cursor_open "kvmattr_cursor_open"(const Map *map, Cursor **cursor)
    int cursor_get "kvmattr_cursor_get"(Cursor *cursor, uint64_t gfn)
    int cursor_close "kvmattr_cursor_close"(Cursor *cursor)
