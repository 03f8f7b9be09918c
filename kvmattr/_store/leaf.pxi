# Leaves: how a mixed block of 512 pages is stored.
#
#   fields    64 w bytes     w = 1, 2, 4 or 8 bits a page; the raw value is the field repeated to eight bits
#   run line  64 bytes       up to 21 runs: 20 starts (16 bits), then their values
#
# What a leaf is stands in its tag, the low three bits of its handle: `wide`, the binary logarithm of w, or
# KVMATTR_LINE.
# As ever a page is (raw & k) ^ x. So a leaf of w bits holds a block if no two bits of an attribute that vary apart from
# each other fall on the same bit of the field: two values always fit one bit (then k is what they differ in), the
# mail's four attributes, in all their combinations, fit four. k may be wider than V: bits of the field that nothing
# uses yet belong to attributes not seen yet, whose first page then costs a field and no leaf.
#
# One formula reads a page of fields and one writes it, whatever w is (kernels/contract.h: kvmattr_field_raw,
# kvmattr_field_update). A run line stands where more than two bits would be needed and there are few runs.
#
# To change a page of a line takes 25 times as long as of fields, since its runs have to move. So a line counts its
# turns: the changes of single pages, but for a border between two runs that moves by a page. After more turns than
# there can be runs, pages must have come and gone, and the line becomes fields. Before that it stays a line even where
# two values are left, as the third may come back; a range that is written begins the count anew.
#
# A leaf's V is not 0, and exact in a line and a leaf of one bit. In wider fields it may be loose: a page that takes
# one value after another would else lose and gain a bit of V each time, and a change that gains one is not the write
# of a field alone. It is exact again when a range is written. That a leaf has become uniform is noticed with the page
# by which it did (kvmattr_leaf_agrees), and it is given up; only an operation on the whole block, or above it, that
# takes away all that varied and leaves bits of a loose V, leaves a leaf that is uniform, until its block is written
# again. Fields become narrower only when a range is written, and then where a quarter of their bits will do. Where a
# page's value fits no field of two bits or more, the new fields have at least twice as many: pages that take one
# value after another find a field for each of them soon. A page that alone has its value in a leaf of one bit needs
# no other leaf, but an entry that says which two values the leaf has.

cdef enum:
    LINE_RUNS = KVMATTR_LINE_STARTS + 1
    FEW_RUNS = LINE_RUNS - 8        # for a leaf of fields to become a line: then some pages more make it none again
    MOST_TURNS = LINE_RUNS + 3      # more than pages take that are written once each, in their order
    NO_LEAF = -1                    # a plan for a block that is uniform


cdef inline bint is_line(uint32_t handle) noexcept nogil:
    return handle & KVMATTR_LINE != 0

cdef inline int wide_of(uint32_t handle) noexcept nogil:
    return handle & 3

cdef inline bint has_exact_v(uint32_t handle) noexcept nogil:
    """Whether a leaf is a line or has one bit a page."""
    return is_line(handle) or wide_of(handle) == 0

cdef inline kvmattr_line *line_at(const Family *family, uint32_t handle) noexcept nogil:
    return <kvmattr_line *>leaf_at(family, handle)

cdef inline int line_stop(const kvmattr_line *line, int i) noexcept nogil:
    """Where run i of a line ends, and the next one begins."""
    return line.starts[i] if i < line.count - 1 else PAGES_PER_BLOCK

cdef inline uint8_t leaf_raw(const Family *family, uint32_t handle, uint32_t page) noexcept nogil:
    """The stored value of one page of a block, before the entry's k and x."""
    kvmattr_count_pages(family, 1)
    if is_line(handle):
        return line_raw(family, handle, page)
    return kvmattr_field_raw(leaf_at(family, handle), wide_of(handle), page)


cdef bint fields_agree(const Family *family, Entry e, uint8_t keep) noexcept nogil:
    """Whether all pages of a leaf of fields have one value, in the bits that its entry and `keep` leave of it. Most
    leaves are mixed, and most often their first words tell."""
    cdef uint32_t handle = entry_handle(e)
    cdef int wide = wide_of(handle), i
    cdef const uint64_t *words = leaf_at(family, handle)
    cdef uint64_t first = kvmattr_everywhere(leaf_raw(family, handle, 0))
    cdef uint64_t which = kvmattr_everywhere(kvmattr_fold(wide, entry_k(e) & keep))
    for i in range(8 << wide):
        kvmattr_count_pages(family, 64 >> wide)
        if (words[i] ^ first) & which:
            return False
    return True


