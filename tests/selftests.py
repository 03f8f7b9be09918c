"""The kernel's own KVM selftests against the model: `python3 dev.py selftests --source DIR`.

Builds them outside the kernel's tree, each linked with our ``test_assert`` in place of theirs, runs each under
`kvmattr fake`, and prints which of their assertions hold. DIR is an unpacked kernel source; nothing of it comes into
this tree. The guest code of a test does not run, as the model has no processor: what waits for it ends there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
#: Tests whose assertions are of memory, and of making VMs and vCPUs.
TESTS = ("guest_memfd_test", "set_memory_region_test", "kvm_create_max_vcpus", "memslot_perf_test",
         "x86/private_mem_conversions_test", "x86/private_mem_kvm_exits_test", "pre_fault_memory_test")
_SECONDS = 60
_SKIPPED = 4


class Place(NamedTuple):
    """An assertion, and how often it held and did not."""

    file: str
    line: int
    held: int
    failed: int
    text: str


class Outcome(NamedTuple):
    """How a test went."""

    name: str
    code: int
    places: list[Place]
    output: str

    @property
    def own(self) -> list[Place]:
        """The assertions of the test itself, not of the library below it."""
        return [place for place in self.places if place.file.endswith(f"/{self.name}.c")]


def main(words: list[str]) -> int:
    """Build, run, print the table; 0, or 2 if it cannot be built."""
    parser = argparse.ArgumentParser(prog="dev.py selftests", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="an unpacked kernel source")
    parser.add_argument("--abi", default="linux-7.2", help="the profile (default: %(default)s)")
    parser.add_argument("--build", type=Path, metavar="DIR",
                        help="where to build (default: a directory that is removed)")
    parser.add_argument("tests", nargs="*", default=TESTS, metavar="TEST", help=f"default: {', '.join(TESTS)}")
    arguments = parser.parse_args(words)
    source = arguments.source.resolve()
    if not (source / "tools/testing/selftests/kvm/lib/assert.c").exists():
        print(f"dev.py selftests: {source} has no tools/testing/selftests/kvm: --source names an unpacked kernel"
              " source", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        build = Path(scratch) if arguments.build is None else arguments.build.resolve()
        build.mkdir(parents=True, exist_ok=True)
        programs = built(source, build, arguments.tests)
        outcomes = [ran(name, program, arguments.abi, build) for name, program in programs.items()]
    print(f"profile {arguments.abi}, selftests of {version(source)}\n")
    print("\n".join(table(outcomes)))
    return 0


def version(source: Path) -> str:
    """The kernel's version, as its Makefile says."""
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)", (source / "Makefile").read_text(), re.MULTILINE))
    return "Linux " + ".".join(found.get(part, "?") for part in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


def built(source: Path, build: Path, names: list[str]) -> dict[str, Path]:
    """The programs by their tests' names."""
    headers = build / "headers"
    if not (headers / "usr" / "include" / "linux" / "kvm.h").exists():
        subprocess.run(["make", "-s", "-C", source, f"O={headers}", "headers"], check=True, stdout=subprocess.DEVNULL)
    kvm = source / "tools/testing/selftests/kvm"
    compile_ = [os.environ.get("CC", "gcc"), "-O2", "-w", "-std=gnu11", "-D_GNU_SOURCE", "-DCONFIG_64BIT",
                "-U_FORTIFY_SOURCE", "-fno-stack-protector", "-fno-PIE", "-fno-strict-aliasing", "-march=x86-64-v2",
                "-isystem", headers / "usr/include",
                *(f"-I{place}" for place in (
                    kvm, kvm / "include", kvm / "include/x86", kvm / "lib", source / "tools/include",
                    source / "tools/arch/x86/include", kvm.parent, kvm.parent / "rseq"))]
    objects = []
    for piece in [HERE / "selftests_assert.c", *sorted(kvm.glob("lib/*.c")), *sorted(kvm.glob("lib/x86/*.[cS]"))]:
        if piece == kvm / "lib/assert.c":
            continue
        made = build / f"{piece.parent.name}_{piece.name}.o"
        # What guests use in place of the C library's must not become calls of itself.
        plain = ["-ffreestanding"] if piece.name == "string_override.c" else []
        subprocess.run([*compile_, *plain, "-c", piece, "-o", made], check=True)
        objects.append(made)
    programs = {}
    for name in names:
        programs[name] = build / Path(name).name
        subprocess.run([*compile_, "-no-pie", "-pthread", kvm / f"{name}.c", *objects, "-ldl", "-o", programs[name]],
                       check=True)
    return programs


def ran(name: str, program: Path, abi: str, build: Path) -> Outcome:
    """One test under the fake, and what became of each of its assertions."""
    report = build / f"{program.name}.assertions"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "kvmattr", "fake", "--abi", abi, "--phys-bits", "46", "--",
               shutil.which("timeout") or "timeout", str(_SECONDS), program]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=HERE.parent,
                          env={**os.environ, "KVMATTR_ASSERTIONS": str(report)})
    return Outcome(name, done.returncode, list(read(report)), done.stdout + done.stderr)


def read(report: Path) -> Iterator[Place]:
    """The assertions of a report."""
    if report.exists():
        for line in report.read_text(errors="replace").splitlines():
            file, number, held, failed, text = line.split("\t", 4)
            yield Place(file, int(number), int(held), int(failed), text)


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """The table, and below it each assertion that does not hold."""
    yield "| test | assertions reached | hold | checked | ends |"
    yield "|---|---:|---:|---:|---|"
    for outcome in outcomes:
        own = outcome.own
        hold = sum(not place.failed for place in own)
        checked = sum(place.held + place.failed for place in outcome.places)
        yield f"| {outcome.name} | {len(own)} | {hold} | {checked:,} | {ending(outcome)} |"
    yield ""
    for outcome in outcomes:
        for place in outcome.places:
            if place.failed:
                yield f"{outcome.name}: {Path(place.file).name}:{place.line}: {place.text}"


def ending(outcome: Outcome) -> str:
    """How a test ended, in words."""
    if outcome.code == _SKIPPED:
        found = re.search(r"SKIP - (.*)", outcome.output)
        return f"skipped: {found[1] if found else 'by itself'}"
    if outcome.code == 124:
        return "waits for its guest"
    if outcome.code > 128 and outcome.code != 254:
        return f"ended by signal {outcome.code - 128}"
    return {0: "to its end", 254: "at an assertion"}.get(outcome.code, f"exit code {outcome.code}")
