# cython: language_level=3, freethreading_compatible=True
"""The quick road for native traces: plain `set`, `get` and `slot` lines straight from bytes into rows.

`parse` takes what it knows for certain and stops at the first other line, whatever that is: a `vm` line, a log
of another format, a damaged line. The caller has the Python parser look at that one line and calls again.
`next_line` finds the next line that Python has to look at among those of a long log that are not ours.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    SET = 0
    GET = 1
    SLOT = 2

cdef struct Row:
    uint8_t kind
    uint8_t origin
    int16_t answer
    int32_t guest_memfd
    uint64_t line
    uint64_t words[6]
    int64_t time

cdef uint64_t DEFAULT_USERSPACE_ADDRESS = 0x7F0000000000


cdef inline bint is_space(uint8_t byte) noexcept nogil:
    return byte == b" " or byte == b"\t" or byte == b"\r"


cdef inline int digit(uint8_t byte) noexcept nogil:
    """The value of a hexadecimal digit, 16 for any other byte."""
    if b"0" <= byte <= b"9":
        return byte - <uint8_t>b"0"
    byte = byte | 0x20
    if b"a" <= byte <= b"f":
        return byte - <uint8_t>b"a" + 10
    return 16


cdef inline const uint8_t *number(const uint8_t *at, uint64_t *value) noexcept nogil:
    """Read one number that a space or the end of line ends; NULL if there is none or it passes 2^64 - 1."""
    cdef uint64_t total = 0
    cdef int base = 10
    cdef int figure = 0
    if at[0] == b"0" and (at[1] | 0x20) == b"x":
        base = 16
        at += 2
    if digit(at[0]) >= base:
        return NULL
    while True:
        figure = digit(at[0])
        if figure >= base:
            break
        if base == 16:
            if total >> 60:
                return NULL
            total = total << 4 | <uint64_t>figure
        else:
            if total > (<uint64_t>0xFFFFFFFFFFFFFFFF - <uint64_t>figure) // 10:
                return NULL
            total = total * 10 + <uint64_t>figure
        at += 1
    if not is_space(at[0]) and at[0] != b"\n":
        return NULL
    value[0] = total
    return at


cdef const uint8_t *operation(const uint8_t *at, Row *row) noexcept nogil:
    """Read one plain line into `row`; its newline, or NULL when it is anything else."""
    cdef int count = 0
    cdef int least = 0
    cdef int most = 0
    if at[0] == b"s" and at[1] == b"e" and at[2] == b"t":
        row.kind = SET
        least = most = 4
        at += 3
    elif at[0] == b"g" and at[1] == b"e" and at[2] == b"t":
        row.kind = GET
        least = most = 2
        at += 3
    elif at[0] == b"s" and at[1] == b"l" and at[2] == b"o" and at[3] == b"t":
        row.kind = SLOT
        least, most = 4, 5
        at += 4
    else:
        return NULL
    if not is_space(at[0]):
        return NULL
    for count in range(6):
        row.words[count] = 0
    count = 0
    while True:
        while is_space(at[0]):
            at += 1
        if at[0] == b"\n":
            break
        if count == most:
            return NULL
        at = number(at, &row.words[count])
        if at == NULL:
            return NULL
        count += 1
    if count < least:
        return NULL
    if row.kind == SLOT:
        if row.words[0] >> 32 or row.words[1] >> 32:
            return NULL
        if count == 4:
            row.words[4] = DEFAULT_USERSPACE_ADDRESS
    row.answer = -1
    row.origin = 0
    row.time = -1
    row.guest_memfd = -1
    return at


# What a line must hold for Python to look at it. Four bytes of each mark are hashed; a hit is compared in full.
cdef enum:
    MARKS = 64
    MARK_BYTES = 32
    HASHES = 65536
cdef uint8_t mark_bytes[MARKS][MARK_BYTES]
cdef size_t mark_lengths[MARKS]
cdef int mark_count = 0
cdef uint8_t mark_hashes[HASHES]


cdef inline uint32_t hash_at(const uint8_t *at) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, at, 4)
    return (word * <uint32_t>2654435761) >> 16


def look_for(words):
    """Make these byte strings, of 4 to 32 bytes each, what `next_line` looks for. Called once, at import."""
    global mark_count
    cdef const uint8_t *text
    for word in words:
        if not 4 <= len(word) <= MARK_BYTES or mark_count == MARKS:
            raise ValueError(f"mark {word!r}: must have 4 to {MARK_BYTES} bytes, and be one of {MARKS}")
        text = word
        memcpy(mark_bytes[mark_count], text, len(word))
        mark_lengths[mark_count] = len(word)
        mark_hashes[hash_at(text)] = 1
        mark_count += 1


cdef bint is_mark(const uint8_t *at, size_t length) noexcept nogil:
    cdef int index
    for index in range(mark_count):
        if mark_lengths[index] <= length and memcmp(at, mark_bytes[index], mark_lengths[index]) == 0:
            return True
    return False


cdef inline bint marked(const uint8_t *at, const uint8_t *end) noexcept nogil:
    """Whether a mark begins here."""
    return at + 4 <= end and mark_hashes[hash_at(at)] and is_mark(at, end - at)


def parse(const uint8_t[::1] text not None, Py_ssize_t start, uint64_t line, Row[::1] rows not None,
          Py_ssize_t filled, bint marks):
    """Fill `rows` from index `filled` on with the plain lines of `text` from byte `start` on.

    `text` must end with a newline. `line` is the number of the line at `start`. Stops at the end of the text,
    when the rows are full, or at a line that is not a plain operation, a comment or blank; with `marks` also at a
    comment that holds one. Returns (start, line, filled) to go on with. The GIL is released.
    """
    cdef Py_ssize_t length = text.shape[0]
    cdef const uint8_t *base
    cdef const uint8_t *at
    cdef const uint8_t *end
    if length == 0 or start < 0 or start >= length or filled < 0:
        return start, line, filled
    if text[length - 1] != b"\n":
        raise ValueError("expected text that ends with a newline")
    base = &text[0]
    with nogil:
        while start < length and filled < rows.shape[0]:
            at = base + start
            while is_space(at[0]):
                at += 1
            if at[0] == b"#":
                while at[0] != b"\n" and not (marks and marked(at, base + length)):
                    at += 1
                if at[0] != b"\n":
                    break
            if at[0] != b"\n":
                end = operation(at, &rows[filled])
                if end == NULL:
                    break
                rows[filled].line = line
                filled += 1
                at = end
            start = at - base + 1
            line += 1
    return start, line, filled


cdef bint is_native(const uint8_t *at) noexcept nogil:
    """Whether a line may be a native one: blank, a comment, or one of the four words. It ends in a newline."""
    while is_space(at[0]):
        at += 1
    if at[0] == b"#" or at[0] == b"\n":
        return True
    if at[0] == b"v" and at[1] == b"m":
        at += 2
    elif (at[0] == b"s" or at[0] == b"g") and at[1] == b"e" and at[2] == b"t":
        at += 3
    elif at[0] == b"s" and at[1] == b"l" and at[2] == b"o" and at[3] == b"t":
        at += 4
    elif at[0] == b"g" and (memcmp(at + 1, b"mem", 3) == 0 or memcmp(at + 1, b"set", 3) == 0):
        at += 4
    elif at[0] == b"g" and at[1] == b"p" and memcmp(at + 2, b"unch", 4) == 0:
        at += 6
    else:
        return False
    return is_space(at[0]) or at[0] == b"\n" or at[0] == b"#"


def next_line(const uint8_t[::1] text not None, Py_ssize_t start, uint64_t line, bint native):
    """The next line from byte `start` on that holds a mark, or, with `native`, may be a native one.

    `text` must end with a newline, `start` be the first byte of a line and `line` its number. Returns
    (start, line, skipped): where that line begins, its number, and how many lines before it were not blank;
    `start` is the length of the text if there is none. Time: about a nanosecond a byte. The GIL is released.
    """
    cdef Py_ssize_t length = text.shape[0]
    cdef Py_ssize_t at = start
    cdef Py_ssize_t begin = start
    cdef uint64_t skipped = 0
    cdef bint blank = True
    cdef bint found = False
    cdef const uint8_t *base
    if length == 0 or start < 0 or start >= length:
        return start, line, skipped
    if text[length - 1] != b"\n":
        raise ValueError("expected text that ends with a newline")
    base = &text[0]
    with nogil:
        found = native and is_native(base + at)
        while not found and at < length:
            if base[at] == b"\n":
                at += 1
                begin = at
                line += 1
                skipped += not blank
                blank = True
                found = native and at < length and is_native(base + at)
                continue
            if base[at] > 32:
                blank = False
            if marked(base + at, base + length):
                found = True
                break
            at += 1
    return begin, line, skipped
