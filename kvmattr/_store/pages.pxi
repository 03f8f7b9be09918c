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
# raw values of 0 and a uniform entry needs no branch. Segment 1 is small, for programs with thousands of maps.
#
# The system's pages may be larger: 16 or 64 KiB on arm64. Memory comes and goes in system pages, so the pages of one
# system page are resident or clean together: the first that is taken makes its neighbours free, and only when all
# of them are free again does the system have it back.
#
# Reserve, then commit: arena_reserve() makes sure of enough free pages for the worst that one update can
# need; after it nothing can fail.

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

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

cdef enum:
    PAGE_BYTES = 4096
    PAGE_GRANULES = 512
    FIRST_SEGMENT_PAGES = 128       # 512 KiB, more than one reserve
    SECOND_SEGMENT_PAGES = 1024     # 4 MiB, then doubled (1 and 16 MiB measured the same)
    LAST_SEGMENT_PAGES = 1 << 18    # 1 GiB, all that a handle can count
    NO_RECORD = 0xffff
    # The worst case of one update: 2 x 6 nodes on the ways to its ends, 5 for a root that gains levels, and at each
    # end a run list that bursts into at most 4 nodes and a new slab of each of 13 size classes: 51.
    RESERVE_PAGES = 96
    # Entries of dead nodes released after an update: so many, and more the more nodes wait (an update after a snapshot
    # may leave one on each level), up to at most about 25 us.
    DEAD_SLICE = 256
    DEAD_SLICE_MORE = 64            # for each node that waits
    DEAD_SLICE_MOST = 1024
    TRIM_SLICE = 64                 # free pages given back to the system after an update: at most about 40 us
    HUGE_BYTES = 2 << 20            # of a huge page, where the system's pages are of 4 KiB
    HUGE_PAGES = 512                # in it
    KEPT_PAGES = 12                 # free pages kept to be used again, beside 1/32 of those in use (kept_pages)
    SPARE_SLACK = 32 << 10          # slack that is never worth moving anything for

cdef enum PageKind:
    PAGE_CLEAN = 0                  # free, and the system has its memory; also what was never handed out
    PAGE_FREE = 1                   # free, and resident
    PAGE_NODE = 2
    PAGE_DEAD = 3
    PAGE_SLAB = 4                   # PAGE_SLAB + size class

# Aligned like a page only so that the kernels may read it as a node; never written.
cdef uint64_t[512] zero_page


cdef uint32_t system_pages = 1      # pages of the arena in a page of the system, a power of two


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


cdef char *memory_map(size_t bytes, bint huge) noexcept nogil:
    """A mapping of its own, where a huge page may begin if it shall have such; NULL when out of memory."""
    cdef size_t more = HUGE_BYTES if huge else 0, before
    cdef void *memory = mmap(NULL, bytes + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return NULL
    if more:
        before = -<size_t>memory & (HUGE_BYTES - 1)
        if before:
            munmap(memory, before)
        munmap(<char *>memory + before + bytes, more - before)
        memory = <char *>memory + before
    return <char *>memory


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
    memory = memory_map(segment_bytes(capacity), capacity >= HUGE_PAGES and system_pages == 1)
    if memory == NULL:
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
    segment.looked_at = 0 if capacity >= HUGE_PAGES and system_pages == 1 else capacity
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
    family.untidy = True


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
        (info + i).kind = PAGE_CLEAN
    info.next = family.clean_pages
    family.clean_pages = first
    family.clean_count += system_pages


cdef inline bint pages_are(const Family *family, uint32_t first, PageKind kind) noexcept nogil:
    """Whether all pages of a system page, of which one is free, are free and resident, or clean."""
    cdef const PageInfo *info = page_info(family, first)
    cdef uint32_t i
    for i in range(system_pages):
        if (info + i).kind != kind:
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
        if not pages_are(family, first, PAGE_FREE):
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


cdef inline uint32_t page_take(Family *family, uint8_t kind) noexcept nogil:
    """A page out of those that were reserved."""
    cdef uint32_t page = family.free_pages, i
    cdef int number
    cdef PageInfo *info
    kvmattr_assert(available_pages(family) > 0)
    if page:
        page_unlist_free(family, page)
    else:
        family.missed += family.missed < KEPT_PAGES
        if family.clean_pages:
            page = family.clean_pages
            family.clean_pages = page_info(family, page).next
            family.clean_count -= system_pages
            if family.clean_pages == 0 and family.segment_count > 2:
                kvmattr_store_int(&family.filled, 1)
        else:
            number = family.segment_count - 1
            page = <uint32_t>number << (SEGMENT_SHIFT - 9) | family.segments[number].touched
            family.segments[number].touched += system_pages
            if family.segments[number].touched % HUGE_PAGES == 0:
                kvmattr_store_int(&family.filled, 1)
        for i in range(1, system_pages):
            page_list_free(family, page + i)
    info = page_info(family, page)
    info.kind = kind
    info.tidy.leaving = 0
    info.shares = 0
    info.loosened = 0
    info.apart = 0
    info.looked = 0
    info.next = 0
    info.previous = 0
    family.pages_in_use += 1
    return page


cdef inline void page_give_back(Family *family, uint32_t page) noexcept nogil:
    family.pages_in_use -= 1
    page_list_free(family, page)
