"""python -m tests.arm64 [words for pytest]: extensions cross-compiled for arm64, the store's tests under emulation.

Needs Debian's gcc-aarch64-linux-gnu and qemu-user-static, and apt-get and pip to fetch an arm64 Python and numpy. Those
go into a directory of their own (build/arm64), the system's packages are not touched. Emulation on x86 shows what the
code computes there, not how its memory is ordered: docs/trust.md tells what was reviewed for that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "arm64"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
SUFFIX = ".cpython-311-aarch64-linux-gnu.so"
#: Files of tests that say nothing there, and why.
THREADS = "threads are ordered as on the machine below"
LEFT_OUT = {
    "test_store_arguments_change.py": THREADS, "test_store_beside_writer.py": THREADS, "test_store_threads.py": THREADS,
    "test_store_arguments_loads.py": "needs the trap flag of x86-64",
    "test_store_huge.py": "huge pages are those of the kernel below",
    "test_store_memory.py": "what refuses memory is a library of the machine below",
    "test_store_saving.py": "files are those of the kernel below"}
#: The references are Python, and run where Python does. Each line takes twenty times as long as on the machine below: a
#: quarter of the random examples.
WORDS = ["-q", "-m", "not slow", "-k", "not SparseMap and not DenseMap", "--durations=10"]
SHARE = "0.25"


def run(*words: object, **environment: str) -> None:
    command = [str(word) for word in words]
    print("+", *command, flush=True)
    code = subprocess.call(command, cwd=ROOT, env={**os.environ, **environment})
    if code:
        raise SystemExit(code)


def missing() -> str:
    lacking = [name for name in (COMPILER, EMULATOR, "apt-get", "dpkg-deb") if shutil.which(name) is None]
    return f"no {', '.join(lacking)}" if lacking else ""


def fetch_python() -> Path:
    """Debian's arm64 Python with its headers, unpacked; apt's own state stays as it is."""
    root = BUILD / "root"
    if (root / "usr" / "bin" / "python3.11").exists():
        return root
    apt = BUILD / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", *options, "-qq", "update")
    run("apt-get", *options, "-qq", "-y", "--download-only", "--no-install-recommends", "install",
        "python3.11", "libpython3.11-dev", "libstdc++6")
    for archive in sorted((apt / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root


def fetch_packages() -> Path:
    site = BUILD / "site"
    if not (site / "numpy").exists():
        platforms = [word for name in ("manylinux2014", "manylinux_2_27", "manylinux_2_28")
                     for word in ("--platform", f"{name}_aarch64")]
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *platforms,
            "--target", site, "--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:",
            "numpy>=1.26", "pytest>=8", "hypothesis>=6.100", "pytest-benchmark>=5")
    return site


def build(root: Path) -> Path:
    """The tree with extensions for arm64 in place of this machine's."""
    tree = BUILD / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for part in ("kvmattr", "tests", "docs", "pyproject.toml"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy2(source, tree / part)
    headers = [f"-I{root / 'usr' / 'include' / 'python3.11'}", f"-I{root / 'usr' / 'include'}"]
    commands = []
    for source in sorted((ROOT / "kvmattr").rglob("*.c")):
        if not source.with_suffix(".pyx").exists():
            continue
        target = tree / source.relative_to(ROOT).with_name(source.stem + SUFFIX)
        commands.append([COMPILER, "-std=c11", "-O2", "-fno-strict-aliasing", "-fPIC", "-shared", "-w",
                         "-DCYTHON_WITHOUT_ASSERTIONS", f"-I{ROOT / 'kvmattr'}", f"-I{ROOT / 'kvmattr' / 'include'}",
                         *headers, str(source), "-o", str(target)])
    if not commands:
        raise SystemExit("tests.arm64: no generated sources: build the package in place")
    for command in commands:
        run(*command)
    return tree


def starter(root: Path) -> Path:
    """What the tests start as Python: `sys.executable` is this, so what they start themselves is emulated as well."""
    script = root / "usr" / "bin" / "python-emulated"
    script.write_text(f'#!/bin/sh\nexec {EMULATOR} -0 "$0" -L {root} {root}/usr/bin/python3.11 "$@"\n')
    script.chmod(0o755)
    return script


def main() -> None:
    lacking = missing()
    if lacking:
        print(f"not run: this machine has {lacking}")
        return
    root, site = fetch_python(), fetch_packages()
    python, tree = starter(root), build(root)
    words = sys.argv[1:] or WORDS
    os.chdir(tree)
    files = [str(path) for path in sorted((tree / "tests").glob("test_store*.py")) if path.name not in LEFT_OUT]
    command = [str(python), "-m", "pytest", *files, "-p", "no:cacheprovider", *words]
    print("+", *command, flush=True)
    begun = time.monotonic()
    code = subprocess.call(command, cwd=tree, env={"KVMATTR_TEST_SHARE": SHARE, **os.environ, "PYTHONPATH": str(site)})
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes, with {SHARE} of the random examples; left out:")
    for name, why in LEFT_OUT.items():
        print(f"  {name}: {why}")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
