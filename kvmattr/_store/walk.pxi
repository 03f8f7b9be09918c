# Walks in address order: the pages themselves, runs, and what differs between two maps.

# ---- pages ----

cdef void entry_pages(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                      uint8_t *out) noexcept nogil:
    """Write the values of the pages [lo, hi), not empty, to out[0 .. hi - lo)."""
    cdef const Entry *entries
    cdef const uint64_t *starts
    cdef const uint8_t *values
    cdef const Record *record
    cdef uint8_t[512] block
    cdef uint64_t span, base, start, stop
    cdef int shift, i, first, last
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
        record = run_list_at(family, entry_handle(e), &starts, &values)
        for i in range(run_list_find(starts, record.count, lo), run_list_find(starts, record.count, hi - 1) + 1):
            start = starts[i - 1] if i > 0 else 0
            stop = starts[i] if i < record.count - 1 else hi
            start = start if start > lo else lo
            stop = stop if stop < hi else hi
            memset(out + (start - lo), (((values[i] & entry_k(e)) ^ entry_x(e)) & k) ^ x, stop - start)
        return
    x ^= entry_x(e) & k
    k &= entry_k(e)
    entries = node_at(family, entry_handle(e))
    shift = level_shift(level - 1)
    span = level_span(level - 1)
    first = <int>(lo >> shift)
    last = <int>((hi - 1) >> shift)
    if level == 3 and first < last and not KVMATTR_COUNTING_BUILD:
        blocks_pages(family, entries, lo, hi, k, x, out)
        return
    for i in range(first, last + 1):
        base = <uint64_t>i << shift
        start = lo - base if i == first else 0
        stop = hi - base if i == last else span
        entry_pages(family, entries[i], level - 1, start, stop, k, x, out + (base + start - lo))


cdef void blocks_pages(const Family *family, const Entry *entries, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                       uint8_t *out) noexcept nogil:
    """The pages [lo, hi) below the entries of blocks: the whole blocks among them in one go."""
    cdef uint64_t[8] left
    cdef int first = <int>((lo + 511) >> 9), stop = <int>(hi >> 9), i
    cdef uint8_t *whole = out + ((<uint64_t>first << 9) - lo)
    if lo & 511:
        entry_pages(family, entries[first - 1], 2, lo & 511, 512, k, x, out)
    kernels.pages(family.bias, entries + first, stop - first, k, x, whole, left)
    for i in range(8):
        while left[i]:
            leaf_decode(family, entries[first + 64 * i + kvmattr_first_bit(left[i])], k, x,
                        whole + 512 * (64 * i + kvmattr_first_bit(left[i])))
            left[i] &= left[i] - 1
    if hi & 511:
        entry_pages(family, entries[stop], 2, 0, hi & 511, k, x, whole + 512 * (stop - first))


cdef void map_pages(const Map *map, uint64_t start, uint64_t stop, uint8_t *out) noexcept nogil:
    cdef uint64_t covered = level_span(map.level), first
    if start >= stop:
        return
    if start < covered:
        entry_pages(map.family, map.root, map.level, start, stop if stop < covered else covered, 0xff, 0, out)
    if stop > covered:
        first = start if start > covered else covered
        memset(out + (first - start), map.rest, stop - first)


# ---- runs ----

cdef packed struct RunRecord:
    uint64_t start
    uint64_t stop
    uint8_t attributes

