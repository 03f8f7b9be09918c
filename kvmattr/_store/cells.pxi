# Arrays that Python hands in: integers of any type, checked, and their memory held while a call reads it.
#
# Most arrays are used where they lie, and are asked one question, by the buffer protocol: to ask numpy for an array's
# type, flags and shape takes as long as to look up twenty pages. What cannot be used so is copied first. An array may
# be another thread's too, so nothing of it is read twice: what was checked is what is used, or is checked once more.
# And where code of the caller's may run, of an object that becomes an array or says that it is one, what is held
# already is held again: an array can be given other memory meanwhile.

cdef object integer_array(object values, str name):
    """An array of integers of any integer dtype; Python integers beyond 64 bits are left to range checks."""
    array = values if type(values) is NDARRAY else asarray(values)
    dtype = array.dtype
    if dtype is UINT64 or dtype is INT64 or dtype is UINT8 or dtype.kind in "ui":
        return array
    if isinstance(values, (list, tuple)) and array.size == 0:
        return array.astype(np.uint64)              # [] has no type of its own
    # numpy makes floats of integers around 2^63, and of its own unsigned and signed ones in one list.
    if dtype.kind == "O" or (dtype.kind == "f" and isinstance(values, (list, tuple))):
        given = np.array(values, dtype=object)      # ours: looked at more than once
        for value in given.flat:
            if not isinstance(value, (int, INTEGER)):
                raise TypeError(f"{name} must be integers, not {type(value).__name__}")
        integers = np.empty(given.size, dtype=object)
        integers[:] = list(map(int, given.flat))
        return integers.reshape(given.shape)
    raise TypeError(f"{name} must be integers, not {array.dtype}")


cdef object gfn_cells(object gfns):
    """An array of integers as contiguous, aligned cells to be read as uint64, which uint64 and int64 are themselves. A
    negative gfn becomes one beyond any map, which the check of the cells finds."""
    dtype = gfns.dtype
    if (dtype is UINT64 or dtype is INT64) and type(gfns) is NDARRAY:
        flags = gfns.flags
        if flags.c_contiguous and flags.aligned:
            return gfns
    if dtype.kind == "O":
        cells = np.full(gfns.size, GFN_LIMIT + 1, np.uint64)
        for index, gfn in enumerate(gfns.flat):
            if 0 <= gfn <= GFN_LIMIT:
                cells[index] = gfn
        return cells.reshape(gfns.shape)
    cells = contiguous(gfns, INT64 if gfns.dtype.kind == "i" else UINT64).view(UINT64)
    return cells if cells.flags.aligned else cells.copy()


cdef object contiguous(object array, object dtype=None):
    """As numpy's ascontiguousarray, which makes one dimension out of none."""
    if dtype is None and type(array) is NDARRAY and array.flags.c_contiguous:
        return array
    return asarray(array, dtype, order="C")


cdef enum:
    CONTIGUOUS = PyBUF_ND | PyBUF_FORMAT        # of an array that is not, or no longer, numpy refuses that


cdef int hold(object array, Py_buffer *view, int access, size_t size) except -1:
    """The memory of an array that was looked at before. Its size is asked once more: it may be another by now, where
    another thread, or a method of the array's own class, has changed it."""
    PyObject_GetBuffer(array, view, access)
    if <size_t>view.len != size:
        changed = view.len
        PyBuffer_Release(view)
        raise_resized(size, changed)
    return 0


cdef int hold_again(Py_buffer *view) except -1:
    """The same for an array that is held, after code of the caller's may have run."""
    cdef object array = <object>view.obj
    cdef size_t size = view.len
    PyBuffer_Release(view)
    return hold(array, view, CONTIGUOUS, size)


cdef int raise_resized(size_t size, size_t changed) except -1:
    raise ValueError(f"an array of {size} bytes became one of {changed} while it was used")


