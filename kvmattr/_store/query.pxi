# Queries: what can be told from V and F is never looked at.
#
# For a question (page & mask) == attributes, an entry answers for all pages below at once where no masked bit
# varies, and denies for all where a masked bit that does not vary differs. Only the rest is walked. V may be
# loose, so it prunes and never decides: what it leaves open is looked at again, without writing.

# One search serves update's "would it change", all, any, find, uniform, run and level.
cdef struct Question:
    uint8_t want            # attributes, within mask
    uint8_t mask
    bint match              # look for a page that matches (True) or for one that does not
    bint backward           # the last such page, not the first

cdef enum:
    NOT_FOUND = -1


cdef inline int64_t entry_search(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k,
                                 uint8_t x, const Question *question) noexcept nogil:
    """The first (or last) page in [lo, hi) of the subtree, not empty, that the question looks for;
    (k, x) is what the entries above do to its values. What V and F answer takes no call."""
    cdef uint8_t varying = entry_varying(e) & k & question.mask
    cdef uint8_t differ = ((entry_first(e) & k) ^ x ^ question.want) & question.mask
    if varying == 0:
        if (differ == 0) != question.match:
            return NOT_FOUND
        return <int64_t>(hi - 1 if question.backward else lo)
    if differ & ~varying:                           # no page matches
        if question.match:
            return NOT_FOUND
        return <int64_t>(hi - 1 if question.backward else lo)
    if lo == 0 and not question.backward and (differ == 0) == question.match:
        return 0                                    # the first page is one
    return below_search(family, e, level, lo, hi, k, x, question)


cdef int64_t below_search(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                          const Question *question) noexcept nogil:
    """The same where the entry itself leaves it open."""
    cdef MetChildren met
    cdef int64_t found
    cdef int i, step
    if level == 2:
        return leaf_search(family, e, lo, hi, k, x, question)
    if not is_node(entry_handle(e)):
        return run_list_search(family, e, lo, hi, k, x, question)
    met = node_meets(family, e, level, lo, hi, k, x)
    i = met.last if question.backward else met.first
    step = -1 if question.backward else 1
    while met.first <= i <= met.last:
        found = entry_search(family, met.entries[i], level - 1, child_lo(&met, i), child_hi(&met, i), met.k, met.x,
                             question)
        if found >= 0:
            return found + <int64_t>child_begin(&met, i)
        i += step
    return NOT_FOUND


cdef void leaf_match(const Family *family, Entry e, uint8_t k, uint8_t x, const Question *question,
                     uint64_t *bits) noexcept nogil:
    """The pages of a block that match, as bits."""
    cdef const uint64_t *words
    cdef uint8_t zero, one
    cdef uint64_t when_one, when_zero
    cdef uint8_t[512] block
    cdef int i
    if entry_handle(e) == 0 or entry_handle(e) & KVMATTR_TAG:
        leaf_decode(family, e, k, x, block)
        kernels.match(block, question.want, question.mask, bits)
        return
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    words = leaf_at(family, entry_handle(e))
    zero = (composed_x(e, k, x) ^ question.want) & question.mask
    one = (composed_x(e, k, x) ^ composed_k(e, k) ^ question.want) & question.mask
    when_zero = <uint64_t>-1 if zero == 0 else 0
    when_one = <uint64_t>-1 if one == 0 else 0
    for i in range(8):
        bits[i] = (words[i] & when_one) | (~words[i] & when_zero)


cdef int64_t leaf_search(const Family *family, Entry e, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                         const Question *question) noexcept nogil:
    cdef uint64_t at = hi - 1 if question.backward else lo
    cdef uint8_t value = (leaf_raw(family, entry_handle(e), <uint32_t>at) & composed_k(e, k)) ^ composed_x(e, k, x)
    if ((value ^ question.want) & question.mask == 0) == question.match:
        return <int64_t>at
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    if is_line(entry_handle(e)):
        return line_search(line_at(family, entry_handle(e)), <int>lo, <int>hi, composed_k(e, k), composed_x(e, k, x),
                           question)
    return fields_search(leaf_at(family, entry_handle(e)), wide_of(entry_handle(e)), <int>lo, <int>hi,
                         composed_k(e, k), composed_x(e, k, x), question)


