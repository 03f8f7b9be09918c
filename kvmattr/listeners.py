"""Listeners: who must hear of changed pages, and the two phases in which they do.

A change of attributes is announced before it is made (``prepare``, which may refuse it by raising) and told
once it is made (``commit``), as KVM reserves memory before it stores and zaps its mappings around the store.
Both get the changed runs only, as the records of :meth:`kvmattr.AttributeMap.diff` (``start, stop, old,
new``; gfns), at most 65536 a call, so that memory stays bounded, the listener's and the machine's, however
fragmented the change is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvmattr._core import AttributeMap
from kvmattr._vm import first_changes, report_unraisable

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
    """One change on its way through the listeners: every chunk of it, to every listener, in this order.

    The change is from ``before`` to ``after``, two maps that nobody changes, and lies within the gfns [start,
    stop). Its runs are many where the pages are fragmented, so no more than a chunk of them is ever in memory:
    after ``prepare`` they are made again from the two maps, which gives the same.
    """

    def __init__(
        self, listeners: Sequence[Listener], before: AttributeMap, after: AttributeMap, start: int, stop: int
    ) -> None:
        self._listeners = listeners
        self._before, self._after = before, after
        self._start, self._stop = start, stop
        self._only_chunk: Changes | None = None

    def prepare(self) -> None:
        """Call all ``prepare``; if one raises, ``abort`` what was prepared, in the same order, and raise."""
        done = 0
        try:
            for listener, chunk in self._calls():
                listener.prepare(chunk)
                done += 1
        except BaseException:
            self._tell("abort", done)
            raise

    def commit(self) -> None:
        """Call all ``commit``, in the order of the ``prepare`` calls."""
        self._tell("commit")

    def abort(self) -> None:
        """Call all ``abort``: the change was prepared by all and failed after that."""
        self._tell("abort")

    def _tell(self, what: str, calls: int | None = None) -> None:
        """Make that many calls (None: all) of the second phase, whatever happens in them.

        Without memory for a chunk the rest cannot be told, which goes where their own errors go.
        """
        try:
            for listener, chunk in islice(self._calls(), calls):
                method = getattr(listener, what)
                try:
                    method(chunk)
                except BaseException as error:
                    report_unraisable(error, method)
        except MemoryError as error:
            report_unraisable(error, self)

    def _calls(self) -> Iterator[tuple[Listener, Changes]]:
        return ((listener, chunk) for chunk in self._chunks() for listener in self._listeners)

    def _chunks(self) -> Iterator[Changes]:
        """The changed runs, ``MAX_RUNS`` at a time. A chunk that is the only one is kept for the second phase."""
        if self._only_chunk is not None:
            yield self._only_chunk
            return
        start = self._start
        while len(chunk := first_changes(self._before, self._after, start, self._stop, MAX_RUNS)):
            last = len(chunk) < MAX_RUNS
            if last and start == self._start:
                self._only_chunk = chunk
            yield chunk
            if last:
                return
            start = int(chunk["stop"][-1])
