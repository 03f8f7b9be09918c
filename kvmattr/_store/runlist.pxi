# Run lists: a short list of runs in place of a node.
#
# Below an entry of level 3 or higher (1 GiB and more) a node costs 4 KiB whatever it holds. Few runs are kept
# as a list instead: 1e5 pages scattered over 2^52 then take 3 MB instead of 500, and a look-up touches
# one record instead of a chain of nodes. A list that outgrows RUN_LIST_RUNS bursts into a node,
# and a node of level 3 below which few runs are left becomes a list again (node_to_list).
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


# A list as it lies in its record: run i is [run_start(i), run_stop(i)).
cdef struct RunList:
    const Record *record            # NULL for what is no list (one_run)
    int count
    const uint64_t *starts          # of the second run and those after it
    const uint8_t *values           # before the entry's k and x


cdef inline RunList run_list_of(const Record *record) noexcept nogil:
    cdef RunList runs
    runs.record = record
    runs.count = record.count
    runs.starts = kvmattr_list_starts(record)
    runs.values = kvmattr_list_values(record, record.count)
    return runs

cdef inline RunList run_list_at(const Family *family, uint32_t handle) noexcept nogil:
    kvmattr_count_visit(family)
    return run_list_of(<const Record *>address_of(family, handle))

# Where a list of one run has no starts: none are copied from there, which C allows of no null pointer.
cdef uint64_t[1] no_starts

cdef inline RunList one_run(const uint8_t *value) noexcept nogil:
    """What a uniform entry would be as a list."""
    cdef RunList runs
    runs.record = NULL
    runs.count = 1
    runs.starts = &no_starts[0]
    runs.values = value
    return runs

cdef inline uint64_t run_start(const RunList *runs, int i) noexcept nogil:
    return runs.starts[i - 1] if i else 0

cdef inline uint64_t run_stop(const RunList *runs, int i, uint64_t span) noexcept nogil:
    """Where run i ends, of a list below an entry of so many pages."""
    return runs.starts[i] if i < runs.count - 1 else span


cdef inline int run_find(const RunList *runs, uint64_t page) noexcept nogil:
    """The number of the run that holds a page."""
    return <int>kernels.find(runs.starts, <unsigned int>(runs.count - 1), page)


cdef uint8_t run_list_raw(const Family *family, uint32_t handle, uint64_t page) noexcept nogil:
    """The stored value of one page, before the entry's k and x."""
    cdef RunList runs = run_list_at(family, handle)
    return runs.values[run_find(&runs, page)]


# The runs of a list that a range of its pages meets, clipped to it:
#
#     met = list_meets(family, e, lo, hi, k, x)
#     for i in range(met.first, met.last + 1):
#         met_start(&met, i), met_stop(&met, i), met_value(&met, i)
cdef struct MetRuns:
    RunList runs
    int first
    int last
    uint64_t lo
    uint64_t hi
    uint8_t k
    uint8_t x


cdef inline MetRuns list_meets(const Family *family, Entry e, uint64_t lo, uint64_t hi, uint8_t k,
                               uint8_t x) noexcept nogil:
    """The runs of [lo, hi), not empty, of the run list below an entry; (k, x) is what the entries above do to them."""
    cdef MetRuns met
    met.runs = run_list_at(family, entry_handle(e))
    met.first = run_find(&met.runs, lo)
    met.last = run_find(&met.runs, hi - 1)
    met.lo = lo
    met.hi = hi
    met.k = composed_k(e, k)
    met.x = composed_x(e, k, x)
    return met

cdef inline uint64_t met_start(const MetRuns *met, int i) noexcept nogil:
    return met.lo if i == met.first else met.runs.starts[i - 1]

cdef inline uint64_t met_stop(const MetRuns *met, int i) noexcept nogil:
    return met.hi if i == met.last else met.runs.starts[i]

cdef inline uint8_t met_value(const MetRuns *met, int i) noexcept nogil:
    return (met.runs.values[i] & met.k) ^ met.x


