"""Building and running the coverage-guided targets: libFuzzer on the store behind its C API and on the reader of saved
maps. They need clang, and a Python with a shared library to put into the program.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PACKAGE = ROOT / "kvmattr"
BUILD = ROOT / "build" / "fuzz"
CORPUS = HERE / "corpus"
#: Target: its longest input.
TARGETS = {"capi": 512, "reader": 4096}

SANITIZE = ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined"]
#: For campaigns: twenty times as many executions, and findings by the model and the audit alone.
COUNT = ["-fsanitize-coverage=inline-8bit-counters,pc-table"]


def missing() -> str:
    """What this machine lacks to build the targets; empty if nothing."""
    if shutil.which("clang") is None:
        return "no clang"
    if not (PACKAGE / "_core.c").exists():
        return "no generated sources: build the package in place"
    library = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("LDLIBRARY")
    if not library.exists() or library.suffix == ".a":
        return f"no {library}: this Python has no shared library"
    probe = subprocess.run(
        ["clang", "-fsanitize=fuzzer", "-x", "c", "-", "-o", "/dev/null"],
        input="int LLVMFuzzerTestOneInput(const char *d, long n) { (void)d; (void)n; return 0; }",
        text=True,
        capture_output=True,
        check=False,
    )
    return "" if probe.returncode == 0 else "a clang without libFuzzer"


def build(sanitized: bool = True) -> Path:
    """The directory that holds the targets and the package that they load, built from the tree as it is."""
    options = SANITIZE if sanitized else COUNT
    digest = hashlib.sha256(repr((options, sysconfig.get_config_var("LIBDIR"))).encode())
    sources = [PACKAGE / "_core.c", *PACKAGE.rglob("*.h"), *HERE.glob("*.[ch]")]
    for source in sorted(sources):
        digest.update(source.read_bytes())
    directory = BUILD / digest.hexdigest()[:12]
    if (directory / "built").exists():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(PACKAGE, directory / "kvmattr", ignore=shutil.ignore_patterns("__pycache__", "*.c", "*.pyx"))
    includes = [f"-I{PACKAGE}", f"-I{PACKAGE / 'include'}", f"-I{sysconfig.get_path('include')}"]
    common = ["clang", "-std=c11", "-O1", "-g", "-fno-strict-aliasing", *includes]
    core = directory / "kvmattr" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    run(*common, "-w", "-fPIC", "-shared", "-DCYTHON_WITHOUT_ASSERTIONS", *options, PACKAGE / "_core.c", "-o", core)
    libraries = Path(sysconfig.get_config_var("LIBDIR"))
    linked = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
    linked = linked if sanitized else ["-fsanitize=fuzzer"]
    for target in TARGETS:
        run(
            *common,
            "-Wall",
            "-Wextra",
            "-Werror",
            *linked,
            HERE / f"{target}.c",
            "-o",
            directory / target,
            libraries / sysconfig.get_config_var("LDLIBRARY"),
            f"-Wl,-rpath,{libraries}",
            "-rdynamic",
            *sysconfig.get_config_var("LIBS").split(),
            "-lm",
            "-lpthread",
        )
    (directory / "built").touch()
    return directory


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True)


def fuzz(target: str, seconds: int, site: Path, sanitized: bool = True) -> int:
    """Run a target on its corpus, for so long; what it finds new stays in build/. The number of executions.

    A finding is a CalledProcessError: libFuzzer has told what, and kept the input."""
    directory = build(sanitized)
    grown = BUILD / "corpus" / target
    grown.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{directory}{os.pathsep}{site}",
        "PYTHONMALLOC": "malloc",
        # Python itself never frees some of its memory.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [
        directory / target,
        f"-max_total_time={seconds}",
        f"-max_len={TARGETS[target]}",
        "-rss_limit_mb=1024",
        "-timeout=10",
        "-print_final_stats=1",
        f"-artifact_prefix={BUILD}/{target}-",
        *([] if sanitized else ["-entropic=0", "-reduce_inputs=0"]),
        grown,
        CORPUS / target,
    ]
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    if done.returncode or counted is None:
        print(done.stderr[-6000:])
        raise subprocess.CalledProcessError(done.returncode or 1, words)
    return int(counted[1])
