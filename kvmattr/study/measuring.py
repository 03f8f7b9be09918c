"""From a plan to a report: the units are run one after the other, and whoever asks has what is done after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext

from kvmattr.measure import ending, text
from kvmattr.measure.machine import Load, describe
from kvmattr.measure.status import Advance
from kvmattr.study import runner, scenarios
from kvmattr.study.plan import Plan
from kvmattr.study.report import Report
from kvmattr.study.results import Result


def measure(plan: Plan, *, note: str = "", executor: Executor | None = None,
            done: Callable[[Report], None] = lambda report: None,
            progress: AbstractContextManager[Advance] | None = None) -> tuple[Report, KeyboardInterrupt | None]:
    """Run the plan; the report, and what ended the run early (Ctrl-C, a signal, a closed pipe) or None.

    ``note``: words that the report begins with. ``done`` is called after each unit with the report so far.
    ``progress``: told what is about to run.
    """
    machine, before = describe(), Load.now()
    options, results = plan.options, list[Result]()
    method = {"rounds": options.rounds, "most": max(options.rounds, options.most),
              "round_seconds": options.round_seconds, "cell_seconds": options.cell_seconds,
              "operations": ", ".join(f"{name or 'all others'} {count:,}" for name, count in options.operations.items())
              or "as many as fit round_seconds",
              "order": "forwards and backwards in turn",
              "clock": f"perf_counter_ns, resolution {time.get_clock_info('perf_counter').resolution:g} s; CPU time "
                       "of the thread for models and libraries in rounds of 0.1 ms or more",
              "yardstick": "1,000 steps of fixed work in user space, just before each sample"}

    if note:
        method["note"] = note

    def report(interrupted: bool) -> Report:
        return Report(machine, method, Load.now().since(before), list(results), interrupted,
                      left_out=plan.left_out)
    interrupt: KeyboardInterrupt | None = None
    try:
        with progress or nullcontext(lambda label: None) as advance:
            for unit_results in runner.run(plan.units, options, executor,
                                           started=lambda unit: advance(label(unit))):
                results += unit_results
                done(report(len(results) < plan.cells))
                ending.check()
    except KeyboardInterrupt as error:
        interrupt = error
    except BrokenPipeError:     # of the progress: what a backend raises ends in its cell
        interrupt = ending.ReaderGone()
    return report(interrupt is not None), interrupt


def label(unit: runner.Unit) -> str:
    """A unit for people."""
    return f"{unit.scenario} {text.size(unit.size, scenarios.ALL[unit.scenario].size_name)}"
