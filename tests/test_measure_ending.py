"""How a command ends early: by signals, by a reader that went away, by an output that is full."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from kvmattr.measure import ending
from kvmattr.measure.ending import ReaderGone, Terminated, check, exit_code, reason, signals_interrupt

KVMATTR = [sys.executable, "-m", "kvmattr"]


@pytest.mark.parametrize(("number", "code", "words"), [
    (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM"),
    (signal.SIGHUP, 129, "ended by SIGHUP")])
def test_signals_interrupt_as_ctrl_c_does(number, code, words):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as raised, signals_interrupt():
        signal.raise_signal(number)
    assert isinstance(raised.value, Terminated) is (number != signal.SIGINT)
    assert (exit_code(raised.value), reason(raised.value)) == (code, words)
    assert signal.getsignal(number) is before


def test_what_a_library_clears_is_raised_again():
    class Loses(type):
        """As an enum's class before Python 3.12: its attributes are looked up in Python, where signals arrive."""

        def __getattr__(cls, name):
            signal.raise_signal(signal.SIGTERM)
            raise AttributeError(name)

    class Lost(int, metaclass=Loses):
        pass

    with signals_interrupt():
        with contextlib.suppress(KeyboardInterrupt):    # numpy's own silence, where it is silent
            assert (np.zeros(3, np.uint8) == Lost(0)).all()
        with pytest.raises(Terminated, match="ended by SIGTERM"):
            check()
    with signals_interrupt():
        check()


def test_a_sigint_that_somebody_else_handles_stays_his():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with signals_interrupt():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_that_became_another_error_is_a_signal(number, kind):
    """pybind11, by which matplotlib draws, tells a KeyboardInterrupt in a conversion as a TypeError."""
    def draw():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise TypeError("affine_transform(): incompatible function arguments") from None
    with pytest.raises(kind), signals_interrupt():
        draw()
    ending.again()      # over and done


def test_signals_that_come_together_are_one(monkeypatch):
    """A terminal that closes sends SIGHUP twice: the second must not end the writing of the results."""
    now = [100.0]
    monkeypatch.setattr(ending.time, "monotonic", lambda: now[0])
    written = []

    def command():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGHUP)
            written.append("results")
            now[0] += 2     # whoever asks again after that does not want to wait
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as raised, signals_interrupt():
        command()
    assert (written, exit_code(raised.value)) == (["results"], 130)


def test_other_errors_stay_what_they_are():
    with pytest.raises(TypeError, match="another"), signals_interrupt():
        raise TypeError("another")

    def write():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise OSError("full")       # what cannot be written is told as that
    with pytest.raises(OSError, match="full"), signals_interrupt():
        write()


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_interrupt():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look():
        with signals_interrupt():
            seen.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=look)
    thread.start()
    thread.join(30)
    assert seen == [before]


def test_the_reader_is_looked_for(capfd, monkeypatch):
    check()
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(ending.sys, "stdout", stream)
        check()
        os.close(reader)
        with pytest.raises(ReaderGone, match="ended by its reader, who closed the pipe"):
            check()
    monkeypatch.setattr(ending.sys, "stdout", None)
    check()


def run(command: str) -> subprocess.CompletedProcess[str]:
    """A shell's pipeline: its output, and the exit code of kvmattr itself."""
    return subprocess.run(["bash", "-c", command, *KVMATTR], capture_output=True, text=True, timeout=120)


#: How pip starts a command.
SCRIPT = """import sys
from kvmattr.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize(("words", "is_ours"), [
    (["-m", "kvmattr", "info"], True), (["-mkvmattr", "info"], True), (["{here}/kvmattr", "info"], True),
    (["{here}/other", "kvmattr"], False), (["-m", "others.kvmattr"], False), (["-m", "others", "kvmattr"], False),
    (["-c", "import kvmattr", "kvmattr"], False)])
def test_ctrl_c_while_the_command_is_imported(words, is_ours, tmp_path):
    """Silence and the signal's own exit for the command; whoever imports the package has his KeyboardInterrupt."""
    (tmp_path / "kvmattr").write_text(SCRIPT)
    (tmp_path / "other").write_text(SCRIPT)
    for package in ("numpy", "others", "others/kvmattr"):
        (tmp_path / package).mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    (tmp_path / "others" / "__init__.py").write_text("import kvmattr\n")
    (tmp_path / "others" / "kvmattr" / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-P", *(word.format(here=tmp_path) for word in words)], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"})
    assert done.returncode == -signal.SIGINT
    assert done.stderr.endswith("" if is_ours else "KeyboardInterrupt\n")
    assert bool(done.stderr) is not is_ours


def test_the_command_listens_after_its_imports():
    program = ("import signal\nfrom kvmattr.measure import ending\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n"
               "try:\n    with ending.signals_interrupt(): signal.raise_signal(signal.SIGINT)\n"
               "except KeyboardInterrupt: print('heard', flush=True)\nsignal.raise_signal(signal.SIGINT)\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "heard\n", "")


def test_a_closed_pipe_is_no_traceback():
    done = run('"$0" "$@" info | true; exit ${PIPESTATUS[0]}')
    assert done.returncode == 141
    assert done.stderr == ""


def test_a_full_output_is_one_line():
    done = run('"$0" "$@" info > /dev/full')
    assert (done.returncode, done.stderr) == (
        2, "kvmattr info: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("words", ["scaling --list", "show TRACE", "show TRACE --history 0x1000", "replay TRACE",
                                   "replay TRACE --json -", "replay TRACE --write -", "replay TRACE --answers"])
def test_no_command_takes_the_output_for_one_of_its_files(words, tmp_path):
    """Commands that tell what is wrong with a file catch what is wrong with standard output, too."""
    trace = tmp_path / "a.trace"
    trace.write_text("slot 0 0 0 0x100000\nset 0x1000 0x1000 8 0\n")
    command = [sys.executable, "-m", "kvmattr", *words.replace("TRACE", str(trace)).split()]
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert gone.returncode == 141
    assert "Broken pipe" not in gone.stderr
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(f"kvmattr {words.split()[0]}: standard output cannot be written: No space left on "
                                "device\n")


def test_a_closed_output_is_none():
    done = run('"$0" "$@" info >&-')
    assert (done.returncode, done.stderr) == (0, "")
