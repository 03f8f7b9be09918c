# cython: binding=False, freethreading_compatible=True
"""The hot path of the machine: one KVM_SET_MEMORY_ATTRIBUTES, an array of them, and one access of a guest.

The order of one SET, here and in every other call that changes attributes:

1. the arguments, as KVM checks them (``set_errno``);
2. the lock of the machine (KVM: ``slots_lock``), which one change holds at a time;
3. legality: may every byte that results be stored? For WRITE, and for each OR and AND that keeps all legal bytes
   legal, the table of the machine answers without a look at what is stored;
4. the invalidation begins: whoever looked at a page before must look again;
5. the store changes, or finds that nothing would;
6. the invalidation ends; only a change counts.

With listeners of changes, the changed store is made beside the one that is, between 3 and 4, and ``prepare`` hears of
the runs in which the two differ; ``commit`` comes between 5 and 6. Listeners of calls hear of the answer after 6, or
after what refused the call, under the lock. See ``listeners.py``.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetObject, PyErr_WriteUnraisable
from cpython.long cimport PyLong_Check
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EFAULT, EINVAL, ENOTTY
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from errno import EAGAIN, EBUSY, EDEADLK, ENOMEM
from operator import index as as_integer, itemgetter
from weakref import ref as reference_to

import numpy as np

from kvmattr import uapi
from kvmattr._core cimport (CALL_LEVEL, CALL_VM_SET, PAGES_PER_BLOCK, UPDATE_CHANGED, UPDATE_NO_MEMORY,
                            ChangeVisitor, Map, Series, UpdateResult, map_announce, map_apply, map_block_is_uniform,
                            map_called, map_changes, map_enter, map_filled, map_leave, map_look_up, map_of,
                            map_refused, map_run_stop, map_series_apply, map_series_begin,
                            map_series_block_is_uniform, map_series_end, map_series_enter, map_series_expect,
                            map_series_expects, map_series_goes_on, map_series_leave, map_series_store)
from kvmattr._memslots cimport (GUEST_MEMFD_ALONE, GUEST_MEMFD_OPEN, Binding, GuestMemfd, MemslotTable, Slot, SlotSet,
                                binding_reaching, kvmattr_gate_enter, kvmattr_gate_leave, slot_after, slot_at,
                                slot_reaching)
from kvmattr._core import DIFF_DTYPE, AttributeMap
from kvmattr.faults import Exit
from kvmattr.protection import NO_ACCESS, Access

cdef extern from "operation.h" nogil:
    ctypedef struct UpdateForm "kvmattr_update_form":
        uint8_t k
        uint8_t x
    UpdateForm update_form_of "kvmattr_update_form_of"(uint8_t attributes, int operation, uint8_t mask)

cdef extern from "sync.h" nogil:
    void kvmattr_read_once(void *copy, const void *source, size_t bytes)
    void kvmattr_store_int(int *where, int value)
    int kvmattr_load_int(const int *where)

cdef extern from "machine_lock.h" nogil:
    ctypedef struct kvmattr_invalidation:
        uint64_t sequence
        uint64_t in_progress
        uint64_t start
        uint64_t stop
        uint64_t held_start
        uint64_t held_stop
        bint own
    ctypedef struct kvmattr_lock:
        kvmattr_invalidation *invalidation
    ctypedef struct kvmattr_wait:
        pass
    void kvmattr_lock_open(kvmattr_lock *lock)
    void kvmattr_lock_close(kvmattr_lock *lock)
    unsigned long kvmattr_lock_owner(const kvmattr_lock *lock)
    bint kvmattr_lock_try(kvmattr_lock *lock, unsigned long thread)
    bint kvmattr_lock_try_in_turn(kvmattr_lock *lock, unsigned long thread)
    bint kvmattr_lock_soon(kvmattr_lock *lock, unsigned long thread)
    int kvmattr_lock_queue(kvmattr_lock *lock, unsigned long thread, kvmattr_wait *wait)
    int kvmattr_lock_await(kvmattr_wait *wait)
    int kvmattr_lock_give_up(kvmattr_wait *wait)
    void kvmattr_lock_leave(kvmattr_lock *lock)
    void kvmattr_invalidation_enter(kvmattr_invalidation *state)
    void kvmattr_invalidation_leave(kvmattr_invalidation *state)
    int kvmattr_locks_prepare()

cdef enum:
    PAGE_SHIFT = 12
    PAGE_MASK = 4095
    MAPPING_LEVELS = 3  # KVM maps pages of 4 KiB, 2 MiB and 1 GiB

cdef enum:  # kvmattr.Operation
    WRITE = 0
    OR = 1
    AND = 2

# What became of one change; the first three are the store's answers.
cdef enum Outcome:
    NO_MEMORY = -1
    UNCHANGED = 0
    CHANGED = 1
    INVALID = -2  # an argument that KVM refuses
    REFUSED = -3  # a byte that this VM cannot have

cdef enum:  # of a batch
    GROUP = 32  # records whose pages are asked for ahead
    SLICE = 4096  # records under the lock of the machine, and between two looks at signals

# Constants of the interface as C knows them; their one source is uapi.py.
cdef int ACCESS_WRITE = uapi.KVM_MEMORY_EXIT_FLAG_WRITE
cdef int EXIT_PRIVATE = uapi.KVM_MEMORY_EXIT_FLAG_PRIVATE
cdef int EXIT_MEMORY_FAULT = uapi.KVM_EXIT_MEMORY_FAULT
cdef int EXIT_MMIO = uapi.KVM_EXIT_MMIO
cdef int MEM_READONLY = uapi.KVM_MEM_READONLY
cdef int MEM_GUEST_MEMFD = uapi.KVM_MEM_GUEST_MEMFD

# The 32 bytes of struct kvm_memory_attributes; `last` is operation | flags << 32, or the merged u64 flags.
cdef struct Record:
    uint64_t address
    uint64_t size
    uint64_t attributes
    uint64_t last

# An array of records on its way.
cdef struct Batch:
    const Record *records
    size_t count
    size_t done
    uint64_t changed
    Outcome outcome
    uint8_t refused
    Record record  # the one at `done`, a copy: its owner may write the array meanwhile
    Series series

# Exit's own __new__ is a Python function, which takes as long as the whole look-up.
cdef object new_tuple = tuple.__new__

cdef object EHWPOISON = uapi.EHWPOISON
cdef uint64_t NO_GFN = <uint64_t>-1
cdef uint64_t MAX_GFN = 1ULL << 52
cdef uint64_t U32 = 0xFFFFFFFF
cdef uint64_t U64 = <uint64_t>-1


cdef uint64_t field(object value, uint64_t largest, str name) except? 0xFFFFFFFFFFFFFFFE:
    """Return the value of an unsigned field; ValueError if it does not fit, TypeError if it is no integer."""
    cdef uint64_t number = 0
    cdef bint fits = True
    if not PyLong_Check(value):
        try:
            value = as_integer(value)
        except TypeError:
            raise TypeError(f"{name} {value!r}: must be an integer") from None
    try:
        number = value
    except OverflowError:
        fits = False
    if not fits or number > largest:
        raise ValueError(f"{name} {value:#x}: must be in 0..{largest:#x}")
    return number


cdef bint names_objects(const char *form) noexcept nogil:
    """Whether a buffer's format (PEP 3118) has Python objects, which nobody may read or write as bytes."""
    cdef bint name = False
    if form is NULL:
        return False
    while form[0]:
        if form[0] == c":":
            name = not name
        elif form[0] == c"O" and not name:
            return True
        form += 1
    return False


