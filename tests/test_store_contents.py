"""Contents of 1 to 256 values, families and maps of 2^52 pages beside dense arrays; `dev.py fuzz contents` goes on."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmattr import AttributeMap
from tests.fuzz.contents import contents


@pytest.mark.parametrize("seed", range(12))
def test_a_world_of_updates(seed: int) -> None:
    assert contents(random.Random(f"contents {seed}"), longest=30) > 0


def test_an_array_of_few_runs_goes_into_a_run_list() -> None:
    m = AttributeMap(1 << 20)
    a = np.zeros(1 << 20, np.uint8)
    for place, (first, stop, value) in enumerate([(1000, 300_000, 1), (300_000, 600_000, 2), (600_000, 1 << 20, 3)]):
        m[first:stop] = value
        a[first:stop] = value
        given = np.repeat(np.array([9, 8, value, 7], np.uint8), 100 + place)
        middle = (first + stop) // 2
        m[middle:middle + len(given)] = given
        a[middle:middle + len(given)] = given
        assert np.array_equal(m[0:1 << 20], a)
    m.validate()
    assert (m.stats()["nodes"], m.stats()["run_lists"]) == (0, 1)


def test_a_batch_copies_what_a_snapshot_still_shares() -> None:
    """All leaves of the first GiB are the map's own, and found to be; of the second GiB one is."""
    gigabyte, rng = 1 << 18, np.random.default_rng(1)
    a = (np.arange(2 * gigabyte) & 1).astype(np.uint8)
    m = AttributeMap(2 * gigabyte)
    m[0:2 * gigabyte] = a
    kept = m.snapshot()
    m.put(np.append(np.arange(2, gigabyte, 512), gigabyte + 2), 1)
    for _ in range(4):
        m.put(rng.integers(1, gigabyte, 4096), rng.integers(0, 2, 4096))
    m.put(rng.integers(gigabyte + 1, 2 * gigabyte, 4096), rng.integers(0, 2, 4096))
    assert np.array_equal(kept[0:2 * gigabyte], a)
    kept.validate()
