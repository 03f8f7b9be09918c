"""Traces that are made, not recorded: the same seed gives the same operations on every machine and release.

`boot` follows what QEMU and SeaBIOS do in the recordings: the firmware opens and closes the windows between
768 KiB and 1 MiB, and each time QEMU deletes the memslots that changed and creates their pieces. The others
are the conversions of a confidential guest, in the order that they come in practice or spread at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.trace.operations import BLOCK_ROWS, NO_TIME, ROW, SET, UNKNOWN, Block, Machine, SetSlot, rows_of
from kvmattr.trace.trace import Trace

PRIVATE = uapi.KVM_MEM_ATTR_PRIVATE
_MACHINE = Machine("rfc", {})

MIB = 1 << 20
GIB = 1 << 30
#: The windows that a PC's chipset switches between ROM and RAM: twelve of 16 KiB, then the BIOS' own 64 KiB.
_WINDOWS = [*range(0xC0000, 0xF0000, 0x4000), 0xF0000, 0x100000]
_LOW_END = 0xA0000
_RAM_ADDRESS = 0x7F00_0000_0000
_ROM_ADDRESS = 0x7F80_0000_0000


def _random(seed: int, count: int) -> NDArray[np.uint64]:
    """Random 64-bit numbers, straight from the bit generator: only its stream is promised not to change."""
    return np.asarray(np.random.PCG64(seed).random_raw(count), dtype=np.uint64)


def _words(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


def _attribute_rows(gfns: NDArray[np.uint64], npages: NDArray[np.uint64] | int,
                    attributes: NDArray[np.uint64] | int) -> Block:
    rows = np.zeros(len(gfns), dtype=ROW)
    rows["kind"] = SET
    rows["answer"] = UNKNOWN
    rows["guest_memfd"] = -1
    rows["time"] = NO_TIME
    rows["words"][:, 0] = gfns << np.uint64(12)
    rows["words"][:, 1] = np.asarray(npages, dtype=np.uint64) << np.uint64(12)
    rows["words"][:, 2] = attributes
    return rows


def _made(name: str, rows: Block) -> Trace:
    rows["line"] = np.arange(2, len(rows) + 2)  # the vm line is the first
    starts = range(0, len(rows), BLOCK_ROWS)
    return Trace.from_blocks(name, (rows[start:start + BLOCK_ROWS] for start in starts), _MACHINE)


def random_conversions(memory: int = 4 * GIB, operations: int = 10_000, seed: int = 0,
                       npages: int = 1) -> Trace:
    """Conversions of random aligned blocks of `npages` pages, private and shared alike, all over the memory.

    >>> with random_conversions(1 << 20, 3, seed=1) as trace:
    ...     [(record.address, record.attributes) for record in trace]
    [(520192, 1), (208896, 0), (417792, 1)]
    """
    _check(memory, operations)
    blocks = memory // 4096 // npages
    if npages < 1 or blocks < 1:
        raise ValueError(f"npages {npages}: must be at least 1 and fit in {memory} bytes")
    numbers = _random(seed, operations)
    gfns = (numbers >> np.uint64(1)) % np.uint64(blocks) * np.uint64(npages)
    return _made("random-conversions", _attribute_rows(gfns, npages, numbers & np.uint64(PRIVATE)))


def every_other_page(memory: int = 64 * MIB, operations: int = 8192, seed: int = 0) -> Trace:
    """Every other page made private in random order: each conversion cuts a run in three, or nearly."""
    _check(memory, operations)
    pages = memory // 4096 // 2
    if operations > pages:
        raise ValueError(f"operations {operations}: must be at most {pages}, half of the pages of the memory")
    gfns = np.argsort(_random(seed, pages), kind="stable")[:operations].astype(np.uint64) * np.uint64(2)
    return _made("every-other-page", _attribute_rows(gfns, 1, PRIVATE))


def confidential_boot(memory: int = 4 * GIB, operations: int = 10_000, seed: int = 0) -> Trace:
    """A confidential guest from start to its steady state, in `operations` conversions.

    All memory becomes private at once; the bounce buffers (64 MiB, or a sixteenth of a small guest) become
    shared in one piece below 3 GiB; then drivers convert pages at random: nine of ten conversions a single
    page, the rest 2 MiB, three to shared for each that goes back.
    """
    _check(memory, operations)
    pages = memory // 4096
    if memory < 32 * MIB:
        raise ValueError(f"memory {memory}: must be at least {32 * MIB} bytes for a confidential guest")
    bounce = min(64 * MIB // 4096, pages // 16)
    head = _attribute_rows(_words(0, min(pages, 3 * GIB // 4096) - bounce), _words(pages, bounce),
                           _words(PRIVATE, 0))
    numbers = _random(seed, max(operations - 2, 0))
    large = (numbers >> np.uint64(2)) % np.uint64(10) == 0
    npages = np.where(large, np.uint64(512), np.uint64(1)).astype(np.uint64)
    gfns = (numbers >> np.uint64(8)) % (np.uint64(pages) // npages) * npages
    back = (numbers % np.uint64(4) == 0).astype(np.uint64)
    rows = _attribute_rows(gfns, npages, back * np.uint64(PRIVATE))
    return _made("confidential-boot", np.concatenate([head[:operations], rows]))


def boot(memory: int = 4 * GIB, operations: int = 10_000, seed: int = 0) -> Trace:
    """A firmware that switches its shadow windows, as in the recordings, for `operations` slot calls.

    Each step turns one to four neighbouring windows between ROM and RAM, and the memslots follow as QEMU lets
    them: what is no longer in the map is deleted, what is new is created, each with the lowest free slot.
    """
    _check(memory, operations)
    if memory < 2 * MIB:
        raise ValueError(f"memory {memory}: must be at least {2 * MIB} bytes for a PC")
    calls = _boot_calls(memory, seed)
    return _made("boot", rows_of(record for record, _index in zip(calls, range(operations), strict=False)))


_Region = tuple[int, int, int, int]  # guest-physical address, size, flags, userspace address


def _boot_calls(memory: int, seed: int) -> Iterator[SetSlot]:
    slots: dict[_Region, int] = {}
    read_only = [True] * (len(_WINDOWS) - 1)
    steps = np.random.PCG64(seed)
    while True:
        wanted = _regions(memory, read_only)
        for region in sorted(region for region in slots if region not in wanted):
            address, _size, _flags, userspace = region
            yield SetSlot(slots.pop(region), 0, address, 0, userspace)
        for region in wanted:
            if region not in slots:
                slot = next(index for index in range(len(slots) + 1) if index not in slots.values())
                slots[region] = slot
                address, size, flags, userspace = region
                yield SetSlot(slot, flags, address, size, userspace)
        number = int(steps.random_raw())
        first = number % len(read_only)
        for window in range(first, min(first + 1 + (number >> 8) % 4, len(read_only))):
            read_only[window] = not read_only[window]


def _regions(memory: int, read_only: list[bool]) -> list[_Region]:
    """The memory map: neighbouring windows of one kind are one region, RAM joins the RAM above it."""
    below = min(memory, 2 * GIB)
    edges = [(_WINDOWS[index], _WINDOWS[index + 1], flag) for index, flag in enumerate(read_only)]
    regions: list[_Region] = [(0, _LOW_END, 0, _RAM_ADDRESS)]
    for start, stop, flag in [*edges, (0x100000, below, False)]:
        flags = uapi.KVM_MEM_READONLY if flag else 0
        base = _ROM_ADDRESS if flag else _RAM_ADDRESS
        last_address, last_size, last_flags, last_base = regions[-1]
        if last_flags == flags and last_address + last_size == start:
            regions[-1] = (last_address, last_size + stop - start, flags, last_base)
        else:
            regions.append((start, stop - start, flags, base + start))
    if memory > below:
        regions.append((4 * GIB, memory - below, 0, _RAM_ADDRESS + below))
    return regions


def _check(memory: int, operations: int) -> None:
    if memory < 4096 or memory % 4096:
        raise ValueError(f"memory {memory}: must be a positive multiple of 4096 bytes")
    if operations < 1:
        raise ValueError(f"operations {operations}: must be at least 1")


#: By the names that the command line takes. Each is called with memory (bytes), operations and seed.
GENERATORS: dict[str, Callable[[int, int, int], Trace]] = {
    "boot": boot,
    "confidential-boot": confidential_boot,
    "every-other-page": every_other_page,
    "random-conversions": random_conversions,
}
