"""What packages and workflows need: C sources that compile with musl's headers, workflows that their schema accepts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kvmattr"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MODULES = sorted(str(path.relative_to(PACKAGE).with_suffix(".c")) for path in PACKAGE.rglob("*.pyx"))
CLIENT = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("fake/client/*.c"))



@pytest.mark.skipif(not WORKFLOWS, reason="the workflows are not part of the sdist's tests")
def test_the_workflows_are_workflows() -> None:
    pytest.importorskip("check_jsonschema")
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows",
                           *WORKFLOWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the tree is not here")
def test_every_stub_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {".".join(path.relative_to(ROOT).parent.parts) for path in PACKAGE.rglob("*.pyi")}
    assert packages <= set(settings["packages"])
    assert {name for name in packages if "*.pyi" not in settings["package-data"].get(name, [])} == set()


@pytest.mark.skipif(not (ROOT / "setup.py").exists() or shutil.which("cc") is None, reason="needs the tree and cc")
@pytest.mark.parametrize(("compiler", "said"), [
    ("no-such-cc", r"kvmattr is compiled when it is installed, and this machine has no C compiler 'no-such-cc': "
                   r"install gcc or clang \(on Debian: apt install build-essential\), or name one with CC=\.\.\."),
    ("cc -nostdinc", r"kvmattr is compiled when it is installed, and 'cc' cannot compile with Python\.h in /\S+: "
                     r"install Python's headers \(on Debian: apt install python3-dev\)"),
    ("cc", None),
])
def test_what_a_build_lacks_is_its_last_line(tmp_path: Path, compiler: str, said: str | None) -> None:
    pytest.importorskip("Cython")
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "kvmattr"\nversion = "0"\n')
    (tmp_path / "kvmattr" / "fake" / "client").mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("_one.pyx", "one = 1\n"), ("fake/client/one.c", "int one = 1;\n")):
        (tmp_path / "kvmattr" / name).write_text(text)
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "CC": compiler})
    assert (done.returncode == 0) is (said is None), done.stderr
    if said is not None:
        assert re.fullmatch(said, done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="musl-gcc is not here")
@pytest.mark.parametrize("source", [*MODULES, *CLIENT])
def test_a_source_compiles_with_musl(source: str) -> None:
    if not (PACKAGE / source).exists():
        pytest.skip("the C sources are not here: they are made by a build in place")
    # The kernel's headers are the system's, behind musl's own.
    system = [f"-idirafter{path}" for path in ("/usr/include", f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}")]
    done = subprocess.run(["musl-gcc", "-std=gnu11", "-fsyntax-only", "-Wall", "-Werror", "-Wno-unused-function",
                           f"-I{PACKAGE}", f"-I{PACKAGE / 'include'}", f"-I{sysconfig.get_path('include')}", *system,
                           PACKAGE / source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