cdef void runs_load(const Family *family, Entry e, Runs *runs) noexcept nogil:
    """The runs of a uniform entry or a run list, the entry's operation applied, neighbours merged."""
    cdef RunList old
    cdef int i
    runs.count = 1
    runs.starts[0] = 0
    runs.values[0] = entry_first(e)
    if entry_handle(e) == 0:
        return
    old = run_list_at(family, entry_handle(e))
    if entry_k(e) == 0xff and entry_x(e) == 0:
        runs.count = old.count
        memcpy(&runs.starts[1], old.starts, 8 * (old.count - 1))
        memcpy(runs.values, old.values, old.count)
        return
    for i in range(1, old.count):
        runs_append(runs, run_start(&old, i), (old.values[i] & entry_k(e)) ^ entry_x(e))


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


cdef inline bint record_serves(const Record *record, int count) noexcept nogil:
    """Whether a list that is to have so many runs stays in its record: it is ours, and not much too large, so that a
    page that comes and goes does not move its list each time."""
    return record.references == 1 and <uint32_t>(record.size_class - class_of_runs[count]) <= 1


cdef inline void record_splice(Record *record, const RunList *runs, const Splice *splice, int now) noexcept nogil:
    """A list spliced, in its own record or into another, which has room."""
    kernels.splice(splice, runs.count, runs.starts, runs.values, kvmattr_list_starts(record),
                   kvmattr_list_values(record, now))
    record.count = <uint16_t>now


cdef uint32_t run_list_spliced(Family *family, uint32_t old, const RunList *runs, const Splice *splice,
                               int now) noexcept nogil:
    """A new list of so many runs in place of `old` (0: none, one run), whose reference passes to this call."""
    cdef uint32_t handle = list_new(family, class_of_runs[now])
    record_splice(<Record *>address_of(family, handle), runs, splice, now)
    release(family, old)
    return handle


cdef inline uint8_t spliced_varying(Entry e, const uint8_t *values, int now, const Splice *splice, bint one,
                                    uint8_t old, uint8_t value) noexcept nogil:
    """What varies in a list of an entry now that it was spliced: pages got a value, of which those of the first run had
    another, `old`; all of them if they lay in one."""
    cdef int i = splice.at - 2 if splice.at > 2 else 0
    if splice.gone:                 # a value may have gone that was the only one to have some bit
        while i < now and i < splice.at + 2 and values[i] != old:
            i += 1
        if not one or i == now or i == splice.at + 2:       # one that went alone is mostly near still
            return runs_varying(values, now)
    return entry_varying(e) | (value ^ entry_first(e))


cdef bint run_list_put(Family *family, Entry *slot, const RunList *runs, uint64_t lo, uint64_t hi, uint64_t span,
                       int first, int last, uint8_t value) noexcept nogil:
    """Give the pages [lo, hi) of a run list, on which nothing is pending, or of a uniform entry one value: runs are
    taken out and put in where they stand. They lie in the runs first .. last, and lo > 0, as the first run has no start
    of its own. False, with nothing done, where the list would be too long."""
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef Splice splice
    cdef Record *record
    cdef uint8_t old = runs.values[first], varying
    cdef int now
    splice_plan(&splice, runs.values, runs.count, first, last, run_start(runs, first) == lo,
                run_stop(runs, last, span) == hi, lo, hi, value)
    now = runs.count + splice.added - splice.gone
    if now > RUN_LIST_RUNS:
        return False
    if now == 1:
        release(family, handle)
        slot[0] = entry_uniform(entry_first(e))
        return True
    if handle and record_serves(runs.record, now):
        record_splice(<Record *>runs.record, runs, &splice, now)
    else:
        handle = run_list_spliced(family, handle, runs, &splice, now)
    record = <Record *>address_of(family, handle)
    varying = spliced_varying(e, kvmattr_list_values(record, now), now, &splice, first == last, old, value)
    slot[0] = entry_make(handle, 0xff, 0, varying, entry_first(e))
    return True


