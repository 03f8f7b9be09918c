# The entry: one 64-bit word for a subtree of any size.
#
#     63      56 55      48 47      40 39      32 31                             0
#    +----------+----------+----------+----------+--------------------------------+
#    |    F     |    V     |    x     |    k     |             handle             |
#    +----------+----------+----------+----------+--------------------------------+
#
# A page below has the value (raw & k) ^ x. F is the value of the first page, exact. V has every bit that
# differs between any two pages below (and perhaps some that do not: see "loose" in the essay).
# Handle 0 is a uniform subtree: k = 0, V = 0, x = F = the value. The kernels take the layout from the same place.

cdef extern from "kernels/entry.h" nogil:
    enum: KVMATTR_K, KVMATTR_X, KVMATTR_V, KVMATTR_F, KVMATTR_LEVEL_BITS

cdef inline uint32_t entry_handle(Entry e) noexcept nogil:
    return <uint32_t>e

cdef inline uint8_t entry_k(Entry e) noexcept nogil:
    return <uint8_t>(e >> KVMATTR_K)

cdef inline uint8_t entry_x(Entry e) noexcept nogil:
    return <uint8_t>(e >> KVMATTR_X)

cdef inline bint leads_to_node_unchanged(Entry e) noexcept nogil:
    """Whether the entry's handle is a node's, and no operation is pending: k is 0xff and x is 0."""
    return e & <uint64_t>0xffff000001ff == <uint64_t>0xff00000000

cdef inline uint8_t entry_varying(Entry e) noexcept nogil:
    return <uint8_t>(e >> KVMATTR_V)

cdef inline uint8_t entry_first(Entry e) noexcept nogil:
    return <uint8_t>(e >> KVMATTR_F)

cdef inline Entry entry_make(uint32_t handle, uint8_t k, uint8_t x, uint8_t varying,
                             uint8_t first) noexcept nogil:
    return (handle | <uint64_t>k << KVMATTR_K | <uint64_t>x << KVMATTR_X | <uint64_t>varying << KVMATTR_V
            | <uint64_t>first << KVMATTR_F)

cdef inline Entry entry_uniform(uint8_t value) noexcept nogil:
    return <uint64_t>value << KVMATTR_X | <uint64_t>value << KVMATTR_F

# new = (old & k) ^ x on every page below, in two word operations. It keeps V a superset of what varies and F
# exact, and on a uniform entry it is the operation on its value.
cdef inline uint64_t keep_word(uint8_t k) noexcept nogil:
    return <uint64_t>0xffffffff | (<uint64_t>k * 0x01010101) << KVMATTR_K

cdef inline uint64_t toggle_word(uint8_t x) noexcept nogil:
    return <uint64_t>x << KVMATTR_X | <uint64_t>x << KVMATTR_F

# What the entry's own operation and then (k, x) do to the raw values below it: (raw & composed_k) ^ composed_x.
cdef inline uint8_t composed_k(Entry e, uint8_t k) noexcept nogil:
    return entry_k(e) & k

cdef inline uint8_t composed_x(Entry e, uint8_t k, uint8_t x) noexcept nogil:
    return (entry_x(e) & k) ^ x

# Levels: an entry of level 1 would be one page, of level 2 it covers a block of 512 pages (2 MiB), of
# level 3 a node of 512 blocks (1 GiB), and so on.
cdef inline int level_shift(int level) noexcept nogil:
    return KVMATTR_LEVEL_BITS * (level - 1)

cdef inline uint64_t level_span(int level) noexcept nogil:
    return <uint64_t>1 << level_shift(level)

cdef inline int index_of(uint64_t gfn, int level) noexcept nogil:
    """The number of the entry for a page in a node below an entry of `level`."""
    return (gfn >> level_shift(level - 1)) & 511

# An update as the tree wants it: new = (old & k) ^ x.
cdef extern from "operation.h" nogil:
    enum: KVMATTR_OPERATION_WRITE, KVMATTR_OPERATION_OR, KVMATTR_OPERATION_AND
    ctypedef struct Change "kvmattr_update_form":
        uint8_t k
        uint8_t x
    Change change_of "kvmattr_update_form_of"(uint8_t attributes, int operation, uint8_t mask)
