"""Every public call of a machine, several at a time beside changes: each answers or gives KVM's errno, and the machine,
its memslots and its files stay sound.

Without a GIL, and under ThreadSanitizer (`dev.py freethreaded --tsan`), this is where a field shows that one thread
reads without the lock and another writes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from kvmattr import VM, uapi
from tests.test_vm_threads import CHANGES, FILE_CHANGES, LOOKS, FileMachine, Machine, Several, conversions, records

ROUNDS = 15

#: What leaves the machine as it is: the call.
ASKED: dict[str, Callable[[VM], object]] = {
    "access": lambda vm: [vm.access(gpa, 1, 3 * 4096) for gpa in range(0, 0x8000, 4096)],
    "attributes": lambda vm: (vm.attributes.runs(0, 1 << 20), vm.attributes.get(1), vm.attributes.version),
    "check_extension": lambda vm: vm.check_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES),
    "get_memory_attributes": lambda vm: vm.get_memory_attributes(0, 0x8000),
    "guest_memfd": lambda vm: [
        (file.attributes.runs(), file.bindings, file.closed, repr(file)) for file in [vm.guest_memfd(vm.bound)]],
    "guest_memfds": lambda vm: vm.guest_memfds(),
    "host": lambda vm: vm.host,
    "invalidation": lambda vm: (vm.invalidation.sequence, vm.invalidation.hull, vm.invalidation.in_progress,
                                vm.invalidation.retry(vm.invalidation.sequence, 1), repr(vm.invalidation)),
    "is_private": lambda vm: vm.is_private(0x1000),
    "legal_attributes": lambda vm: vm.legal_attributes,
    "mapping_level": lambda vm: vm.mapping_level(0x1000),
    "memslots": lambda vm: (list(vm.memslots), len(vm.memslots), vm.memslots.stats(), vm.memslots.lookup(1),
                            vm.memslots.overlapping(0, 1 << 20), vm.memslots.generation, vm.memslots.validate()),
    "pre_fault_memory": lambda vm: vm.pre_fault_memory(0x1000, 4096),
    "profile": lambda vm: vm.profile,
    "protection": lambda vm: vm.protection(0x1000),
    "requests": lambda vm: vm.requests,
    "snapshot": lambda vm: vm.snapshot().runs(),
    "supported_attributes": lambda vm: vm.supported_attributes,
    "vcpu_ioctl": lambda vm: vm.vcpu_ioctl(uapi.KVM_PRE_FAULT_MEMORY, uapi.kvm_pre_fault_memory(0x1000, 4096, 0)),
}


def test_no_public_name_is_in_no_list() -> None:
    assert set(ASKED) == LOOKS


CALLS = [(Machine, name, call) for name, call in (ASKED | CHANGES).items()]
CALLS += [(FileMachine, name, call) for name, call in (ASKED | FILE_CHANGES).items()]


@pytest.mark.parametrize(("make", "call"), [(make, call) for make, _, call in CALLS],
                         ids=[f"{make.__name__}: {name}" for make, name, _ in CALLS])
def test_beside_changes(make: Callable[[], VM], call: Callable[[VM], object]) -> None:
    vm = make()
    batch = records(300, 5) if make is Machine else conversions(128)
    back = np.copy(batch)
    back["attributes"] = 0 if make is Machine else 8

    def refused(work: Callable[[VM], object]) -> Callable[[], None]:
        def again() -> None:
            # Of a slot or a file that is there already or not any more, of a listener that is gone.
            with suppress(OSError), suppress(ValueError):
                work(vm)
        return again

    def change(vm: VM) -> None:
        for each in (batch, back):
            if make is Machine:
                vm.set_memory_attributes_many(each)
            else:
                vm.set_memory_attributes2_many(vm.bound, each)

    def come_and_go(vm: VM) -> None:
        vm.set_user_memory_region(9, 1 << 34, 1 << 20)
        vm.set_user_memory_region(9, 0, 0)

    with Several(refused(change), refused(come_and_go), refused(call)):
        for _ in range(ROUNDS):
            refused(call)()
    vm.memslots.validate()
    assert vm.invalidation.in_progress == 0
    if make is Machine:
        vm.attributes.copy().validate()
    else:
        vm.pages.attributes.copy().validate()