# Not inline, so that a look-up in fields saves no registers for it.
cdef uint8_t line_raw(const Family *family, uint32_t handle, uint32_t page) noexcept nogil:
    return kvmattr_line_raw(line_at(family, handle), page)


cdef void leaf_decode(const Family *family, Entry e, uint8_t k, uint8_t x, uint8_t *block) noexcept nogil:
    """The 512 values of a block, the entry's own operation and then (k, x) applied."""
    cdef uint32_t handle = entry_handle(e)
    cdef uint8_t keep = entry_k(e) & k, toggle = (entry_x(e) & k) ^ x
    if handle == 0:
        memset(block, toggle, 512)
        return
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    kernels.spread(leaf_at(family, handle), handle & KVMATTR_TAG, keep, toggle, block)


# ---- encoding ----

# A block's few runs, and one more than a line has room for while it is being changed.
cdef struct BlockRuns:
    int count
    uint16_t[LINE_RUNS + 3] starts      # of each run, the first one's is 0
    uint8_t[LINE_RUNS + 3] values

# A block as it will be stored: decided before anything is allocated or overwritten.
cdef struct Plan:
    int tag                 # of the leaf, or NO_LEAF
    uint8_t varying
    uint8_t k
    BlockRuns runs          # of a line


cdef inline bint apart(const uint8_t *vary, int by) noexcept nogil:
    """Whether some two attributes so many bits from each other vary, and not together (see the kernel `relate`)."""
    return vary[by] & vary[0] & kvmattr_turned(vary[0], by) != 0

cdef inline int narrowest(const uint8_t *vary) noexcept nogil:
    """The `wide` of the narrowest fields for a block of which the kernel `relate` says this."""
    if apart(vary, 4):
        return 3
    if apart(vary, 2):
        return 2
    return 1 if apart(vary, 1) or apart(vary, 3) else 0


cdef inline void runs_relate(const BlockRuns *runs, uint8_t *vary) noexcept nogil:
    """What the kernel `relate` says of a block, from its runs."""
    cdef uint8_t change
    cdef int i, s
    memset(vary, 0, 5)
    for i in range(1, runs.count):
        change = runs.values[i] ^ runs.values[0]
        vary[0] |= change
        for s in range(1, 5):
            vary[s] |= change ^ kvmattr_turned(change, s)


cdef inline void plan_tag(Plan *plan, int runs, const uint8_t *vary, int least) noexcept nogil:
    """The tag, V and k of a block, with fields no narrower than `least` says. A line is as small as the narrowest leaf,
    but slower."""
    cdef int wide = narrowest(vary)
    cdef bint as_line = wide > 1 and runs <= LINE_RUNS
    wide = wide if wide > least else least
    plan.varying = vary[0]
    # Bits of the field that no attribute uses yet are kept for those of the same number.
    plan.k = plan.varying | (<uint8_t>kvmattr_field_masks[wide] & ~kvmattr_fold(wide, plan.varying))
    plan.tag = wide
    if as_line:
        plan.tag = KVMATTR_LINE
        plan.k = 0xff


cdef inline void leaf_plan(const uint8_t *block, Plan *plan, int least) noexcept nogil:
    """Choose the encoding of a block, as plan_tag."""
    cdef uint64_t[8] changes
    cdef uint8_t[5] vary
    cdef int runs, i, at
    kernels.changes(block, changes)
    runs = <int>kernels.popcount(changes, 8) + 1
    if runs == 1:
        plan.tag = NO_LEAF
        plan.varying = 0
        return
    if runs > LINE_RUNS:
        kernels.relate(block, vary)
    else:
        plan.runs.count = 1
        plan.runs.starts[0] = 0
        plan.runs.values[0] = block[0]
        for i in range(8):
            while changes[i]:
                at = 64 * i + kvmattr_first_bit(changes[i])
                changes[i] &= changes[i] - 1
                plan.runs.starts[plan.runs.count] = <uint16_t>at
                plan.runs.values[plan.runs.count] = block[at]
                plan.runs.count += 1
        runs_relate(&plan.runs, vary)
    plan_tag(plan, runs, vary, least)


cdef inline void line_fill(kvmattr_line *line, const BlockRuns *runs) noexcept nogil:
    cdef int i
    for i in range(KVMATTR_LINE_STARTS):
        line.starts[i] = <int16_t>runs.starts[i + 1] if i + 1 < runs.count else KVMATTR_NO_START
    memcpy(line.values, runs.values, runs.count)
    line.count = <uint8_t>runs.count
    line.turns = 0