cdef int visit_changes(Map *before, Map *after, uint64_t start, uint64_t stop, ChangeVisitor visit,
                       void *context) except -1:
    """Visit the changed runs without the GIL. Whoever holds the two states without it announces itself first."""
    map_announce(before, 1)
    map_announce(after, 1)
    with nogil:
        map_changes(before, after, start, stop, visit, context)
    map_announce(after, -1)
    map_announce(before, -1)
    return 0


cdef enum:  # what a listener hears; the first two as listeners.CHANGES and CALLS
    HEARS_CHANGES = 1  # of changed pages, before and after
    HEARS_CALLS = 2
    HEARS_COMPILED = 4  # that what it knows may be stale: a Watcher


cdef tuple whole(tuple numbers):
    """The numbers of a call as ints; None if one is none: whatever the call answers, KVM was not asked."""
    try:
        return tuple(map(as_integer, numbers))
    except TypeError:
        return None


# The first runs of a difference, as they go to a listener.
cdef packed struct Change:  # DIFF_DTYPE
    uint64_t start
    uint64_t stop
    uint8_t old
    uint8_t new

cdef struct Chunk:
    Change *changes
    size_t count
    size_t capacity
    size_t limit
    bint failed


cdef bint add_change(void *context, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    cdef Chunk *chunk = <Chunk *>context
    cdef size_t capacity
    cdef Change *changes
    if chunk.count == chunk.capacity:
        capacity = min(chunk.limit, 8 * chunk.capacity if chunk.capacity else 8)
        changes = <Change *>realloc(chunk.changes, capacity * sizeof(Change))
        if changes is NULL:
            chunk.failed = True
            return False
        chunk.changes = changes
        chunk.capacity = capacity
    chunk.changes[chunk.count] = Change(start, stop, old, new)
    chunk.count += 1
    return chunk.count < chunk.limit


def first_changes(before, after, start, stop, limit):
    """Return the first ``limit`` (at least 1) records of ``after.diff(before, start, stop)``, read-only.

    In memory and time for those records. A record is never cut short, so the next ones are got from the last
    one's ``stop`` on. Two maps that nobody changes meanwhile give the same records again.
    """
    cdef uint64_t first = start, end = stop
    cdef Map *old = map_of(before)
    cdef Map *new = map_of(after)
    cdef Chunk chunk = Chunk(NULL, 0, 0, limit, False)
    visit_changes(old, new, first, end, add_change, &chunk)
    try:
        if chunk.failed:
            raise MemoryError(f"no memory for {chunk.count} changed runs")
        if not chunk.count:
            return np.empty(0, DIFF_DTYPE)
        return np.frombuffer(PyBytes_FromStringAndSize(<char *>chunk.changes, chunk.count * sizeof(Change)),
                             DIFF_DTYPE)
    finally:
        free(chunk.changes)


# What a whole difference comes to.
cdef struct Difference:
    uint64_t start
    uint64_t stop
    bint becomes[256]  # some page becomes this byte


cdef bint add_difference(void *context, uint64_t start, uint64_t stop, uint8_t old, uint8_t new) noexcept nogil:
    cdef Difference *difference = <Difference *>context
    difference.start = min(difference.start, start)
    difference.stop = stop
    difference.becomes[new] = True
    return True


include "_machine/invalidation.pxi"
include "_machine/announcement.pxi"


# Order of memory of the flags that are read without what guards them, for machines that reorder more than x86 does.
# Each says only where more has to be looked at. It is stored with release order after that was written, and read with
# acquire order before that is looked at, so whoever sees it raised finds what it tells of:
#
# listened          after who hears, under the lock; a SET and a slice of a batch ask again there, where it is exact
# poisoned          after the page's mark in FilePages.held, which is then read under that map's mutex. The machine's
#                   sequence count rises after both, so an access that missed it is one that `retry` refuses; it is
#                   never lowered
# FilePages.in_use  after the page's mark in held (unpin: the mark is gone before it is lowered), which is read under
#                   the mutex; a conversion that misses it began before `pin` returned, and the kernel has that race too
#
# A thread that learns of the change in another way (an event, a join) has been ordered after it by that.

cdef class Machine:
    """What a SET and an access need of a VM; :class:`kvmattr.VM` is this and everything around it."""

    cdef readonly object profile
    """The profile whose interface this VM speaks."""
    cdef readonly object attributes
    """The attributes of every page: a read-only AttributeMap that is always up to date; it speaks gfns."""
    cdef readonly MemslotTable memslots
    """The memslot table, to look at; it is changed through the VM."""
    cdef readonly Invalidation invalidation
    """Sequence count and hull of the changes."""
    cdef tuple heard_by  # every listener and what it hears, in the order in which they came
    cdef tuple listeners  # those of them that hear of changed pages
    cdef tuple told  # and those that hear of calls
    cdef tuple watchers  # and the compiled ones, a Watcher each
    cdef int listened  # HEARS_CHANGES and HEARS_CALLS, if somebody does. Asked without the lock
    cdef object store
    cdef Map *map  # the store's
    cdef uint64_t supported
    cdef uint8_t private_bit
    cdef bint mail_calls
    cdef bint vm_attributes  # is there a SET on the VM at all?
    cdef bint file_attributes  # does PRIVATE belong to the pages of guest_memfds?
    cdef uint64_t supported_by_files
    cdef int poisoned  # may some page of its guest_memfds have failed? Asked without the lock
    cdef uint64_t page_mask  # of a page of the host
    cdef uint8_t legal[256]  # may the byte be stored?
    cdef uint8_t keeps[3][256]  # [operation][attributes]: is the result legal whatever legal byte is stored?
    cdef uint8_t allowed[256]  # what the byte leaves of a full memslot
    cdef kvmattr_lock lock

    def __cinit__(self, *args, **kwargs):
        self.invalidation = Invalidation()
        self.heard_by = self.listeners = self.told = self.watchers = ()
        self.lock.invalidation = &self.invalidation.state
        kvmattr_lock_open(&self.lock)

    def __dealloc__(self):
        kvmattr_lock_close(&self.lock)

    def __init__(self, profile, bint private, capabilities, MemslotTable memslots not None):
        cdef bytes legal = profile.legality(private, capabilities)
        cdef int byte
        if self.map is not NULL:
            raise RuntimeError("this VM is made already: __init__ can be called once")
        self.profile = profile
        self.store = AttributeMap()
        self.attributes = self.store._readonly_view()
        self.memslots = memslots
        memslots.owned = True
        self.supported = profile.supported(private)
        self.private_bit = profile.private
        self.mail_calls = profile.mail_calls
        self.vm_attributes = profile.vm_attributes
        self.file_attributes = profile.file_attributes
        self.supported_by_files = profile.supported_by_files(private)
        self.page_mask = memslots.host.page_size - 1
        for byte in range(256):
            self.legal[byte] = legal[byte]
            self.allowed[byte] = profile.allowed(byte)
        self.find_operations_that_keep_legality()
        self.map = map_of(self.store)

    cdef int check_made(self) except -1:
        """RuntimeError for a machine of a class whose ``__init__`` does not call ours."""
        if self.map is NULL:
            raise RuntimeError(f"{type(self).__name__} object is no machine yet: "
                               "its __init__ must call VM.__init__")
        return 0

    cdef void find_operations_that_keep_legality(self) noexcept:
        """Note for each OR and AND whether it keeps every legal byte legal: then nothing need be read."""
        cdef int attributes, byte
        for attributes in range(256):
            self.keeps[OR][attributes] = self.keeps[AND][attributes] = True
            for byte in range(256):
                if self.legal[byte]:
                    self.keeps[OR][attributes] &= self.legal[byte | attributes]
                    self.keeps[AND][attributes] &= self.legal[byte & attributes]
            self.keeps[WRITE][attributes] = self.legal[attributes]

    # One change at a time ----------------------------------------------------------------------------------

    cdef int enter(self) except -1:
        """Take the lock; OSError(EBUSY) if this thread has it: a listener may not change what it hears of.

        Nothing of a change may lie outside a compiled ``try`` with ``leave`` in its ``finally``: between two
        bytecodes a signal's handler may raise, in compiled code it cannot.
        """
        self.check_made()
        if not kvmattr_lock_try(&self.lock, PyThread_get_thread_ident()):
            self.enter_after_others()
        return 0

    cdef int enter_in_turn(self) except -1:
        """The same for one of many changes in a row: whoever waits has it first."""
        self.check_made()
        if not kvmattr_lock_try_in_turn(&self.lock, PyThread_get_thread_ident()):
            self.enter_after_others()
        return 0

    cdef int enter_after_others(self) except -1:
        """Wait for the lock. A signal is heard meanwhile; OSError(EDEADLK) if it would be for ever."""
        cdef kvmattr_wait wait
        cdef unsigned long thread = PyThread_get_thread_ident()
        cdef int granted
        if kvmattr_lock_owner(&self.lock) == thread:
            raise OSError(EBUSY, "this VM is being changed: a listener may not change it")
        with nogil:
            granted = kvmattr_lock_soon(&self.lock, thread) or kvmattr_lock_queue(&self.lock, thread, &wait)
        if granted < 0:
            raise OSError(EDEADLK, "this VM is being changed by a thread that waits for this one: "
                                   "listeners of two VMs may not change each other's")
        while not granted:
            with nogil:
                granted = kvmattr_lock_await(&wait)
            if not granted:
                try:
                    PyErr_CheckSignals()
                except BaseException:
                    if kvmattr_lock_give_up(&wait):
                        self.leave()
                    raise
        return 0

    cdef void leave(self) noexcept:
        for watcher in self.watchers:
            (<Watcher>watcher).changed()
        kvmattr_lock_leave(&self.lock)

    def _locked(self, str call, tuple numbers, function, *arguments, **keywords):
        """Call a function under the lock and return what it returns; ENOMEM for its MemoryError.

        ``call``, ``numbers``: what listeners of calls hear afterwards; None for a call that they do not hear of.
        """
        cdef list interrupts = None
        self.enter()
        try:
            if self.told and call is not None:
                interrupts = []
                answer = self.answer_heard(call, numbers, interrupts, function, arguments, keywords)
            else:
                answer = function(*arguments, **keywords)
        except MemoryError as no_memory:
            raise OSError(ENOMEM, str(no_memory)) from no_memory
        finally:
            self.leave()
        if interrupts:
            raise interrupts[0]
        return answer

    cdef object answer_heard(self, str call, tuple numbers, list interrupts, function, tuple arguments, dict keywords):
        """Call a function that is a call of KVM's, and tell it. What tells it is made first: memory may run out."""
        numbers = whole(numbers)
        try:
            answer = function(*arguments, **keywords)
        except OSError as error:
            self.tell_refused(call, numbers, error)
            raise
        self.tell(call, numbers, answer if isinstance(answer, int) else 0, interrupts)
        return answer

    def _hears_calls(self):
        """Whether a call that changes nothing is to be told, under the lock: what a listener asks itself is not."""
        return (kvmattr_load_int(&self.listened) & HEARS_CALLS
                and kvmattr_lock_owner(&self.lock) != PyThread_get_thread_ident())

    cdef int tell(self, str call, tuple numbers, answer, list interrupts) except -1:
        """Tell the listeners of calls of one, under the lock. What they raise is as in ``Announcement.tell``."""
        if call is None or numbers is None:
            return 0
        for listener in self.told:
            try:
                listener.called(call, numbers, answer)
            except BaseException as error:
                if isinstance(error, Exception) or interrupts:
                    report_unraisable(error, listener)
                else:
                    interrupts.append(error)
        return 0

    cdef int tell_refused(self, str call, tuple numbers, error) except -1:
        """The same of a call that is about to raise an OSError; what takes its place is raised."""
        cdef list interrupts = []
        if error.errno is not None:
            self.tell(call, numbers, -error.errno, interrupts)
        if interrupts:
            raise interrupts[0] from error
        return 0

    def _close_guest_memfd(self, files, handle):
        """Close a file of ``files``; what its memslots map is stale."""
        cdef Hull hull
        cdef GuestMemfd file
        interrupt = None
        self.enter()
        try:
            file = files.file(handle)
            hull = Hull(NO_GFN, NO_GFN)
            hull_file(&hull, file, 0, NO_GFN)
            # The last that needs memory. That it is forgotten and not closed is not seen: nobody else has the lock.
            forget_file(file)
            if hull.start != NO_GFN:
                invalidation_begin(&self.invalidation.state, hull, True)
            file.shut()
            if hull.start != NO_GFN:
                invalidation_end(&self.invalidation.state, True, True)
            try:
                files.forget(handle)
            except MemoryError:
                pass  # whoever finds it there sees that it is closed
            except BaseException as raised:  # a signal's: it is closed all the same
                files.forget(handle)
                interrupt = raised
        finally:
            self.leave()
        if interrupt is not None:
            raise interrupt

    def _add_listener(self, listener, int hears, bint replay):
        """Add a listener; one that hears of changes first hears what is stored, if that is to be."""
        cdef Announcement stored = None
        self.enter()
        try:
            if replay and hears & HEARS_CHANGES:
                stored = Announcement((listener,), AttributeMap(), self.store.snapshot(), [(0, len(self.store), 0)])
                stored.prepare()
                stored.commit()
            self.arrange(self.heard_by + ((listener, hears),))
        except MemoryError as no_memory:
            raise OSError(ENOMEM, str(no_memory)) from no_memory
        finally:
            self.leave()
        if stored is not None and stored.interrupt is not None:
            raise stored.interrupt

    def _remove_listener(self, listener):
        self.enter()
        try:
            others = tuple([other for other in self.heard_by if other[0] is not listener])
            if len(others) == len(self.heard_by):
                raise ValueError(f"{listener!r}: is not registered")
            self.arrange(others)
        finally:
            self.leave()

    cdef int arrange(self, tuple heard_by) except -1:
        """Let these hear from now on, under the lock; nothing is changed without memory for it."""
        of_changes = tuple([listener for listener, hears in heard_by if hears & HEARS_CHANGES])
        of_calls = tuple([listener for listener, hears in heard_by if hears & HEARS_CALLS])
        compiled = tuple([listener for listener, hears in heard_by if hears & HEARS_COMPILED])
        self.heard_by, self.listeners, self.told, self.watchers = heard_by, of_changes, of_calls, compiled
        kvmattr_store_int(&self.listened, HEARS_CHANGES * (len(of_changes) > 0) | HEARS_CALLS * (len(of_calls) > 0))
        return 0

    # KVM_SET_MEMORY_ATTRIBUTES -----------------------------------------------------------------------------

    @cython.final
    cdef inline int set_errno(self, const Record *record) noexcept nogil:
        """Return the errno of KVM's checks of the arguments, or 0; ``explain`` says which one it was."""
        if record.last and (not self.mail_calls or record.last > AND):
            return EINVAL
        if record.attributes & ~self.supported:
            return EINVAL
        # The end may not wrap, not even to 0: so the last page of the 2^64 bytes can never be named.
        if record.size == 0 or record.address + record.size < record.address:
            return EINVAL
        if (record.address | record.size) & self.page_mask:
            return EINVAL
        return 0

    def _explain(self, uint64_t address, uint64_t size, uint64_t attributes, uint64_t last):
        """Return the text of the EINVAL that ``set_errno`` gave: the first broken rule, in KVM's order."""
        operation, flags = last & 0xFFFFFFFF, last >> 32
        if not self.mail_calls and last:
            return f"flags {last:#x}: must be 0 in the {self.profile.name} profile"
        if operation > AND:
            return f"operation {operation}: must be 0 (WRITE), 1 (OR) or 2 (AND)"
        if flags:
            return f"flags {flags:#x}: must be 0"
        if attributes & ~self.supported:
            return f"attributes {attributes:#x}: must be within the supported {self.supported:#x}"
        if size == 0:
            return f"size 0: must be a multiple of {self.page_mask + 1} above 0"
        if address + size < address:
            return f"address {address:#x}, size {size:#x}: the end must be below 2^64"
        if address & self.page_mask:
            return f"address {address:#x}: must be a multiple of {self.page_mask + 1}"
        return f"size {size:#x}: must be a multiple of {self.page_mask + 1}"

    def _check(self, address, size, operation=0, flags=0):
        """Raise OSError(EINVAL) for what KVM refuses, ValueError for what fits no field."""
        cdef Record record
        record.address = field(address, U64, "address")
        record.size = field(size, U64, "size")
        record.attributes = 0
        record.last = field(operation, U32, "operation") | field(flags, U32, "flags") << 32
        if self.set_errno(&record):
            raise OSError(EINVAL, self._explain(record.address, record.size, record.attributes, record.last))

    @cython.final
    cdef inline Outcome change(self, const Record *record, uint8_t *refused, bint shared,
                               Series *series) noexcept nogil:
        """Make one checked change that nobody listens to, under the lock and, if it is shared, the store's mutex.

        ``series``: which it is one of; NULL for none.
        """
        cdef uint64_t start = record.address >> PAGE_SHIFT
        cdef uint64_t stop = (record.address + record.size) >> PAGE_SHIFT
        cdef uint8_t attributes = <uint8_t>record.attributes
        cdef int operation = <int>record.last
        cdef UpdateForm form = update_form_of(attributes, operation, 0xFF)
        cdef kvmattr_invalidation *state = &self.invalidation.state
        cdef bint invalidates
        cdef UpdateResult result
        if not self.keeps[operation][attributes]:
            if series is not NULL:
                map_series_store(self.map, series)
            if self.makes_illegal(start, stop, attributes, operation, refused):
                return REFUSED
        invalidates = self.begin_invalidation(start, stop, shared, series)
        if series is NULL:
            result = map_apply(self.map, start, stop, form.k, form.x)
        else:
            result = map_series_apply(self.map, series, start, stop, form.k, form.x)
        if invalidates:
            invalidation_end(state, result == UPDATE_CHANGED, shared)
        return <Outcome>result

    @cython.final
    cdef bint makes_illegal(self, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                            uint8_t *refused) noexcept nogil:
        """Return whether the operation would make a byte of some page that may not be stored, and which."""
        cdef uint8_t becomes_illegal[256]
        cdef UpdateForm form = update_form_of(attributes, operation, 0xFF)
        cdef int stored
        if operation == WRITE:
            refused[0] = attributes
            return True
        for stored in range(256):
            becomes_illegal[stored] = not self.legal[(stored & form.k) ^ form.x]
        stored = map_refused(self.map, start, stop, becomes_illegal)
        if stored < 0:
            return False
        refused[0] = (stored & form.k) ^ form.x
        return True

    def _illegal(self, uint8_t attributes):
        allowed = self.profile.allowed(attributes)
        letters = "".join(letter for letter, bit in zip("RWX", (1, 2, 4)) if allowed & bit) or "none"
        private = " and PRIVATE" if attributes & self.private_bit else ""
        return f"attributes {attributes:#x}: this VM cannot have the effective protection {letters}{private}"

    @cython.final
    cdef inline bint begin_invalidation(self, uint64_t start, uint64_t stop, bint shared,
                                        Series *series) noexcept nogil:
        """Begin an invalidation of what the memslots in [start, stop) map; False if there are none."""
        cdef Hull hull = Hull(NO_GFN, NO_GFN)
        cdef int space
        for space in range(self.memslots.address_spaces):
            if self.memslots.spaces[space].used:
                self.invalidate_space(&hull, start, stop, &self.memslots.spaces[space], series)
        if hull.start == NO_GFN:
            return False
        invalidation_begin(&self.invalidation.state, hull, shared)
        return True

    @cython.final
    cdef void invalidate_space(self, Hull *hull, uint64_t start, uint64_t stop, SlotSet *slots,
                               Series *series) noexcept nogil:
        """Widen the hull by what the memslots of an address space map of [start, stop)."""
        cdef const Slot *slot = slot_at(slots, start)
        cdef uint16_t index = slot - slots.records if slot is not NULL else slot_reaching(slots, start)
        while index and slots.records[index].start < stop:
            self.invalidate_slot(hull, start, stop, &slots.records[index], series)
            index = slot_after(slots, index) if slots.records[index].stop < stop else 0

    @cython.final
    cdef inline void invalidate_slot(self, Hull *hull, uint64_t start, uint64_t stop, const Slot *slot,
                                     Series *series) noexcept nogil:
        """Widen the hull by the part of [start, stop) in a slot, and by the huge pages across its two ends.

        A huge page whose pages are equal so far may be mapped; the change makes it mixed, so a fault on one
        of its unchanged pages must not map it now (``arch/x86/kvm/mmu/mmu.c``,
        kvm_arch_pre_set_memory_attributes).
        """
        start = max(start, slot.start)
        stop = min(stop, slot.stop)
        hull_widen(hull, start, stop)
        self.invalidate_huge_pages(hull, start, start, stop, slot, series)
        if stop - start > 1:
            self.invalidate_huge_pages(hull, stop - 1, start, stop, slot, series)

    @cython.final
    cdef void invalidate_huge_pages(self, Hull *hull, uint64_t gfn, uint64_t start, uint64_t stop,
                                    const Slot *slot, Series *series) noexcept nogil:
        """Widen the hull by the 2 MiB and 1 GiB around gfn that [start, stop) covers in part."""
        cdef uint64_t pages = PAGES_PER_BLOCK, block
        cdef int level
        for level in range(2, MAPPING_LEVELS + 1):
            block = gfn & ~(pages - 1)
            if block < slot.start or block + pages > slot.stop:
                return
            if block < start or block + pages > stop:
                if not (map_block_is_uniform(self.map, block, level) if series is NULL
                        else map_series_block_is_uniform(self.map, series, block, level)):
                    return  # mixed at this level, so at all above
                hull_widen(hull, block, block + pages)
            pages *= PAGES_PER_BLOCK

    cdef int check_call(self) except -1:
        """Raise OSError(ENOTTY) if the profile has no attributes of VMs."""
        self.check_made()
        if not self.vm_attributes:
            raise OSError(ENOTTY, f"the {self.profile.name} profile has no KVM_SET_MEMORY_ATTRIBUTES on a VM")
        return 0

    cdef bint set(self, const Record *record) except -1:
        """Check, lock, change; return whether any page changed. OSError with KVM's errno."""
        return self.set_and_keep(record, None)

    cdef bint set_and_keep(self, const Record *record, list interrupts) except -1:
        """The same; with a list, what a listener's ``commit`` raised for the caller goes there: the change stands."""
        cdef uint8_t refused = 0
        cdef bint entered
        cdef Outcome outcome
        self.check_call()
        outcome = INVALID if self.set_errno(record) else UNCHANGED
        if outcome == UNCHANGED or kvmattr_load_int(&self.listened):
            self.enter()
            if kvmattr_load_int(&self.listened):  # under the lock it is exact
                kept = [] if interrupts is None else interrupts
                try:
                    outcome = <Outcome>self.set_heard(record, outcome, kept)
                finally:
                    self.leave()
                map_filled(self.map)
                if interrupts is None and kept:
                    raise kept[0]
                return outcome
            if outcome == UNCHANGED:
                entered = map_enter(self.map)
                outcome = self.change(record, &refused, entered, NULL)
                map_leave(self.map, entered)
            self.leave()
            map_filled(self.map)
        if outcome < 0:
            self.fail(outcome, record, refused)
        return outcome

    cdef bint set_heard(self, const Record *record, Outcome outcome, list interrupts) except -1:
        """Make one change that somebody hears of, under the lock; ``outcome``: INVALID if it was refused already."""
        cdef tuple numbers = None
        cdef uint8_t refused = 0
        cdef bint entered
        try:
            if self.told:
                numbers = record.address, record.size, record.attributes, record.last
            if outcome == UNCHANGED and self.listeners:
                outcome = <Outcome>self.change_announced(record, interrupts)
            elif outcome == UNCHANGED:
                entered = map_enter(self.map)
                outcome = self.change(record, &refused, entered, NULL)
                map_leave(self.map, entered)
            if outcome < 0:
                self.fail(outcome, record, refused)
        except MemoryError as no_memory:
            raise OSError(ENOMEM, str(no_memory)) from no_memory
        except OSError as error:
            self.tell_refused("set_memory_attributes", numbers, error)
            raise
        self.tell("set_memory_attributes", numbers, 0, interrupts)
        return outcome

    cdef int fail(self, Outcome outcome, const Record *record, uint8_t refused) except -1:
        """Raise the OSError of a SET that was refused."""
        self.check_made()
        if outcome == NO_MEMORY:
            raise OSError(ENOMEM, f"size {record.size:#x}: no memory for the attributes")
        if outcome == REFUSED:
            raise OSError(EINVAL, self._illegal(refused))
        raise OSError(EINVAL, self._explain(record.address, record.size, record.attributes, record.last))

    cdef bint change_announced(self, const Record *record, list interrupts) except -1:
        """Make one checked change that listeners hear of, under the lock."""
        cdef uint64_t start = record.address >> PAGE_SHIFT
        cdef uint64_t stop = (record.address + record.size) >> PAGE_SHIFT
        cdef uint8_t attributes = <uint8_t>record.attributes, refused = 0
        cdef int operation = <int>record.last
        cdef bint entered, illegal = False
        if not self.keeps[operation][attributes]:
            entered = map_enter(self.map)
            illegal = self.makes_illegal(start, stop, attributes, operation, &refused)
            map_leave(self.map, entered)
        if illegal:
            self.fail(REFUSED, record, refused)
        try:
            after = self.store.copy()
            if not after.update(start, stop, attributes, operation):
                return False
            self.install(after, start, stop, interrupts)
        except MemoryError as no_memory:
            raise OSError(ENOMEM, str(no_memory)) from no_memory
        return True

    cdef int install(self, after, uint64_t start, uint64_t stop, list interrupts) except -1:
        """Make the store what ``after`` is, under the lock; they differ, and only within [start, stop)."""
        cdef kvmattr_invalidation *state = &self.invalidation.state
        cdef Announcement announcement = None
        cdef bint invalidates, entered
        if self.listeners:
            announcement = Announcement(self.listeners, self.store.snapshot(), after, [(start, stop, start)])
            announcement.prepare()
        entered = map_enter(self.map)
        invalidates = self.begin_invalidation(start, stop, True, NULL)
        map_leave(self.map, entered)
        try:
            self.store.restore(after)
        except BaseException:
            if invalidates:
                invalidation_end(state, False, True)
            if announcement is not None:
                announcement.abort()
            raise
        # Whoever maps a page must look again until the listeners have heard that it changed.
        try:
            if announcement is not None:
                announcement.commit()
                if announcement.interrupt is not None:
                    interrupts.append(announcement.interrupt)
        finally:
            if invalidates:
                invalidation_end(state, True, True)
        return 0

    def _restore(self, saved):
        """Make the attributes those that ``saved`` has now."""
        cdef Map *source
        cdef Difference difference
        cdef int attributes
        interrupts = []
        memset(&difference, 0, sizeof(difference))
        difference.start = NO_GFN
        self.enter()
        try:
            saved = saved.snapshot()
            source = map_of(saved)
            visit_changes(self.map, source, 0, MAX_GFN, add_difference, &difference)
            for attributes in range(256):
                if difference.becomes[attributes] and not self.legal[attributes]:
                    raise OSError(EINVAL, self._illegal(attributes))
            if difference.stop:
                before = self.store.snapshot() if self.told else None
                self.install(saved, difference.start, difference.stop, interrupts)
                if before is not None:
                    self.tell_restored(before, saved, difference.start, difference.stop, interrupts)
        except MemoryError as no_memory:
            raise OSError(ENOMEM, str(no_memory)) from no_memory
        finally:
            self.leave()
        if interrupts:
            raise interrupts[0]

    cdef int tell_restored(self, before, after, uint64_t start, uint64_t stop, list interrupts) except -1:
        """Listeners of calls hear a restore as the SETs that it comes to. Without memory the rest is not told."""
        try:
            while len(runs := first_changes(before, after, start, stop, MAX_RUNS_A_CALL)):
                for first, last, _, attributes in runs.tolist():
                    self.tell("set_memory_attributes",
                              (first << PAGE_SHIFT, (last - first) << PAGE_SHIFT, attributes, 0), 0, interrupts)
                    start = last
        except MemoryError as error:
            report_unraisable(error, self)
        return 0

    def set_memory_attributes(self, address, size, attributes, operation=0, flags=0):
        """KVM_SET_MEMORY_ATTRIBUTES: change the attributes of the pages [address, address + size); return 0.

        Byte addresses; ``attributes`` and what ``operation`` does with them: see :class:`kvmattr.Operation`. An
        AND takes a complement too, a negative int: ``~PRIVATE`` keeps every supported bit but PRIVATE. (The
        ioctl's u64 has no sign: there all 64 bits of the complement are EINVAL, as unsupported bits are.)
        O(height) of the tree and independent of the size, but for what listeners hear. Raises OSError with
        KVM's errno, having changed nothing: EINVAL for arguments that KVM refuses and for protections that
        this VM cannot have, EBUSY from inside a listener, ENOMEM; ValueError for a value that fits no field
        of the structure. The mail, and ``virt/kvm/kvm_main.c``, kvm_vm_ioctl_set_mem_attributes.

        >>> from kvmattr import VM, Operation, uapi
        >>> vm = VM()
        >>> vm.set_memory_attributes(0, 2 << 20, uapi.KVM_MEM_ATTR_PRIVATE)
        0
        >>> vm.set_memory_attributes(4096, 4096, uapi.KVM_MEM_ATTR_NO_WRITE, Operation.OR)
        0
        >>> vm.attributes[1]
        5
        """
        cdef Record record
        record.address = field(address, U64, "address")
        record.size = field(size, U64, "size")
        if self.mail_calls:
            record.last = field(operation, U32, "operation") | field(flags, U32, "flags") << 32
        else:  # there is no field for an operation: anything but WRITE is a flag that must be 0
            record.last = field(operation, U32, "operation") | field(flags, U64, "flags")
        self.check_made()
        if record.last == AND and self.mail_calls and PyLong_Check(attributes) and attributes < 0:
            attributes = self.keeping(attributes)
        record.attributes = field(attributes, U64, "attributes")
        map_called(self.map, CALL_VM_SET, 1)
        self.set(&record)
        return 0

    cdef object keeping(self, attributes):
        """What an AND with a complement keeps, ``~PRIVATE`` as Python has it: all supported bits but those named."""
        if ~attributes & ~self.supported:
            raise OSError(EINVAL, f"attributes {attributes}: the complement of {~attributes:#x}, which must be within "
                                  f"the supported {self.supported:#x}")
        return self.supported & attributes

    def _ioctl_set(self, arg, mutate_flag):
        """KVM_SET_MEMORY_ATTRIBUTES as an ioctl."""
        cdef Record record
        cdef Py_buffer view
        if not PyObject_CheckBuffer(arg):
            raise OSError(EFAULT, f"{arg!r}: must be a buffer of 32 bytes")
        try:
            PyObject_GetBuffer(arg, &view, PyBUF_ND | PyBUF_FORMAT)
        except Exception as refused:
            raise OSError(EFAULT, f"{arg!r}: must be one piece of memory ({refused})") from refused
        if names_objects(view.format):
            PyBuffer_Release(&view)
            raise OSError(EFAULT, f"{arg!r}: holds references to Python objects, must be plain memory")
        cdef size_t length = view.len
        cdef bint readonly = view.readonly
        if length >= sizeof(Record):
            memcpy(&record, view.buf, sizeof(Record))
        PyBuffer_Release(&view)
        if length < sizeof(Record):
            raise OSError(EFAULT, f"a buffer of {length} bytes: the structure has {sizeof(Record)}")
        self.check_made()
        map_called(self.map, CALL_VM_SET, 1)
        # What is returned is there before anything changes: memory for it may run out.
        answer = bytes(arg) if readonly or not mutate_flag else 0
        self.set(&record)
        return answer

    def set_memory_attributes_many(self, records):
        """Apply an array of KVM_SET_MEMORY_ATTRIBUTES structures in order; return how many changed something.

        ``records``: a one-dimensional numpy array of ``uapi.MEMORY_ATTRIBUTES`` or the merged
        ``uapi.LINUX_MEMORY_ATTRIBUTES``, or a ctypes array of either structure; TypeError for anything else.
        The first record that ``set_memory_attributes`` would refuse ends the batch with the same OSError,
        whose ``done`` counts the records before it: those stand, the others were not tried.

        >>> import numpy as np
        >>> from kvmattr import VM, uapi
        >>> records = np.zeros(3, uapi.MEMORY_ATTRIBUTES)
        >>> records["address"] = [0, 4096, 0]
        >>> records["size"], records["attributes"] = 4096, 1
        >>> VM().set_memory_attributes_many(records)
        2
        """
        try:
            self.check_call()
        except OSError as stopped:
            stopped.done = 0
            raise
        array = np.asarray(records)
        if array.ndim != 1 or array.dtype not in (uapi.MEMORY_ATTRIBUTES, uapi.LINUX_MEMORY_ATTRIBUTES):
            raise TypeError(f"records of {array.dtype}, {array.ndim} dimensions: must be one-dimensional, "
                            "of uapi.MEMORY_ATTRIBUTES or uapi.LINUX_MEMORY_ATTRIBUTES")
        cdef const uint8_t[::1] memory = np.ascontiguousarray(array).view(np.uint8)
        # Of the memory, not of the array, whose size another thread may change.
        cdef Batch batch
        memset(&batch, 0, sizeof(batch))
        batch.count = memory.shape[0] // sizeof(Record)
        if batch.count:
            batch.records = <const Record *>&memory[0]
        interrupts = []
        self.check_made()
        map_called(self.map, CALL_VM_SET, batch.count)
        map_announce(self.map, 1)
        map_series_begin(&batch.series, batch.count)
        try:
            while batch.done < batch.count:
                if not kvmattr_load_int(&self.listened):
                    self.set_slice(&batch)
                else:
                    kvmattr_read_once(&batch.record, &batch.records[batch.done], sizeof(Record))
                    batch.changed += self.set_and_keep(&batch.record, interrupts)
                    batch.done += 1
                    if interrupts:
                        raise interrupts[0]
                PyErr_CheckSignals()
        except BaseException as stopped:
            stopped.done = batch.done
            raise
        finally:
            map_series_end(&batch.series)
            map_announce(self.map, -1)
        return batch.changed

    @cython.final
    cdef int set_slice(self, Batch *batch) except -1:
        """Some records of a batch, without the GIL; the lock is free between two slices."""
        cdef size_t end = min(batch.count, batch.done + SLICE)
        self.enter_in_turn()
        if kvmattr_load_int(&self.listened):  # since we looked: it is to hear of every record from now on
            self.leave()
            return 0
        with nogil:
            while batch.done < end and batch.outcome >= 0:
                self.set_group(batch, end)
        self.leave()
        with nogil:
            map_filled(self.map)
        if batch.outcome < 0:
            self.fail(batch.outcome, &batch.record, batch.refused)
        return 0

    @cython.final
    cdef void set_group(self, Batch *batch, size_t end) noexcept nogil:
        """Some records under the mutex of the store, so few that nobody waits for it long."""
        cdef size_t asked = batch.done
        cdef bint entered = map_series_enter(self.map, &batch.series)
        while batch.done < end and map_series_goes_on(&batch.series):
            if batch.done == asked:
                asked = min(end, asked + GROUP)
                if map_series_expects(self.map, &batch.series):
                    self.ask_for(batch, asked)
            kvmattr_read_once(&batch.record, &batch.records[batch.done], sizeof(Record))
            batch.outcome = (INVALID if self.set_errno(&batch.record)
                             else self.change(&batch.record, &batch.refused, entered, &batch.series))
            if batch.outcome < 0:
                break
            batch.changed += batch.outcome
            batch.done += 1
        map_series_leave(self.map, &batch.series, entered)

    @cython.final
    cdef void ask_for(self, const Batch *batch, size_t end) noexcept nogil:
        """Have what the next records' pages need come nearer, up to the record ``end``."""
        cdef size_t ahead
        for ahead in range(batch.done, end):
            map_series_expect(self.map, batch.records[ahead].address >> PAGE_SHIFT)

    # guest_memfd -------------------------------------------------------------------------------------------

    def _adopt(self, GuestMemfd file, FilePages pages, machine):
        """Make a file one of this machine's, with these pages; ``machine``: a weak reference to it."""
        file.pages = pages
        file.machine = machine
        file.file_map = pages.map if self.file_attributes else NULL
        if pages.poisoned(0, len(pages.store)) >= 0:
            kvmattr_store_int(&self.poisoned, 1)
        pages.files.append(reference_to(file))

    def _link(self, files, GuestMemfd other):
        """Return the handle of a file of this machine, one of ``files``, with another's pages.

        Under the locks of those that have them: a batch that converts them knows who they are until it ends.
        """
        cdef FilePages pages = other.pages
        cdef list machines
        self.enter()  # EBUSY inside a listener
        self.leave()
        machines = pages.lock()
        try:
            return files.link(self, other)
        except MemoryError as no_memory:
            raise OSError(ENOMEM, str(no_memory)) from no_memory
        finally:
            pages.unlock(machines)

    # Faults ------------------------------------------------------------------------------------------------

    def access(self, gpa, access, size=1, private=None):
        """Let a guest access memory: None if it may, else the :class:`kvmattr.Exit` to user space.

        ``gpa``: byte address; ``access``: one or several of :class:`kvmattr.Access`; ``size``: bytes from
        ``gpa``; ``private``: whether the access is to private memory, None for what the attribute says. In
        this order (``arch/x86/kvm/mmu/mmu.c``, kvm_faultin_pfn): PRIVATE of access and attribute differ, or
        private without an open guest_memfd: MEMORY_FAULT; no memslot: MMIO; an attribute forbids:
        MEMORY_FAULT; write to a read-only memslot: MMIO. Of an access that straddles pages, the first one
        that exits answers, and nothing was accessed. Address space 0. ValueError for an access outside the
        2^64 bytes, or of no known kind.

        A machine has no cached MMIO mappings: KVM still answers MMIO for a page without memslot that was made
        private after such an access, here it is a MEMORY_FAULT at once.

        >>> from kvmattr import VM, Access
        >>> vm = VM()
        >>> vm.access(0x1234, Access.READ, 4)
        Exit(MMIO, flags=0, gpa=0x1234, size=0x4, is_write=False)
        """
        cdef uint64_t first = field(gpa, U64, "gpa")
        cdef uint64_t length = field(size, U64, "size")
        cdef uint64_t last = first + length - 1
        cdef uint64_t wanted = field(access, 7, "access")
        if wanted == 0:
            raise ValueError("access 0: must be READ, WRITE, EXEC or several of them")
        if length == 0 or last < first:
            raise ValueError(f"gpa {first:#x}, size {length:#x}: "
                             "must be at least a byte, and end at or below 2^64")
        cdef int claimed = -1 if private is None else bool(private)
        cdef uint64_t gfn = first >> PAGE_SHIFT, end = last >> PAGE_SHIFT
        cdef const Slot *slot
        cdef uint8_t attributes
        cdef uint64_t stop = 0
        cdef uint64_t *inside
        cdef int flags
        cdef bint doubtful = False
        self.check_made()
        while True:
            inside = kvmattr_gate_enter(&self.memslots.gate)
            slot = slot_at(&self.memslots.spaces[0], gfn)
            attributes = self.page_in(gfn, slot)
            flags = self.fault_flags(attributes, slot, wanted, claimed)
            if flags == NO_FAULT:
                stop = min(slot.stop, end + 1) if gfn < end else gfn + 1
                if gfn < end:
                    stop = self.equal_until(gfn, stop, slot)
                doubtful = (kvmattr_load_int(&self.poisoned)
                            and (attributes & self.private_bit or slot.flags & GUEST_MEMFD_ALONE))
            kvmattr_gate_leave(inside)
            if flags != NO_FAULT:
                return self.exit(gfn, flags, first, last, wanted)
            if doubtful:
                failed = self.first_failed(gfn, stop)
                if failed is not None:
                    return self.exit(failed, EXIT_PRIVATE if attributes & self.private_bit else 0, first, last,
                                     wanted)._replace_errno(EHWPOISON)
            gfn = stop
            if gfn > end:
                return None

    cdef object first_failed(self, uint64_t gfn, uint64_t stop):
        """The first gfn of [gfn, stop), as far as one memslot holds it, whose page of the file failed, or None."""
        cdef const Slot *slot
        cdef uint64_t page = 0
        file = None
        with cython.critical_section(self.memslots):
            slot = slot_at(&self.memslots.spaces[0], gfn)
            if slot is not NULL:
                stop = min(stop, slot.stop)
                page = (slot.guest_memfd_offset >> PAGE_SHIFT) + (gfn - slot.start)
                file = self.memslots.guest_memfds.get(slot - self.memslots.spaces[0].records - 1)
        if file is None or file.pages is None:
            return None
        found = file.pages.poisoned(page, page + (stop - gfn))
        return None if found < 0 else gfn + (<uint64_t>found - page)

    cdef uint8_t page_in(self, uint64_t gfn, const Slot *slot) noexcept nogil:
        """The attributes of a page where its memslot is known: PRIVATE is the bound file page's, if files have it.

        No memslot, one without a file, and a closed file count as shared then.
        """
        cdef uint8_t attributes = self.page(gfn)
        if self.file_attributes and slot is not NULL and slot.flags & GUEST_MEMFD_OPEN:
            attributes |= map_look_up(<Map *>slot.extra.file_map,
                                      (slot.guest_memfd_offset >> PAGE_SHIFT) + (gfn - slot.start))
        return attributes

    cdef uint8_t page(self, uint64_t gfn) noexcept nogil:
        return map_look_up(self.map, gfn)

    cdef uint64_t equal_until(self, uint64_t gfn, uint64_t stop, const Slot *slot) noexcept nogil:
        """Return how far the attributes of gfn, which lies in a memslot, extend, at most to stop in it."""
        cdef bint entered = map_enter(self.map)
        cdef uint64_t end = map_run_stop(self.map, gfn, stop)
        map_leave(self.map, entered)
        return self.equal_in_file(gfn, end, slot) if self.file_attributes else end

    cdef uint64_t equal_in_file(self, uint64_t gfn, uint64_t stop, const Slot *slot) noexcept nogil:
        """The same of the attributes of the guest_memfd alone, where those belong to it."""
        cdef bint entered
        cdef uint64_t page
        cdef Map *map
        if slot.flags & GUEST_MEMFD_OPEN:
            map = <Map *>slot.extra.file_map
            page = (slot.guest_memfd_offset >> PAGE_SHIFT) + (gfn - slot.start)
            entered = map_enter(map)
            stop = gfn + (map_run_stop(map, page, page + (stop - gfn)) - page)
            map_leave(map, entered)
        return stop

    cdef int fault_flags(self, uint8_t attributes, const Slot *slot, uint64_t wanted,
                         int claimed) noexcept nogil:
        """Return the flags of the MEMORY_FAULT of one page, NO_FAULT if there is none, MMIO if it is that."""
        cdef int page_private = (attributes & self.private_bit) != 0
        cdef int private = page_private if claimed < 0 else claimed
        cdef int flags = EXIT_PRIVATE if private else 0
        cdef uint64_t refused
        if private != page_private or private and (slot is NULL or not slot.flags & GUEST_MEMFD_OPEN):
            return flags
        if slot is NULL:
            return MMIO
        if slot.flags & (GUEST_MEMFD_ALONE | GUEST_MEMFD_OPEN) == GUEST_MEMFD_ALONE:
            return flags  # its file is closed
        refused = wanted & ~<uint64_t>self.allowed[attributes]
        if refused:
            return flags | refused
        if wanted & ACCESS_WRITE and slot.flags & MEM_READONLY:
            return MMIO
        return NO_FAULT

    cdef exit(self, uint64_t gfn, int flags, uint64_t first, uint64_t last, uint64_t wanted):
        cdef uint64_t page = gfn << PAGE_SHIFT & ~self.page_mask
        cdef bint is_write = (wanted & ACCESS_WRITE) != 0
        if flags != MMIO:
            return new_tuple(Exit, (EXIT_MEMORY_FAULT, flags, page, self.page_mask + 1, is_write))
        page = max(page, first)
        return new_tuple(Exit, (EXIT_MMIO, 0, page, min(last, page | self.page_mask) - page + 1, is_write))

    def protection(self, gpa):
        """Return what the guest may do at byte address ``gpa``, memslot AND attributes, as an Access.

        Nothing without a memslot in address space 0. Attributes only take away. ValueError outside the 2^64
        bytes.

        >>> from kvmattr import VM, uapi
        >>> vm = VM()
        >>> vm.set_user_memory_region(0, 0, 1 << 20, flags=uapi.KVM_MEM_READONLY)
        0
        >>> vm.protection(0x1000)
        <Access.READ|EXEC: 5>
        """
        cdef uint64_t gfn = field(gpa, U64, "gpa") >> PAGE_SHIFT
        cdef const Slot *slot
        cdef uint64_t *inside
        cdef uint8_t allowed = 0
        self.check_made()
        inside = kvmattr_gate_enter(&self.memslots.gate)
        slot = slot_at(&self.memslots.spaces[0], gfn)
        if slot is not NULL:
            allowed = self.allowed[self.page(gfn)]
            if slot.flags & MEM_READONLY:
                allowed &= ~ACCESS_WRITE
        kvmattr_gate_leave(inside)
        return Access(allowed) if allowed else NO_ACCESS

    def is_private(self, gpa):
        """Return whether KVM takes the page at byte address ``gpa`` for private, in address space 0.

        By the attribute of its gfn, or where attributes belong to guest_memfds by that of the file page bound
        there; without one it is shared (``include/linux/kvm_host.h``, kvm_mem_is_private).

        >>> from kvmattr import VM
        >>> VM().is_private(0)
        False
        """
        cdef uint64_t gfn = field(gpa, U64, "gpa") >> PAGE_SHIFT
        cdef uint64_t *inside
        cdef uint8_t attributes
        self.check_made()
        inside = kvmattr_gate_enter(&self.memslots.gate)
        attributes = self.page_in(gfn, slot_at(&self.memslots.spaces[0], gfn))
        kvmattr_gate_leave(inside)
        return attributes & self.private_bit != 0

    def mapping_level(self, gpa):
        """Return the level of the largest page that may map byte address ``gpa``: 1, 2 (2 MiB) or 3 (1 GiB).

        The block must lie inside its memslot, its attributes must be uniform, and ``gpa`` and
        ``userspace_addr`` must be the same modulo its size; 1 without a memslot in address space 0
        (``arch/x86/kvm/mmu/mmu.c``, kvm_mmu_max_mapping_level; ``x86.c``, kvm_alloc_memslot_metadata). It is
        what lpage_info allows: no kernel compares the offset of a guest_memfd, and up to the queue of 7.4 every
        one maps the pages of a guest_memfd by 4 KiB all the same, since its folios are of order 0.

        >>> from kvmattr import VM
        >>> vm = VM()
        >>> vm.set_user_memory_region(0, 0, 1 << 30)
        0
        >>> vm.mapping_level(0)
        3
        >>> vm.set_memory_attributes(0, 4096, 1)
        0
        >>> vm.mapping_level(0), vm.mapping_level(2 << 20)
        (1, 2)
        """
        cdef uint64_t gfn = field(gpa, U64, "gpa") >> PAGE_SHIFT
        cdef const Slot *slot
        cdef int level, highest = 1
        cdef uint64_t block, askew, pages = PAGES_PER_BLOCK
        cdef uint64_t *inside
        cdef bint entered
        self.check_made()
        inside = kvmattr_gate_enter(&self.memslots.gate)
        slot = slot_at(&self.memslots.spaces[0], gfn)
        map_called(self.map, CALL_LEVEL, 0)
        if slot is not NULL:
            askew = slot.start ^ slot.userspace_addr >> PAGE_SHIFT
            entered = map_enter(self.map)
            for level in range(2, MAPPING_LEVELS + 1):
                block = gfn & ~(pages - 1)
                if (askew & (pages - 1) or block < slot.start or block + pages > slot.stop
                        or not map_block_is_uniform(self.map, block, level)
                        or self.file_attributes and self.equal_in_file(block, block + pages, slot) < block + pages):
                    break
                highest = level
                pages *= PAGES_PER_BLOCK
            map_leave(self.map, entered)
        kvmattr_gate_leave(inside)
        return highest


include "_machine/files.pxi"


cdef class Watcher:
    """Compiled code that keeps what it looked up of pages: the software TLB of an emulator.

    A subclass asks ``look_up`` at each miss and hears through ``changed`` when it must forget what it was
    told: after every call that may change attributes, memslots or a guest_memfd, effective or not, before
    the next one can begin (``virt/kvm/kvm_main.c``, kvm_flush_remote_tlbs). All of it with the GIL.
    """

    cdef int watch(self, machine) except -1:
        """Watch this machine from now on; OSError(EBUSY) from inside a listener."""
        (<Machine>machine)._add_listener(self, HEARS_COMPILED, False)
        self.machine = machine
        return 0

    cdef int unwatch(self) except -1:
        """Watch it no more. Waits for a change in progress; nothing to do if none is watched."""
        if self.machine is not None:
            (<Machine>self.machine)._remove_listener(self)
            self.machine = None
        return 0

    cdef void changed(self) noexcept:
        """Forget what was looked up. The machine is locked: it can be asked and not changed."""

    cdef int look_up(self, uint64_t gpa, uint64_t wanted, int claimed, uint8_t *allowed) noexcept:
        """What an access does at a page: NO_FAULT, MMIO or the flags of its MEMORY_FAULT.

        ``wanted``: Access bits; ``claimed``: whether the access is private, -1 for what the attribute says.
        With NO_FAULT, ``allowed`` gets all that memslot AND attributes allow there.
        """
        cdef Machine machine = <Machine>self.machine
        cdef uint64_t gfn = gpa >> PAGE_SHIFT
        cdef uint64_t *inside = kvmattr_gate_enter(&machine.memslots.gate)
        cdef const Slot *slot = slot_at(&machine.memslots.spaces[0], gfn)
        cdef uint8_t attributes = machine.page_in(gfn, slot)
        cdef int fault = machine.fault_flags(attributes, slot, wanted, claimed)
        if fault == NO_FAULT:
            allowed[0] = machine.allowed[attributes] & (~ACCESS_WRITE if slot.flags & MEM_READONLY else 0xFF)
        kvmattr_gate_leave(inside)
        return fault

    cdef int look_up_flat(self, uint64_t gpa, uint64_t wanted, int claimed, uint8_t *allowed) noexcept:
        """``look_up`` without memslots: attributes alone say what an access does, and no page is MMIO."""
        cdef Machine machine = <Machine>self.machine
        cdef uint8_t attributes = machine.page(gpa >> PAGE_SHIFT)
        cdef int page_private = (attributes & machine.private_bit) != 0
        cdef int private = page_private if claimed < 0 else claimed
        cdef uint64_t refused = wanted & ~<uint64_t>machine.allowed[attributes]
        if private != page_private or refused:
            return <int>refused | (EXIT_PRIVATE if private else 0)
        allowed[0] = machine.allowed[attributes]
        return NO_FAULT

    cdef exit(self, int fault, uint64_t gpa, uint64_t size, uint64_t wanted):
        """The Exit of an access that ``look_up`` did not let through."""
        return (<Machine>self.machine).exit(gpa >> PAGE_SHIFT, fault, gpa, gpa + size - 1, wanted)


if kvmattr_locks_prepare():
    raise MemoryError("out of memory for the fork handlers")
