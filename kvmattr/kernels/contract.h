/* Leaf and node kernels: what each does. There is one set for each instruction set: plain.h has them in plain C,
 * avx2.h and avx512.h what intrinsics do better, choose.h chooses.
 *
 * Everything here is a pure function over memory that the caller owns or has pinned: no allocation,
 * no Python, no locks. The plain C versions are the meaning; the others must give the same bytes, and
 * the test suite runs under each set that the machine has (KVMATTR_SIMD=portable, avx2 or avx512).
 *
 * Words: a *block* is 512 pages, held as 512 bytes (one attribute byte a page) or as 8 words of bits;
 * an *entry* is the tree's 64-bit word (entry.h).
 */
#ifndef KVMATTR_KERNELS_CONTRACT_H
#define KVMATTR_KERNELS_CONTRACT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "entry.h"

#define KVMATTR_BLOCK 512
#define KVMATTR_SEGMENTS 32
#define KVMATTR_SEGMENT_SHIFT 27 /* granules of 8 bytes in a handle below its segment number */

/* What a walk from a root needs to know. The gfns that it is handed are a private copy, a piece of what the caller gave:
 * `ahead` is the way from a gfn in the copy to what will stand there in the next piece, to be asked for early. */
typedef struct kvmattr_walk {
    const uintptr_t *bias;      /* address of granule g = bias[g >> 27] + 8 * g */
    uint64_t root;
    uint64_t span;              /* pages below the root entry; the pages after them have the value `rest` */
    int level;
    int nsegments;
    intptr_t ahead;
    uint8_t rest;
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

/* A run list in place of a node: the starts of the runs but the first one's, from the first page below it, and then the
 * values of all runs. */
typedef struct kvmattr_list {
    uint32_t references;
    uint16_t size_class, count; /* of runs */
    uint64_t starts[];
} kvmattr_list;

enum { KVMATTR_LIST_RUNS = 56 };

/* Where they lie, of a list of so many runs. */
static inline uint64_t *kvmattr_list_starts(const kvmattr_list *list) { return (uint64_t *)list->starts; }
static inline uint8_t *kvmattr_list_values(const kvmattr_list *list, int count)
{
    return (uint8_t *)(list->starts + count - 1);
}

/* What becomes of runs when some of their pages get one value: from number `at` on, which is not 0, `gone` of them go and
 * `added` come in their place. */
typedef struct kvmattr_splice {
    int at, gone, added;
    uint64_t starts[2];
    uint8_t values[2];
} kvmattr_splice;

/* The answer of list_put, beside what the page's new value differs from the old one in (bits 0..7) and the new value
 * (bits 8..15): no run has the old value any more; nothing was done, as the list would have too many runs. */
enum { KVMATTR_LIST_LOST = 1 << 16, KVMATTR_LIST_FULL = 1 << 17 };

/* What becomes of a list when a page of it, in run number `run`, gets another value than it has: as a splice, in which
 * the second that comes, if there are two, is what follows the page in its run. No step is a branch: whether a page begins
 * or ends a run is foreseen wrongly where some pages come and others go. */
typedef struct kvmattr_page_splice {
    unsigned at, gone, added;
    unsigned comes;             /* the first that comes is the page */
} kvmattr_page_splice;

static inline kvmattr_page_splice kvmattr_splice_page(const kvmattr_list *list, unsigned count, unsigned run, uint64_t page,
                                                      uint64_t span, uint8_t value)
{
    const uint8_t *values = kvmattr_list_values(list, (int)count);
    const unsigned later = run > 0, followed = run + 1 < count;
    /* The first run begins at 0, which the page is not; of the last, what is read as the next one's start are values. */
    const unsigned begins = later & (list->starts[run - later] == page);
    const uint64_t next = list->starts[run];
    const unsigned ends = (followed ? next : span) == page + 1;
    const unsigned comes = values[run - begins] != value;
    kvmattr_page_splice splice = {run + 1 - begins, begins + (ends & followed & (values[run + 1] == value)),
                                  comes + 1 - ends, comes};
    return splice;
}

/* A whole map of few runs, for look-ups of many pages: where the runs begin but the first one, after the last of them
 * gfns that no page has, and the attributes. It has `runs` of them, and is given up at more than `most`. */
enum { KVMATTR_RULER_RUNS = 4096, KVMATTR_SMALL_RULER_RUNS = 64 };
#define KVMATTR_NO_GFN INT64_MAX

typedef struct kvmattr_ruler {
    uint64_t *starts;
    uint64_t *pivots;           /* each the last of eight starts */
    uint64_t *tops;             /* each the last of eight pivots */
    uint64_t *crowns;           /* each the last of eight tops */
    uint8_t *values;
    int runs, most;
} kvmattr_ruler;

/* The memory that one with room for so many runs (a power of eight) needs, from a cache line on. */
#define KVMATTR_RULER_BYTES(runs) (8 * ((runs) + (runs) / 8 + (runs) / 64 + (runs) / 512) + (runs))
typedef struct kvmattr_small_ruler {
    uint8_t bytes[KVMATTR_RULER_BYTES(KVMATTR_SMALL_RULER_RUNS)] __attribute__((aligned(64)));
} kvmattr_small_ruler;

static inline void kvmattr_ruler_place(kvmattr_ruler *ruler, void *memory, int runs)
{
    ruler->starts = (uint64_t *)memory;
    ruler->pivots = ruler->starts + runs;
    ruler->tops = ruler->pivots + runs / 8;
    ruler->crowns = ruler->tops + runs / 64;
    ruler->values = (uint8_t *)(ruler->crowns + runs / 512);
    ruler->runs = 0;
    ruler->most = runs;
}

/* How many starts are looked at: the power of eight that holds the runs. */
static inline int kvmattr_ruler_size(const kvmattr_ruler *ruler)
{
    int size = 8;
    while (size < ruler->runs)
        size *= 8;
    return size;
}

/* After the runs: what follows them. */
static inline void kvmattr_ruler_close(kvmattr_ruler *ruler)
{
    int size = kvmattr_ruler_size(ruler);
    for (int i = ruler->runs - 1; i < size; i++)
        ruler->starts[i] = KVMATTR_NO_GFN;
    for (int i = 0; i < size / 8; i++)
        ruler->pivots[i] = ruler->starts[8 * i + 7];
    for (int i = 0; i < size / 64; i++)
        ruler->tops[i] = ruler->pivots[8 * i + 7];
    for (int i = 0; i < size / 512; i++)
        ruler->crowns[i] = ruler->tops[8 * i + 7];
}

/* ---- leaves ----
 *
 * A leaf of fields has w = 1, 2, 4 or 8 bits a page: 64 w bytes, aligned to as many. `wide` is the binary logarithm of w.
 * The raw value of a page is its field repeated to eight bits. A run line has up to 21 runs in 64 bytes, aligned to as
 * many. What a leaf is stands in the low three bits of its handle, which the alignment leaves free: `wide`, or
 * KVMATTR_LINE. */
enum { KVMATTR_LINE = 4, KVMATTR_TAG = 7, KVMATTR_LINE_STARTS = 20, KVMATTR_NO_START = 0x7fff };

typedef struct kvmattr_line {
    int16_t starts[KVMATTR_LINE_STARTS];        /* of the second run and those after it; KVMATTR_NO_START where none is */
    uint8_t values[KVMATTR_LINE_STARTS + 1];
    uint8_t count;                              /* of runs */
    uint8_t turns;                              /* the store's: how often a page by itself came or went (leaf.pxi) */
    uint8_t unused;
} kvmattr_line;

static const uint64_t kvmattr_field_masks[4] = {1, 3, 15, 255};
static const uint32_t kvmattr_field_repeats[4] = {0xff, 0x55, 0x11, 1};

/* The bits of a byte folded to a field of each width, and that repeated to eight bits again. A byte fits the fields of a
 * leaf with the entry's k if this gives, masked with k, the byte itself. Filled once at import. */
static uint8_t kvmattr_folded[4][256];

static inline uint8_t kvmattr_turned(uint8_t byte, int by) { return (uint8_t)(byte << by | byte >> (8 - by)); }

static void kvmattr_fill_folded(void)
{
    for (int wide = 3; wide >= 0; wide--)
        for (int byte = 0; byte < 256; byte++)
            kvmattr_folded[wide][byte] =
                wide == 3 ? (uint8_t)byte
                          : kvmattr_folded[wide + 1][byte] | kvmattr_turned(kvmattr_folded[wide + 1][byte], 1 << wide);
}

static inline uint8_t kvmattr_fold(int wide, uint8_t byte) { return kvmattr_folded[wide][byte]; }

/* The one formula that reads a page of a leaf of fields. */
static inline uint8_t kvmattr_field_raw(const uint64_t *leaf, int wide, uint32_t page)
{
    uint32_t bit = page << wide;
    return (uint8_t)((leaf[bit >> 6] >> (bit & 63) & kvmattr_field_masks[wide]) * kvmattr_field_repeats[wide]);
}

/* What new = (old & keep) ^ toggle of a page does to the fields of a leaf whose entry has k and x, each as a byte of
 * fields repeated: field = (field & ~clear) ^ flip. 0 if some new value would fit no field. */
static inline int kvmattr_field_update(int wide, uint8_t k, uint8_t x, uint8_t keep, uint8_t toggle, uint8_t *clear,
                                       uint8_t *flip)
{
    uint8_t cleared = k & (uint8_t)~keep, flipped = (uint8_t)((x & ~keep) ^ toggle);
    *clear = kvmattr_fold(wide, cleared);
    *flip = kvmattr_fold(wide, flipped);
    return ((*clear & k) ^ cleared) == 0 && ((*flip & k) ^ flipped) == 0;
}

/* A byte in all bytes of a word. */
static inline uint64_t kvmattr_everywhere(uint8_t byte) { return (uint64_t)byte * 0x0101010101010101ULL; }

static inline uint64_t kvmattr_ror(uint64_t word, unsigned by) { return word >> (by & 63) | word << (-by & 63); }

/* Every bit that some byte of the word has, in all of its bytes. */
static inline uint64_t kvmattr_in_any_byte(uint64_t word)
{
    word |= kvmattr_ror(word, 32);
    word |= kvmattr_ror(word, 16);
    return word | kvmattr_ror(word, 8);
}

/* The same for fields. */
static inline uint64_t kvmattr_in_any_field(uint64_t word, int wide)
{
    word = kvmattr_in_any_byte(word);
    word |= kvmattr_ror(word, wide < 3 ? 4 : 0);
    word |= kvmattr_ror(word, wide < 2 ? 2 : 0);
    return word | kvmattr_ror(word, wide < 1 ? 1 : 0);
}

/* The bits, in all fields, by which some two fields of a leaf differ. */
static inline uint64_t kvmattr_fields_vary(const uint64_t *leaf, int wide)
{
    uint64_t first = leaf[0], any = first ^ kvmattr_ror(first, 1u << wide);
    for (int i = 0; i < 8 << wide; i++)
        any |= leaf[i] ^ first;
    return kvmattr_in_any_field(any, wide);
}

/* Whether a leaf may have become uniform, now that a field of the word at `where` has changed by the bits of `differ`:
 * then all fields of this word agree in all of these bits, which is looked at first, and gives reason to look at the rest
 * of the leaf seldom. */
static inline int kvmattr_word_agrees(uint64_t word, int wide, uint64_t differ)
{
    uint64_t apart = differ & kvmattr_in_any_byte(word ^ kvmattr_ror(word, 1u << wide));
    return __builtin_expect((apart == 0) & (differ != 0), 0);
}

/* Its own line of the cache is at hand, and often tells enough. The others of the leaf, which no near cache may have, are
 * waited for together. */
static inline int kvmattr_leaf_agrees(const uint64_t *where, int wide, uint64_t differ)
{
    const uintptr_t own = (uintptr_t)where & -(uintptr_t)64;
    uint64_t word = *where, any = word ^ kvmattr_ror(word, 1u << wide);
    for (int i = 0; i < 8; i++)
        any |= ((const uint64_t *)own)[i] ^ word;
    if (differ & kvmattr_in_any_field(any, wide))
        return 0;
    for (uintptr_t line = 64; line < (uintptr_t)64 << wide; line += 64)
        for (int i = 0; i < 8; i++)
            any |= ((const uint64_t *)(own ^ line))[i] ^ word;
    return (differ & kvmattr_in_any_field(any, wide)) == 0;
}

/* The same of a page by itself, whose short way saves no registers for the rest of the leaf, and which has its new field
 * at hand, in all `fields` of a word: it is looked for another field of this word that differs from it in one of those
 * bits. A batch looks at leaves with the instructions of its kernels, so that several are waited for at once. */
static __attribute__((noinline, unused)) int kvmattr_page_agrees_in_leaf(const uint64_t *where, int wide, uint64_t differ)
{
    return kvmattr_leaf_agrees(where, wide, differ);
}

static inline int kvmattr_page_agrees(const uint64_t *where, int wide, uint64_t differ, uint64_t fields)
{
    uint64_t apart = differ & kvmattr_in_any_byte(*where ^ fields);
    return __builtin_expect((apart == 0) & (differ != 0), 0) && kvmattr_page_agrees_in_leaf(where, wide, differ);
}

/* The number of the run of a page: how many starts it has reached. Counted in 16 bits, as compilers compare eight starts
 * at a time then. */
static inline int kvmattr_line_run(const kvmattr_line *line, uint32_t page)
{
    int16_t run = 0;
    for (int i = 0; i < KVMATTR_LINE_STARTS; i++)
        run = (int16_t)(run + (line->starts[i] <= (int16_t)page));
    return run;
}

static inline uint8_t kvmattr_line_raw(const kvmattr_line *line, uint32_t page)
{
    return line->values[kvmattr_line_run(line, page)];
}

/* Pages about to be written, and how: word = (word & keep) ^ toggle is the new value of page i, whose leaf has fields of
 * 1 << wide bits. Bits of `away`: pages that are not written so. Their way leads through a pending operation or a run
 * list, beyond the root, to a uniform block or a run line, then `where` is near it; or the new value may fit no field of
 * the leaf or vary in a bit that nothing below the block's entry has varied in; or entries above the block know the page
 * (`last`, and the first of a node of level 3). Bits of `firsts`: pages that are the first of their block, which the
 * block's own entry knows. Of both, bits beyond the pages mean nothing. */
enum { KVMATTR_LOCATED = 64 };

typedef struct kvmattr_located {
    uint64_t *where[KVMATTR_LOCATED];
    uint64_t keep[KVMATTR_LOCATED];     /* once it is written: the bits of the word that changed */
    uint64_t toggle[KVMATTR_LOCATED];   /* and the word */
    uint64_t wide[KVMATTR_LOCATED];
    uint64_t away, firsts;
} kvmattr_located;

typedef struct kvmattr_kernels {
    const char *name;
    /* out[i] = (bit i ? k : 0) ^ x, for the 512 fields of one bit. */
    void (*expand)(const uint64_t *words, uint8_t k, uint8_t x, uint8_t *out);
    /* out[i] = (raw value of page i & k) ^ x, for a leaf of any tag. */
    void (*spread)(const uint64_t *words, int tag, uint8_t k, uint8_t x, uint8_t *out);
    /* The fields for (block[i] ^ x), folded, which must fit them: the opposite of spread. */
    void (*pack)(const uint8_t *block, int wide, uint8_t x, uint64_t *words);
    /* p[i] = (p[i] & k) ^ x. */
    void (*affine)(uint8_t *p, size_t n, uint8_t k, uint8_t x);
    /* bit i of bits = ((block[i] ^ want) & mask) == 0. */
    void (*match)(const uint8_t *block, uint8_t want, uint8_t mask, uint64_t *bits);
    /* Bit i of bits = (block[i] != block[i - 1]); bit 0 is 0. */
    void (*changes)(const uint8_t *block, uint64_t *bits);
    /* With c[i] = block[i] ^ block[0]: vary[0] is the OR of all c[i], the attribute bits that vary; vary[s], for s = 1 .. 4,
     * is the OR of all c[i] ^ (c[i] turned left by s bits), those that do not vary together with the bit s below. */
    void (*relate)(const uint8_t *block, uint8_t vary[5]);
    /* Bits that vary below a node: OR over its entries of V | (F ^ F of the first entry). */
    uint8_t (*summary)(const uint64_t *entries);
    /* entries[i] = (entries[i] & keep) ^ toggle; whether some entry now has a handle and V = 0. */
    int (*apply)(uint64_t *entries, size_t n, uint64_t keep, uint64_t toggle);
    /* The n blocks below entries of level 2, (page & k) ^ x of each page, to out[0 .. 512 n). */
    void (*pages)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint8_t *out);
    /* How often a page of the n blocks below entries of level 2 differs from the page before it in its block, and
     * the first and last (page & k) ^ x of each block. */
    uint64_t (*edges)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint8_t *first,
                      uint8_t *last);
    /* The same as a list, from gfn `base` on and the block's first page included: of up to KVMATTR_LISTED_BLOCKS blocks,
     * as far as the first entry that leads to a run line or a leaf of more than one bit. Returns how many blocks that were. */
    int (*list_changes)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint64_t base,
                        kvmattr_change_list *list);
    /* Pages below a node of level 3 with ((page & k) ^ x ^ want) & mask == 0. */
    uint64_t (*count)(const uintptr_t *bias, const uint64_t *entries, uint8_t k, uint8_t x, uint8_t want,
                      uint8_t mask);
    /* The number of set bits in n words. */
    uint64_t (*popcount)(const uint64_t *words, size_t n);
    /* The largest of n gfns: one pass that checks a batch before anything is done. */
    uint64_t (*largest)(const uint64_t *gfns, size_t n);
    /* Which of n gfns, at most 64, lie in the block of a page. */
    uint64_t (*in_block)(const uint64_t *gfns, int n, uint64_t gfn);
    /* Walk down to the n pages gfns[i], at most KVMATTR_LOCATED: what new = (old & k[i * step]) ^ x[i * step] does to
     * the field of each (kvmattr_located). */
    void (*locate)(const kvmattr_walk *walk, const uint64_t *gfns, int n, const uint8_t *k, const uint8_t *x,
                   size_t step, uint64_t last, kvmattr_located *located);
    /* Which of the written pages from .. n - 1 have changed and agree, in all bits that they changed by, with all fields of
     * their leaves, as these are now (kvmattr_leaf_agrees): where a leaf has become uniform, the last that did so among
     * them. */
    uint64_t (*agree)(const kvmattr_located *located, int from, int n);
    /* out[i] = the attributes of page gfns[i]; every gfn was checked. */
    void (*take)(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t n);
    /* The same by a ruler; `ahead` as in a walk. */
    void (*read_off)(const kvmattr_ruler *ruler, const uint64_t *gfns, intptr_t ahead, uint8_t *out, size_t n);
    /* How many of `count` ascending starts are not beyond a page: the number of its run in a run list, without whose first
     * start they are. At most KVMATTR_LIST_RUNS. */
    unsigned (*find)(const uint64_t *starts, unsigned count, uint64_t page);
    /* Splice `count` runs: the starts of all but the first, and the values. `to_starts` and `to_values` have room for what
     * comes and are elsewhere, or the same, where `to_values` may be as far from `values` as the starts' end moves. At most
     * KVMATTR_LIST_RUNS before and after. */
    void (*splice)(const kvmattr_splice *splice, size_t count, const uint64_t *starts, const uint8_t *values,
                   uint64_t *to_starts, uint8_t *to_values);
    /* new = (old & k) ^ x on a page, not the first, of a list below an entry of `span` pages, where the list lies, unless it
     * would have more than `most` runs then. 0: the page has the value already. The memory behind a shorter list can be
     * read, too, up to the end of one of KVMATTR_LIST_RUNS. */
    unsigned (*list_put)(kvmattr_list *list, uint64_t page, uint64_t span, uint8_t k, uint8_t x, unsigned most);
} kvmattr_kernels;

