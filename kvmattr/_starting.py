"""Ctrl-C while the command line is being imported: it ends the process as a signal does, without a traceback."""

import os
import sys


def is_command() -> bool:
    """Whether Python was started for the command line: as ``kvmattr`` or by ``python -m kvmattr``."""
    words = getattr(sys, "argv", None) or [""]      # a program that embeds Python may have none
    at = len(sys.orig_argv) - len(words)            # of the word that named the program
    if at < 1:
        return False
    named = sys.orig_argv[at]
    if words[0] == "-m":                            # until the module is found
        return named in ("kvmattr", "-mkvmattr")
    return named == words[0] and os.path.basename(named) == "kvmattr"


if is_command():
    # Not `signal`, which makes enums of its names first: a millisecond in which it would be a traceback.
    import _signal  # type: ignore[import-not-found]

    # Nothing is measured yet that could be lost. measure.ending takes over when the command runs.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
