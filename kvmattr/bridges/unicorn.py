"""A guest on Unicorn's CPU whose memory is protected by a VM: page by page, and no memory region is split.

Unicorn asks a hook what a page allows when its software TLB does not know (``UC_TLB_VIRTUAL``); the hook is
compiled and asks the VM. A change of the VM empties that TLB, whatever the change and however fragmented the
guest: its cost does not grow. The rest of the bridge, which is compiled, is in ``_unicorn.pyx``.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr._core import AttributeMap
from kvmattr.bridges._unicorn import Tlb
from kvmattr.bridges._unicorn_probe import Probe
from kvmattr.faults import Exit
from kvmattr.protection import FULL_ACCESS, Access
from kvmattr.vm import VM

#: What :meth:`Guest.protections` returns: byte addresses, and an :class:`kvmattr.Access` as a number.
PROTECTIONS = np.dtype([("address", "<u8"), ("size", "<u8"), ("protection", "u1")])

#: The functions of Unicorn's library that the compiled half calls, in its order.
_FUNCTIONS = ("uc_hook_add", "uc_hook_del", "uc_ctl", "uc_reg_read", "uc_reg_write")

#: The attribute by which an engine keeps alive what it calls.
_KEPT = "_kvmattr_tlb"

#: Bytes of the longest instruction of x86.
_LONGEST = 15


class PagingError(RuntimeError):
    """The guest's own paging is on, and the bridge stands where its MMU would be."""

    def __init__(self) -> None:
        super().__init__("the guest has paging on (CR0.PG): the bridge takes the place of its MMU, so its "
                         "addresses must be guest-physical ones")


class Snapshot(NamedTuple):
    """What :meth:`Guest.snapshot` takes: the attributes, and the context of an engine."""

    attributes: AttributeMap
    context: Any
    engine: Any


