/* The kernels in plain C: their meaning, and what every machine can run. Included by simd.h; simd_plain_walk.h has those
 * that walk down to many pages. */
#ifndef KVMATTR_SIMD_PLAIN_H
#define KVMATTR_SIMD_PLAIN_H

#include "kernels.h"

/* Each of the 256 bytes of bits, spread to 8 bytes of 0 or 0xff. Filled once at import. */
static uint64_t kvmattr_spread[256];

static void kvmattr_fill_spread(void)
{
    for (int byte = 0; byte < 256; byte++) {
        uint8_t cells[8];
        for (int bit = 0; bit < 8; bit++)
            cells[bit] = (byte >> bit) & 1 ? 0xff : 0;
        memcpy(&kvmattr_spread[byte], cells, 8);
    }
}

#define KVMATTR_INLINE static inline __attribute__((always_inline))

/* ---- plain C, Also recompiled for AVX2 and AVX-512 where the compiler's own vectors are as good as ours ---- */

#define KVMATTR_REPEAT(byte) ((uint64_t)(byte) * 0x0101010101010101ULL)

#define KVMATTR_PLAIN(NAME, TARGET)                                                                          \
    TARGET static void kvmattr_affine_##NAME(uint8_t *p, size_t n, uint8_t k, uint8_t x)                     \
    {                                                                                                        \
        for (size_t i = 0; i < n; i++)                                                                       \
            p[i] = (uint8_t)((p[i] & k) ^ x);                                                                \
    }                                                                                                        \
    TARGET static uint8_t kvmattr_varying_##NAME(const uint8_t *block)                                       \
    {                                                                                                        \
        uint64_t first = KVMATTR_REPEAT(block[0]), any[4] = {0, 0, 0, 0};                                    \
        for (int i = 0; i < KVMATTR_BLOCK; i += 32)                                                          \
            for (int j = 0; j < 4; j++)                                                                      \
                any[j] |= kvmattr_load64(block + i + 8 * j) ^ first;                                         \
        uint64_t bits = any[0] | any[1] | any[2] | any[3];                                                   \
        bits |= bits >> 32;                                                                                  \
        bits |= bits >> 16;                                                                                  \
        bits |= bits >> 8;                                                                                   \
        return (uint8_t)bits;                                                                                \
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
            uint64_t cells = (kvmattr_spread[(word >> (8 * j)) & 0xff] & keep) ^ toggle;
            memcpy(out + 64 * i + 8 * j, &cells, 8);
        }
    }
}

