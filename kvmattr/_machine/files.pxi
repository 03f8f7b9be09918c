# guest_memfd: what its pages are, and KVM_SET_MEMORY_ATTRIBUTES2, which changes it. In the order of the kernel:
#
# 1. the arguments (check_file_record), each EINVAL;
# 2. every page of the range has the attributes already: done, and nothing was invalidated;
# 3. to private: a page that somebody else refers to is EAGAIN, with its offset;
# 4. what memslots map of the range is invalidated, in each machine that has bound some of it: one step of its
#    sequence count, none without, and the hull is not widened to huge pages;
# 5. the pages change.
#
# The machines are locked before 2 and until the end. With listeners, the changed pages are made beside the old
# ones between 3 and 4, as for a SET of a machine.

cdef enum:  # what is known of single pages, FilePages.held
    IN_USE = 1
    POISONED = 2

cdef enum:  # Outcome, beside a machine's own
    STUCK = -4  # a page is in use

# struct kvm_memory_attributes2
cdef struct FileRecord:
    uint64_t offset
    uint64_t size
    uint64_t attributes
    uint64_t flags
    uint64_t error_offset
    uint64_t reserved[11]

cdef struct FileBatch:
    const FileRecord *records
    size_t count
    size_t done
    uint64_t changed
    int outcome
    FileRecord record  # the one at `done`, a copy: its owner may write the array meanwhile
    Series series


cdef class FilePages:
    """The pages of a guest_memfd, whichever machines have a file of it: attributes, and who holds them.

    ``FilePages(npages, attributes)``: how all of them begin.
    """

    cdef readonly object attributes
    """The attributes of each page of the file: a read-only AttributeMap that is always up to date."""
    cdef object store
    cdef Map *map  # the store's
    cdef object held  # IN_USE and POISONED
    cdef Map *held_map
    cdef dict references  # page -> how often it is pinned
    cdef int in_use  # are there any? Asked without a section
    cdef readonly list files
    """Weak references to the GuestMemfds of these pages, one a machine."""

    def __init__(self, npages, attributes):
        self.store = AttributeMap(npages, attributes)
        self.map = map_of(self.store)
        self.attributes = self.store._readonly_view()
        self.held = AttributeMap(npages)
        self.held_map = map_of(self.held)
        self.references = {}
        self.files = []

    cdef list machines(self):
        """The machines of the files, each once, in an order that is the same for everybody."""
        found = set()
        for reference in self.files:
            file = reference()
            if file is not None:
                found.add((<GuestMemfd>file).machine())
        found.discard(None)
        return sorted(found, key=id)

    cdef list lock(self):
        """Lock all machines that have a file of these pages; return them, for ``unlock``. EBUSY in a listener."""
        cdef list machines, locked = []
        while True:
            machines = self.machines()
            try:
                for machine in machines:
                    (<Machine>machine).enter()
                    locked.append(machine)
                if machines == self.machines():
                    return machines
            except BaseException:
                self.unlock(locked)
                raise
            self.unlock(locked)
            locked = []

    cdef int unlock(self, list machines) except -1:
        for machine in machines:
            (<Machine>machine).leave()
        return 0

    cdef list files_of(self, machine):
        """The open files that a machine has of these pages."""
        found = []
        for reference in self.files:
            file = reference()
            if file is not None and (<GuestMemfd>file).machine() is machine:
                found.append(file)
        return found

    def _pages(self, offset, size):
        cdef uint64_t first = field(offset, U64, "offset"), nbytes = field(size, U64, "size")
        cdef uint64_t end = len(self.store)
        if (first | nbytes) & PAGE_MASK or not nbytes or first >> PAGE_SHIFT >= end or (
                nbytes >> PAGE_SHIFT > end - (first >> PAGE_SHIFT)):
            raise ValueError(f"offset {first:#x}, size {nbytes:#x}: must be whole pages within the file's {end}")
        return first >> PAGE_SHIFT, (first + nbytes) >> PAGE_SHIFT

    def pin(self, offset, size):
        """Hold each page of the bytes [offset, offset + size) once more, as a device that writes to them does."""
        start, stop = self._pages(offset, size)
        for page in range(start, stop):
            with cython.critical_section(self):
                count = self.references.get(page, 0)
                self.references[page] = count + 1
                if not count:
                    try:
                        self.hold(page, IN_USE)
                    except MemoryError:
                        del self.references[page]
                        raise
                kvmattr_store_int(&self.in_use, 1)

    def unpin(self, offset, size):
        """Hold each page once less; ValueError, and nothing is changed, if one is not held."""
        start, stop = self._pages(offset, size)
        with cython.critical_section(self):
            for page in range(start, stop):
                if page not in self.references:
                    raise ValueError(f"page {page:#x} is not pinned")
            for page in range(start, stop):
                count = self.references[page]
                if count > 1:
                    self.references[page] = count - 1
                else:
                    self.hold(page, 0)
                    del self.references[page]
            kvmattr_store_int(&self.in_use, len(self.references) > 0)

    cdef int hold(self, uint64_t page, uint8_t in_use) except -1:
        """Note whether somebody holds a page. No Python code runs and nothing is waited for but the mutex, so that a
        section around this is not left meanwhile."""
        cdef bint entered = map_enter(self.held_map)
        cdef UpdateResult result = map_apply(self.held_map, page, page + 1, 0xFF & ~IN_USE, in_use)
        map_leave(self.held_map, entered)
        if result == UPDATE_NO_MEMORY:
            raise MemoryError(f"no memory to hold page {page:#x}")
        return 0

    def pinned(self, start, stop):
        """The first page of [start, stop) that somebody holds, or -1."""
        return self.held.find(start, IN_USE, mask=IN_USE, stop=stop)

    def poisoned(self, start, stop):
        """The first page of [start, stop) whose memory failed, or -1."""
        return self.held.find(start, POISONED, mask=POISONED, stop=stop)


