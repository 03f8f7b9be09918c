/* The walks down to many pages, in plain C. Included by plain.h.
 *
 * Groups of 64 pages go down together, one level after the other, in short loops: the loads of one page do not wait for
 * those of another. What is rare below a node, a pending operation, a run list, a page beyond the root, is only looked for,
 * in all pages of a group at once, and put right when it is there.
 */
#ifndef KVMATTR_KERNELS_PLAIN_WALK_H
#define KVMATTR_KERNELS_PLAIN_WALK_H

enum { KVMATTR_GROUP = 64 };

/* An entry on which nothing is pending has k = 0xff and x = 0; the handle of a node begins a page, that of a leaf has its
 * tag below a line. */
#define KVMATTR_NO_OPERATION 0xff00000000
#define KVMATTR_OPERATION 0xffff00000000
#define KVMATTR_IN_NODE 511

/* A group on its way: the entries of its pages at the level that they have come to. */
typedef struct kvmattr_plain_group {
    uint64_t entries[KVMATTR_GROUP];
    uint64_t beyond;            /* pages beyond the root */
    uint64_t listed;            /* pages whose way leads to a run list */
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

/* What becomes of an entry that leads to a run list, for one page: the uniform entry of the page's value. */
static inline uint64_t kvmattr_listed_entry(uint64_t entry, uint8_t raw)
{
    return (entry >> KVMATTR_K & raw) << KVMATTR_X ^ (entry & (uint64_t)0xff << KVMATTR_X);
}

/* The same for the pages of a group whose bits are set in `listed`, at one level. */
static void kvmattr_look_in_lists(const kvmattr_walk *walk, const uint64_t *gfns, int level, uint64_t listed,
                                  uint64_t *entries)
{
    const uint64_t inside = ((uint64_t)1 << KVMATTR_LEVEL_SHIFT(level)) - 1;
    for (; listed; listed &= listed - 1) {
        int i = kvmattr_first_bit(listed);
        const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(walk->bias, (uint32_t)entries[i]);
        entries[i] = kvmattr_listed_entry(entries[i], kvmattr_list_raw(list, gfns[i] & inside));
    }
}

/* Down to level 2. Pages beyond the root go on as if it were larger, and those in run lists in the page of zeros: with
 * their values, if `look`. */
KVMATTR_INLINE void kvmattr_walk_down(const kvmattr_walk *walk, const uint64_t *gfns, int n, int levels, int look,
                                      kvmattr_plain_group *group)
{
    const uintptr_t *bias = walk->bias;
    const uint64_t root = walk->root, span = walk->span;
    const int listed = levels > 2 && (root & KVMATTR_IN_NODE);
    const uint64_t *top = kvmattr_words(bias, listed ? 0 : (uint32_t)root);
    uint64_t all = 0, *entries = group->entries;
    group->listed = listed ? ~(uint64_t)0 : 0;
    group->beyond = 0;
    group->operates = 0;
    for (int i = 0; i < n; i += 8)
        kvmattr_prefetch_gfns(gfns + i, walk->ahead);
    for (int i = 0; i < n; i++) {
        all |= gfns[i];
        entries[i] = root;
        if (levels > 2)
            entries[i] = top[kvmattr_by_itself((gfns[i] >> KVMATTR_LEVEL_SHIFT(levels - 1)) & 511)];
    }
    if (all >= span)            /* a power of two */
        for (int i = 0; i < n; i++)
            group->beyond |= (uint64_t)(gfns[i] >= span) << i;
    if (levels > 2 && (root & KVMATTR_OPERATION) != KVMATTR_NO_OPERATION)
        kvmattr_operate(group, n, (uint8_t)(root >> KVMATTR_K), (uint8_t)(root >> KVMATTR_X));
    for (int level = levels - 1; level > 2; level--) {
        uint64_t different = 0, in_lists = 0;
        for (int i = 0; i < n; i++)
            different |= entries[i] ^ KVMATTR_NO_OPERATION;
        if (different & KVMATTR_IN_NODE) {
            for (int i = 0; i < n; i++)
                in_lists |= (uint64_t)((entries[i] & KVMATTR_IN_NODE) != 0) << i;
            group->listed |= in_lists;
            if (look) {
                kvmattr_look_in_lists(walk, gfns, level, in_lists, entries);
                different |= KVMATTR_OPERATION;
            }
        }
        if (different & KVMATTR_OPERATION) {
            if (!group->operates)
                kvmattr_operate(group, n, 0xff, 0);
            for (int i = 0; i < n; i++) {
                group->toggle[i] ^= (uint8_t)(entries[i] >> KVMATTR_X) & group->keep[i];
                group->keep[i] &= (uint8_t)(entries[i] >> KVMATTR_K);
            }
        }
        if (in_lists && !look)
            for (int i = 0; i < n; i++)
                entries[i] = in_lists >> i & 1 ? 0 : entries[i];
        for (int i = 0; i < n; i++)
            entries[i] = kvmattr_words(bias, (uint32_t)entries[i])
                [kvmattr_by_itself((gfns[i] >> KVMATTR_LEVEL_SHIFT(level - 1)) & 511)];
    }
}

/* The word that holds a page's field; of a run line some word. */
static inline uint64_t *kvmattr_word_of(const uintptr_t *bias, uint64_t entry, uint64_t gfn)
{
    return kvmattr_words(bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG) + ((gfn & 511) << (entry & 3) >> 6);
}

/* ---- take ---- */

/* Pages of a group whose bits are set in `which` lie in run lines, named by their entries; k and x are what is to be done
 * to the raw values. First the lines are asked for. */
typedef void kvmattr_take_lines(const kvmattr_walk *walk, const uint64_t *gfns, const uint64_t *entries, uint64_t which,
                                const uint8_t *k, const uint8_t *x, uint8_t *out);

static inline const kvmattr_line *kvmattr_entry_line(const kvmattr_walk *walk, uint64_t entry)
{
    return (const kvmattr_line *)kvmattr_words(walk->bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG);
}

#define KVMATTR_TAKE_LINES(NAME, TARGET, LINE_RAW)                                                           \
    TARGET static void kvmattr_take_lines_##NAME(const kvmattr_walk *walk, const uint64_t *gfns,             \
                                                 const uint64_t *entries, uint64_t which, const uint8_t *k,  \
                                                 const uint8_t *x, uint8_t *out)                             \
    {                                                                                                        \
        for (uint64_t left = which; left; left &= left - 1)                                                  \
            kvmattr_prefetch(kvmattr_entry_line(walk, entries[kvmattr_first_bit(left)]));                       \
        for (; which; which &= which - 1) {                                                                  \
            int i = kvmattr_first_bit(which);                                                                \
            uint8_t raw = LINE_RAW(kvmattr_entry_line(walk, entries[i]), (uint32_t)(gfns[i] & 511));            \
            out[i] = (uint8_t)((raw & k[i]) ^ x[i]);                                                         \
        }                                                                                                    \
    }

