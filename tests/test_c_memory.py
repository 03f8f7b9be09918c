"""Out of memory below the C API: each request of each function is refused once. And no function is in no list."""

from __future__ import annotations

import os

import pytest

from tests import c_memory_scenarios
from tests.test_store_memory import can_preload, run_python, shim  # noqa: F401 - a fixture

#: What makes something always asks for memory; the others look, or need it only where the arena must grow.
ASK = {"object_of", "create", "copy", "update", "update_changes", "snapshot", "restore: another family", "cursor_open"}


def test_no_function_of_the_header_is_in_no_list() -> None:
    functions = c_memory_scenarios.functions()
    assert len(functions) > 20
    assert {name.partition(":")[0] for name in c_memory_scenarios.SCENARIOS} == set(functions)
    assert set(c_memory_scenarios.TYPES) == set(functions)


@can_preload
@pytest.mark.skipif(
    "debug" in os.environ.get("KVMATTR_BUILD", ""),
    reason="the debug build's own check after each operation asks for memory",
)
def test_each_request_for_memory_may_fail(shim: str) -> None:  # noqa: F811
    preloaded = f"{shim}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
    told = run_python("-m", "tests.c_memory_scenarios", LD_PRELOAD=preloaded)
    refused = {name: int(count) for name, _, count in (line.rpartition(" ") for line in told.splitlines())}
    assert set(refused) == set(c_memory_scenarios.SCENARIOS)
    assert {name for name in ASK if refused[name] == 0} == set()
