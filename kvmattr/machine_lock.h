/* The lock of a machine: one change at a time, by the thread that began it.
 *
 * It differs from a lock of Python's in four ways. Whoever waits can be called away by a signal (waiting goes in pieces,
 * and between two of them the caller looks). A thread that would wait for itself, directly or through others, is told
 * so. Those that wait get it in the order in which they came. And fork() leaves it free in the child, unless the
 * thread that forked has it.
 *
 * Taking it and leaving it is one atomic operation each as long as nobody waits. All else is under one mutex of the
 * process, which is held for some ten instructions.
 */
#ifndef KVMATTR_MACHINE_LOCK_H
#define KVMATTR_MACHINE_LOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "sync.h"

enum { KVMATTR_PATIENCE_NS = 50 * 1000 * 1000 };     /* until a signal is seen by whoever waits */

struct kvmattr_invalidation;

typedef struct kvmattr_lock {
    unsigned long owner;                /* the thread that has it, 0 if none */
    int waiting;                        /* threads in the queue */
    struct kvmattr_wait *first, *last;  /* the queue */
    struct kvmattr_lock *next, *previous;       /* all locks of the process */
    struct kvmattr_invalidation *invalidation;  /* the machine's: what fork() must end */
} kvmattr_lock;

/* One thread in a queue; it lies on that thread's stack. */
typedef struct kvmattr_wait {
    kvmattr_lock *lock;
    unsigned long thread;
    int granted;
    struct kvmattr_wait *next;
} kvmattr_wait;

static pthread_mutex_t kvmattr_locks_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t kvmattr_lock_granted = PTHREAD_COND_INITIALIZER;
static kvmattr_lock *kvmattr_locks;

static inline void kvmattr_lock_open(kvmattr_lock *lock)
{
    pthread_mutex_lock(&kvmattr_locks_mutex);
    lock->next = kvmattr_locks;
    if (lock->next)
        lock->next->previous = lock;
    kvmattr_locks = lock;
    pthread_mutex_unlock(&kvmattr_locks_mutex);
}

static inline void kvmattr_lock_close(kvmattr_lock *lock)
{
    pthread_mutex_lock(&kvmattr_locks_mutex);
    if (lock->previous)
        lock->previous->next = lock->next;
    else if (kvmattr_locks == lock)
        kvmattr_locks = lock->next;
    if (lock->next)
        lock->next->previous = lock->previous;
    pthread_mutex_unlock(&kvmattr_locks_mutex);
}

static inline unsigned long kvmattr_lock_owner(const kvmattr_lock *lock)
{
    return __atomic_load_n(&lock->owner, __ATOMIC_SEQ_CST);
}

/* Take it if it is free: 1 if it is ours now. */
static inline int kvmattr_lock_try(kvmattr_lock *lock, unsigned long thread)
{
    unsigned long nobody = 0;
    return __atomic_compare_exchange_n(&lock->owner, &nobody, thread, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* The same, unless somebody waits for it. */
static inline int kvmattr_lock_try_in_turn(kvmattr_lock *lock, unsigned long thread)
{
    return !__atomic_load_n(&lock->waiting, __ATOMIC_SEQ_CST) && kvmattr_lock_try(lock, thread);
}

/* Without a GIL: look again some times, each time after a longer while; 1 if it is ours now. Most changes are over sooner
 * than a thread is put to sleep and woken. Whoever has queued is given the lock and sleeps on for some 50 us: threads that
 * queued at once would do one change each in that time, so they rest for longer than that first. With a GIL, whoever has
 * the lock may wait for the GIL. */
static inline int kvmattr_lock_soon(kvmattr_lock *lock, unsigned long thread)
{
#if KVMATTR_FREE_THREADED
    for (uint64_t rest = 2000; rest <= 128000; rest *= 2) {
        kvmattr_rest(rest);
        if (kvmattr_lock_try_in_turn(lock, thread))
            return 1;
    }
#else
    (void)lock, (void)thread;
#endif
    return 0;
}

/* The lock that a thread waits for, or NULL. Under the mutex. */
static inline kvmattr_lock *kvmattr_awaited(unsigned long thread)
{
    for (kvmattr_lock *lock = kvmattr_locks; lock; lock = lock->next)
        for (const kvmattr_wait *wait = lock->first; wait; wait = wait->next)
            if (wait->thread == thread)
                return lock;
    return 0;
}

/* Whether the owner of a lock waits, directly or through others, for this thread. The last one of a circle comes here
 * when all others are in their queues, so one of them always sees it. Under the mutex. */
static inline int kvmattr_lock_circle(const kvmattr_lock *lock, unsigned long thread)
{
    for (int steps = 0; lock && steps < 1000; steps++) {
        unsigned long owner = kvmattr_lock_owner(lock);
        if (owner == thread)
            return 1;
        if (!owner)
            return 0;
        lock = kvmattr_awaited(owner);
    }
    return 0;
}

static inline void kvmattr_lock_grant(kvmattr_lock *lock)
{
    kvmattr_wait *wait = lock->first;
    lock->first = wait->next;
    if (!lock->first)
        lock->last = 0;
    wait->granted = 1;
    __atomic_store_n(&lock->owner, wait->thread, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&lock->waiting, 1, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&kvmattr_lock_granted);
}

/* Queue for it: 1 if it was free after all, -1 if that would never end, else 0. */
static inline int kvmattr_lock_queue(kvmattr_lock *lock, unsigned long thread, kvmattr_wait *wait)
{
    wait->lock = lock;
    wait->thread = thread;
    wait->granted = 0;
    wait->next = 0;
    pthread_mutex_lock(&kvmattr_locks_mutex);
    if (kvmattr_lock_circle(lock, thread)) {
        pthread_mutex_unlock(&kvmattr_locks_mutex);
        return -1;
    }
    if (lock->last)
        lock->last->next = wait;
    else
        lock->first = wait;
    lock->last = wait;
    /* Whoever leaves the lock either sees this, or has left it before we look. */
    __atomic_add_fetch(&lock->waiting, 1, __ATOMIC_SEQ_CST);
    if (!kvmattr_lock_owner(lock) && kvmattr_lock_try(lock, lock->first->thread))
        kvmattr_lock_grant(lock);
    int granted = wait->granted;    /* under the mutex: who is granted it sees what its last owner wrote */
    pthread_mutex_unlock(&kvmattr_locks_mutex);
    return granted;
}

/* Wait for a while: 1 if it is ours now. */
static inline int kvmattr_lock_await(kvmattr_wait *wait)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += KVMATTR_PATIENCE_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec += 1;
    }
    pthread_mutex_lock(&kvmattr_locks_mutex);
    while (!wait->granted)
        if (pthread_cond_timedwait(&kvmattr_lock_granted, &kvmattr_locks_mutex, &until))
            break;
    int granted = wait->granted;
    pthread_mutex_unlock(&kvmattr_locks_mutex);
    return granted;
}

