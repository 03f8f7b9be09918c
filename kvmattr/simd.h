/* Leaf and node kernels, one set for each instruction set, chosen once at import.
 *
 * Everything here is a pure function over memory that the caller owns or has pinned: no allocation,
 * no Python, no locks. The plain C versions are the meaning; the others must give the same bytes, and
 * the test suite runs under each set that the machine has (KVMATTR_SIMD=portable, avx2 or avx512).
 *
 * Words: a *block* is 512 pages, held as 512 bytes (one attribute byte a page) or as 8 words of bits;
 * an *entry* is the tree's 64-bit word, handle:32 | k:8 | x:8 | V:8 | F:8 from the low end up.
 */
#ifndef KVMATTR_SIMD_H
#define KVMATTR_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define KVMATTR_X86 1
#include <immintrin.h>
#endif

#define KVMATTR_BLOCK 512
#define KVMATTR_SEGMENTS 32
#define KVMATTR_SEGMENT_SHIFT 27 /* granules of 8 bytes in a handle below its segment number */

/* What a walk from a root needs to know; `get` answers for one page by the slow road (encodings that the
 * vector walk does not read itself). */
typedef struct kvmattr_walk {
    const uintptr_t *bias;      /* address of granule g = bias[g >> 27] + 8 * g */
    uint64_t root;
    uint64_t span;              /* pages below the root entry; the pages after them have the value `rest` */
    int level;
    int nsegments;
    uint8_t rest;
    uint8_t (*get)(const struct kvmattr_walk *walk, uint64_t gfn);
} kvmattr_walk;

typedef struct kvmattr_kernels {
    const char *name;
    /* out[i] = (bit i ? k : 0) ^ x, for the 512 bits of a bitmap leaf. */
    void (*expand)(const uint64_t *words, uint8_t k, uint8_t x, uint8_t *out);
    /* p[i] = (p[i] & k) ^ x. */
    void (*affine)(uint8_t *p, size_t n, uint8_t k, uint8_t x);
    /* bit i of bits = ((block[i] ^ want) & mask) == 0. */
    void (*match)(const uint8_t *block, uint8_t want, uint8_t mask, uint64_t *bits);
    /* OR over the block of (block[i] ^ block[0]): the attribute bits that vary. */
    uint8_t (*varying)(const uint8_t *block);
    /* Bits that vary below a node: OR over its entries of V | (F ^ F of the first entry). */
    uint8_t (*summary)(const uint64_t *entries);
    /* entries[i] = (entries[i] & keep) ^ toggle; whether some entry now has a handle and V = 0. */
    int (*apply)(uint64_t *entries, size_t n, uint64_t keep, uint64_t toggle);
    /* Pages below a node of level 3 with ((page & k) ^ x ^ want) & mask == 0, but for entries that lead to
     * coded leaves: their bits are set in left[8]. */
    uint64_t (*count)(const uintptr_t *bias, const uint64_t *entries, uint8_t k, uint8_t x, uint8_t want,
                      uint8_t mask, uint64_t *left);
    /* The number of set bits in n words. */
    uint64_t (*popcount)(const uint64_t *words, size_t n);
    /* The largest of n gfns: one pass that checks a batch before anything is done. */
    uint64_t (*largest)(const uint64_t *gfns, size_t n);
    /* Walk up to 64 pages to the words that hold their bits: where[i], and the leaf entry's k[i] and x[i]. Asks for
     * the words' lines. The bit of a page is set in the result if its way leads through a pending operation, a run
     * list or another leaf than a bitmap, or beyond the root: then nothing is said of it. */
    uint64_t (*locate)(const kvmattr_walk *walk, const uint64_t *gfns, int n, uint64_t **where, uint8_t *k,
                       uint8_t *x);
    /* out[i] = the attributes of page gfns[i]; every gfn was checked. */
    void (*take)(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t n);
} kvmattr_kernels;

