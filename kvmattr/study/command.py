"""What does converting a page cost, by attributes and by memslots?

Runs scenarios x sizes x backends in interleaved rounds and prints medians, ratios within one kind of backend,
and what follows from them in words. Ctrl-C writes what is done. Exit code 1: a cell was wrong or ended in an
error, which the report tells; all others are in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from kvmattr.measure import text, writing
from kvmattr.measure.machine import Load, describe
from kvmattr.measure.progress import progress
from kvmattr.study import backends, runner, scenarios, summary, table
from kvmattr.study.report import Report, names_known
from kvmattr.study.results import DEFECTS, Result
from kvmattr.study.runner import QUICK, Options, Unit, plan

HELP = "measure what page conversions cost by attributes and by memslots"

#: What --quick leaves out: peers that answer other questions, and the variant of a row that is there already.
_NOT_QUICK = ("kvm-memslots-vcpu", "mprotect", "unicorn", "pyroaring", "sortedcontainers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``kvmattr scaling``."""
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: about a minute")
    parser.add_argument("--list", action="store_true", help="list scenarios and backends and stop")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="only this one (may be repeated)")
    parser.add_argument("--backend", action="append", metavar="NAME", help="only this one (may be repeated)")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="samples a cell")
    parser.add_argument("--seconds", type=_positive, metavar="S", help="time limit of a cell")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line a result")
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY",
                        help="write a PNG and an SVG a scenario (needs kvmattr[study])")
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="write one self-contained page (needs kvmattr[study])")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write. 0; 1 if a cell was wrong or an error; 2 for a bad option; 130 after Ctrl-C."""
    if arguments.list:
        print(_listing())
        return 0
    try:
        units, options = _plan(arguments)
        if arguments.html or arguments.plots:
            from kvmattr.study.extras import require
            require("matplotlib", "jinja2")
        writing.check(arguments.json, arguments.csv, arguments.html)
        writing.check_directory(arguments.plots)
    except (OSError, ValueError, ImportError) as error:
        print(f"kvmattr scaling: {error}", file=sys.stderr)
        return 2
    report = measure(units, options)
    print(table.plain(report.results))
    print()
    for sentence in summary.sentences(report.results, report.load):
        print(sentence)
    _write(report, arguments)
    if report.interrupted:
        return 130
    return 1 if any(result.status in DEFECTS for result in report.results) else 0


def measure(units: list[Unit], options: Options) -> Report:
    """Run the units here, with progress on stderr; Ctrl-C ends it with what is done."""
    machine, before = describe(), Load.now()
    cells = sum(len(unit.backends) for unit in units)
    expected = runner.forecast(units, options)
    print(f"{len(units)} units, {cells} cells of which {expected.cells} can run here, {options.rounds} rounds: "
          f"{expected.low / 60:.1f} to {expected.high / 60:.1f} min; a cell stops after "
          f"{options.cell_seconds:g} s", file=sys.stderr)
    results: list[Result] = []
    interrupted = False
    try:
        with progress(len(units)) as advance:
            for unit_results in runner.run(units, options, started=lambda unit: advance(_label(unit))):
                results += unit_results
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {len(results)} of {cells} cells are done", file=sys.stderr)
    method = {"rounds": options.rounds, "round_seconds": options.round_seconds,
              "cell_seconds": options.cell_seconds, "order": "forwards and backwards in turn",
              "clock": f"perf_counter_ns, resolution {time.get_clock_info('perf_counter').resolution:g} s"}
    return Report(machine, method, Load.now().since(before), results, interrupted)


def _plan(arguments: argparse.Namespace) -> tuple[list[Unit], Options]:
    names_known("scenario", arguments.scenario or (), list(scenarios.ALL))
    names_known("backend", arguments.backend or (), list(backends.ALL))
    options = QUICK if arguments.quick else Options()
    options = Options(arguments.rounds or options.rounds, options.round_seconds,
                      arguments.seconds or options.cell_seconds)
    chosen = arguments.backend or [name for name in backends.ALL
                                   if not (arguments.quick and name in _NOT_QUICK)]
    units = plan(arguments.scenario or list(scenarios.ALL), chosen, arguments.quick)
    if not units and not plan(arguments.scenario or list(scenarios.ALL), chosen, quick=False):
        places = {name: [scenario.name for scenario in scenarios.ALL.values() if name in scenario.own_backends]
                  for name in chosen}
        raise ValueError("; ".join(f"{name} takes part in {text.listed(names)} alone"
                                   for name, names in places.items()))
    if not units:
        raise ValueError(f"--quick leaves out {text.listed(arguments.scenario)}: run it without --quick")
    return units, options


def _write(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.json:
        report.save_json(arguments.json)
    if arguments.csv:
        report.save_csv(arguments.csv)
    if arguments.plots:
        from kvmattr.study.plots import save_plots
        save_plots(report.results, arguments.plots)
    if arguments.html:
        from kvmattr.study.html import save_html
        save_html(report, arguments.html)


def _label(unit: Unit) -> str:
    return f"{unit.scenario} {text.size(unit.size, scenarios.ALL[unit.scenario].size_name)}"


def _listing() -> str:
    lines = ["scenarios:"]
    for scenario in scenarios.ALL.values():
        lines += [f"  {scenario.name:<18} {scenario.question}", f"  {'':<18} expected: {scenario.expected}"]
    lines.append("backends:")
    for backend in backends.ALL.values():
        reason = backend.missing()
        lines.append(f"  {backend.name:<18} [{backend.kind}] {backend.about}")
        if reason:
            lines.append(f"  {'':<18} not here: {reason}")
    return "\n".join(lines)


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a positive number")
    return int(word)
