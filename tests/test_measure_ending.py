"""How a command ends early: by signals, by a reader that went away, by an output that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from kvmattr.measure import ending
from kvmattr.measure.ending import ReaderGone, Terminated, check_reader, exit_code, reason, signals_interrupt

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
KVMATTR = [sys.executable, "-m", "kvmattr"]


@pytest.mark.parametrize(("number", "code", "words"), [
    (signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGHUP, 129, "ended by SIGHUP")])
def test_signals_interrupt_as_ctrl_c_does(number, code, words):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as raised, signals_interrupt():
        signal.raise_signal(number)
    assert isinstance(raised.value, Terminated)
    assert (exit_code(raised.value), reason(raised.value)) == (code, words)
    assert signal.getsignal(number) is before


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
    check_reader()
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(ending.sys, "stdout", stream)
        check_reader()
        os.close(reader)
        with pytest.raises(ReaderGone, match="ended by its reader, who closed the pipe"):
            check_reader()
    monkeypatch.setattr(ending.sys, "stdout", None)
    check_reader()


def run(command: str) -> subprocess.CompletedProcess[str]:
    """A shell's pipeline: its output, and the exit code of kvmattr itself."""
    return subprocess.run(["bash", "-c", command, *KVMATTR], capture_output=True, text=True, timeout=120,
                          env=ENVIRONMENT)


def test_a_closed_pipe_is_no_traceback():
    done = run('"$0" "$@" info | true; exit ${PIPESTATUS[0]}')
    assert done.returncode == 141
    assert done.stderr == ""


def test_a_full_output_is_one_line():
    done = run('"$0" "$@" info > /dev/full')
    assert (done.returncode, done.stderr) == (
        2, "kvmattr info: standard output cannot be written: No space left on device\n")


def test_a_closed_output_is_none():
    done = run('"$0" "$@" info >&-')
    assert (done.returncode, done.stderr) == (0, "")
