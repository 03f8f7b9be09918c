/* The walks down to many pages, in plain C. Included by plain.h.
 *
 * Pages go down together, in short loops: the loads of one page do not wait for those of another. What is rare below a node,
 * a pending operation, a run list, a page beyond the root, is only looked for, in several pages at once, and put right when
 * it is there.
 */
#ifndef KVMATTR_KERNELS_PLAIN_WALK_H
#define KVMATTR_KERNELS_PLAIN_WALK_H

enum { KVMATTR_GROUP = 64 };

/* An entry on which nothing is pending has k = 0xff and x = 0; the handle of a node begins a page, that of a leaf has its
 * tag below a line. */
#define KVMATTR_NO_OPERATION 0xff00000000
#define KVMATTR_OPERATION 0xffff00000000
#define KVMATTR_IN_NODE 511

/* An index or an address for a load by itself: of a loop of loads the compiler would make a gather. */
static inline uintptr_t kvmattr_by_itself(uintptr_t at)
{
    __asm__("" : "+r"(at));
    return at;
}

/* The word that holds a page's field; of a run line some word. */
static inline uint64_t *kvmattr_word_of(const uintptr_t *bias, uint64_t entry, uint64_t gfn)
{
    return kvmattr_words(bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG) + ((gfn & 511) << (entry & 3) >> 6);
}

/* ---- take ----
 *
 * Eight pages go down together, and several eights are on their way at once, each KVMATTR_BETWEEN behind the one that is a
 * level below it. Where they go next is asked for when they come to a level: so the requests are spread over the work, and
 * what is loaded is near. With half as many between, words of leaves that exceed the second-level cache took a third longer
 * (Zen 4). */
enum { KVMATTR_FEW = 8, KVMATTR_BETWEEN = 8, KVMATTR_MOST_LEVELS = 7, KVMATTR_FEWS = 64 };

typedef struct kvmattr_few {
    uint64_t entries[KVMATTR_FEW];      /* at the level that they have come to */
    const uint64_t *next[KVMATTR_FEW];  /* where these lead to: entries of the next level, or words */
    uint64_t different;                 /* how some of the entries are not as those that lead to nodes and nothing else */
} kvmattr_few;

/* An entry whose k and x are (own & k above) ^ x above: what is above and it do, in one. */
static inline uint64_t kvmattr_composed_entry(uint64_t above, uint64_t entry)
{
    uint64_t k = above & (uint64_t)0xff << KVMATTR_K;
    return (entry & (k | k << (KVMATTR_X - KVMATTR_K) | 0xffffffff)) ^ (above & (uint64_t)0xff << KVMATTR_X);
}

/* What becomes of an entry that leads to a run list, for one page: the uniform entry of the page's value. */
static inline uint64_t kvmattr_listed_entry(uint64_t entry, uint8_t raw)
{
    return (entry >> KVMATTR_K & raw) << KVMATTR_X ^ (entry & (uint64_t)0xff << KVMATTR_X);
}

/* Where something is pending, the next entries are replaced by what they and those above them do. */
static KVMATTR_RARE void kvmattr_few_operate(kvmattr_few *few)
{
    for (int i = 0; i < KVMATTR_FEW; i++) {
        few->entries[i] = kvmattr_composed_entry(few->entries[i], *few->next[i]);
        few->next[i] = &few->entries[i];
    }
}

/* Pages in run lists go on in the page of zeros, with their values. All lists are halved together, until nothing is left of
 * the longest: no branch depends on a page, nor on how long its own list is. Others go on as if theirs were empty. */
