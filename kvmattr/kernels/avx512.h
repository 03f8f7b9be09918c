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

/* As with AVX2. */
KVMATTR_AVX512 static void kvmattr_spread_twos_avx512(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    const __m512i byte_of = _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                                             0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                                             0x03030303, 0x02020202, 0x01010101, 0x00000000);
    const __m512i by = _mm512_set1_epi32(4 << 16), field = _mm512_set1_epi16(0x0c03);
    const __m128i raw = _mm_setr_epi8(0, 0x55, (char)0xaa, (char)0xff, 0x55, 0, 0, 0, (char)0xaa, 0, 0, 0, (char)0xff, 0, 0, 0);
    const __m512i pages = _mm512_broadcast_i32x4(
        _mm_xor_si128(_mm_and_si128(raw, _mm_set1_epi8((char)k)), _mm_set1_epi8((char)x)));
    for (int i = 0; i < KVMATTR_BLOCK / 64; i++) {
        __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(cells + 16 * i)));
        four = _mm512_srlv_epi16(_mm512_shuffle_epi8(four, byte_of), by);
        _mm512_storeu_si512(out + 64 * i, _mm512_shuffle_epi8(pages, _mm512_and_si512(four, field)));
    }
}

KVMATTR_AVX512 static void kvmattr_spread_fours_avx512(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    const __m512i field = _mm512_set1_epi8(0x0f);
    const __m128i raw = _mm_setr_epi8(0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, (char)0x88, (char)0x99, (char)0xaa,
                                      (char)0xbb, (char)0xcc, (char)0xdd, (char)0xee, (char)0xff);
    const __m512i pages = _mm512_broadcast_i32x4(
        _mm_xor_si128(_mm_and_si128(raw, _mm_set1_epi8((char)k)), _mm_set1_epi8((char)x)));
    for (int i = 0; i < KVMATTR_BLOCK / 64; i++) {
        __m512i two = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(cells + 32 * i)));
        two = _mm512_ternarylogic_epi64(two, _mm512_slli_epi16(two, 4), field, 0xa8);      /* (a | b) & c */
        _mm512_storeu_si512(out + 64 * i, _mm512_shuffle_epi8(pages, two));
    }
}

/* The value that each 64 pages begin with, and then over it, from its start on, each run that begins among them: how far a
 * run goes is foreseen wrongly most times. */
