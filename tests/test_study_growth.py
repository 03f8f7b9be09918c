"""Expected against seen: what a law allows, and from which size on it speaks."""

from __future__ import annotations

import pytest

from kvmattr.study import growth
from kvmattr.study.growth import Asked, Growth
from kvmattr.study.results import Result


def cells(costs: dict[int, float], backend: str = "memslots") -> list[Result]:
    return [Result("asked", backend, "model", size, "ns", "ok", samples=[cost] * 9, operations=1, host="here")
            for size, cost in costs.items()]


def verdicts(law: Growth, costs: dict[int, float]) -> list[tuple[int, int, bool]]:
    found = growth.seen(cells(costs), {"asked": Asked("?", "earlier conversions", (law, ))})
    return [(one.first, one.last, one.as_expected) for one in found]


@pytest.mark.parametrize(("law", "costs", "as_expected"), [
    ("growing", {1: 10.0, 1000: 20.0}, True), ("growing", {1: 20.0, 1000: 10.0}, False),
    ("falling", {1: 20.0, 1000: 10.0}, True), ("falling", {1: 10.0, 1000: 20.0}, False),
    ("not growing", {1: 10.0, 1000: 19.0}, True), ("not growing", {1: 10.0, 1000: 21.0}, False),
    ("in proportion", {1: 1.0, 1000: 1000.0}, True), ("in proportion", {1: 1.0, 1000: 10.0}, False)])
def test_a_law(law, costs, as_expected):
    assert verdicts(Growth(law, ("memslots", )), costs) == [(1, 1000, as_expected)]


def test_a_law_speaks_from_a_size_on():
    costs = {1: 100.0, 100: 10.0, 10_000: 20.0}
    assert verdicts(Growth("growing", ("memslots", )), costs) == [(1, 10_000, False)]
    assert verdicts(Growth("growing", ("memslots", ), since=100), costs) == [(100, 10_000, True)]


def test_one_size_is_no_growth():
    assert verdicts(Growth("growing", ("memslots", ), since=100), {1: 100.0, 100: 10.0}) == []


def test_an_unknown_law():
    known = "known are not growing, falling, growing, in proportion"
    with pytest.raises(ValueError, match=rf"^unknown law 'flat': {known}$"):
        Growth("flat", ("memslots", ))
