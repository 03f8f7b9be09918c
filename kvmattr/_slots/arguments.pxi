# Python's integers as the C types of the structures: never OverflowError, whatever their size.

cdef object shown(object value):
    """An integer for an error text; Python refuses to print very long ones as decimals."""
    return value if -2 ** 128 < value < 2 ** 128 else f"{value:#x}"


cdef uint64_t between(object value, uint64_t lowest, uint64_t highest, str name) except? -1:
    number = as_int(value)
    if not lowest <= number <= highest:
        raise ValueError(f"{name} is {shown(number)}: it must be {lowest} .. {highest}")
    return number


cdef uint64_t field(object value, int bits, str name) except? -1:
    """A value for an unsigned field of so many bits."""
    number = as_int(value)
    if number < 0 or number >> bits:
        raise ValueError(f"{name} is {shown(number)}: it must fit an unsigned field of {bits} bits")
    return number


cdef uint64_t page(object value, uint64_t npages) except? -1:
    number = as_int(value)
    if not 0 <= number < npages:
        raise IndexError(f"gfn {shown(number)} is outside [0, {npages})")
    return number


cdef int page_range(object start, object stop, uint64_t npages, uint64_t *first, uint64_t *last) except -1:
    low, high = as_int(start), as_int(stop)
    if not 0 <= low <= high <= npages:
        raise ValueError(f"range [{shown(low)}, {shown(high)}): need 0 <= start <= stop <= {npages}")
    first[0] = low
    last[0] = high
    return 0


cdef MetadataKind metadata_kind(object name) except *:
    if name not in METADATA_NAMES:
        raise ValueError(f"metadata is {name!r}: it must be one of {', '.join(METADATA_NAMES)}")
    return <MetadataKind> METADATA_NAMES.index(name)


cdef int byte(object value, str name) except -1:
    number = as_int(value)
    if not 0 <= number <= 0xFF:
        raise ValueError(f"{name} {shown(number)} is outside 0..255")
    return number


cdef int operation_number(object value) except -1:
    number = as_int(value)
    if not OPERATION_WRITE <= number <= OPERATION_AND:
        raise ValueError(f"operation {shown(number)} is none of WRITE = 0, OR = 1, AND = 2")
    return number
