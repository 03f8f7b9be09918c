"""The files of a report: which were asked for, and how they are written. Used by ``scaling`` and ``report``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from errno import EDQUOT, ENOSPC
from pathlib import Path

from kvmattr.measure import writing
from kvmattr.measure.extras import require
from kvmattr.measure.writing import CannotWrite
from kvmattr.study.plots import files
from kvmattr.study.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--json``, ``--csv``, ``--html`` and ``--plots``."""
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON; - is standard output, and then "
                        "the table goes to standard error")
    parser.add_argument("--csv", metavar="FILE", help="write one line a result")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page (needs kvmattr[study])")
    parser.add_argument("--plots", metavar="DIRECTORY",
                        help="write a PNG and an SVG a scenario (needs kvmattr[study])")


class Outputs:
    """What of a report is to be written where; made and checked before anything is measured."""

    def __init__(self, command: str, arguments: argparse.Namespace, read: Sequence[str] = ()) -> None:
        """``read``: reports that are not to be overwritten. Raises CannotWrite, or ImportError for a library."""
        self._command = command
        #: Places by the method of a report that makes what they shall hold.
        self._places: dict[str, str] = {make: place for make in ("json", "csv", "html")
                                        if (place := getattr(arguments, make)) is not None}
        self._plots: str | None = arguments.plots
        if "html" in self._places:
            require("matplotlib", "jinja2")
        if self._plots:
            require("matplotlib")
        writing.check(*self._places.values(), read=read)
        writing.check_directory(self._plots)
        self._told: set[str] = set()
        #: Where what people read goes.
        self.people = writing.people(*self._places.values())

    def keep(self, report: Report) -> None:
        """Write what is done so far, where that replaces a file; a place that takes it only once has it last."""
        for make, place in self._places.items():
            if make != "html" and writing.is_regular(place):
                self._tell((), writing.write_each([(place, getattr(report, make))]))

    def write(self, report: Report) -> bool:
        """Write everything and say what was written; False if something could not be."""
        written = list(self._places.values())
        errors = writing.write_each((place, getattr(report, make)) for make, place in self._places.items())
        if self._plots:
            errors += self._write_plots(report, Path(self._plots), written)
        self._tell(written, errors)
        return not errors

    def _tell(self, written: Sequence[str], errors: Sequence[CannotWrite]) -> None:
        """As writing.tell, but each error once: a disk that is full while measuring is so in the end."""
        failed = {error.filename for error in errors}
        writing.tell(self._command, [name for name in written if name not in failed],
                     [error for error in errors if str(error) not in self._told])
        self._told.update(map(str, errors))

    def _write_plots(self, report: Report, directory: Path, written: list[str]) -> list[CannotWrite]:
        try:
            Path(os.path.realpath(directory)).mkdir(parents=True, exist_ok=True)     # a link to nowhere is made there
        except OSError as error:
            return [CannotWrite.because(directory, error)]
        drawn = list(files(report, directory))
        errors = writing.write_each(drawn, ours=True)
        if not drawn:
            written.append(f"no plot in {directory}, which needs two sizes")
        elif count := len(drawn) - len(errors):
            written.append(f"{count} files in {directory}")
        full = [error for error in errors if error.errno in (ENOSPC, EDQUOT)]
        if len(full) > 1:       # of all files alike: told once
            first = full[0]
            first.filename = f"{first.filename} and {len(full) - 1} more"
            errors = [error for error in errors if error is first or error not in full]
        return errors