KVMATTR_AVX512 static void kvmattr_spread_line_avx512(const kvmattr_line *line, uint8_t k, uint8_t x, uint8_t *out)
{
    uint8_t values[32] __attribute__((aligned(32)));
    const __mmask32 starts = (1u << KVMATTR_LINE_STARTS) - 1;
    __m512i all = _mm512_load_si512(line);
    __m256i raw = _mm256_loadu_si256((const __m256i *)((const uint8_t *)line + 32));
    raw = _mm256_xor_si256(_mm256_and_si256(raw, _mm256_set1_epi8((char)k)), _mm256_set1_epi8((char)x));
    _mm256_store_si256((__m256i *)values, raw);
    for (int i = 0; i < KVMATTR_BLOCK / 64; i++) {
        int run = __builtin_popcount(_mm512_mask_cmple_epi16_mask(starts, all, _mm512_set1_epi16((short)(64 * i))));
        _mm512_storeu_si512(out + 64 * i, _mm512_set1_epi8((char)values[8 + run]));
    }
    for (int i = 0; i + 1 < line->count; i++) {
        unsigned start = (unsigned)line->starts[i];
        uint8_t *at = out + (start & ~63u);
        _mm512_storeu_si512(at, _mm512_mask_mov_epi8(_mm512_loadu_si512(at), ~(__mmask64)0 << (start & 63),
                                                     _mm512_set1_epi8((char)values[9 + i])));
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

KVMATTR_AVX512 static uint64_t kvmattr_in_block_avx512(const uint64_t *gfns, int n, uint64_t gfn)
{
    const __m512i page = _mm512_set1_epi64((long long)gfn), size = _mm512_set1_epi64(KVMATTR_BLOCK);
    uint64_t which = 0;
    for (int i = 0; i < n; i += 8) {
        __m512i some = _mm512_maskz_loadu_epi64((__mmask8)(n - i < 8 ? (1u << (n - i)) - 1 : 0xff), gfns + i);
        which |= (uint64_t)_mm512_cmplt_epu64_mask(_mm512_xor_si512(some, page), size) << i;
    }
    return n < 64 ? which & (((uint64_t)1 << n) - 1) : which;
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

/* Adds the pages of a run line whose raw values match. Each start counts for the run before it and against the run after it,
 * and where there is none, and after the last, the block's end does. */
KVMATTR_AVX512 static inline __m512i kvmattr_line_matches_avx512(__m512i sum, const uint64_t *words, uint8_t want, uint8_t mask)
{
    const __m512i end = _mm512_set1_epi16(KVMATTR_BLOCK), add = _mm512_set1_epi16(1), take = _mm512_set1_epi16(-1);
    const unsigned last = 1u << KVMATTR_LINE_STARTS;
    __m512i line = _mm512_load_si512(words);
    __m512i starts = _mm512_min_epi16(_mm512_mask_mov_epi16(line, last, end), end);
    /* The values begin at the eighth byte of this half. */
    __m256i values = _mm256_and_si256(_mm512_extracti64x4_epi64(line, 1), _mm256_set1_epi8((char)mask));
    unsigned match = _mm256_cmpeq_epi8_mask(values, _mm256_set1_epi8((char)want)) >> 8 & (2 * last - 1);
    __m512i sign = _mm512_maskz_mov_epi16(match & ~(match >> 1), add);
    sign = _mm512_mask_mov_epi16(sign, ~match & match >> 1, take);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(starts, sign));
}

/* Adds the fields of a leaf of two, four or eight bits a page that differ, in bits of `mask`, from `want`. With each line of
 * the cache one is asked for of a leaf that comes later, whose first has been asked for: leaves that lie in no order take a
 * third of the time then, and those in order no longer, where requests for whole leaves in a burst took twice as long. */
KVMATTR_AVX512 static inline __attribute__((always_inline)) __m512i kvmattr_others_avx512(
    __m512i sum, const uint64_t *words, int wide, uint8_t want, uint8_t mask, const uint64_t *later)
{
    const __m512i wanted = _mm512_set1_epi8((char)want), masked = _mm512_set1_epi8((char)mask);
    const __m512i lowest = _mm512_set1_epi8(wide == 1 ? 0x55 : wide == 2 ? 0x11 : 0x01);
    for (int i = 0; i < 1 << wide; i++) {
        __m512i differ = _mm512_ternarylogic_epi64(_mm512_load_si512(words + 8 * i), wanted, masked, 0x28);
        __m512i some = differ;
        if (i)
            kvmattr_prefetch_soon(later + 8 * i);
        if (wide > 2)
            some = _mm512_or_si512(some, _mm512_srli_epi64(some, 4));
        if (wide > 1)
            some = _mm512_or_si512(some, _mm512_srli_epi64(some, 2));
        some = _mm512_ternarylogic_epi64(some, _mm512_srli_epi64(some, 1), lowest, 0xa8);   /* (a | b) & c */
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(some));
    }
    return sum;
}

/* Eight entries at a time: which of them match as a whole, which lead to a leaf of one bit whose ones or zeros match. */
KVMATTR_AVX512 static uint64_t kvmattr_count_avx512(const uintptr_t *bias, const uint64_t *entries, uint8_t k,
                                                  uint8_t x, uint8_t want, uint8_t mask)
{
    const __m512i keep = _mm512_set1_epi64(k), masked = _mm512_set1_epi64(mask), low = _mm512_set1_epi64(0xff);
    const __m512i toggle = _mm512_set1_epi64((uint8_t)(x ^ want)), tag = _mm512_set1_epi64(KVMATTR_TAG);
    __m512i ones = _mm512_setzero_si512(), zeros = ones, in_lines = ones;
    uint64_t sum = 0;
    for (int i = 0; i < 512; i += 8) {
        __m512i entry = _mm512_loadu_si512(entries + i);
        __m512i first = _mm512_xor_si512(_mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_F), keep), toggle);
        __m512i varying = _mm512_and_si512(_mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_V), keep), masked);
        __mmask8 mixed = _mm512_test_epi64_mask(varying, low);
        __mmask8 differ = _mm512_test_epi64_mask(first, masked);
        sum += 512 * (unsigned)__builtin_popcount((uint8_t)(~mixed & ~differ));
        __mmask8 others = _mm512_mask_test_epi64_mask(mixed, entry, tag);
        __m512i zero = _mm512_xor_si512(_mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_X), keep), toggle);
        __m512i one = _mm512_xor_si512(zero, _mm512_and_si512(_mm512_srli_epi64(entry, KVMATTR_K), keep));
        __mmask8 bitmaps = mixed & ~others;
        /* Masked bits vary, so at most one of the two values matches. */
        __mmask8 where_one = bitmaps & _mm512_testn_epi64_mask(one, masked);
        __mmask8 where_zero = bitmaps & _mm512_testn_epi64_mask(zero, masked);
        if (i + 48 < 512)
            for (unsigned j = 0; j < 8; j++)
                kvmattr_prefetch_soon(kvmattr_words(bias, (uint32_t)entries[i + 48 + j]));
        if (where_one == 0xff) {                /* most often, where pages have two values */
            for (unsigned j = 0; j < 8; j++)
                ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(
                    _mm512_load_si512(kvmattr_words(bias, (uint32_t)entries[i + j]))));
            continue;
        }
        for (unsigned some = where_one; some; some &= some - 1) {
            const uint64_t *words = kvmattr_words(bias, (uint32_t)entries[i + __builtin_ctz(some)]);
            ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(_mm512_loadu_si512(words)));
        }
        for (unsigned some = where_zero; some; some &= some - 1) {
            const uint64_t *words = kvmattr_words(bias, (uint32_t)entries[i + __builtin_ctz(some)]);
            zeros = _mm512_add_epi64(zeros, _mm512_popcnt_epi64(_mm512_loadu_si512(words)));
        }
        sum += 512 * (unsigned)__builtin_popcount(where_zero);
        for (unsigned some = others; some; some &= some - 1) {
            unsigned at = (unsigned)i + (unsigned)__builtin_ctz(some);
            uint64_t leaf = entries[at];
            const uint64_t *words = kvmattr_words(bias, (uint32_t)leaf & ~(uint32_t)KVMATTR_TAG);
            uint8_t both = (uint8_t)(leaf >> KVMATTR_K) & k & mask;
            uint8_t wanted = (uint8_t)(((leaf >> KVMATTR_X) & k) ^ x ^ want) & mask;
            int wide = (int)(leaf & 3);
            if (leaf & KVMATTR_LINE) {
                in_lines = kvmattr_line_matches_avx512(in_lines, words, wanted, both);
                continue;
            }
            uint8_t fields = kvmattr_fold(wide, wanted), seen = kvmattr_fold(wide, both);
            if ((fields & both) != wanted)
                continue;
            const uint64_t *later = kvmattr_words(bias, (uint32_t)entries[at + 40 < 512 ? at + 40 : at]);
            sum += 512;
            if (wide == 1)
                zeros = kvmattr_others_avx512(zeros, words, 1, fields, seen, later);
            else if (wide == 2)
                zeros = kvmattr_others_avx512(zeros, words, 2, fields, seen, later);
            else
                zeros = kvmattr_others_avx512(zeros, words, 3, fields, seen, later);
        }
    }
    return sum + (uint64_t)(_mm512_reduce_add_epi64(ones) - _mm512_reduce_add_epi64(zeros)) +
           (uint64_t)(int64_t)_mm512_reduce_add_epi32(in_lines);
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

