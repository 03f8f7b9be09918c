# fork(): the child has one thread, and finds every map between two operations.
#
# The threads that held a family's mutex or read from a pinned root are not there in the child. So fork waits until
# it holds every mutex itself, with its turn, and the child drops what other threads had pinned: those pins lie on their
# stacks, which the child will use for threads of its own.

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)


cdef void fork_prepare() noexcept nogil:
    cdef Family *family
    pthread_mutex_lock(&families_mutex)
    family = families
    while family != NULL:
        family_claim(family)
        family_exclude_readers(family)
        family = family.next_family


cdef void fork_parent() noexcept nogil:
    cdef Family *family = families
    while family != NULL:
        family_unlock(family)
        pthread_mutex_unlock(&family.turn)
        family = family.next_family
    pthread_mutex_unlock(&families_mutex)


cdef void fork_child() noexcept nogil:
    cdef Family *family = families
    cdef Map *map
    cdef Map *next
    cdef uintptr_t self = <uintptr_t>pthread_self()
    while family != NULL:
        if KVMATTR_FREE_THREADED:       # those that were about to look are not there
            memset(family_stripes(family), 0, KVMATTR_STRIPES * sizeof(kvmattr_stripe))
        map = family.maps
        while map != NULL:
            next = map.next
            if map.pinned_by and map.pinned_by != self:
                map_drop(map)
            map = next
        family = family.next_family
    fork_parent()


cdef int fork_register() noexcept nogil:
    """Once, at import. -1 when out of memory."""
    pthread_mutex_init(&families_mutex, NULL)
    return -1 if pthread_atfork(fork_prepare, fork_parent, fork_child) else 0
