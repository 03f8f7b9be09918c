"""Expected against seen: how the cost of a backend was said to grow with the size, and how it did in a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmattr.measure import text

if TYPE_CHECKING:
    from kvmattr.study.results import Result

#: Exponent of the size that a law allows, from ... to, between the smallest and the largest size.
LAWS = {"not growing": (-math.inf, 0.0), "falling": (-math.inf, -0.05), "growing": (0.05, math.inf),
        "in proportion": (0.6, 1.4)}
#: Caches and first touches move a cost that does not grow by its algorithm so many times, over any sizes.
_CACHES = 2.0


@dataclass(frozen=True)
class Growth:
    """What is expected of some backends: a law, and its reason where the law alone would surprise."""

    law: str
    backends: tuple[str, ...]
    because: str = ""
    #: The law holds from this size on; what smaller sizes do is said in ``because``.
    since: int = 0

    @property
    def words(self) -> str:
        """For a list of what is expected.

        >>> Growth("not growing", ("store", "numpy")).words
        'store and numpy not growing'
        """
        return f"{text.listed(list(self.backends))} {self.law}{self.because and f' ({self.because})'}"

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"unknown law {self.law!r}: known are {', '.join(LAWS)}")
        if isinstance(self.backends, str):
            raise ValueError(f"backends is {self.backends!r}, expected a tuple of names")


@dataclass(frozen=True)
class Asked:
    """What a report knows of a scenario: enough to draw its results without having the scenario."""

    question: str
    size_name: str
    growths: tuple[Growth, ...]

    @property
    def expected(self) -> str:
        """What was expected, in words."""
        return "; ".join(growth.words for growth in self.growths)


@dataclass(frozen=True)
class Seen:
    """One backend in one scenario: the factor from the smallest to the largest size that was measured."""

    scenario: str
    backend: str
    law: str
    factor: float
    first: int
    last: int
    as_expected: bool
    because: str
    size_name: str

    @property
    def words(self) -> str:
        """The verdict in one line.

        >>> Seen("guest", "memslots", "not growing", 5.8, 1 << 18, 1 << 22, False, "", "guest size").words
        'memslots: expected not growing, seen 5.8x from 1 GiB to 16 GiB: not as expected'
        """
        verdict = "as expected" if self.as_expected else "not as expected"
        reason = f" ({self.because})" if self.because else ""
        first, last = (text.size(size, self.size_name) for size in (self.first, self.last))
        return (f"{self.backend}: expected {self.law}{reason}, seen {text.digits(self.factor)}x from {first} to "
                f"{last}: {verdict}")

    def as_record(self) -> dict[str, object]:
        """The JSON object."""
        record = {name: value for name, value in vars(self).items() if name not in ("law", "size_name")}
        return record | {"expected": self.law}


def seen(results: Sequence[Result], scenarios: Mapping[str, Asked]) -> list[Seen]:
    """A verdict for every backend of which a law is declared and that was measured at two sizes or more.

    A cost is as expected if the 95 % intervals of its medians at both ends leave it possible.
    """
    found = []
    for scenario, asked in scenarios.items():
        for growth in asked.growths:
            for backend in growth.backends:
                spreads = {cell.size: cell.spread for cell in results if cell.scenario == scenario and
                           cell.backend == backend and cell.status == "ok" and cell.size >= growth.since
                           and not cell.through_fake}   # what is expected of a kernel is not of the model
                first, last = min(spreads, default=0), max(spreads, default=0)
                one, other = spreads.get(first), spreads.get(last)
                if one is None or other is None or first == last or not one.low > 0:    # no bytes at all
                    continue
                as_expected = _allows(growth.law, other.low / one.high, other.high / one.low, last / max(first, 1))
                found.append(Seen(scenario, backend, growth.law, other.median / one.median, first, last,
                                  as_expected, growth.because, asked.size_name))
    return found


def _allows(law: str, low: float, high: float, sizes: float) -> bool:
    """Whether a factor somewhere in ``low .. high`` obeys the law over sizes that are so many times as large."""
    if law == "not growing":
        return low <= _CACHES
    least, most = LAWS[law]
    lowest, highest = (math.log(max(factor, 1e-300), sizes) for factor in (low, high))
    return lowest <= most and highest >= least
