"""Every command that writes files, on a disk that is full: a file system of memory of this test's own.

Each command runs twice: first there is room, then there is none. What the first made is there byte by byte, nothing
is beside it, and the error is one line. Recordings are written in place (docs/trust.md): the second goes into a file of
its own, in which what had room stays.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvmattr import AttributeMap
from kvmattr.bridges import kvm
from tests.test_cli import BRIEF, SMALL
from tests.test_gate import SCENARIOS, benchmark_file
from tests.test_record import needs_tracing

#: Run as root of namespaces of its own: a disk, the command once, the disk filled, the command again. In its words,
#: {turn} is 1 and 2.
TWICE = """
import errno, json, os, pathlib, subprocess, sys
disk, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True)
def run(turn):
    return subprocess.run([word.replace("{turn}", turn) for word in words], cwd=disk, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
def files():
    return {str(path.relative_to(disk)): path.read_bytes() for path in sorted(disk.rglob("*")) if path.is_file()}
first, before = run("1"), files()
filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
try:
    while os.write(filler, bytes(4096)):
        pass
except OSError as error:
    assert error.errno == errno.ENOSPC, error
second = run("2")
os.unlink(disk / "filler")
after = files()
print(json.dumps({
    "first": [first.returncode, first.stderr], "second": [second.returncode, second.stderr], "made": sorted(before),
    "lost": [name for name in before if before[name] != after.get(name)], "beside": sorted(set(after) - set(before))}))
"""
FULL = "cannot be written: No space left on device\n"


def may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True,
                              timeout=60).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not may_mount(),
                                reason="no file system can be mounted here in a namespace of one's own")


def twice(folder: Path, *words: object) -> dict[str, Any]:
    """What a command of kvmattr's leaves on a disk at ``folder / "disk"`` when it runs with room and without."""
    disk = folder / "disk"
    disk.mkdir()
    done = subprocess.run(["unshare", "-rm", sys.executable, "-c", TWICE, disk, sys.executable, "-m", "kvmattr",
                           *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.json"
    subprocess.run([sys.executable, "-m", "kvmattr", *BRIEF, "--scenario", "conversion", "--backend", "store",
                    "--backend", "xarray", "--json", path], check=True, capture_output=True)
    return path


def nothing_is_lost(left: dict[str, Any], made: set[str], code: int = 0) -> None:
    assert left["first"][0] == code, left["first"]
    assert set(left["made"]) == made
    assert (left["lost"], left["beside"]) == ([], [])


def test_report_and_its_plots(tmp_path: Path, report: Path) -> None:
    pytest.importorskip("matplotlib")
    left = twice(tmp_path, "report", report, "--json", "a.json", "--csv", "a.csv", "--html", "a.html",
                 "--plots", "plots")
    nothing_is_lost(left, {"a.json", "a.csv", "a.html", "plots/conversion-model.png", "plots/conversion-model.svg"})
    assert left["second"] == [2, "".join(f"kvmattr report: {name} {FULL}" for name in (
        "a.json", "a.csv", "a.html", "plots/conversion-model.png and 1 more"))]


def test_scaling_tells_it_once(tmp_path: Path) -> None:
    """It writes after each round and in the end."""
    left = twice(tmp_path, *SMALL, "--json", "a.json", "--csv", "a.csv")
    nothing_is_lost(left, {"a.json", "a.csv"})
    code, said = left["second"]
    assert code == 2
    assert [line for line in said.splitlines(keepends=True) if FULL in line] == [
        f"kvmattr scaling: {name} {FULL}" for name in ("a.json", "a.csv")]
    assert not any(line.startswith("written") for line in said.splitlines())


def test_compare(tmp_path: Path, report: Path) -> None:
    pytest.importorskip("matplotlib")
    left = twice(tmp_path, "compare", report, report, "--json", "a.json", "--figure", "a.png")
    nothing_is_lost(left, {"a.json", "a.png"}, 3)      # one report a side decides nothing
    assert left["second"] == [2, "".join(f"kvmattr compare: {name} {FULL}" for name in ("a.json", "a.png"))]


def test_the_gate_on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    base, head = (benchmark_file(tmp_path / name, median, rounds=100)
                  for name, median in (("b", 1e-6), ("h", 1.01e-6)))
    left = twice(tmp_path, "gate", "--judge-json", head, "--against", base, "--json", "a.json", "--junit", "a.xml")
    nothing_is_lost(left, {"a.json", "a.xml"})
    assert left["second"] == [2, "kvmattr gate: " + "; ".join(
        f"{name} {FULL.strip()}" for name in ("a.json", "a.xml")) + "\n"]


def test_the_gates_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    scenarios = tmp_path / "scenarios.py"
    scenarios.write_text(SCENARIOS)
    left = twice(tmp_path, "gate", "--no-build", "--scenarios", scenarios, "--baseline", "baseline.json",
                 "--update-baseline")
    nothing_is_lost(left, {"baseline.json"})
    assert left["second"] == [2, f"kvmattr gate: baseline.json {FULL}"]


def test_the_gates_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is told and judged, though it cannot be added."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    scenarios = tmp_path / "scenarios.py"
    scenarios.write_text(SCENARIOS)
    own = (sys.executable, "-m", "kvmattr", "gate", "--no-build", "--scenarios", scenarios)
    subprocess.run([*own, "--baseline", tmp_path / "baseline.json", "--update-baseline"], check=True,
                   capture_output=True)
    left = twice(tmp_path, *own[3:], "--baseline", tmp_path / "baseline.json", "--history", "h.jsonl", "--json",
                 "a.json")
    nothing_is_lost(left, {"a.json", "h.jsonl"})
    assert left["second"] == [2, "kvmattr gate: " + "; ".join(
        f"{name} {FULL.strip()}" for name in ("h.jsonl", "a.json")) + "\n"]


#: Calls enough that a recording of them is more than a page of the disk.
CALLS = "import fcntl, os\nkvm = os.open('/dev/kvm', 2)\nfor _ in range(300): fcntl.ioctl(kvm, 0xAE00, 0)"


def recording_is_cut_off(left: dict[str, Any], *told: str) -> None:
    nothing_is_lost({**left, "beside": []}, {"1.log"})
    assert left["beside"] in ([], ["2.log"])
    code, said = left["second"]
    assert code == 2
    assert [line for line in said.splitlines() if "No space left" in line] == list(told)


def test_recordings_of_the_fake(tmp_path: Path) -> None:
    recording_is_cut_off(
        twice(tmp_path, "fake", "--record", "{turn}.log", "--", sys.executable, "-c", CALLS),
        "kvmattr fake: 2.log cannot be written: No space left on device: the recording is not whole")


@pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))
def test_recordings_of_the_kernel(tmp_path: Path) -> None:
    recording_is_cut_off(
        twice(tmp_path, "shadow", "--record", "{turn}.log", "--", sys.executable, "-c", CALLS),
        "kvmattr shadow: 2.log cannot be written: No space left on device: the recording is not whole")
    (tmp_path / "disk").rmdir()
    recording_is_cut_off(
        twice(tmp_path, "record", "--by", "library", "-o", "{turn}.log", "--", sys.executable, "-c", CALLS),
        "kvmattr record: 2.log cannot be written: No space left on device: the recording is not whole")


@needs_tracing
@pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))
def test_recordings_by_strace(tmp_path: Path) -> None:
    recording_is_cut_off(
        twice(tmp_path, "record", "--by", "strace", "-o", "{turn}.log", "--", sys.executable, "-c", CALLS),
        "kvmattr record: 2.log cannot be written: No space left on device: the recording is not whole")


def test_replay_and_show(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace = Path(__file__).parent / "data" / "traces" / "q35-64g.qemu.log"
    left = twice(tmp_path, "replay", trace, "--json", "a.json", "--write", "a.gz")
    nothing_is_lost(left, {"a.json", "a.gz"})
    assert left["second"] == [2, f"kvmattr replay: a.gz {FULL}"]
    (tmp_path / "disk").rmdir()
    m = AttributeMap(1 << 20)
    m.write(5, 500, 1)
    m.save(tmp_path / "map")
    left = twice(tmp_path, "show", tmp_path / "map", "--picture", "a.png")
    nothing_is_lost(left, {"a.png"})
    assert left["second"] == [2, f"kvmattr show: a.png {FULL}"]
