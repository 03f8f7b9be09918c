"""The store of this package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr._core import AttributeMap
from kvmattr.operation import Operation
from kvmattr.study import _loops
from kvmattr.study.backends.base import Backend
from kvmattr.study.work import Batch, applied, mixed_blocks


class Store(Backend):
    """``kvmattr.AttributeMap``: a radix tree whose uniform subtrees are one entry."""

    name = "store"
    kind = "model"
    about = "kvmattr.AttributeMap, the attribute tree of this package"

    def __init__(self, npages: int) -> None:
        self.map = AttributeMap(npages)

    def prepare(self, batch: Batch) -> Callable[[], int]:
        """The call that a user would choose: ``put`` for single pages, else ``update_many``."""
        operations: Any = batch.operations
        if (operations == operations[:1]).all():
            operations = Operation(operations[0]) if len(batch) else Operation.WRITE
        if (batch.stops - batch.starts == 1).all():
            return partial(self.map.put, batch.starts, batch.attributes, operations)
        return partial(self.map.update_many, batch.starts, batch.stops, batch.attributes, operations)

    def update(self, prepared: Callable[[], int]) -> None:
        prepared()

    def runs(self) -> NDArray[Any]:
        return self.map.runs()

    export = runs

    def lookup(self, gfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        return self.map.take(gfns)

    def has(self, ranges: Batch) -> NDArray[np.bool_]:
        return _loops.map_has(self.map, ranges.starts, ranges.stops, ranges.attributes)

    def mixed(self) -> NDArray[np.bool_]:
        """The runs, and the blocks that a run starts inside."""
        return mixed_blocks(self.map.runs())

    def snapshot_restore(self, prepared: Callable[[], int]) -> None:
        before = self.map.snapshot()
        prepared()
        self.map.restore(before)

    def migrate(self, prepared: Callable[[], int]) -> int:
        before = self.map.snapshot()
        prepared()
        changed = self.map.diff(before)
        return int((changed["stop"] - changed["start"]).sum())

    def nbytes(self) -> int:
        return self.map.nbytes


class StoreGetWrite(Store):
    """The read-modify-write that the mail's OPERATION field saves: GET of every run, then one WRITE each."""

    name = "store-get-write"
    about = "the store without OR and AND: GET of the runs of a range, one WRITE a run"

    def prepare(self, batch: Batch) -> Callable[[], int]:
        """The updates one by one: what one writes, the next reads."""
        return partial(self._get_and_write, list(batch.rows()))

    def _get_and_write(self, rows: list[tuple[int, int, int, Operation]]) -> int:
        changed = 0
        for start, stop, attributes, operation in rows:
            runs = self.map.runs(start, stop)
            values = applied(runs["attributes"], np.full(len(runs), attributes, np.uint8), operation)
            changed += self.map.update_many(runs["start"], runs["stop"], values)
        return changed
