# The way down to one page, composing the operations on it.

cdef inline uint8_t tree_get(const Family *family, Entry e, int level, uint64_t page) noexcept nogil:
    """The attributes of one page below an entry: compose the operations on the way down."""
    cdef uint32_t handle = entry_handle(e)
    cdef uint32_t keep = 0xff, toggle = 0
    while level > 2:
        if handle == 0:
            return <uint8_t>((entry_x(e) & keep) ^ toggle)
        toggle ^= <uint32_t>(e >> 40) & keep
        keep &= <uint32_t>(e >> 32)
        if not is_node(handle):
            return <uint8_t>((run_list_raw(family, handle, page & (level_span(level) - 1)) & keep) ^ toggle)
        kvmattr_count_visit(family)
        e = kvmattr_foreseen(family.bias, handle)[(page >> (9 * (level - 2))) & 511]
        handle = entry_handle(e)
        level -= 1
    toggle ^= <uint32_t>(e >> 40) & keep
    keep &= <uint32_t>(e >> 32)
    return <uint8_t>((leaf_raw(family, handle, page & 511) & keep) ^ toggle)


cdef inline uint8_t map_get(const Map *map, uint64_t gfn) noexcept nogil:
    if gfn >= level_span(map.level):
        return map.rest
    return tree_get(map.family, map.root, map.level, gfn)
