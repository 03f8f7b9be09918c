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
#include <time.h>
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

enum { KVMATTR_WORTH_SLEEPING = 30000 };    /* nanoseconds */

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

/* Whether memory that another thread may change meanwhile is the same as ours: with a step of 0 as our 128 bytes again and
 * again, else 128. Each byte is loaded once, which memcmp() does not promise: it looks again at what differs. */
typedef uint64_t __attribute__((vector_size(16), aligned(1), may_alias)) kvmattr_two_words;

static inline int kvmattr_given_is(const uint8_t *given, const uint8_t *ours, size_t step, size_t bytes)
{
    int differ = 0;
    for (; bytes >= 128; bytes -= 128, given += 128, ours += step) {
        const kvmattr_two_words *a = (const kvmattr_two_words *)given, *b = (const kvmattr_two_words *)ours;
        kvmattr_two_words any = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
        any |= (a[4] ^ b[4]) | (a[5] ^ b[5]) | (a[6] ^ b[6]) | (a[7] ^ b[7]);
        if (any[0] | any[1])
            return 0;
    }
    for (size_t i = 0; i < bytes; i++)
        differ |= given[i] ^ ours[i];
    return differ == 0;
}

/* Pointers in the place of others: whoever reads one meanwhile gets the old or the new one. */
typedef uintptr_t __attribute__((may_alias)) kvmattr_word;

static inline void kvmattr_replace_words(void *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes / sizeof(kvmattr_word); i++)
        __atomic_store_n((kvmattr_word *)to + i, ((const kvmattr_word *)from)[i], __ATOMIC_RELEASE);
}

/* Numbers that count: added to under the mutex or the GIL; where there is no GIL, by anybody at any time. */
static inline void kvmattr_add(uint64_t *number, uint64_t by)
{
#if KVMATTR_FREE_THREADED
    if (!__builtin_constant_p(by) || by)
        __atomic_fetch_add(number, by, __ATOMIC_RELAXED);
#else
    *number += by;
#endif
}

static inline uint64_t kvmattr_number(const uint64_t *number) { return __atomic_load_n(number, __ATOMIC_RELAXED); }

/* Numbers that are changed under the mutex and read without it. */
static inline void kvmattr_store_int(int *where, int value) { __atomic_store_n(where, value, __ATOMIC_RELEASE); }

static inline int kvmattr_load_int(const int *where) { return __atomic_load_n(where, __ATOMIC_ACQUIRE); }

static inline uint64_t kvmattr_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* In a loop that waits for another thread. */
static inline void kvmattr_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");    /* `yield` is over at once */
#endif
}

/* Do nothing for a while, and touch nothing that another thread uses: asleep where that is worth it. */
static inline void kvmattr_rest(uint64_t nanoseconds)
{
    if (nanoseconds >= KVMATTR_WORTH_SLEEPING) {
        struct timespec moment = {0, (long)nanoseconds};
        nanosleep(&moment, 0);
        return;
    }
    uint64_t began = kvmattr_nanoseconds();
    while (kvmattr_nanoseconds() - began < nanoseconds)
        kvmattr_relax();
}

/* A hint that whoever reads it checks: no order is needed, only a whole value. */
static inline void kvmattr_store_hint(uint16_t *where, uint16_t value) { __atomic_store_n(where, value, __ATOMIC_RELAXED); }

static inline uint16_t kvmattr_load_hint(const uint16_t *where) { return __atomic_load_n(where, __ATOMIC_RELAXED); }

/* ---- look-ups of one page without the mutex, on free-threaded builds ----
 *
 * A reader counts itself in a word that threads hardly share, then looks whether somebody has the mutex; whoever takes
 * the mutex says so, then waits until those words are zero. Both write before they read, in one order for all (sequential
 * consistency), so one of the two sees the other: no reader walks a tree that changes. A reader that finds the mutex
 * taken waits for it. The upper half of a word counts the look-ups; who has the mutex gathers them.
 */
