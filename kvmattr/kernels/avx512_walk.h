/* The walks down to many pages, with AVX-512. Included by avx512.h.
 *
 * Pages go down in groups of 64. The arithmetic of eight pages is done in a vector; their entries are loaded one by one,
 * since a gather of eight words takes longer than eight loads on a processor that runs it as microcode (measured on Zen 4),
 * and no less on one that does not (on a Xeon). What is rare below a node, a run list, a page beyond the root, is only
 * looked for and put right when it is there.
 */
#ifndef KVMATTR_KERNELS_AVX512_WALK_H
#define KVMATTR_KERNELS_AVX512_WALK_H

enum { KVMATTR_LANES = 8, KVMATTR_VECTORS = KVMATTR_GROUP / KVMATTR_LANES };

/* So many pages of a group in run lists are looked up one by one. */
enum { KVMATTR_FEW_LISTED = 16 };

/* Segments' bases are looked up in two registers, so at most 16 segments (7 GiB of nodes and leaves); a larger
 * arena takes the plain walk. */
#define KVMATTR_WIDE_SEGMENTS 16

/* A group on its way: the entries of its pages at the level that they have come to, and where they go from there. Of a
 * look-up also bits of `lines`, at level 2: pages in run lines; and of `listed`: pages in run lists, whose entries stay
 * those that lead there, with KVMATTR_INSIDE bits of the gfn below them in place of V and F. */
enum { KVMATTR_INSIDE = KVMATTR_V };

typedef struct kvmattr_group {
    uint64_t entries[KVMATTR_GROUP] __attribute__((aligned(64)));
    uintptr_t at[KVMATTR_GROUP] __attribute__((aligned(64)));
    uint8_t lines[KVMATTR_VECTORS], listed[KVMATTR_VECTORS];
} kvmattr_group;

typedef struct kvmattr_bases {
    __m512i low, high;
} kvmattr_bases;

/* Of the segments that were there when the walk began, and no others: a writer may add one meanwhile. */
KVMATTR_AVX512 static inline kvmattr_bases kvmattr_bases_of(const kvmattr_walk *walk)
{
    const unsigned there = (1u << walk->nsegments) - 1;
    kvmattr_bases bases = {_mm512_maskz_loadu_epi64((__mmask8)there, walk->bias),
                           _mm512_maskz_loadu_epi64((__mmask8)(there >> 8), walk->bias + 8)};
    return bases;
}

/* The addresses of granules, for eight entries: the low bits of their handles, those of `within`, are taken from the
 * index. Of what is shifted down for it, the permutation looks at the low four bits only, which number the segment. */
KVMATTR_AVX512 static inline __m512i kvmattr_addresses(const kvmattr_bases *bases, __m512i entry, __m512i within,
                                                       __m512i index)
{
    const __m512i granule = _mm512_set1_epi64(8);
    __m512i base = _mm512_permutex2var_epi64(bases->low, _mm512_srli_epi64(entry, KVMATTR_SEGMENT_SHIFT),
                                             bases->high);
    __m512i handle = _mm512_ternarylogic_epi64(within, index, entry, 0xca);     /* within ? index : entry */
    return _mm512_add_epi64(base, _mm512_mul_epu32(handle, granule));           /* of their low halves */
}

/* Eight words, which may begin at any byte, put together in registers: a vector read where eight words have just been
 * written waits until the last of them has come to the cache. */
