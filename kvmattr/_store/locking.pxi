# Who holds a family's mutex.
#
# Who takes it: whoever changes a family or reads its current state, but only while some thread writes without the GIL
# (family.announced; always on free-threaded builds). Bulk readers pin the root under it and read without it. A
# writer that will drop the GIL announces itself while it still holds it.
#
# The mutex is held for some 100 ns by one update and for up to 50 us by a group of a batch. What costs much more is
# that it changes hands: what the one thread wrote has to come out of the other CPU's cache, some microseconds for an
# update, and a thread that sleeps for it is awake 50 us later. So whoever comes back at once gets it again, and whoever
# finds it taken stays away for a while before it looks again, longer each time: two threads that write take turns by
# many updates then, not by one. Whoever has waited long enough *claims* it. From then on all others stand behind, so
# nobody waits for the whole of another's batch. One at a time can claim it: who has the second mutex, the turn.
#
# Free-threaded, `get` takes no mutex while nobody has it (sync.h): threads that only look do not wait for each other.

cdef enum:                      # nanoseconds
    FIRST_REST = 2000           # until a thread looks again; then twice that, and so on
    PATIENCE_ONE = 28000        # until one operation claims the mutex: rests of 2, 4, 8 and 16 us
    PATIENCE_BATCH = 250000     # until the next group of a batch does
    CLAIM_AWAKE = 100000        # until whoever claimed it sleeps: more than a group of a batch takes

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
        kvmattr_add(&family.called[<int>CALL_GET].calls, kvmattr_readers_wait(family_stripes(family), &family.writing))

cdef void family_claim(Family *family) noexcept nogil:
    """Take the mutex after whoever has it now, before all others. The turn is taken too; fork() keeps it."""
    cdef uint64_t began = kvmattr_nanoseconds()
    pthread_mutex_lock(&family.turn)
    kvmattr_store_int(&family.claimed, 1)
    while pthread_mutex_trylock(&family.mutex):
        if kvmattr_nanoseconds() - began > CLAIM_AWAKE:
            pthread_mutex_lock(&family.mutex)
            break
        kvmattr_relax()
    kvmattr_store_int(&family.claimed, 0)

cdef void family_lock_later(Family *family, uint64_t patience) noexcept nogil:
    """Take the mutex that somebody has or claims."""
    cdef uint64_t rest = FIRST_REST, waited = 0
    while kvmattr_load_int(&family.claimed):
        pthread_mutex_lock(&family.turn)
        pthread_mutex_unlock(&family.turn)
    while pthread_mutex_trylock(&family.mutex):
        if waited >= patience:
            family_claim(family)
            pthread_mutex_unlock(&family.turn)
            return
        kvmattr_rest(rest)
        waited += rest
        rest *= 2

cdef inline void family_lock_within(Family *family, uint64_t patience) noexcept nogil:
    if kvmattr_load_int(&family.claimed) or pthread_mutex_trylock(&family.mutex):
        family_lock_later(family, patience)
    family_exclude_readers(family)

cdef inline void family_lock(Family *family) noexcept nogil:
    """Take the mutex for one operation."""
    family_lock_within(family, PATIENCE_ONE)

cdef inline void family_lock_group(Family *family) noexcept nogil:
    """The same for the next of many groups."""
    family_lock_within(family, PATIENCE_BATCH)

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


cdef void count_locking(Family *family, int call, uint64_t items) noexcept nogil:
    family_lock(family)
    count_call(family, call, items)
    family_unlock(family)

# Called through a pointer, so that no compiler takes it into its caller, which then needs no frame on the stack.
cdef void (*count_apart)(Family *family, int call, uint64_t items) noexcept nogil
count_apart = count_locking

cdef inline void count_entering(Family *family, int call, uint64_t items) noexcept nogil:
    """The same for a caller that does not hold the mutex."""
    if family_shared(family) and not KVMATTR_FREE_THREADED:
        count_apart(family, call, items)
    else:
        count_call(family, call, items)

cdef void count_items(Family *family, int call, uint64_t items) noexcept nogil:
    """More of a call that was counted before."""
    cdef bint entered = family_enter(family)
    kvmattr_add(&family.called[call].items, items)
    family_leave(family, entered)
