"""Every public call of a map, several at a time beside a writer: none fails, and the map stays sound.

Without a GIL, and under ThreadSanitizer (`dev.py freethreaded --tsan`), this is where a field shows that one thread
reads without the mutex and another writes with it. With a GIL the calls meet the batches, which give it up.
"""

from __future__ import annotations

import copy
import ctypes
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation
from tests.test_store_calls import Embedder, Run
from tests.test_store_threads import together

PAGES = 1 << 21
ROUNDS = 20
GFNS = np.arange(3, PAGES, 997, dtype=np.uint64)
BITS = np.packbits(np.arange(1 << 16) % 3 == 0, bitorder="little")
VALUES = (np.arange(3000) % 5).astype(np.uint8)


def sealed(m: AttributeMap) -> None:
    """A handle for C, and what C looks up with it."""
    c = Embedder(m)
    run = Run()
    assert 0 <= c.call("get", c.map, 5) < 256
    assert c.call("run", c.map, 5, ctypes.byref(run)) == 0
    assert run.start <= 5 < run.stop


def assign(m: AttributeMap) -> None:
    m[7:3007] = VALUES
    m[5] = 1
    del m[5:9]


#: A public name of AttributeMap: the call. Those after the blank line change the map.
CALLS: dict[str, Callable[[AttributeMap, Path], object]] = {
    "get": lambda m, _: [m.get(gfn) for gfn in range(0, PAGES, PAGES // 50)],
    "take": lambda m, _: m.take(GFNS),
    "to_numpy": lambda m, _: m.to_numpy(0, PAGES),
    "bitmap": lambda m, _: m.bitmap(0, PAGES, 1),
    "uniform": lambda m, _: m.uniform(0, PAGES),
    "all": lambda m, _: m.all(0, PAGES, 1, 1),
    "any": lambda m, _: m.any(0, PAGES, 200),
    "find": lambda m, _: m.find(0, 200),
    "count": lambda m, _: m.count(0, PAGES, 1),
    "values": lambda m, _: m.values(),
    "run": lambda m, _: m.run(PAGES // 2),
    "runs": lambda m, _: m.runs(),
    "iter_runs": lambda m, _: sum(1 for _ in m.iter_runs(0, 1 << 15)),
    "run_count": lambda m, _: m.run_count,
    "level": lambda m, _: m.level(PAGES // 2),
    "copy": lambda m, _: m.copy().write(5, 700, 3),
    "snapshot": lambda m, _: m.snapshot().get(5),
    "diff": lambda m, _: m.diff(m.snapshot()),
    "to_bytes": lambda m, _: m.to_bytes(),
    "save": lambda m, path: m.save(path / "map"),
    "default": lambda m, _: m.default,
    "version": lambda m, _: m.version,
    "nbytes": lambda m, _: m.nbytes,
    "stats": lambda m, _: m.stats(),
    "validate": lambda m, _: m.validate(),
    "of C": lambda m, _: sealed(m),
    "of Python": lambda m, _: (len(m), repr(m), m == m.copy(), copy.copy(m), copy.deepcopy(m), pickle.dumps(m)),

    "write": lambda m, _: [m.write(start, start + 300, 7) for start in range(0, PAGES - 300, 50_000)],
    "or_": lambda m, _: m.or_(100, PAGES - 100, 8),
    "and_": lambda m, _: m.and_(100, PAGES - 100, 0xF7),
    "update": lambda m, _: m.update(50, 5000, 3, Operation.OR, 2),
    "update_many": lambda m, _: m.update_many(GFNS, np.minimum(GFNS + np.uint64(600), np.uint64(PAGES)), 5),
    "put": lambda m, _: m.put(GFNS, 6),
    "put_bitmap": lambda m, _: m.put_bitmap(512, BITS, 4),
    "fill": lambda m, _: m.fill(1),
    "clear": lambda m, _: m.clear(),
    "restore": lambda m, _: m.restore(m.snapshot()),
    "m[...] = ...": lambda m, _: assign(m),
}
#: Which make a map of something else, or draw and tabulate what `runs` gives.
ELSEWHERE = {"from_runs", "from_numpy", "from_bytes", "load", "plot", "to_frame"}


def test_no_public_name_is_in_no_list() -> None:
    assert {name for name in vars(AttributeMap) if not name.startswith("_")} - ELSEWHERE <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_beside_a_writer(name: str, tmp_path: Path) -> None:
    m = AttributeMap(PAGES)
    m[0:1 << 16] = np.resize(np.array([0, 1], dtype=np.uint8), 1 << 16)
    ended = [False]

    def write() -> None:
        for turn in range(10**9):
            m.put(GFNS[turn % 2::2], turn % 3)
            m.put_bitmap(0, BITS, turn % 200)
            m.update_many(GFNS[:500] * np.uint64(turn % 3), GFNS[:500] * np.uint64(turn % 3) + np.uint64(900), turn % 7)
            m.write(turn % 1000, PAGES - turn % 1000, turn % 2)
            if ended[0]:
                break

    def call() -> None:
        try:
            for _ in range(ROUNDS):
                CALLS[name](m, tmp_path)
        finally:
            ended[0] = True

    together(write, call, call)
    m.validate()
    assert len(m.runs()) == m.run_count
