# Sequence count and hull of a machine's changes.
#
# A batch writes them without the GIL, in `shared` changes; so every access takes their spinlock then, and every access
# from Python does always. Order of memory: whoever reads `sequence` first, then pages, then asks `retry`, reads each
# under the spinlock or the store's mutex; a change raises `in_progress` before it takes effect and `sequence` after it,
# under the same two. So no page of before the change can be accepted with a number of after it.

cdef struct Hull:
    uint64_t start
    uint64_t stop


cdef inline void hull_widen(Hull *hull, uint64_t start, uint64_t stop) noexcept nogil:
    if hull.start == NO_GFN:
        hull[0] = Hull(start, stop)
    else:
        hull[0] = Hull(min(hull.start, start), max(hull.stop, stop))


cdef inline void state_widen(kvmattr_invalidation *state, uint64_t start, uint64_t stop) noexcept nogil:
    cdef Hull hull = Hull(state.start, state.stop)
    hull_widen(&hull, start, stop)
    state.start, state.stop = hull.start, hull.stop


cdef inline void state_open(kvmattr_invalidation *state) noexcept nogil:
    state.in_progress += 1
    if state.in_progress == 1:
        state.held_start, state.held_stop = state.start, state.stop
        state.start = state.stop = NO_GFN


cdef inline void invalidation_begin(kvmattr_invalidation *state, Hull hull, bint shared) noexcept nogil:
    """Begin a change of the machine's own, which affects the gfns of the hull."""
    if shared:
        kvmattr_invalidation_enter(state)
    state_open(state)
    state_widen(state, hull.start, hull.stop)
    state.own = True
    if shared:
        kvmattr_invalidation_leave(state)


cdef inline void invalidation_end(kvmattr_invalidation *state, bint changed, bint shared) noexcept nogil:
    """End it: what was looked up before is stale, unless nothing changed after all."""
    if shared:
        kvmattr_invalidation_enter(state)
    state.own = False
    state.in_progress -= 1
    if changed:
        state.sequence += 1
    elif state.in_progress == 0:
        state.start, state.stop = state.held_start, state.held_stop
    if shared:
        kvmattr_invalidation_leave(state)


cdef class Invalidation:
    """Sequence count and hull, by which a mapping made from a page's attributes is known to be stale.

    As KVM keeps them (``virt/kvm/kvm_main.c``, kvm_mmu_invalidate_begin, ..._range_add, ..._end, and
    ``include/linux/kvm_host.h``, mmu_invalidate_retry_gfn): a change begins, adds the ranges that it
    affects, which are kept as the smallest range that holds them all, and ends with ``sequence`` one higher.
    Who maps a page reads ``sequence`` first, then memslot and attributes, and asks ``retry`` before it uses
    the mapping.

    >>> from kvmattr import VM
    >>> vm = VM()
    >>> sequence = vm.invalidation.sequence
    >>> vm.set_user_memory_region(0, 0, 1 << 20)
    0
    >>> vm.set_memory_attributes(0, 4096, 1)
    0
    >>> vm.invalidation.retry(sequence), vm.invalidation.hull
    (True, (0, 1))
    """

    cdef kvmattr_invalidation state

    def __cinit__(self):
        self.state.start = self.state.stop = NO_GFN

    def __repr__(self):
        """All of it, of one moment."""
        cdef kvmattr_invalidation state = self.now()
        hull = "no hull" if state.start == NO_GFN else f"hull {state.start:#x}..{state.stop:#x}"
        return f"<Invalidation: sequence {state.sequence}, {state.in_progress} in progress, {hull}>"

    cdef kvmattr_invalidation now(self) noexcept:
        """All of it, of one moment."""
        cdef kvmattr_invalidation state
        memset(&state, 0, sizeof(state))
        kvmattr_invalidation_enter(&self.state)
        # Not the spinlock itself, which others try for meanwhile.
        state.sequence, state.in_progress = self.state.sequence, self.state.in_progress
        state.start, state.stop = self.state.start, self.state.stop
        kvmattr_invalidation_leave(&self.state)
        return state

    @property
    def sequence(self):
        """Changes that have ended."""
        return self.now().sequence

    @property
    def in_progress(self):
        """Changes that have begun and not ended."""
        return self.now().in_progress

    @property
    def hull(self):
        """The gfns ``(start, stop)`` of the changes in progress, or of the last one; None before any."""
        cdef kvmattr_invalidation state = self.now()
        return None if state.start == NO_GFN else (state.start, state.stop)

    def begin(self):
        """Begin a change that is not the machine's own (KVM: of the host's mappings)."""
        kvmattr_invalidation_enter(&self.state)
        state_open(&self.state)
        kvmattr_invalidation_leave(&self.state)

    def add(self, start, stop):
        """Widen the hull of the changes in progress to hold the gfns [start, stop)."""
        cdef uint64_t first = field(start, MAX_GFN, "start"), end = field(stop, MAX_GFN, "stop")
        cdef bint begun
        if first >= end:
            raise ValueError(f"range {first:#x}..{end:#x}: start must be below stop")
        kvmattr_invalidation_enter(&self.state)
        begun = self.state.in_progress != 0
        if begun:
            state_widen(&self.state, first, end)
        kvmattr_invalidation_leave(&self.state)
        if not begun:
            raise ValueError("no change is in progress: begin one first")

    def end(self):
        """End a change: what was looked up before its end is stale. ValueError without a begin or a range."""
        cdef bint begun
        kvmattr_invalidation_enter(&self.state)
        begun = self.state.in_progress and self.state.start != NO_GFN
        if begun:
            self.state.sequence += 1
            self.state.in_progress -= 1
        kvmattr_invalidation_leave(&self.state)
        if not begun:
            raise ValueError("a change must begin and add a range before it ends")

    def retry(self, sequence, gfn=None):
        """Return True if what was looked up at ``sequence`` may be stale: look again.

        With ``gfn``, a change in progress counts only if its hull holds that page, as in
        mmu_invalidate_retry_gfn; without, any does, as in mmu_invalidate_retry.
        """
        cdef kvmattr_invalidation state = self.now()
        if state.in_progress and (gfn is None or state.start <= gfn < state.stop):
            return True
        return state.sequence != sequence