KVMATTR_AVX512 static inline __m512i kvmattr_load_eight(const uintptr_t *at)
{
    __m128i pairs[4];
    for (int i = 0; i < 4; i++) {
        __m128i low = _mm_loadl_epi64((const __m128i *)kvmattr_by_itself(at[2 * i]));
        pairs[i] = _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(low),
                                                 (const double *)kvmattr_by_itself(at[2 * i + 1])));
    }
    __m256i first = _mm256_inserti128_si256(_mm256_castsi128_si256(pairs[0]), pairs[1], 1);
    __m256i second = _mm256_inserti128_si256(_mm256_castsi128_si256(pairs[2]), pairs[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

KVMATTR_AVX512 static inline int kvmattr_any(__m512i bits) { return _mm512_test_epi64_mask(bits, bits) != 0; }

/* Into the root: it is the same for all pages. Returns those beyond it, which go on as if they were not. */
KVMATTR_AVX512 static inline uint64_t kvmattr_enter(const kvmattr_walk *walk, const uint64_t *gfns,
                                                    kvmattr_group *group)
{
    const __m512i span = _mm512_set1_epi64((long long)walk->span), in_node = _mm512_set1_epi64(KVMATTR_IN_NODE);
    const uint64_t *root = kvmattr_words(walk->bias, (uint32_t)walk->root);
    const __m128i shift = _mm_cvtsi32_si128(KVMATTR_LEVEL_SHIFT(walk->level - 1));
    uint64_t beyond = 0;
    __m512i all = _mm512_setzero_si512();
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i gfn = _mm512_loadu_si512(gfns + KVMATTR_LANES * v);
        all = _mm512_or_si512(all, gfn);
        kvmattr_prefetch_gfns(gfns + KVMATTR_LANES * v, walk->ahead);
        if (walk->level > 2)
            _mm512_store_si512(group->at + KVMATTR_LANES * v,
                               _mm512_and_si512(_mm512_srl_epi64(gfn, shift), in_node));
        else
            _mm512_store_si512(group->entries + KVMATTR_LANES * v, _mm512_set1_epi64((long long)walk->root));
    }
    if (walk->level > 2)
        for (int i = 0; i < KVMATTR_GROUP; i++)
            group->entries[i] = root[kvmattr_by_itself(group->at[i])];
    /* The span is a power of two. */
    if (_mm512_cmpge_epu64_mask(all, span))
        for (int v = 0; v < KVMATTR_VECTORS; v++)
            beyond |= (uint64_t)_mm512_cmpge_epu64_mask(_mm512_loadu_si512(gfns + KVMATTR_LANES * v), span)
                      << (KVMATTR_LANES * v);
    return beyond;
}

/* Where the entries of the next level are, and what of KVMATTR_OPERATION and KVMATTR_IN_NODE is not as in an entry that
 * leads to a node and nothing else, in any of the pages. */
KVMATTR_AVX512 static inline __m512i kvmattr_aim(const kvmattr_bases *bases, const uint64_t *gfns, int level,
                                                 kvmattr_group *group)
{
    const __m512i in_node = _mm512_set1_epi64(KVMATTR_IN_NODE), none = _mm512_set1_epi64(KVMATTR_NO_OPERATION);
    const __m512i looked_at = _mm512_set1_epi64(KVMATTR_OPERATION | KVMATTR_IN_NODE);
    const __m128i shift = _mm_cvtsi32_si128(KVMATTR_LEVEL_SHIFT(level - 1));
    __m512i different = _mm512_setzero_si512();
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i entry = _mm512_load_si512(group->entries + KVMATTR_LANES * v);
        __m512i index = _mm512_srl_epi64(_mm512_loadu_si512(gfns + KVMATTR_LANES * v), shift);
        different = _mm512_ternarylogic_epi64(different, _mm512_xor_si512(entry, none), looked_at, 0xf8);
        _mm512_store_si512(group->at + KVMATTR_LANES * v, kvmattr_addresses(bases, entry, in_node, index));
    }
    return different;
}

/* Where there are many starts, the eight are found first that the page is among. */
KVMATTR_AVX512 static unsigned kvmattr_find_some_avx512(const uint64_t *starts, unsigned count, uint64_t page)
{
    unsigned left, low = kvmattr_starts_find(starts, count, page, KVMATTR_LANES, &left);
    const __mmask8 these = (__mmask8)((1u << left) - 1);
    __m512i some = _mm512_maskz_loadu_epi64(these, starts + low);
    return low + (unsigned)__builtin_popcount(_mm512_mask_cmple_epu64_mask(these, some,
                                                                           _mm512_set1_epi64((long long)page)));
}

KVMATTR_AVX512 static inline uint8_t kvmattr_list_raw_avx512(const kvmattr_list *list, uint64_t page)
{
    return kvmattr_list_values(list, list->count)[kvmattr_find_some_avx512(list->starts, list->count - 1u, page)];
}

/* Ways to run lists go on in the page of zeros instead. Returns which these are. */
KVMATTR_AVX512 static inline uint64_t kvmattr_turn_away(const kvmattr_walk *walk, kvmattr_group *group)
{
    const __m512i zeros = _mm512_set1_epi64((long long)walk->bias[0]), within = _mm512_set1_epi64(KVMATTR_IN_NODE);
    uint64_t which = 0;
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i entry = _mm512_load_si512(group->entries + KVMATTR_LANES * v);
        __mmask8 away = _mm512_test_epi64_mask(entry, within);
        _mm512_mask_store_epi64(group->at + KVMATTR_LANES * v, away, zeros);
        which |= (uint64_t)away << (KVMATTR_LANES * v);
    }
    return which;
}

KVMATTR_AVX512 static inline void kvmattr_descend(kvmattr_group *group)
{
    for (int v = 0; v < KVMATTR_VECTORS; v++)
        _mm512_store_si512(group->entries + KVMATTR_LANES * v, kvmattr_load_eight(group->at + KVMATTR_LANES * v));
}

/* A number for each tag of a leaf's handle; the look-up reads the low three bits of an entry. */
KVMATTR_AVX512 static inline __m512i kvmattr_by_tag(__m512i entry, int one, int two, int four, int eight, int line)
{
    return _mm512_permutexvar_epi64(entry, _mm512_setr_epi64(one, two, four, eight, line, line, line, line));
}

