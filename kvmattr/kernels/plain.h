/* The kernels in plain C: their meaning, and what every machine can run. Included by choose.h; plain_walk.h has those
 * that walk down to many pages. */
#ifndef KVMATTR_KERNELS_PLAIN_H
#define KVMATTR_KERNELS_PLAIN_H

#include "contract.h"

/* Each of the 256 bytes of bits, spread to 8 bytes of 0 or 0xff. Filled once at import. */
static uint64_t kvmattr_spread_bits[256];

static void kvmattr_fill_spread(void)
{
    for (int byte = 0; byte < 256; byte++) {
        uint8_t cells[8];
        for (int bit = 0; bit < 8; bit++)
            cells[bit] = (byte >> bit) & 1 ? 0xff : 0;
        memcpy(&kvmattr_spread_bits[byte], cells, 8);
    }
}

#define KVMATTR_INLINE static inline __attribute__((always_inline))
/* What a loop seldom needs: its registers are not the loop's. */
#define KVMATTR_RARE __attribute__((noinline))
#if defined(__clang__)
#define KVMATTR_UNROLL_LEVELS _Pragma("clang loop unroll(full)")
#define KVMATTR_UNROLL_PAIRS _Pragma("clang loop unroll_count(2)")
#else
#define KVMATTR_UNROLL_LEVELS _Pragma("GCC unroll 8")
#define KVMATTR_UNROLL_PAIRS _Pragma("GCC unroll 2")
#endif

/* ---- also recompiled for AVX2 and AVX-512, where the compiler's own vectors are as good as ours ---- */

#define KVMATTR_REPEAT(byte) kvmattr_everywhere((uint8_t)(byte))

#define KVMATTR_PLAIN(NAME, TARGET)                                                                          \
    TARGET static void kvmattr_affine_##NAME(uint8_t *p, size_t n, uint8_t k, uint8_t x)                     \
    {                                                                                                        \
        for (size_t i = 0; i < n; i++)                                                                       \
            p[i] = (uint8_t)((p[i] & k) ^ x);                                                                \
    }                                                                                                        \
    TARGET static uint64_t kvmattr_popcount_##NAME(const uint64_t *words, size_t n)                          \
    {                                                                                                        \
        uint64_t sum = 0;                                                                                    \
        for (size_t i = 0; i < n; i++)                                                                       \
            sum += (uint64_t)__builtin_popcountll(words[i]);                                                 \
        return sum;                                                                                          \
    }

KVMATTR_PLAIN(portable, )

static void kvmattr_expand_portable(const uint64_t *words, uint8_t k, uint8_t x, uint8_t *out)
{
    uint64_t keep = KVMATTR_REPEAT(k), toggle = KVMATTR_REPEAT(x);
    for (int i = 0; i < 8; i++) {
        uint64_t word = words[i];
        for (int j = 0; j < 8; j++) {
            uint64_t cells = (kvmattr_spread_bits[(word >> (8 * j)) & 0xff] & keep) ^ toggle;
            memcpy(out + 64 * i + 8 * j, &cells, 8);
        }
    }
}

static void kvmattr_match_portable(const uint8_t *block, uint8_t want, uint8_t mask, uint64_t *bits)
{
    const uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
    uint64_t wanted = KVMATTR_REPEAT(want), masked = KVMATTR_REPEAT(mask);
    for (int i = 0; i < 8; i++) {
        uint64_t word = 0;
        for (int j = 0; j < 8; j++) {
            uint64_t t = (kvmattr_load64(block + 64 * i + 8 * j) ^ wanted) & masked;
            uint64_t zero = ~(((t & low7) + low7) | t | low7); /* 0x80 in each byte of t that is zero */
            word |= (((zero >> 7) * 0x0102040810204080ULL) >> 56) << (8 * j);
        }
        bits[i] = word;
    }
}

