"""The host's own page protections: mprotect on a real mapping, whose regions split as memslots do."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.study._loops import mprotect_many
from kvmattr.study.backends.base import Backend
from kvmattr.study.mapping import Mapping
from kvmattr.study.work import Batch, Failed, coalesced


class Mprotect(Backend):
    """One mapping, never touched; a converted page is read-only. ENOMEM at vm.max_map_count regions."""

    name = "mprotect"
    kind = "kernel"
    one_bit = "mprotect has WRITE of read-only alone"
    about = "mprotect on a mapping as big as the guest, up to vm.max_map_count regions"

    def __init__(self, npages: int) -> None:
        self._npages = npages
        self._memory = Mapping(npages, mmap.PROT_READ | mmap.PROT_WRITE)

    def update(self, prepared: Batch) -> None:
        done, error = mprotect_many(self._memory.address, prepared.starts, prepared.stops, prepared.attributes)
        if error:
            raise Failed(done, errno.errorcode[error])

    def runs(self) -> NDArray[Any]:
        end = self._memory.address + self._npages * uapi.PAGE_SIZE
        starts, stops, attributes = [], [], []
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, protection = line.split()[:2]
            low, high = (int(word, 16) for word in place.split("-"))
            if high > self._memory.address and low < end:
                starts.append((max(low, self._memory.address) - self._memory.address) // uapi.PAGE_SIZE)
                stops.append((min(high, end) - self._memory.address) // uapi.PAGE_SIZE)
                attributes.append(0 if "w" in protection else 1)
        return coalesced(np.array(starts), np.array(stops), attributes)

    def close(self) -> None:
        self._memory.close()