enum { KVMATTR_STRIPES = 16 };

struct kvmattr_stripe {
    uint64_t word;
    char apart[56];     /* a cache line each */
};

static inline uint64_t *kvmattr_stripe_of_thread(struct kvmattr_stripe *stripes)
{
    static __thread int number = -1;
    static int threads;
    if (number < 0)
        number = (int)((unsigned)__atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED) % KVMATTR_STRIPES);
    return &stripes[number].word;
}

/* NULL: somebody has the mutex. */
static inline uint64_t *kvmattr_reader_enter(struct kvmattr_stripe *stripes, const int *writing)
{
    uint64_t *word = kvmattr_stripe_of_thread(stripes);
    __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(writing, __ATOMIC_SEQ_CST))
        return word;
    __atomic_fetch_sub(word, 1, __ATOMIC_SEQ_CST);
    return 0;
}

static inline void kvmattr_reader_leave(uint64_t *word)
{
    __atomic_fetch_add(word, ((uint64_t)1 << 32) - 1, __ATOMIC_RELEASE);
}

/* With the mutex: keep readers out. Returns the look-ups since the last time. */
static inline uint64_t kvmattr_readers_wait(struct kvmattr_stripe *stripes, int *writing)
{
    uint64_t looked = 0;
    __atomic_store_n(writing, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < KVMATTR_STRIPES; i++) {
        uint64_t word;
        for (int turns = 0; (uint32_t)(word = __atomic_load_n(&stripes[i].word, __ATOMIC_SEQ_CST)); turns++)
            if (turns > 1000) {     /* that reader does not run */
                struct timespec moment = {0, 1000};
                nanosleep(&moment, 0);
            }
        if (word) {
            __atomic_fetch_sub(&stripes[i].word, word, __ATOMIC_SEQ_CST);
            looked += word >> 32;
        }
    }
    return looked;
}

/* ---- the same for what is not a family: a table that is changed seldom and read at every access ----
 *
 * Readers pass the gate, each for some hundred instructions, and do not wait for each other; whoever changes closes it,
 * which waits for those inside. Only one thread may close it at a time. With the GIL there is no gate: it keeps the two
 * apart itself.
 *
 * Inside, a thread may wait for a family's mutex and for nothing else, least of all for Python: whoever closes the gate
 * keeps its thread state, and so holds up a pause of all threads. It must not have a family's mutex.
 */
typedef struct kvmattr_gate {
#if KVMATTR_FREE_THREADED
    int closed;
    char apart[60];
    struct kvmattr_stripe stripes[KVMATTR_STRIPES];
#else
    int unused;
#endif
} kvmattr_gate;

static inline uint64_t *kvmattr_gate_enter(kvmattr_gate *gate)
{
#if KVMATTR_FREE_THREADED
    uint64_t *inside;
    for (int turns = 0; !(inside = kvmattr_reader_enter(gate->stripes, &gate->closed)); turns++)
        if (turns > 100) {      /* whoever closed it does not run */
            struct timespec moment = {0, 1000};
            nanosleep(&moment, 0);
        }
    return inside;
#else
    (void)gate;
    return 0;
#endif
}

static inline void kvmattr_gate_leave(uint64_t *inside)
{
#if KVMATTR_FREE_THREADED
    kvmattr_reader_leave(inside);
#else
    (void)inside;
#endif
}

static inline void kvmattr_gate_close(kvmattr_gate *gate)
{
#if KVMATTR_FREE_THREADED
    kvmattr_readers_wait(gate->stripes, &gate->closed);
#else
    (void)gate;
#endif
}

static inline void kvmattr_gate_open(kvmattr_gate *gate)
{
#if KVMATTR_FREE_THREADED
    kvmattr_store_int(&gate->closed, 0);
#else
    (void)gate;
#endif
}

#endif /* KVMATTR_SYNC_H */