static void kvmattr_changes_portable(const uint8_t *block, uint64_t *bits)
{
    const uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
    for (int i = 0; i < 8; i++) {
        uint64_t word = 0;
        for (int j = 0; j < 8; j++) {
            const uint8_t *at = block + 64 * i + 8 * j;
            uint64_t before;
            if (i || j)
                before = kvmattr_load64(at - 1);
            else {      /* the first page is compared with itself */
                uint8_t cells[8] = {at[0], at[0], at[1], at[2], at[3], at[4], at[5], at[6]};
                before = kvmattr_load64(cells);
            }
            uint64_t t = kvmattr_load64(at) ^ before;
            uint64_t differ = (((t & low7) + low7) | t) & ~low7; /* 0x80 in each byte of t that is not zero */
            word |= (((differ >> 7) * 0x0102040810204080ULL) >> 56) << (8 * j);
        }
        bits[i] = word;
    }
}

/* The pages of a leaf of two, of four or of eight bits, (raw value & k) ^ x of each. */
static void kvmattr_spread_twos_portable(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    const uint32_t keep = (uint32_t)KVMATTR_REPEAT(k), toggle = (uint32_t)KVMATTR_REPEAT(x);
    for (int i = 0; i < KVMATTR_BLOCK / 4; i++) {       /* made into vectors */
        uint32_t c = cells[i];
        c = (c | c << 12) & 0x000f000f;
        c = (c | c << 6) & 0x03030303;
        c |= c << 2;
        c = ((c | c << 4) & keep) ^ toggle;
        memcpy(out + 4 * i, &c, 4);
    }
}

static void kvmattr_spread_fours_portable(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    const uint16_t keep = (uint16_t)KVMATTR_REPEAT(k), toggle = (uint16_t)KVMATTR_REPEAT(x);
    for (int i = 0; i < KVMATTR_BLOCK / 2; i++) {
        uint16_t c = cells[i];
        c = (uint16_t)((c | c << 4) & 0x0f0f);
        c = (uint16_t)(((c | c << 4) & keep) ^ toggle);
        memcpy(out + 2 * i, &c, 2);
    }
}

static inline void kvmattr_spread_eights(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    const uint64_t keep = KVMATTR_REPEAT(k), toggle = KVMATTR_REPEAT(x);
    for (int i = 0; i < KVMATTR_BLOCK; i += 8) {
        uint64_t c = (kvmattr_load64(cells + i) & keep) ^ toggle;
        memcpy(out + i, &c, 8);
    }
}

/* The same in a walk over many leaves that are in no near cache, for all sets: by itself, so that it is compiled for none of
 * them. With vectors of 32 or 64 bytes such a walk took half as long again (Zen 4). */
static KVMATTR_RARE void kvmattr_spread_eights_far(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    kvmattr_spread_eights(cells, k, x, out);
}

/* The pages of a run line. Each run is written in pieces of 64 pages, of which the last goes beyond it: the next run is
 * written over that. Also recompiled for AVX2. */
#define KVMATTR_SPREAD_LINE(NAME, TARGET)                                                                    \
    TARGET static void kvmattr_spread_line_##NAME(const kvmattr_line *line, uint8_t k, uint8_t x, uint8_t *out)\
    {                                                                                                        \
        uint8_t block[KVMATTR_BLOCK + 64];                                                                   \
        int start = 0;                                                                                       \
        for (int i = 0; i < line->count; i++) {                                                              \
            int stop = i < line->count - 1 ? line->starts[i] : KVMATTR_BLOCK;                                \
            uint8_t value = (uint8_t)((line->values[i] & k) ^ x);                                            \
            for (; start < stop; start += 64)                                                                \
                memset(block + start, value, 64);                                                            \
            start = stop;                                                                                    \
        }                                                                                                    \
        memcpy(out, block, KVMATTR_BLOCK);                                                                   \
    }

KVMATTR_SPREAD_LINE(portable, )

