/* Leaf and node kernels: what each does. There is one set for each instruction set: simd_plain.h has them in plain C,
 * simd_avx2.h and simd_avx512.h what intrinsics do better, simd.h chooses.
 *
 * Everything here is a pure function over memory that the caller owns or has pinned: no allocation,
 * no Python, no locks. The plain C versions are the meaning; the others must give the same bytes, and
 * the test suite runs under each set that the machine has (KVMATTR_SIMD=portable, avx2 or avx512).
 *
 * Words: a *block* is 512 pages, held as 512 bytes (one attribute byte a page) or as 8 words of bits;
 * an *entry* is the tree's 64-bit word, handle:32 | k:8 | x:8 | V:8 | F:8 from the low end up.
 */
#ifndef KVMATTR_KERNELS_H
#define KVMATTR_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define KVMATTR_BLOCK 512
#define KVMATTR_SEGMENTS 32
#define KVMATTR_SEGMENT_SHIFT 27 /* granules of 8 bytes in a handle below its segment number */

/* What a walk from a root needs to know. The gfns that it is handed are a private copy, a piece of what the caller gave:
 * `ahead` is the way from a gfn in the copy to what will stand there in the next piece, to be asked for early. `get` answers for one page by the slow road, `coded` reads one page of a
 * leaf that is no bitmap, as it is stored. */
typedef struct kvmattr_walk {
    const uintptr_t *bias;      /* address of granule g = bias[g >> 27] + 8 * g */
    uint64_t root;
    uint64_t span;              /* pages below the root entry; the pages after them have the value `rest` */
    int level;
    int nsegments;
    intptr_t ahead;
    uint8_t rest;
    uint8_t (*get)(const struct kvmattr_walk *walk, uint64_t gfn);
    uint8_t (*coded)(const struct kvmattr_walk *walk, uint32_t handle, uint32_t page);
} kvmattr_walk;

/* Gfns that are copied, checked and walked at a time: the copy stays in the first-level cache meanwhile, and what is to
 * be copied next is asked for during the walk. Otherwise each copy would begin by waiting for memory. */
enum { KVMATTR_TAKE_GROUP = 2048 };

/* Where pages differ from the page before them, as a list: of each 64 pages in which some do, the bits that say which,
 * the gfn of the first page, and the values: after the first difference (bits 0..7), and what every further one
 * toggles (bits 8..15). The arrays have room for a vector beyond the last word. */
enum { KVMATTR_LISTED_BLOCKS = 32, KVMATTR_LISTED_WORDS = 8 * KVMATTR_LISTED_BLOCKS };

typedef struct kvmattr_change_list {
    uint64_t bits[KVMATTR_LISTED_WORDS + 8];
    uint64_t gfn[KVMATTR_LISTED_WORDS + 8];
    uint64_t values[KVMATTR_LISTED_WORDS + 8];
    int count;
    uint8_t value;              /* of the page before the first; afterwards of the last page */
} kvmattr_change_list;

/* Pages about to be written, and how: word = (word & keep) ^ toggle is the new value of page i. Bits of `away`: pages
 * that a flip of a bit does not do. Their way leads through a pending operation or a run list, beyond the root or to
 * another leaf than a bitmap, then `where` is near its header; or the new value could be neither of the leaf's two; or
 * entries above the block know the page (`last`, and the first of a node of level 3). Bits of `firsts`: pages that are
 * the first of their block, which the block's own entry knows. */
enum { KVMATTR_LOCATED = 64 };

typedef struct kvmattr_located {
    uint64_t *where[KVMATTR_LOCATED];
    uint64_t keep[KVMATTR_LOCATED];
    uint64_t toggle[KVMATTR_LOCATED];
    uint64_t away, firsts;
} kvmattr_located;

