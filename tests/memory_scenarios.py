"""Run by test_store_memory.py in a process of its own, with failing_memory.c preloaded.

python -m tests.memory_scenarios NAME: every request for memory that the scenario's call makes fails once, in
turn, alone and together with all after it. Each time: MemoryError, and nothing has changed; then the
call is made again with memory and must do what the reference does.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np

from kvmattr import AttributeMap, _core
from tests.reference import SparseMap, assert_same

EXTENSION = _core.__file__.encode()
NEVER = 2**40
MOST_REQUESTS = 400
PAGES = 2**40


class Shim:
    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.arm = library.failing_arm
        self.arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
        self.arm.restype = None
        self.disarm = library.failing_disarm
        self.disarm.restype = ctypes.c_long


def scattered(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, PAGES, count, dtype=np.uint64)


def three_values(length: int) -> np.ndarray:
    return np.resize(np.array([1, 2, 4, 4, 7], dtype=np.uint8), length)


def fresh(kind: Any) -> Any:
    return kind(PAGES)


def small(kind: Any) -> Any:
    m = kind(PAGES)
    m[0:1500] = three_values(1500)
    return m


def large(kind: Any) -> Any:
    """Scattered pages, and blocks of several values on both sides of a gibibyte's edge."""
    m = kind(PAGES)
    m.put(scattered(800), 3)
    m[2**20 : 2**20 + 3000] = three_values(3000)
    m[2**27 - 700 : 2**27 + 700] = np.resize(np.array([0, 1], dtype=np.uint8), 1400)
    return m


def growing_pages() -> np.ndarray:
    """Pages that cost, written one after another, sixty leaves and a node a gibibyte."""
    gibibytes = np.arange(2, 600, dtype=np.uint64) << np.uint64(18)
    return (gibibytes[:, None] + np.arange(0, 60 * 4096, 4096, dtype=np.uint64)).ravel()


def nearly_full(kind: Any) -> Any:
    """The next update that needs more than a field of a leaf or a place in a list's record asks for memory."""
    m = large(kind)
    for gfn in growing_pages()[: pages_until_growth()].tolist():
        m[gfn] = 5          # one by one, as they were counted: a batch asks for more at once
    return m


@cache
def pages_until_growth() -> int:
    shim = Shim()
    m = large(AttributeMap)
    for count, gfn in enumerate(growing_pages().tolist()):
        shim.arm(EXTENSION, NEVER, 0)
        m[gfn] = 5
        if shim.disarm():
            return count
    raise AssertionError("600 nodes and as many slabs need no memory")


def put_all(m: Any) -> Any:
    gfns = scattered(3000, seed=2)
    return m.put(gfns, (gfns % 7).astype(np.uint8))


def update_all(m: Any) -> Any:
    starts = np.sort(scattered(1500, seed=3))[:-1]
    return m.update_many(starts, starts + np.uint64(777), (starts % 5).astype(np.uint8), 1)


def put_bits(m: Any) -> Any:
    return m.put_bitmap(3, np.random.default_rng(4).integers(0, 256, 4_000).astype(np.uint8), 9)


# name: (how the map begins, the call, whether it is a batch that may stop between two operations)
SCENARIOS: dict[str, tuple[Any, Any, bool]] = {
    "first write": (fresh, lambda m: m.write(5, 9, 1), False),
    "first page": (fresh, lambda m: m.__setitem__(2**39 + 5, 1), False),
    "page": (nearly_full, lambda m: m.__setitem__(2**20 + 3, 99), False),
    # A value that the block has already: the leaf, which the snapshot shares, and the nodes above it are copied.
    "page of a shared leaf": (nearly_full, lambda m: m.__setitem__(2**20 + 715, m[2**20 + 716]), False),
    "write": (nearly_full, lambda m: m.write(2**20 + 100, 2**27 + 3, 9), False),
    "or": (nearly_full, lambda m: m.or_(2**20 + 100, 2**27 + 3, 16), False),
    "assign": (fresh, lambda m: m.__setitem__(slice(700, 400_700), three_values(400_000)), False),
    "assign many blocks": (
        nearly_full,
        lambda m: m.__setitem__(slice(2**20 + 5, 2**20 + 200_005), three_values(200_000)),
        False,
    ),
    "put": (nearly_full, put_all, True),
    "update_many": (nearly_full, update_all, True),
    "put_bitmap": (nearly_full, put_bits, True),
    "restore": (small, lambda m: m.restore(large(type(m))), False),
    "fill": (large, lambda m: m.fill(3), False),
    "write beside a copy": (nearly_full, lambda m: (m.copy(), m.write(2**20 + 7, 2**20 + 9, 1))[1], False),
    "runs": (large, lambda m: m.runs(), False),
    "diff": (large, lambda m: m.diff(type(m)(PAGES)), False),
    "snapshot": (large, lambda m: m.snapshot(), False),
    "deepcopy": (large, lambda m: m == m.copy(), False),
    "to_bytes": (large, lambda m: hasattr(m, "to_bytes") and m.to_bytes() and None, False),
    "from_bytes": (
        large,
        lambda m: hasattr(m, "to_bytes") and type(m).from_bytes(m.to_bytes()) and None,
        False,
    ),
    "take": (large, lambda m: m.take(scattered(5000)).sum(), False),
    "validate": (large, lambda m: m.validate(), False),
}


def state(m: Any) -> tuple[bytes, int, int]:
    return m.runs().tobytes(), m.version, m.nbytes


def run(name: str) -> int:
    """The number of requests for memory that were refused in turn."""
    build, call, is_batch = SCENARIOS[name]
    shim = Shim()
    refused = 0
    for and_all_later in (0, 1):
        for number in range(1, MOST_REQUESTS):
            store, model = build(AttributeMap), build(SparseMap)
            sibling = store.snapshot()
            before, sibling_before = state(store), state(sibling)
            # The call's own arrays are made by numpy; only requests from the extension count.
            shim.arm(EXTENSION, number, and_all_later)
            error = None
            try:
                call(store)
            except MemoryError as caught:
                error = caught
            requests = shim.disarm()
            store.validate()
            assert state(sibling)[:2] == sibling_before[:2], f"{name}: a snapshot changed"
            if error is None:
                assert requests < number, f"{name}: request {number} was refused and nobody noticed"
                break
            refused += 1
            assert str(error), f"{name}: an error without a text"
            if is_batch:
                assert error.done >= 0
                replay(name, model, error.done)
            else:
                assert state(store) == before, f"{name}: something changed when request {number} was refused"
            assert_same(store, model)
            call(store)
            call(model)
            store.validate()
            assert_same(store, model)
        else:
            raise AssertionError(f"{name} makes {MOST_REQUESTS} requests and more")
    return refused


def replay(name: str, model: Any, done: int) -> None:
    """The first `done` operations of a batch, one by one, on the reference."""
    if name == "put":
        gfns = scattered(3000, seed=2)[:done]
        model.put(gfns, (gfns % 7).astype(np.uint8))
    elif name == "update_many":
        starts = np.sort(scattered(1500, seed=3))[:-1][:done]
        model.update_many(starts, starts + np.uint64(777), (starts % 5).astype(np.uint8), 1)
    else:
        bits = np.unpackbits(
            np.random.default_rng(4).integers(0, 256, 4_000).astype(np.uint8), bitorder="little"
        )
        pages = np.flatnonzero(bits)[:done] + 3
        model.put(pages.astype(np.uint64), 9)


if __name__ == "__main__":
    print(run(sys.argv[1]))