/* Leaves of fields, of all widths. Also recompiled for AVX2 and AVX-512. */
#define KVMATTR_FIELDS(NAME, TARGET)                                                                         \
    TARGET static void kvmattr_relate_##NAME(const uint8_t *block, uint8_t vary[5])                          \
    {                                                                                                        \
        const uint64_t first = KVMATTR_REPEAT(block[0]);                                                     \
        uint64_t any[5] = {0, 0, 0, 0, 0};                                                                   \
        for (int i = 0; i < KVMATTR_BLOCK; i += 8) {                                                         \
            uint64_t c = kvmattr_load64(block + i) ^ first;                                                  \
            any[0] |= c;                                                                                     \
            any[1] |= c ^ ((c << 1 & KVMATTR_REPEAT(0xfe)) | (c >> 7 & KVMATTR_REPEAT(0x01)));               \
            any[2] |= c ^ ((c << 2 & KVMATTR_REPEAT(0xfc)) | (c >> 6 & KVMATTR_REPEAT(0x03)));               \
            any[3] |= c ^ ((c << 3 & KVMATTR_REPEAT(0xf8)) | (c >> 5 & KVMATTR_REPEAT(0x07)));               \
            any[4] |= c ^ ((c << 4 & KVMATTR_REPEAT(0xf0)) | (c >> 4 & KVMATTR_REPEAT(0x0f)));               \
        }                                                                                                    \
        for (int s = 0; s < 5; s++) {                                                                        \
            uint64_t bits = any[s] | any[s] >> 32;                                                           \
            bits |= bits >> 16;                                                                              \
            vary[s] = (uint8_t)(bits | bits >> 8);                                                           \
        }                                                                                                    \
    }                                                                                                        \
    /* 64 pages at a time; a leaf of eight bits is a block already. */                                       \
    TARGET static void kvmattr_pack_##NAME(const uint8_t *block, int wide, uint8_t x, uint64_t *words)       \
    {                                                                                                        \
        const uint64_t toggle = KVMATTR_REPEAT(x);                                                           \
        if (wide == 0) {                                                                                     \
            kvmattr_match_##NAME(block, x, 0xff, words);                                                     \
            for (int i = 0; i < 8; i++)                                                                      \
                words[i] = ~words[i];                                                                        \
        } else if (wide == 1) {                                                                              \
            for (int i = 0; i < KVMATTR_BLOCK / 8; i++) {                                                    \
                uint64_t c = kvmattr_load64(block + 8 * i) ^ toggle;                                         \
                c = (c | c >> 4) & KVMATTR_REPEAT(0x0f);                                                     \
                c = (c | c >> 2) & KVMATTR_REPEAT(0x03);                                                     \
                c = (c | c >> 6) & 0x000f000f000f000fULL;                                                    \
                c = (c | c >> 12) & 0x000000ff000000ffULL;                                                   \
                uint16_t fields = (uint16_t)(c | c >> 24);                                                   \
                memcpy((uint8_t *)words + 2 * i, &fields, 2);                                                \
            }                                                                                                \
        } else if (wide == 2) {                                                                              \
            for (int i = 0; i < KVMATTR_BLOCK / 8; i++) {                                                    \
                uint64_t c = kvmattr_load64(block + 8 * i) ^ toggle;                                         \
                c = (c | c >> 4) & KVMATTR_REPEAT(0x0f);                                                     \
                c = (c | c >> 4) & 0x00ff00ff00ff00ffULL;                                                    \
                c = (c | c >> 8) & 0x0000ffff0000ffffULL;                                                    \
                uint32_t fields = (uint32_t)(c | c >> 16);                                                   \
                memcpy((uint8_t *)words + 4 * i, &fields, 4);                                                \
            }                                                                                                \
        } else {                                                                                             \
            for (int i = 0; i < KVMATTR_BLOCK / 8; i++)                                                      \
                words[i] = kvmattr_load64(block + 8 * i) ^ toggle;                                           \
        }                                                                                                    \
    }                                                                                                        \
    TARGET static void kvmattr_spread_##NAME(const uint64_t *words, int tag, uint8_t k, uint8_t x, uint8_t *out)\
    {                                                                                                        \
        if (tag == KVMATTR_LINE) {                                                                           \
            kvmattr_spread_line_##NAME((const kvmattr_line *)words, k, x, out);                              \
        } else if (tag == 0) {                                                                               \
            kvmattr_expand_##NAME(words, k, x, out);                                                         \
        } else if (tag == 1) {                                                                               \
            kvmattr_spread_twos_##NAME((const uint8_t *)words, k, x, out);                                   \
        } else if (tag == 2) {                                                                               \
            kvmattr_spread_fours_##NAME((const uint8_t *)words, k, x, out);                                  \
        } else {                                                                                             \
            kvmattr_spread_eights((const uint8_t *)words, k, x, out);                                        \
        }                                                                                                    \
    }                                                                                                        \
    /* The fields of a word that are not zero, one bit each. */                                              \
    TARGET static inline uint64_t kvmattr_some_##NAME(uint64_t word, int wide)                               \
    {                                                                                                        \
        static const uint64_t lowest[4] = {~(uint64_t)0, 0x5555555555555555ULL, 0x1111111111111111ULL,       \
                                           0x0101010101010101ULL};                                           \
        word |= wide > 0 ? word >> 1 : 0;                                                                    \
        word |= wide > 1 ? word >> 2 : 0;                                                                    \
        word |= wide > 2 ? word >> 4 : 0;                                                                    \
        return word & lowest[wide];                                                                          \
    }                                                                                                        \
    /* The pages of a leaf of fields that differ from the page before them in bits of `mask`, which is repeated. */\
    TARGET static inline uint64_t kvmattr_inside_##NAME(const uint64_t *words, int wide, uint8_t mask)       \
    {                                                                                                        \
        const uint64_t masked = KVMATTR_REPEAT(mask);                                                        \
        const int w = 1 << wide, top = 64 - w;                                                               \
        uint64_t before = words[0] << top >> top, sum = 0;                                                   \
        for (int i = 0; i < 8 << wide; i++) {                                                                \
            sum += (uint64_t)__builtin_popcountll(                                                           \
                kvmattr_some_##NAME((words[i] ^ (words[i] << w | before)) & masked, wide));                  \
            before = words[i] >> top;                                                                        \
        }                                                                                                    \
        return sum;                                                                                          \
    }

KVMATTR_FIELDS(portable, )

/* Also recompiled for AVX2. */
#define KVMATTR_SUMS(NAME, TARGET)                                                                           \
    /* The pages of a leaf whose fields have exactly the bits of `want` within `mask`, both repeated: a bit for each\
     * that has not, and as many words side by side as a field has bits. */                                  \
    TARGET static inline __attribute__((always_inline)) uint64_t kvmattr_matches_##NAME(                     \
        const uint64_t *words, int wide, uint8_t want, uint8_t mask)                                         \
    {                                                                                                        \
        const uint64_t wanted = KVMATTR_REPEAT(want), masked = KVMATTR_REPEAT(mask);                         \
        uint64_t others = 0;                                                                                 \
        for (int i = 0; i < 8; i++) {                                                                        \
            uint64_t bits = 0;                                                                               \
            for (int j = 0; j < 1 << wide; j++)                                                              \
                bits |= kvmattr_some_##NAME((words[(i << wide) + j] ^ wanted) & masked, wide) << j;          \
            others += (uint64_t)__builtin_popcountll(bits);                                                  \
        }                                                                                                    \
        return KVMATTR_BLOCK - others;                                                                       \
    }                                                                                                        \
    /* The same of a run line, of raw values. */                                                             \
    TARGET static inline uint64_t kvmattr_line_matches_##NAME(const kvmattr_line *line, uint8_t want, uint8_t mask)\
    {                                                                                                        \
        uint64_t sum = 0;                                                                                    \
        for (int i = 0, start = 0, stop; i < line->count; i++, start = stop) {                               \
            stop = i + 1 < line->count ? line->starts[i] : KVMATTR_BLOCK;                                    \
            sum += (line->values[i] & mask) == want ? (uint64_t)(stop - start) : 0;                          \
        }                                                                                                    \
        return sum;                                                                                          \
    }                                                                                                        \
    /* Pages of one leaf with ((page & k) ^ x ^ want) & mask == 0. */                                        \
    TARGET static inline uint64_t kvmattr_count_leaf_##NAME(const uintptr_t *bias, uint64_t entry, uint8_t k,\
                                                            uint8_t x, uint8_t want, uint8_t mask)           \
    {                                                                                                        \
        uint8_t both = (uint8_t)(entry >> KVMATTR_K) & k & mask;                                             \
        uint8_t wanted = (uint8_t)(((entry >> KVMATTR_X) & k) ^ x ^ want) & mask;                            \
        const uint64_t *words = kvmattr_words(bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG);               \
        int wide = (int)(entry & 3);                                                                         \
        if (entry & KVMATTR_LINE)                                                                            \
            return kvmattr_line_matches_##NAME((const kvmattr_line *)words, wanted, both);                   \
        uint8_t fields = kvmattr_fold(wide, wanted);                                                         \
        if ((fields & both) != wanted)                                                                       \
            return 0;                                                                                        \
        uint8_t seen = kvmattr_fold(wide, both);                                                             \
        if (wide < 3)                                                                                        \
            return wide == 0   ? kvmattr_matches_##NAME(words, 0, fields, seen)                              \
                   : wide == 1 ? kvmattr_matches_##NAME(words, 1, fields, seen)                              \
                               : kvmattr_matches_##NAME(words, 2, fields, seen);                             \
        uint64_t bits[8];           /* a leaf of eight bits is a block already */                            \
        kvmattr_match_##NAME((const uint8_t *)words, fields, seen, bits);                                    \
        return kvmattr_popcount_##NAME(bits, 8);                                                             \
    }                                                                                                        \
    TARGET static uint8_t kvmattr_summary_##NAME(const uint64_t *entries)                                    \
    {                                                                                                        \
        uint64_t first = entries[0], any = 0, differ = 0;                                                    \
        for (int i = 0; i < 512; i++) {                                                                      \
            any |= entries[i];                                                                               \
            differ |= entries[i] ^ first;                                                                    \
        }                                                                                                    \
        return (uint8_t)((any >> KVMATTR_V) | (differ >> KVMATTR_F));                                        \
    }                                                                                                        \
    TARGET static int kvmattr_apply_##NAME(uint64_t *entries, size_t n, uint64_t keep, uint64_t toggle)      \
    {                                                                                                        \
        uint64_t idle = 0;                                                                                   \
        for (size_t i = 0; i < n; i++) {                                                                     \
            uint64_t entry = (entries[i] & keep) ^ toggle;                                                   \
            entries[i] = entry;                                                                              \
            idle |= (uint64_t)((entry & 0xffffffff) != 0) & (uint64_t)((entry & 0x00ff000000000000) == 0);   \
        }                                                                                                    \
        return (int)idle;                                                                                    \
    }                                                                                                        \
    TARGET static uint64_t kvmattr_largest_##NAME(const uint64_t *gfns, size_t n)                            \
    {                                                                                                        \
        uint64_t most[4] = {0, 0, 0, 0};                                                                     \
        size_t i = 0;                                                                                        \
        for (; i + 4 <= n; i += 4)                                                                           \
            for (int j = 0; j < 4; j++)                                                                      \
                most[j] = gfns[i + j] > most[j] ? gfns[i + j] : most[j];                                     \
        for (; i < n; i++)                                                                                   \
            most[0] = gfns[i] > most[0] ? gfns[i] : most[0];                                                 \
        uint64_t a = most[0] > most[1] ? most[0] : most[1], b = most[2] > most[3] ? most[2] : most[3];       \
        return a > b ? a : b;                                                                                \
    }                                                                                                        \
    TARGET static uint64_t kvmattr_count_##NAME(const uintptr_t *bias, const uint64_t *entries, uint8_t k,   \
                                                uint8_t x, uint8_t want, uint8_t mask)                       \
    {                                                                                                        \
        uint64_t sum = 0;                                                                                    \
        for (int i = 0; i < 512; i++) {                                                                      \
            uint64_t entry = entries[i];                                                                     \
            if (i + 12 < 512)                                                                                \
                kvmattr_prefetch_leaf(bias, entries[i + 12]);                                                \
            uint8_t first = (uint8_t)((((entry >> KVMATTR_F) & k) ^ x ^ want) & mask);                       \
            uint8_t varying = (uint8_t)(entry >> KVMATTR_V) & k & mask;                                      \
            if (varying == 0)                                                                                \
                sum += first ? 0 : 512;                                                                      \
            else if ((first & ~varying) == 0)                                                                \
                sum += kvmattr_count_leaf_##NAME(bias, entry, k, x, want, mask);                             \
        }                                                                                                    \
        return sum;                                                                                          \
    }

