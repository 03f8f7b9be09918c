"""The rows of the table about memory: ``nbytes`` against a target, and how much the process grew.

Each row is built in a fresh process: what it grew by (resident pages, before and after) is then the store's
own. All arguments are made, and every code path is run once on a small map, before the first look. The
process may grow by a quarter over nbytes and by the 64 kB that the store may keep in reserve.

Run as ``python bench/memory.py NAME``, by the table, it prints a row's two numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.guest import TINY, Guest
from kvmattr import AttributeMap

GROWTH = 1.25
RESERVE = 64_000


@dataclass(frozen=True)
class Content:
    """What a map is made of, the bytes that it may take, and the content: a function of the guest that makes
    the arguments first and returns the map's size and its maker."""

    name: str
    target: float
    prepare: Callable[[Guest], tuple[int, Callable[[AttributeMap], object]]]


def fragmented(guest: Guest) -> Any:
    bits = np.full(guest.pages // 8, 0xAA, np.uint8)
    return guest.pages, lambda m: m.put_bitmap(0, bits[: len(m) // 8], 1)


def random_pages(guest: Guest, values: int) -> Any:
    gfns = guest.gfns(guest.earlier)
    attributes = guest.rng.integers(1, values + 1, len(gfns), np.uint8)
    return guest.pages, lambda m: m.put(gfns % len(m), attributes)


def everywhere(guest: Guest, values: int) -> Any:
    pages = guest.rng.integers(0, values, guest.pages, np.uint8)

    def make(m: AttributeMap) -> None:
        m[0 : len(m)] = pages[: len(m)]

    return guest.pages, make


def scattered(guest: Guest, count: int) -> Any:
    gfns = guest.rng.integers(0, 1 << 52, count, np.int64)
    return 1 << 52, lambda m: m.put(gfns % len(m), 1)


def uniform(guest: Guest) -> Any:
    return guest.terabyte, lambda m: m.write(0, len(m), 1)


CONTENTS = [
    Content("64 GiB, every other page", 2.7e6, fragmented),
    Content("64 GiB, 1e5 random pages", 2.6e6, lambda guest: random_pages(guest, 1)),
    Content("64 GiB, 1e5 random pages of 8 values", 1.6e6, lambda guest: random_pages(guest, 8)),
    Content("64 GiB, 3 values everywhere", 5.5e6, lambda guest: everywhere(guest, 3)),
    Content("64 GiB, 4 values everywhere", 5.5e6, lambda guest: everywhere(guest, 4)),
    Content("2^52 pages, 1e5 scattered", 8e6, lambda guest: scattered(guest, guest.earlier)),
    Content("2^52 pages, 1e6 scattered", 60e6, lambda guest: scattered(guest, guest.batch)),
    Content("1 TiB, uniform", 16e3, uniform),
]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def weigh(content: Content, guest: Guest) -> dict[str, int]:
    """Build the content in this process: its nbytes, and by how much the process grew."""
    pages, make = content.prepare(guest)
    make(AttributeMap(512))
    resident()
    before = resident()
    m = AttributeMap(pages)
    make(m)
    after = resident()
    stats = m.stats()
    m.validate()
    return {"nbytes": m.nbytes, "growth": after - before, "slack": stats["slack"], "runs": stats["runs"]}


def weigh_apart(content: Content, tiny: bool) -> dict[str, int]:
    """The same in a process of its own, in which numpy's large temporary arrays go back at once."""
    done = subprocess.run([sys.executable, __file__, content.name, *(["--tiny"] if tiny else [])], check=True,
                          env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}, text=True, stdout=subprocess.PIPE)
    weighed: dict[str, int] = json.loads(done.stdout)
    return weighed


if __name__ == "__main__":
    wanted = next(content for content in CONTENTS if content.name == sys.argv[1])
    print(json.dumps(weigh(wanted, TINY if "--tiny" in sys.argv else Guest())))
