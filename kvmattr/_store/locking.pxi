# Who holds a family's mutex.
#
# Who takes it: whoever changes a family or reads its current state, but only while some thread writes without the GIL
# (family.announced; always on free-threaded builds). Bulk readers pin the root under it and read without it. A
# writer that will drop the GIL announces itself while it still holds it.
#
# A batch takes the mutex again and again, and a POSIX mutex goes to whoever is awake: those that sleep for it would
# wait for the whole batch. So whoever finds it held takes a second one, the turn, and then waits for the first; a batch
# takes the turn before each of its groups, and so stands behind those that wait.

# Memory order, for machines that reorder more than x86 does. A look-up that finds nobody announced reads the tree without
# the mutex. What a writer wrote before it took its announcement back is seen: that store has release order, this load
# acquire order. A writer that announces itself later holds the GIL then (or, in C, its program has no reader yet:
# kvmattr_share() must come before the threads), so it is ordered after this look-up by the GIL.
cdef inline bint family_shared(const Family *family) noexcept nogil:
    """Whether its mutex is to be taken: the GIL does not keep all others away."""
    return KVMATTR_FREE_THREADED or kvmattr_load_int(&family.announced) != 0


cdef void family_lock_in_turn(Family *family) noexcept nogil:
    """Take the mutex after those that wait for it."""
    pthread_mutex_lock(&family.turn)
    pthread_mutex_lock(&family.mutex)
    pthread_mutex_unlock(&family.turn)

cdef inline void family_lock(Family *family) noexcept nogil:
    """Take the mutex for one operation."""
    if pthread_mutex_trylock(&family.mutex):
        family_lock_in_turn(family)

cdef inline void family_unlock(Family *family) noexcept nogil:
    pthread_mutex_unlock(&family.mutex)


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