KVMATTR_TAKE_LINES(portable, , kvmattr_line_raw)

/* The root is a run list: a few big ranges. */
static inline int kvmattr_root_is_list(const kvmattr_walk *walk)
{
    return walk->level > 2 && (walk->root & KVMATTR_IN_NODE);
}

KVMATTR_INLINE void kvmattr_take_from_list(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t n)
{
    const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(walk->bias, (uint32_t)walk->root);
    const uint8_t k = (uint8_t)(walk->root >> KVMATTR_K), x = (uint8_t)(walk->root >> KVMATTR_X);
    for (size_t i = 0; i < n; i++)
        out[i] = gfns[i] < walk->span ? (uint8_t)((kvmattr_list_raw(list, gfns[i]) & k) ^ x) : walk->rest;
}

KVMATTR_INLINE void kvmattr_take_group(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, int n, int levels,
                                       kvmattr_take_lines *take_lines)
{
    const uint64_t *where[KVMATTR_GROUP];
    uint64_t any = 0, lines = 0;
    kvmattr_plain_group group;
    kvmattr_walk_down(walk, gfns, n, levels, 1, &group);
    for (int i = 0; i < n; i++) {
        any |= group.entries[i];
        where[i] = kvmattr_word_of(walk->bias, group.entries[i], gfns[i]);
        /* Up to a GiB of pages has its leaves in 32 KiB, which come near by themselves. */
        if (levels > 3)
            kvmattr_prefetch(where[i]);
    }
    if (any & KVMATTR_LINE)
        for (int i = 0; i < n; i++)
            lines |= (group.entries[i] >> 2 & 1) << i;
    for (int i = 0; i < n; i++) {
        uint64_t word = *(const uint64_t *)kvmattr_by_itself((uintptr_t)where[i]), entry = group.entries[i];
        uint64_t field = word >> (gfns[i] << (entry & 3) & 63) & kvmattr_field_masks[entry & 3];
        out[i] = (uint8_t)(((entry >> KVMATTR_K) & (field * kvmattr_field_repeats[entry & 3])) ^ (entry >> KVMATTR_X));
    }
    if (group.operates)
        for (int i = 0; i < n; i++)
            out[i] = (uint8_t)((out[i] & group.keep[i]) ^ group.toggle[i]);
    if (lines) {
        uint8_t k[KVMATTR_GROUP], x[KVMATTR_GROUP];
        if (!group.operates)
            kvmattr_operate(&group, n, 0xff, 0);
        for (int i = 0; i < n; i++) {
            k[i] = (uint8_t)(group.entries[i] >> KVMATTR_K) & group.keep[i];
            x[i] = (uint8_t)(((group.entries[i] >> KVMATTR_X) & group.keep[i]) ^ group.toggle[i]);
        }
        take_lines(walk, gfns, group.entries, lines, k, x, out);
    }
    for (; group.beyond; group.beyond &= group.beyond - 1)
        out[kvmattr_first_bit(group.beyond)] = walk->rest;
}