KVMATTR_SUMS(portable, )

/* What changes from page to page in leaves. Also recompiled for AVX2. */
#define KVMATTR_CHANGES(NAME, TARGET)                                                                        \
    TARGET static int kvmattr_list_changes_##NAME(const uintptr_t *bias, const uint64_t *entries, int n,     \
                                                  uint8_t k, uint8_t x, uint64_t base,                       \
                                                  kvmattr_change_list *list)                                 \
    {                                                                                                        \
        int count = 0, i;                                                                                    \
        uint8_t value = list->value;                                                                         \
        for (i = 0; i < n && i < KVMATTR_LISTED_BLOCKS; i++, base += KVMATTR_BLOCK) {                        \
            uint64_t entry = entries[i];                                                                     \
            if (i + 12 < n)                                                                                  \
                kvmattr_prefetch(kvmattr_words(bias, (uint32_t)entries[i + 12]));                            \
            uint8_t both = (uint8_t)(entry >> KVMATTR_V) & k, first = (uint8_t)(((entry >> KVMATTR_F) & k) ^ x);\
            if (both && (entry & KVMATTR_TAG))                                                               \
                break;                                                                                       \
            const uint64_t *words = kvmattr_words(bias, both ? (uint32_t)entry : 0);                         \
            uint64_t before = words[0] & 1, zero = before;                                                   \
            for (int j = 0; j < 8; j++) {                                                                    \
                uint64_t changes = words[j] ^ (words[j] << 1 | before);                                      \
                uint8_t after = before == zero ? first ^ both : first;                                       \
                if (j == 0 && first != value) {                                                              \
                    changes |= 1;                                                                            \
                    after = first;                                                                           \
                }                                                                                            \
                list->bits[count] = changes;                                                                 \
                list->gfn[count] = base + 64 * (uint64_t)j;                                                  \
                list->values[count] = after | (uint64_t)both << 8;                                           \
                count += changes != 0;                                                                       \
                before = words[j] >> 63;                                                                     \
            }                                                                                                \
            value = before == zero ? first : first ^ both;                                                   \
        }                                                                                                    \
        list->count = count;                                                                                 \
        list->value = value;                                                                                 \
        return i;                                                                                            \
    }

