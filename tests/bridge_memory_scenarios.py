"""Run by test_bridge_memory.py in a process of its own: under `kvmattr fake`, with failing_memory.c preloaded.

Each request for memory that an operation of bridges/kvm.py makes is refused once: those of the package's libraries by
the preloaded one, those of the interpreter by CPython's own test module where it is installed. Then it raises
MemoryError or OSError, no descriptor is left open that was not, and the call works again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import kvmattr
from kvmattr import uapi
from kvmattr.bridges import kvm
from tests.interpreter_faults import fault
from tests.memory_scenarios import Shim

try:
    import _testcapi
except ImportError:
    _testcapi = None
if fault():             # private_vm_type makes a function
    _testcapi = None

CLEAN = 25              # calls in a row that nothing was refused: there was no further request
MOST_REQUESTS = 1000
SLOTS = np.zeros(3, uapi.USERSPACE_MEMORY_REGION)
SLOTS["slot"], SLOTS["guest_phys_addr"], SLOTS["memory_size"] = range(3), np.arange(3) << 20, 1 << 20


def attributes(vm: kvm.KernelVM) -> Any:
    return vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, bytes(uapi.kvm_memory_attributes(0, 0x3000, 8)))


def closed(vm: kvm.KernelVM) -> None:
    vm.create_vcpu()
    vm.close()


def made(_: kvm.KernelVM) -> bool:
    with kvm.KernelVM(uapi.KVM_X86_SW_PROTECTED_VM) as vm:
        return vm.check_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES) > 0


#: A public name of the module or a method of KernelVM: the call. None makes a list: CPython 3.13 without a GIL frees
#: one that was refused its items by a pointer that it never set.
SCENARIOS: dict[str, Callable[[kvm.KernelVM], Any]] = {
    "missing": lambda vm: kvm.missing(),
    "is_fake": lambda vm: kvm.is_fake(),
    "system_extension": lambda vm: kvm.system_extension(uapi.KVM_CAP_VM_TYPES),
    "private_vm_type": lambda vm: kvm.private_vm_type(),
    "BatchError": lambda vm: str(kvm.BatchError(22, 7)),
    "KernelVM": made,
    "KernelVM.ioctl": attributes,
    "KernelVM.ioctl_many": lambda vm: vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, SLOTS),
    "KernelVM.check_extension": lambda vm: vm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS),
    "KernelVM.create_vcpu": lambda vm: vm.create_vcpu(),
    "KernelVM.read_private": lambda vm: vm.read_private(np.arange(5, dtype=np.uint64)).tobytes(),
    "KernelVM.close": closed,
}
#: They tell a failure in their answer, as of any other kind.
TELL = ("missing", "is_fake", "private_vm_type")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(name: str, arm: Callable[[int], None], disarm: Callable[[], Any]) -> int:
    """The number of requests that were refused in turn."""
    call, clean, count = SCENARIOS[name], 0, 0
    with kvm.KernelVM(uapi.KVM_X86_SW_PROTECTED_VM) as vm:
        expected = call(vm)
    idle = descriptors()
    for number in range(MOST_REQUESTS):
        vm = kvm.KernelVM(uapi.KVM_X86_SW_PROTECTED_VM)
        before, error, answer = descriptors(), None, None
        arm(number)
        try:
            answer = call(vm)
        except (MemoryError, OSError) as raised:
            error = raised.with_traceback(None)
        finally:
            disarm()
        if error is None:
            assert answer == expected or name in TELL, (name, number, answer, expected)
        elif name == "KernelVM.read_private":   # its vCPU may be there from now on
            assert before <= descriptors() <= before + 2, (name, number)
        else:
            assert descriptors() <= before, (name, number, error, descriptors(), before)
        with suppress(FileExistsError):
            assert name == "KernelVM.close" or call(vm) == expected, (name, number)
        vm.close()
        vm.close()
        assert descriptors() == idle, (name, number, descriptors(), idle)
        count += error is not None
        clean = 0 if error is not None else clean + 1
        if clean == CLEAN:
            return count
    raise AssertionError(f"{name} makes {MOST_REQUESTS} requests and more")


def main() -> None:
    shim, package = Shim(), str(Path(kvmattr.__file__).parent).encode()
    for name in SCENARIOS:
        ours = refused(name, lambda number: shim.arm(package, number + 1, 0), shim.disarm)
        theirs = -1
        if _testcapi is not None:
            theirs = refused(name, lambda at: _testcapi.set_nomemory(at, at + 1), _testcapi.remove_mem_hooks)
        print(name, ours, theirs, flush=True)


if __name__ == "__main__":
    main()