/* ---- by a ruler ---- */

/* How many of the starts a page has reached, by halves: no step is a branch, and those of one page do not wait for those
 * of another. */
KVMATTR_INLINE void kvmattr_read_off(const kvmattr_ruler *ruler, const uint64_t *gfns, intptr_t ahead, uint8_t *out,
                                     size_t n, int runs)
{
    for (size_t i = 0; i < n; i++) {
        const uint64_t *at = ruler->starts;
        if (i % 8 == 0)
            kvmattr_prefetch_gfns(gfns + i, ahead);
        for (int step = runs / 2; step; step /= 2)
            at += (size_t)step & -(size_t)(at[step - 1] <= gfns[i]);
        out[i] = ruler->values[at - ruler->starts];
    }
}

#define KVMATTR_READ_OFF(NAME, TARGET)                                                                       \
    TARGET static void kvmattr_read_off_##NAME(const kvmattr_ruler *ruler, const uint64_t *gfns,             \
                                               intptr_t ahead, uint8_t *out, size_t n)                       \
    {                                                                                                        \
        if (ruler->runs <= 8)                                                                                \
            kvmattr_read_off(ruler, gfns, ahead, out, n, 8);                                                 \
        else if (ruler->runs <= 64)                                                                          \
            kvmattr_read_off(ruler, gfns, ahead, out, n, 64);                                                \
        else                                                                                                 \
            kvmattr_read_off(ruler, gfns, ahead, out, n, KVMATTR_RULER_RUNS);                                \
    }

KVMATTR_READ_OFF(portable, )

/* ---- locate ---- */

