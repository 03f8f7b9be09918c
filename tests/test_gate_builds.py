"""The counting build, made by the gate from the tree that it runs in: slow the first time, kept afterwards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kvmattr.gate import builds, instructions
from kvmattr.gate.counting import COUNTERS
from kvmattr.gate.process import Worker
from kvmattr.gate.stages import installed
from kvmattr.gate.verdict import CannotTell

ROOT = Path(__file__).parents[1]

from_sources = pytest.mark.skipif(builds.source_tree(ROOT) is None, reason="kvmattr's sources are not here")


@from_sources
def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(CannotTell, match=r"^a counting build is needed and this machine has no C compiler "
                       r"\(no-such-compiler\)$"):
        builds.build(ROOT, "counting")
    assert list((tmp_path / "kvmattr-gate").iterdir()) == []


@from_sources
def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    (source / "kvmattr").mkdir(parents=True)
    (source / "pyproject.toml").write_text('[project]\nname = "kvmattr"\nversion = "0"\n')
    (source / "setup.py").write_text("raise SystemExit('a broken setup.py')\n")
    with pytest.raises(CannotTell, match=r"(?s)^the plain build of .* failed:\n.*a broken setup\.py"):
        builds.build(source)
    assert list((tmp_path / "cache" / "kvmattr-gate").iterdir()) == []


@pytest.mark.slow
@from_sources
def test_counts_are_the_same_under_every_set_of_kernels() -> None:
    tree = builds.build(ROOT, "counting")
    cells = [("look-up", 65536), ("walk", 4096), ("convert-batch", 1024), ("difference", 64), ("many-values", 8192)]
    answers = {}
    for kernels in ("portable", "avx2", "avx512"):
        try:
            with Worker(tree, ["own"], environment={"KVMATTR_SIMD": kernels}) as worker:
                assert worker.loaded["counting"]
                assert worker.loaded["kernels"] == kernels
                answers[kernels] = [worker.ask("count", name=name, size=size) for name, size in cells]
        except CannotTell:
            assert kernels != "portable"        # this machine has no such kernels, and the import says so
    assert set(answers["portable"][0]["counts"]) == set(COUNTERS)
    assert all(answer == answers["portable"] for answer in answers.values())
    assert all(answer["counts"]["pages_compared"] > 0 for answer in answers["portable"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="this machine has no valgrind")
def test_instruction_counts_repeat(tmp_path: Path) -> None:
    scenarios = tmp_path / "scenarios.py"
    scenarios.write_text("""
from kvmattr import AttributeMap
from kvmattr.gate import Work, scenario

def work(repeat):
    guest = AttributeMap(1 << 20)
    return Work(lambda: [guest.write(5, 9, 1 + i % 2) for i in range(repeat)], [guest], repeat)

@scenario(sizes=[100])
def few(repeat):
    return work(repeat)

@scenario(sizes=[200])
def many(repeat):
    return work(repeat)
""")
    first = instructions.count(installed(), [str(scenarios)])
    assert 1.8 < first["many/200"] / first["few/100"] < 2.1
    again = instructions.count(installed(), [str(scenarios)])
    assert all(abs(again[cell] / first[cell] - 1) < instructions.TOLERANCE for cell in first)


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert builds.cache_directory() == Path("/somewhere/kvmattr-gate")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert builds.cache_directory() == Path(os.path.expanduser("~/.cache/kvmattr-gate"))