cdef int64_t line_search(const kvmattr_line *line, int lo, int hi, uint8_t k, uint8_t x,
                         const Question *question) noexcept nogil:
    cdef int first = line_find(line, lo), last = line_find(line, hi - 1)
    cdef int i = last if question.backward else first
    while first <= i <= last:
        if ((((line.values[i] & k) ^ x ^ question.want) & question.mask) == 0) == question.match:
            if question.backward:
                return hi - 1 if i == last else line.starts[i] - 1
            return lo if i == first else line.starts[i - 1]
        i += -1 if question.backward else 1
    return NOT_FOUND


cdef int64_t fields_search(const uint64_t *words, int wide, int lo, int hi, uint8_t k, uint8_t x,
                           const Question *question) noexcept nogil:
    """Word by word, in which a field is 0 where its page matches."""
    cdef int first = lo << wide >> 6, last = ((hi << wide) - 1) >> 6
    cdef int i = last if question.backward else first
    cdef uint8_t told = k & question.mask, wanted = (x ^ question.want) & question.mask
    cdef uint64_t differ, matters = kvmattr_everywhere(kvmattr_fold(wide, told))
    cdef uint64_t value = kvmattr_everywhere(kvmattr_fold(wide, wanted))
    if kvmattr_fold(wide, wanted) & told != wanted:
        return NOT_FOUND            # no field is such: no page matches, and one that does not was looked at
    while first <= i <= last:
        differ = (words[i] ^ value) & matters
        if question.match:          # the lowest bit of the fields that are 0
            differ |= differ >> (4 if wide == 3 else 0)
            differ |= differ >> (2 if wide >= 2 else 0)
            differ |= differ >> (1 if wide >= 1 else 0)
            differ = ~differ & kvmattr_everywhere(<uint8_t>kvmattr_field_repeats[wide])
        if i == first:
            differ &= <uint64_t>-1 << ((lo << wide) & 63)
        if i == last:
            differ &= <uint64_t>-1 >> (63 - (((hi << wide) - 1) & 63))
        if differ:
            return (64 * i + (kvmattr_last_bit(differ) if question.backward else kvmattr_first_bit(differ))) >> wide
        i += -1 if question.backward else 1
    return NOT_FOUND


cdef int64_t run_list_search(const Family *family, Entry e, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                             const Question *question) noexcept nogil:
    cdef MetRuns met = list_meets(family, e, lo, hi, k, x)
    cdef int i = met.last if question.backward else met.first
    while met.first <= i <= met.last:
        if (((met_value(&met, i) ^ question.want) & question.mask) == 0) == question.match:
            return <int64_t>(met_stop(&met, i) - 1 if question.backward else met_start(&met, i))
        i += -1 if question.backward else 1
    return NOT_FOUND


cdef int64_t map_search(const Map *map, uint64_t start, uint64_t stop, const Question *question) noexcept nogil:
    """The first (or last) page in [start, stop) that the question looks for, or NOT_FOUND."""
    cdef uint64_t covered = level_span(map.level)
    cdef bint rest_is_one = (((map.rest ^ question.want) & question.mask) == 0) == question.match
    cdef int64_t found = NOT_FOUND
    if start >= stop:
        return NOT_FOUND
    if question.backward and stop > covered and rest_is_one:
        return <int64_t>(stop - 1)
    if start < covered:
        found = entry_search(map.family, map.root, map.level, start, root_stop(map, stop), 0xff, 0, question)
    if found < 0 and not question.backward and stop > covered and rest_is_one:
        found = <int64_t>rest_start(map, start)
    return found


cdef inline int64_t map_find(const Map *map, uint64_t start, uint64_t stop, uint8_t want, uint8_t mask,
                             bint match) noexcept nogil:
    cdef Question question
    if want & ~mask:                    # a bit that the mask hides is asked for: no page has it
        if match or start >= stop:
            return NOT_FOUND
        return <int64_t>start
    question.want = want
    question.mask = mask
    question.match = match
    question.backward = False
    return map_search(map, start, stop, &question)


