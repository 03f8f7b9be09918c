# Arrays that Python gives: updates of many pages and ranges, packed bits, values for a range, rows of runs.

cdef uint64_t run_batch(Map *map, Batch *batch, size_t count) except? 0xffffffffffffffff:
    """A whole batch, with the GIL given up; what was done when it was stopped is `done` of the exception."""
    cdef bint sound = True
    cdef size_t upto
    count_entering(map.family, CALL_PUT if batch.given_stops == NULL else CALL_UPDATE_MANY, count)
    family_announce(map.family, 1)
    try:
        if not batch_open(batch, count):
            raise MemoryError(f"out of memory for a batch of {count} operations: nothing has changed")
        while batch.done < count:
            upto = batch.done + BATCH_SLICE
            upto = upto if upto < count else count
            with nogil:
                sound = batch_run(map, batch, upto)
            if not sound:
                raise MemoryError(f"out of memory after {batch.done} of {count} operations")
            PyErr_CheckSignals()
    except BaseException as stopped:        # whatever a signal handler raises
        stopped.done = batch.done
        raise
    finally:
        family_announce(map.family, -1)
        free(batch.starts)
    audit_change(map)
    return batch.changed


cdef object update_each(Map *map, starts, stops, attributes, operation, mask):
    """update_many, or put where there are no stops; starts and stops are checked cells."""
    cdef Batch batch
    cdef Change change
    cdef Py_buffer starts_view, stops_view, k_view, x_view
    cdef bint ranges = stops is not None
    memset(&batch, 0, sizeof(batch))
    batch.step = not (is_scalar(attributes) and is_scalar(operation) and is_scalar(mask))
    if batch.step:
        name = "starts" if ranges else "gfns"
        ks, xs = change_arrays(attributes, operation, mask, name, starts)
        if ranges:
            starts, stops, ks, xs = broadcast((starts, stops, ks, xs), (name, "stops", "attributes", "attributes"))
        else:
            starts, ks, xs = broadcast((starts, ks, xs), (name, "attributes", "attributes"))
    else:
        change = change_of(byte_of(attributes, "attributes"), operation_of(operation), byte_of(mask, "mask"))
        batch.k = &change.k
        batch.x = &change.x
    if starts.size == 0:
        return 0
    memset(&stops_view, 0, sizeof(stops_view))      # what was not held is released to no effect
    memset(&k_view, 0, sizeof(k_view))
    memset(&x_view, 0, sizeof(x_view))
    PyObject_GetBuffer(starts, &starts_view, PyBUF_SIMPLE)
    try:
        batch.given_starts = <const uint64_t *>starts_view.buf
        if ranges:
            hold(stops, &stops_view, PyBUF_SIMPLE, starts_view.len)
            batch.given_stops = <const uint64_t *>stops_view.buf
        if batch.step:
            hold(ks, &k_view, PyBUF_SIMPLE, starts_view.len // 8)
            hold(xs, &x_view, PyBUF_SIMPLE, starts_view.len // 8)
            batch.k = <const uint8_t *>k_view.buf
            batch.x = <const uint8_t *>x_view.buf
        return run_batch(map, &batch, starts_view.len // 8)
    finally:
        PyBuffer_Release(&starts_view)
        PyBuffer_Release(&stops_view)
        PyBuffer_Release(&k_view)
        PyBuffer_Release(&x_view)


cdef uint64_t put_bits(Map *map, uint64_t start, words, uint64_t count, Change change) except? 0xffffffffffffffff:
    """Update the pages start + i of which bit i is set; so many bits count."""
    cdef Py_buffer view
    cdef BitmapBatch batch
    cdef bint sound = True
    if words.size == 0:
        return 0
    memset(&batch, 0, sizeof(batch))
    PyObject_GetBuffer(words, &view, PyBUF_SIMPLE)
    try:
        batch.words = <const uint64_t *>view.buf
        batch.count = view.len // 8
        batch.start = start
        batch.bits = last_bit(batch.words, batch.count)
        batch.k = change.k
        batch.x = change.x
        check_bits(batch.bits, count, start, map.pages)
        family_announce(map.family, 1)
        try:
            while batch.at < batch.bits:
                with nogil:
                    sound = bitmap_run(map, &batch)
                if not sound:
                    raise MemoryError(f"out of memory after {batch.done} operations")
                PyErr_CheckSignals()
        except BaseException as stopped:        # whatever a signal handler raises
            stopped.done = batch.done
            raise
        finally:
            count_entering(map.family, CALL_PUT, batch.done)
            family_announce(map.family, -1)
    finally:
        PyBuffer_Release(&view)
    audit_change(map)
    return batch.changed


cdef int64_t bits_that_count(npages) except -1:
    cdef int64_t count
    if npages is None:
        return INT64_MAX
    kvmattr_integer(npages, &count)     # one beyond 64 bits is more than any bitmap has
    if count < 0:
        raise ValueError(f"npages {shown(npages)}: need 0 or more")
    return count


cdef tuple cells_of_bits(uint64_t start, uint64_t pages, words, uint64_t count, attributes, operation, mask):
    """put_bitmap with arrays, a cell of theirs for each bit that counts, as the arguments of ``put``."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    chosen = np.flatnonzero(bits)
    arrays = broadcast(list(map(np.asarray, (attributes, operation, mask))), ("attributes", "operation", "mask"))
    if arrays[0].size != 1:
        if count not in (INT64_MAX, arrays[0].size):
            raise ValueError(f"lengths do not broadcast: npages {count}, attributes, operation, mask {arrays[0].shape}")
        count = arrays[0].size
    check_bits(int(chosen.max()) + 1 if chosen.size else 0, count, start, pages)
    cells = [chosen.astype(np.uint64) + np.uint64(start)]
    for array in arrays:
        cells.append(array.ravel()[chosen if array.size > 1 else 0])
    return tuple(cells)


cdef int check_bits(uint64_t bits, uint64_t count, uint64_t start, uint64_t pages) except -1:
    """ValueError if the last set bit, of which `bits` is one more than the number, does not count or is no page's."""
    if bits > count:
        raise ValueError(f"bit {bits - 1} is set beyond npages {count}")
    if bits > pages - start:
        raise ValueError(f"bit {bits - 1} is set: gfn {start + bits - 1} is outside [0, {pages})")
    return 0


cdef int assign_array(Map *map, uint64_t lo, uint64_t hi, values) except -1:
    """The pages [lo, hi) from an array that was checked: one operation, built aside and swung in."""
    cdef Py_buffer view
    cdef Map aside
    cdef bint entered
    cdef int result = 0
    if lo == hi:
        return 0
    values = np.ascontiguousarray(values)
    hold(values, &view, PyBUF_SIMPLE, hi - lo)
    entered = family_enter(map.family)
    count_call(map.family, CALL_ASSIGN, hi - lo)
    if not map_holds(map, lo, hi, <const uint8_t *>view.buf):
        map_share(&aside, map)
        result = map_store(&aside, lo, hi, <const uint8_t *>view.buf)
        if result < 0:
            map_drop(&aside)
        else:
            map_swing(map, &aside)
            family_settle(map.family)
    family_leave(map.family, entered)
    family_filled(map.family)
    PyBuffer_Release(&view)
    if result < 0:
        raise MemoryError(f"out of memory for a write to [{lo}, {hi}): nothing has changed")
    audit_change(map)
    return 0


cdef object values_for(values, uint64_t pages):
    """uint8 values for so many pages: of as many cells, or of what broadcasts to them."""
    values = byte_array(values, "attributes")
    if values.shape == (pages,):
        return values
    try:
        return np.broadcast_to(values, (pages,))
    except ValueError:
        raise ValueError(f"cannot write an array of shape {values.shape} to a range of {pages} pages") from None


cdef tuple run_columns(runs):
    """Starts, stops and attributes of an array as of runs(), of a DataFrame as of to_frame(), or of rows of three."""
    names = runs.dtype.names if isinstance(runs, np.ndarray) else getattr(runs, "columns", None)    # of a DataFrame
    if names is not None:
        missing = {"start", "stop", "attributes"} - set(names)
        if missing:
            raise ValueError(f"runs lack the fields {', '.join(sorted(missing))}: need start, stop, attributes")
        return runs["start"], runs["stop"], runs["attributes"]
    rows = list(map(tuple, runs))
    if any(len(row) != 3 for row in rows):
        raise ValueError("runs must be rows of (start, stop, attributes)")
    return tuple(zip(*rows)) if rows else ((), (), ())
