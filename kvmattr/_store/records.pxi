# Arrays of differences, as the walk hands them out.

cdef packed struct DiffRecord:
    uint64_t start
    uint64_t stop
    uint8_t old
    uint8_t new

# Records whose number is not known before: an array that grows.
cdef struct Records:
    char *data
    size_t count
    size_t capacity
    bint failed


cdef bint records_grow(Records *records, size_t width) noexcept nogil:
    cdef size_t capacity = 2 * records.capacity if records.capacity else 256
    cdef char *data
    data = <char *>realloc(records.data, capacity * width)
    if data == NULL:
        records.failed = True
        return False
    records.data = data
    records.capacity = capacity
    return True


cdef bint emit_diff(DiffSink *sink, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    cdef Records *records = <Records *>sink.context
    cdef DiffRecord *record
    if records.count == records.capacity and not records_grow(records, sizeof(DiffRecord)):
        return False
    record = <DiffRecord *>records.data + records.count
    record.start = start
    record.stop = stop
    record.old = old
    record.new = new
    records.count += 1
    return True


cdef bint emit_found(DiffSink *sink, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    (<bint *>sink.context)[0] = True
    return False


cdef object records_array(Records *records, size_t width, object dtype):
    """The records as an array of its own; the buffer is freed."""
    cdef Py_buffer view
    try:
        if records.failed:
            raise MemoryError(f"out of memory after {records.count} records")
        array = np.empty(records.count, dtype)
        if records.count:
            PyObject_GetBuffer(array.view(np.uint8), &view, PyBUF_WRITABLE)
            memcpy(view.buf, records.data, records.count * width)
            PyBuffer_Release(&view)
        return array
    finally:
        free(records.data)
