"""What a recording costs by memslots and by attributes: the two sides of the mail's argument.

A *slot recording* is a VMM at work that has only memslots. Its memslot side is the recording; the attribute
side is the same guest with one memslot that never changes and one WRITE where the recording has a slot
call: 0 where the guest may do all, NO_WRITE where the slot was READONLY, and NO_READ | NO_WRITE | NO_EXEC
where there was none.

A *conversion recording* sets attributes. Its attribute side is the recording; the memslot side is the VMM
that has no attributes and splits and merges memslots in their place.

Both sides must end with the same access map, or the comparison is void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr._core import AttributeMap
from kvmattr.memslots import Memslot, MemslotTable, SplittingBaseline
from kvmattr.operation import Operation
from kvmattr.trace.answers import errno_name
from kvmattr.trace.operations import SET, Block, SetSlot
from kvmattr.vm import VM

HOLE = uapi.KVM_MEM_ATTR_NO_READ | uapi.KVM_MEM_ATTR_NO_WRITE | uapi.KVM_MEM_ATTR_NO_EXEC
READ_ONLY = uapi.KVM_MEM_ATTR_NO_WRITE

Runs = NDArray[np.void]

#: The largest guest that is compared: metadata of memslots is built, and this one's takes 128 MiB.
LARGEST_GUEST = 64 << 40 >> uapi.PAGE_SHIFT
#: Metadata that splitting may build: so many bytes, and as many more for each conversion.
BUILT, BUILT_EACH = 1 << 29, 1 << 20


@dataclass(slots=True)
class Cost:
    """What one side did for the whole recording.

    `slots_touched`: memslots that were created; `slot_changes`: how often one was
    created, deleted, moved or given other flags; `metadata_bytes`: built for slots; `pages_without_slot`:
    guest pages that lost their slot and got another one later, each time; `stopped` says why it could not
    go on to the end.
    """

    side: str
    ioctls: int = 0
    slots_touched: int = 0
    slot_changes: int = 0
    metadata_bytes: int = 0
    pages_without_slot: int = 0
    seconds: float = 0.0
    runs: int = 0
    stopped: str | None = None


def _count_slots(cost: Cost, stats: dict[str, int]) -> None:
    cost.slots_touched = stats["slots_created"]
    changes = ("slots_created", "slots_deleted", "slots_moved", "slots_flags_changed")
    cost.slot_changes = sum(stats[name] for name in changes)
    cost.metadata_bytes = stats["large_page_bytes"] + stats["dirty_bitmap_bytes"]


class Watch:
    """Hears of the calls that both sides make, in order. Does nothing itself."""

    def begins(self, npages: int, *, conversions: bool, slots: bool) -> None:
        """Before all others: the pages of the guest, the kind of recording, and whether it has slot calls."""

    def attribute_call(self, space: int, start: int, stop: int, attributes: int, operation: int) -> None:
        """A call of the attribute side on pages [start, stop) of an address space."""

    def slot_call(self, old: Memslot | None, record: SetSlot) -> None:
        """A recorded slot call that went well; ``old``: the memslot before it, where the memslot side is recorded."""

    def memslots_did(self, stats: Mapping[str, int]) -> None:
        """After all others: what the memslot side counted, as `MemslotTable.stats`."""


class AttributeSide:
    """The attribute side of a slot recording: a machine an address space, as attributes are per machine."""

    def __init__(self, npages: int, watch: Watch) -> None:
        self.cost = Cost("attributes")
        self._npages = npages
        self._watch = watch
        self._machines: dict[int, VM] = {}

    def slot_changed(self, old: Memslot | None, record: SetSlot) -> None:
        """One WRITE for a slot call that went well: two for a slot that moved."""
        space = record.slot >> uapi.KVM_ADDRESS_SPACE_SHIFT
        self._machine(space)
        if self.cost.stopped is not None:
            return
        start, stop = record.guest_phys_addr, record.guest_phys_addr + record.memory_size
        if old is not None and (old.guest_phys_addr, old.memory_size) != (start, record.memory_size):
            self._write(space, old.guest_phys_addr, old.memory_size, HOLE)
        if stop > start:
            attributes = READ_ONLY if record.flags & uapi.KVM_MEM_READONLY else 0
            self._write(space, start, record.memory_size, attributes)

    def runs(self, address_space: int) -> Runs:
        """The final access map of an address space: runs of attributes over the guest's pages."""
        return self._machine(address_space).attributes.runs(0, self._npages)

    def address_spaces(self) -> list[int]:
        """The address spaces that have had a slot."""
        return sorted(self._machines)

    def finish(self) -> Cost:
        """The cost, once all calls were heard of."""
        if self.cost.stopped is not None:
            return self.cost
        self.cost.runs = sum(len(self.runs(space)) for space in self._machines)
        for machine in self._machines.values():
            stats = machine.memslots.stats()
            self.cost.slots_touched += stats["slots_created"]
            self.cost.slot_changes += stats["slots_created"]
            self.cost.metadata_bytes += stats["large_page_bytes"]
        return self.cost

    def _machine(self, address_space: int) -> VM:
        if address_space not in self._machines:
            machine = self._machines[address_space] = VM("rfc", private=False)
            if self._npages > LARGEST_GUEST:
                self.cost.stopped = f"a guest of {self._npages} pages, compared are up to {LARGEST_GUEST}"
                return machine
            began = perf_counter_ns()
            # One slot, but for guests of more than 8 TiB, which KVM's largest slot cannot hold.
            for slot, start in enumerate(range(0, self._npages, uapi.KVM_MEM_MAX_NR_PAGES)):
                pages = min(uapi.KVM_MEM_MAX_NR_PAGES, self._npages - start)
                machine.set_user_memory_region(slot, start << 12, pages << 12)
                self.cost.ioctls += 1
            self.cost.seconds += (perf_counter_ns() - began) / 1e9
            self._write(address_space, 0, self._npages << 12, HOLE)
        return self._machines[address_space]

    def _write(self, space: int, address: int, size: int, attributes: int) -> None:
        machine = self._machines[space]
        began = perf_counter_ns()
        machine.set_memory_attributes(address, size, attributes)
        self.cost.seconds += (perf_counter_ns() - began) / 1e9
        self.cost.ioctls += 1
        start = address >> uapi.PAGE_SHIFT
        self._watch.attribute_call(space, start, start + (size >> uapi.PAGE_SHIFT), attributes, Operation.WRITE)


