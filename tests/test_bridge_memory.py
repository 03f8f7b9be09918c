"""Out of memory in the bridges: each request of each operation is refused once. And none is in no list."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

from kvmattr.bridges import kvm
from kvmattr.fake import FakeKVM
from tests import bridge_memory_scenarios
from tests.test_store_memory import HERE, can_preload, shim  # noqa: F401 - a fixture

#: What `machine_memory_scenarios` calls of a Guest, all in its one scenario; `close` is the end of its `with`.
OF_A_GUEST = {"close", "pc", "protections", "restore", "run", "snapshot"}


def public(owner: object) -> set[str]:
    return {name for name, value in vars(owner).items()
            if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, (type, property)))}


def test_no_operation_is_in_no_list() -> None:
    here = {name for name in public(kvm) if getattr(kvm, name).__module__ == kvm.__name__}
    methods = {f"KernelVM.{name}" for name in public(kvm.KernelVM)}
    assert here | methods == set(bridge_memory_scenarios.SCENARIOS)


def test_no_operation_of_a_guest_is_in_no_list() -> None:
    pytest.importorskip("unicorn")
    from kvmattr.bridges.unicorn import Guest

    assert public(Guest) == OF_A_GUEST


@can_preload
def test_each_request_for_memory_may_fail(shim: str) -> None:  # noqa: F811
    """On the model behind the kernel's own calls, so that it runs anywhere."""
    with FakeKVM(abi="linux-7.2") as fake:
        environment = fake.environment
        environment["LD_PRELOAD"] = f"{shim}:{environment['LD_PRELOAD']}"
        done = subprocess.run([sys.executable, "-m", "tests.bridge_memory_scenarios"], env=environment, cwd=HERE.parent,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    told = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in done.stdout.splitlines()}
    assert set(told) == set(bridge_memory_scenarios.SCENARIOS)
    # The package's own code asks for none; the interpreter does, and is refused where it can be.
    assert all(ours == 0 for ours, _ in told.values())
    if bridge_memory_scenarios._testcapi is not None and "PYTHONMALLOC" not in os.environ:
        assert told["KernelVM"][1] > 3
        assert told["KernelVM.read_private"][1] > 3
