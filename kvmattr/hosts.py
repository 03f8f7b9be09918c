"""The machines that KVM runs on, as far as its answers differ between them: one record each, or your own.

Where user space ends, how large a page of the host is, how memslots must be aligned, which memslots KVM owns
itself. ``VM(host=...)`` takes a name or a record; the default is x86-64.

>>> HOSTS["arm64"].user_space_end == 1 << 48
True
>>> host_named("x86-64") is X86_64
True
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvmattr import uapi


@dataclass(frozen=True, slots=True)
class Host:
    """What KVM's answers depend on beside the kernel's version. Bytes; the defaults are x86-64's.

    ``user_space_end``: userspace_addr + memory_size may not pass it. ``page_size``: a power of two from 4096
    on; addresses and sizes of all calls are multiples of it. ``memslot_alignment``: what userspace_addr,
    guest_phys_addr and memory_size of a memslot must be multiples of, the page size if 0. ``nr_memslots``: of
    each address space. ``address_spaces``: of a VM without private memory, 1 or 2. ``readonly_memslots``:
    whether KVM_MEM_READONLY is known. ``guest_memfd_needs_mmap``: only a guest_memfd that serves shared pages
    too can be bound. ``irqchip_memslots``: ``(address, size)`` of each memslot that KVM_CREATE_IRQCHIP makes
    for KVM itself, at most three; none on an x86-64 machine without APICv or AVIC. ValueError for what no
    machine has.

    >>> Host("mine", page_size=1 << 14).user_space_end == uapi.TASK_SIZE_MAX
    True
    """

    name: str
    user_space_end: int = uapi.TASK_SIZE_MAX
    page_size: int = uapi.PAGE_SIZE
    memslot_alignment: int = 0
    nr_memslots: int = uapi.KVM_USER_MEM_SLOTS
    address_spaces: int = uapi.KVM_MAX_NR_ADDRESS_SPACES
    readonly_memslots: bool = True
    guest_memfd_needs_mmap: bool = False
    irqchip_memslots: tuple[tuple[int, int], ...] = ((0xFEE00000, 0x1000),)

    def __post_init__(self) -> None:
        size = self.page_size
        if not uapi.PAGE_SIZE <= size <= 1 << 21 or size & (size - 1):
            raise ValueError(f"host {self.name!r}: page_size {size:#x} must be a power of two in 0x1000..0x200000")
        alignment = self.memslot_alignment
        if alignment and (alignment < size or alignment > 1 << 40 or alignment & (alignment - 1)):
            raise ValueError(f"host {self.name!r}: memslot_alignment {alignment:#x} must be 0, or a power of two"
                             f" in {size:#x}..0x10000000000")
        if not 0 < self.user_space_end < 1 << 64:
            raise ValueError(f"host {self.name!r}: user_space_end {self.user_space_end:#x} must be in"
                             " 0x1..0xffffffffffffffff")
        if self.address_spaces not in (1, 2):
            raise ValueError(f"host {self.name!r}: address_spaces {self.address_spaces} must be 1 or 2")
        if len(self.irqchip_memslots) > uapi.KVM_INTERNAL_MEM_SLOTS:
            raise ValueError(f"host {self.name!r}: irqchip_memslots are {len(self.irqchip_memslots)}, must be at"
                             f" most {uapi.KVM_INTERNAL_MEM_SLOTS}")
        for address, nbytes in self.irqchip_memslots:
            if nbytes <= 0 or address < 0 or address + nbytes > 1 << 52 or (address | nbytes) % uapi.PAGE_SIZE:
                raise ValueError(f"host {self.name!r}: irqchip_memslots {address:#x}, {nbytes:#x} must be whole"
                                 " pages below 2^52")


#: x86-64 with four levels of page tables, which is where user space ends also on a machine with five, for
#: whoever does not ask for more.
X86_64 = Host("x86-64")
#: Five levels, for a process that maps memory high with a hint.
X86_64_LA57 = Host("x86-64-la57", user_space_end=(1 << 56) - uapi.PAGE_SIZE)


#: KVM on arm64 has no memslots of its own, one address space, and binds only what serves shared pages too.
ARM64 = Host("arm64", user_space_end=1 << 48, nr_memslots=32767, address_spaces=1, guest_memfd_needs_mmap=True,
             irqchip_memslots=())
#: The same with 52 bits of user space (LVA).
ARM64_LVA = replace(ARM64, name="arm64-lva", user_space_end=1 << 52)
#: ARM64 with pages of 16 KiB.
ARM64_16K = replace(ARM64, name="arm64-16k", page_size=1 << 14)
#: With 52 bits of user space and pages of 64 KiB.
ARM64_64K = replace(ARM64_LVA, name="arm64-64k", page_size=1 << 16)
#: Memslots are whole segments of 1 MiB, and none is read-only.
S390 = Host("s390", user_space_end=1 << 53, memslot_alignment=1 << 20, nr_memslots=32767, address_spaces=1,
            readonly_memslots=False, irqchip_memslots=())

#: By the names that ``VM(host=...)`` takes.
HOSTS = {host.name: host for host in (X86_64, X86_64_LA57, ARM64, ARM64_LVA, ARM64_16K, ARM64_64K, S390)}


def host_named(host: str | Host) -> Host:
    """Return the host of that name, or the given record itself; ValueError for a name that is none.

    >>> host_named("s390").memslot_alignment
    1048576
    """
    if isinstance(host, Host):
        return host
    if host not in HOSTS:
        raise ValueError(f"host {host!r}: must be one of {', '.join(HOSTS)}, or a Host")
    return HOSTS[host]
