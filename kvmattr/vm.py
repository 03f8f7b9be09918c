"""The machine behind the ioctls: what KVM's VM file descriptor answers, and the mail's calls beside it.

Which file has what: arguments in and out, capabilities, memslot calls, guest_memfd and listeners are here;
the path of one change and of one access is compiled (``_vm.pyx``); the rules of memslots are their table's.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, KeysView
from errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOTTY
from functools import cache
from operator import index as as_integer
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmattr import uapi
from kvmattr._core import AttributeMap
from kvmattr._vm import Machine, change_pages, convert_file, convert_file_many, file_ioctl_set, tell_refused
from kvmattr.guest_memfd import GuestMemfds, check_fallocate, open_file, resolve
from kvmattr.hosts import Host, host_named
from kvmattr.listeners import CallListener, Listener, heard_by
from kvmattr.memslots import GuestMemfd, MemslotTable
from kvmattr.operation import Operation
from kvmattr.profiles import Profile, profile_named
from kvmattr.protection import Access, Capabilities

#: What ``get_memory_attributes`` returns: byte addresses, as the structure has them.
RANGES = np.dtype([("address", "<u8"), ("size", "<u8"), ("attributes", "u1")])

Handler = Callable[[Any, Any, bool], int | bytes]


class VM(Machine):
    """A virtual machine: memslots, an attribute byte a page, and KVM's ioctls on both.

    ``abi``: a profile's name (``rfc``: the mail; ``linux`` and its versions; ``gmem``; ``vsm``) or a
    :class:`kvmattr.profiles.Profile`. ``private``: private memory, as a KVM_X86_SW_PROTECTED_VM has it: the
    PRIVATE attribute, guest_memfd in memslots (from 6.18 on a machine without has that too) and one address
    space; a machine without has two. ``host``: the machine below, a name of :mod:`kvmattr.hosts` or a
    :class:`kvmattr.hosts.Host`. ``no_exec``, ``exec_only``, ``write_only``:
    the protections that its hardware can enforce beyond none, RX and RWX (the ``vsm`` profile has a rule of
    its own in their place). ``phys_bits``: memslots must end at or below 2^phys_bits. ``nr_memslots``:
    memslots of each address space, as many as the host's by default. ValueError for values that cannot be.

    Every call of the interface is there twice: ``ioctl`` with the request and its structure, and a method
    with the structure's fields, which answers and fails alike.

    >>> from kvmattr import VM, Access, uapi
    >>> vm = VM(no_exec=True)
    >>> vm.set_user_memory_region(slot=0, guest_phys_addr=0, memory_size=1 << 30)
    0
    >>> vm.set_memory_attributes(0x1000, 0x1000, uapi.KVM_MEM_ATTR_NO_WRITE | uapi.KVM_MEM_ATTR_NO_EXEC)
    0
    >>> vm.access(0x1008, Access.WRITE, size=8)
    Exit(MEMORY_FAULT, flags=WRITE, gpa=0x1000, size=0x1000, is_write=True)
    >>> vm
    <VM rfc, private memory, host x86-64: 1 memslot, 3 runs of attributes>
    """

    def __init__(
        self,
        abi: str | Profile = "rfc",
        *,
        private: bool = True,
        no_exec: bool = False,
        exec_only: bool = False,
        write_only: bool = False,
        phys_bits: int = 52,
        nr_memslots: int | None = None,
        host: str | Host = "x86-64",
    ) -> None:
        profile, machine = profile_named(abi), host_named(host)
        memslots = MemslotTable(
            machine.nr_memslots if nr_memslots is None else nr_memslots,
            phys_bits=phys_bits,
            address_spaces=1 if private else machine.address_spaces,
            private_memory=bool(private),
            resolve_guest_memfd=resolve,
            guest_memfd=bool(private) or profile.guest_memfd_in_default_vms,
            bound_twice=profile.bound_twice,
            host=machine,
        )
        capabilities = Capabilities(bool(no_exec), bool(exec_only), bool(write_only))
        super().__init__(profile, bool(private), capabilities, memslots)
        #: What the hardware can enforce, as given: ``no_exec``, ``exec_only``, ``write_only``.
        self.capabilities = capabilities
        self._guest_memfds = GuestMemfds(self)
        self._irqchip = False
        self._handlers = _calls(self.profile.vm_attributes, self.profile.mail_calls)

    def __repr__(self) -> str:
        """What was asked for and how much there is by now, without looking at a page."""
        if self.memslots is None:   # a class whose __init__ has not called ours
            return super().__repr__()
        slots, runs = len(self.memslots), self.attributes.run_count
        private = "private memory" if self.memslots.private_memory else "no private memory"
        return (f"<{type(self).__name__} {self.profile.name}, {private}, host {self.host.name}: "
                f"{slots:,} memslot{'' if slots == 1 else 's'}, {runs:,} run{'' if runs == 1 else 's'} of attributes>")

    @property
    def host(self) -> Host:
        """The host below this machine."""
        return self.memslots.host

    # ioctl -------------------------------------------------------------------------------------------------

    @property
    def requests(self) -> KeysView[int]:
        """The requests that :meth:`ioctl` knows; any other is ENOTTY.

        >>> uapi.KVM_GET_MEMORY_ATTRIBUTES in VM("rfc").requests, uapi.KVM_GET_MEMORY_ATTRIBUTES in VM("linux").requests
        (True, False)
        """
        return self._handlers.keys()

    def ioctl(self, request: int, arg: Any = 0, mutate_flag: bool = True) -> int | bytes:
        """Answer a request as ``fcntl.ioctl`` on KVM's VM file descriptor does.

        ``arg``: a buffer (bytes, bytearray, memoryview, ctypes or numpy structure) whose first bytes are the
        structure, or an int where the request takes one. Returns the call's result (0, or a number) and
        writes what comes out into ``arg``; for a read-only buffer, or with ``mutate_flag`` False, the bytes
        of a copy with what comes out are returned in place of the result. Raises OSError with KVM's errno
        and nothing else: ENOTTY for a request that the profile does not have, EFAULT for an ``arg`` that
        holds no such structure.

        >>> from kvmattr import VM, uapi
        >>> vm = VM()
        >>> change = uapi.kvm_memory_attributes(address=0, size=8192, attributes=uapi.KVM_MEM_ATTR_PRIVATE)
        >>> vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, change)
        0
        >>> asked = uapi.kvm_memory_attributes(address=4096, size=1 << 20)
        >>> vm.ioctl(uapi.KVM_GET_MEMORY_ATTRIBUTES, asked), asked.attributes, asked.size
        (0, 1, 4096)
        >>> vm.ioctl(uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_MEMORY_ATTRIBUTES)
        15
        """
        try:
            handler = self._handlers.get(request) or self._handlers[request & 0xFFFFFFFF]
        except (KeyError, TypeError):
            raise OSError(ENOTTY, f"request {request!r}: not in the {self.profile.name} profile") from None
        return handler(self, arg, mutate_flag)

    # Attributes --------------------------------------------------------------------------------------------

    @property
    def supported_attributes(self) -> int:
        """The attributes that this machine accepts, one bitmask; 0 if none.

        "it should return a bitmask so that userspace can do a single query": the mail's
        KVM_SUPPORTED_MEMORY_ATTRIBUTES, in every profile KVM_CAP_MEMORY_ATTRIBUTES.

        >>> VM().supported_attributes, VM("linux").supported_attributes
        (15, 8)
        """
        return self.check_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES)

    @property
    def legal_attributes(self) -> tuple[int, ...]:
        """The attribute bytes that a page of this machine may have, in order: the query of combinations.

        ``supported_attributes`` says which bits there are; some of them may be refused alone.

        >>> VM().legal_attributes, VM(no_exec=True).legal_attributes
        ((0, 1, 4, 5, 14, 15), (0, 1, 4, 5, 8, 9, 12, 13, 14, 15))
        """
        private = self.memslots.private_memory
        table = self.profile.legality(private, self.capabilities)
        return tuple(byte for byte in range(256) if table[byte])

    def get_memory_attributes(self, address: int, size: int) -> npt.NDArray[np.void]:
        """KVM_GET_MEMORY_ATTRIBUTES for all of [address, address + size): its runs, as an array.

        Records ``address <u8, size <u8, attributes u1`` in order, each as far as equal attributes extend
        inside the range. Time and memory by the number of runs. OSError: ENOTTY in a profile without the
        mail's calls (``vm.attributes.runs`` answers in every profile), EINVAL for a range that
        set_memory_attributes refuses.

        >>> vm = VM()
        >>> vm.set_memory_attributes(0x3000, 0x1000, uapi.KVM_MEM_ATTR_PRIVATE)
        0
        >>> vm.get_memory_attributes(0, 0x5000).tolist()
        [(0, 12288, 0), (12288, 4096, 1), (16384, 4096, 0)]
        """
        if not (self.profile.mail_calls and self.profile.vm_attributes):
            raise OSError(ENOTTY, f"the {self.profile.name} profile has no KVM_GET_MEMORY_ATTRIBUTES")
        if self._hears_calls():
            heard: npt.NDArray[np.void] = self._locked("get_memory_attributes", (address, size), self._ranges, address,
                                                       size)
            return heard
        return self._ranges(address, size)

    def _ranges(self, address: int, size: int) -> npt.NDArray[np.void]:
        self._check(address, size)
        runs = self.attributes.runs(address >> uapi.PAGE_SHIFT, address + size >> uapi.PAGE_SHIFT)
        ranges = np.empty(len(runs), RANGES)
        ranges["address"] = runs["start"] << uapi.PAGE_SHIFT
        ranges["size"] = runs["stop"] - runs["start"] << uapi.PAGE_SHIFT
        ranges["attributes"] = runs["attributes"]
        return ranges

    def _ioctl_get(self, asked: uapi.kvm_memory_attributes) -> int:
        if self._hears_calls():
            answer: int = self._locked("get_memory_attributes", (asked.address, asked.size), self._get_run, asked)
            return answer
        return self._get_run(asked)

    def _get_run(self, asked: uapi.kvm_memory_attributes) -> int:
        self._check(asked.address, asked.size, asked.operation, asked.flags)
        start, stop = asked.address >> uapi.PAGE_SHIFT, asked.address + asked.size >> uapi.PAGE_SHIFT
        _, run_stop, asked.attributes = self.attributes.run(start)
        asked.size = min(stop, run_stop) - start << uapi.PAGE_SHIFT
        return 0

    def _get_supported(self, supported: uapi.supported_memory_attributes) -> int:
        supported.attributes = self.supported_attributes
        return 0

    def _register_region(self, region: uapi.kvm_enc_region) -> int:
        """KVM_MEMORY_ENCRYPT_REG_REGION, which the mail wants to retire: the range becomes private."""
        return self.set_memory_attributes(region.addr, region.size, self.profile.private, Operation.OR)

    def _unregister_region(self, region: uapi.kvm_enc_region) -> int:
        """KVM_MEMORY_ENCRYPT_UNREG_REGION: the range becomes shared; where REG is refused, so is this."""
        private = self.profile.private
        if not private & self.supported_attributes:
            raise OSError(EINVAL, f"attributes {private:#x}: must be within the supported"
                                  f" {self.supported_attributes:#x}")
        return self.set_memory_attributes(region.addr, region.size, self.supported_attributes & ~private,
                                          Operation.AND)

    def snapshot(self) -> AttributeMap:
        """Return the attributes as they are now, read-only, in O(1); memslots are not part of it."""
        return self.attributes.snapshot()

    def restore(self, saved: AttributeMap) -> None:
        """Make the attributes those of ``saved``, a snapshot or any map of as many pages; memslots stay.

        One change: its differences pass legality and the listeners, and count once in the invalidation. Time
        by what differs. OSError: EINVAL for a byte that this machine cannot have, EBUSY from inside a
        listener, ENOMEM; TypeError, ValueError for what is no such map. Nothing is changed then.

        >>> vm = VM()
        >>> before = vm.snapshot()
        >>> vm.set_memory_attributes(0, 1 << 40, uapi.KVM_MEM_ATTR_PRIVATE)
        0
        >>> vm.restore(before)
        >>> vm.attributes.run_count
        1
        """
        if not isinstance(saved, AttributeMap):
            raise TypeError(f"{saved!r}: must be an AttributeMap")
        if len(saved) != len(self.attributes):
            raise ValueError(f"a map of {len(saved)} pages: must have {len(self.attributes)}")
        self._restore(saved)

    # Memslots and guest_memfd ------------------------------------------------------------------------------

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int = 0, flags: int = 0
    ) -> int:
        """KVM_SET_USER_MEMORY_REGION: create, move or delete (size 0) a memslot, or change its flags.

        ``slot``: the number, with the address space in the upper 16 bits; bytes and byte addresses. Returns
        0. Attributes are neither read nor changed: they belong to the gfn. Raises OSError with KVM's errno,
        having changed nothing (:meth:`kvmattr.memslots.MemslotTable.set_region` says which), EBUSY from
        inside a listener; ValueError for a value that fits no field of the structure.
        """
        numbers = (slot, flags, guest_phys_addr, memory_size, userspace_addr)
        self._locked("set_user_memory_region", numbers, self.memslots._set_region, slot, flags, guest_phys_addr,
                     memory_size, userspace_addr)
        return 0

    def set_user_memory_region2(
        self,
        slot: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int = 0,
        flags: int = 0,
        guest_memfd: int = -1,
        guest_memfd_offset: int = 0,
    ) -> int:
        """KVM_SET_USER_MEMORY_REGION2: the same, and with KVM_MEM_GUEST_MEMFD the binding of private memory.

        ``guest_memfd`` is a handle from :meth:`create_guest_memfd`.

        >>> vm = VM()
        >>> memory = vm.create_guest_memfd(1 << 20)
        >>> vm.set_user_memory_region2(0, 0, 1 << 20, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=memory)
        0
        """
        numbers = (slot, flags, guest_phys_addr, memory_size, userspace_addr, guest_memfd, guest_memfd_offset)
        self._locked("set_user_memory_region2", numbers, self.memslots._set_region, slot, flags, guest_phys_addr,
                     memory_size, userspace_addr, region2=True, guest_memfd=guest_memfd,
                     guest_memfd_offset=guest_memfd_offset)
        return 0

    def _set_region(self, region: uapi.kvm_userspace_memory_region) -> int:
        return self.set_user_memory_region(region.slot, region.guest_phys_addr, region.memory_size,
                                           region.userspace_addr, region.flags)

    def _set_region2(self, region: uapi.kvm_userspace_memory_region2) -> int:
        guest_memfd = ctypes.c_int32(region.guest_memfd).value  # a file descriptor, so signed
        return self.set_user_memory_region2(region.slot, region.guest_phys_addr, region.memory_size,
                                            region.userspace_addr, region.flags, guest_memfd,
                                            region.guest_memfd_offset)

    def create_guest_memfd(self, size: int, flags: int = 0) -> int:
        """KVM_CREATE_GUEST_MEMFD: return the handle of a new file of private memory of ``size`` bytes.

        A handle is a number of kvmattr's own, no file descriptor; the file lives until
        :meth:`close_guest_memfd`. ``flags``: ``uapi.GUEST_MEMFD_FLAG_...`` that KVM_CAP_GUEST_MEMFD_FLAGS names.
        OSError(EINVAL) for other flags, and for a size that is not a multiple of the host's page size above 0
        and below 2^63. Any machine may create files, also where none can be bound.

        >>> VM("linux-7.2").create_guest_memfd(1 << 20, uapi.GUEST_MEMFD_FLAG_INIT_SHARED)
        Traceback (most recent call last):
        OSError: [Errno 22] flags are 0x2: a guest_memfd of this VM may have 0x1
        """
        handle: int = self._locked("create_guest_memfd", (size, flags), self._guest_memfds.create, self, size, flags)
        return handle

    def _create_guest_memfd(self, file: uapi.kvm_create_guest_memfd) -> int:
        return self.create_guest_memfd(file.size, file.flags)

    def close_guest_memfd(self, handle: int) -> None:
        """Close a guest_memfd: its memslots stay and have no private memory any more.

        OSError(EBADF) for a handle that is not open, EBUSY from inside a listener.
        What was mapped through it is stale, so the invalidation counts it if a memslot was bound
        (``virt/kvm/guest_memfd.c``, kvm_gmem_release).
        """
        self._close_guest_memfd(self._guest_memfds, handle)

    def guest_memfd(self, handle: int) -> GuestMemfd:
        """Return the open file of a handle: its attributes by page, its bindings, who holds its pages.

        OSError(EBADF) for a handle that is not open.

        >>> vm = VM("gmem")
        >>> file = vm.guest_memfd(vm.create_guest_memfd(1 << 20, uapi.GUEST_MEMFD_FLAG_INIT_SHARED))
        >>> file.size, file.attributes.runs().tolist()
        (1048576, [(0, 256, 0)])
        """
        return open_file(handle)

    def guest_memfds(self) -> list[tuple[int, GuestMemfd]]:
        """Return the open guest_memfds that this machine has made, as (handle, file), in that order.

        >>> vm = VM("gmem")
        >>> handle = vm.create_guest_memfd(1 << 20)
        >>> [(number == handle, file.size) for number, file in vm.guest_memfds()]
        [(True, 1048576)]
        """
        return self._guest_memfds.open_files()

    def link_guest_memfd(self, handle: int) -> int:
        """Return the handle of a new file of this machine with the pages of another machine's guest_memfd.

        Pages and their attributes are one then, bindings are each machine's own; each machine hears of a
        conversion through what it has bound. KVM has no such call yet (it was posted as
        KVM_LINK_GUEST_MEMFD); its files are made for several machines all the same. OSError: EBADF; EINVAL
        for a machine of another profile; EBUSY from inside a listener.

        >>> one, other = VM("gmem"), VM("gmem")
        >>> file = one.create_guest_memfd(1 << 20)
        >>> again = other.link_guest_memfd(file)
        >>> one.guest_memfd(file).attributes is other.guest_memfd(again).attributes
        True
        """
        file = open_file(handle)
        maker = file.machine()
        if maker is None or maker.profile != self.profile:
            raise OSError(EINVAL, f"guest_memfd is {handle}: it is not of a VM of the {self.profile.name} profile")
        linked: int = self._link(self._guest_memfds, file)
        return linked

    # KVM_SET_MEMORY_ATTRIBUTES2 ------------------------------------------------------------------------------

    def gmem_ioctl(self, handle: int, request: int, arg: Any = 0, mutate_flag: bool = True) -> int | bytes:
        """Answer a request as the file descriptor of a guest_memfd does: KVM_SET_MEMORY_ATTRIBUTES2, or ENOTTY.

        ``arg`` and the result are as in :meth:`ioctl`, but the structure comes back only when the call got
        stuck: with ``error_offset``, which the OSError has as an attribute too. OSError: EBADF for a handle
        that is not open; ENOTTY for other requests and where attributes do not belong to files; EFAULT;
        and as :meth:`set_memory_attributes2`.

        >>> vm = VM("gmem")
        >>> file = vm.create_guest_memfd(1 << 20)
        >>> change = uapi.kvm_memory_attributes2(offset=0x1000, size=0x1000, attributes=0)
        >>> vm.gmem_ioctl(file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change)
        0
        >>> vm.guest_memfd(file).attributes.runs(0, 4).tolist()
        [(0, 1, 8), (1, 2, 0), (2, 4, 8)]
        """
        file = open_file(handle)
        if not isinstance(request, int) or request & 0xFFFFFFFF != uapi.KVM_SET_MEMORY_ATTRIBUTES2:
            raise OSError(ENOTTY, f"request {request!r}: a guest_memfd has KVM_SET_MEMORY_ATTRIBUTES2 alone")
        self._check_file(file)
        return file_ioctl_set(file, handle, arg, mutate_flag)

    def set_memory_attributes2(
        self, handle: int, offset: int, size: int, attributes: int, flags: int = 0
    ) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd: give the pages of a range of the file attributes; return 0.

        ``offset``, ``size``: bytes of the file. ``attributes``: 0, shared, or the profile's PRIVATE. What
        memslots of any machine map of the range is invalidated. O(height) of the tree and O(bindings in the
        range), whatever the size. OSError, having changed nothing: EINVAL for what KVM refuses, EAGAIN when
        a page that is to become private is in use, ENOMEM (``error_offset`` is where in the file), EBUSY from
        inside a listener, ENOTTY where attributes do not belong to files; ValueError for a value that fits no
        field of the structure. Source: the posted ``virt/kvm/guest_memfd.c``, kvm_gmem_set_attributes.

        >>> vm = VM("gmem")
        >>> file = vm.create_guest_memfd(1 << 20, uapi.GUEST_MEMFD_FLAG_INIT_SHARED)
        >>> vm.guest_memfd(file).pin(0x5000)
        >>> vm.set_memory_attributes2(file, 0, 1 << 20, uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        Traceback (most recent call last):
        kvmattr._vm.FileError: [Errno 11] offset 0x5000: the page is in use, so it cannot become private
        """
        file = open_file(handle)
        self._check_file(file)
        return convert_file(file, handle, offset, size, attributes, flags)

    def set_memory_attributes2_many(self, handle: int, records: npt.NDArray[np.void]) -> int:
        """Apply an array of KVM_SET_MEMORY_ATTRIBUTES2 structures in order; return how many changed something.

        ``records``: a one-dimensional array of ``uapi.MEMORY_ATTRIBUTES2``, TypeError else. The GIL is
        released. The first record that ``set_memory_attributes2`` would refuse ends the batch with the same
        OSError, whose ``done`` counts the records before it: those stand, the others were not tried.

        >>> vm = VM("gmem")
        >>> file = vm.create_guest_memfd(1 << 20)
        >>> records = np.zeros(2, uapi.MEMORY_ATTRIBUTES2)
        >>> records["size"] = 0x1000
        >>> vm.set_memory_attributes2_many(file, records)
        1
        """
        file = open_file(handle)
        self._check_file(file)
        return convert_file_many(file, handle, records)

    def _check_file(self, file: GuestMemfd) -> None:
        """Raise OSError(ENOTTY) unless the attributes of this file are its own."""
        vm = file.machine()
        if vm is None or not vm.profile.file_attributes:
            name = self.profile.name if vm is None else vm.profile.name
            raise OSError(ENOTTY, f"a guest_memfd of the {name} profile has no KVM_SET_MEMORY_ATTRIBUTES2")

    def create_irqchip(self) -> int:
        """KVM_CREATE_IRQCHIP: KVM makes the memslots that it owns itself on this host; return 0.

        On x86-64 with APICv or AVIC, the APIC access page at 0xfee00000: a region over it is EEXIST then.
        OSError: EEXIST if there is an irqchip already, or a memslot where KVM's would be; nothing is changed.

        >>> vm = VM("linux-7.2")
        >>> vm.create_irqchip()
        0
        >>> vm.set_user_memory_region(0, 0xFEE00000, 0x1000)
        Traceback (most recent call last):
        FileExistsError: [Errno 17] [0xfee00000, 0xfee01000) overlaps memslot 32764, [0xfee00000, 0xfee01000)
        """
        self._locked(None, (), self._make_irqchip)
        return 0

    def _make_irqchip(self) -> None:
        if self._irqchip:
            raise OSError(EEXIST, "this VM has its irqchip already")
        self.memslots._own_regions(self.host.irqchip_memslots)
        self._irqchip = True

    def _ioctl_create_irqchip(self, arg: Any, mutate_flag: bool) -> int:
        return self.create_irqchip()

    def fallocate_guest_memfd(self, handle: int, mode: int, offset: int, size: int) -> None:
        """fallocate(2) on a guest_memfd: allocate pages, or with uapi.FALLOC_FL_PUNCH_HOLE give them back.

        ``offset``, ``size``: bytes. A hole's pages are fresh when they are next used and keep their attributes;
        what memslots map of it is stale, so the invalidation of their machine counts it. OSError: EBADF; EINVAL
        for a negative offset, a size below 1, what is no multiple of the page size, and to allocate beyond the
        end; EOPNOTSUPP for other modes than FALLOC_FL_KEEP_SIZE with or without FALLOC_FL_PUNCH_HOLE; EFBIG for
        an end beyond 2^63 - 1; EBUSY from inside a listener (``virt/kvm/guest_memfd.c``, kvm_gmem_fallocate).
        """
        file = open_file(handle)
        call, numbers = "fallocate_guest_memfd", (handle, mode, offset, size)
        try:
            check_fallocate(file, mode, offset, size, self.host.page_size)
        except OSError as error:
            tell_refused(file, call, numbers, error)
            raise
        last = file.size >> uapi.PAGE_SHIFT if mode & uapi.FALLOC_FL_PUNCH_HOLE else 0
        start, stop = min(offset >> uapi.PAGE_SHIFT, last), min(offset + size >> uapi.PAGE_SHIFT, last)
        change_pages(file, start, stop, False, call, numbers)

    def punch_hole(self, handle: int, offset: int, size: int) -> None:
        """Give pages of a guest_memfd back: fallocate(2) with FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE.

        >>> vm = VM("linux-7.2")
        >>> file = vm.create_guest_memfd(1 << 20)
        >>> vm.punch_hole(file, 0x1000, 0x1000)
        """
        mode = uapi.FALLOC_FL_PUNCH_HOLE | uapi.FALLOC_FL_KEEP_SIZE
        self.fallocate_guest_memfd(handle, mode, offset, size)

    def fail_page(self, handle: int, offset: int) -> None:
        """The memory of a page of a guest_memfd fails: guests that use it exit with EHWPOISON.

        ``offset``: bytes, of any byte of the page. Until the page is given back by :meth:`punch_hole`. What
        memslots map of it is stale. OSError: EBADF, EBUSY from inside a listener; ValueError beyond the end
        (``virt/kvm/guest_memfd.c``, kvm_gmem_error_folio).

        >>> vm = VM("linux-7.2")
        >>> file = vm.create_guest_memfd(1 << 20, uapi.GUEST_MEMFD_FLAG_MMAP)
        >>> _ = vm.set_user_memory_region2(0, 0, 1 << 20, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=file)
        >>> vm.fail_page(file, 0x1000)
        >>> vm.access(0x1234, Access.READ).errno == uapi.EHWPOISON
        True
        """
        file = open_file(handle)
        if not 0 <= offset < file.size:
            raise ValueError(f"offset {offset:#x}: must be within the guest_memfd, which has {file.size:#x} bytes")
        page = offset >> uapi.PAGE_SHIFT
        change_pages(file, page, page + 1, True, None, ())

    # vCPUs -------------------------------------------------------------------------------------------------

    def pre_fault_memory(self, gpa: int, size: int, flags: int = 0) -> int:
        """A vCPU's KVM_PRE_FAULT_MEMORY: map the pages of [gpa, gpa + size) as a read would; return the bytes done.

        It stops at the first page that a read would exit at; fewer bytes than asked are success too, none is
        an OSError: EFAULT where the read would be a MEMORY_FAULT, ENOENT without a memslot. EINVAL for flags,
        what is no multiple of the page size, size 0 and an end beyond 2^64; ENOTTY in a profile without the
        call; ValueError for what fits no field (``virt/kvm/kvm_main.c``, kvm_vcpu_pre_fault_memory).

        >>> vm = VM("linux-7.2")
        >>> vm.set_user_memory_region(0, 0, 1 << 20)
        0
        >>> vm.set_memory_attributes(0x2000, 0x1000, uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        0
        >>> vm.pre_fault_memory(0, 0x4000)
        8192
        """
        return self._pre_fault(_fitting(uapi.kvm_pre_fault_memory, gpa=gpa, size=size, flags=flags))

    def _pre_fault(self, asked: uapi.kvm_pre_fault_memory) -> int:
        """Map what can be mapped, leave in ``asked`` what is left, and return the bytes done."""
        if not self.profile.pre_fault:
            raise OSError(ENOTTY, f"the {self.profile.name} profile has no KVM_PRE_FAULT_MEMORY")
        gpa, size = int(asked.gpa), int(asked.size)
        if asked.flags:
            raise OSError(EINVAL, f"flags {asked.flags:#x}: must be 0")
        if (gpa | size) & (self.host.page_size - 1) or size == 0 or gpa + size >= 1 << 64:
            raise OSError(EINVAL, f"gpa {gpa:#x}, size {size:#x}: must be multiples of {self.host.page_size}, the"
                                  " size above 0 and the end below 2^64")
        stopped = self.access(gpa, Access.READ, size)
        done = size if stopped is None else max(stopped.gpa, gpa) - gpa
        asked.gpa, asked.size = gpa + done, size - done
        if stopped is not None and not done:
            if stopped.reason == uapi.KVM_EXIT_MMIO:
                raise OSError(ENOENT, f"gpa {gpa:#x}: no memslot is there")
            raise OSError(EFAULT, f"gpa {gpa:#x}: a read is a MEMORY_FAULT, flags {stopped.flags:#x}")
        return done

    def vcpu_ioctl(self, request: int, arg: Any = 0, mutate_flag: bool = True) -> int | bytes:
        """Answer a request as a vCPU of this machine does: KVM_PRE_FAULT_MEMORY, else OSError(ENOTTY).

        ``arg`` and the result are as in :meth:`ioctl`; what is left to do comes out in the structure.

        >>> left = uapi.kvm_pre_fault_memory(gpa=0, size=1 << 20)
        >>> vm = VM("linux-7.2")
        >>> _ = vm.set_user_memory_region(0, 0, 0x4000)
        >>> vm.vcpu_ioctl(uapi.KVM_PRE_FAULT_MEMORY, left), left.gpa, left.size
        (0, 16384, 1032192)
        """
        if not isinstance(request, int) or request & 0xFFFFFFFF != uapi.KVM_PRE_FAULT_MEMORY:
            raise OSError(ENOTTY, f"request {request!r}: a vCPU of this model has KVM_PRE_FAULT_MEMORY alone")
        return _pre_fault(self, arg, mutate_flag)

    def _vcpu_pre_fault(self, asked: uapi.kvm_pre_fault_memory) -> int:
        self._pre_fault(asked)
        return 0

    # Capabilities ------------------------------------------------------------------------------------------

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: what this machine says of a ``KVM_CAP_...``, 0 for what it does not have.

        >>> VM().check_extension(uapi.KVM_CAP_NR_MEMSLOTS)
        32764
        """
        profile, table = self.profile, self.memslots
        answers = {
            uapi.KVM_CAP_USER_MEMORY: 1,
            uapi.KVM_CAP_NR_MEMSLOTS: table.nr_memslots,
            uapi.KVM_CAP_SYNC_MMU: 1,
            uapi.KVM_CAP_DESTROY_MEMORY_REGION_WORKS: 1,
            uapi.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: 1,
            uapi.KVM_CAP_READONLY_MEM: int(self.host.readonly_memslots),
            uapi.KVM_CAP_CHECK_EXTENSION_VM: 1,
            # A kernel built for one address space does not have the capability.
            uapi.KVM_CAP_MULTI_ADDRESS_SPACE: table.address_spaces if self.host.address_spaces > 1 else 0,
            uapi.KVM_CAP_USER_MEMORY2: 1,
            uapi.KVM_CAP_MEMORY_FAULT_INFO: 1,
            uapi.KVM_CAP_MEMORY_ATTRIBUTES: profile.supported(table.private_memory),
            uapi.KVM_CAP_GUEST_MEMFD: int(table.guest_memfd),
            uapi.KVM_CAP_VM_TYPES: 1 << uapi.KVM_X86_DEFAULT_VM | 1 << uapi.KVM_X86_SW_PROTECTED_VM,
            uapi.KVM_CAP_PRE_FAULT_MEMORY: int(profile.pre_fault),
            uapi.KVM_CAP_GUEST_MEMFD_FLAGS: profile.guest_memfd_flags(table.private_memory),
            uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: profile.supported_by_files(table.private_memory),
        }
        return answers.get(capability, 0)

    def _ioctl_check_extension(self, arg: Any, mutate_flag: bool) -> int:
        # An argument that is no int is an address to KVM: some number that is no capability.
        return self.check_extension(arg) if isinstance(arg, int) else 0

    # Listeners ---------------------------------------------------------------------------------------------

    def add_listener(self, listener: Listener | CallListener, replay: bool = False) -> None:
        """Let a listener hear of each change, or of each call, from now on, after those before it.

        A :class:`kvmattr.listeners.Listener` hears of changed pages before and after they change, a
        :class:`kvmattr.listeners.CallListener` of calls and their answers; an object with the methods of both, of
        both. With ``replay`` the former first hears what is stored, as changes from attributes 0, in its ``prepare``
        and ``commit``; if it raises there, it is not added. OSError(EBUSY) from inside a listener; TypeError for an
        object without their methods.

        >>> class Log:
        ...     def called(self, call, numbers, answer):
        ...         print(call, [hex(number) for number in numbers], answer)
        >>> vm = VM()
        >>> vm.add_listener(Log())
        >>> vm.set_memory_attributes(0x1000, 0x1000, uapi.KVM_MEM_ATTR_PRIVATE)
        set_memory_attributes ['0x1000', '0x1000', '0x1', '0x0'] 0
        0
        """
        self._add_listener(listener, heard_by(listener), replay)

    def remove_listener(self, listener: Listener | CallListener) -> None:
        """Let a listener hear no more; ValueError if it is not registered, OSError(EBUSY) from inside one."""
        self._remove_listener(listener)


def holds_references(layout: str) -> bool:
    """Whether memory of this format (of the struct module, as PEP 3118 extends it) holds Python objects."""
    return "O" in layout and "O" in re.sub(":[^:]*:", "", layout)  # between colons: names of fields


def _through_memory(
    structure: type[ctypes.Structure], answer: Callable[[Any, Any], int], *, comes_out: bool = False
) -> Handler:
    """Return a handler that copies the structure out of ``arg`` and answers it; if it ``comes_out``, copies it back."""
    size = ctypes.sizeof(structure)

    def handler(vm: VM, arg: Any, mutate_flag: bool) -> int | bytes:
        try:
            given = memoryview(arg)
            memory = given.cast("B")
        except (TypeError, BufferError, ValueError) as refused:
            text = f"{arg!r}: must be a buffer with a {structure.__name__} ({refused})"
            raise OSError(EFAULT, text) from None
        if holds_references(given.format):
            # Bytes written over a reference would be one to an object that is not there.
            raise OSError(EFAULT, f"{arg!r}: holds references to Python objects, must be plain memory")
        if len(memory) < size:
            raise OSError(EFAULT, f"a buffer of {len(memory)} bytes: {structure.__name__} has {size}")
        request = structure.from_buffer_copy(memory)
        copied = memory.readonly or not mutate_flag
        if not comes_out:
            # Such calls change the machine: what they return is there before they do, as memory for it may run out.
            copy = bytes(memory) if copied else None
            result = answer(vm, request)
            return result if copy is None else copy
        result = answer(vm, request)
        if copied:
            return bytes(request) + bytes(memory[size:])
        memory[:size] = bytes(request)
        return result

    return handler


def _fitting(structure: type[ctypes.Structure], **fields: int) -> Any:
    """Return the structure with these u64 fields; ValueError for what fits none."""
    for name, value in fields.items():
        if not 0 <= as_integer(value) < 1 << 64:
            raise ValueError(f"{name} {value:#x}: must be in 0..0xffffffffffffffff")
    return structure(**{name: as_integer(value) for name, value in fields.items()})


_pre_fault = _through_memory(uapi.kvm_pre_fault_memory, VM._vcpu_pre_fault, comes_out=True)

#: What answers each request in every profile.
_KVM_CALLS: dict[int, Handler] = {
    uapi.KVM_CHECK_EXTENSION: VM._ioctl_check_extension,
    uapi.KVM_CREATE_IRQCHIP: VM._ioctl_create_irqchip,
    uapi.KVM_SET_USER_MEMORY_REGION: _through_memory(uapi.kvm_userspace_memory_region, VM._set_region),
    uapi.KVM_SET_USER_MEMORY_REGION2: _through_memory(uapi.kvm_userspace_memory_region2, VM._set_region2),
    uapi.KVM_CREATE_GUEST_MEMFD: _through_memory(uapi.kvm_create_guest_memfd, VM._create_guest_memfd),
}
#: With attributes of the VM.
_ATTRIBUTE_CALLS: dict[int, Handler] = {uapi.KVM_SET_MEMORY_ATTRIBUTES: Machine._ioctl_set}
#: The calls that only the mail has.
_MAIL_CALLS: dict[int, Handler] = {
    uapi.KVM_GET_MEMORY_ATTRIBUTES: _through_memory(uapi.kvm_memory_attributes, VM._ioctl_get, comes_out=True),
    uapi.KVM_SUPPORTED_MEMORY_ATTRIBUTES: _through_memory(
        uapi.supported_memory_attributes, VM._get_supported, comes_out=True
    ),
    uapi.KVM_MEMORY_ENCRYPT_REG_REGION: _through_memory(uapi.kvm_enc_region, VM._register_region),
    uapi.KVM_MEMORY_ENCRYPT_UNREG_REGION: _through_memory(uapi.kvm_enc_region, VM._unregister_region),
}


@cache
def _calls(vm_attributes: bool, mail_calls: bool) -> dict[int, Handler]:
    """What answers each request of a profile with these calls."""
    return _KVM_CALLS | (_ATTRIBUTE_CALLS if vm_attributes else {}) | (_MAIL_CALLS if mail_calls else {})
