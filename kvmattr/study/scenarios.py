"""The questions of the study. Each makes, for a size, the same work for every backend.

All randomness comes from one seed a (scenario, size), and all arrays are made before any clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kvmattr.measure.machine import slots_have_metadata_of_each_page
from kvmattr.operation import Operation
from kvmattr.study.growth import Asked, Growth
from kvmattr.study.work import Batch

GIB = 1 << 18  # pages
TIB = 1 << 28
#: The guest of every scenario whose size is not the guest's.
GUEST = 64 * GIB
PAGES_2M = 512
PRIVATE = 1
OTHER_BIT = 2
#: Operations of a round that take tens of nanoseconds each: a call's fixed cost must vanish among them.
MOST_OPERATIONS = 16384
#: So few that a round at 10,000 earlier conversions stays below the limit of memslots.
_CONVERTED_AT_ONCE = 1024


#: What a round asks of a backend (backends/base.py), in words.
ACTIONS = {"update": "updates", "lookup": "lookup of pages", "has": "query of a range",
           "export": "export of runs", "mixed": "list of mixed blocks", "snapshot_restore": "snapshot",
           "migrate": "snapshot to compare with", "nbytes": "account of its memory"}


@dataclass(frozen=True)
class Workload:
    """One unit of work: a guest, the updates that lead to the state, and what every round then asks.

    ``argument(index, operations)`` makes the argument of ``action`` for a round of that many operations: a
    batch, an array of gfns, or None for an action that takes none.
    """

    npages: int
    setup: Batch
    action: str
    argument: Callable[[int, int], Any]
    #: At most so many operations a round; a slow backend does the first of them, in an even number.
    operations: int
    #: The round is one indivisible piece of work: every backend does all of it.
    whole: bool = False
    #: Rounds of at least so many operations have a multiple of them: whole batches, there and back.
    step: int = 2


@dataclass(frozen=True)
class Scenario:
    """A question, the sizes that it is asked at and the complexity that each road is expected to show."""

    name: str
    question: str
    #: How the cost of each backend is expected to grow with the size.
    growths: tuple[Growth, ...]
    #: What the size counts.
    size_name: str
    #: What one sample is divided by.
    unit: str
    sizes: tuple[int, ...]
    quick_sizes: tuple[int, ...]
    make: Callable[[int, Generator], Workload]
    #: Backends that take part in those scenarios alone that name them.
    own_backends: tuple[str, ...] = ()

    @property
    def asked(self) -> Asked:
        """What a report keeps of it."""
        return Asked(self.question, self.size_name, tuple(self.growths))


def _distinct(random: Generator, below: int, count: int) -> NDArray[np.uint64]:
    """Distinct numbers in random order."""
    return random.choice(below, size=count, replace=False, shuffle=True).astype(np.uint64)


def _turn(values: NDArray[np.uint64], index: int, count: int) -> NDArray[np.uint64]:
    """The values of a round, ``count`` of them a round; after the last comes the first again."""
    return np.take(values, np.arange(index * count, (index + 1) * count), mode="wrap")


def _over_and_over(*batches: Batch) -> Callable[[int, int], Batch]:
    """Rounds of the same updates again and again."""
    once = Batch.joined(*batches)
    return lambda index, operations: Batch.joined(*[once] * -(-operations // len(once))).part(0, operations)


def _there_and_back(places: NDArray[np.uint64], length: int,
                    at_once: int = _CONVERTED_AT_ONCE) -> Callable[[int, int], Batch]:
    """Rounds that convert fresh places, ``at_once`` of them, and then convert those back, and so on."""
    def argument(index: int, operations: int) -> Batch:
        count = max(operations // 2, 1)
        chosen = _turn(places, index, count)
        whole = count // at_once * at_once
        there_and_back = np.stack([chosen[:whole].reshape(-1, at_once)] * 2, axis=1).ravel()
        rest = chosen[whole:]
        batch = Batch.of(np.concatenate([there_and_back, rest, rest]), length, PRIVATE)
        batch.attributes[:2 * whole] = np.tile(np.repeat(np.array([PRIVATE, 0], np.uint8), at_once),
                                               whole // at_once)
        batch.attributes[2 * whole + len(rest):] = 0
        return batch
    return argument


def _after(earlier: int, random: Generator, *, npages: int = GUEST, length: int = 1,
           operations: int = MOST_OPERATIONS, at_once: int = _CONVERTED_AT_ONCE) -> Workload:
    """Conversions of ranges of one length after so many earlier ones."""
    spare = min(npages // length - earlier, 4 * operations)
    places = _distinct(random, npages // length, earlier + spare) * np.uint64(length)
    return Workload(npages, Batch.of(places[:earlier], length, PRIVATE), "update",
                    _there_and_back(places[earlier:], length, at_once), operations, step=2 * at_once)


def _whole(npages: int, random: Generator) -> Workload:
    return Workload(npages, Batch.empty(), "update", _over_and_over(
        Batch.of([0], npages, PRIVATE), Batch.of([0], npages, 0)), MOST_OPERATIONS)


def _alternating(npages: int, random: Generator) -> Workload:
    places = np.arange(1, npages, 2, dtype=np.uint64)
    return Workload(npages, Batch.empty(), "update", _there_and_back(places, 1, len(places)),
                    2 * len(places), whole=True)


def _private_runs(runs: int) -> Batch:
    """Alternate pages from gfn 1 on: private pages lie apart from each other, the last run ends with the last."""
    return Batch.of(np.arange(runs // 2, dtype=np.uint64) * np.uint64(2) + np.uint64(1), 1, PRIVATE)


def _bit_there_and_back(runs: int) -> tuple[Batch, Batch]:
    """Another bit, set in so many runs and cleared."""
    stop = max(runs, 1)
    return Batch.of([0], stop, OTHER_BIT, Operation.OR), Batch.of([0], stop, 0xFF ^ OTHER_BIT, Operation.AND)


def _rmw(runs: int, random: Generator) -> Workload:
    return Workload(GUEST, _private_runs(runs), "update", _over_and_over(*_bit_there_and_back(runs)), MOST_OPERATIONS)


def _lookup(earlier: int, random: Generator) -> Workload:
    gfns = random.integers(0, GUEST, 1 << 16, dtype=np.uint64)
    return Workload(GUEST, Batch.of(_distinct(random, GUEST, earlier), 1, PRIVATE), "lookup", partial(_turn, gfns),
                    MOST_OPERATIONS)


def _has(length: int, random: Generator) -> Workload:
    # The lower half is private: everywhere the answer is yes, the dear one, because nothing ends it early.
    guest = 4 * GIB
    blocks = random.integers(0, guest // 2 // length, 1024, dtype=np.uint64) * np.uint64(length)
    return Workload(guest, Batch.of([0], guest // 2, PRIVATE), "has", lambda index, operations: Batch.of(
        _turn(blocks, index, operations), length, PRIVATE), MOST_OPERATIONS)


def _boot(npages: int, random: Generator) -> Workload:
    # The recordings of QEMU boots show it: the firmware makes the shadow areas below 1 MiB writable and
    # read-only again, 16 KiB at a time and 64 KiB for the BIOS, inside the slot of the guest's memory.
    starts = np.append(np.arange(0xC0, 0xF0, 4), 0xF0).astype(np.uint64)
    stops = np.append(starts[1:], np.uint64(0x100))

    def shadow(attributes: int) -> Batch:
        return Batch(starts, stops, np.full(len(starts), attributes, np.uint8),
                     np.zeros(len(starts), np.uint8))

    return Workload(npages, Batch.empty(), "update", _over_and_over(shadow(PRIVATE), shadow(0)), 26 * 80, whole=True)


def _notify(runs: int, random: Generator) -> Workload:
    there_and_back = _bit_there_and_back(runs)
    return Workload(GUEST, _private_runs(runs), "migrate", lambda index, operations: there_and_back[index % 2], 1,
                    whole=True)


def _slot(npages: int, random: Generator) -> Workload:
    places = _distinct(random, npages, 1000)
    return Workload(npages, Batch.of(places, 1, PRIVATE), "mixed", lambda index, operations: None, 1,
                    whole=True)


def _after_conversions(action: str, updates: int) -> Callable[[int, Generator], Workload]:
    """One ``action`` a round, in a guest with earlier conversions and with so many new ones a round."""
    def make(earlier: int, random: Generator) -> Workload:
        work = _after(earlier, random, operations=max(updates, 1))

        def argument(index: int, operations: int) -> Batch | None:
            return work.argument(index, 2 * updates).part(0, updates) if updates else None
        return Workload(GUEST, work.setup, action, argument, 1, whole=True)
    return make


def _slots(slots: int, random: Generator) -> Workload:
    """A guest whose converted pages lie 2 MiB apart: however many slots there are, each is as small."""
    npages = (slots + 1) * 2 * PAGES_2M
    blocks = np.arange(slots, dtype=np.uint64) * np.uint64(2 * PAGES_2M)
    # What is converted in a round lies in the middle between two of them, or behind the last.
    places = random.permutation(blocks) + np.uint64(PAGES_2M // 2 + PAGES_2M)
    return Workload(npages, Batch.of(blocks + np.uint64(PAGES_2M // 2), 1, PRIVATE), "update",
                    _there_and_back(places, 1, min(slots, _CONVERTED_AT_ONCE)), MOST_OPERATIONS)


_CONVERSIONS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
_QUICK = (1, 100, 1_000, 10_000, 100_000)
_GUESTS = (GIB, 16 * GIB, 256 * GIB, 4 * TIB, 16 * TIB)

_REAL_SLOTS = ("kvm-memslots", "kvm-memslots-vcpu")
_DENSE = "a dense array costs its pages"
_FIRST_PAGE = ("the first page of a 2 MiB block costs more than later ones, and a bigger guest has more of them: see "
               "slots")
_BLOCKS = ("where a gibibyte turns uniform again, KVM looks at its blocks of 2 MiB until one differs: at all 512 while "
           "few pages are private")
_FIRST = "KVM's metadata follow the size of the slot that is split, so the first splits are dear: see slots"


def _steady(*backends: str, because: str = "") -> Growth:
    return Growth("not growing", backends, because)


def _real_slots(law: str, because: str, since: int = 0) -> Growth:
    """What is expected of real memslots: where KVM keeps metadata of each page they make the cost, else it is flat."""
    if slots_have_metadata_of_each_page():
        return Growth(law, _REAL_SLOTS, because, since)
    return _steady(*_REAL_SLOTS, because="this KVM keeps no metadata of each page of a slot")


def _proportional(*backends: str) -> Growth:
    return Growth("in proportion", backends)


ALL: dict[str, Scenario] = {scenario.name: scenario for scenario in (
    Scenario("conversion", "What does converting one random 4 KiB page cost after k earlier conversions (batched: up "
             "to 1,024 before they are taken back)?",
             (_steady("store", "memslots", "numpy"), Growth("growing", ("xarray", )),
              Growth("falling", ("kvm-attributes", ), _BLOCKS),
              _real_slots("falling", _FIRST)),
             "earlier conversions", "ns/conversion", _CONVERSIONS, _QUICK, _after,
             ("kvm-memslots-vcpu", )),
    Scenario("conversion-single", "And one at a time, each page taken back before the next is converted?",
             (_steady("store", "numpy"), Growth("growing", ("xarray", )),
              Growth("growing", ("memslots", ), "the depth of its trees; before, metadata of a slot of the whole "
                     "guest: see slots", since=100),
              Growth("falling", ("kvm-attributes", ), _BLOCKS), _real_slots("falling", _FIRST)),
             "earlier conversions", "ns/conversion", _CONVERSIONS, _QUICK, partial(_after, at_once=1),
             ("kvm-memslots-vcpu", )),
    # Nothing is expected of numpy in slots: its guest grows as well, and which cache holds the array is the machine's.
    Scenario("slots", "What does a conversion cost after k earlier ones whose slots are all of one size?",
             (_steady("store", "xarray", "kvm-attributes", *_REAL_SLOTS),
              Growth("growing", ("memslots", ), "the depth of its trees")),
             "earlier conversions", "ns/conversion", (1, 10, 100, 1_000, 10_000), (10, 1_000), _slots),
    Scenario("guest", "Does a conversion cost more in a bigger guest (after 1,000 earlier ones)?",
             (Growth("growing", ("store", ), _FIRST_PAGE), _steady("memslots", "xarray", "kvm-attributes"),
              _real_slots("growing", "metadata follow the size of the slot; below 16 GiB they are few", 16 * GIB)),
             "guest size", "ns/conversion", _GUESTS, (GIB, 16 * GIB),
             lambda npages, random: _after(1000, random, npages=npages)),
    Scenario("whole", "What does setting a whole guest private at once cost, and back?",
             (_steady("store"), _proportional("xarray", "numpy", "kvm-attributes"),
              _real_slots("growing", "metadata of the whole guest")),
             "guest size", "ns/conversion", _GUESTS, (GIB, 16 * GIB), _whole, ("kvm-memslots-vcpu", )),
    Scenario("conversion-2m", "What does converting a random 2 MiB block cost after k earlier ones?",
             (_steady("store", "memslots", "xarray", "numpy", "kvm-attributes"),
              _real_slots("falling", _FIRST)),
             "earlier conversions", "ns/conversion", (1, 10, 100, 1_000, 10_000), (),
             partial(_after, length=PAGES_2M)),
    Scenario("alternating", "What does a conversion cost on the way to full fragmentation and back?",
             (_steady("store", "memslots", "xarray", "numpy", "kvm-attributes"), ),
             "guest size", "ns/conversion", (2_048, 16_384, 262_144, 1_048_576), (),
             _alternating),
    Scenario("rmw", "What does changing one bit over a range of r runs cost?",
             (_steady("store"), _proportional("store-get-write", "numpy", "xarray")),
             "runs", "ns/change", (1, 10, 100, 1_000, 10_000, 100_000), (1_000, ), _rmw,
             ("store-get-write", )),
    Scenario("lookup", "What does the lookup of one page on a fault cost after k conversions?",
             (_steady("store", "numpy"), Growth("growing", ("memslots", ), "the depth of its tree")),
             "earlier conversions", "ns/lookup", _CONVERSIONS, (10_000, ), _lookup),
    Scenario("has", "Do all pages of an aligned block have these attributes (2 MiB, 1 GiB)?",
             (_steady("store"), _proportional("numpy", "xarray")),
             "block size", "ns/query", (PAGES_2M, GIB), (PAGES_2M, ), _has),
    Scenario("export", "What does the export of all runs cost after k conversions?",
             (Growth("growing", ("store", "memslots"), "it writes the runs"), _steady("numpy", because=_DENSE)),
             "earlier conversions", "ns/export", _CONVERSIONS, (), _after_conversions("export", 0)),
    Scenario("snapshot", "What do a snapshot, 100 conversions and the way back cost after k conversions?",
             (_steady("store"), _steady("numpy", because=_DENSE)),
             "earlier conversions", "ns/cycle", _CONVERSIONS, (),
             _after_conversions("snapshot_restore", 100)),
    Scenario("migrate", "What does a pass of live migration cost: snapshot, 1,000 conversions, what changed?",
             (_steady("store"), _steady("numpy", because=_DENSE)),
             "earlier conversions", "ns/pass", _CONVERSIONS, (), _after_conversions("migrate", 1000)),
    Scenario("slot", "What does it cost a new slot to learn which of its 2 MiB and 1 GiB blocks are mixed?",
             (Growth("growing", ("store", ), "it writes an answer for every block"), ),
             "guest size", "ns/slot", _GUESTS, (), _slot),
    Scenario("notify", "What does it cost to change r runs and to tell which pages changed?",
             (Growth("growing", ("store", ), "it tells of every run"), ),
             "runs", "ns/change", (1, 10, 100, 1_000, 10_000, 100_000), (), _notify),
    Scenario("boot", "What does a firmware's toggle of a BIOS shadow area cost in a guest of this size?",
             (_steady("store"), _real_slots("growing", "metadata of the slot beside it")),
             "guest size", "ns/conversion", _GUESTS, (), _boot),
    Scenario("memory", "How many bytes hold the state after k conversions?",
             (Growth("growing", ("store", "memslots", "xarray")), _steady("numpy", because=_DENSE)),
             "earlier conversions", "bytes", _CONVERSIONS, (10_000, ), _after_conversions("nbytes", 0)),
)}