cdef inline bint field_fits(Entry e, uint8_t value) noexcept nogil:
    """Whether a leaf of fields has one for a value."""
    cdef uint8_t turned = value ^ entry_x(e)
    return kvmattr_fold(wide_of(entry_handle(e)), turned) & entry_k(e) == turned


cdef inline uint32_t leaf_instead(Family *family, uint32_t old, int tag) noexcept nogil:
    """A leaf of ours, to be written, in place of `old` (0 for none), whose reference passes to this call: the same
    record if it is ours alone and of this size; a line has the size of a leaf of 1 bit."""
    if old and leaf_references(family, old)[0] == 1:
        if old & KVMATTR_TAG == <uint32_t>tag:
            return old
        family.counters.leaf_conversions += 1
        if old & 3 == <uint32_t>tag & 3:
            count_leaf(family, old, -1)
            old = old & ~<uint32_t>KVMATTR_TAG | <uint32_t>tag
            count_leaf(family, old, 1)
            return old
    release(family, old)
    return leaf_new(family, tag)


cdef Entry leaf_store(Family *family, uint32_t old, const uint8_t *block, int least) noexcept nogil:
    """The entry for a block of 512 values, in place of the leaf `old`, as leaf_instead; `least` as plan_tag."""
    cdef Plan plan
    cdef uint32_t handle
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    leaf_plan(block, &plan, least)
    if plan.tag == NO_LEAF:
        release(family, old)
        return entry_uniform(block[0])
    handle = leaf_instead(family, old, plan.tag)
    if plan.tag == KVMATTR_LINE:
        line_fill(line_at(family, handle), &plan.runs)
        return entry_make(handle, 0xff, 0, plan.varying, block[0])
    kernels.pack(block, plan.tag, block[0], leaf_at(family, handle))
    return entry_make(handle, plan.k, block[0], plan.varying, block[0])


# ---- an update of a part of a block ----

cdef inline uint32_t leaf_own(Family *family, uint32_t handle) noexcept nogil:
    """A leaf with the same content that is ours alone: itself, or a copy."""
    cdef uint32_t copy
    if leaf_references(family, handle)[0] == 1:
        return handle
    copy = leaf_new(family, handle & KVMATTR_TAG)
    memcpy(leaf_at(family, copy), leaf_at(family, handle), 64 << wide_of(handle))
    release(family, handle)
    return copy


cdef inline void leaf_begin(Family *family, Entry *slot, int page, uint8_t value) noexcept nogil:
    """A uniform block, on which nothing is pending, becomes a leaf by one page that gets another value."""
    cdef Entry e = slot[0]
    cdef uint8_t varying = value ^ entry_first(e)
    cdef uint32_t handle = leaf_new(family, 0)
    cdef uint64_t *words = leaf_at(family, handle)
    memset(words, 0, 64)
    words[page >> 6] = <uint64_t>1 << (page & 63)
    slot[0] = entry_make(handle, varying, entry_x(e), varying, value if page == 0 else entry_first(e))


cdef bint fields_update(Family *family, Entry *slot, int lo, int hi, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi) of a uniform block or a leaf of fields, field by field, where every new
    value fits; False where one does not, and nothing is done."""
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef uint8_t keep = entry_k(e), toggle = entry_x(e), clear, flip
    cdef uint64_t *words
    cdef uint64_t within, clears, flips
    cdef int wide = wide_of(handle), first, last, i
    if handle == 0:
        keep = (toggle & k) ^ x ^ toggle        # of the new leaf: what its two values differ in
        if keep == 0:
            return True
        clear = flip = 0xff
        handle = leaf_new(family, 0)
        memset(leaf_at(family, handle), 0, 64)
    else:
        if not kvmattr_field_update(wide, keep, toggle, k, x, &clear, &flip):
            return False
        handle = leaf_own(family, handle)
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    words = leaf_at(family, handle)
    clears = kvmattr_everywhere(clear)
    flips = kvmattr_everywhere(flip)
    first = lo << wide >> 6
    last = ((hi << wide) - 1) >> 6
    for i in range(first, last + 1):
        within = <uint64_t>-1
        if i == first:
            within &= <uint64_t>-1 << ((lo << wide) & 63)
        if i == last:
            within &= <uint64_t>-1 >> (63 - (((hi << wide) - 1) & 63))
        words[i] = (words[i] & ~(clears & within)) ^ (flips & within)
    slot[0] = entry_make(handle, keep, toggle, 0, 0)
    fields_settle(family, slot)
    return True


cdef inline void fields_settle(Family *family, Entry *slot) noexcept nogil:
    """V and F of a leaf of fields of ours anew, after it was written. It may have become uniform."""
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef const uint64_t *words = leaf_at(family, handle)
    cdef uint8_t k = entry_k(e)
    cdef uint8_t varying = <uint8_t>kvmattr_fields_vary(words, wide_of(handle)) & k
    cdef uint8_t first = (kvmattr_field_raw(words, wide_of(handle), 0) & k) ^ entry_x(e)
    if varying == 0:
        release(family, handle)
        slot[0] = entry_uniform(first)
    else:
        slot[0] = entry_make(handle, k, entry_x(e), varying, first)


cdef inline bint fields_too_wide(Entry e) noexcept nogil:
    """Whether a quarter of a leaf's bits may do. Where half of them would, the next range might want all again."""
    cdef uint32_t handle = entry_handle(e)
    cdef int wide = wide_of(handle)
    cdef uint64_t varying
    if handle == 0 or is_line(handle) or wide < 2:
        return False
    varying = kvmattr_fold(wide, entry_varying(e)) & kvmattr_field_masks[wide]
    varying &= varying - 1              # less one bit
    if wide == 3:
        varying &= varying - 1
    return varying == 0


