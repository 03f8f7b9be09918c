"""Listeners: who hears of changed pages or of calls, by :meth:`kvmattr.VM.add_listener`.

This is the one way to hear a VM: whoever maps pages, the recorder of traces and tests use it. (Compiled code that keeps
what it looked up is registered in the same list, as a ``Watcher`` of ``_vm.pyx``.) A machine to which nobody listens
reads one word for it in a call.

*Changed pages*: a :class:`Listener`. A change of attributes is announced before it is made (``prepare``, which may
refuse it by raising) and told once it is made (``commit``), as KVM reserves memory before it stores and zaps its
mappings around the store. Both get the changed runs only, as the records of :meth:`kvmattr.AttributeMap.diff`
(``start, stop, old, new``; gfns), at most 65536 a call, so that memory stays bounded, the listener's and the
machine's, however fragmented the change is.

*Calls*: a :class:`CallListener`. It hears of each SET, GET, memslot and guest_memfd call once it is answered, also of
one that was refused; a batch is as many calls as it has records, a ``restore`` as many SETs as it changes ranges.

All of it happens under the machine's lock, so listeners hear one thing at a time, in the order in which it took
effect, whichever threads make the calls; a listener that changes the machine gets OSError(EBUSY).
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


class CallListener(Protocol):
    """What :meth:`kvmattr.VM.add_listener` takes as well: it hears of calls."""

    def called(self, call: str, numbers: tuple[int, ...], answer: int) -> object:
        """Hear of a call: the method's name, the structure's numbers, and what KVM answers.

        ``answer``: 0, the handle of a new guest_memfd, or the errno of a refused call as a negative number. Calls with
        values that fit no field (TypeError, ValueError) are none, and not heard of. A raise comes too late, as in
        :meth:`Listener.commit`.

        ===========================  ====================================================================
        ``set_memory_attributes``    address, size, attributes, operation | flags << 32; also the ioctls
        ``get_memory_attributes``    address, size
        ``set_user_memory_region``   slot, flags, guest_phys_addr, memory_size, userspace_addr
        ``set_user_memory_region2``  the same, guest_memfd, guest_memfd_offset
        ``create_guest_memfd``       size, flags
        ``set_memory_attributes2``   handle, offset, size, attributes, flags; with the reserved words if any is not 0
        ``fallocate_guest_memfd``    handle, mode, offset, size; also ``punch_hole``
        ===========================  ====================================================================
        """


#: What a listener hears, as bits.
CHANGES, CALLS = 1, 2


def heard_by(listener: Any) -> int:
    """CHANGES, CALLS or both: what it has the methods for; TypeError if that is nothing, or a part of one."""
    phases = ("prepare", "commit", "abort")
    lacked = [name for name in phases if not callable(getattr(listener, name, None))]
    calls = CALLS if callable(getattr(listener, "called", None)) else 0
    if len(lacked) == len(phases):
        if not calls:
            raise TypeError(f"{listener!r}: a listener has prepare, commit and abort, or called, this has none of them")
        return calls
    if lacked:
        raise TypeError(f"{listener!r}: a listener has prepare, commit and abort, this lacks {lacked[0]}")
    return calls | CHANGES
