# The way down: to one page, and to what a range of pages meets below a node.

cdef inline uint8_t tree_get(const Family *family, Entry e, int level, uint64_t page) noexcept nogil:
    """The attributes of one page below an entry: compose the operations on the way down."""
    cdef uint32_t handle = entry_handle(e)
    cdef uint32_t keep = 0xff, toggle = 0
    while level > 2:
        if handle == 0:
            return <uint8_t>((entry_x(e) & keep) ^ toggle)
        toggle ^= <uint32_t>(e >> KVMATTR_X) & keep
        keep &= <uint32_t>(e >> KVMATTR_K)
        if not is_node(handle):
            return <uint8_t>((run_list_raw(family, handle, page & (level_span(level) - 1)) & keep) ^ toggle)
        kvmattr_count_visit(family)
        e = kvmattr_foreseen(family.bias, handle)[index_of(page, level)]
        handle = entry_handle(e)
        level -= 1
    toggle ^= <uint32_t>(e >> KVMATTR_X) & keep
    keep &= <uint32_t>(e >> KVMATTR_K)
    return <uint8_t>((leaf_raw(family, handle, page & 511) & keep) ^ toggle)


cdef inline uint8_t map_get(const Map *map, uint64_t gfn) noexcept nogil:
    if gfn >= level_span(map.level):
        return map.rest
    return tree_get(map.family, map.root, map.level, gfn)


# ---- ranges ----

# The root covers the first pages of a map; those after them have the value `rest`. Of a range [start, stop) the root
# has [start, root_stop), where that is not empty, and [rest_start, stop) lies after it.
cdef inline uint64_t root_stop(const Map *map, uint64_t stop) noexcept nogil:
    cdef uint64_t covered = level_span(map.level)
    return stop if stop < covered else covered

cdef inline uint64_t rest_start(const Map *map, uint64_t start) noexcept nogil:
    cdef uint64_t covered = level_span(map.level)
    return start if start > covered else covered


# The children of a node that a range of its pages meets, and the part of the range in each:
#
#     met = node_meets(family, e, level, lo, hi, k, x)
#     for i in range(met.first, met.last + 1):
#         ... met.entries[i], level - 1, child_lo(&met, i), child_hi(&met, i), met.k, met.x ...
cdef struct MetChildren:
    const Entry *entries
    int first
    int last
    int shift
    uint64_t lo
    uint64_t hi
    uint8_t k               # what the entries above the children do to the values below them
    uint8_t x


cdef inline MetChildren node_meets(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k,
                                   uint8_t x) noexcept nogil:
    """The children of [lo, hi), not empty, of the node below an entry; (k, x) is what the entries above that do."""
    cdef MetChildren met
    met.entries = node_at(family, entry_handle(e))
    met.shift = level_shift(level - 1)
    met.first = <int>(lo >> met.shift)
    met.last = <int>((hi - 1) >> met.shift)
    met.lo = lo
    met.hi = hi
    met.k = composed_k(e, k)
    met.x = composed_x(e, k, x)
    return met

cdef inline uint64_t child_begin(const MetChildren *met, int i) noexcept nogil:
    """The first page below a child, counted from the node's first."""
    return <uint64_t>i << met.shift

cdef inline uint64_t child_lo(const MetChildren *met, int i) noexcept nogil:
    return met.lo - child_begin(met, i) if i == met.first else 0

cdef inline uint64_t child_hi(const MetChildren *met, int i) noexcept nogil:
    return met.hi - child_begin(met, i) if i == met.last else <uint64_t>1 << met.shift