cdef inline uint8_t runs_varying(const uint8_t *values, int count) noexcept nogil:
    """The bits by which some two of the values differ."""
    cdef uint64_t first = kvmattr_everywhere(values[0]), any = 0
    cdef uint8_t varying = 0
    cdef int i
    if count < 8:
        for i in range(1, count):
            varying |= values[i] ^ values[0]
        return varying
    for i in range(0, count - 7, 8):
        any |= kvmattr_load64(values + i) ^ first
    any |= kvmattr_load64(values + count - 8) ^ first       # the last eight, some of them once more
    any |= any >> 32
    any |= any >> 16
    return <uint8_t>(any | any >> 8)


# What becomes of a line or a run list (runlist.pxi) when some of its pages get one value: runs go, others come.

cdef inline void splice_add(Splice *splice, uint64_t start, uint8_t value) noexcept nogil:
    splice.starts[splice.added] = start
    splice.values[splice.added] = value
    splice.added += 1


cdef inline void splice_plan(Splice *splice, const uint8_t *values, int count, int first, int last, bint begins,
                             bint ends, uint64_t lo, uint64_t hi, uint8_t value) noexcept nogil:
    """The pages [lo, hi) get one value. They lie in the runs first .. last, and begin or end where these do if it is
    said so."""
    cdef uint8_t last_value = values[last]
    splice.added = 0
    splice.at = first if begins else first + 1
    splice.gone = last + 1 - splice.at
    if splice.at == 0 or values[splice.at - 1] != value:
        splice_add(splice, lo, value)
    if ends:
        splice.gone += last + 1 < count and values[last + 1] == value
    elif last_value != value:
        splice_add(splice, hi, last_value)


cdef inline int line_find(const kvmattr_line *line, int page) noexcept nogil:
    """The number of the run that holds a page."""
    return kvmattr_line_run(line, page)


