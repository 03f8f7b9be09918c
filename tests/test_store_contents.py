"""Contents of 1 to 256 values, families and maps of 2^52 pages beside dense arrays; `dev.py fuzz contents` goes on."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.contents import contents


@pytest.mark.parametrize("seed", range(12))
def test_a_world_of_updates(seed: int) -> None:
    assert contents(random.Random(f"contents {seed}"), longest=30) > 0
