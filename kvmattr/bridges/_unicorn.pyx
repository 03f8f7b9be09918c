"""The compiled half of the Unicorn bridge: what answers a TLB miss, and what empties the TLB.

Unicorn's C functions are called through addresses that the Python binding's library gives at run time, so
nothing of Unicorn is needed to build this. The types below are those of ``unicorn/unicorn.h`` 2.x.

Three things that Unicorn does shape this file:

* It chains translated blocks of one page and enters a chained block without asking for the page. So a page
  that loses EXEC while it runs keeps running unless the chain is left: writing the program counter does that.
* It calls a memory hook between finding a TLB entry and using it. A flush in there pulls the entry away, and
  the process crashes. So with such hooks about, a change waits for the next instruction, which a hook of our
  own on every instruction notices.
* A miss names the page alone. So an access that exits as MMIO is refused like any other, before a hook of the user
  can hear of it, and its exact address and size are found out afterwards (``_unicorn_probe.py``).
"""

cimport cython
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t

from kvmattr import uapi
from kvmattr._vm cimport NO_FAULT, Watcher

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint boolean "bool"

cdef struct TlbEntry:  # uc_tlb_entry
    uint64_t paddr
    uint32_t perms

ctypedef int (*HookAdd)(void *, size_t *, int, void *, void *, uint64_t, uint64_t, ...) noexcept nogil
ctypedef int (*HookDel)(void *, size_t) noexcept nogil
ctypedef int (*Control)(void *, uint32_t, ...) noexcept nogil
ctypedef int (*Register)(void *, int, void *) noexcept nogil

# Unicorn's functions, at the addresses that they have in this process.
cdef struct Functions:
    HookAdd hook_add
    HookDel hook_del
    Control control
    Register reg_read
    Register reg_write

# What the hooks get as their user_data; the instruction hook looks at `stale` without the GIL.
cdef struct Hooked:
    void *tlb
    bint stale  # the TLB holds what is no longer so, and could not be emptied yet
    bint waiting  # memory hooks are about: emptying waits for the next instruction
    uint64_t instructions  # since start, where they are counted

cdef enum:  # uc_hook_type
    HOOK_CODE = 1 << 2
    HOOK_TLB_FILL = 1 << 17

cdef enum:  # uc_mem_type
    MEM_WRITE = 17
    MEM_FETCH = 18

cdef uint32_t CONTROL_WRITE = 1U << 30
cdef uint32_t FLUSH_BLOCKS = CONTROL_WRITE | 10  # UC_CTL_TB_FLUSH
cdef uint32_t FLUSH_TLB = CONTROL_WRITE | 11  # UC_CTL_TLB_FLUSH

cdef uint64_t PAGING = 1ULL << 31  # CR0.PG

cdef int READ = uapi.KVM_MEMORY_EXIT_FLAG_READ
cdef int WRITE = uapi.KVM_MEMORY_EXIT_FLAG_WRITE
cdef int EXEC = uapi.KVM_MEMORY_EXIT_FLAG_EXEC


cdef int wanted_by(int kind) noexcept nogil:
    """The Access of a uc_mem_type."""
    if kind == MEM_WRITE:
        return WRITE
    return EXEC if kind == MEM_FETCH else READ


cdef boolean on_miss(void *engine, uint64_t address, int kind, TlbEntry *entry,
                     void *hooked) noexcept with gil:
    """UC_HOOK_TLB_FILL: say what the page allows; False refuses this access."""
    return (<Tlb>(<Hooked *>hooked).tlb).fill(address, wanted_by(kind), entry)


cdef void on_instruction(void *engine, uint64_t address, uint32_t size, void *hooked) noexcept nogil:
    """UC_HOOK_CODE: counts, and is the first moment after a memory hook at which the TLB may be emptied."""
    (<Hooked *>hooked).instructions += 1
    if (<Hooked *>hooked).stale and (<Hooked *>hooked).waiting:
        with gil:
            (<Tlb>(<Hooked *>hooked).tlb).forget()


