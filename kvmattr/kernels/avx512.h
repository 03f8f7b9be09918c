/* The kernels that AVX-512 does better than the compiler by itself. Included by choose.h; avx512_walk.h has those that
 * walk down to many pages. */
#ifndef KVMATTR_KERNELS_AVX512_H
#define KVMATTR_KERNELS_AVX512_H

#include <immintrin.h>

#include "avx2.h"

#define KVMATTR_AVX512 \
    __attribute__((target("avx2,popcnt,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))

KVMATTR_PLAIN(avx512, KVMATTR_AVX512)

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

KVMATTR_FIELDS(avx512, KVMATTR_AVX512)

#include "avx512_walk.h"

KVMATTR_AVX512 static void kvmattr_changes_avx512(const uint8_t *block, uint64_t *bits)
{
    __m512i cells = _mm512_loadu_si512(block);
    /* The first page is compared with itself. */
    __m512i before = _mm512_mask_loadu_epi8(cells, ~(__mmask64)1, block - 1);
    bits[0] = (uint64_t)_mm512_cmpneq_epi8_mask(cells, before);
    for (int i = 1; i < 8; i++)
        bits[i] = (uint64_t)_mm512_cmpneq_epi8_mask(_mm512_loadu_si512(block + 64 * i),
                                                    _mm512_loadu_si512(block + 64 * i - 1));
}

KVMATTR_AVX512 static uint64_t kvmattr_largest_avx512(const uint64_t *gfns, size_t n)
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
    uint64_t rest = kvmattr_largest_avx2(gfns + i, n - i);
    return vectors > rest ? vectors : rest;
}

KVMATTR_AVX512 static uint8_t kvmattr_summary_avx512(const uint64_t *entries)
{
    const __m512i first = _mm512_set1_epi64((long long)entries[0]);
    __m512i any[4], differ[4];
    for (int j = 0; j < 4; j++)
        any[j] = differ[j] = _mm512_setzero_si512();
    for (int i = 0; i < 512; i += 32)
        for (int j = 0; j < 4; j++) {
            __m512i entry = _mm512_loadu_si512(entries + i + 8 * j);
            any[j] = _mm512_or_si512(any[j], entry);
            differ[j] = _mm512_ternarylogic_epi64(differ[j], entry, first, 0xf6);   /* differ | (entry ^ first) */
        }
    uint64_t all = (uint64_t)_mm512_reduce_or_epi64(
        _mm512_or_si512(_mm512_or_si512(any[0], any[1]), _mm512_or_si512(any[2], any[3])));
    uint64_t unlike = (uint64_t)_mm512_reduce_or_epi64(
        _mm512_or_si512(_mm512_or_si512(differ[0], differ[1]), _mm512_or_si512(differ[2], differ[3])));
    return (uint8_t)((all >> KVMATTR_V) | (unlike >> KVMATTR_F));
}

KVMATTR_AVX512 static int kvmattr_apply_avx512(uint64_t *entries, size_t n, uint64_t keep, uint64_t toggle)
{
    const __m512i keeps = _mm512_set1_epi64((long long)keep), toggles = _mm512_set1_epi64((long long)toggle);
    const __m512i handle = _mm512_set1_epi64(0xffffffff), varying = _mm512_set1_epi64(0xff000000000000);
    unsigned idle = 0;
    for (size_t i = 0; i < n; i += 8) {
        __mmask8 some = n - i < 8 ? (__mmask8)((1u << (n - i)) - 1) : (__mmask8)0xff;
        __m512i entry = _mm512_maskz_loadu_epi64(some, entries + i);
        entry = _mm512_ternarylogic_epi64(entry, keeps, toggles, 0x6a);             /* (entry & keep) ^ toggle */
        _mm512_mask_storeu_epi64(entries + i, some, entry);
        idle |= _mm512_mask_testn_epi64_mask(_mm512_mask_test_epi64_mask(some, entry, handle), entry, varying);
    }
    return idle != 0;
}

/* Eight entries at a time: which of them match as a whole, which lead to a leaf of one bit whose ones or zeros match. */
KVMATTR_AVX512 static uint64_t kvmattr_count_avx512(const uintptr_t *bias, const uint64_t *entries, uint8_t k,
                                                  uint8_t x, uint8_t want, uint8_t mask, uint64_t *left)
{
    const __m512i keep = _mm512_set1_epi64(k), masked = _mm512_set1_epi64(mask), low = _mm512_set1_epi64(0xff);
    const __m512i toggle = _mm512_set1_epi64((uint8_t)(x ^ want)), line = _mm512_set1_epi64(KVMATTR_LINE);
    const __m512i wider = _mm512_set1_epi64(3);
    __m512i ones = _mm512_setzero_si512(), zeros = _mm512_setzero_si512();
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++)
        left[i] = 0;
    for (int i = 0; i < 512; i += 8) {
        __m512i entry = _mm512_loadu_si512(entries + i);
        __m512i first = _mm512_xor_si512(_mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_F), keep), toggle);
        __m512i varying = _mm512_and_si512(_mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_V), keep), masked);
        __mmask8 mixed = _mm512_test_epi64_mask(varying, low);
        __mmask8 differ = _mm512_test_epi64_mask(first, masked);
        sum += 512 * (unsigned)__builtin_popcount((uint8_t)(~mixed & ~differ));
        __mmask8 lines = _mm512_mask_test_epi64_mask(mixed, entry, line);
        __mmask8 wide = _mm512_mask_test_epi64_mask(mixed & ~lines, entry, wider);
        left[i >> 6] |= (uint64_t)lines << (i & 63);
        __m512i zero = _mm512_xor_si512(_mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_X), keep), toggle);
        __m512i one = _mm512_xor_si512(zero, _mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_K), keep));
        __mmask8 bitmaps = mixed & ~lines & ~wide;
        /* Masked bits vary, so at most one of the two values matches. */
        __mmask8 where_one = bitmaps & _mm512_testn_epi64_mask(one, masked);
        __mmask8 where_zero = bitmaps & _mm512_testn_epi64_mask(zero, masked);
        if (i + 24 < 512)
            for (unsigned j = 0; j < 8; j++)
                kvmattr_prefetch(kvmattr_words(bias, (uint32_t)entries[i + 24 + j] & ~(uint32_t)KVMATTR_TAG));
        for (unsigned some = where_one; some; some &= some - 1) {
            const uint64_t *words = kvmattr_words(bias, (uint32_t)entries[i + __builtin_ctz(some)]);
            ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(_mm512_loadu_si512(words)));
        }
        for (unsigned some = where_zero; some; some &= some - 1) {
            const uint64_t *words = kvmattr_words(bias, (uint32_t)entries[i + __builtin_ctz(some)]);
            zeros = _mm512_add_epi64(zeros, _mm512_popcnt_epi64(_mm512_loadu_si512(words)));
        }
        sum += 512 * (unsigned)__builtin_popcount(where_zero);
        for (unsigned some = wide; some; some &= some - 1)
            sum += kvmattr_count_leaf_avx512(bias, entries[i + __builtin_ctz(some)], k, x, want, mask);
    }
    return sum + (uint64_t)_mm512_reduce_add_epi64(ones) - (uint64_t)_mm512_reduce_add_epi64(zeros);
}

