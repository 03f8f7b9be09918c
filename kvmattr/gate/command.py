"""Has performance changed? Counts first, then scaling, memory, claims; time only against a git ref, in pairs.

Exit codes: 0 pass, 1 regression, 2 usage, 3 could not tell.

  kvmattr gate                              against bench/baseline.json, in kvmattr's source tree
  kvmattr gate --base main                  and the time against another commit
  kvmattr gate --scenarios FILE.py          a project's own scenarios, against its own --baseline
  kvmattr gate --update-baseline            accept what is measured now
  kvmattr gate --selftest                   plant regressions and see them caught
  kvmattr gate --judge-json HEAD... --against BASE...    pytest-benchmark files of two refs
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kvmattr.gate import benchmark_json, builds, loading, output, stages
from kvmattr.gate.baseline import Baseline
from kvmattr.gate.selftest import prove, selftest
from kvmattr.gate.stages import Gate
from kvmattr.gate.verdict import (
    EXIT_PASS,
    EXIT_REGRESSION,
    EXIT_UNDECIDED,
    EXIT_USAGE,
    CannotTell,
    Report,
    Usage,
    Verdict,
)

HELP = "judge performance by counts, scaling, memory, claims and paired times, for CI"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``kvmattr gate``."""
    parser.add_argument("--scenarios", action="append", metavar="WHAT",
                        help="a .py file, the name of an entry point in 'kvmattr.gate', or 'own' (may be "
                        "repeated; default: own in kvmattr's source tree, else all entry points)")
    parser.add_argument("--baseline", type=Path, default=Path("bench/baseline.json"), metavar="FILE",
                        help="the committed counts, bytes and slopes (default: %(default)s)")
    parser.add_argument("--update-baseline", action="store_true",
                        help="write what is measured now to the baseline")
    parser.add_argument("--base", metavar="REF", help="also judge the time against this git ref of kvmattr")
    parser.add_argument("--threshold", type=_threshold, default=1.10, metavar="X",
                        help="times slower that a cell may be (default: %(default)s)")
    parser.add_argument("--instructions", action="store_true",
                        help="also judge instructions, under valgrind: against --base, else the baseline's")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--source", type=Path, metavar="DIR",
                        help="kvmattr's source tree (default: the one that holds the current directory)")
    source.add_argument("--no-build", action="store_true",
                        help="judge the kvmattr that is installed, by the counts that every build has")
    parser.add_argument("--selftest", action="store_true", help="plant regressions; 0 if each is caught")
    parser.add_argument("--prove", type=_positive, metavar="N",
                        help="the selftest N times under artificial load")
    parser.add_argument("--judge-json", nargs="+", type=Path, metavar="HEAD",
                        help="judge pytest-benchmark JSON files of the head ...")
    parser.add_argument("--against", nargs="+", type=Path, metavar="BASE",
                        help="... against these of the base")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the findings as JUnit XML")


def run(arguments: argparse.Namespace) -> int:
    """Judge, print, write; the exit code."""
    report = Report()
    try:
        if arguments.selftest or arguments.prove:
            gate = _gate(arguments)
            sound = prove(gate, arguments.prove) if arguments.prove else selftest(gate)
            return EXIT_PASS if sound else EXIT_REGRESSION
        _judge(report, arguments)
    except Usage as error:
        print(f"kvmattr gate: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CannotTell as error:
        report.add("gate", "all", Verdict.UNDECIDED, str(error))
        if arguments.selftest or arguments.prove:
            print(f"kvmattr gate: {error}", file=sys.stderr)
            return EXIT_UNDECIDED
    _tell(report, arguments)
    return report.exit_code


def _judge(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.judge_json or arguments.against:
        if not (arguments.judge_json and arguments.against):
            raise Usage("--judge-json HEAD... and --against BASE... go together")
        benchmark_json.judge_files(report, arguments.against, arguments.judge_json, arguments.threshold)
        return
    gate = _gate(arguments)
    # A baseline that cannot be read is told before minutes are spent on building.
    expected = None if arguments.update_baseline else Baseline.read(arguments.baseline)
    found = stages.measure(gate, report, with_claims=not arguments.update_baseline)
    if arguments.instructions and (arguments.update_baseline or not arguments.base):
        stages.count_instructions(gate, found.now)
    if expected is None:
        _update(report, arguments.baseline, found)
        return
    stages.judge_counts(report, expected, found)
    if arguments.base:
        stages.judge_base(report, gate, arguments.base, with_instructions=arguments.instructions)
    elif arguments.instructions:
        stages.judge_stored_instructions(report, expected, found.now)


def _gate(arguments: argparse.Namespace) -> Gate:
    source = builds.source_tree(arguments.source or Path.cwd())
    if arguments.source and source is None:
        raise Usage(f"--source {arguments.source}: not in a source tree of kvmattr")
    scenarios = arguments.scenarios or ([loading.OWN] if source else loading.registered())
    if not scenarios:
        raise CannotTell("no cells: no --scenarios, no entry point in 'kvmattr.gate', and not in kvmattr's "
                         "source tree")
    return Gate(scenarios, None if arguments.no_build else source, arguments.threshold)


def _update(report: Report, path: Path, found: stages.Measured) -> None:
    """Accept what was measured, unless it is less than it should be."""
    for cell, error in found.failed.items():
        report.add("missing", cell, Verdict.UNDECIDED, f"it raised {error}")
    stages.judge_growth(report, found)
    if report.of(Verdict.REGRESSION, Verdict.UNDECIDED):
        report.notes.append(f"{path} was not written")
        return
    if not found.counted and path.exists() and Baseline.read(path).counted:
        raise Usage(f"{path} has what only a counting build counts, this one does not: it was not written")
    found.now.write(path)
    report.add("baseline", str(path), Verdict.PASS, f"{len(found.now.counts)} counts, {len(found.now.bytes)} "
               f"bytes and {len(found.now.slopes)} slopes written")


def _tell(report: Report, arguments: argparse.Namespace) -> None:
    print(output.table(report))
    if arguments.json:
        output.write(arguments.json, output.as_json(report))
    if arguments.junit:
        output.write(arguments.junit, output.junit(report))
    if os.environ.get("GITHUB_ACTIONS") == "true" and (errors := output.github_errors(report)):
        print(errors)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(output.markdown(report))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more")
    return number


def _threshold(text: str) -> float:
    number = float(text)
    if not 1 < number < 10:
        raise argparse.ArgumentTypeError(f"{text}: a ratio between 1 and 10, for example 1.10")
    return number
