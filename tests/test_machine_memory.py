"""Out of memory above the store: each request of the VM, memslots, guest_memfds, listeners, records and the Unicorn
bridge is refused once. And no public operation is forgotten: each one is in a list."""

from __future__ import annotations

import importlib.util
import os

import pytest

from kvmattr import VM, AttributeMap
from kvmattr.memslots import GuestMemfd, MemslotTable, SplittingBaseline
from tests import memory_scenarios
from tests.machine_memory_scenarios import SCENARIOS
from tests.test_store_memory import can_preload, run_python, shim  # noqa: F401 - a fixture

pytestmark = can_preload

NEEDS_UNICORN = {"bridges.unicorn.Guest"}

#: The store's scenarios by the methods that they call.
OF_THE_STORE = {
    "write": "write",
    "or_": "or",
    "and_": "or",
    "update": "or",
    "put": "put",
    "update_many": "update_many",
    "put_bitmap": "put_bitmap",
    "restore": "restore",
    "fill": "fill",
    "clear": "fill",
    "copy": "write beside a copy",
    "runs": "runs",
    "diff": "diff",
    "snapshot": "snapshot",
    "to_bytes": "to_bytes",
    "save": "to_bytes",
    "from_bytes": "from_bytes",
    "load": "from_bytes",
    "take": "take",
    "validate": "validate",
}
#: They walk the tree and ask the extension's allocator for nothing; what they return, Python or numpy makes.
LOOKS_ONLY = {"all", "any", "bitmap", "count", "find", "get", "iter_runs", "level", "run", "stats", "to_numpy"}
LOOKS_ONLY |= {"uniform", "values"}
#: Made of the calls above, in Python's words.
MADE_OF_OTHERS = {"from_numpy": "assign", "from_runs": "update_many", "to_frame": "runs", "plot": "runs"}


def operations(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}


def test_no_operation_of_the_store_is_in_no_list() -> None:
    assert operations(AttributeMap) == set(OF_THE_STORE) | LOOKS_ONLY | set(MADE_OF_OTHERS)
    assert {*OF_THE_STORE.values(), *MADE_OF_OTHERS.values()} <= set(memory_scenarios.SCENARIOS)


@pytest.mark.parametrize("kind", [VM, MemslotTable, SplittingBaseline, GuestMemfd], ids=lambda kind: kind.__name__)
def test_no_operation_above_the_store_is_in_no_list(kind: type) -> None:
    covered = {name.partition(":")[0] for name in SCENARIOS}
    wanted = {kind.__name__, *(f"{kind.__name__}.{name}" for name in operations(kind))}
    assert wanted - covered == set()


def test_the_shim_refuses_what_the_extensions_ask_for(shim: str) -> None:  # noqa: F811
    """Otherwise the scenarios would prove nothing."""
    assert refused(shim, "VM.restore: listener") > 3
    assert refused(shim, "SplittingBaseline.update") > 3


def refused(shim: str, name: str) -> int:  # noqa: F811
    preloaded = f"{shim}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
    return int(run_python("-m", "tests.machine_memory_scenarios", name, LD_PRELOAD=preloaded))


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_request_for_memory_may_fail(shim: str, name: str) -> None:  # noqa: F811
    if name in NEEDS_UNICORN and importlib.util.find_spec("unicorn") is None:
        pytest.skip("the extra unicorn is not installed")
    assert refused(shim, name) >= 0
