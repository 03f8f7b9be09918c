# cython: freethreading_compatible=True
"""KVM's own way to keep attributes: an xarray with one entry a page, set by KVM's own loops.

A model of Linux 6.12's ``kvm_vm_set_mem_attributes`` (virt/kvm/kvm_main.c) over the XArray's behaviour as its
documentation states it (Documentation/core-api/xarray.rst): nodes of 64 entries, a tree as high as its
largest index needs, an empty entry for value 0. A set of [start, stop)

1. does nothing if every page has the value already;
2. reserves an entry for every page, one walk from the root each, so that no store can fail;
3. stores every page, one walk from the root each; storing 0 empties the entry and frees a node that is empty.

Left out: KVM's locks but the xarray's own, memslot callbacks and zapping (the kernel does more than this),
and that the kernel keeps a lone entry of index 0 without a node.

An entry is 0 (empty), 1 (reserved: reads as empty) or ``value << 1 | 1`` with value != 0; inner entries are
pointers, told from values by the level they stand on.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

import numpy as np

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_spinlock_t:
        pass
    int pthread_spin_init(pthread_spinlock_t *lock, int shared)
    int pthread_spin_lock(pthread_spinlock_t *lock)
    int pthread_spin_unlock(pthread_spinlock_t *lock)

cdef enum:
    BITS = 6
    ENTRIES = 64
    RESERVED = 1
    PAGES_2M = 512              # and so many 2 MiB blocks in 1 GiB

ctypedef enum Operation:
    WRITE
    OR
    AND

# 576 bytes, as the kernel's struct xa_node.
cdef struct Node:
    uint8_t shift
    uint8_t offset              # of this node in its parent
    uint8_t count               # entries that are not 0
    Node *parent
    uint64_t marks[6]           # the kernel's list head and marks: never used here, but memory that it takes
    uint64_t entries[ENTRIES]

cdef struct Array:
    Node *root                  # NULL: empty
    uint64_t nodes
    pthread_spinlock_t lock


cdef Node *node_new(Array *array, Node *parent, uint8_t shift, uint8_t offset) noexcept nogil:
    cdef Node *node = <Node *> calloc(1, sizeof(Node))
    if node != NULL:
        node.parent = parent
        node.shift = shift
        node.offset = offset
        array.nodes += 1
    return node


cdef void node_free(Array *array, Node *node) noexcept nogil:
    free(node)
    array.nodes -= 1


cdef void tree_free(Array *array, Node *node) noexcept nogil:
    cdef int i
    if node.shift:
        for i in range(ENTRIES):
            if node.entries[i]:
                tree_free(array, <Node *> node.entries[i])
    node_free(array, node)


cdef inline bint reaches(const Node *root, uint64_t index) noexcept nogil:
    """Is the tree high enough for index?"""
    return root != NULL and (root.shift + BITS >= 64 or index >> (root.shift + BITS) == 0)


cdef Node *leaf_of(Array *array, uint64_t index) noexcept nogil:
    """The leaf that holds index, or NULL: one walk from the root."""
    cdef Node *node = array.root
    if not reaches(node, index):
        return NULL
    while node != NULL and node.shift:
        node = <Node *> node.entries[(index >> node.shift) & (ENTRIES - 1)]
    return node


cdef Node *leaf_made(Array *array, uint64_t index) noexcept nogil:
    """The leaf that holds index, made with all nodes above it where missing; NULL without memory."""
    cdef Node *node
    cdef Node *child
    cdef uint8_t shift = 0
    cdef uint8_t offset
    if array.root == NULL:
        while index >> (shift + BITS):
            shift += BITS
        array.root = node_new(array, NULL, shift, 0)
    while array.root != NULL and not reaches(array.root, index):
        node = node_new(array, NULL, array.root.shift + BITS, 0)
        if node == NULL:
            return NULL
        node.entries[0] = <uint64_t> array.root
        node.count = 1
        array.root.parent = node
        array.root = node
    node = array.root
    while node != NULL and node.shift:
        offset = (index >> node.shift) & (ENTRIES - 1)
        child = <Node *> node.entries[offset]
        if child == NULL:
            child = node_new(array, node, node.shift - BITS, offset)
            if child == NULL:
                return NULL
            node.entries[offset] = <uint64_t> child
            node.count += 1
        node = child
    return node


cdef void prune(Array *array, Node *node) noexcept nogil:
    """Free node and its parents while empty, then lower the tree while only its first child is left."""
    cdef Node *parent
    while node != NULL and node.count == 0:
        parent = node.parent
        if parent == NULL:
            array.root = NULL
        else:
            parent.entries[node.offset] = 0
            parent.count -= 1
        node_free(array, node)
        node = parent
    while array.root != NULL and array.root.shift and array.root.count == 1 and array.root.entries[0]:
        node = array.root
        array.root = <Node *> node.entries[0]
        array.root.parent = NULL
        node_free(array, node)


cdef inline uint8_t value_of(uint64_t entry) noexcept nogil:
    return <uint8_t> (entry >> 1)


cdef bint reserve(Array *array, uint64_t index) noexcept nogil:
    """xa_reserve: False without memory."""
    cdef Node *leaf
    cdef uint64_t *entry
    pthread_spin_lock(&array.lock)
    leaf = leaf_made(array, index)
    if leaf != NULL:
        entry = &leaf.entries[index & (ENTRIES - 1)]
        if entry[0] == 0:
            entry[0] = RESERVED
            leaf.count += 1
    pthread_spin_unlock(&array.lock)
    return leaf != NULL


cdef void store(Array *array, uint64_t index, uint8_t value) noexcept nogil:
    """xa_store into a reserved entry, which cannot fail."""
    cdef Node *leaf
    pthread_spin_lock(&array.lock)
    leaf = leaf_of(array, index)
    if value:
        leaf.entries[index & (ENTRIES - 1)] = <uint64_t> value << 1 | 1
    else:
        leaf.entries[index & (ENTRIES - 1)] = 0
        leaf.count -= 1
        if leaf.count == 0:
            prune(array, leaf)
    pthread_spin_unlock(&array.lock)


cdef uint8_t load(Array *array, uint64_t index) noexcept nogil:
    """xa_load."""
    cdef Node *leaf = leaf_of(array, index)
    return 0 if leaf == NULL else value_of(leaf.entries[index & (ENTRIES - 1)])


cdef uint64_t next_nonempty(Array *array, uint64_t index, uint64_t stop) noexcept nogil:
    """The first index in [index, stop) with a value, or stop: a hole is one step for a whole subtree."""
    cdef Node *node
    cdef uint64_t entry
    cdef uint8_t shift
    while index < stop and reaches(array.root, index):
        node = array.root
        while True:
            shift = node.shift
            entry = node.entries[(index >> shift) & (ENTRIES - 1)]
            if entry == 0 or shift == 0:
                break
            node = <Node *> entry
        if shift == 0 and entry > RESERVED:
            return index
        index = ((index >> shift) + 1) << shift
    return stop


cdef Py_ssize_t runs_of(Array *array, uint64_t npages, uint64_t *starts, uint8_t *values) noexcept nogil:
    """The number of runs of [0, npages), which is not empty; they are stored where starts is not NULL."""
    cdef Node *leaf
    cdef uint64_t index = 0
    cdef uint64_t stop
    cdef uint8_t value
    cdef int before = -1
    cdef Py_ssize_t count = 0
    while index < npages:
        leaf = leaf_of(array, index)
        if leaf == NULL:
            value = 0
            stop = next_nonempty(array, index, npages)
        else:
            value = value_of(leaf.entries[index & (ENTRIES - 1)])
            stop = index + 1
        if value != before:
            if starts != NULL:
                starts[count] = index
                values[count] = value
            count += 1
            before = value
        index = stop
    return count


cdef bint range_has(Array *array, uint64_t start, uint64_t stop, uint8_t value) noexcept nogil:
    """kvm_range_has_memory_attributes: a step a page for a value, jumps over holes for 0."""
    cdef Node *leaf = NULL
    cdef uint64_t index
    if stop - start == 1:
        return load(array, start) == value
    if value == 0:
        return next_nonempty(array, start, stop) == stop
    for index in range(start, stop):
        if leaf == NULL or index & (ENTRIES - 1) == 0:
            leaf = leaf_of(array, index)
            if leaf == NULL:
                return False
        if value_of(leaf.entries[index & (ENTRIES - 1)]) != value:
            return False
    return True


cdef bint set_range(Array *array, uint64_t start, uint64_t stop, uint8_t attributes,
                    uint8_t operation) noexcept nogil:
    """kvm_vm_set_mem_attributes, with the mail's operation; False without memory, every value as before."""
    cdef uint64_t index
    cdef uint8_t value
    if operation == WRITE and range_has(array, start, stop, attributes):
        return True
    for index in range(start, stop):
        if not reserve(array, index):
            return False
    for index in range(start, stop):
        value = attributes
        if operation == OR:
            value |= load(array, index)
        elif operation == AND:
            value &= load(array, index)
        store(array, index, value)
    return True


