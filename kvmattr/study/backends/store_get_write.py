"""The read-modify-write that the mail's OPERATION field saves: GET of every run, then one WRITE each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from kvmattr.operation import Operation
from kvmattr.study.backends.store import Store
from kvmattr.study.work import Batch


class StoreGetWrite(Store):
    """The store, changed as userspace must without OR and AND: read the runs, write them back changed."""

    name = "store-get-write"
    about = "the store without OR and AND: GET of the runs of a range, one WRITE a run"

    def prepare(self, batch: Batch) -> Callable[[], int]:
        """The updates one by one: what one writes, the next reads."""
        return partial(self._get_and_write, list(batch.rows()))

    def _get_and_write(self, rows: list[tuple[int, int, int, Operation]]) -> int:
        changed = 0
        for start, stop, attributes, operation in rows:
            runs = self.map.runs(start, stop)
            if operation is Operation.OR:
                values = runs["attributes"] | np.uint8(attributes)
            elif operation is Operation.AND:
                values = runs["attributes"] & np.uint8(attributes)
            else:
                values = np.full(len(runs), attributes, np.uint8)
            changed += self.map.update_many(runs["start"], runs["stop"], values)
        return changed
