# Updates: the one door for new = (old & k) ^ x on a page or a range.
#
# An update goes in three steps: is there anything to change, is there memory for the worst case (arena_reserve), then
# change it, which cannot fail any more. A range asks first and then goes down (query.pxi, change.pxi). A page does both
# on one way down: in a leaf of fields it is the write of a field, in a run line or a run list a run more or less, in a
# uniform block the first field of a new leaf. What is shared on the way is copied first, and what the change leaves to
# be tidied is tidied after it (compact.pxi).

cdef UpdateResult map_update(Map *map, uint64_t start, uint64_t stop, uint8_t k, uint8_t x) noexcept nogil:
    """new = (old & k) ^ x on [start, stop), for Python, C, Cython and the machine alike; the caller has checked it, and
    holds the mutex where it must. Exact news of whether it changed any page; out of memory changes nothing."""
    if stop - start == 1:
        return map_update_page(map, start, k, x)
    return range_update(map, start, stop, k, x)


cdef inline UpdateResult map_update_page(Map *map, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """The same for a page."""
    cdef UpdateResult result = page_update(map, gfn, k, x)
    if map.family.untidy:
        family_settle(map.family)
    return result


cdef UpdateResult range_update(Map *map, uint64_t start, uint64_t stop, uint8_t k, uint8_t x) noexcept nogil:
    if start >= stop:
        return UPDATE_UNCHANGED
    if not map_would_change(map, start, stop, k, x):
        return UPDATE_UNCHANGED
    if not family_reserves(map.family):
        return UPDATE_NO_MEMORY
    map_change(map, start, stop, k, x)
    return UPDATE_CHANGED


cdef inline bint family_reserves(Family *family) noexcept nogil:
    """Whether there is memory for the worst of one update."""
    return available_pages(family) >= RESERVE_PAGES or arena_reserve(family, RESERVE_PAGES) == 0


# ---- one page ----
#
# It is none of those whose value entries above its block know: not the first below a node of level 3, not the last of
# the map. Where an operation is pending on the way, or the value fits no field, it goes the way of a range.
#
# In a family of one map nothing is shared, but with dead nodes, which nobody reads: it writes where it is.

# Called through pointers, so that no compiler takes them into page_update, whose short way then saves few registers.
cdef UpdateResult (*at_edge)(Map *map, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil
cdef UpdateResult (*in_list)(Map *map, Entry *slot, int shift, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil
cdef UpdateResult (*in_shared_list)(Map *map, Entry *slot, int shift, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil
cdef UpdateResult (*in_other_block)(Map *map, Entry e, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil
cdef UpdateResult (*in_bits)(Map *map, Entry e, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil
cdef void (*perhaps_uniform)(Map *map, uint64_t gfn) noexcept nogil
at_edge = page_update_at_edge
in_list = page_update_in_list
in_shared_list = page_update_apart
in_other_block = page_update_in_block
in_bits = page_update_in_bits
perhaps_uniform = leaf_collapse


cdef inline UpdateResult page_update(Map *map, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """The update of one page. What earlier updates left to be tidied is left so."""
    cdef Family *family = map.family
    cdef bint alone = family.maps.next == NULL
    cdef bint agrees
    cdef Entry e
    cdef Way way
    cdef uint64_t *where
    cdef uint64_t field, fields, old, word
    cdef uint32_t handle, bit
    cdef uint8_t held, turned, folded
    cdef int wide
    if gfn >> level_shift(map.level) or gfn & (level_span(3) - 1) == 0 or gfn + 1 == map.pages:
        return at_edge(map, gfn, k, x)
    if alone:
        way = way_down(family, &map.root, map.level, 2, gfn, 0)
    else:
        way = way_down(family, &map.root, map.level, 2, gfn, WAY_SHARES)
    e = way.entry
    if way.shift > level_shift(2):
        if way.shared:
            return in_shared_list(map, <Entry *>way.slot, way.shift, gfn, k, x)
        return in_list(map, <Entry *>way.slot, way.shift, gfn, k, x)
    handle = entry_handle(e)
    if handle == 0 or is_line(handle) or not (alone or way_owns_leaf(family, &way)):
        return in_other_block(map, e, gfn, k, x)
    # No branch is on whether the page changes: half of them would be foreseen wrongly, each time after the wait for the
    # leaf, and what comes after could not begin to wait for its own. That a value fits is foreseen.
    kvmattr_count_pages(family, 1)
    wide = wide_of(handle)
    bit = <uint32_t>(gfn & 511) << wide
    where = leaf_at(family, handle) + (bit >> 6)
    old = where[0]
    held = <uint8_t>((old >> (bit & 63) & kvmattr_field_masks[wide]) * kvmattr_field_repeats[wide]) & entry_k(e)
    turned = (held ^ entry_x(e)) & k ^ x ^ entry_x(e)
    folded = kvmattr_fold(wide, turned)
    if folded & entry_k(e) != turned or (turned ^ entry_x(e) ^ entry_first(e)) & ~entry_varying(e):
        if alone and wide == 0:
            return in_bits(map, e, gfn, k, x)
        return in_other_block(map, e, gfn, k, x)
    field = kvmattr_field_masks[wide] << (bit & 63)
    fields = kvmattr_everywhere(folded)
    word = old ^ (old ^ fields) & field
    where[0] = word
    # By what its value differs: the field may have had bits that the entry leaves out.
    agrees = kvmattr_page_agrees(where, wide, kvmattr_everywhere(kvmattr_fold(wide, held ^ turned)) & field, fields)
    if gfn & 511 == 0:
        # The F of the entries above is another block's.
        (<Entry *>way.slot)[0] = entry_make(handle, entry_k(e), entry_x(e), entry_varying(e), (entry_first(e) & k) ^ x)
    # Not whether the word did: it may have bits that the entry leaves out.
    kvmattr_raise_version(&map.version, turned != held)
    if agrees:
        perhaps_uniform(map, gfn)
    return <UpdateResult>(turned != held)


cdef UpdateResult page_update_in_bits(Map *map, Entry e, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """A page whose new value does not fit its leaf of one bit, in a family of one map: most often it alone has its
    value there, and nothing changes but entries."""
    cdef Family *family = map.family
    cdef uint8_t old, new
    cdef bint loose = False
    if not page_is_alone(family, entry_handle(e), gfn & 511):
        return in_other_block(map, e, gfn, k, x)
    if not family_reserves(family):
        return UPDATE_NO_MEMORY
    old = leaf_raw(family, entry_handle(e), gfn & 511) & entry_k(e) ^ entry_x(e)
    new = (old & k) ^ x
    way_own(map, gfn, 2, new ^ old, &loose)[0] = lone_page_recoded(family, e, gfn & 511, new)
    family.blocks_changed += 1
    kvmattr_raise_version(&map.version, 1)
    if loose:
        map_tighten(map, gfn)
    return UPDATE_CHANGED


cdef UpdateResult page_update_in_block(Map *map, Entry e, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """A page whose way leads to the block of entry `e`, and which is not the write of a field and nothing else: the
    second value of its uniform block, the first with some bit, one whose leaf is not ours alone, or one by which its
    leaf may become another."""
    cdef Family *family = map.family
    cdef Entry *slot
    cdef uint32_t handle = entry_handle(e)
    cdef uint8_t old = (leaf_raw(family, handle, gfn & 511) & entry_k(e)) ^ entry_x(e), new = (old & k) ^ x
    cdef bint loose = False
    if new == old:
        return UPDATE_UNCHANGED
    if not family_reserves(family):
        return UPDATE_NO_MEMORY
    slot = way_own(map, gfn, 2, new ^ old, &loose)
    if handle == 0 or is_line(handle) or not field_fits(slot[0], new):
        if handle == 0:
            leaf_begin(family, slot, gfn & 511, new)
        elif handle & KVMATTR_TAG == 0 and page_is_alone(family, handle, gfn & 511):
            # It becomes ours though its fields stay, as a batch goes on to write them.
            slot[0] = lone_page_recoded(family, slot[0] ^ handle ^ leaf_own(family, handle), gfn & 511, new)
        else:
            leaf_update(family, slot, <int>(gfn & 511), <int>(gfn & 511) + 1, 0, new)
        # Nobody has located pages of a line as if they were fields.
        family.blocks_changed += not (is_line(handle) and is_line(entry_handle(slot[0])))
        page_settle(map, gfn, loose or entry_handle(slot[0]) == 0)
        return UPDATE_CHANGED
    if family.maps.next != NULL:
        handle = leaf_own(family, handle)
    slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | handle | <uint64_t>(new ^ old) << KVMATTR_V
    if loose:
        field_put(map, slot, gfn, new)
        map_tighten(map, gfn)
    elif field_put(map, slot, gfn, new):
        leaf_collapse(map, gfn)
    else:
        family_settle(family)
    return UPDATE_CHANGED


cdef UpdateResult page_update_at_edge(Map *map, uint64_t gfn, uint8_t k, uint8_t x) noexcept nogil:
    """A page beyond the root, which grows for it, or one that entries of nodes know."""
    if gfn & (level_span(3) - 1) == 0 or gfn + 1 == map.pages:
        return range_update(map, gfn, gfn + 1, k, x)
    if (map.rest & k) ^ x == map.rest:
        return UPDATE_UNCHANGED
    if not family_reserves(map.family):
        return UPDATE_NO_MEMORY
    while gfn >= level_span(map.level):
        map_heighten(map)
    return page_update(map, gfn, k, x)


cdef UpdateResult page_update_in_list(Map *map, Entry *slot, int shift, uint64_t gfn, uint8_t k,
                                      uint8_t x) noexcept nogil:
    """A page whose way, of which all nodes are ours, ends above level 2: most often at a run list, which has room in
    its record. What varies below the list's entry does mostly not change by it."""
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef uint64_t span = <uint64_t>1 << shift
    cdef Record *record
    cdef uint32_t done = KVMATTR_LIST_FULL
    cdef uint8_t varying
    cdef bint shrunk
    if handle == 0 or is_node(handle) or e & <uint64_t>0xffff00000000 != <uint64_t>0xff00000000:
        return page_update_apart(map, slot, shift, gfn, k, x)
    record = <Record *>address_of(map.family, handle)
    if record.references == 1:
        done = kernels.list_put(record, gfn & (span - 1), span, k, x, class_runs[record.size_class])
    if done == KVMATTR_LIST_FULL:
        return page_update_moved(map, slot, shift, gfn, k, x)
    kvmattr_count_visit(map.family)
    if done == 0:
        return UPDATE_UNCHANGED
    varying = entry_varying(e) | <uint8_t>(done >> 8) ^ entry_first(e)
    if done & KVMATTR_LIST_LOST:        # it may have been the only value to have some bit
        varying = runs_varying(kvmattr_list_values(record, record.count), record.count)
    slot[0] = e & ~(<uint64_t>0xff << KVMATTR_V) | <uint64_t>varying << KVMATTR_V
    shrunk = record.size_class > class_of_runs[record.count] + 1 or varying == 0
    if shrunk:
        shrunk = list_shrink(map.family, slot)
    return list_changed(map, slot, e, shift, gfn, <uint8_t>done, shrunk)


cdef UpdateResult page_update_moved(Map *map, Entry *slot, int shift, uint64_t gfn, uint8_t k,
                                    uint8_t x) noexcept nogil:
    """The same where the list does not stay in its record: there is no room, or another map has it, too."""
    cdef Family *family = map.family
    cdef Entry e = slot[0]
    cdef uint64_t span = <uint64_t>1 << shift, page = gfn & (span - 1)
    cdef RunList runs = run_list_at(family, entry_handle(e))
    cdef int run = run_find(&runs, page)
    cdef uint8_t old = runs.values[run], new = (old & k) ^ x
    if new == old:
        return UPDATE_UNCHANGED
    if not family_reserves(family):
        return UPDATE_NO_MEMORY
    if not run_list_put(family, slot, &runs, page, page + 1, span, run, run, new):
        return page_update_apart(map, slot, shift, gfn, k, x)
    return list_changed(map, slot, e, shift, gfn, new ^ old, True)


cdef UpdateResult page_update_apart(Map *map, Entry *slot, int shift, uint64_t gfn, uint8_t k,
                                    uint8_t x) noexcept nogil:
    """The same where there is no run list yet, or none any more, where something on the way to it is another map's too,
    or where an operation is pending."""
    cdef Family *family = map.family
    cdef Entry e = slot[0]
    cdef uint32_t handle = entry_handle(e)
    cdef uint64_t page = gfn & ((<uint64_t>1 << shift) - 1)
    cdef int level = shift // KVMATTR_LEVEL_BITS + 1
    cdef uint8_t old = entry_first(e), new
    cdef bint loose = False
    if handle:
        if is_node(handle):
            return range_update(map, gfn, gfn + 1, k, x)
        old = (run_list_raw(family, handle, page) & entry_k(e)) ^ entry_x(e)
    new = (old & k) ^ x
    if new == old:
        return UPDATE_UNCHANGED
    if not family_reserves(family):
        return UPDATE_NO_MEMORY
    slot = way_own(map, gfn, level, new ^ old, &loose)
    entry_update(family, slot, level, page, page + 1, 0, new)
    page_settle(map, gfn, loose or entry_handle(slot[0]) == 0)
    return UPDATE_CHANGED


cdef inline UpdateResult list_changed(Map *map, const Entry *slot, Entry before, int shift, uint64_t gfn,
                                      uint8_t differs, bint moved) noexcept nogil:
    """After the change of a page by `differs` in the run list of *slot, which was `before`. Where the bits that vary in
    it are those that did, the entries above know all that they have to; and where the list has not `moved`, there is
    nothing to be tidied."""
    cdef bint loose = False
    if entry_varying(slot[0]) != entry_varying(before):
        way_own(map, gfn, shift // KVMATTR_LEVEL_BITS + 1, differs, &loose)
        page_settle(map, gfn, loose or entry_handle(slot[0]) == 0)
        return UPDATE_CHANGED
    kvmattr_raise_version(&map.version, 1)
    if moved:
        family_settle(map.family)
    return UPDATE_CHANGED


cdef inline void page_settle(Map *map, uint64_t gfn, bint tighten) noexcept nogil:
    """After the change of a page by which entries or records changed."""
    kvmattr_raise_version(&map.version, 1)
    if tighten:
        map_tighten(map, gfn)
    else:
        family_settle(map.family)


cdef inline Entry *way_own(Map *map, uint64_t gfn, int end, uint8_t varying, bint *loose) noexcept nogil:
    """The entry of level `end` above a page, after the nodes on the way to it have become ours; nothing is pending
    there. `varying` are the bits by which the page's new value will differ from the old one: what varies below was
    known, and these come to it. *loose: so often already that V is worth a fresh look (map_tighten)."""
    cdef Family *family = map.family
    cdef Entry *slot = &map.root
    cdef PageInfo *info
    cdef uint32_t handle
    cdef int level = map.level
    kvmattr_assert(gfn & (level_span(3) - 1) != 0 and gfn + 1 != map.pages)
    while level > end:
        handle = node_own(family, entry_handle(slot[0]), level)
        info = page_info(family, handle >> 9)
        info.loosened += 1
        if info.loosened >= LOOSE_UPDATES:
            loose[0] = True
        node_fills(info)
        slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | handle | <uint64_t>varying << KVMATTR_V
        slot = &node_at(family, handle)[index_of(gfn, level)]
        level -= 1
    return slot


cdef void entry_tighten(Family *family, Entry *slot, int level, uint64_t page) noexcept nogil:
    """V of the leaf that holds a page anew, after one of its bits may have ceased to vary, and of nodes above it that
    were updated often, or became uniform. All on the way is ours, and nothing is pending there."""
    cdef uint32_t handle = entry_handle(slot[0])
    cdef Entry *entries
    cdef PageInfo *info
    cdef int at
    if level == 2:
        if handle and not is_line(handle):
            fields_settle(family, slot)
        return
    if handle == 0 or not is_node(handle):
        return                      # a run list's V is exact
    entries = node_at(family, handle)
    info = page_info(family, handle >> 9)
    at = <int>((page >> level_shift(level - 1)) & 511)
    entry_tighten(family, &entries[at], level - 1, page)
    if level == 3 and entry_handle(entries[at]) == 0 and node_empties(info) and node_to_list(family, slot):
        return
    if info.loosened >= LOOSE_UPDATES or node_became_uniform(info, entries, at, at):
        slot[0] = node_entry(family, handle)


cdef void map_tighten(Map *map, uint64_t gfn) noexcept nogil:
    """What the entries above a page that was written may not know yet."""
    map.family.rearranged += 1
    entry_tighten(map.family, &map.root, map.level, gfn)
    map_fit_height(map, gfn)
    family_settle(map.family)


cdef void leaf_collapse(Map *map, uint64_t gfn) noexcept nogil:
    """The same after the write of a field by which its leaf may have become uniform: nothing above the block's entry
    hears of it, unless its node became so, too. A page that comes and goes in a uniform block passes here at each
    second turn. A leaf that is mixed still keeps its V, loose as it may be: the next value of the page fits it, too."""
    cdef Family *family = map.family
    cdef Way way = way_down(family, &map.root, map.level, 2, gfn, WAY_SHARES)
    cdef Entry *slot = <Entry *>way.slot
    cdef uint32_t handle = entry_handle(slot[0])
    cdef int at = <int>(gfn >> 9 & 511)
    if way.shift > level_shift(2) or handle == 0:
        return                      # another page of a batch was the last one of the block already
    if kvmattr_fields_vary(leaf_at(family, handle), wide_of(handle)) & entry_k(slot[0]):
        return
    release(family, handle)
    slot[0] = entry_uniform(entry_first(slot[0]))
    family.blocks_changed += 1
    if way.node == NULL or node_empties(way.node) or node_became_uniform(way.node, slot - at, at, at):
        map_tighten(map, gfn)
        return
    if map.level == 3:
        map_fit_height(map, gfn)
    family_settle(family)


cdef inline bint field_put(Map *map, Entry *slot, uint64_t gfn, uint8_t value) noexcept nogil:
    """Give a page of a leaf of fields of ours another value, which fits and varies in V only; the version rises.
    Whether its leaf may have become uniform, as far as its word tells (leaf_collapse)."""
    cdef Entry e = slot[0]
    cdef int wide = wide_of(entry_handle(e))
    cdef uint32_t bit = (gfn & 511) << wide
    cdef uint64_t *where = leaf_at(map.family, entry_handle(e)) + (bit >> 6)
    cdef uint64_t field = kvmattr_field_masks[wide] << (bit & 63)
    cdef uint64_t fields = kvmattr_everywhere(kvmattr_fold(wide, value ^ entry_x(e)))
    cdef uint64_t old = where[0]
    where[0] = old ^ (old ^ fields) & field
    if gfn & 511 == 0:
        # The F of the entries above is another block's.
        slot[0] = entry_make(entry_handle(e), entry_k(e), entry_x(e), entry_varying(e), value)
    kvmattr_raise_version(&map.version, 1)
    fields = kvmattr_everywhere(kvmattr_fold(wide, entry_k(e)))         # but for bits that the entry leaves out
    return kvmattr_word_agrees(where[0], wide, (old ^ where[0]) & fields)


cdef void map_fill(Map *map, uint8_t value) noexcept nogil:
    release(map.family, entry_handle(map.root))
    map.root = entry_uniform(value)
    map.rest = value
    map.level = 2
    kvmattr_raise_version(&map.version, 1)
    family_settle(map.family)
