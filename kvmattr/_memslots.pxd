# cython: language_level=3
"""The slot set's structures, and the lookup that the machine's compiled access path inlines."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "sync.h" nogil:
    ctypedef struct kvmattr_gate:
        pass
    uint64_t *kvmattr_gate_enter(kvmattr_gate *gate)
    void kvmattr_gate_leave(uint64_t *inside)
    void kvmattr_gate_close(kvmattr_gate *gate)
    void kvmattr_gate_open(kvmattr_gate *gate)
    void kvmattr_store_int(int *where, int value)
    int kvmattr_load_int(const int *where)
    void kvmattr_store_hint(uint16_t *where, uint16_t value)
    uint16_t kvmattr_load_hint(const uint16_t *where)

# A memslot's place in one tree. Indices are 16 bits, as slot ids are; 0 is nobody.
cdef struct Links:
    uint16_t parent
    uint16_t child[2]           # lower gfns, higher gfns

# A range of a guest_memfd that is bound to a memslot; pages of the file, in file order.
cdef struct Binding:
    uint64_t start
    uint64_t stop
    uint64_t gfn                # of the first page: a memslot with a guest_memfd never moves
    uint32_t number             # the structure's ``slot``

# KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_GUEST_MEMFD exclude each other.
cdef union SlotExtra:
    void *dirty_bitmaps         # with KVM_MEM_LOG_DIRTY_PAGES, else NULL
    void *file_map              # with KVM_MEM_GUEST_MEMFD: the Map of the file's attributes if they are its own

# One memslot: record id + 1 of its set. A lookup reads only the first 32 bytes. A record that is
# not in use has start == stop == 0, so that no gfn lies in it.
cdef struct Slot:
    uint64_t start              # first gfn
    uint64_t stop               # gfn after the last
    Links links[2]              # one place in each generation's tree
    uint8_t height[2]
    uint8_t flags               # KVM_MEM_..., GUEST_MEMFD_OPEN and GUEST_MEMFD_ALONE
    uint8_t attributes          # SplittingBaseline: what all pages of this slot have
    uint64_t userspace_addr
    uint64_t guest_memfd_offset
    void *metadata              # see _slots/metadata.pxi
    SlotExtra extra

cdef enum:                      # Slot.flags
    GUEST_MEMFD_OPEN = 0x80     # a guest_memfd is bound and not closed yet
    GUEST_MEMFD_ALONE = 0x40    # shared pages come from the guest_memfd too (KVM: GMEM_ONLY)

cdef enum MetadataKind:
    METADATA_TDP
    METADATA_FULL

# What a set has done since it was made; stats() shows it.
cdef struct SlotCounters:
    uint64_t slots_created
    uint64_t slots_deleted
    uint64_t slots_moved
    uint64_t slots_flags_changed
    uint64_t slots_copied       # INVALID stand-ins of slots that go or move, new records of changed ones
    uint64_t sets_installed
    uint64_t large_page_bytes   # built
    uint64_t rmap_bytes         # built with METADATA_FULL, else only counted
    uint64_t gfn_track_bytes    # the same
    uint64_t dirty_bitmap_bytes  # built

# The memslots of one address space: the records, and two generations of the tree over them.
cdef struct SlotSet:
    Slot *records               # nr_records + 1; record 0 is nobody
    uint32_t nr_memslots
    uint32_t nr_records         # numbers from nr_memslots on are KVM's own
    uint32_t used               # memslots that exist
    uint64_t pages              # in all of them
    uint64_t metadata_bytes     # held now
    uint16_t roots[2]
    uint16_t last_used          # the record that the latest lookup found, as KVM keeps one
    uint8_t active              # the generation that lookups use
    MetadataKind metadata
    SlotCounters counters


cdef inline uint16_t slot_at_or_before(const SlotSet *slots, uint64_t gfn) noexcept nogil:
    """The record of the last slot that starts at or before gfn, or 0."""
    cdef int generation = slots.active
    cdef uint16_t index = slots.roots[generation]
    cdef uint16_t found = 0
    cdef int higher
    while index:
        # No branch on the comparison: half of them would be mispredicted.
        higher = gfn >= slots.records[index].start
        found = index if higher else found
        index = slots.records[index].links[generation].child[higher]
    return found


cdef inline Slot *slot_at(SlotSet *slots, uint64_t gfn) noexcept nogil:
    """The slot that holds gfn, or NULL; valid until the next change of the set. O(log memslots).

    Several threads may look at once: what each leaves in last_used is the number of some record, and whoever takes it
    up looks whether that one holds its gfn.
    """
    cdef Slot *slot = &slots.records[kvmattr_load_hint(&slots.last_used)]
    if gfn - slot.start < slot.stop - slot.start:
        return slot
    cdef uint16_t index = slot_at_or_before(slots, gfn)
    slot = &slots.records[index]
    if gfn >= slot.stop:
        return NULL
    kvmattr_store_hint(&slots.last_used, index)
    return slot


cdef inline uint16_t tree_end(const SlotSet *slots, uint16_t index, int side) noexcept nogil:
    """The record at the low (0) or high (1) end of the tree below index, or 0 if there is none."""
    cdef uint16_t end = 0
    while index:
        end = index
        index = slots.records[index].links[slots.active].child[side]
    return end


cdef inline uint16_t slot_after(const SlotSet *slots, uint16_t index) noexcept nogil:
    """The next record in gfn order, or 0; after 0 comes the first. O(1) amortised over a walk."""
    cdef int generation = slots.active
    if index == 0:
        return tree_end(slots, slots.roots[generation], 0)
    cdef uint16_t above = slots.records[index].links[generation].child[1]
    if above:
        return tree_end(slots, above, 0)
    above = slots.records[index].links[generation].parent
    while above and slots.records[above].links[generation].child[1] == index:
        index = above
        above = slots.records[index].links[generation].parent
    return above


cdef inline uint16_t slot_reaching(const SlotSet *slots, uint64_t gfn) noexcept nogil:
    """The first record in gfn order that ends after gfn, or 0: where a walk over [gfn, ...) begins."""
    cdef uint16_t index = slot_at_or_before(slots, gfn)
    if index and slots.records[index].stop > gfn:
        return index
    return slot_after(slots, index)


cdef class MemslotTable:
    cdef SlotSet spaces[2]      # one an address space
    cdef readonly int address_spaces
    cdef readonly int phys_bits
    cdef readonly bint private_memory
    cdef readonly bint guest_memfd  # may memslots have one?
    cdef readonly object host
    cdef int bound_twice        # the errno of a second memslot on a range of a guest_memfd
    cdef uint64_t user_space_end
    cdef uint64_t page_size
    cdef uint64_t memslot_alignment
    cdef bint readonly_memslots
    cdef bint guest_memfd_needs_mmap
    cdef object resolve_guest_memfd
    cdef dict guest_memfds      # the structure's ``slot`` -> the GuestMemfd that was bound to it
    cdef bint owned             # by a VM, whose lock then guards every change
    cdef kvmattr_gate gate      # who changes the spaces closes it, who looks without the table's section passes it


cdef inline size_t binding_reaching(const Binding *ranges, size_t count, uint64_t page) noexcept nogil:
    """The place of the first range that ends after a page of the file. O(log count)."""
    cdef size_t low = 0, middle
    while low < count:
        middle = (low + count) // 2
        if ranges[middle].stop > page:
            count = middle
        else:
            low = middle + 1
    return low


cdef class GuestMemfd:
    cdef readonly MemslotTable table
    cdef readonly uint64_t size
    cdef readonly uint64_t flags
    cdef readonly bint serves_shared
    cdef int is_shut            # changed in the table's section, asked without it
    cdef object __weakref__
    cdef public object machine  # weak reference to the VM
    cdef public object pages    # the VM's FilePages; GuestMemfds of other VMs may have the same
    cdef void *file_map         # the Map of their attributes, NULL where PRIVATE belongs to the gfn
    cdef Binding *ranges
    cdef size_t count
    cdef size_t capacity
    cdef void shut(self) noexcept
    cdef Slot *slot_of(self, size_t place) noexcept nogil
    cdef list spans(self, uint64_t start, uint64_t stop)
    cdef int bind(self, uint64_t offset, uint64_t nbytes, uint64_t gfn, uint32_t number) except -1
    cdef int unbind(self, uint64_t offset) except -1
