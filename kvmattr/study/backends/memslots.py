"""The model of the VMM that has only memslots."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr.memslots import SplittingBaseline
from kvmattr.study.backends.base import Backend
from kvmattr.study.work import Batch, Failed


class Memslots(Backend):
    """One slot a run; a conversion deletes a slot and creates its pieces, until no slot is left."""

    name = "memslots"
    kind = "model"
    about = "kvmattr.memslots.SplittingBaseline, a VMM that splits and merges memslots"

    def __init__(self, npages: int) -> None:
        self.table = SplittingBaseline(npages)

    def update(self, prepared: Batch) -> None:
        try:
            self.table.update_many(prepared.starts, prepared.stops, prepared.attributes, prepared.operations)
        except OSError as error:
            done: int = error.done  # type: ignore[attr-defined]
            raise Failed(done, errno.errorcode[error.args[0]]) from error

    def runs(self) -> NDArray[Any]:
        return self.table.runs()

    export = runs

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        return self.table.take(gfns)

    def nbytes(self) -> int:
        return self.table.nbytes
