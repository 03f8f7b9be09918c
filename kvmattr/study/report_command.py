"""Draw a report again from its JSON: tables and sentences here, CSV, plots and the page where they are asked for."""

from __future__ import annotations

import argparse

from kvmattr.measure.refusing import refusing
from kvmattr.study import command
from kvmattr.study.output import Outputs
from kvmattr.study.output import add_arguments as add_outputs
from kvmattr.study.report import load

HELP = "show a JSON report of kvmattr scaling, or draw it anew"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``kvmattr report``."""
    parser.add_argument("report", metavar="REPORT.json")
    add_outputs(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write and print it. 0; 2 if something cannot be written. Raises Refused."""
    with refusing():
        outputs = Outputs("report", arguments, [arguments.report])
        report = load(arguments.report)
    all_written = outputs.write(report)
    command.show(report, outputs.people)
    return 0 if all_written else command.EXIT_USAGE