@cython.final
cdef class Tlb(Watcher):
    """The software TLB of one engine, filled from one machine and emptied when that changes.

    The engine calls it for as long as it lives, so its owner must keep a reference.
    """

    cdef Functions unicorn
    cdef Hooked hooked
    cdef object owner  # of the engine, which must be there when the machine changes
    cdef void *engine
    cdef size_t hooks[2]
    cdef int counter_register  # UC_X86_REG_RIP, ..._EIP or ..._IP
    cdef int control_register  # UC_X86_REG_CR0
    cdef bint linear  # the program counter is the address of the instruction: a 64-bit guest
    cdef bint slotless  # attributes alone count
    cdef int claimed
    cdef uint64_t shared_bit
    cdef uint64_t private_bit
    cdef bint filled  # since it was last emptied
    cdef bint running
    cdef unsigned long thread  # that runs the guest
    cdef int fault  # of the access that was not let through, NO_FAULT if none
    cdef uint64_t gpa
    cdef uint64_t address  # the same as the guest spells it, with its bit for shared or private
    cdef uint64_t wanted

    def __init__(self, machine, owner, uintptr_t engine, functions, registers, bint linear, bint slotless, private,
                 uint64_t shared_bit, uint64_t private_bit):
        """Hook into ``engine``, the ``uc_engine *`` of ``owner``; its TLB mode is UC_TLB_VIRTUAL.

        ``functions``: the addresses of uc_hook_add, uc_hook_del, uc_ctl, uc_reg_read and uc_reg_write;
        ``registers``: the numbers of the program counter and of CR0; ``slotless``: memslots do not count.
        """
        cdef uintptr_t hook_add, hook_del, control, reg_read, reg_write
        hook_add, hook_del, control, reg_read, reg_write = functions
        self.unicorn = Functions(<HookAdd>hook_add, <HookDel>hook_del, <Control>control, <Register>reg_read,
                                 <Register>reg_write)
        self.counter_register, self.control_register = registers
        self.owner = owner
        self.engine = <void *>engine
        self.hooked = Hooked(<void *>self, False, False, 0)
        self.linear = linear
        self.slotless = slotless
        self.claimed = -1 if private is None else bool(private)
        self.shared_bit = shared_bit
        self.private_bit = private_bit
        self.fault = NO_FAULT
        self.watch(machine)
        self.hook(0, HOOK_TLB_FILL, <void *>on_miss)
        self.empty()

    cdef int hook(self, int place, int kinds, void *callback) except -1:
        """Register a callback for all addresses."""
        cdef int error = self.unicorn.hook_add(self.engine, &self.hooks[place], kinds, callback, &self.hooked,
                                               <uint64_t>1, <uint64_t>0)
        if error:
            raise RuntimeError(f"uc_hook_add failed with uc_err {error}")
        return 0

    def close(self):
        """Take the hooks out of the engine and empty its TLB; the machine forgets it. Not while it runs."""
        cdef int place
        self.unwatch()
        for place in range(2):
            if self.hooks[place]:
                self.unicorn.hook_del(self.engine, self.hooks[place])
                self.hooks[place] = 0
        self.empty()

    def start(self, bint memory_hooks, bint counted):
        """The guest is about to run in this thread.

        ``memory_hooks``: hooks on its accesses may change the machine; ``counted``: instructions are counted.
        """
        if (memory_hooks or counted) and not self.hooks[1]:
            self.hook(1, HOOK_CODE, <void *>on_instruction)
            self.unicorn.control(self.engine, FLUSH_BLOCKS)  # those translated so far do not call it
        if memory_hooks:
            self.hooked.waiting = True
        self.hooked.instructions = 0
        if self.hooked.stale:
            self.empty()
        self.fault = NO_FAULT
        self.thread = PyThread_get_thread_ident()
        self.running = True

    def stop(self):
        """The guest has stopped."""
        self.running = False
        if self.hooked.stale:
            self.empty()

    def refused(self):
        """The access that was not let through: the address of its page as the guest spells it, and what it was
        (an Access); or None."""
        return None if self.fault == NO_FAULT else (self.address, self.wanted)

    def exit_of(self, uint64_t address, uint64_t size):
        """The Exit of the access that was not let through, of which these bytes are known."""
        return self.exit(self.fault, address & ~(self.shared_bit | self.private_bit), size, self.wanted)

    def instructions(self):
        """Instructions begun since ``start``, where they are counted."""
        return self.hooked.instructions

    def paging(self):
        """Whether the guest has its own paging on: then every miss is refused."""
        return self.pages()

    cdef bint pages(self) noexcept:
        cdef uint64_t control = 0
        self.unicorn.reg_read(self.engine, self.control_register, &control)
        return (control & PAGING) != 0

    cdef boolean fill(self, uint64_t address, uint64_t wanted, TlbEntry *entry) noexcept:
        cdef uint64_t gpa = address & ~(self.shared_bit | self.private_bit)
        cdef uint8_t allowed = 0
        cdef int fault
        if self.pages():
            return False
        if self.hooked.stale and not self.hooked.waiting:
            self.empty()  # Unicorn looks for the entry anew after a miss
        fault = self.asked(gpa, wanted, self.claim(address), &allowed)
        if fault != NO_FAULT:
            self.note(fault, gpa, address, wanted)
            return False
        if gpa == self.gpa and wanted == self.wanted:
            self.fault = NO_FAULT  # it was only a probe that was refused
        entry.paddr = gpa
        entry.perms = allowed
        self.filled = True
        return True

    cdef int asked(self, uint64_t gpa, uint64_t wanted, int claimed, uint8_t *allowed) noexcept:
        """What the machine says of an access."""
        if self.slotless:
            return self.look_up_flat(gpa, wanted, claimed, allowed)
        return self.look_up(gpa, wanted, claimed, allowed)

    cdef int claim(self, uint64_t address) noexcept:
        """Whether an access at this address is private, -1 for what the attribute says."""
        if self.shared_bit:
            return not address & self.shared_bit
        if self.private_bit:
            return (address & self.private_bit) != 0
        return self.claimed

    cdef void note(self, int fault, uint64_t gpa, uint64_t address, uint64_t wanted) noexcept:
        """Note an access that is not let through. The first one counts: until it has stopped, Unicorn goes on to
        the other bytes of a write across two pages, and looks up the program counter's page again.
        """
        if self.fault == NO_FAULT:
            self.fault = fault
            self.gpa = gpa
            self.address = address
            self.wanted = wanted

    cdef void changed(self) noexcept:
        if not self.filled:
            return
        if self.running and (self.hooked.waiting or self.thread != PyThread_get_thread_ident()):
            self.hooked.stale = True
        else:
            self.forget()

    cdef void forget(self) noexcept:
        """Empty the TLB; leave the running block if its page is not executable any more."""
        cdef uint64_t counter = 0
        cdef uint8_t allowed
        self.empty()
        if not self.running:
            return
        self.unicorn.reg_read(self.engine, self.counter_register, &counter)
        if self.linear and self.asked(counter & ~(self.shared_bit | self.private_bit), EXEC,
                                      self.claim(counter), &allowed) == NO_FAULT:
            return
        self.unicorn.reg_write(self.engine, self.counter_register, &counter)

    cdef void empty(self) noexcept:
        self.unicorn.control(self.engine, FLUSH_TLB)
        self.filled = False
        self.hooked.stale = False

    def flush(self):
        """Empty the TLB; not from within a memory hook."""
        self.empty()
