from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

from kvmattr._core import AttributeMap
from kvmattr.faults import Exit
from kvmattr.guest_memfd import GuestMemfds
from kvmattr.listeners import CallListener, Listener
from kvmattr.memslots import GuestMemfd, MemslotTable
from kvmattr.profiles import Profile
from kvmattr.protection import Access, Capabilities

def first_changes(
    before: AttributeMap, after: AttributeMap, start: int, stop: int, limit: int
) -> npt.NDArray[np.void]:
    """Return the first ``limit`` (at least 1) records of ``after.diff(before, start, stop)``, read-only.

    In memory and time for those records. A record is never cut short, so the next ones are got from the last
    one's ``stop`` on. Two maps that nobody changes meanwhile give the same records again.
    """
def report_unraisable(error: BaseException, source: object) -> None:
    """Give an error that no caller can get to ``sys.unraisablehook``, as CPython does in destructors."""

@final
class Invalidation:
    """Sequence count and hull, by which a mapping made from a page's attributes is known to be stale.

    As KVM keeps them (``virt/kvm/kvm_main.c``, kvm_mmu_invalidate_begin, ..._range_add, ..._end, and
    ``include/linux/kvm_host.h``, mmu_invalidate_retry_gfn): a change begins, adds the ranges that it
    affects, which are kept as the smallest range that holds them all, and ends with ``sequence`` one higher.
    Who maps a page reads ``sequence`` first, then memslot and attributes, and asks ``retry`` before it uses
    the mapping.

    >>> from kvmattr import VM
    >>> vm = VM()
    >>> sequence = vm.invalidation.sequence
    >>> vm.set_user_memory_region(0, 0, 1 << 20)
    0
    >>> vm.set_memory_attributes(0, 4096, 1)
    0
    >>> vm.invalidation.retry(sequence), vm.invalidation.hull
    (True, (0, 1))
    """
    @property
    def sequence(self) -> int:
        """Changes that have ended."""
    @property
    def in_progress(self) -> int:
        """Changes that have begun and not ended."""
    @property
    def hull(self) -> tuple[int, int] | None:
        """The gfns ``(start, stop)`` of the changes in progress, or of the last one; None before any."""
    def begin(self) -> None:
        """Begin a change that is not the machine's own (KVM: of the host's mappings)."""
    def add(self, start: int, stop: int) -> None:
        """Widen the hull of the changes in progress to hold the gfns [start, stop)."""
    def end(self) -> None:
        """End a change: what was looked up before its end is stale. ValueError without a begin or a range."""
    def retry(self, sequence: int, gfn: int | None = None) -> bool:
        """Return True if what was looked up at ``sequence`` may be stale: look again.

        With ``gfn``, a change in progress counts only if its hull holds that page, as in
        mmu_invalidate_retry_gfn; without, any does, as in mmu_invalidate_retry.
        """

