"""Listeners: who must hear of changed pages, and the two phases in which they do.

A change of attributes is announced before it is made (``prepare``, which may refuse it by raising) and told
once it is made (``commit``), as KVM reserves memory before it stores and zaps its mappings around the store.
Both get the changed runs only, as the records of :meth:`kvmattr.AttributeMap.diff` (``start, stop, old,
new``; gfns), at most 65536 a call, so that memory stays bounded, the listener's and the machine's, however
fragmented the change is.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: Records of one call. More cost a listener memory, fewer cost calls. Who calls: ``_machine/announcement.pxi``.
MAX_RUNS = 65536

#: Records of :meth:`kvmattr.AttributeMap.diff`.
Changes = npt.NDArray[np.void]


class Listener(Protocol):
    """What :meth:`kvmattr.VM.add_listener` takes. ``changes`` is read-only and may be kept."""

    def prepare(self, changes: Changes) -> object:
        """Get ready for changes to come. A raise refuses the whole change: nothing is changed."""

    def commit(self, changes: Changes) -> object:
        """Hear that the changes are made. A raise comes too late: it goes to ``sys.unraisablehook``.

        But for what is no Exception: KeyboardInterrupt (Ctrl-C), SystemExit. When all have heard of the change,
        the call that made it raises the first of those, as if the signal had come just after it.
        """

    def abort(self, changes: Changes) -> object:
        """Forget prepared changes: another ``prepare`` refused. A raise goes to ``sys.unraisablehook``."""


def check_listener(listener: Any) -> None:
    """Raise TypeError unless the listener has all three methods."""
    for name in ("prepare", "commit", "abort"):
        if not callable(getattr(listener, name, None)):
            raise TypeError(f"{listener!r}: a listener has prepare, commit and abort, this lacks {name}")