class SlotSide:
    """The memslot side of a slot recording: what the recorded calls did to the table that they ran on."""

    def __init__(self, npages: int) -> None:
        self.cost = Cost("memslots")
        self.stats: dict[str, int] = {}
        self._npages = npages
        self._taken: dict[int, AttributeMap] = {}

    def slot_changed(self, old: Memslot | None, record: SetSlot) -> None:
        """Note which pages a call took from the guest, and count them when a later call gives them back."""
        space = record.slot >> uapi.KVM_ADDRESS_SPACE_SHIFT
        taken = self._taken.setdefault(space, AttributeMap(self._npages))
        # A deletion may name any address: it covers nothing.
        start = record.guest_phys_addr >> uapi.PAGE_SHIFT if record.memory_size else 0
        stop = start + (record.memory_size >> uapi.PAGE_SHIFT)
        # Counted first: a slot that moves over its own place does not give back what it takes.
        self.cost.pages_without_slot += taken.count(start, stop, 1)
        if old is not None and (old.start, old.stop) != (start, stop):
            taken.write(old.start, old.stop, 1)
        taken.write(start, stop, 0)

    def finish(self, table: MemslotTable, ioctls: int, seconds: float, undone: Mapping[str, int]) -> Cost:
        """The cost, once the recording has run on `table`, less what was `undone` there."""
        self.stats = {name: count - undone.get(name, 0) for name, count in table.stats().items()}
        _count_slots(self.cost, self.stats)
        self.cost.ioctls, self.cost.seconds = ioctls, seconds
        self.cost.runs = sum(len(access_map(table, space, self._npages)) for space in self._taken)
        return self.cost


