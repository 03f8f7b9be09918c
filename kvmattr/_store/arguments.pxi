# What Python hands in, checked before anything is done. Every message holds the value and the rule.

cdef object WRITE = Operation.WRITE
cdef dict OPERATION_NAMES = {0: "WRITE", 1: "OR", 2: "AND"}

RUN_DTYPE = np.dtype([("start", "<u8"), ("stop", "<u8"), ("attributes", "u1")])
DIFF_DTYPE = np.dtype([("start", "<u8"), ("stop", "<u8"), ("old", "u1"), ("new", "u1")])

#: The number of pages of KVM's guest-physical space: addresses are 64 bits, a page is 4 KiB.
GFN_LIMIT = 1 << 52

cdef object GFN_SHOWN = 1 << 1024

# What every call about arrays needs: to look up numpy's names costs as much as to look up some sixty pages in a map.
cdef object NDARRAY = np.ndarray
cdef object INTEGER = np.integer
cdef object asarray = np.asarray
cdef object empty = np.empty
# One object each for all arrays of these types, but for those that another program or byte order made.
cdef object UINT8 = np.dtype(np.uint8)
cdef object UINT64 = np.dtype(np.uint64)
cdef object INT64 = np.dtype(np.int64)


cdef inline bint is_scalar(object value):
    if isinstance(value, int) or isinstance(value, INTEGER):
        return True
    if type(value) is NDARRAY:
        return value.ndim == 0
    if isinstance(value, (list, tuple)):
        return False
    return not isinstance(value, bytes) and np.ndim(value) == 0


cdef inline bint is_page(object key):
    """Whether what stands between brackets is one gfn, as for a list. Arrays are none, also without dimensions, also
    those of other libraries, which have __index__ for what has one element."""
    if isinstance(key, int) or isinstance(key, INTEGER):
        return True
    if type(key) is NDARRAY:
        return False
    return PyIndex_Check(key) and not hasattr(key, "__array__")


cdef inline uint64_t gfn_of(object value, uint64_t pages) except? 0xffffffffffffffff:
    cdef int64_t number
    if kvmattr_integer(value, &number) or number < 0 or <uint64_t>number >= pages:
        raise_gfn(value, pages)
    return <uint64_t>number


cdef object shown(object value):
    """An integer for an error text; Python refuses to print those of thousands of digits as decimals."""
    if isinstance(value, int) and not -GFN_SHOWN < value < GFN_SHOWN:
        return f"{value:#x}"
    return value


cdef int raise_gfn(object value, uint64_t pages) except -1:
    raise IndexError(f"gfn {shown(value)} is outside [0, {pages})")


cdef inline int range_of(object start, object stop, uint64_t pages, uint64_t *lo, uint64_t *hi) except -1:
    cdef int64_t first, last
    # Not `or`: both are to be integers, whichever is out of range.
    cdef int wide = kvmattr_integer(start, &first)
    wide |= kvmattr_integer(stop, &last)
    if wide or first < 0 or last < first or <uint64_t>last > pages:
        raise_range(start, stop, pages)
    lo[0] = <uint64_t>first
    hi[0] = <uint64_t>last
    return 0


cdef int raise_range(object start, object stop, uint64_t pages) except -1:
    raise ValueError(f"range [{shown(start)}, {shown(stop)}): need 0 <= start <= stop <= {pages}")


cdef inline int byte_of(object value, str name) except -1:
    cdef int64_t number
    if kvmattr_integer(value, &number) or number < 0 or number > 255:
        raise_byte(value, name)
    return <int>number


cdef int raise_byte(object value, str name) except -1:
    raise ValueError(f"{name} {shown(value)} is outside 0..255")


cdef inline int operation_of(object value) except -1:
    cdef int64_t number
    if value is WRITE:
        return 0
    if kvmattr_integer(value, &number) or number < 0 or number > 2:
        raise_operation(value, "operation")
    return <int>number


cdef int raise_operation(object value, str name) except -1:
    raise ValueError(f"{name} {shown(value)} is none of WRITE = 0, OR = 1, AND = 2")


cdef int gfn_or_end(object value, uint64_t pages, uint64_t *result) except -1:
    """Where a range may begin: a gfn, or npages."""
    cdef int64_t number
    if kvmattr_integer(value, &number) or number < 0 or <uint64_t>number > pages:
        raise ValueError(f"start {shown(value)} is outside 0..{pages}")
    result[0] = <uint64_t>number
    return 0


cdef object bounds_of(slice key, uint64_t pages):
    """The bounds of m[a:b]: step 1, not clamped, nothing counted from the end."""
    if key.step is not None and key.step != 1:
        raise ValueError(f"slice step {key.step}: need 1")
    return (0 if key.start is None else key.start), (pages if key.stop is None else key.stop)


cdef object array_key(object key):
    """The gfns of m[array]: whatever ``take`` reads, less what numpy would take for an axis, a name or a number."""
    if isinstance(key, (list, NDARRAY, range)):
        return key
    if not isinstance(key, (bytes, bytearray, np.generic)) and (hasattr(key, "__array__") or PyObject_CheckBuffer(key)):
        return key
    raise TypeError(f"index must be an integer, a slice or an array of integers, not {type(key).__name__}")