cdef int forget_file(GuestMemfd file) except -1:
    """The file is closed: its pages are seen by the files of other machines alone."""
    cdef FilePages pages = file.pages
    for other in list(pages.files):
        there = other()
        if there is None or there is file:
            try:
                pages.files.remove(other)
            except ValueError:      # another machine's thread has just done so
                pass
    return 0


def change_pages(GuestMemfd file, uint64_t start, uint64_t stop, bint fails, str call, tuple numbers):
    """The memory of the pages [start, stop) fails, or is given back and new memory takes its place.

    What memslots map of them is stale: one change of each machine that maps any. ``call``, ``numbers``: what listeners
    of the file's machine hear, as in ``Machine._locked``.
    """
    cdef list interrupts = []
    cdef FilePages pages = file.pages
    cdef Machine machine
    cdef Hull hull
    cdef list machines = pages.lock()
    try:
        numbers = whole(numbers)
        if start < stop:
            if fails:
                pages.held.or_(start, stop, POISONED)
            else:
                pages.held.and_(start, stop, 0xFF & ~POISONED)
        for machine in machines:
            if fails:
                kvmattr_store_int(&machine.poisoned, 1)
            hull = Hull(NO_GFN, NO_GFN)
            for own in pages.files_of(machine):
                hull_file(&hull, <GuestMemfd>own, start, stop)
            if hull.start != NO_GFN:
                invalidation_begin(&machine.invalidation.state, hull, True)
                invalidation_end(&machine.invalidation.state, True, True)
        (<Machine>file.machine()).tell(call, numbers, 0, interrupts)
    except MemoryError as no_memory:
        raise OSError(ENOMEM, str(no_memory)) from no_memory
    finally:
        pages.unlock(machines)
    if interrupts:
        raise interrupts[0]


def tell_refused(GuestMemfd file, str call, tuple numbers, error):
    """Tell the listeners of the file's machine of a call that is about to raise an OSError for its arguments."""
    cdef Machine machine = file.machine()
    machine.enter()
    try:
        machine.tell_refused(call, whole(numbers), error)
    finally:
        machine.leave()