cdef size_t first_outside(const uint64_t *gfns, size_t count, uint64_t pages, uint64_t *wrong) noexcept nogil:
    """The number of the first gfn outside the map, which goes to *wrong, or count."""
    cdef uint64_t[512] copy
    cdef size_t done = 0, some, i
    while done < count:
        some = count - done if count - done < 512 else 512
        # As most gfns are right, they are copied only where one seems not to be.
        if kernels.largest(gfns + done, some) >= pages:
            kvmattr_read_once(copy, gfns + done, some * sizeof(uint64_t))
            for i in range(some):
                if copy[i] >= pages:
                    wrong[0] = copy[i]
                    return done + i
        done += some
    return count


cdef object cell_given(object given, Py_ssize_t at, uint64_t cell):
    """A gfn or bound as the caller wrote it, read off its cell: the array may be another by now."""
    if given.dtype.kind == "O":
        return given.flat[at]
    return <int64_t>cell if given.dtype.kind == "i" else cell


cdef object byte_array(object values, str name):
    """uint8 values of any integer dtype, each checked to be 0..255; bytes are values too."""
    if isinstance(values, bytes):
        return np.frombuffer(values, UINT8)
    return small_integers(values, name, 255, raise_byte)


cdef object small_integers(object values, str name, int highest, int (*refuse)(object, str) except -1):
    """uint8 cells of integers, each checked to be 0..highest. They are ours, so that what was checked is what is used;
    only an array of bytes of which each is right stays the caller's."""
    array = integer_array(values, name)
    if highest == 255 and (array.dtype is UINT8 or array.dtype == UINT8):
        return array
    if array.dtype.kind == "O":         # ours already, and Python's integers, which no cell may hold
        cells = None
        wrong = (array < 0) | (array > highest)
    else:
        cells = array.astype(UINT8)
        wrong = cells != array          # 258 became 2
        if highest < 255:
            wrong |= cells > highest
    if wrong.any():
        first = array[wrong].flat[0]
        if not 0 <= first <= highest:
            refuse(first, name)
        raise ValueError(f"{name} changed while they were read")
    return array.astype(UINT8) if cells is None else cells


cdef enum CellKind:             # what the cells of an array are that can be used where they lie
    CELLS_OTHER
    CELLS_BYTES                 # uint8
    CELLS_SIGNED                # int64
    CELLS_UNSIGNED              # uint64


cdef CellKind hold_plain(object array, Py_buffer *view) noexcept:
    """Hold the memory of an array of numpy's own with contiguous, aligned cells of one of these types. CELLS_OTHER if
    it is none; then nothing is held."""
    cdef CellKind kind = CELLS_OTHER
    cdef char letter
    if type(array) is not NDARRAY:
        return CELLS_OTHER
    try:
        PyObject_GetBuffer(array, view, PyBUF_RECORDS_RO)
    except Exception:           # dates, for one, have no buffer
        return CELLS_OTHER
    letter = view.format[0]
    if view.format[1] == 0:     # one letter: of this machine's byte order
        if letter == b"B":
            kind = CELLS_BYTES
        elif view.itemsize == 8 and <uintptr_t>view.buf % 8 == 0:
            if letter == b"l" or letter == b"q":
                kind = CELLS_SIGNED
            elif letter == b"L" or letter == b"Q":
                kind = CELLS_UNSIGNED
    if kind != CELLS_OTHER and PyBuffer_IsContiguous(view, b"C"):
        return kind
    PyBuffer_Release(view)
    return CELLS_OTHER