/* What of a handle is the place of a word in its leaf, the tag included. */
KVMATTR_AVX512 static inline __m512i kvmattr_in_leaf(__m512i entry) { return kvmattr_by_tag(entry, 7, 15, 31, 63, 7); }

KVMATTR_AVX512 static inline __m512i kvmattr_wide(__m512i entry)
{
    return _mm512_and_si512(entry, _mm512_set1_epi64(3));
}

/* The words that hold the fields of the pages, at level 2; of run lines some word. */
KVMATTR_AVX512 static inline __m512i kvmattr_aim_at_word(const kvmattr_bases *bases, __m512i entry, __m512i gfn)
{
    __m512i word = _mm512_srlv_epi64(gfn, kvmattr_by_tag(entry, 6, 5, 4, 3, 6));
    return kvmattr_addresses(bases, entry, kvmattr_in_leaf(entry), word);
}

/* ---- take ----
 *
 * Several groups are on their way at once, each a level behind the one before it, and eight pages of each go on in turn.
 * So what they load, and what they ask for, is spread over the arithmetic; a burst of it would wait for a place in line,
 * and then the arithmetic for it. */

/* Entries whose k and x are (own & k above) ^ x above: what is above and they do, in one. */
KVMATTR_AVX512 static inline __m512i kvmattr_composed(__m512i above, __m512i entry)
{
    const __mmask64 at_k_and_x = 0x3030303030303030, at_x = 0x2020202020202020;
    const __m512i k_for_both = _mm512_set4_epi64(0x0c0c00000000, 0x040400000000, 0x0c0c00000000, 0x040400000000);
    __m512i keep = _mm512_mask_shuffle_epi8(_mm512_set1_epi64(-1), at_k_and_x, above, k_for_both);
    return _mm512_ternarylogic_epi64(entry, keep, _mm512_maskz_mov_epi8(at_x, above), 0x6a);    /* (a & b) ^ c */
}

/* Entries of which some lead to run lists, or of which pages went there before: these are looked up when the group is
 * read, all at a time, and go on as if they were in a uniform block. Returns the entries with which all go on. */
KVMATTR_AVX512 static __m512i kvmattr_put_aside(int level, __m512i entry, __mmask8 listed, int v, kvmattr_group *group)
{
    const __m512i inside = _mm512_set1_epi64((long long)KVMATTR_LEVEL_SHIFT(level) << KVMATTR_INSIDE);
    const __m512i handle_k_and_x = _mm512_set1_epi64(((long long)1 << KVMATTR_INSIDE) - 1);
    __m512i kept = _mm512_mask_or_epi64(entry, listed, _mm512_and_si512(entry, handle_k_and_x), inside);
    _mm512_mask_store_epi64(group->entries + KVMATTR_LANES * v, (__mmask8)~group->listed[v], kept);
    group->listed[v] |= listed;
    return _mm512_maskz_mov_epi64((__mmask8)~group->listed[v], entry);
}

/* The pages of a vector come to a level: their entries there, in which k and x are what all entries from the root on do to
 * the page, and where these lead to. The number of levels is a constant to the compiler, and so is the level. */
KVMATTR_AVX512 KVMATTR_INLINE void kvmattr_come_to(int level, int levels, const kvmattr_walk *walk,
                                                   const kvmattr_bases *bases, const uint64_t *gfns, int v,
                                                   kvmattr_group *group)
{
    const __m512i in_node = _mm512_set1_epi64(KVMATTR_IN_NODE), line = _mm512_set1_epi64(KVMATTR_LINE);
    const __m128i shift = _mm_cvtsi32_si128(KVMATTR_LEVEL_SHIFT(level - 1));
    uint64_t *entries = group->entries + KVMATTR_LANES * v;
    uintptr_t *at = group->at + KVMATTR_LANES * v;
    __m512i gfn = _mm512_loadu_si512(gfns + KVMATTR_LANES * v), entry = _mm512_set1_epi64((long long)walk->root);
    if (level == levels) {
        group->listed[v] = 0;
        kvmattr_prefetch_gfns(gfns + KVMATTR_LANES * v, walk->ahead);
    } else {
        __m512i above = level + 1 < levels ? _mm512_load_si512(entries) : entry;
        entry = kvmattr_composed(above, kvmattr_load_eight(at));
    }
    __mmask8 listed = level > 2 ? _mm512_test_epi64_mask(entry, in_node) : 0;
    if (__builtin_expect(listed | group->listed[v], 0))
        entry = kvmattr_put_aside(level, entry, listed, v, group);
    else
        _mm512_store_si512(entries, entry);
    if (level > 2) {
        _mm512_store_si512(at, kvmattr_addresses(bases, entry, in_node, _mm512_srl_epi64(gfn, shift)));
    } else {
        group->lines[v] = _mm512_test_epi64_mask(entry, line);
        _mm512_store_si512(at, kvmattr_aim_at_word(bases, entry, gfn));
    }
}

