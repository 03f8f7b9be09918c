# Arrays of runs and of differences, as the walks hand them out.

# Most guests have few runs: these are collected in a buffer with room for some in each leaf, which saves the walk
# that counts them. Of what has no room there, the number is counted first.
cdef enum:
    RUNS_IN_LEAF = 8
    RUNS_COLLECTED = 1 << 18        # 4.5 MB, of which only what is written becomes memory
    ITERATED_RUNS = 1024            # runs fetched at a time by iter_runs: 17 KB on the stack


cdef object runs_array(const Map *map, uint64_t lo, uint64_t hi):
    """The runs of [lo, hi)."""
    cdef Map pinned                 # others may write to the map meanwhile
    if lo == hi:
        return np.empty(0, RUN_DTYPE)
    pin(&pinned, map)
    try:
        array = pinned_runs(&pinned, lo, hi)
    finally:
        unpin(&pinned)
    count_entering(map.family, CALL_RUNS, len(array))
    return array


cdef object pinned_runs(const Map *pinned, uint64_t lo, uint64_t hi):
    cdef uint64_t room
    cdef RunRecord *few = NULL
    cdef Py_buffer view
    cdef RunSink sink
    cdef size_t collected, count
    room = PAGES_PER_BLOCK + RUNS_IN_LEAF * min(leaf_count(pinned.family), (hi - lo) >> 9)
    room = min(room, hi - lo, <uint64_t>RUNS_COLLECTED)
    few = <RunRecord *>malloc(room * sizeof(RunRecord))
    if few == NULL:
        raise MemoryError(f"out of memory for {room} runs")
    try:
        with nogil:
            sink = sink_into(few, room)
            map_runs(pinned, lo, hi, &sink)
            count = collected = sink.out - few
            lo = few[count - 1].stop
            count += map_run_count(pinned, lo, hi)
        array = np.empty(count, RUN_DTYPE)
        PyObject_GetBuffer(array.view(np.uint8), &view, PyBUF_WRITABLE)
        with nogil:
            memcpy(view.buf, few, collected * sizeof(RunRecord))
            sink = sink_into(<RunRecord *>view.buf + collected, count - collected)
            map_runs(pinned, lo, hi, &sink)
        PyBuffer_Release(&view)
        return array
    finally:
        free(few)


cdef list some_runs(const Map *map, uint64_t lo, uint64_t hi):
    """The first runs of [lo, hi), at most ITERATED_RUNS, as tuples."""
    cdef RunRecord[ITERATED_RUNS] runs
    cdef RunSink sink = sink_into(runs, ITERATED_RUNS)
    cdef Map pinned
    cdef Py_ssize_t i, count
    cdef list rows = []
    pin(&pinned, map)               # another thread's batch may move what this map alone holds
    map_runs(&pinned, lo, hi, &sink)
    unpin(&pinned)
    count = sink.out - runs
    count_items(map.family, CALL_RUNS, count)
    for i in range(count):
        rows.append((runs[i].start, runs[i].stop, runs[i].attributes))
    return rows


cdef inline uint64_t leaf_count(Family *family) noexcept nogil:
    """Leaves and run lists of all maps of a family."""
    cdef const Counters *has = &family.counters
    cdef bint entered = family_enter(family)
    cdef uint64_t leaves = leaves_counted(has) + has.run_lists
    family_leave(family, entered)
    return leaves


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


cdef object diff_array(const Map *before, const Map *after, uint64_t lo, uint64_t hi):
    """Where two maps of as many pages differ within [lo, hi)."""
    cdef Records records
    cdef DiffSink sink
    cdef Map old, new
    memset(&records, 0, sizeof(records))
    sink.emit = emit_diff
    sink.context = &records
    pin(&old, before)
    pin(&new, after)
    with nogil:
        maps_diff(&old, &new, lo, hi, &sink)
    unpin(&new)
    unpin(&old)
    array = records_array(&records, sizeof(DiffRecord), DIFF_DTYPE)
    count_entering(after.family, CALL_DIFF, len(array))
    return array


cdef bint maps_equal(const Map *one, const Map *other) noexcept:
    """Whether two maps have as many pages and hold the same."""
    cdef DiffSink sink
    cdef Map old, new
    cdef bint found = False
    if one.pages != other.pages:
        return False
    count_entering(other.family, CALL_DIFF, 0)
    sink.emit = emit_found
    sink.context = &found
    pin(&old, one)
    pin(&new, other)
    with nogil:
        maps_diff(&old, &new, 0, new.pages, &sink)
    unpin(&new)
    unpin(&old)
    return not found