cdef int file_errno(GuestMemfd file, const FileRecord *record, uint64_t supported,
                    uint64_t page_mask) noexcept nogil:
    """EINVAL for what KVM refuses, or 0; ``explain_file_record`` says which rule it was."""
    cdef uint64_t reserved = 0
    cdef int word
    for word in range(11):
        reserved |= record.reserved[word]
    if record.flags or reserved or not supported or record.attributes & ~supported:
        return EINVAL
    if record.size == 0 or record.offset + record.size < record.offset:
        return EINVAL
    if (record.offset | record.size) & page_mask:
        return EINVAL
    # A file ends below 2^63, so that this holds for a range that begins beyond its end too.
    return EINVAL if record.offset + record.size > file.size else 0


cdef str explain_file_record(GuestMemfd file, const FileRecord *record, uint64_t supported, uint64_t page_mask):
    """The first broken rule, in KVM's order."""
    cdef int word
    if record.flags:
        return f"flags {record.flags:#x}: must be 0"
    for word in range(11):
        if record.reserved[word]:
            return f"reserved[{word}] {record.reserved[word]:#x}: must be 0"
    if not supported:
        return "the guest_memfd's VM has no private memory"
    if record.attributes & ~supported:
        return f"attributes {record.attributes:#x}: must be within the supported {supported:#x}"
    if record.size == 0:
        return f"size 0: must be a multiple of {page_mask + 1} above 0"
    if record.offset + record.size < record.offset:
        return f"offset {record.offset:#x}, size {record.size:#x}: the end must be below 2^64"
    if record.offset & page_mask:
        return f"offset {record.offset:#x}: must be a multiple of {page_mask + 1}"
    if record.size & page_mask:
        return f"size {record.size:#x}: must be a multiple of {page_mask + 1}"
    return (f"offset {record.offset:#x}, size {record.size:#x}: must end within the guest_memfd, which has "
            f"{file.size:#x} bytes")


cdef void hull_file(Hull *hull, GuestMemfd file, uint64_t start, uint64_t stop) noexcept nogil:
    """Widen the hull by the gfns at which memslots map a file's pages [start, stop), and by nothing around."""
    cdef size_t place = binding_reaching(file.ranges, file.count, start)
    cdef const Binding *binding
    while place < file.count and file.ranges[place].start < stop:
        binding = &file.ranges[place]
        hull_widen(hull, binding.gfn + (max(start, binding.start) - binding.start),
                   binding.gfn + (min(stop, binding.stop) - binding.start))
        place += 1


cdef int convertible(FilePages pages, uint64_t start, uint64_t stop, uint8_t attributes,
                     uint8_t private_bit) noexcept nogil:
    """CHANGED if a conversion would change a page and may; else UNCHANGED or STUCK."""
    cdef uint8_t other[256]
    cdef uint8_t in_use[256]
    cdef int byte, held
    cdef bint entered
    for byte in range(256):
        other[byte] = byte != attributes
        in_use[byte] = byte & IN_USE
    if map_refused(pages.map, start, stop, other) < 0:
        return UNCHANGED
    if attributes & private_bit:
        # Who pins a page does not have the lock of a machine, nor the mutex of the attributes.
        entered = map_enter(pages.held_map)
        held = map_refused(pages.held_map, start, stop, in_use)
        map_leave(pages.held_map, entered)
        if held >= 0:
            return STUCK
    return CHANGED


