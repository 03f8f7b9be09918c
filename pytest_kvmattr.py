"""The pytest plugin: the fixtures ``assert_cost`` and ``fake_kvm``, which pytest finds once kvmattr is installed.

A module of its own, outside the package: every pytest on the machine imports it, and none that does not use a
fixture is to pay for kvmattr and numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kvmattr.fake import FakeKVM
    from kvmattr.gate.assertions import AssertCost


@pytest.fixture(scope="session")
def assert_cost() -> AssertCost:
    """Assert costs in the store's own counters: ``assert_cost(run, map, calls=2, node_copies=0)`` and
    ``assert_cost.slope(prepare, sizes)``."""
    from kvmattr.gate.assertions import AssertCost
    return AssertCost()


@pytest.fixture
def fake_kvm() -> Iterator[Callable[..., FakeKVM]]:
    """Run programs whose /dev/kvm is the model: ``kvm = fake_kvm(abi="linux-7.2", script="...")``, then
    ``kvm.run(["./vmm"], timeout=60)`` and assertions on ``kvm.vms[0].attributes``. Closed when the test ends."""
    from kvmattr.fake import FakeKVM
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> FakeKVM:
            return stack.enter_context(FakeKVM(*arguments, **options))

        yield start