static KVMATTR_RARE void kvmattr_few_in_lists(const kvmattr_walk *walk, const uint64_t *gfns, int level, kvmattr_few *few)
{
    const uint64_t inside = ((uint64_t)1 << KVMATTR_LEVEL_SHIFT(level)) - 1;
    const uint64_t *zeros = kvmattr_words(walk->bias, 0), *from[KVMATTR_FEW];
    uint32_t left[KVMATTR_FEW], any = 0;
    for (int i = 0; i < KVMATTR_FEW; i++) {
        int listed = (few->entries[i] & KVMATTR_IN_NODE) != 0;
        const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(walk->bias, listed ? (uint32_t)few->entries[i] : 0);
        left[i] = listed ? list->count - 1u : 0;
        from[i] = list->starts;
        any |= left[i];
    }
    for (; any; any /= 2)
        for (int i = 0; i < KVMATTR_FEW; i++) {
            uint32_t half = (left[i] + 1) / 2;
            const uint64_t *last = (const uint64_t *)kvmattr_by_itself((uintptr_t)(from[i] + half - (half != 0)));
            from[i] += half & -(uint32_t)(*last <= (gfns[i] & inside));
            left[i] -= half;
        }
    for (int i = 0; i < KVMATTR_FEW; i++)
        if (few->entries[i] & KVMATTR_IN_NODE) {
            const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(walk->bias, (uint32_t)few->entries[i]);
            uint8_t raw = kvmattr_list_values(list, list->count)[from[i] - list->starts];
            few->entries[i] = kvmattr_listed_entry(few->entries[i], raw);
            few->next[i] = zeros;
        }
    few->different |= KVMATTR_OPERATION;
}

/* Where the entries of a level are, for a page, below an entry of the level above it. */
static inline const uint64_t *kvmattr_entry_of(const uintptr_t *bias, uint64_t entry, int level, uint64_t gfn)
{
    return kvmattr_words(bias, (uint32_t)entry) + (gfn >> KVMATTR_LEVEL_SHIFT(level) & 511);
}

/* From the root, to the entries below it; a root of level 2 is its only entry. */
KVMATTR_INLINE void kvmattr_few_enter(int levels, const kvmattr_walk *walk, const uint64_t *gfns, kvmattr_few *few)
{
    kvmattr_prefetch_gfns(gfns, walk->ahead);
    few->different = levels > 2 ? (walk->root ^ KVMATTR_NO_OPERATION) & KVMATTR_OPERATION : 0;
    if (few->different)
        for (int i = 0; i < KVMATTR_FEW; i++)
            few->entries[i] = walk->root;
    for (int i = 0; i < KVMATTR_FEW; i++)
        few->next[i] = levels > 2 ? kvmattr_entry_of(walk->bias, walk->root, levels - 1, gfns[i]) : &walk->root;
}

KVMATTR_INLINE void kvmattr_few_come_to(int level, const kvmattr_walk *walk, const uint64_t *gfns, kvmattr_few *few)
{
    const uintptr_t *bias = walk->bias;
    uint64_t different = 0;
    if (few->different & KVMATTR_OPERATION)
        kvmattr_few_operate(few);
    KVMATTR_UNROLL_PAIRS
    for (int i = 0; i < KVMATTR_FEW; i++) {
        uint64_t entry = *few->next[i];
        const uint64_t *next = level > 2 ? kvmattr_entry_of(bias, entry, level - 1, gfns[i])
                                         : kvmattr_word_of(bias, entry, gfns[i]);
        few->entries[i] = entry;
        few->next[i] = next;
        if (level > 2)
            kvmattr_prefetch(next);
        else
            kvmattr_prefetch_soon(next);        /* 64 words are on their way, most to lines of their own */
        different |= entry ^ KVMATTR_NO_OPERATION;
    }
    few->different = different;
    if (level > 2 && different & KVMATTR_IN_NODE)
        kvmattr_few_in_lists(walk, gfns, level, few);
}

static KVMATTR_RARE void kvmattr_few_beyond(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out)
{
    for (int i = 0; i < KVMATTR_FEW; i++)
        out[i] = gfns[i] < walk->span ? out[i] : walk->rest;
}

/* The pages of a few that lie in run lines. */
typedef void kvmattr_few_lines(const kvmattr_walk *walk, const uint64_t *gfns, const kvmattr_few *few, uint8_t *out);

