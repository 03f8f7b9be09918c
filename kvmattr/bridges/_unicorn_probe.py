"""Which bytes an instruction touches: a second engine executes it alone, on copies, out of sight of every hook.

Unicorn says only of which page a TLB miss is. The exact address and size of an access that exits as MMIO are known
to its hooks alone, and in the user's engine those are the user's. So the instruction is repeated in an engine of our
own that has its registers and copies of the pages that it reads, and nothing where the refused page is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvmattr import uapi

_PAGE = uapi.PAGE_SIZE
#: One instruction; the limit is for what no instruction does.
_TIMEOUT_US = 100_000

_GENERAL = ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", *(f"R{number}" for number in range(8, 16)), "RIP",
            "FS_BASE", "GS_BASE")
_NARROW = ("EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP", "EIP")
_SEGMENTS = ("CS", "DS", "ES", "SS", "FS", "GS")
#: What a store may take its value from.
_OTHERS = ("EFLAGS", "FPCW", "FPSW", "FPTAG", *(f"FP{number}" for number in range(8)))


class Touched(NamedTuple):
    """An access as the instruction made it: the first byte's address, its size, and what it would store."""

    address: int
    size: int
    stored: bytes


class Probe:
    """An engine like ``engine``, which is one of x86 without paging."""

    def __init__(self, unicorn: Any, engine: Any, x86: Any) -> None:
        self._unicorn = unicorn
        self._engine = engine
        mode = engine.ctl_get_mode()
        self._copy = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
        wide = mode == unicorn.UC_MODE_64
        vectors = tuple(f"XMM{number}" for number in range(16 if wide else 8))
        names = (*(_GENERAL if wide else _NARROW), *_OTHERS, *vectors)
        self._registers = [getattr(x86, f"UC_X86_REG_{name}") for name in names]
        self._segments = [] if wide else [getattr(x86, f"UC_X86_REG_{name}") for name in _SEGMENTS]
        self._table = x86.UC_X86_REG_GDTR
        self._page = 0
        self._ignored_bits = 0
        self._is_write = False
        self._touched: Touched | None = None
        self._copy.hook_add(unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, self._on_access)
        self._copy.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self._on_unmapped)

    def touched(self, begin: int, page: int, is_write: bool, ignored_bits: int) -> Touched | None:
        """The access to ``page`` by the instruction at ``begin``, or None if it makes none when repeated.

        Addresses are the guest's own; without ``ignored_bits`` they are those of the engine's memory.
        """
        self._page, self._is_write, self._ignored_bits, self._touched = page, is_write, ignored_bits, None
        copy = self._copy
        try:
            self._take_registers()
            copy.emu_start(begin, (1 << 64) - 1, _TIMEOUT_US, 1)
        except self._unicorn.UcError:
            pass    # the access itself ends it
        finally:
            for first, last, _ in list(copy.mem_regions()):
                copy.mem_unmap(first, last - first + 1)
            copy.ctl_flush_tb()
        return self._touched

    def _take_registers(self) -> None:
        engine, copy = self._engine, self._copy
        if self._segments:
            selectors = [engine.reg_read(segment) for segment in self._segments]
            _, base, limit, _ = engine.reg_read(self._table)
            if limit and any(selectors):    # descriptors are read while a selector is written
                for page in range(base & -_PAGE, base + limit + 1, _PAGE):
                    self._bring(page)
                copy.reg_write(self._table, engine.reg_read(self._table))
            for segment, selector in zip(self._segments, selectors, strict=True):
                if copy.reg_read(segment) != selector:
                    copy.reg_write(segment, selector)
        for register in self._registers:
            copy.reg_write(register, engine.reg_read(register))

    def _on_access(self, copy: Any, kind: int, address: int, size: int, value: int, _: Any) -> None:
        is_write = kind == self._unicorn.UC_MEM_WRITE
        if self._touched is None and is_write == self._is_write and self._overlaps(address, size):
            stored = (value & (1 << 8 * size) - 1).to_bytes(size, "little") if is_write else b""
            self._touched = Touched(address, size, stored)

    def _on_unmapped(self, copy: Any, kind: int, address: int, size: int, value: int, _: Any) -> bool:
        if kind != self._unicorn.UC_MEM_FETCH_UNMAPPED:
            wanted = self._unicorn.UC_MEM_WRITE if kind == self._unicorn.UC_MEM_WRITE_UNMAPPED else kind
            self._on_access(copy, wanted, address, size, value, None)
            if self._touched is not None:
                return False
        for page in range(address & -_PAGE, address + max(size, 1), _PAGE):
            self._bring(page)
        return True

    def _overlaps(self, address: int, size: int) -> bool:
        return address < self._page + _PAGE and address + size > self._page

    def _bring(self, page: int) -> None:
        """Map a copy of the engine's page, zeros where it has none."""
        if any(first <= page <= last for first, last, _ in self._copy.mem_regions()):
            return
        try:
            content = bytes(self._engine.mem_read(page & ~self._ignored_bits, _PAGE))
        except self._unicorn.UcError:
            content = bytes(_PAGE)
        self._copy.mem_map(page, _PAGE)
        self._copy.mem_write(page, content)