cdef int convert(Machine machine, GuestMemfd file, FilePages pages, const FileRecord *record, bint shared,
                 Series *series) noexcept nogil:
    """Make one checked conversion of a file that one machine has, which nobody listens to, under its lock.

    ``series``: which it is one of; NULL for none.
    """
    cdef uint64_t start = record.offset >> PAGE_SHIFT
    cdef uint64_t stop = (record.offset + record.size) >> PAGE_SHIFT
    cdef uint8_t attributes = <uint8_t>record.attributes
    cdef Hull hull = Hull(NO_GFN, NO_GFN)
    cdef int outcome
    cdef UpdateResult result
    if kvmattr_load_int(&pages.in_use):
        if series is not NULL:
            map_series_store(pages.map, series)
        outcome = convertible(pages, start, stop, attributes, machine.private_bit)
        if outcome != CHANGED:
            return outcome
    hull_file(&hull, file, start, stop)
    if hull.start != NO_GFN:
        invalidation_begin(&machine.invalidation.state, hull, shared)
    if series is NULL:
        result = map_apply(pages.map, start, stop, 0, attributes)
    else:
        result = map_series_apply(pages.map, series, start, stop, 0, attributes)
    if hull.start != NO_GFN:  # changed, or nothing would change, or no memory
        invalidation_end(&machine.invalidation.state, result == UPDATE_CHANGED, shared)
    return <Outcome>result


cdef int convert_everywhere(FilePages pages, list machines, const FileRecord *record, list interrupts) except -5:
    """Make one checked conversion that several machines see, or that listeners hear of, under their locks.

    What a listener's ``commit`` raised for the caller goes to ``interrupts``: the change stands.
    """
    cdef uint64_t start = record.offset >> PAGE_SHIFT
    cdef uint64_t stop = (record.offset + record.size) >> PAGE_SHIFT
    cdef uint8_t attributes = <uint8_t>record.attributes
    cdef bint entered = map_enter(pages.map)
    cdef int outcome = convertible(pages, start, stop, attributes, (<Machine>machines[0]).private_bit)
    cdef list prepared = [], begun = []
    cdef Machine machine
    cdef Announcement announcement
    cdef Hull hull
    map_leave(pages.map, entered)
    if outcome != CHANGED:
        return outcome
    try:
        after = pages.store.copy()
        after.write(start, stop, attributes)
        before = pages.store.snapshot()
        for machine in machines:
            spans = [span for file in pages.files_of(machine) for span in (<GuestMemfd>file).spans(start, stop)]
            spans.sort(key=itemgetter(2))
            if machine.listeners and spans:
                announcement = Announcement(machine.listeners, before, after, spans)
                announcement.prepare()
                prepared.append(announcement)
        for machine in machines:
            hull = Hull(NO_GFN, NO_GFN)
            for file in pages.files_of(machine):
                hull_file(&hull, <GuestMemfd>file, start, stop)
            if hull.start != NO_GFN:
                invalidation_begin(&machine.invalidation.state, hull, True)
                begun.append(machine)
        pages.store.restore(after)
    except BaseException as error:
        for machine in begun:
            invalidation_end(&machine.invalidation.state, False, True)
        for announcement in prepared:
            announcement.abort()
        if isinstance(error, MemoryError):
            return NO_MEMORY
        raise
    try:
        for announcement in prepared:
            announcement.commit()
            if announcement.interrupt is not None:
                interrupts.append(announcement.interrupt)
    finally:
        for machine in begun:
            invalidation_end(&machine.invalidation.state, True, True)
    return CHANGED


cdef int fail_conversion(GuestMemfd file, FilePages pages, int outcome, const FileRecord *record,
                         uint64_t supported, uint64_t page_mask) except -1:
    """Raise the OSError of a conversion that was refused; its ``error_offset`` is what comes out."""
    cdef uint64_t start = record.offset >> PAGE_SHIFT
    if outcome == INVALID:
        raise OSError(EINVAL, explain_file_record(file, record, supported, page_mask))
    if outcome == NO_MEMORY:
        error = OSError(ENOMEM, f"size {record.size:#x}: no memory for the attributes")
    else:
        start = max(<int64_t>start, pages.pinned(start, start + (record.size >> PAGE_SHIFT)))
        error = OSError(EAGAIN, f"offset {start << PAGE_SHIFT:#x}: the page is in use, so it cannot become private")
    failed = FileError(*error.args)
    failed.error_offset = start << PAGE_SHIFT
    raise failed


class FileError(OSError):
    """KVM_SET_MEMORY_ATTRIBUTES2 got stuck at ``error_offset``, a byte offset in the file."""

    error_offset = 0


