# The VMM that has only memslots: every run of equal attributes is one memslot.
#
# An update of [a, b) is planned first, in one walk over the slots that touch the range. Each slot gives up to
# three pieces (left, middle, right); neighbouring pieces of equal attributes flow together into one run:
#
#     slots     |--- 0 ---|1|-------- 0 --------|            WRITE 1 over [a, b)
#     range                 a---b
#     pieces    |--- 0 ---|1|-1-|------ 0 ------|
#     runs      |--- 0 ---|--1--|------ 0 ------|            runs that were no slot before: wanted
#     doomed               x x-----------------x             slots that are no run any more
#
# Then the doomed slots are deleted and the wanted runs created, in this order, because KVM accepts neither an
# overlap nor a change of size (kvm-all.c of QEMU does the same). So the pages of the doomed slots are without
# a slot meanwhile, and only the slots that remain count against the limit. All memory that the new slots need
# is reserved before the first slot is touched.

cdef struct Piece:
    Slot slot                   # what it holds; its metadata is the piece's while no record has it
    uint16_t record             # where it is, or was

cdef struct Pieces:
    Piece *items
    size_t count
    size_t capacity

# A run that is still growing. whole: the record of the one unchanged slot that it is so far, or 0.
cdef struct Run:
    uint64_t start
    uint64_t stop
    uint16_t whole
    uint8_t attributes

cdef enum Outcome:
    UNCHANGED
    CHANGED
    NO_MEMSLOT
    NO_MEMORY

cdef enum:
    SIGNAL_INTERVAL = 256       # updates of a batch between two looks for Ctrl-C: about a millisecond
    KEPT_PIECES = 64            # a longer plan's memory is given back: updates of many runs are rare

cdef packed struct PackedRun:   # RUN_DTYPE
    uint64_t start
    uint64_t stop
    uint8_t attributes

RUN_DTYPE = np.dtype([("start", "<u8"), ("stop", "<u8"), ("attributes", "u1")])


cdef Piece *pieces_append(Pieces *pieces) noexcept nogil:
    """A new last piece, or NULL without memory."""
    cdef size_t capacity
    cdef Piece *items
    if pieces.count == pieces.capacity:
        capacity = 2 * pieces.capacity if pieces.capacity else 8
        items = <Piece *> realloc(pieces.items, capacity * sizeof(Piece))
        if items == NULL:
            return NULL
        pieces.items = items
        pieces.capacity = capacity
    pieces.count += 1
    return &pieces.items[pieces.count - 1]


cdef void pieces_clear(Pieces *pieces, bint release) noexcept nogil:
    """Forget the pieces and free the metadata that they still own."""
    cdef size_t i
    for i in range(pieces.count):
        free(pieces.items[i].slot.metadata)
    pieces.count = 0
    if release:
        free(pieces.items)
        pieces.items = NULL
        pieces.capacity = 0