cdef class XArray:
    """Attributes of pages in an xarray, as KVM keeps them; ranges are not checked (the study makes them)."""

    cdef Array array

    def __cinit__(self):
        pthread_spin_init(&self.array.lock, 0)

    def __dealloc__(self):
        if self.array.root != NULL:
            tree_free(&self.array, self.array.root)

    def update_many(self, const uint64_t[::1] starts, const uint64_t[::1] stops,
                    const uint8_t[::1] attributes, const uint8_t[::1] operations):
        """Set ranges in order, GIL released; returns how many were set before memory ran out."""
        cdef Py_ssize_t done = 0
        with nogil:
            while done < starts.shape[0]:
                if not set_range(&self.array, starts[done], stops[done], attributes[done], operations[done]):
                    break
                done += 1
        return done

    def lookup(self, const uint64_t[::1] gfns):
        """The attributes of single pages, one walk each. GIL released."""
        cdef Py_ssize_t i
        found = np.empty(gfns.shape[0], np.uint8)
        cdef uint8_t[::1] out = found
        with nogil:
            for i in range(gfns.shape[0]):
                out[i] = load(&self.array, gfns[i])
        return found

    def has(self, const uint64_t[::1] starts, const uint64_t[::1] stops, const uint8_t[::1] attributes):
        """For each range: do all its pages have these attributes? GIL released."""
        cdef Py_ssize_t i
        answers = np.empty(starts.shape[0], np.bool_)
        cdef uint8_t[::1] out = answers.view(np.uint8)
        with nogil:
            for i in range(starts.shape[0]):
                out[i] = range_has(&self.array, starts[i], stops[i], attributes[i])
        return answers

    def mixed(self, uint8_t[::1] small, uint8_t[::1] large):
        """Which blocks hold unequal attributes: those of 2 MiB into ``small``, of 1 GiB into ``large``.

        As KVM finds it when a slot is made: a small block against its first page, a large one by its small
        ones and their first pages.
        """
        cdef Py_ssize_t i, child
        cdef uint64_t first
        cdef uint8_t value
        with nogil:
            for i in range(small.shape[0]):
                first = <uint64_t> i * PAGES_2M
                small[i] = not range_has(&self.array, first, first + PAGES_2M, load(&self.array, first))
            for i in range(large.shape[0]):
                first = <uint64_t> i * PAGES_2M * PAGES_2M
                value = load(&self.array, first)
                large[i] = False
                for child in range(i * PAGES_2M, (i + 1) * PAGES_2M):
                    if small[child] or load(&self.array, <uint64_t> child * PAGES_2M) != value:
                        large[i] = True
                        break

    def runs(self, uint64_t npages):
        """The runs of ``[0, npages)``, not empty: ``(starts, attributes)`` as uint64 and uint8 arrays, in order."""
        cdef Py_ssize_t count
        cdef uint64_t[::1] starts
        cdef uint8_t[::1] values
        with nogil:
            count = runs_of(&self.array, npages, NULL, NULL)
        found = np.empty(count, np.uint64), np.empty(count, np.uint8)
        starts, values = found
        with nogil:
            runs_of(&self.array, npages, &starts[0], &values[0])
        return found

    @property
    def nodes(self):
        """Nodes in use."""
        return self.array.nodes

    @property
    def nbytes(self):
        """Bytes of the nodes: 576 each, as in the kernel."""
        return self.array.nodes * sizeof(Node)
