# The way down: to one page, and to what a range of pages meets below a node.

# ---- one page ----

# Where the way to a page ends: at the first entry that leads to no node, or at the level that was asked for.
cdef struct Way:
    const Entry *slot
    Entry entry
    int shift               # of its level (level_shift)
    uint32_t keep           # what the entries above it do to the values below it: (value & keep) ^ toggle
    uint32_t toggle
    PageInfo *node          # what is known of the node that holds the entry
    bint shared             # some node on the way has more than one reference

# What is asked of a way, a constant wherever one is begun: the C compiler leaves out what nobody asked for.
cdef enum:
    WAY_COMPOSES = 1        # goes on where an operation is pending, and composes it; else the way ends there
    WAY_SHARES = 2          # tells node and shared
    WAY_SURE = 4            # is known to lead to a leaf, with nothing pending: nothing is looked for


cdef inline bint leads_to_node(Entry e) noexcept nogil:
    """Whether the entry's handle is a node's: not uniform, no run list. Above level 2, as leaves have handles too."""
    return entry_handle(e) != 0 and is_node(entry_handle(e))


cdef inline Way way_down(const Family *family, const Entry *root, int level, int end, uint64_t page,
                         int asked) noexcept nogil:
    """The way from the entry *root of `level`, which covers the page, to an entry of the level `end` or a higher."""
    cdef Way way
    cdef const Entry *slot = root
    cdef Entry e = root[0]
    cdef int shift = level_shift(level)
    cdef uint32_t keep = 0xff, toggle = 0
    way.node = NULL
    way.shared = False
    while shift > level_shift(end):
        if not (asked & WAY_SURE or (leads_to_node(e) if asked & WAY_COMPOSES else leads_to_node_unchanged(e))):
            break
        if asked & WAY_COMPOSES:
            toggle ^= <uint32_t>(e >> KVMATTR_X) & keep
            keep &= <uint32_t>(e >> KVMATTR_K)
        if asked & WAY_SHARES:
            way.node = page_info(family, entry_handle(e) >> 9)
            way.shared |= way.node.references != 1
        kvmattr_count_visit(family)
        shift -= KVMATTR_LEVEL_BITS
        slot = &kvmattr_words(family.bias, entry_handle(e))[(page >> shift) & 511]
        e = slot[0]
    way.slot = slot
    way.entry = e
    way.shift = shift
    way.keep = keep
    way.toggle = toggle
    return way


cdef inline void way_compose(Way *way) noexcept nogil:
    """What the entry itself does comes to what those above it do."""
    way.toggle ^= <uint32_t>(way.entry >> KVMATTR_X) & way.keep
    way.keep &= <uint32_t>(way.entry >> KVMATTR_K)

cdef inline bint way_owns_leaf(const Family *family, const Way *way) noexcept nogil:
    """Whether the leaf at the end of a way (WAY_SHARES) is this map's alone, and all above it."""
    return not way.shared and (way.node != NULL and not way.node.shares
                               or leaf_references(family, entry_handle(way.entry))[0] == 1)

cdef inline int way_level(const Way *way) noexcept nogil:
    return way.shift // KVMATTR_LEVEL_BITS + 1

cdef inline uint8_t way_value(const Way *way, uint32_t stored) noexcept nogil:
    """The value of a page, from what is stored for it or from F of the entry: what is above them is done to it."""
    return <uint8_t>((stored & way.keep) ^ way.toggle)


# Called through a pointer, so that no compiler takes it into a look-up, which then needs no frame on the stack.
cdef uint8_t (*tree_get_apart)(const Family *family, Entry e, int level, uint64_t page) noexcept nogil
tree_get_apart = tree_get_from


cdef inline uint8_t tree_get(const Family *family, Entry e, int level, uint64_t page) noexcept nogil:
    """The attributes of one page below an entry. Most often nothing is pending above the blocks."""
    cdef Way way = way_down(family, &e, level, 2, page, 0)
    if way.shift > level_shift(2):
        return tree_get_apart(family, way.entry, way_level(&way), page)
    return leaf_raw(family, entry_handle(way.entry), page & 511) & entry_k(way.entry) ^ entry_x(way.entry)


cdef uint8_t tree_get_from(const Family *family, Entry e, int level, uint64_t page) noexcept nogil:
    """The same on from an entry above level 2 that leads to no node, or where an operation is pending."""
    cdef Way way = way_down(family, &e, level, 2, page, WAY_COMPOSES)
    if way.shift > level_shift(2):
        if entry_handle(way.entry) == 0:
            return way_value(&way, entry_first(way.entry))
        way_compose(&way)
        return way_value(&way, run_list_raw(family, entry_handle(way.entry),
                                            page & ((<uint64_t>1 << way.shift) - 1)))
    way_compose(&way)               # a uniform block too: its handle 0 reads zeros
    return way_value(&way, leaf_raw(family, entry_handle(way.entry), page & 511))


cdef inline uint8_t map_get(const Map *map, uint64_t gfn) noexcept nogil:
    if gfn >> level_shift(map.level):
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