@cython.final
cdef class SplittingBaseline:
    """SplittingBaseline(npages, nr_memslots=32764, rollback=True, *, metadata="tdp")\n--\n\n\
The alternative that the mail argues against: attributes as memslots, one slot a run of equal pages.

    ``SplittingBaseline(npages)`` is a guest of npages pages in one memslot with attributes 0; 1 <= npages
    < 2^35 (128 TiB, what user space can map). KVM's limit of 2^31 - 1 pages a slot is waived, in favour of
    this side. ``nr_memslots`` is the number of slots that exist. An update that needs more raises
    OSError(EINVAL) after old slots are gone, as on KVM; with ``rollback`` they are then made again, without
    it what could not be made stays a hole. ``metadata`` is as in `MemslotTable`.

    Update and look-up calls have the signatures, results and errors of `AttributeMap`. MemoryError changes
    nothing.

    Source: the mail ("the exact same performance problems with memslots"); the steps are those of a VMM on
    KVM_SET_USER_MEMORY_REGION.

    >>> baseline = SplittingBaseline(1000)
    >>> baseline.write(10, 20, 1)
    True
    >>> baseline.runs().tolist()
    [(0, 10, 0), (10, 20, 1), (20, 1000, 0)]
    >>> baseline.stats()["slots_deleted"], baseline.stats()["pages_without_slot"]
    (1, 1000)
    """

    cdef SlotSet slots
    cdef readonly uint64_t npages
    cdef readonly bint rollback
    cdef Pieces doomed
    cdef Pieces wanted
    cdef uint16_t unused        # deleted records, chained by links[0].parent
    cdef uint16_t fresh         # records 1 .. fresh were ever in use
    cdef uint32_t highest       # number of slots at once
    cdef uint64_t pages_without_slot

    def __cinit__(self, npages, nr_memslots=uapi.KVM_USER_MEM_SLOTS, bint rollback=True, *, metadata="tdp"):
        cdef Run all_pages
        cdef uint32_t nr = between(nr_memslots, 1, MAX_NR_MEMSLOTS, "nr_memslots")
        self.npages = between(npages, 1, <uint64_t> X86_64.user_space_end >> PAGE_SHIFT, "npages")
        self.rollback = rollback
        slots_open(&self.slots, nr, metadata_kind(metadata))
        memset(&all_pages, 0, sizeof(Run))
        all_pages.stop = self.npages
        if not self.want(&all_pages) or self.carry_out() != CHANGED:
            raise MemoryError(f"no memory for a memslot of {npages} pages and its metadata")
        pieces_clear(&self.wanted, False)

    def __dealloc__(self):
        pieces_clear(&self.doomed, True)
        pieces_clear(&self.wanted, True)
        slots_close(&self.slots)

    # Planning: what the update of a range makes of the slots ------------------------------------------------

    cdef bint doom(self, uint16_t record) noexcept nogil:
        cdef Piece *piece = pieces_append(&self.doomed)
        if piece == NULL:
            return False
        piece.record = record
        piece.slot.metadata = NULL      # still the record's
        return True

    cdef bint want(self, const Run *run) noexcept nogil:
        """The run is complete: a slot must be made of it, unless it is one already or empty."""
        cdef Piece *piece
        if run.whole or run.start == run.stop:
            return True
        piece = pieces_append(&self.wanted)
        if piece == NULL:
            return False
        memset(piece, 0, sizeof(Piece))
        piece.slot.start = run.start
        piece.slot.stop = run.stop
        piece.slot.attributes = run.attributes
        # User memory in step with guest memory, as a VMM that wants large pages maps it.
        piece.slot.userspace_addr = run.start << PAGE_SHIFT
        return True

    cdef bint extend(self, Run *run, uint64_t start, uint64_t stop, uint8_t attributes,
                     uint16_t whole) noexcept nogil:
        """Add the piece [start, stop) to the run, or complete the run and begin one. whole: as in Run."""
        if start >= stop:
            return True
        if run.stop == start and run.attributes == attributes and run.start < run.stop:
            if run.whole and not self.doom(run.whole) or whole and not self.doom(whole):
                return False
            run.whole = 0
            run.stop = stop
            return True
        if not self.want(run):
            return False
        run.start = start
        run.stop = stop
        run.attributes = attributes
        run.whole = whole
        return True

    cdef Outcome plan(self, uint64_t start, uint64_t stop, uint8_t keep, uint8_t flip) noexcept nogil:
        """Fill doomed and wanted for new = (old & keep) ^ flip.

        A hole has no old value: only an update that asks for none (keep = 0) fills it.
        """
        cdef Run run
        cdef Outcome outcome = UNCHANGED
        cdef uint64_t reached = start       # of the range, by the walk
        cdef const Slot *slot
        cdef uint8_t changed
        # Begin with the slot that ends where the range starts: it may merge, as may the one after the range.
        cdef uint16_t index = slot_reaching(&self.slots, start - 1 if start else 0)
        memset(&run, 0, sizeof(Run))
        while index and self.slots.records[index].start <= stop:
            slot = &self.slots.records[index]
            if keep == 0 and reached < min(slot.start, stop):
                outcome = CHANGED
                if not self.extend(&run, reached, min(slot.start, stop), flip, 0):
                    return NO_MEMORY
            changed = (slot.attributes & keep) ^ flip
            if changed == slot.attributes or slot.stop <= start or slot.start >= stop:
                if not self.extend(&run, slot.start, slot.stop, slot.attributes, index):
                    return NO_MEMORY
            else:
                outcome = CHANGED
                if not (self.doom(index)
                        and self.extend(&run, slot.start, start, slot.attributes, 0)
                        and self.extend(&run, max(slot.start, start), min(slot.stop, stop), changed, 0)
                        and self.extend(&run, stop, slot.stop, slot.attributes, 0)):
                    return NO_MEMORY
            reached = max(reached, slot.stop)
            index = slot_after(&self.slots, index)
        if keep == 0 and reached < stop:
            outcome = CHANGED
            if not self.extend(&run, reached, stop, flip, 0):
                return NO_MEMORY
        return outcome if self.want(&run) else NO_MEMORY

    # Carrying out: KVM_SET_USER_MEMORY_REGION, slot by slot -------------------------------------------------

    cdef void create(self, Piece *piece) noexcept nogil:
        """Make the piece a memslot, under an id that the caller knows to be free."""
        if self.unused:
            piece.record = self.unused
            self.unused = self.slots.records[piece.record].links[0].parent
        else:
            self.fresh += 1
            piece.record = self.fresh
        metadata_build(&self.slots, &piece.slot, piece.slot.metadata)
        slot_create(&self.slots, piece.record, &piece.slot)
        piece.slot.metadata = NULL
        self.highest = max(self.highest, self.slots.used)

    cdef void delete(self, Piece *piece) noexcept nogil:
        """Delete the piece's memslot; the piece keeps what it held, so that it can be made again."""
        piece.slot = slot_delete(&self.slots, piece.record)
        self.slots.records[piece.record].links[0].parent = self.unused
        self.unused = piece.record
        self.pages_without_slot += piece.slot.stop - piece.slot.start

    cdef Outcome carry_out(self) noexcept nogil:
        """Delete the doomed, create the wanted; undo that if there are too few slots for all of them."""
        cdef size_t available = self.slots.nr_memslots - self.slots.used + self.doomed.count
        cdef size_t made = min(self.wanted.count, available)
        cdef size_t i
        cdef Slot *slot
        for i in range(made):
            slot = &self.wanted.items[i].slot
            slot.metadata = malloc(metadata_size(&self.slots, slot.start, slot.stop).block_bytes)
            if slot.metadata == NULL:
                return NO_MEMORY
        for i in range(self.doomed.count):
            self.delete(&self.doomed.items[i])
        for i in range(made):
            self.create(&self.wanted.items[i])
        if made == self.wanted.count:
            return CHANGED
        if self.rollback:
            for i in range(made):
                self.delete(&self.wanted.items[i])
            # The old metadata was kept for this: a rollback needs no memory, so it cannot fail.
            for i in range(self.doomed.count):
                self.create(&self.doomed.items[i])
        return NO_MEMSLOT

    cdef bint change(self, uint64_t start, uint64_t stop, uint8_t keep, uint8_t flip) except -1:
        """new = (old & keep) ^ flip for each page of the range; True if any page changed."""
        cdef Outcome outcome
        cdef uint64_t needed
        if start == stop:
            return False
        outcome = self.plan(start, stop, keep, flip)
        needed = self.slots.used - self.doomed.count + self.wanted.count
        if outcome == CHANGED:
            outcome = self.carry_out()
        pieces_clear(&self.doomed, self.doomed.capacity > KEPT_PIECES)
        pieces_clear(&self.wanted, self.wanted.capacity > KEPT_PIECES)
        if outcome == NO_MEMORY:
            raise MemoryError(f"no memory for the memslots of [{start}, {stop})")
        if outcome == NO_MEMSLOT:
            raise OSError(EINVAL, f"updating [{start}, {stop}) needs {needed} memslots: nr_memslots is "
                                  f"{self.slots.nr_memslots}" + ("" if self.rollback else "; a hole is left"))
        return outcome == CHANGED

    # Update -------------------------------------------------------------------------------------------------

    def update(self, start, stop, attributes, operation=Operation.WRITE, mask=0xFF):
        """Apply an operation to the gfns [start, stop), to the bits of mask alone; True if a page changed.

        Deletes every memslot that the update cuts or changes, or that merges with another, and creates one
        for each new run. O(slots touched * log memslots + their metadata). ValueError for a bad range,
        attributes, operation or mask; OSError(EINVAL) without a free memslot; MemoryError. Holes
        (``rollback=False``) are filled by updates that give every bit a value, and left by others.

        >>> baseline = SplittingBaseline(100)
        >>> baseline.update(0, 50, 6, Operation.OR), baseline.update(0, 50, 1, mask=1), baseline.get(49)
        (True, True, 7)
        """
        cdef uint64_t first, last
        cdef UpdateForm form
        page_range(start, stop, self.npages, &first, &last)
        form = update_form_of(byte(attributes, "attributes"), operation_number(operation), byte(mask, "mask"))
        return self.change(first, last, form.k, form.x)

    def update_many(self, starts, stops, attributes, operation=Operation.WRITE, mask=0xFF):
        """Many updates in order, in one call; the number of those that changed something.

        All five arguments are scalars or arrays and broadcast; everything is checked first. Cost: as many
        `update` calls, without Python between them. An update that fails, or Ctrl-C, ends the batch: those
        before it stand, and the exception's ``done`` counts them.

        >>> SplittingBaseline(100).update_many([0, 5, 7], [10, 6, 7], [1, 1, 2])
        1
        """
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t changed = 0
        cdef const uint64_t[::1] first
        cdef const uint64_t[::1] last
        cdef const uint8_t[::1] values
        cdef const uint8_t[::1] operations
        cdef const uint8_t[::1] masks
        cdef UpdateForm form
        first, last, values, operations, masks = batch_arrays(starts, stops, attributes, operation, mask, self.npages)
        try:
            while done < first.shape[0]:
                if done % SIGNAL_INTERVAL == 0:
                    PyErr_CheckSignals()
                form = update_form_of(values[done], operations[done], masks[done])
                changed += self.change(first[done], last[done], form.k, form.x)
                done += 1
        except BaseException as error:
            error.done = done
            raise
        return changed

    def write(self, start, stop, attributes, /):
        """Give the gfns [start, stop) these attributes: `update` with WRITE.

        >>> SplittingBaseline(100).write(0, 100, 0)
        False
        """
        cdef uint64_t first, last
        cdef UpdateForm form
        page_range(start, stop, self.npages, &first, &last)
        form = update_form_of(byte(attributes, "attributes"), OPERATION_WRITE, 0xFF)
        return self.change(first, last, form.k, form.x)

    def or_(self, start, stop, attributes, /):
        """Set bits in the gfns [start, stop): `update` with OR.

        >>> SplittingBaseline(100).or_(0, 100, 4)
        True
        """
        cdef uint64_t first, last
        cdef UpdateForm form
        page_range(start, stop, self.npages, &first, &last)
        form = update_form_of(byte(attributes, "attributes"), OPERATION_OR, 0xFF)
        return self.change(first, last, form.k, form.x)

    def and_(self, start, stop, attributes, /):
        """Keep only these bits in the gfns [start, stop): `update` with AND.

        >>> SplittingBaseline(100).and_(0, 100, 4)
        False
        """
        cdef uint64_t first, last
        cdef UpdateForm form
        page_range(start, stop, self.npages, &first, &last)
        form = update_form_of(byte(attributes, "attributes"), OPERATION_AND, 0xFF)
        return self.change(first, last, form.k, form.x)

    # Look up ------------------------------------------------------------------------------------------------

    def get(self, gfn, /):
        """The attributes of a page. O(log memslots); at once in the slot found last.

        IndexError for a gfn outside [0, npages), plain LookupError for one in a hole (``rollback=False``).

        >>> SplittingBaseline(100).get(99)
        0
        """
        cdef const Slot *slot = slot_at(&self.slots, page(gfn, self.npages))
        if slot == NULL:
            raise LookupError(f"gfn {gfn} lies in a hole: no memslot holds it")
        return slot.attributes

    def take(self, gfns, /):
        """The attributes of many pages: a uint8 array, one lookup each.

        IndexError for a gfn outside [0, npages), plain LookupError for one in a hole (``rollback=False``).

        >>> SplittingBaseline(100).take([0, 99]).tolist()
        [0, 0]
        """
        cdef Py_ssize_t done = 0
        cdef const Slot *slot
        cdef const uint64_t[::1] pages
        cdef uint8_t[::1] values
        asked = integers(gfns, "gfns").ravel()
        wrong = (asked < 0) | (asked >= self.npages)
        if wrong.any():
            page(asked[int(wrong.argmax())], self.npages)
        pages = asked.astype(np.uint64, copy=False)
        taken = np.empty(len(asked), np.uint8)
        values = taken
        # Under the GIL: a change by another thread must not turn the tree round below a lookup.
        while done < pages.shape[0]:
            slot = slot_at(&self.slots, pages[done])
            if slot == NULL:
                break
            values[done] = slot.attributes
            done += 1
        if done < len(asked):
            raise LookupError(f"gfn {pages[done]} lies in a hole: no memslot holds it")
        return taken

    def runs(self, start=0, stop=None):
        """The memslots in gfn order, clipped to [start, stop): a structured array, one run a slot.

        The packed dtype (17 bytes) is the store's: ``start <u8, stop <u8, attributes u1``; holes are left
        out.         O(log memslots + result). ValueError for a bad range.

        >>> SplittingBaseline(100).runs(5, 10).tolist()
        [(5, 10, 0)]
        """
        cdef uint64_t first, last
        cdef size_t count = 0
        if stop is None:
            stop = self.npages
        cdef uint16_t index, begin
        cdef const Slot *slot
        cdef PackedRun *run
        page_range(start, stop, self.npages, &first, &last)
        begin = slot_reaching(&self.slots, first) if first < last else 0
        index = begin
        while index and self.slots.records[index].start < last:
            count += 1
            index = slot_after(&self.slots, index)
        array = np.empty(count, RUN_DTYPE)
        run = <PackedRun *> <uintptr_t> array.ctypes.data
        index = begin
        while count:
            slot = &self.slots.records[index]
            run.start = max(slot.start, first)
            run.stop = min(slot.stop, last)
            run.attributes = slot.attributes
            run += 1
            count -= 1
            index = slot_after(&self.slots, index)
        return array

    @property
    def run_count(self):
        """The number of runs, which is the number of memslots in use."""
        return self.slots.used

    @property
    def nr_memslots(self):
        """The number of memslots that can exist."""
        return self.slots.nr_memslots

    @property
    def metadata(self):
        """``'tdp'`` or ``'full'``."""
        return METADATA_NAMES[self.slots.metadata]

    @property
    def nbytes(self):
        """Bytes that the memslots occupy: the records ever used, their metadata, the object itself."""
        return (sizeof(Slot) * (self.fresh + 1) + self.slots.metadata_bytes + sys.getsizeof(self)
                + sizeof(Piece) * (self.doomed.capacity + self.wanted.capacity))

    def __len__(self):
        return self.npages

    def stats(self):
        """What the memslots are now, and what all updates since the start have cost, as a dict of int.

        As `MemslotTable.stats`, and ``slots_touched`` (created or deleted), ``highest_memslots`` (at once),
        ``pages_without_slot`` (pages of deleted slots, each time: an access meanwhile would have found no
        memory), ``pages_in_holes`` (without a slot now).

        >>> baseline = SplittingBaseline(1 << 24)
        >>> baseline.write(512, 513, 1)
        True
        >>> stats = baseline.stats()
        >>> stats["slots_touched"], stats["highest_memslots"], stats["large_page_bytes"]
        (5, 3, 262668)
        """
        return slots_stats(&self.slots) | {
            "slots_touched": self.slots.counters.slots_created + self.slots.counters.slots_deleted,
            "highest_memslots": self.highest,
            "pages_without_slot": self.pages_without_slot,
            "pages_in_holes": self.npages - self.slots.pages,
        }

    def validate(self):
        """Recompute every invariant; AssertionError names the first that is broken. O(memslots)."""
        cdef const char *fault = slots_fault(&self.slots)
        cdef uint16_t index, before = 0
        cdef uint32_t count
        if fault != NULL:
            raise AssertionError(f"broken invariant: {fault.decode()}")
        index = slot_after(&self.slots, 0)
        while index:
            if before and (self.slots.records[before].stop == self.slots.records[index].start
                           and self.slots.records[before].attributes == self.slots.records[index].attributes):
                raise AssertionError("broken invariant: neighbouring memslots with equal attributes")
            before = index
            index = slot_after(&self.slots, index)
        if self.slots.records[before].stop > self.npages:
            raise AssertionError("broken invariant: a memslot passes the end of the guest")
        if self.rollback and self.slots.pages != self.npages:
            raise AssertionError("broken invariant: the memslots leave a hole")
        count = self.slots.used
        index = self.unused
        while index and count <= self.fresh:
            count += 1
            index = self.slots.records[index].links[0].parent
        if count != self.fresh:
            raise AssertionError("broken invariant: the records are not all in use or unused")
        if self.doomed.count or self.wanted.count:
            raise AssertionError("broken invariant: a plan is left over")
