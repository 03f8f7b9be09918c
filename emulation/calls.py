"""Instructions of many shapes of calls, counted on the kernel that runs: `python -m emulation.calls FILE`.

A *road* is a list of calls on a VM of its own: some prepare it, the others are counted. Roads to fit the parameters of
`kvmattr.trace.instructions` are made here; roads to judge them are recordings, each by its attribute side and by its
memslot side, and are not fitted. FILE gets, for each road, how many calls are counted and what they took.

Only under -icount are these instructions: the guest's clock then counts them. A road is run ROUNDS times on new VMs,
once if it is long, and the least counts: what else the machine did in a round only adds to it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import VM, uapi
from kvmattr.bridges import kvm
from kvmattr.measure.machine import cpu_model
from kvmattr.memslots import Memslot
from kvmattr.study.slot_plan import SlotPlan
from kvmattr.study.work import Batch
from kvmattr.trace import GENERATORS, Trace, machine_for, read, replay
from kvmattr.trace.generators import random_conversions
from kvmattr.trace.instructions import AttributeWork, askew_entries, slot_work
from kvmattr.trace.operations import SetSlot
from kvmattr.trace.sides import Watch

TREE = Path(__file__).resolve().parent.parent
ROUNDS = 7
#: A road that took so many instructions is not run again.
_LONG = 20_000_000
#: A road that stores more pages would take minutes.
_MOST_PAGES = 6_000_000
_HVA = 0x7F00_0000_0000
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

Records = NDArray[Any]


@dataclass
class Road:
    """Calls in order, as (whether they are counted, request, structures)."""

    name: str
    side: str
    calls: list[tuple[bool, int, Records]] = field(default_factory=list)

    def counted(self) -> int:
        """How many calls are counted."""
        return sum(len(records) for counts, _, records in self.calls if counts)

    def pages(self) -> int:
        """Pages that its attribute calls name."""
        return sum(int(records["size"].sum()) >> uapi.PAGE_SHIFT for _, request, records in self.calls
                   if request == uapi.KVM_SET_MEMORY_ATTRIBUTES)

    def sets(self, *rows: tuple[int, int, int], counted: bool = True) -> Road:
        """Go on with KVM_SET_MEMORY_ATTRIBUTES: (start, stop, attributes) in pages."""
        records = np.zeros(len(rows), uapi.LINUX_MEMORY_ATTRIBUTES)
        if rows:
            start, stop, attributes = np.array(rows, np.uint64).T
            records["address"], records["size"] = start << np.uint64(12), (stop - start) << np.uint64(12)
            # Other rights than PRIVATE are for no kernel yet: they stand for it.
            records["attributes"] = np.where(attributes != 0, uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE, 0)
        self.calls.append((counted, uapi.KVM_SET_MEMORY_ATTRIBUTES, records))
        return self

    def slots(self, *rows: tuple[int, ...], counted: bool = True) -> Road:
        """Go on with KVM_SET_USER_MEMORY_REGION: (slot, flags, address, size, userspace_addr)."""
        return self.regions(np.array([*rows], dtype=uapi.USERSPACE_MEMORY_REGION), counted=counted)

    def regions(self, records: Records, *, counted: bool = True) -> Road:
        """The same, as structures."""
        self.calls.append((counted, uapi.KVM_SET_USER_MEMORY_REGION, records))
        return self

    def work(self) -> Counter[str]:
        """What the counted calls are, by the models."""
        return self._attribute_work() if self.side == "attributes" else self._slot_work()

    def _attribute_work(self) -> Counter[str]:
        ends = [int((records["address" if "address" in names else "guest_phys_addr"]
                     + records["size" if "size" in names else "memory_size"]).max(initial=0))
                for _, _, records in self.calls for names in [records.dtype.names or ()]]
        model, found = AttributeWork(max(ends) >> uapi.PAGE_SHIFT), Counter[str]()
        for counted, request, records in self.calls:
            before = Counter(model.counts)
            for record in records:
                if request == uapi.KVM_SET_MEMORY_ATTRIBUTES:
                    model.set(*_pages(record["address"], record["size"]), int(record["attributes"]))
                else:
                    model.slot(int(record["slot"]), *_pages(record["guest_phys_addr"], record["memory_size"]))
            if counted:
                found.update(model.counts - before)
        return found

    def _slot_work(self) -> Counter[str]:
        model, found, askew = VM("linux", private=False, phys_bits=52), Counter[str](), 0
        for counted, _, records in self.calls:
            before = Counter(model.memslots.stats())
            for slot, flags, address, size, userspace in records.tolist():
                model.set_user_memory_region(slot, address, size, userspace, flags)
                askew += askew_entries(SetSlot(slot, flags, address, size, userspace)) if counted and size else 0
            if counted:
                after = model.memslots.stats()
                found.update({name: after[name] - before[name] for name in after})
        return slot_work(found, model.memslots.stats()["memslots"], askew)


def _pages(address: int, size: int) -> tuple[int, int]:
    return int(address) >> uapi.PAGE_SHIFT, int(address + size) >> uapi.PAGE_SHIFT


# Making roads ------------------------------------------------------------------------------------------------


def _attribute_road(name: str, npages: int, pieces: int = 1) -> Road:
    """The beginning of a road of attribute calls: the guest's memslots."""
    if pieces == 1:
        return Road(name, "attributes").regions(SlotPlan(npages, _HVA).slots(), counted=False)
    edges = [npages * index // pieces for index in range(pieces + 1)]
    rows = [(number, 0, edges[number] << 12, (edges[number + 1] - edges[number]) << 12, _HVA + (edges[number] << 12))
            for number in range(pieces)]
    return Road(name, "attributes").slots(*rows, counted=False)


def _attribute_roads() -> Iterator[Road]:
    """Ranges of many lengths, aligned and not, to private and back, in guests with few and many private pages."""
    random = np.random.default_rng(7)
    for npages in (GIB >> 13, 4 * GIB >> 12, 40 * GIB >> 12):
        for length, calls in ((1, 200), (5, 100), (16, 60), (33, 60), (128, 30), (512, 12), (1000, 10), (4096, 6)):
            for aligned in (False, True):
                for earlier in (0, 40, 3000):
                    unit = 1 << (length - 1).bit_length() if aligned else 1
                    starts = (random.integers(0, (npages - length) // unit, calls) * unit).tolist()
                    before = [(gfn, gfn + 1, 1) for gfn in random.integers(0, npages, earlier).tolist()]
                    there = [(start, start + length, 1) for start in starts]
                    back = [(start, start + length, 0) for start in starts]
                    yield _attribute_road(f"{npages} pages, {length} a call, {'' if aligned else 'not '}aligned, after"
                                          f" {earlier}", npages).sets(*before, counted=False).sets(
                                              *there, *there[::2], *back)
    for npages in (1000, 20_000, GIB >> 13):
        # Small guests, and pages close together: hardly a node of the xarray is new.
        for step in (1, 3, 17):
            near = [(gfn, gfn + 1) for gfn in range(0, min(npages, step * 700), step)]
            yield _attribute_road(f"{npages} pages, every {step}. page", npages).sets(
                *((*pages, 1) for pages in near), *((*pages, 0) for pages in near[::-1]))
        mixed = random.integers(0, npages, 1500).tolist()
        yield _attribute_road(f"{npages} pages, single ones at random", npages).sets(
            *((gfn, gfn + 1, index % 3 % 2) for index, gfn in enumerate(mixed)))
    for npages in (GIB >> 13, 4 * GIB >> 12):
        gfns = random.integers(0, npages, 60).tolist()
        starts = random.integers(0, npages - 3000, 20).tolist()
        half = npages // 2
        yield _attribute_road(f"{npages} pages, one at a time", npages).sets(
            *((gfn, gfn + 1, value) for gfn in gfns for value in (1, 0)))
        for length in (1, 40, 700):
            nothing = [(gfn, gfn + length, 0) for gfn in random.integers(0, npages - length, 100).tolist()]
            yield _attribute_road(f"{npages} pages, {length} that are shared already", npages).sets(*nothing)
        yield _attribute_road(f"{npages} pages, all private", npages).sets((0, npages, 1))
        yield _attribute_road(f"{npages} pages, all shared again", npages).sets((0, npages, 1), counted=False).sets(
            (0, npages, 0))
        yield _attribute_road(f"{npages} pages, shared ones in private memory", npages).sets(
            (0, npages, 1), counted=False).sets(*((gfn, gfn + 1, value) for gfn in gfns for value in (0, 1)))
        yield _attribute_road(f"{npages} pages, in several slots", npages, 37).sets(
            *((start, start + 3000, value) for start in starts for value in (1, 0)))
        yield _attribute_road(f"{npages} pages, half of them over and over", npages).sets(
            (0, half, 1), (1, half + 1, 1), (3, half + 3, 1), (0, half, 0))


def _slot_roads() -> Iterator[Road]:
    """Memslots of many sizes made, moved, flagged and deleted, beside few and many others."""
    readonly, log = uapi.KVM_MEM_READONLY, uapi.KVM_MEM_LOG_DIRTY_PAGES
    for others in (0, 30, 300, 3000, 12000):
        beside = [(1000 + index, 0, index * 16 * KIB, 8 * KIB, _HVA + index * 16 * KIB) for index in range(others)]
        for size in (4 * KIB, 64 * KIB, 2 * MIB, 64 * MIB, 1 * GIB, 16 * GIB):
            name, base, count = f"{size >> 10} KiB beside {others}", 512 * GIB, 8 if size < GIB else 2
            rows = [(index, 0, base + index * size, size, _HVA + base + index * size) for index in range(count)]
            gone = [(row[0], 0, 0, 0, 0) for row in rows]
            yield _slot_road(f"{name}, made", beside).slots(*rows)
            yield _slot_road(f"{name}, deleted", [*beside, *rows]).slots(*gone)
            yield _slot_road(f"{name}, made and deleted", beside).slots(*rows, *gone)
            if others <= 300:
                yield _slot_road(f"{name}, flagged", [*beside, *rows]).slots(
                    *((row[0], flags, *row[2:]) for row in rows for flags in (log, 0)))
                yield _slot_road(f"{name}, moved", [*beside, *rows]).slots(
                    *((*row[:2], row[2] + 2 * count * size, *row[3:]) for row in rows))
                yield _slot_road(f"{name}, read-only and askew", beside).slots(
                    *(call for row in rows for call in ((row[0], readonly, row[2], row[3], row[4] + 4096),
                                                        (row[0], 0, 0, 0, 0))))


def _slot_road(name: str, beside: list[tuple[int, ...]]) -> Road:
    return Road(name, "memslots").slots(*beside, counted=False)


def fitted() -> Iterator[Road]:
    """The roads that parameters are fitted to."""
    yield from _attribute_roads()
    yield from _slot_roads()


# Recordings ---------------------------------------------------------------------------------------------------


class _Both(Watch):
    """Both roads of a recording, as a replay takes them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._npages = 1
        self._conversions = self._slots = False
        self._attributes: dict[int, Road] = {}
        self._memslots = Road(name, "memslots")
        self._plan: SlotPlan | None = None

    def begins(self, npages: int, *, conversions: bool, slots: bool) -> None:
        self._npages, self._conversions, self._slots = npages, conversions, slots
        if conversions:
            self._plan = SlotPlan(npages, _HVA)
            self._memslots.regions(self._plan.slots(), counted=False)

    def attribute_call(self, space: int, start: int, stop: int, attributes: int, operation: int) -> None:
        self._road(space).sets((start, stop, attributes))
        if self._plan is not None:
            calls, _ = self._plan.plan(Batch.of([start], stop - start, int(attributes != 0)))
            self._memslots.regions(calls)

    def slot_call(self, old: Memslot | None, record: SetSlot) -> None:
        # A guest_memfd is left out: what binding one takes is not part of either side.
        words = record._replace(flags=record.flags & ~uapi.KVM_MEM_GUEST_MEMFD)[:5]
        road = self._road(0) if self._conversions else self._memslots
        road.slots(words, counted=not self._conversions)

    def roads(self) -> list[Road]:
        return [*self._attributes.values(), self._memslots]

    def _road(self, space: int) -> Road:
        if space not in self._attributes:
            road = self._attributes[space] = Road(self._name, "attributes")
            if not (self._conversions and self._slots):
                road.regions(SlotPlan(self._npages, _HVA).slots(), counted=False)
        return self._attributes[space]


def recordings() -> Iterator[tuple[str, Trace, str | None]]:
    """What parameters are judged by, with the ABI: recorded boots and conversions, and made ones of other shapes."""
    data = TREE / "tests" / "data"
    for path in sorted(data.glob("traces/*.log")):
        yield path.name, read(path), None
    for name in ("qemu-default-private.log", "q35-512m.strace", "kata.log"):
        yield name, read(data / "cases" / name), None
    for name in ("attr-201.trace", "sparse-201.trace"):
        yield name, read(data / "kvm-7.2" / name), "linux"
    for kind, memory, operations in (("boot", 256 * MIB, 80), ("confidential-boot", 2 * GIB, 3000),
                                     ("every-other-page", 64 * MIB, 2000), ("random-conversions", 8 * GIB, 2000)):
        yield f"{kind}, {memory >> 20} MiB, {operations}", GENERATORS[kind](memory, operations, 11), None
    for npages in (24, 300):
        yield f"random-conversions of {npages} pages", random_conversions(6 * GIB, 400, 5, npages), None


def roads_of(name: str, trace: Trace, abi: str | None) -> list[Road]:
    """The roads of a recording; its work is left to the replay that estimates it."""
    both = _Both(name)
    replay(trace, machine_for(trace, abi), watch=both)
    return both.roads()


# Counting -----------------------------------------------------------------------------------------------------


def count(road: Road) -> int:
    """The instructions of a road's counted calls; the least of several rounds."""
    best = 0
    for _ in range(ROUNDS):
        took = _once(road)
        best = min(best or took, took)
        if took > _LONG:
            break
    return best


def _once(road: Road) -> int:
    total = 0
    vm_type = kvm.private_vm_type() if road.side == "attributes" else uapi.KVM_X86_DEFAULT_VM
    if vm_type is None:
        raise SystemExit("this kernel makes no VM whose memory can be private")
    with kvm.KernelVM(vm_type) as vm:
        for (counted, request), group in groupby(road.calls, key=lambda call: call[:2]):
            records = np.concatenate([records for _, _, records in group])
            empty = records[:0]
            began = perf_counter_ns()
            vm.ioctl_many(request, empty)
            between = perf_counter_ns()
            vm.ioctl_many(request, records)
            ended = perf_counter_ns()
            if counted:
                # Less what an empty batch takes: the rest is the calls.
                total += ended - between - (between - began)
    return total


def main(words: list[str]) -> int:
    """Count all roads and write the file."""
    found = []
    for road in fitted():
        found.append({"name": road.name, "side": road.side, "held_out": False, "calls": road.counted(),
                      "instructions": count(road)})
        print(f"{found[-1]['instructions']:>14,}  {road.side}: {road.name}", flush=True)
    for name, trace, abi in recordings():
        with trace:
            sides: dict[str, list[int]] = {}
            for road in roads_of(name, trace, abi):
                if road.pages() > _MOST_PAGES:
                    print(f"{road.side} of {name}: {road.pages():,} pages, left out", flush=True)
                    continue
                calls, instructions = sides.setdefault(road.side, [0, 0])
                sides[road.side] = [calls + road.counted(), instructions + count(road)]
        for side, (calls, instructions) in sides.items():
            found.append({"name": name, "side": side, "held_out": True, "calls": calls, "instructions": instructions})
            print(f"{instructions:>14,}  {side} of {name}", flush=True)
    result = {"kernel": os.uname().release, "cpu": cpu_model(), "unit": "guest instructions", "roads": found}
    Path(words[0]).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