/* Lists: nothing here is a branch that depends on where in a list the page or the change is, and only one depends on how
 * long the list is. What is foreseen wrongly waits for the list, and what comes after it cannot begin meanwhile; vectors
 * that the list does not reach are looked at in less time. */
enum { KVMATTR_FEW_VECTORS = 3, KVMATTR_LIST_VECTORS = KVMATTR_LIST_RUNS / 8, KVMATTR_FEW_RUNS = 8 * KVMATTR_FEW_VECTORS };

/* The starts of a list of so many runs. */
KVMATTR_AVX512 static inline void kvmattr_starts_load(__m512i *some, const uint64_t *starts, unsigned count, int vectors)
{
    const uint64_t valid = kvmattr_bits_avx512(1, count);
    for (int i = 0; i < vectors; i++)
        some[i] = _mm512_maskz_loadu_epi64((__mmask8)(valid >> (8 * i + 1)), starts + 8 * i);
}

KVMATTR_AVX512 static inline unsigned kvmattr_starts_among(const __m512i *some, unsigned count, uint64_t page, int vectors)
{
    const __m512i wanted = _mm512_set1_epi64((long long)page);
    uint64_t below = 0;
    for (int i = 0; i < vectors; i++)
        below |= (uint64_t)_mm512_cmple_epu64_mask(some[i], wanted) << 8 * i;
    return (unsigned)_mm_popcnt_u64(below & kvmattr_bits_avx512(0, count - 1));
}

