/* Each set of kernels against the meaning of each kernel, written page by page here and in no other words than those of
 * kernels/contract.h. Run as `kernels SEED`: prints a line a set, or what differs and with which seed, and returns 1.
 *
 * Trees are made at random of all that a root can lead to: nodes, run lists, leaves of fields of each width, run lines,
 * uniform subtrees, operations pending on any of them. */
#include "kernels/choose.h"

#include <stdio.h>

static uint64_t state;

static uint64_t any(void)       /* xorshift */
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}
static uint64_t below(uint64_t n) { return any() % n; }
static uint8_t byte(void) { return (uint8_t)any(); }
static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static const kvmattr_kernels *set;
static int failures;
/* What the rounds have met: nothing is proved of what they never do. */
static int written, unchanged, away, agreed, fit, listed, beyond, mixed_lines, cut_lists, spliced;

#define CHECK(condition, ...)                                              \
    do {                                                                   \
        if (!(condition)) {                                                \
            failures++;                                                    \
            printf("%s: %s: ", set->name, #condition);                     \
            printf(__VA_ARGS__);                                           \
            printf("\n");                                                  \
            return;                                                        \
        }                                                                  \
    } while (0)

/* ---- an arena of one segment, and what lies in it ---- */

enum { ARENA_WORDS = 1 << 18 };
static uint64_t arena[ARENA_WORDS] __attribute__((aligned(4096)));
static uint64_t zeros[512] __attribute__((aligned(4096)));
static uintptr_t bias[KVMATTR_SEGMENTS];
static uint32_t taken;          /* words of the arena */

static void arena_empty(void)
{
    bias[0] = (uintptr_t)zeros;
    for (int i = 1; i < KVMATTR_SEGMENTS; i++)
        bias[i] = (uintptr_t)arena - 8 * ((uintptr_t)i << KVMATTR_SEGMENT_SHIFT);
    taken = 0;
    memset(arena, 0, sizeof arena);
}

/* The handle of so many words, at a multiple of as many as `align`, in any of the segments that look at the same memory. */
static uint32_t take_words(uint32_t words, uint32_t align)
{
    taken = (taken + align - 1) / align * align;
    uint32_t at = taken;
    taken += words;
    if (taken > ARENA_WORDS)
        abort();
    return (uint32_t)(1 + below(2)) << KVMATTR_SEGMENT_SHIFT | at;
}

static uint64_t entry_of(uint32_t handle, uint8_t k, uint8_t x, uint8_t varying, uint8_t first)
{
    return handle | (uint64_t)k << 32 | (uint64_t)x << 40 | (uint64_t)varying << 48 | (uint64_t)first << 56;
}
static uint64_t uniform(uint8_t value) { return entry_of(0, 0, value, 0, value); }
static uint8_t k_of(uint64_t entry) { return (uint8_t)(entry >> 32); }
static uint8_t x_of(uint64_t entry) { return (uint8_t)(entry >> 40); }
static uint8_t varying_of(uint64_t entry) { return (uint8_t)(entry >> 48); }
static uint8_t first_of(uint64_t entry) { return (uint8_t)(entry >> 56); }

static uint8_t raw_field(const uint64_t *words, int wide, unsigned page)
{
    unsigned width = 1u << wide, bit = page * width;
    unsigned field = (unsigned)(words[bit / 64] >> (bit % 64)) & ((1u << width) - 1), raw = 0;
    for (unsigned at = 0; at < 8; at += width)
        raw |= field << at;
    return (uint8_t)raw;
}

/* The value of a page below an entry of `level`. */
static uint8_t value_of(uint64_t entry, int level, uint64_t page)
{
    uint32_t handle = (uint32_t)entry;
    uint8_t raw = 0;
    if (handle == 0)
        return x_of(entry);
    if (level == 2 && handle & KVMATTR_LINE) {
        const kvmattr_line *line = (const kvmattr_line *)kvmattr_words(bias, handle & ~7u);
        int run = 0;
        while (run + 1 < line->count && line->starts[run] <= (int)page)
            run++;
        raw = line->values[run];
    } else if (level == 2) {
        raw = raw_field(kvmattr_words(bias, handle & ~7u), (int)(handle & 3), (unsigned)page);
    } else if (handle % 512 == 0) {
        uint64_t child = page >> (9 * (level - 2)), inside = page & (((uint64_t)1 << (9 * (level - 2))) - 1);
        raw = value_of(kvmattr_words(bias, handle)[child], level - 1, inside);
    } else {
        const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(bias, handle);
        const uint8_t *values = (const uint8_t *)(list->starts + list->count - 1);
        int run = 0;
        while (run + 1 < list->count && list->starts[run] <= page)
            run++;
        raw = values[run];
    }
    return (uint8_t)((raw & k_of(entry)) ^ x_of(entry));
}

/* An entry of level 2 with V and F as they are: a leaf, a line, or uniform. */
static uint64_t closed_block(uint32_t handle, uint8_t k, uint8_t x)
{
    uint64_t entry = entry_of(handle, k, x, 0, 0);
    uint8_t first = value_of(entry, 2, 0), varying = 0;
    for (unsigned page = 1; page < 512; page++)
        varying |= value_of(entry, 2, page) ^ first;
    return varying ? entry_of(handle, k, x, varying, first) : uniform(first);
}

static uint64_t some_leaf(int wide)
{
    uint32_t words = 8u << wide, handle = take_words(words, words);
    uint64_t *leaf = kvmattr_words(bias, handle);
    unsigned runs = below(3) ? 512 : (unsigned)below(512), lone = below(3) ? 512 : (unsigned)below(512);
    for (unsigned page = 0, field = 0; page < 512; page++) {
        if (lone < 512)                 /* one page has another field than all others */
            field = page == lone;
        else if (below(512) < runs)
            field = (unsigned)below((uint64_t)1 << (1 << wide)) & (below(2) ? 0xff : 3);
        unsigned bit = page << wide;
        leaf[bit / 64] |= (uint64_t)field << (bit % 64);
    }
    return closed_block(handle | (uint32_t)wide, byte(), byte());
}

static uint64_t some_line(void)
{
    uint32_t handle = take_words(8, 8);
    kvmattr_line *line = (kvmattr_line *)kvmattr_words(bias, handle);
    int runs = 3 + (int)below(KVMATTR_LINE_STARTS - 2);
    for (int i = 0; i < KVMATTR_LINE_STARTS; i++)
        line->starts[i] = i < runs - 1 ? (int16_t)(1 + 511 * i / (runs - 1) + (int)below(24)) : KVMATTR_NO_START;
    for (int i = 0; i < runs; i++)
        line->values[i] = byte();
    line->count = (uint8_t)runs;
    return closed_block(handle | KVMATTR_LINE, byte(), byte());
}

static uint64_t some_block(void)
{
    switch (below(8)) {
    case 0: return uniform(byte());
    case 1: return some_line();
    default: return some_leaf((int)below(4));
    }
}

/* A subtree; V of a node may have more bits than vary. */
static uint64_t some_subtree(int level, int pending)
{
    uint64_t kind = below(6);
    uint8_t k = 0xff, x = 0;
    if (pending && below(2)) {
        k = byte();
        x = byte();
    }
    if (level == 2)
        return some_block();
    if (kind == 0)
        return uniform(byte());
    if (kind == 1) {
        int runs = 2 + (int)below(KVMATTR_LIST_RUNS - 1);
        uint32_t handle = take_words(2 + (uint32_t)(9 * runs) / 8 + 1, 2) + 1;
        kvmattr_list *list = (kvmattr_list *)kvmattr_words(bias, handle);
        uint8_t *values = (uint8_t *)(list->starts + runs - 1);
        uint64_t span = (uint64_t)1 << (9 * (level - 1));
        list->count = (uint16_t)runs;
        for (int i = 0; i < runs - 1; i++)
            list->starts[i] = span / (uint64_t)runs * (uint64_t)(i + 1) + below(span / (uint64_t)runs);
        for (int i = 0; i < runs; i++)
            values[i] = byte();
        return entry_of(handle, k, x, 0xff, (uint8_t)((values[0] & k) ^ x));
    }
    uint32_t handle = take_words(512, 512);
    uint64_t *entries = kvmattr_words(bias, handle);
    uint64_t mixed = level == 3 ? 40 : level > 5 ? 1 : 3;
    for (int i = 0; i < 512; i++)
        entries[i] = uniform((uint8_t)(i / 100));
    for (uint64_t i = 0; i < mixed; i++)
        entries[i || below(2) ? below(512) : 0] = some_subtree(level - 1, pending);
    return entry_of(handle, k, x, 0xff, (uint8_t)((first_of(entries[0]) & k) ^ x));
}

/* 512 entries of level 2. */
static void some_node(uint64_t *entries)
{
    for (int i = 0; i < 512; i++)
        entries[i] = below(4) ? uniform((uint8_t)below(3)) : some_block();
    if (below(2))
        entries[0] = some_leaf(0);
}

/* ---- blocks and words ---- */

static void test_blocks(void)
{
    uint8_t block[KVMATTR_BLOCK + 64], out[KVMATTR_BLOCK + 64], again[KVMATTR_BLOCK + 64], vary[5], wanted[5];
    uint64_t words[64], packed[64], bits[8];
    uint8_t k = byte(), x = byte(), want = byte(), mask = byte(), distinct = below(2) ? 0xff : 0x11;
    uint8_t *at = block + 1;        /* not aligned; a page lies before it */
    if (below(3) == 0)              /* two values, which differ in a few bits */
        for (int i = 0, other = byte() & byte(); i < KVMATTR_BLOCK + 64; i++)
            block[i] = want ^ (below(2) ? (uint8_t)other : 0);
    else
        for (int i = 0; i < KVMATTR_BLOCK + 64; i++)
            block[i] = i && below(3) ? block[i - 1] : byte() & distinct;
    for (int wide = 0; wide < 4; wide++) {
        int count = 8 << wide;
        for (int i = 0; i < count; i++)
            words[i] = any() & any();
        set->spread(words, wide, k, x, out);
        for (unsigned i = 0; i < 512; i++)
            CHECK(out[i] == (uint8_t)((raw_field(words, wide, i) & k) ^ x), "spread, wide %d, page %u", wide, i);
        set->spread(words, wide, 0xff, x, out);
        set->pack(out, wide, x, packed);
        CHECK(!memcmp(words, packed, 8 * (size_t)count), "pack undoes spread, wide %d", wide);
        uint8_t some = byte();          /* of each bit of a field, one place at least is kept */
        for (int bit = 0; bit < 1 << wide; bit++)
            some |= some & kvmattr_field_repeats[wide] << bit ? 0 : (uint8_t)(1 << bit);
        set->spread(words, wide, some, x, out);
        set->pack(out, wide, x, packed);
        CHECK(!memcmp(words, packed, 8 * (size_t)count), "pack of what some bits tell, wide %d", wide);
    }
    arena_empty();
    uint64_t line = some_line();
    if ((uint32_t)line) {
        set->spread(kvmattr_words(bias, (uint32_t)line & ~7u), KVMATTR_LINE, k, x, out);
        for (unsigned i = 0; i < 512; i++) {
            uint8_t raw = value_of(entry_of((uint32_t)line, 0xff, 0, 0, 0), 2, i);
            CHECK(out[i] == (uint8_t)((raw & k) ^ x), "spread of a run line, page %u", i);
        }
    }
    set->expand(words, k, x, out);
    for (int i = 0; i < 512; i++)
        CHECK(out[i] == (uint8_t)((words[i / 64] >> (i % 64) & 1 ? k : 0) ^ x), "expand, page %d", i);
    set->match(at, want & mask, mask, bits);
    for (int i = 0; i < 512; i++)
        CHECK((bits[i / 64] >> (i % 64) & 1) == (((at[i] ^ want) & mask) == 0), "match, page %d", i);
    set->changes(at, bits);
    for (int i = 0; i < 512; i++)
        CHECK((bits[i / 64] >> (i % 64) & 1) == (i > 0 && at[i] != at[i - 1]), "changes, page %d", i);
    set->relate(at, vary);
    memset(wanted, 0, 5);
    for (int i = 0; i < 512; i++) {
        uint8_t c = at[i] ^ at[0];
        wanted[0] |= c;
        for (int s = 1; s < 5; s++)
            wanted[s] |= c ^ (uint8_t)(c << s | c >> (8 - s));
    }
    CHECK(!memcmp(vary, wanted, 5), "relate");
    for (size_t n = 0; n < 300; n += 1 + below(40)) {
        memcpy(out, block, sizeof block);
        set->affine(out + 3, n, k, x);
        for (size_t i = 0; i < sizeof block; i++)
            again[i] = i >= 3 && i < 3 + n ? (uint8_t)((block[i] & k) ^ x) : block[i];
        CHECK(!memcmp(out, again, sizeof block), "affine of %zu", n);
    }
}

static void test_words(void)
{
    uint64_t words[130], kept[130], entries[512], keep, toggle, most = 0, sum = 0;
    size_t n = below(130);
    uint8_t k = byte(), x = byte(), vary = 0;
    int idle = 0, alike = below(2) == 0;
    for (size_t i = 0; i < n; i++) {
        words[i] = any() >> below(60);
        most = words[i] > most ? words[i] : most;
        for (int bit = 0; bit < 64; bit++)
            sum += words[i] >> bit & 1;
    }
    CHECK(set->largest(words, n) == most, "largest of %zu", n);
    CHECK(set->popcount(words, n) == sum, "popcount of %zu", n);
    int some = (int)below(65);
    uint64_t gfn = any() >> below(60), which = 0;
    for (int i = 0; i < some; i++) {
        words[i] = below(3) ? gfn ^ below(2048) : any() >> below(60);
        which |= (uint64_t)(words[i] / 512 == gfn / 512) << i;
    }
    CHECK(set->in_block(words, some, gfn) == which, "in_block of %d", some);
    for (int i = 0; i < 512; i++) {
        entries[i] = alike ? uniform((uint8_t)(k ^ (below(100) == 0))) : below(2) ? uniform(byte() & 3) : any() & any();
        vary |= varying_of(entries[i]) | (first_of(entries[i]) ^ first_of(entries[0]));
    }
    CHECK(set->summary(entries) == vary, "summary");
    keep = 0xffffffff | (uint64_t)k * 0x01010101 << 32;
    toggle = (uint64_t)x << 40 | (uint64_t)x << 56;
    memcpy(words, entries, sizeof words);
    memcpy(kept, entries, sizeof kept);
    for (size_t i = 0; i < n; i++) {
        kept[i] = (kept[i] & keep) ^ toggle;
        idle |= (uint32_t)kept[i] != 0 && varying_of(kept[i]) == 0;
    }
    CHECK((set->apply(words, n, keep, toggle) != 0) == idle, "apply to %zu tells of idle handles", n);
    CHECK(!memcmp(words, kept, sizeof words), "apply to %zu", n);
}

/* ---- the blocks of a node ---- */

static uint8_t after(uint64_t entry, unsigned page, uint8_t k, uint8_t x)
{
    return (uint8_t)((value_of(entry, 2, page) & k) ^ x);
}

static void test_node(void)
{
    static uint64_t entries[512];
    static uint8_t out[512 * 512], first[512], last[512];
    uint64_t sum = 0, counted = 0;
    uint8_t k = below(2) ? 0xff : byte(), x = byte(), mask = byte(), want = byte() & mask;
    int n = 1 + (int)below(512);
    arena_empty();
    some_node(entries);
    set->pages(bias, entries, n, k, x, out);
    for (int i = 0; i < n; i++)
        for (unsigned page = 0; page < 512; page++)
            CHECK(out[512 * i + (int)page] == after(entries[i], page, k, x), "pages, block %d, page %u", i, page);
    uint64_t edges = set->edges(bias, entries, n, k, x, first, last);
    for (int i = 0; i < n; i++) {
        mixed_lines += varying_of(entries[i]) & k && entries[i] & KVMATTR_LINE;
        CHECK(first[i] == after(entries[i], 0, k, x), "edges, first page of block %d", i);
        CHECK(last[i] == after(entries[i], 511, k, x), "edges, last page of block %d", i);
        for (unsigned page = 1; page < 512; page++)
            sum += after(entries[i], page, k, x) != after(entries[i], page - 1, k, x);
    }
    CHECK(edges == sum, "edges: %llu, counted %llu", (unsigned long long)edges, (unsigned long long)sum);
    uint64_t count = set->count(bias, entries, k, x, want, mask);
    for (int i = 0; i < 512; i++)
        for (unsigned page = 0; page < 512; page++)
            counted += ((after(entries[i], page, k, x) ^ want) & mask) == 0;
    CHECK(count == counted, "count: %llu, counted %llu", (unsigned long long)count, (unsigned long long)counted);
}

static void test_list_changes(void)
{
    static uint64_t entries[512];
    kvmattr_change_list list;
    uint8_t k = below(2) ? 0xff : byte(), x = byte(), value = byte();
    uint64_t base = below(1 << 20) * 512;
    int n = 1 + (int)below(40), blocks, at = 0;
    arena_empty();
    for (int i = 0; i < 512; i++)
        entries[i] = below(3) ? some_leaf(0) : uniform((uint8_t)below(3));
    if (below(2))
        entries[below(40)] = below(2) ? some_line() : some_leaf(1 + (int)below(3));
    list.value = value;
    blocks = set->list_changes(bias, entries, n, k, x, base, &list);
    for (int i = 0; i < blocks; i++)
        for (int word = 0; word < 8; word++) {
            uint64_t bits = 0;
            uint8_t values[64];
            for (unsigned bit = 0; bit < 64; bit++) {
                values[bit] = after(entries[i], 64 * (unsigned)word + bit, k, x);
                bits |= (uint64_t)(values[bit] != value) << bit;
                value = values[bit];
            }
            if (!bits)
                continue;
            CHECK(at < list.count && list.bits[at] == bits, "list_changes: bits of block %d, word %d", i, word);
            CHECK(list.gfn[at] == base + 512 * (uint64_t)i + 64 * (uint64_t)word, "list_changes: gfn");
            uint8_t listed = (uint8_t)list.values[at], toggle = (uint8_t)(list.values[at] >> 8);
            for (; bits; bits &= bits - 1, listed ^= toggle)
                CHECK(listed == values[kvmattr_first_bit(bits)], "list_changes: values of block %d, word %d", i, word);
            at++;
        }
    CHECK(at == list.count && list.value == value, "list_changes: %d of %d words", at, list.count);
    cut_lists += blocks < n;
    int most = (int)least((uint64_t)n, KVMATTR_LISTED_BLOCKS);
    CHECK(blocks == most || (varying_of(entries[blocks]) & k && entries[blocks] & KVMATTR_TAG),
          "list_changes ends at block %d of %d", blocks, most);
}

/* ---- walks ---- */

/* The level of the run list that a page's way leads to, or 0. */
static int level_of_list(const kvmattr_walk *walk, uint64_t gfn)
{
    uint64_t entry = walk->root;
    int level = walk->level;
    if (gfn >= walk->span)
        return 0;
    while (level > 2 && (uint32_t)entry && (entry & 511) == 0) {
        entry = kvmattr_words(bias, (uint32_t)entry)[gfn >> (9 * (level - 2)) & 511];
        level--;
    }
    return level > 2 && (uint32_t)entry ? level : 0;
}

static kvmattr_walk some_walk(int pending)
{
    kvmattr_walk walk = {bias, 0, 0, 2 + (int)below(6), 3 + (int)below(2) * 20, 0, byte()};
    arena_empty();
    walk.root = some_subtree(walk.level, pending);
    while (walk.level > 2 && below(8) && (walk.root & 0xffffffff) % 512 != 0)       /* mostly a node */
        walk.root = some_subtree(walk.level, pending);
    walk.span = (uint64_t)1 << (9 * (walk.level - 1));
    return walk;
}

/* A page, mostly of a block that is mixed or of a run list below a node. */
static uint64_t some_gfn(const kvmattr_walk *walk, uint64_t pages)
{
    uint64_t entry = walk->root, at = 0;
    int level = walk->level;
    if (below(8) == 0)
        return below(pages);
    while (level > 2 && (uint32_t)entry && (entry & 511) == 0) {
        const uint64_t *entries = kvmattr_words(bias, (uint32_t)entry);
        unsigned child = (unsigned)below(512);
        for (int tries = 0; tries < 512 && !(uint32_t)entries[child]; tries++)
            child = (child + 1) % 512;
        at += (uint64_t)child << (9 * (level - 2));
        entry = entries[child];
        level--;
    }
    if ((uint32_t)entry && level > 2 && level < walk->level && below(2)) {      /* the first page of a run */
        const kvmattr_list *list = (const kvmattr_list *)kvmattr_words(bias, (uint32_t)entry);
        return at + list->starts[below(list->count - 1u)];
    }
    return at + below((uint64_t)1 << (9 * (level - 1)));
}

static void test_take(void)
{
    enum { MOST = 1500 };       /* groups enough for a ring of them to turn twice */
    static uint64_t gfns[MOST];
    static uint8_t out[MOST + 1];
    kvmattr_walk walk = some_walk(1);
    size_t n = below(below(3) ? 300 : MOST);
    for (size_t i = 0, same = 0; i < n; i++) {
        if (i % 8 == 0)
            same = below(3) == 0;               /* eight times one page, as nothing else is near it then */
        gfns[i] = same && i % 8 ? gfns[i - 1] : some_gfn(&walk, walk.span + (below(3) ? 0 : 1000));
    }
    if (n)
        gfns[below(n)] = walk.span - below(2);      /* the last page below the root, or the first beyond it */
    out[n] = 0xaa;
    set->take(&walk, gfns, out, n);
    for (size_t i = 0; i < n; i++) {
        uint8_t value = gfns[i] >= walk.span ? walk.rest : value_of(walk.root, walk.level, gfns[i]);
        int level = level_of_list(&walk, gfns[i]);
        listed += level && level < walk.level;
        beyond += gfns[i] >= walk.span;
        CHECK(out[i] == value, "take: page %zu of %zu, level %d", i, n, walk.level);
    }
    CHECK(out[n] == 0xaa, "take writes beyond %zu pages", n);
}

static void test_read_off(void)
{
    enum { MOST = 300 };
    static uint64_t gfns[MOST];
    static uint8_t out[MOST + 1];
    static uint8_t memory[KVMATTR_RULER_BYTES(KVMATTR_RULER_RUNS)] __attribute__((aligned(64)));
    kvmattr_ruler ruler;
    static const int counts[] = {1, 2, 7, 8, 9, 63, 64, 65, 200, 511, 512, 513, 2000, KVMATTR_RULER_RUNS - 1,
                                 KVMATTR_RULER_RUNS};
    int runs = counts[below(sizeof counts / sizeof *counts)];
    uint64_t step = 1 + (below(2) ? below(3) : below(((uint64_t)1 << 52) / (uint64_t)runs)), pages = step * (uint64_t)runs;
    size_t n = below(MOST);
    memset(memory, 0xee, sizeof memory);
    kvmattr_ruler_place(&ruler, memory, runs > KVMATTR_SMALL_RULER_RUNS ? KVMATTR_RULER_RUNS : KVMATTR_SMALL_RULER_RUNS);
    ruler.runs = runs;
    for (int i = 0; i < runs; i++)
        ruler.values[i] = byte();
    for (int i = 0; i < runs - 1; i++)
        ruler.starts[i] = step * (uint64_t)(i + 1);
    kvmattr_ruler_close(&ruler);
    for (size_t i = 0; i < n; i++)
        gfns[i] = least(below(3) ? below(pages) : step * below((uint64_t)runs + 1) - below(2), pages - 1);
    out[n] = 0xaa;
    set->read_off(&ruler, gfns, 0, out, n);
    for (size_t i = 0; i < n; i++)
        CHECK(out[i] == ruler.values[gfns[i] / step], "read_off: gfn %llu of %d runs of %llu", (unsigned long long)gfns[i],
              runs, (unsigned long long)step);
    CHECK(out[n] == 0xaa, "read_off writes beyond %zu pages", n);
}

/* A list that is spliced where it lies, its values behind its starts or apart from them, or into another place. */
static void test_splice(void)
{
    enum { BYTES = 9 * KVMATTR_LIST_RUNS + 64 };
    static uint64_t place[BYTES / 8 + 8], other[BYTES / 8 + 8], before[BYTES / 8 + 8];
    uint64_t starts[KVMATTR_LIST_RUNS + 2], *to_starts;
    uint8_t values[KVMATTR_LIST_RUNS + 2], apart[KVMATTR_LIST_RUNS + 8], *to;
    kvmattr_splice splice;
    int count, now, i, n = 0, behind = below(2) == 0, moves = below(2) == 0;
    do {
        count = 1 + (int)below(KVMATTR_LIST_RUNS);
        splice.at = 1 + (int)below((uint64_t)count);
        splice.gone = (int)below(least(below(3) ? 3 : 60, (uint64_t)(count - splice.at + 1)));
        splice.added = (int)below(3);
        now = count + splice.added - splice.gone;
    } while (now > KVMATTR_LIST_RUNS);
    memset(place, 0xee, sizeof place);
    memset(other, 0xee, sizeof other);
    memset(apart, 0xee, sizeof apart);
    to_starts = moves ? other : place;
    uint8_t *from = behind ? (uint8_t *)(place + count - 1) : apart;
    to = behind ? (uint8_t *)(to_starts + now - 1) : apart;
    for (i = 0; i < count; i++) {
        if (i)
            place[i - 1] = any();
        from[i] = byte();
    }
    for (i = 0; i < splice.added; i++) {
        splice.starts[i] = any();
        splice.values[i] = byte();
    }
    /* The same, run by run. */
    for (i = 0; i < count; i++) {
        for (int j = 0; i == splice.at && j < splice.added; j++, n++) {
            starts[n] = splice.starts[j];
            values[n] = splice.values[j];
        }
        if (i >= splice.at && i < splice.at + splice.gone)
            continue;
        starts[n] = i ? place[i - 1] : 0;
        values[n++] = from[i];
    }
    for (i = 0; splice.at == count && i < splice.added; i++, n++) {
        starts[n] = splice.starts[i];
        values[n] = splice.values[i];
    }
    memcpy(before, place, sizeof place);
    set->splice(&splice, (size_t)count, place, from, to_starts, to);
    for (i = 0; i < n; i++)
        CHECK(to[i] == values[i] && (i == 0 || to_starts[i - 1] == starts[i]),
              "splice: run %d of %d, %d from %d on go, %d come", i, count, splice.gone, splice.at, splice.added);
    int most = !moves && count > now ? count : now;         /* where it lay, the runs that went are rubbish */
    for (i = 8 * (most - 1) + (behind ? most : 0); i < BYTES; i++)
        CHECK(((uint8_t *)to_starts)[i] == 0xee, "splice writes beyond %d runs", now);
    for (i = behind ? 0 : now > count ? now : count; i < (int)sizeof apart; i++)
        CHECK(apart[i] == 0xee, "splice writes beyond %d values", now);
    CHECK(!moves || memcmp(before, place, sizeof place) == 0, "splice writes where the list of %d runs lay", count);
    spliced++;
}

/* The run of a page, of a list of any length. */
static void test_find(void)
{
    static uint64_t place[KVMATTR_LIST_RUNS + 8];
    unsigned count = (unsigned)below(KVMATTR_LIST_RUNS), expected = 0;
    uint64_t page, at = 0;
    for (unsigned i = 0; i < KVMATTR_LIST_RUNS + 8; i++) {
        at += 1 + below(below(2) ? 2 : 1000);
        place[i] = i < count ? at : below(3);       /* what follows is something else */
    }
    page = count && below(3) ? place[below(count)] - below(2) : below(at + 2);
    while (expected < count && place[expected] <= page)
        expected++;
    CHECK(set->find(place, count, page) == expected, "find: page %llu of %u starts", (unsigned long long)page, count);
}

/* A page of a list gets another value where the list lies: runs are taken apart and put together page by page. */
static void test_list_put(void)
{
    enum { SPAN = 400, BYTES = 8 + 8 * (KVMATTR_LIST_RUNS - 1) + KVMATTR_LIST_RUNS };
    static uint64_t place[BYTES / 8 + 8], before[BYTES / 8 + 8];
    kvmattr_list *list = (kvmattr_list *)place;
    uint8_t pages[SPAN], value, old, k = byte(), x = (uint8_t)below(3), fill = below(2) ? 0xee : 0;
    uint64_t starts[SPAN], page = 1 + below(SPAN - 1);
    unsigned count = 1 + (unsigned)below(KVMATTR_LIST_RUNS), most, now = 0, lost = 1, answer, expected;
    memset(place, fill, sizeof place);      /* zeros look like a value, and those behind one value like a start */
    /* So many runs, most of one page or two, so that pages often begin or end one; the last one is long or short. */
    unsigned at = 0, last = below(2) ? 0 : SPAN - 3 * count;
    for (unsigned i = 0; i < count; i++) {
        unsigned stop = i == count - 1 ? SPAN : at + 1 + (unsigned)below(2) + (i == 0 ? last : 0);
        uint8_t another = (uint8_t)below(3);
        if (i && another == pages[at - 1])
            another = (uint8_t)(another + 1) % 3;
        memset(pages + at, another, stop - at);
        at = stop;
    }
    if (below(2))
        k = below(2) ? 0 : 0xff;
    if (below(2))
        page = below(8) ? 1 + least(below(3 * (uint64_t)count), SPAN - 2) : SPAN - 1;
    list->references = 7;
    list->size_class = 5;
    list->count = (uint16_t)count;
    for (unsigned i = 0, run = 0; i < SPAN; i++)
        if (i == 0 || pages[i] != pages[i - 1]) {
            if (i)
                list->starts[run - 1] = i;
            kvmattr_list_values(list, (int)count)[run++] = pages[i];
        }
    memcpy(before, place, sizeof place);
    old = pages[page];
    value = pages[page] = (uint8_t)((old & k) ^ x);
    for (unsigned i = 0; i < SPAN; i++) {
        lost &= pages[i] != old;
        if (i == 0 || pages[i] != pages[i - 1])
            starts[now++] = i;
    }
    most = below(2) ? KVMATTR_LIST_RUNS : (unsigned)least(count + below(3), KVMATTR_LIST_RUNS);
    expected = value == old ? 0 : now > most ? KVMATTR_LIST_FULL
             : (unsigned)(old ^ value) | (unsigned)value << 8 | lost * KVMATTR_LIST_LOST;
    answer = set->list_put(list, page, SPAN, k, x, most);
    CHECK(answer == expected, "list_put: %x, must be %x: page %llu, %u runs, of %u at most", answer, expected,
          (unsigned long long)page, count, most);
    if (value == old || now > most) {
        CHECK(memcmp(before, place, sizeof place) == 0, "list_put writes to a list of %u runs that stays", count);
        return;
    }
    CHECK(list->references == 7 && list->size_class == 5 && list->count == now, "list_put: %u runs, must be %u",
          list->count, now);
    for (unsigned i = 0; i < now; i++)
        CHECK((i == 0 || list->starts[i - 1] == starts[i]) && kvmattr_list_values(list, (int)now)[i] == pages[starts[i]],
              "list_put: run %u of %u, page %llu, there were %u", i, now, (unsigned long long)page, count);
    most = count > now ? count : now;                       /* where it lay, the runs that went are rubbish */
    for (size_t i = 8 + 8 * (most - 1) + most; i < sizeof place; i++)
        CHECK(((uint8_t *)place)[i] == fill, "list_put writes beyond %u runs", most);
    spliced++;
}

/* Whether the change of a page is the write of a field; *block is then its block's entry. */
static int plain_write(const kvmattr_walk *walk, uint64_t gfn, uint64_t last, uint8_t keep, uint8_t toggle, uint64_t *block)
{
    uint64_t entry = walk->root;
    if (gfn >= walk->span || gfn == last || gfn % 0x40000 == 0)
        return 0;
    for (int level = walk->level; level > 2; level--) {
        if ((uint32_t)entry == 0 || (entry & 511) != 0 || k_of(entry) != 0xff || x_of(entry))
            return 0;
        entry = kvmattr_words(bias, (uint32_t)entry)[gfn >> (9 * (level - 2)) & 511];
    }
    *block = entry;
    if ((uint32_t)entry == 0 || entry & KVMATTR_LINE)
        return 0;
    /* Each field's new value must be one that a field stands for, and differ in no bit that has not varied. */
    uint8_t k = k_of(entry), x = x_of(entry);
    int wide = (int)(entry & 3);
    for (unsigned field = 0; field < 1u << (1 << wide); field++) {
        uint64_t word = field;
        uint8_t changed = (uint8_t)(((((raw_field(&word, wide, 0) & k) ^ x) & keep) ^ toggle) ^ x);
        int fits = 0;
        for (unsigned other = 0; other < 1u << (1 << wide); other++) {
            uint64_t stored = other;
            fits |= (raw_field(&stored, wide, 0) & k) == changed;
        }
        if (!fits)
            return 0;
    }
    return ((((first_of(entry) & keep) ^ toggle) ^ first_of(entry)) & ~varying_of(entry)) == 0;
}

/* What an update does to fields, of each value that a field can have. */
static void test_field_update(void)
{
    const int wide = (int)below(4);
    const uint8_t k = byte(), x = byte(), keep = below(2) ? byte() : below(2) ? 0 : 0xff;
    const uint8_t toggle = below(2) ? byte() : (uint8_t)(x & ~keep);        /* which often fits */
    uint8_t clear, flip;
    int all_fit = 1;
    const int answer = kvmattr_field_update(wide, k, x, keep, toggle, &clear, &flip);
    for (uint64_t field = 0; field < 1u << (1 << wide); field++) {
        const uint8_t wanted = (uint8_t)(((((raw_field(&field, wide, 0) & k) ^ x) & keep) ^ toggle) ^ x);
        const uint64_t updated = (field & (uint8_t)~clear) ^ flip;
        int fits = 0;
        for (uint64_t other = 0; other < 1u << (1 << wide); other++)
            fits |= (raw_field(&other, wide, 0) & k) == wanted;
        all_fit &= fits;
        CHECK(!answer || (raw_field(&updated, wide, 0) & k) == wanted, "field_update, wide %d", wide);
    }
    CHECK(answer == all_fit, "field_update: fits, wide %d, k %x, x %x, keep %x, toggle %x", wide, k, x, keep, toggle);
    fit += answer;
}

/* The bits in which some two fields of a leaf differ, as a raw value has them. */
static uint8_t fields_vary(const uint64_t *leaf, int wide)
{
    uint8_t varies = 0;
    for (unsigned page = 1; page < 512; page++)
        varies |= raw_field(leaf, wide, page) ^ raw_field(leaf, wide, 0);
    return varies;
}

static int write_located(kvmattr_located *located, int from, int n, uint64_t *changes, uint64_t *agree)
{
    int done = kvmattr_write_located(located, located, from, n, changes);
    *agree = set->agree(located, from, done);
    return done;
}

/* Pages are written to two leaves in which few pages vary, so that bits come and go: what is told of each page when all is
 * written must be right, and of the last one that changed in a leaf it must be told, as by that one the leaf became what
 * it is. */
static void test_write(void)
{
    static uint64_t leaves[2][64] __attribute__((aligned(512)));
    kvmattr_located located = {0};
    uint64_t changes = 7, expected = 7, agree = any();
    const int wide[2] = {(int)below(4), (int)below(4)};
    const int from = (int)below(3), n = from + 1 + (int)below(KVMATTR_LOCATED - 3);
    uint8_t changed[KVMATTR_LOCATED], fields[2][512];
    int which[KVMATTR_LOCATED], upto = n, stop = below(2) ? n : (int)below((uint64_t)n + 1);
    for (int leaf = 0; leaf < 2; leaf++) {
        uint64_t all = kvmattr_everywhere(kvmattr_fold(wide[leaf], byte() & (uint8_t)kvmattr_field_masks[wide[leaf]]));
        for (int i = 0; i < 64; i++)
            leaves[leaf][i] = all;
        for (uint64_t few = below(4); few; few--)
            leaves[leaf][below(8u << wide[leaf])] ^= (uint64_t)1 << below(64);
        for (unsigned page = 0; page < 512; page++)
            fields[leaf][page] = raw_field(leaves[leaf], wide[leaf], page);
    }
    if (stop >= from && stop < n)
        upto = stop;
    located.away = stop < n ? (uint64_t)1 << stop | (below(2) ? any() << stop : 0) : 0;
    if (stop < from)                        /* what is away before them is not looked at */
        located.away = (uint64_t)1 << stop;
    uint64_t pages[2] = {below(512), below(512)};
    for (int i = 0; i < n; i++) {
        int leaf = which[i] = (int)below(2);
        uint64_t page = below(3) ? pages[below(2)] : below(512), bit = page << wide[leaf];
        uint64_t mask = kvmattr_field_masks[wide[leaf]], flip = below(2) ? mask & any() : 0;
        uint64_t cleared = below(2) ? mask : mask & any();
        if (below(3) == 0) {                /* as the first page has it, most likely */
            cleared = mask;
            flip = fields[leaf][(page + 1) & 511] & mask;
        }
        located.where[i] = leaves[leaf] + (bit >> 6);
        located.keep[i] = ~(cleared << (bit & 63));
        located.toggle[i] = flip << (bit & 63);
        located.wide[i] = (uint64_t)wide[leaf];
        if (i < from || i >= upto)
            continue;
        uint8_t old = fields[leaf][page];
        uint8_t now = (uint8_t)(((old & mask & ~cleared) ^ flip) * kvmattr_field_repeats[wide[leaf]]);
        changed[i] = old ^ now;
        fields[leaf][page] = now;
        expected += old != now;
    }
    CHECK(write_located(&located, from, n, &changes, &agree) == upto, "write: as far as the first that is away");
    CHECK(changes == expected, "write: counts the pages that change");
    CHECK((agree & ~(((uint64_t)1 << upto) - ((uint64_t)1 << from))) == 0, "agree: pages that were not written");
    for (int leaf = 0; leaf < 2; leaf++) {
        uint8_t varies = fields_vary(leaves[leaf], wide[leaf]);
        int last = -1;
        for (unsigned page = 0; page < 512; page++)
            CHECK(raw_field(leaves[leaf], wide[leaf], page) == fields[leaf][page], "write: page %u", page);
        for (int i = from; i < upto; i++) {
            if (which[i] != leaf)
                continue;
            last = changed[i] ? i : last;
            if (agree >> i & 1) {
                CHECK(changed[i] && !(changed[i] & varies), "agree: page %d of %d, wide %d", i, n, wide[leaf]);
                agreed++;
            }
        }
        if (last >= 0)
            CHECK((int)(agree >> last & 1) == !(changed[last] & varies), "agree: last page %d, wide %d", last, wide[leaf]);
    }
}

static void test_locate(void)
{
    uint64_t gfns[KVMATTR_LOCATED], block;
    uint8_t keep[KVMATTR_LOCATED], toggle[KVMATTR_LOCATED], before[512];
    kvmattr_located located;
    kvmattr_walk walk = some_walk(below(3) != 0);
    int n = 1 + (int)below(KVMATTR_LOCATED);
    size_t step = below(2);
    uint64_t last = below(2) ? walk.span - 1 : below(walk.span);
    for (int i = 0; i < n; i++) {
        gfns[i] = below(8) ? some_gfn(&walk, walk.span) : some_gfn(&walk, walk.span + 100);
        if (below(16) == 0)
            gfns[i] &= below(2) ? ~(uint64_t)511 : ~(uint64_t)0x3ffff;
        if (gfns[i] < walk.span && below(2)) {      /* a page that is not like the first of its block, if there is one */
            uint64_t first = gfns[i] & ~(uint64_t)511;
            uint8_t value = value_of(walk.root, walk.level, first);
            for (unsigned other = 1; other < 512; other++)
                if (value_of(walk.root, walk.level, first + other) != value)
                    gfns[i] = first + other;
        }
    }
    for (int i = 0; i < KVMATTR_LOCATED; i++) {
        keep[i] = below(3) ? 0 : byte();
        toggle[i] = byte();
        if (below(4) == 0) {                /* one bit more, or less */
            keep[i] = 0xff;
            toggle[i] = (uint8_t)(1 << below(8));
            continue;
        }
        if (i < n && gfns[i] < walk.span && below(4))       /* a value that a page near it has */
            toggle[i] = value_of(walk.root, walk.level, (gfns[i] & ~(uint64_t)511) + below(512)) & (uint8_t)~keep[i];
    }
    set->locate(&walk, gfns, n, keep, toggle, step, last, &located);
    for (int i = 0; i < n; i++) {               /* the pages of a block once more change nothing */
        if (!plain_write(&walk, gfns[i], last, keep[step * (size_t)i], toggle[step * (size_t)i], &block))
            continue;
        uint64_t which = set->in_block(gfns, n, gfns[i]);
        kvmattr_located again = located;
        for (int j = 0; j < n; j++)
            if (which >> j & 1) {
                again.where[j] = NULL;
                again.keep[j] = again.toggle[j] = again.wide[j] = any();
                again.away ^= (uint64_t)1 << j;
            }
        kvmattr_locate_again(walk.bias, block, which, gfns, keep, toggle, step, last, &again);
        CHECK(again.away == located.away && again.firsts == located.firsts, "locate_again: away");
        for (int j = 0; j < n; j++)
            CHECK(located.away >> j & 1 || (again.where[j] == located.where[j] && again.keep[j] == located.keep[j] &&
                  again.toggle[j] == located.toggle[j] && again.wide[j] == located.wide[j]), "locate_again: page %d", j);
    }
    for (int i = 0; i < n; i++) {
        uint8_t k = keep[step * (size_t)i], x = toggle[step * (size_t)i];
        int plain = plain_write(&walk, gfns[i], last, k, x, &block);
        CHECK((int)(located.away >> i & 1) == !plain, "locate: page %d of %d away, level %d", i, n, walk.level);
        CHECK((int)(located.firsts >> i & 1) == (gfns[i] % 512 == 0), "locate: page %d the first of its block", i);
        away += !plain;
        if (!plain)
            continue;
        int wide = (int)(block & 3);
        uint64_t *leaf = kvmattr_words(bias, (uint32_t)block & ~7u), changes = 0;
        unsigned page = (unsigned)(gfns[i] & 511);
        CHECK(located.where[i] == leaf + ((page << wide) >> 6), "locate: the word of page %d", i);
        CHECK((int)located.wide[i] == wide, "locate: the width of page %d", i);
        for (unsigned other = 0; other < 512; other++)
            before[other] = value_of(block, 2, other);
        uint64_t old = *located.where[i], agree;
        CHECK(write_located(&located, i, i + 1, &changes, &agree) == i + 1, "write: page %d", i);
        for (unsigned other = 0; other < 512; other++) {
            uint8_t wanted = other == page ? (uint8_t)((before[other] & k) ^ x) : before[other];
            CHECK(value_of(block, 2, other) == wanted, "locate: page %d writes page %u of its block", i, other);
        }
        CHECK(changes == (old != *located.where[i]), "write: page %d tells whether it changed", i);
        uint64_t new = *located.where[i];
        uint8_t now = raw_field(leaf, wide, page), varies = fields_vary(leaf, wide);
        *located.where[i] = old;
        uint8_t changed = raw_field(leaf, wide, page) ^ now;
        *located.where[i] = new;
        CHECK((int)(agree >> i & 1) == (changed && !(changed & varies)), "agree: page %d", i);
        written += changes != 0;
        unchanged += changes == 0;
    }
}

static int run(const char *name, uint64_t seed)
{
    set = kvmattr_choose(name);
    if (!set) {
        printf("%s: not of this machine\n", name);
        return 0;
    }
    failures = written = unchanged = away = agreed = fit = listed = beyond = mixed_lines = cut_lists = 0;
    state = seed * 0x9e3779b97f4a7c15ULL | 1;
    for (int round = 0; round < 300; round++) {
        test_blocks();
        test_words();
        test_list_changes();
        test_take();
        test_read_off();
        test_locate();
        for (int i = 0; i < 20; i++) {
            test_field_update();
            test_write();
        }
        for (int i = 0; i < 20; i++) {
            test_splice();
            test_find();
            test_list_put();
        }
        if (round % 10 == 0)
            test_node();
    }
    if (!failures && !(written > 50 && unchanged > 50 && away > 100 && agreed > 200 && fit > 100 && listed > 100 &&
                       beyond > 100 && mixed_lines > 10 && cut_lists > 10 && spliced > 1000)) {
        failures = 1;
        printf("%s: the rounds met too little of something: written %d, unchanged %d, away %d, agreed %d, listed %d, beyond %d, left %d, "
               "cut %d\n", name, written, unchanged, away, agreed, listed, beyond, mixed_lines, cut_lists);
    }
    if (failures)
        printf("%s: %d failures with seed %llu\n", name, failures, (unsigned long long)seed);
    else
        printf("%s: as it should be\n", name);
    return failures;
}

int main(int count, char **words)
{
    uint64_t seed = count > 1 ? strtoull(words[1], NULL, 10) : 1;
    return (run("portable", seed) + run("avx2", seed) + run("avx512", seed)) != 0;
}
