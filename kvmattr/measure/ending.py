"""How a long run ends early: Ctrl-C, SIGTERM, SIGHUP and a reader that went away all end it in the same way."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

#: Signals that ask a process to end.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: What the last signal raised within signals_interrupt(), and when.
_asked: KeyboardInterrupt | None = None
_asked_at = 0.0
#: A signal so soon after another asks for the same: a terminal that closes sends SIGHUP twice, systemd SIGTERM and
#: SIGHUP. It must not end the writing of what was measured.
_SAME_SECONDS = 1.0


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end: whoever keeps results after Ctrl-C keeps them after this."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        #: The signal's number; a shell expects the exit code 128 more.
        self.number = number


class ReaderGone(KeyboardInterrupt):
    """Nobody reads standard output or standard error any more."""

    def __init__(self) -> None:
        super().__init__("ended by its reader, who closed the pipe")


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """What a command returns after it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 141 for a closed pipe.

    >>> exit_code(KeyboardInterrupt()), exit_code(Terminated(15)), exit_code(ReaderGone())
    (130, 143, 141)
    """
    if isinstance(interrupt, Terminated):
        return 128 + interrupt.number
    return 141 if isinstance(interrupt, ReaderGone) else 130


def reason(interrupt: KeyboardInterrupt) -> str:
    """In a word or a few, for the sentence that says so.

    >>> reason(KeyboardInterrupt()), reason(Terminated(15))
    ('interrupted', 'ended by SIGTERM')
    """
    return str(interrupt) if isinstance(interrupt, (Terminated, ReaderGone)) else "interrupted"


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise :class:`Terminated` where Ctrl-C would raise KeyboardInterrupt.

    What they raise can be lost on its way: numpy, which looks for ``__array__`` at an enum member, clears every
    error that comes up there, and pybind11, which matplotlib draws by, makes it a TypeError. So it is remembered:
    :func:`check` and :func:`again` raise it again, and so does the end of the context in place of such an error.

    A signal that is ignored stays so (``nohup``), and so does a SIGINT that somebody else handles. Only in the
    main thread; elsewhere nothing changes.
    """
    global _asked
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            _asked = None
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler in (signal.default_int_handler, signal.SIG_DFL) or (
                        number != signal.SIGINT and handler is not signal.SIG_IGN):
                    before[number] = handler    # first: the signal may come as soon as it is handled
                    signal.signal(number, _raise)
        with heard():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if threading.current_thread() is threading.main_thread():
            _asked = None       # what ended one command is nothing to the next


@contextmanager
def heard() -> Iterator[None]:
    """An error that may be what became of a signal's exception is raised as that at the end of the context."""
    try:
        yield
    except OSError:
        raise
    except Exception:
        again()
        raise


def again() -> None:
    """Raise what a signal asked for, if one did: where an error may be what became of it."""
    if _asked is not None:
        raise _asked from None


def check() -> None:
    """Raise what a signal asked for and nobody heard; :class:`ReaderGone` if the reader of standard output has gone.

    For long work, between its parts.
    """
    again()
    if sys.stdout is None or not hasattr(select, "poll"):
        return
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):       # replaced by something that is no file
        return
    poll = select.poll()
    poll.register(descriptor, 0)        # an error is always reported
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise ReaderGone


def cannot_flush(stream: TextIO | None) -> bool:
    """Whether what a stream still holds cannot be written; a stream that was never open holds nothing."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return True
    return False


def abandon_output() -> None:
    """Let what cannot be written any more go nowhere, so that Python does not complain of it on its way out."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and cannot_flush(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            cannot_flush(stream)


def _raise(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at
    now = time.monotonic()
    if _asked is not None and now - _asked_at < _SAME_SECONDS:
        return
    _asked_at = now
    _asked = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
    raise _asked
