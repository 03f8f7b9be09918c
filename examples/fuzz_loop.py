"""A fuzz loop: bring a guest into a known state, run a case, restore, thousands of times a second.

``restore`` costs what the case changed, not what the guest holds: the snapshot and the map share everything
that did not change. The example fragments a guest of 64 GiB, then runs cases of 1, 10, 100 and 1000 changes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from kvmattr import AttributeMap, Operation
from kvmattr.uapi import KVM_MEM_ATTR_NO_WRITE, KVM_MEM_ATTR_PRIVATE

PAGES = 1 << 24


def fragmented_guest(conversions: int) -> AttributeMap:
    """A guest in which so many pages, all over it, are private."""
    guest = AttributeMap(PAGES)
    guest.put(np.random.default_rng(1).integers(0, PAGES, conversions), KVM_MEM_ATTR_PRIVATE)
    return guest


def run_case(guest: AttributeMap, case: int, changes: int) -> int:
    """One case: convert and protect pages as a guest might; the number of changes that had an effect."""
    chance = np.random.default_rng(case)
    starts = chance.integers(0, PAGES - 64, changes)
    stops = starts + chance.integers(1, 64, changes)
    attributes = chance.choice([KVM_MEM_ATTR_PRIVATE, KVM_MEM_ATTR_NO_WRITE], changes)
    return guest.update_many(starts, stops, attributes, Operation.OR)


def fuzz(guest: AttributeMap, cases: int, changes: int) -> tuple[int, float, float]:
    """Run cases from one state; what they changed in all, seconds of the cases and of the restores."""
    start = guest.snapshot()
    changed = 0
    running = restoring = 0.0
    for case in range(cases):
        before = time.perf_counter()
        changed += run_case(guest, case, changes)
        middle = time.perf_counter()
        guest.restore(start)
        restoring += time.perf_counter() - middle
        running += middle - before
    if guest != start:
        raise SystemExit("the guest is not what it was before the cases")
    return changed, running, restoring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--conversions", type=int, default=100_000, help="private pages of the guest")
    arguments = parser.parse_args()
    guest = fragmented_guest(arguments.conversions)
    print(f"{guest!r}: {guest.run_count} runs")
    for changes in (1, 10, 100, 1000):
        changed, running, restoring = fuzz(guest, arguments.cases, changes)
        print(
            f"{changes:5} changes a case: {changed} had an effect, "
            f"{arguments.cases / (running + restoring):8.0f} cases a second, "
            f"{arguments.cases / restoring:8.0f} restores a second"
        )


if __name__ == "__main__":
    main()
