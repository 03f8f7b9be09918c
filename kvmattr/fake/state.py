"""What programs set up around memory: registers, CPUID, MSRs, clocks. It is kept as it was set, and read back.

The guest is a script, so none of it has an effect; a program that sets it up gets as far as its first KVM_RUN. What is
only accepted (an interrupt, an eventfd) is counted, and told at the end of a run.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from errno import E2BIG, EFAULT, EINVAL
from typing import Any, NamedTuple

from kvmattr import uapi
from kvmattr.fake.wire import Question


class Ask(NamedTuple):
    """What must be known before an answer: what descriptor ``address`` is, or ``length`` bytes at it."""

    question: Question
    address: int
    length: int = 0


#: SET -> GET of the same structure.
_VCPU = {
    uapi.KVM_SET_REGS: uapi.KVM_GET_REGS, uapi.KVM_SET_SREGS: uapi.KVM_GET_SREGS,
    uapi.KVM_SET_SREGS2: uapi.KVM_GET_SREGS2, uapi.KVM_SET_FPU: uapi.KVM_GET_FPU,
    uapi.KVM_SET_LAPIC: uapi.KVM_GET_LAPIC, uapi.KVM_SET_MP_STATE: uapi.KVM_GET_MP_STATE,
    uapi.KVM_SET_VCPU_EVENTS: uapi.KVM_GET_VCPU_EVENTS, uapi.KVM_SET_DEBUGREGS: uapi.KVM_GET_DEBUGREGS,
    uapi.KVM_SET_XSAVE: uapi.KVM_GET_XSAVE, uapi.KVM_SET_XCRS: uapi.KVM_GET_XCRS,
}
_VM = {uapi.KVM_SET_CLOCK: uapi.KVM_GET_CLOCK, uapi.KVM_SET_PIT2: uapi.KVM_GET_PIT2}
#: The same state by another name.
_ALIASES = {uapi.KVM_GET_XSAVE2: uapi.KVM_GET_XSAVE}

#: Done when they are accepted, as far as anybody can see.
_VM_ACCEPTED = frozenset({
    uapi.KVM_SET_TSS_ADDR, uapi.KVM_SET_IDENTITY_MAP_ADDR, uapi.KVM_IOEVENTFD, uapi.KVM_IRQFD, uapi.KVM_CREATE_PIT2,
    uapi.KVM_REGISTER_COALESCED_MMIO, uapi.KVM_UNREGISTER_COALESCED_MMIO, uapi.KVM_SET_GSI_ROUTING,
    uapi.KVM_SET_NR_MMU_PAGES, uapi.KVM_IRQ_LINE, uapi.KVM_IRQ_LINE_STATUS, uapi.KVM_SIGNAL_MSI})
_VCPU_ACCEPTED = frozenset({
    uapi.KVM_INTERRUPT, uapi.KVM_NMI, uapi.KVM_SET_SIGNAL_MASK, uapi.KVM_SET_GUEST_DEBUG, uapi.KVM_X86_SETUP_MCE,
    uapi.KVM_TPR_ACCESS_REPORTING, uapi.KVM_KVMCLOCK_CTRL, uapi.KVM_SET_VAPIC_ADDR})

#: Capabilities of all this, and what the kernel says of them.
CAPABILITIES = {
    getattr(uapi, f"KVM_CAP_{name}"): 1
    for name in ("IRQCHIP", "SET_TSS_ADDR", "EXT_CPUID", "MP_STATE", "USER_NMI", "SET_GUEST_DEBUG", "IRQFD", "PIT2",
                 "PIT_STATE2", "IOEVENTFD", "SET_IDENTITY_MAP_ADDR", "ADJUST_CLOCK", "INTERNAL_ERROR_DATA",
                 "VCPU_EVENTS", "DEBUGREGS", "ENABLE_CAP", "XSAVE", "XCRS", "TSC_CONTROL", "GET_TSC_KHZ",
                 "IOEVENTFD_ANY_LENGTH", "SREGS2")
} | {uapi.KVM_CAP_COALESCED_MMIO: 2, uapi.KVM_CAP_XSAVE2: uapi.size_of(uapi.KVM_GET_XSAVE2),
     uapi.KVM_CAP_IRQ_ROUTING: 4096}

_HEADER = struct.Struct("<II")
_CPUID = struct.Struct("<10I")
_MSR = struct.Struct("<IIQ")
#: KVM_MAX_CPUID_ENTRIES, and what KVM takes of MSRs in one call.
_ENTRIES = 256
_TSC_KHZ = 2_000_000


def cpuid(phys_bits: int) -> list[tuple[int, ...]]:
    """A processor for KVM_GET_SUPPORTED_CPUID: 64 bits and little else, with this many bits of physical address.

    Records ``function, index, flags, eax, ebx, ecx, edx, 0, 0, 0``.
    """
    vendor = struct.unpack("<3I", b"AuthenticAMD")
    name = b"kvmattr fake".ljust(48, b"\0")
    # What every processor of 64 bits has, up to sse2 and x2apic; of the others, ssse3, cx16, sse4 and popcnt.
    edx, ecx = 0x078BFB7F, 0x00B82201
    leaves: list[tuple[int, int, int, int, int]] = [
        (0, 0xD, vendor[0], vendor[2], vendor[1]), (1, 0x00800F12, 0, ecx, edx), (7, 0, 0, 0, 0), (0xD, 7, 576, 832, 0),
        (0x80000000, 0x80000008, vendor[0], vendor[2], vendor[1]),
        (0x80000001, 0x00800F12, 0, 1, edx | 1 << 29 | 1 << 20),     # long mode, nx
        *((0x80000002 + part, *struct.unpack_from("<4I", name, 16 * part)) for part in range(3)),
        (0x80000008, 48 << 8 | phys_bits, 0, 0, 0),
    ]
    return [(leaf, 0, int(leaf in (7, 0xD)), eax, ebx, ecx, edx, 0, 0, 0) for leaf, eax, ebx, ecx, edx in leaves]


class State:
    """What one VM or vCPU was told and can be asked; ``of_vcpu`` says which of the two."""

    def __init__(self, of_vcpu: bool) -> None:
        self._pairs, self._accepted = (_VCPU, _VCPU_ACCEPTED) if of_vcpu else (_VM, _VM_ACCEPTED)
        self._of_vcpu = of_vcpu
        self._kept: dict[int, bytes] = {}
        self._chips: dict[int, bytes] = {}
        self._msrs: dict[int, int] = {}
        self._cpuid = b""
        self._tsc_khz = _TSC_KHZ

    def accepts(self, request: int) -> bool:
        """Whether a request is only accepted."""
        return request in self._accepted

    def plain(self, request: int, structure: bytes | bytearray) -> bytes | None:
        """Answer a request whose structure is all: what comes out, empty for nothing; None if it is none of these."""
        if request in self._pairs:
            self._kept[self._pairs[request]] = bytes(structure)
            return b""
        request = _ALIASES.get(request, request)
        if request in self._pairs.values():
            return self._kept.get(request, bytes(uapi.size_of(request)))
        if request in self._accepted:
            return b""
        if not self._of_vcpu and request in (uapi.KVM_SET_IRQCHIP, uapi.KVM_GET_IRQCHIP):
            chip = int.from_bytes(structure[:4], "little")
            if chip > 2:
                raise OSError(EINVAL, f"chip {chip}: must be 0, 1 or 2")
            if request == uapi.KVM_GET_IRQCHIP:
                return self._chips.get(chip, bytes(structure[:8]).ljust(len(structure), b"\0"))
            self._chips[chip] = bytes(structure)
            return b""
        return None

    def number(self, request: int, argument: int) -> int | None:
        """Answer a request that takes a number; None if it is none of these."""
        if request == uapi.KVM_GET_TSC_KHZ:
            return self._tsc_khz
        if request == uapi.KVM_SET_TSC_KHZ:
            self._tsc_khz = argument & 0xFFFFFFFF or self._tsc_khz
            return 0
        return 0 if request in self._accepted and not uapi.size_of(request) else None

    def listed(self, request: int, argument: int, structure: bytes | bytearray) -> Listed | None:
        """Answer a request with a list behind its header; None if it is none of these.

        A generator that asks for the list and returns the call's result and what comes out.
        """
        if not self._of_vcpu:
            return None
        count = int.from_bytes(structure[:4], "little")
        match request:
            case uapi.KVM_SET_CPUID2:
                return self._set_cpuid(argument, count)
            case uapi.KVM_GET_CPUID2:
                return _answered(*_fitting(count, self._cpuid))
            case uapi.KVM_SET_MSRS:
                return self._set_msrs(argument, count)
            case uapi.KVM_GET_MSRS:
                return self._get_msrs(argument, count)
        return None

    def _set_cpuid(self, argument: int, count: int) -> Listed:
        if count > _ENTRIES:
            raise OSError(E2BIG, f"{count} entries of CPUID: must be at most {_ENTRIES}")
        self._cpuid = yield from _read(argument + _HEADER.size, count * _CPUID.size)
        return 0, b""

    def _set_msrs(self, argument: int, count: int) -> Listed:
        for index, _, value in _MSR.iter_unpack((yield from _msrs(argument, count))):
            self._msrs[index] = value
        return count, b""

    def _get_msrs(self, argument: int, count: int) -> Listed:
        entries = yield from _msrs(argument, count)
        return count, _HEADER.pack(count, 0) + b"".join(
            _MSR.pack(index, reserved, self._msrs.get(index, 0)) for index, reserved, _ in _MSR.iter_unpack(entries))


#: Yields questions, is sent the bytes, returns the result of the call and what comes out.
Listed = Generator[Ask, Any, tuple[int, bytes]]


def system(request: int, structure: bytes | bytearray, phys_bits: int) -> tuple[int, bytes] | None:
    """What the device answers to a list: CPUID and the indices of MSRs, of which this model names none."""
    count = int.from_bytes(structure[:4], "little")
    match request:
        case uapi.KVM_GET_SUPPORTED_CPUID:
            return _fitting(count, b"".join(_CPUID.pack(*entry) for entry in cpuid(phys_bits)))
        case uapi.KVM_GET_MSR_INDEX_LIST | uapi.KVM_GET_MSR_FEATURE_INDEX_LIST:
            return 0, bytes(4)
        case uapi.KVM_X86_GET_MCE_CAP_SUPPORTED:
            return 0, bytes(8)
    return None


def _fitting(count: int, entries: bytes) -> tuple[int, bytes]:
    """A list of CPUID entries for somebody who has room for so many."""
    there = len(entries) // _CPUID.size
    if count < there:
        raise OSError(E2BIG, f"room for {count} entries: there are {there}")
    return 0, _HEADER.pack(there, 0) + entries


def _msrs(argument: int, count: int) -> Generator[Ask, Any, bytes]:
    if count >= _ENTRIES:
        raise OSError(E2BIG, f"{count} MSRs: must be fewer than {_ENTRIES}")
    return (yield from _read(argument + _HEADER.size, count * _MSR.size))


def _read(address: int, length: int) -> Generator[Ask, Any, bytes]:
    if not length:
        return b""
    got = yield Ask(Question.READ, address, length)
    if not isinstance(got, bytes) or len(got) != length:
        raise OSError(EFAULT, f"{length} bytes at {address:#x}: cannot be read")
    return got


def _answered(result: int, out: bytes) -> Listed:
    return result, out
    yield  # a generator, as the others
