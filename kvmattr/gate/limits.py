"""How much slower which cell may be, and which cells may not be faster either.

A rule is for a cell, for all cells that a pattern matches, or for a group: ``walk/1048576=1.3``, ``walk/*=1.3``,
``group:queries=1.3``. A cell's own rule goes before its group's, that before what its scenario declares, and that
before the threshold for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from kvmattr.gate.verdict import Usage

DEFAULT = 1.10
_GROUP = "group:"


@dataclass(frozen=True)
class Limits:
    """The rules of a run. ``declared`` are a scenario's own words, by its name."""

    threshold: float = DEFAULT
    thresholds: tuple[tuple[str, float], ...] = ()
    must_work: tuple[str, ...] = ()
    declared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def parsed(cls, thresholds: Iterable[str], must_work: Iterable[str]) -> Limits:
        """Of the words of ``--threshold`` and ``--fail-if-faster``; Usage for what is none.

        >>> Limits.parsed(["1.2", "walk/*=1.5"], []).of("walk/64")
        1.5
        """
        for_all, rules = DEFAULT, []
        for text in thresholds:
            where, equals, number = text.rpartition("=")
            try:
                ratio = float(number if where or not equals else "")
            except ValueError:
                raise Usage(f"--threshold {text}: X, CELL=X or group:NAME=X with a ratio X") from None
            if not 1 < ratio < 10:
                raise Usage(f"--threshold {text}: a ratio between 1 and 10, for example 1.10")
            if where:
                rules.append((where, ratio))
            else:
                for_all = ratio
        return cls(for_all, tuple(rules), tuple(must_work))

    def with_declared(self, scenarios: Iterable[Mapping[str, Any]]) -> Limits:
        """The same, knowing what the scenarios say of themselves."""
        return replace(self, declared={each["name"]: each for each in scenarios})

    def _scenario(self, cell: str) -> Mapping[str, Any]:
        return self.declared.get(cell.partition("/")[0], {})

    def _fits(self, pattern: str, cell: str, group: str | None) -> bool:
        if pattern.startswith(_GROUP):
            cell, pattern = group or self._scenario(cell).get("group") or "", pattern.removeprefix(_GROUP)
        # Not by pattern alone: the brackets of pytest's names are letters to fnmatch.
        return bool(cell) and (cell == pattern or fnmatchcase(cell, pattern))

    def of(self, cell: str, group: str | None = None) -> float:
        """How many times slower a cell (SCENARIO/SIZE, or a benchmark's name) may be."""
        # Of the rules that fit the last one is meant, and a cell's own come after its group's.
        rules = sorted(self.thresholds, key=lambda rule: not rule[0].startswith(_GROUP))
        fitting = [ratio for pattern, ratio in rules if self._fits(pattern, cell, group)]
        return fitting[-1] if fitting else float(self._scenario(cell).get("threshold") or self.threshold)

    def working(self, cell: str, group: str | None = None) -> bool:
        """Whether a cell fails if it does less, or is faster."""
        return bool(self._scenario(cell).get("must_work")) or any(
            self._fits(pattern, cell, group) for pattern in self.must_work)

    def check(self, cells: Mapping[str, str | None]) -> None:
        """Usage for a rule that fits no cell: a name that was misspelt would leave its cell unguarded. ``cells``: each
        cell's group."""
        for option, pattern in [*(("--threshold", pattern) for pattern, _ in self.thresholds),
                                *(("--fail-if-faster", pattern) for pattern in self.must_work)]:
            if not any(self._fits(pattern, cell, group) for cell, group in cells.items()):
                raise Usage(f"{option} {pattern}: no cell of that name, pattern or group")
