"""The way into the C API: calls that come too early, a program outside its environment, what build tools are told."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import kvmattr
from kvmattr import AttributeMap
from tests.embedding import building

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOT_IMPORTED = -11
EARLY = r"^kvmattr_import\(\) was not called yet, or it failed$"
#: A client that uses the headers and links with nothing.
CLIENT = """
#include "kvmattr.h{pp}"
int main(void) {{ return kvmattr_create(1, 0, 0) == KVMATTR_NOT_IMPORTED ? 0 : 1; }}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.install(tmp_path_factory.mktemp("installed"))


@pytest.mark.parametrize("command", ["gcc", "clang"])
def test_a_call_before_the_import_is_an_error(site: Path, tmp_path: Path, command: str) -> None:
    path = building.compile_module("early", building.SOURCES / "early.c", building.include_options(site), tmp_path,
                                   building.compiler(command))
    early = building.load("early", path)
    assert early.codes() == [NOT_IMPORTED] * 22
    assert early.others() == (0, "kvmattr_import() was not called yet, or it failed", 0, False)
    m = AttributeMap(10)
    for call, words in ((early.map_of, (m,)), (early.view_of, (m,)), (early.object_of, ())):
        with pytest.raises(RuntimeError, match=EARLY):
            call(*words)
    early.import_()
    assert early.others()[0] == 1
    assert early.map_of(m) is early.view_of(m) is True
    assert NOT_IMPORTED not in early.codes()[1:]


def test_a_host_outside_its_environment_is_told_which_python_was_asked(site: Path, tmp_path: Path) -> None:
    program = building.compile_program(EXAMPLES / "host.cpp", ["-std=c++17", *building.include_options(site)], tmp_path,
                                       building.compiler("g++"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([program], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**environment, "PYTHONNOUSERSITE": "1"}, check=False)
    if done.returncode == 0:
        pytest.skip("the Python that programs find has kvmattr installed")
    assert done.returncode == 1
    assert re.fullmatch(r"ImportError: kvmattr cannot be imported by the Python at /\S+: No module named 'kvmattr'\. "
                        r"Install it there, or point this program to the environment that has it: "
                        r"PYTHONPATH=that environment's site-packages", done.stderr.strip())


def printed(option: str, site: Path, directory: Path) -> str:
    text = building.run(sys.executable, "-m", "kvmattr", option, cwd=directory, site=site)
    assert text.endswith("\n")
    return text[:-1]


@pytest.mark.parametrize(("command", "plus"), [("gcc", ""), ("g++", "pp")])
def test_includes_are_what_a_compiler_needs(site: Path, tmp_path: Path, command: str, plus: str) -> None:
    options = shlex.split(printed("--includes", site, tmp_path))
    assert f"-I{site / 'kvmattr' / 'include'}" in options
    source = tmp_path / f"client.{'cpp' if plus else 'c'}"
    source.write_text("#include <Python.h>\n" + CLIENT.format(pp=plus))
    building.run(building.compiler(command), *options, "-fsyntax-only", *building.WARNINGS, source, cwd=tmp_path)


def test_pkg_config(site: Path, tmp_path: Path) -> None:
    tool, directory = building.compiler("pkg-config"), printed("--pkgconfigdir", site, tmp_path)
    asked = {"PKG_CONFIG_PATH": directory}
    assert building.run(tool, "--modversion", "kvmattr", cwd=tmp_path, **asked).strip() == kvmattr.__version__
    options = shlex.split(building.run(tool, "--cflags", "--libs", "kvmattr", cwd=tmp_path, **asked))
    source = tmp_path / "client.c"
    source.write_text(CLIENT.format(pp=""))
    building.run(building.compiler("gcc"), source, *options, *building.WARNINGS, "-o", "client", cwd=tmp_path)
    building.run(tmp_path / "client", cwd=tmp_path)


def test_cmake(site: Path, tmp_path: Path) -> None:
    tool = building.compiler("cmake")
    building.compiler("make")
    (tmp_path / "client.cpp").write_text(CLIENT.format(pp="pp"))
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.15)\nproject(client CXX)\nset(CMAKE_CXX_STANDARD 17)\n"
        "find_package(kvmattr ${WANTED} REQUIRED CONFIG)\nadd_executable(client client.cpp)\n"
        "target_link_libraries(client PRIVATE kvmattr::kvmattr)\n")
    found = f"-Dkvmattr_DIR={printed('--cmakedir', site, tmp_path)}"
    words = [tool, "-G", "Unix Makefiles", found]
    building.run(*words, f"-DWANTED={kvmattr.__version__}", "-B", "build", ".", cwd=tmp_path)
    building.run(tool, "--build", "build", cwd=tmp_path)
    building.run(tmp_path / "build" / "client", cwd=tmp_path)
    for wanted, fits in (("0.1", True), ("0.0.9", False), ("0.2", False), ("1.0", False)):
        done = subprocess.run([*words, f"-DWANTED={wanted}", "-B", f"build-{wanted}", "."], cwd=tmp_path, check=False,
                              capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == fits, done.stderr