#define KVMATTR_FEW_LINES(NAME, TARGET, LINE_RAW)                                                            \
    TARGET static KVMATTR_RARE void kvmattr_few_lines_##NAME(const kvmattr_walk *walk, const uint64_t *gfns, \
                                                             const kvmattr_few *few, uint8_t *out)           \
    {                                                                                                        \
        unsigned lines = 0;                                                                                  \
        for (int i = 0; i < KVMATTR_FEW; i++)                                                                \
            lines |= (unsigned)(few->entries[i] / KVMATTR_LINE & 1) << i;                                    \
        for (; lines; lines &= lines - 1) {                                                                  \
            int i = kvmattr_first_bit(lines);                                                                \
            uint64_t entry = few->entries[i];                                                                \
            out[i] = (uint8_t)((LINE_RAW(kvmattr_entry_line(walk, entry), (uint32_t)(gfns[i] & 511)) &       \
                                (entry >> KVMATTR_K)) ^ (entry >> KVMATTR_X));                               \
        }                                                                                                    \
    }

static inline const kvmattr_line *kvmattr_entry_line(const kvmattr_walk *walk, uint64_t entry)
{
    return (const kvmattr_line *)kvmattr_words(walk->bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG);
}

KVMATTR_FEW_LINES(portable, , kvmattr_line_raw)

KVMATTR_INLINE void kvmattr_few_read(const kvmattr_walk *walk, const uint64_t *gfns, const kvmattr_few *few,
                                     uint8_t *out, kvmattr_few_lines *read_lines)
{
    uint64_t all = 0;
    KVMATTR_UNROLL_PAIRS
    for (int i = 0; i < KVMATTR_FEW; i++) {
        uint64_t gfn = gfns[i], entry = few->entries[i], wide = entry & 3;
        uint64_t field = *few->next[i] >> (gfn << wide & 63) & kvmattr_field_masks[wide];
        out[i] = (uint8_t)(((entry >> KVMATTR_K) & (field * kvmattr_field_repeats[wide])) ^ (entry >> KVMATTR_X));
        all |= gfn;
    }
    if (few->different & KVMATTR_LINE)
        read_lines(walk, gfns, few, out);
    if (all >= walk->span)      /* a power of two */
        kvmattr_few_beyond(walk, gfns, out);
}

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

/* `count` times eight pages. The number of levels is a constant to the compiler. */
KVMATTR_INLINE void kvmattr_take_fews(int levels, const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out,
                                      size_t count, kvmattr_few_lines *read_lines)
{
    const int first = levels > 2 ? levels - 1 : 2;      /* the level that is come to first */
    const size_t way = KVMATTR_BETWEEN * (size_t)(first - 1);
    kvmattr_few fews[KVMATTR_FEWS];
    for (size_t turn = 0; turn < count + way; turn++) {
        size_t read = turn - way;               /* beyond the count: none yet */
        if (read < count)
            kvmattr_few_read(walk, gfns + KVMATTR_FEW * read, &fews[read % KVMATTR_FEWS], out + KVMATTR_FEW * read,
                             read_lines);
        if (turn < count)
            kvmattr_few_enter(levels, walk, gfns + KVMATTR_FEW * turn, &fews[turn % KVMATTR_FEWS]);
        KVMATTR_UNROLL_LEVELS
        for (int level = first; level >= 2; level--) {
            size_t coming = turn - KVMATTR_BETWEEN * (size_t)(first - level);
            if (coming < count)
                kvmattr_few_come_to(level, walk, gfns + KVMATTR_FEW * coming, &fews[coming % KVMATTR_FEWS]);
        }
    }
}

/* DO with the number of levels as a constant. */
#define KVMATTR_BY_LEVELS(LEVELS, DO, ...)                                                                   \
    switch (LEVELS) {                                                                                        \
    case 2: DO(2, __VA_ARGS__); break;                                                                       \
    case 3: DO(3, __VA_ARGS__); break;                                                                       \
    case 4: DO(4, __VA_ARGS__); break;                                                                       \
    case 5: DO(5, __VA_ARGS__); break;                                                                       \
    case 6: DO(6, __VA_ARGS__); break;                                                                       \
    default: DO(KVMATTR_MOST_LEVELS, __VA_ARGS__); break;                                                    \
    }

