# The family's arena: where nodes and leaves live.
#
# Memory comes in segments of growing size, each one mapping that never moves; a segment is cut into pages of
# 4 KiB. A page is one node, or a slab of records of one size. A handle counts granules of 8 bytes:
#
#     31   27 26                                      0
#    +-------+-----------------------------------------+     address = bias[segment] + 8 * handle
#    |segment|           granule in segment            |
#    +-------+-----------------------------------------+     page id = handle >> 9
#
# What a handle names can be read off its low bits and the level. A node begins a page (handle % 512 == 0). At level 2
# the low three bits are no part of the place, since a leaf begins a cache line: they are the leaf's tag, the binary
# logarithm of the bits of its fields or KVMATTR_LINE (leaf.pxi). A run list begins 8 bytes after a multiple of 16.
# Segment 0 is one static page of zeros, so that handle 0 may be followed as a node or as a leaf: both give
# raw values of 0 and a uniform entry needs no branch. Segment 1 is small, for programs with thousands of maps; together
# with segment 2 it holds a fully fragmented guest of 64 GiB. Which of the two a handle lies in the processor mostly
# foresees, and then a walk down waits for its entries alone, not for the table of biases too (kernels/contract.h:
# kvmattr_foreseen).
#
# The system's pages may be larger: 16 or 64 KiB on arm64. Memory comes and goes in system pages, so the pages of one
# system page are resident or clean together: the first that is taken makes its neighbours free, and only when all
# of them are free again does the system have it back.
#
# Reserve, then commit: arena_reserve() makes sure of enough free pages for the worst that one update can
# need; after it nothing can fail.

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED
    int madvise(void *address, size_t length, int advice)
    int MADV_DONTNEED

cdef extern from "<unistd.h>" nogil:
    long sysconf(int name)
    int _SC_PAGESIZE

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef enum:
    PAGE_BYTES = 4096
    PAGE_GRANULES = 512
    FIRST_SEGMENT_PAGES = 128       # 512 KiB, more than one reserve
    SECOND_SEGMENT_PAGES = 1024     # 4 MiB; each further segment doubles
    LAST_SEGMENT_PAGES = 1 << 18    # 1 GiB, all that a handle can count
    NO_RECORD = 0xffff
    # The worst case of one update: 2 x 6 nodes on the ways to its ends, 5 for a root that gains levels, and at each
    # end a run list that bursts into at most 4 nodes and a new slab of each of 22 size classes: 68.
    RESERVE_PAGES = 96
    # Entries of dead nodes released after an update: so many, and more the more nodes wait (an update after a snapshot
    # may leave one on each level), up to at most about 25 us.
    DEAD_SLICE = 256
    DEAD_SLICE_MORE = 64            # for each node that waits
    DEAD_SLICE_MOST = 1024
    TRIM_SLICE = 64                 # free pages given back to the system after an update: at most about 40 us
    KEPT_PAGES = 8                  # free pages kept to be used again, beside 1/32 of those in use (kept_pages)
    SPARE_SLACK = 32 << 10          # slack that is never worth moving anything for

cdef enum PageKind:
    PAGE_FREE = 0
    PAGE_NODE = 1
    PAGE_DEAD = 2
    PAGE_SLAB = 3                   # PAGE_SLAB + size class

# Size classes: of run lists, each a multiple of 16 bytes, header included, so that every record begins 8 bytes after a
# multiple of 16; then of leaves, each aligned to its size.
cdef uint16_t[RECORD_CLASSES] class_bytes = [
    16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 288, 320, 384, 448, 512, 64, 128, 256, 512]

# A slab of leaves is an array of places of their size. The first of them hold the reference counts of the others, one
# for each place; those of leaves of 8 bits, for which that would be an eighth of the memory, are beside the segment's
# pages. A run line has the size of a leaf of 1 bit, and lies among these.
cdef uint16_t[RECORD_CLASSES] class_first = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 1, 0]
cdef uint16_t[RECORD_CLASSES] class_header = [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 256, 128, 64, 0]

cdef uint8_t[33] class_of_units     # (bytes + 15) / 16 -> the smallest class of run lists that holds them

ctypedef kvmattr_list Record        # a run list; each begins with its header

# Aligned like a page only so that the kernels may read it as a node; never written.
cdef uint64_t[512] zero_page


cdef uint32_t system_pages = 1      # pages of the arena in a page of the system, a power of two


