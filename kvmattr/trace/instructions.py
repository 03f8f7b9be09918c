"""How many kernel instructions the calls of a replay would take, by the parameters that an emulated kernel gave.

`python3 dev.py kernel --jobs calls` counts calls of many shapes inside a real kernel (emulation/calls.py), and
emulation/fit.py fits to them what each kind of *work* takes: a page stored, a node of the xarray made, a memslot
created. Work is what the kernel's code does for a call (kvm_vm_set_mem_attributes in virt/kvm/kvm_main.c,
kvm_arch_post_set_memory_attributes in arch/x86/kvm/mmu/mmu.c, kvm_set_memslot), so it follows from the calls before.
The fitted parameters are in linux-7.2.13.json beside this file, with the error that they had on recordings that
were not used to fit them.
"""

from __future__ import annotations

import json
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any, Final

import numpy as np

from kvmattr import uapi
from kvmattr._core import AttributeMap
from kvmattr.hosts import X86_64
from kvmattr.memslots import Memslot
from kvmattr.operation import Operation
from kvmattr.trace.operations import SetSlot
from kvmattr.trace.sides import Watch
from kvmattr.vm import VM

#: The parameters that are shipped.
SHIPPED: Final = "linux-7.2.13.json"
#: The largest memslot that is a whole number of GiB: a bigger guest has several.
_LARGEST_SLOT: Final = uapi.KVM_MEM_MAX_NR_PAGES >> 18 << 18
#: Levels of large pages, as shifts of a gfn.
_LEVELS: Final = (9, 18)
#: A node of the xarray has 64 entries.
_NODE: Final = 6

#: The work of KVM_SET_MEMORY_ATTRIBUTES, in the order of the fitted parameters.
ATTRIBUTE_WORK: Final = (
    "calls",             # ioctls, those that find nothing to do included
    "changes",           # those that change a page
    "looks",             # pages looked at one by one, to find that a range or a block of 2 MiB is uniform
    "skipped",           # empty entries passed over on the way to the first private page
    "to_private",        # pages stored that had no attributes, and those that had
    "to_private_again",
    "to_shared",         # pages that lose their attributes, and those that had none
    "to_shared_again",
    "levels",            # levels of the xarray walked through for them
    "nodes_made",
    "nodes_freed",
    "slots",             # memslots that a change touches
    "blocks",            # large pages inside of a range
    "block_looks",       # blocks of 2 MiB looked at, to find that one of 1 GiB is uniform
    "block_levels",      # levels of the xarray walked through for them
)
#: The work of KVM_SET_USER_MEMORY_REGION.
SLOT_WORK: Final = (
    "created",
    "deleted",
    "moved",
    "flags_changed",
    "metadata_bytes",    # of lpage_info, built and given back
    "askew",             # large pages forbidden one by one, where user memory lies askew
    "dirty_bytes",       # of dirty bitmaps
    "depth",             # changes times the logarithm of the number of memslots
)


