# A map of few runs as a ruler (kernels/contract.h): many pages are read off it several times as fast as they are walked
# down to, whatever the tree below the root is made of.

cdef enum:
    # Whether a map has few runs is found by going through them, and a few nodes: that is worth it for so many look-ups,
    # or for less where the root is a run list, which has few.
    RULED_PAGES = 1 << 14
    RULED_PAGES_OF_LIST = 128
    RULED_PAGES_A_RUN = 32          # a run takes as long as one look-up
    RULED_PAGES_A_NODE = 1 << 12    # 512 entries are looked at in a microsecond, as long as 200 look-ups take
    RULED_PAGES_A_LEAF = 1 << 9


cdef bint ruler_add(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    cdef kvmattr_ruler *ruler = <kvmattr_ruler *>sink.context
    if ruler.runs == ruler.most:
        ruler.runs = 0
        return False
    if ruler.runs:
        ruler.starts[ruler.runs - 1] = start
    ruler.values[ruler.runs] = value
    ruler.runs += 1
    return True


cdef bint map_ruler(const Map *map, size_t count, kvmattr_ruler *ruler, kvmattr_small_ruler *small) noexcept nogil:
    """A map as a ruler, for so many look-ups; to be given up by ruler_end. False if it is not worth it, the map has too
    many runs, or memory is refused: more runs than a root's list has need 40 KiB, and small stacks have no room."""
    cdef bint listed = map.level > 2 and not is_node(entry_handle(map.root))
    cdef void *memory = small
    cdef RunSink sink
    cdef size_t least = RULED_PAGES_OF_LIST if listed else RULED_PAGES
    if KVMATTR_COUNTING_BUILD or count < least:         # it counts a walk's visits
        return False
    if not listed and posix_memalign(&memory, 64, KVMATTR_RULER_BYTES(KVMATTR_RULER_RUNS)):
        return False
    kvmattr_ruler_place(ruler, memory, KVMATTR_SMALL_RULER_RUNS if listed else KVMATTR_RULER_RUNS)
    if not listed and count < RULED_PAGES_A_RUN * KVMATTR_RULER_RUNS:
        ruler.most = <int>(count // RULED_PAGES_A_RUN)
    sink = sink_to(ruler_add, ruler)
    sink.nodes_left = count // RULED_PAGES_A_NODE
    sink.leaves_left = count // RULED_PAGES_A_LEAF
    map_runs(map, 0, map.pages, &sink)
    if ruler.runs == 0 or sink.stop != map.pages:
        ruler_end(ruler, small)
        return False
    kvmattr_ruler_close(ruler)
    return True


cdef inline void ruler_end(kvmattr_ruler *ruler, kvmattr_small_ruler *small) noexcept nogil:
    if <void *>ruler.starts != <void *>small:
        free(ruler.starts)
