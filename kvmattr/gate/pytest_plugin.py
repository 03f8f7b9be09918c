"""The plugin under the name that it had first, for ``-p kvmattr.gate.pytest_plugin`` and environments that were made
then. pytest finds ``pytest_kvmattr``, which does not load kvmattr until the fixture is used."""

from __future__ import annotations

import pytest

from kvmattr.gate.assertions import AssertCost

__all__ = ["AssertCost", "assert_cost"]


@pytest.fixture(scope="session")
def assert_cost() -> AssertCost:
    """Assert costs in the store's own counters, as in ``pytest_kvmattr``."""
    return AssertCost()
