# cython: language_level=3
"""The store's structures and the functions that other Cython code may call (see docs/embedding)."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

ctypedef uint64_t Entry

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

# Constants that shape memory. Changing one changes the encodings of every map: only after measuring.
cdef enum:
    PAGES_PER_BLOCK = 512       # pages of a 2 MiB block, entries of a node
    SEGMENTS = 32               # entries of a family's segment table (KVMATTR_SEGMENTS in kernels/contract.h)
    SEGMENT_SHIFT = 27          # granules of a segment in a handle (KVMATTR_SEGMENT_SHIFT)
    LIST_CLASSES = 9            # size classes of run lists
    RECORD_CLASSES = 13         # the same, and of leaves of fields of 1, 2, 4 and 8 bits
    MAX_LEVEL = 7               # an entry of level 7 covers 2^54 pages; the gfn space has 2^52

# What is known of a page of the arena for those who tidy (compact.pxi).
cdef union PageTidy:
    uint8_t leaving             # a slab: its records are being moved out
    uint8_t emptied             # a node: blocks that became uniform, less pages that were converted (node_empties)

# A 4 KiB page of the arena: what lies in it, and its place in one of the family's lists.
cdef struct PageInfo:
    uint32_t references         # a node's reference count; a slab's number of live records
    uint8_t kind                # PageKind
    uint8_t level               # a node's level (kept for freeing it)
    uint8_t shares              # a node: something below it may have more than one reference
    PageTidy tidy
    uint8_t loosened            # a node: single-page updates since its V was last computed
    uint8_t apart               # a node: half the number of an entry that was unlike the first
    uint16_t free_record        # a slab: list of records that were freed, by number
    uint16_t touched            # a slab: one past the last record ever handed out
    uint16_t looked             # a node that may share: looks for that since all its children were looked at
    uint32_t next
    uint32_t previous

cdef struct Segment:
    char *memory
    PageInfo *pages
    uint32_t *counts            # for each page the references to the eight leaves that it may hold
    uint32_t capacity           # pages
    uint32_t touched            # pages ever handed out; those above it were never written
    uint32_t looked_at          # of these, as many as were looked at to become huge pages (huge.pxi)

# What a map was asked to do, at any of its faces (calls.pxi has their names).
cdef enum Call:
    CALL_GET
    CALL_TAKE
    CALL_TO_NUMPY
    CALL_BITMAP
    CALL_SEARCH
    CALL_UNIFORM
    CALL_COUNT
    CALL_VALUES
    CALL_RUN
    CALL_LEVEL
    CALL_SEEK
    CALL_RUNS
    CALL_RUN_COUNT
    CALL_DIFF
    CALL_TO_BYTES
    CALL_UPDATE
    CALL_UPDATE_MANY
    CALL_PUT
    CALL_ASSIGN
    CALL_COPY
    CALL_SNAPSHOT
    CALL_RESTORE
    CALL_VM_SET
    CALLS                       # how many there are

cdef struct Called:
    uint64_t calls
    uint64_t items              # pages, runs or ranges that they were about

# What the family holds and has done; stats() reads it, tests and the gate compare it.
cdef struct Counters:
    uint64_t nodes
    uint64_t leaves[4]          # of fields of 1, 2, 4 and 8 bits
    uint64_t run_lines
    uint64_t run_lists
    uint64_t live_bytes
    uint64_t node_allocations
    uint64_t node_frees
    uint64_t node_copies
    uint64_t leaf_allocations
    uint64_t leaf_frees
    uint64_t leaf_conversions
    uint64_t nodes_visited      # these two stay 0 but in the counting build (counting.h)
    uint64_t pages_compared

cdef struct Map

cdef struct Family:
    uintptr_t bias[SEGMENTS]
    Segment segments[SEGMENTS]
    int segment_count
    uint32_t partial[RECORD_CLASSES]        # lists of slabs with room, for each size class
    uint32_t leaving[RECORD_CLASSES]        # lists of slabs whose records are being moved out
    uint32_t free_pages         # list of resident pages that hold nothing, most recently freed first
    uint32_t free_count
    uint32_t clean_pages        # list of pages that hold nothing and whose memory the system has
    uint32_t clean_count
    uint32_t missed             # pages that the system was asked for since more than the spare ones were given back
    uint32_t dead_nodes         # list of nodes whose children are still to be released
    uint32_t dead_count
    uint64_t pages_in_use
    uint64_t header_bytes       # of slabs in use
    uint64_t slack_settled      # slack when records were last moved, or less
    uint64_t rearranged         # how often records were moved, or more changed than fields of leaves
    uint64_t blocks_changed     # how often it was the leaf of one block and its entry
    Map *moving                 # the map whose records are being moved, or NULL
    uint64_t moving_gfn         # how far that has come
    Counters counters
    pthread_mutex_t mutex
    pthread_mutex_t turn        # held by who claims the mutex (locking.pxi)
    int claimed                 # somebody has waited for the mutex long enough and is the next to have it
    int announced               # writers that run, or are about to run, without the GIL
    int filled                  # a huge page of a segment may have become full (huge.pxi)
    bint untidy                 # a slice of what updates leave to be tidied may be due (compact.pxi)
    int writing                 # somebody has the mutex, as readers without it see it (sync.h)
    Called called[CALLS]        # beside what every call reads
    Map *maps                   # list of the maps, snapshots and pinned roots of this family
    Family *next_family         # in the list of all families (fork.pxi)
    Family *previous_family

# One map: a root in its family.
cdef struct Map:
    Family *family
    Entry root
    uint64_t pages              # npages
    uint64_t version
    int level                   # the root entry's: it covers 512^(level-1) pages
    uint8_t rest                # the value of every page above what the root covers
    uint8_t default
    uint8_t movable             # nobody reads it without the mutex or the GIL: its records may be moved
    Map *next                   # in the family's list
    Map *previous
    uint32_t seal               # whether C may use it, and what for (c_handles.pxi)
    uintptr_t pinned_by         # a root pinned on a thread's stack: that thread; else 0

cdef enum UpdateResult:
    UPDATE_NO_MEMORY = -1
    UPDATE_UNCHANGED = 0
    UPDATE_CHANGED = 1

# Updates one after another (_store/series.pxi)
cdef struct Series:
    void *lists                 # OpenLists; NULL: none are opened
    int left                    # what may still be done in this hold of the mutex, in units of a batch (HELD_MOST)
    int balance                 # of pages since lists are opened: those that lay in one, less those that did not
    bint opens                  # lists are opened
    uint32_t rest               # else: pages until they are
    uint32_t stretch            # how many those will be the next time

# _store/for_cython.pxi
ctypedef bint (*ChangeVisitor)(void *context, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil

cdef Map *map_of(object attribute_map) except NULL
cdef bint map_enter(Map *map) noexcept nogil
cdef void map_leave(Map *map, bint entered) noexcept nogil
cdef void map_filled(Map *map) noexcept nogil
cdef void map_announce(Map *map, int change) noexcept nogil
cdef void map_called(Map *map, int call, uint64_t items) noexcept nogil
cdef uint8_t map_page(const Map *map, uint64_t gfn) noexcept nogil
cdef uint8_t map_look_up(Map *map, uint64_t gfn) noexcept nogil
cdef bint map_block_is_uniform(const Map *map, uint64_t gfn, int level) noexcept nogil
cdef uint64_t map_run_stop(const Map *map, uint64_t gfn, uint64_t stop) noexcept nogil
cdef UpdateResult map_apply(Map *map, uint64_t start, uint64_t stop, uint8_t k, uint8_t x) noexcept nogil
cdef void map_series_begin(Series *series, size_t count) noexcept nogil
cdef void map_series_end(Series *series) noexcept nogil
cdef bint map_series_enter(Map *map, Series *series) noexcept nogil
cdef void map_series_leave(Map *map, Series *series, bint entered) noexcept nogil
cdef inline bint map_series_goes_on(const Series *series) noexcept nogil:
    """Whether the mutex may be held for one update more."""
    return series.left > 0
cdef bint map_series_expects(const Map *map, const Series *series) noexcept nogil
cdef void map_series_expect(const Map *map, uint64_t gfn) noexcept nogil
cdef UpdateResult map_series_apply(Map *map, Series *series, uint64_t start, uint64_t stop, uint8_t k,
                                   uint8_t x) noexcept nogil
cdef bint map_series_block_is_uniform(const Map *map, Series *series, uint64_t gfn, int level) noexcept nogil
cdef void map_series_store(Map *map, Series *series) noexcept nogil
cdef int map_refused(const Map *map, uint64_t start, uint64_t stop, const uint8_t *refused) noexcept nogil
cdef void map_changes(const Map *before, const Map *after, uint64_t start, uint64_t stop, ChangeVisitor visit,
                      void *context) noexcept nogil
