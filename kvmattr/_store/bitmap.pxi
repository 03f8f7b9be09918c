# Packed bits in and out: page start + i is bit i, as in the dirty logs of KVM and QEMU.

cdef enum:
    FEW_BITS = 6                # so many single-page updates cost less than writing their block anew
    BITMAP_GROUP = 32           # blocks for each hold of the mutex: at most about 50 us
    BITMAP_SLICE = 4096         # blocks between two looks at signals


cdef uint64_t last_bit(const uint64_t *words, size_t count) noexcept nogil:
    """One past the last set bit, 0 if there is none."""
    while count:
        count -= 1
        if words[count]:
            return 64 * count + kvmattr_last_bit(words[count]) + 1
    return 0


cdef struct BitmapBatch:
    const uint64_t *words
    size_t count
    uint64_t start              # the gfn of bit 0
    uint64_t bits               # one past the last set bit
    uint64_t at                 # bits that are done
    uint8_t k
    uint8_t x
    uint64_t done               # operations (set bits) that are done
    uint64_t changed


cdef void gather_bits(const BitmapBatch *batch, uint64_t first, int count, uint64_t *bits) noexcept nogil:
    """Bits [first, first + count) of the batch, count <= 512, from bit 0 on."""
    cdef uint64_t at = first >> 6, shift = first & 63, word
    cdef int i
    for i in range(8):
        word = 0
        if 64 * i < count:
            word = batch.words[at + i] >> shift
            if shift and at + i + 1 < batch.count:
                word |= batch.words[at + i + 1] << (64 - shift)
            if count - 64 * i < 64:
                word &= (<uint64_t>1 << (count - 64 * i)) - 1
        bits[i] = word


cdef bint bitmap_block(Map *map, BitmapBatch *batch, uint64_t gfn, int count, uint64_t *bits) noexcept nogil:
    """Update the pages gfn + i, i < count, of one block whose bit is set. False when out of memory: then
    nothing of the block that was not counted has changed."""
    cdef uint8_t[512] old
    cdef uint8_t[512] selected
    cdef uint64_t[8] same
    cdef uint64_t operations = kernels.popcount(bits, 8), word
    cdef UpdateResult result
    cdef uint8_t k = batch.k, x = batch.x
    cdef uint8_t[512] new
    cdef int i
    if operations <= FEW_BITS:
        for i in range(8):
            word = bits[i]
            while word:
                result = page_update(map, gfn + 64 * i + kvmattr_first_bit(word), k, x)
                if result < 0:
                    return False
                batch.changed += result
                batch.done += 1
                word &= word - 1
        return True
    map_pages(map, gfn, gfn + count, old)
    memset(old + count, 0, 512 - count)
    kernels.expand(bits, 0xff, 0, selected)
    for i in range(512):
        new[i] = (old[i] & (k | ~selected[i])) ^ (x & selected[i])
    for i in range(512):
        selected[i] = old[i] ^ new[i]
    kernels.match(selected, 0, 0xff, same)
    word = 512 - kernels.popcount(same, 8)
    if word:
        if map_store(map, gfn, gfn + count, new) < 0:
            return False
        kvmattr_raise_version(&map.version, 1)
        batch.changed += word
    batch.done += operations
    return True


cdef bint bitmap_run(Map *map, BitmapBatch *batch) noexcept nogil:
    """Some thousand blocks of a batch. False when out of memory."""
    cdef uint64_t[8] bits
    cdef uint64_t gfn
    cdef int count, block = 0, i
    cdef bint sound = True
    while sound and batch.at < batch.bits and block < BITMAP_SLICE:
        family_lock_group(map.family)
        for i in range(BITMAP_GROUP):
            if batch.at >= batch.bits or not sound:
                break
            gfn = batch.start + batch.at
            count = 512 - <int>(gfn & 511)
            if <uint64_t>count > batch.bits - batch.at:
                count = <int>(batch.bits - batch.at)
            gather_bits(batch, batch.at, count, bits)
            sound = bitmap_block(map, batch, gfn, count, bits)
            batch.at += count
        if map.family.untidy:
            family_settle(map.family)
        family_unlock(map.family)
        family_filled(map.family)
        block += BITMAP_GROUP
    return sound


cdef void map_bitmap(const Map *map, uint64_t start, uint64_t stop, uint8_t mask, uint64_t *words) noexcept nogil:
    """Bit i of words: whether page start + i has any bit of mask."""
    cdef uint8_t[512] pages
    cdef uint64_t[8] bits
    cdef uint64_t at = start, count, i
    while at < stop:
        count = stop - at if stop - at < 512 else 512
        map_pages(map, at, at + count, pages)
        memset(pages + count, 0, 512 - count)
        kernels.match(pages, 0, mask, bits)
        for i in range((count + 63) >> 6):
            words[i] = ~bits[i]
        words += 8
        at += count
