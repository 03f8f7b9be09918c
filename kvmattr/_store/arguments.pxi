# What Python hands in, checked before anything is done. Every message holds the value and the rule.

cdef object WRITE = Operation.WRITE
cdef dict OPERATION_NAMES = {0: "WRITE", 1: "OR", 2: "AND"}

RUN_DTYPE = np.dtype([("start", "<u8"), ("stop", "<u8"), ("attributes", "u1")])
DIFF_DTYPE = np.dtype([("start", "<u8"), ("stop", "<u8"), ("old", "u1"), ("new", "u1")])

#: The number of pages of KVM's guest-physical space: addresses are 64 bits, a page is 4 KiB.
GFN_LIMIT = 1 << 52

cdef object GFN_SHOWN = 1 << 1024

# What every call about arrays needs: to look up numpy's names costs as much as to look up some sixty pages in a map.
cdef object NDARRAY = np.ndarray
cdef object INTEGER = np.integer
cdef object asarray = np.asarray
cdef object empty = np.empty
# One object each for all arrays of these types, but for those that another program or byte order made.
cdef object UINT8 = np.dtype(np.uint8)
cdef object UINT64 = np.dtype(np.uint64)
cdef object INT64 = np.dtype(np.int64)


cdef inline bint is_scalar(object value):
    if type(value) is NDARRAY:
        return value.ndim == 0
    if isinstance(value, int) or isinstance(value, INTEGER):
        return True
    return not isinstance(value, bytes) and np.ndim(value) == 0


cdef inline bint is_page(object key):
    """Whether what stands between brackets is one gfn, as for a list. Arrays are none, also without dimensions, also
    those of other libraries, which have __index__ for what has one element."""
    if isinstance(key, int) or isinstance(key, INTEGER):
        return True
    return PyIndex_Check(key) and not hasattr(key, "__array__")


cdef inline uint64_t gfn_of(object value, uint64_t pages) except? 0xffffffffffffffff:
    cdef int64_t number
    if kvmattr_integer(value, &number) or number < 0 or <uint64_t>number >= pages:
        raise_gfn(value, pages)
    return <uint64_t>number


cdef object shown(object value):
    """An integer for an error text; Python refuses to print those of thousands of digits as decimals."""
    if isinstance(value, int) and not -GFN_SHOWN < value < GFN_SHOWN:
        return f"{value:#x}"
    return value


cdef int raise_gfn(object value, uint64_t pages) except -1:
    raise IndexError(f"gfn {shown(value)} is outside [0, {pages})")


cdef inline int range_of(object start, object stop, uint64_t pages, uint64_t *lo, uint64_t *hi) except -1:
    cdef int64_t first, last
    # Not `or`: both are to be integers, whichever is out of range.
    cdef int wide = kvmattr_integer(start, &first)
    wide |= kvmattr_integer(stop, &last)
    if wide or first < 0 or last < first or <uint64_t>last > pages:
        raise_range(start, stop, pages)
    lo[0] = <uint64_t>first
    hi[0] = <uint64_t>last
    return 0


cdef int raise_range(object start, object stop, uint64_t pages) except -1:
    raise ValueError(f"range [{shown(start)}, {shown(stop)}): need 0 <= start <= stop <= {pages}")


cdef inline int byte_of(object value, str name) except -1:
    cdef int64_t number
    if kvmattr_integer(value, &number) or number < 0 or number > 255:
        raise_byte(value, name)
    return <int>number


cdef int raise_byte(object value, str name) except -1:
    raise ValueError(f"{name} {shown(value)} is outside 0..255")


cdef inline int operation_of(object value) except -1:
    cdef int64_t number
    if value is WRITE:
        return 0
    if kvmattr_integer(value, &number) or number < 0 or number > 2:
        raise_operation(value, "operation")
    return <int>number


cdef int raise_operation(object value, str name) except -1:
    raise ValueError(f"{name} {shown(value)} is none of WRITE = 0, OR = 1, AND = 2")


