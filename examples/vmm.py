"""A VMM in miniature: attributes live in kvmattr, and real memslots of /dev/kvm follow them.

Kernels without per-page protections know three kinds of guest memory: a slot, a read-only slot, and no slot
at all (every access comes to the VMM). This VMM keeps what the guest asked for as attributes, one call a
conversion, and turns what changed into memslots: the slots that touch the changed range are deleted and made
anew. How many memslot calls that takes is what the proposal of memory attributes wants to save.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import random

from kvmattr import AttributeMap, Operation, uapi
from kvmattr.bridges.kvm import KernelVM, missing

HIDDEN = uapi.KVM_MEM_ATTR_PRIVATE | uapi.KVM_MEM_ATTR_NO_READ  # the VMM must see these accesses


class Vmm:
    """A guest of ``pages`` pages: its RAM, its attributes, and the kernel's memslots for it."""

    def __init__(self, pages: int) -> None:
        self.attributes = AttributeMap(pages)
        self.ram = mmap.mmap(-1, pages << 12)
        self.ram_address = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.kernel = KernelVM()
        self.slots: dict[int, tuple[int, int]] = {}  # first gfn: (slot number, gfn after the last)
        self.free_numbers = list(range(uapi.KVM_USER_MEM_SLOTS - 1, -1, -1))
        self.conversions = self.calls = 0
        self.renew(0, pages)

    def convert(self, start: int, stop: int, attributes: int, operation: Operation) -> None:
        """What KVM_SET_MEMORY_ATTRIBUTES would do: one update, and memslots that follow it."""
        before = self.attributes.snapshot()
        self.conversions += 1
        if self.attributes.update(start, stop, attributes, operation):
            changes = self.attributes.diff(before, start, stop)
            self.renew(int(changes["start"][0]), int(changes["stop"][-1]))

    def renew(self, start: int, stop: int) -> None:
        """Give [start, stop) and the slots that touch it the memslots that the attributes ask for."""
        for first, (number, last) in list(self.slots.items()):
            if first <= stop and last >= start:
                self.set_slot(number, first, first, 0)
                self.free_numbers.append(number)
                del self.slots[first]
                start, stop = min(start, first), max(stop, last)
        for first, last, flags in self.wanted(start, stop):
            number = self.free_numbers.pop()
            self.set_slot(number, first, last, flags)
            self.slots[first] = number, last

    def wanted(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The slots of a range, ``(first gfn, gfn after the last, flags)``, as few as possible."""
        slots: list[tuple[int, int, int]] = []
        for first, last, attributes in self.attributes.runs(start, stop).tolist():
            if attributes & HIDDEN:
                continue
            flags = uapi.KVM_MEM_READONLY if attributes & uapi.KVM_MEM_ATTR_NO_WRITE else 0
            if slots and slots[-1][1:] == (first, flags):
                first = slots.pop()[0]
            slots.append((first, last, flags))
        return slots

    def set_slot(self, number: int, first: int, last: int, flags: int) -> None:
        """KVM_SET_USER_MEMORY_REGION; an empty range deletes the slot."""
        region = uapi.kvm_userspace_memory_region(
            number, flags, first << 12, (last - first) << 12, self.ram_address + (first << 12)
        )
        self.kernel.ioctl(uapi.KVM_SET_USER_MEMORY_REGION, bytes(region))
        self.calls += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pages", type=int, default=1 << 14)
    parser.add_argument("--conversions", type=int, default=200)
    arguments = parser.parse_args()
    reason = missing()
    if reason:
        print(f"not run: {reason}")
        return 0
    vmm = Vmm(arguments.pages)
    chance = random.Random(1)
    for _ in range(arguments.conversions):
        start = chance.randrange(arguments.pages - 8)
        stop = start + chance.randrange(1, 8)
        attributes = chance.choice([uapi.KVM_MEM_ATTR_PRIVATE, uapi.KVM_MEM_ATTR_NO_WRITE])
        if chance.random() < 0.75:
            vmm.convert(start, stop, attributes, Operation.OR)
        else:
            vmm.convert(start, stop, 0xFF & ~attributes, Operation.AND)
    expected = vmm.wanted(0, arguments.pages)
    if [(first, last) for first, (_, last) in sorted(vmm.slots.items())] != [slot[:2] for slot in expected]:
        print("the memslots do not follow the attributes")
        return 1
    print(
        f"{vmm.conversions} conversions took {vmm.calls} memslot calls; "
        f"the kernel holds {len(vmm.slots)} slots"
    )
    vmm.kernel.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