cdef bint set_file(GuestMemfd file, handle, const FileRecord *record, list interrupts) except -1:
    """Check, lock, change; return whether any page changed. OSError with KVM's errno."""
    cdef FilePages pages = file.pages
    cdef Machine machine = file.machine()
    cdef uint64_t supported = machine.supported_by_files
    cdef int outcome = INVALID if file_errno(file, record, supported, machine.page_mask) else UNCHANGED
    cdef bint entered, alone = False
    if outcome == UNCHANGED or kvmattr_load_int(&machine.listened):
        if len(pages.files) == 1:
            machine.enter()
            alone = not kvmattr_load_int(&machine.listened) and len(pages.files) == 1
            if alone and outcome == UNCHANGED:
                map_called(pages.map, CALL_VM_SET, 1)
                entered = map_enter(pages.map)
                outcome = convert(machine, file, pages, record, entered, NULL)
                map_leave(pages.map, entered)
            machine.leave()
            map_filled(pages.map)
        if not alone:
            return set_file_heard(file, handle, record, outcome, interrupts)
    if outcome < 0:
        fail_conversion(file, pages, outcome, record, supported, machine.page_mask)
    return outcome


cdef bint set_file_heard(GuestMemfd file, handle, const FileRecord *record, int outcome, list interrupts) except -1:
    """Make one conversion that several machines see or somebody hears of; ``outcome``: INVALID if it was refused."""
    cdef FilePages pages = file.pages
    cdef Machine machine = file.machine()
    cdef tuple numbers = (handle, record.offset, record.size, record.attributes, record.flags)
    cdef list machines, reserved = []
    for word in range(11):
        reserved.append(record.reserved[word])
    if any(reserved):
        numbers = (*numbers, *reserved)
    machines = pages.lock()
    try:
        if outcome == UNCHANGED:
            outcome = convert_everywhere(pages, machines, record, interrupts)
        if outcome < 0:
            fail_conversion(file, pages, outcome, record, machine.supported_by_files, machine.page_mask)
        machine.tell("set_memory_attributes2", numbers, 0, interrupts)
    except OSError as error:
        machine.tell_refused("set_memory_attributes2", numbers, error)
        raise
    finally:
        pages.unlock(machines)
    map_filled(pages.map)
    return outcome


cdef int set_file_slice(GuestMemfd file, FileBatch *batch) except -1:
    """Some records of a batch on a file that one machine has, without the GIL."""
    cdef FilePages pages = file.pages
    cdef Machine machine = file.machine()
    cdef uint64_t supported = machine.supported_by_files
    cdef size_t end = min(batch.count, batch.done + SLICE), asked, ahead
    cdef bint entered
    machine.enter_in_turn()
    if len(pages.files) != 1 or kvmattr_load_int(&machine.listened):
        machine.leave()  # since we looked: they are to hear of every record from now on
        return 0
    with nogil:
        while batch.done < end and batch.outcome >= 0:
            entered = map_series_enter(pages.map, &batch.series)
            asked = batch.done
            while batch.done < end and map_series_goes_on(&batch.series):
                if batch.done == asked:
                    asked = min(end, asked + GROUP)
                    if map_series_expects(pages.map, &batch.series):
                        for ahead in range(batch.done, asked):
                            map_series_expect(pages.map,
                                              min(batch.records[ahead].offset, file.size - 1) >> PAGE_SHIFT)
                kvmattr_read_once(&batch.record, &batch.records[batch.done], sizeof(FileRecord))
                batch.outcome = (INVALID if file_errno(file, &batch.record, supported, machine.page_mask)
                                 else convert(machine, file, pages, &batch.record, entered, &batch.series))
                if batch.outcome < 0:
                    break
                batch.changed += batch.outcome
                batch.done += 1
            map_series_leave(pages.map, &batch.series, entered)
    machine.leave()
    with nogil:
        map_filled(pages.map)
    if batch.outcome < 0:
        fail_conversion(file, pages, batch.outcome, &batch.record, supported, machine.page_mask)
    return 0


