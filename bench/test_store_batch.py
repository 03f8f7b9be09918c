"""What do batches cost a page, by what the guest holds? Every encoding, and a sparse space.

Read down the contents: uniform, bitmap (two values), palette (three or four), runs and bytes (more). The
sets of pages are random over the whole guest. ``sparse`` is a space of 2^52 pages: there is no array to
compare with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvmattr import AttributeMap

NPAGES = 1 << 24
BATCH = 100_000


def content(name: str, rng: np.random.Generator) -> AttributeMap:
    m = AttributeMap(1 << 52 if name == "sparse" else NPAGES)
    if name == "bitmap":
        m.put_bitmap(0, b"\xaa" * (NPAGES // 8), 1)
    elif name == "palette":
        m[:] = rng.integers(0, 4, NPAGES, np.uint8)
    elif name == "runs":
        m.put(rng.integers(0, NPAGES, BATCH), rng.integers(1, 9, BATCH, np.uint8))
    elif name == "bytes":
        m[:] = rng.integers(0, 8, NPAGES, np.uint8)
    elif name == "sparse":
        m.put(rng.integers(0, 1 << 52, BATCH), 1)
    return m


CONTENTS = ["uniform", "bitmap", "palette", "runs", "bytes", "sparse"]


@pytest.mark.parametrize("name", [*CONTENTS, "numpy"])
def test_take(benchmark: Any, name: str) -> None:
    rng = np.random.default_rng(4)
    gfns = rng.integers(0, NPAGES, BATCH)
    benchmark.group = f"take {BATCH} random pages, warm"
    if name == "numpy":
        a = rng.integers(0, 8, NPAGES, np.uint8)
        found = benchmark(lambda: a.take(gfns, mode="wrap"))
        assert found.tolist() == [a[gfn] for gfn in gfns.tolist()]
        return
    m = content(name, rng)
    found = benchmark(lambda: m.take(gfns))
    assert found.tolist() == [m[gfn] for gfn in gfns.tolist()]


@pytest.mark.parametrize("name", [*CONTENTS, "numpy"])
def test_put(benchmark: Any, name: str) -> None:
    """Bit 0 of each page is flipped and flipped back: every put changes something."""
    rng = np.random.default_rng(5)
    gfns = np.unique(rng.integers(0, NPAGES, BATCH))
    rng.shuffle(gfns)
    benchmark.group = f"put {2 * len(gfns)} random pages, warm"
    m: Any = np.zeros(NPAGES, np.uint8) if name == "numpy" else content(name, rng)
    old = m[gfns]
    new = old ^ 1

    def flip_and_back() -> None:
        m[gfns] = new
        m[gfns] = old

    benchmark(flip_and_back)
    assert (m[gfns] == old).all()
    m[gfns] = new
    assert (m[gfns] == new).all()


@pytest.mark.parametrize("name", [*CONTENTS[:-1], "numpy"])
@pytest.mark.parametrize("length", [511, 512, 513, 1 << 18])
def test_to_numpy(benchmark: Any, name: str, length: int) -> None:
    rng = np.random.default_rng(6)
    start = 12_345 * 512 + 7
    benchmark.group = f"materialise {length} pages, unaligned"
    m: Any = rng.integers(0, 8, NPAGES, np.uint8) if name == "numpy" else content(name, rng)
    out = np.empty(length, np.uint8)
    if name == "numpy":
        benchmark(lambda: np.copyto(out, m[start : start + length]))
    else:
        benchmark(lambda: m.to_numpy(start, start + length, out))
    assert (out == m[np.arange(start, start + length)]).all()