# What a walk hands out: maximal runs, in order. They are written to out[] where that is given, which ends the
# walk when it is full; else `emit` gets them, and returns False to end the walk.
cdef struct RunSink:
    RunRecord *out
    RunRecord *end
    bint (*emit)(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil
    void *context
    uint64_t start          # the run that is being put together
    uint64_t stop
    uint8_t value


cdef inline RunSink sink_to(bint (*emit)(RunSink *sink, uint64_t start, uint64_t stop,
                                         uint8_t value) noexcept nogil, void *context) noexcept nogil:
    cdef RunSink sink
    memset(&sink, 0, sizeof(sink))
    sink.emit = emit
    sink.context = context
    return sink

cdef inline RunSink sink_into(RunRecord *out, size_t count) noexcept nogil:
    cdef RunSink sink
    memset(&sink, 0, sizeof(sink))
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


cdef bint entry_runs(const Family *family, Entry e, int level, uint64_t base, uint64_t lo, uint64_t hi, uint8_t k,
                     uint8_t x, RunSink *sink) noexcept nogil:
    """Hand out the runs of the pages [lo, hi), not empty, of a subtree that begins at gfn `base`."""
    cdef const Entry *entries
    cdef const uint64_t *starts
    cdef const uint8_t *values
    cdef const Record *record
    cdef uint64_t span, start, stop, child
    cdef int shift, i, first, last
    if entry_varying(e) & k == 0:
        return sink_add(sink, base + lo, base + hi, (entry_first(e) & k) ^ x)
    if level == 2:
        return leaf_runs(family, e, base, <int>lo, <int>hi, k, x, sink)
    if not is_node(entry_handle(e)):
        record = run_list_at(family, entry_handle(e), &starts, &values)
        for i in range(run_list_find(starts, record.count, lo), run_list_find(starts, record.count, hi - 1) + 1):
            start = starts[i - 1] if i > 0 else 0
            stop = starts[i] if i < record.count - 1 else hi
            if not sink_add(sink, base + (start if start > lo else lo), base + (stop if stop < hi else hi),
                            (((values[i] & entry_k(e)) ^ entry_x(e)) & k) ^ x):
                return False
        return True
    x ^= entry_x(e) & k
    k &= entry_k(e)
    entries = node_at(family, entry_handle(e))
    shift = level_shift(level - 1)
    span = level_span(level - 1)
    first = <int>(lo >> shift)
    last = <int>((hi - 1) >> shift)
    i = first
    while i <= last:
        child = <uint64_t>i << shift
        if level == 3 and lo <= child:
            i += blocks_records(family, entries + i, <int>((hi - child) >> 9), base + child, k, x, sink)
            if i > last:
                break
            child = <uint64_t>i << shift
        if not entry_runs(family, entries[i], level - 1, base + child, lo - child if lo > child else 0,
                          hi - child if i == last else span, k, x, sink):
            return False
        i += 1
    return True


cdef int blocks_records(const Family *family, const Entry *entries, int count, uint64_t base, uint8_t k, uint8_t x,
                        RunSink *sink) noexcept nogil:
    """The runs of the next whole blocks into an array, as long as they are uniform or have two values and it has room;
    how many blocks that were."""
    cdef kvmattr_change_list changes
    cdef int done = 0, blocks
    if sink.out == NULL or KVMATTR_COUNTING_BUILD or count <= 0:
        return 0
    if sink.stop == sink.start:             # the first run of all
        sink.start = base
        sink.value = (entry_first(entries[0]) & k) ^ x
    while done < count:
        changes.value = sink.value
        blocks = kernels.list_changes(family.bias, entries + done, count - done, k, x, base, &changes)
        if blocks == 0 or <uint64_t>(sink.end - sink.out) < kernels.popcount(changes.bits, changes.count):
            break
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


cdef bint leaf_runs(const Family *family, Entry e, uint64_t base, int lo, int hi, uint8_t k, uint8_t x,
                    RunSink *sink) noexcept nogil:
    """The runs of the pages [lo, hi) of a mixed block."""
    cdef uint64_t[8] changes
    cdef uint8_t[512] block
    cdef uint8_t both = entry_k(e) & k
    cdef uint64_t start
    cdef uint8_t value
    cdef const uint64_t *words
    cdef int i, at
    if is_line(entry_handle(e)):
        return line_runs(line_at(family, entry_handle(e)), base, lo, hi, both, (entry_x(e) & k) ^ x, sink)
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
    value = (entry_x(e) & k) ^ x ^ (both if words[lo >> 6] >> (lo & 63) & 1 else 0)
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
        stop = line.starts[i] if i < line.count - 1 else PAGES_PER_BLOCK
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
    cdef uint64_t covered = level_span(map.level)
    if start >= stop:
        return
    if start < covered:
        if not entry_runs(map.family, map.root, map.level, 0, start, stop if stop < covered else covered, 0xff, 0,
                          sink):
            return
    if stop > covered:
        if not sink_add(sink, start if start > covered else covered, stop, map.rest):
            return
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
    zero = (entry_x(e) & k) ^ x
    both = entry_k(e) & k
    edge_add(edge, zero ^ (both if words[lo >> 6] >> (lo & 63) & 1 else 0),
             zero ^ (both if words[(hi - 1) >> 6] >> ((hi - 1) & 63) & 1 else 0), kernels.popcount(changes, 8))


cdef void node_transitions(const Family *family, const Entry *entries, uint8_t k, uint8_t x,
                           Edge *edge) noexcept nogil:
    """The same for all blocks of a node."""
    cdef uint8_t[512] first
    cdef uint8_t[512] last
    cdef uint8_t[512] block
    cdef uint64_t[8] left
    cdef uint64_t inside = kernels.edges(family.bias, entries, 512, k, x, first, last, left)
    cdef int i, at
    for i in range(8):
        while left[i]:
            at = 64 * i + kvmattr_first_bit(left[i])
            left[i] &= left[i] - 1
            leaf_decode(family, entries[at], k, x, block)
            inside += block_transitions(block, 0, PAGES_PER_BLOCK)
            last[at] = block[PAGES_PER_BLOCK - 1]
    for i in range(1, 512):
        inside += first[i] != last[i - 1]
    edge_add(edge, first[0], last[511], inside)


cdef void entry_transitions(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k,
                            uint8_t x, Edge *edge) noexcept nogil:
    """Count where pages of [lo, hi), not empty, differ from the page before them."""
    cdef const Entry *entries
    cdef const uint64_t *starts
    cdef const uint8_t *values
    cdef const Record *record
    cdef uint8_t value
    cdef uint64_t span, child
    cdef int shift, i, first, last
    if entry_varying(e) & k == 0:
        value = (entry_first(e) & k) ^ x
        edge_add(edge, value, value, 0)
    elif level == 2:
        leaf_transitions(family, e, <int>lo, <int>hi, k, x, edge)
    elif not is_node(entry_handle(e)):
        record = run_list_at(family, entry_handle(e), &starts, &values)
        for i in range(run_list_find(starts, record.count, lo), run_list_find(starts, record.count, hi - 1) + 1):
            value = (((values[i] & entry_k(e)) ^ entry_x(e)) & k) ^ x
            edge_add(edge, value, value, 0)
    else:
        x ^= entry_x(e) & k
        k &= entry_k(e)
        entries = node_at(family, entry_handle(e))
        if level == 3 and hi - lo == level_span(3) and not KVMATTR_COUNTING_BUILD:
            node_transitions(family, entries, k, x, edge)
            return
        shift = level_shift(level - 1)
        span = level_span(level - 1)
        first = <int>(lo >> shift)
        last = <int>((hi - 1) >> shift)
        for i in range(first, last + 1):
            child = <uint64_t>i << shift
            entry_transitions(family, entries[i], level - 1, lo - child if i == first else 0,
                              hi - child if i == last else span, k, x, edge)


cdef uint64_t map_run_count(const Map *map, uint64_t start, uint64_t stop) noexcept nogil:
    """The number of maximal runs of [start, stop)."""
    cdef uint64_t covered = level_span(map.level)
    cdef Edge edge
    edge.transitions = 0
    edge.any = False
    if start >= stop:
        return 0
    if start < covered:
        entry_transitions(map.family, map.root, map.level, start, stop if stop < covered else covered, 0xff, 0,
                          &edge)
    if stop > covered:
        edge_add(&edge, map.rest, map.rest, 0)
    return edge.transitions + 1


# ---- what differs between two maps ----

cdef struct DiffSink:
    bint (*emit)(DiffSink *sink, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil
    void *context
    uint64_t start
    uint64_t stop
    uint8_t old
    uint8_t new


cdef inline bint diff_add(DiffSink *sink, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    """One piece in which the maps have these values: joined to the one before, if it can be."""
    if old == new:
        return True
    if sink.stop > sink.start:
        if sink.stop == start and sink.old == old and sink.new == new:
            sink.stop = stop
            return True
        if not sink.emit(sink, sink.start, sink.stop, sink.old, sink.new):
            return False
    sink.start = start
    sink.stop = stop
    sink.old = old
    sink.new = new
    return True


# One side of a difference: an entry, what the entries above do to it, and whose it is.
cdef struct Side:
    const Family *family
    Entry entry
    uint8_t k
    uint8_t x


cdef inline uint8_t side_varying(const Side *side) noexcept nogil:
    return entry_varying(side.entry) & side.k

cdef inline uint8_t side_first(const Side *side) noexcept nogil:
    return (entry_first(side.entry) & side.k) ^ side.x

cdef inline bint side_is_node(const Side *side) noexcept nogil:
    return entry_handle(side.entry) != 0 and is_node(entry_handle(side.entry)) and side_varying(side) != 0


cdef inline bint sides_same(const Side *a, const Side *b) noexcept nogil:
    """Whether both are the same subtree under the same operation: nothing below can differ. Handles mean the
    same only within one family."""
    cdef uint8_t ka = entry_k(a.entry) & a.k, kb = entry_k(b.entry) & b.k
    return (a.family == b.family and entry_handle(a.entry) == entry_handle(b.entry) and ka == kb
            and ((entry_x(a.entry) & a.k) ^ a.x) == ((entry_x(b.entry) & b.k) ^ b.x))


cdef inline Side side_child(const Side *side, int index) noexcept nogil:
    cdef Side child
    child.family = side.family
    child.x = side.x ^ (entry_x(side.entry) & side.k)
    child.k = side.k & entry_k(side.entry)
    child.entry = node_at(side.family, entry_handle(side.entry))[index]
    return child


cdef struct PieceAgainst:
    DiffSink *sink
    const Side *other
    int level
    uint64_t base
    bint swapped


cdef struct AgainstValue:
    DiffSink *sink
    uint8_t value
    bint swapped


cdef bint diff_value(RunSink *runs, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    cdef AgainstValue *against = <AgainstValue *>runs.context
    if against.swapped:
        return diff_add(against.sink, start, stop, value, against.value)
    return diff_add(against.sink, start, stop, against.value, value)


cdef bint diff_piece(RunSink *runs, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    """A run of the side that is no node, against the other side."""
    cdef PieceAgainst *piece = <PieceAgainst *>runs.context
    cdef AgainstValue against
    cdef RunSink inner
    against.sink = piece.sink
    against.value = value
    against.swapped = piece.swapped
    inner = sink_to(diff_value, &against)
    if not entry_runs(piece.other.family, piece.other.entry, piece.level, piece.base, start - piece.base,
                      stop - piece.base, piece.other.k, piece.other.x, &inner):
        return False
    return diff_value(&inner, inner.start, inner.stop, inner.value)


cdef bint sides_diff(const Side *old, const Side *new, int level, uint64_t base, uint64_t lo, uint64_t hi,
                     DiffSink *sink) noexcept nogil:
    """Hand out where two subtrees of one place differ within [lo, hi), not empty."""
    cdef Side old_child, new_child
    cdef const Entry *old_entries
    cdef const Entry *new_entries
    cdef bint alike
    cdef PieceAgainst piece
    cdef RunSink runs
    cdef const Side *simple
    cdef uint64_t span, child
    cdef uint16_t[513] differing
    cdef int shift, i, first, last, at, count = 0
    cdef uint8_t[512] old_block
    cdef uint8_t[512] new_block
    if sides_same(old, new):
        return True
    if side_varying(old) == 0 and side_varying(new) == 0:
        return diff_add(sink, base + lo, base + hi, side_first(old), side_first(new))
    if level == 2:
        if sides_share_values(old, new):
            return bitmaps_diff(old, new, base, <int>lo, <int>hi, sink)
        leaf_decode(old.family, old.entry, old.k, old.x, old_block)
        leaf_decode(new.family, new.entry, new.k, new.x, new_block)
        return blocks_diff(old_block, new_block, base, <int>lo, <int>hi, sink)
    if side_is_node(old) and side_is_node(new):
        shift = level_shift(level - 1)
        span = level_span(level - 1)
        first = <int>(lo >> shift)
        last = <int>((hi - 1) >> shift)
        old_child = side_child(old, 0)
        new_child = side_child(new, 0)
        # Under one operation, equal entries of one family are the same subtree.
        alike = old.family == new.family and old_child.k == new_child.k and old_child.x == new_child.x
        old_entries = node_at(old.family, entry_handle(old.entry))
        new_entries = node_at(new.family, entry_handle(new.entry))
        # First which children differ, so that their leaves are asked for before they are looked at.
        for i in range(first, last + 1):
            differing[count] = <uint16_t>i
            count += not alike or old_entries[i] != new_entries[i]
        for at in range(count):
            i = differing[at]
            if level == 3 and at + 8 < count:
                kvmattr_prefetch(leaf_at(old.family, entry_handle(old_entries[differing[at + 8]])))
                kvmattr_prefetch(leaf_at(new.family, entry_handle(new_entries[differing[at + 8]])))
            old_child.entry = old_entries[i]
            new_child.entry = new_entries[i]
            child = <uint64_t>i << shift
            if not sides_diff(&old_child, &new_child, level - 1, base + child, lo - child if i == first else 0,
                              hi - child if i == last else span, sink):
                return False
        return True
    # One side is uniform or a run list: each of its few runs against the other side.
    simple = new if side_is_node(old) else old
    piece.sink = sink
    piece.swapped = simple == new
    piece.other = old if piece.swapped else new
    piece.level = level
    piece.base = base
    runs = sink_to(diff_piece, &piece)
    if not entry_runs(simple.family, simple.entry, level, base, lo, hi, simple.k, simple.x, &runs):
        return False
    return diff_piece(&runs, runs.start, runs.stop, runs.value)


cdef inline bint sides_share_values(const Side *old, const Side *new) noexcept nogil:
    """Whether both are leaves of one bit a page, of the same two values."""
    return (entry_handle(old.entry) != 0 and entry_handle(old.entry) & KVMATTR_TAG == 0
            and entry_handle(new.entry) != 0 and entry_handle(new.entry) & KVMATTR_TAG == 0
            and (entry_k(old.entry) & old.k) == (entry_k(new.entry) & new.k)
            and ((entry_x(old.entry) & old.k) ^ old.x) == ((entry_x(new.entry) & new.k) ^ new.x))


cdef bint bitmaps_diff(const Side *old, const Side *new, uint64_t base, int lo, int hi,
                       DiffSink *sink) noexcept nogil:
    """Two leaves of one bit a page, of the same two values: a page differs where its bits do."""
    cdef const uint64_t *old_words = leaf_at(old.family, entry_handle(old.entry))
    cdef const uint64_t *new_words = leaf_at(new.family, entry_handle(new.entry))
    cdef uint8_t zero = (entry_x(old.entry) & old.k) ^ old.x
    cdef uint8_t one = zero ^ (entry_k(old.entry) & old.k)
    cdef uint64_t differ, at
    cdef unsigned int some = 0
    cdef int i, bit
    kvmattr_count_pages(old.family, hi - lo)
    for i in range(8):
        some |= <unsigned int>(old_words[i] != new_words[i]) << i
    some &= <unsigned int>-1 << (lo >> 6)
    some &= (<unsigned int>2 << ((hi - 1) >> 6)) - 1
    while some:
        i = kvmattr_first_bit(some)
        some &= some - 1
        differ = old_words[i] ^ new_words[i]
        if i == lo >> 6:
            differ &= <uint64_t>-1 << (lo & 63)
        if i == (hi - 1) >> 6:
            differ &= <uint64_t>-1 >> (63 - ((hi - 1) & 63))
        while differ:
            bit = kvmattr_first_bit(differ)
            differ &= differ - 1
            at = base + 64 * i + bit
            if old_words[i] >> bit & 1:
                if not diff_add(sink, at, at + 1, one, zero):
                    return False
            elif not diff_add(sink, at, at + 1, zero, one):
                return False
    return True


cdef bint blocks_diff(const uint8_t *old, const uint8_t *new, uint64_t base, int lo, int hi,
                      DiffSink *sink) noexcept nogil:
    cdef int i = lo, j
    while i < hi:
        if i + 8 <= hi and kvmattr_load64(old + i) == kvmattr_load64(new + i):
            i += 8
            continue
        j = i + 1
        if old[i] != new[i]:
            while j < hi and old[j] == old[i] and new[j] == new[i]:
                j += 1
            if not diff_add(sink, base + i, base + j, old[i], new[i]):
                return False
        i = j
    return True


cdef Side side_of(const Family *family, Entry entry) noexcept nogil:
    cdef Side side
    side.family = family
    side.entry = entry
    side.k = 0xff
    side.x = 0
    return side


cdef void maps_diff(const Map *old, const Map *new, uint64_t start, uint64_t stop, DiffSink *sink) noexcept nogil:
    """Hand out where two maps differ within [start, stop), in order."""
    cdef bint old_is_high = old.level >= new.level
    cdef const Map *high = old if old_is_high else new
    cdef const Map *low = new if old_is_high else old
    cdef Side high_root = side_of(high.family, high.root)
    cdef Side low_root = side_of(low.family, low.root)
    cdef Side rest = side_of(low.family, entry_uniform(low.rest))
    cdef uint64_t covered = level_span(high.level)
    sink.start = 0
    sink.stop = 0
    if start >= stop:
        return
    if start < covered and not heights_diff(&high_root, high.level, &low_root, low.level, &rest, old_is_high,
                                            start, stop if stop < covered else covered, sink):
        return
    if stop > covered and not diff_add(sink, start if start > covered else covered, stop, old.rest, new.rest):
        return
    if sink.stop > sink.start:
        sink.emit(sink, sink.start, sink.stop, sink.old, sink.new)


cdef bint heights_diff(const Side *high, int level, const Side *low, int low_level, const Side *rest,
                       bint old_is_high, uint64_t lo, uint64_t hi, DiffSink *sink) noexcept nogil:
    """Two roots of different height, on [lo, hi), not empty. The lower root is met on the way down the higher
    one's first entries; beside that way the lower map is uniform: its rest."""
    cdef Side child
    cdef uint64_t inner
    cdef int i
    if level == low_level:
        if old_is_high:
            return sides_diff(high, low, level, 0, lo, hi, sink)
        return sides_diff(low, high, level, 0, lo, hi, sink)
    inner = level_span(level - 1)
    if side_is_node(high):
        child = side_child(high, 0)
        if lo < inner and not heights_diff(&child, level - 1, low, low_level, rest, old_is_high, lo,
                                           hi if hi < inner else inner, sink):
            return False
        if hi > inner:
            if old_is_high:
                return sides_diff(high, rest, level, 0, lo if lo > inner else inner, hi, sink)
            return sides_diff(rest, high, level, 0, lo if lo > inner else inner, hi, sink)
        return True
    # A uniform entry or a run list over more than the lower root: walk its few runs against the lower map.
    return list_against_map(high, level, low, low_level, rest, old_is_high, lo, hi, sink)


cdef struct LowerMap:
    DiffSink *sink
    const Side *root
    const Side *rest
    int level
    bint swapped


cdef bint diff_lower(RunSink *runs, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    """A run of the higher map against the lower map's root and rest."""
    cdef LowerMap *lower = <LowerMap *>runs.context
    cdef PieceAgainst piece
    cdef RunSink inner
    cdef uint64_t covered = level_span(lower.level)
    piece.sink = lower.sink
    piece.other = lower.root
    piece.level = lower.level
    piece.base = 0
    piece.swapped = lower.swapped
    inner.context = &piece
    if start < covered and not diff_piece(&inner, start, stop if stop < covered else covered, value):
        return False
    if stop > covered:
        start = start if start > covered else covered
        if lower.swapped:
            return diff_add(lower.sink, start, stop, side_first(lower.rest), value)
        return diff_add(lower.sink, start, stop, value, side_first(lower.rest))
    return True


cdef bint list_against_map(const Side *high, int level, const Side *low, int low_level, const Side *rest,
                           bint old_is_high, uint64_t lo, uint64_t hi, DiffSink *sink) noexcept nogil:
    cdef LowerMap lower
    cdef RunSink runs
    lower.sink = sink
    lower.root = low
    lower.rest = rest
    lower.level = low_level
    lower.swapped = not old_is_high
    runs = sink_to(diff_lower, &lower)
    if not entry_runs(high.family, high.entry, level, 0, lo, hi, high.k, high.x, &runs):
        return False
    return diff_lower(&runs, runs.start, runs.stop, runs.value)