def convert_file(GuestMemfd file, handle, offset, size, attributes, flags):
    """KVM_SET_MEMORY_ATTRIBUTES2 with these fields."""
    cdef FileRecord record
    cdef list interrupts = []
    memset(&record, 0, sizeof(record))
    record.offset = field(offset, U64, "offset")
    record.size = field(size, U64, "size")
    record.attributes = field(attributes, U64, "attributes")
    record.flags = field(flags, U64, "flags")
    set_file(file, handle, &record, interrupts)
    if interrupts:
        raise interrupts[0]
    return 0


def convert_file_many(GuestMemfd file, handle, records):
    """An array of KVM_SET_MEMORY_ATTRIBUTES2 structures in order; how many changed something."""
    array = np.asarray(records)
    if array.ndim != 1 or array.dtype != uapi.MEMORY_ATTRIBUTES2:
        raise TypeError(f"records of {array.dtype}, {array.ndim} dimensions: must be one-dimensional, "
                        "of uapi.MEMORY_ATTRIBUTES2")
    cdef const uint8_t[::1] memory = np.ascontiguousarray(array).view(np.uint8)
    cdef FilePages pages = file.pages
    cdef Machine machine
    # Of the memory, not of the array, whose size another thread may change.
    cdef FileBatch batch
    cdef list interrupts = []
    memset(&batch, 0, sizeof(batch))
    batch.count = memory.shape[0] // sizeof(FileRecord)
    if batch.count:
        batch.records = <const FileRecord *>&memory[0]
    map_announce(pages.map, 1)
    map_announce(pages.held_map, 1)
    map_series_begin(&batch.series, batch.count)
    try:
        while batch.done < batch.count:
            machine = file.machine()
            if len(pages.files) == 1 and not kvmattr_load_int(&machine.listened):
                set_file_slice(file, &batch)
            else:
                kvmattr_read_once(&batch.record, &batch.records[batch.done], sizeof(FileRecord))
                batch.changed += set_file(file, handle, &batch.record, interrupts)
                batch.done += 1
                if interrupts:
                    raise interrupts[0]
            PyErr_CheckSignals()
    except BaseException as stopped:
        stopped.done = batch.done
        raise
    finally:
        map_series_end(&batch.series)
        map_announce(pages.held_map, -1)
        map_announce(pages.map, -1)
    map_called(pages.map, CALL_VM_SET, batch.done)
    return batch.changed


def file_ioctl_set(GuestMemfd file, handle, arg, mutate_flag):
    """KVM_SET_MEMORY_ATTRIBUTES2 as an ioctl: the structure comes back when the call got stuck, and only then."""
    cdef FileRecord record
    cdef Py_buffer view
    cdef list interrupts = []
    if not PyObject_CheckBuffer(arg):
        raise OSError(EFAULT, f"{arg!r}: must be a buffer of 128 bytes")
    try:
        PyObject_GetBuffer(arg, &view, PyBUF_ND | PyBUF_FORMAT)
    except Exception as refused:
        raise OSError(EFAULT, f"{arg!r}: must be one piece of memory ({refused})") from refused
    try:
        if names_objects(view.format):
            raise OSError(EFAULT, f"{arg!r}: holds references to Python objects, must be plain memory")
        if view.len < <Py_ssize_t>sizeof(FileRecord):
            raise OSError(EFAULT, f"a buffer of {view.len} bytes: the structure has {sizeof(FileRecord)}")
        memcpy(&record, view.buf, sizeof(FileRecord))
        answer = bytes(arg) if view.readonly or not mutate_flag else 0  # before anything changes
        try:
            set_file(file, handle, &record, interrupts)
        except FileError as stuck:
            if not view.readonly and mutate_flag:
                record.error_offset = stuck.error_offset
                memcpy(view.buf, &record, sizeof(FileRecord))
            raise
        if interrupts:
            raise interrupts[0]
        return answer
    finally:
        PyBuffer_Release(&view)