/* ---- by a ruler ---- */

/* How many of the starts a page has reached, by halves: no step is a branch, and those of one page do not wait for those
 * of another. */
KVMATTR_INLINE void kvmattr_read_off(const kvmattr_ruler *ruler, const uint64_t *gfns, intptr_t ahead, uint8_t *out,
                                     size_t n, int runs)
{
    const kvmattr_ruler its = *ruler;       /* for all that the compiler knows, `out` lies on top of it */
    for (size_t i = 0; i < n; i++) {
        const uint64_t *at = its.starts;
        if (i % 8 == 0)
            kvmattr_prefetch_gfns(gfns + i, ahead);
        for (int step = runs / 2; step; step /= 2)
            at += (size_t)step & -(size_t)(at[step - 1] <= gfns[i]);
        out[i] = its.values[at - its.starts];
    }
}

#define KVMATTR_READ_OFF(NAME, TARGET)                                                                       \
    TARGET static void kvmattr_read_off_##NAME(const kvmattr_ruler *ruler, const uint64_t *gfns,             \
                                               intptr_t ahead, uint8_t *out, size_t n)                       \
    {                                                                                                        \
        switch (kvmattr_ruler_size(ruler)) {                                                                 \
        case 8: kvmattr_read_off(ruler, gfns, ahead, out, n, 8); break;                                      \
        case 64: kvmattr_read_off(ruler, gfns, ahead, out, n, 64); break;                                    \
        case 512: kvmattr_read_off(ruler, gfns, ahead, out, n, 512); break;                                  \
        default: kvmattr_read_off(ruler, gfns, ahead, out, n, KVMATTR_RULER_RUNS); break;                    \
        }                                                                                                    \
    }

KVMATTR_READ_OFF(portable, )

/* ---- locate ---- */

/* A group that has come to level 2: the entries of its pages, and which pages are away, as nothing but nodes must be above
 * them. Pages beyond the root go on as if it were larger, and those in run lists in the page of zeros. */
typedef struct kvmattr_plain_group {
    uint64_t entries[KVMATTR_GROUP];
    uint64_t away, firsts;
} kvmattr_plain_group;

/* The map's last page, and the first one of a node of level 3: entries above the block know it. */
static inline int kvmattr_known_above(uint64_t gfn, uint64_t last) { return gfn == last || !(gfn & 0x3ffff); }

/* Pages that some entry knows: in one group of eight there is one, where pages are random. */
static KVMATTR_RARE void kvmattr_group_known(const kvmattr_walk *walk, const uint64_t *gfns, int n, uint64_t last,
                                             kvmattr_plain_group *group)
{
    for (int i = 0; i < n; i++) {
        group->away |= (uint64_t)(kvmattr_known_above(gfns[i], last) || gfns[i] >= walk->span) << i;
        group->firsts |= (uint64_t)!(gfns[i] & 511) << i;
    }
}

