"""Units of work, run here or by any ``concurrent.futures`` executor; all arms of a unit share one process."""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from kvmattr.study import backends, scenarios
from kvmattr.study.arm import Arm, described, reason_against, unbroken_seconds
from kvmattr.study.results import Result


@dataclass(frozen=True)
class Unit:
    """One scenario at one size with all its backends: the piece that is never divided between processes."""

    scenario: str
    size: int
    backends: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """Rounds a unit, seconds that one arm's round aims at, and seconds after which a cell is stopped."""

    rounds: int = 15
    round_seconds: float = 0.1
    cell_seconds: float = 20.0


QUICK = Options(rounds=9, round_seconds=0.04, cell_seconds=10.0)


def plan(scenario_names: Sequence[str], backend_names: Sequence[str], quick: bool) -> list[Unit]:
    """The units of a run, in order."""
    found = []
    for name in scenario_names:
        scenario = scenarios.ALL[name]
        elsewhere = {backend for other in scenarios.ALL.values() for backend in other.own_backends
                     if backend not in scenario.own_backends}
        taking_part = tuple(backend for backend in backend_names if backend not in elsewhere)
        if taking_part:
            found += [Unit(name, size, taking_part)
                      for size in (scenario.quick_sizes if quick else scenario.sizes)]
    return found


@dataclass(frozen=True)
class Forecast:
    """What a run will be: the cells that can be measured here, and seconds from ... to.

    ``low`` is what the rounds take, and two more to open and to warm up, as long as their longest calls where
    those are known; ``high`` has every cell of a slow backend at its time limit, which depends on the kernel more
    than on anything known before.
    """

    cells: int
    low: float
    high: float


def forecast(units: Sequence[Unit], options: Options) -> Forecast:
    """Look which backends are here, can do what the scenarios ask, and have the memory for such a guest."""
    here = {name for name, backend in backends.ALL.items() if backend.missing() is None}
    cells, low, high = 0, 0.0, 0.0
    for unit in units:
        scenario = scenarios.ALL[unit.scenario]
        # Guests are made as big as they will be; of other sizes the smallest shows what is asked, quickly.
        size = unit.size if scenario.size_name == "guest size" else scenario.sizes[0]
        work = scenario.make(size, np.random.default_rng(0))
        for backend in (backends.ALL[name] for name in unit.backends if name in here):
            if reason_against(backend, work, options.cell_seconds) is not None:
                continue
            a_round = max(options.round_seconds, unbroken_seconds(backend, work))
            a_cell = min((options.rounds + 2) * a_round, max(options.cell_seconds, 2 * a_round))
            cells += 1
            low += a_cell
            high += max(a_cell, options.cell_seconds) if backend.slow else a_cell
    return Forecast(cells, low, high)


def run_unit(unit: Unit, options: Options) -> list[Result]:
    """Measure one unit: open all arms, let them take turns forwards and backwards, check them at the end.

    Always gives a result for every backend: what was raised outside them is the ``error`` of every cell that
    had not ended before.
    """
    scenario = scenarios.ALL[unit.scenario]
    seed = zlib.crc32(f"{unit.scenario} {unit.size}".encode())
    arms: list[Arm] = []
    try:
        workload = scenario.make(unit.size, np.random.default_rng(seed))
        arms = [Arm(backends.ALL[name], scenario, unit.size, workload, options.cell_seconds)
                for name in unit.backends]
        _measure(arms, options)
    except Exception as error:
        if not arms:
            return _without_results(unit, error)
        for arm in arms:
            arm.fail(error)
    finally:
        for arm in arms:
            arm.close()
    return [arm.result() for arm in arms]


def run(units: Sequence[Unit], options: Options, executor: Executor | None = None,
        started: Callable[[Unit], None] = lambda unit: None) -> Iterator[list[Result]]:
    """The results, unit by unit as they end. With an executor, whole units go to its workers.

    ``executor``: anything with ``submit`` in the manner of ``concurrent.futures`` (a process pool,
    ``dask.distributed.Client().get_executor()``, Ray behind the adapter of docs/study.md). Results name the
    host that they came from. Two units on one machine at a time disturb each other: give each host one worker.
    A worker that died is the ``error`` of its unit; the others go on.
    """
    if executor is None:
        for unit in units:
            started(unit)
            yield run_unit(unit, options)
        return
    futures = {executor.submit(run_unit, unit, options): unit for unit in units}
    for future in as_completed(futures):
        started(futures[future])
        try:
            results = future.result()
        except Exception as error:
            results = _without_results(futures[future], error)
        yield results


def _measure(arms: Sequence[Arm], options: Options) -> None:
    with _one_cpu(), _no_collector():
        for arm in arms:
            arm.open()
        for arm in arms:
            if arm.alive:
                arm.warm_up(options.round_seconds)
        for index in range(options.rounds):
            for arm in arms if index % 2 == 0 else reversed(arms):
                arm.sample(index)
    for arm in arms:
        arm.check()


def _without_results(unit: Unit, error: Exception) -> list[Result]:
    """The cells of a unit that was never measured."""
    scenario = scenarios.ALL[unit.scenario]
    return [Result(unit.scenario, name, backends.ALL[name].kind, unit.size, scenario.unit, "error",
                   described(error)) for name in unit.backends]


@contextmanager
def _one_cpu() -> Iterator[None]:
    """Stay on the last CPU that we may use (the first serve most interrupts); where unknown, do nothing."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the rounds."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
