# Run lists: a short list of runs in place of a node.
#
# Below an entry of level 3 or higher (1 GiB and more) a node costs 4 KiB whatever it holds. Few runs are kept
# as a list instead: 1e5 pages scattered over 2^52 then take 3 MB instead of 500, and a look-up touches
# one record instead of a chain of nodes. A list that outgrows RUN_LIST_RUNS bursts into a node.
#
# The record: n - 1 starts (64 bits, relative to the subtree), then n values. The first run starts at 0.

cdef enum:
    RUN_LIST_RUNS = KVMATTR_LIST_RUNS   # 56: a cap of 28 costs four times the memory at 1e6 scattered pages (measured)
    RUN_BUFFER = RUN_LIST_RUNS + 4


# Runs in a buffer of the caller's, being changed: run i is [starts[i], starts[i + 1]), the last one ends
# where the subtree ends.
cdef struct Runs:
    int count
    uint64_t[RUN_BUFFER] starts
    uint8_t[RUN_BUFFER] values


cdef inline int run_list_size(int count) noexcept nogil:
    return <int>sizeof(Record) + 8 * (count - 1) + count


cdef inline int run_list_find(const uint64_t *starts, int count, uint64_t page) noexcept nogil:
    """The number of the run that holds a page; starts[] lacks the first run's 0."""
    cdef int low = 0, high = count - 1, middle
    while low < high:
        middle = (low + high) >> 1
        if starts[middle] <= page:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline const Record *run_list_at(const Family *family, uint32_t handle, const uint64_t **starts,
                                      const uint8_t **values) noexcept nogil:
    cdef const Record *record = <const Record *>address_of(family, handle)
    kvmattr_count_visit(family)
    starts[0] = <const uint64_t *>(<const uint8_t *>record + sizeof(Record))
    values[0] = <const uint8_t *>(starts[0] + record.count - 1)
    return record


cdef uint8_t run_list_raw(const Family *family, uint32_t handle, uint64_t page) noexcept nogil:
    """The stored value of one page, before the entry's k and x."""
    cdef const uint64_t *starts
    cdef const uint8_t *values
    cdef const Record *record = run_list_at(family, handle, &starts, &values)
    return values[run_list_find(starts, record.count, page)]


cdef void runs_load(const Family *family, Entry e, Runs *runs) noexcept nogil:
    """The runs of a uniform entry or a run list, the entry's operation applied, neighbours merged."""
    cdef const uint64_t *starts
    cdef const uint8_t *values
    cdef const Record *record
    cdef uint8_t value
    cdef int i
    runs.count = 1
    runs.starts[0] = 0
    runs.values[0] = entry_first(e)
    if entry_handle(e) == 0:
        return
    record = run_list_at(family, entry_handle(e), &starts, &values)
    for i in range(1, record.count):
        value = (values[i] & entry_k(e)) ^ entry_x(e)
        if value != runs.values[runs.count - 1]:
            runs.starts[runs.count] = starts[i - 1]
            runs.values[runs.count] = value
            runs.count += 1


cdef void runs_apply(Runs *runs, uint64_t lo, uint64_t hi, uint64_t span, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on [lo, hi): at most two runs more."""
    cdef Runs old = runs[0]
    cdef uint64_t start, stop
    cdef uint8_t value
    cdef int i
    runs.count = 0
    for i in range(old.count):
        start = old.starts[i]
        stop = old.starts[i + 1] if i + 1 < old.count else span
        value = old.values[i]
        if start < lo:
            runs_append(runs, start, value)
        if stop > lo and start < hi:
            runs_append(runs, start if start > lo else lo, (value & k) ^ x)
        if stop > hi:
            runs_append(runs, start if start > hi else hi, value)


cdef inline void runs_append(Runs *runs, uint64_t start, uint8_t value) noexcept nogil:
    if runs.count and runs.values[runs.count - 1] == value:
        return
    runs.starts[runs.count] = start
    runs.values[runs.count] = value
    runs.count += 1


cdef Entry run_list_store(Family *family, uint32_t old, const Runs *runs) noexcept nogil:
    """The entry for 2 .. RUN_LIST_RUNS runs in place of the list `old` (0 for none), whose reference passes
    to this call."""
    cdef int size_class = class_of_units[(run_list_size(runs.count) + 15) // 16]
    cdef uint32_t handle = old
    cdef Record *record
    cdef uint64_t *starts
    cdef uint8_t *values
    cdef uint8_t varying = 0
    cdef int i
    if (not old or reference_count(family, old)[0] != 1
            or (<Record *>address_of(family, old)).size_class != size_class):
        release(family, old)
        handle = list_new(family, size_class)
    record = <Record *>address_of(family, handle)
    record.count = <uint16_t>runs.count
    starts = <uint64_t *>(<uint8_t *>record + sizeof(Record))
    values = <uint8_t *>(starts + runs.count - 1)
    memcpy(starts, &runs.starts[1], 8 * (runs.count - 1))
    memcpy(values, runs.values, runs.count)
    for i in range(1, runs.count):
        varying |= runs.values[i] ^ runs.values[0]
    return entry_make(handle, 0xff, 0, varying, runs.values[0])
