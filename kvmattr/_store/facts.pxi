# What a map and its family are, for those who ask: sizes, counters, and whether every invariant holds.

cdef uint64_t map_bytes(const Map *map) noexcept:
    """Bytes of the family's live nodes and leaves, when what updates left is tidied, and of the map itself."""
    cdef Family *family = map.family
    cdef bint entered = family_enter(family)
    cdef uint64_t live
    family_tidy(family)
    live = family.counters.live_bytes
    family_leave(family, entered)
    return live + sizeof(Map) + sizeof(Family)


cdef Counters counters_now(Family *family) noexcept:
    """The counters of this moment."""
    cdef bint entered = family_enter(family)
    cdef Counters now = family.counters
    family_leave(family, entered)
    return now


cdef dict map_facts(const Map *map, uint64_t runs, const Counters *asked):
    """stats() of a map of so many runs. *asked: the counters before anything was looked at for it."""
    cdef Family *family = map.family
    cdef Counters has
    cdef Called[CALLS] called
    cdef const Map *each
    cdef uint64_t maps = 0, slack, size = map_bytes(map)
    cdef int height
    cdef bint entered = family_enter(family)
    family.counters.nodes_visited = asked.nodes_visited
    family.counters.pages_compared = asked.pages_compared
    has = family.counters
    calls_now(family, called)
    each = family.maps
    while each != NULL:
        maps += 1
        each = each.next
    slack = arena_slack(family)
    height = map.level - 1
    family_leave(family, entered)
    result = {
        "bytes": size,
        "slack": slack,
        "runs": runs,
        "height": height,
        "maps": maps,
        "nodes": has.nodes,
        "bitmap_leaves": has.leaves[0],
        "two_bit_leaves": has.leaves[1],
        "four_bit_leaves": has.leaves[2],
        "byte_leaves": has.leaves[3],
        "run_lines": has.run_lines,
        "run_lists": has.run_lists,
        "node_allocations": has.node_allocations,
        "node_frees": has.node_frees,
        "node_copies": has.node_copies,
        "leaf_allocations": has.leaf_allocations,
        "leaf_frees": has.leaf_frees,
        "leaf_conversions": has.leaf_conversions,
        "kernels": kernels.name.decode(),
    }
    add_calls(result, called)
    if KVMATTR_COUNTING_BUILD:
        result["nodes_visited"] = asked.nodes_visited
        result["pages_compared"] = asked.pages_compared
    return result


cdef int raise_broken(const Map *map) except -1:
    """AssertionError for the first invariant of the family that is broken, if one is."""
    cdef Audit audit
    cdef bint entered = family_enter(map.family)
    cdef bint sound = audit_family(&audit, map.family)
    family_leave(map.family, entered)
    if sound:
        return 0
    if audit.broken == NULL:
        raise MemoryError("out of memory for validate()")
    raise AssertionError(f"broken invariant: {audit.broken.decode()} "
                         f"(level {audit.broken_level}, gfn {audit.broken_gfn})")


cdef int audit_change(const Map *map) except -1:
    """The debug build's look after each operation, which may not fail for want of memory."""
    if KVMATTR_DEBUG_BUILD:
        try:
            raise_broken(map)
        except MemoryError:
            pass
    return 0
