"""Units of work, run here or by any ``concurrent.futures`` executor; all arms of a unit share one process."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field

import numpy as np

from kvmattr.measure import ending, rounds
from kvmattr.measure.executors import submitted
from kvmattr.measure.machine import Load
from kvmattr.study import backends, registry, scenarios
from kvmattr.study.arm import Arm, Work, reason_against, unbroken_seconds
from kvmattr.study.results import Result
from kvmattr.study.work import described


@dataclass(frozen=True)
class Unit:
    """One scenario at one size with all its backends: the piece that is never divided between processes."""

    scenario: str
    size: int
    backends: tuple[str, ...]
    #: Files with backends and scenarios of others, for the process that runs it.
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """Rounds a unit, seconds that one arm's round aims at, and seconds after which a cell is stopped.

    A cell whose rounds are short has up to ``most`` of them, until they took as long as ``rounds`` of
    ``round_seconds``: the more there are, the better its fastest ones show what it takes undisturbed.
    """

    rounds: int = 15
    round_seconds: float = 0.1
    cell_seconds: float = 20.0
    most: int = 0
    #: Operations a round, the same in every run, of a backend or (``""``) of every other; else as many as fit
    #: ``round_seconds``.
    operations: Mapping[str, int] = field(default_factory=dict)


FULL = Options(most=60)
QUICK = Options(rounds=9, round_seconds=0.04, cell_seconds=10.0, most=36)


def plan(scenario_names: Sequence[str], backend_names: Sequence[str], quick: bool,
         files: Sequence[str] = ()) -> list[Unit]:
    """The units of a run, in order."""
    found = []
    for name in scenario_names:
        scenario = scenarios.ALL[name]
        elsewhere = {backend for other in scenarios.ALL.values() for backend in other.own_backends
                     if backend not in scenario.own_backends}
        taking_part = tuple(backend for backend in backend_names if backend not in elsewhere)
        if taking_part:
            found += [Unit(name, size, taking_part, tuple(files))
                      for size in (scenario.quick_sizes if quick else scenario.sizes)]
    return found


@dataclass(frozen=True)
class Forecast:
    """What a run will be: the cells that can be measured here, and seconds from ... to.

    ``low`` is what the rounds take, and two more to open and to warm up, as long as their longest calls where
    those are known; ``high`` has every cell of a slow backend at its time limit, which depends on the kernel more
    than on anything known before. ``units``: seconds of each unit, for what is left while it runs.
    """

    cells: int
    low: float
    high: float
    units: tuple[float, ...]


def forecast(units: Sequence[Unit], options: Options) -> Forecast:
    """Look which backends are here, can do what the scenarios ask, and have the memory for such a guest."""
    cells, low, high = 0, 0.0, 0.0
    each: list[float] = []
    for unit in units:
        before, scenario = low, scenarios.ALL[unit.scenario]
        # Guests are made as big as they will be; of other sizes the smallest shows what is asked, quickly.
        size = unit.size if scenario.size_name == "guest size" else scenario.sizes[0]
        try:
            work = scenario.make(size, np.random.default_rng(0))
        except Exception:       # a scenario of somebody else: its cells will say it
            each.append(options.round_seconds)
            continue
        for backend in (backends.ALL[name] for name in unit.backends):
            if reason_against(backend, work, options.cell_seconds) is not None:
                continue
            a_round = max(options.round_seconds, unbroken_seconds(backend, work))
            a_cell = min((options.rounds + 2) * a_round, max(options.cell_seconds, 2 * a_round))
            cells += 1
            low += a_cell
            high += max(a_cell, options.cell_seconds) if backend.slow else a_cell
        each.append(max(low - before, options.round_seconds))
    return Forecast(cells, low, high, tuple(each))


def run_unit(unit: Unit, options: Options) -> list[Result]:
    """Measure one unit: open all arms, let them take turns forwards and backwards, check them at the end.

    Always gives a result for every backend: what was raised outside them is the ``error`` of every cell that
    had not ended before.
    """
    registry.load(unit.files)
    scenario = scenarios.ALL[unit.scenario]
    seed = zlib.crc32(f"{unit.scenario} {unit.size}".encode())
    arms: list[Arm] = []
    before = Load.now()
    try:
        work = Work(scenario.make(unit.size, np.random.default_rng(seed)))
        arms = [Arm(backends.ALL[name], scenario, unit.size, work, options.cell_seconds)
                for name in unit.backends]
        _measure(arms, options)
    except Exception as error:
        ending.again()
        if not arms:
            return _without_results(unit, error)
        for arm in arms:
            arm.fail(error)
    finally:
        for arm in arms:
            arm.close()
    load = Load.now().since(before)
    return [dataclasses.replace(arm.result(), load=load) for arm in arms]


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
    futures = {submitted(executor, run_unit, unit, options): unit for unit in units}
    try:
        for future in as_completed(futures):
            started(futures[future])
            try:
                results = future.result()
            except Exception as error:
                ending.again()
                results = _without_results(futures[future], error)
            yield results
    finally:
        for future in futures:      # after Ctrl-C no worker begins another
            future.cancel()


def _measure(arms: Sequence[Arm], options: Options) -> None:
    with rounds.undisturbed():
        for arm in arms:
            arm.open()
        for arm in arms:
            if arm.alive:
                arm.warm_up(options.round_seconds, options.operations.get(arm.name, options.operations.get("", 0)))
        enough = options.rounds * options.round_seconds
        for index, arm in rounds.turns(arms, max(options.rounds, options.most)):
            if index < options.rounds or arm.seconds_in_rounds < enough:
                arm.sample(index)
    for arm in arms:
        arm.check()


def _without_results(unit: Unit, error: Exception) -> list[Result]:
    """The cells of a unit that was never measured."""
    scenario = scenarios.ALL[unit.scenario]
    return [Result(unit.scenario, name, backends.ALL[name].kind, unit.size, scenario.unit, "error",
                   described(error)) for name in unit.backends]