KVMATTR_CHANGES(portable, )

/* The blocks of a node, one leaf each. */
#define KVMATTR_NODES(NAME, TARGET)                                                                          \
    TARGET static void kvmattr_pages_##NAME(const uintptr_t *bias, const uint64_t *entries, int n,           \
                                            uint8_t k, uint8_t x, uint8_t *out)                              \
    {                                                                                                        \
        for (int i = 0; i < n; i++, out += KVMATTR_BLOCK) {                                                  \
            uint64_t entry = entries[i];                                                                     \
            const uint64_t *words = kvmattr_words(bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG);           \
            uint8_t keep = (uint8_t)(entry >> KVMATTR_K) & k, toggle = (uint8_t)(((entry >> KVMATTR_X) & k) ^ x);\
            if (i + 12 < n)                                                                                  \
                kvmattr_prefetch_leaf(bias, entries[i + 12]);                                                \
            if (((uint8_t)(entry >> KVMATTR_V) & k) == 0)                                                    \
                memset(out, (uint8_t)(((entry >> KVMATTR_F) & k) ^ x), KVMATTR_BLOCK);                       \
            else if ((entry & KVMATTR_TAG) == 0)    /* the commonest, and no longer than a call */           \
                kvmattr_expand_##NAME(words, keep, toggle, out);                                             \
            else if ((entry & KVMATTR_TAG) == 3)                                                             \
                kvmattr_spread_eights_far((const uint8_t *)words, keep, toggle, out);                        \
            else                                                                                             \
                kvmattr_spread_##NAME(words, (int)(entry & KVMATTR_TAG), keep, toggle, out);                 \
        }                                                                                                    \
    }                                                                                                        \
    TARGET static uint64_t kvmattr_edges_##NAME(const uintptr_t *bias, const uint64_t *entries, int n,       \
                                                uint8_t k, uint8_t x, uint8_t *first, uint8_t *last)         \
    {                                                                                                        \
        uint64_t sum = 0;                                                                                    \
        for (int i = 0; i < n; i++) {                                                                        \
            uint64_t entry = entries[i];                                                                     \
            uint32_t handle = (uint32_t)entry;                                                               \
            if (i + 12 < n)                                                                                  \
                kvmattr_prefetch_leaf(bias, entries[i + 12]);                                                \
            first[i] = last[i] = (uint8_t)(((entry >> KVMATTR_F) & k) ^ x);                                  \
            if (((uint8_t)(entry >> KVMATTR_V) & k) == 0)                                                    \
                continue;                                                                                    \
            const uint64_t *words = kvmattr_words(bias, handle & ~(uint32_t)KVMATTR_TAG);                    \
            uint8_t kept = (uint8_t)(entry >> KVMATTR_K) & k, raw;                                           \
            int wide = (int)(handle & 3);                                                                    \
            if (handle & KVMATTR_LINE) {                                                                     \
                const kvmattr_line *line = (const kvmattr_line *)words;                                      \
                for (int run = 1; run < line->count; run++)                                                  \
                    sum += ((line->values[run] ^ line->values[run - 1]) & kept) != 0;                        \
                raw = line->values[line->count - 1];                                                         \
            } else {                                                                                         \
                sum += kvmattr_inside_##NAME(words, wide, kvmattr_fold(wide, kept));                         \
                raw = kvmattr_field_raw(words, wide, KVMATTR_BLOCK - 1);                                     \
            }                                                                                                \
            last[i] = (uint8_t)((raw & kept) ^ ((entry >> KVMATTR_X) & k) ^ x);                              \
        }                                                                                                    \
        return sum;                                                                                          \
    }

