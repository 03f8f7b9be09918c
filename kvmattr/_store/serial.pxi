# Maps as bytes: what to_bytes, pickle and save write. No pointer, no handle, nothing of this machine.
#
#     header   44 bytes: magic, format version, npages, default, length and CRC-32 of the body, CRC-32 of the
#              header before it; all little-endian
#     body     records that tile [0, npages) in order. A record begins with its kind:
#
#     0 uniform   value, pages (64 bits)                 any number of pages
#     1 bitmap    value of 0, value of 1, 64 bytes       a block, the last one may reach beyond npages
#     2 palette   four values, two planes of 64 bytes    a block
#     3 runs      n, n - 1 starts (16 bits), n values    a block
#     4 bytes     512 values                             a block
#
# Reading trusts nothing: every length and bound is checked, and a map is only handed out when all is read.

cdef enum BlockKind:
    SERIAL_UNIFORM = 0
    SERIAL_BITMAP = 1
    SERIAL_PALETTE = 2
    SERIAL_RUNS = 3
    SERIAL_BYTES = 4

cdef enum:
    SERIAL_LARGEST = 1 + 512        # the longest record


# Bytes that grow, and the block that is being put together out of runs.
cdef struct Writer:
    Records out
    uint8_t[512] block
    uint8_t last


cdef bint writer_room(Writer *writer) noexcept nogil:
    while writer.out.capacity - writer.out.count < SERIAL_LARGEST:
        if not records_grow(&writer.out, 1):
            return False
    return True


cdef bint write_uniform(Writer *writer, uint64_t pages, uint8_t value) noexcept nogil:
    cdef uint8_t *record
    if not writer_room(writer):
        return False
    record = <uint8_t *>writer.out.data + writer.out.count
    record[0] = SERIAL_UNIFORM
    record[1] = value
    store_little(record + 2, pages, 8)
    writer.out.count += 10
    return True


# A block's distinct values, and the pages that have each: up to four, 5 stands for more.
cdef struct Values:
    int found
    uint8_t[4] values
    uint64_t[4][8] bits


cdef void block_values(const uint8_t *block, Values *has) noexcept nogil:
    cdef uint64_t[8] seen
    cdef int i
    has.found = 0
    memset(seen, 0, sizeof(seen))
    # One value at a time: the first page that no value so far explains gives the next one.
    while True:
        i = 0
        while i < 8 and seen[i] == <uint64_t>-1:
            i += 1
        if i == 8:
            return
        if has.found == 4:
            has.found = 5
            return
        has.values[has.found] = block[64 * i + kvmattr_first_bit(~seen[i])]
        kernels.match(block, has.values[has.found], 0xff, has.bits[has.found])
        for i in range(8):
            seen[i] |= has.bits[has.found][i]
        has.found += 1


cdef bint write_block(Writer *writer) noexcept nogil:
    """A block in its shortest record."""
    cdef Values has
    cdef uint64_t[8] changes
    cdef uint8_t *record
    cdef int i, at, runs, run = 0, size
    kernels.changes(writer.block, changes)
    runs = <int>kernels.popcount(changes, 8) + 1
    if runs == 1:
        return write_uniform(writer, PAGES_PER_BLOCK, writer.block[0])
    if not writer_room(writer):
        return False
    block_values(writer.block, &has)
    record = <uint8_t *>writer.out.data + writer.out.count
    size = 67 if has.found == 2 else 133 if has.found <= 4 else 513
    if runs < 256 and 2 + 3 * runs - 2 < size:
        record[0] = SERIAL_RUNS
        record[1] = <uint8_t>runs
        record[2 + 2 * (runs - 1)] = writer.block[0]
        for i in range(8):
            while changes[i]:
                at = 64 * i + kvmattr_first_bit(changes[i])
                changes[i] &= changes[i] - 1
                store_little(record + 2 + 2 * run, at, 2)
                run += 1
                record[2 + 2 * (runs - 1) + run] = writer.block[at]
        writer.out.count += 3 * runs
    elif has.found == 2:
        record[0] = SERIAL_BITMAP
        record[1] = has.values[0]
        record[2] = has.values[1]
        store_words(record + 3, has.bits[1])
        writer.out.count += 67
    elif has.found <= 4:
        record[0] = SERIAL_PALETTE
        for i in range(4):
            record[1 + i] = has.values[i if i < has.found else 0]
        if has.found == 4:
            for i in range(8):
                has.bits[1][i] |= has.bits[3][i]
                has.bits[2][i] |= has.bits[3][i]
        store_words(record + 5, has.bits[1])
        store_words(record + 69, has.bits[2])
        writer.out.count += 133
    else:
        record[0] = SERIAL_BYTES
        memcpy(record + 1, writer.block, 512)
        writer.out.count += 513
    return True


