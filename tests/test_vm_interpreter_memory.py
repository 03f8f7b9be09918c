"""Memory that the interpreter asks for while a machine is changed is refused, each request in turn.

The change was made, and the call says so, or it was not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvmattr import VM, uapi
from tests.test_vm_threads import CHANGES, Machine, state

testcapi = pytest.importorskip("_testcapi", reason="this Python has no module that refuses memory")
CLEAN = 40  # calls in a row that nothing was refused: there was no further request

AS_BYTES: dict[str, Callable[[VM], object]] = {
    "set from bytes": lambda vm: vm.ioctl(
        uapi.KVM_SET_MEMORY_ATTRIBUTES, bytes(uapi.kvm_memory_attributes(0, 0x3000, 5)) + b"behind"
    ),
    "memslot from bytes": lambda vm: vm.ioctl(
        uapi.KVM_SET_USER_MEMORY_REGION, bytes(uapi.kvm_userspace_memory_region(7, 0, 1 << 30, 1 << 20, 0)) + b"behind"
    ),
    "memslot of a copy": lambda vm: vm.ioctl(
        uapi.KVM_SET_USER_MEMORY_REGION, uapi.kvm_userspace_memory_region(7, 0, 1 << 30, 1 << 20, 0), False
    ),
    "delete from bytes": lambda vm: vm.ioctl(
        uapi.KVM_SET_USER_MEMORY_REGION, bytes(uapi.kvm_userspace_memory_region(1, 0, 0, 0, 0))
    ),
    "guest_memfd from bytes": lambda vm: vm.ioctl(
        uapi.KVM_CREATE_GUEST_MEMFD, bytes(uapi.kvm_create_guest_memfd(1 << 20))
    ),
}


def files_of(vm: VM) -> tuple[object, ...]:
    """The state of its guest_memfds: which are open, and whether memslots have private memory."""
    table = vm._guest_memfds
    return (
        sorted(file.size for file in table._files.values() if not file.closed),
        [slot.guest_memfd is not None and not slot.guest_memfd.closed for slot in vm.memslots],
    )


@pytest.mark.parametrize(
    "change",
    [change for name, change in (CHANGES | AS_BYTES).items() if name not in ("add", "replay", "remove")],
    ids=[name for name in CHANGES | AS_BYTES if name not in ("add", "replay", "remove")],
)
def test_a_refused_request_of_the_interpreter(change: Callable[[VM], object]) -> None:
    done = Machine()
    change(done)
    finished = state(done), files_of(done)
    place = clean = refused = 0
    while clean < CLEAN:
        vm = Machine()
        vm.remove_listener(vm.first)    # what a listener makes of no memory is its own
        vm.remove_listener(vm.calls)
        before = state(vm), files_of(vm)
        error = None
        testcapi.set_nomemory(place, place + 1)
        try:
            change(vm)
        except (MemoryError, OSError) as raised:
            error = raised
        finally:
            testcapi.remove_mem_hooks()
        after = state(vm), files_of(vm)
        assert after == (before if error else finished), place
        assert vm.invalidation.in_progress == 0
        assert vm.set_memory_attributes(1 << 40, 4096, 4) == 0
        vm.memslots.validate()
        vm.attributes.validate()
        refused += error is not None
        clean = 0 if error else clean + 1
        place += 1
    assert refused or change is CHANGES["set"]   # which asks for none
