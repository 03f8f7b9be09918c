"""What does converting a page cost, by attributes and by memslots?

Measures each scenario at each size on each backend, in rounds in which the backends take turns. Prints medians,
ratios to a reference of the same kind, and sentences that say what follows. Results are written after each size of
a scenario, so Ctrl-C, SIGTERM, SIGHUP and a closed pipe lose nothing.

Exit codes: 0 measured; 1 a cell was wrong or ended in an error, as the report says; 2 a bad option, or a file that
could not be written (all others are); 3 nothing was measured; 130, 143, 129 and 141 after Ctrl-C, SIGTERM, SIGHUP
and a closed pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from kvmattr.measure import ending
from kvmattr.measure.refusing import refusing
from kvmattr.measure.status import duration, progress
from kvmattr.measure.table import width
from kvmattr.study import backends, measuring, plan, registry, scenarios
from kvmattr.study.output import Outputs
from kvmattr.study.output import add_arguments as add_outputs
from kvmattr.study.plan import Plan
from kvmattr.study.report import Report
from kvmattr.study.results import DEFECTS
from kvmattr.study.table import wrapped

HELP = "measure what page conversions cost by attributes and by memslots"

EXIT_DEFECT, EXIT_USAGE, EXIT_NOTHING = 1, 2, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``kvmattr scaling``."""
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: about a minute")
    parser.add_argument("--list", action="store_true", help="list scenarios and backends and stop")
    _names(parser.add_argument("--scenario", action="append", metavar="NAME", help="only this one (may be repeated)"),
           scenarios.ALL)
    _names(parser.add_argument("--backend", action="append", metavar="NAME", help="only this one (may be repeated)"),
           backends.ALL)
    parser.add_argument("--with", action="append", dest="files", default=[], metavar="FILE.py",
                        help="also know the backends and scenarios that this file defines (may be repeated)")
    parser.add_argument("--rounds", type=int, metavar="N", help="samples a cell")
    parser.add_argument("--operations", type=operations, action="append", default=[], metavar="[BACKEND=]N",
                        help="operations a round, the same in every run (else as many as fit its time)")
    parser.add_argument("--note", metavar="WORDS", default="", help="what readers of the report shall know first")
    parser.add_argument("--seconds", type=float, metavar="S", help="time limit of a cell")
    add_outputs(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write, print; the exit code. Raises Refused before anything is measured."""
    with refusing():
        if arguments.list:
            _leave_out(registry.load(arguments.files))
            print(_listing())
            return 0
        made = plan.make(arguments.scenario, arguments.backend, quick=arguments.quick, rounds=arguments.rounds,
                         seconds=arguments.seconds, operations=dict(arguments.operations) or None,
                         files=arguments.files)
        outputs = Outputs("scaling", arguments)
    _announce(made)
    report, interrupt = measuring.measure(made, note=arguments.note, done=outputs.keep,
                                          progress=progress(made.forecast.units))
    # Files first: whatever becomes of the terminal, they are there.
    all_written = outputs.write(report)
    if interrupt is not None:
        with contextlib.suppress(BrokenPipeError):
            print(f"{ending.reason(interrupt)}: {len(report.results)} of {made.cells} cells are done", file=sys.stderr)
    if not isinstance(interrupt, ending.ReaderGone):
        show(report, outputs.people)
    if interrupt is not None:
        return ending.exit_code(interrupt)
    if not all_written:
        return EXIT_USAGE
    return exit_code(report)


def exit_code(report: Report) -> int:
    """What a report that was measured to its end comes to."""
    if any(result.status in DEFECTS for result in report.results):
        return EXIT_DEFECT
    return 0 if any(result.status == "ok" for result in report.results) else EXIT_NOTHING


def show(report: Report, stream: Any) -> None:
    """Tables and sentences for people."""
    columns = width()
    print(report.table(columns), file=stream)
    print(file=stream)
    for sentence in report.sentences:
        print(*wrapped(sentence, columns), sep="\n", file=stream)
    print(end="", file=stream, flush=True)      # a standard output that was closed before we began is None


def _announce(made: Plan) -> None:
    expected = made.forecast
    print(f"{len(made.units)} units, {made.cells} cells of which {expected.cells} can run here, "
          f"{made.options.rounds} rounds: {duration(expected.low)} to {duration(expected.high)} min; a cell stops "
          f"after {made.options.cell_seconds:g} s", file=sys.stderr)
    _leave_out(made.left_out)


def _leave_out(what: Sequence[str]) -> None:
    for words in what:
        print(f"left out: {words}", file=sys.stderr)


def _listing() -> str:
    lines = ["scenarios:"]
    for scenario in scenarios.ALL.values():
        lines += [f"  {scenario.name:<18} {scenario.question}", f"  {'':<18} expected: {scenario.asked.expected}"]
    lines.append("backends:")
    for backend in backends.ALL.values():
        reason = backends.missing(backend.name)
        lines.append(f"  {backend.name:<18} [{backend.kind}] {backend.about}")
        if reason:
            lines.append(f"  {'':<18} not here: {reason}")
    return "\n".join(line for each in lines for line in wrapped(each, width(), "", " " * 21))


def _names(action: argparse.Action, known: dict[str, Any]) -> None:
    """What a shell may complete an option with."""
    action.completer = lambda **_: list(known)      # type: ignore[attr-defined]


def operations(word: str) -> tuple[str, int]:
    """``BACKEND=N`` or ``N`` as the name, which may be empty, and the number."""
    backend, _, count = word.rpartition("=")
    return backend, int(count)
