"""Out of memory: MemoryError and nothing changed; and little address space is enough."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvmattr import AttributeMap, _core
from tests.memory_scenarios import SCENARIOS

HERE = Path(__file__).parent
# What asks nothing of the extension's allocator: no request, no refusal.
NEEDS_NONE = {"fill", "take"}

LOADED = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
SANITIZED = "sanitize" in LOADED or "libasan" in LOADED

little_address_space = pytest.mark.skipif(SANITIZED, reason="a sanitizer maps terabytes of shadow memory")

can_preload = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or SANITIZED,
    reason="needs glibc, and no sanitizer that takes malloc for itself",
)


def run_python(*arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints; its failure is ours."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = tmp_path_factory.mktemp("shim") / "failing_memory.so"
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "failing_memory.c", "-ldl"], check=True
    )
    return str(library)


@can_preload
@pytest.mark.skipif(
    "debug" in os.environ.get("KVMATTR_BUILD", ""),
    reason="the debug build's own check after each operation asks for memory",
)
@pytest.mark.parametrize("name", SCENARIOS)
def test_each_request_for_memory_may_fail(shim: str, name: str) -> None:
    # Before what is preloaded already (dev.py pages): our requests for memory go on to that.
    preloaded = f"{shim}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
    refused = int(run_python("-m", "tests.memory_scenarios", name, LD_PRELOAD=preloaded))
    assert (refused > 0) != (name in NEEDS_NONE), f"{refused} requests of {_core.__file__} were refused"


SMALL_ADDRESS_SPACE = """
import resource
import numpy as np
from kvmattr import AttributeMap

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
m = AttributeMap()
guest = 1 << 24
m[0:guest] = np.resize(np.array([0, 1], dtype=np.uint8), guest)
m.put(np.random.default_rng(1).integers(0, 1 << 52, 100_000, dtype=np.uint64), 3)
kept = m.snapshot()
m.or_(0, 1 << 52, 4)
assert m.count(0, guest, 5) >= guest // 2 - 100
assert kept.get(1) == 1
m.validate()
print(m.run_count)
"""


@little_address_space
def test_three_gibibytes_of_address_space_are_enough() -> None:
    assert int(run_python("-c", SMALL_ADDRESS_SPACE)) > 2**24


EXHAUSTED = """
import resource
import numpy as np
from kvmattr import AttributeMap

m = AttributeMap()
noise = np.random.default_rng(1).integers(0, 256, 1 << 20).astype(np.uint8)
m[0:1 << 20] = noise
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20), used + (96 << 20)))
written = 1
try:
    for written in range(1, 1000):
        version, nbytes = m.version, m.nbytes
        m[written << 20:(written + 1) << 20] = noise
    raise SystemExit("memory never ended")
except MemoryError as error:
    assert str(error)
assert (m.version, m.nbytes) == (version, nbytes)
assert m.all(written << 20, (written + 1) << 20, 0)
for block in range(written):
    assert (m.to_numpy(block << 20, (block + 1) << 20) == noise).all()
m.clear()
m[0:1 << 20] = noise
assert (m.to_numpy(0, 1 << 20) == noise).all()
print(written)
"""


@little_address_space
def test_memory_that_ends_leaves_a_sound_map() -> None:
    assert int(run_python("-c", EXHAUSTED)) > 1


MANY_MAPS = """
import resource
import numpy as np
from kvmattr import AttributeMap

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
scattered = np.random.default_rng(1).integers(0, 1 << 40, 300)
maps = [AttributeMap(1 << 40) for _ in range(1500)]
for m in maps:
    m.put(scattered, 1)         # a batch that opens run lists, which need memory to be stored
    assert m.nbytes < 20_000
print(len(maps))
"""


@little_address_space
def test_many_small_maps_need_little_address_space() -> None:
    assert run_python("-c", MANY_MAPS) == "1500\n"


@pytest.mark.skipif(SANITIZED or "debug" in os.environ.get("KVMATTR_BUILD", ""),
                    reason="a sanitizer and the debug build's own check ask for memory, too")
def test_pages_that_come_and_go_hardly_ask_the_system_for_memory() -> None:
    m = AttributeMap(1 << 24)
    gfns = np.random.default_rng(5).choice(1 << 24, 1024, replace=False).tolist()

    def turn() -> None:
        for gfn in gfns:
            m.write(gfn, gfn + 1, 1)
        for gfn in gfns:
            m.write(gfn, gfn + 1, 0)

    for _ in range(3):
        turn()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(20):
        turn()
    asked = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    # `dev.py pages`: the system's pages are larger for us than for the kernel, which has a fault for each of its own.
    each = int(os.environ.get("KVMATTR_TEST_PAGE_BYTES", "4096")) // 4096
    assert asked < 20 * 4 * each    # some 7 a turn, if half of what is kept went back each time
    m.validate()
    assert m.nbytes < 8192