cdef int gfn_or_end(object value, uint64_t pages, uint64_t *result) except -1:
    """Where a range may begin: a gfn, or npages."""
    cdef int64_t number
    if kvmattr_integer(value, &number) or number < 0 or <uint64_t>number > pages:
        raise ValueError(f"start {shown(value)} is outside 0..{pages}")
    result[0] = <uint64_t>number
    return 0


cdef object bounds_of(slice key, uint64_t pages):
    """The bounds of m[a:b]: step 1, not clamped, nothing counted from the end."""
    if key.step is not None and key.step != 1:
        raise ValueError(f"slice step {key.step}: need 1")
    return (0 if key.start is None else key.start), (pages if key.stop is None else key.stop)


cdef object array_key(object key):
    """The gfns of m[array]: whatever ``take`` reads, less what numpy would take for an axis, a name or a number."""
    if isinstance(key, (list, NDARRAY, range)):
        return key
    if not isinstance(key, (bytes, bytearray, np.generic)) and (hasattr(key, "__array__") or PyObject_CheckBuffer(key)):
        return key
    raise TypeError(f"index must be an integer, a slice or an array of integers, not {type(key).__name__}")


# ---- arrays ----

cdef object bit_words(object bits):
    """Packed little-endian bits as 64-bit words of our own, padded with 0."""
    if isinstance(bits, np.ndarray):
        if bits.dtype != np.uint8 and bits.dtype != np.dtype("<u8"):
            raise TypeError(f"bits must be uint8 or little-endian uint64, not {bits.dtype}")
        bits = np.ascontiguousarray(bits).ravel().view(np.uint8)
    else:
        bits = memoryview(bits)
        bits = np.frombuffer(bits if bits.c_contiguous else bits.tobytes(), np.uint8)
    padded = np.zeros((bits.size + 7) // 8 * 8, np.uint8)
    padded[:bits.size] = bits
    return padded.view("<u8")


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


cdef int hold(object array, Py_buffer *view, int access, size_t size) except -1:
    """The memory of an array that was looked at before. Its size is asked once more: it may be another by now, where
    another thread, or a method of the array's own class, has changed it."""
    PyObject_GetBuffer(array, view, access)
    if <size_t>view.len != size:
        changed = view.len
        PyBuffer_Release(view)
        raise ValueError(f"an array of {size} bytes became one of {changed} while it was used")
    return 0


cdef int check_gfns(object given, object cells, uint64_t pages) except -1:
    """IndexError with the first gfn outside the map, if there is one."""
    cdef Py_buffer view
    cdef size_t at
    cdef uint64_t wrong
    PyObject_GetBuffer(cells, &view, PyBUF_SIMPLE)
    with nogil:
        at = first_outside(<const uint64_t *>view.buf, view.len // 8, pages, &wrong)
    PyBuffer_Release(&view)
    if at < <size_t>cells.size:
        raise_gfn(cell_given(given, at, wrong), pages)
    return 0


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


cdef object operation_array(object values):
    return small_integers(values, "operation", KVMATTR_OPERATION_AND, raise_operation)


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


cdef void changes_of(const uint8_t *attributes, const uint8_t *operation, Py_ssize_t operation_step,
                     const uint8_t *mask, Py_ssize_t mask_step, uint8_t *k, uint8_t *x,
                     Py_ssize_t count) noexcept nogil:
    """k and x of `count` updates; a step of 0 uses the first operation, the first mask, for all. The attributes may be
    another thread's, and k and x must come of one reading of them; operation and mask are ours."""
    cdef int only_operation
    cdef uint8_t only_mask
    cdef Change change
    cdef Py_ssize_t i
    kvmattr_read_once(x, attributes, count)
    if operation_step == 0 and mask_step == 0:
        only_operation = operation[0]
        only_mask = mask[0]
        # The compiler makes vectors of this loop, which for single pages is a sixth of the time of put.
        for i in range(count):
            change = change_of(x[i], only_operation, only_mask)
            k[i] = change.k
            x[i] = change.x
        return
    for i in range(count):
        change = change_of(x[i], operation[i * operation_step], mask[i * mask_step])
        k[i] = change.k
        x[i] = change.x


cdef object change_arrays(object attributes, object operation, object mask, str name, object pages):
    """k and x of updates whose attributes, operations and masks are arrays that broadcast, with each other and with
    the pages or ranges called `name`; of the shape that this gives."""
    cdef Py_buffer attributes_view, operation_view, mask_view, k_view, x_view
    cdef Py_ssize_t operation_step = 1, mask_step = 1
    cdef uint8_t one_operation = 0, one_mask = 0
    cdef const uint8_t *operations = &one_operation
    cdef const uint8_t *masks = &one_mask
    arrays = [pages, byte_array(attributes, "attributes")]
    names = [name, "attributes"]
    if is_scalar(operation):        # one for all
        one_operation = <uint8_t>operation_of(operation)
        operation_step = 0
    else:
        arrays.append(operation_array(operation))
        names.append("operation")
    if is_scalar(mask):
        one_mask = <uint8_t>byte_of(mask, "mask")
        mask_step = 0
    else:
        arrays.append(byte_array(mask, "mask").copy())      # looked at more than once
        names.append("mask")
    arrays = broadcast(arrays, names)
    attributes = arrays[1]
    if operation_step:
        operation = arrays[2]
    if mask_step:
        mask = arrays[len(arrays) - 1]
    k = empty(attributes.shape, UINT8)
    x = empty(attributes.shape, UINT8)
    hold(attributes, &attributes_view, PyBUF_SIMPLE, k.size)    # of all these only the attributes may be the caller's
    if operation_step:
        PyObject_GetBuffer(operation, &operation_view, PyBUF_SIMPLE)
        operations = <const uint8_t *>operation_view.buf
    if mask_step:
        PyObject_GetBuffer(mask, &mask_view, PyBUF_SIMPLE)
        masks = <const uint8_t *>mask_view.buf
    PyObject_GetBuffer(k, &k_view, PyBUF_WRITABLE)
    PyObject_GetBuffer(x, &x_view, PyBUF_WRITABLE)
    changes_of(<const uint8_t *>attributes_view.buf, operations, operation_step, masks, mask_step,
               <uint8_t *>k_view.buf, <uint8_t *>x_view.buf, attributes_view.len)
    PyBuffer_Release(&attributes_view)
    if operation_step:
        PyBuffer_Release(&operation_view)
    if mask_step:
        PyBuffer_Release(&mask_view)
    PyBuffer_Release(&k_view)
    PyBuffer_Release(&x_view)
    return k, x


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


cdef object bound_arrays(object starts, object stops, uint64_t pages):
    """uint64 arrays of range bounds, broadcast and checked."""
    cdef Py_buffer starts_view, stops_view
    cdef const uint64_t *first
    cdef const uint64_t *last
    cdef uint64_t lo = 0, hi = 0
    cdef Py_ssize_t i, count
    starts = integer_array(starts, "starts")
    stops = integer_array(stops, "stops")
    starts, stops = broadcast((starts, stops), ("starts", "stops"))
    # A negative bound becomes one beyond any map.
    start_cells = gfn_cells(starts)
    stop_cells = gfn_cells(stops)
    if starts.size == 0:
        return start_cells, stop_cells
    PyObject_GetBuffer(start_cells, &starts_view, PyBUF_SIMPLE)
    try:
        hold(stop_cells, &stops_view, PyBUF_SIMPLE, starts_view.len)
    except BaseException:
        PyBuffer_Release(&starts_view)
        raise
    first = <const uint64_t *>starts_view.buf
    last = <const uint64_t *>stops_view.buf
    count = starts_view.len // 8
    i = 0
    with nogil:
        while i < count:
            kvmattr_read_once(&lo, &first[i], 8)
            kvmattr_read_once(&hi, &last[i], 8)
            if not lo <= hi <= pages:
                break
            i += 1
    PyBuffer_Release(&starts_view)
    PyBuffer_Release(&stops_view)
    if i < count:
        raise_range(cell_given(starts, i, lo), cell_given(stops, i, hi), pages)
    return start_cells, stop_cells


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
