"""An emulator's own protections: Unicorn's ``mem_protect``, which splits its memory regions."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.study.backends.base import Backend
from kvmattr.study.work import Batch, Failed, Footprint, coalesced


class Unicorn(Backend):
    """One region of a Unicorn machine; a converted page is read-only. Each update is one call from Python."""

    name = "unicorn"
    kind = "library"
    library = "unicorn"
    one_bit = "mem_protect has WRITE of read-only alone"
    about = "Unicorn's mem_protect on one region, split as it goes"

    @classmethod
    def bytes_needed(cls, footprint: Footprint) -> int:
        """Unicorn reserves the guest's memory and its own tables, about a tenth of it."""
        return footprint.npages * uapi.PAGE_SIZE * 11 // 10

    def __init__(self, npages: int) -> None:
        # Its stubs export nothing: the module is Any.
        unicorn: Any = importlib.import_module("unicorn")
        self._npages = npages
        self._error = unicorn.UcError
        self._protections = (unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE, unicorn.UC_PROT_READ)
        self._machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._machine.mem_map(0, npages * uapi.PAGE_SIZE, self._protections[0])

    def prepare(self, batch: Batch) -> list[tuple[int, int, int]]:
        return [(start * uapi.PAGE_SIZE, (stop - start) * uapi.PAGE_SIZE, self._protections[attributes])
                for start, stop, attributes, _ in batch.rows()]

    def update(self, prepared: list[tuple[int, int, int]]) -> None:
        for done, (address, size, protection) in enumerate(prepared):
            try:
                self._machine.mem_protect(address, size, protection)
            except self._error as error:
                raise Failed(done, str(error)) from error

    def runs(self) -> NDArray[Any]:
        """The regions, which Unicorn lists in no order."""
        regions = sorted(self._machine.mem_regions())
        starts = np.array([first // uapi.PAGE_SIZE for first, _, _ in regions])
        stops = np.array([(last + 1) // uapi.PAGE_SIZE for _, last, _ in regions])
        return coalesced(starts, stops, [self._protections.index(protection) for _, _, protection in regions])
