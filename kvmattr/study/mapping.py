"""Addresses without memory: a reserved anonymous mapping as big as a guest, given back when closed."""

from __future__ import annotations

import mmap

import numpy as np

from kvmattr import uapi

#: Linux's value on x86, Arm, RISC-V and s390; Python's mmap module has the name since 3.13 only.
_MAP_NORESERVE = 0x4000

#: A gigantic page: guest-physical and user-space addresses must agree below it for KVM to map huge pages.
_ALIGNMENT = 1 << 30


class Mapping:
    """``npages`` pages of private, unreserved address space at ``address``, aligned to 1 GiB.

    ``protection`` is mmap's; the default is PROT_NONE, addresses that nobody may touch. Raises OSError.
    """

    def __init__(self, npages: int, protection: int = 0) -> None:
        size = npages * uapi.PAGE_SIZE + _ALIGNMENT
        try:
            self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, protection)
        except OSError as error:
            raise OSError(error.errno, f"cannot reserve {size} bytes of addresses: {error.strerror}") from None
        # The mapping itself does not tell its address, and is as big as it is to hold an aligned one.
        base = np.frombuffer(self._memory, np.uint8).ctypes.data
        self.address = -(-base // _ALIGNMENT) * _ALIGNMENT

    def close(self) -> None:
        """Unmap. Calling it again does nothing."""
        self._memory.close()
