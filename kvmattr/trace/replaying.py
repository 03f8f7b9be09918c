"""Replay: a trace runs on a machine that answers it, and on the two sides that are compared."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from kvmattr import profiles, uapi
from kvmattr.memslots import Memslot
from kvmattr.trace.answers import Answering, errno_name
from kvmattr.trace.hosts import host_for
from kvmattr.trace.instructions import Estimate, Estimating
from kvmattr.trace.moments import Until
from kvmattr.trace.on_kvm import OnKvm
from kvmattr.trace.operations import RECORDED, UNKNOWN, Block, SetAttributes, SetSlot, records_of
from kvmattr.trace.sides import AttributeSide, Cost, SlotSide, SplittingSide, Watch, access_map
from kvmattr.trace.trace import Told, Trace
from kvmattr.vm import VM

#: Answers that differ from the recorded ones are counted all, and kept up to this many.
KEPT_DIFFERENCES = 10
#: A replay whose calls took more seconds is not timed again.
LONG = 0.5

Progress = Callable[[int], Any]


@dataclass(slots=True)
class Difference:
    """An operation that the machine answered otherwise than the recording says."""

    line: int
    recorded: str
    replayed: str


@dataclass(slots=True)
class Summary:
    """What a trace was, how it was answered, what each side cost; `equal` is None if nothing was compared."""

    name: str
    profile: str
    operations: int
    lines: int
    unrelated: int
    slot_calls: int
    attribute_calls: int
    answers: dict[str, int] = field(default_factory=dict)
    silent_deletions: int = 0
    #: What the VMM did or left undone without a line: slots set PRIVATE, conversions not asked for.
    default_private: int = 0
    not_done: int = 0
    #: Lines that name one of our calls and were not read: how many, and the first of them.
    unread_count: int = 0
    unread: list[Told] = field(default_factory=list)
    note_count: int = 0
    notes: list[Told] = field(default_factory=list)
    mentions: int = 0
    #: Whether the trace tells how its calls went, and that decided.
    recorded: bool = False
    machine: str = "x86-64"
    machine_why: str = ""
    different: int = 0
    differences: list[Difference] = field(default_factory=list)
    sides: list[Cost] = field(default_factory=list)
    equal: bool | None = None
    rounds: int = 1
    #: The machine that replayed it.
    host: str = ""
    #: Why the two sides were not compared, where that was asked for.
    not_compared: str = ""
    #: What both sides would take of a kernel, where that was estimated.
    instructions: Estimate | None = None
    #: The same calls on a VM of the running kernel, where that was asked for.
    on_kvm: OnKvm | None = None


def machine_for(trace: Trace, abi: str | None = None, phys_bits: int | None = None,
                host: str | None = None) -> VM:
    """The machine that a trace is for: by its `vm` line, else by `abi` and `phys_bits`; `host` as the log shows.

    Without either, a native trace speaks `rfc` and a log of a real VMM `linux`, and one that sets attributes of
    guest_memfd files `gmem`; a log that uses the second
    address space is of a machine without private memory, since others have one, and if it binds guest_memfds
    all the same, of a kernel that lets such machines do so. ValueError for a contradiction.

    >>> from kvmattr.trace import Machine, Trace
    >>> with Trace("made", Machine("linux", {"private": 0})) as trace:
    ...     machine_for(trace).supported_attributes
    0
    """
    line = trace.machine
    options: dict[str, int] = {} if line is None else dict(line.options)
    named = abi or ("gmem" if trace.file_conversions else "rfc" if not trace.is_log else
                    "linux-6.18" if trace.second_address_space and trace.guest_memfds else "linux")
    if line is not None:
        if abi not in (None, line.profile):
            raise ValueError(f"{trace.name}: its vm line says {line.profile}, abi says {abi}: leave abi out")
        named = line.profile
        if line.host is not None:
            if host is not None and host_for(trace, host).host.name != line.host:
                raise ValueError(f"{trace.name}: its vm line says host={line.host}, host says {host}: leave host out")
            host = line.host
    if phys_bits is not None:
        if options.get("phys_bits", phys_bits) != phys_bits:
            raise ValueError(f"{trace.name}: its vm line says phys_bits={options['phys_bits']},"
                             f" phys_bits says {phys_bits}: leave phys_bits out")
        options["phys_bits"] = phys_bits
    profile = profiles.profile_named(named)
    if trace.is_log and trace.attribute_calls and profile.private != profiles.LINUX.private:
        raise ValueError(f"abi {named}: the log's PRIVATE is {profiles.LINUX.private}, that of {named} is"
                         f" {profile.private}: use linux or vsm")
    if trace.is_log and trace.second_address_space:
        options.setdefault("private", 0)
    return VM(profile, host=host_for(trace, host).host,
              **{name: _option(name, value) for name, value in options.items()})


def _option(name: str, value: int) -> Any:
    return value if name in ("phys_bits", "nr_memslots") else bool(value)


def replay(trace: Trace, vm: VM, *, answers: TextIO | None = None, compare: bool = True,
           progress: Progress | None = None, model_answers: bool = False, end: Until | None = None,
           estimate: bool = False, watch: Watch | None = None) -> Summary:
    """Run a trace on `vm`, from wherever that stands, and compare memslots with attributes.

    Where the recording tells how a call went, that is what happens: a refused call changes nothing. With
    `model_answers` the machine's own answers decide. Either way what differs is in `differences`. `answers`
    gets one line an operation, `INDEX ERRNO` or `INDEX get ADDR:PAGES:S|P ...`. With `compare`, the other side
    runs as well (see `sides`), and with `estimate` both sides' kernel instructions are estimated, which takes
    some 10 us an operation; `watch` hears of both sides' calls in place of that. `end`: only what is not later
    runs. `progress` is called with the number of operations so far, once a block. Time: that of the operations;
    memory: that of the maps and a block.
    TraceError for memslots whose metadata no guest needs.

    >>> from kvmattr.trace import SetAttributes, Trace
    >>> from kvmattr.trace.operations import rows_of
    >>> records = [SetAttributes(0x1000, 0x1000, 1), SetAttributes(1, 1, 1)]
    >>> with Trace.from_blocks("made", [rows_of(records)]) as trace:
    ...     summary = replay(trace, VM())
    >>> summary.answers, [(side.side, side.ioctls) for side in summary.sides], summary.equal
    ({'0': 1, 'EINVAL': 1}, [('memslots', 3), ('attributes', 2)], True)
    """
    found = host_for(trace)
    why = found.why if found.host is vm.host else ""
    private = trace.default_private if vm.memslots.private_memory else 0
    summary = Summary(trace.name, vm.profile.name, trace.operations - trace.implied, trace.lines, trace.unrelated,
                      trace.slot_calls, trace.attribute_calls + trace.file_conversions, default_private=private,
                      not_done=trace.not_done, unread_count=trace.unread_count, unread=list(trace.unread),
                      note_count=trace.note_count, notes=list(trace.notes), mentions=trace.mentions,
                      recorded=trace.is_log and not model_answers, machine=vm.host.name, machine_why=why,
                      host=platform.node())
    estimating = Estimating() if estimate else None
    watch = watch or estimating
    compared: _Nothing = _Nothing()
    if compare and trace.file_conversions:
        # Attributes of files are seen through what is bound of them: no side of the mail's argument has that.
        summary.not_compared = "its conversions are of guest_memfd files"
    elif compare and trace.attribute_calls + private:
        compared = _Conversions(trace, watch)
    elif compare and trace.slot_calls:
        compared = _Slots(trace, watch or Watch())
    answering = Answering(vm, answers, compared.slot_changed, steered=not model_answers,
                          name=trace.name)
    counts: Counter[int] = Counter()
    for block in trace.blocks():
        if end is not None:
            block = end.cut(block)
        errnos = answering.apply(block)
        numbers, times = np.unique(errnos.done[block["origin"] == RECORDED], return_counts=True)
        counts.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
        _note_differences(summary, block, errnos.modelled)
        compared.apply(block, errnos.done)
        if progress is not None:
            progress(answering.operations)
    summary.answers = {errno_name(number): count for number, count in sorted(counts.items())}
    summary.silent_deletions = answering.silent_deletions
    compared.finish(summary, answering)
    if watch is estimating is not None and summary.sides:
        stopped = {side.side for side in summary.sides if side.stopped is not None}
        summary.instructions = estimating.estimate(vm, stopped)
    return summary


def time_again(summary: Summary, trace: Trace, make: Callable[[], VM], rounds: int, *,
               model_answers: bool = False) -> None:
    """Replay a trace on new machines until there were `rounds`; each side's time is then the median.

    A recording of some tens of calls is over before the caches are warm: its first time says little. One that
    took more than half a second is not replayed again. Both
    sides run in each round, one after the other.
    """
    times = [[side.seconds] for side in summary.sides]
    if sum(side.seconds for side in summary.sides) > LONG:
        return
    while summary.sides and summary.rounds < rounds:
        again = replay(trace, make(), model_answers=model_answers)
        summary.rounds += 1
        for seconds, side in zip(times, again.sides, strict=True):
            seconds.append(side.seconds)
    for side, seconds in zip(summary.sides, times, strict=True):
        side.seconds = median(seconds)


def _note_differences(summary: Summary, block: Block, errnos: NDArray[np.int16]) -> None:
    recorded = block["answer"]
    for index in np.flatnonzero((recorded != UNKNOWN) & (recorded != errnos)).tolist():
        summary.different += 1
        if len(summary.differences) < KEPT_DIFFERENCES:
            summary.differences.append(Difference(
                int(block["line"][index]), errno_name(int(recorded[index])), errno_name(int(errnos[index]))))


class _Nothing:
    """A replay that compares nothing; what the two comparisons below have in common."""

    slot_changed: Callable[[Memslot | None, SetSlot], None] | None = None

    def apply(self, block: Block, errnos: NDArray[np.int16]) -> None:
        """Take a block that the machine has answered."""

    def finish(self, summary: Summary, answering: Answering) -> None:
        """Write the sides into the summary."""


class _Slots(_Nothing):
    """A slot recording: the machine that answers is the memslot side."""

    def __init__(self, trace: Trace, watch: Watch) -> None:
        self._npages = trace.slot_npages
        self._watch = watch
        watch.begins(self._npages, conversions=False, slots=True)
        self._memslots = SlotSide(self._npages)
        self._attributes = AttributeSide(self._npages, watch)
        self.slot_changed = self._slot_changed

    def _slot_changed(self, old: Memslot | None, record: SetSlot) -> None:
        self._memslots.slot_changed(old, record)
        self._attributes.slot_changed(old, record)
        self._watch.slot_call(old, record)

    def finish(self, summary: Summary, answering: Answering) -> None:
        """Compare the access maps of all address spaces."""
        table = answering.vm.memslots
        ioctls = summary.slot_calls + answering.silent_deletions
        memslots = self._memslots.finish(table, ioctls, answering.slot_ns / 1e9, answering.undone)
        self._watch.memslots_did(self._memslots.stats)
        summary.sides = [memslots, self._attributes.finish()]
        if self._attributes.cost.stopped is not None:
            return
        summary.equal = all(
            access_map(table, space, self._npages) == self._attributes.runs(space).tolist()
            for space in self._attributes.address_spaces())


class _Conversions(_Nothing):
    """A conversion recording: the machine that answers is the attribute side."""

    def __init__(self, trace: Trace, watch: Watch | None) -> None:
        self._npages = max(trace.attribute_npages, 1)
        self._watch = watch
        if watch is not None:
            watch.begins(self._npages, conversions=True, slots=bool(trace.slot_calls))
        self._splitting = SplittingSide(self._npages)

    def apply(self, block: Block, errnos: NDArray[np.int16]) -> None:
        """Convert by splitting what the machine has accepted."""
        self._splitting.apply(block, errnos)
        if self._watch is None:
            return
        for record in records_of(block[errnos == 0]):
            if isinstance(record, SetSlot):
                self._watch.slot_call(None, record)
            elif isinstance(record, SetAttributes):
                start = min(record.address >> uapi.PAGE_SHIFT, self._npages)
                stop = min((record.address + record.size) >> uapi.PAGE_SHIFT, self._npages)
                if stop > start:
                    # The upper half of the word are flags, which no accepted call has.
                    self._watch.attribute_call(0, start, stop, record.attributes, record.flags)

    def finish(self, summary: Summary, answering: Answering) -> None:
        """Compare the runs, unless the memslots ran out."""
        runs = answering.vm.attributes.runs(0, self._npages)
        attributes = Cost("attributes", ioctls=summary.attribute_calls + summary.default_private,
                          seconds=answering.set_ns / 1e9, runs=len(runs))
        summary.sides = [self._splitting.finish(), attributes]
        if self._watch is not None and self._splitting.stats:
            self._watch.memslots_did(self._splitting.stats)
        other = self._splitting.runs()
        summary.equal = None if other is None else bool(np.array_equal(other, runs))