class Guest:
    """``engine`` runs, and every fetch, read and write of it is checked by ``vm``: memslot AND attributes.

    ``engine``: a ``unicorn.Uc`` of UC_ARCH_X86 without paging: its addresses are guest-physical. Map its
    memory as always, with UC_PROT_ALL; what it may do there is the VM's affair alone. At most one of these says
    whether its accesses are private ones, else they are what the attribute says: ``private``, for all of them;
    ``shared_bit``, the address bit that an access to shared memory has (TDX); ``private_bit``, the address bit
    that one to private memory has (SEV). That bit is no part of the guest-physical address.

    ``flat``: attributes alone decide, memslots are not asked: for an engine whose memory is its user's to map, such
    as an emulated process. ``on_exit``: called with each Exit of a run that has no handler, also of one that a
    framework began by ``engine.emu_start``; if it returns something true, the access is tried again.

    While it is there, ``engine.emu_start`` is the guest's: it runs as :meth:`run` does, and raises Unicorn's error
    where the VM refused, with :attr:`last_exit` in its notes.

    Closing, or leaving ``with``, takes the bridge out of the engine again; until then engine and VM keep each
    other alive. Several guests may share a VM.
    ImportError without the extra ``unicorn``; TypeError for what is no VM or no engine; ValueError for another
    architecture, a second guest on one engine or a bit that is none; :class:`PagingError`.

    Run the guest through :meth:`run`. Changes come from the thread that runs it, hooks included, or while it
    does not run, and take effect at its next access; one from another thread at its next TLB miss or its next run.

    >>> from unicorn import Uc, UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL
    >>> from kvmattr import VM, uapi
    >>> vm, engine = VM(no_exec=True), Uc(UC_ARCH_X86, UC_MODE_64)
    >>> vm.set_user_memory_region(slot=0, guest_phys_addr=0, memory_size=1 << 20)
    0
    >>> engine.mem_map(0, 1 << 20, UC_PROT_ALL)
    >>> engine.mem_write(0x1000, b"\\x90\\x90")
    >>> guest = Guest(vm, engine)
    >>> vm.set_memory_attributes(0x1000, 0x1000, uapi.KVM_MEM_ATTR_NO_EXEC)
    0
    >>> guest.run(0x1000, 0x1002)
    Exit(MEMORY_FAULT, flags=EXEC, gpa=0x1000, size=0x1000, is_write=False)
    """

    def __init__(
        self,
        vm: VM,
        engine: Any,
        *,
        private: bool | None = None,
        shared_bit: int | None = None,
        private_bit: int | None = None,
        flat: bool = False,
        on_exit: Callable[[Exit], object] | None = None,
    ) -> None:
        unicorn, binding = _import_unicorn()
        if not isinstance(vm, VM):
            raise TypeError(f"{vm!r}: must be a VM")
        if not isinstance(engine, unicorn.Uc):
            raise TypeError(f"{engine!r}: must be a unicorn.Uc")
        if engine.ctl_get_arch() != unicorn.UC_ARCH_X86:
            raise ValueError(f"architecture {engine.ctl_get_arch()}: must be UC_ARCH_X86 ({unicorn.UC_ARCH_X86})")
        if sum(choice is not None for choice in (private, shared_bit, private_bit)) > 1:
            raise ValueError(f"private {private!r}, shared_bit {shared_bit!r}, private_bit {private_bit!r}: "
                             "must be at most one of them")
        if on_exit is not None and not callable(on_exit):
            raise TypeError(f"on_exit {on_exit!r}: must be a function of an Exit, or None")
        if hasattr(engine, _KEPT):
            raise ValueError(f"{engine!r}: has a guest already, close that first")
        x86 = importlib.import_module("unicorn.x86_const")
        counters = {unicorn.UC_MODE_16: x86.UC_X86_REG_IP, unicorn.UC_MODE_32: x86.UC_X86_REG_EIP,
                    unicorn.UC_MODE_64: x86.UC_X86_REG_RIP}
        mode = engine.ctl_get_mode()
        if engine.reg_read(x86.UC_X86_REG_CR0) >> 31 & 1:
            raise PagingError
        self.vm = vm
        self.engine = engine
        #: The Exit that ended the last run (or try of it), None if none did.
        self.last_exit: Exit | None = None
        self.on_exit = on_exit
        self._error: type[Exception] = unicorn.UcError
        self._probe: Probe | None = None
        self._running = False
        self._ignored_bits = _bit(shared_bit, "shared_bit") | _bit(private_bit, "private_bit")
        self._memory_hooks = (binding.HOOK_MEM_ACCESS_CFUNC, binding.HOOK_MEM_INVALID_CFUNC)
        self._counter = counters[mode]
        self._code_segment = x86.UC_X86_REG_CS if mode == unicorn.UC_MODE_16 else None
        engine.ctl(unicorn.UC_CTL_TLB_TYPE, unicorn.UC_CTL_IO_WRITE, ctypes.c_int(unicorn.UC_TLB_VIRTUAL))
        self._tlb = Tlb(
            vm,
            engine,
            engine._uch.value,
            tuple(ctypes.cast(getattr(binding.uclib, name), ctypes.c_void_p).value or 0 for name in _FUNCTIONS),
            (self._counter, x86.UC_X86_REG_CR0),
            mode == unicorn.UC_MODE_64,
            bool(flat),
            private,
            _bit(shared_bit, "shared_bit"),
            _bit(private_bit, "private_bit"),
        )
        self._cpu_tlb = (unicorn.UC_CTL_TLB_TYPE, unicorn.UC_CTL_IO_WRITE, ctypes.c_int(unicorn.UC_TLB_CPU))
        setattr(engine, _KEPT, self._tlb)
        self._emu_start = engine.emu_start
        engine.emu_start = self._start_for_others

    def run(
        self,
        begin: int,
        until: int,
        *,
        timeout: int = 0,
        count: int = 0,
        handler: Callable[[Exit], object] | None = None,
    ) -> Exit | None:
        """Run from ``begin`` to ``until``, as ``Uc.emu_start``; return the Exit that ends it early, or None.

        The access that exits has not happened, and :attr:`pc` is its instruction: run from there to try it again.
        With a ``handler`` (else ``on_exit``) that is done as often as it returns something true for the Exit;
        ``timeout`` (us) and ``count`` (instructions) hold for each stretch. Raises :class:`PagingError` when the
        guest turns its paging on, and what ``emu_start`` raises for any other end.
        """
        return self._run(begin, until, timeout, count, handler or self.on_exit)[0]

    def _run(self, begin: int, until: int, timeout: int, count: int,
             handler: Callable[[Exit], object] | None) -> tuple[Exit | None, Exception | None]:
        """The Exit that ended it, and the error that Unicorn made of it."""
        while True:
            self.last_exit = None
            self._running = True
            try:
                error = self._stretch(begin, until, timeout, count)
            finally:
                self._running = False
            if error is None:
                return None, None
            self.last_exit = self._exit()
            if handler is None or not handler(self.last_exit):
                return self.last_exit, error
            begin = self.pc

    def _start_for_others(self, begin: int, until: int, timeout: int = 0, count: int = 0) -> None:
        """``Uc.emu_start`` while the bridge is there."""
        if self._running:   # from within a hook: the run around it answers for both
            self._emu_start(begin, until, timeout, count)
            return
        exit, error = self._run(begin, until, timeout, count, self.on_exit)
        if error is not None:
            error.add_note(f"kvmattr: the VM refused an access at {self.pc:#x}: {exit}")
            raise error

    def _stretch(self, begin: int, until: int, timeout: int, count: int) -> Exception | None:
        """Run to an end or to an access that is refused, which is the error.

        Unicorn translates a block over the end of a page and asks for the next page while it does so: if that is
        refused, nothing of the block has run. Then the block is cut at the page's end, or before the instruction
        that lies across it, and the access is met when the guest comes there.
        """
        deadline = time.monotonic() + timeout / 1e6
        stop, left = until, count
        cuts: Iterator[int] = iter(())
        tried_at: tuple[int, int] | None = None
        while True:
            error = self._once(begin, stop, timeout and max(int((deadline - time.monotonic()) * 1e6), 1), left)
            if count:
                left -= self._tlb.instructions()
            here = self.pc
            if error is None:
                if stop == until or here != stop or (count and left <= 0):
                    return None
                begin, stop, tried_at = here, until, None
                continue
            refused = self._tlb.refused()
            assert refused is not None
            page, wanted = refused
            if wanted != Access.EXEC or here & -uapi.PAGE_SIZE == page or (count and left <= 0):
                return error
            if (here, page) != tried_at:
                tried_at, cuts = (here, page), _cuts(here, page)
            cut = next(cuts, None)
            if cut is None:     # the instruction itself lies across the two pages
                return error
            begin, stop = here, cut

    def _once(self, begin: int, until: int, timeout: int, count: int) -> Exception | None:
        """``emu_start``; the error that a refused access made, None without one."""
        if self._tlb.paging():
            raise PagingError
        self._tlb.start(self._has_memory_hooks(), count > 0)
        try:
            self._emu_start(begin, until, timeout, count)
        except self._error as error:
            if self._tlb.paging():
                raise PagingError from None
            if self._tlb.refused() is None:
                raise
            return error
        finally:
            self._tlb.stop()
        return None

    def _exit(self) -> Exit:
        """The Exit of the refused access, with the exact bytes where it is MMIO."""
        refused = self._tlb.refused()
        assert refused is not None
        page, wanted = refused
        exit = self._tlb.exit_of(page, uapi.PAGE_SIZE)
        if exit.reason != uapi.KVM_EXIT_MMIO:
            return exit
        if wanted == Access.EXEC:
            return self._tlb.exit_of(max(page, self.pc), 1)
        if self._probe is None:
            unicorn, _ = _import_unicorn()
            self._probe = Probe(unicorn, self.engine, importlib.import_module("unicorn.x86_const"))
        touched = self._probe.touched(self.pc, page, wanted == Access.WRITE, self._ignored_bits)
        if touched is None:
            return exit
        if touched.address < page and touched.stored and len(touched.stored) <= 8:
            # As in KVM, the part that lies in ordinary memory is written before the part that is MMIO exits.
            self.engine.mem_write(touched.address & ~self._ignored_bits, touched.stored[:page - touched.address])
        first, last = max(touched.address, page), min(touched.address + touched.size, page + uapi.PAGE_SIZE)
        return self._tlb.exit_of(first, last - first)

    def _has_memory_hooks(self) -> bool:
        """Whether Python code may run in the middle of an access."""
        callbacks = self.engine._callbacks.values()
        return bool(self.engine._mmio_callbacks) or any(isinstance(f, self._memory_hooks) for f in callbacks)

    @property
    def pc(self) -> int:
        """The address of the next instruction, as ``run`` takes it."""
        counter: int = self.engine.reg_read(self._counter)
        if self._code_segment is None:
            return counter
        return int(self.engine.reg_read(self._code_segment) << 4) + counter

    def protections(self, address: int, size: int) -> NDArray[np.void]:
        """What the guest may do in [address, address + size): runs of equal protection, as an array.

        Bytes, multiples of 4096. Records ``address <u8, size <u8, protection u1`` (an :class:`kvmattr.Access`;
        0 also where there is no memslot), in order and without gaps. Time and memory by the number of attribute
        runs and memslots there. ValueError for a range that is none.
        """
        start, stop = address >> uapi.PAGE_SHIFT, address + size >> uapi.PAGE_SHIFT
        if (address | size) % uapi.PAGE_SIZE or size <= 0:
            raise ValueError(f"address {address:#x}, size {size:#x}: must be multiples of 4096, and size above 0")
        runs = self.vm.attributes.runs(start, stop)
        slots = self.vm.memslots.overlapping(start, stop)
        edges = [bound for slot in slots for bound in (slot.start, slot.stop) if start <= bound < stop]
        starts = np.unique(np.concatenate([runs["start"], np.array(edges, np.uint64)]))
        allowed = np.array([self.vm.profile.allowed(byte) for byte in range(256)], np.uint8)
        protection = allowed[runs["attributes"][np.searchsorted(runs["start"], starts, "right") - 1]]
        protection &= _slot_protection(slots, starts)
        begins = np.flatnonzero(np.diff(protection, prepend=~protection[:1]))
        result = np.empty(len(begins), PROTECTIONS)
        result["address"] = starts[begins] << uapi.PAGE_SHIFT
        result["size"] = np.diff(result["address"], append=np.uint64(address + size))
        result["protection"] = protection[begins]
        return result

    def snapshot(self) -> Snapshot:
        """Return the attributes and the engine's context as they are now; the first costs O(1).

        The context is registers, and memory too if the engine was told so (UC_CTL_CONTEXT_MODE). Memslots are
        not part of it.
        """
        return Snapshot(self.vm.snapshot(), self.engine.context_save(), self.engine)

    def restore(self, saved: Snapshot) -> None:
        """Go back to a snapshot, which can be used again; attributes in time by what differs.

        ValueError for a snapshot of another engine: its context has that engine's registers and memory. Raises
        what ``VM.restore`` and ``Uc.context_restore`` raise. Not from within a hook.
        """
        if saved.engine is not self.engine:
            raise ValueError(f"the snapshot is of another engine, {saved.engine!r}: must be of {self.engine!r}")
        self.vm.restore(saved.attributes)
        self.engine.context_restore(saved.context)
        self._tlb.flush()  # restored memory may lie elsewhere

    def close(self) -> None:
        """Take the bridge out: the engine is as before, with its own TLB. Calling it again does nothing."""
        if getattr(self.engine, _KEPT, None) is self._tlb:
            self._tlb.close()
            delattr(self.engine, _KEPT)
            del self.engine.emu_start
            self.engine.ctl(*self._cpu_tlb)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _import_unicorn() -> tuple[Any, Any]:
    """Return the package, whose stubs export nothing, and the module of it that has the library."""
    try:
        return importlib.import_module("unicorn"), importlib.import_module("unicorn.unicorn_py3.unicorn")
    except ImportError as missing:
        raise ImportError("this needs unicorn: pip install 'kvmattr[unicorn]'") from missing


def _cuts(begin: int, page: int) -> Iterator[int]:
    """Where to end a block that begins at ``begin`` and runs into ``page``: its start, else where an instruction may
    begin that lies across it."""
    yield page
    yield from range(max(page - _LONGEST + 1, begin + 1), page)


def _bit(number: int | None, name: str) -> int:
    if number is None:
        return 0
    if not 12 <= number < 64:
        raise ValueError(f"{name} {number}: must be in 12..63, a bit of the page's address")
    return 1 << number


def _slot_protection(slots: list[Any], gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """What the memslots, which are in order, allow at each gfn."""
    if not slots:
        return np.zeros(len(gfns), np.uint8)
    writable = [not slot.flags & uapi.KVM_MEM_READONLY for slot in slots]
    allowed = np.where(writable, int(FULL_ACCESS), int(FULL_ACCESS & ~Access.WRITE)).astype(np.uint8)
    index = np.searchsorted(np.array([slot.start for slot in slots], np.uint64), gfns, "right")
    found = np.maximum(index, 1) - 1
    inside = (index > 0) & (gfns < np.array([slot.stop for slot in slots], np.uint64)[found])
    return np.where(inside, allowed[found], 0).astype(np.uint8)