/* The low bytes of eight words. */
KVMATTR_AVX512 static inline void kvmattr_store_low(uint8_t *to, __m512i words)
{
    _mm_storel_epi64((__m128i *)to, _mm512_cvtepi64_epi8(words));
}

/* The attributes of a vector's pages; of those in run lines nothing in particular. */
KVMATTR_AVX512 static inline void kvmattr_read_words(const uint64_t *gfns, int v, const kvmattr_group *group,
                                                     uint8_t *out)
{
    __m512i entry = _mm512_load_si512(group->entries + KVMATTR_LANES * v);
    __m512i gfn = _mm512_loadu_si512(gfns + KVMATTR_LANES * v);
    __m512i word = kvmattr_load_eight(group->at + KVMATTR_LANES * v);
    __m512i field = _mm512_and_si512(_mm512_rorv_epi64(word, _mm512_sllv_epi64(gfn, kvmattr_wide(entry))),
                                     kvmattr_by_tag(entry, 1, 3, 15, 255, 0));
    __m512i raw = _mm512_mul_epu32(field, kvmattr_by_tag(entry, 0xff, 0x55, 0x11, 1, 0));
    /* (raw & k) ^ x */
    kvmattr_store_low(out + KVMATTR_LANES * v,
                      _mm512_ternarylogic_epi64(raw, _mm512_srli_epi64(entry, KVMATTR_K),
                                                _mm512_srli_epi64(entry, KVMATTR_X), 0x6a));
}

/* How many of a line's starts a page has reached gives its run. */
KVMATTR_AVX512 static inline uint8_t kvmattr_line_raw_avx512(const kvmattr_line *line, uint64_t gfn)
{
    __m512i starts = _mm512_load_si512(line);
    __mmask32 reached = _mm512_cmple_epi16_mask(starts, _mm512_set1_epi16((short)(gfn & 511)));
    return line->values[__builtin_popcount(reached & ((1u << KVMATTR_LINE_STARTS) - 1))];
}

/* The pages of a group in run lists, each by itself: where these are few. */
KVMATTR_AVX512 static void kvmattr_read_few_lists(const kvmattr_walk *walk, const uint64_t *gfns,
                                                  const kvmattr_group *group, uint8_t *out)
{
    for (uint64_t listed = kvmattr_load64(group->listed); listed; listed &= listed - 1) {
        int i = kvmattr_first_bit(listed);
        uint64_t entry = group->entries[i], inside = gfns[i] & (((uint64_t)1 << (entry >> KVMATTR_INSIDE)) - 1);
        const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(walk->bias, (uint32_t)entry);
        uint8_t raw = kvmattr_list_raw_avx512(list, inside);
        out[i] = (uint8_t)((raw & (entry >> KVMATTR_K)) ^ (entry >> KVMATTR_X));
    }
}

/* All of them at once: each list is halved until nothing is left of the longest, and the starts that decide are
 * loaded eight at a time. Pages in no list go on as if theirs were empty. */
KVMATTR_AVX512 static void kvmattr_read_lists(const kvmattr_walk *walk, const kvmattr_bases *bases,
                                              const uint64_t *gfns, const kvmattr_group *group, uint8_t *out)
{
    const __m512i one = _mm512_set1_epi64(1), granule = _mm512_set1_epi64(8), none = _mm512_setzero_si512();
    uintptr_t at[KVMATTR_GROUP] __attribute__((aligned(64)));
    const __m512i ones = _mm512_set1_epi64(-1);
    __m512i from[KVMATTR_VECTORS], left[KVMATTR_VECTORS], inside[KVMATTR_VECTORS], any = none;
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i entry = _mm512_maskz_load_epi64(group->listed[v], group->entries + KVMATTR_LANES * v);
        __m512i above = _mm512_sllv_epi64(ones, _mm512_srli_epi64(entry, KVMATTR_INSIDE));
        inside[v] = _mm512_andnot_si512(above, _mm512_loadu_si512(gfns + KVMATTR_LANES * v));
        from[v] = kvmattr_addresses(bases, entry, none, none);
        /* Not the header's first half: others may count references there. */
        _mm512_store_si512(at + KVMATTR_LANES * v, _mm512_add_epi64(from[v], _mm512_set1_epi64(4)));
    }
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i header = _mm512_slli_epi64(kvmattr_load_eight(at + KVMATTR_LANES * v), 32);
        left[v] = _mm512_maskz_sub_epi64(group->listed[v], _mm512_srli_epi64(header, 48), one);
        any = _mm512_or_si512(any, left[v]);
        from[v] = _mm512_add_epi64(from[v], granule);
    }
    for (long long most = _mm512_reduce_or_epi64(any); most; most /= 2)
        for (int v = 0; v < KVMATTR_VECTORS; v++) {
            __m512i half = _mm512_srli_epi64(_mm512_add_epi64(left[v], one), 1);
            __m512i way = _mm512_slli_epi64(half, 3);
            /* The last of the first half; where nothing is left, something that stands in the list still. */
            __m512i last = _mm512_sub_epi64(_mm512_max_epu64(way, granule), granule);
            _mm512_store_si512(at + KVMATTR_LANES * v, _mm512_add_epi64(from[v], last));
            __m512i start = kvmattr_load_eight(at + KVMATTR_LANES * v);
            __mmask8 reached = _mm512_cmple_epu64_mask(start, inside[v]);
            from[v] = _mm512_mask_add_epi64(from[v], reached, from[v], way);
            left[v] = _mm512_sub_epi64(left[v], half);
        }
    for (int v = 0; v < KVMATTR_VECTORS; v++)
        _mm512_store_si512(at + KVMATTR_LANES * v, from[v]);
    for (uint64_t listed = kvmattr_load64(group->listed); listed; listed &= listed - 1) {
        int i = kvmattr_first_bit(listed);
        uint64_t entry = group->entries[i];
        const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(walk->bias, (uint32_t)entry);
        uint8_t raw = kvmattr_list_values(list, list->count)[(at[i] - (uintptr_t)list->starts) / 8];
        out[i] = (uint8_t)((raw & (entry >> KVMATTR_K)) ^ (entry >> KVMATTR_X));
    }
}

