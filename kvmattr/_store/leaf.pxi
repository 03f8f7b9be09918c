# Leaves: how a mixed block of 512 pages is stored.
#
#   bitmap    64 bytes       two values: the entry holds them (x where the bit is 0, k ^ x where it is 1)
#   palette   144 bytes      three or four values: two planes of bits, then the values
#   runs      4 + 3n bytes   n runs: n - 1 starts (16 bits), then n values; while it is the smallest
#   bytes     528 bytes      anything
#
# Every leaf's V is exact and not 0: a block that becomes uniform is never kept as a leaf. All encodings go
# through leaf_decode() and leaf_store(). Beside these two, reading one page knows them apart (leaf_raw), and so do the
# two short ways of changing a part of a block: by its bits where it keeps to two values (bits_update), and one page of
# any other leaf in place (leaf_change).

from libc.string cimport memcmp

cdef enum CodedKind:
    CODED_PALETTE = 1
    CODED_RUNS = 2
    CODED_BYTES = 3
    CODED_RUN_LIST = 4              # not a leaf: stands in place of a node (runlist.pxi)

cdef enum:
    PALETTE_BYTES = 8 + 128 + 4
    BYTES_BYTES = 8 + 512
    LEAF_RUNS = 40                  # more than that and a search costs more than the bytes are worth
    CHANGES_IN_PLACE = 16           # pages changed one by one before a block's encoding is chosen anew


cdef inline int run_leaf_bytes(int runs) noexcept nogil:
    return <int>sizeof(Record) - 2 + 3 * runs - 2

cdef inline uint8_t leaf_raw(const Family *family, uint32_t handle, uint32_t page) noexcept nogil:
    """The stored value of one page of a block, before the entry's k and x."""
    kvmattr_count_pages(family, 1)
    if is_coded(handle):
        return coded_raw(family, handle, page)
    return <uint8_t>(0 - (kvmattr_foreseen(family.bias, handle)[page >> 6] >> (page & 63) & 1))


# Not inline, so that a look-up in a bitmap leaf saves no registers for it.
cdef uint8_t coded_raw(const Family *family, uint32_t handle, uint32_t page) noexcept nogil:
    cdef const Record *record = <const Record *>address_of(family, handle)
    cdef const uint8_t *payload = <const uint8_t *>record + sizeof(Record)
    cdef const uint64_t *words
    cdef const uint16_t *starts
    cdef int code, low, high, middle
    if record_kind(record) == CODED_BYTES:
        return payload[page]
    if record_kind(record) == CODED_PALETTE:
        words = <const uint64_t *>payload
        code = (words[page >> 6] >> (page & 63) & 1) | (words[8 + (page >> 6)] >> (page & 63) & 1) << 1
        return payload[128 + code]
    starts = <const uint16_t *>record.starts
    low = 0
    high = record.count - 1         # the number of starts that are <= page gives the run
    while low < high:
        middle = (low + high) >> 1
        if starts[middle] <= page:
            low = middle + 1
        else:
            high = middle
    return (<const uint8_t *>(starts + record.count - 1))[low]


cdef void leaf_decode(const Family *family, Entry e, uint8_t k, uint8_t x, uint8_t *block) noexcept nogil:
    """The 512 values of a block, the entry's own operation and then (k, x) applied."""
    cdef uint32_t handle = entry_handle(e)
    cdef const uint8_t *payload
    cdef const uint16_t *starts
    cdef const Record *record
    cdef uint8_t keep = entry_k(e) & k, toggle = (entry_x(e) & k) ^ x
    cdef uint8_t[4] values
    cdef int i, stop, start = 0
    if handle == 0:
        memset(block, toggle, 512)
        return
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    if not is_coded(handle):
        kernels.expand(<const uint64_t *>address_of(family, handle), keep, toggle, block)
        return
    record = <const Record *>address_of(family, handle)
    payload = <const uint8_t *>record + sizeof(Record)
    if record_kind(record) == CODED_BYTES:
        memcpy(block, payload, 512)
        kernels.affine(block, 512, keep, toggle)
    elif record_kind(record) == CODED_PALETTE:
        for i in range(4):
            values[i] = (payload[128 + i] & keep) ^ toggle
        kernels.palette(<const uint64_t *>payload, values, block)
    else:
        starts = <const uint16_t *>record.starts
        payload = <const uint8_t *>(starts + record.count - 1)
        for i in range(record.count):
            stop = starts[i] if i < record.count - 1 else 512
            memset(block + start, (payload[i] & keep) ^ toggle, stop - start)
            start = stop