def access_map(table: MemslotTable, address_space: int, npages: int) -> list[tuple[int, int, int]]:
    """The runs of an address space as the attribute side spells them: (start, stop, attributes)."""
    runs: list[tuple[int, int, int]] = []

    def add(start: int, stop: int, attributes: int) -> None:
        if start == stop:
            return
        if runs and runs[-1][2] == attributes:
            start = runs.pop()[0]
        runs.append((start, stop, attributes))

    reached = 0
    for slot in table.overlapping(0, npages, address_space):
        add(reached, slot.start, HOLE)
        add(slot.start, slot.stop, READ_ONLY if slot.flags & uapi.KVM_MEM_READONLY else 0)
        reached = slot.stop
    add(reached, npages, HOLE)
    return runs


class SplittingSide:
    """The memslot side of a conversion recording. It stops for good where the slots run out."""

    def __init__(self, npages: int) -> None:
        self.cost = Cost("memslots")
        self.stats: dict[str, int] = {}
        self._baseline: SplittingBaseline | None = None
        self._npages = npages
        self._done = 0
        # The limit of one slot, 8 TiB, is waived in favour of this side.
        if npages > LARGEST_GUEST:
            self.cost.stopped = f"a guest of {npages} pages, compared are up to {LARGEST_GUEST}"
        else:
            self._baseline = SplittingBaseline(npages)
            # The slot that is there before the first conversion is not the conversions' cost.
            self._at_start = self._baseline.stats()

    def apply(self, block: Block, errnos: NDArray[np.int16]) -> None:
        """Convert what the machine has accepted of a block."""
        if self._baseline is None or self.cost.stopped is not None:
            return
        words = block["words"][(block["kind"] == SET) & (errnos == 0)]
        # Beyond the guest all attributes are 0, and what gets there leaves them so.
        starts, stops = (np.minimum(addresses >> np.uint64(uapi.PAGE_SHIFT), np.uint64(self._npages))
                         for addresses in (words[:, 0], words[:, 0] + words[:, 1]))
        attributes, operations = words[:, 2].astype(np.uint8), words[:, 3].astype(np.uint8)
        # A conversion builds the metadata of what it splits or merges, at most of the whole guest twice.
        step = max(1, (BUILT >> 3) // max(1, self._npages // 64))
        for start in range(0, len(words), step):
            self._convert(*(values[start:start + step] for values in (starts, stops, attributes, operations)))
            if self.cost.stopped is not None:
                break

    def _convert(self, starts: NDArray[np.uint64], stops: NDArray[np.uint64], attributes: NDArray[np.uint8],
                 operations: NDArray[np.uint8]) -> None:
        assert self._baseline is not None
        began = perf_counter_ns()
        try:
            self._baseline.update_many(starts, stops, attributes, operations)
        except OSError as error:
            done = self._done + error.done  # type: ignore[attr-defined]
            name = errno_name(error.errno or 0)
            self.cost.stopped = f"{name} after {done} conversions: no free memslot"
        self.cost.seconds += (perf_counter_ns() - began) / 1e9
        self._done += len(starts)
        built = self._baseline.stats()["large_page_bytes"]
        if self.cost.stopped is None and built > BUILT + BUILT_EACH * self._done:
            self.cost.stopped = f"{built:,} bytes of metadata built after {self._done} conversions"

    def runs(self) -> Runs | None:
        """The final runs, None if it stopped."""
        return None if self._baseline is None or self.cost.stopped is not None else self._baseline.runs()

    def finish(self) -> Cost:
        """The cost, once all blocks were applied."""
        if self._baseline is not None:
            stats = self._baseline.stats()
            self.stats = {name: stats[name] - self._at_start[name] for name in stats}
            _count_slots(self.cost, self.stats)
            # Each change of a slot is one KVM_SET_USER_MEMORY_REGION.
            self.cost.ioctls = self.cost.slot_changes
            self.cost.pages_without_slot = stats["pages_without_slot"]
            self.cost.runs = stats["memslots"]
        return self.cost