cdef bint line_write(Family *family, Entry *slot, int lo, int hi, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi) of a run line, if that gives all of them one value and it stays a line:
    runs are taken out and put in where they stand. False, with nothing done, where that is not so."""
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef kvmattr_line *line = line_at(family, handle)
    cdef Splice splice
    cdef int first = line_find(line, lo), last = first, count = line.count, now, tail, skipped, at, i
    cdef uint8_t varying, turns = line.turns
    cdef bint begins, ends
    if hi - lo > 1:
        last = line_find(line, hi - 1)
    if entry_k(e) != 0xff or entry_x(e) != 0 or (last != first and k):
        return False
    begins = lo == (line.starts[first - 1] if first else 0)
    ends = hi == line_stop(line, last)
    splice_plan(&splice, line.values, count, first, last, begins, ends, lo, hi, (line.values[first] & k) ^ x)
    now = count + splice.added - splice.gone
    if hi - lo > 1:
        turns = 0
    elif (now != count or begins == ends) and turns < MOST_TURNS:
        turns += 1
    if now < (2 if turns else 3) or now > LINE_RUNS:
        return False
    handle = leaf_own(family, handle)
    line = line_at(family, handle)
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    tail = count - splice.at - splice.gone
    skipped = splice.at == 0        # the first run has no start of its own
    at = splice.at - 1 + skipped
    memmove(&line.starts[at + splice.added - skipped], &line.starts[at + splice.gone - skipped], 2 * tail)
    memmove(&line.values[splice.at + splice.added], &line.values[splice.at + splice.gone], tail)
    for i in range(splice.added):
        if i >= skipped:
            line.starts[at + i - skipped] = <int16_t>splice.starts[i]
        line.values[splice.at + i] = splice.values[i]
    for i in range(now - 1, count - 1):
        line.starts[i] = KVMATTR_NO_START
    line.count = <uint8_t>now
    line.turns = turns
    varying = runs_varying(line.values, now)
    slot[0] = entry_make(handle, 0xff, 0, varying, line.values[0])
    if turns == MOST_TURNS or (turns == 0 and two_values(line, varying)):
        line_leave(family, slot, turns)
    return True


cdef inline bint two_values(const kvmattr_line *line, uint8_t varying) noexcept nogil:
    """Whether a line has two values, as far as one or two bits that vary tell at once: fields of one bit hold it in as
    many bytes and are faster. Fields of two bits would be larger, and the next range might want a line again."""
    cdef uint8_t less = varying & (varying - 1), differs
    cdef int i
    if less & (less - 1):
        return False
    if less:
        for i in range(1, line.count):
            differs = line.values[i] ^ line.values[0]
            if differs and differs != varying:
                return False
    return True


cdef void line_leave(Family *family, Entry *slot, int turns) noexcept nogil:
    """Fields instead of a line that may do with one bit, or that had most turns: these once they are so wide that other
    values of the kind it has will fit, too."""
    cdef Plan plan
    cdef uint8_t[5] vary
    line_load(family, slot[0], &plan.runs)
    runs_relate(&plan.runs, vary)
    if turns == 0 or narrowest(vary) > 1:
        runs_store(family, slot, &plan, turns == 0, 0)


cdef void line_load(const Family *family, Entry e, BlockRuns *runs) noexcept nogil:
    """The runs of a line, the entry's operation applied, neighbours merged."""
    cdef const kvmattr_line *line = line_at(family, entry_handle(e))
    cdef int i
    runs.count = 0
    for i in range(line.count):
        block_runs_append(runs, line.starts[i - 1] if i else 0, (line.values[i] & entry_k(e)) ^ entry_x(e))


cdef inline void block_runs_append(BlockRuns *runs, int start, uint8_t value) noexcept nogil:
    if runs.count and runs.values[runs.count - 1] == value:
        return
    runs.starts[runs.count] = <uint16_t>start
    runs.values[runs.count] = value
    runs.count += 1


cdef bint block_runs(const Family *family, Entry e, int most, BlockRuns *runs) noexcept nogil:
    """The runs of a block, the entry's operation applied. False where a leaf of fields has more than `most`: most have
    very many, which their first words tell."""
    cdef uint32_t handle = entry_handle(e)
    cdef int wide = wide_of(handle), bits = 1 << wide, at, i
    cdef uint8_t k = entry_k(e), x = entry_x(e)
    cdef const uint64_t *words = leaf_at(family, handle)
    cdef uint64_t mask = kvmattr_field_masks[wide], differ, word
    cdef uint64_t before = words[0] << (64 - bits)
    cdef uint64_t told = kvmattr_everywhere(kvmattr_fold(wide, k))      # the bits of fields that a value shows
    if is_line(handle):
        line_load(family, e, runs)
        return True
    runs.count = 1
    runs.starts[0] = 0
    runs.values[0] = entry_first(e)
    for i in range(8 << wide):
        word = words[i]
        differ = (word ^ (word << bits | before >> (64 - bits))) & told
        before = word
        while differ:
            if runs.count == most:
                return False
            at = kvmattr_first_bit(differ) & -bits
            differ &= ~(mask << at)
            runs.starts[runs.count] = <uint16_t>((64 * i + at) >> wide)
            runs.values[runs.count] = (<uint8_t>((word >> at & mask) * kvmattr_field_repeats[wide]) & k) ^ x
            runs.count += 1
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    return True


