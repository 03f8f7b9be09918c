# What a map holds, in address order: the pages themselves, runs, and how many runs there are.

# ---- pages ----

cdef void entry_pages(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                      uint8_t *out) noexcept nogil:
    """Write the values of the pages [lo, hi), not empty, to out[0 .. hi - lo)."""
    cdef MetChildren met
    cdef MetRuns runs
    cdef uint8_t[512] block
    cdef int i
    if entry_varying(e) & k == 0:
        memset(out, (entry_first(e) & k) ^ x, hi - lo)
        return
    if level == 2:
        if hi - lo == PAGES_PER_BLOCK:
            leaf_decode(family, e, k, x, out)
        else:
            leaf_decode(family, e, k, x, block)
            memcpy(out, block + lo, hi - lo)
        return
    if not is_node(entry_handle(e)):
        runs = list_meets(family, e, lo, hi, k, x)
        for i in range(runs.first, runs.last + 1):
            memset(out + (met_start(&runs, i) - lo), met_value(&runs, i), met_stop(&runs, i) - met_start(&runs, i))
        return
    met = node_meets(family, e, level, lo, hi, k, x)
    if level == 3 and met.first < met.last and not KVMATTR_COUNTING_BUILD:
        blocks_pages(family, met.entries, lo, hi, met.k, met.x, out)
        return
    for i in range(met.first, met.last + 1):
        entry_pages(family, met.entries[i], level - 1, child_lo(&met, i), child_hi(&met, i), met.k, met.x,
                    out + (child_begin(&met, i) + child_lo(&met, i) - lo))


cdef void blocks_pages(const Family *family, const Entry *entries, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                       uint8_t *out) noexcept nogil:
    """The pages [lo, hi) below the entries of blocks: the whole blocks among them in one go."""
    cdef int first = <int>((lo + 511) >> 9), stop = <int>(hi >> 9)
    cdef uint8_t *whole = out + ((<uint64_t>first << 9) - lo)
    if lo & 511:
        entry_pages(family, entries[first - 1], 2, lo & 511, 512, k, x, out)
    kernels.pages(family.bias, entries + first, stop - first, k, x, whole)
    if hi & 511:
        entry_pages(family, entries[stop], 2, 0, hi & 511, k, x, whole + 512 * (stop - first))


cdef void map_pages(const Map *map, uint64_t start, uint64_t stop, uint8_t *out) noexcept nogil:
    if start >= stop:
        return
    if start < root_stop(map, stop):
        entry_pages(map.family, map.root, map.level, start, root_stop(map, stop), 0xff, 0, out)
    if rest_start(map, start) < stop:
        memset(out + (rest_start(map, start) - start), map.rest, stop - rest_start(map, start))


# ---- runs ----

cdef packed struct RunRecord:
    uint64_t start
    uint64_t stop
    uint8_t attributes