class Machine:
    """What a SET and an access need of a VM; :class:`kvmattr.VM` is this and everything around it."""
    @property
    def profile(self) -> Profile:
        """The profile whose interface this VM speaks."""
    @property
    def attributes(self) -> AttributeMap:
        """The attributes of every page: a read-only AttributeMap that is always up to date; it speaks gfns."""
    @property
    def memslots(self) -> MemslotTable:
        """The memslot table, to look at; it is changed through the VM."""
    @property
    def invalidation(self) -> Invalidation:
        """Sequence count and hull of the changes."""
    def __init__(
        self, profile: Profile, private: bool, capabilities: Capabilities, memslots: MemslotTable
    ) -> None: ...
    def set_memory_attributes(
        self, address: int, size: int, attributes: int, operation: int = 0, flags: int = 0
    ) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES: change the attributes of the pages [address, address + size); return 0.

        Byte addresses; ``attributes`` and what ``operation`` does with them: see :class:`kvmattr.Operation`. An
        AND takes a complement too, a negative int: ``~PRIVATE`` keeps every supported bit but PRIVATE. (The
        ioctl's u64 has no sign: there all 64 bits of the complement are EINVAL, as unsupported bits are.)
        O(height) of the tree and independent of the size, but for what listeners hear. Raises OSError with
        KVM's errno, having changed nothing: EINVAL for arguments that KVM refuses and for protections that
        this VM cannot have, EBUSY from inside a listener, ENOMEM; ValueError for a value that fits no field
        of the structure. The mail, and ``virt/kvm/kvm_main.c``, kvm_vm_ioctl_set_mem_attributes.

        >>> from kvmattr import VM, Operation, uapi
        >>> vm = VM()
        >>> vm.set_memory_attributes(0, 2 << 20, uapi.KVM_MEM_ATTR_PRIVATE)
        0
        >>> vm.set_memory_attributes(4096, 4096, uapi.KVM_MEM_ATTR_NO_WRITE, Operation.OR)
        0
        >>> vm.attributes[1]
        5
        """
    def set_memory_attributes_many(self, records: Any) -> int:
        """Apply an array of KVM_SET_MEMORY_ATTRIBUTES structures in order; return how many changed something.

        ``records``: a one-dimensional numpy array of ``uapi.MEMORY_ATTRIBUTES`` or the merged
        ``uapi.LINUX_MEMORY_ATTRIBUTES``, or a ctypes array of either structure; TypeError for anything else.
        The first record that ``set_memory_attributes`` would refuse ends the batch with the same OSError,
        whose ``done`` counts the records before it: those stand, the others were not tried.

        >>> import numpy as np
        >>> from kvmattr import VM, uapi
        >>> records = np.zeros(3, uapi.MEMORY_ATTRIBUTES)
        >>> records["address"] = [0, 4096, 0]
        >>> records["size"], records["attributes"] = 4096, 1
        >>> VM().set_memory_attributes_many(records)
        2
        """
    def access(
        self, gpa: int, access: int, size: int = 1, private: bool | None = None
    ) -> Exit | None:
        """Let a guest access memory: None if it may, else the :class:`kvmattr.Exit` to user space.

        ``gpa``: byte address; ``access``: one or several of :class:`kvmattr.Access`; ``size``: bytes from
        ``gpa``; ``private``: whether the access is to private memory, None for what the attribute says. In
        this order (``arch/x86/kvm/mmu/mmu.c``, kvm_faultin_pfn): PRIVATE of access and attribute differ, or
        private without an open guest_memfd: MEMORY_FAULT; no memslot: MMIO; an attribute forbids:
        MEMORY_FAULT; write to a read-only memslot: MMIO. Of an access that straddles pages, the first one
        that exits answers, and nothing was accessed. Address space 0. ValueError for an access outside the
        2^64 bytes, or of no known kind.

        A machine has no cached MMIO mappings: KVM still answers MMIO for a page without memslot that was made
        private after such an access, here it is a MEMORY_FAULT at once.

        >>> from kvmattr import VM, Access
        >>> vm = VM()
        >>> vm.access(0x1234, Access.READ, 4)
        Exit(MMIO, flags=0, gpa=0x1234, size=0x4, is_write=False)
        """
    def is_private(self, gpa: int) -> bool:
        """Return whether KVM takes the page at byte address ``gpa`` for private, in address space 0.

        By the attribute of its gfn, or where attributes belong to guest_memfds by that of the file page bound
        there; without one it is shared (``include/linux/kvm_host.h``, kvm_mem_is_private).

        >>> from kvmattr import VM
        >>> VM().is_private(0)
        False
        """
    def protection(self, gpa: int) -> Access:
        """Return what the guest may do at byte address ``gpa``, memslot AND attributes, as an Access.

        Nothing without a memslot in address space 0. Attributes only take away. ValueError outside the 2^64
        bytes.

        >>> from kvmattr import VM, uapi
        >>> vm = VM()
        >>> vm.set_user_memory_region(0, 0, 1 << 20, flags=uapi.KVM_MEM_READONLY)
        0
        >>> vm.protection(0x1000)
        <Access.READ|EXEC: 5>
        """
    def mapping_level(self, gpa: int) -> int:
        """Return the level of the largest page that may map byte address ``gpa``: 1, 2 (2 MiB) or 3 (1 GiB).

        The block must lie inside its memslot, its attributes must be uniform, and ``gpa`` and
        ``userspace_addr`` must be the same modulo its size; 1 without a memslot in address space 0
        (``arch/x86/kvm/mmu/mmu.c``, kvm_mmu_max_mapping_level; ``x86.c``, kvm_alloc_memslot_metadata). It is
        what lpage_info allows: no kernel compares the offset of a guest_memfd, and up to the queue of 7.4 every
        one maps the pages of a guest_memfd by 4 KiB all the same, since its folios are of order 0.

        >>> from kvmattr import VM
        >>> vm = VM()
        >>> vm.set_user_memory_region(0, 0, 1 << 30)
        0
        >>> vm.mapping_level(0)
        3
        >>> vm.set_memory_attributes(0, 4096, 1)
        0
        >>> vm.mapping_level(0), vm.mapping_level(2 << 20)
        (1, 2)
        """
    def _locked(
        self, call: str | None, numbers: tuple[int, ...], function: Callable[..., Any], *arguments: Any, **keywords: Any
    ) -> Any:
        """Call a function under the lock and return what it returns; ENOMEM for its MemoryError.

        ``call``, ``numbers``: what listeners of calls hear afterwards; None for a call that they do not hear of.
        """
    def _hears_calls(self) -> bool:
        """Whether a call that changes nothing is to be told, under the lock: what a listener asks itself is not."""
    def _close_guest_memfd(self, files: GuestMemfds, handle: int) -> None:
        """Close a file of ``files``; what its memslots map is stale."""
    def _add_listener(self, listener: Listener | CallListener, hears: int, replay: bool) -> None:
        """Add a listener; one that hears of changes first hears what is stored, if that is to be."""
    def _remove_listener(self, listener: Listener | CallListener) -> None: ...
    def _adopt(self, file: GuestMemfd, pages: FilePages, machine: Any) -> None:
        """Make a file one of this machine's, with these pages; ``machine``: a weak reference to it."""
    def _link(self, files: Any, other: GuestMemfd) -> int:
        """Return the handle of a file of this machine, one of ``files``, with another's pages.

        Under the locks of those that have them: a batch that converts them knows who they are until it ends.
        """
    def _check(self, address: int, size: int, operation: int = 0, flags: int = 0) -> None:
        """Raise OSError(EINVAL) for what KVM refuses, ValueError for what fits no field."""
    def _ioctl_set(self, arg: Any, mutate_flag: bool) -> int | bytes:
        """KVM_SET_MEMORY_ATTRIBUTES as an ioctl."""
    def _restore(self, saved: AttributeMap) -> None:
        """Make the attributes those that ``saved`` has now."""

@final
class Announcement:
    """One change: every chunk of it, to every listener, in this order.

    The change is from ``before`` to ``after``, two maps that nobody changes. ``spans`` says what of it listeners
    hear, and where it lies in the guest: ``(first page, page after the last, gfn of the first)`` each; of a
    change of a machine's own attributes the pages are the gfns. Its runs are many where the pages are fragmented,
    so no more than a chunk of them is ever in memory: after ``prepare`` they are made again from the two maps,
    which gives the same.
    """

class FilePages:
    """The pages of a guest_memfd, whichever machines have a file of it: attributes, and who holds them.

    ``FilePages(npages, attributes)``: how all of them begin.
    """
    @property
    def attributes(self) -> AttributeMap:
        """The attributes of each page of the file: a read-only AttributeMap that is always up to date."""
    @property
    def files(self) -> list[Any]:
        """Weak references to the GuestMemfds of these pages, one a machine."""
    def __init__(self, npages: int, attributes: int) -> None: ...
    def pin(self, offset: int, size: int) -> None:
        """Hold each page of the bytes [offset, offset + size) once more, as a device that writes to them does."""
    def unpin(self, offset: int, size: int) -> None:
        """Hold each page once less; ValueError, and nothing is changed, if one is not held."""
    def pinned(self, start: int, stop: int) -> int:
        """The first page of [start, stop) that somebody holds, or -1."""
    def poisoned(self, start: int, stop: int) -> int:
        """The first page of [start, stop) whose memory failed, or -1."""

class FileError(OSError):
    """KVM_SET_MEMORY_ATTRIBUTES2 got stuck at ``error_offset``, a byte offset in the file."""
    error_offset: int

def change_pages(
    file: GuestMemfd, start: int, stop: int, fails: bool, call: str | None, numbers: tuple[int, ...]
) -> None:
    """The memory of the pages [start, stop) fails, or is given back and new memory takes its place.

    What memslots map of them is stale: one change of each machine that maps any. ``call``, ``numbers``: what listeners
    of the file's machine hear, as in ``Machine._locked``.
    """
def tell_refused(file: GuestMemfd, call: str, numbers: tuple[int, ...], error: OSError) -> None:
    """Tell the listeners of the file's machine of a call that is about to raise an OSError for its arguments."""
def convert_file(file: GuestMemfd, handle: int, offset: int, size: int, attributes: int, flags: int) -> int:
    """KVM_SET_MEMORY_ATTRIBUTES2 with these fields."""
def convert_file_many(file: GuestMemfd, handle: int, records: Any) -> int:
    """An array of KVM_SET_MEMORY_ATTRIBUTES2 structures in order; how many changed something."""
def file_ioctl_set(file: GuestMemfd, handle: int, arg: Any, mutate_flag: bool) -> int | bytes:
    """KVM_SET_MEMORY_ATTRIBUTES2 as an ioctl: the structure comes back when the call got stuck, and only then."""

class Watcher:
    """Compiled code that keeps what it looked up of pages: the software TLB of an emulator.

    A subclass asks ``look_up`` at each miss and hears through ``changed`` when it must forget what it was
    told: after every call that may change attributes, memslots or a guest_memfd, effective or not, before
    the next one can begin (``virt/kvm/kvm_main.c``, kvm_flush_remote_tlbs). All of it with the GIL.
    """