typedef struct kvmattr_kernels {
    const char *name;
    /* out[i] = (bit i ? k : 0) ^ x, for the 512 bits of a bitmap leaf. */
    void (*expand)(const uint64_t *words, uint8_t k, uint8_t x, uint8_t *out);
    /* out[i] = values[bit i of plane 0 + 2 * bit i of plane 1], for the two planes of a palette leaf. */
    void (*palette)(const uint64_t *planes, const uint8_t *values, uint8_t *out);
    /* p[i] = (p[i] & k) ^ x. */
    void (*affine)(uint8_t *p, size_t n, uint8_t k, uint8_t x);
    /* bit i of bits = ((block[i] ^ want) & mask) == 0. */
    void (*match)(const uint8_t *block, uint8_t want, uint8_t mask, uint64_t *bits);
    /* Bit i of bits = (block[i] != block[i - 1]); bit 0 is 0. */
    void (*changes)(const uint8_t *block, uint64_t *bits);
    /* OR over the block of (block[i] ^ block[0]): the attribute bits that vary. */
    uint8_t (*varying)(const uint8_t *block);
    /* Bits that vary below a node: OR over its entries of V | (F ^ F of the first entry). */
    uint8_t (*summary)(const uint64_t *entries);
    /* entries[i] = (entries[i] & keep) ^ toggle; whether some entry now has a handle and V = 0. */
    int (*apply)(uint64_t *entries, size_t n, uint64_t keep, uint64_t toggle);
    /* The n blocks below entries of level 2, (page & k) ^ x of each page, to out[0 .. 512 n), but for entries that
     * lead to coded leaves: their bits are set in left[8]. */
    void (*pages)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint8_t *out,
                  uint64_t *left);
    /* How often a page of the n blocks below entries of level 2 differs from the page before it in its block, and
     * the first and last (page & k) ^ x of each block; of entries that lead to coded leaves nothing is counted and
     * their bits are set in left[8]. */
    uint64_t (*edges)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint8_t *first,
                      uint8_t *last, uint64_t *left);
    /* The same as a list, from gfn `base` on and the block's first page included: of up to KVMATTR_LISTED_BLOCKS blocks,
     * as far as the first entry that leads to a coded leaf. Returns how many blocks that were. */
    int (*list_changes)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint64_t base,
                        kvmattr_change_list *list);
    /* Pages below a node of level 3 with ((page & k) ^ x ^ want) & mask == 0, but for entries that lead to
     * coded leaves: their bits are set in left[8]. */
    uint64_t (*count)(const uintptr_t *bias, const uint64_t *entries, uint8_t k, uint8_t x, uint8_t want,
                      uint8_t mask, uint64_t *left);
    /* The number of set bits in n words. */
    uint64_t (*popcount)(const uint64_t *words, size_t n);
    /* The largest of n gfns: one pass that checks a batch before anything is done. */
    uint64_t (*largest)(const uint64_t *gfns, size_t n);
    /* Walk down to the n pages gfns[i], at most KVMATTR_LOCATED: what new = (old & k[i * step]) ^ x[i * step] does to
     * the bit of each (kvmattr_located). */
    void (*locate)(const kvmattr_walk *walk, const uint64_t *gfns, int n, const uint8_t *k, const uint8_t *x,
                   size_t step, uint64_t last, kvmattr_located *located);
    /* out[i] = the attributes of page gfns[i]; every gfn was checked. */
    void (*take)(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t n);
} kvmattr_kernels;

static inline uint64_t kvmattr_load64(const void *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

/* Where a handle's granule lies. */
static inline uint64_t *kvmattr_words(const uintptr_t *bias, uint32_t handle)
{
    return (uint64_t *)(bias[handle >> KVMATTR_SEGMENT_SHIFT] + 8 * (uintptr_t)handle);
}

/* The same for a walk of one page, which has nothing else to do while it waits: as long as handles lie in the first
 * segments, the address does not wait for a look-up of the bias that needs the handle. The empty assembly keeps the
 * compiler from making one look-up of it again. */
static inline uint64_t *kvmattr_foreseen(const uintptr_t *bias, uint32_t handle)
{
    uint32_t segment = handle >> KVMATTR_SEGMENT_SHIFT;
    uintptr_t base;
    if (__builtin_expect(segment == 2, 1)) {
        base = bias[2];
        __asm__("" : "+r"(base));
    } else if (segment == 1) {
        base = bias[1];
        __asm__("" : "+r"(base));
    } else {
        base = bias[segment];
        __asm__("" : "+r"(base));
    }
    return (uint64_t *)(base + 8 * (uintptr_t)handle);
}

static inline void kvmattr_prefetch(const void *p)
{
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
}

/* For what is needed a group of pages later: into the second-level cache. Where the first is asked to take so much, a
 * walk is slower by a third (Zen 4), in one process of two or three. */
static inline void kvmattr_prefetch_soon(const void *p)
{
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(p, 0, 2);
#else
    (void)p;
#endif
}

/* The gfns that will be copied to this place next; there need not be any. */
static inline void kvmattr_prefetch_gfns(const kvmattr_walk *walk, const uint64_t *gfns)
{
    kvmattr_prefetch_soon((const void *)((uintptr_t)gfns + (uintptr_t)walk->ahead));
}

static inline int kvmattr_first_bit(uint64_t word) { return __builtin_ctzll(word); }
static inline int kvmattr_last_bit(uint64_t word) { return 63 - __builtin_clzll(word); }

/* Flip located pages, from number `from` on and in order, up to the first that a flip does not do: one that is away, or
 * whose leaf would have one value only. Returns its number, or n; adds the pages that changed to *changed. For each page
 * one word of `next` is asked for, all of which are there: so the requests are spread over the work, where a burst of
 * them would wait for a place in line. */
static inline int kvmattr_flip(const kvmattr_located *located, const kvmattr_located *next, int from, int n,
                               uint64_t *changed)
{
    uint64_t away = from < n ? located->away >> from : 0, sum = 0;
    int upto = away && from + kvmattr_first_bit(away) < n ? from + kvmattr_first_bit(away) : n, i;
    for (i = from; i < upto; i++) {
        uint64_t *where = located->where[i], old = *where;
        uint64_t word = (old & located->keep[i]) ^ located->toggle[i];
        if (__builtin_expect(word + 1 <= 1 && word != old, 0)) {
            const uint64_t *leaf = (const uint64_t *)((uintptr_t)where & ~(uintptr_t)63);
            uint64_t differ = 0;
            for (int other = 0; other < 8; other++)
                differ |= leaf + other == where ? 0 : leaf[other] ^ word;
            if (differ == 0)
                break;
        }
        sum += word != old;
        *where = word;
        kvmattr_prefetch_soon(next->where[i]);
    }
    *changed += sum;
    return i;
}

#endif /* KVMATTR_KERNELS_H */
