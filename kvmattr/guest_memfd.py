"""The handles by which memslots name guest_memfds, the files of private guest memory.

The model has no file descriptors of its own: a handle is a number that kvmattr hands out once in the life of
the process, above any descriptor that the operating system gives. So a descriptor of something else, and a
guest_memfd of another machine, are told apart from a number that names nothing, as KVM tells them apart.
"""

from __future__ import annotations

import os
from errno import EBADF, EFBIG, EINVAL, EOPNOTSUPP
from itertools import count
from weakref import WeakValueDictionary, ref

from kvmattr import uapi
from kvmattr._vm import FilePages, Machine
from kvmattr.memslots import GuestMemfd

#: Fits the structure's 32 bits, and no process may open so many files.
_FIRST_HANDLE = 1 << 30
_handles = count(_FIRST_HANDLE)


class GuestMemfds:
    """The open guest_memfds of one machine, by handle."""

    def __init__(self, vm: Machine) -> None:
        self._vm = ref(vm)
        self._files: dict[int, GuestMemfd] = {}

    def create(self, vm: Machine, size: int, flags: int) -> int:
        """KVM_CREATE_GUEST_MEMFD: return the handle of a new file; OSError(EINVAL) for what is no file's."""
        profile, table = vm.profile, vm.memslots
        known = profile.guest_memfd_flags(table.private_memory)
        if flags & ~known:
            raise OSError(EINVAL, f"flags are {flags:#x}: a guest_memfd of this VM "
                                  + (f"may have {known:#x}" if known else "has none"))
        serves_shared = {"no": 0, "mmap": flags & uapi.GUEST_MEMFD_FLAG_MMAP, "all": 1}[profile.serves_shared]
        file = GuestMemfd(table, size, flags, bool(serves_shared))
        shared = flags & uapi.GUEST_MEMFD_FLAG_INIT_SHARED
        pages = FilePages(file.size >> uapi.PAGE_SHIFT, 0 if shared else profile.private)
        return self._add(vm, file, pages)

    def link(self, vm: Machine, other: GuestMemfd) -> int:
        """Return the handle of a file of this machine with the pages of another's."""
        file = GuestMemfd(vm.memslots, other.size, other.flags, other.serves_shared)
        return self._add(vm, file, other.pages)

    def _add(self, vm: Machine, file: GuestMemfd, pages: FilePages) -> int:
        handle = next(_handles)
        try:
            vm._adopt(file, pages, self._vm)
            _owners[handle] = self
            self._files[handle] = file
        except BaseException:   # no memory, or a signal's
            self.forget(handle)
            raise
        return handle

    def file(self, handle: int) -> GuestMemfd:
        """The open file of a handle; OSError(EBADF) for one that this machine has not open."""
        file = self._files.get(handle)
        if file is None or file.closed:
            raise OSError(EBADF, f"guest_memfd is {handle}: this VM has no such file open")
        return file

    def open_files(self) -> list[tuple[int, GuestMemfd]]:
        """The handles of this machine's open files, and the files, in the order that they were made."""
        return [(handle, file) for handle, file in self._files.items() if not file.closed]

    def forget(self, handle: int) -> None:
        """Give up the handle of a file that was closed. May be called again."""
        _owners.pop(handle, None)
        self._files.pop(handle, None)


def open_file(handle: int) -> GuestMemfd:
    """Return the open guest_memfd of a handle, whichever machine made it; OSError(EBADF) if there is none."""
    owner = _owners.get(handle)
    file = None if owner is None else owner._files.get(handle)
    if file is None or file.closed:
        raise OSError(EBADF, f"guest_memfd is {handle}: no such file is open")
    return file


_owners: WeakValueDictionary[int, GuestMemfds] = WeakValueDictionary()


def resolve(descriptor: int) -> object:
    """Return what ``guest_memfd`` of a memslot names: a GuestMemfd of any machine, another file, or None."""
    owner = _owners.get(descriptor)
    if owner is not None:
        return owner._files.get(descriptor)
    try:
        return os.fstat(descriptor)
    except (OSError, OverflowError):
        return None


#: The modes that the system lets through to any file, before it looks at the range (``fs/open.c``, vfs_fallocate).
_FILE_MODES = frozenset(
    {kind | keep for kind in (0, uapi.FALLOC_FL_ZERO_RANGE, uapi.FALLOC_FL_UNSHARE_RANGE)
     for keep in (0, uapi.FALLOC_FL_KEEP_SIZE)}
    | {uapi.FALLOC_FL_PUNCH_HOLE | uapi.FALLOC_FL_KEEP_SIZE, uapi.FALLOC_FL_COLLAPSE_RANGE,
       uapi.FALLOC_FL_INSERT_RANGE}
)


def check_fallocate(file: GuestMemfd, mode: int, offset: int, size: int, page_size: int) -> None:
    """Raise the OSError of fallocate(2) on a guest_memfd, in the order of the kernel's checks."""
    if offset < 0 or size <= 0:
        raise OSError(EINVAL, f"offset {offset:#x}, size {size:#x}: must be at least 0 and at least 1")
    text = f"mode {mode:#x}: a guest_memfd knows FALLOC_FL_KEEP_SIZE, with or without FALLOC_FL_PUNCH_HOLE"
    if mode not in _FILE_MODES:
        raise OSError(EOPNOTSUPP, text)
    if offset + size >= 1 << 63:
        raise OSError(EFBIG, f"offset {offset:#x} + size {size:#x}: must end at or below 2^63 - 1")
    if mode not in (uapi.FALLOC_FL_KEEP_SIZE, uapi.FALLOC_FL_KEEP_SIZE | uapi.FALLOC_FL_PUNCH_HOLE):
        raise OSError(EOPNOTSUPP, text)
    if (offset | size) & (page_size - 1):
        raise OSError(EINVAL, f"offset {offset:#x}, size {size:#x}: must be multiples of {page_size}")
    if not mode & uapi.FALLOC_FL_PUNCH_HOLE and offset + size > file.size:
        raise OSError(EINVAL, f"offset {offset:#x} + size {size:#x}: passes the end of the guest_memfd, which has"
                              f" {file.size:#x} bytes")
