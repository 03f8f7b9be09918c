"""How an access ends that the machine does not let through."""

from __future__ import annotations

from errno import EFAULT
from typing import NamedTuple, Self

from kvmattr import uapi


class _Exit(NamedTuple):
    reason: int
    flags: int
    gpa: int
    size: int
    is_write: bool


class Exit(_Exit):
    """An exit of the guest's CPU to user space, as KVM fills ``struct kvm_run``.

    ``reason``: KVM_EXIT_MEMORY_FAULT, or KVM_EXIT_MMIO. For a MEMORY_FAULT, ``flags`` holds
    ``KVM_MEMORY_EXIT_FLAG_...`` bits (PRIVATE: the access was private; READ, WRITE, EXEC: what an attribute
    refused), ``gpa`` is the page and ``size`` its bytes, 4096 on most hosts; for MMIO, ``flags`` is 0, ``gpa`` is
    exact and ``size`` counts the bytes of the access in that page. ``is_write``: the access wanted to write. A
    tuple of the five; what KVM_RUN returns beside them is ``errno``.

    >>> Exit(uapi.KVM_EXIT_MEMORY_FAULT, 8, 0x1000, 4096, False)
    Exit(reason=39, flags=8, gpa=4096, size=4096, is_write=False)
    """

    @property
    def errno(self) -> int:
        """The errno with which KVM_RUN returns -1: EFAULT or EHWPOISON; 0 where it returns 0, as for MMIO.

        >>> Exit(uapi.KVM_EXIT_MEMORY_FAULT, 8, 0x1000, 4096, False).errno == EFAULT
        True
        """
        otherwise = EFAULT if self.reason == uapi.KVM_EXIT_MEMORY_FAULT else 0
        return int(vars(self).get("errno_of_the_run", otherwise))

    def _replace_errno(self, errno: int) -> Self:
        """Note that KVM_RUN returned another errno; return the exit itself."""
        vars(self)["errno_of_the_run"] = errno
        return self