/* All is read before any is written, as the two places may be one. Returns the values as they are then. */
KVMATTR_AVX512 static inline __m512i kvmattr_splice_among(const kvmattr_splice *splice, unsigned count, const __m512i *some,
                                                          const uint64_t *starts, const uint8_t *values, uint64_t *to_starts,
                                                          uint8_t *to_values, int vectors)
{
    const unsigned at = (unsigned)splice->at, added = (unsigned)splice->added, odd = at & 1;
    const int by = splice->added - splice->gone;
    const unsigned now = (unsigned)((int)count + by);
    /* Those after the change, and those that come, of which bit i is that of value i and, turned, of start i. */
    const uint64_t behind = kvmattr_bits_avx512(at + added, now), come = kvmattr_bits_avx512(at, at + added);
    const uint64_t valid = kvmattr_bits_avx512(0, now);
    /* The two that come, in turns, so that each stands where it may have to. */
    const __m512i values_come = _mm512_set1_epi16((short)(splice->values[odd] | splice->values[odd ^ 1] << 8));
    const __m512i starts_come = _mm512_broadcast_i64x2(
        _mm_set_epi64x((long long)splice->starts[odd], (long long)splice->starts[odd ^ 1]));
    __m512i all = _mm512_maskz_loadu_epi8(kvmattr_bits_avx512(0, at), values), spliced[KVMATTR_LIST_VECTORS];
    all = _mm512_mask_loadu_epi8(all, behind, values - by);
    all = _mm512_mask_mov_epi8(all, come, values_come);
    for (int i = 0; i < vectors; i++) {
        spliced[i] = _mm512_mask_loadu_epi64(some[i], (__mmask8)(behind >> (8 * i + 1)), starts + 8 * i - by);
        spliced[i] = _mm512_mask_mov_epi64(spliced[i], (__mmask8)(come >> (8 * i + 1)), starts_come);
    }
    for (int i = 0; i < vectors; i++)
        _mm512_mask_storeu_epi64(to_starts + 8 * i, (__mmask8)(valid >> (8 * i + 1)), spliced[i]);
    _mm512_mask_storeu_epi8(to_values, valid, all);
    return all;
}

KVMATTR_AVX512 static inline unsigned kvmattr_find_by(const uint64_t *starts, unsigned count, uint64_t page, int vectors)
{
    __m512i some[KVMATTR_LIST_VECTORS];
    kvmattr_starts_load(some, starts, count + 1, vectors);
    return kvmattr_starts_among(some, count + 1, page, vectors);
}

KVMATTR_AVX512 static unsigned kvmattr_find_avx512(const uint64_t *starts, unsigned count, uint64_t page)
{
    return count <= KVMATTR_FEW_RUNS ? kvmattr_find_by(starts, count, page, KVMATTR_FEW_VECTORS)
                                     : kvmattr_find_by(starts, count, page, KVMATTR_LIST_VECTORS);
}

KVMATTR_AVX512 static inline void kvmattr_splice_by(const kvmattr_splice *splice, unsigned count, const uint64_t *starts,
                                                    const uint8_t *values, uint64_t *to_starts, uint8_t *to_values,
                                                    int vectors)
{
    __m512i some[KVMATTR_LIST_VECTORS];
    kvmattr_starts_load(some, starts, count, vectors);
    kvmattr_splice_among(splice, count, some, starts, values, to_starts, to_values, vectors);
}

KVMATTR_AVX512 static void kvmattr_splice_avx512(const kvmattr_splice *splice, size_t count, const uint64_t *starts,
                                                 const uint8_t *values, uint64_t *to_starts, uint8_t *to_values)
{
    if (count + (unsigned)splice->added <= KVMATTR_FEW_RUNS)
        kvmattr_splice_by(splice, (unsigned)count, starts, values, to_starts, to_values, KVMATTR_FEW_VECTORS);
    else
        kvmattr_splice_by(splice, (unsigned)count, starts, values, to_starts, to_values, KVMATTR_LIST_VECTORS);
}

