"""Another thread writes to a structure between any two loads of it: each moment is tried, without luck (read_watch.py).

A structure is copied, and the copy is held: what was checked is what is done, and what is refused is what is told. So
an answer is that of a structure whose every word is as it was or as it became.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from kvmattr import VM, uapi
from tests.read_watch import Watched, moments

Words = tuple[int, ...]
NO_FILE = (1 << 32) - 1
#: A call: its structure; right words; others, right and wrong in each way.
CASES: dict[str, tuple[np.dtype, Callable[[VM, np.ndarray], object], Words, list[Words]]] = {}
for _name in ("ioctl", "many"):
    CASES[f"attributes, {_name}"] = uapi.MEMORY_ATTRIBUTES, (
        (lambda vm, array: vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, array)) if _name == "ioctl" else
        (lambda vm, array: vm.set_memory_attributes_many(array))), (0x4000, 0x1000, 8, 0, 0), [
            (0x200000, 0x3000, 1, 1, 0), (0x4001, 0x1000, 8, 0, 0), (0x4000, 0, 8, 0, 0),
            (0x4000, 0x1000, 1 << 9, 0, 0), (0x4000, 0x1000, 8, 7, 0), (0x4000, 0x1000, 8, 0, 3),
            ((1 << 64) - 0x1000, 0x2000, 8, 0, 0)]
CASES["memslot"] = uapi.USERSPACE_MEMORY_REGION, (
    lambda vm, array: vm.ioctl(uapi.KVM_SET_USER_MEMORY_REGION, array)), (1, 0, 0x100000, 0x4000, 0x7f0000000000), [
        (2, 1, 0x200000, 0x8000, 0x7e0000000000), (1, 0, 0x100000, 0, 0x7f0000000000), (1, 0, 0x100, 0x4000, 0x1000),
        (1 << 20, 0, 0x100000, 0x4000, 0x7f0000000000), (1, 1 << 9, 0x100000, 0x4000, 0x7f0000000000),
        (1, 0, (1 << 64) - 0x1000, 0x4000, 0x7f0000000000)]
CASES["guest_memfd"] = uapi.CREATE_GUEST_MEMFD, (
    lambda vm, array: vm.ioctl(uapi.KVM_CREATE_GUEST_MEMFD, array)), (0x4000, 0), [
        (0x8000, 0), (0, 0), (0x4001, 0), (0x4000, 1 << 20), (1 << 63, 0)]
CASES["memslot with guest_memfd"] = uapi.USERSPACE_MEMORY_REGION2, (
    lambda vm, array: vm.ioctl(uapi.KVM_SET_USER_MEMORY_REGION2, array)), (
        1, 0, 0x100000, 0x4000, 0x7f0000000000, 0, 0), [
            (2, 2, 0x200000, 0x8000, 0x7e0000000000, 0x1000, 7), (1, 0, 0x100000, 0, 0x7f0000000000, 0, 0),
            (1, 4, 0x100000, 0x4000, 0x7f0000000000, 0, NO_FILE), (1, 4, 0x100, 0x4000, 0x7f0000000000, 1, 0),
            (1 << 20, 0, 0x100000, 0x4000, 0x1000, 0, 0)]
for _name in ("ioctl", "many"):
    CASES[f"attributes of a file, {_name}"] = uapi.MEMORY_ATTRIBUTES2, (
        (lambda vm, array: vm.gmem_ioctl(vm.create_guest_memfd(1 << 20), uapi.KVM_SET_MEMORY_ATTRIBUTES2, array))
        if _name == "ioctl" else
        (lambda vm, array: vm.set_memory_attributes2_many(vm.create_guest_memfd(1 << 20), array))), (
            0x4000, 0x1000, 0, 0), [
                (0x8000, 0x3000, 0, 0), (0x8000, 0x3000, 8, 0), (0x4001, 0x1000, 0, 0), (0x4000, 0, 0, 0),
                (0x4000, 0x1000, 1 << 9, 0), (0x4000, 0x1000, 0, 3), (0xff000, 0x2000, 0, 0),
                ((1 << 64) - 0x1000, 0x2000, 0, 0)]


def structure(kind: np.dtype, words: Words) -> np.ndarray:
    made = np.zeros(1, kind)
    for name, word in zip(kind.names or (), words, strict=False):
        made[name] = word
    return made


def machine(kind: np.dtype) -> VM:
    """One that has this call."""
    return VM("gmem" if kind in (uapi.MEMORY_ATTRIBUTES2, uapi.USERSPACE_MEMORY_REGION2) else "rfc")


def answered(kind: np.dtype, call: Callable[[VM], object]) -> tuple[object, ...]:
    """What a machine of its own says, and has then."""
    vm = machine(kind)
    try:
        told = repr(call(vm))
    except OSError as refused:
        told = str(refused)
    vm.attributes.validate()
    files = vm.guest_memfds()
    for handle, _ in files:
        told = told.replace(str(handle), "a handle")        # the process counts them
    return (told, vm.attributes.runs().tolist(), [str(slot) for slot in vm.memslots], [str(file) for _, file in files],
            [file.attributes.runs().tolist() for _, file in files if vm.profile.file_attributes])


@pytest.mark.parametrize("name", CASES)
def test_what_was_checked_is_what_is_done(name: str) -> None:
    kind, call, right, others = CASES[name]
    pairs = [(right, other) for other in others] + [(other, others[at - 1]) for at, other in enumerate(others)]
    for first, then in pairs:
        possible = [answered(kind, lambda vm, words=words: call(vm, structure(kind, words)))
                    for words in set(product(*zip(first, then, strict=True)))]
        watched = Watched(structure(kind, first), structure(kind, then))
        for moment in moments(watched, lambda array: call(machine(kind), array)):
            told = answered(kind, lambda vm: watched.during(lambda array: call(vm, array), moment))      # noqa: B023
            assert told in possible
