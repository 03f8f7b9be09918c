"""Has your code become slower? Judges counts, how they grow, memory and claims; with --base also time.

Exit codes: 0 pass, 1 regression, 2 usage, 3 could not tell.

  kvmattr gate                              gate_scenarios.py here, against gate_baseline.json
  kvmattr gate --base main                  and the time against another commit
  kvmattr gate --update-baseline            accept what is measured now
  kvmattr gate --scenarios FILE.py --baseline FILE.json      under other names
  kvmattr gate --selftest                   plant regressions and see them caught
  kvmattr gate --judge-json HEAD... --against BASE...    files of pytest-benchmark, asv or hyperfine of two refs
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from pathlib import Path

from kvmattr.gate import benchmark_json, builds, history, loading, output, repository, stages
from kvmattr.gate.baseline import Baseline, judge_slopes
from kvmattr.gate.limits import DEFAULT, Limits
from kvmattr.gate.project import Project
from kvmattr.gate.selftest import prove, selftest
from kvmattr.gate.stages import Gate
from kvmattr.gate.verdict import EXIT_USAGE, CannotTell, Judgement, Usage, Verdict
from kvmattr.measure import ending, writing
from kvmattr.measure.status import overwritten

HELP = "fail a build in CI when code has become slower"

#: What a project's files are called where no option names them, and where kvmattr's own numbers lie.
SCENARIOS, BASELINE, OWN_BASELINE = Path("gate_scenarios.py"), Path("gate_baseline.json"), Path("bench/baseline.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``kvmattr gate``."""
    parser.add_argument("--scenarios", action="append", metavar="WHAT",
                        help="a .py file, the name of an entry point in 'kvmattr.gate', or 'own' (may be "
                        f"repeated; default: {SCENARIOS} where it lies in the current directory, else own in kvmattr's "
                        "source tree, else all entry points)")
    parser.add_argument("--baseline", type=Path, metavar="FILE",
                        help=f"the file with the numbers that were accepted (default: {BASELINE}; bench/baseline.json "
                        "for kvmattr's own)")
    parser.add_argument("--update-baseline", action="store_true",
                        help="accept what is measured now: write the baseline")
    parser.add_argument("--base", metavar="REF", help="also judge the time against this git ref: of the project in "
                        "the current directory, or of kvmattr in its source tree")
    parser.add_argument("--project", type=Path, metavar="DIR",
                        help="with --base: the project whose time is judged (default: the current directory)")
    parser.add_argument("--install", metavar="COMMAND",
                        help="with --base: how either commit of the project is installed; {python}, {source} and "
                        "{target} are filled in, '' is not at all (default: pip where it has a build file)")
    parser.add_argument("--threshold", action="append", default=[], metavar="[CELL=|group:NAME=]X",
                        help=f"times slower that a cell may be (default: {DEFAULT}); for one cell, a pattern of "
                        "cells, or a group (may be repeated)")
    parser.add_argument("--fail-if-faster", action="append", default=[], metavar="CELL|group:NAME",
                        help="a cell that must do its work: less work than the baseline's, or faster than the "
                        "threshold allows, is a regression too (may be repeated)")
    parser.add_argument("--instructions", action="store_true",
                        help="with --base: also judge instructions, under valgrind")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--source", type=Path, metavar="DIR",
                        help="kvmattr's source tree (default: the one that holds the current directory)")
    source.add_argument("--no-build", action="store_true",
                        help="judge the kvmattr that is installed, by the counts that every build has")
    parser.add_argument("--selftest", action="store_true", help="plant regressions; 0 if each is caught")
    parser.add_argument("--prove", type=_positive, metavar="N",
                        help="the selftest N times under artificial load")
    parser.add_argument("--judge-json", nargs="+", type=Path, metavar="HEAD",
                        help="judge JSON files of pytest-benchmark, asv or hyperfine: of the head ...")
    parser.add_argument("--against", nargs="+", type=Path, metavar="BASE",
                        help="... against these of the base")
    parser.add_argument("--same-machine", action="store_true",
                        help="judge files although they say that their machines differ")
    parser.add_argument("--history", type=Path, metavar="FILE",
                        help="append the commit's calls, counts, bytes and ratios of time, a line of JSON a run")
    parser.add_argument("--plot-history", type=Path, metavar="PICTURE",
                        help="draw what moved in --history FILE over its commits (.svg, .png or .pdf)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the findings as JUnit XML")


