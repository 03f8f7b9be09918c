# Calls, counted where a family is entered: from Python, C and Cython, in every build.
#
# How often a program calls and about how many pages is what it decides itself, and one call a page in place of one a
# range is the commonest way to make it slow. The counters are plain numbers of the family, changed where nobody else
# may change it: under its mutex, or while the GIL keeps all others away. So a count is one instruction, or two with the
# pages. C's look-ups in a snapshot are counted while the family belongs to one thread: in a shared one they take no
# lock and write nothing, so that threads which read the same snapshot do not wait for one another.

# In the order of Call: the name of the counters, and what else is counted of it.
cdef tuple CALL_NAMES = (
    ("get", None), ("take", "pages"), ("to_numpy", "pages"), ("bitmap", "pages"), ("search", "pages"),
    ("uniform", "pages"), ("count", "pages"), ("values", "pages"), ("run", None), ("level", None), ("seek", None),
    ("runs", "runs"), ("run_count", None), ("diff", "runs"), ("to_bytes", None),
    ("update", "pages"), ("update_many", "ranges"), ("put", "pages"), ("assign", "pages"),
    ("copy", None), ("snapshot", None), ("restore", None), ("vm_set", "ranges"))


cdef inline void count_call(Family *family, int call, uint64_t items) noexcept nogil:
    """One call about so many pages, runs or ranges. The caller holds the mutex, or nobody else may write."""
    family.called[call].calls += 1
    family.called[call].items += items

cdef inline void count_one(Family *family, int call) noexcept nogil:
    """One call of a kind that is about one page, or about a whole map."""
    family.called[call].calls += 1

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
