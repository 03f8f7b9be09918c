"""How an access ends that the machine does not let through."""

from __future__ import annotations

from typing import NamedTuple


class Exit(NamedTuple):
    """An exit of the guest's CPU to user space, as KVM fills ``struct kvm_run``.

    ``reason``: KVM_EXIT_MEMORY_FAULT, or KVM_EXIT_MMIO. For a MEMORY_FAULT, ``flags`` holds
    ``KVM_MEMORY_EXIT_FLAG_...`` bits (PRIVATE: the access was private; READ, WRITE, EXEC: what an attribute
    refused), ``gpa`` is the page and ``size`` its 4096 bytes; for MMIO, ``flags`` is 0, ``gpa`` is exact and
    ``size`` counts the bytes of the access in that page. ``is_write``: the access wanted to write.
    """

    reason: int
    flags: int
    gpa: int
    size: int
    is_write: bool