def run(arguments: argparse.Namespace) -> int:
    """Judge, print, write; the exit code."""
    judgement = Judgement()
    unwritten: list[writing.CannotWrite] = []
    try:
        with ending.heard():
            _at_odds(arguments)
            if arguments.prove:
                prove(_gate(arguments), arguments.prove, judgement)
            elif arguments.selftest:
                selftest(_gate(arguments), judgement)
            else:
                _judge(judgement, arguments)
    except Usage as error:
        return _usage(str(error))
    except writing.CannotWrite as error:
        unwritten.append(error)     # what was judged before is told all the same
    except CannotTell as error:
        judgement.add("gate", "all", Verdict.UNDECIDED, str(error))
    except KeyboardInterrupt:
        # What was judged before is worth having; cli.main tells of the rest and exits with 130.
        judgement.add("gate", "all", Verdict.UNDECIDED, "interrupted")
        if unwritten := _tell(judgement, arguments):
            _usage("; ".join(map(str, unwritten)))
        raise
    except Exception as error:      # Python's own exit code for it would be 1, and that means a regression
        traceback.print_exc()
        judgement.add("gate", "all", Verdict.UNDECIDED, f"the gate itself failed: {type(error).__name__}: {error}")
    if judgement.findings or not unwritten:
        unwritten += _tell(judgement, arguments)
    return _usage("; ".join(map(str, unwritten))) if unwritten else judgement.exit_code


def _usage(wrong: str) -> int:
    print(f"kvmattr gate: {wrong}", file=sys.stderr)
    if _in_github():
        print(output.github_error("kvmattr gate", wrong))
    return EXIT_USAGE


def _at_odds(arguments: argparse.Namespace) -> None:
    """Options of which one would be ignored: what was asked for is done, or refused, never forgotten."""
    modes = {"--selftest": arguments.selftest, "--prove": arguments.prove, "--update-baseline":
             arguments.update_baseline, "--judge-json": arguments.judge_json or arguments.against,
             "--plot-history": arguments.plot_history}
    chosen = [name for name, given in modes.items() if given]
    if len(chosen) > 1:
        raise Usage(f"{' and '.join(chosen)}: one at a time")
    if chosen and arguments.base:
        raise Usage(f"--base and {chosen[0]} do not go together")
    if chosen == ["--judge-json"] and not (arguments.judge_json and arguments.against):
        raise Usage("--judge-json HEAD... and --against BASE... go together")
    if arguments.plot_history and not arguments.history:
        raise Usage("--plot-history PICTURE draws --history FILE")
    if arguments.history and chosen and chosen != ["--plot-history"]:
        raise Usage(f"--history and {chosen[0]} do not go together")
    for name, given in (("--project", arguments.project), ("--install", arguments.install is not None),
                        ("--instructions", arguments.instructions)):
        if given and not arguments.base:
            raise Usage(f"{name} goes with --base REF")
    if arguments.same_machine and chosen != ["--judge-json"]:
        raise Usage("--same-machine is for --judge-json HEAD... --against BASE...")