static inline uint64_t kvmattr_load64(const void *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

static inline void kvmattr_prefetch(const void *p)
{
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
}

static inline int kvmattr_first_bit(uint64_t word) { return __builtin_ctzll(word); }
static inline int kvmattr_last_bit(uint64_t word) { return 63 - __builtin_clzll(word); }

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

/* ---- plain C, also recompiled for AVX2 and AVX-512 where the compiler's own vectors are as good as ours ---- */

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
                const uint64_t *words = (const uint64_t *)(bias[handle >> KVMATTR_SEGMENT_SHIFT] +           \
                                                           8 * (uintptr_t)handle);                           \
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
    }                                                                                                        \
    TARGET static uint64_t kvmattr_popcount_##NAME(const uint64_t *words, size_t n)                          \
    {                                                                                                        \
        uint64_t sum = 0;                                                                                    \
        for (size_t i = 0; i < n; i++)                                                                       \
            sum += (uint64_t)__builtin_popcountll(words[i]);                                                 \
        return sum;                                                                                          \
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

/* The walk of one page as far as nodes and bitmap leaves go: sets *where to the word that holds the page's
 * bit and returns 1, or returns 0 where only `get` can answer. A uniform entry has handle 0, whose granule is
 * a page of zeros, so it needs no branch: the loop falls through it. */
static inline int kvmattr_descend(const kvmattr_walk *walk, uint64_t gfn, const uint64_t **where, uint8_t *k,
                                  uint8_t *x)
{
    uint64_t entry = walk->root;
    uint32_t keep = 0xff, toggle = 0;
    for (int level = walk->level; level > 2; level--) {
        uint32_t handle = (uint32_t)entry;
        if (handle & 511)
            return 0;
        toggle ^= (uint32_t)(entry >> 40) & keep;
        keep &= (uint32_t)(entry >> 32);
        uintptr_t at = walk->bias[handle >> KVMATTR_SEGMENT_SHIFT] + 8 * (uintptr_t)handle;
        entry = ((const uint64_t *)at)[(gfn >> (9 * (level - 2))) & 511];
    }
    uint32_t handle = (uint32_t)entry;
    if (handle & 7)
        return 0;
    toggle ^= (uint32_t)(entry >> 40) & keep;
    keep &= (uint32_t)(entry >> 32);
    uintptr_t at = walk->bias[handle >> KVMATTR_SEGMENT_SHIFT] + 8 * (uintptr_t)handle;
    *where = (const uint64_t *)at + ((gfn >> 6) & 7);
    *k = (uint8_t)keep;
    *x = (uint8_t)toggle;
    return 1;
}

static uint64_t kvmattr_locate_portable(const kvmattr_walk *walk, const uint64_t *gfns, int n, uint64_t **where,
                                        uint8_t *k, uint8_t *x)
{
    uint64_t elsewhere = 0;
    for (int i = 0; i < n; i++) {
        uint64_t gfn = gfns[i], entry = walk->root;
        uint32_t handle = (uint32_t)entry, pending = 0;
        for (int level = walk->level; level > 2; level--) {
            /* k = 0xff and x = 0 in an entry on which nothing is pending. */
            pending |= handle & 511;
            pending |= ((uint32_t)(entry >> 32) & 0xffff) ^ 0xff;
            uintptr_t at = walk->bias[handle >> KVMATTR_SEGMENT_SHIFT] + 8 * (uintptr_t)(handle & ~511u);
            entry = ((const uint64_t *)at)[(gfn >> (9 * (level - 2))) & 511];
            handle = (uint32_t)entry;
            if (pending)
                break;
        }
        if (pending || handle == 0 || handle & 7 || gfn >= walk->span) {
            elsewhere |= (uint64_t)1 << i;
            continue;
        }
        uintptr_t at = walk->bias[handle >> KVMATTR_SEGMENT_SHIFT] + 8 * (uintptr_t)handle;
        where[i] = (uint64_t *)at + ((gfn >> 6) & 7);
        kvmattr_prefetch(where[i]);
        k[i] = (uint8_t)(entry >> 32);
        x[i] = (uint8_t)(entry >> 40);
    }
    return elsewhere;
}

/* Groups of 16 pages: all are walked to their last word, whose line is asked for, before the first is read. */
static void kvmattr_take_portable(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t n)
{
    enum { GROUP = 16 };
    const uint64_t *where[GROUP];
    uint8_t k[GROUP], x[GROUP];
    for (size_t done = 0; done < n; done += GROUP) {
        int count = n - done < GROUP ? (int)(n - done) : GROUP;
        unsigned slow = 0;
        for (int i = 0; i < count; i++) {
            uint64_t gfn = gfns[done + i];
            if (gfn >= walk->span || !kvmattr_descend(walk, gfn, &where[i], &k[i], &x[i]))
                slow |= 1u << i;
            else
                kvmattr_prefetch(where[i]);
        }
        for (int i = 0; i < count; i++) {
            uint64_t gfn = gfns[done + i];
            if (slow >> i & 1)
                out[done + i] = walk->get(walk, gfn);
            else
                out[done + i] = (uint8_t)((k[i] & (0u - (unsigned)(*where[i] >> (gfn & 63) & 1))) ^ x[i]);
        }
    }
}

static const kvmattr_kernels kvmattr_portable = {
    "portable", kvmattr_expand_portable, kvmattr_affine_portable, kvmattr_match_portable,
    kvmattr_varying_portable, kvmattr_summary_portable, kvmattr_apply_portable, kvmattr_count_portable,
    kvmattr_popcount_portable,
    kvmattr_largest_portable, kvmattr_locate_portable,
    kvmattr_take_portable,
};

#ifdef KVMATTR_X86

#define KVMATTR_AVX2 __attribute__((target("avx2,popcnt,bmi,bmi2")))
#define KVMATTR_AVX512 \
    __attribute__((target("avx2,popcnt,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))

KVMATTR_PLAIN(avx2, KVMATTR_AVX2)
KVMATTR_PLAIN(avx512, KVMATTR_AVX512)

KVMATTR_AVX2 static void kvmattr_expand_avx2(const uint64_t *words, uint8_t k, uint8_t x, uint8_t *out)
{
    const __m256i byte_of = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                             2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit_of = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    const __m256i keep = _mm256_set1_epi8((char)k), toggle = _mm256_set1_epi8((char)x);
    for (int i = 0; i < 16; i++) {
        uint32_t half = (uint32_t)(words[i / 2] >> (32 * (i & 1)));
        __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)half), byte_of);
        __m256i full = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of);
        _mm256_storeu_si256((__m256i *)(out + 32 * i), _mm256_xor_si256(_mm256_and_si256(full, keep), toggle));
    }
}

