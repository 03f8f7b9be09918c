# Slabs: pages of the arena that are cut into records of one size, for run lists and leaves.

# Size classes: of run lists, each a multiple of 16 bytes, header included, so that every record begins 8 bytes after a
# multiple of 16; then of leaves, each aligned to its size. A list grows by 18 bytes with each page that is converted in
# it: of steps of a third it moves every second time or less, and they waste a tenth. Steps of 16 bytes waste less and
# make a guest's first thousand conversions a quarter slower.
cdef uint16_t[RECORD_CLASSES] class_bytes = [32, 48, 64, 96, 128, 192, 256, 352, 512, 64, 128, 256, 512]

# A slab of leaves is an array of places of their size. The first of them hold the reference counts of the others, one
# for each place; those of leaves of 8 bits, for which that would be an eighth of the memory, are beside the segment's
# pages. A run line has the size of a leaf of 1 bit, and lies among these.
cdef uint16_t[RECORD_CLASSES] class_first = [0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 1, 0]
cdef uint16_t[RECORD_CLASSES] class_header = [8, 8, 8, 8, 8, 8, 8, 8, 8, 256, 128, 64, 0]

# Of run lists: the smallest class for so many runs, and the most runs for which each has room.
cdef uint8_t[KVMATTR_LIST_RUNS + 1] class_of_runs
cdef uint8_t[LIST_CLASSES] class_runs

# Of a slab of each class: one past the last record's number, and 2^16 / granules of a record, rounded up: a division as
# a multiplication, exact for the offsets in a page.
cdef uint16_t[RECORD_CLASSES] class_places
cdef uint16_t[RECORD_CLASSES] class_reciprocal

ctypedef kvmattr_list Record        # a run list; each begins with its header

cdef inline int run_list_size(int count) noexcept nogil:
    return <int>sizeof(Record) + 8 * (count - 1) + count

cdef inline uint32_t slab_records(int size_class) noexcept nogil:
    return class_places[size_class] - class_first[size_class]

cdef inline uint32_t record_offset(int size_class, uint32_t record) noexcept nogil:
    """Granules from the beginning of the slab's page."""
    return (1 if size_class < LIST_CLASSES else 0) + record * (class_bytes[size_class] // 8)

cdef inline uint32_t record_number(int size_class, uint32_t handle) noexcept nogil:
    # Rounded down: a tag or a list's 8 bytes are within its place.
    return (handle & (PAGE_GRANULES - 1)) * class_reciprocal[size_class] >> 16


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
    elif info.tidy.leaving:
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
