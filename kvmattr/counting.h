/* What an operation looks at, counted only in the counting build (KVMATTR_BUILD=counting), for the gate.
 *
 * In every other build the macros are nothing: no instruction, no store. In the counting build they are atomic,
 * since readers without the GIL count too. The fields exist in all builds, so that extensions which were built
 * against one may be loaded beside the other.
 *
 * The vector kernels that walk by themselves (count, locate, take) would count differently on each machine; the
 * counting build takes the plain road in their place (KVMATTR_COUNTING_BUILD in the store), with the same answers.
 */
#ifndef KVMATTR_COUNTING_H
#define KVMATTR_COUNTING_H

#include <stdint.h>

#if defined(KVMATTR_COUNTING)
#define KVMATTR_COUNTING_BUILD 1
#define KVMATTR_COUNT(family, field, number) \
    ((void)__atomic_fetch_add((uint64_t *)&(family)->counters.field, (uint64_t)(number), __ATOMIC_RELAXED))
#else
#define KVMATTR_COUNTING_BUILD 0
#define KVMATTR_COUNT(family, field, number) ((void)(family), (void)(number))
#endif

/* A node or run list is opened. */
#define kvmattr_count_visit(family) KVMATTR_COUNT(family, nodes_visited, 1)
/* So many pages of a leaf are read, decoded, compared or encoded. */
#define kvmattr_count_pages(family, number) KVMATTR_COUNT(family, pages_compared, number)

#endif /* KVMATTR_COUNTING_H */