KVMATTR_AVX2 static void kvmattr_match_avx2(const uint8_t *block, uint8_t want, uint8_t mask, uint64_t *bits)
{
    const __m256i wanted = _mm256_set1_epi8((char)want), masked = _mm256_set1_epi8((char)mask);
    for (int i = 0; i < 8; i++) {
        uint64_t word = 0;
        for (int half = 0; half < 2; half++) {
            __m256i cells = _mm256_loadu_si256((const __m256i *)(block + 64 * i + 32 * half));
            cells = _mm256_and_si256(_mm256_xor_si256(cells, wanted), masked);
            uint32_t equal = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(cells, _mm256_setzero_si256()));
            word |= (uint64_t)equal << (32 * half);
        }
        bits[i] = word;
    }
}

static const kvmattr_kernels kvmattr_avx2 = {
    "avx2", kvmattr_expand_avx2, kvmattr_affine_avx2, kvmattr_match_avx2, kvmattr_varying_avx2,
    kvmattr_summary_avx2, kvmattr_apply_avx2, kvmattr_count_avx2,
    kvmattr_popcount_avx2, kvmattr_largest_avx2,
    kvmattr_locate_portable,
    /* Four-lane gathers are no faster than the plain walk with its prefetches (measured), so it stays. */
    kvmattr_take_portable,
};

