"""Builds of kvmattr beside the installed one: counting or plain, of a source tree or a git ref, cached."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

from kvmattr.gate import cache, repository, running
from kvmattr.gate.verdict import CannotTell, Usage

#: What the compiler sees, so that a change elsewhere costs no compiling, and what else a build consists of.
_COMPILED = (".pyx", ".pxd", ".pxi", ".h", ".hpp")
_PLAIN = (".py",)
_ROOT_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
_NOT_SOURCES = ("*.so", "*.c", "__pycache__")


def layout(shifted: bool) -> dict[str, str]:
    """What a build is told in its environment; ``shifted``: the same code at other addresses, so that what its time
    changes by is layout. CPPFLAGS are added to the interpreter's own flags, in whose place CFLAGS would come."""
    return {"CPPFLAGS": f"{os.environ.get('CPPFLAGS', '')} -falign-functions=64".strip()} if shifted else {}


def source_tree(start: Path) -> Path | None:
    """kvmattr's source tree that holds ``start``, or None."""
    for directory in (start.resolve(), *start.resolve().parents):
        project = directory / "pyproject.toml"
        if project.is_file() and (directory / "kvmattr" / "_core.pyx").is_file():
            named = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}).get("name")
            return directory if named == "kvmattr" else None
    return None


def build(source: Path, mode: str = "", *, twin: bool = False, shifted: bool = False) -> Path:
    """A directory that has kvmattr built from ``source``; made now unless the cache has it.

    ``mode`` is setup.py's KVMATTR_BUILD. ``twin`` and ``shifted`` are what paired times are controlled with:
    the twin is a copy, because compiling the same sources again gives the same bytes; the shifted one is
    compiled with its functions at other addresses.
    """
    flags = layout(shifted)
    kind = (mode or "plain") + "-shifted" * shifted

    def assemble(target: Path) -> None:
        compiled = cache.kept(f"{_digest(source, _COMPILED, mode, flags)}-{mode or 'plain'}-extensions",
                              lambda scratch: _compile(source, mode, kind, flags, scratch))
        shutil.copytree(source / "kvmattr", target / "kvmattr", ignore=shutil.ignore_patterns(*_NOT_SOURCES))
        shutil.copytree(compiled, target, dirs_exist_ok=True)
    # All names in the cache are of one length: a path is in a process's memory and moves what comes after it.
    return cache.kept(f"{_digest(source, _COMPILED + _PLAIN, mode, flags, twin)}-{mode or 'plain'}", assemble)


def checkout(directory: Path, ref: str) -> Path:
    """A directory with kvmattr's sources of a git ref of the repository that holds ``directory``."""
    place = repository.checkout(directory, ref).inside
    if source_tree(place) != place.resolve():
        raise Usage(f"--base {ref!r} has no kvmattr sources at its root")
    return place


@functools.cache
def _tools(compiler: str) -> tuple[str | None, ...]:
    """Compiler and Cython in their versions: two builds that are compared were made by the same ones."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    except OSError:
        version = None
    return (version, importlib.metadata.version("Cython") if importlib.util.find_spec("Cython") else None)


def _compiler() -> str:
    named: str = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return named.split()[0]


def _digest(source: Path, suffixes: tuple[str, ...], mode: str, flags: dict[str, str], twin: bool = False) -> str:
    variables = [os.environ.get(name) for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED")]
    digest = hashlib.sha256(repr((mode, flags, twin, sysconfig.get_config_var("SOABI"), platform.python_version(),
                                  variables, _tools(_compiler()))).encode())
    found = sorted(path for path in (source / "kvmattr").rglob("*") if path.suffix in suffixes)
    for path in (source / "setup.py", *found):
        digest.update(f"{path.relative_to(source)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(source: Path, mode: str, kind: str, flags: dict[str, str], target: Path) -> None:
    """Put the extension modules, nothing else, below ``target``."""
    words = f"{kind} build"
    if shutil.which(_compiler()) is None:
        raise CannotTell(f"a {words} is needed and this machine has no C compiler ({_compiler()})")
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        shutil.copytree(source / "kvmattr", tree / "kvmattr", ignore=_ignored)
        for name in _ROOT_FILES:
            if (source / name).exists():
                shutil.copy(source / name, tree)
        if importlib.util.find_spec("Cython") and importlib.util.find_spec("setuptools"):
            command = ["setup.py", "--quiet", "build_ext", f"--build-lib={target}",
                       f"--parallel={os.cpu_count()}"]
        else:
            command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                       f"--target={target}", "."]
        running.run([sys.executable, *command], f"{words} of {source} (kept in {cache.directory()})", cwd=tree,
                    environment={**os.environ, "KVMATTR_BUILD": mode, **flags},
                    failed=lambda code: f"the {words} of {source} failed:")
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_file() and path.suffix != ".so":
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _ignored(directory: str, names: list[str]) -> set[str]:
    """Not copied: products, and the study's compiled baselines, which take long and are not judged."""
    ignored = set(shutil.ignore_patterns(*_NOT_SOURCES)(directory, names))
    if Path(directory).name == "study":
        ignored |= {name for name in names if name.endswith(".pyx")}
    return ignored
