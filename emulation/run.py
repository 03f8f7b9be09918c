"""A kernel of one's own under emulation, with kvmattr inside: `python3 dev.py kernel`.

    --source DIR     a kernel's source tree: configured with kvm.config, built beside this tree, then booted
    --tracing        of --source: with the kernel's tracers, too (tracing.config), for the job events
    --image FILE     a bzImage that has what kvm.config asks for
                     (neither: the image that the last --source built)
    --out DIR        where the results go (results/kernel)
    --jobs A,B,...   info, tests, study (these three), calls (what emulation/fit.py needs, minutes more),
                     events (the kernel's own event of a conversion, of a kernel built with --tracing)
    --timeout S      end the emulator after so many seconds (1800)
    --emulator NAME  qemu or vng (vng where virtme-ng is installed)

The emulated CPU executes one instruction a nanosecond of the guest's clock (QEMU's -icount), so that times inside are
numbers of instructions and come out alike on any host. It offers AMD's nested paging to the kernel's KVM. The root
file system is this machine's own, read only: leave the tree alone while it runs. The user needs no privileges.
Jobs that count and jobs that do not run at once, in a machine each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
BUILD = TREE / "build" / "kernel"
JOBS = ("info", "tests", "study", "calls", "events")
#: Those that are run where none are named, and those that count instructions.
USUAL = JOBS[:3]
COUNTED = ("study", "calls")
#: What building a kernel and running one needs, as Debian calls the packages.
_PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison",
             "bc": "bc"}
#: No clock of the host and no random numbers: what an emulated machine does is then the same in every run, but for
#: when the host's files come.
_ALIKE = ["-icount", "shift=0,sleep=off", "-rtc", "clock=vm", "-seed", "1"]
_MEMORY = "4G"
#: Nested paging for the kernel inside.
_CPU = "EPYC,+svm,+npt"


class Missing(Exception):
    """Something that a run needs is not here; the text says what, and how to get it."""


def needed(*programs: str) -> None:
    """Raise :class:`Missing` that names the packages of the programs that are not installed."""
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        packages = " ".join(_PACKAGES[program] for program in absent)
        raise Missing(f"{', '.join(absent)} not found: on Debian, apt-get install {packages}")


def built_image(place: Path = BUILD) -> Path:
    """Where ``--source`` leaves its image."""
    return place / "arch" / "x86" / "boot" / "bzImage"


def build(source: Path, *, tracing: bool = False) -> Path:
    """Configure ``source`` with kvm.config and build it out of its tree; the image. make does only what is new.

    ``tracing``: with tracing.config, too, in a place of its own.
    """
    if not (source / "scripts" / "kconfig" / "merge_config.sh").is_file():
        raise Missing(f"{source} is no kernel source tree: it has no scripts/kconfig/merge_config.sh")
    needed("make", "gcc", "flex", "bison", "bc")
    place = BUILD.with_name("kernel-tracing") if tracing else BUILD
    place.mkdir(parents=True, exist_ok=True)
    parts = [HERE / "kvm.config", *([HERE / "tracing.config"] * tracing)]
    wanted = "".join(part.read_text() for part in parts)
    config, merged = place / ".config", place / "kvm.config"
    make = ["make", "-s", "-C", str(source), f"O={place}"]
    if not config.exists() or not merged.exists() or merged.read_text() != wanted:
        _call([*make, "allnoconfig"])
        merge = source / "scripts" / "kconfig" / "merge_config.sh"
        _call([str(merge), "-m", "-O", str(place), str(config), *map(str, parts)], quiet=True)
        _call([*make, "olddefconfig"])
        _say_unmet(wanted, config.read_text())
        merged.write_text(wanted)
    _call([*make, f"-j{len(os.sched_getaffinity(0))}", "bzImage"])
    return built_image(place)


def _say_unmet(wanted: str, got: str) -> None:
    """Tell which options this kernel did not take; without the VM type there is nothing to measure."""
    lines = set(got.splitlines())
    unmet = [line for line in wanted.splitlines() if line.startswith("CONFIG_")
             and (line not in lines if not line.endswith("=n") else f"{line[:-1]}y" in lines)]
    if unmet:
        print(f"this kernel did not take: {' '.join(unmet)}", flush=True)
    if "CONFIG_KVM_SW_PROTECTED_VM=y" in unmet:
        raise Missing("this kernel has no CONFIG_KVM_SW_PROTECTED_VM: attributes came with Linux 6.8")


def qemu_command(image: Path, out: Path, part: str) -> list[str]:
    """Plain QEMU: the host's root by 9p, read only, and ``out`` as the writable share; ``part`` reaches init.sh."""
    needed("qemu-system-x86_64")
    append = ["console=ttyS0", "quiet", "panic=-1", "root=root", "rootfstype=9p", "ro",
              "rootflags=trans=virtio,version=9p2000.L,msize=262144,cache=loose", f"init={HERE / 'init.sh'}",
              "norandmaps", "hostname=emulated", f"part={part}"]
    return ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-cpu", _CPU, "-m", _MEMORY, *_ALIKE,
            "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
            "-fsdev", f"local,id=results,path={out},security_model=none",
            "-device", "virtio-9p-pci,fsdev=results,mount_tag=results",
            "-kernel", str(image), "-append", " ".join(append)]


