"""The compiled half of the Unicorn bridge: what answers a TLB miss, and what empties the TLB.

Unicorn's C functions are called through addresses that the Python binding's library gives at run time, so
nothing of Unicorn is needed to build this. The types below are those of ``unicorn/unicorn.h`` 2.x.

Three things that Unicorn does shape this file:

* It chains translated blocks of one page and enters a chained block without asking for the page. So a page
  that loses EXEC while it runs keeps running unless the chain is left: writing the program counter does that.
* It calls a memory hook between finding a TLB entry and using it. A flush in there pulls the entry away, and
  the process crashes. So with such hooks about, a change waits for the next instruction, which a hook of our
  own on every instruction notices.
* Only its UNMAPPED hook knows the exact address and size of an access. So a page that answers MMIO is mapped to
  an address at which no memory can be (``NOWHERE``), and that hook reports the access.
"""

cimport cython
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

from kvmattr import uapi
from kvmattr._vm cimport MMIO, NO_FAULT, Watcher

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint boolean "bool"

cdef struct TlbEntry:  # uc_tlb_entry
    uint64_t paddr
    uint32_t perms

ctypedef int (*HookAdd)(void *, size_t *, int, void *, void *, uint64_t, uint64_t, ...) noexcept nogil
ctypedef int (*HookDel)(void *, size_t) noexcept nogil
ctypedef int (*Control)(void *, uint32_t, ...) noexcept nogil
ctypedef int (*Register)(void *, int, void *) noexcept nogil
ctypedef int (*Stop)(void *) noexcept nogil

# Unicorn's functions, at the addresses that they have in this process.
cdef struct Functions:
    HookAdd hook_add
    HookDel hook_del
    Control control
    Register reg_read
    Register reg_write
    Stop emu_stop

# What the hooks get as their user_data; the instruction hook looks at `stale` without the GIL.
cdef struct Hooked:
    void *tlb
    bint stale  # the TLB holds what is no longer so, and could not be emptied yet

cdef enum:  # uc_hook_type, uc_mem_type, uc_mem_type
    HOOK_CODE = 1 << 2
    HOOK_MEM_READ_UNMAPPED = 1 << 4
    HOOK_MEM_WRITE_UNMAPPED = 1 << 5
    HOOK_MEM_FETCH_UNMAPPED = 1 << 6
    HOOK_TLB_FILL = 1 << 17

cdef enum:  # uc_mem_type
    MEM_READ = 16
    MEM_WRITE = 17
    MEM_FETCH = 18
    MEM_READ_UNMAPPED = 19
    MEM_WRITE_UNMAPPED = 20
    MEM_FETCH_UNMAPPED = 21

cdef uint32_t CONTROL_WRITE = 1U << 30
cdef uint32_t FLUSH_BLOCKS = CONTROL_WRITE | 10  # UC_CTL_TB_FLUSH
cdef uint32_t FLUSH_TLB = CONTROL_WRITE | 11  # UC_CTL_TLB_FLUSH

cdef uint64_t PAGING = 1ULL << 31  # CR0.PG
cdef uint64_t NOWHERE = 1ULL << 62  # above all guest-physical addresses, which have 52 bits
cdef uint64_t ADDRESS = (1ULL << 52) - 1

cdef int READ = uapi.KVM_MEMORY_EXIT_FLAG_READ
cdef int WRITE = uapi.KVM_MEMORY_EXIT_FLAG_WRITE
cdef int EXEC = uapi.KVM_MEMORY_EXIT_FLAG_EXEC


cdef int wanted_by(int kind) noexcept nogil:
    """The Access of a uc_mem_type."""
    if kind == MEM_WRITE or kind == MEM_WRITE_UNMAPPED:
        return WRITE
    return EXEC if kind == MEM_FETCH or kind == MEM_FETCH_UNMAPPED else READ


cdef boolean on_miss(void *engine, uint64_t address, int kind, TlbEntry *entry,
                     void *hooked) noexcept with gil:
    """UC_HOOK_TLB_FILL: say what the page allows; False refuses this access."""
    return (<Tlb>(<Hooked *>hooked).tlb).fill(address, wanted_by(kind), entry)


cdef boolean on_nowhere(void *engine, int kind, uint64_t address, int size, int64_t value,
                        void *hooked) noexcept with gil:
    """UC_HOOK_MEM_..._UNMAPPED: the exact address of an access that exits with MMIO. Never handles it."""
    if address & NOWHERE:
        (<Tlb>(<Hooked *>hooked).tlb).note(MMIO, address & ADDRESS, size, wanted_by(kind))
        (<Tlb>(<Hooked *>hooked).tlb).unicorn.emu_stop(engine)  # or the hooks after this one would hear of it
    return False


