"""The study and replays out of one process: a pool, a Dask cluster of processes, Ray; as docs/study.md shows it."""

import os
import platform
import re
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmattr.study import runner
from kvmattr.study.results import Result
from kvmattr.study.runner import Options, Unit
from kvmattr.trace import TraceError, replay_files

ROOT = Path(__file__).parents[1]
RECORDINGS = sorted((ROOT / "tests" / "data" / "traces").iterdir())
BRIEF = Options(rounds=3, round_seconds=0.001, cell_seconds=30)
UNITS = [Unit("conversion", 10, ("store", "numpy")), Unit("has", 512, ("store", "xarray"))]
CELLS = [("conversion", "numpy", "ok"), ("conversion", "store", "ok"), ("has", "store", "ok"), ("has", "xarray", "ok")]


def cells(batches: list[list[Result]]) -> list[tuple[str, str, str]]:
    """What was measured, with all arms of a unit in one batch and from a named host."""
    for results in batches:
        assert len({(result.scenario, result.size) for result in results}) == 1
        assert {result.host for result in results} == {platform.node()}
    return sorted((result.scenario, result.backend, result.status) for results in batches for result in results)


def documented(heading: str) -> str:
    """The program of docs/study.md that follows a word."""
    page = (ROOT / "docs" / "study.md").read_text()
    return page.partition(f"\n{heading} (")[2].partition("```python\n")[2].partition("```")[0]


@pytest.fixture
def documented_batches(monkeypatch):
    """Runs a documented program on small units; what ``runner.run`` gave it."""
    seen: list[list[Result]] = []
    real = runner.run

    def run(units, options, executor):
        for results in real(units, options, executor=executor):
            seen.append(results)
            yield results
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "plan", lambda scenarios, backends, quick: UNITS)
    monkeypatch.setattr(runner, "QUICK", BRIEF)

    def execute(program: str) -> list[list[Result]]:
        exec(program, {"__name__": "documented"})
        return seen
    return execute


def test_a_process_pool_gives_the_same_cells():
    with ProcessPoolExecutor(1) as pool:
        assert cells(list(runner.run(UNITS, BRIEF, executor=pool))) == CELLS
    assert cells(list(runner.run(UNITS, BRIEF))) == CELLS


def test_a_dead_worker_is_the_error_of_its_unit():
    with ProcessPoolExecutor(1, initializer=os._exit, initargs=(1, )) as pool:
        results = [result for unit in runner.run(UNITS, BRIEF, executor=pool) for result in unit]
    assert len(results) == 4
    assert {result.status for result in results} == {"error"}
    assert all(result.note.startswith("BrokenProcessPool: ") for result in results)


class Dies(ThreadPoolExecutor):
    """Its only worker is gone when the second task is handed in."""

    tasks = 0

    def submit(self, *words):
        self.tasks += 1
        if self.tasks > 1:
            raise BrokenExecutor("its worker died")
        return super().submit(*words)


def test_a_worker_that_dies_while_units_are_handed_in():
    with Dies(1) as pool:
        results = [result for unit in runner.run(UNITS, BRIEF, executor=pool) for result in unit]
    assert sorted((result.scenario, result.status) for result in results) == [
        ("conversion", "ok"), ("conversion", "ok"), ("has", "error"), ("has", "error")]
    assert all("BrokenExecutor: its worker died" in result.note for result in results if result.status == "error")


def test_a_worker_that_dies_while_traces_are_handed_in():
    with Dies(1) as pool, pytest.raises(ExceptionGroup, match="1 traces could not be replayed") as raised:
        list(replay_files(RECORDINGS[:2], executor=pool))
    assert isinstance(raised.value.exceptions[0], BrokenExecutor)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a cluster's own threads and sockets are not ours to close
def test_the_documented_dask_program_on_a_cluster_of_processes(documented_batches):
    distributed = pytest.importorskip("distributed")
    program = documented("Dask")
    assert '"scheduler:8786"' in program
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            workers = set(client.run(os.getpid).values())
        assert len(workers) == 2
        assert os.getpid() not in workers
        batches = documented_batches(program.replace("scheduler:8786", cluster.scheduler_address))
        with distributed.Client(cluster) as client:
            summaries = list(replay_files(RECORDINGS, executor=client.get_executor()))
    assert cells(batches) == CELLS
    assert {summary.name for summary in summaries} == {str(path) for path in RECORDINGS}
    assert all(summary.equal and summary.host == platform.node() for summary in summaries)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_documented_ray_program(documented_batches, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    program = documented("Ray")
    assert "\nray.init()\n" in program
    try:
        assert cells(documented_batches(program.replace("ray.init()", "ray.init(num_cpus=1)"))) == CELLS
    finally:
        ray.shutdown()


def test_traces_over_a_process_pool(tmp_path):
    damaged = tmp_path / "damaged.trace"
    damaged.write_text("set 0 0x1000 1 0\nset 0 zero 1 0\n")
    with ProcessPoolExecutor(1) as pool:
        replayed = replay_files([damaged, *RECORDINGS, tmp_path / "none"], executor=pool)
        summaries = [next(replayed) for _ in RECORDINGS]
        with pytest.raises(ExceptionGroup, match="2 traces could not be replayed") as raised:
            next(replayed)
    assert {type(error) for error in raised.value.exceptions} == {TraceError, FileNotFoundError}
    assert any(re.search(r"damaged\.trace:2: ", str(error)) for error in raised.value.exceptions)
    here = {summary.name: summary for summary in replay_files(RECORDINGS)}
    for summary in summaries:
        assert summary.equal
        assert summary.host == platform.node()
        assert [side.ioctls for side in summary.sides] == [side.ioctls for side in here[summary.name].sides]