/* What is rare in a group that was read: pages in run lines, in run lists, and beyond the root, which went on as if they
 * were not. */
KVMATTR_AVX512 static inline void kvmattr_read_others(const kvmattr_walk *walk, const kvmattr_bases *bases,
                                                      const uint64_t *gfns, const kvmattr_group *group, uint8_t *out)
{
    const __m512i span = _mm512_set1_epi64((long long)walk->span);      /* a power of two */
    __m512i all = _mm512_setzero_si512();
    for (uint64_t lines = kvmattr_load64(group->lines); lines; lines &= lines - 1) {
        int i = kvmattr_first_bit(lines);
        uint64_t entry = group->entries[i];
        const kvmattr_line *line = (const kvmattr_line *)(group->at[i] & ~(uintptr_t)63);
        out[i] = (uint8_t)((kvmattr_line_raw_avx512(line, gfns[i]) & (entry >> KVMATTR_K)) ^ (entry >> KVMATTR_X));
    }
    if (__builtin_popcountll(kvmattr_load64(group->listed)) > KVMATTR_FEW_LISTED)
        kvmattr_read_lists(walk, bases, gfns, group, out);
    else
        kvmattr_read_few_lists(walk, gfns, group, out);
    for (int v = 0; v < KVMATTR_VECTORS; v++)
        all = _mm512_or_si512(all, _mm512_loadu_si512(gfns + KVMATTR_LANES * v));
    if (_mm512_cmpge_epu64_mask(all, span))
        for (int i = 0; i < KVMATTR_GROUP; i++)
            out[i] = gfns[i] < walk->span ? out[i] : walk->rest;
}

/* So many pages that are not a group go with the others' speed when they are filled up to be one, with the first. */
enum { KVMATTR_WORTH_FILLING = 32 };

static inline void kvmattr_fill_group(const uint64_t *gfns, int n, uint64_t *filled)
{
    for (int i = 0; i < KVMATTR_GROUP; i++)
        filled[i] = gfns[i < n ? i : 0];
}

/* A group has a turn at each level; in the next its words are asked for, and in the one after that they are read. */
enum { KVMATTR_RING = KVMATTR_MOST_LEVELS + 1 };

KVMATTR_AVX512 KVMATTR_INLINE void kvmattr_take_groups(int levels, const kvmattr_walk *walk, const uint64_t *gfns,
                                                       uint8_t *out, size_t count)
{
    const kvmattr_bases bases = kvmattr_bases_of(walk);
    const size_t turns = (size_t)levels + 1;
    kvmattr_group ring[KVMATTR_RING];
    for (size_t turn = 0; count && turn < count + turns - 1; turn++) {
        const size_t asked = turn - (turns - 2), read = turn - (turns - 1);     /* beyond any count: none yet */
        kvmattr_group *now = &ring[read % KVMATTR_RING];
        for (int v = 0; v < KVMATTR_VECTORS; v++) {
            KVMATTR_UNROLL_LEVELS
            for (int level = levels; level >= 2; level--) {
                size_t coming = turn - (size_t)(levels - level);
                if (coming < count)
                    kvmattr_come_to(level, levels, walk, &bases, gfns + KVMATTR_GROUP * coming, v,
                                    &ring[coming % KVMATTR_RING]);
            }
            if (asked < count)
                for (int i = 0; i < KVMATTR_LANES; i++)
                    kvmattr_prefetch_soon((const void *)ring[asked % KVMATTR_RING].at[KVMATTR_LANES * v + i]);
            if (read < count)
                kvmattr_read_words(gfns + KVMATTR_GROUP * read, v, now, out + KVMATTR_GROUP * read);
        }
        if (read < count)
            kvmattr_read_others(walk, &bases, gfns + KVMATTR_GROUP * read, now, out + KVMATTR_GROUP * read);
    }
}

