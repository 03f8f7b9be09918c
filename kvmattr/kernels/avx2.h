/* The kernels that AVX2 does better than the compiler by itself. Included by choose.h. */
#ifndef KVMATTR_KERNELS_AVX2_H
#define KVMATTR_KERNELS_AVX2_H

#include <immintrin.h>

#include "plain.h"

#define KVMATTR_AVX2 __attribute__((target("avx2,popcnt,bmi,bmi2")))

KVMATTR_PLAIN(avx2, KVMATTR_AVX2)

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

KVMATTR_AVX2 static void kvmattr_changes_avx2(const uint8_t *block, uint64_t *bits)
{
    for (int i = 0; i < 8; i++) {
        uint64_t word = 0;
        for (int half = 0; half < 2; half++) {
            const uint8_t *at = block + 64 * i + 32 * half;
            __m256i cells = _mm256_loadu_si256((const __m256i *)at), before;
            if (at > block)
                before = _mm256_loadu_si256((const __m256i *)(at - 1));
            else        /* the first page is compared with itself */
                before = _mm256_alignr_epi8(cells, _mm256_inserti128_si256(_mm256_set1_epi8((char)block[0]),
                                                                           _mm256_castsi256_si128(cells), 1), 15);
            uint32_t equal = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(cells, before));
            word |= (uint64_t)(uint32_t)~equal << (32 * half);
        }
        bits[i] = word;
    }
}

/* A byte with four fields is put into four cells, of which two are shifted and each is masked so that its low four bits
 * tell its field: one look-up gives the page. */
KVMATTR_AVX2 static void kvmattr_spread_twos_avx2(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    const __m256i byte_of = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
                                             4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
    const __m128i raw = _mm_setr_epi8(0, 0x55, (char)0xaa, (char)0xff, 0x55, 0, 0, 0, (char)0xaa, 0, 0, 0, (char)0xff, 0, 0, 0);
    const __m256i pages = _mm256_broadcastsi128_si256(
        _mm_xor_si128(_mm_and_si128(raw, _mm_set1_epi8((char)k)), _mm_set1_epi8((char)x)));
    for (int i = 0; i < KVMATTR_BLOCK / 32; i++) {
        __m256i four = _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)kvmattr_load64(cells + 8 * i)), byte_of);
        __m256i field = _mm256_blend_epi16(four, _mm256_srli_epi16(four, 4), 0xaa);
        field = _mm256_and_si256(field, _mm256_set1_epi16(0x0c03));
        _mm256_storeu_si256((__m256i *)(out + 32 * i), _mm256_shuffle_epi8(pages, field));
    }
}

/* A byte with two fields is put into two cells. */
KVMATTR_AVX2 static void kvmattr_spread_fours_avx2(const uint8_t *cells, uint8_t k, uint8_t x, uint8_t *out)
{
    const __m128i raw = _mm_setr_epi8(0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, (char)0x88, (char)0x99, (char)0xaa,
                                      (char)0xbb, (char)0xcc, (char)0xdd, (char)0xee, (char)0xff);
    const __m256i pages = _mm256_broadcastsi128_si256(
        _mm_xor_si128(_mm_and_si128(raw, _mm_set1_epi8((char)k)), _mm_set1_epi8((char)x)));
    for (int i = 0; i < KVMATTR_BLOCK / 32; i++) {
        __m256i two = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(cells + 16 * i)));
        __m256i field = _mm256_and_si256(_mm256_or_si256(two, _mm256_slli_epi16(two, 4)), _mm256_set1_epi16(0x0f0f));
        _mm256_storeu_si256((__m256i *)(out + 32 * i), _mm256_shuffle_epi8(pages, field));
    }
}

KVMATTR_SPREAD_LINE(avx2, KVMATTR_AVX2)
KVMATTR_FIELDS(avx2, KVMATTR_AVX2)
KVMATTR_SUMS(avx2, KVMATTR_AVX2)
KVMATTR_CHANGES(avx2, KVMATTR_AVX2)
KVMATTR_NODES(avx2, KVMATTR_AVX2)

/* The run of a page: all starts but those that are greater. Behind the last of them are zeros. */
KVMATTR_AVX2 static inline uint8_t kvmattr_line_raw_avx2(const kvmattr_line *line, uint32_t page)
{
    const __m256i reached = _mm256_set1_epi16((short)page);
    __m256i first = _mm256_cmpgt_epi16(_mm256_load_si256((const __m256i *)line->starts), reached);
    __m256i last = _mm256_zextsi128_si256(_mm_loadl_epi64((const __m128i *)(line->starts + 16)));
    __m256i greater = _mm256_packs_epi16(first, _mm256_cmpgt_epi16(last, reached));     /* a byte for each */
    return line->values[KVMATTR_LINE_STARTS - __builtin_popcount((unsigned)_mm256_movemask_epi8(greater))];
}