KVMATTR_INLINE void kvmattr_walk_down(const kvmattr_walk *walk, const uint64_t *gfns, int n, int levels, uint64_t last,
                                      kvmattr_plain_group *group)
{
    const uintptr_t *bias = walk->bias;
    const uint64_t root = walk->root, looked_at = KVMATTR_OPERATION | KVMATTR_IN_NODE;
    const int listed = levels > 2 && (root & KVMATTR_IN_NODE);
    const uint64_t *top = kvmattr_words(bias, listed ? 0 : (uint32_t)root);
    uint64_t all = 0, known = 0, *entries = group->entries;
    group->away = levels > 2 && (root & looked_at) != KVMATTR_NO_OPERATION ? ~(uint64_t)0 : 0;
    group->firsts = 0;
    for (int i = 0; i < n; i += 8)
        kvmattr_prefetch_gfns(gfns + i, walk->ahead);
    for (int i = 0; i < n; i++) {           /* made into vectors */
        all |= gfns[i];
        known |= ((gfns[i] & 511) - 1) | ((gfns[i] ^ last) - 1);
    }
    if (known >> 63 || all >= walk->span)   /* a power of two */
        kvmattr_group_known(walk, gfns, n, last, group);
    for (int i = 0; i < n; i++) {
        entries[i] = root;
        if (levels > 2)
            entries[i] = top[kvmattr_by_itself((gfns[i] >> KVMATTR_LEVEL_SHIFT(levels - 1)) & 511)];
    }
    for (int level = levels - 1; level > 2; level--) {
        uint64_t different = 0;
        for (int i = 0; i < n; i++)
            different |= entries[i] ^ KVMATTR_NO_OPERATION;
        if (different & looked_at)
            for (int i = 0; i < n; i++) {
                group->away |= (uint64_t)((entries[i] & looked_at) != KVMATTR_NO_OPERATION) << i;
                entries[i] = entries[i] & KVMATTR_IN_NODE ? 0 : entries[i];
            }
        for (int i = 0; i < n; i++)
            entries[i] = kvmattr_words(bias, (uint32_t)entries[i])
                [kvmattr_by_itself((gfns[i] >> KVMATTR_LEVEL_SHIFT(level - 1)) & 511)];
    }
}

/* A page whose way leads to an entry of level 2. Not 0 if it is not the plain write of a field, as far as the entry
 * tells. */
KVMATTR_INLINE uint64_t kvmattr_locate_page(const uintptr_t *bias, uint64_t entry, uint64_t gfn, uint8_t keep,
                                            uint8_t toggle, kvmattr_located *located, int i)
{
    const uint64_t wide = entry & 3, bit = (gfn & 511) << wide, mask = kvmattr_field_masks[wide];
    /* What is cleared of k, how x and F turn, each where it stands in the entry. */
    const uint64_t at_x_and_f = (uint64_t)1 << KVMATTR_X | (uint64_t)1 << KVMATTR_F;
    const uint64_t turned = (entry & KVMATTR_REPEAT(~keep)) ^ toggle * at_x_and_f;
    const uint64_t cleared = turned >> KVMATTR_K & 0xff, flipped = turned >> KVMATTR_X & 0xff;
    const uint64_t clear = kvmattr_folded[wide][cleared], flip = kvmattr_folded[wide][flipped];
    located->wide[i] = wide;
    located->where[i] = kvmattr_words(bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG) + (bit >> 6);
    located->keep[i] = ~((clear & mask) << (bit & 63));
    located->toggle[i] = (flip & mask) << (bit & 63);
    /* As kvmattr_field_update; and what the first page's value turns by must be among what varies: then every other
     * page's is. Without a handle the last subtraction borrows. */
    return ((clear & entry >> KVMATTR_K) ^ cleared) | ((flip & entry >> KVMATTR_K) ^ flipped) |
           (turned >> KVMATTR_F & ~(entry >> KVMATTR_V)) | (entry & KVMATTR_LINE) |
           ((uint64_t)(uint32_t)entry - 1) >> 32;
}

/* A bit for each of 64 bytes, which are 0 or 1. */
static inline uint64_t kvmattr_bits_of(const uint8_t *bytes)
{
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++)
        bits |= (kvmattr_load64(bytes + 8 * i) * 0x0102040810204080ULL) >> 56 << 8 * i;
    return bits;
}

KVMATTR_INLINE void kvmattr_locate_group(const kvmattr_walk *walk, const uint64_t *gfns, int n, const uint8_t *ks,
                                         const uint8_t *xs, size_t step, uint64_t last, kvmattr_located *located,
                                         int levels)
{
    kvmattr_plain_group group;
    uint8_t others[KVMATTR_GROUP] = {0};
    const uintptr_t *bias = walk->bias;
    kvmattr_walk_down(walk, gfns, n, levels, last, &group);
    for (int i = 0; i < n; i++)
        others[i] = kvmattr_locate_page(bias, group.entries[i], gfns[i], ks[i * step], xs[i * step], located, i) != 0;
    located->away = group.away | kvmattr_bits_of(others);
    located->firsts = group.firsts;
}

