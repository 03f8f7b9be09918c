from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, SupportsIndex, final

import numpy as np
import numpy.typing as npt

from kvmattr._core import AttributeMap
from kvmattr.hosts import Host
from kvmattr.operation import Operation

class Memslot(NamedTuple):
    """One memslot as it was when it was looked up.

    ``start`` and ``stop`` are gfns, ``stop`` exclusive; ``userspace_addr`` and ``guest_memfd_offset`` are
    bytes; ``flags`` are ``KVM_MEM_...``; ``guest_memfd`` is the bound `GuestMemfd`, closed or not, or None.

    >>> table = MemslotTable()
    >>> table.set_region(3, 0, 0x100000, 0x2000, 0x7F0000000000)
    >>> slot = table.lookup(0x101)
    >>> slot.id, slot.npages, hex(slot.guest_phys_addr), slot.memory_size
    (3, 2, '0x100000', 8192)
    """
    id: int
    address_space: int
    start: int
    stop: int
    userspace_addr: int
    flags: int
    guest_memfd: GuestMemfd | None
    guest_memfd_offset: int
    @property
    def npages(self) -> int:
        """Pages in the slot."""
    @property
    def guest_phys_addr(self) -> int:
        """The first byte's guest-physical address."""
    @property
    def memory_size(self) -> int:
        """Bytes in the slot."""

