# cython: binding=False, freethreading_compatible=True
"""The store: one attribute byte for each 4 KiB page of guest memory, in a 512-way tree.

The problem
-----------
A guest has up to 2^52 pages. Most of them agree with their neighbours most of the time, some regions are
fragmented down to the page, and both change at run time: KVM_SET_MEMORY_ATTRIBUTES names any range, and its
proposal (the mail of November 2022) has three operations, WRITE, OR and AND. An array of bytes makes every
operation cost its range; a list of runs makes it cost its runs; KVM's own xarray makes it cost both. Here an
operation costs the height of the tree, whatever the range holds.

Vocabulary
----------
page        4096 bytes of guest memory; named by its *gfn*, the guest frame number
block       512 pages, 2 MiB, aligned
level       as in KVM's page tables: an entry of level 2 covers a block, of level 3 512 blocks (1 GiB), ...
uniform     all pages below have one value; *mixed*: they have not
run         a maximal range of pages with one value
entry       one 64-bit word that stands for a whole subtree (entry.pxi)
node        512 entries, one 4 KiB page of memory, below an entry of level 3 or higher
leaf        a mixed block, as fields of 1, 2, 4 or 8 bits a page or as a line of few runs, below an entry of level 2
            (leaf.pxi)
run list    a few runs in place of a node (runlist.pxi)
handle      where a node or leaf lies in the arena, in granules of 8 bytes (pages.pxi)
family      maps that share nodes: a map, its copies and its snapshots; one arena, one mutex

From gfn to page
----------------
gfn 0x9d6b8e5 of a 64 GiB guest whose root entry has level 4 (512 GiB):

    0x9d6b8e5 = 001 | 001110101 | 101011100 | 011100101     (binary, 9 bits a level from the right)
                       117          348         229
    root --> node, entry 0x1 --> node, entry 117 --> node or leaf ...

is found by taking 9 bits a level, as a page walk does; the last 9 bits pick the page in the block. A subtree in
which every page agrees is one uniform entry, wherever that happens:

    root   [ n . . . u u u u ... u ]          n: node   l: leaf   u: uniform
             |
    level 4 [ u u n u ... u ]                 one terabyte is two entries of a node,
                  |                           one page is one bit of one leaf
    level 3     [ u l u l l ... u ]
                    |
    level 2       64 bytes: one bit a page

The entry carries the operation
-------------------------------
Every update is ``new = (old & k) ^ x``: WRITE v is k = 0, x = v; OR a is k = ~a, x = a; AND a is k = a, x = 0; a
mask only changes k and x; two of them compose to a third. An entry holds a k and an x of its own:

    handle:32 | k:8 | x:8 | V:8 | F:8          page = (raw & k) ^ x

so an update of a whole subtree is one AND and one XOR of its entry. However fragmented it is, nothing below
is touched, and what other maps share stays shared. A later update that must go deeper brings the pending operation
down into the node's 512 entries first (change.pxi), after it has made the node its own.

V has the bits that vary below, F is the value of the first page. They make an operation that leaves nothing
to vary collapse its subtree to one word, let a masked query stop at the first entry that answers it, and
tell whether an update changes anything. F is exact. V may be *loose* (a superset) in an entry that leads to a
node: an update widens it without looking at all 512 entries and tightens it every so often. It may be so in one that
leads to a leaf of more than one bit a page, whose pages take other values without a look at the others (leaf.pxi).
So V prunes and never decides.

A leaf has a field of 1, 2, 4 or 8 bits a page, and the field repeated to eight bits is the raw value. So the entry's
k and x make two values of one bit, wherever they differ, and the sixteen values of four attributes of four bits. One
formula reads all widths and one writes them (leaf.pxi), so that a batch does not ask what a leaf is.

Sharing
-------
Nodes and leaves are counted. A snapshot is one reference more to the root; whoever changes a node with more
than one reference copies it first, which adds a reference to each child. The state that a pinned root shows never
changes, so readers without the GIL read it without a lock.

Behind a batch
--------------
A batch need not leave the tree between two of its operations as single calls would. Pages that are the write of
a field are located in groups, one ahead of the one that is written (batch.pxi). Pages that lie in run lists
change the runs in buffers: such a list is *open*, and its record in the tree is behind, until all are stored,
at the latest before the mutex is given back: no reader finds one that is open (openlists.pxi). The machine, which
asks something of the map between two SETs of a batch, has lists open as well and asks through them (series.pxi).
Memory that has been filled becomes huge pages of the system only after the mutex was given back, by the writer that
filled it: what is asked for changes no word of the arena, so nobody needs to wait (huge.pxi).

Where to find what
------------------
The parts, in `_store/`. Each uses only what stands above it (tests/test_store_parts.py).

=========================================== ====================================================================
entry                                       the word, levels, and an operation as k and x
calls                                       what a map was asked to do, counted
pages, slabs, references, family            memory: the arena's pages, records, who refers to what
leaf, runlist, node                         encodings: mixed blocks, few runs, 512 entries
descent                                     the one way down to a page; what a range meets below a node
compact                                     what updates leave is tidied, a slice at a time
query                                       search, count, values
change, update                              the change of a range; the one door for a page or a range
export, diff, ruler                         pages and runs in address order, what differs, few runs as a ruler
locking, huge                               the mutex; what is full becomes huge pages of the system
maps, assign, fork                          whole maps, arrays written to them, the child of a fork
validate                                    every invariant
openlists, batch, series, bitmap            many pages, many ranges
arguments, cells, records, arrays, given    what Python hands in and gets: checks, arrays, runs, pages, batches
facts, serial, saving                       stats() and validate(); bytes; files
attribute_map                               the Python face
for_cython, c_handles, c_calls, c_cursors,  what Cython, C and C++ call, counted once somebody asks for counts, and the
c_counted, capi                             table behind the capsule
=========================================== ====================================================================

================================== ==================================================== ====================
operation                          function                                             cost
================================== ==================================================== ====================
get                                tree_get, by way_down (descent)                      height
write, or_, and_, update           map_update (update): a page by page_update, a range  height + two leaves
                                   by map_would_change, map_change, entry_update
put, m[gfn] = v                    page_update; many at once: put_located (batch)       height
put of pages in run lists          put_listed (batch), listed_update (openlists)        a list for each hold
SETs of a machine's batch          series_update (series)                               as put, and one by one
take                               kernels.take (kernels/contract.h), read_off          height a page
all, any, find, uniform, run       map_search (query)                                   height, + what is mixed
count, values, run_count           entry_count, entry_values, entry_transitions         nodes and leaves
to_numpy, runs                     entry_pages, entry_runs (export)                     what it writes
diff, ==                           sides_diff (diff)                                    what differs
copy, snapshot, restore            map_share (maps)                                     constant
m[a:b] = array                     map_store (assign), built aside, swung in            blocks
validate                           audit_family (validate)                              everything
put_bitmap, bitmap                 bitmap_run, map_bitmap (bitmap)                      blocks
to_bytes, pickle                   write_map, read_map (serial)                         runs and mixed blocks
save, load                         save_bytes, load_bytes (saving)                      as to_bytes
batches, pins                      batch_run (batch), pin (maps)                        a group for each hold
the mutex, and who is next         family_lock (locking)                                constant
what updates leave to be tidied    family_settle (compact)                              a slice an update
================================== ==================================================== ====================

Roads not taken
---------------
A pending operation in the node instead of the entry must own every child that it reaches: it loses sharing. Pointers
in place of handles leave no room for the operation. Nodes of 64 or compressed nodes are smaller and deeper, and
depth is what a look-up pays for. A count of runs in each node makes every single-page write pay for a number that
few ask for. The figures are in docs/costs.md.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_RECORDS_RO, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release,
    PyObject_CheckBuffer, PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyIndex_Check
from libc.stdint cimport INT64_MAX, int16_t, int64_t, intptr_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

import errno
import os
import pickle
import re
import stat
import struct
import zlib

import numpy as np

from kvmattr.operation import Operation
from kvmattr.run import Run

cdef extern from "pyint.h":
    bint kvmattr_short_integer(object value, int64_t *result)
    int kvmattr_integer(object value, int64_t *result) except -1
    int kvmattr_fill_attributes() except -1
    object kvmattr_attribute(uint8_t value)
    object kvmattr_truth(bint value)

cdef extern from "sync.h" nogil:
    const bint KVMATTR_FREE_THREADED
    const bint KVMATTR_DEBUG_BUILD
    void kvmattr_assert(bint condition)
    void kvmattr_read_once(void *copy, const void *source, size_t bytes)
    bint kvmattr_given_is(const uint8_t *given, const uint8_t *ours, size_t step, size_t bytes)
    void kvmattr_add(uint64_t *number, uint64_t by)
    uint64_t kvmattr_number(const uint64_t *number)
    void kvmattr_replace_words(void *to, const void *source, size_t bytes)
    void kvmattr_raise_version(uint64_t *version, uint64_t by)
    uint64_t kvmattr_read_version(const uint64_t *version)
    void kvmattr_store_int(int *where, int value)
    enum: KVMATTR_STRIPES
    ctypedef struct kvmattr_stripe "struct kvmattr_stripe":
        pass
    uint64_t *kvmattr_reader_enter(kvmattr_stripe *stripes, const int *writing)
    void kvmattr_reader_leave(uint64_t *word)
    uint64_t kvmattr_readers_wait(kvmattr_stripe *stripes, int *writing)
    int kvmattr_load_int(const int *where)
    uint64_t kvmattr_nanoseconds()
    void kvmattr_relax()
    void kvmattr_rest(uint64_t nanoseconds)

cdef extern from "counting.h" nogil:
    const bint KVMATTR_COUNTING_BUILD
    void kvmattr_count_visit(const Family *family)
    void kvmattr_count_pages(const Family *family, uint64_t pages)

cdef extern from "kernels/choose.h" nogil:
    ctypedef struct kvmattr_walk:
        const uintptr_t *bias
        uint64_t root
        uint64_t span
        int level
        int nsegments
        intptr_t ahead
        uint8_t rest

    enum: KVMATTR_RULER_RUNS
    ctypedef struct kvmattr_ruler:
        uint64_t *starts
        uint8_t *values
        int runs
        int most
    ctypedef struct kvmattr_small_ruler:
        pass
    const int KVMATTR_SMALL_RULER_RUNS
    size_t KVMATTR_RULER_BYTES(int runs) noexcept nogil
    void kvmattr_ruler_place(kvmattr_ruler *ruler, void *memory, int runs) noexcept nogil
    void kvmattr_ruler_close(kvmattr_ruler *ruler) noexcept nogil

    ctypedef struct kvmattr_change_list:
        uint64_t *bits
        uint64_t *gfn
        uint64_t *values
        int count
        uint8_t value

    enum: KVMATTR_TAKE_GROUP, KVMATTR_LOCATED
    ctypedef struct kvmattr_located:
        uint64_t *where[KVMATTR_LOCATED]
        uint64_t wide[KVMATTR_LOCATED]
        uint64_t away, firsts
    int kvmattr_write_located(kvmattr_located *located, const kvmattr_located *next, int start, int n,
                              uint64_t *changed) noexcept nogil
    void kvmattr_locate_again(const uintptr_t *bias, uint64_t entry, uint64_t which, const uint64_t *gfns,
                              const uint8_t *ks, const uint8_t *xs, size_t step, uint64_t last,
                              kvmattr_located *located) noexcept nogil

    ctypedef struct kvmattr_list:
        uint32_t references
        uint16_t size_class
        uint16_t count
    enum: KVMATTR_LIST_RUNS, KVMATTR_LIST_LOST, KVMATTR_LIST_FULL
    ctypedef struct Splice "kvmattr_splice":
        int at                  # the first run that goes, or before which others come
        int gone
        int added
        uint64_t starts[2]
        uint8_t values[2]
    uint64_t *kvmattr_list_starts(const kvmattr_list *list) noexcept nogil
    uint8_t *kvmattr_list_values(const kvmattr_list *list, int count) noexcept nogil

    enum: KVMATTR_LINE, KVMATTR_TAG, KVMATTR_LINE_STARTS, KVMATTR_NO_START
    ctypedef struct kvmattr_line:
        int16_t starts[KVMATTR_LINE_STARTS]
        uint8_t values[KVMATTR_LINE_STARTS + 1]
        uint8_t count
        uint8_t turns
    const uint64_t *kvmattr_field_masks
    const uint32_t *kvmattr_field_repeats
    uint64_t kvmattr_everywhere(uint8_t byte) noexcept nogil
    uint8_t kvmattr_fold(int wide, uint8_t byte) noexcept nogil
    uint8_t kvmattr_turned(uint8_t byte, int by) noexcept nogil
    uint8_t kvmattr_field_raw(const uint64_t *leaf, int wide, uint32_t page) noexcept nogil
    bint kvmattr_field_update(int wide, uint8_t k, uint8_t x, uint8_t keep, uint8_t toggle, uint8_t *clear,
                              uint8_t *flip) noexcept nogil
    uint64_t kvmattr_fields_vary(const uint64_t *leaf, int wide) noexcept nogil
    bint kvmattr_word_agrees(uint64_t word, int wide, uint64_t differ) noexcept nogil
    bint kvmattr_page_agrees(const uint64_t *where, int wide, uint64_t differ, uint64_t fields) noexcept nogil
    int kvmattr_line_run(const kvmattr_line *line, uint32_t page) noexcept nogil
    uint8_t kvmattr_line_raw(const kvmattr_line *line, uint32_t page) noexcept nogil
    ctypedef struct kvmattr_kernels:
        const char *name
        void (*expand)(const uint64_t *words, uint8_t k, uint8_t x, uint8_t *out) noexcept nogil
        void (*spread)(const uint64_t *words, int tag, uint8_t k, uint8_t x, uint8_t *out) noexcept nogil
        void (*pack)(const uint8_t *block, int wide, uint8_t x, uint64_t *words) noexcept nogil
        void (*affine)(uint8_t *p, size_t n, uint8_t k, uint8_t x) noexcept nogil
        void (*match)(const uint8_t *block, uint8_t want, uint8_t mask, uint64_t *bits) noexcept nogil
        void (*changes)(const uint8_t *block, uint64_t *bits) noexcept nogil
        void (*relate)(const uint8_t *block, uint8_t *vary) noexcept nogil
        uint8_t (*summary)(const uint64_t *entries) noexcept nogil
        bint (*apply)(uint64_t *entries, size_t n, uint64_t keep, uint64_t toggle) noexcept nogil
        void (*pages)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x,
                      uint8_t *out) noexcept nogil
        uint64_t (*edges)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint8_t *first,
                          uint8_t *last) noexcept nogil
        int (*list_changes)(const uintptr_t *bias, const uint64_t *entries, int n, uint8_t k, uint8_t x, uint64_t base,
                            kvmattr_change_list *list) noexcept nogil
        uint64_t (*count)(const uintptr_t *bias, const uint64_t *entries, uint8_t k, uint8_t x, uint8_t want,
                          uint8_t mask) noexcept nogil
        uint64_t (*popcount)(const uint64_t *words, size_t n) noexcept nogil
        uint64_t (*largest)(const uint64_t *gfns, size_t n) noexcept nogil
        uint64_t (*in_block)(const uint64_t *gfns, int n, uint64_t gfn) noexcept nogil
        void (*locate)(const kvmattr_walk *walk, const uint64_t *gfns, int n, const uint8_t *k, const uint8_t *x,
                       size_t step, uint64_t last, kvmattr_located *located) noexcept nogil
        uint64_t (*agree)(const kvmattr_located *located, int start, int n) noexcept nogil
        void (*take)(const kvmattr_walk *walk, const uint64_t *gfns, uint8_t *out, size_t n) noexcept nogil
        void (*read_off)(const kvmattr_ruler *ruler, const uint64_t *gfns, intptr_t ahead, uint8_t *out,
                         size_t n) noexcept nogil
        unsigned int (*find)(const uint64_t *starts, unsigned int count, uint64_t page) noexcept nogil
        void (*splice)(const Splice *splice, size_t count, const uint64_t *starts, const uint8_t *values,
                       uint64_t *to_starts, uint8_t *to_values) noexcept nogil
        unsigned int (*list_put)(kvmattr_list *list, uint64_t page, uint64_t span, uint8_t k, uint8_t x,
                                 unsigned int most) noexcept nogil

    const kvmattr_kernels *kvmattr_choose(const char *name)
    uint64_t kvmattr_load64(const void *p)
    uint64_t *kvmattr_words(const uintptr_t *bias, uint32_t handle)
    enum: KVMATTR_HANDLES
    bint kvmattr_any_handle(const uint64_t *entries)
    void kvmattr_prefetch(const void *p)
    void kvmattr_prefetch_soon(const void *p)
    int kvmattr_first_bit(uint64_t word)
    int kvmattr_last_bit(uint64_t word)

cdef const kvmattr_kernels *kernels = NULL

include "_store/entry.pxi"
include "_store/calls.pxi"
include "_store/pages.pxi"
include "_store/slabs.pxi"
include "_store/references.pxi"
include "_store/family.pxi"
include "_store/leaf.pxi"
include "_store/runlist.pxi"
include "_store/node.pxi"
include "_store/descent.pxi"
include "_store/compact.pxi"
include "_store/query.pxi"
include "_store/change.pxi"
include "_store/update.pxi"
include "_store/export.pxi"
include "_store/diff.pxi"
include "_store/ruler.pxi"
include "_store/locking.pxi"
include "_store/huge.pxi"
include "_store/maps.pxi"
include "_store/assign.pxi"
include "_store/fork.pxi"
include "_store/validate.pxi"
include "_store/openlists.pxi"
include "_store/batch.pxi"
include "_store/series.pxi"
include "_store/bitmap.pxi"
include "_store/arguments.pxi"
include "_store/cells.pxi"
include "_store/records.pxi"
include "_store/facts.pxi"
include "_store/arrays.pxi"
include "_store/given.pxi"
include "_store/serial.pxi"
include "_store/saving.pxi"
include "_store/attribute_map.pxi"
include "_store/for_cython.pxi"
include "_store/c_handles.pxi"
include "_store/c_calls.pxi"
include "_store/c_cursors.pxi"
include "_store/c_counted.pxi"
include "_store/capi.pxi"


def _choose_kernels():
    """Pick the kernels of this machine, or those that the environment variable KVMATTR_SIMD names."""
    global kernels
    cdef bytes name
    wanted = os.environ.get("KVMATTR_SIMD")
    if wanted:
        name = wanted.encode()
        kernels = kvmattr_choose(name)
    else:
        kernels = kvmattr_choose(NULL)
    if kernels == NULL:
        kernels = kvmattr_choose(NULL)
        raise ImportError(f"KVMATTR_SIMD={wanted!r}: this machine has no such kernels "
                          f"(portable, avx2 or avx512; the best here is {kernels.name.decode()})")
    arena_prepare()


_choose_kernels()
kvmattr_fill_attributes()
if fork_register() < 0:
    raise MemoryError("out of memory for the fork handlers")