# ---- encoding ----

# A block as it will be stored: decided before anything is allocated or overwritten.
cdef struct Plan:
    int kind                # 0: uniform, -1: bitmap, else CodedKind
    int size_class
    int count               # values of a palette, runs of a run leaf
    uint8_t varying
    uint8_t[4] values
    uint64_t[8] changes     # pages that differ from the page before them
    uint64_t[4][8] bits     # pages that have values[i]; bits[0] is filled for a palette only


cdef inline int leaf_values(const uint8_t *block, Plan *plan) noexcept nogil:
    """The first distinct values of a block of few runs, up to three, in order, and V of all: from where runs begin."""
    cdef int i, at, found = 1
    cdef uint8_t value
    cdef uint64_t word
    plan.values[0] = plan.values[1] = block[0]
    plan.varying = 0
    for i in range(8):
        word = plan.changes[i]
        while word:
            at = 64 * i + kvmattr_first_bit(word)
            word &= word - 1
            value = block[at]
            plan.varying |= value ^ block[0]
            if value != plan.values[0] and value != plan.values[1]:
                if found == 1:
                    plan.values[1] = value
                    found = 2
                else:
                    found = 3
    return found


cdef inline int leaf_peel(const uint8_t *block, Plan *plan) noexcept nogil:
    """The distinct values of a block and the pages that have each: up to four, 5 stands for more."""
    cdef uint64_t[8] seen
    cdef int i, found = 0
    memset(seen, 0, sizeof(seen))
    # One value at a time: the first page that no value so far explains gives the next one.
    while True:
        i = 0
        while i < 8 and seen[i] == <uint64_t>-1:
            i += 1
        if i == 8:
            return found
        if found == 4:
            return 5
        plan.values[found] = block[64 * i + kvmattr_first_bit(~seen[i])]
        kernels.match(block, plan.values[found], 0xff, plan.bits[found])
        for i in range(8):
            seen[i] |= plan.bits[found][i]
        found += 1


