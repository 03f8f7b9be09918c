# AttributeMap: the Python face of a Map. It checks what comes in, holds the mutex where it must, and turns
# results of the tree into exceptions; arrays in and out are those of given, arrays and records.

cdef object BARE = object()     # makes an AttributeMap without a map, to be filled by share()


cdef inline AttributeMap share(const Map *source, bint readonly, int call):
    """A map with the content of `source`, for a call of that kind: one reference more to its root."""
    cdef AttributeMap result = AttributeMap.__new__(AttributeMap, BARE)
    result.map = map_twin(source, True, &call)
    if result.map == NULL:
        raise MemoryError("out of memory for a map")
    result.frozen = readonly
    return result


cdef AttributeMap other_map(AttributeMap self, object other, str verb):
    if not isinstance(other, AttributeMap):
        raise TypeError(f"can only {verb} an AttributeMap, not {type(other).__name__}")
    if (<AttributeMap>other).map.pages != self.map.pages:
        raise ValueError(f"can only {verb} a map of as many pages: {(<AttributeMap>other).map.pages} is not "
                         f"{self.map.pages}")
    return <AttributeMap>other


cdef int raise_readonly() except -1:
    raise TypeError("a snapshot or live view is read-only: change a copy() of it")


@cython.final
@cython.no_gc                       # no cycle goes through a map; the collector would take `owner` before __dealloc__
cdef class AttributeMap:
    """AttributeMap(npages=4503599627370496, default=0)\n--\n\n\
One attribute byte for each page of a guest: ``AttributeMap(npages=2**52, default=0)``.

    npages: the number of 4 KiB pages, 0 .. 2^52 (gfns are 0 <= gfn < npages). default: the attributes that every
    page begins with and that ``del m[...]`` brings back, 0..255.

    Ranges are half-open [start, stop) in gfns. An update costs the height of the tree, however many pages it
    names and however fragmented they are. A call that raises has changed nothing; only batches (``put``,
    ``update_many``) may stop between two operations, and tell in the exception's ``done`` how many were
    applied. gfns outside the map are IndexError, bad ranges, attributes and masks ValueError.

    The operations are those of KVM_SET_MEMORY_ATTRIBUTES as the mail of November 2022 proposes it.

    >>> m = AttributeMap(1 << 24)                       # a 64 GiB guest
    >>> m.write(0, 1 << 24, 1)                          # all of it private: did anything change?
    True
    >>> m.or_(0x100, 0x200, 4), m[0xff], m[0x100]
    (True, 1, 5)
    >>> m.run(0x180)
    Run(start=256, stop=512, attributes=5)
    """

    cdef Map *map
    cdef bint frozen                   # a snapshot or a live view
    cdef AttributeMap owner             # the map that a live view looks at
    cdef uint64_t counted_at            # the version for which `counted` is the number of runs
    cdef uint64_t counted
    cdef object __weakref__

    __array_ufunc__ = None              # numpy leaves operators to us

    def __cinit__(self, npages=GFN_LIMIT, default=0):
        cdef int64_t pages
        cdef int value
        self.counted_at = <uint64_t>-1
        if npages is BARE:
            return
        if kvmattr_integer(npages, &pages) or pages < 0 or pages > GFN_LIMIT:
            raise ValueError(f"npages {shown(npages)} is outside 0..{GFN_LIMIT} (2^52)")
        value = byte_of(default, "default")
        self.map = map_new(<uint64_t>pages, <uint8_t>value)
        if self.map == NULL:
            raise MemoryError("out of memory for a map")

    def __dealloc__(self):
        if self.map != NULL and self.owner is None:
            map_free(self.map)

    # ---- update ----

    cdef bint change(self, uint64_t lo, uint64_t hi, uint8_t k, uint8_t x) except -1:
        cdef UpdateResult result
        cdef bint entered
        cdef Map *map = self.map
        cdef Family *family = map.family
        if self.frozen:
            raise_readonly()
        entered = family_enter(family)
        count_call(family, CALL_UPDATE, hi - lo)
        result = map_update(map, lo, hi, k, x)
        family_leave(family, entered)
        family_filled(family)
        if result < 0:
            raise MemoryError(f"out of memory for an update of [{lo}, {hi}): nothing has changed")
        audit_change(map)
        return result

    cdef inline int page_change(self, object start, object stop, object attributes, int operation) noexcept:
        """The short way of one page, which has no error to handle and takes no mutex; -1 if it cannot be gone."""
        cdef int64_t first, last, byte
        cdef UpdateResult result
        cdef Change change
        cdef Map *map = self.map
        cdef Family *family = map.family
        if (not kvmattr_short_integer(start, &first) or not kvmattr_short_integer(stop, &last)
                or not kvmattr_short_integer(attributes, &byte) or last - first != 1
                or <uint64_t>first >= map.pages or <uint64_t>byte > 0xFF or self.frozen or family_shared(family)):
            return -1
        change = change_of(<uint8_t>byte, operation, 0xFF)
        result = map_update_page(map, <uint64_t>first, change.k, change.x)
        if result >= 0:
            count_call(family, CALL_UPDATE, 1)
            family_filled(family)
        return result

    cdef int range_change(self, object start, object stop, object attributes, int operation) except -1:
        cdef uint64_t lo, hi
        cdef Change change
        range_of(start, stop, self.map.pages, &lo, &hi)
        change = change_of(byte_of(attributes, "attributes"), operation, 0xFF)
        return self.change(lo, hi, change.k, change.x)

    cdef inline object change_given(self, object start, object stop, object attributes, int operation):
        """The update that Python hands in: True if any page changed."""
        cdef int changed = self.page_change(start, stop, attributes, operation)
        if changed < 0:
            changed = self.range_change(start, stop, attributes, operation)
        else:
            audit_change(self.map)
        return kvmattr_truth(changed)

    cdef object put_given(self, object gfns, object attributes, object operation, object mask):
        cdef Py_buffer cells
        given = hold_gfns(gfns, "gfns", &cells)
        try:
            check_gfns(given, &cells, self.map.pages)
            if self.frozen:
                raise_readonly()
            return update_each(self.map, &cells, NULL, attributes, operation, mask)
        finally:
            PyBuffer_Release(&cells)

    def write(self, start, stop, attributes, /):
        """Give the pages [start, stop) these attributes; True if any page changed.

        Cost: the height of the tree. Raises ValueError for a bad range or attributes outside 0..255. From
        the mail: the WRITE operation.

        >>> m = AttributeMap(1000)
        >>> m.write(10, 20, 3), m.write(10, 20, 3)
        (True, False)
        """
        return self.change_given(start, stop, attributes, KVMATTR_OPERATION_WRITE)

    def or_(self, start, stop, attributes, /):
        """Set these attribute bits on the pages [start, stop); True if any page changed.

        Cost: the height of the tree, also over a fragmented terabyte. Raises ValueError as ``write``. From
        the mail: "support WRITE/OR/AND to allow setting/clearing individual flags".

        >>> m = AttributeMap(1000, default=1)
        >>> m.or_(0, 1000, 8), m[5]
        (True, 9)
        """
        return self.change_given(start, stop, attributes, KVMATTR_OPERATION_OR)

    def and_(self, start, stop, attributes, /):
        """Keep only these attribute bits on the pages [start, stop); True if any page changed.

        Cost: the height of the tree. Raises ValueError as ``write``. From the mail: the AND operation.

        >>> m = AttributeMap(1000, default=9)
        >>> m.and_(0, 1000, 0xff & ~8), m[5]
        (True, 1)
        """
        return self.change_given(start, stop, attributes, KVMATTR_OPERATION_AND)

    def update(self, start, stop, attributes, operation=0, mask=0xFF):
        """The general update of [start, stop): bits outside ``mask`` never change; True if any page changed.

        operation: ``Operation.WRITE``, ``OR`` or ``AND``. Cost: the height of the tree. Raises ValueError for a
        bad range, attributes or mask outside 0..255, an unknown operation.

        >>> m = AttributeMap(1000, default=0b1100)
        >>> m.update(0, 10, 0b0011, Operation.WRITE, mask=0b0110), bin(m[0])
        (True, '0b1010')
        """
        cdef uint64_t lo, hi
        cdef Change change
        range_of(start, stop, self.map.pages, &lo, &hi)
        change = change_of(byte_of(attributes, "attributes"), operation_of(operation), byte_of(mask, "mask"))
        return kvmattr_truth(self.change(lo, hi, change.k, change.x))

    def update_many(self, starts, stops, attributes, operation=0, mask=0xFF):
        """Many updates in order, in one call without the GIL; the number of those that changed something.

        All five arguments are scalars or arrays and broadcast. Everything is checked first. Cost: as many
        ``update`` calls; up to 32 keep the GIL, as one does. Running out of memory or Ctrl-C stops between two
        operations: those before stand, and the exception's ``done`` counts them.

        >>> m = AttributeMap(1000)
        >>> m.update_many([0, 5, 7], [10, 6, 7], [1, 1, 2])
        1
        """
        cdef Py_buffer[2] cells
        memset(cells, 0, sizeof(cells))
        try:
            hold_bounds(starts, stops, cells, self.map.pages)
            if self.frozen:
                raise_readonly()
            return update_each(self.map, &cells[0], &cells[1], attributes, operation, mask)
        finally:
            PyBuffer_Release(&cells[0])
            PyBuffer_Release(&cells[1])

    def put(self, gfns, attributes, operation=0, mask=0xFF):
        """Update single pages in order, in one call without the GIL; the number of operations that changed one.

        gfns: integers of any dtype (uint64 and int64 are not copied); attributes, operation and mask broadcast. Up to
        32 pages keep the GIL. Raises IndexError for a gfn outside the map, before anything is done; stops as
        ``update_many`` does.

        >>> m = AttributeMap(1000)
        >>> m.put([1, 3, 3], [7, 7, 8]), m.run_count
        (3, 5)
        """
        return self.put_given(gfns, attributes, operation, mask)

    def put_bitmap(self, start, bits, attributes, operation=0, mask=0xFF, npages=None):
        """Update the pages whose bit is 1; the number of pages that changed. Without the GIL.

        bits: packed little-endian, bit i of the array is page start + i, as in QEMU's and KVM's dirty logs; a
        uint8 or uint64 array or any buffer of bytes. attributes, operation and mask: one for all, or arrays with a cell
        for each bit, which cost as ``put``. npages: how many bits count, None for all. Cost: blocks with set bits. A
        set bit beyond npages or the map is a ValueError. Stops as ``update_many`` does.

        >>> m = AttributeMap(1000)
        >>> m.put_bitmap(8, b"\\x05", 3), m.runs(8, 12)["attributes"].tolist()
        (2, [3, 0, 3, 0])
        """
        cdef uint64_t lo
        cdef int64_t count
        cdef Change change
        words = bit_words(bits)
        count = bits_that_count(npages)
        gfn_or_end(start, self.map.pages, &lo)
        if not (is_scalar(attributes) and is_scalar(operation) and is_scalar(mask)):
            return self.put(*cells_of_bits(lo, self.map.pages, words, count, attributes, operation, mask))
        change = change_of(byte_of(attributes, "attributes"), operation_of(operation), byte_of(mask, "mask"))
        if self.frozen:
            raise_readonly()
        return put_bits(self.map, lo, words, count, change)

    def fill(self, attributes, /):
        """Give every page these attributes. Cost: constant, plus freeing what was stored, in later calls.

        >>> m = AttributeMap(1000)
        >>> m.fill(3); m.uniform(0, 1000)
        3
        """
        cdef int value = byte_of(attributes, "attributes")
        cdef bint entered
        if self.frozen:
            raise_readonly()
        entered = family_enter(self.map.family)
        count_call(self.map.family, CALL_UPDATE, self.map.pages)
        map_fill(self.map, <uint8_t>value)
        family_leave(self.map.family, entered)

    def clear(self):
        """Give every page the default again. Cost: as ``fill``."""
        self.fill(self.map.default)

    # ---- look up ----

    def get(self, gfn, /):
        """The attributes of one page. Cost: the height of the tree. Raises IndexError outside the map.

        >>> AttributeMap(1000, default=5).get(999)
        5
        """
        cdef int64_t page
        cdef const Map *map = self.map
        cdef Family *family = map.family
        # The short way has no error to handle and no mutex: nothing to keep for after a call.
        if kvmattr_short_integer(gfn, &page) and <uint64_t>page < map.pages and not family_shared(family):
            count_one(family, CALL_GET)
            return kvmattr_attribute(map_get(map, page))
        return self.page(gfn)

    cdef object page(self, gfn):
        cdef uint64_t page = gfn_of(gfn, self.map.pages)
        cdef bint entered
        cdef uint8_t value
        if KVMATTR_FREE_THREADED:
            return kvmattr_attribute(family_look_up(self.map, page))
        entered = family_enter(self.map.family)
        value = map_get(self.map, page)
        count_one(self.map.family, CALL_GET)
        family_leave(self.map.family, entered)
        return kvmattr_attribute(value)

    def take(self, gfns, out=None):
        """The attributes of many pages as a uint8 array of the shape of ``gfns``, without the GIL.

        gfns: integers of any dtype (uint64 and int64 are not copied). out: a contiguous uint8 array to write to.
        Raises IndexError if any gfn is outside the map.

        >>> m = AttributeMap(1000)
        >>> m[10:20] = 3
        >>> m.take([9, 10, 19, 20])
        array([0, 3, 3, 0], dtype=uint8)
        """
        return take_array(self.map, gfns, out)

    def to_numpy(self, start, stop, out=None):
        """The attributes of the pages [start, stop) as a uint8 array, without the GIL.

        out: a contiguous uint8 array of that many cells to write to. Cost: what it writes, less than a copy of
        a dense array. Raises ValueError for a bad range or array.

        >>> AttributeMap(1000, default=2).to_numpy(3, 6)
        array([2, 2, 2], dtype=uint8)
        """
        cdef uint64_t lo, hi
        range_of(start, stop, self.map.pages, &lo, &hi)
        return pages_array(self.map, lo, hi, out)

    def bitmap(self, start, stop, mask=0xFF):
        """Which pages of [start, stop) have any bit of ``mask``: packed little-endian bits, padding 0.

        ceil((stop - start) / 8) uint8 cells; bit i is page start + i, as in KVM's dirty log. Cost: the blocks of the
        range, without the GIL. Raises ValueError for a bad range or mask.

        >>> m = AttributeMap(1000); m[3:6] = 4
        >>> m.bitmap(0, 10, mask=4)
        array([56,  0], dtype=uint8)
        """
        cdef uint64_t lo, hi
        range_of(start, stop, self.map.pages, &lo, &hi)
        return bits_array(self.map, lo, hi, byte_of(mask, "mask"))

    def uniform(self, start, stop, /):
        """The one value of the pages [start, stop), or None if they are mixed or the range is empty.

        Cost: the height of the tree, plus what single-page updates left loose. Raises ValueError for a bad range.

        >>> m = AttributeMap(1000); m[10] = 1
        >>> m.uniform(0, 10), m.uniform(0, 11)
        (0, None)
        """
        cdef uint64_t lo, hi
        cdef int64_t value
        cdef bint entered
        range_of(start, stop, self.map.pages, &lo, &hi)
        entered = family_enter(self.map.family)
        count_call(self.map.family, CALL_UNIFORM, hi - lo)
        value = map_uniform(self.map, lo, hi)
        family_leave(self.map.family, entered)
        return None if value < 0 else value

    def all(self, start, stop, attributes, mask=0xFF):
        """Whether every page of [start, stop) has ``(page & mask) == attributes``; True for an empty range.

        Cost: the height of the tree where the masked bits do not vary. Semantics: KVM's
        kvm_range_has_memory_attributes (virt/kvm/kvm_main.c). Raises ValueError.

        >>> AttributeMap(1000, default=5).all(0, 1000, 4, mask=4)
        True
        """
        return self.search(start, stop, attributes, mask, False) < 0

    def any(self, start, stop, attributes, mask=0xFF):
        """Whether some page of [start, stop) has ``(page & mask) == attributes``; False for an empty range.

        Cost and errors: as ``all``.
        """
        return self.search(start, stop, attributes, mask, True) >= 0

    def find(self, start, attributes, *, mask=0xFF, stop=None):
        """The first gfn in [start, stop) with ``(page & mask) == attributes``, or -1.

        stop: None for the end of the map. Cost: the height of the tree, plus the mixed subtrees that V and F leave
        open on the way. Raises ValueError.

        >>> m = AttributeMap(); m[1 << 51] = 4
        >>> m.find(0, 4) == 1 << 51
        True
        """
        return self.search(start, self.map.pages if stop is None else stop, attributes, mask, True)

    cdef int64_t search(self, start, stop, attributes, mask, bint match) except? -2:
        cdef uint64_t lo, hi
        cdef uint8_t want, masked
        cdef int64_t found
        cdef bint entered
        cdef const Map *map = self.map
        cdef Family *family = map.family
        range_of(start, stop, map.pages, &lo, &hi)
        want = byte_of(attributes, "attributes")
        masked = byte_of(mask, "mask")
        entered = family_enter(family)
        count_call(family, CALL_SEARCH, hi - lo)
        found = map_find(map, lo, hi, want, masked, match)
        family_leave(family, entered)
        return found

    def count(self, start, stop, attributes, mask=0xFF):
        """The number of pages of [start, stop) with ``(page & mask) == attributes``, without the GIL.

        Cost: the nodes and leaves in which the masked bits vary. Raises ValueError.

        >>> m = AttributeMap(); m[0:1 << 40] = 3
        >>> m.count(5, 1 << 52, 1, mask=1) == (1 << 40) - 5
        True
        """
        cdef uint64_t lo, hi, result
        cdef uint8_t want, masked
        cdef Map pinned
        range_of(start, stop, self.map.pages, &lo, &hi)
        want = byte_of(attributes, "attributes")
        masked = byte_of(mask, "mask")
        count_entering(self.map.family, CALL_COUNT, hi - lo)
        pin(&pinned, self.map)
        with nogil:
            result = map_count(&pinned, lo, hi, want, masked)
        unpin(&pinned)
        return result

    def values(self, start=0, stop=None):
        """The distinct attributes of the pages [start, stop), a sorted uint8 array, without the GIL.

        stop: None for the end of the map. Cost: the nodes and leaves that are mixed. Raises ValueError.

        >>> m = AttributeMap(); m[5] = 9
        >>> m.values()
        array([0, 9], dtype=uint8)
        """
        cdef uint64_t lo, hi
        range_of(start, self.map.pages if stop is None else stop, self.map.pages, &lo, &hi)
        return values_array(self.map, lo, hi)

    def run(self, gfn, /):
        """The run that holds a page, the widest range with its value: a named tuple ``(start, stop, attributes)``.

        Cost: as ``find``, both ways. Raises IndexError outside the map.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> m.run(12)
        Run(start=10, stop=20, attributes=3)
        """
        cdef uint64_t page = gfn_of(gfn, self.map.pages), start, stop
        cdef bint entered = family_enter(self.map.family)
        cdef uint8_t value = map_get(self.map, page)
        count_one(self.map.family, CALL_RUN)
        map_run(self.map, page, &start, &stop)
        family_leave(self.map.family, entered)
        return Run(start, stop, value)

    def runs(self, start=0, stop=None):
        """The runs of [start, stop), clipped to it, as a packed array ``start <u8, stop <u8, attributes u1``.

        Runs of attributes 0 are included, so the runs tile the range. stop: None for the end of the map. Cost: what
        it writes, without the GIL. Raises ValueError for a bad range.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> m.runs().tolist()
        [(0, 10, 0), (10, 20, 3), (20, 1000, 0)]
        """
        cdef uint64_t lo, hi
        range_of(start, self.map.pages if stop is None else stop, self.map.pages, &lo, &hi)
        return runs_array(self.map, lo, hi)

    def iter_runs(self, start=0, stop=None):
        """The runs of [start, stop) one by one as ``(start, stop, attributes)``, in bounded memory.

        They are those of the moment of the call: it holds a snapshot. Raises ValueError for a bad range.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> next(m.iter_runs(5))
        (5, 10, 0)
        """
        cdef uint64_t lo, hi
        range_of(start, self.map.pages if stop is None else stop, self.map.pages, &lo, &hi)
        return iterate_runs(share(self.map, True, CALL_RUNS), lo, hi)

    @property
    def run_count(self):
        """The number of runs, which is the number of memslots that a VMM without attributes would need.

        Cost: nodes and leaves, never pages; then kept until ``version`` moves.

        >>> m = AttributeMap(); m[10:20] = 3
        >>> m.run_count
        3
        """
        count_entering(self.map.family, CALL_RUN_COUNT, 0)
        return self.runs_in_all()

    cdef uint64_t runs_in_all(self) noexcept:
        cdef Map pinned
        cdef uint64_t result
        cdef bint entered = family_enter(self.map.family)
        cdef bint known = self.counted_at == self.map.version
        result = self.counted
        family_leave(self.map.family, entered)
        if known:
            return result
        pin(&pinned, self.map)
        with nogil:
            result = map_run_count(&pinned, 0, pinned.pages)
        unpin(&pinned)
        # Number and version belong together: two threads may have counted two states.
        entered = family_enter(self.map.family)
        self.counted = result
        self.counted_at = pinned.version
        family_leave(self.map.family, entered)
        return result

    def level(self, gfn, /):
        """The highest level whose naturally aligned block around a page is uniform and lies in the map.

        1 is a 4 KiB page, 2 a 2 MiB block, 3 is 1 GiB, ... as in KVM's page tables; at most 6 in 2^52 pages. Cost: as
        ``run``. Raises IndexError outside the map.

        >>> m = AttributeMap(); m[512] = 1
        >>> m.level(0), m.level(513), m.level(1 << 18), m.level(1 << 51)
        (2, 1, 3, 6)
        """
        cdef uint64_t page = gfn_of(gfn, self.map.pages)
        cdef bint entered = family_enter(self.map.family)
        cdef int result = map_level(self.map, page)
        count_one(self.map.family, CALL_LEVEL)
        family_leave(self.map.family, entered)
        return result

    # ---- whole maps ----

    def copy(self):
        """A map of its own with the same content, writable. Cost: constant; nodes are shared until changed.

        >>> m = AttributeMap(1000); c = m.copy(); c[5] = 1
        >>> m[5], c[5]
        (0, 1)
        """
        return share(self.map, False, CALL_COPY)

    def snapshot(self):
        """The present state as a read-only map. Cost: constant. Writing to it is a TypeError.

        >>> m = AttributeMap(1000); before = m.snapshot(); m[5] = 1
        >>> before[5], m == before
        (0, False)
        """
        return share(self.map, True, CALL_SNAPSHOT)

    def _readonly_view(self):
        """A read-only map that always shows this map's current state (the VM's ``attributes``)."""
        cdef AttributeMap view = AttributeMap.__new__(AttributeMap, BARE)
        view.owner = self if self.owner is None else self.owner
        view.map = self.map
        view.frozen = True
        return view

    def restore(self, other, /):
        """Take over the content of another map of as many pages; ``version`` rises.

        Cost: constant plus freeing what differs if ``other`` is a copy or snapshot of this map's family, else a copy
        of its runs. Raises TypeError if it is no AttributeMap, ValueError for another number of pages.

        >>> m = AttributeMap(1000); before = m.snapshot(); m[5] = 1
        >>> m.restore(before); m[5]
        0
        """
        cdef AttributeMap source = other_map(self, other, "restore")
        if self.frozen:
            raise_readonly()
        count_entering(self.map.family, CALL_RESTORE, 0)
        if map_restore(self.map, source.map) < 0:
            raise MemoryError("out of memory for the other map's content: nothing has changed")
        audit_change(self.map)

    def diff(self, other, start=0, stop=None):
        """Where this map differs from another of as many pages, as runs ``start, stop, old, new``.

        A packed array ``start <u8, stop <u8, old u1, new u1``: old is ``other``'s value, new this map's. Subtrees that
        the two share are passed over, so between a map and its snapshot the cost is what differs. Without the
        GIL. Raises TypeError and ValueError as ``restore``, ValueError for a bad range.

        >>> m = AttributeMap(1000); before = m.snapshot(); m[10:20] = 3
        >>> m.diff(before).tolist()
        [(10, 20, 0, 3)]
        """
        cdef AttributeMap source = other_map(self, other, "diff with")
        cdef uint64_t lo, hi
        range_of(start, self.map.pages if stop is None else stop, self.map.pages, &lo, &hi)
        return diff_array(source.map, self.map, lo, hi)

    def __eq__(self, other):
        if not isinstance(other, AttributeMap):
            return NotImplemented
        return maps_equal((<AttributeMap>other).map, self.map)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        count_entering(self.map.family, CALL_COPY, 0)
        result = AttributeMap(self.map.pages, self.map.default)
        result.restore(self)
        return result

    @classmethod
    def from_runs(cls, runs, npages=None, default=0):
        """A map made of runs: an array as of ``runs()``, a DataFrame as of ``to_frame()``, or rows of three.

        A row is (start, stop, attributes). npages: None for the largest stop. Pages that no run names have the
        default; of runs that overlap the later one counts. Raises ValueError for a bad run.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> AttributeMap.from_runs(m.runs()) == m
        True
        """
        starts, stops, attributes = run_columns(runs)
        if npages is None:
            npages = int(max(stops)) if len(stops) else 0
        result = AttributeMap(npages, default)
        result.update_many(starts, stops, attributes)
        return result

    @classmethod
    def from_numpy(cls, attributes, default=0):
        """A map of as many pages as a 1-d array of attributes has cells, with these attributes.

        >>> AttributeMap.from_numpy(np.array([1, 1, 2], np.uint8)).run_count
        2
        """
        attributes = byte_array(attributes, "attributes")
        if attributes.ndim != 1:
            raise ValueError(f"attributes must be a 1-d array, not of shape {attributes.shape}")
        cdef AttributeMap result = AttributeMap(len(attributes), default)
        assign_array(result.map, 0, len(attributes), attributes)
        return result

    # ---- as bytes ----

    def to_bytes(self):
        """The map as bytes: versioned, checksummed, of no machine in particular; see ``from_bytes``.

        Cost: runs and mixed blocks, without the GIL; a fully fragmented 64 GiB guest takes 2.2 MB.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> AttributeMap.from_bytes(m.to_bytes()) == m
        True
        """
        return map_bytes_of(self.map)

    @classmethod
    def from_bytes(cls, data, /):
        """The map that ``to_bytes`` wrote. data: bytes or any buffer.

        Raises ValueError, telling what is wrong, for anything that is damaged, cut short, or of another format.
        """
        cdef AttributeMap result
        data = memoryview(data)
        # Only bytes stay as they are: of anything else what is checked and what is read must be one copy.
        if not isinstance(data.obj, bytes) or not data.c_contiguous:
            data = memoryview(data.tobytes())
        pages, default, body = serial_parse(data.cast("B"))
        result = AttributeMap(pages, default)
        read_body(result.map, body)
        return result

    def __reduce_ex__(self, protocol):
        data = self.to_bytes()
        # From protocol 5 on the bytes may travel beside the pickle, without a copy into it.
        return rebuild, (pickle.PickleBuffer(data) if protocol >= 5 else data, self.frozen)

    def save(self, path, progress=None):
        """Write the map to a file, at once and for good: after a crash there is the old file or the new one.

        path: str, bytes or path-like. Links are followed; a file that is there keeps its mode and owner; a device, a
        FIFO or a descriptor's name (/dev/fd/N) is written into. A crash may leave a file ``.kvmattr-...`` beside the
        target, which hinders nothing and may be deleted. progress: called as ``progress(done, total)`` with bytes.
        Raises OSError with the path, as the file system does, which leaves the old file as it was; PermissionError
        if its owner cannot be kept. Other names of the same file (hard links) keep the old content.
        """
        save_bytes(os.fspath(path), memoryview(self.to_bytes()), progress)

    @classmethod
    def load(cls, path, progress=None):
        """The map that ``save`` wrote. path, progress: as in ``save``.

        The header is checked before the rest is read. Raises OSError, and ValueError as ``from_bytes``.
        """
        path = os.fspath(path)
        try:
            return AttributeMap.from_bytes(load_bytes(path, progress))
        except ValueError as trouble:
            raise ValueError(f"{os.fsdecode(path)}: {trouble}") from None

    # ---- Python's words for the same ----

    def __len__(self):
        return self.map.pages

    def __getitem__(self, key):
        if is_page(key):
            return self.page(key)
        if isinstance(key, slice):
            return self.to_numpy(*bounds_of(key, self.map.pages))
        return take_array(self.map, array_key(key), None)

    def __setitem__(self, key, value):
        cdef uint64_t lo, hi
        if is_page(key):
            lo = gfn_of(key, self.map.pages)
            self.change(lo, lo + 1, 0, <uint8_t>byte_of(value, "attributes"))
        elif isinstance(key, slice):
            start, stop = bounds_of(key, self.map.pages)
            range_of(start, stop, self.map.pages, &lo, &hi)
            if is_scalar(value):
                self.change(lo, hi, 0, byte_of(value, "attributes"))
            else:
                value = values_for(value, hi - lo)
                if self.frozen:
                    raise_readonly()
                assign_array(self.map, lo, hi, value)
        else:
            self.put_given(array_key(key), value, WRITE, 0xFF)

    def __delitem__(self, key):
        self[key] = self.map.default

    def __iter__(self):
        raise TypeError("an AttributeMap is not iterable (it may have 2^52 pages): use iter_runs() or to_numpy()")

    def __contains__(self, value):
        raise TypeError("an AttributeMap has no `in` (it may have 2^52 pages): use find() or any()")

    def __array__(self, *arguments, **keywords):
        raise TypeError("an AttributeMap is not converted to an array by itself (it may have 2^52 pages): "
                        "use to_numpy(start, stop)")

    def __repr__(self):
        kind = "read-only " if self.frozen else ""
        runs = self.runs_in_all()
        return (f"<{kind}AttributeMap of {self.map.pages:,} page{'' if self.map.pages == 1 else 's'}, "
                f"{runs:,} run{'' if runs == 1 else 's'}, {self.nbytes:,} bytes>")

    def _repr_html_(self):
        """The first runs as a table, for notebooks."""
        from kvmattr.notebook import map_html
        return map_html(self)

    def plot(self, start=0, stop=None, *, abi=None):
        """Draw the pages [start, stop), each kind of page in a panel: a `kvmattr.notebook.Picture`.

        A notebook shows it by itself; its ``save(path)`` writes PNG, SVG or PDF. stop: None for where what is set ends.
        abi: what the bits mean, a profile or its name, ``rfc`` by default. Cost: by the number of runs. Raises
        ImportError without matplotlib, ValueError for a bad range.
        """
        from kvmattr.notebook import plot
        return plot(self, start, stop, abi=abi)

    def to_frame(self, start=0, stop=None):
        """The runs of [start, stop) as a pandas DataFrame: start, stop and pages (u64) and attributes (u8) of each.

        stop: None for the end of the map. Cost: what it writes. Raises ImportError without pandas, ValueError for a bad
        range.
        """
        from kvmattr.notebook import runs_frame
        return runs_frame(self, start, stop)

    # ---- what it is ----

    @property
    def default(self):
        """The attributes that every page began with and that ``del m[...]`` brings back."""
        return self.map.default

    @property
    def version(self):
        """A number that rises with every effective change and never goes back.

        It rises after the last page of the change, so whoever reads it before the pages can trust what he cached
        for as long as it stays.
        """
        return kvmattr_read_version(&self.map.version)

    @property
    def nbytes(self):
        """Bytes of live nodes and leaves, each once for the whole family, plus the map itself."""
        return map_bytes(self.map)

    def stats(self):
        """What the map's family holds and has done, as a dict of ints (``kernels`` a str).

        The present state: bytes, slack (resident bytes of the arena that hold nothing live), runs (of this map),
        height, nodes, the leaves with fields of 1, 2, 4 and 8 bits a page (bitmap_leaves, two_bit_leaves,
        four_bit_leaves, byte_leaves), those that are a line of few runs (run_lines), and the run lists in place of
        nodes (run_lists). Since the family began: allocations, frees, copies (of nodes, on write) and conversions (of
        leaves that no other map shares, to another width or to or from a line). The counting build
        (KVMATTR_BUILD=counting) has nodes_visited and pages_compared too; what stats() itself looks at is not in
        them.

        maps is how many there are in the family: this one, its copies and its snapshots. calls is how often they were
        called, from Python, C and Cython, and update_calls, update_pages, get_calls, put_calls, put_pages, take_calls,
        runs_calls, runs_runs, snapshot_calls, ... how often in which way and about how many pages, runs or ranges.
        These are modulo 2^64; what stats, nbytes, version and validate() are asked is not in them. Calls from C and
        Cython are counted from the first stats() of the process on, of whichever map: what two of them differ by is
        exact.

        >>> AttributeMap(1000).stats()["nodes"]
        0
        """
        cdef Counters asked = counters_now(self.map.family)
        begin_counting()
        return map_facts(self.map, self.runs_in_all(), &asked)

    def validate(self):
        """Compute every invariant of the whole family anew; AssertionError names the first that is broken.

        Cost: everything that the family holds. For tests and for whoever suspects memory corruption.
        """
        raise_broken(self.map)


def iterate_runs(AttributeMap snapshot, start, stop):
    """The generator behind iter_runs: a few thousand runs at a time."""
    while start < stop:
        runs = some_runs(snapshot.map, start, stop)
        yield from runs
        start = runs[len(runs) - 1][1]


def rebuild(data, frozen):
    """Unpickle: the map that was pickled, read-only if it was."""
    result = AttributeMap.from_bytes(data)
    return result.snapshot() if frozen else result


def _mark_protocols():
    """Say in the type what its methods say by raising: no iteration, either way, no containment."""
    members = <dict>(<PyTypeObject *>AttributeMap).tp_dict
    members["__iter__"] = None
    members["__contains__"] = None
    members["__reversed__"] = None
    PyType_Modified(AttributeMap)


cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        PyObject *tp_dict
    ctypedef struct PyObject:
        pass
    void PyType_Modified(type kind)

_mark_protocols()
