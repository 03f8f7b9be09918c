# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A machine that was made up, with real page attributes: every fetch, load and store is checked.

An instruction is a 32-bit word in guest memory, ``operation | a << 8 | b << 16 | c << 24``, registers are r0..r15:

==== ================ =================================
0    HALT             the end
1    SET a, b, c      a = b | c << 8
2    ADD a, b, c      a = b + c
3    SHIFT a, b, c    a = b << (c & 63)
4    LOAD a, b        a = the 64-bit word at address b
5    STORE a, b       the word at address b = a
6    LOOP a, b        a -= 1; unless a is 0, go back b instructions
==== ================ =================================

Addresses are guest-physical. As under TDX, one address bit says how the guest looks at a page: with SHARED_BIT it
takes the page as shared, without as private; code is taken as the machine was told. A page whose attributes do not
allow an access ends ``run``, which names the page and the access; once the attributes were changed, by any thread,
``run`` goes on at the same instruction.

How it is done: one cursor for code and one for data. While the attributes do not change and accesses stay within a
block of 512 pages, or within a larger uniform one, a check is two compares, and one more for the attributes.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport kvmattr

from kvmattr.uapi import (KVM_MEM_ATTR_NO_EXEC, KVM_MEM_ATTR_NO_READ, KVM_MEM_ATTR_NO_WRITE,
                          KVM_MEM_ATTR_PRIVATE)

kvmattr.import_api()

SHARED_BIT = 1 << 47

cdef uint64_t SHARED = SHARED_BIT
cdef uint8_t PRIVATE = KVM_MEM_ATTR_PRIVATE
cdef uint8_t NO_READ = KVM_MEM_ATTR_NO_READ
cdef uint8_t NO_WRITE = KVM_MEM_ATTR_NO_WRITE
cdef uint8_t NO_EXEC = KVM_MEM_ATTR_NO_EXEC

cdef enum Reason:
    HALT = 0
    STEPS = 1           # as many as were asked for
    REFUSED = 2
    OUTSIDE = 3         # no such page
    UNKNOWN = 4         # no such operation

REASONS = ("halt", "steps", "refused", "outside", "unknown operation")


cdef inline Reason checked(kvmattr.Cursor *cursor, uint64_t address, uint8_t wanted, uint8_t refused) noexcept nogil:
    """Whether the page allows an access that wants it so (PRIVATE or 0) and that these bits refuse."""
    cdef int attributes = kvmattr.cursor_get(cursor, address >> 12)
    if attributes < 0:
        return OUTSIDE
    return REFUSED if (attributes ^ wanted) & (refused | PRIVATE) else HALT


cdef class Simulator:
    """A guest with ``memory`` (a bytearray from address 0) and the page attributes of ``attributes``."""

    cdef object attributes              # holds the map that the cursors look at
    cdef uint8_t[::1] memory
    cdef kvmattr.Map *map
    cdef kvmattr.Cursor *code
    cdef kvmattr.Cursor *data
    cdef uint64_t[16] registers
    cdef uint8_t code_private
    cdef readonly uint64_t instruction  # address of the next one
    cdef readonly uint64_t accesses     # checked so far

    def __cinit__(self, attributes, memory, bint private_code=False):
        self.attributes = attributes
        self.memory = memory
        self.map = kvmattr.map_of(attributes)
        if kvmattr.pages(self.map) << 12 < <uint64_t>self.memory.shape[0]:
            raise ValueError("there is more memory than pages with attributes")
        self.code_private = PRIVATE if private_code else 0
        if kvmattr.cursor_open(self.map, &self.code) < 0 or kvmattr.cursor_open(self.map, &self.data) < 0:
            raise MemoryError("out of memory for cursors")
        kvmattr.share(self.map)         # run() looks at it without the GIL

    def __dealloc__(self):
        if self.code != NULL:
            kvmattr.cursor_close(self.code)
        if self.data != NULL:
            kvmattr.cursor_close(self.data)
            kvmattr.unshare(self.map)

    def register(self, int number):
        """The value of a register."""
        return self.registers[number & 15]

    def go(self, uint64_t address):
        """Continue at another instruction."""
        self.instruction = address

    def run(self, uint64_t steps):
        """Execute up to so many instructions; ``(reason, address, access)`` tells why it ended and where."""
        cdef uint64_t address = 0
        cdef uint8_t access = 0
        cdef Reason reason
        with nogil:
            reason = self.execute(steps, &address, &access)
        return REASONS[reason], address, {0: "", 1: "fetch", 2: "load", 3: "store"}[access]

    cdef Reason execute(self, uint64_t steps, uint64_t *address, uint8_t *access) noexcept nogil:
        cdef uint64_t *r = self.registers
        cdef uint8_t *memory = &self.memory[0]
        cdef uint64_t size = self.memory.shape[0]
        cdef uint64_t pc = self.instruction, accesses = self.accesses, at
        cdef uint32_t word
        cdef uint8_t operation, a, b, c
        cdef Reason reason = STEPS
        while steps:
            steps -= 1
            accesses += 1
            reason = OUTSIDE if pc + 4 > size else checked(self.code, pc, self.code_private, NO_EXEC)
            if reason != HALT:
                address[0] = pc
                access[0] = 1
                break
            memcpy(&word, memory + pc, 4)
            operation = word & 0xff
            a = word >> 8 & 15
            b = word >> 16 & 0xff
            c = word >> 24
            if operation == 6:
                r[a] -= 1
                if r[a]:
                    pc -= 4 * <uint64_t>b
                    reason = STEPS
                    continue
            elif operation == 4 or operation == 5:
                at = r[b & 15] & ~SHARED
                accesses += 1
                if at + 8 > size or at & 7:
                    reason = OUTSIDE
                else:
                    reason = checked(self.data, at, 0 if r[b & 15] & SHARED else PRIVATE,
                                     NO_READ if operation == 4 else NO_WRITE)
                if reason != HALT:
                    address[0] = at
                    access[0] = 2 if operation == 4 else 3
                    break
                if operation == 4:
                    memcpy(&r[a], memory + at, 8)
                else:
                    memcpy(memory + at, &r[a], 8)
            elif operation == 2:
                r[a] = r[b & 15] + r[c & 15]
            elif operation == 1:
                r[a] = b | <uint64_t>c << 8
            elif operation == 3:
                r[a] = r[b & 15] << (c & 63)
            else:
                reason = HALT if operation == 0 else UNKNOWN
                address[0] = pc
                break
            pc += 4
            reason = STEPS
        self.instruction = pc
        self.accesses = accesses
        return reason
