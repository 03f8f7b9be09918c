"""What runs inside the emulated machine: `jobs.py DIRECTORY JOB...` writes its results to the directory.

info    what `kvmattr info` says there                                              info.txt
tests   the bridge's tests, the recorded answers and recordings against this kernel  tests.txt, tests.xml
study   the kernel's rows of the study, each state read back and compared           study.json, study.txt
calls   instructions of calls of many shapes, for emulation/fit.py                  calls.json, calls.txt
events  the kernel's own event of a conversion, as each tracer writes it             events.txt, events/
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

#: The tests that say something of the kernel that they run on.
_TESTS = ("tests/test_bridge_kvm.py", "tests/test_kernel_answers.py", "tests/test_replay_on_kvm.py",
          "tests/test_study_backends.py")
_BACKENDS = ("kvm-attributes", "kvm-memslots", "empty-ioctl")
_SCENARIOS = ("conversion", "conversion-single")


def _python(out: Path, *words: str) -> int:
    """Run Python; what it says goes to the console line by line and into ``out``."""
    process = subprocess.Popen([sys.executable, "-P", "-B", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace")
    assert process.stdout is not None
    with process.stdout as said, out.open("w") as file:
        for line in said:
            file.write(line)
            print(line, end="", flush=True)
    return process.wait()


def info(directory: Path) -> int:
    """``kvmattr info``."""
    return _python(directory / "info.txt", "-m", "kvmattr", "info")


def tests(directory: Path) -> int:
    """The bridge's tests, and what other kernels were seen to answer."""
    return _python(directory / "tests.txt", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   f"--junitxml={directory / 'tests.xml'}", *_TESTS)


def study(directory: Path) -> int:
    """The kernel's rows of the study. Every run does the same work, and rounds are so long that what the kernel puts
    off (RCU's frees, ticks) is alike in all of them."""
    words = [word for name, values in (("--scenario", _SCENARIOS), ("--backend", _BACKENDS))
             for value in values for word in (name, value)]
    return _python(directory / "study.txt", "-m", "kvmattr", "scaling", "--quick", "--rounds", "7",
                   "--operations", "8192", "--operations", "kvm-memslots=768", *words,
                   "--note", "Under emulation: a nanosecond is an instruction of the guest.",
                   "--json", str(directory / "study.json"))


def calls(directory: Path) -> int:
    """What the estimate of `kvmattr replay` is fitted to."""
    return _python(directory / "calls.txt", "-m", "emulation.calls", str(directory / "calls.json"))


def events(directory: Path) -> int:
    """The kernel's own event, recorded and read back; and the recorder's tests that need tracefs."""
    (directory / "events").mkdir(exist_ok=True)
    code = _python(directory / "events.txt", "-m", "emulation.events", str(directory / "events"))
    return code or _python(directory / "events-tests.txt", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                           "tests/test_record.py", "-k", "real_instance")


JOBS: dict[str, Callable[[Path], int]] = {
    function.__name__: function for function in (info, tests, study, calls, events)}


def main(words: list[str]) -> int:
    """Run the jobs in order, all of them; 1 if one failed."""
    directory, failed = Path(words[0]), []
    for name in words[1:]:
        print(f"== {name}", flush=True)
        code = JOBS[name](directory)
        if code:
            failed.append(name)
        print(f"== {name}: {'ok' if not code else f'exit code {code}'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