static inline uint64_t kvmattr_load64(const void *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

/* The number of the run that holds a page, by halves, as long as more than `few` of the starts are left; these are the
 * *left ones from the run's on. No step is a branch that depends on the page: half of them would be foreseen wrongly. */
static inline unsigned kvmattr_starts_find(const uint64_t *starts, unsigned count, uint64_t page, unsigned few,
                                           unsigned *left)
{
    unsigned low = 0, half;
    for (*left = count; *left > few; *left -= half) {
        half = (*left + 1) / 2;
        low += half & -(unsigned)(starts[low + half - 1] <= page);
    }
    return low;
}

static inline unsigned kvmattr_list_find(const kvmattr_list *list, uint64_t page, unsigned few, unsigned *left)
{
    return kvmattr_starts_find(list->starts, list->count - 1u, page, few, left);
}

static inline uint8_t kvmattr_list_raw(const kvmattr_list *list, uint64_t page)
{
    unsigned left;
    return kvmattr_list_values(list, list->count)[kvmattr_list_find(list, page, 0, &left)];
}

/* Whether some of eight neighbouring entries leads to anything. */
enum { KVMATTR_HANDLES = 8 };

static inline int kvmattr_any_handle(const uint64_t *entries)
{
    uint64_t any = 0;
    for (int i = 0; i < KVMATTR_HANDLES; i++)
        any |= entries[i];
    return (uint32_t)any != 0;
}

/* Where a handle's granule lies. */
static inline uint64_t *kvmattr_words(const uintptr_t *bias, uint32_t handle)
{
    return (uint64_t *)(bias[handle >> KVMATTR_SEGMENT_SHIFT] + 8 * (uintptr_t)handle);
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

/* The whole leaf of an entry of level 2, for a walk that will come to it: a line of the cache for each of its bits a page. */
static inline void kvmattr_prefetch_leaf(const uintptr_t *bias, uint64_t entry)
{
    const uint64_t *words = kvmattr_words(bias, (uint32_t)entry & ~(uint32_t)KVMATTR_TAG);
    for (int line = 0; line < 1 << (entry & 3); line++)
        kvmattr_prefetch_soon(words + 8 * line);
}

/* The other lines of a leaf that one of its words lies in, for a look at all of it at once. */
static inline void kvmattr_prefetch_lines(const uint64_t *where, int wide)
{
    for (uintptr_t line = 64; line >> wide < 64; line += 64)
        kvmattr_prefetch((const void *)((uintptr_t)where ^ line));
}

/* The gfns that will be copied to this place next; there need not be any. */
static inline void kvmattr_prefetch_gfns(const uint64_t *gfns, intptr_t ahead)
{
    kvmattr_prefetch_soon((const void *)((uintptr_t)gfns + (uintptr_t)ahead));
}

static inline int kvmattr_first_bit(uint64_t word) { return __builtin_ctzll(word); }
static inline int kvmattr_last_bit(uint64_t word) { return 63 - __builtin_clzll(word); }

/* Write located pages, from number `from` on and in order, up to the first that is away. Returns its number, or n; adds
 * the pages that changed to *changed. For each page one word of `next` is asked for, all of which are there: so the
 * requests are spread over the work, where a burst of them would wait for a place in line. */
static inline int kvmattr_write_located(kvmattr_located *located, const kvmattr_located *next, int from, int n,
                                        uint64_t *changed)
{
    uint64_t away = from < n ? located->away >> from : 0, sum = 0;
    int upto = away && from + kvmattr_first_bit(away) < n ? from + kvmattr_first_bit(away) : n, i;
    for (i = from; i < upto; i++) {
        uint64_t *where = located->where[i], old = *where;
        uint64_t word = (old & located->keep[i]) ^ located->toggle[i];
        *where = word;
        located->keep[i] = old ^ word;
        located->toggle[i] = word;
        sum += word != old;
        kvmattr_prefetch_soon(next->where[i]);
    }
    *changed += sum;
    return i;
}

#endif /* KVMATTR_KERNELS_CONTRACT_H */