cdef inline void store_little(uint8_t *where, uint64_t value, int size) noexcept nogil:
    cdef int i
    for i in range(size):
        where[i] = <uint8_t>(value >> (8 * i))

cdef inline uint64_t load_little(const uint8_t *where, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value |= <uint64_t>where[i] << (8 * i)
    return value

cdef inline void store_words(uint8_t *where, const uint64_t *words) noexcept nogil:
    cdef int i
    for i in range(8):
        store_little(where + 8 * i, words[i], 8)


cdef bint write_run(RunSink *sink, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    """One run more: whole blocks at once, the rest into the block that is being put together."""
    cdef Writer *writer = <Writer *>sink.context
    cdef uint64_t whole, pages
    writer.last = value
    while start < stop:
        if start & 511 == 0 and stop - start >= PAGES_PER_BLOCK:
            whole = (stop - start) & ~<uint64_t>511
            if not write_uniform(writer, whole, value):
                return False
            start += whole
            continue
        pages = 512 - (start & 511)
        pages = pages if pages < stop - start else stop - start
        memset(writer.block + (start & 511), value, pages)
        start += pages
        if start & 511 == 0 and not write_block(writer):
            return False
    return True


cdef bint write_mixed(RunSink *sink, uint64_t start, const uint8_t *block) noexcept nogil:
    """One mixed block more."""
    cdef Writer *writer = <Writer *>sink.context
    memcpy(writer.block, block, PAGES_PER_BLOCK)
    writer.last = block[PAGES_PER_BLOCK - 1]
    return write_block(writer)


cdef bint write_map(const Map *map, Writer *writer) noexcept nogil:
    """The body of a map; False when out of memory."""
    cdef RunSink sink = sink_to(write_run, writer)
    sink.emit_block = write_mixed
    memset(writer, 0, sizeof(Writer))
    if map.pages == 0:
        return True
    map_runs(map, 0, map.pages, &sink)
    if map.pages & 511 and not writer.out.failed:
        memset(writer.block + (map.pages & 511), writer.last, 512 - (map.pages & 511))
        write_block(writer)
    return not writer.out.failed


cdef enum ReadResult:
    READ_SOUND = 0
    READ_NO_MEMORY = 1
    READ_CUT_SHORT = 2
    READ_KIND = 3
    READ_TOO_MANY_PAGES = 4
    READ_TOO_FEW_PAGES = 5
    READ_RUN_STARTS = 6
    READ_UNALIGNED = 7
    READ_NO_PAGES = 8

cdef dict READ_TROUBLE = {
    READ_CUT_SHORT: "a record is cut short",
    READ_KIND: "unknown kind of record",
    READ_TOO_MANY_PAGES: "records reach beyond npages",
    READ_TOO_FEW_PAGES: "records end before npages",
    READ_RUN_STARTS: "the starts of runs do not rise",
    READ_UNALIGNED: "a block does not begin at a multiple of 512 pages",
    READ_NO_PAGES: "a record of no pages",
}


cdef ReadResult read_map(Map *map, const uint8_t *body, size_t size, size_t *where) noexcept nogil:
    """Fill a map that has npages and holds nothing; *where is the offset of the record in trouble."""
    cdef uint8_t[512] block
    cdef uint8_t[512] plane
    cdef uint64_t[16] words
    cdef uint64_t at = 0, pages
    cdef size_t offset = 0, left, length
    cdef int i, runs, start, stop
    cdef const uint8_t *record
    while offset < size:
        where[0] = offset
        record = body + offset
        left = size - offset
        if record[0] == SERIAL_UNIFORM:
            if left < 10:
                return READ_CUT_SHORT
            pages = load_little(record + 2, 8)
            if pages == 0:
                return READ_NO_PAGES
            # The last block's record may reach beyond npages, if all of it is uniform too.
            if pages > map.pages - at and pages - (map.pages - at) >= PAGES_PER_BLOCK:
                return READ_TOO_MANY_PAGES
            if at >= map.pages:
                return READ_TOO_MANY_PAGES
            pages = pages if pages < map.pages - at else map.pages - at
            if arena_reserve(map.family, RESERVE_PAGES) < 0:
                return READ_NO_MEMORY
            map_change(map, at, at + pages, 0, record[1])
            offset += 10
            at += pages
            continue
        if at & 511:
            return READ_UNALIGNED
        if at >= map.pages:
            return READ_TOO_MANY_PAGES
        if record[0] == SERIAL_BITMAP:
            length = 67
            if left < length:
                return READ_CUT_SHORT
            for i in range(8):
                words[i] = load_little(record + 3 + 8 * i, 8)
            kernels.expand(words, record[1] ^ record[2], record[1], block)
        elif record[0] == SERIAL_PALETTE:
            length = 133
            if left < length:
                return READ_CUT_SHORT
            for i in range(16):
                words[i] = load_little(record + 5 + 8 * i, 8)
            for i in range(512):
                block[i] = record[1 + ((words[i >> 6] >> (i & 63) & 1) | (words[8 + (i >> 6)] >> (i & 63) & 1) << 1)]
        elif record[0] == SERIAL_RUNS:
            if left < 2:
                return READ_CUT_SHORT
            runs = record[1]
            if runs == 0:
                return READ_NO_PAGES
            length = 3 * runs
            if left < length:
                return READ_CUT_SHORT
            start = 0
            for i in range(runs):
                stop = <int>load_little(record + 2 + 2 * i, 2) if i < runs - 1 else 512
                if stop <= start or stop > 512:
                    return READ_RUN_STARTS
                memset(block + start, record[2 + 2 * (runs - 1) + i], stop - start)
                start = stop
        elif record[0] == SERIAL_BYTES:
            length = 513
            if left < length:
                return READ_CUT_SHORT
            memcpy(block, record + 1, 512)
        else:
            return READ_KIND
        pages = PAGES_PER_BLOCK if map.pages - at > PAGES_PER_BLOCK else map.pages - at
        if map_store(map, at, at + pages, block) < 0:
            return READ_NO_MEMORY
        offset += length
        at += pages
    where[0] = size
    return READ_SOUND if at == map.pages else READ_TOO_FEW_PAGES


# ---- the header ----

cdef object HEADER = struct.Struct("<8sIIQBxxxIQI")     # magic, version, 0, npages, default, CRC, length, CRC
cdef bytes MAGIC = b"kvmattr\x1a"
cdef int FORMAT = 1


cdef bytes serial_header(Map *map, object body):
    cdef uint32_t nothing = 0
    header = HEADER.pack(MAGIC, FORMAT, nothing, map.pages, map.default, zlib.crc32(body), len(body), 0)
    return header[:HEADER.size - 4] + struct.pack("<I", zlib.crc32(header[:HEADER.size - 4]))


cdef tuple header_parse(object data):
    """(npages, default, checksum and length of the body) of what to_bytes wrote, or ValueError with the trouble and the
    rule."""
    if len(data) < HEADER.size:
        raise ValueError(f"not a saved AttributeMap: {len(data)} bytes, the header has {HEADER.size}")
    magic, version, _, pages, default, body_crc, length, header_crc = HEADER.unpack(data[:HEADER.size])
    if magic != MAGIC:
        raise ValueError(f"not a saved AttributeMap: begins with {bytes(magic)!r}, need {MAGIC!r}")
    if zlib.crc32(data[:HEADER.size - 4]) != header_crc:
        raise ValueError("saved AttributeMap is damaged: the header's checksum does not match")
    if version != FORMAT:
        raise ValueError(f"saved AttributeMap has format {version}: this kvmattr reads format {FORMAT}")
    if pages > GFN_LIMIT:
        raise ValueError(f"saved AttributeMap is damaged: npages {pages} is outside 0..{GFN_LIMIT}")
    return pages, default, body_crc, length


cdef int raise_length(object found, object announced) except -1:
    raise ValueError(f"saved AttributeMap is damaged: {found} bytes after the header, which announces {announced}")


cdef tuple serial_parse(object data):
    """(npages, default, body) of what to_bytes wrote, or ValueError."""
    pages, default, body_crc, length = header_parse(data)
    body = data[HEADER.size:]
    if len(body) != length:
        raise_length(len(body), length)
    if zlib.crc32(body) != body_crc:
        raise ValueError("saved AttributeMap is damaged: the checksum does not match")
    return pages, default, body


cdef bytes map_bytes_of(Map *map):
    """to_bytes: the header and what write_map writes."""
    cdef Writer writer
    cdef Map pinned
    cdef bint sound
    count_entering(map.family, CALL_TO_BYTES, 0)
    pin(&pinned, map)
    with nogil:
        sound = write_map(&pinned, &writer)
    unpin(&pinned)
    try:
        if not sound:
            raise MemoryError("out of memory for the map's bytes")
        body = (<char *>writer.out.data)[:writer.out.count] if writer.out.count else b""
    finally:
        free(writer.out.data)
    return serial_header(map, body) + body


cdef int read_body(Map *map, object body) except -1:
    """What read_map reads, from the bytes after the header, into a new map."""
    cdef Py_buffer view
    cdef size_t where = 0
    cdef ReadResult trouble = READ_SOUND
    if map.pages or len(body):
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        with nogil:
            trouble = read_map(map, <const uint8_t *>view.buf, view.len, &where)
            family_filled(map.family)
        PyBuffer_Release(&view)
    if trouble == READ_NO_MEMORY:
        raise MemoryError("out of memory for a saved map")
    if trouble != READ_SOUND:
        raise ValueError(f"saved AttributeMap is damaged: {READ_TROUBLE[trouble]} (byte {where} of the body)")
    return 0