KVMATTR_AVX512 static void kvmattr_expand_avx512(const uint64_t *words, uint8_t k, uint8_t x, uint8_t *out)
{
    const __m512i zero = _mm512_set1_epi8((char)x), one = _mm512_set1_epi8((char)(k ^ x));
    for (int i = 0; i < 8; i++)
        _mm512_storeu_si512(out + 64 * i, _mm512_mask_blend_epi8((__mmask64)words[i], zero, one));
}

KVMATTR_AVX512 static void kvmattr_match_avx512(const uint8_t *block, uint8_t want, uint8_t mask, uint64_t *bits)
{
    const __m512i wanted = _mm512_set1_epi8((char)want), masked = _mm512_set1_epi8((char)mask);
    for (int i = 0; i < 8; i++) {
        __m512i cells = _mm512_xor_si512(_mm512_loadu_si512(block + 64 * i), wanted);
        bits[i] = (uint64_t)_mm512_testn_epi8_mask(cells, masked);
    }
}

KVMATTR_AVX512 static uint64_t kvmattr_largest_wide(const uint64_t *gfns, size_t n)
{
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        a = _mm512_max_epu64(a, _mm512_loadu_si512(gfns + i));
        b = _mm512_max_epu64(b, _mm512_loadu_si512(gfns + i + 8));
        c = _mm512_max_epu64(c, _mm512_loadu_si512(gfns + i + 16));
        d = _mm512_max_epu64(d, _mm512_loadu_si512(gfns + i + 24));
    }
    uint64_t vectors = _mm512_reduce_max_epu64(_mm512_max_epu64(_mm512_max_epu64(a, b), _mm512_max_epu64(c, d)));
    uint64_t rest = kvmattr_largest_avx512(gfns + i, n - i);
    return vectors > rest ? vectors : rest;
}

/* Pages go down all levels by gathers, eight at a time. A group of 64 is first walked to the addresses of its
 * last words, whose lines are asked for, and then read: twice as many misses are under way at once as when each
 * eight are finished before the next. A page whose way leads through another encoding than node, bitmap leaf and
 * uniform entry is answered by `get`. Bases of segments are looked up in two registers, so at most 16 segments
 * (6 GiB of nodes and leaves); a larger arena takes the plain walk. */