cdef void arena_prepare() noexcept nogil:
    global system_pages
    cdef int units, size_class = 0
    cdef long bytes = sysconf(_SC_PAGESIZE)
    if bytes > PAGE_BYTES:
        system_pages = <uint32_t>(bytes // PAGE_BYTES)
    for units in range(33):
        while class_bytes[size_class] < 16 * units:
            size_class += 1
        class_of_units[units] = <uint8_t>size_class


cdef inline size_t family_lines() noexcept nogil:
    """A family in whole cache lines; the readers' words lie behind them."""
    return (sizeof(Family) + 63) & ~<size_t>63


cdef inline kvmattr_stripe *family_stripes(Family *family) noexcept nogil:
    """Where readers without the mutex count themselves; on free-threaded builds alone."""
    return <kvmattr_stripe *>(<char *>family + family_lines())


cdef Family *family_new() noexcept nogil:
    """A family with no maps and no memory of its own; NULL when out of memory."""
    cdef Family *family = NULL
    if KVMATTR_FREE_THREADED:
        if posix_memalign(<void **>&family, 64, family_lines() + KVMATTR_STRIPES * sizeof(kvmattr_stripe)):
            return NULL
        memset(family, 0, family_lines() + KVMATTR_STRIPES * sizeof(kvmattr_stripe))
    else:
        family = <Family *>calloc(1, sizeof(Family))
        if family == NULL:
            return NULL
    family.bias[0] = <uintptr_t>&zero_page[0]
    family.segment_count = 1
    pthread_mutex_init(&family.mutex, NULL)
    pthread_mutex_init(&family.turn, NULL)
    families_add(family)
    return family


cdef void family_free(Family *family) noexcept nogil:
    cdef int i
    families_remove(family)
    for i in range(1, family.segment_count):
        munmap(family.segments[i].memory, segment_bytes(family.segments[i].capacity))
    pthread_mutex_destroy(&family.mutex)
    pthread_mutex_destroy(&family.turn)
    free(family)


cdef inline void *address_of(const Family *family, uint32_t handle) noexcept nogil:
    return kvmattr_words(family.bias, handle)

cdef inline Entry *node_at(const Family *family, uint32_t handle) noexcept nogil:
    kvmattr_count_visit(family)
    return <Entry *>address_of(family, handle)

cdef inline PageInfo *page_info(const Family *family, uint32_t page) noexcept nogil:
    return &family.segments[page >> (SEGMENT_SHIFT - 9)].pages[page & ((1 << (SEGMENT_SHIFT - 9)) - 1)]

cdef inline bint is_node(uint32_t handle) noexcept nogil:
    return handle & (PAGE_GRANULES - 1) == 0

cdef inline uint64_t *leaf_at(const Family *family, uint32_t handle) noexcept nogil:
    """A leaf's words, or its line."""
    return <uint64_t *>address_of(family, handle & ~<uint32_t>KVMATTR_TAG)


# ---- pages ----

cdef inline size_t segment_bytes(uint32_t capacity) noexcept nogil:
    """Of a segment of so many pages: themselves, then what is known of each, then eight counts for each, in whole pages
    of the system."""
    cdef size_t whole = <size_t>system_pages * PAGE_BYTES
    return (<size_t>capacity * (PAGE_BYTES + sizeof(PageInfo) + 8 * sizeof(uint32_t)) + whole - 1) & ~(whole - 1)


cdef int family_grow(Family *family) noexcept nogil:
    """Add a segment. -1 when out of memory or of handles; then nothing has changed."""
    cdef int number = family.segment_count
    cdef uint32_t capacity, page
    cdef Segment *last
    cdef Segment *segment
    cdef char *memory
    if number == SEGMENTS:
        return -1
    if number == 1:
        capacity = FIRST_SEGMENT_PAGES
    else:
        capacity = <uint32_t>SECOND_SEGMENT_PAGES << (number - 2) if number < 10 else LAST_SEGMENT_PAGES
    memory = <char *>mmap(NULL, segment_bytes(capacity), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if <void *>memory == MAP_FAILED:
        return -1
    # What the last segment still has is listed as free, so that only the newest has untouched pages.
    last = &family.segments[number - 1]
    while last.touched < last.capacity:
        page = <uint32_t>(number - 1) << (SEGMENT_SHIFT - 9) | last.touched
        last.touched += system_pages
        pages_list_clean(family, page)
    segment = &family.segments[number]
    segment.memory = memory
    segment.pages = <PageInfo *>(memory + <size_t>capacity * PAGE_BYTES)
    segment.counts = <uint32_t *>(segment.pages + capacity)
    segment.capacity = capacity
    segment.touched = 0
    family.bias[number] = <uintptr_t>memory - 8 * (<uintptr_t>number << SEGMENT_SHIFT)
    kvmattr_store_int(&family.segment_count, number + 1)
    return 0


# Pages that hold nothing are in two lists: those that are resident, used first, and the clean ones, whose memory
# the system has (back) and which read as zeros; of these the first of each system page is listed.

cdef inline void page_list_free(Family *family, uint32_t page) noexcept nogil:
    cdef PageInfo *info = page_info(family, page)
    info.kind = PAGE_FREE
    info.next = family.free_pages
    info.previous = 0
    if info.next:
        page_info(family, info.next).previous = page
    family.free_pages = page
    family.free_count += 1


cdef inline void page_unlist_free(Family *family, uint32_t page) noexcept nogil:
    cdef PageInfo *info = page_info(family, page)
    if info.previous:
        page_info(family, info.previous).next = info.next
    else:
        family.free_pages = info.next
    if info.next:
        page_info(family, info.next).previous = info.previous
    family.free_count -= 1


cdef inline void pages_list_clean(Family *family, uint32_t first) noexcept nogil:
    cdef PageInfo *info = page_info(family, first)
    cdef uint32_t i
    for i in range(system_pages):
        (info + i).kind = PAGE_FREE
    info.next = family.clean_pages
    family.clean_pages = first
    family.clean_count += system_pages


cdef inline bint pages_free(const Family *family, uint32_t first) noexcept nogil:
    """Whether nothing lies in any page of a system page, of which one is listed as free."""
    cdef const PageInfo *info = page_info(family, first)
    cdef uint32_t i
    for i in range(system_pages):
        if (info + i).kind != PAGE_FREE:
            return False
    return True


cdef inline uint32_t available_pages(const Family *family) noexcept nogil:
    cdef const Segment *last = &family.segments[family.segment_count - 1]
    return family.free_count + family.clean_count + last.capacity - last.touched


cdef void arena_trim(Family *family, int pages) noexcept nogil:
    """Look at up to so many free pages, and give the memory of whole system pages among them back, neighbours in one
    call."""
    cdef uint32_t page = family.free_pages, first, after, i
    cdef uint32_t lowest = 0, beyond = 0        # the range to give back
    cdef uint32_t in_segment = (1 << (SEGMENT_SHIFT - 9)) - 1
    while page and pages > 0:
        first = page & ~(system_pages - 1)
        after = page_info(family, page).next
        if not pages_free(family, first):
            pages -= 1
            page = after
            continue
        while after and after & ~(system_pages - 1) == first:
            after = page_info(family, after).next
        for i in range(system_pages):
            page_unlist_free(family, first + i)
        pages_list_clean(family, first)
        pages -= <int>system_pages
        if first == beyond and first & in_segment:
            beyond += system_pages
        elif first + system_pages == lowest and lowest & in_segment:
            lowest = first
        else:
            memory_give_back(family, lowest, beyond)
            lowest = first
            beyond = first + system_pages
        page = after
    memory_give_back(family, lowest, beyond)


cdef inline void memory_give_back(const Family *family, uint32_t first, uint32_t stop) noexcept nogil:
    if first != stop:
        madvise(address_of(family, first << 9), <size_t>(stop - first) * PAGE_BYTES, MADV_DONTNEED)


cdef inline uint64_t arena_slack(const Family *family) noexcept nogil:
    """Resident bytes of the arena that hold nothing live; slabs' headers hold their records' reference counts."""
    return (<uint64_t>(family.pages_in_use + family.free_count) * PAGE_BYTES - family.counters.live_bytes
            - family.header_bytes - <uint64_t>family.dead_count * PAGE_BYTES)


cdef int arena_reserve(Family *family, uint32_t pages) noexcept nogil:
    """Make sure that so many pages can be taken. -1 when out of memory; then nothing has changed."""
    while available_pages(family) < pages:
        if family.dead_nodes:
            release_slice(family)       # what waits to be freed is memory that we have
        elif family_grow(family) < 0:
            return -1
    return 0


cdef inline uint32_t page_take(Family *family, uint8_t kind) noexcept nogil:
    """A page out of those that were reserved."""
    cdef uint32_t page = family.free_pages, i
    cdef int number
    cdef PageInfo *info
    kvmattr_assert(available_pages(family) > 0)
    if page:
        page_unlist_free(family, page)
    else:
        if family.clean_pages:
            page = family.clean_pages
            family.clean_pages = page_info(family, page).next
            family.clean_count -= system_pages
        else:
            number = family.segment_count - 1
            page = <uint32_t>number << (SEGMENT_SHIFT - 9) | family.segments[number].touched
            family.segments[number].touched += system_pages
        for i in range(1, system_pages):
            page_list_free(family, page + i)
    info = page_info(family, page)
    info.kind = kind
    info.leaving = 0
    info.shares = 0
    info.loosened = 0
    info.looked = 0
    info.next = 0
    info.previous = 0
    family.pages_in_use += 1
    return page


cdef inline void page_give_back(Family *family, uint32_t page) noexcept nogil:
    family.pages_in_use -= 1
    page_list_free(family, page)


# ---- slabs ----

cdef inline int slab_places(int size_class) noexcept nogil:
    """One past the last record's number."""
    return (PAGE_BYTES - (8 if size_class < LIST_CLASSES else 0)) // class_bytes[size_class]

cdef inline uint32_t slab_records(int size_class) noexcept nogil:
    return slab_places(size_class) - class_first[size_class]

cdef inline uint32_t record_offset(int size_class, uint32_t record) noexcept nogil:
    """Granules from the beginning of the slab's page."""
    return (1 if size_class < LIST_CLASSES else 0) + record * (class_bytes[size_class] // 8)

cdef inline uint32_t record_number(int size_class, uint32_t handle) noexcept nogil:
    cdef uint32_t offset = handle & (PAGE_GRANULES - 1)
    return offset // (class_bytes[size_class] // 8)     # rounded down: a tag or a list's 8 bytes are within its place


cdef uint32_t record_take(Family *family, int size_class) noexcept nogil:
    """The handle of a new record with one reference; its page was reserved."""
    cdef uint32_t page = family.partial[size_class]
    cdef uint32_t record, handle
    cdef PageInfo *info
    if not page:
        page = page_take(family, <uint8_t>(PAGE_SLAB + size_class))
        info = page_info(family, page)
        info.references = 0
        info.free_record = NO_RECORD
        info.touched = class_first[size_class]
        family.header_bytes += class_header[size_class]
        family.partial[size_class] = page
    else:
        info = page_info(family, page)
    record = info.free_record
    if record == NO_RECORD:
        record = info.touched
        info.touched += 1
        handle = page << 9 | record_offset(size_class, record)
    else:
        handle = page << 9 | record_offset(size_class, record)
        info.free_record = (<uint16_t *>address_of(family, handle))[0]
    info.references += 1
    if info.references == slab_records(size_class):
        slab_unlist(family, info, size_class)
    return handle


cdef inline void slab_unlist(Family *family, PageInfo *info, int size_class) noexcept nogil:
    if info.previous:
        page_info(family, info.previous).next = info.next
    elif info.leaving:
        family.leaving[size_class] = info.next
    else:
        family.partial[size_class] = info.next
    if info.next:
        page_info(family, info.next).previous = info.previous
    info.next = 0
    info.previous = 0


cdef inline void slab_list(Family *family, uint32_t page, PageInfo *info, int size_class) noexcept nogil:
    info.next = family.partial[size_class]
    info.previous = 0
    if info.next:
        page_info(family, info.next).previous = page
    family.partial[size_class] = page


cdef void record_give_back(Family *family, uint32_t handle) noexcept nogil:
    cdef uint32_t page = handle >> 9
    cdef PageInfo *info = page_info(family, page)
    cdef int size_class = info.kind - PAGE_SLAB
    cdef uint32_t record = record_number(size_class, handle)
    kvmattr_assert(info.kind >= PAGE_SLAB and info.references > 0)
    (<uint16_t *>address_of(family, page << 9 | record_offset(size_class, record)))[0] = info.free_record
    info.free_record = <uint16_t>record
    if info.references == slab_records(size_class):     # it was full, so in no list
        slab_list(family, page, info, size_class)
    info.references -= 1
    if info.references == 0:
        slab_unlist(family, info, size_class)
        family.header_bytes -= class_header[size_class]
        page_give_back(family, page)


# ---- reference counts ----

cdef inline uint32_t *leaf_references(const Family *family, uint32_t handle) noexcept nogil:
    """Where the references to a leaf are counted."""
    cdef int wide = handle & 3                          # a line has the size of a leaf of 1 bit
    cdef uint32_t place = (handle & (PAGE_GRANULES - 1)) >> (3 + wide)
    cdef uint32_t page = handle >> 9
    if wide == 3:
        place += 8 * (page & ((1 << (SEGMENT_SHIFT - 9)) - 1))
        return &family.segments[page >> (SEGMENT_SHIFT - 9)].counts[place]
    return <uint32_t *>address_of(family, page << 9) + place


cdef inline uint32_t *reference_count(const Family *family, uint32_t handle) noexcept nogil:
    """Where the references to a node, a run list or a leaf are counted."""
    cdef PageInfo *info = page_info(family, handle >> 9)
    if is_node(handle):
        return &info.references
    if info.kind < PAGE_SLAB + LIST_CLASSES:
        return &(<Record *>address_of(family, handle)).references
    return leaf_references(family, handle)

cdef inline void retain(const Family *family, uint32_t handle) noexcept nogil:
    if handle:
        reference_count(family, handle)[0] += 1


cdef void release(Family *family, uint32_t handle) noexcept nogil:
    """Drop one reference. A record without any is freed at once, a node is queued: taking it apart
    touches 512 entries, and a dropped terabyte must not stall whoever dropped it."""
    cdef uint32_t *count
    cdef PageInfo *info
    if not handle:
        return
    count = reference_count(family, handle)
    kvmattr_assert(count[0] > 0)
    count[0] -= 1
    if count[0]:
        return
    if is_node(handle):
        info = page_info(family, handle >> 9)
        info.kind = PAGE_DEAD
        info.next = family.dead_nodes
        family.dead_nodes = handle >> 9
        family.dead_count += 1
        count_node(family, -1)
        family.counters.node_frees += 1
    else:
        count_leaf(family, handle, -1)
        family.counters.leaf_frees += 1
        record_give_back(family, handle)


cdef void release_dead(Family *family, int entries) noexcept nogil:
    """Take dead nodes apart, up to so many entries of them (all for a negative number). How far a node has come is
    kept where its references were counted."""
    cdef uint32_t page
    cdef PageInfo *info
    cdef Entry *cells
    cdef int first, stop, i
    while entries and family.dead_nodes:
        page = family.dead_nodes
        info = page_info(family, page)
        first = <int>info.references
        stop = first + entries if 0 < entries < 512 - first else 512
        if entries > 0:
            entries -= stop - first
        info.references = <uint32_t>stop
        if stop == 512:
            # Out of the list first: what it leads to may become dead and go there.
            family.dead_nodes = info.next
            family.dead_count -= 1
        cells = node_at(family, page << 9)
        for i in range(first, stop):
            release(family, entry_handle(cells[i]))
        if stop == 512:
            info.references = 0
            page_give_back(family, page)


cdef inline void release_slice(Family *family) noexcept nogil:
    """Take the next slice of what is dead apart."""
    cdef uint32_t entries = DEAD_SLICE + DEAD_SLICE_MORE * family.dead_count
    release_dead(family, <int>(entries if entries < DEAD_SLICE_MOST else DEAD_SLICE_MOST))


# ---- counters: the one place where they change ----

cdef inline void count_node(Family *family, int change) noexcept nogil:
    family.counters.nodes += change
    family.counters.live_bytes += change * PAGE_BYTES


cdef inline void count_leaf(Family *family, uint32_t handle, int change) noexcept nogil:
    cdef int size_class = page_info(family, handle >> 9).kind - PAGE_SLAB
    if size_class < LIST_CLASSES:
        family.counters.run_lists += change
    elif handle & KVMATTR_LINE:
        family.counters.run_lines += change
    else:
        family.counters.leaves[handle & 3] += change
    family.counters.live_bytes += change * <int>class_bytes[size_class]


cdef uint32_t node_new(Family *family, int level) noexcept nogil:
    cdef uint32_t page = page_take(family, PAGE_NODE)
    cdef PageInfo *info = page_info(family, page)
    info.references = 1
    info.level = <uint8_t>level
    count_node(family, 1)
    family.counters.node_allocations += 1
    return page << 9


cdef uint32_t leaf_new(Family *family, int tag) noexcept nogil:
    """A leaf with one reference; its content is still to be written."""
    cdef uint32_t handle = record_take(family, LIST_CLASSES + (tag & 3)) | <uint32_t>tag
    leaf_references(family, handle)[0] = 1
    count_leaf(family, handle, 1)
    family.counters.leaf_allocations += 1
    return handle


cdef uint32_t list_new(Family *family, int size_class) noexcept nogil:
    """A run list with one reference; its content is still to be written."""
    cdef uint32_t handle = record_take(family, size_class)
    cdef Record *record = <Record *>address_of(family, handle)
    record.references = 1
    record.size_class = <uint16_t>size_class
    count_leaf(family, handle, 1)
    family.counters.leaf_allocations += 1
    return handle
