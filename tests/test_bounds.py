"""No input of 1 kB takes over 256 MB or 10 s of the processor, unless it asks for it: the worst ones that we know.

Each runs in a process of its own whose memory and processor time are limited: beyond them it is MemoryError where
none may be, or killed. (What traces may take is in test_trace_bounds.py.)
"""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_store_hostile import BITMAP, runs, sealed, uniform
from tests.test_store_memory import SANITIZED

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer maps terabytes of shadow memory")

# What Python, numpy and the package take before the input comes is not the input's.
LIMITS = """
import resource, sys
from kvmattr import AttributeMap
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
spent = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
resource.setrlimit(resource.RLIMIT_CPU, (spent + 11,) * 2)
data = sys.stdin.buffer.read()
"""


def bounded(code: str, data: bytes, modules: str = "sys") -> str:
    """What a program says that gets these bytes. `modules` are there before: they are not the input's."""
    assert len(data) <= 1100
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}\n{LIMITS}{code}"], input=data, capture_output=True, cwd=ROOT,
        check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


FAR = 1 << 49


def scattered_blocks() -> bytes:
    """As many bitmap leaves as fit, each with nodes of its own above it."""
    body = b"".join(BITMAP + uniform(0, FAR // 2 - 512) for _ in range(13))
    pages = 13 * FAR // 2
    return sealed(pages, body)


def many_small_runs() -> bytes:
    body = b"".join(uniform(value % 251, 1 + value % 3) for value in range(100))
    return sealed(sum(1 + value % 3 for value in range(100)), body)


def one_full_block() -> bytes:
    return sealed(1 << 52, runs(*range(1, 250)) + uniform(3, (1 << 52) - 512))


SAVED = {"scattered": scattered_blocks(), "small runs": many_small_runs(), "a block of runs": one_full_block()}

USE = """
m = AttributeMap.from_bytes(data)
m.validate()
m.run_count, m.values(), m.stats(), m.runs()[:1], list(m.iter_runs())[:1], m.to_bytes()
pages = len(m)
m.or_(0, pages, 0x40)
copy = m.copy()
copy.and_(0, pages, 0x0F)
m.diff(copy), m.count(0, pages, 1), m.find(0, 77), m == copy
m.validate()
"""


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_map_and_all_that_is_done_with_it(name: str) -> None:
    bounded(USE, SAVED[name])


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_map_is_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "map"
    code = (
        "from pathlib import Path\n"
        f"path = Path({str(path)!r}); path.write_bytes(data)\n"
        "from kvmattr.cli import main\n"
        "sys.exit(main(['show', str(path)]))\n"
    )
    assert bounded(code, SAVED[name])


def test_a_cut_or_lying_header_asks_for_no_memory() -> None:
    """Lengths of 2^63 in a header with sound checksums."""
    body = uniform(1, 1 << 51)
    header = bytearray(sealed(1 << 52, body))
    header[32:40] = struct.pack("<Q", 1 << 62)
    code = (
        "import struct, zlib\n"
        "data = data[:40] + struct.pack('<I', zlib.crc32(data[:40])) + data[44:]\n"
        "try:\n    AttributeMap.from_bytes(data)\n"
        "except ValueError as error:\n    print(error)\n"
    )
    assert "which announces 4611686018427387904" in bounded(code, bytes(header))


def test_batches_of_a_kilobyte_over_the_whole_space() -> None:
    code = """
import numpy as np
m = AttributeMap()
gfns = np.frombuffer(data, np.uint64) % np.uint64(1 << 52)
m.put(gfns, np.arange(len(gfns), dtype=np.uint8))
m.update_many(np.sort(gfns)[:-1], np.sort(gfns)[1:], np.arange(len(gfns) - 1, dtype=np.uint8), 1)
m.put_bitmap((1 << 52) - 8192, data[:1024], 9)
m.validate()
m.runs(), m.take(gfns), m.to_bytes()
for refused in (lambda: m.to_numpy(0, 1 << 52), lambda: m.bitmap(0, 1 << 52)):
    try:
        refused()
        raise SystemExit("a petabyte was given")
    except MemoryError as error:
        assert str(error)
"""
    bounded(code, os.urandom(1024))


def packed(text: str) -> bytes:
    return lzma.compress(text.encode(), preset=9)


SCATTERED = "".join(f"set {index << 13:#x} 0x1000 1 0\n" for index in range(800))
#: A memslot that comes and goes thirty thousand times, beside 1,600 runs.
COMES_AND_GOES = SCATTERED + "slot 0 0 0 0x100000\nslot 0 0 0 0\n" * 30_000
SHORTEST = "slot 0 0 0 4096\nslot 0 0 0 0\n" * 60_000
DRAWN = {
    "runs": (packed("".join(f"set {index << 13:#x} 0x1000 1 0\n" for index in range(1500))), "picture"),
    "runs over time": (packed(SCATTERED), "timeline"),
    "a memslot over time": (packed(COMES_AND_GOES), "timeline"),
    "a page that changes": (packed(SHORTEST), "history"),
    "all of the space": (packed("set 0 0x3ffffffffff000 1 0\nset 0 0x3ffffffffff000 0 0\n" * 38_000), "timeline"),
    "memslots": (packed("".join(f"slot {index} 0 {index << 31:#x} 0x100000\n" for index in range(390))), "timeline"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_recording_is_drawn(name: str, tmp_path: Path) -> None:
    """As a picture of its end, of all of it over time, and as what became of one page."""
    pytest.importorskip("matplotlib")
    data, how = DRAWN[name]
    path, picture = tmp_path / "trace", tmp_path / "picture.png"
    words = ["show", str(path), f"--{how}", "0" if how == "history" else str(picture)]
    code = (
        "from pathlib import Path\n"
        f"path = Path({str(path)!r}); path.write_bytes(data)\n"
        "from kvmattr.cli import main\n"
        f"sys.exit(main({words!r}))\n"
    )
    said = bounded(code, data, "matplotlib.figure, matplotlib.backends.backend_agg")
    assert said.count("\n") == 120_000 if how == "history" else picture.stat().st_size > 1000


SHOWN = """
from kvmattr.notebook import plot
m = AttributeMap.from_bytes(data)
html = m._repr_html_()
assert 100 < len(html) < 10_000
assert len(plot(m)._repr_png_()) > 1000
"""


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_map_is_shown_in_a_notebook(name: str) -> None:
    pytest.importorskip("matplotlib")
    bounded(SHOWN, SAVED[name], "matplotlib.figure, matplotlib.backends.backend_agg")


HOSTILE_REPORTS = {
    "nested": b"[" * 1000,
    "nested objects": b'{"a":' * 200,
    "a number of 1000 digits": b'{"schema": ' + b"9" * 900 + b"}",
    "infinite": b'{"schema": 1e999, "results": [' + b"1e999," * 100 + b"0]}",
    "escapes": b'{"schema": "' + b"\\u001b[2J" * 90 + b'"}',
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE_REPORTS)
def test_a_hostile_report_is_a_line_of_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    code = (
        "from pathlib import Path\n"
        f"path = Path({str(path)!r}); path.write_bytes(data)\n"
        "from kvmattr.cli import main\n"
        "code = main(['compare', str(path), str(path)])\n"
        "print(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", LIMITS + code],
        input=HOSTILE_REPORTS[name],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    said = (done.stdout + done.stderr).decode()
    assert "Traceback" not in said, said
    assert "\x1b" not in said
    assert str(path) in said