KVMATTR_AVX512 static void kvmattr_take_from_list_avx512(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out,
                                                         size_t n)
{
    const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(walk->bias, (uint32_t)walk->root);
    const uint8_t k = (uint8_t)(walk->root >> KVMATTR_K), x = (uint8_t)(walk->root >> KVMATTR_X);
    for (size_t i = 0; i < n; i++)
        out[i] = gfns[i] < walk->span ? (uint8_t)((kvmattr_list_raw_avx512(list, gfns[i]) & k) ^ x) : walk->rest;
}

/* Not inline: the groups under way take 10 KiB of stack, once. */
KVMATTR_AVX512 __attribute__((noinline)) static void kvmattr_take_whole_groups(const kvmattr_walk *walk,
                                                                               const uint64_t *gfns, uint8_t *out,
                                                                               size_t count)
{
    KVMATTR_BY_LEVELS(walk->level, kvmattr_take_groups, walk, gfns, out, count)
}

KVMATTR_AVX512 static void kvmattr_take_avx512(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out,
                                               size_t n)
{
    const size_t rest = n % KVMATTR_GROUP;
    uint64_t filled[KVMATTR_GROUP];
    uint8_t values[KVMATTR_GROUP];
    if (kvmattr_root_is_list(walk)) {
        kvmattr_take_from_list_avx512(walk, gfns, out, n);
        return;
    }
    if (walk->nsegments > KVMATTR_WIDE_SEGMENTS) {
        kvmattr_take_avx2(walk, gfns, out, n);
        return;
    }
    kvmattr_take_whole_groups(walk, gfns, out, n / KVMATTR_GROUP);
    gfns += n - rest;
    out += n - rest;
    if (rest < KVMATTR_WORTH_FILLING) {
        kvmattr_take_avx2(walk, gfns, out, rest);
        return;
    }
    kvmattr_fill_group(gfns, (int)rest, filled);
    kvmattr_take_whole_groups(walk, filled, values, 1);
    memcpy(out, values, rest);
}

/* ---- by a ruler ---- */

/* How many of eight numbers are at most a page's. */
KVMATTR_AVX512 static inline unsigned kvmattr_reached(const uint64_t *eight, __m512i gfn)
{
    return (unsigned)__builtin_popcount(_mm512_cmple_epu64_mask(_mm512_load_si512(eight), gfn));
}

/* Which eight of the pivots to look at, and then of the starts, by the last of each eight. */
KVMATTR_AVX512 KVMATTR_INLINE void kvmattr_read_off_by_eights(const kvmattr_ruler *ruler, const uint64_t *gfns,
                                                              intptr_t ahead, uint8_t *out, size_t n, int steps)
{
    const kvmattr_ruler its = *ruler;       /* for all that the compiler knows, `out` lies on top of it */
    for (size_t i = 0; i < n; i++) {
        __m512i gfn = _mm512_set1_epi64((long long)gfns[i]);
        size_t run = steps > 3 ? kvmattr_reached(its.crowns, gfn) : 0;
        if (i % 8 == 0)
            kvmattr_prefetch_gfns(gfns + i, ahead);
        if (steps > 2)
            run = 8 * run + kvmattr_reached(its.tops + 8 * run, gfn);
        if (steps > 1)
            run = 8 * run + kvmattr_reached(its.pivots + 8 * run, gfn);
        run = 8 * run + kvmattr_reached(its.starts + 8 * run, gfn);
        out[i] = its.values[run];
    }
}

KVMATTR_AVX512 static void kvmattr_read_off_avx512(const kvmattr_ruler *ruler, const uint64_t *gfns, intptr_t ahead,
                                                   uint8_t *out, size_t n)
{
    switch (kvmattr_ruler_size(ruler)) {
    case 8: kvmattr_read_off_by_eights(ruler, gfns, ahead, out, n, 1); break;
    case 64: kvmattr_read_off_by_eights(ruler, gfns, ahead, out, n, 2); break;
    case 512: kvmattr_read_off_by_eights(ruler, gfns, ahead, out, n, 3); break;
    default: kvmattr_read_off_by_eights(ruler, gfns, ahead, out, n, 4); break;
    }
}

/* ---- locate ---- */

