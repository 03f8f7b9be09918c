"""What every test module may use: the three implementations of one interface, and hypothesis profiles.

KVMATTR_FUZZ_EXAMPLES=N turns the state machines into a campaign of N examples with fresh random seeds,
and KVMATTR_FUZZ_STEPS=N sets how many operations an example may have. Without them the examples are
always the same ones, so that the suite's verdict depends on the code alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from kvmattr import AttributeMap
from tests.reference import DenseMap, SparseMap
from tests.strategies import examples

QUIET = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
]
# A shell lets what it starts in the background ignore Ctrl-C, nohup a SIGHUP, and so would all that the tests start.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# Tests that look at each bytecode ask for that in a trace function, once it is set. CPython 3.12 tells of bytecodes
# only if some frame asked before that.
sys._getframe().f_trace_opcodes = True

# A Python that a test starts, from whatever directory, finds what the tests find by `pythonpath` in pyproject.toml.
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

settings.register_profile(
    "suite", max_examples=examples(100), deadline=None, derandomize=True, database=None, suppress_health_check=QUIET
)
settings.register_profile("campaign", deadline=None, print_blob=True, suppress_health_check=QUIET)
settings.load_profile("campaign" if "KVMATTR_FUZZ_EXAMPLES" in os.environ else "suite")


@pytest.fixture(params=[DenseMap, SparseMap, AttributeMap], ids=lambda kind: kind.__name__)
def Map(request: pytest.FixtureRequest) -> Any:
    """The store and its two references, one after another."""
    return request.param


@pytest.fixture(params=[SparseMap, AttributeMap], ids=lambda kind: kind.__name__)
def WideMap(request: pytest.FixtureRequest) -> Any:
    """Those of the three that hold 2**52 pages."""
    return request.param


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """What a test writes goes into its tmp_path: a file that appears beside the sources fails the module."""
    before = visible_files()
    yield
    left = visible_files() - before
    assert not left, f"a test of this module wrote {sorted(left)} into the working directory {os.getcwd()}"


def visible_files() -> set[str]:
    """Files, not directories, in the working directory; hidden ones are the tools' own."""
    return {each.name for each in os.scandir(".") if each.is_file() and not each.name.startswith(".")}
