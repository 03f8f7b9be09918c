"""Huge pages: what is full becomes one, what is resident stays what is used (kvmattr/_store/huge.pxi)."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, mmap, re, sys
import numpy as np
from kvmattr import AttributeMap

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/smaps_rollup").read())[1])

if sys.argv[1] == "refused":        # PR_SET_THP_DISABLE
    assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0
elif sys.argv[1] == "asked":        # whether this system gives a program a huge page at all
    own = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    own.write(bytes(8 << 20))
    before = kilobytes("AnonHugePages")
    try:
        own.madvise(25)             # MADV_COLLAPSE
    except OSError as refused:
        sys.exit(f"SKIP {refused}")
    if kilobytes("AnonHugePages") == before:
        sys.exit("SKIP madvise() made none")
    del own

guest = 1 << 23
pages = np.random.default_rng(0).integers(0, 256, guest, np.uint8)
gfns = np.random.default_rng(1).permutation(guest)
wanted = sys.argv[2]
before = kilobytes("AnonHugePages"), kilobytes("Rss")
m = AttributeMap(guest)
if wanted == "map":
    m[0:guest] = pages
elif wanted == "batch":
    m.update_many(np.arange(0, guest, 512), np.arange(0, guest, 512) + 256, 1)
    for at in range(0, guest, 1 << 20):
        m.put(gfns[at:at + (1 << 20)], pages[gfns[at:at + (1 << 20)]])
else:
    for gfn in range(7, guest, 512):
        m.write(gfn, gfn + 1, 1)
        m.write(gfn, gfn + 1, 2)
        m.write(gfn + 2, gfn + 100, 3)
huge, grown = kilobytes("AnonHugePages") - before[0], kilobytes("Rss") - before[1]
m.validate()
if wanted != "calls":
    assert np.array_equal(m.to_numpy(0, guest), pages)
nbytes = m.nbytes
m.write(1 << 18, guest, 0)          # what is given back may lie in huge pages
m.validate()
print(huge, grown, nbytes >> 10)
"""


def run(*arguments: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    if done.stderr.startswith("SKIP"):
        pytest.skip(f"no huge pages on this system: {done.stderr[5:].strip()}")
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup")
@pytest.mark.parametrize("wanted", ["map", "batch", "calls"])
def test_what_is_full_becomes_huge_and_nothing_else_resident(wanted: str) -> None:
    huge, grown, nbytes = run("asked", wanted)
    if wanted == "calls":       # 2 MB in all
        assert huge <= nbytes
    else:
        assert huge >= nbytes // 2
    if wanted == "map":         # a batch has arrays of its own
        assert grown <= 1.25 * nbytes + 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup")
def test_a_system_that_gives_none_changes_nothing_else() -> None:
    huge, grown, nbytes = run("refused", "map")
    assert huge <= 0
    assert grown <= 1.25 * nbytes + 1024
