"""Findings, one a judged cell, and the exit code that they come to."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Verdict(enum.Enum):
    """What a check says of one cell."""

    PASS = "pass"
    BETTER = "better"                   # passes, but the baseline is no longer what is measured
    REGRESSION = "regression"
    UNDECIDED = "undecided"


#: Process exit codes.
EXIT_PASS, EXIT_REGRESSION, EXIT_USAGE, EXIT_UNDECIDED = 0, 1, 2, 3


class CannotTell(Exception):
    """There is nothing to judge, or no way to judge it: exit 3 with the reason."""


class Usage(Exception):
    """The gate was called or set up wrongly: exit 2 with the reason."""


@dataclass(frozen=True)
class Finding:
    """One cell: which check judged it and what it says; the two numbers where it is a matter of two."""

    check: str
    cell: str
    verdict: Verdict
    text: str
    measured: float | None = None
    expected: float | None = None

    @property
    def less(self) -> bool:
        """Whether less was done than was expected, or it took less time: of a ratio than 1."""
        return self.measured is not None and self.measured < (1 if self.expected is None else self.expected)


@dataclass
class Judgement:
    """What a run came to: its findings, notes on them, and in words what was not judged: the verdict says that."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_judged: list[str] = field(default_factory=list)

    def add(self, check: str, cell: str, verdict: Verdict, text: str, measured: float | None = None,
            expected: float | None = None) -> None:
        """Add one finding."""
        self.findings.append(Finding(check, cell, verdict, text, measured, expected))

    def of(self, *verdicts: Verdict) -> list[Finding]:
        """The findings with these verdicts, those of the first one first."""
        return [finding for verdict in verdicts for finding in self.findings if finding.verdict is verdict]

    @property
    def exit_code(self) -> int:
        """A regression outweighs a doubt; nothing judged at all is a doubt."""
        if self.of(Verdict.REGRESSION):
            return EXIT_REGRESSION
        return EXIT_UNDECIDED if self.of(Verdict.UNDECIDED) or not self.findings else EXIT_PASS

    @property
    def summary(self) -> str:
        """One line: the verdict, how many cells it rests on, and what it does not speak of."""
        words = {EXIT_PASS: "PASS", EXIT_REGRESSION: "REGRESSION", EXIT_UNDECIDED: "COULD NOT TELL"}
        count = {verdict: len(self.of(verdict)) for verdict in Verdict}
        passing = count[Verdict.PASS] + count[Verdict.BETTER]
        parts = ["1 cell passes" if passing == 1 else f"{passing} cells pass"]
        if count[Verdict.BETTER]:
            parts.append(f"{count[Verdict.BETTER]} of them better than the baseline")
        parts += [f"{count[verdict]} {verdict.value}" for verdict in (Verdict.REGRESSION, Verdict.UNDECIDED)
                  if count[verdict]]
        left = f"; not judged: {'; '.join(self.not_judged)}" if self.not_judged else ""
        return f"{words[self.exit_code]}: {', '.join(parts)}{left}"
