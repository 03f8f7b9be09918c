"""The extension modules, one for each .pyx in the package. Everything else is in pyproject.toml.

Build modes, by the environment variable KVMATTR_BUILD (several may be joined with commas):

=========  ==========================================================================================
debug      C asserts, and validate() after each operation of the store
locking    the store's mutex is always taken, as on free-threaded CPython
counting   the store counts the nodes that it visits and the pages that it compares (used by the gate)
asan       AddressSanitizer and UndefinedBehaviorSanitizer (preload libasan, or run ``dev.py asan``)
tsan       ThreadSanitizer
coverage   Cython line tracing, for coverage.py with the Cython.Coverage plugin
annotate   writes the .html files that show where Cython still talks to Python
=========  ==========================================================================================
"""

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

MODES = ("debug", "locking", "counting", "asan", "tsan", "coverage", "annotate")
modes = [mode for mode in os.environ.get("KVMATTR_BUILD", "").split(",") if mode]
unknown = sorted(set(modes) - set(MODES))
if unknown:
    raise SystemExit(f"KVMATTR_BUILD names {unknown}: the modes are {', '.join(MODES)}")

compile_args = ["-O3", "-std=c11", "-fno-strict-aliasing", "-Wall", "-Wextra",
                # Cython's own generated code trips these two; our headers are checked with both on.
                "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = [("CYTHON_WITHOUT_ASSERTIONS", None)]
if "debug" in modes:
    macros = [("KVMATTR_DEBUG", "1")]
    compile_args += ["-O1", "-g", "-UNDEBUG"]
if "locking" in modes:
    macros.append(("KVMATTR_LOCKING", "1"))
if "counting" in modes:
    macros.append(("KVMATTR_COUNTING", "1"))
if "asan" in modes:
    compile_args += ["-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link_args += ["-fsanitize=address,undefined"]
if "tsan" in modes:
    compile_args += ["-g", "-fsanitize=thread"]
    link_args += ["-fsanitize=thread"]
if "coverage" in modes:
    macros.append(("CYTHON_TRACE_NOGIL", "1"))
if not {"debug", "asan", "tsan", "coverage"} & set(modes):
    # Python's own flags ask for debug information, six times the size of the code.
    compile_args.append("-g0")

directives = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    # What inspect.signature reads off a method that is no Python function.
    "embedsignature.format": "clinic",
    "linetrace": "coverage" in modes,
}

here = Path(__file__).parent
extensions = [
    Extension(
        str(source.relative_to(here).with_suffix("")).replace(os.sep, "."),
        [str(source.relative_to(here))],
        include_dirs=["kvmattr", "kvmattr/include"],
        depends=[str(header.relative_to(here)) for header in sorted((here / "kvmattr").rglob("*.h"))],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )
    for source in sorted((here / "kvmattr").rglob("*.pyx"))
]


#: What `kvmattr fake` preloads into programs: C alone, no module of Python, so its file has no Python in its name.
PRELOADED = "kvmattr.fake.client.libkvmattr_fake"
if sys.platform.startswith("linux"):
    extensions.append(Extension(
        PRELOADED,
        [str(source.relative_to(here)) for source in sorted((here / "kvmattr/fake/client").glob("*.c"))],
        depends=[str(header.relative_to(here)) for header in sorted((here / "kvmattr/fake/client").glob("*.h"))],
        extra_compile_args=["-O2", "-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden", "-g0"],
        libraries=["pthread", "dl"],
    ))


class KeptBuild(build_ext):
    """An editable install compiles into ``build`` as ``build_ext --inplace`` does, not into a directory that is thrown
    away: what did not change is not compiled again. And what is preloaded gets its file name."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.split(".")[-1] == PRELOADED.split(".")[-1]:     # with and without its package
            return fullname.replace(".", os.sep) + ".so"
        return super().get_ext_filename(fullname)

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:
            kept = self.distribution.get_command_class("build")(self.distribution)
            kept.ensure_finalized()
            self.build_lib, self.build_temp = kept.build_lib, kept.build_temp

    def build_extensions(self) -> None:
        """What is missing is the last line that is printed, and not one in the middle of a compiler's output."""
        compiler = self.compiler.compiler_so[0]
        if shutil.which(compiler) is None:
            raise SystemExit("kvmattr is compiled when it is installed, and this machine has no C compiler "
                             f"{compiler!r}: install gcc or clang (on Debian: apt install build-essential), or name "
                             "one with CC=...")
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "headers.c"
            source.write_text("#include <Python.h>\n")
            try:
                self.compiler.compile([str(source)], output_dir=scratch)
            except CompileError:
                raise SystemExit(f"kvmattr is compiled when it is installed, and {compiler!r} cannot compile with "
                                 f"Python.h in {sysconfig.get_path('include')}: install Python's headers (on Debian: "
                                 "apt install python3-dev)") from None
        super().build_extensions()


# The core alone takes over a minute: the others are compiled beside it.
setup(
    cmdclass={"build_ext": KeptBuild},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(extensions, compiler_directives=directives, annotate="annotate" in modes, force=bool(modes)),
)
