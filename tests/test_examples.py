"""Every example does what it says, built and run outside the tree against an installed kvmattr."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from kvmattr.bridges.kvm import missing
from tests.embedding import building

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.install(tmp_path_factory.mktemp("installed"))


def test_the_simulator(site: Path, tmp_path: Path) -> None:
    for module in ("setuptools", "Cython"):     # for a child: imported here, setuptools puts its distutils in place
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"this Python has no {module}")
    building.compiler("gcc")
    for source in (EXAMPLES / "simulator").glob("*.py*"):
        shutil.copy(source, tmp_path)
    building.run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tmp_path, site=site)
    lines = building.run(sys.executable, "run.py", cwd=tmp_path, site=site).splitlines()
    assert lines[:4] == [
        "refused: store at 0x9000",
        "refused: store at 0x11000",
        "halt: end at 0x34",
        "stored: 42 42",
    ]
    assert re.fullmatch(r"halt: 80000010 checked accesses, \d+ million a second", lines[4])


@pytest.mark.parametrize("command", ["g++", "clang++"])
def test_the_host_in_cpp(site: Path, tmp_path: Path, command: str) -> None:
    program = building.compile_program(
        EXAMPLES / "host.cpp",
        ["-std=c++17", "-O2", *building.include_options(site)],
        tmp_path,
        building.compiler(command),
    )
    assert building.run(program, cwd=tmp_path, site=site).splitlines() == [
        "attributes:",
        "  [0x0, 0x100) 1",
        "  [0x100, 0x180) 9",
        "  [0x180, 0x200) 8",
        "  [0x200, 0x280) 0",
        "  [0x280, 0x400) 1",
        "pages changed: 768",
        "restored: yes",
        "looked up beside a writer: yes",
        "every other page private: 9 8",
        "error -4: gfn is outside the map: need gfn < pages",
    ]


def test_the_fuzz_loop(site: Path, tmp_path: Path) -> None:
    lines = building.run(
        sys.executable, EXAMPLES / "fuzz_loop.py", "--cases", "20", cwd=tmp_path, site=site
    ).splitlines()
    assert re.fullmatch(r"<AttributeMap of 16,777,216 pages, [\d,]+ runs, [\d,]+ bytes>: \d+ runs", lines[0])
    assert [int(line.split()[0]) for line in lines[1:]] == [1, 10, 100, 1000]
    assert [int(re.search(r": (\d+) had", line)[1]) for line in lines[1:3]] == [20, 200]


def test_the_vmm(site: Path, tmp_path: Path) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    answer = building.run(
        sys.executable, EXAMPLES / "vmm.py", "--conversions", "100", cwd=tmp_path, site=site
    )
    counts = re.fullmatch(r"100 conversions took (\d+) memslot calls; the kernel holds (\d+) slots\n", answer)
    assert counts is not None
    assert int(counts[1]) > 2 * 100
    assert int(counts[2]) > 50


def test_the_cython_module_of_the_embedding_page(site: Path, tmp_path: Path) -> None:
    """Both files and both commands, as they stand there."""
    for module in ("setuptools", "Cython"):     # for a child: imported here, setuptools puts its distutils in place
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"this Python has no {module}")
    building.compiler("gcc")
    page = EXAMPLES.parent / "docs" / "embedding.md"
    if not page.exists():
        pytest.skip("the pages are not beside the tests")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for name, text in [re.match(r"# (\S+)\n(.*)", text, re.DOTALL).groups() for language, text in blocks
                       if language in ("cython", "python")]:
        (tmp_path / name).write_text(text)
    [commands] = [text for language, text in blocks if language == "sh"]
    printed = ""
    for line in commands.splitlines():
        _, *words = shlex.split(line, comments=True)
        printed = building.run(sys.executable, *words, cwd=tmp_path, site=site)
    assert printed == "512\n"
    assert "It prints 512." in page.read_text()
