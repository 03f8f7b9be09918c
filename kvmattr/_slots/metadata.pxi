# What the kernel allocates with a memslot (kvm_alloc_memslot_metadata in arch/x86/kvm/x86.c), in one block:
#
#   lpage_info    u32 for each 2 MiB that the slot touches, then for each 1 GiB    always built
#   rmap          u64 for each page, 2 MiB and 1 GiB        } only a kernel with shadow page tables or write
#   gfn_track     u16 for each page                         } tracking has them: METADATA_FULL builds them
#
# The block is cleared and its lpage_info set here, not left to calloc's untouched pages: that work is what
# the first split of a big slot costs. The dirty bitmaps (two bits a page) are a block of their own: a
# flag change makes them.

cdef enum:
    SHIFT_2M = 9                # pages of 2 MiB and of 1 GiB, as shifts of a gfn
    SHIFT_1G = 18

cdef struct MetadataSize:
    uint64_t entries_2m
    uint64_t entries_1g
    uint64_t large_page_bytes
    uint64_t rmap_bytes
    uint64_t gfn_track_bytes
    uint64_t block_bytes        # what the set's kind of metadata builds


cdef MetadataSize metadata_size(const SlotSet *slots, uint64_t start, uint64_t stop) noexcept nogil:
    """Bytes by part for a slot over [start, stop). A block that the slot only touches counts too."""
    cdef MetadataSize size
    size.entries_2m = ((stop - 1) >> SHIFT_2M) - (start >> SHIFT_2M) + 1
    size.entries_1g = ((stop - 1) >> SHIFT_1G) - (start >> SHIFT_1G) + 1
    size.large_page_bytes = (size.entries_2m + size.entries_1g) * sizeof(uint32_t)
    size.rmap_bytes = (stop - start + size.entries_2m + size.entries_1g) * sizeof(uint64_t)
    size.gfn_track_bytes = (stop - start) * sizeof(uint16_t)
    size.block_bytes = size.large_page_bytes
    if slots.metadata == METADATA_FULL:
        size.block_bytes += size.rmap_bytes + size.gfn_track_bytes
    return size


cdef inline void forbid_large_pages(uint32_t *info, uint64_t count, const Slot *slot,
                                    int shift) noexcept nogil:
    """A large page that the slot does not fill, or whose memory lies askew, is forbidden from the start."""
    cdef uint64_t inside = (<uint64_t> 1 << shift) - 1
    cdef uint64_t i
    if (slot.start ^ (slot.userspace_addr >> 12)) & inside:
        for i in range(count):
            info[i] = 1
        return
    if slot.start & inside:
        info[0] = 1
    if slot.stop & inside:
        info[count - 1] = 1


cdef void metadata_build(SlotSet *slots, const Slot *slot, void *block) noexcept nogil:
    """Write a slot's metadata into a block of metadata_size bytes, and count them."""
    cdef MetadataSize size = metadata_size(slots, slot.start, slot.stop)
    cdef uint32_t *info = <uint32_t *> block
    memset(block, 0, size.block_bytes)
    forbid_large_pages(info, size.entries_2m, slot, SHIFT_2M)
    forbid_large_pages(info + size.entries_2m, size.entries_1g, slot, SHIFT_1G)
    slots.counters.large_page_bytes += size.large_page_bytes
    slots.counters.rmap_bytes += size.rmap_bytes
    slots.counters.gfn_track_bytes += size.gfn_track_bytes


cdef inline uint64_t dirty_bitmaps_size(uint64_t start, uint64_t stop) noexcept nogil:
    """Two bitmaps of whole 64-bit words: the one that is written, and the one that is handed out."""
    return 2 * sizeof(uint64_t) * ((stop - start + 63) // 64)