/* Which entries have something pending or lead to a run list; uniform ones have k = 0. */
KVMATTR_AVX512 static inline uint64_t kvmattr_other_than_nodes(const uint64_t *entries)
{
    const __m512i none = _mm512_set1_epi64(KVMATTR_NO_OPERATION);
    const __m512i looked_at = _mm512_set1_epi64(KVMATTR_OPERATION | KVMATTR_IN_NODE);
    uint64_t which = 0;
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i entry = _mm512_load_si512(entries + KVMATTR_LANES * v);
        which |= (uint64_t)_mm512_cmpneq_epu64_mask(_mm512_and_si512(entry, looked_at), none)
                 << (KVMATTR_LANES * v);
    }
    return which;
}

/* A byte of each lane in all of its bytes. */
KVMATTR_AVX512 static inline __m512i kvmattr_byte_everywhere(__m512i words, int byte)
{
    const __m512i upper = _mm512_set_epi64(0x0808080808080808, 0, 0x0808080808080808, 0, 0x0808080808080808, 0,
                                           0x0808080808080808, 0);
    return _mm512_shuffle_epi8(words, _mm512_or_si512(upper, _mm512_set1_epi8((char)byte)));
}

KVMATTR_AVX512 static void kvmattr_locate_avx512(const kvmattr_walk *walk, const uint64_t *gfns, int n,
                                                 const uint8_t *ks, const uint8_t *xs, size_t step, uint64_t last,
                                                 kvmattr_located *located)
{
    const __m512i in_node = _mm512_set1_epi64(KVMATTR_IN_NODE), line = _mm512_set1_epi64(KVMATTR_LINE);
    const __m512i low32 = _mm512_set1_epi64(0xffffffff), in_level3 = _mm512_set1_epi64(0x3ffff);
    const __m512i end = _mm512_set1_epi64((long long)last), varying = _mm512_set1_epi64(0xff000000000000);
    /* k four times, then x four times, of each entry; of a vector of 128 bits the shuffle reads its own. */
    const __m512i k_and_x = _mm512_set_epi64(
        0x0d0d0d0d0c0c0c0c, 0x0505050504040404, 0x0d0d0d0d0c0c0c0c, 0x0505050504040404, 0x0d0d0d0d0c0c0c0c,
        0x0505050504040404, 0x0d0d0d0d0c0c0c0c, 0x0505050504040404);
    const uint64_t root_differs = (walk->root & (KVMATTR_OPERATION | KVMATTR_IN_NODE)) ^ KVMATTR_NO_OPERATION;
    uint64_t filled[KVMATTR_GROUP];
    uint8_t k_filled[KVMATTR_GROUP] = {0}, x_filled[KVMATTR_GROUP] = {0};
    kvmattr_group group;
    uint64_t away, firsts = 0;
    if (n < KVMATTR_WORTH_FILLING || walk->nsegments > KVMATTR_WIDE_SEGMENTS ||
        (walk->level > 2 && (walk->root & KVMATTR_IN_NODE))) {
        kvmattr_locate_avx2(walk, gfns, n, ks, xs, step, last, located);
        return;
    }
    if (n < KVMATTR_GROUP) {
        kvmattr_fill_group(gfns, n, filled);
        memcpy(k_filled, ks, step ? (size_t)n : 1);
        memcpy(x_filled, xs, step ? (size_t)n : 1);
        gfns = filled;
        ks = k_filled;
        xs = x_filled;
    }
    const kvmattr_bases bases = kvmattr_bases_of(walk);
    away = kvmattr_enter(walk, gfns, &group);
    if (walk->level > 2 && root_differs)
        away = ~(uint64_t)0;
    for (int level = walk->level - 1; level > 2; level--) {
        __m512i different = kvmattr_aim(&bases, gfns, level, &group);
        if (kvmattr_any(different)) {
            away |= kvmattr_other_than_nodes(group.entries);
            if (kvmattr_any(_mm512_and_si512(different, in_node)))
                kvmattr_turn_away(walk, &group);
        }
        kvmattr_descend(&group);
    }
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i entry = _mm512_load_si512(group.entries + KVMATTR_LANES * v);
        __m512i gfn = _mm512_loadu_si512(gfns + KVMATTR_LANES * v);
        __mmask8 astray = _mm512_test_epi64_mask(entry, line) | _mm512_testn_epi64_mask(entry, low32) |
                          _mm512_testn_epi64_mask(gfn, in_level3) | _mm512_cmpeq_epu64_mask(gfn, end);
        _mm512_storeu_si512(located->where + KVMATTR_LANES * v, kvmattr_aim_at_word(&bases, entry, gfn));
        __m512i keep = _mm512_set1_epi8((char)ks[0]), toggle = _mm512_set1_epi64(xs[0]);
        if (step) {
            keep = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(ks + KVMATTR_LANES * v)));
            keep = kvmattr_byte_everywhere(keep, 0);
            toggle = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(xs + KVMATTR_LANES * v)));
        }
        /* What is cleared of k, how x and F turn: (entry & ~keep) ^ toggle, where toggle stands at x and F. */
        __m512i turned = _mm512_ternarylogic_epi64(
            entry, keep, _mm512_or_si512(_mm512_slli_epi64(toggle, KVMATTR_X), _mm512_slli_epi64(toggle, KVMATTR_F)),
            0x9a);
        /* As kvmattr_field_update: clear in the lower half, flip in the upper one, each folded to a field, repeated. */
        __m512i bytes = _mm512_shuffle_epi8(turned, k_and_x), folded = bytes;
        const __m512i by = kvmattr_by_tag(entry, 4, 4, 4, 0, 0), by2 = kvmattr_by_tag(entry, 2, 2, 0, 0, 0);
        const __m512i by1 = kvmattr_by_tag(entry, 1, 0, 0, 0, 0);
        folded = _mm512_or_si512(folded, _mm512_rorv_epi32(folded, _mm512_shuffle_epi32(by, 0xa0)));
        folded = _mm512_or_si512(folded, _mm512_rorv_epi32(folded, _mm512_shuffle_epi32(by2, 0xa0)));
        folded = _mm512_or_si512(folded, _mm512_rorv_epi32(folded, _mm512_shuffle_epi32(by1, 0xa0)));
        __m512i unfit = _mm512_ternarylogic_epi64(folded, kvmattr_byte_everywhere(entry, 4), bytes, 0x6a);
        astray |= _mm512_test_epi64_mask(unfit, unfit);
        /* F's turn, moved to V's place, and not among what varies. */
        __m512i beyond = _mm512_andnot_si512(entry, _mm512_srli_epi64(turned, 8));
        astray |= _mm512_test_epi64_mask(beyond, varying);
        __m512i wide = kvmattr_wide(entry);
        __m512i field = _mm512_rolv_epi64(kvmattr_by_tag(entry, 1, 3, 15, 255, 0), _mm512_sllv_epi64(gfn, wide));
        __m512i clear = _mm512_shuffle_epi32(folded, 0xa0), flip = _mm512_shuffle_epi32(folded, 0xf5);
        _mm512_storeu_si512(located->keep + KVMATTR_LANES * v, _mm512_ternarylogic_epi64(clear, field, field, 0x3f));
        _mm512_storeu_si512(located->toggle + KVMATTR_LANES * v, _mm512_and_si512(flip, field));
        _mm512_storeu_si512(located->wide + KVMATTR_LANES * v, wide);
        away |= (uint64_t)astray << (KVMATTR_LANES * v);
        firsts |= (uint64_t)_mm512_testn_epi64_mask(gfn, in_node) << (KVMATTR_LANES * v);
    }
    located->away = away;
    located->firsts = firsts;
}

