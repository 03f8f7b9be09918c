"""What does a call cost at C level, in units of numpy's scalar ``a[i]`` on the same machine?

The guest has 64 GiB, every other page differs: the most fragmented there is. Each benchmark runs a loop of C
over a million operations; ``extra_info`` has nanoseconds an operation and, so that machines can be compared,
their ratio to numpy's scalar look-up, taken in the same round. The targets were set for a machine on which
that takes 34 ns: a random ``get`` 10 ns (0.29), a sequential page through a cursor 2 ns (0.06), a callback
20 ns a run (0.59), and a call through the table at most 2 ns (0.06) dearer than a plain one: compare
``table_call`` with ``plain_call``.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench.rounds import hot_scalar_ns
from kvmattr import AttributeMap
from tests.embedding import building

PAGES = 1 << 24
CALLS = 1 << 20
TARGETS = {
    "random_get": 10 / 34,
    "sequential": 2 / 34,
    "callback": 20 / 34,
    "table_call": None,
    "plain_call": None,
}


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    directory = tmp_path_factory.mktemp("embedding")
    site = building.install(directory)
    path = building.compile_module("embedding", Path(__file__).parent / "embedding.c", building.include_options(site),
                                   directory, building.compiler("gcc"))
    return building.load("embedding", path)


@pytest.fixture(scope="module")
def guest() -> AttributeMap:
    m = AttributeMap(PAGES)
    m[::] = np.arange(PAGES, dtype=np.uint8) & 1
    return m


@pytest.mark.parametrize("work", TARGETS)
def test_c_level(benchmark: Any, loops: ModuleType, guest: AttributeMap, work: str) -> None:
    gfns = np.random.default_rng(1).integers(0, PAGES, CALLS).astype(np.uint64)
    rounds: list[tuple[float, float]] = []

    def measure() -> None:
        rounds.append((getattr(loops, work)(guest, gfns), hot_scalar_ns()))

    benchmark.pedantic(measure, rounds=11, warmup_rounds=1)
    benchmark.extra_info["nanoseconds"] = round(median(ours for ours, _ in rounds), 2)
    benchmark.extra_info["of numpy's a[i]"] = round(median(ours / numpy for ours, numpy in rounds), 3)
    if TARGETS[work] is not None:
        benchmark.extra_info["target"] = round(TARGETS[work], 3)