cdef inline bint map_would_change(const Map *map, uint64_t start, uint64_t stop, uint8_t k,
                                  uint8_t x) noexcept nogil:
    """Whether (old & k) ^ x differs from old on any page of [start, stop), not empty."""
    cdef uint8_t old
    if stop - start == 1:
        old = map_get(map, start)
        return ((old & k) ^ x) != old
    if k & x:
        return True                     # a toggled bit changes every page
    return map_find(map, start, stop, x, ~k, False) >= 0


cdef int64_t map_uniform(const Map *map, uint64_t start, uint64_t stop) noexcept nogil:
    """The one value of [start, stop), or NOT_FOUND."""
    cdef uint8_t value
    if start >= stop:
        return NOT_FOUND
    value = map_get(map, start)
    if map_find(map, start, stop, value, 0xff, False) >= 0:
        return NOT_FOUND
    return value


cdef void map_run(const Map *map, uint64_t gfn, uint64_t *start, uint64_t *stop) noexcept nogil:
    """The run that holds a page."""
    cdef Question question
    cdef int64_t found
    question.want = map_get(map, gfn)
    question.mask = 0xff
    question.match = False
    question.backward = False
    found = map_search(map, gfn, map.pages, &question)
    stop[0] = map.pages if found < 0 else <uint64_t>found
    question.backward = True
    found = map_search(map, 0, gfn, &question)
    start[0] = <uint64_t>(found + 1)


cdef int map_level(const Map *map, uint64_t gfn) noexcept nogil:
    """The highest level whose block around gfn is uniform and inside the map."""
    cdef uint64_t start, stop, base
    cdef int level = 1
    map_run(map, gfn, &start, &stop)
    while level < MAX_LEVEL:
        base = gfn & ~(level_span(level + 1) - 1)
        if base < start or base + level_span(level + 1) > stop:
            break
        level += 1
    return level


# ---- sums ----

cdef uint64_t entry_count(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k,
                          uint8_t x, const Question *question) noexcept nogil:
    """The number of pages in [lo, hi), not empty, that match."""
    cdef uint8_t varying = entry_varying(e) & k & question.mask
    cdef uint8_t differ = ((entry_first(e) & k) ^ x ^ question.want) & question.mask
    cdef MetChildren met
    cdef MetRuns runs
    cdef uint64_t[8] bits
    cdef uint64_t sum = 0
    cdef int i
    if varying == 0:
        return hi - lo if differ == 0 else 0
    if differ & ~varying:
        return 0
    if level == 2:
        leaf_match(family, e, k, x, question, bits)
        bits_clip(bits, <int>lo, <int>hi)
        return kernels.popcount(bits, 8)
    if not is_node(entry_handle(e)):
        runs = list_meets(family, e, lo, hi, k, x)
        for i in range(runs.first, runs.last + 1):
            if (met_value(&runs, i) ^ question.want) & question.mask == 0:
                sum += met_stop(&runs, i) - met_start(&runs, i)
        return sum
    met = node_meets(family, e, level, lo, hi, k, x)
    if level == 3 and hi - lo == level_span(3) and not KVMATTR_COUNTING_BUILD:
        return kernels.count(family.bias, met.entries, met.k, met.x, question.want, question.mask)
    for i in range(met.first, met.last + 1):
        sum += entry_count(family, met.entries[i], level - 1, child_lo(&met, i), child_hi(&met, i), met.k, met.x,
                           question)
    return sum


cdef inline void bits_clip(uint64_t *bits, int lo, int hi) noexcept nogil:
    """Clear those of a block's 512 bits that are outside [lo, hi), which may be empty."""
    cdef int i
    for i in range(8):
        if 64 * i + 64 <= lo or 64 * i >= hi:
            bits[i] = 0
    if lo < 512:
        bits[lo >> 6] &= <uint64_t>-1 << (lo & 63)
    bits[(hi - 1) >> 6] &= <uint64_t>-1 >> (63 - ((hi - 1) & 63))


cdef uint64_t map_count(const Map *map, uint64_t start, uint64_t stop, uint8_t want,
                        uint8_t mask) noexcept nogil:
    cdef Question question
    cdef uint64_t sum = 0
    if start >= stop or want & ~mask:
        return 0
    question.want = want
    question.mask = mask
    question.match = True
    question.backward = False
    if start < root_stop(map, stop):
        sum = entry_count(map.family, map.root, map.level, start, root_stop(map, stop), 0xff, 0, &question)
    if rest_start(map, start) < stop and (map.rest ^ want) & mask == 0:
        sum += stop - rest_start(map, start)
    return sum


