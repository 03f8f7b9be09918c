"""The protocol of a backend: what a class must have to take part in the study.

A backend holds one guest. It must be able to apply a batch and to say what state it is in; the rest is
optional, and a scenario that needs what a backend lacks shows "has no ..." in its row:

==============================  ===============================================================
``update(prepared)``            apply a batch; raise :class:`Failed` where it cannot go on
``runs()``                      the state as runs, or None where it cannot be listed
``probe(gfns)``                 uint8 array: what single pages are, read back where ``runs`` gives None
``lookup(gfns)``                uint8 array: attributes of single pages
``has(ranges)``                 bool array: does every page of each range have the batch's attributes?
``snapshot_restore(prepared)``  keep the state, apply the batch, bring the state back
``migrate(prepared)``           keep the state, apply the batch, tell how many pages now differ
``mixed()``                     bool array: which blocks of 2 MiB, then of 1 GiB, hold unequal attributes
``export()``                    the state as runs, as a caller of the backend would get it
``nbytes()``                    bytes of memory that hold the state
==============================  ===============================================================
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kvmattr.measure import extras
from kvmattr.operation import Operation
from kvmattr.study.work import Batch, Footprint

#: What an update takes as a tuple of Python numbers, for libraries that take no arrays.
ROW_BYTES = 200
#: Pages of the one set that tells what a page takes.
_CALIBRATED = 1 << 14


class Backend(ABC):
    """One way to keep the attributes of a guest of ``npages`` pages, all 0 at the start."""

    #: The name on the command line and in every report.
    name: ClassVar[str]
    #: ``model``, ``kernel`` or ``library``: ratios are formed only within one of them.
    kind: ClassVar[str]
    #: One line for ``kvmattr scaling --list``.
    about: ClassVar[str]
    #: The module of a library that it needs.
    library: ClassVar[str] = ""
    #: Why it can do no more than WRITE 0 and 1, in words; "" where it has every attribute and operation.
    one_bit: ClassVar[str] = ""
    #: Whether somebody else does its work (a server), so that only wall time tells what it takes.
    elsewhere: ClassVar[bool] = False
    #: Whether it keeps no state that could be checked: the floor under others.
    stateless: ClassVar[bool] = False
    #: Whether an operation may take milliseconds, so that cells come near their time limit.
    slow: ClassVar[bool] = False

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run on this machine, or None."""
        return extras.missing(cls.library) if cls.library else None

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """An upper estimate of the memory that the cell will take."""
        return 0

    @classmethod
    def seconds_a_page(cls) -> float:
        """Seconds for each page of one update, where that is a call which nothing can interrupt.

        0 where an update's length does not matter. What could not end within the time limit is then refused
        before it starts.
        """
        return 0.0

    @classmethod
    def unsupported(cls, batch: Batch) -> str | None:
        """Why it cannot express these updates, or None; asked before the setup is begun."""
        writes = (batch.attributes <= 1).all() and (batch.operations == int(Operation.WRITE)).all()
        return None if writes else cls.one_bit or None

    @abstractmethod
    def __init__(self, npages: int) -> None: ...

    def load(self, setup: Batch, seconds: float) -> int:
        """Reach the state after the first updates of ``setup`` by a shorter way; returns their number.

        Raises :class:`Stopped` when that takes longer than ``seconds``.
        """
        return 0

    def prepare(self, batch: Batch) -> Any:
        """Turn a batch into what ``update`` takes, before the clock starts; called in order.

        Only batches that are not ``unsupported`` come here.
        """
        return batch

    @abstractmethod
    def update(self, prepared: Any) -> None:
        """Apply what ``prepare`` returned. This is what is timed."""

    @abstractmethod
    def runs(self) -> NDArray[Any] | None:
        """The state as a structured array ``start, stop, attributes``, coalesced, over the whole guest.

        None where there is no way to list it: then ``probe`` is asked.
        """

    def probe(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8] | None:
        """The attributes of single pages, read back, by a backend that cannot list its state.

        None where there is no state. Raises OSError where there is one that nothing here can read; the report
        then says that it was not checked.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most backends hold nothing that must be closed
        """Give back what garbage collection would not (file descriptors, mappings)."""


def measured_seconds_a_page(update: Callable[[Batch], object]) -> float:
    """What a page of one update takes, there and back, for :meth:`Backend.seconds_a_page`.

    Of 16,384 pages, whose nodes the caches hold: a lower bound of what more of them take.
    """
    sets = Batch.joined(*(Batch.of([0], _CALIBRATED, attributes) for attributes in (1, 0)))
    started = time.perf_counter()
    update(sets)
    return (time.perf_counter() - started) / (2 * _CALIBRATED)