# What a walk hands out: maximal runs, in order. They are written to out[] where that is given, which ends the
# walk when it is full; else `emit` gets them, and returns False to end the walk. Where `emit_block` is given, it gets
# the pages of whole mixed blocks in their place, and runs end there. It ends, too, before one node more than
# `nodes_left`, or one leaf more than `leaves_left`.
cdef struct RunSink:
    RunRecord *out
    RunRecord *end
    bint (*emit)(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil
    bint (*emit_block)(RunSink *sink, uint64_t start, const uint8_t *block) noexcept nogil
    void *context
    size_t nodes_left
    size_t leaves_left
    uint64_t start          # the run that is being put together
    uint64_t stop
    uint8_t value


cdef inline RunSink sink_to(bint (*emit)(RunSink *sink, uint64_t start, uint64_t stop,
                                         uint8_t value) noexcept nogil, void *context) noexcept nogil:
    cdef RunSink sink
    memset(&sink, 0, sizeof(sink))
    sink.nodes_left = <size_t>-1
    sink.leaves_left = <size_t>-1
    sink.emit = emit
    sink.context = context
    return sink

cdef inline RunSink sink_into(RunRecord *out, size_t count) noexcept nogil:
    cdef RunSink sink
    memset(&sink, 0, sizeof(sink))
    sink.nodes_left = <size_t>-1
    sink.leaves_left = <size_t>-1
    sink.out = out
    sink.end = out + count
    return sink


cdef inline bint sink_emit(RunSink *sink) noexcept nogil:
    """Hand out the run that is complete."""
    if sink.out == NULL:
        return sink.emit(sink, sink.start, sink.stop, sink.value)
    if sink.out == sink.end:
        return False
    sink.out.start = sink.start
    sink.out.stop = sink.stop
    sink.out.attributes = sink.value
    sink.out += 1
    return True


cdef inline bint sink_add(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    """One piece more: joined to the run before it if that has the same value."""
    if sink.stop > sink.start:
        if sink.value == value:
            sink.stop = stop
            return True
        if not sink_emit(sink):
            return False
    sink.start = start
    sink.stop = stop
    sink.value = value
    return True


cdef bint sink_add_block(RunSink *sink, const Family *family, Entry e, uint64_t base, uint8_t k,
                         uint8_t x) noexcept nogil:
    """A whole block in a leaf, after the run before it. It is mixed, unless V is loose and an operation above it has
    taken away all that varies: then it belongs to a run."""
    cdef uint8_t[512] block
    leaf_decode(family, e, k, x, block)
    if memcmp(block, block + 1, PAGES_PER_BLOCK - 1) == 0:
        return sink_add(sink, base, base + PAGES_PER_BLOCK, block[0])
    if sink.stop > sink.start and not sink_emit(sink):
        return False
    sink.start = sink.stop = base + PAGES_PER_BLOCK
    return sink.emit_block(sink, base, block)


cdef bint entry_runs(const Family *family, Entry e, int level, uint64_t base, uint64_t lo, uint64_t hi, uint8_t k,
                     uint8_t x, RunSink *sink) noexcept nogil:
    """Hand out the runs of the pages [lo, hi), not empty, of a subtree that begins at gfn `base`."""
    cdef MetChildren met
    cdef MetRuns runs
    cdef uint64_t child
    cdef int i
    if entry_varying(e) & k == 0:
        return sink_add(sink, base + lo, base + hi, (entry_first(e) & k) ^ x)
    if level == 2:
        if sink.leaves_left == 0:
            return False
        sink.leaves_left -= 1
        if sink.emit_block != NULL and hi - lo == PAGES_PER_BLOCK:
            return sink_add_block(sink, family, e, base, k, x)
        return leaf_runs(family, e, base, <int>lo, <int>hi, k, x, sink)
    if not is_node(entry_handle(e)):
        runs = list_meets(family, e, lo, hi, k, x)
        for i in range(runs.first, runs.last + 1):
            if not sink_add(sink, base + met_start(&runs, i), base + met_stop(&runs, i), met_value(&runs, i)):
                return False
        return True
    if sink.nodes_left == 0:
        return False
    sink.nodes_left -= 1
    met = node_meets(family, e, level, lo, hi, k, x)
    i = met.first
    while i <= met.last:
        child = child_begin(&met, i)
        if level == 3 and lo <= child:
            i += blocks_records(family, met.entries + i, <int>((hi - child) >> 9), base + child, met.k, met.x, sink)
            if i > met.last:
                break
        if not entry_runs(family, met.entries[i], level - 1, base + child_begin(&met, i), child_lo(&met, i),
                          child_hi(&met, i), met.k, met.x, sink):
            return False
        i += 1
    return True


cdef int blocks_records(const Family *family, const Entry *entries, int count, uint64_t base, uint8_t k, uint8_t x,
                        RunSink *sink) noexcept nogil:
    """The runs of the next whole blocks into an array, as long as it has room; how many blocks that were."""
    cdef kvmattr_change_list changes
    cdef int done = 0, blocks
    cdef Entry e
    if sink.out == NULL or KVMATTR_COUNTING_BUILD or count <= 0:
        return 0
    if sink.stop == sink.start:             # the first run of all
        sink.start = base
        sink.value = (entry_first(entries[0]) & k) ^ x
    while done < count:
        changes.value = sink.value
        blocks = kernels.list_changes(family.bias, entries + done, count - done, k, x, base, &changes)
        e = entries[done]
        if blocks == 0 and is_line(entry_handle(e)):
            if sink.end - sink.out < LINE_RUNS:
                break
            line_runs(line_at(family, entry_handle(e)), base, 0, PAGES_PER_BLOCK, composed_k(e, k),
                      composed_x(e, k, x), sink)
            blocks = 1
        elif blocks == 0:                   # a leaf of more than one bit
            if not block_records(family, e, base, k, x, sink):
                break
            blocks = 1
        elif <uint64_t>(sink.end - sink.out) < kernels.popcount(changes.bits, changes.count):
            break
        else:
            listed_records(&changes, sink)
        done += blocks
        base += <uint64_t>blocks * PAGES_PER_BLOCK
        sink.stop = base
    return done


cdef inline void listed_records(const kvmattr_change_list *changes, RunSink *sink) noexcept nogil:
    """The runs that end at listed changes into an array with room for them: no call and no test a run."""
    cdef RunRecord *out = sink.out
    cdef uint64_t start = sink.start, at, bits
    cdef uint8_t value = sink.value, after, toggle
    cdef int i
    for i in range(changes.count):
        bits = changes.bits[i]
        after = <uint8_t>changes.values[i]
        toggle = <uint8_t>(changes.values[i] >> 8)
        while bits:
            at = changes.gfn[i] + kvmattr_first_bit(bits)
            out.start = start
            out.stop = at
            out.attributes = value
            out += 1
            start = at
            value = after
            after ^= toggle
            bits &= bits - 1
    sink.out = out
    sink.start = start
    sink.value = value


cdef bint block_records(const Family *family, Entry e, uint64_t base, uint8_t k, uint8_t x,
                        RunSink *sink) noexcept nogil:
    """The same for one block, which is decoded; False if the array has no room."""
    cdef uint8_t[512] block
    cdef uint64_t[8] changes
    cdef RunRecord *out = sink.out
    cdef uint64_t start = sink.start, at
    cdef uint8_t value = sink.value
    cdef int i
    leaf_decode(family, e, k, x, block)
    kernels.changes(block, changes)
    changes[0] |= block[0] != value
    if <uint64_t>(sink.end - out) < kernels.popcount(changes, 8):
        return False
    for i in range(8):
        while changes[i]:
            at = 64 * i + kvmattr_first_bit(changes[i])
            changes[i] &= changes[i] - 1
            out.start = start
            out.stop = start = base + at
            out.attributes = value
            out += 1
            value = block[at]
    sink.out = out
    sink.start = start
    sink.value = value
    return True


cdef bint leaf_runs(const Family *family, Entry e, uint64_t base, int lo, int hi, uint8_t k, uint8_t x,
                    RunSink *sink) noexcept nogil:
    """The runs of the pages [lo, hi) of a mixed block."""
    cdef uint64_t[8] changes
    cdef uint8_t[512] block
    cdef uint8_t both = composed_k(e, k)
    cdef uint64_t start
    cdef uint8_t value
    cdef const uint64_t *words
    cdef int i, at
    if is_line(entry_handle(e)):
        return line_runs(line_at(family, entry_handle(e)), base, lo, hi, both, composed_x(e, k, x), sink)
    if entry_handle(e) & KVMATTR_TAG:
        leaf_decode(family, e, k, x, block)
        kernels.changes(block, changes)
        bits_clip(changes, lo + 1, hi)
        start = lo
        for i in range(lo >> 6, ((hi - 1) >> 6) + 1):
            while changes[i]:
                at = 64 * i + kvmattr_first_bit(changes[i])
                changes[i] &= changes[i] - 1
                if not sink_add(sink, base + start, base + at, block[start]):
                    return False
                start = at
        return sink_add(sink, base + start, base + hi, block[start])
    kvmattr_count_pages(family, hi - lo)
    words = leaf_at(family, entry_handle(e))
    for i in range(8):
        changes[i] = word_changes(words, i)
    bits_clip(changes, lo + 1, hi)
    value = composed_x(e, k, x) ^ (both if words[lo >> 6] >> (lo & 63) & 1 else 0)
    if not sink_add(sink, base + lo, base + hi, value):
        return False
    for i in range(lo >> 6, ((hi - 1) >> 6) + 1):
        while changes[i]:
            at = 64 * i + kvmattr_first_bit(changes[i])
            changes[i] &= changes[i] - 1
            sink.stop = base + at
            if not sink_emit(sink):
                return False
            value ^= both
            sink.start = base + at
            sink.stop = base + hi
            sink.value = value
    return True


cdef inline bint line_runs(const kvmattr_line *line, uint64_t base, int lo, int hi, uint8_t k, uint8_t x,
                           RunSink *sink) noexcept nogil:
    """The same of a run line."""
    cdef int i, start = 0, stop
    for i in range(line.count):
        stop = line_stop(line, i)
        stop = stop if stop < hi else hi
        start = start if start > lo else lo
        if start < stop and not sink_add(sink, base + start, base + stop, (line.values[i] & k) ^ x):
            return False
        start = stop
    return True


cdef inline uint64_t word_changes(const uint64_t *words, int i) noexcept nogil:
    """Word i of the bits of a leaf of one bit a page that differ from the bit before; bit 0 of the leaf does not."""
    cdef uint64_t before = words[i - 1] >> 63 if i else words[0] & 1
    return words[i] ^ (words[i] << 1 | before)


cdef void map_runs(const Map *map, uint64_t start, uint64_t stop, RunSink *sink) noexcept nogil:
    """Hand out the maximal runs of [start, stop), clipped to it."""
    if start >= stop:
        return
    if start < root_stop(map, stop):
        if not entry_runs(map.family, map.root, map.level, 0, start, root_stop(map, stop), 0xff, 0, sink):
            return
    if rest_start(map, start) < stop:
        if not sink_add(sink, rest_start(map, start), stop, map.rest):
            return
    if sink.stop > sink.start:
        sink_emit(sink)


# ---- the number of runs: transitions, counted in leaves and between entries, never page by page ----

cdef struct Edge:
    uint64_t transitions
    uint8_t last            # the value of the last page so far
    bint any


cdef inline void edge_add(Edge *edge, uint8_t first, uint8_t last, uint64_t inside) noexcept nogil:
    edge.transitions += inside + (edge.any and edge.last != first)
    edge.last = last
    edge.any = True


cdef inline uint64_t block_transitions(const uint8_t *block, int lo, int hi) noexcept nogil:
    """The number of pages of (lo, hi) that differ from the page before them."""
    cdef uint64_t[8] changes
    kernels.changes(block, changes)
    bits_clip(changes, lo + 1, hi)
    return kernels.popcount(changes, 8)


cdef void leaf_transitions(const Family *family, Entry e, int lo, int hi, uint8_t k, uint8_t x,
                           Edge *edge) noexcept nogil:
    """The same for the pages [lo, hi) of a mixed block, the one before it included."""
    cdef const uint64_t *words
    cdef uint64_t[8] changes
    cdef uint8_t[512] block
    cdef uint8_t zero, both
    cdef int i
    if entry_handle(e) & KVMATTR_TAG:
        leaf_decode(family, e, k, x, block)
        edge_add(edge, block[lo], block[hi - 1], block_transitions(block, lo, hi))
        return
    kvmattr_count_pages(family, hi - lo)
    words = leaf_at(family, entry_handle(e))
    for i in range(8):
        changes[i] = word_changes(words, i)
    bits_clip(changes, lo + 1, hi)
    zero = composed_x(e, k, x)
    both = composed_k(e, k)
    edge_add(edge, zero ^ (both if words[lo >> 6] >> (lo & 63) & 1 else 0),
             zero ^ (both if words[(hi - 1) >> 6] >> ((hi - 1) & 63) & 1 else 0), kernels.popcount(changes, 8))


cdef void node_transitions(const Family *family, const Entry *entries, uint8_t k, uint8_t x,
                           Edge *edge) noexcept nogil:
    """The same for all blocks of a node."""
    cdef uint8_t[512] first
    cdef uint8_t[512] last
    cdef uint64_t inside = kernels.edges(family.bias, entries, 512, k, x, first, last)
    cdef int i
    for i in range(1, 512):
        inside += first[i] != last[i - 1]
    edge_add(edge, first[0], last[511], inside)


cdef void entry_transitions(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k,
                            uint8_t x, Edge *edge) noexcept nogil:
    """Count where pages of [lo, hi), not empty, differ from the page before them."""
    cdef MetChildren met
    cdef MetRuns runs
    cdef uint8_t value
    cdef int i
    if entry_varying(e) & k == 0:
        value = (entry_first(e) & k) ^ x
        edge_add(edge, value, value, 0)
    elif level == 2:
        leaf_transitions(family, e, <int>lo, <int>hi, k, x, edge)
    elif not is_node(entry_handle(e)):
        runs = list_meets(family, e, lo, hi, k, x)
        for i in range(runs.first, runs.last + 1):
            value = met_value(&runs, i)
            edge_add(edge, value, value, 0)
    else:
        met = node_meets(family, e, level, lo, hi, k, x)
        if level == 3 and hi - lo == level_span(3) and not KVMATTR_COUNTING_BUILD:
            node_transitions(family, met.entries, met.k, met.x, edge)
            return
        for i in range(met.first, met.last + 1):
            entry_transitions(family, met.entries[i], level - 1, child_lo(&met, i), child_hi(&met, i), met.k, met.x,
                              edge)


cdef uint64_t map_run_count(const Map *map, uint64_t start, uint64_t stop) noexcept nogil:
    """The number of maximal runs of [start, stop)."""
    cdef Edge edge
    edge.transitions = 0
    edge.any = False
    if start >= stop:
        return 0
    if start < root_stop(map, stop):
        entry_transitions(map.family, map.root, map.level, start, root_stop(map, stop), 0xff, 0, &edge)
    if rest_start(map, start) < stop:
        edge_add(&edge, map.rest, map.rest, 0)
    return edge.transitions + 1