def vng_command(image: Path, out: Path, part: str) -> list[str]:
    """virtme-ng: it brings its own init and shares; the command is the same."""
    script = (f"sh {shlex.quote(str(out / f'command-{part}'))} </dev/null; echo $? >"
              f"{shlex.quote(str(out / f'status-{part}'))}")
    return ["vng", "--run", str(image), "--disable-kvm", "--cpus", "1", "--memory", _MEMORY, "--force-9p",
            f"--rwdir={out}", "--user", "root", "--append", "norandmaps",
            f"--qemu-opts={shlex.join(['-cpu', _CPU, *_ALIKE])}", "--exec", script]


def parts_of(jobs: list[str]) -> dict[str, list[str]]:
    """The jobs of each machine that is booted: those that count instructions have one of their own.

    Both run at once; what is counted does not depend on what else the host does.

    >>> parts_of(["info", "tests", "study"])
    {'asked': ['info', 'tests'], 'counted': ['study']}
    """
    parts = {"asked": [job for job in jobs if job not in COUNTED], "counted": [job for job in jobs if job in COUNTED]}
    return {part: chosen for part, chosen in parts.items() if chosen}


def boot(image: Path, out: Path, jobs: list[str], timeout: int, emulator: str) -> int:
    """Boot ``image`` and run the jobs inside; 1 if one failed. What they and the consoles write is left in ``out``."""
    if not image.is_file():
        raise Missing(f"no kernel image {image}: --source DIR builds one")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    machines = [_Machine(image, out, part, chosen, emulator) for part, chosen in parts_of(jobs).items()]
    try:
        for machine in machines:
            machine.start()
        for machine in machines:
            machine.thread.join(max(started + timeout - time.monotonic(), 0))
        late = any(machine.thread.is_alive() for machine in machines)
    finally:
        for machine in machines:
            machine.end()
    if late:
        raise Missing(f"the emulator was ended after {timeout} s (--timeout): see {machines[0].console}")
    codes = [machine.code() for machine in machines]
    if "study" in jobs and not any(codes):
        _draw(out)
    print(f"{time.monotonic() - started:.0f} s; results in {out}", flush=True)
    return max(codes)


