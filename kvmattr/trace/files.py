"""Whole traces, one a task: here, or over any ``concurrent.futures`` executor, on other machines too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from functools import partial
from typing import Any

from kvmattr.measure import ending
from kvmattr.measure.executors import submitted
from kvmattr.trace.reading import read
from kvmattr.trace.replaying import Summary, machine_for, replay, time_again

#: Kernel instructions are estimated for traces up to this many operations: about 10 us each.
ESTIMATED = 100_000

Path = str | os.PathLike[str]

#: Traces up to this many operations are replayed so many times, which takes well under a second.
TIMED_AGAIN, ROUNDS = 10_000, 9


def replay_file(path: Path, abi: str | None = None, phys_bits: int | None = None, **options: Any) -> Summary:
    """Replay the trace in a file on the machine that it is for, with both sides; short ones are timed again.

    ``options``: those of `read`.

    Raises TraceError (a ValueError) with file, line and what was expected, and OSError.
    """
    with read(path, **options) as trace:
        vm = machine_for(trace, abi, phys_bits)
        summary = replay(trace, vm, estimate=trace.operations <= ESTIMATED)
        if trace.operations <= TIMED_AGAIN:
            time_again(summary, trace, lambda: machine_for(trace, abi, phys_bits), ROUNDS)
        return summary


def replay_files(paths: Iterable[Path], executor: Executor | None = None, abi: str | None = None,
                 phys_bits: int | None = None) -> Iterator[Summary]:
    """The summaries of many traces, as they come; each names its file and the host that replayed it.

    ``executor``: anything with ``submit`` in the manner of ``concurrent.futures``; a whole trace with both
    sides is one task. Traces that could not be replayed keep nobody waiting: they are raised at the end,
    together, as an ExceptionGroup.

    >>> [summary.operations for summary in replay_files([])]
    []
    """
    errors: list[Exception] = []
    tasks: Iterator[Callable[[], Summary]]
    if executor is None:
        tasks = (partial(replay_file, path, abi, phys_bits) for path in paths)
    else:
        futures = [submitted(executor, replay_file, path, abi, phys_bits) for path in paths]
        tasks = (future.result for future in as_completed(futures))
    for task in tasks:
        try:
            summary = task()
        except Exception as error:
            ending.again()
            errors.append(error)
            continue
        yield summary
    if errors:
        raise ExceptionGroup(f"{len(errors)} traces could not be replayed", errors)
