"""Compiling against kvmattr as a stranger does: from an installed package, outside the tree."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import kvmattr

SOURCES = Path(__file__).parent
PACKAGE = Path(kvmattr.__file__).parent
ROOT = PACKAGE.parent
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def run(*words: object, cwd: Path, site: Path | None = None, timeout: int = 600, **environment: str) -> str:
    """A command's output; a test failure with all that it said, if it fails."""
    path = os.pathsep.join([str(site), *sys.path[1:]] if site else sys.path[1:])
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    if done.returncode:
        pytest.fail(
            f"{' '.join(str(word) for word in words)}\nended with {done.returncode}\n"
            f"{done.stdout}{done.stderr}",
            pytrace=False,
        )
    return done.stdout


def machine() -> str:
    """The processor that this Python was built for."""
    return platform.machine()


def compiler(name: str) -> str:
    """The path of a compiler; the test is skipped where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"this machine has no {name}")
    return path


def install(directory: Path) -> Path:
    """A directory that holds kvmattr as its wheel does, and nothing else of ours: in a source tree what
    setuptools packs, with the extensions that are built; where the tests run against an installed kvmattr, that one."""
    if not (ROOT / "setup.py").exists():
        return ROOT
    for module in ("setuptools", "Cython"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"no {module} here to pack the source tree")
    site = directory / "site"
    run(sys.executable, "setup.py", "-q", "build_py", f"--build-lib={site}", cwd=ROOT)
    for built in PACKAGE.rglob(f"*{SUFFIX}"):
        shutil.copy2(built, site / built.relative_to(ROOT))
    return site


def include_options(site: Path) -> list[str]:
    return [f"-I{sysconfig.get_path('include')}", f"-I{site / 'kvmattr' / 'include'}"]


def compile_module(name: str, source: Path, options: list[str], directory: Path, command: str) -> Path:
    """An extension module of one C file."""
    target = directory / f"{name}{SUFFIX}"
    run(
        command,
        "-std=c11",
        "-O2",
        *WARNINGS,
        "-fPIC",
        "-shared",
        *options,
        source,
        "-o",
        target,
        cwd=directory,
    )
    return target


def compile_program(source: Path, options: list[str], directory: Path, command: str) -> Path:
    """A program with a Python interpreter in it."""
    libraries = Path(sysconfig.get_config_var("LIBDIR"))
    name = sysconfig.get_config_var("LDLIBRARY")
    if not (libraries / name).exists():
        pytest.skip(f"no {libraries / name} to link a program with")
    target = directory / source.stem
    run(
        command,
        "-g",
        *options,
        *WARNINGS,
        source,
        "-o",
        target,
        libraries / name,
        f"-Wl,-rpath,{libraries}",
        "-Wl,--export-dynamic",
        *sysconfig.get_config_var("LIBS").split(),
        "-lm",
        "-lpthread",
        cwd=directory,
    )
    return target


def load(name: str, path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def rebuilt_core(site: Path, directory: Path, *options: str) -> Path:
    """A copy of an installed kvmattr whose store is compiled again with these options."""
    generated = PACKAGE / "_core.c"
    if not generated.exists():
        pytest.skip("an installed kvmattr has no sources to compile again")
    copy = directory / "site"
    shutil.copytree(site, copy, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        compiler("gcc"),
        "-std=c11",
        "-O1",
        "-g",
        "-fno-strict-aliasing",
        "-fPIC",
        "-shared",
        *options,
        f"-I{PACKAGE}",
        *include_options(site),
        generated,
        "-o",
        copy / "kvmattr" / f"_core{SUFFIX}",
        cwd=directory,
    )
    return copy