class AttributeWork:
    """Counts the work of KVM_SET_MEMORY_ATTRIBUTES calls on one VM, call by call.

    ``npages``: pages of the guest. Memslots are those that ``slot`` is told of; if it is told of none, there is one
    over the whole guest. A call takes a few look-ups in a map of the guest: about 10 us.

    >>> work = AttributeWork(512)
    >>> work.set(3, 5, 1)
    >>> work.counts["to_private"], work.counts["nodes_made"], work.counts["looks"]
    (2, 1, 2)
    """

    def __init__(self, npages: int) -> None:
        self.counts: Counter[str] = Counter()
        self._npages = npages
        self._map = AttributeMap(npages)
        #: (start, stop, number) in order of address; None: one over the whole guest.
        self._slots: list[tuple[int, int, int]] | None = None
        self._height = 1

    def slot(self, number: int, start: int, stop: int) -> None:
        """The memslot ``number`` is now at [start, stop), or is gone if that is empty."""
        kept = [slot for slot in self._slots or () if slot[2] != number and (slot[1] <= start or slot[0] >= stop)]
        if stop > start:
            insort(kept, (start, stop, number))
        self._slots = kept

    def update(self, start: int, stop: int, attributes: int, operation: int) -> None:
        """A call of the mail, whose OR and AND the merged interface lacks: a WRITE for each run that they change."""
        if operation == Operation.WRITE:
            self.set(start, stop, attributes)
            return
        for first, last, old in self._map.runs(start, stop).tolist():
            self.set(first, last, old | attributes if operation == Operation.OR else old & attributes)

    def set(self, start: int, stop: int, attributes: int) -> None:
        """One call over the pages [start, stop) of the guest."""
        counts, npages = self.counts, stop - start
        counts["calls"] += 1
        same = self._same(start, stop, attributes)
        self._look(start, stop, same, attributes)
        if same == npages:
            return
        counts["changes"] += 1
        self._height = max(self._height, -(-(stop - 1).bit_length() // _NODE))
        present = npages - self._map.count(start, stop, 0)
        if attributes:
            counts["to_private"] += npages - present
            counts["to_private_again"] += present
        else:
            counts["to_shared"] += present
            counts["to_shared_again"] += npages - present
        counts["levels"] += 2 * npages * self._height
        self._nodes(start, stop, present, attributes)
        self._map.write(start, stop, attributes)
        for first, last in self._overlapping(start, stop):
            counts["slots"] += 1
            self._blocks(max(start, first), min(stop, last), first, last, attributes)

    def _overlapping(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if self._slots is None:
            for first in range(start // _LARGEST_SLOT * _LARGEST_SLOT, stop, _LARGEST_SLOT):
                yield first, min(first + _LARGEST_SLOT, self._npages)
            return
        at = max(bisect_right(self._slots, (start, self._npages, 0)) - 1, 0)
        for first, last, _ in self._slots[at:]:
            if first >= stop:
                break
            if last > start:
                yield first, last

    def _same(self, start: int, stop: int, attributes: int) -> int:
        """How many pages at the beginning of a range have these attributes."""
        run = self._map.run(start)
        return min(run.stop, stop) - start if run.attributes == attributes else 0

    def _look(self, start: int, stop: int, same: int, attributes: int) -> None:
        """KVM looks whether a range has these attributes, whose first ``same`` pages have them."""
        if attributes or stop - start == 1:
            self.counts["looks"] += min(same + 1, stop - start)
        else:
            # The xarray leads from one private page to the next.
            self.counts["looks"] += 1
            self.counts["skipped"] += (start + same) % (1 << _NODE) if start + same < stop else 0

    def _blocks(self, start: int, stop: int, first: int, last: int, attributes: int) -> None:
        """What of the memslot [first, last) may still be mapped by large pages, after a change of [start, stop)."""
        for shift in _LEVELS:
            size = 1 << shift
            block = start >> shift << shift
            if block != start or block + size > stop:
                if block >= first and block + size <= last:
                    self._block(block, shift, attributes)
                block += size
            whole = max(stop - block, 0) >> shift
            self.counts["blocks"] += whole
            block += whole << shift
            if block < stop and block + size <= last:
                self._block(block, shift, attributes)

    def _block(self, block: int, shift: int, attributes: int) -> None:
        size = 1 << shift
        same = self._same(block, block + size, attributes)
        if shift == _LEVELS[0]:
            self._look(block, block + size, same, attributes)
        else:
            looks = min((same >> _LEVELS[0]) + 1, size >> _LEVELS[0])
            self.counts["block_looks"] += looks
            self.counts["block_levels"] += looks * (self._height if attributes else self._levels_over(block))

    def _levels_over(self, block: int) -> int:
        """How many levels of the xarray are there over a block of 1 GiB: nodes without a private page are not."""
        for level in range(self._height, 2, -1):
            shift = _NODE * level
            first = block >> shift << shift
            if self._empty(first, min(first + (1 << shift), self._npages)):
                return self._height - level
        return self._height - 2

    def _nodes(self, start: int, stop: int, present: int, attributes: int) -> None:
        """Nodes that a change makes, since all its pages are reserved first, and those that it leaves empty."""
        runs = None
        for level in range(1, self._height + 1):
            shift = _NODE * level
            low, high = start >> shift, (stop - 1) >> shift
            edges = {low, high}
            inner = max(high - low - 1, 0)
            if 0 < present < stop - start and inner:
                runs = self._private_runs(start, stop) if runs is None else runs
                filled = _blocks_of(runs, shift, low + 1, high)
            else:
                filled = inner if present else 0
            self.counts["nodes_made"] += inner - filled
            self.counts["nodes_freed"] += 0 if attributes else inner
            for block in edges:
                before, after = block << shift, min((block + 1) << shift, self._npages)
                if self._empty(before, start) and self._empty(stop, after):
                    self.counts["nodes_made"] += self._empty(max(start, before), min(stop, after))
                    self.counts["nodes_freed"] += not attributes

    def _empty(self, start: int, stop: int) -> bool:
        """Whether no page of a range has attributes."""
        if start >= stop:
            return True
        run = self._map.run(start)
        return run.attributes == 0 and run.stop >= stop

    def _private_runs(self, start: int, stop: int) -> Any:
        runs = self._map.runs(start, stop)
        return runs[runs["attributes"] != 0]


def _blocks_of(runs: Any, shift: int, low: int, high: int) -> int:
    """How many of the blocks [low, high) of 2^shift pages have a page in one of the runs."""
    firsts = np.maximum(runs["start"] >> np.uint64(shift), np.uint64(low)).astype(np.int64)
    lasts = np.minimum((runs["stop"] - np.uint64(1)) >> np.uint64(shift), np.uint64(high - 1)).astype(np.int64)
    firsts[1:] = np.maximum(firsts[1:], np.maximum.accumulate(lasts)[:-1] + 1)
    return int(np.maximum(lasts - firsts + 1, 0).sum())


def slot_work(stats: Mapping[str, int], slots: int, askew: int = 0) -> Counter[str]:
    """The work of memslot calls, from the counts of `MemslotTable.stats` and the number of slots that they lead to.

    >>> slot_work({"slots_created": 2, "slots_deleted": 1, "slots_moved": 0, "slots_flags_changed": 0,
    ...            "large_page_bytes": 8, "dirty_bitmap_bytes": 0}, slots=1)["depth"]
    3.0
    """
    work: Counter[str] = Counter({"created": stats["slots_created"], "deleted": stats["slots_deleted"],
                                  "moved": stats["slots_moved"], "flags_changed": stats["slots_flags_changed"]})
    work["depth"] = work.total() * log2(1 + slots)  # type: ignore[assignment]
    work["metadata_bytes"], work["dirty_bytes"] = stats["large_page_bytes"], stats["dirty_bitmap_bytes"]
    work["askew"] = askew
    return work


def askew_entries(record: SetSlot) -> int:
    """Entries of lpage_info that KVM forbids one by one, because guest and user memory are not in step.

    >>> from kvmattr.trace import SetSlot
    >>> askew_entries(SetSlot(0, 0, 0, 4 << 20, 0x7F0000001000)), askew_entries(SetSlot(0, 0, 0, 4 << 20, 1 << 40))
    (3, 0)
    """
    first, last = record.guest_phys_addr >> 12, (record.guest_phys_addr + record.memory_size - 1) >> 12
    apart = (record.guest_phys_addr ^ record.userspace_addr) >> uapi.PAGE_SHIFT
    return sum((last >> shift) - (first >> shift) + 1 for shift in _LEVELS if apart % (1 << shift))


@dataclass(frozen=True, slots=True)
class Parameters:
    """Instructions for each kind of work, of one kernel; ``error``: the largest on recordings not used to fit."""

    kernel: str
    cpu: str
    attributes: Mapping[str, float]
    memslots: Mapping[str, float]
    error: float

    def of_attributes(self, work: Mapping[str, float]) -> float:
        """Instructions of attribute calls."""
        return sum(each * work.get(name, 0) for name, each in self.attributes.items())

    def of_memslots(self, work: Mapping[str, float]) -> float:
        """Instructions of memslot calls."""
        return sum(each * work.get(name, 0) for name, each in self.memslots.items())


@cache
def shipped() -> Parameters:
    """The parameters of the kernel that this version was counted on."""
    data = json.loads((files(__package__) / SHIPPED).read_text(encoding="utf-8"))
    return Parameters(**{name: data[name] for name in ("kernel", "cpu", "attributes", "memslots", "error")})


@dataclass(slots=True)
class Estimate:
    """Kernel instructions of both sides, None where there is no ground for a number; ``why`` then says so.

    ``error``: how far the estimate was off at most on the recordings that it was judged by, 0.1 for 10 %.
    """

    kernel: str
    attributes: int | None
    memslots: int | None
    error: float
    why: str = ""


class Estimating(Watch):
    """Counts the work of both sides of a replay.

    >>> from kvmattr.trace import SetAttributes, Trace, machine_for, replay
    >>> from kvmattr.trace.operations import rows_of
    >>> with Trace.from_blocks("made", [rows_of([SetAttributes(0x1000, 0x1000, 1)])]) as trace:
    ...     found = replay(trace, machine_for(trace), estimate=True).instructions
    >>> found.attributes < found.memslots
    True
    """

    def __init__(self) -> None:
        self.attributes: dict[int, AttributeWork] = {}
        self.memslots: Counter[str] = Counter()
        self._npages = 1
        self._conversions = self._slots = False
        self._askew = 0

    def begins(self, npages: int, *, conversions: bool, slots: bool) -> None:
        """The pages of the guest."""
        self._npages, self._conversions, self._slots = npages, conversions, slots

    def attribute_call(self, space: int, start: int, stop: int, attributes: int, operation: int) -> None:
        """A call of the attribute side."""
        self._work(space).update(start, stop, attributes, operation)

    def slot_call(self, old: Memslot | None, record: SetSlot) -> None:
        """A slot call: the memslot side's, or one before the conversions."""
        if self._conversions:
            start = record.guest_phys_addr >> uapi.PAGE_SHIFT
            self._work(0).slot(record.slot, start, start + (record.memory_size >> uapi.PAGE_SHIFT))
        elif record.memory_size and (old is None or old.guest_phys_addr != record.guest_phys_addr):
            self._askew += askew_entries(record)

    def memslots_did(self, stats: Mapping[str, int]) -> None:
        """What the memslot side counted."""
        self.memslots = slot_work(stats, stats["memslots"], self._askew)

    def attribute_work(self) -> Counter[str]:
        """The attribute side's work, of all address spaces."""
        return sum((work.counts for work in self.attributes.values()), Counter())

    def estimate(self, vm: VM, stopped: Collection[str] = ()) -> Estimate:
        """What the work takes by the shipped parameters, for a recording that ran on ``vm``.

        ``stopped``: sides that did not come to the end.
        """
        parameters = shipped()
        estimate = Estimate(parameters.kernel, None, None, parameters.error)
        if vm.host is not X86_64:
            estimate.why = f"counted on x86-64, the recording is of {vm.host.name}"
        elif vm.profile.file_attributes:
            estimate.why = f"{parameters.kernel} keeps attributes of VMs, {vm.profile.name} those of files"
        else:
            estimate.why = ", ".join(f"{side} stopped before the end" for side in sorted(stopped))
            if "attributes" not in stopped:
                estimate.attributes = round(parameters.of_attributes(self.attribute_work()))
            if "memslots" not in stopped:
                estimate.memslots = round(parameters.of_memslots(self.memslots))
        return estimate

    def _work(self, space: int) -> AttributeWork:
        if space not in self.attributes:
            self.attributes[space] = AttributeWork(self._npages)
            if self._conversions and self._slots:
                self.attributes[space].slot(0, 0, 0)
        return self.attributes[space]
