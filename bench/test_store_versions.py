"""What does it cost to keep an old state, to go back to it, and to tell what changed since?

Read down the changes: a snapshot costs nothing, restore and diff follow what changed, and a write after a
snapshot copies its way down once. numpy copies and compares everything each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvmattr import AttributeMap

NPAGES = 1 << 24
CHANGES = [1, 10, 100, 1000, 10_000, 100_000]


def fragmented() -> tuple[AttributeMap, Any]:
    m = AttributeMap(NPAGES)
    m.put_bitmap(0, b"\xaa" * (NPAGES // 8), 1)
    a = np.zeros(NPAGES, np.uint8)
    a[1::2] = 1
    return m, a


def pages(changes: int) -> Any:
    return np.random.default_rng(changes).choice(NPAGES, changes, replace=False)


@pytest.mark.parametrize("who", ["kvmattr", "numpy"])
def test_snapshot(benchmark: Any, who: str) -> None:
    m, a = fragmented()
    benchmark.group = "snapshot of a fragmented 64 GiB"
    kept = benchmark(m.snapshot if who == "kvmattr" else a.copy)
    assert bytes(kept[:4]) == b"\0\1\0\1"


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("who", ["kvmattr", "numpy"])
def test_restore(benchmark: Any, who: str, changes: int) -> None:
    m, a = fragmented()
    before, saved, gfns = m.snapshot(), a.copy(), pages(changes)
    benchmark.group = f"restore a fragmented 64 GiB after {changes} changes"

    def change() -> None:
        m.put(gfns, 4)
        a[gfns] = 4

    benchmark.pedantic(
        (lambda: m.restore(before)) if who == "kvmattr" else (lambda: np.copyto(a, saved)),
        setup=change,
        rounds=9,
        iterations=1,
    )
    assert m == before if who == "kvmattr" else (a == saved).all()


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("who", ["kvmattr", "numpy"])
def test_diff(benchmark: Any, who: str, changes: int) -> None:
    m, a = fragmented()
    before, saved, gfns = m.snapshot(), a.copy(), pages(changes)
    m.put(gfns, 4)
    a[gfns] = 4
    benchmark.group = f"what differs after {changes} changes, fragmented 64 GiB"
    found = benchmark((lambda: m.diff(before)) if who == "kvmattr" else (lambda: np.flatnonzero(a != saved)))
    assert (
        int((found["stop"] - found["start"]).sum()) == changes if who == "kvmattr" else len(found) == changes
    )


@pytest.mark.parametrize("blocks", [1, 511, 512, 513, 5120])
def test_writes_after_a_snapshot(benchmark: Any, blocks: int) -> None:
    """One page in each of so many neighbouring blocks: 512 share a node, the 513th makes a second copy of
    one.
    """
    m, _ = fragmented()
    gfns = np.arange(blocks) * 512 + (1 << 18)
    kept: list[AttributeMap] = []
    benchmark.group = "the first write to each of some blocks after a snapshot"

    def snapshot() -> None:
        m.put(gfns, 0)
        kept[:] = [m.snapshot()]

    benchmark.pedantic(lambda: m.put(gfns, 1), setup=snapshot, rounds=9, iterations=1)
    assert m.count(1 << 18, (1 << 18) + blocks * 512, 1) == blocks * 257
    assert kept[0].count(1 << 18, (1 << 18) + blocks * 512, 1) == blocks * 256
