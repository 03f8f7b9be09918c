"""The handles by which memslots name guest_memfds, the files of private guest memory.

The model has no file descriptors of its own: a handle is a number that kvmattr hands out once in the life of
the process, above any descriptor that the operating system gives. So a descriptor of something else, and a
guest_memfd of another machine, are told apart from a number that names nothing, as KVM tells them apart.
"""

from __future__ import annotations

import os
from errno import EBADF, EINVAL
from itertools import count
from weakref import WeakValueDictionary

from kvmattr.memslots import GuestMemfd, MemslotTable

#: Fits the structure's 32 bits, and no process may open so many files.
_FIRST_HANDLE = 1 << 30
_handles = count(_FIRST_HANDLE)


class GuestMemfds:
    """The open guest_memfds of one machine, by handle."""

    def __init__(self) -> None:
        self._files: dict[int, GuestMemfd] = {}

    def create(self, table: MemslotTable, size: int, flags: int) -> int:
        """KVM_CREATE_GUEST_MEMFD: return the handle of a new file; OSError(EINVAL) for what is no file's."""
        if flags:
            raise OSError(EINVAL, f"flags are {flags:#x}: a guest_memfd has none")
        file = GuestMemfd(table, size)
        handle = next(_handles)
        self._files[handle] = file
        _owners[handle] = self
        return handle

    def pop(self, handle: int) -> GuestMemfd:
        """Take an open file out and return it; OSError(EBADF) for a handle that this machine has not open."""
        if handle not in self._files:
            raise OSError(EBADF, f"guest_memfd is {handle}: this VM has no such file open")
        del _owners[handle]
        return self._files.pop(handle)


_owners: WeakValueDictionary[int, GuestMemfds] = WeakValueDictionary()


def resolve(descriptor: int) -> object:
    """Return what ``guest_memfd`` of a memslot names: a GuestMemfd of any machine, another file, or None."""
    owner = _owners.get(descriptor)
    if owner is not None:
        return owner._files[descriptor]
    try:
        return os.fstat(descriptor)
    except (OSError, OverflowError):
        return None
