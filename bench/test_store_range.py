"""Does the cost of an update follow the range? Lengths that straddle a block (511, 512, 513), steps of ten.

Read down a peer: numpy and bytearray follow the length, a list of runs and the store do not. At 511, 512
and 513 pages the store shows its block of 512: an aligned 512 is one entry, the others also re-encode what
is left of a block at an end. A round writes the range and takes it back, so each of its two updates changes
every page.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.peers import PEERS, make

NPAGES = 1 << 24
LENGTHS = [1, 511, 512, 513, 5120, 51_200, 512_000, 5_120_000]
GIGABYTE = 1 << 18


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("peer", PEERS)
def test_write_a_range_of_a_uniform_guest(benchmark: Any, peer: str, length: int) -> None:
    guest = make(peer, NPAGES)
    start, stop = GIGABYTE, GIGABYTE + length
    benchmark.group = f"write {length} pages at a block's begin and take them back, uniform guest"

    def write_and_back() -> None:
        guest.write(start, stop, 1)
        guest.write(start, stop, 0)

    benchmark(write_and_back)
    guest.write(start, stop, 1)
    assert [guest.get(gfn) for gfn in (start - 1, start, stop - 1, stop)] == [0, 1, 1, 0]
    assert sum(guest.pages()) == length


@pytest.mark.parametrize("offset", [0, 1, 511])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("peer", ["kvmattr", "numpy"])
def test_or_over_a_fragmented_range(benchmark: Any, peer: str, length: int, offset: int) -> None:
    """Every other page has bit 0 set; bit 1 is ORed over a range and ANDed away."""
    guest = make(peer, NPAGES)
    if peer == "kvmattr":
        guest.map.put_bitmap(0, b"\xaa" * (NPAGES // 8), 1)
    else:
        guest.array[1::2] = 1
    start, stop = GIGABYTE + offset, GIGABYTE + offset + length
    benchmark.group = f"or_ and and_ over {length} fragmented pages, {offset} after a block's begin"

    def or_and_back() -> None:
        guest.map.or_(start, stop, 2)
        guest.map.and_(start, stop, 0xFD)

    def in_place() -> None:
        window = guest.array[start:stop]
        window |= 2
        window &= 0xFD

    benchmark(or_and_back if peer == "kvmattr" else in_place)
    pages = guest.pages()
    assert pages == b"\0\1" * (NPAGES // 2)