KVMATTR_AVX512 static void kvmattr_take_avx512(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out,
                                               size_t n)
{
    enum { LANES = 8, VECTORS = 8, GROUP = LANES * VECTORS };
    if (walk->nsegments > 16) {
        kvmattr_take_portable(walk, gfns, out, n);
        return;
    }
    const __m512i bases_low = _mm512_loadu_si512(walk->bias), bases_high = _mm512_loadu_si512(walk->bias + 8);
    const __m512i low32 = _mm512_set1_epi64(0xffffffff), index_mask = _mm512_set1_epi64(511);
    const __m512i root = _mm512_set1_epi64((long long)walk->root), span = _mm512_set1_epi64((long long)walk->span);
    const __m512i rest = _mm512_set1_epi64(walk->rest), bit_mask = _mm512_set1_epi64(63);
    const __m512i seven = _mm512_set1_epi64(7), one = _mm512_set1_epi64(1);
    size_t done = 0;
    for (; done + GROUP <= n; done += GROUP) {
        __m512i keeps[VECTORS], toggles[VECTORS], addresses[VECTORS];
        uint8_t slows[VECTORS], beyonds[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            __m512i gfn = _mm512_loadu_si512(gfns + done + LANES * v);
            __m512i entry = root, keep = _mm512_set1_epi64(0xff), toggle = _mm512_setzero_si512();
            __mmask8 slow = 0;
            for (int level = walk->level; level > 2; level--) {
                __m512i handle = _mm512_and_si512(entry, low32);
                __mmask8 coded = _mm512_test_epi64_mask(handle, index_mask);
                slow |= coded;
                handle = _mm512_mask_mov_epi64(handle, coded, _mm512_setzero_si512());
                __m512i base = _mm512_permutex2var_epi64(
                    bases_low, _mm512_srli_epi64(handle, KVMATTR_SEGMENT_SHIFT), bases_high);
                toggle = _mm512_xor_si512(toggle, _mm512_and_si512(_mm512_srli_epi64(entry, 40), keep));
                keep = _mm512_and_si512(keep, _mm512_srli_epi64(entry, 32));
                __m512i index =
                    _mm512_and_si512(_mm512_srl_epi64(gfn, _mm_cvtsi32_si128(9 * (level - 2))), index_mask);
                __m512i at = _mm512_add_epi64(base, _mm512_slli_epi64(_mm512_add_epi64(handle, index), 3));
                entry = _mm512_i64gather_epi64(at, NULL, 1);
            }
            __m512i handle = _mm512_and_si512(entry, low32);
            __mmask8 coded = _mm512_test_epi64_mask(handle, seven);
            handle = _mm512_mask_mov_epi64(handle, coded, _mm512_setzero_si512());
            __m512i base = _mm512_permutex2var_epi64(bases_low, _mm512_srli_epi64(handle, KVMATTR_SEGMENT_SHIFT),
                                                     bases_high);
            __m512i index = _mm512_and_si512(_mm512_srli_epi64(gfn, 6), seven);
            toggles[v] = _mm512_xor_si512(toggle, _mm512_and_si512(_mm512_srli_epi64(entry, 40), keep));
            keeps[v] = _mm512_and_si512(keep, _mm512_srli_epi64(entry, 32));
            addresses[v] = _mm512_add_epi64(base, _mm512_slli_epi64(_mm512_add_epi64(handle, index), 3));
            beyonds[v] = _mm512_cmpge_epu64_mask(gfn, span);
            slows[v] = (uint8_t)((slow | coded) & ~beyonds[v]);
            const uint64_t *where = (const uint64_t *)&addresses[v];
            for (int lane = 0; lane < LANES; lane++)
                kvmattr_prefetch((const void *)where[lane]);
        }
        for (int v = 0; v < VECTORS; v++) {
            uint8_t *to = out + done + LANES * v;
            const uint64_t *from = gfns + done + LANES * v;
            __m512i gfn = _mm512_loadu_si512(from);
            __m512i word = _mm512_i64gather_epi64(addresses[v], NULL, 1);
            __mmask8 bit = _mm512_test_epi64_mask(_mm512_srlv_epi64(word, _mm512_and_si512(gfn, bit_mask)), one);
            __m512i value = _mm512_xor_si512(toggles[v], _mm512_maskz_mov_epi64(bit, keeps[v]));
            value = _mm512_mask_mov_epi64(value, beyonds[v], rest);
            _mm_storel_epi64((__m128i *)to, _mm512_cvtepi64_epi8(value));
            for (unsigned left = slows[v]; left; left &= left - 1)
                to[__builtin_ctz(left)] = walk->get(walk, from[__builtin_ctz(left)]);
        }
    }
    kvmattr_take_portable(walk, gfns + done, out + done, n - done);
}