/* Wait no more: 1 if it has become ours meanwhile, and is to be left. */
static inline int kvmattr_lock_give_up(kvmattr_wait *wait)
{
    kvmattr_lock *lock = wait->lock;
    kvmattr_wait *before = 0;
    pthread_mutex_lock(&kvmattr_locks_mutex);
    if (!wait->granted) {
        for (kvmattr_wait *other = lock->first; other != wait; other = other->next)
            before = other;
        if (before)
            before->next = wait->next;
        else
            lock->first = wait->next;
        if (lock->last == wait)
            lock->last = before;
        __atomic_sub_fetch(&lock->waiting, 1, __ATOMIC_SEQ_CST);
    }
    int granted = wait->granted;
    pthread_mutex_unlock(&kvmattr_locks_mutex);
    return granted;
}

static inline void kvmattr_lock_leave(kvmattr_lock *lock)
{
    if (!__atomic_load_n(&lock->waiting, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&lock->owner, 0, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&lock->waiting, __ATOMIC_SEQ_CST))
            return;
        pthread_mutex_lock(&kvmattr_locks_mutex);
        if (lock->first && kvmattr_lock_try(lock, lock->first->thread))
            kvmattr_lock_grant(lock);
    } else {
        pthread_mutex_lock(&kvmattr_locks_mutex);
        if (lock->first)
            kvmattr_lock_grant(lock);
        else
            __atomic_store_n(&lock->owner, 0, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&kvmattr_locks_mutex);
}

/* ---- sequence count and hull ---- */

/* What a machine has told of its changes. `guard` is a spinlock for a few instructions: a batch writes without the GIL
 * what others read with it. */
typedef struct kvmattr_invalidation {
    uint64_t sequence;
    uint64_t in_progress;
    uint64_t start, stop;               /* the hull; both UINT64_MAX: none */
    uint64_t held_start, held_stop;     /* what the hull was before the machine's own change */
    int own;                            /* the machine's own change has begun and can be seen by others */
    int guard;
} kvmattr_invalidation;

static inline void kvmattr_invalidation_enter(kvmattr_invalidation *state)
{
    for (int turns = 0; __atomic_exchange_n(&state->guard, 1, __ATOMIC_ACQUIRE); turns++)
        if (turns > 100) {      /* its holder does not run */
            struct timespec moment = {0, 1000};
            nanosleep(&moment, 0);
        }
}

static inline void kvmattr_invalidation_leave(kvmattr_invalidation *state)
{
    __atomic_store_n(&state->guard, 0, __ATOMIC_RELEASE);
}

/* ---- fork ---- */

static void kvmattr_locks_before_fork(void) { pthread_mutex_lock(&kvmattr_locks_mutex); }

static void kvmattr_locks_after_fork(void) { pthread_mutex_unlock(&kvmattr_locks_mutex); }

/* The child has one thread. What the others had locked is free; what they had begun to change has ended where it was:
 * the store's own handlers let no fork come into the middle of a change. */
static void kvmattr_locks_in_child(void)
{
    unsigned long self = (unsigned long)pthread_self();
    pthread_mutex_init(&kvmattr_locks_mutex, 0);
    pthread_cond_init(&kvmattr_lock_granted, 0);
    for (kvmattr_lock *lock = kvmattr_locks; lock; lock = lock->next) {
        kvmattr_wait *wait = lock->first;
        lock->first = lock->last = 0;
        lock->waiting = 0;
        for (; wait; wait = wait->next)
            if (wait->thread == self) {         /* it forked in a signal's handler, and waits on */
                lock->first = lock->last = wait;
                lock->waiting = 1;
            }
        if (lock->first)
            lock->first->next = 0;
        if (lock->owner && lock->owner != self) {
            lock->owner = 0;
            if (lock->invalidation && lock->invalidation->own) {
                lock->invalidation->own = 0;
                lock->invalidation->sequence += 1;
                lock->invalidation->in_progress -= 1;
            }
            if (lock->first)
                kvmattr_lock_grant(lock);
        }
    }
}

static int kvmattr_locks_prepare(void)
{
    return pthread_atfork(kvmattr_locks_before_fork, kvmattr_locks_after_fork, kvmattr_locks_in_child);
}

#endif /* KVMATTR_MACHINE_LOCK_H */
