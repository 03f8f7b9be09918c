# A family: maps that share nodes, the arena in which these lie, and one mutex. A list has all families of the process.

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    ctypedef uintptr_t pthread_t
    pthread_t pthread_self()

cdef Family *families = NULL                # list of all families of this process
cdef pthread_mutex_t families_mutex         # taken before the mutex of a family, never after one


cdef void families_add(Family *family) noexcept nogil:
    global families
    pthread_mutex_lock(&families_mutex)
    family.previous_family = NULL
    family.next_family = families
    if families != NULL:
        families.previous_family = family
    families = family
    pthread_mutex_unlock(&families_mutex)


cdef void families_remove(Family *family) noexcept nogil:
    global families
    pthread_mutex_lock(&families_mutex)
    if family.previous_family != NULL:
        family.previous_family.next_family = family.next_family
    else:
        families = family.next_family
    if family.next_family != NULL:
        family.next_family.previous_family = family.previous_family
    pthread_mutex_unlock(&families_mutex)


cdef inline size_t family_lines() noexcept nogil:
    """A family in whole cache lines; the readers' words lie behind them."""
    return (sizeof(Family) + 63) & ~<size_t>63


cdef inline kvmattr_stripe *family_stripes(Family *family) noexcept nogil:
    """Where readers without the mutex count themselves; on free-threaded builds alone."""
    return <kvmattr_stripe *>(<char *>family + family_lines())


cdef Family *family_new() noexcept nogil:
    """A family with no maps and no memory of its own; NULL when out of memory."""
    cdef Family *family = NULL
    if KVMATTR_FREE_THREADED:
        if posix_memalign(<void **>&family, 64, family_lines() + KVMATTR_STRIPES * sizeof(kvmattr_stripe)):
            return NULL
        memset(family, 0, family_lines() + KVMATTR_STRIPES * sizeof(kvmattr_stripe))
    else:
        family = <Family *>calloc(1, sizeof(Family))
        if family == NULL:
            return NULL
    family.bias[0] = <uintptr_t>&zero_page[0]
    family.segment_count = 1
    pthread_mutex_init(&family.mutex, NULL)
    pthread_mutex_init(&family.turn, NULL)
    families_add(family)
    return family


cdef void family_free(Family *family) noexcept nogil:
    cdef int i
    families_remove(family)
    for i in range(1, family.segment_count):
        munmap(family.segments[i].memory, segment_bytes(family.segments[i].capacity))
    pthread_mutex_destroy(&family.mutex)
    pthread_mutex_destroy(&family.turn)
    free(family)


cdef void arena_prepare() noexcept nogil:
    global system_pages
    cdef int runs, size_class = 0
    cdef long bytes = sysconf(_SC_PAGESIZE)
    if bytes > PAGE_BYTES:
        system_pages = <uint32_t>(bytes // PAGE_BYTES)
    for runs in range(1, KVMATTR_LIST_RUNS + 1):
        while class_bytes[size_class] < run_list_size(runs):
            size_class += 1
        class_of_runs[runs] = <uint8_t>size_class
        class_runs[size_class] = <uint8_t>runs
    for size_class in range(RECORD_CLASSES):
        class_places[size_class] = (PAGE_BYTES - (8 if size_class < LIST_CLASSES else 0)) // class_bytes[size_class]
        class_reciprocal[size_class] = ((1 << 16) + class_bytes[size_class] // 8 - 1) // (class_bytes[size_class] // 8)
