/* The walks down to many pages, in plain C. Included by simd_plain.h.
 *
 * Groups of 64 pages go down together, one level after the other, in short loops: the loads of one page do not wait for
 * those of another. What is rare below a node, a pending operation, a run list, a page beyond the root, is only looked for,
 * in all pages of a group at once, and put right when it is there.
 */
#ifndef KVMATTR_SIMD_PLAIN_WALK_H
#define KVMATTR_SIMD_PLAIN_WALK_H

enum { KVMATTR_GROUP = 64 };

/* An entry on which nothing is pending has k = 0xff and x = 0; the handle of a node begins a page, that of a bitmap leaf a
 * line. */
#define KVMATTR_NO_OPERATION 0xff00000000
#define KVMATTR_OPERATION 0xffff00000000
#define KVMATTR_IN_NODE 511
#define KVMATTR_IN_LINE 7

/* A group on its way: the entries of its pages at the level that they have come to. */
typedef struct kvmattr_plain_group {
    uint64_t entries[KVMATTR_GROUP];
    uint64_t astray;            /* pages beyond the root, or whose way leads to a run list */
    int operates;               /* whether the entries above do anything: (page & keep) ^ toggle */
    uint8_t keep[KVMATTR_GROUP], toggle[KVMATTR_GROUP];
} kvmattr_plain_group;

/* An index or an address for a load by itself: of a loop of loads the compiler would make a gather. */
static inline uintptr_t kvmattr_by_itself(uintptr_t at)
{
    __asm__("" : "+r"(at));
    return at;
}

KVMATTR_INLINE void kvmattr_operate(kvmattr_plain_group *group, int n, uint8_t keep, uint8_t toggle)
{
    memset(group->keep, keep, (size_t)n);
    memset(group->toggle, toggle, (size_t)n);
    group->operates = 1;
}

/* Down to level 2. Ways that lead astray go on in the page of zeros, or as if the root were larger. */
KVMATTR_INLINE void kvmattr_walk_down(const kvmattr_walk *walk, const uint64_t *gfns, int n, int levels,
                                      kvmattr_plain_group *group)
{
    const uintptr_t *bias = walk->bias;
    const uint64_t root = walk->root, span = walk->span;
    const int listed = levels > 2 && (root & KVMATTR_IN_NODE);
    const uint64_t *top = kvmattr_words(bias, listed ? 0 : (uint32_t)root);
    uint64_t all = 0, *entries = group->entries;
    group->astray = listed ? ~(uint64_t)0 : 0;
    group->operates = 0;
    for (int i = 0; i < n; i += 8)
        kvmattr_prefetch_gfns(walk, gfns + i);
    for (int i = 0; i < n; i++) {
        all |= gfns[i];
        entries[i] = root;
        if (levels > 2)
            entries[i] = top[kvmattr_by_itself((gfns[i] >> (9 * (levels - 2))) & 511)];
    }
    if (all >= span)            /* a power of two */
        for (int i = 0; i < n; i++)
            group->astray |= (uint64_t)(gfns[i] >= span) << i;
    if (levels > 2 && (root & KVMATTR_OPERATION) != KVMATTR_NO_OPERATION)
        kvmattr_operate(group, n, (uint8_t)(root >> 32), (uint8_t)(root >> 40));
    for (int level = levels - 1; level > 2; level--) {
        uint64_t different = 0;
        for (int i = 0; i < n; i++)
            different |= entries[i] ^ KVMATTR_NO_OPERATION;
        if (different & KVMATTR_OPERATION) {
            if (!group->operates)
                kvmattr_operate(group, n, 0xff, 0);
            for (int i = 0; i < n; i++) {
                group->toggle[i] ^= (uint8_t)(entries[i] >> 40) & group->keep[i];
                group->keep[i] &= (uint8_t)(entries[i] >> 32);
            }
        }
        if (different & KVMATTR_IN_NODE)
            for (int i = 0; i < n; i++)
                if (entries[i] & KVMATTR_IN_NODE) {
                    group->astray |= (uint64_t)1 << i;
                    entries[i] = 0;
                }
        for (int i = 0; i < n; i++)
            entries[i] = kvmattr_words(bias, (uint32_t)entries[i])
                [kvmattr_by_itself((gfns[i] >> (9 * (level - 2))) & 511)];
    }
}

