"""Addresses without memory: a reserved anonymous mapping as big as a guest, given back when closed."""

from __future__ import annotations

import ctypes
import mmap
import os

from kvmattr import uapi

#: Linux's value on x86, Arm, RISC-V and s390; Python's mmap module has the name since 3.13 only.
_MAP_NORESERVE = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

#: A gigantic page: guest-physical and user-space addresses must agree below it for KVM to map huge pages.
_ALIGNMENT = 1 << 30


class Mapping:
    """``npages`` pages of private, unreserved address space at ``address``, aligned to 1 GiB.

    ``protection`` is mmap's; the default is PROT_NONE, addresses that nobody may touch.

    Python's ``mmap`` neither tells the address nor aligns it, hence libc's. Raises OSError.
    """

    def __init__(self, npages: int, protection: int = 0) -> None:
        self._size = npages * uapi.PAGE_SIZE + _ALIGNMENT
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        base = _libc.mmap(None, self._size, protection, flags, -1, 0)
        if base == ctypes.c_void_p(-1).value:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot reserve {self._size} bytes of addresses: {os.strerror(error)}")
        self._base: int = base
        self.address = (base + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT

    def close(self) -> None:
        """Unmap. Calling it again does nothing."""
        if self._size:
            _libc.munmap(self._base, self._size)
            self._size = 0
