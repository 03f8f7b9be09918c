# Arrays that Python gets: the attributes of pages and of ranges, bits, values.

cdef enum:
    BULK_PAGES = 1 << 14        # below that a read is over sooner than the GIL is given up and taken again


cdef object take_array(const Map *map, gfns, out):
    """The attributes of pages, into the caller's array if there is one."""
    cdef Py_buffer cells, result
    cdef Map pinned
    cdef size_t count, done
    cdef bint checked = out is not None
    cdef uint64_t wrong
    memset(&result, 0, sizeof(result))
    given = hold_gfns(gfns, "gfns", &cells)
    count = cells.len // sizeof(uint64_t)
    try:
        # An array of the caller's is not touched unless all gfns are right. One of ours may be thrown away half
        # written, so there the check goes along with the walk and reads the gfns only once.
        if checked:
            check_gfns(given, &cells, map.pages)
            out = output_array(out, count, None)
        else:
            out = empty(count if cells.ndim == 1 else shape_of(&cells), UINT8)
        if count == 0:
            return out
        hold(np.asarray(out) if checked else out, &result, PyBUF_WRITABLE, count)
        if checked:
            hold_again(&cells)          # what is no array but says so has been asked for one
            if overlap(&cells, &result):
                return take_array(map, (<object>cells.obj).copy(), out)
        count_entering(map.family, CALL_TAKE, count)
        pin(&pinned, map)
        if count < BULK_PAGES:
            done = take_pages(&pinned, <const uint64_t *>cells.buf, <uint8_t *>result.buf, count, checked, &wrong)
        else:
            with nogil:
                done = take_pages(&pinned, <const uint64_t *>cells.buf, <uint8_t *>result.buf, count, checked, &wrong)
        unpin(&pinned)
        if done < count:
            raise_gfn(cell_given(given, done, wrong), map.pages)
        return out
    finally:
        PyBuffer_Release(&cells)
        PyBuffer_Release(&result)


cdef bint overlap(const Py_buffer *a, const Py_buffer *b) noexcept:
    return <char *>a.buf < <char *>b.buf + b.len and <char *>b.buf < <char *>a.buf + a.len


cdef object pages_array(const Map *map, uint64_t lo, uint64_t hi, out):
    """The attributes of [lo, hi), into the caller's array if there is one."""
    cdef Py_buffer view
    cdef Map pinned
    cdef bint entered
    out = output_array(out, hi - lo, hi - lo)
    if lo == hi:
        return out
    hold(np.asarray(out), &view, PyBUF_WRITABLE, hi - lo)
    count_entering(map.family, CALL_TO_NUMPY, hi - lo)
    if hi - lo < 64 * BULK_PAGES:
        entered = family_enter(map.family)
        map_pages(map, lo, hi, <uint8_t *>view.buf)
        family_leave(map.family, entered)
    else:
        pin(&pinned, map)
        with nogil:
            map_pages(&pinned, lo, hi, <uint8_t *>view.buf)
        unpin(&pinned)
    PyBuffer_Release(&view)
    return out


cdef object bits_array(const Map *map, uint64_t lo, uint64_t hi, uint8_t mask):
    """Which pages of [lo, hi) have any bit of the mask: packed bits, in bytes."""
    cdef Py_buffer view
    cdef Map pinned
    cdef bint entered
    cdef uint64_t words = (hi - lo + 63) // 64, bytes = (hi - lo + 7) // 8
    bits = empty(8 * words, UINT8)
    if words:
        PyObject_GetBuffer(bits, &view, PyBUF_WRITABLE)
        count_entering(map.family, CALL_BITMAP, hi - lo)
        if hi - lo < BULK_PAGES:
            entered = family_enter(map.family)
            map_bitmap(map, lo, hi, mask, <uint64_t *>view.buf)
            family_leave(map.family, entered)
        else:
            pin(&pinned, map)
            with nogil:
                map_bitmap(&pinned, lo, hi, mask, <uint64_t *>view.buf)
            unpin(&pinned)
        PyBuffer_Release(&view)
    return bits if bytes == 8 * words else bits[:bytes]


cdef object values_array(const Map *map, uint64_t lo, uint64_t hi):
    """The distinct attributes of [lo, hi), sorted."""
    cdef uint8_t[256] seen
    cdef list values = []
    cdef Map pinned
    count_entering(map.family, CALL_VALUES, hi - lo)
    pin(&pinned, map)
    with nogil:
        map_values(&pinned, lo, hi, seen)
    unpin(&pinned)
    for value in range(256):
        if seen[value]:
            values.append(value)
    return np.array(values, np.uint8)