/* The word of a page in a bitmap leaf; of another leaf one near its header. */
static inline uint64_t *kvmattr_word_of(const uintptr_t *bias, uint64_t entry, uint64_t gfn)
{
    return kvmattr_words(bias, ((uint32_t)entry & ~(uint32_t)KVMATTR_IN_LINE) | ((gfn >> 6) & KVMATTR_IN_LINE));
}

/* ---- take ---- */

/* Pages of a group whose bits are set in `which` lie in coded leaves, named by their entries; k and x are what is to be
 * done to the stored values. First their records are asked for: a header, and the line that a leaf of bytes has the
 * page in. */
static void kvmattr_take_coded(const kvmattr_walk *walk, const uint64_t *gfns, const uint64_t *entries, uint64_t which,
                               const uint8_t *k, const uint8_t *x, uint8_t *out)
{
    for (uint64_t left = which; left; left &= left - 1) {
        int i = __builtin_ctzll(left);
        const char *record = (const char *)kvmattr_words(walk->bias, (uint32_t)entries[i]);
        kvmattr_prefetch(record);
        kvmattr_prefetch(record + 8 + (gfns[i] & 511));
    }
    for (; which; which &= which - 1) {
        int i = __builtin_ctzll(which);
        uint8_t raw = walk->coded(walk, (uint32_t)entries[i], (uint32_t)(gfns[i] & 511));
        out[i] = (uint8_t)((raw & k[i]) ^ x[i]);
    }
}

KVMATTR_INLINE void kvmattr_take_group(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, int n, int levels)
{
    const uint64_t *where[KVMATTR_GROUP];
    uint64_t any = 0, coded = 0;
    kvmattr_plain_group group;
    kvmattr_walk_down(walk, gfns, n, levels, &group);
    for (int i = 0; i < n; i++) {
        any |= group.entries[i];
        where[i] = kvmattr_word_of(walk->bias, group.entries[i], gfns[i]);
        /* Up to a GiB of pages has its leaves in 32 KiB, which come near by themselves. */
        if (levels > 3)
            kvmattr_prefetch(where[i]);
    }
    /* Beside a coded leaf of a pinned root lie others, which somebody may be writing: read the page of zeros instead. */
    if (any & KVMATTR_IN_LINE)
        for (int i = 0; i < n; i++)
            if (group.entries[i] & KVMATTR_IN_LINE) {
                coded |= (uint64_t)1 << i;
                where[i] = kvmattr_words(walk->bias, 0);
            }
    for (int i = 0; i < n; i++) {
        uint64_t word = *(const uint64_t *)kvmattr_by_itself((uintptr_t)where[i]), entry = group.entries[i];
        uint64_t bit = (word >> (gfns[i] & 63)) & 1;
        out[i] = (uint8_t)(((entry >> 32) & (0 - bit)) ^ (entry >> 40));
    }
    if (group.operates)
        for (int i = 0; i < n; i++)
            out[i] = (uint8_t)((out[i] & group.keep[i]) ^ group.toggle[i]);
    if (coded) {
        uint8_t k[KVMATTR_GROUP], x[KVMATTR_GROUP];
        if (!group.operates)
            kvmattr_operate(&group, n, 0xff, 0);
        for (int i = 0; i < n; i++) {
            k[i] = (uint8_t)(group.entries[i] >> 32) & group.keep[i];
            x[i] = (uint8_t)(((group.entries[i] >> 40) & group.keep[i]) ^ group.toggle[i]);
        }
        kvmattr_take_coded(walk, gfns, group.entries, coded, k, x, out);
    }
    for (; group.astray; group.astray &= group.astray - 1) {
        int i = kvmattr_first_bit(group.astray);
        if (i >= n)
            break;
        out[i] = walk->get(walk, gfns[i]);
    }
}