class _Machine:
    """One emulated machine: `part` names its files in ``out``; a thread copies what it says."""

    def __init__(self, image: Path, out: Path, part: str, jobs: list[str], emulator: str) -> None:
        self._status = out / f"status-{part}"
        self._status.unlink(missing_ok=True)
        self.console = out / f"console-{part}.txt"
        self._emulator = emulator
        inside = out if emulator == "vng" else Path("/mnt")
        words = [sys.executable, "-P", "-B", str(HERE / "jobs.py"), str(inside), *jobs]
        (out / f"command-{part}").write_text(
            f"cd {shlex.quote(str(TREE))}\nexport PYTHONPATH={shlex.quote(str(TREE))} "
            f"PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0\n{shlex.join(words)} 2>&1\n")
        self._command = (vng_command if emulator == "vng" else qemu_command)(image, out, part)
        self._process: subprocess.Popen[str] | None = None
        self.thread = threading.Thread(target=self._copy, daemon=True)

    def start(self) -> None:
        """Switch it on."""
        with self.console.open("w") as console:
            console.write(shlex.join(self._command) + "\n")
        self._errors = self.console.open("a")
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                         stderr=self._errors, text=True, errors="replace")
        self.thread.start()

    def end(self) -> None:
        """Switch it off, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.thread.join()
            self._errors.close()

    def code(self) -> int:
        """The exit code of its command."""
        if not self._status.exists():
            raise Missing(f"the emulated machine ended before its command did: see {self.console}")
        return int(self._status.read_text())

    def _copy(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as said, self.console.open("a") as console:
            for line in said:
                console.write(line)
                line = line.rstrip("\r\n")
                if line.startswith("== ") and self._emulator == "qemu":
                    with contextlib.suppress(OSError):      # it may be gone
                        line += f", {_cpu_seconds(self._process.pid):.0f} s of CPU since the start"
                print(line, flush=True)
        self._process.wait()


def _cpu_seconds(pid: int) -> float:
    """The processor time that a process has had; the guest's own clock leaps over what it waits for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _draw(out: Path) -> None:
    """The page and the table of instructions a conversion: made here, since an emulated CPU takes a minute for them."""
    python = [sys.executable, "-P", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(TREE)}
    study = str(out / "study.json")
    for words in (["emulation.table", study, "--data", str(out / "instructions.json")],
                  ["kvmattr", "report", study, "--html", str(out / "study.html")]):
        said = subprocess.run([*python, *words], env=environment, capture_output=True, text=True, check=False)
        if said.returncode:
            raise Missing(f"{words[0]} of {study}: {said.stderr.strip()}")
        if words[0] == "emulation.table":
            (out / "instructions.md").write_text(said.stdout)
            print(said.stdout, end="", flush=True)


def _call(words: list[str], quiet: bool = False) -> None:
    print("+", shlex.join(words), flush=True)
    code = subprocess.call(words, stdout=subprocess.DEVNULL if quiet else None)
    if code:
        raise Missing(f"{words[0]} ended with code {code}")


def main(words: list[str]) -> int:
    """Build, boot, run; the exit code of the jobs, 2 where something is missing."""
    parser = argparse.ArgumentParser(prog="dev.py kernel", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tracing", action="store_true", help=argparse.SUPPRESS)
    which.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=TREE / "results" / "kernel", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", default=",".join(USUAL), help=argparse.SUPPRESS)
    parser.add_argument("--timeout", type=int, default=1800, help=argparse.SUPPRESS)
    parser.add_argument("--emulator", choices=("qemu", "vng"), default="vng" if shutil.which("vng") else "qemu",
                        help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    jobs = chosen.jobs.split(",")
    unknown = [job for job in jobs if job not in JOBS]
    if unknown:
        parser.error(f"unknown job {unknown[0]!r}: known are {', '.join(JOBS)}")
    try:
        image = (build(chosen.source.resolve(), tracing=chosen.tracing) if chosen.source
                 else (chosen.image or built_image()).resolve())
        return boot(image, chosen.out.resolve(), jobs, chosen.timeout, chosen.emulator)
    except Missing as error:
        print(f"dev.py kernel: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
