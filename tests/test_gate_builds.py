"""The counting build, made by the gate from the tree that it runs in: slow the first time, kept afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmattr.gate import builds, cache, instructions, stages
from kvmattr.gate.counting import COUNTERS
from kvmattr.gate.process import Worker
from kvmattr.gate.stages import Gate, installed
from kvmattr.gate.verdict import CannotTell, Judgement, Verdict
from tests.quiet_machine import quiet_path

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
def test_the_shifted_build_differs_in_nothing_but_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source"
    (source / "kvmattr").mkdir(parents=True)
    (source / "setup.py").write_text("""
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
compiler = new_compiler()
customize_compiler(compiler)
raise SystemExit("\\n".join(compiler.compiler_so))
""")
    words = []
    for shifted in (False, True):
        with pytest.raises(CannotTell) as told:
            builds.build(source, shifted=shifted)
        words.append(str(told.value).splitlines()[1:])
    assert [word for word in words[1] if word != "-falign-functions=64"] == words[0]
    assert words[1] != words[0]
    assert "-fPIC" in words[0]


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
@pytest.mark.skipif(shutil.which("git") is None, reason="this machine has no git")
def test_a_slower_commit_is_seen_against_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--base from the checkout to the verdict, on a repository with two commits. Only the compiling is spared:
    what is slower is Python, so that both have the extension modules that are loaded here, and a line of it is what
    takes time."""
    def compiled(source: Path, mode: str, kind: str, flags: str, target: Path) -> None:
        for module in (installed() / "kvmattr").rglob("*.so"):
            place = target / module.relative_to(installed())
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(module, place)
    monkeypatch.setattr(builds, "_compile", compiled)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", quiet_path(tmp_path, os.environ["PYTHONPATH"]))
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "kvmattr", repository / "kvmattr",
                    ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, repository)

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=e", *words], check=True,
                       stdout=subprocess.DEVNULL)
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=base")
    machine = repository / "kvmattr" / "vm.py"
    question = "    def check_extension(self, capability: int) -> int:\n"
    assert question in machine.read_text()
    slower = "    def check_extension(self, capability: int) -> int:\n        for _ in range(50): pass\n"
    machine.write_text(machine.read_text().replace(question, slower))
    scenarios = tmp_path / "scenarios.py"
    scenarios.write_text("""
from kvmattr import VM
from kvmattr.gate import Work, scenario

vm = VM()

@scenario(sizes=[100])
def ask(times):
    return Work(lambda: [vm.check_extension(10) for _ in range(times)], [vm.attributes], times)

@scenario(sizes=[100])
def convert(times):
    return Work(lambda: [vm.set_memory_attributes(0, 4096, i % 2) for i in range(times)], [vm.attributes], times)
""")
    judgement = Judgement()
    stages.judge_base(judgement, Gate([str(scenarios)], repository), "HEAD", with_instructions=False)
    found = {finding.cell: finding for finding in judgement.findings}
    assert found["ask/100"].verdict is Verdict.REGRESSION, found["ask/100"].text
    assert "; again in reverse order: " in found["ask/100"].text
    assert found["convert/100"].verdict is Verdict.PASS, found["convert/100"].text
    assert found["convert/100"].text.startswith("1.000x the base's time [1.000, 1.000] in 10 rounds;")
    git("commit", "--quiet", "--all", "--message=head")
    again = Judgement()
    stages.judge_base(again, Gate([str(scenarios)], repository), "HEAD", with_instructions=False)
    assert [finding.verdict for finding in again.findings] == [Verdict.PASS] * 2
    # None is made again: the base with its twin and its shifted copy, the head, and its twin when it is the base.
    assert len(list((tmp_path / "cache" / "kvmattr-gate").glob("*-plain"))) == 5


@pytest.mark.slow
@from_sources
def test_counts_are_the_same_under_every_set_of_kernels() -> None:
    tree = builds.build(ROOT, "counting")
    cells = [("look-up", 65536), ("walk", 4096), ("convert-batch", 1024), ("difference", 64), ("many-values", 8192)]
    answers = {}
    for kernels in ("portable", "avx2", "avx512"):
        try:
            with Worker(tree, ["own"], environment={"KVMATTR_SIMD": kernels}) as worker:
                assert worker.ask("build") == {"counting": True, "kernels": kernels}
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
    assert cache.directory() == Path("/somewhere/kvmattr-gate")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == Path(os.path.expanduser("~/.cache/kvmattr-gate"))