/* ---- leaves of a node ---- */

KVMATTR_AVX512 static int kvmattr_list_changes_avx512(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k,
                                                      uint8_t x, uint64_t base, kvmattr_change_list *list)
{
    const __m512i words_begin = _mm512_set_epi64(448, 384, 320, 256, 192, 128, 64, 0);
    int count = 0, i;
    uint8_t value = list->value;
    for (i = 0; i < n && i < KVMATTR_LISTED_BLOCKS; i++, base += KVMATTR_BLOCK) {
        uint64_t entry = entries[i];
        if (i + 12 < n)
            kvmattr_prefetch(kvmattr_words(bias, (uint32_t)entries[i + 12]));
        uint8_t both = (uint8_t)(entry >> KVMATTR_V) & k, first = (uint8_t)(((entry >> KVMATTR_F) & k) ^ x);
        if (both && (entry & KVMATTR_TAG))
            break;
        const uint64_t *words = kvmattr_words(bias, both ? (uint32_t)entry : 0);
        int enters = first != value;    /* the block's first page differs from the page before it */
        __m512i bits = _mm512_loadu_si512(words);
        __m512i zero = _mm512_and_si512(_mm512_set1_epi64((long long)words[0]), _mm512_set1_epi64(1));
        __m512i before = _mm512_srli_epi64(_mm512_alignr_epi64(bits, _mm512_slli_epi64(zero, 63), 7), 63);
        __m512i changes = _mm512_xor_si512(bits, _mm512_or_si512(_mm512_slli_epi64(bits, 1), before));
        changes = _mm512_or_si512(changes, _mm512_zextsi128_si512(_mm_cvtsi32_si128(enters)));
        __mmask8 some = _mm512_test_epi64_mask(changes, changes);
        __mmask8 leaves_first = _mm512_cmpeq_epi64_mask(before, zero) & (__mmask8)~enters;
        __m512i values = _mm512_mask_blend_epi64(leaves_first, _mm512_set1_epi64(first | both << 8),
                                                 _mm512_set1_epi64((first ^ both) | both << 8));
        __m512i gfn = _mm512_add_epi64(words_begin, _mm512_set1_epi64((long long)base));
        /* Into a register, then to memory: a compressing store is microcode on Zen 4. */
        _mm512_storeu_si512(list->bits + count, _mm512_maskz_compress_epi64(some, changes));
        _mm512_storeu_si512(list->gfn + count, _mm512_maskz_compress_epi64(some, gfn));
        _mm512_storeu_si512(list->values + count, _mm512_maskz_compress_epi64(some, values));
        count += __builtin_popcount(some);
        value = words[7] >> 63 == (words[0] & 1) ? first : first ^ both;
    }
    list->count = count;
    list->value = value;
    return i;
}

