"""The study: what a page conversion costs, by attributes and by memslots. From Python: :func:`run`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmattr.study.report import Report

__all__ = ["load", "run"]


def run(scenarios: Sequence[str] | None = None, backends: Sequence[str] | None = None, *, quick: bool = False,
        rounds: int | None = None, seconds: float | None = None, operations: int | Mapping[str, int] | None = None,
        files: Sequence[str] = (), executor: Executor | None = None) -> Report:
    """Measure scenarios on backends (names; None: all) and return the :class:`~kvmattr.study.report.Report`.

    ``quick``: fewer sizes, scenarios and rounds. ``rounds``: samples a cell. ``seconds``: the time limit of a cell.
    ``operations``: operations a round, the same in every run, of all backends or by their names ("": of the others;
    else as many as fit a round's time). ``files``: Python files with backends and scenarios of one's own.
    ``executor``: takes whole units, in the manner of ``concurrent.futures``. Ctrl-C ends the run: the report has what
    was done, and ``interrupted``.
    Takes about a minute where ``quick``, else a quarter of an hour and more. Raises ValueError for unknown names.

    >>> report = run(["whole"], ["store", "numpy"], quick=True, rounds=3)
    >>> [(result.backend, result.size, result.status) for result in report.results][:2]
    [('store', 262144, 'ok'), ('numpy', 262144, 'ok')]
    """
    from kvmattr.study import measuring, plan

    made = plan.make(scenarios, backends, quick=quick, rounds=rounds, seconds=seconds, operations=operations,
                     files=files)
    return measuring.measure(made, executor=executor)[0]


def load(path: str | os.PathLike[str]) -> Report:
    """Read a report that was written as JSON. Raises OSError, or ValueError that names file and field."""
    from kvmattr.study.report import load

    return load(path)
