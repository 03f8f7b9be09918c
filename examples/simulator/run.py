"""Run guests on the simulator: one that is refused and goes on, and one that measures what a check costs.

Build the simulator first: ``python setup.py build_ext --inplace``.
"""

from __future__ import annotations

import struct
import time

from simulator import SHARED_BIT, Simulator

from kvmattr import AttributeMap
from kvmattr.uapi import KVM_MEM_ATTR_NO_EXEC, KVM_MEM_ATTR_NO_WRITE, KVM_MEM_ATTR_PRIVATE

HALT, SET, ADD, SHIFT, LOAD, STORE, LOOP = range(7)


def program(*instructions: tuple[int, ...]) -> bytes:
    return b"".join(struct.pack("4B", *(*instruction, 0, 0, 0)[:4]) for instruction in instructions)


def shared_address(register: int, page: int) -> list[tuple[int, ...]]:
    """Instructions that leave the address of a page, seen as shared, in a register; r15 is used."""
    return [
        (SET, register, page & 255, page >> 8),
        (SHIFT, register, register, 12),
        (SET, 15, 1),
        (SHIFT, 15, 15, SHARED_BIT.bit_length() - 1),
        (ADD, register, register, 15),
    ]


def refused_and_resumed() -> None:
    """A guest writes to a protected page, then to a private one; the host allows it, the guest goes on."""
    attributes = AttributeMap(64)
    attributes.or_(8, 16, KVM_MEM_ATTR_NO_WRITE)
    attributes.or_(16, 24, KVM_MEM_ATTR_PRIVATE | KVM_MEM_ATTR_NO_EXEC)
    memory = bytearray(64 * 4096)
    code = program(
        *shared_address(1, 9), (SET, 2, 42), (STORE, 2, 1), *shared_address(3, 17), (STORE, 2, 3), (HALT,)
    )
    memory[: len(code)] = code
    guest = Simulator(attributes, memory)
    while True:
        reason, address, access = guest.run(1000)
        print(f"{reason}: {access or 'end'} at 0x{address:x}")
        if reason != "refused":
            break
        attributes.and_(
            address >> 12, (address >> 12) + 1, 0xFF & ~(KVM_MEM_ATTR_NO_WRITE | KVM_MEM_ATTR_PRIVATE)
        )
    print("stored:", memory[9 * 4096], memory[17 * 4096])


def measure(turns: int = 20_000_000) -> None:
    """A loop of one load, one addition and the jump: four checked accesses a turn, one of them to data."""
    attributes = AttributeMap(64)
    attributes[1::] = [0, KVM_MEM_ATTR_NO_EXEC, 0] * 21  # the block is mixed
    memory = bytearray(64 * 4096)
    start = program(
        *shared_address(1, 2),
        (SET, 2, turns & 255, turns >> 8 & 255),
        (SET, 3, turns >> 16 & 255, turns >> 24),
        (SHIFT, 3, 3, 16),
        (ADD, 2, 2, 3),
    )
    code = start + program((LOAD, 4, 1), (ADD, 5, 5, 4), (LOOP, 2, 2), (HALT,))
    memory[: len(code)] = code
    guest = Simulator(attributes, memory)
    before = time.perf_counter()
    reason, _, _ = guest.run(1 << 40)
    seconds = time.perf_counter() - before
    print(
        f"{reason}: {guest.accesses} checked accesses, {guest.accesses / seconds / 1e6:.0f} million a second"
    )


if __name__ == "__main__":
    refused_and_resumed()
    measure()
