# Arrays that Python gives: updates of many pages and ranges, packed bits, values for a range, rows of runs.

cdef uint64_t run_batch(Map *map, Batch *batch, size_t count) except? 0xffffffffffffffff:
    """A whole batch; what was done when it was stopped is `done` of the exception."""
    cdef bint sound
    count_entering(map.family, CALL_PUT if batch.given_stops == NULL else CALL_UPDATE_MANY, count)
    try:
        if not batch_open(batch, count):
            raise MemoryError(f"out of memory for a batch of {count} operations: nothing has changed")
        if count <= SHORT_BATCH:
            sound = batch_run_short(map, batch, count)
        else:
            sound = run_slices(map, batch, count)
        if not sound:
            raise MemoryError(f"out of memory after {batch.done} of {count} operations")
    except BaseException as stopped:        # whatever a signal handler raises
        stopped.done = batch.done
        raise
    finally:
        free(batch.starts)
    audit_change(map)
    return batch.changed


cdef bint run_slices(Map *map, Batch *batch, size_t count) except -1:
    """All of a batch, with the GIL given up. False when out of memory."""
    cdef bint sound = True
    cdef size_t upto
    family_announce(map.family, 1)
    try:
        while sound and batch.done < count:
            upto = batch.done + BATCH_SLICE
            upto = upto if upto < count else count
            with nogil:
                sound = batch_run(map, batch, upto)
            PyErr_CheckSignals()
    finally:
        family_announce(map.family, -1)
    return sound


cdef tuple COLUMNS = ("attributes", "operation", "mask")


cdef bint hold_columns(Given *given, list values) except -1:
    """Hold attributes, operations and masks. False if arrays or integers had to be made of some, which take their
    places in the list: then what is held must be held again."""
    cdef bint converted = False
    values[0] = given_hold(&given[0], values[0], "attributes", 0xFF, raise_byte, False, &converted)
    if is_scalar(values[1]):
        converted |= not isinstance(values[1], int)
        values[1] = operation_of(values[1])
        given_one(&given[1], values[1])
    else:
        values[1] = given_hold(&given[1], values[1], "operation", KVMATTR_OPERATION_AND, raise_operation, True,
                               &converted)
    if is_scalar(values[2]):
        converted |= not isinstance(values[2], int)
        values[2] = byte_of(values[2], "mask")
        given_one(&given[2], values[2])
    else:
        values[2] = given_hold(&given[2], values[2], "mask", 0xFF, raise_byte, True, &converted)
    return not converted


cdef int hold_bounds_again(Py_buffer *starts, Py_buffer *stops) except -1:
    hold_again(starts)
    if stops != NULL:
        hold_again(stops)
    return 0


cdef object update_each(Map *map, Py_buffer *starts, Py_buffer *stops, attributes, operation, mask):
    """update_many, or put where there are no stops, of cells that are checked and held."""
    cdef Given[3] given
    cdef Batch batch
    cdef int i
    memset(&batch, 0, sizeof(batch))
    memset(given, 0, sizeof(given))
    try:
        if is_scalar(attributes) and is_scalar(operation) and is_scalar(mask):
            given_one(&given[0], byte_of(attributes, "attributes"))
            given_one(&given[1], operation_of(operation))
            given_one(&given[2], byte_of(mask, "mask"))
            if not (isinstance(attributes, int) and isinstance(operation, int) and isinstance(mask, int)):
                # The __index__ of what else is an integer is code of the caller's.
                hold_bounds_again(starts, stops)
        else:
            values = [attributes, operation, mask]
            while not hold_columns(given, values):
                for i in range(3):
                    given_release(&given[i])
                hold_bounds_again(starts, stops)
            for i in range(3):
                if given[i].column.step and not same_shape(&given[i].view, starts):
                    return update_broadcast(map, starts, stops, given)
        if starts.len == 0:
            return 0
        batch.given_starts = <const uint64_t *>starts.buf
        if stops != NULL:
            batch.given_stops = <const uint64_t *>stops.buf
        batch.attributes = given[0].column
        batch.operations = given[1].column
        batch.masks = given[2].column
        return run_batch(map, &batch, starts.len // sizeof(uint64_t))
    finally:
        for i in range(3):
            given_release(&given[i])


cdef object update_broadcast(Map *map, const Py_buffer *starts, const Py_buffer *stops, const Given *given):
    """The same after attributes, operations, masks and pages were broadcast to one shape."""
    cdef Py_buffer[2] cells
    cdef Py_buffer *ends = NULL
    cdef list names = ["gfns" if stops == NULL else "starts"]
    cdef list arrays = [<object>starts.obj]
    cdef list columns = [given[0].one, given[1].one, given[2].one]
    cdef int i
    for i in range(3):
        if given[i].column.cells != &given[i].one:
            names.append(COLUMNS[i])
            arrays.append(given_array(&given[i]))
    arrays = broadcast(arrays, names)
    for i in range(1, len(arrays)):
        columns[COLUMNS.index(names[i])] = arrays[i]
    memset(cells, 0, sizeof(cells))
    try:
        hold_gfns(arrays[0], names[0], &cells[0])
        if stops != NULL:
            hold_gfns(contiguous(np.broadcast_to(<object>stops.obj, arrays[0].shape)), "stops", &cells[1])
            ends = &cells[1]
        return update_each(map, &cells[0], ends, columns[0], columns[1], columns[2])
    finally:
        PyBuffer_Release(&cells[0])
        PyBuffer_Release(&cells[1])


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
