"""Costs in a plain test: what one operation may allocate, and how it may grow."""

from __future__ import annotations

from typing import Any

from balloon import Balloon

from kvmattr.gate import Work


def test_a_block_costs_no_node(assert_cost: Any) -> None:
    balloon = Balloon(1 << 24)
    assert_cost(lambda: balloon.inflate(512, 1024), balloon.pages, calls=2, update_calls=1, update_pages=512,
                node_allocations=0, leaf_allocations=1)


def test_inflating_does_not_depend_on_the_guest(assert_cost: Any) -> None:
    def prepare(npages: int) -> Work:
        balloon = Balloon(npages)
        return Work(lambda: balloon.inflate(1, 2), [balloon.pages])
    assert_cost.slope(prepare, [1 << n for n in range(12, 33, 4)])