cdef object bit_words(object bits):
    """Packed little-endian bits as 64-bit words of our own, padded with 0."""
    cdef Py_buffer given, words_view
    cdef CellKind kind = hold_plain(bits, &given)
    if kind == CELLS_OTHER or kind == CELLS_SIGNED:
        if kind != CELLS_OTHER:
            PyBuffer_Release(&given)
        if isinstance(bits, np.ndarray):
            if bits.dtype != np.uint8 and bits.dtype != np.dtype("<u8"):
                raise TypeError(f"bits must be uint8 or little-endian uint64, not {bits.dtype}")
            bits = np.ascontiguousarray(bits).ravel().view(np.uint8)
        else:
            bits = memoryview(bits)
            bits = bits if bits.c_contiguous else bits.tobytes()
        PyObject_GetBuffer(bits, &given, PyBUF_SIMPLE)
    try:
        words = empty((given.len + 7) // 8, UINT64)
        PyObject_GetBuffer(words, &words_view, PyBUF_WRITABLE)
        if given.len % 8:
            (<uint64_t *>words_view.buf)[given.len // 8] = 0
        memcpy(words_view.buf, given.buf, given.len)
        PyBuffer_Release(&words_view)
        return words
    finally:
        PyBuffer_Release(&given)


cdef object hold_gfns(object gfns, str name, Py_buffer *view):
    """Hold gfns or bounds as cells to be read as uint64, in which a negative one is beyond any map; the array that they
    were read from."""
    cdef CellKind kind = hold_plain(gfns, view)
    if kind == CELLS_SIGNED or kind == CELLS_UNSIGNED:
        return gfns
    if kind != CELLS_OTHER:
        PyBuffer_Release(view)
    given = integer_array(gfns, name)
    PyObject_GetBuffer(gfn_cells(given), view, CONTIGUOUS)
    return given


cdef int check_gfns(object given, const Py_buffer *cells, uint64_t pages) except -1:
    """IndexError with the first gfn outside the map, if there is one."""
    cdef size_t count = cells.len // sizeof(uint64_t), at
    cdef uint64_t wrong = 0
    if count <= SHORT_BATCH:
        at = first_outside(<const uint64_t *>cells.buf, count, pages, &wrong)
    else:
        with nogil:
            at = first_outside(<const uint64_t *>cells.buf, count, pages, &wrong)
    if at < count:
        raise_gfn(cell_given(given, at, wrong), pages)
    return 0


cdef int hold_bounds(object starts, object stops, Py_buffer *cells, uint64_t pages) except -1:
    """Hold the bounds of ranges, as hold_gfns does, in one shape, after a check of each. Both of the buffers are to be
    released, also after an error."""
    starts = hold_gfns(starts, "starts", &cells[0])
    stops = hold_gfns(stops, "stops", &cells[1])
    hold_again(&cells[0])
    if not same_shape(&cells[0], &cells[1]):
        PyBuffer_Release(&cells[0])
        PyBuffer_Release(&cells[1])
        starts, stops = broadcast((starts, stops), ("starts", "stops"))
        starts = hold_gfns(starts, "starts", &cells[0])
        stops = hold_gfns(stops, "stops", &cells[1])
        if cells[0].len != cells[1].len:
            raise_resized(cells[0].len, cells[1].len)
    return check_bounds(starts, stops, &cells[0], &cells[1], pages)


cdef int check_bounds(object starts, object stops, const Py_buffer *start_cells, const Py_buffer *stop_cells,
                      uint64_t pages) except -1:
    """ValueError with the first range that is none of the map's, if there is one."""
    cdef const uint64_t *first = <const uint64_t *>start_cells.buf
    cdef const uint64_t *last = <const uint64_t *>stop_cells.buf
    cdef uint64_t lo = 0, hi = 0
    cdef Py_ssize_t i = 0, count = start_cells.len // sizeof(uint64_t)
    with nogil:
        while i < count:
            kvmattr_read_once(&lo, &first[i], 8)
            kvmattr_read_once(&hi, &last[i], 8)
            if not lo <= hi <= pages:
                break
            i += 1
    if i < count:
        raise_range(cell_given(starts, i, lo), cell_given(stops, i, hi), pages)
    return 0


# ---- attributes, operations and masks ----

cdef struct Given:
    Py_buffer view              # of the array they were read from, while it is held; none if one is for all
    uint8_t *own                # a copy that we made, or NULL
    uint8_t one                 # one for all
    Column column

cdef size_t narrow(const void *wide, size_t size, size_t count, uint64_t highest, uint8_t *cells,
                   uint64_t *wrong) noexcept nogil:
    """Cells of so many bytes as bytes; the number of the first that is more than the highest, which goes to *wrong, or
    count. Each is read once."""
    cdef uint64_t[64] copy
    cdef const uint8_t *bytes = <const uint8_t *>copy
    cdef uint64_t most
    cdef size_t done = 0, some, i
    while done < count:
        some = count - done if count - done < 64 else 64
        kvmattr_read_once(copy, <const uint8_t *>wide + done * size, some * size)
        most = 0
        if size == 1:
            for i in range(some):
                cells[done + i] = bytes[i]
                most = most if most > bytes[i] else bytes[i]
        else:
            for i in range(some):
                cells[done + i] = <uint8_t>copy[i]
                most |= copy[i]
        if most > highest:
            for i in range(some):
                wrong[0] = bytes[i] if size == 1 else copy[i]
                if wrong[0] > highest:
                    return done + i
        done += some
    return count


cdef object given_hold(Given *given, object values, str name, int highest, int (*refuse)(object, str) except -1,
                       bint ours, bint *converted):
    """Hold the cells of `values`, each 0..highest: the caller's own memory only if they are bytes, need not be `ours`
    and may be anything. The array that is held; *converted if it had to be made, when code of the caller's may have
    run."""
    cdef CellKind kind = hold_plain(values, &given.view)
    cdef size_t count, at
    cdef uint64_t wrong = 0
    if kind == CELLS_OTHER:
        converted[0] = True
        if highest == 0xFF and isinstance(values, bytes):
            values = np.frombuffer(values, UINT8)
        else:
            values = integer_array(values, name)
        kind = hold_plain(values, &given.view)
    if kind == CELLS_OTHER:
        values = contiguous(small_integers(values, name, highest, refuse))
        PyObject_GetBuffer(values, &given.view, CONTIGUOUS)
        kind = CELLS_BYTES
    given.column.cells = <const uint8_t *>given.view.buf
    count = given.view.len // given.view.itemsize
    given.column.step = count != 1
    if kind == CELLS_BYTES and not ours:
        return values
    given.own = <uint8_t *>malloc(count if count else 1)
    if given.own == NULL:
        raise MemoryError(f"out of memory for a copy of {count} {name}")
    at = narrow(given.view.buf, given.view.itemsize, count, highest, given.own, &wrong)
    if at < count:
        refuse(<int64_t>wrong if kind == CELLS_SIGNED else wrong, name)
    given.column.cells = given.own
    return values


cdef void given_one(Given *given, int value) noexcept:
    given.one = <uint8_t>value
    given.column.cells = &given.one


cdef object given_array(const Given *given):
    """The cells as an array of our own, in the shape in which they were given."""
    cells = PyBytes_FromStringAndSize(<const char *>given.column.cells, given.view.len // given.view.itemsize)
    return np.frombuffer(cells, UINT8).reshape(shape_of(&given.view))


cdef void given_release(Given *given) noexcept:
    PyBuffer_Release(&given.view)       # to no effect if nothing is held
    free(given.own)
    memset(given, 0, sizeof(Given))


cdef tuple shape_of(const Py_buffer *view):
    cdef list shape = []
    cdef int i
    for i in range(view.ndim):
        shape.append(view.shape[i])
    return tuple(shape)


cdef bint same_shape(const Py_buffer *a, const Py_buffer *b) noexcept:
    # Without dimensions there is no shape to look at.
    return a.ndim == b.ndim and (a.ndim == 0 or memcmp(a.shape, b.shape, a.ndim * sizeof(Py_ssize_t)) == 0)


cdef object broadcast(arrays, names):
    """Contiguous arrays of one shape."""
    cdef list ready = []
    shape = arrays[0].shape
    for array in arrays:
        if array.shape != shape:
            try:
                arrays = np.broadcast_arrays(*arrays)
            except ValueError:
                for array, name in zip(arrays, names):
                    ready.append(f"{name} {np.shape(array)}")
                raise ValueError("lengths do not broadcast: " + ", ".join(ready)) from None
            break
    for array in arrays:
        ready.append(contiguous(array))
    return ready


cdef object output_array(object out, uint64_t count, shape):
    """The caller's array for `count` bytes, checked, or a new one."""
    if out is None:
        return empty(shape, UINT8)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a uint8 array, not {type(out).__name__}")
    cells = np.asarray(out)         # a subclass may say of itself what it likes
    if cells.dtype != np.uint8:
        raise TypeError(f"out must be a uint8 array, not {cells.dtype}")
    if cells.size != count:
        raise ValueError(f"out has {cells.size} cells: need {count}")
    if not (cells.flags.c_contiguous and cells.flags.writeable):
        raise ValueError("out must be contiguous and writable")
    return out
