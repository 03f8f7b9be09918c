"""Huge pages: what is resident as a whole becomes one, and nothing else becomes resident (kvmattr/_store/huge.pxi)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent      # where programs find the other parts of the tests
PROGRAM = """
import ctypes, mmap, re, sys
import numpy as np
from kvmattr import VM, AttributeMap, uapi

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/smaps_rollup").read())[1])

if sys.argv[1] == "refused":        # PR_SET_THP_DISABLE
    if ctypes.CDLL(None).prctl(41, 1, 0, 0, 0):
        sys.exit("SKIP nor a way to refuse them")       # as under user-mode emulation
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
pages[:guest:512], pages[1:guest:512] = 0, 0xff     # each block has fields of eight bits as soon as these stand
wanted = sys.argv[2]
some = np.sort(np.concatenate([np.arange(at, guest, 512) for at in (1, 101, 201, 301, 401)]))
some = np.sort(np.concatenate([some, some + 1, some + 2, some + 3]))
values = pages[some]
if wanted == "from_bytes":
    saved = AttributeMap.from_numpy(pages).to_bytes()
elif wanted == "restore":
    other = AttributeMap.from_numpy(pages)
elif wanted in ("set", "sets"):
    vm = VM(phys_bits=35, no_exec=True, exec_only=True, write_only=True)
    pages &= 0xf
    values &= 0xf
elif wanted in ("conversion", "conversions"):       # a page of each block of a file becomes shared
    vm = VM("gmem")
    some = np.arange(80_000) * 512 + 1
    values = np.zeros(len(some), np.uint8)
    file = vm.create_guest_memfd(len(some) << 21)
before = kilobytes("AnonHugePages"), kilobytes("Rss")
m = AttributeMap(guest)
if wanted == "array":
    m[0:guest] = pages
elif wanted == "from_bytes":
    m = AttributeMap.from_bytes(saved)
elif wanted == "restore":
    m.restore(other)
elif wanted == "update_many":
    m.update_many(some, some + 1, values)
elif wanted == "put":
    gfns = np.random.default_rng(1).permutation(guest)
    for at in range(0, guest, 1 << 20):
        m.put(gfns[at:at + (1 << 20)], pages[gfns[at:at + (1 << 20)]])
elif wanted == "put_bitmap":
    bits = np.full(guest >> 3, 0b10000001, np.uint8)
    for bit in range(8):
        m.put_bitmap(0, bits << bit & 0xff, 1 << bit, 1)
elif wanted == "sets":
    records = np.zeros(len(some), uapi.MEMORY_ATTRIBUTES)
    records["address"], records["size"], records["attributes"] = some << 12, 4096, values
    vm.set_memory_attributes_many(records)
    m = vm.attributes
elif wanted == "set":
    for gfn, value in zip(some.tolist(), values.tolist()):
        vm.set_memory_attributes(gfn << 12, 4096, value)
    m = vm.attributes
elif wanted == "update_changes":      # by a client in C
    from tests.c_memory_scenarios import CHANGES, table
    c, nothing = table(), CHANGES(lambda context, change: 0)
    handle = c["map_of"](m)
    for gfn, value in zip(some.tolist(), values.tolist()):
        assert c["update_changes"](handle, gfn, gfn + 1, value, 0, 0xFF, nothing, None) >= 0
elif wanted == "update":
    from tests.c_memory_scenarios import table
    c = table()
    handle = c["map_of"](m)
    for gfn, value in zip(some.tolist(), values.tolist()):
        assert c["update"](handle, gfn, gfn + 1, value, 0, 0xFF) >= 0
elif wanted == "write":
    for gfn, value in zip(some.tolist(), values.tolist()):
        m.write(gfn, gfn + 1, value)
elif wanted == "conversion":
    for gfn in some.tolist():
        vm.set_memory_attributes2(file, gfn << 12, 4096, 0)
    m = vm.guest_memfd(file).attributes
elif wanted == "conversions":
    records = np.zeros(len(some), uapi.MEMORY_ATTRIBUTES2)
    records["offset"], records["size"] = some << 12, 4096
    vm.set_memory_attributes2_many(file, records)
    m = vm.guest_memfd(file).attributes
huge, grown = kilobytes("AnonHugePages") - before[0], kilobytes("Rss") - before[1]
m.validate()
if wanted in ("array", "from_bytes", "restore", "put"):
    assert np.array_equal(m.to_numpy(0, guest), pages)
elif wanted != "put_bitmap":
    assert np.array_equal(m.take(some), values)
nbytes = m.nbytes
if wanted not in ("set", "sets", "conversion", "conversions"):
    m.write(1 << 18, guest, 0)      # what is given back may lie in huge pages
    m.validate()
print(huge, grown, nbytes >> 10)
"""

#: The first array's leaves are being freed, a slice at an update, when the second's, behind them, have filled the 2 MiB
#: in which both lie.
HALF_FREED = """
import re
import numpy as np
from kvmattr import AttributeMap

def huge():
    return int(re.search(r"AnonHugePages:\\s+(\\d+) kB", open("/proc/self/smaps_rollup").read())[1])

guest = 5000 * 512
first, second = np.random.default_rng(0).integers(0, 256, (2, guest), np.uint8)
before, m = huge(), AttributeMap(guest)
m[0:guest] = first
m.fill(0)
m[0:guest] = second
after = huge()
m.validate()
assert np.array_equal(m.to_numpy(0, guest), second)
print(after - before)
"""


def run(*arguments: str, program: str = PROGRAM) -> list[int]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"})      # numpy asks for its arrays
    if done.stderr.startswith("SKIP"):
        pytest.skip(f"no huge pages on this system: {done.stderr[5:].strip()}")
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup")
@pytest.mark.parametrize("wanted", ["array", "from_bytes", "restore", "update_many", "put", "put_bitmap", "set", "sets",
                                    "write", "conversion", "conversions", "update", "update_changes"])
def test_what_is_full_becomes_huge_and_nothing_else_resident(wanted: str) -> None:
    """Whichever call filled it."""
    many = wanted in ("write", "conversion", "conversions", "update", "update_changes")
    if many and "debug" in os.environ.get("KVMATTR_BUILD", ""):
        pytest.skip("the debug build would look through 16,384 blocks after each of 327,680 updates, or more")
    huge, grown, nbytes = run("asked", wanted)
    assert nbytes >= 4 << 10
    if os.sysconf("SC_PAGESIZE") != 4096:
        assert huge == 0        # they are asked for where the system's page is the store's
        return
    assert nbytes - (4 << 10) <= huge <= nbytes     # but what lies before the first 2 MiB and after the last
    assert huge >= 2 << 10
    if wanted in ("array", "from_bytes", "restore"):     # the others have arrays and integers of their own
        assert grown <= 1.25 * nbytes + 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup")
def test_a_system_that_gives_none_changes_nothing_else() -> None:
    huge, grown, nbytes = run("refused", "array")
    assert huge <= 0
    assert grown <= 1.25 * nbytes + 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup")
def test_what_has_a_page_that_was_given_back_stays_as_it_is() -> None:
    """Else it would become resident again."""
    assert run(program=HALF_FREED) == [0]