/* Located pages, `which` of them, anew: all lie in one block, of which nothing but the entry has changed. */
static inline void kvmattr_locate_again(const uintptr_t *bias, uint64_t entry, uint64_t which, const uint64_t *gfns,
                                        const uint8_t *ks, const uint8_t *xs, size_t step, uint64_t last,
                                        kvmattr_located *located)
{
    if ((uint32_t)entry == 0) {
        located->away |= which;
        return;
    }
    located->away &= ~which;
    for (; which; which &= which - 1) {
        int i = kvmattr_first_bit(which);
        uint64_t other = kvmattr_locate_page(bias, entry, gfns[i], ks[i * step], xs[i * step], located, i);
        located->away |= (uint64_t)(other || kvmattr_known_above(gfns[i], last)) << i;
    }
}

/* The leaves whose words give reason to look at them. */
static KVMATTR_RARE uint64_t kvmattr_agree_in_leaves(const kvmattr_located *located, uint64_t which)
{
    uint64_t agree = 0;
    for (uint64_t some = which; some; some &= some - 1)
        kvmattr_prefetch_lines(located->where[kvmattr_first_bit(some)], (int)located->wide[kvmattr_first_bit(some)]);
    for (; which; which &= which - 1) {
        int i = kvmattr_first_bit(which);
        agree |= (uint64_t)kvmattr_leaf_agrees(located->where[i], (int)located->wide[i], located->keep[i]) << i;
    }
    return agree;
}

/* No branch is on whether a page changed. */
static uint64_t kvmattr_agree_portable(const kvmattr_located *located, int from, int n)
{
    uint64_t agree = 0;
    for (int i = from; i < n; i++)
        if (kvmattr_word_agrees(located->toggle[i], (int)located->wide[i], located->keep[i]))
            agree |= (uint64_t)1 << i;
    return agree ? kvmattr_agree_in_leaves(located, agree) : 0;
}

/* Pages that are no eights, the last 63 at most, are filled up with one of them: they go together, the same way. */
#define KVMATTR_WALKS(NAME, TARGET)                                                                          \
    TARGET static void kvmattr_take_##NAME(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out,     \
                                           size_t n)                                                         \
    {                                                                                                        \
        const size_t rest = n % KVMATTR_FEW ? n % KVMATTR_GROUP : 0;                                         \
        uint64_t filled[KVMATTR_GROUP];                                                                      \
        uint8_t values[KVMATTR_GROUP];                                                                       \
        if (n && kvmattr_root_is_list(walk)) {                                                               \
            kvmattr_take_from_list(walk, gfns, out, n);                                                      \
            return;                                                                                          \
        }                                                                                                    \
        for (size_t i = 0; i < (rest + KVMATTR_FEW - 1) / KVMATTR_FEW * KVMATTR_FEW; i++)                    \
            filled[i] = gfns[n - rest + (i < rest ? i : 0)];                                                 \
        for (int last = n == rest; last <= (rest != 0); last++) {                                            \
            const uint64_t *some = last ? filled : gfns;                                                     \
            uint8_t *to = last ? values : out;                                                               \
            size_t count = (last ? rest + KVMATTR_FEW - 1 : n - rest) / KVMATTR_FEW;                         \
            KVMATTR_BY_LEVELS(walk->level, kvmattr_take_fews, walk, some, to, count,                         \
                              kvmattr_few_lines_##NAME)                                                      \
        }                                                                                                    \
        memcpy(out + n - rest, values, rest);                                                                \
    }                                                                                                        \
    TARGET static void kvmattr_locate_##NAME(const kvmattr_walk *walk, const uint64_t *gfns, int n,          \
                                             const uint8_t *ks, const uint8_t *xs, size_t step, uint64_t last,\
                                             kvmattr_located *located)                                       \
    {                                                                                                        \
        kvmattr_locate_group(walk, gfns, n, ks, xs, step, last, located, walk->level);                       \
    }

KVMATTR_WALKS(portable, )

#endif /* KVMATTR_KERNELS_PLAIN_WALK_H */