KVMATTR_NODES(portable, )

#include "plain_walk.h"

/* Each eighth start is asked, then the eight before the first that is too far. None of the comparisons waits for another,
 * where halves do, one after the other. */
static unsigned kvmattr_find_portable(const uint64_t *starts, unsigned count, uint64_t page)
{
    unsigned run = 0, low = 0;
    for (unsigned i = 7; i < count; i += 8)
        low += starts[i] <= page;
    low *= 8;
    if (count >= 8) {
        low = low < count - 8 ? low : count - 8;
        for (unsigned i = 0; i < 8; i++)
            run += starts[low + i] <= page;
    } else {
        for (unsigned i = 0; i < count; i++)
            run += starts[i] <= page;
    }
    return low + run;
}

static void kvmattr_splice_portable(const kvmattr_splice *splice, size_t count, const uint64_t *starts, const uint8_t *values,
                                    uint64_t *to_starts, uint8_t *to_values)
{
    size_t at = (size_t)splice->at, gone = (size_t)splice->gone, added = (size_t)splice->added;
    size_t tail = count - gone - at;
    /* The values stand behind the starts: what moves up is moved from the end, what moves down from the beginning. */
    if (added > gone) {
        memmove(to_values + at + added, values + at + gone, tail);
        memmove(to_values, values, at);
        memmove(to_starts + at - 1 + added, starts + at - 1 + gone, 8 * tail);
    } else if (added < gone || to_starts != starts) {
        memmove(to_starts + at - 1 + added, starts + at - 1 + gone, 8 * tail);
        memmove(to_values, values, at);
        memmove(to_values + at + added, values + at + gone, tail);
    }
    if (to_starts != starts)
        memcpy(to_starts, starts, 8 * (at - 1));
    for (size_t i = 0; i < added; i++) {
        to_starts[at - 1 + i] = splice->starts[i];
        to_values[at + i] = splice->values[i];
    }
}