@final
class GuestMemfd:
    """A guest_memfd of a machine: a file of ``size`` bytes whose ranges are bound to memslots.

    ``GuestMemfd(table, size)`` is KVM_CREATE_GUEST_MEMFD on the VM that owns ``table``: OSError(EINVAL) for a
    size that is 0, negative as a signed number, or no multiple of the page size. ``flags`` are the
    ``GUEST_MEMFD_FLAG_...`` that it was created with, ``serves_shared`` says that guests find shared pages in the
    file too, not at userspace_addr. Only memslots of that table can bind it. After `close` its slots remain,
    without private memory. ``pages`` is what a VM keeps of the file's pages, None without a VM.

    Source: virt/kvm/guest_memfd.c; the rows of CREATE_GUEST_MEMFD as observed on Linux 6.12.

    >>> table = MemslotTable(private_memory=True, resolve_guest_memfd={7: None}.get)
    >>> GuestMemfd(table, 4096).size
    4096
    """
    machine: Any
    pages: Any
    def __new__(
        cls, table: MemslotTable, size: SupportsIndex, flags: SupportsIndex = 0, serves_shared: bool = False
    ) -> GuestMemfd: ...
    @property
    def table(self) -> MemslotTable: ...
    @property
    def size(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def serves_shared(self) -> bool: ...
    @property
    def closed(self) -> bool:
        """Whether the file is closed: its memslots stay, without private memory."""
    @property
    def attributes(self) -> AttributeMap | None:
        """The attributes of each page of the file, a read-only AttributeMap; None without a VM."""
    @property
    def bindings(self) -> tuple[tuple[int, int, int], ...]:
        """``(first byte, byte after the last, slot)`` of each bound range, in file order."""
    def pin(self, offset: int, size: int = 4096) -> None:
        """Hold the pages of the bytes [offset, offset + size) once more: none of them can become private.

        As a device does that reads or writes them. By page; ValueError for what is not within the file.
        """
    def unpin(self, offset: int, size: int = 4096) -> None:
        """Hold the pages once less; ValueError, and nothing is changed, if one is not held."""
    def close(self) -> None:
        """Close the file: its memslots stay, immutable, and have no private memory any more.

        RuntimeError for a file of a VM: its `close_guest_memfd` does this, under its lock.
        """

@final
class MemslotTable:
    """The memslots of a VM, with the rules, the errnos and the costs of KVM's own table.

    ``nr_memslots`` is the number of slot ids of each address space, ``phys_bits`` the guest's MAXPHYADDR,
    ``address_spaces`` 1 or 2 (2: x86 with SMM), ``private_memory`` whether the VM type has guest_memfd slots.
    ``metadata='tdp'`` builds what a kernel with two-dimensional paging and no write tracking allocates for a
    slot, one u32 per 2 MiB and per 1 GiB; ``'full'`` builds rmap and gfn_track too (10 bytes a page). Both
    count all three in `stats`. ``guest_memfd`` says whether memslots may have one, private memory or not (None:
    with private memory alone), ``bound_twice`` is the errno of a second memslot on a range of one. ``host`` is a
    `kvmattr.hosts.Host`: alignment, the end of user space, memslots of KVM's own. ``resolve_guest_memfd`` maps
    a file descriptor to its `GuestMemfd`, to None if it is not open, to anything else if it is another kind of
    file; it is called at the place where KVM looks up the descriptor. ValueError or TypeError for arguments
    that make no table.

    Iterating yields every `Memslot`, as of now, in gfn order, one address space after the other.

    Source: __kvm_set_memory_region and kvm_set_memslot in virt/kvm/kvm_main.c,
    kvm_arch_prepare_memory_region in arch/x86/kvm/x86.c, as observed on Linux 6.12.

    >>> table = MemslotTable()
    >>> table.set_region(0, 0, 0, 0x200000, 0x7F0000000000)
    >>> table.set_region(1, 0, 0x100000, 0x200000, 0x7F0000000000)
    Traceback (most recent call last):
    FileExistsError: [Errno 17] [0x100000, 0x300000) overlaps memslot 0, [0x0, 0x200000)
    >>> [(slot.id, slot.start, slot.stop) for slot in table]
    [(0, 0, 512)]
    """
    def __new__(
        cls,
        nr_memslots: SupportsIndex = 32764,
        *,
        phys_bits: SupportsIndex = 52,
        address_spaces: SupportsIndex = 1,
        private_memory: bool = False,
        metadata: Literal["tdp", "full"] = "tdp",
        resolve_guest_memfd: Callable[[int], object] | None = None,
        guest_memfd: bool | None = None,
        bound_twice: int = ...,
        host: Host = ...,
    ) -> MemslotTable: ...
    @property
    def nr_memslots(self) -> int:
        """Slot ids of each address space."""
    @property
    def phys_bits(self) -> int: ...
    @property
    def address_spaces(self) -> int: ...
    @property
    def private_memory(self) -> bool: ...
    @property
    def guest_memfd(self) -> bool: ...
    @property
    def host(self) -> Host: ...
    @property
    def metadata(self) -> Literal["tdp", "full"]:
        """``'tdp'`` or ``'full'``."""
    @property
    def generation(self) -> int:
        """Number of sets of memslots installed so far; moves with every change, never back."""
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Memslot]: ...
    def set_region(
        self,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex = 0,
        *,
        region2: bool = False,
        guest_memfd: int = -1,
        guest_memfd_offset: SupportsIndex = 0,
    ) -> None:
        """Create, move, delete or change a memslot: KVM_SET_USER_MEMORY_REGION, ``region2``: ...REGION2.

        Arguments are the structure's fields: ``slot`` is the id with the address space in its upper 16 bits,
        addresses and sizes are bytes; ``memory_size`` 0 deletes. ``guest_memfd`` is a file descriptor for
        ``resolve_guest_memfd``; it and its offset count only with KVM_MEM_GUEST_MEMFD.

        Raises OSError with KVM's errno, in KVM's order: EINVAL for flags, ids, alignment, ranges and what a
        slot cannot change into, EEXIST for an overlap, EBADF for a closed descriptor, EINVAL for a
        guest_memfd that does not fit, EINVAL beyond ``phys_bits``, ENOMEM. ValueError or TypeError
        for what does not fit its field. RuntimeError for the memslots of a VM: its own calls change them, under its
        lock. A call that raises has changed nothing.

        O(log memslots), plus the metadata of a slot that is created or moved: 4 bytes each 2 MiB. Source:
        __kvm_set_memory_region in virt/kvm/kvm_main.c.

        >>> table = MemslotTable(phys_bits=40)
        >>> table.set_region(0, 0, 1 << 40, 4096)
        Traceback (most recent call last):
        OSError: [Errno 22] [0x10000000000, 0x10000001000) ends beyond the guest's 40 physical address bits
        """
    def _set_region(
        self,
        slot: SupportsIndex,
        flags: SupportsIndex,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex,
        userspace_addr: SupportsIndex = 0,
        *,
        region2: bool = False,
        guest_memfd: int = -1,
        guest_memfd_offset: SupportsIndex = 0,
    ) -> None:
        """`set_region` for the VM that has the table, under its lock."""
    def own_regions(self, regions: Iterable[tuple[int, int]]) -> None:
        """Make KVM's own memslots, ``(guest_phys_addr, memory_size)`` each, numbered from nr_memslots on.

        At most three, in every address space. OSError: EEXIST over a memslot or if they are there already,
        EINVAL, ENOMEM, and RuntimeError for the memslots of a VM, having changed nothing. Source:
        __x86_set_memory_region in arch/x86/kvm/x86.c.

        >>> table = MemslotTable()
        >>> table.own_regions([(0xFEE00000, 4096)])
        >>> table.lookup(0xFEE00).id
        32764
        """
    def _own_regions(self, regions: Iterable[tuple[int, int]]) -> None:
        """`own_regions` for the VM that has the table, under its lock."""
    def lookup(self, gfn: SupportsIndex, address_space: SupportsIndex = 0) -> Memslot | None:
        """The `Memslot` that holds a gfn, or None. O(log memslots); at once for the slot found last.

        IndexError for a gfn outside [0, 2^52), ValueError for an address space that the table does not have.
        Source: search_memslots and __gfn_to_memslot in include/linux/kvm_host.h.

        >>> MemslotTable().lookup(5) is None
        True
        """
    def slot(self, slot: SupportsIndex) -> Memslot | None:
        """The `Memslot` with this id (address space in the upper 16 bits, as in `set_region`), or None. O(1).

        >>> MemslotTable().slot(0) is None
        True
        """
    def overlapping(
        self, start: SupportsIndex, stop: SupportsIndex, address_space: SupportsIndex = 0
    ) -> list[Memslot]:
        """The `Memslot` records that hold pages of the gfns [start, stop), in gfn order, as a list.

        O(log memslots + result). ValueError for a range that is not within [0, 2^52] or an address space that
        the table does not have.

        >>> table = MemslotTable()
        >>> table.set_region(0, 0, 0, 0x2000)
        >>> [slot.id for slot in table.overlapping(1, 100)], table.overlapping(2, 100)
        ([0], [])
        """
    def stats(self) -> dict[str, int]:
        """What the table holds now, and what its changes have cost since it was made, as a dict of int.

        ``memslots``, ``pages``, ``metadata_held_bytes``: now. ``slots_created``, ``slots_deleted``,
        ``slots_moved``, ``slots_flags_changed``, ``slots_copied`` (INVALID stand-ins, and new records of
        changed slots), ``sets_installed``, ``large_page_bytes`` and ``dirty_bitmap_bytes`` (built),
        ``rmap_bytes`` and ``gfn_track_bytes`` (built with metadata='full', else what would have been):
        counters.

        >>> table = MemslotTable()
        >>> table.set_region(0, 0, 0, 1 << 40)
        >>> table.stats()["large_page_bytes"]  # 2^19 blocks of 2 MiB, 2^10 of 1 GiB
        2101248
        """
    def validate(self) -> None:
        """Recompute every invariant; AssertionError names the first that is broken. O(memslots).

        Of bindings of guest_memfds it is the caller's to see that none changes meanwhile.
        """

