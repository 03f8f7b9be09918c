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


@pytest.mark.parametrize("runs", [1, 7, 8, 9, 64, 65, 511, 512, 513, 600, 2000, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("step", [3, 700, 40_000])
def test_many_pages_of_maps_with_so_many_runs(runs: int, step: int) -> None:
    """Large batches of look-ups are read off the runs where these are few: around each number where that changes."""
    random = np.random.default_rng(runs)
    guest, shift = step * runs, (1 << 52) - step * runs if runs % 2 else 0
    starts = np.arange(runs, dtype=np.uint64) * np.uint64(step) + np.uint64(shift)
    values = (np.arange(runs) % 2 + random.integers(0, 2, runs) * 2).astype(np.uint8)      # neighbours differ
    m = AttributeMap(1 << 52, int(values[-1]))
    m.update_many(starts, starts + np.uint64(step), values)
    assert m.run_count == runs + (shift == 0 and values[-1] != m.default) + (shift > 0 and values[0] != m.default)
    for count in (1000, 1 << 14, 1 << 17):
        offsets = random.integers(0, guest, count)
        offsets[:4 * runs:4] = np.arange(0, guest, step)[:len(offsets[:4 * runs:4])]      # first pages of runs
        offsets[-1] = guest - 1
        assert np.array_equal(m.take(offsets.astype(np.uint64) + np.uint64(shift)), values[offsets // step])