/* ---- locate ---- */

/* What new = (old & keep) ^ toggle of one page does to its word in a bitmap leaf with the values x and k ^ x: word =
 * (word & *word_keep) ^ *word_toggle. 0 if a new value could be neither of these two. */
static inline int kvmattr_flip_of(uint8_t k, uint8_t x, uint8_t keep, uint8_t toggle, uint64_t gfn,
                                  uint64_t *word_keep, uint64_t *word_toggle)
{
    /* What becomes of a page that has x, and of one that has the other value: 0 stands for x, k for the other. */
    uint8_t zero = (uint8_t)((x & keep) ^ toggle ^ x), one = (uint8_t)(((x ^ k) & keep) ^ toggle ^ x);
    uint64_t bit = (uint64_t)1 << (gfn & 63);
    *word_keep = zero == one ? ~bit : ~(uint64_t)0;
    *word_toggle = zero ? bit : 0;
    return (zero == 0 || zero == k) && (one == 0 || one == k);
}

KVMATTR_INLINE void kvmattr_locate_group(const kvmattr_walk *walk, const uint64_t *gfns, int n, const uint8_t *ks,
                                         const uint8_t *xs, size_t step, uint64_t last, kvmattr_located *located,
                                         int levels)
{
    uint64_t away, firsts = 0;
    kvmattr_plain_group group;
    kvmattr_walk_down(walk, gfns, n, levels, &group);
    away = group.astray;
    if (group.operates)
        for (int i = 0; i < n; i++)
            away |= (uint64_t)(group.keep[i] != 0xff || group.toggle[i]) << i;
    for (int i = 0; i < n; i++) {
        uint64_t gfn = gfns[i], entry = group.entries[i];
        int other = !kvmattr_flip_of((uint8_t)(entry >> 32), (uint8_t)(entry >> 40), ks[i * step], xs[i * step], gfn,
                                     &located->keep[i], &located->toggle[i]);
        located->where[i] = kvmattr_word_of(walk->bias, entry, gfn);
        kvmattr_prefetch_soon(located->where[i]);
        other |= (uint32_t)entry == 0 || entry & KVMATTR_IN_LINE || gfn == last || !(gfn & 0x3ffff);
        away |= (uint64_t)other << i;
        firsts |= (uint64_t)!(gfn & 511) << i;
    }
    located->away = away;
    located->firsts = firsts;
}

/* Heights of guests up to 512 GiB are constants, which takes the loop over levels apart. */
#define KVMATTR_WALKS(NAME, TARGET)                                                                          \
    TARGET static void kvmattr_take_##NAME(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out,     \
                                           size_t n)                                                         \
    {                                                                                                        \
        for (; n; gfns += KVMATTR_GROUP, out += KVMATTR_GROUP) {                                             \
            int some = n < KVMATTR_GROUP ? (int)n : KVMATTR_GROUP;                                           \
            if (some == KVMATTR_GROUP && walk->level == 4)                                                   \
                kvmattr_take_group(walk, gfns, out, KVMATTR_GROUP, 4);                                       \
            else                                                                                             \
                kvmattr_take_group(walk, gfns, out, some, walk->level);                                      \
            n -= (size_t)some;                                                                               \
        }                                                                                                    \
    }                                                                                                        \
    TARGET static void kvmattr_locate_##NAME(const kvmattr_walk *walk, const uint64_t *gfns, int n,          \
                                             const uint8_t *ks, const uint8_t *xs, size_t step, uint64_t last,\
                                             kvmattr_located *located)                                       \
    {                                                                                                        \
        if (n == KVMATTR_GROUP && walk->level == 4)                                                          \
            kvmattr_locate_group(walk, gfns, KVMATTR_GROUP, ks, xs, step, last, located, 4);                 \
        else                                                                                                 \
            kvmattr_locate_group(walk, gfns, n, ks, xs, step, last, located, walk->level);                   \
    }

KVMATTR_WALKS(portable, )

#endif /* KVMATTR_SIMD_PLAIN_WALK_H */
