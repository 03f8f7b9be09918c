# cython: language_level=3, freethreading_compatible=True
"""Memslots as KVM keeps them, and the VMM that has only memslots.

A *memslot* maps a range of guest pages to user-space memory. KVM finds the memslot of a gfn in a balanced
tree, keeps two generations of that tree, and lets a change take effect by installing the other one. What a
VMM pays for a change is therefore: a few steps in two trees, the installations (each waits for all vCPUs to
leave the old set), and the metadata of each new memslot, which grows with its size.

::

    SlotSet                       records (64 bytes each, record id + 1)
      roots[0] ----+               0  nobody
      roots[1] --+ |               1  slot 0   [0, 256)       links[0], links[1]
      active = 0 | +-------------> 2  slot 1   [256, 257)     links[0], links[1]
      last_used  +---------------> 3  slot 2   [257, 65536)   links[0], links[1]

    slot_at(257)     last_used holds 257? else descend roots[active] to the last start <= 257: record 3
    slot_create      insert in tree 1, active = 1, insert in tree 0
    slot_delete      active = 1 (where the slot is INVALID), remove from both trees, active = 0

Files: ``tree.pxi`` is one generation's tree, ``metadata.pxi`` what is allocated with a slot, ``slot_set.pxi``
the changes, ``region.pxi`` the rules of KVM_SET_USER_MEMORY_REGION, ``table.pxi`` and
``guest_memfd.pxi`` what Python sees of them, ``splitting.pxi`` the baseline that converts pages by splitting
slots. Structures and lookups are in ``_memslots.pxd``.

Costs: lookup and change O(log memslots); metadata 4 bytes per 2 MiB and 1 GiB of each slot created.
"""

import sys
from errno import EBADF, EEXIST, EINVAL, ENOMEM
from operator import index as as_int
from typing import NamedTuple

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

import numpy as np

from kvmattr import uapi
from kvmattr.hosts import X86_64
from kvmattr.operation import Operation

cdef extern from "operation.h" nogil:
    enum:
        OPERATION_WRITE "KVMATTR_OPERATION_WRITE"       # kvmattr.Operation
        OPERATION_OR "KVMATTR_OPERATION_OR"
        OPERATION_AND "KVMATTR_OPERATION_AND"
    ctypedef struct UpdateForm "kvmattr_update_form":
        uint8_t k
        uint8_t x
    UpdateForm update_form_of "kvmattr_update_form_of"(uint8_t attributes, int operation, uint8_t mask)

cdef enum:
    PAGE_SHIFT = 12
    PAGE_SIZE = 4096
    ADDRESS_SPACE_SHIFT = 16
    MAX_ADDRESS_SPACES = 2
    MAX_NR_MEMSLOTS = 65535     # ids are 16 bits, and record 0 is nobody
cdef uint64_t MAX_GFN = uapi.MAX_NPAGES
cdef uint64_t MAX_NR_PAGES = uapi.KVM_MEM_MAX_NR_PAGES
cdef uint32_t LOG_DIRTY = uapi.KVM_MEM_LOG_DIRTY_PAGES
cdef uint32_t READONLY = uapi.KVM_MEM_READONLY
cdef uint32_t GUEST_MEMFD = uapi.KVM_MEM_GUEST_MEMFD
cdef uint32_t SLOT_FLAGS = LOG_DIRTY | READONLY | GUEST_MEMFD
cdef tuple METADATA_NAMES = ("tdp", "full")     # in the order of MetadataKind

include "_slots/arguments.pxi"
include "_slots/tree.pxi"
include "_slots/metadata.pxi"
include "_slots/slot_set.pxi"
include "_slots/guest_memfd.pxi"
include "_slots/region.pxi"
include "_slots/table.pxi"
include "_slots/splitting.pxi"