@final
class SplittingBaseline:
    """The alternative that the mail argues against: attributes as memslots, one slot a run of equal pages.

    ``SplittingBaseline(npages)`` is a guest of npages pages in one memslot with attributes 0; 1 <= npages
    < 2^35 (128 TiB, what user space can map). KVM's limit of 2^31 - 1 pages a slot is waived, in favour of
    this side. ``nr_memslots`` is the number of slots that exist. An update that needs more raises
    OSError(EINVAL) after old slots are gone, as on KVM; with ``rollback`` they are then made again, without
    it what could not be made stays a hole. ``metadata`` is as in `MemslotTable`.

    Update and look-up calls have the signatures, results and errors of `AttributeMap`. MemoryError changes
    nothing.

    Source: the mail ("the exact same performance problems with memslots"); the steps are those of a VMM on
    KVM_SET_USER_MEMORY_REGION.

    >>> baseline = SplittingBaseline(1000)
    >>> baseline.write(10, 20, 1)
    True
    >>> baseline.runs().tolist()
    [(0, 10, 0), (10, 20, 1), (20, 1000, 0)]
    >>> baseline.stats()["slots_deleted"], baseline.stats()["pages_without_slot"]
    (1, 1000)
    """
    def __new__(
        cls,
        npages: SupportsIndex,
        nr_memslots: SupportsIndex = 32764,
        rollback: bool = True,
        *,
        metadata: Literal["tdp", "full"] = "tdp",
    ) -> SplittingBaseline: ...
    @property
    def npages(self) -> int: ...
    @property
    def nr_memslots(self) -> int:
        """The number of memslots that can exist."""
    @property
    def rollback(self) -> bool: ...
    @property
    def metadata(self) -> Literal["tdp", "full"]:
        """``'tdp'`` or ``'full'``."""
    @property
    def run_count(self) -> int:
        """The number of runs, which is the number of memslots in use."""
    @property
    def nbytes(self) -> int:
        """Bytes that the memslots occupy: the records ever used, their metadata, the object itself."""
    def __len__(self) -> int: ...
    def update(
        self,
        start: SupportsIndex,
        stop: SupportsIndex,
        attributes: SupportsIndex,
        operation: SupportsIndex = Operation.WRITE,
        mask: SupportsIndex = 0xFF,
    ) -> bool:
        """Apply an operation to the gfns [start, stop), to the bits of mask alone; True if a page changed.

        Deletes every memslot that the update cuts or changes, or that merges with another, and creates one
        for each new run. O(slots touched * log memslots + their metadata). ValueError for a bad range,
        attributes, operation or mask; OSError(EINVAL) without a free memslot; MemoryError. Holes
        (``rollback=False``) are filled by updates that give every bit a value, and left by others.

        >>> baseline = SplittingBaseline(100)
        >>> baseline.update(0, 50, 6, Operation.OR), baseline.update(0, 50, 1, mask=1), baseline.get(49)
        (True, True, 7)
        """
    def update_many(
        self,
        starts: npt.ArrayLike,
        stops: npt.ArrayLike,
        attributes: npt.ArrayLike,
        operation: npt.ArrayLike = Operation.WRITE,
        mask: npt.ArrayLike = 0xFF,
    ) -> int:
        """Many updates in order, in one call; the number of those that changed something.

        All five arguments are scalars or arrays and broadcast; everything is checked first. Cost: as many
        `update` calls, without Python between them. An update that fails, or Ctrl-C, ends the batch: those
        before it stand, and the exception's ``done`` counts them.

        >>> SplittingBaseline(100).update_many([0, 5, 7], [10, 6, 7], [1, 1, 2])
        1
        """
    def write(self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, /) -> bool:
        """Give the gfns [start, stop) these attributes: `update` with WRITE.

        >>> SplittingBaseline(100).write(0, 100, 0)
        False
        """
    def or_(self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, /) -> bool:
        """Set bits in the gfns [start, stop): `update` with OR.

        >>> SplittingBaseline(100).or_(0, 100, 4)
        True
        """
    def and_(self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, /) -> bool:
        """Keep only these bits in the gfns [start, stop): `update` with AND.

        >>> SplittingBaseline(100).and_(0, 100, 4)
        False
        """
    def get(self, gfn: SupportsIndex, /) -> int:
        """The attributes of a page. O(log memslots); at once in the slot found last.

        IndexError for a gfn outside [0, npages), plain LookupError for one in a hole (``rollback=False``).

        >>> SplittingBaseline(100).get(99)
        0
        """
    def take(self, gfns: npt.ArrayLike, /) -> npt.NDArray[np.uint8]:
        """The attributes of many pages: a uint8 array, one lookup each.

        IndexError for a gfn outside [0, npages), plain LookupError for one in a hole (``rollback=False``).

        >>> SplittingBaseline(100).take([0, 99]).tolist()
        [0, 0]
        """
    def runs(self, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> npt.NDArray[np.void]:
        """The memslots in gfn order, clipped to [start, stop): a structured array, one run a slot.

        The packed dtype (17 bytes) is the store's: ``start <u8, stop <u8, attributes u1``; holes are left
        out.         O(log memslots + result). ValueError for a bad range.

        >>> SplittingBaseline(100).runs(5, 10).tolist()
        [(5, 10, 0)]
        """
    def stats(self) -> dict[str, int]:
        """What the memslots are now, and what all updates since the start have cost, as a dict of int.

        As `MemslotTable.stats`, and ``slots_touched`` (created or deleted), ``highest_memslots`` (at once),
        ``pages_without_slot`` (pages of deleted slots, each time: an access meanwhile would have found no
        memory), ``pages_in_holes`` (without a slot now).

        >>> baseline = SplittingBaseline(1 << 24)
        >>> baseline.write(512, 513, 1)
        True
        >>> stats = baseline.stats()
        >>> stats["slots_touched"], stats["highest_memslots"], stats["large_page_bytes"]
        (5, 3, 262668)
        """
    def validate(self) -> None:
        """Recompute every invariant; AssertionError names the first that is broken. O(memslots)."""