cdef void leaf_values(const Family *family, Entry e, int lo, int hi, uint8_t k, uint8_t x,
                      uint8_t *seen) noexcept nogil:
    """Set seen[v] for the value v of every page [lo, hi) of a mixed block."""
    cdef const kvmattr_line *line
    cdef uint8_t[512] block
    cdef int i, start = 0
    if is_line(entry_handle(e)):
        line = line_at(family, entry_handle(e))
        kvmattr_count_pages(family, hi - lo)
        for i in range(line.count):
            if start < hi and line_stop(line, i) > lo:
                seen[(line.values[i] & composed_k(e, k)) ^ composed_x(e, k, x)] = 1
            start = line_stop(line, i)
    elif wide_of(entry_handle(e)) == 0 and hi - lo == PAGES_PER_BLOCK:
        seen[composed_x(e, k, x)] = 1
        seen[composed_x(e, k, x) ^ composed_k(e, k)] = 1
    else:
        leaf_decode(family, e, k, x, block)
        for i in range(lo, hi):
            seen[block[i]] = 1


cdef inline void entry_values(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                              uint8_t *seen) noexcept nogil:
    """Set seen[v] for the value v of every page in [lo, hi), not empty. What is uniform takes no call."""
    if entry_varying(e) & k == 0:
        seen[(entry_first(e) & k) ^ x] = 1
    else:
        below_values(family, e, level, lo, hi, k, x, seen)


cdef void below_values(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x,
                       uint8_t *seen) noexcept nogil:
    cdef MetChildren met
    cdef MetRuns runs
    cdef int i
    if level == 2:
        leaf_values(family, e, <int>lo, <int>hi, k, x, seen)
        return
    if not is_node(entry_handle(e)):
        runs = list_meets(family, e, lo, hi, k, x)
        for i in range(runs.first, runs.last + 1):
            seen[met_value(&runs, i)] = 1
        return
    met = node_meets(family, e, level, lo, hi, k, x)
    for i in range(met.first, met.last + 1):
        entry_values(family, met.entries[i], level - 1, child_lo(&met, i), child_hi(&met, i), met.k, met.x, seen)


cdef void map_values(const Map *map, uint64_t start, uint64_t stop, uint8_t *seen) noexcept nogil:
    memset(seen, 0, 256)
    if start >= stop:
        return
    if start < root_stop(map, stop):
        entry_values(map.family, map.root, map.level, start, root_stop(map, stop), 0xff, 0, seen)
    if rest_start(map, start) < stop:
        seen[map.rest] = 1


# ---- is there a value that may not be? ----

cdef int entry_refused(const Family *family, Entry e, int level, uint64_t lo, uint64_t hi, uint8_t k,
                       uint8_t x, const uint8_t *refused) noexcept nogil:
    """A value of a page in [lo, hi), not empty, that is refused, or -1.

    The values that F and V leave possible settle most entries without a look below; only where one of them is
    refused do the pages decide.
    """
    cdef MetChildren met
    cdef uint8_t seen[256]
    cdef uint8_t varying = entry_varying(e) & k
    cdef uint8_t first = (entry_first(e) & k) ^ x
    cdef uint8_t some = 0
    cdef int i, found
    while not refused[first ^ some]:
        some = (some - varying) & varying       # the next subset of the bits that vary
        if some == 0:
            return -1
    if varying == 0:
        return first
    if level > 2 and is_node(entry_handle(e)):
        met = node_meets(family, e, level, lo, hi, k, x)
        for i in range(met.first, met.last + 1):
            found = entry_refused(family, met.entries[i], level - 1, child_lo(&met, i), child_hi(&met, i), met.k,
                                  met.x, refused)
            if found >= 0:
                return found
        return -1
    memset(seen, 0, sizeof(seen))
    entry_values(family, e, level, lo, hi, k, x, seen)
    for i in range(256):
        if seen[i] and refused[i]:
            return i
    return -1