/* Nearly always none. The words of 64 pages are looked at together, their leaves only where a word gives reason to. */
KVMATTR_AVX512 static uint64_t kvmattr_words_agree_avx512(const kvmattr_located *located)
{
    uint64_t agree = 0;
    for (int v = 0; v < KVMATTR_VECTORS; v++) {
        __m512i differ = _mm512_loadu_si512(located->keep + KVMATTR_LANES * v);
        __m512i word = _mm512_loadu_si512(located->toggle + KVMATTR_LANES * v);
        __m512i wide = _mm512_loadu_si512(located->wide + KVMATTR_LANES * v);
        __m512i any = _mm512_xor_si512(word, _mm512_rorv_epi64(word, kvmattr_by_tag(wide, 1, 2, 4, 8, 0)));
        any = _mm512_or_si512(any, _mm512_ror_epi64(any, 32));
        any = _mm512_or_si512(any, _mm512_ror_epi64(any, 16));
        any = _mm512_or_si512(any, _mm512_ror_epi64(any, 8));
        any = _mm512_or_si512(any, _mm512_rorv_epi64(any, kvmattr_by_tag(wide, 4, 4, 4, 0, 0)));
        any = _mm512_or_si512(any, _mm512_rorv_epi64(any, kvmattr_by_tag(wide, 2, 2, 0, 0, 0)));
        any = _mm512_or_si512(any, _mm512_rorv_epi64(any, kvmattr_by_tag(wide, 1, 0, 0, 0, 0)));
        __mmask8 changed = _mm512_test_epi64_mask(differ, differ);
        agree |= (uint64_t)_mm512_mask_testn_epi64_mask(changed, any, differ) << (KVMATTR_LANES * v);
    }
    return agree;
}

KVMATTR_AVX512 static uint64_t kvmattr_agree_avx512(const kvmattr_located *located, int from, int n)
{
    uint64_t agree;
    if (n - from < KVMATTR_LANES)
        return kvmattr_agree_avx2(located, from, n);
    agree = kvmattr_words_agree_avx512(located) >> from << from & ~(uint64_t)0 >> (KVMATTR_LOCATED - n);
    return agree ? kvmattr_agree_in_leaves(located, agree) : 0;
}

#endif /* KVMATTR_KERNELS_AVX512_WALK_H */