KVMATTR_INLINE void kvmattr_locate_group(const kvmattr_walk *walk, const uint64_t *gfns, int n, const uint8_t *ks,
                                         const uint8_t *xs, size_t step, uint64_t last, kvmattr_located *located,
                                         int levels)
{
    uint64_t away, firsts = 0;
    kvmattr_plain_group group;
    kvmattr_walk_down(walk, gfns, n, levels, 0, &group);
    away = group.beyond | group.listed;
    if (group.operates)
        for (int i = 0; i < n; i++)
            away |= (uint64_t)(group.keep[i] != 0xff || group.toggle[i]) << i;
    for (int i = 0; i < n; i++) {
        uint64_t gfn = gfns[i], entry = group.entries[i];
        uint8_t keep = ks[i * step], toggle = xs[i * step], clear, flip;
        int wide = (int)(entry & 3);
        uint64_t field = kvmattr_field_masks[wide] << (gfn << wide & 63);
        int other = !kvmattr_field_update(wide, (uint8_t)(entry >> KVMATTR_K), (uint8_t)(entry >> KVMATTR_X), keep, toggle, &clear, &flip);
        /* What the first page's value turns by must be among what varies: then every other page's is. */
        other |= (((entry >> KVMATTR_F) & (uint8_t)~keep) ^ toggle) & ~(entry >> KVMATTR_V) & 0xff;
        located->where[i] = kvmattr_word_of(walk->bias, entry, gfn);
        kvmattr_prefetch_soon(located->where[i]);
        located->keep[i] = ~(KVMATTR_REPEAT(clear) & field);
        located->toggle[i] = KVMATTR_REPEAT(flip) & field;
        located->wide[i] = (uint64_t)wide;
        other |= (uint32_t)entry == 0 || entry & KVMATTR_LINE || gfn == last || !(gfn & 0x3ffff);
        away |= (uint64_t)(other != 0) << i;
        firsts |= (uint64_t)!(gfn & 511) << i;
    }
    located->away = away;
    located->firsts = firsts;
}

#define KVMATTR_LOST(NAME, TARGET)                                                                           \
    TARGET static uint64_t kvmattr_lost_##NAME(const kvmattr_located *located, int from, int n)              \
    {                                                                                                        \
        uint64_t lost = 0;                                                                                   \
        for (int i = from; i < n; i++)                                                                       \
            if (located->keep[i])                                                                            \
                lost |= (uint64_t)kvmattr_field_lost(located->where[i], (int)located->wide[i],               \
                                                     located->keep[i]) << i;                                 \
        return lost;                                                                                         \
    }

KVMATTR_LOST(portable, )

/* The size of a whole group is a constant for what is read. */
#define KVMATTR_WALKS(NAME, TARGET)                                                                          \
    TARGET static void kvmattr_take_##NAME(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out,     \
                                           size_t n)                                                         \
    {                                                                                                        \
        if (n && kvmattr_root_is_list(walk)) {                                                               \
            kvmattr_take_from_list(walk, gfns, out, n);                                                      \
            return;                                                                                          \
        }                                                                                                    \
        for (; n; gfns += KVMATTR_GROUP, out += KVMATTR_GROUP) {                                             \
            int some = n < KVMATTR_GROUP ? (int)n : KVMATTR_GROUP;                                           \
            if (some == KVMATTR_GROUP)                                                                       \
                kvmattr_take_group(walk, gfns, out, KVMATTR_GROUP, walk->level, kvmattr_take_lines_##NAME);  \
            else                                                                                             \
                kvmattr_take_group(walk, gfns, out, some, walk->level, kvmattr_take_lines_##NAME);           \
            n -= (size_t)some;                                                                               \
        }                                                                                                    \
    }                                                                                                        \
    TARGET static void kvmattr_locate_##NAME(const kvmattr_walk *walk, const uint64_t *gfns, int n,          \
                                             const uint8_t *ks, const uint8_t *xs, size_t step, uint64_t last,\
                                             kvmattr_located *located)                                       \
    {                                                                                                        \
        kvmattr_locate_group(walk, gfns, n, ks, xs, step, last, located, walk->level);                       \
    }

KVMATTR_WALKS(portable, )

#endif /* KVMATTR_KERNELS_PLAIN_WALK_H */