KVMATTR_NODES(avx512, KVMATTR_AVX512)

/* Bits [from, upto) of 64, where upto is at most 64. */
KVMATTR_AVX512 static inline uint64_t kvmattr_bits_avx512(unsigned from, unsigned upto)
{
    return _bzhi_u64(~(uint64_t)0, upto) & ~_bzhi_u64(~(uint64_t)0, from);
}

/* No step depends on where in the list the change is, or on how much follows it: how a copy of so many bytes is made is
 * foreseen wrongly most times. */
KVMATTR_AVX512 static void kvmattr_splice_avx512(const kvmattr_splice *splice, size_t count, const uint64_t *starts,
                                                 const uint8_t *values, uint64_t *to_starts, uint8_t *to_values)
{
    unsigned at = (unsigned)splice->at, added = (unsigned)splice->added;
    int by = splice->added - splice->gone, last = (int)count + by - 2;
    unsigned now = (unsigned)((int)count + by);
    /* Those before the change, and over them those after it, of which bit i is that of value i and, turned, of start i. */
    uint64_t before = kvmattr_bits_avx512(0, at), behind = kvmattr_bits_avx512(at + added, now);
    __m512i all = _mm512_mask_loadu_epi8(_mm512_maskz_loadu_epi8(before, values), behind, values - by);
    uint64_t moved = behind >> 1, front = to_starts == starts ? 0 : before >> 1;
    /* What moves up within a list is moved from its end, what moves down from its beginning. */
    int step = by > 0 ? -8 : 8;
    for (int i = by > 0 ? last & ~7 : 0; i >= 0 && i <= last; i += step) {
        __mmask8 these = (__mmask8)(moved >> i), those = (__mmask8)(front >> i);
        __m512i some = _mm512_maskz_loadu_epi64(those, starts + i);
        _mm512_mask_storeu_epi64(to_starts + i, these | those, _mm512_mask_loadu_epi64(some, these, starts + i - by));
    }
    _mm512_mask_storeu_epi8(to_values, kvmattr_bits_avx512(0, now), all);
    for (unsigned i = 0; i < added; i++) {
        to_starts[at - 1 + i] = splice->starts[i];
        to_values[at + i] = splice->values[i];
    }
}

static const kvmattr_kernels kvmattr_avx512 = {
    "avx512", kvmattr_expand_avx512, kvmattr_spread_avx512, kvmattr_pack_avx512, kvmattr_affine_avx512, kvmattr_match_avx512,
    kvmattr_changes_avx512, kvmattr_relate_avx512, kvmattr_summary_avx512, kvmattr_apply_avx512,
    kvmattr_pages_avx512, kvmattr_edges_avx512, kvmattr_list_changes_avx512, kvmattr_count_avx512,
    kvmattr_popcount_avx512, kvmattr_largest_avx512, kvmattr_locate_avx512, kvmattr_lost_avx512,
    kvmattr_take_avx512,
    kvmattr_read_off_avx512, kvmattr_find_avx512, kvmattr_splice_avx512,
};

#endif /* KVMATTR_KERNELS_AVX512_H */
