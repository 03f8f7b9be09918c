"""Listeners: who must hear of changed pages, and the two phases in which they do.

A change of attributes is announced before it is made (``prepare``, which may refuse it by raising) and told
once it is made (``commit``), as KVM reserves memory before it stores and zaps its mappings around the store.
Both get the changed runs only, as the records of :meth:`kvmattr.AttributeMap.diff` (``start, stop, old,
new``; gfns), at most 65536 a call, so that a listener's own memory stays bounded however fragmented the
change is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvmattr._vm import report_unraisable

#: Records of one call. More cost a listener memory, fewer cost calls.
MAX_RUNS = 65536

Changes = npt.NDArray[np.void]


class Listener(Protocol):
    """What :meth:`kvmattr.VM.add_listener` takes. ``changes`` is read-only and may be kept."""

    def prepare(self, changes: Changes) -> object:
        """Get ready for changes to come. A raise refuses the whole change: nothing is changed."""

    def commit(self, changes: Changes) -> object:
        """Hear that the changes are made. A raise comes too late: it goes to ``sys.unraisablehook``."""

    def abort(self, changes: Changes) -> object:
        """Forget prepared changes: another ``prepare`` refused. A raise goes to ``sys.unraisablehook``."""


def check_listener(listener: Any) -> None:
    """Raise TypeError unless the listener has all three methods."""
    for name in ("prepare", "commit", "abort"):
        if not callable(getattr(listener, name, None)):
            raise TypeError(f"{listener!r}: a listener has prepare, commit and abort, this lacks {name}")


class Announcement:
    """One change on its way through the listeners: every chunk of it, to every listener, in this order."""

    def __init__(self, listeners: Sequence[Listener], changes: Changes) -> None:
        changes.flags.writeable = False
        chunks = [changes[first : first + MAX_RUNS] for first in range(0, len(changes), MAX_RUNS)]
        self._calls = [(listener, chunk) for chunk in chunks for listener in listeners]

    def prepare(self) -> None:
        """Call all ``prepare``; if one raises, ``abort`` what was prepared, in the same order, and raise."""
        for done, (listener, chunk) in enumerate(self._calls):
            try:
                listener.prepare(chunk)
            except BaseException:
                for prepared, its_chunk in self._calls[:done]:
                    _call_whatever_happens(prepared.abort, its_chunk)
                raise

    def commit(self) -> None:
        """Call all ``commit``, in the order of the ``prepare`` calls."""
        for listener, chunk in self._calls:
            _call_whatever_happens(listener.commit, chunk)

    def abort(self) -> None:
        """Call all ``abort``: the change was prepared by all and failed after that."""
        for listener, chunk in self._calls:
            _call_whatever_happens(listener.abort, chunk)


def _call_whatever_happens(method: Any, chunk: Changes) -> None:
    try:
        method(chunk)
    except BaseException as error:
        report_unraisable(error, method)