cdef bint run_list_write(Family *family, Entry *slot, uint64_t lo, uint64_t hi, uint64_t span, uint8_t k,
                         uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on [lo, hi) of a run list or a uniform entry as run_list_put, if that gives all pages there
    one value. False, with nothing done, where that is not so."""
    cdef Entry e = slot[0]
    cdef uint8_t only = entry_first(e)
    cdef RunList runs = one_run(&only)
    cdef int first = 0, last = 0
    if lo == 0:
        return False
    if entry_handle(e):
        if entry_k(e) != 0xff or entry_x(e) != 0:
            return False
        runs = run_list_at(family, entry_handle(e))
        first = run_find(&runs, lo)
        last = run_find(&runs, hi - 1)
        if last != first and k:
            return False
    return run_list_put(family, slot, &runs, lo, hi, span, first, last, (runs.values[first] & k) ^ x)


cdef uint32_t run_list_place(Family *family, uint32_t old, int count) noexcept nogil:
    """A list for so many runs, still to be written, in place of the list `old` (0 for none), whose reference passes to
    this call."""
    cdef Record *record
    if old:
        record = <Record *>address_of(family, old)
        if record.references == 1 and record.size_class == class_of_runs[count]:
            return old
        release(family, old)
    return list_new(family, class_of_runs[count])


cdef Entry run_list_store(Family *family, uint32_t old, const Runs *runs) noexcept nogil:
    """The entry for 2 .. RUN_LIST_RUNS runs in place of the list `old` (0 for none), whose reference passes
    to this call."""
    cdef uint32_t handle = run_list_place(family, old, runs.count)
    cdef Record *record = <Record *>address_of(family, handle)
    record.count = <uint16_t>runs.count
    memcpy(kvmattr_list_starts(record), &runs.starts[1], 8 * (runs.count - 1))
    memcpy(kvmattr_list_values(record, runs.count), runs.values, runs.count)
    return entry_make(handle, 0xff, 0, runs_varying(runs.values, runs.count), runs.values[0])


cdef Entry run_list_copy(Family *family, uint32_t old, const Record *record) noexcept nogil:
    """The entry for a list of 2 .. RUN_LIST_RUNS runs that was made elsewhere, in place of the list `old` as above."""
    cdef uint32_t handle = run_list_place(family, old, record.count)
    cdef Record *copy = <Record *>address_of(family, handle)
    cdef const uint8_t *values = kvmattr_list_values(record, record.count)
    copy.count = record.count
    memcpy(kvmattr_list_starts(copy), kvmattr_list_starts(record), run_list_size(record.count) - sizeof(Record))
    return entry_make(handle, 0xff, 0, runs_varying(values, record.count), values[0])


cdef void list_load(const Family *family, Entry e, Record *record) noexcept nogil:
    """The runs of a run list, the entry's operation applied, in a place for as many as a list may have."""
    cdef const Record *list = <const Record *>address_of(family, entry_handle(e))
    cdef Runs runs
    if entry_k(e) == 0xff and entry_x(e) == 0:
        kvmattr_count_visit(family)
        memcpy(record, list, run_list_size(list.count))
        return
    runs_load(family, e, &runs)
    record.count = <uint16_t>runs.count
    memcpy(kvmattr_list_starts(record), &runs.starts[1], 8 * (runs.count - 1))
    memcpy(kvmattr_list_values(record, runs.count), runs.values, runs.count)


cdef bint list_shrink(Family *family, Entry *slot) noexcept nogil:
    """A list that became short where it lies: one of one run goes, and one that is much too short for its record gets a
    smaller, if there is memory for it. Whether either was so."""
    cdef uint32_t handle = entry_handle(slot[0]), smaller
    cdef Record *record = <Record *>address_of(family, handle)
    cdef int count = record.count
    if count == 1:
        slot[0] = entry_uniform(entry_first(slot[0]))
    elif record.size_class <= class_of_runs[count] + 1 or available_pages(family) == 0:
        return False
    else:
        smaller = list_new(family, class_of_runs[count])
        memcpy(kvmattr_list_starts(<Record *>address_of(family, smaller)), kvmattr_list_starts(record),
               run_list_size(count) - sizeof(Record))
        (<Record *>address_of(family, smaller)).count = <uint16_t>count
        slot[0] = slot[0] & ~<uint64_t>0xffffffff | smaller
    release(family, handle)
    return True
