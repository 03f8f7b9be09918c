"""The pytest plugin: the fixture ``assert_cost``, which pytest finds by itself once kvmattr is installed.

A module of its own, outside the package: every pytest on the machine imports it, and none that does not use the
fixture is to pay for kvmattr and numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvmattr.gate.assertions import AssertCost


@pytest.fixture(scope="session")
def assert_cost() -> AssertCost:
    """Assert costs in the store's own counters: ``assert_cost(run, map, calls=2, node_copies=0)`` and
    ``assert_cost.slope(prepare, sizes)``."""
    from kvmattr.gate.assertions import AssertCost
    return AssertCost()