static uint64_t kvmattr_in_block_portable(const uint64_t *gfns, int n, uint64_t gfn)
{
    uint64_t which = 0;
    for (int i = 0; i < n; i++)
        which |= (uint64_t)((gfns[i] ^ gfn) < KVMATTR_BLOCK) << i;
    return which;
}

static unsigned kvmattr_list_put_portable(kvmattr_list *list, uint64_t page, uint64_t span, uint8_t k, uint8_t x,
                                          unsigned most)
{
    unsigned count = list->count, run = kvmattr_find_portable(list->starts, count - 1, page), now;
    uint8_t *values = kvmattr_list_values(list, (int)count);
    uint8_t old = values[run], value = (uint8_t)((old & k) ^ x);
    if (value == old)
        return 0;
    const kvmattr_page_splice change = kvmattr_splice_page(list, count, run, page, span, value);
    now = count + change.added - change.gone;
    if (now > most)
        return KVMATTR_LIST_FULL;
    const kvmattr_splice splice = {(int)change.at, (int)change.gone, (int)change.added,
                                   {change.comes ? page : page + 1, page + 1}, {change.comes ? value : old, old}};
    values = kvmattr_list_values(list, (int)now);
    kvmattr_splice_portable(&splice, count, list->starts, kvmattr_list_values(list, (int)count), list->starts, values);
    list->count = (uint16_t)now;
    return (unsigned)(old ^ value) | (unsigned)value << 8 | (memchr(values, old, now) ? 0 : KVMATTR_LIST_LOST);
}

static const kvmattr_kernels kvmattr_portable = {
    "portable", kvmattr_expand_portable, kvmattr_spread_portable, kvmattr_pack_portable, kvmattr_affine_portable,
    kvmattr_match_portable, kvmattr_changes_portable, kvmattr_relate_portable, kvmattr_summary_portable, kvmattr_apply_portable,
    kvmattr_pages_portable, kvmattr_edges_portable, kvmattr_list_changes_portable, kvmattr_count_portable,
    kvmattr_popcount_portable, kvmattr_largest_portable, kvmattr_in_block_portable, kvmattr_locate_portable,
    kvmattr_agree_portable, kvmattr_take_portable, kvmattr_read_off_portable, kvmattr_find_portable,
    kvmattr_splice_portable, kvmattr_list_put_portable,
};

#endif /* KVMATTR_KERNELS_PLAIN_H */
