"""How an access ends that the machine does not let through."""

from __future__ import annotations

from errno import EFAULT, errorcode
from typing import NamedTuple, Self

from kvmattr import uapi

_REASONS = {uapi.KVM_EXIT_MEMORY_FAULT: "MEMORY_FAULT", uapi.KVM_EXIT_MMIO: "MMIO"}
_FLAGS = {
    uapi.KVM_MEMORY_EXIT_FLAG_READ: "READ",
    uapi.KVM_MEMORY_EXIT_FLAG_WRITE: "WRITE",
    uapi.KVM_MEMORY_EXIT_FLAG_EXEC: "EXEC",
    uapi.KVM_MEMORY_EXIT_FLAG_PRIVATE: "PRIVATE",
}


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

    >>> refused = Exit(uapi.KVM_EXIT_MEMORY_FAULT, 2 | 8, 0x5000, 0x1000, True)
    >>> refused
    Exit(MEMORY_FAULT, flags=WRITE|PRIVATE, gpa=0x5000, size=0x1000, is_write=True)
    >>> refused.reason, refused.gpa
    (39, 20480)
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

    def __repr__(self) -> str:
        """The names that KVM gives to the numbers; a number that has none is hexadecimal, an errno is told if noted."""
        left = self.flags
        words = [name for bit, name in _FLAGS.items() if left & bit]
        for bit in _FLAGS:
            left &= ~bit
        if left or not words:
            words.append(f"{left:#x}" if left else "0")
        reason = _REASONS.get(self.reason, f"{self.reason:#x}")
        noted = vars(self).get("errno_of_the_run")
        errno = "" if noted is None else f", errno={errorcode.get(noted, noted)}"
        return (f"Exit({reason}, flags={'|'.join(words)}, gpa={self.gpa:#x}, size={self.size:#x}, "
                f"is_write={self.is_write}{errno})")
