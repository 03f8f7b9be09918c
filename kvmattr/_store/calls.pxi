# Calls, counted where a family is entered: from Python, C and Cython, in every build.
#
# How often a program calls and about how many pages is what it decides itself, and one call a page in place of one a
# range is the commonest way to make it slow. The counters are numbers of the family, changed where nobody else may
# change them: under its mutex, or while the GIL keeps all others away. Where there is no GIL they are added to as one
# step, at any time. So a count is one instruction, or two with the pages: nothing beside a call from Python. Beside a
# look-up from C it is too much, so the C functions begin to count when somebody asks for counts (c_counted).

# In the order of Call: the name of the counters, and what else is counted of it.
cdef tuple CALL_NAMES = (
    ("get", None), ("take", "pages"), ("to_numpy", "pages"), ("bitmap", "pages"), ("search", "pages"),
    ("uniform", "pages"), ("count", "pages"), ("values", "pages"), ("run", None), ("level", None), ("seek", None),
    ("runs", "runs"), ("run_count", None), ("diff", "runs"), ("to_bytes", None),
    ("update", "pages"), ("update_many", "ranges"), ("put", "pages"), ("assign", "pages"),
    ("copy", None), ("snapshot", None), ("restore", None), ("vm_set", "ranges"))


# What makes the C functions count.
cdef void (*begin_counting)() noexcept

cdef void set_begin_counting(void (*begin)() noexcept) noexcept:
    """They stand below the parts that ask for counts."""
    global begin_counting
    begin_counting = begin


cdef inline void count_call(Family *family, int call, uint64_t items) noexcept nogil:
    """One call about so many pages, runs or ranges. The caller holds the mutex, or nobody else may write."""
    kvmattr_add(&family.called[call].calls, 1)
    kvmattr_add(&family.called[call].items, items)

cdef inline void count_one(Family *family, int call) noexcept nogil:
    """One call of a kind that is about one page, or about a whole map."""
    kvmattr_add(&family.called[call].calls, 1)

cdef void calls_now(const Family *family, Called *now) noexcept nogil:
    """The counters of this moment; with the mutex."""
    cdef int call
    for call in range(<int>CALLS):
        now[call].calls = kvmattr_number(&family.called[call].calls)
        now[call].items = kvmattr_number(&family.called[call].items)

cdef int add_calls(dict result, const Called *called) except -1:
    """The counters in the words of stats()."""
    cdef uint64_t total = 0
    cdef int call
    for call in range(<int>CALLS):
        name, items = CALL_NAMES[call]
        result[name + "_calls"] = called[call].calls
        if items is not None:
            result[f"{name}_{items}"] = called[call].items
        total += called[call].calls
    result["calls"] = total
    return 0