/* value = p0 ^ (plane 0: p0 ^ p1) ^ (plane 1: p0 ^ p2) ^ (both planes: p0 ^ p1 ^ p2 ^ p3) */
static void kvmattr_palette_portable(const uint64_t *planes, const uint8_t *values, uint8_t *out)
{
    uint64_t zero = KVMATTR_REPEAT(values[0]), low = KVMATTR_REPEAT(values[0] ^ values[1]);
    uint64_t high = KVMATTR_REPEAT(values[0] ^ values[2]);
    uint64_t both = KVMATTR_REPEAT(values[0] ^ values[1] ^ values[2] ^ values[3]);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) {
            uint64_t first = kvmattr_spread[(planes[i] >> (8 * j)) & 0xff];
            uint64_t second = kvmattr_spread[(planes[8 + i] >> (8 * j)) & 0xff];
            uint64_t cells = zero ^ (first & low) ^ (second & high) ^ (first & second & both);
            memcpy(out + 64 * i + 8 * j, &cells, 8);
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

/* Also recompiled for AVX2. */
#define KVMATTR_SUMS(NAME, TARGET)                                                                          \
    TARGET static uint8_t kvmattr_summary_##NAME(const uint64_t *entries)                                    \
    {                                                                                                        \
        uint64_t first = entries[0], any = 0, differ = 0;                                                    \
        for (int i = 0; i < 512; i++) {                                                                      \
            any |= entries[i];                                                                               \
            differ |= entries[i] ^ first;                                                                    \
        }                                                                                                    \
        return (uint8_t)((any >> 48) | (differ >> 56));                                                      \
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
                                                uint8_t x, uint8_t want, uint8_t mask, uint64_t *left)       \
    {                                                                                                        \
        uint64_t sum = 0, ones[8] = {0, 0, 0, 0, 0, 0, 0, 0};                                                \
        for (int i = 0; i < 512; i++) {                                                                      \
            uint64_t entry = entries[i];                                                                     \
            uint32_t handle = (uint32_t)entry;                                                               \
            uint8_t first = (uint8_t)((((entry >> 56) & k) ^ x ^ want) & mask);                              \
            uint8_t varying = (uint8_t)(entry >> 48) & k & mask;                                             \
            left[i >> 6] &= ~((uint64_t)1 << (i & 63));                                                      \
            if (varying == 0) {                                                                              \
                sum += first ? 0 : 512;                                                                      \
            } else if (handle & 1) {                                                                         \
                left[i >> 6] |= (uint64_t)1 << (i & 63);                                                     \
            } else if ((first & ~varying) == 0) {                                                            \
                const uint64_t *words = kvmattr_words(bias, handle);                                         \
                uint8_t zero = (uint8_t)((((entry >> 40) & k) ^ x ^ want) & mask);                           \
                uint8_t one = (uint8_t)(zero ^ ((entry >> 32) & k & mask));                                  \
                /* Masked bits vary, so at most one of the two values matches. */                            \
                uint64_t flip = zero == 0 ? ~(uint64_t)0 : 0;                                                \
                if (zero == 0 || one == 0)                                                                   \
                    for (int j = 0; j < 8; j++)                                                              \
                        ones[j] += (uint64_t)__builtin_popcountll(words[j] ^ flip);                          \
            }                                                                                                \
        }                                                                                                    \
        for (int j = 0; j < 8; j++)                                                                          \
            sum += ones[j];                                                                                  \
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
            uint8_t both = (uint8_t)(entry >> 48) & k, first = (uint8_t)(((entry >> 56) & k) ^ x);           \
            if (both && (entry & 1))                                                                         \
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
    }                                                                                                        \
    TARGET static inline uint64_t kvmattr_inside_##NAME(const uint64_t *words)                               \
    {                                                                                                        \
        uint64_t before = words[0] & 1, sum = 0;                                                             \
        for (int i = 0; i < 8; i++) {                                                                        \
            sum += (uint64_t)__builtin_popcountll(words[i] ^ (words[i] << 1 | before));                      \
            before = words[i] >> 63;                                                                         \
        }                                                                                                    \
        return sum;                                                                                          \
    }

KVMATTR_CHANGES(portable, )

/* The blocks of a node, one leaf each: what is not a bitmap leaf or uniform is left to the caller. */
#define KVMATTR_NODES(NAME, TARGET)                                                                          \
    TARGET static void kvmattr_pages_##NAME(const uintptr_t *bias, const uint64_t *entries, int n,           \
                                            uint8_t k, uint8_t x, uint8_t *out, uint64_t *left)              \
    {                                                                                                        \
        for (int i = 0; i < 8; i++)                                                                          \
            left[i] = 0;                                                                                     \
        for (int i = 0; i < n; i++) {                                                                        \
            uint64_t entry = entries[i];                                                                     \
            uint32_t handle = (uint32_t)entry;                                                               \
            if (i + 6 < n)                                                                                   \
                kvmattr_prefetch(kvmattr_words(bias, (uint32_t)entries[i + 6]));                             \
            if (((uint8_t)(entry >> 48) & k) == 0)                                                           \
                memset(out + 512 * i, (uint8_t)(((entry >> 56) & k) ^ x), 512);                              \
            else if (handle & 1)                                                                             \
                left[i >> 6] |= (uint64_t)1 << (i & 63);                                                     \
            else                                                                                             \
                kvmattr_expand_##NAME(kvmattr_words(bias, handle), (uint8_t)((entry >> 32) & k),             \
                                      (uint8_t)(((entry >> 40) & k) ^ x), out + 512 * i);                    \
        }                                                                                                    \
    }                                                                                                        \
    TARGET static uint64_t kvmattr_edges_##NAME(const uintptr_t *bias, const uint64_t *entries, int n,       \
                                                uint8_t k, uint8_t x, uint8_t *first, uint8_t *last,         \
                                                uint64_t *left)                                              \
    {                                                                                                        \
        uint64_t sum = 0;                                                                                    \
        for (int i = 0; i < 8; i++)                                                                          \
            left[i] = 0;                                                                                     \
        for (int i = 0; i < n; i++) {                                                                        \
            uint64_t entry = entries[i];                                                                     \
            uint32_t handle = (uint32_t)entry;                                                               \
            if (i + 12 < n)                                                                                  \
                kvmattr_prefetch(kvmattr_words(bias, (uint32_t)entries[i + 12]));                            \
            first[i] = last[i] = (uint8_t)(((entry >> 56) & k) ^ x);                                         \
            if (((uint8_t)(entry >> 48) & k) == 0)                                                           \
                continue;                                                                                    \
            if (handle & 1) {                                                                                \
                left[i >> 6] |= (uint64_t)1 << (i & 63);                                                     \
                continue;                                                                                    \
            }                                                                                                \
            const uint64_t *words = kvmattr_words(bias, handle);                                             \
            sum += kvmattr_inside_##NAME(words);                                                             \
            last[i] = (uint8_t)(((entry >> 40) & k) ^ x ^ ((0 - (words[7] >> 63)) & (entry >> 32) & k));     \
        }                                                                                                    \
        return sum;                                                                                          \
    }

KVMATTR_NODES(portable, )

#include "simd_plain_walk.h"

static const kvmattr_kernels kvmattr_portable = {
    "portable", kvmattr_expand_portable, kvmattr_palette_portable, kvmattr_affine_portable, kvmattr_match_portable,
    kvmattr_changes_portable, kvmattr_varying_portable, kvmattr_summary_portable, kvmattr_apply_portable,
    kvmattr_pages_portable, kvmattr_edges_portable, kvmattr_list_changes_portable, kvmattr_count_portable,
    kvmattr_popcount_portable, kvmattr_largest_portable, kvmattr_locate_portable, kvmattr_take_portable,
};

#endif /* KVMATTR_SIMD_PLAIN_H */
