/* The family's mutex and the version word: the only places where two threads meet.
 *
 * The mutex is a plain POSIX one: it is held for one update or one group of a batch, never while Python runs.
 * The version is written with release and read with acquire order, so whoever reads it first and then the
 * tree sees at least the changes that it counts.
 */
#ifndef KVMATTR_SYNC_H
#define KVMATTR_SYNC_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The "locking" build does on any CPython what free-threaded ones need: every look-up in a map that may change takes the
 * mutex. It finds who takes it twice, or not at all; it cannot show what Python objects do without the GIL. */
#if defined(Py_GIL_DISABLED) || defined(KVMATTR_LOCKING)
#define KVMATTR_FREE_THREADED 1
#else
#define KVMATTR_FREE_THREADED 0
#endif

#if defined(KVMATTR_DEBUG)
#include <assert.h>
#define KVMATTR_DEBUG_BUILD 1
#define kvmattr_assert(condition) assert(condition)
#else
#define KVMATTR_DEBUG_BUILD 0
#define kvmattr_assert(condition) ((void)0)
#endif

/* A change is counted after its last page was written. Only the holder of the mutex writes. */
static inline void kvmattr_raise_version(uint64_t *version, uint64_t by)
{
    __atomic_store_n(version, *version + by, __ATOMIC_RELEASE);
}

static inline uint64_t kvmattr_read_version(const uint64_t *version)
{
    return __atomic_load_n(version, __ATOMIC_ACQUIRE);
}

/* A private copy of memory that another thread may change meanwhile: what is checked and what is used afterwards are both
 * the copy. The empty assembly keeps the compiler from reading the source once more in the copy's place. */
static inline void kvmattr_read_once(void *copy, const void *from, size_t bytes)
{
    memcpy(copy, from, bytes);
    __asm__ __volatile__("" : : "r"(copy) : "memory");
}

/* Numbers that are changed under the mutex and read without it. */
static inline void kvmattr_store_int(int *where, int value) { __atomic_store_n(where, value, __ATOMIC_RELEASE); }

static inline int kvmattr_load_int(const int *where) { return __atomic_load_n(where, __ATOMIC_ACQUIRE); }

#endif /* KVMATTR_SYNC_H */
