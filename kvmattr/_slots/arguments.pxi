# Python's integers as the C types of the structures. An integer outside is a ValueError or an IndexError
# whatever its size, never an OverflowError; the texts of the baseline are the store's.

cdef extern from "pyint.h":
    int kvmattr_integer(object value, int64_t *number) except -1


cdef object shown(object value):
    """An integer for an error text; Python refuses to print very long ones as decimals."""
    number = as_int(value)
    return number if -2 ** 128 < number < 2 ** 128 else f"{number:#x}"


cdef uint64_t between(object value, int64_t lowest, int64_t highest, str name) except? -1:
    cdef int64_t number
    if kvmattr_integer(value, &number) or not lowest <= number <= highest:
        raise ValueError(f"{name} is {shown(value)}: it must be {lowest} .. {highest}")
    return number


cdef uint64_t field(object value, int bits, str name) except? -1:
    """A value for an unsigned field of so many bits."""
    number = as_int(value)
    if number < 0 or number >> bits:
        raise ValueError(f"{name} is {shown(number)}: it must fit an unsigned field of {bits} bits")
    return number


cdef inline uint64_t page(object value, uint64_t npages) except? -1:
    cdef int64_t number
    if kvmattr_integer(value, &number) or number < 0 or <uint64_t> number >= npages:
        raise IndexError(f"gfn {shown(value)} is outside [0, {npages})")
    return number


cdef inline int page_range(object start, object stop, uint64_t npages,
                           uint64_t *first, uint64_t *last) except -1:
    cdef int64_t low, high
    # Both are to be integers, also where the first alone is already outside.
    cdef int beyond = kvmattr_integer(start, &low)
    beyond |= kvmattr_integer(stop, &high)
    if beyond or not 0 <= low <= high or <uint64_t> high > npages:
        raise ValueError(f"range [{shown(start)}, {shown(stop)}): need 0 <= start <= stop <= {npages}")
    first[0] = low
    last[0] = high
    return 0


cdef inline int byte(object value, str name) except -1:
    cdef int64_t number
    if kvmattr_integer(value, &number) or not 0 <= number <= 0xFF:
        raise ValueError(f"{name} {shown(value)} is outside 0..255")
    return number


cdef inline int operation_number(object value) except -1:
    cdef int64_t number
    if kvmattr_integer(value, &number) or not OPERATION_WRITE <= number <= OPERATION_AND:
        raise ValueError(f"operation {shown(value)} is none of WRITE = 0, OR = 1, AND = 2")
    return number


cdef MetadataKind metadata_kind(object name) except *:
    if name not in METADATA_NAMES:
        raise ValueError(f"metadata is {name!r}: it must be one of {', '.join(METADATA_NAMES)}")
    return <MetadataKind> METADATA_NAMES.index(name)


cdef object integers(object value, str name):
    """An array of integers, ours, as another thread may change the caller's: their range is for us to check."""
    array = np.array(value)
    if array.size == 0:
        return array.astype(np.int64)
    # numpy makes floats of its own signed and unsigned integers in one list.
    given = np.array(value, dtype=object) if array.dtype.kind == "f" and isinstance(value, (list, tuple)) else array
    if given.dtype.kind == "O" and all(isinstance(number, (int, np.integer)) for number in given.flat):
        array = np.empty(given.size, dtype=object)      # integers beyond 64 bits: comparisons still hold
        array[:] = list(map(int, given.flat))
        return array.reshape(given.shape)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}: it must be an integer type")
    return array


cdef object batch_arrays(object starts, object stops, object attributes, object operation, object mask,
                         uint64_t npages):
    """The five arguments of updates, broadcast, as arrays of their types; raises for the first wrong one."""
    cdef uint64_t first, last
    names = ("starts", "stops", "attributes", "operation", "mask")
    values = (starts, stops, attributes, operation, mask)
    arrays = []
    for value, name in zip(values, names):
        arrays.append(integers(value, name))
    try:
        values = list(map(np.ravel, np.broadcast_arrays(*arrays)))
    except ValueError:
        values = []
        for array, name in zip(arrays, names):
            values.append(f"{name} {array.shape}")
        raise ValueError("lengths do not broadcast: " + ", ".join(values)) from None
    starts, stops, attributes, operation, mask = values
    wrong = ((starts < 0) | (starts > stops) | (stops > npages) | (attributes < 0) | (attributes > 0xFF)
             | (mask < 0) | (mask > 0xFF) | (operation < OPERATION_WRITE) | (operation > OPERATION_AND))
    if wrong.any():
        index = int(wrong.argmax())
        page_range(starts[index], stops[index], npages, &first, &last)
        byte(attributes[index], "attributes")
        operation_number(operation[index])
        byte(mask[index], "mask")
    return (starts.astype(np.uint64, copy=False), stops.astype(np.uint64, copy=False),
            *(array.astype(np.uint8, copy=False) for array in (attributes, operation, mask)))
