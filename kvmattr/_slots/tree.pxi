# One generation's tree: AVL over the slots' start gfns, with the links inside the records, as the kernel's
# rb_node lies inside its kvm_memory_slot. AVL rather than red-black because it is the shallower of the two
# (15 levels at 32764 slots) and the shorter to read. Nothing here allocates or fails.

cdef void tree_hang(SlotSet *slots, int generation, uint16_t parent, uint16_t old,
                    uint16_t new) noexcept nogil:
    """Let parent (0: the root) point to new where it pointed to old."""
    if parent == 0:
        slots.roots[generation] = new
    else:
        slots.records[parent].links[generation].child[
            slots.records[parent].links[generation].child[1] == old] = new
    if new:
        slots.records[new].links[generation].parent = parent


cdef inline uint8_t tree_height(SlotSet *slots, int generation, uint16_t index, int side) noexcept nogil:
    """The height of one child; record 0 has height 0."""
    return slots.records[slots.records[index].links[generation].child[side]].height[generation]


cdef inline void tree_measure(SlotSet *slots, int generation, uint16_t index) noexcept nogil:
    """Set index's height from its children's."""
    cdef uint8_t low = tree_height(slots, generation, index, 0)
    cdef uint8_t high = tree_height(slots, generation, index, 1)
    slots.records[index].height[generation] = 1 + (low if low > high else high)


cdef uint16_t tree_rotate(SlotSet *slots, int generation, uint16_t index, int side) noexcept nogil:
    """Sink index to that side below its other child, which is returned."""
    cdef Links *links = &slots.records[index].links[generation]
    cdef uint16_t risen = links.child[1 - side]
    cdef Links *risen_links = &slots.records[risen].links[generation]
    cdef uint16_t between = risen_links.child[side]
    tree_hang(slots, generation, links.parent, index, risen)
    risen_links.child[side] = index
    links.parent = risen
    links.child[1 - side] = between
    if between:
        slots.records[between].links[generation].parent = index
    tree_measure(slots, generation, index)
    tree_measure(slots, generation, risen)
    return risen


cdef void tree_balance(SlotSet *slots, int generation, uint16_t index) noexcept nogil:
    """Balance index and what is above it, up to the first subtree whose height is what it was."""
    cdef uint8_t before
    cdef int difference, side
    cdef uint16_t child
    while index:
        before = slots.records[index].height[generation]
        difference = (<int> tree_height(slots, generation, index, 1)
                      - <int> tree_height(slots, generation, index, 0))
        if -1 <= difference <= 1:
            tree_measure(slots, generation, index)
        else:
            side = difference > 0
            child = slots.records[index].links[generation].child[side]
            if tree_height(slots, generation, child, 1 - side) > tree_height(slots, generation, child, side):
                tree_rotate(slots, generation, child, side)
            index = tree_rotate(slots, generation, index, 1 - side)
        if slots.records[index].height[generation] == before:
            return
        index = slots.records[index].links[generation].parent


cdef void tree_insert(SlotSet *slots, int generation, uint16_t index) noexcept nogil:
    cdef uint64_t start = slots.records[index].start
    cdef uint16_t parent = 0
    cdef uint16_t below = slots.roots[generation]
    cdef int side = 0
    while below:
        parent = below
        side = start > slots.records[parent].start
        below = slots.records[parent].links[generation].child[side]
    slots.records[index].links[generation].parent = parent
    slots.records[index].links[generation].child[0] = 0
    slots.records[index].links[generation].child[1] = 0
    slots.records[index].height[generation] = 1
    if parent == 0:
        slots.roots[generation] = index
    else:
        slots.records[parent].links[generation].child[side] = index
        tree_balance(slots, generation, parent)


cdef void tree_remove(SlotSet *slots, int generation, uint16_t index) noexcept nogil:
    cdef Links *links = &slots.records[index].links[generation]
    cdef uint16_t heir, changed
    if links.child[0] == 0 or links.child[1] == 0:
        heir = links.child[links.child[0] == 0]
        changed = links.parent
        tree_hang(slots, generation, links.parent, index, heir)
    else:
        # The next slot in gfn order takes the place; it has no lower child to be left behind.
        heir = links.child[1]
        while slots.records[heir].links[generation].child[0]:
            heir = slots.records[heir].links[generation].child[0]
        changed = heir
        if heir != links.child[1]:
            changed = slots.records[heir].links[generation].parent
            tree_hang(slots, generation, changed, heir, slots.records[heir].links[generation].child[1])
            slots.records[heir].links[generation].child[1] = links.child[1]
            slots.records[links.child[1]].links[generation].parent = heir
        slots.records[heir].links[generation].child[0] = links.child[0]
        slots.records[links.child[0]].links[generation].parent = heir
        slots.records[heir].height[generation] = slots.records[index].height[generation]
        tree_hang(slots, generation, links.parent, index, heir)
    tree_balance(slots, generation, changed)


cdef const char *tree_fault(const SlotSet *slots, int generation, uint16_t index,
                            uint32_t *count) noexcept nogil:
    """What is wrong with the tree below index, or NULL; count grows by its slots."""
    cdef const Slot *slot = &slots.records[index]
    cdef const char *fault
    cdef uint16_t child
    cdef int side
    cdef int heights[2]
    if index == 0:
        return NULL
    count[0] += 1
    if count[0] > slots.used:
        return "a tree holds more memslots than are in use, or a circle"
    for side in range(2):
        child = slot.links[generation].child[side]
        if child and slots.records[child].links[generation].parent != index:
            return "a memslot's parent link does not lead back"
        if child and (slots.records[child].start > slot.start) != side:
            return "a tree is not in gfn order"
        fault = tree_fault(slots, generation, child, count)
        if fault != NULL:
            return fault
        heights[side] = slots.records[child].height[generation]
    if slot.height[generation] != 1 + max(heights[0], heights[1]):
        return "a memslot's height is not that of its children plus one"
    if not -1 <= heights[0] - heights[1] <= 1:
        return "a tree is not balanced"
    return NULL
