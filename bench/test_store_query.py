"""What does a question about a range cost, by its length and by what the range holds?

Read down the lengths: a question about bits that do not vary is answered at the first entry, so the
fragmented column is flat too. ``count`` and ``runs`` have to look: they follow what is mixed, 64 bytes a
fragmented block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvmattr import AttributeMap

NPAGES = 1 << 24
LENGTHS = [511, 512, 513, 5120, 51_200, 512_000, 5_120_000]
START = (1 << 18) + 1


def guest(who: str, content: str) -> Any:
    if who == "numpy":
        a = np.zeros(NPAGES, np.uint8)
        a[1::2] = content == "fragmented"
        return a
    m = AttributeMap(NPAGES)
    if content == "fragmented":
        m.put_bitmap(0, b"\xaa" * (NPAGES // 8), 1)
    return m


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("content", ["uniform", "fragmented"])
@pytest.mark.parametrize("who", ["kvmattr", "numpy"])
def test_all(benchmark: Any, who: str, content: str, length: int) -> None:
    """Bit 1 is clear on every page: KVM's kvm_range_has_memory_attributes with a mask."""
    g = guest(who, content)
    benchmark.group = f"all over {length} pages with a mask, {content}"
    if who == "kvmattr":
        assert benchmark(lambda: g.all(START, START + length, 0, 2))
        assert g.or_(START + length - 1, START + length, 2)
        assert not g.all(START, START + length, 0, 2)
    else:
        assert benchmark(lambda: bool(((g[START : START + length] & 2) == 0).all()))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("who", ["kvmattr", "numpy"])
def test_count(benchmark: Any, who: str, length: int) -> None:
    g = guest(who, "fragmented")
    benchmark.group = f"count bit 0 over {length} fragmented pages"
    if who == "kvmattr":
        found = benchmark(lambda: g.count(START, START + length, 1, 1))
    else:
        found = benchmark(lambda: np.count_nonzero(g[START : START + length] & 1))
    assert found == (length + 1) // 2


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("who", ["kvmattr", "numpy"])
def test_runs(benchmark: Any, who: str, length: int) -> None:
    g = guest(who, "fragmented")
    benchmark.group = f"runs of {length} fragmented pages"
    if who == "kvmattr":
        assert len(benchmark(lambda: g.runs(START, START + length))) == length
    else:
        window = g[START : START + length]
        assert len(benchmark(lambda: np.flatnonzero(window[1:] != window[:-1]))) == length - 1