cdef void on_instruction(void *engine, uint64_t address, uint32_t size, void *hooked) noexcept nogil:
    """UC_HOOK_CODE: the first moment after a memory hook at which the TLB may be emptied."""
    if (<Hooked *>hooked).stale:
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
    cdef size_t hooks[3]
    cdef int counter_register  # UC_X86_REG_RIP, ..._EIP or ..._IP
    cdef int control_register  # UC_X86_REG_CR0
    cdef bint flat  # the program counter is the address of the instruction: a 64-bit guest
    cdef int claimed
    cdef uint64_t shared_bit
    cdef uint64_t private_bit
    cdef bint filled  # since it was last emptied
    cdef bint running
    cdef bint each_instruction  # memory hooks are about: emptying waits for the next instruction
    cdef unsigned long thread  # that runs the guest
    cdef int fault  # of the access that was not let through, NO_FAULT if none
    cdef uint64_t gpa
    cdef uint64_t size
    cdef uint64_t wanted

    def __init__(self, machine, owner, uintptr_t engine, functions, registers, bint flat, private,
                 uint64_t shared_bit, uint64_t private_bit):
        """Hook into ``engine``, the ``uc_engine *`` of ``owner``; its TLB mode is UC_TLB_VIRTUAL.

        ``functions``: the addresses of uc_hook_add, uc_hook_del, uc_ctl, uc_reg_read, uc_reg_write and
        uc_emu_stop; ``registers``: the numbers of the program counter and of CR0.
        """
        cdef uintptr_t hook_add, hook_del, control, reg_read, reg_write, emu_stop
        cdef int kinds = HOOK_MEM_READ_UNMAPPED | HOOK_MEM_WRITE_UNMAPPED | HOOK_MEM_FETCH_UNMAPPED
        hook_add, hook_del, control, reg_read, reg_write, emu_stop = functions
        self.unicorn = Functions(<HookAdd>hook_add, <HookDel>hook_del, <Control>control, <Register>reg_read,
                                 <Register>reg_write, <Stop>emu_stop)
        self.counter_register, self.control_register = registers
        self.owner = owner
        self.engine = <void *>engine
        self.hooked = Hooked(<void *>self, False)
        self.flat = flat
        self.claimed = -1 if private is None else bool(private)
        self.shared_bit = shared_bit
        self.private_bit = private_bit
        self.fault = NO_FAULT
        self.watch(machine)
        self.hook(0, HOOK_TLB_FILL, <void *>on_miss)
        self.hook(1, kinds, <void *>on_nowhere)
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
        for place in range(3):
            if self.hooks[place]:
                self.unicorn.hook_del(self.engine, self.hooks[place])
                self.hooks[place] = 0
        self.empty()

    def start(self, bint memory_hooks):
        """The guest is about to run in this thread.

        ``memory_hooks``: hooks on its accesses may change the machine.
        """
        if memory_hooks and not self.each_instruction:
            self.hook(2, HOOK_CODE, <void *>on_instruction)
            self.unicorn.control(self.engine, FLUSH_BLOCKS)  # those translated so far do not call it
            self.each_instruction = True
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

    def exit_of_fault(self):
        """The Exit of the access that was not let through, or None."""
        if self.fault == NO_FAULT:
            return None
        return self.exit(self.fault, self.gpa, self.size, self.wanted)

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
        if self.hooked.stale and not self.each_instruction:
            self.empty()  # Unicorn looks for the entry anew after a miss
        fault = self.look_up(gpa, wanted, self.claim(address), &allowed)
        if fault >= 0:
            self.note(fault, gpa, 1, wanted)
            return False
        if fault == NO_FAULT and gpa == self.gpa and wanted == self.wanted:
            self.fault = NO_FAULT  # it was only a probe that was refused
        entry.paddr = gpa if fault == NO_FAULT else gpa | NOWHERE
        entry.perms = allowed if fault == NO_FAULT else wanted
        self.filled = True
        return True

    cdef int claim(self, uint64_t address) noexcept:
        """Whether an access at this address is private, -1 for what the attribute says."""
        if self.shared_bit:
            return not address & self.shared_bit
        if self.private_bit:
            return (address & self.private_bit) != 0
        return self.claimed

    cdef void note(self, int fault, uint64_t gpa, uint64_t size, uint64_t wanted) noexcept:
        """Note an access that is not let through. The first one counts: until it has stopped, Unicorn goes on to
        the other bytes of a write across two pages, and looks up the program counter's page again.
        """
        if self.fault == NO_FAULT:
            self.fault = fault
            self.gpa = gpa
            self.size = size
            self.wanted = wanted

    cdef void changed(self) noexcept:
        if not self.filled:
            return
        if self.running and (self.each_instruction or self.thread != PyThread_get_thread_ident()):
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
        if self.flat and self.look_up(counter & ~(self.shared_bit | self.private_bit), EXEC,
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