KVMATTR_AVX512 static uint64_t kvmattr_locate_avx512(const kvmattr_walk *walk, const uint64_t *gfns, int n,
                                                     uint64_t **where, uint8_t *k, uint8_t *x)
{
    if (walk->nsegments > 16 || n < 64)
        return kvmattr_locate_portable(walk, gfns, n, where, k, x);
    const __m512i bases_low = _mm512_loadu_si512(walk->bias), bases_high = _mm512_loadu_si512(walk->bias + 8);
    const __m512i low32 = _mm512_set1_epi64(0xffffffff), index_mask = _mm512_set1_epi64(511);
    const __m512i operation = _mm512_set1_epi64(0xffff00000000), none = _mm512_set1_epi64(0xff00000000);
    const __m512i span = _mm512_set1_epi64((long long)walk->span), seven = _mm512_set1_epi64(7);
    uint64_t elsewhere = 0;
    for (int v = 0; v < 64; v += 8) {
        __m512i gfn = _mm512_loadu_si512(gfns + v), entry = _mm512_set1_epi64((long long)walk->root), handle, base;
        __mmask8 away = _mm512_cmpge_epu64_mask(gfn, span);
        for (int level = walk->level; level > 2; level--) {
            handle = _mm512_and_si512(entry, low32);
            away |= _mm512_test_epi64_mask(handle, index_mask);
            away |= _mm512_cmpneq_epu64_mask(_mm512_and_si512(entry, operation), none);
            handle = _mm512_andnot_si512(index_mask, handle);
            base = _mm512_permutex2var_epi64(bases_low, _mm512_srli_epi64(handle, KVMATTR_SEGMENT_SHIFT), bases_high);
            __m512i index = _mm512_and_si512(_mm512_srl_epi64(gfn, _mm_cvtsi32_si128(9 * (level - 2))), index_mask);
            __m512i at = _mm512_add_epi64(base, _mm512_slli_epi64(_mm512_add_epi64(handle, index), 3));
            /* A lane that went astray reads the page of zeros from here on. */
            entry = _mm512_mask_i64gather_epi64(_mm512_setzero_si512(), (__mmask8)~away, at, NULL, 1);
        }
        handle = _mm512_and_si512(entry, low32);
        away |= _mm512_testn_epi64_mask(handle, low32) | _mm512_test_epi64_mask(handle, seven);
        base = _mm512_permutex2var_epi64(bases_low, _mm512_srli_epi64(handle, KVMATTR_SEGMENT_SHIFT), bases_high);
        __m512i index = _mm512_and_si512(_mm512_srli_epi64(gfn, 6), seven);
        _mm512_storeu_si512(where + v, _mm512_add_epi64(base, _mm512_slli_epi64(_mm512_add_epi64(handle, index), 3)));
        _mm_storel_epi64((__m128i *)(k + v), _mm512_cvtepi64_epi8(_mm512_srli_epi64(entry, 32)));
        _mm_storel_epi64((__m128i *)(x + v), _mm512_cvtepi64_epi8(_mm512_srli_epi64(entry, 40)));
        for (unsigned left = (uint8_t)~away; left; left &= left - 1)
            kvmattr_prefetch(where[v + __builtin_ctz(left)]);
        elsewhere |= (uint64_t)away << v;
    }
    return elsewhere;
}

static const kvmattr_kernels kvmattr_avx512 = {
    "avx512", kvmattr_expand_avx512, kvmattr_affine_avx512, kvmattr_match_avx512, kvmattr_varying_avx512,
    kvmattr_summary_avx512, kvmattr_apply_avx512, kvmattr_count_avx512,
    kvmattr_popcount_avx512, kvmattr_largest_wide,
    kvmattr_locate_avx512, kvmattr_take_avx512,
};

#endif /* KVMATTR_X86 */

/* The set called `name`, or the best one of this machine for NULL. NULL if the machine lacks it or there is
 * none of that name. */
static const kvmattr_kernels *kvmattr_choose(const char *name)
{
    kvmattr_fill_spread();
#ifdef KVMATTR_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") &&
               __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vpopcntdq");
    if (avx512 && (!name || !strcmp(name, "avx512")))
        return &kvmattr_avx512;
    if (avx2 && (!name || !strcmp(name, "avx2")))
        return &kvmattr_avx2;
#endif
    return !name || !strcmp(name, "portable") ? &kvmattr_portable : NULL;
}

#endif /* KVMATTR_SIMD_H */
