# Arrays that Python gets: the attributes of pages and of ranges, bits, values.

cdef enum:
    BULK_PAGES = 1 << 14        # below that a read is over sooner than the GIL is given up and taken again


cdef object take_array(const Map *map, gfns, out):
    """The attributes of pages, into the caller's array if there is one."""
    cdef Py_buffer gfns_view, out_view
    cdef Map pinned
    cdef size_t count
    cdef bint checked = out is not None
    cdef size_t done
    cdef uint64_t wrong
    given = integer_array(gfns, "gfns")
    gfns = gfn_cells(given)
    count = gfns.size
    # An array of the caller's is not touched unless all gfns are right. One of ours may be thrown away half
    # written, so there the check goes along with the walk and reads the gfns only once.
    if count and checked:
        check_gfns(given, gfns, map.pages)
    out = output_array(out, count, given.shape)
    if count == 0:
        return out
    if checked and np.may_share_memory(gfns, out):
        gfns = gfns.copy()
    hold(gfns, &gfns_view, PyBUF_SIMPLE, count * sizeof(uint64_t))
    if checked:
        try:
            hold(np.asarray(out), &out_view, PyBUF_WRITABLE, count)
        except BaseException:
            PyBuffer_Release(&gfns_view)
            raise
    else:
        PyObject_GetBuffer(out, &out_view, PyBUF_WRITABLE)
    count_entering(map.family, CALL_TAKE, count)
    pin(&pinned, map)
    if count < BULK_PAGES:
        done = take_pages(&pinned, <const uint64_t *>gfns_view.buf, <uint8_t *>out_view.buf, count, checked, &wrong)
    else:
        with nogil:
            done = take_pages(&pinned, <const uint64_t *>gfns_view.buf, <uint8_t *>out_view.buf, count, checked,
                              &wrong)
    unpin(&pinned)
    PyBuffer_Release(&gfns_view)
    PyBuffer_Release(&out_view)
    if done < count:
        raise_gfn(cell_given(given, done, wrong), map.pages)
    return out


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
    words = np.empty((hi - lo + 63) // 64, "<u8")
    if words.size:
        PyObject_GetBuffer(words, &view, PyBUF_WRITABLE)
        count_entering(map.family, CALL_BITMAP, hi - lo)
        pin(&pinned, map)
        with nogil:
            map_bitmap(&pinned, lo, hi, mask, <uint64_t *>view.buf)
        unpin(&pinned)
        PyBuffer_Release(&view)
    return words.view(np.uint8)[:(hi - lo + 7) // 8]


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