KVMATTR_AVX512 static inline unsigned kvmattr_list_put_by(kvmattr_list *list, unsigned count, uint64_t page, uint64_t span,
                                                          uint8_t k, uint8_t x, unsigned most, int vectors)
{
    __m512i some[KVMATTR_LIST_VECTORS];
    uint64_t *starts = list->starts;
    for (int i = 0; i < vectors; i++)
        some[i] = _mm512_loadu_si512(starts + 8 * i);
    const unsigned run = kvmattr_starts_among(some, count, page, vectors);
    const uint8_t *values = kvmattr_list_values(list, (int)count);
    const uint8_t old = values[run], value = (uint8_t)((old & k) ^ x);
    if (value == old)
        return 0;
    const kvmattr_page_splice change = kvmattr_splice_page(list, count, run, page, span, value);
    const unsigned now = count + change.added - change.gone, at = change.at, odd = at & 1;
    const ptrdiff_t by = (ptrdiff_t)now - (ptrdiff_t)count;
    if (now > most)
        return KVMATTR_LIST_FULL;
    /* As in a splice; what comes is the page and what follows it, or that alone, in turns. */
    const uint64_t valid = kvmattr_bits_avx512(0, now), here = kvmattr_bits_avx512(0, at);
    const uint64_t upto = kvmattr_bits_avx512(0, at + change.added), behind = valid & ~upto, come = upto & ~here;
    const unsigned pair = (change.comes ? value : old) * 0x10001u | old * 0x1000100u, later = change.comes ^ 1;
    __m512i all = _mm512_maskz_loadu_epi8(here, values);
    all = _mm512_mask_loadu_epi8(all, behind, values - by);
    all = _mm512_mask_mov_epi8(all, come, _mm512_set1_epi16((short)(pair >> 8 * odd)));
    const __m512i starts_come = _mm512_broadcast_i64x2(
        _mm_set_epi64x((long long)(page + (odd | later)), (long long)(page + ((odd ^ 1) | later))));
    const uint64_t *moved = starts - by;
    for (int i = 0; i < vectors; i++) {
        some[i] = _mm512_mask_loadu_epi64(some[i], (__mmask8)(behind >> (8 * i + 1)), moved + 8 * i);
        some[i] = _mm512_mask_mov_epi64(some[i], (__mmask8)(come >> (8 * i + 1)), starts_come);
    }
    for (int i = 0; i < vectors; i++)
        _mm512_mask_storeu_epi64(starts + 8 * i, (__mmask8)(valid >> (8 * i + 1)), some[i]);
    _mm512_mask_storeu_epi8(starts + now - 1, valid, all);
    list->count = (uint16_t)now;
    const unsigned lost = _mm512_mask_cmpeq_epi8_mask(valid, all, _mm512_set1_epi8((char)old)) == 0;
    return (unsigned)(old ^ value) | (unsigned)value << 8 | lost * KVMATTR_LIST_LOST;
}

KVMATTR_AVX512 static unsigned kvmattr_list_put_avx512(kvmattr_list *list, uint64_t page, uint64_t span, uint8_t k, uint8_t x,
                                                       unsigned most)
{
    const unsigned count = list->count;
    return count <= KVMATTR_FEW_RUNS - 1 ? kvmattr_list_put_by(list, count, page, span, k, x, most, KVMATTR_FEW_VECTORS)
                                         : kvmattr_list_put_by(list, count, page, span, k, x, most, KVMATTR_LIST_VECTORS);
}

static const kvmattr_kernels kvmattr_avx512 = {
    "avx512", kvmattr_expand_avx512, kvmattr_spread_avx512, kvmattr_pack_avx512, kvmattr_affine_avx512, kvmattr_match_avx512,
    kvmattr_changes_avx512, kvmattr_relate_avx512, kvmattr_summary_avx512, kvmattr_apply_avx512,
    kvmattr_pages_avx512, kvmattr_edges_avx512, kvmattr_list_changes_avx512, kvmattr_count_avx512,
    kvmattr_popcount_avx512, kvmattr_largest_avx512, kvmattr_in_block_avx512, kvmattr_locate_avx512,
    kvmattr_agree_avx512, kvmattr_take_avx512, kvmattr_read_off_avx512, kvmattr_find_avx512, kvmattr_splice_avx512,
    kvmattr_list_put_avx512,
};

#endif /* KVMATTR_KERNELS_AVX512_H */