def _judge(judgement: Judgement, arguments: argparse.Namespace) -> None:
    if arguments.plot_history:
        judgement.add("history", str(arguments.history), Verdict.PASS,
                      history.plot(arguments.history, arguments.plot_history))
        return
    if arguments.judge_json:
        benchmark_json.judge_files(judgement, arguments.against, arguments.judge_json,
                                   Limits.parsed(arguments.threshold, arguments.fail_if_faster),
                                   same_machine=arguments.same_machine)
        return
    gate = _gate(arguments)
    accepted = arguments.baseline or (OWN_BASELINE if list(gate.scenarios) == [loading.OWN] else BASELINE)
    # A baseline that cannot be read is told before minutes are spent on building.
    expected = None if arguments.update_baseline else Baseline.read(accepted)
    project = _project(arguments, gate)
    if arguments.base:
        # So is a ref that does not exist; a doubt is told after what can be judged without it.
        with contextlib.suppress(CannotTell):
            if project is not None:
                repository.checkout(project.directory, arguments.base)
            elif gate.source:
                builds.checkout(gate.source, arguments.base)
    found = stages.measure(gate, judgement, with_claims=not arguments.update_baseline)
    if expected is None:
        _update(judgement, accepted, found)
        return
    stages.judge_counts(judgement, gate, expected, found)
    if arguments.base:
        stages.judge_base(judgement, gate, arguments.base, project, with_instructions=arguments.instructions)
    if arguments.history:
        history.append(arguments.history, project.directory if project is not None else gate.source or Path.cwd(),
                       found.now, judgement)


def _project(arguments: argparse.Namespace, gate: Gate) -> Project | None:
    """Whose time is judged, if it is not kvmattr's own."""
    if not arguments.base or (arguments.project is None and builds.source_tree(Path.cwd()) is not None):
        return None
    directory = arguments.project or Path.cwd()
    if not directory.is_dir():
        raise Usage(f"--project {directory}: no such directory")
    return Project.at(directory, list(gate.scenarios), arguments.install, gate.tree())


def _gate(arguments: argparse.Namespace) -> Gate:
    source = builds.source_tree(arguments.source or Path.cwd())
    if arguments.source and source is None:
        raise Usage(f"--source {arguments.source}: not in a source tree of kvmattr")
    scenarios = arguments.scenarios or ([str(SCENARIOS)] if SCENARIOS.is_file() else
                                        [loading.OWN] if source else loading.registered())
    if not scenarios:
        raise CannotTell(f"no cells: no --scenarios, no {SCENARIOS} here, no entry point in 'kvmattr.gate', and not in "
                         "kvmattr's source tree")
    return Gate(scenarios, None if arguments.no_build else source,
                Limits.parsed(arguments.threshold, arguments.fail_if_faster))


def _update(judgement: Judgement, path: Path, found: stages.Measured) -> None:
    """Accept what was measured, unless it is less than it should be."""
    for cell, error in found.failed.items():
        judgement.add("missing", cell, Verdict.UNDECIDED, f"it raised {error}")
    judge_slopes(judgement, {}, found.now.slopes, found.scenarios)      # against what the scenarios declare
    if judgement.of(Verdict.REGRESSION, Verdict.UNDECIDED):
        judgement.notes.append(f"{path} was not written")
        return
    if not found.counted and path.exists() and Baseline.read(path).counted:
        raise Usage(f"{path} has what only a counting build counts, this one does not: it was not written. --source "
                    "DIR makes a counting build; without one, remove the file first")
    found.now.write(path)
    judgement.add("baseline", str(path), Verdict.PASS, f"{len(found.now.calls)} calls, {len(found.now.counts)} "
                  f"counts, {len(found.now.bytes)} bytes and {len(found.now.slopes)} slopes written")


def _in_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _tell(judgement: Judgement, arguments: argparse.Namespace) -> list[writing.CannotWrite]:
    """Print and write the judgement; why files cannot be written."""
    overwritten()
    if arguments.selftest or arguments.prove:   # they have printed a line a case
        print(*(finding.text for finding in judgement.findings if finding.check == "gate"), judgement.summary, sep="\n",
              flush=True)
    else:
        print(output.table(judgement), flush=True)
    if _in_github() and (errors := output.github_errors(judgement)):
        print(errors, flush=True)
    failed = []
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    for place, text in ((arguments.json, output.as_json), (arguments.junit, output.junit), (summary, output.markdown)):
        if place:
            try:
                if not writing.is_stdout(place):
                    Path(place).parent.mkdir(parents=True, exist_ok=True)
                writing.write(place, text(judgement), append=place is summary)
            except OSError as error:
                failed.append(writing.CannotWrite.because(place, error))
    return failed


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more")
    return number
