# Who holds a family's mutex.
#
# Who takes it: whoever changes a family or reads its current state, but only while some thread writes without the GIL
# (family.announced; always on free-threaded builds). Bulk readers pin the root under it and read without it. A
# writer that will drop the GIL announces itself while it still holds it.
#
# A batch takes the mutex again and again, and a POSIX mutex goes to whoever is awake: those that sleep for it would
# wait for the whole batch. So whoever finds it held takes a second one, the turn, and then waits for the first; a batch
# takes the turn before each of its groups, and so stands behind those that wait.
#
# Free-threaded, `get` takes no mutex while nobody has it (sync.h): threads that only look do not wait for each other.

cdef enum:
    LOCK_TRIES = 100            # about a microsecond

# Memory order, for machines that reorder more than x86 does. A look-up that finds nobody announced reads the tree
# without the mutex. What a writer wrote before it took its announcement back is seen: that store has release order,
# this load acquire order. A writer that announces itself later holds the GIL then (or, in C, its program has no reader
# yet: kvmattr_share() must come before the threads), so it is ordered after this look-up by the GIL.
cdef inline bint family_shared(const Family *family) noexcept nogil:
    """Whether its mutex is to be taken: the GIL does not keep all others away."""
    return KVMATTR_FREE_THREADED or kvmattr_load_int(&family.announced) != 0


cdef inline void family_exclude_readers(Family *family) noexcept nogil:
    """With the mutex: wait for the look-ups that go without it."""
    if KVMATTR_FREE_THREADED:
        family.called[<int>CALL_GET].calls += kvmattr_readers_wait(family_stripes(family), &family.writing)

cdef void family_lock_in_turn(Family *family) noexcept nogil:
    """Take the mutex after those that wait for it."""
    pthread_mutex_lock(&family.turn)
    pthread_mutex_lock(&family.mutex)
    pthread_mutex_unlock(&family.turn)
    family_exclude_readers(family)

cdef inline void family_lock(Family *family) noexcept nogil:
    """Take the mutex for one operation."""
    cdef int tries = 0
    while pthread_mutex_trylock(&family.mutex):
        # One operation is over sooner than a thread is put to sleep and woken.
        tries += 1
        if not KVMATTR_FREE_THREADED or tries > LOCK_TRIES:
            family_lock_in_turn(family)
            return
    family_exclude_readers(family)

cdef inline void family_unlock(Family *family) noexcept nogil:
    if KVMATTR_FREE_THREADED:
        kvmattr_store_int(&family.writing, 0)
    pthread_mutex_unlock(&family.mutex)


cdef inline uint8_t family_look_up(const Map *map, uint64_t gfn) noexcept nogil:
    """One page where several threads may look at once: without the mutex, as long as nobody has it."""
    cdef Family *family = map.family
    cdef uint64_t *reading = kvmattr_reader_enter(family_stripes(family), &family.writing)
    cdef uint8_t value
    if reading != NULL:
        value = map_get(map, gfn)
        kvmattr_reader_leave(reading)
    else:
        family_lock(family)
        value = map_get(map, gfn)
        count_one(family, CALL_GET)
        family_unlock(family)
    return value


cdef inline bint family_enter(Family *family) noexcept nogil:
    if family_shared(family):
        family_lock(family)
        return True
    return False

cdef inline void family_leave(Family *family, bint entered) noexcept nogil:
    if entered:
        family_unlock(family)

cdef inline void family_announce(Family *family, int change) noexcept nogil:
    family_lock(family)
    kvmattr_store_int(&family.announced, family.announced + change)
    family_unlock(family)


cdef void count_entering(Family *family, int call, uint64_t items) noexcept nogil:
    """The same for a caller that does not hold the mutex."""
    cdef bint entered = family_enter(family)
    count_call(family, call, items)
    family_leave(family, entered)

cdef inline void count_in_snapshot(Family *family, int call, uint64_t items) noexcept nogil:
    """A look-up without the mutex: counted while the family belongs to one thread."""
    if not family_shared(family):
        count_call(family, call, items)

cdef void count_items(Family *family, int call, uint64_t items) noexcept nogil:
    """More of a call that was counted before."""
    cdef bint entered = family_enter(family)
    family.called[call].items += items
    family_leave(family, entered)
