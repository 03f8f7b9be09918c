"""The compiled modules: who imports whom (everything else by import-linter: pyproject.toml, ``dev.py lint``), and what
Cython makes of list comprehensions; and that the tests find the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvmattr
from tests.mutants import KERNELS, STORE, Mutant

PACKAGE = Path(__file__).resolve().parent.parent / "kvmattr"
pytestmark = pytest.mark.skipif(not (PACKAGE / "_core.pyx").exists(), reason="the sources are not here")

#: What a compiled module may use of the package: what stands below it. The store knows nothing of VMs.
ALLOWED = {
    "_core": {"operation", "run"},
    "_memslots": {"hosts", "operation", "uapi"},
    "_vm": {"_core", "_memslots", "faults", "protection", "uapi"},
    "bridges._kvm": set(),
    "bridges._unicorn": {"_vm", "uapi"},
    "measure._yardstick": set(),
    "study._loops": {""},           # the package's own .pxd, as other people's code
    "study._xarray": set(),
    "trace._native": set(),
}
#: Imported by a method when it is called: what a map shows of itself in a notebook.
WHEN_CALLED = {"_core": {"notebook"}}

_IMPORT = re.compile(r"^([ \t]*)(?:from\s+kvmattr(?:\.([\w.]+))?\s+c?import\s+\(?(\w+)|c?import\s+kvmattr\b)",
                     re.MULTILINE)


def used_by(module: Path) -> tuple[set[str], set[str]]:
    """What a .pyx with its parts imports of the package: when it is imported, and when something is called."""
    text = module.read_text()
    parts = [module, *(module.parent / name for name in re.findall(r'^include "(.*)"', text, re.MULTILINE))]
    first, later = set(), set()
    for part in [*parts, *filter(Path.exists, [module.with_suffix(".pxd")])]:
        for indent, inner, name in _IMPORT.findall(part.read_text()):
            used = inner or name
            (later if indent else first).add(used)
    return first, later


def test_compiled_modules_use_only_what_stands_below_them():
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): used_by(path)
             for path in PACKAGE.rglob("*.pyx")}
    assert {name: first for name, (first, _) in found.items()} == ALLOWED
    assert {name: later for name, (_, later) in found.items() if later} == WHEN_CALLED


def freed_twice(code: str) -> list[str]:
    """Where C code that Cython made gives an element up as it appends it: file and line, but for Cython's own parts."""
    files = re.findall(r'"(.*?)"', re.search(r"__pyx_f\[\] = \{(.*?)\};", code, re.DOTALL).group(1))
    places = re.findall(r"__Pyx_ListComp_AppendAndDecref\(__pyx.*__PYX_ERR\((\d+), (\d+),", code)
    return [f"{files[int(file)]}:{line}" for file, line in places if files[int(file)] != "View.MemoryView"]


def test_no_list_is_made_of_elements_that_are_made():
    """Where such a list cannot grow, Cython 3.3 frees the element twice: ``[f(x) for x in y]``, ``(*a, f(x))``."""
    made = [path.with_suffix(".c") for path in PACKAGE.rglob("*.pyx")]
    if not all(map(Path.exists, made)):
        pytest.skip("the modules were not compiled in this tree")
    assert [place for code in made for place in freed_twice(code.read_text())] == []


@pytest.mark.skipif(not Path(kvmattr.__file__).is_relative_to(PACKAGE), reason="it is installed")
def test_a_python_that_a_test_starts_finds_the_package(tmp_path):
    """From any directory, also where it is not installed (here: without the site's packages): by conftest.py."""
    asked = "import importlib.util; print(importlib.util.find_spec('kvmattr').origin)"
    found = subprocess.run([sys.executable, "-S", "-c", asked], cwd=tmp_path, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == (f"{kvmattr.__file__}\n", "")


@pytest.mark.parametrize("mutant", [*KERNELS, *STORE], ids=lambda mutant: mutant.name)
def test_what_a_mutant_breaks_stands_once(mutant: Mutant) -> None:
    """Else `dev.py mutants` ends there, half an hour later."""
    assert (PACKAGE / mutant.file).read_text().count(mutant.text) == 1