cdef inline void block_runs_update(const BlockRuns *old, int lo, int hi, uint8_t k, uint8_t x,
                                   BlockRuns *runs) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi): at most two runs more."""
    cdef int i, start, stop
    cdef uint8_t value
    runs.count = 0
    for i in range(old.count):
        start = old.starts[i]
        stop = old.starts[i + 1] if i + 1 < old.count else PAGES_PER_BLOCK
        value = old.values[i]
        if start < lo:
            block_runs_append(runs, start, value)
        if stop > lo and start < hi:
            block_runs_append(runs, start if start > lo else lo, (value & k) ^ x)
        if stop > hi:
            block_runs_append(runs, start if start > hi else hi, value)


cdef inline void runs_pack(const BlockRuns *runs, int wide, uint64_t *words) noexcept nogil:
    """The fields of a block of runs, which must fit them: what the kernel `pack` makes of its pages."""
    cdef uint64_t field, before
    cdef int i, j, at, stop
    for i in range(runs.count):
        field = kvmattr_everywhere(kvmattr_fold(wide, runs.values[i] ^ runs.values[0]))
        at = runs.starts[i] << wide
        before = (<uint64_t>1 << (at & 63)) - 1
        words[at >> 6] = (words[at >> 6] & before) | (field & ~before)
        stop = ((runs.starts[i + 1] if i + 1 < runs.count else PAGES_PER_BLOCK) << wide) + 63
        for j in range((at >> 6) + 1, stop >> 6):
            words[j] = field


cdef void runs_store(Family *family, Entry *slot, Plan *plan, bint as_line, int least) noexcept nogil:
    """The block at *slot becomes one of the plan's runs, of which a line has room for all, if it may be one; `least` as
    plan_tag."""
    cdef const BlockRuns *runs = &plan.runs
    cdef uint32_t handle = entry_handle(slot[0])
    cdef uint8_t[5] vary
    if runs.count == 1:
        release(family, handle)
        slot[0] = entry_uniform(runs.values[0])
        return
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    runs_relate(runs, vary)
    plan_tag(plan, runs.count if as_line else PAGES_PER_BLOCK, vary, least)
    handle = leaf_instead(family, handle, plan.tag)
    if plan.tag == KVMATTR_LINE:
        line_fill(line_at(family, handle), runs)
        slot[0] = entry_make(handle, 0xff, 0, plan.varying, runs.values[0])
        return
    runs_pack(runs, plan.tag, leaf_at(family, handle))
    slot[0] = entry_make(handle, plan.k, runs.values[0], plan.varying, runs.values[0])


cdef inline bint page_is_alone(const Family *family, uint32_t handle, uint32_t page) noexcept nogil:
    """Whether no other page has a page's value in a leaf of one bit."""
    cdef const uint64_t *words = leaf_at(family, handle)
    return kernels.popcount(words, 8) == (1 if words[page >> 6] >> (page & 63) & 1 else PAGES_PER_BLOCK - 1)


cdef inline Entry lone_page_recoded(const Family *family, Entry e, uint32_t page, uint8_t value) noexcept nogil:
    """The entry after such a page got a value that the leaf has no field for: the leaf, which stays as it is, is that
    of two other values then."""
    cdef bint one = leaf_at(family, entry_handle(e))[page >> 6] >> (page & 63) & 1
    cdef uint8_t others = entry_x(e) ^ (0 if one else entry_k(e))
    return entry_make(entry_handle(e), value ^ others, others if one else value, value ^ others,
                      value if page == 0 else entry_first(e))


cdef void leaf_update(Family *family, Entry *slot, int lo, int hi, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi), not all, of a block."""
    cdef uint8_t[512] block
    cdef BlockRuns old
    cdef Plan plan
    cdef bint too_wide
    cdef int least = 0
    if is_line(entry_handle(slot[0])):
        if line_write(family, slot, lo, hi, k, x):
            return
    elif fields_update(family, slot, lo, hi, k, x):
        too_wide = fields_too_wide(slot[0])
        if (too_wide or wide_of(entry_handle(slot[0])) > 1) and block_runs(family, slot[0], FEW_RUNS, &plan.runs):
            runs_store(family, slot, &plan, True, 0)
        elif too_wide:
            leaf_decode(family, slot[0], 0xff, 0, block)
            slot[0] = leaf_store(family, entry_handle(slot[0]), block, 0)
        return
    elif hi - lo == 1:
        least = wide_of(entry_handle(slot[0]))
        least += 0 < least < 3
    if block_runs(family, slot[0], LINE_RUNS, &old):
        block_runs_update(&old, lo, hi, k, x, &plan.runs)
        if plan.runs.count <= LINE_RUNS:
            runs_store(family, slot, &plan, True, least)
            return
    leaf_decode(family, slot[0], 0xff, 0, block)
    kernels.affine(block + lo, hi - lo, k, x)
    slot[0] = leaf_store(family, entry_handle(slot[0]), block, least)
