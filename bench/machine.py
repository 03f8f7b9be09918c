"""The rows of the table for the machine: what a SET and an access cost a VM whose guest was converted before.

Every VM has one memslot over the whole guest and has had single pages made private. Limits as in ``absolute.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.absolute import limit
from bench.guest import Gfns, Guest
from bench.rounds import Alone, loop
from kvmattr import VM, Access, uapi

PRIVATE = uapi.KVM_MEM_ATTR_PRIVATE
PAGE = uapi.PAGE_SIZE
CALLS = 20_000


def records_of(gfns: Gfns, attributes: Any) -> Any:
    """SETs of one page each."""
    records = np.zeros(len(gfns), uapi.MEMORY_ATTRIBUTES)
    records["address"] = gfns * PAGE
    records["size"] = PAGE
    records["attributes"] = attributes
    return records


def converted(guest: Guest) -> VM:
    vm = VM()
    vm.set_user_memory_region(slot=0, guest_phys_addr=0, memory_size=guest.pages * PAGE)
    vm.set_memory_attributes_many(records_of(guest.gfns(guest.earlier), PRIVATE))
    return vm


def conversions(guest: Guest, vm: VM, count: int) -> Any:
    """SETs of random pages, each of which changes its page."""
    gfns = np.unique(guest.gfns(count))
    guest.rng.shuffle(gfns)
    return records_of(gfns, vm.attributes.take(gfns) ^ PRIVATE)


def all_set(vm: VM, records: Any) -> bool:
    return np.array_equal(vm.attributes.take(records["address"] // PAGE), records["attributes"])


def set_one_by_one(guest: Guest, arguments: Callable[[Any], list[Any]], calls_of: Callable[[VM], Any]) -> Alone:
    """``arguments`` makes those of each call from the records, ``calls_of`` what makes the calls from the VM."""
    vm = converted(guest)
    last: list[Any] = []

    def draw() -> list[Any]:
        last[:] = [conversions(guest, vm, min(CALLS, guest.calls))]
        return arguments(last[0])

    return Alone(draw, calls_of(vm), lambda _, __: all_set(vm, last[0]), loop, min(CALLS, guest.calls))


def by_ioctl(vm: VM) -> Any:
    def work(buffers: list[bytearray]) -> None:
        ioctl, request = vm.ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES
        for buffer in buffers:
            ioctl(request, buffer)

    return work


def by_method(vm: VM) -> Any:
    def work(drawn: list[tuple[int, int]]) -> None:
        change = vm.set_memory_attributes
        for address, attributes in drawn:
            change(address, PAGE, attributes)

    return work


limit("SET ioctl of one random page, after 1e5", 600)(lambda guest: set_one_by_one(
    guest, lambda records: [bytearray(record.tobytes()) for record in records], by_ioctl))
limit("SET method of one random page, after 1e5", 500)(lambda guest: set_one_by_one(
    guest, lambda records: records[["address", "attributes"]].tolist(), by_method))


def batch_of(guest: Guest, values: list[int]) -> Alone:
    vm = converted(guest)

    def draw() -> Any:
        return records_of(guest.gfns(guest.batch), guest.rng.choice(values, guest.batch))

    def check(records: Any, changed: int) -> bool:
        gfns, first = np.unique((records["address"] // PAGE)[::-1], return_index=True)
        sound = np.array_equal(vm.attributes.take(gfns), records["attributes"][::-1][first])
        return bool(sound and 0 < changed <= len(records))

    return Alone(draw, vm.set_memory_attributes_many, check, calls=guest.batch)


limit("batch of 1e6 SETs of random pages, 2 values, per SET", 60, rounds=7)(lambda guest: batch_of(guest, [0, PRIVATE]))
limit("batch of 1e6 SETs of random pages, 3 values, per SET", None, rounds=7)(
    lambda guest: batch_of(guest, [0, PRIVATE, uapi.KVM_MEM_ATTR_NO_WRITE]))


@limit("SET of 1 TiB", 3e3)
def set_terabyte(guest: Guest) -> Alone:
    vm = converted(guest)

    def work(last: int) -> None:
        change, size = vm.set_memory_attributes, guest.terabyte * PAGE
        for _ in range(500):
            change(0, size, PRIVATE)
            change(0, size, 0)
        change(0, size, last)

    return Alone(draw=lambda: [PRIVATE, PRIVATE | uapi.KVM_MEM_ATTR_NO_WRITE][guest.rng.integers(2)], work=work,
                 calls=1001, check=lambda last, _: vm.attributes.uniform(0, guest.terabyte) == last)


@limit("SET of 1 TiB that drops 1e5 conversions", None)
def drop(guest: Guest) -> Alone:
    """The first call after them, cold: part of what it drops is freed in it."""
    return Alone(draw=lambda: converted(guest),
                 work=lambda vm: vm.set_memory_attributes(0, guest.terabyte * PAGE, PRIVATE),
                 check=lambda vm, _: vm.attributes.run_count == 2)


def accesses(guest: Guest, attributes: int, wanted: Access, faults: bool) -> Alone:
    vm = converted(guest)
    calls = min(CALLS, guest.calls)

    def draw() -> list[int]:
        gfns = guest.gfns(2 * calls)
        chosen = gfns[vm.attributes.take(gfns) == attributes]
        if len(chosen) < calls:  # private pages are few
            runs = vm.attributes.runs(0, guest.pages)
            chosen = guest.rng.choice(runs["start"][runs["attributes"] == attributes], calls)
        addresses: list[int] = (chosen[:calls] * PAGE).tolist()
        return addresses

    def work(addresses: list[int]) -> Any:
        access, ended = vm.access, None
        for address in addresses:
            ended = access(address, wanted)
        return ended

    return Alone(draw, work, lambda _, ended: (ended is not None) == faults, loop, calls)


limit("vm.access to a random page, after 1e5", 250)(lambda guest: accesses(guest, 0, Access.READ, False))
limit("vm.access that faults", 250)(lambda guest: accesses(guest, PRIVATE, Access.READ, True))
