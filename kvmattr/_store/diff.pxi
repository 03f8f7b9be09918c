# What differs between two maps, in address order.

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


cdef inline bint sides_operate_alike(const Side *a, const Side *b) noexcept nogil:
    return (composed_k(a.entry, a.k) == composed_k(b.entry, b.k)
            and composed_x(a.entry, a.k, a.x) == composed_x(b.entry, b.k, b.x))


cdef inline bint sides_same(const Side *a, const Side *b) noexcept nogil:
    """Whether both are the same subtree under the same operation: nothing below can differ. Handles mean the
    same only within one family."""
    return a.family == b.family and entry_handle(a.entry) == entry_handle(b.entry) and sides_operate_alike(a, b)


cdef inline MetChildren side_meets(const Side *side, int level, uint64_t lo, uint64_t hi) noexcept nogil:
    return node_meets(side.family, side.entry, level, lo, hi, side.k, side.x)


cdef inline Side side_child(const Side *side, const MetChildren *met, int i) noexcept nogil:
    cdef Side child
    child.family = side.family
    child.entry = met.entries[i]
    child.k = met.k
    child.x = met.x
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
    cdef MetChildren met, new_met
    cdef bint alike
    cdef PieceAgainst piece
    cdef RunSink runs
    cdef const Side *simple
    cdef uint16_t[513] differing
    cdef int i, at, count = 0
    cdef uint8_t[512] old_block
    cdef uint8_t[512] new_block
    if sides_same(old, new):
        return True
    if side_varying(old) == 0 and side_varying(new) == 0:
        return diff_add(sink, base + lo, base + hi, side_first(old), side_first(new))
    if level == 2:
        if sides_share_fields(old, new):
            return fields_diff(old, new, base, <int>lo, <int>hi, sink)
        leaf_decode(old.family, old.entry, old.k, old.x, old_block)
        leaf_decode(new.family, new.entry, new.k, new.x, new_block)
        return blocks_diff(old_block, new_block, base, <int>lo, <int>hi, sink)
    if side_is_node(old) and side_is_node(new):
        met = side_meets(old, level, lo, hi)
        new_met = side_meets(new, level, lo, hi)
        # Under one operation, equal entries of one family are the same subtree.
        alike = old.family == new.family and met.k == new_met.k and met.x == new_met.x
        # First which children differ, so that their leaves are asked for before they are looked at.
        for i in range(met.first, met.last + 1):
            differing[count] = <uint16_t>i
            count += not alike or met.entries[i] != new_met.entries[i]
        for at in range(count):
            i = differing[at]
            if level == 3 and at + 8 < count:
                kvmattr_prefetch(leaf_at(old.family, entry_handle(met.entries[differing[at + 8]])))
                kvmattr_prefetch(leaf_at(new.family, entry_handle(new_met.entries[differing[at + 8]])))
            old_child = side_child(old, &met, i)
            new_child = side_child(new, &new_met, i)
            if not sides_diff(&old_child, &new_child, level - 1, base + child_begin(&met, i), child_lo(&met, i),
                              child_hi(&met, i), sink):
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


cdef inline bint sides_share_fields(const Side *old, const Side *new) noexcept nogil:
    """Whether both are leaves of fields as wide, in which one field is one value."""
    cdef uint32_t a = entry_handle(old.entry), b = entry_handle(new.entry)
    return a != 0 and b != 0 and not is_line(a) and (a ^ b) & KVMATTR_TAG == 0 and sides_operate_alike(old, new)


cdef bint fields_diff(const Side *old, const Side *new, uint64_t base, int lo, int hi, DiffSink *sink) noexcept nogil:
    """Two leaves in which one field is one value: a page may differ where its field does."""
    cdef const uint64_t *old_words = leaf_at(old.family, entry_handle(old.entry))
    cdef const uint64_t *new_words = leaf_at(new.family, entry_handle(new.entry))
    cdef int wide = wide_of(entry_handle(old.entry)), i, bit
    cdef int begin = lo << wide, end = hi << wide         # in bits
    cdef uint8_t k = composed_k(old.entry, old.k), x = composed_x(old.entry, old.k, old.x)
    cdef uint64_t mask = kvmattr_field_masks[wide], some = 0, differ, at
    kvmattr_count_pages(old.family, hi - lo)
    # Without a branch for each word: which of them differ is as good as random.
    for i in range(begin >> 6, (end + 63) >> 6):
        some |= <uint64_t>(old_words[i] != new_words[i]) << i
    while some:
        i = kvmattr_first_bit(some)
        some &= some - 1
        differ = old_words[i] ^ new_words[i]
        if i == begin >> 6:
            differ &= <uint64_t>-1 << (begin & 63)
        if i == (end - 1) >> 6:
            differ &= <uint64_t>-1 >> (63 - ((end - 1) & 63))
        while differ:
            bit = kvmattr_first_bit(differ) & -(1 << wide)
            differ &= ~(mask << bit)
            at = base + ((64 * i + bit) >> wide)
            if not diff_add(sink, at, at + 1,
                            (<uint8_t>((old_words[i] >> bit & mask) * kvmattr_field_repeats[wide]) & k) ^ x,
                            (<uint8_t>((new_words[i] >> bit & mask) * kvmattr_field_repeats[wide]) & k) ^ x):
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
    sink.start = 0
    sink.stop = 0
    if start >= stop:
        return
    if start < root_stop(high, stop) and not heights_diff(&high_root, high.level, &low_root, low.level, &rest,
                                                          old_is_high, start, root_stop(high, stop), sink):
        return
    if rest_start(high, start) < stop and not diff_add(sink, rest_start(high, start), stop, old.rest, new.rest):
        return
    if sink.stop > sink.start:
        sink.emit(sink, sink.start, sink.stop, sink.old, sink.new)


cdef bint heights_diff(const Side *high, int level, const Side *low, int low_level, const Side *rest,
                       bint old_is_high, uint64_t lo, uint64_t hi, DiffSink *sink) noexcept nogil:
    """Two roots of different height, on [lo, hi), not empty. The lower root is met on the way down the higher
    one's first entries; beside that way the lower map is uniform: its rest."""
    cdef MetChildren met
    cdef Side child
    cdef uint64_t inner
    if level == low_level:
        if old_is_high:
            return sides_diff(high, low, level, 0, lo, hi, sink)
        return sides_diff(low, high, level, 0, lo, hi, sink)
    inner = level_span(level - 1)
    if side_is_node(high):
        met = side_meets(high, level, lo, hi)
        child = side_child(high, &met, 0)
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
