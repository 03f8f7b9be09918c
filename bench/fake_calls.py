"""What a call through the socket of ``kvmattr fake`` takes: ``kvmattr fake -- python bench/fake_calls.py``.

A batch of conversions, one KVM_SET_MEMORY_ATTRIBUTES each, in wall time, and the same number of ioctls that do nothing.
The program, the server and the way between them take turns on the processors, so other work on the machine counts in
full.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.measure import text

CONVERSIONS = 100_000
ROUNDS = 5


def main() -> int:
    """Measure and print; 2 where /dev/kvm is not the fake one."""
    if not kvm.is_fake():
        print("run it as: kvmattr fake -- python bench/fake_calls.py", file=sys.stderr)
        return 2
    pages = np.random.default_rng(1).permutation(CONVERSIONS).astype(np.uint64) * 2
    records = np.zeros(CONVERSIONS, uapi.LINUX_MEMORY_ATTRIBUTES)
    records["address"], records["size"] = pages * np.uint64(uapi.PAGE_SIZE), uapi.PAGE_SIZE
    nothing = np.zeros(CONVERSIONS, np.uint64)
    took: dict[str, list[float]] = {"conversions": [], "calls that do nothing": []}
    with kvm.KernelVM(uapi.KVM_X86_SW_PROTECTED_VM) as vm:
        for turn in range(ROUNDS):
            records["attributes"] = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE if turn % 2 == 0 else 0
            for name, request, structures in (("conversions", uapi.KVM_SET_MEMORY_ATTRIBUTES, records),
                                              ("calls that do nothing", uapi.KVM_CHECK_EXTENSION, nothing)):
                began = time.perf_counter()
                vm.ioctl_many(request, structures)
                took[name].append(time.perf_counter() - began)
    for name, seconds in took.items():
        each = float(np.median(seconds)) / CONVERSIONS
        print(f"{CONVERSIONS:,} {name}: {np.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
              f"{text.quantity(each * 1e9, 'ns')} each")
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