cdef inline void leaf_plan(const uint8_t *block, Plan *plan) noexcept nogil:
    """Choose the smallest encoding of a block. Up to LEAF_RUNS runs of three and more values are smaller as a
    run leaf than in any other encoding."""
    cdef int runs, found
    kernels.changes(block, plan.changes)
    runs = <int>kernels.popcount(plan.changes, 8) + 1
    if runs == 1:
        plan.kind = 0
        plan.varying = 0
        return
    if runs <= LEAF_RUNS:
        found = leaf_values(block, plan)
        if found == 2:
            kernels.match(block, plan.values[1], 0xff, plan.bits[1])
    else:
        found = leaf_peel(block, plan)
    if found == 2:
        plan.kind = -1
        plan.size_class = BITMAP_CLASS
        plan.varying = plan.values[0] ^ plan.values[1]
    elif runs <= LEAF_RUNS:
        plan.kind = CODED_RUNS
        plan.count = runs
        plan.size_class = class_of_units[(run_leaf_bytes(runs) + 15) // 16]
    else:
        plan.varying = kernels.varying(block)
        plan.count = found
        if found <= 4:
            plan.kind = CODED_PALETTE
            plan.size_class = class_of_units[(PALETTE_BYTES + 15) // 16]
        else:
            plan.kind = CODED_BYTES
            plan.size_class = class_of_units[(BYTES_BYTES + 15) // 16]


cdef void leaf_fill(const Family *family, uint32_t handle, const uint8_t *block,
                    const Plan *plan) noexcept nogil:
    """Write a planned block into its record."""
    cdef uint64_t *words
    cdef uint8_t *payload
    cdef uint16_t *starts
    cdef Record *record
    cdef uint64_t word
    cdef int i, run = 0
    if plan.kind == -1:
        memcpy(address_of(family, handle), plan.bits[1], 64)
        return
    record = <Record *>address_of(family, handle)
    record.count = <uint8_t>plan.count
    record.starts[0] = 0            # of a palette and of bytes: the changes in place since then
    payload = <uint8_t *>record + sizeof(Record)
    if plan.kind == CODED_BYTES:
        memcpy(payload, block, 512)
    elif plan.kind == CODED_PALETTE:
        words = <uint64_t *>payload
        for i in range(8):
            words[i] = plan.bits[1][i] | (plan.bits[3][i] if plan.count == 4 else 0)
            words[8 + i] = plan.bits[2][i] | (plan.bits[3][i] if plan.count == 4 else 0)
        for i in range(4):
            payload[128 + i] = plan.values[i if i < plan.count else 0]
    else:
        starts = <uint16_t *>record.starts
        payload = <uint8_t *>(starts + plan.count - 1)
        payload[0] = block[0]
        for i in range(8):
            word = plan.changes[i]
            while word:
                starts[run] = <uint16_t>(64 * i + kvmattr_first_bit(word))
                word &= word - 1
                payload[run + 1] = block[starts[run]]
                run += 1


cdef inline Entry leaf_entry(uint32_t handle, const uint8_t *block, const Plan *plan) noexcept nogil:
    if plan.kind == 0:
        return entry_uniform(block[0])
    if plan.kind == -1:
        return entry_make(handle, plan.varying, plan.values[0], plan.varying, block[0])
    return entry_make(handle, 0xff, 0, plan.varying, block[0])


cdef Entry leaf_store(Family *family, uint32_t old, const uint8_t *block) noexcept nogil:
    """The entry for a block of 512 values, in place of the leaf `old` (0 for none), whose reference passes to
    this call: its record is used again if it is ours alone and has the right size."""
    cdef Plan plan
    cdef uint32_t handle = 0
    cdef bint reuse
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    leaf_plan(block, &plan)
    if plan.kind == 0:
        release(family, old)
        return entry_uniform(block[0])
    reuse = False
    if old and reference_count(family, old)[0] == 1:
        if is_coded(old):
            reuse = plan.kind > 0 and (<Record *>address_of(family, old)).coding == (plan.kind << 5
                                                                                     | plan.size_class)
        else:
            reuse = plan.kind == -1
        if not reuse:
            family.counters.leaf_conversions += 1
    if reuse:
        handle = old
    else:
        release(family, old)
        handle = leaf_new(family, plan.size_class, plan.kind)
    leaf_fill(family, handle, block, &plan)
    return leaf_entry(handle, block, &plan)


# ---- an update of a part of a block ----

cdef bint bits_update(Family *family, Entry *slot, int lo, int hi, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi) of a uniform block or bitmap leaf, bit by bit, where that brings no
    third value; False where it does (or might), and nothing is done."""
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef uint8_t zero = entry_x(e), one = zero ^ entry_k(e)         # the values of a bit
    cdef uint8_t new_zero = (zero & k) ^ x, new_one = (one & k) ^ x
    cdef uint64_t[8] words
    cdef uint64_t keep, toggle, within
    cdef int i
    if is_coded(handle):
        return False
    if handle == 0:
        one = new_zero
        memset(words, 0, sizeof(words))
    else:
        if (new_zero != zero and new_zero != one) or (new_one != zero and new_one != one):
            return False
        memcpy(words, address_of(family, handle), sizeof(words))
    kvmattr_count_pages(family, PAGES_PER_BLOCK)
    # What a bit becomes: (bit & keep) ^ toggle.
    keep = <uint64_t>-1 if new_zero != new_one else 0
    toggle = <uint64_t>-1 if new_zero != zero else 0
    for i in range(lo >> 6, ((hi - 1) >> 6) + 1):
        within = <uint64_t>-1
        if i == lo >> 6:
            within &= <uint64_t>-1 << (lo & 63)
        if i == (hi - 1) >> 6:
            within &= <uint64_t>-1 >> (63 - ((hi - 1) & 63))
        words[i] ^= (words[i] ^ ((words[i] & keep) ^ toggle)) & within
    if words[0] + 1 <= 1 and words_uniform(words, 0, words[0]):
        release(family, handle)
        slot[0] = entry_uniform(one if words[0] else zero)
        return True
    if handle == 0 or reference_count(family, handle)[0] != 1:
        release(family, handle)
        handle = leaf_new(family, BITMAP_CLASS, 0)
    memcpy(address_of(family, handle), words, sizeof(words))
    slot[0] = entry_make(handle, zero ^ one, zero, zero ^ one, one if words[0] & 1 else zero)
    return True


cdef inline bint words_uniform(const uint64_t *words, int except_at, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        if i != except_at and words[i] != value:
            return False
    return True


cdef void leaf_update(Family *family, Entry *slot, int lo, int hi, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on the pages [lo, hi), not all, of a block."""
    cdef uint8_t[512] block
    cdef Entry e = slot[0]
    if bits_update(family, slot, lo, hi, k, x):
        return
    leaf_decode(family, e, 0xff, 0, block)
    kernels.affine(block + lo, hi - lo, k, x)
    slot[0] = leaf_store(family, entry_handle(e), block)


# ---- an update of one page of a coded leaf, in place ----

cdef bint leaf_change(Family *family, Entry *slot, int page, uint8_t raw) noexcept nogil:
    """Give one page, not the first, of a coded leaf of ours another stored value, where its encoding has room for
    it and stays the one to choose as far as can be told at once; else False, and nothing is done."""
    cdef Record *record = <Record *>address_of(family, entry_handle(slot[0]))
    cdef uint8_t varying = 0
    kvmattr_count_pages(family, 1)
    if record_kind(record) == CODED_RUNS:
        return run_leaf_change(family, slot, page, raw)
    if record.starts[0] == CHANGES_IN_PLACE:
        return False
    if record_kind(record) == CODED_BYTES:
        varying = bytes_change(<uint8_t *>record + sizeof(Record), page, raw)
    else:
        varying = palette_change(record, page, raw)
    if varying == 0:
        return False
    record.starts[0] += 1
    slot[0] = (slot[0] & ~(<uint64_t>0xff << 48)) | <uint64_t>varying << 48
    return True


cdef inline uint8_t bytes_change(uint8_t *payload, int page, uint8_t raw) noexcept nogil:
    """The bits that vary afterwards; 0 if the old value is gone with this page, since fewer values may have a
    smaller encoding: then nothing is done."""
    cdef uint8_t old = payload[page]
    cdef uint64_t[8] same
    cdef uint64_t any_left = 0
    cdef int i
    payload[page] = raw
    kernels.match(payload, old, 0xff, same)
    for i in range(8):
        any_left |= same[i]
    if any_left == 0:
        payload[page] = old
        return 0
    return kernels.varying(payload)


cdef inline uint8_t palette_change(Record *record, int page, uint8_t raw) noexcept nogil:
    """The same for a palette: 0 if it has no room for the value, or if only two values are left."""
    cdef uint64_t *low = <uint64_t *>(<uint8_t *>record + sizeof(Record))
    cdef uint64_t *high = low + 8
    cdef uint8_t *values = <uint8_t *>(low + 16)
    cdef uint64_t bit = <uint64_t>1 << (page & 63), low_word, high_word
    cdef uint64_t[4] seen
    cdef uint8_t varying = 0
    cdef int i, code = 0, first, left = 0, at = page >> 6
    while code < record.count and values[code] != raw:
        code += 1
    if code == 4:
        return 0
    low_word = low[at]
    high_word = high[at]
    low[at] = (low_word & ~bit) | (bit if code & 1 else 0)
    high[at] = (high_word & ~bit) | (bit if code & 2 else 0)
    memset(seen, 0, sizeof(seen))
    for i in range(8):
        seen[0] |= ~low[i] & ~high[i]
        seen[1] |= low[i] & ~high[i]
        seen[2] |= ~low[i] & high[i]
        seen[3] |= low[i] & high[i]
    for i in range(4):
        left += seen[i] != 0
    if left < 3:
        low[at] = low_word
        high[at] = high_word
        return 0
    if code == record.count:
        values[code] = raw
        record.count += 1
    first = 0 if seen[0] else 1
    for i in range(first + 1, 4):
        if seen[i]:
            varying |= values[i] ^ values[first]
    return varying


cdef bint run_leaf_change(Family *family, Entry *slot, int page, uint8_t raw) noexcept nogil:
    """The same for a run leaf: the run that holds the page becomes up to three, neighbours of one value are joined.
    False if that makes too many runs, or leaves fewer than three values."""
    cdef uint32_t handle = entry_handle(slot[0])
    cdef Record *record = <Record *>address_of(family, handle)
    cdef const uint16_t *old_starts = <const uint16_t *>record.starts
    cdef const uint8_t *old_values = <const uint8_t *>(old_starts + record.count - 1)
    cdef uint16_t[LEAF_RUNS + 3] starts
    cdef uint8_t[LEAF_RUNS + 3] values
    cdef int old_count = record.count, count, i, run = 0, start, stop, size_class
    cdef uint8_t varying = 0, other
    cdef bint third = False
    while run < old_count - 1 and old_starts[run] <= page:
        run += 1
    start = old_starts[run - 1] if run else 0
    stop = old_starts[run] if run < old_count - 1 else PAGES_PER_BLOCK
    # starts[i] is where run i begins; what comes before the run stays.
    starts[0] = 0
    memcpy(starts + 1, old_starts, 2 * run)
    memcpy(values, old_values, run + 1)
    count = run
    if start < page:
        count += 1                                  # what is left of the run before the page
    if count and values[count - 1] == raw:
        count -= 1                                  # the page joins the run before it
    else:
        starts[count] = <uint16_t>page
        values[count] = raw
    count += 1
    i = run + 1                                     # the old run that comes next
    if page + 1 < stop:
        starts[count] = <uint16_t>(page + 1)
        values[count] = old_values[run]
        count += 1
    elif i < old_count and old_values[i] == raw:
        i += 1                                      # the page joins the run after it
    if count + old_count - i > LEAF_RUNS:
        return False
    memcpy(starts + count, old_starts + i - 1, 2 * (old_count - i))
    memcpy(values + count, old_values + i, old_count - i)
    count += old_count - i
    other = values[0]
    for i in range(1, count):
        varying |= values[i] ^ values[0]
        if values[i] != values[0]:
            if other == values[0]:
                other = values[i]
            third |= values[i] != other
    if not third:
        return False
    size_class = class_of_units[(run_leaf_bytes(count) + 15) // 16]
    if size_class != record_class(record):
        release(family, handle)
        handle = leaf_new(family, size_class, CODED_RUNS)
        record = <Record *>address_of(family, handle)
    record.count = <uint8_t>count
    memcpy(record.starts, starts + 1, 2 * (count - 1))
    memcpy(<uint8_t *>record.starts + 2 * (count - 1), values, count)
    slot[0] = (slot[0] & ~(<uint64_t>0xff << 48 | <uint64_t>0xffffffff)) | <uint64_t>varying << 48 | handle
    return True
