"""How a count grows with the size: the slope of a straight line through both logarithms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def slope(sizes: Sequence[int], counts: Sequence[int], operations: Sequence[int]) -> float:
    """0 for a count an operation that does not depend on the size, 1 for one that is proportional to it.

    An operation is taken to cost one more than was counted: nothing and next to nothing are then nearly the
    same, and no logarithm of 0 comes up.

    >>> slope([1, 10, 100, 1000, 10000], [7, 7, 7, 7, 7], [1, 1, 1, 1, 1])
    0.0
    >>> slope([1, 10, 100, 1000, 10000], [30, 300, 3000, 30000, 300000], [1, 1, 1, 1, 1])
    0.997
    """
    x = np.log(np.asarray(sizes, np.float64))
    y = np.log(1 + np.asarray(counts, np.float64) / np.asarray(operations, np.float64))
    x -= x.mean()
    # Rounded to what is printed and stored: the last bits of a logarithm differ between platforms.
    return round(float((x * (y - y.mean())).sum() / (x * x).sum()), 3) + 0.0