KVMATTR_FEW_LINES(avx2, KVMATTR_AVX2, kvmattr_line_raw_avx2)

KVMATTR_AVX2 static uint64_t kvmattr_in_block_avx2(const uint64_t *gfns, int n, uint64_t gfn)
{
    const __m256i block = _mm256_set1_epi64x((long long)(gfn >> 9));
    uint64_t which = 0;
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        __m256i blocks = _mm256_srli_epi64(_mm256_loadu_si256((const __m256i *)(gfns + i)), 9);
        which |= (uint64_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(blocks, block))) << i;
    }
    for (; i < n; i++)
        which |= (uint64_t)(gfns[i] >> 9 == gfn >> 9) << i;
    return which;
}

/* Four-lane gathers are no faster than the plain walks (measured), so these stay. */
KVMATTR_WALKS(avx2, KVMATTR_AVX2)
KVMATTR_READ_OFF(avx2, KVMATTR_AVX2)

/* Bytes turned within four words, by so many of them. */
KVMATTR_AVX2 static inline __m256i kvmattr_turned_words_avx2(__m256i words, int bytes)
{
    const __m256i place = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                                           0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i in_word = _mm256_set1_epi8(7);
    __m256i from = _mm256_and_si256(_mm256_add_epi8(place, _mm256_set1_epi8((char)bytes)), in_word);
    return _mm256_shuffle_epi8(words, _mm256_or_si256(from, _mm256_andnot_si256(in_word, place)));
}

/* Words of four pages at a time. */
KVMATTR_AVX2 static uint64_t kvmattr_agree_avx2(const kvmattr_located *located, int from, int n)
{
    const __m256i one = _mm256_set1_epi64x(1), bits = _mm256_set1_epi64x(64), none = _mm256_setzero_si256();
    uint64_t agree = 0;
    for (int i = from & ~3; i < n; i += 4) {
        __m256i differ = _mm256_loadu_si256((const __m256i *)(located->keep + i));
        __m256i word = _mm256_loadu_si256((const __m256i *)(located->toggle + i));
        __m256i by = _mm256_sllv_epi64(one, _mm256_loadu_si256((const __m256i *)(located->wide + i)));
        __m256i turned = _mm256_or_si256(_mm256_srlv_epi64(word, by),
                                         _mm256_sllv_epi64(word, _mm256_sub_epi64(bits, by)));
        __m256i any = _mm256_xor_si256(word, turned);
        any = _mm256_or_si256(any, _mm256_shuffle_epi32(any, 0xb1));
        any = _mm256_or_si256(any, kvmattr_turned_words_avx2(any, 2));
        any = _mm256_or_si256(any, kvmattr_turned_words_avx2(any, 1));
        any = _mm256_cmpeq_epi64(_mm256_and_si256(any, differ), none);
        any = _mm256_andnot_si256(_mm256_cmpeq_epi64(differ, none), any);
        agree |= (uint64_t)_mm256_movemask_pd(_mm256_castsi256_pd(any)) << i;
    }
    agree = n > from ? agree >> from << from & ~(uint64_t)0 >> (KVMATTR_LOCATED - n) : 0;
    return agree ? kvmattr_agree_in_leaves(located, agree) : 0;
}

static const kvmattr_kernels kvmattr_avx2 = {
    "avx2", kvmattr_expand_avx2, kvmattr_spread_avx2, kvmattr_pack_avx2, kvmattr_affine_avx2, kvmattr_match_avx2,
    kvmattr_changes_avx2, kvmattr_relate_avx2, kvmattr_summary_avx2, kvmattr_apply_avx2,
    kvmattr_pages_avx2, kvmattr_edges_avx2, kvmattr_list_changes_avx2, kvmattr_count_avx2,
    kvmattr_popcount_avx2, kvmattr_largest_avx2, kvmattr_in_block_avx2, kvmattr_locate_avx2, kvmattr_agree_avx2,
    kvmattr_take_avx2, kvmattr_read_off_avx2, kvmattr_find_portable, kvmattr_splice_portable,
    kvmattr_list_put_portable,
};

#endif /* KVMATTR_KERNELS_AVX2_H */
