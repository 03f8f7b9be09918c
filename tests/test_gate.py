"""The gate: what it judges, what it refuses to judge, what it writes. Builds: test_gate_builds.py."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmattr import AttributeMap
from kvmattr.cli import main
from kvmattr.gate import Work, builds, claim, instructions, output, own, scenario, stages, timing
from kvmattr.gate.assertions import AssertCost
from kvmattr.gate.baseline import Baseline
from kvmattr.gate.counting import slope
from kvmattr.gate.limits import Limits
from kvmattr.gate.plants import planted
from kvmattr.gate.process import Worker, start
from kvmattr.gate.scenario import Scenario, found_in
from kvmattr.gate.stages import installed
from kvmattr.gate.verdict import CannotTell, Judgement, Usage, Verdict
from kvmattr.measure.statistics import Ratio
from tests.quiet_machine import quiet_path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "gate-project"

SCENARIOS = """
from kvmattr import AttributeMap
from kvmattr.gate import Work, scenario

@scenario(sizes=[32, 64, 128, 256, 512], growth="constant")
def convert(blocks):
    guest = AttributeMap(512 * blocks)
    for block in range(blocks):
        guest.write(512 * block + 1, 512 * block + 9, 1)
    def run():
        for gfn in range(0, 4096, 64):
            guest.write(gfn + 3, gfn + 5, 2)
            guest.write(gfn + 3, gfn + 5, 1)
    return Work(run, [guest], operations=128)

@scenario(sizes=[4, 8])
def look_up(blocks):
    guest = AttributeMap(512 * blocks)
    guest.write(1, 2, 1)
    return Work(lambda: [guest.get(gfn) for gfn in range(512)], [guest], operations=512)
"""


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a baseline of the two scenarios, as the gate writes it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("baseline"))
        Path("scenarios.py").write_text(SCENARIOS)
        assert gate("--update-baseline") == 0
        return Path("baseline.json").read_text()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: str) -> Path:
    """A project with two scenarios and a baseline of them; the current directory."""
    monkeypatch.chdir(tmp_path)
    for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(variable, raising=False)
    Path("scenarios.py").write_text(SCENARIOS)
    Path("baseline.json").write_text(baseline)
    return tmp_path


def gate(*words: str) -> int:
    return main(["gate", "--no-build", "--scenarios", "scenarios.py", "--baseline", "baseline.json", *words])


def edit(part: str, key: str, change: Callable[[Any], Any]) -> None:
    path = Path("baseline.json")
    data = json.loads(path.read_text())
    data[part][key] = change(data[part][key])
    path.write_text(json.dumps(data))


# ---- counts, slopes, memory ----

def test_the_unchanged_tree_passes(project: Path) -> None:
    data = json.loads(Path("baseline.json").read_text())
    assert set(data) == {"schema", "calls", "counts", "bytes", "slopes"}
    assert data["schema"] == 2
    assert data["calls"]["convert/32/update_calls"] == 128
    assert data["calls"]["convert/32/update_pages"] == 256
    assert data["calls"]["look-up/8/get_calls"] == 512
    assert "look-up/8/put_calls" not in data["calls"]       # what was not called has no number
    assert data["bytes"]["look-up/8/maps"] == 1
    assert data["counts"]["look-up/8/node_copies"] == 0
    assert data["bytes"]["look-up/8/bytes"] == 64
    assert data["slopes"]["convert/leaf_conversions"] == 0.0
    assert gate() == 0


@pytest.mark.parametrize(("part", "key", "change", "code", "told"), [
    ("calls", "convert/32/update_calls", lambda n: n - 1, 1, "regression"),
    ("calls", "convert/32/update_pages", lambda n: n + 1, 0, "better"),
    ("bytes", "convert/512/maps", lambda n: n - 1, 1, "regression"),
    ("counts", "convert/32/leaf_conversions", lambda n: n - 1, 1, "regression"),
    ("counts", "convert/32/leaf_conversions", lambda n: n + 1, 0, "better"),
    ("bytes", "convert/512/bytes", lambda n: n - 16, 1, "regression"),
    ("slopes", "convert/leaf_conversions", lambda s: s - 0.2, 1, "regression"),
])
def test_every_number_is_judged(project: Path, capsys: pytest.CaptureFixture[str], part: str, key: str,
                                change: Callable[[Any], Any], code: int, told: str) -> None:
    edit(part, key, change)
    assert gate() == code
    assert f"{told:10}  {key}: " in capsys.readouterr().out


def test_what_only_one_side_has_is_no_pass(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("scenarios.py").write_text(SCENARIOS.replace("def look_up", "def look_up_again"))
    assert gate() == 3
    out = capsys.readouterr().out
    assert "look-up/4: the baseline has it, this run did not measure it" in out
    assert "look-up-again/4: not in the baseline: --update-baseline accepts it" in out


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_a_kind_of_call_that_is_new_is_red(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One call for 128 becomes one a page: in every build, with both numbers of pages a call."""
    Path("scenarios.py").write_text(SCENARIOS.replace(
        "guest.write(gfn + 3, gfn + 5, 2)", "guest.write(gfn + 3, gfn + 4, 2); guest.write(gfn + 4, gfn + 5, 2)"))
    assert gate() == 1
    out = capsys.readouterr().out
    assert re.search(r"regression  convert/32/update_calls: 192, the baseline has 128 \(\+64, \+50.0 %\); 1.33 pages "
                     "a call, 2 in the baseline", out), out
    assert "to do: calls: the store is called more often" in out
    Path("scenarios.py").write_text(SCENARIOS.replace("lambda: [guest.get", "lambda: [guest.copy() and guest.get"))
    assert gate() == 1
    assert "regression  look-up/4/copy_calls: 512, the baseline has 0 (+512)" in capsys.readouterr().out


def test_a_baseline_from_before_calls_were_counted_is_no_pass(
        project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(Path("baseline.json").read_text())
    del data["calls"]
    data["bytes"] = {key: value for key, value in data["bytes"].items() if not key.endswith("/maps")}
    Path("baseline.json").write_text(json.dumps({**data, "schema": 1}))
    assert gate() == 3
    assert ("undecided   calls: the baseline is from before calls were counted: --update-baseline adds them"
            in capsys.readouterr().out)
    assert gate("--update-baseline") == gate() == 0


@pytest.mark.parametrize(("words", "scenario"), [
    (["--fail-if-faster", "convert/32"], ""),
    (["--fail-if-faster", "conv*/32"], ""),
    (["--fail-if-faster", "group:conversions"], ', group="conversions"'),
    ([], ", must_work=True"),
])
def test_a_cell_that_must_work_may_not_do_less(project: Path, capsys: pytest.CaptureFixture[str], words: list[str],
                                               scenario: str) -> None:
    Path("scenarios.py").write_text(SCENARIOS.replace('growth="constant"', f'growth="constant"{scenario}'))
    assert gate(*words) == 0
    edit("counts", "convert/32/leaf_conversions", lambda n: n + 1)
    assert gate(*words) == 1
    # One fewer of how many is the store's business.
    said = capsys.readouterr().out
    assert re.search(r"\(-1, -[\d.]+ %\); it must do its work \(fail if faster\)", said)
    assert "to do: counts: less work than before in a cell that must do its work: " in said
    assert "more work than the baseline has" not in said


@pytest.mark.parametrize(("words", "told"), [
    (["--threshold", "walk/1=1.2"], "--threshold walk/1: no cell of that name, pattern or group"),
    (["--fail-if-faster", "group:x"], "--fail-if-faster group:x: no cell of that name, pattern or group"),
    (["--threshold", "0.5"], "--threshold 0.5: a ratio between 1 and 10, for example 1.10"),
    (["--threshold", "=2"], "--threshold =2: X, CELL=X or group:NAME=X with a ratio X"),
    (["--threshold", "a=b"], "--threshold a=b: X, CELL=X or group:NAME=X with a ratio X"),
])
def test_rules_that_are_none_or_guard_nothing(project: Path, capsys: pytest.CaptureFixture[str], words: list[str],
                                              told: str) -> None:
    assert gate(*words) == 2
    assert f"kvmattr gate: {told}" in capsys.readouterr().err


def test_which_threshold_a_cell_has() -> None:
    limits = Limits.parsed(["1.2", "group:q=1.3", "walk/*=1.4", "walk/8=1.5", "test_a[64]=1.6"], []).with_declared([
        {"name": "walk", "group": "q", "threshold": None, "must_work": False},
        {"name": "ask", "group": "q", "threshold": 2.0, "must_work": False},
        {"name": "own", "group": None, "threshold": 2.0, "must_work": False}])
    assert [limits.of(cell) for cell in ("walk/8", "walk/64", "ask/1", "own/1", "other/1", "test_a[64]")] == [
        1.5, 1.4, 1.3, 2.0, 1.2, 1.6]
    assert limits.of("some::test", "q") == 1.3


def test_what_only_the_counting_build_counts_is_left_out_aloud(
        project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(Path("baseline.json").read_text())
    data["counts"]["look-up/4/nodes_visited"] = 7
    Path("baseline.json").write_text(json.dumps(data))
    if "nodes_visited" in AttributeMap(1).stats():
        pytest.skip("this is the counting build")
    assert gate() == 0
    assert last_line(capsys).endswith("; not judged: nodes visited and pages compared (only a counting build counts "
                                      "them: --source DIR)")
    assert gate("--update-baseline") == 2
    assert "has what only a counting build counts" in capsys.readouterr().err


def test_a_declared_growth_that_does_not_hold_is_red_and_never_becomes_the_baseline(
        project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("scenarios.py").write_text(SCENARIOS.replace("range(0, 4096, 64)", "range(0, 128 * blocks, 64)"))
    before = Path("baseline.json").read_text()
    assert gate("--update-baseline") == 1
    assert Path("baseline.json").read_text() == before
    assert "declared constant allows less than 0.1" in capsys.readouterr().out


@pytest.mark.slow
def test_selftest_catches_all_that_it_plants(project: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", quiet_path(project, os.environ["PYTHONPATH"]))
    assert gate("--selftest") == 0
    out = capsys.readouterr().out
    assert out.count("ok  ") == 11
    assert "unchanged: time against a copy: exit 0\n" in out
    assert "every operation takes 1.3 times as long: exit 1, caught by time\n" in out
    assert re.search("an operation costs as much as the size: exit 1, caught by .*slopes", out)
    assert "a scenario is no longer run: exit 3, caught by missing" in out


@pytest.mark.slow
def test_an_interrupted_proof_tells_what_it_has(project: Path) -> None:
    proof = subprocess.Popen(
        [sys.executable, "-P", "-m", "kvmattr", "gate", "--no-build", "--scenarios", "scenarios.py", "--prove", "50",
         "--json", "proof.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(installed())}, start_new_session=True)
    assert proof.stderr is not None
    while not (line := proof.stderr.readline()).startswith("run 1 of 50"):
        assert line, proof.communicate()
    os.killpg(proof.pid, signal.SIGINT)
    out, err = proof.communicate(timeout=60)
    assert proof.returncode == 130
    assert err == "kvmattr: interrupted\n"        # no traceback of a worker
    assert "1 runs of each case of 50: INTERRUPTED" in out
    assert re.search(r"(?m)^a scenario is no longer run +0 +0 +1 +1 of 1 ", out), out
    findings = json.loads(Path("proof.json").read_text())["findings"]
    assert len([each for each in findings if each["check"] == "proof"]) == 11


def test_ctrl_c_is_the_gates_to_act_on_and_not_its_workers(project: Path) -> None:
    with Worker(installed(), ["scenarios.py"]) as worker:
        worker._process.send_signal(signal.SIGINT)
        assert worker.ask("count", name="look-up", size=4)["operations"] == 512


def test_what_the_gate_starts_is_deaf_to_ctrl_c_before_it_runs() -> None:
    process = start([sys.executable, "-c", "print('whole')"], stdout=subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (b"whole\n", None)
    assert process.returncode == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_plant_in_one_scenario_leaves_the_others_alone() -> None:
    every = {each.name: each for each in found_in(own)[0]}
    for plant in ("linear", "slow", "memory", "page", "copy", "snapshot", "batch", "hidden"):
        some = planted(every, f"{plant}@walk")
        assert [name for name in every if some[name] is not every[name]] == ["walk"]
        assert all(each is not every[name] for name, each in planted(every, plant).items())
    assert every.keys() - planted(every, "missing@walk").keys() == {"walk"}


# ---- bad input ----

@pytest.mark.parametrize(("text", "told"), [
    (None, "baseline.json: no such baseline; --update-baseline writes one"),
    ("{", "not a baseline: baseline.json is not JSON: Expecting property name"),
    ("[]", "not a baseline: baseline.json: the document is [], expected an object"),
    ('{"schema": 3}',
     "not a baseline: baseline.json: schema is 3, expected 2, which this gate reads (or 1, an older one)"),
    ('{"schema": 1, "counts": {}, "bytes": {}, "slopes": {}, "times": {}}',
     "baseline.json: unknown part 'times'; a baseline has calls, counts, bytes and slopes, and never times or inst"),
    ('{"schema": 2, "counts": {}, "bytes": {}, "slopes": {}}', "not a baseline: baseline.json: calls is missing"),
    ('{"schema": 1, "counts": {"a/1/b": 1.5}, "bytes": {}, "slopes": {}}',
     "not a baseline: baseline.json: counts.a/1/b is 1.5, expected an integer"),
    ('{"schema": 1, "counts": [], "bytes": {}, "slopes": {}}',
     "not a baseline: baseline.json: counts is [], expected an object"),
    ('{"schema": 1, "counts": {}, "bytes": {}, "slopes": {"a/b": NaN}}',     # nothing is ever above a NaN
     "not a baseline: baseline.json is not JSON: it has NaN"),
    ('{"schema": 1, "counts": {"a": 1}, "bytes": {}, "slopes": {}}',
     "not a baseline: baseline.json: counts.a is 1, expected a key of the form SCENARIO/SIZE/COUNTER"),
    ('{"schema": 1}', "not a baseline: baseline.json: counts is missing"),
])
def test_a_baseline_that_is_none(project: Path, capsys: pytest.CaptureFixture[str], text: str | None,
                                 told: str) -> None:
    Path("baseline.json").unlink()
    if text is not None:
        Path("baseline.json").write_text(text)
    assert gate() == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("text", "code", "told"), [
    ("", 3, "no cells: the scenarios have no maps to count, or there are no scenarios"),
    (SCENARIOS.replace("[guest]", "[]"), 3, "no cells: the scenarios have no maps to count"),
    ("import nothing_of_the_kind", 2, "ModuleNotFoundError: No module named 'nothing_of_the_kind', which "
     f"scenarios.py needs: is the project installed (pip install .) for {sys.executable}?"),
    (SCENARIOS.replace("guest.write(1, 2, 1)", "raise OSError('a broken scenario')"), 3,
     "look-up/4: it raised OSError: a broken scenario"),
    (SCENARIOS.replace("guest.write(1, 2, 1)", "import os; os._exit(9)"), 3,
     "the worker died (exit code 9) in count of look-up/4"),
    (SCENARIOS.replace("guest.write(1, 2, 1)", "import os; os.abort()"), 3,
     "the worker died (SIGABRT) in count of look-up/4"),
    (SCENARIOS.replace("guest.write(1, 2, 1)", "raise OSError('one\\ntwo')"), 3,
     "  undecided   look-up/4: it raised OSError: one\n  two\n"),
    (SCENARIOS.replace("[4, 8]", "[8, 4]"), 2,
     "ValueError: sizes [8, 4]: a scenario needs sizes of 1 or more that rise"),
])
def test_scenarios_that_cannot_be_judged(project: Path, capsys: pytest.CaptureFixture[str], text: str,
                                         code: int, told: str) -> None:
    Path("scenarios.py").write_text(text)
    assert gate() == code
    captured = capsys.readouterr()
    assert told in captured.out + captured.err


def test_a_scenario_without_maps_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("scenarios.py").write_text(SCENARIOS + """
@scenario(sizes=[1, 2])
def blind(size):
    return Work(lambda: AttributeMap(size).write(0, 1, 1), [])
""")
    assert gate() == 0
    assert "note: no maps, so nothing is counted: blind (judged by time alone" in capsys.readouterr().out


def test_a_cell_that_does_nothing_is_red(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Less is better, but nothing is nothing: without --fail-if-faster, too."""
    assert gate() == 0
    Path("scenarios.py").write_text(SCENARIOS.replace("range(512)]", "range(0)]"))
    capsys.readouterr()
    assert gate() == 1
    out = capsys.readouterr().out
    assert re.search(r"regression  look-up/4: no call of the store is left of [0-9]+: a cell that does nothing "
                     "measures nothing", out)
    assert "note: no call of the store in the maps of look-up: are they those that it uses?" in out
    assert "to do: calls: less work than before" in out


def test_no_scenarios_at_all(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "--scenarios", "none-of-that-name"]) == 2
    assert "gate_baseline.json: no such baseline; --update-baseline writes one" in capsys.readouterr().err
    assert main(["gate", "--no-build", "--baseline", "baseline.json"]) == 3
    assert ("no cells: no --scenarios, no gate_scenarios.py here, no entry point in 'kvmattr.gate', and not in "
            "kvmattr's source tree") in capsys.readouterr().out


def test_files_are_found_by_their_names(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the current directory, before anything else there could be; an option names others."""
    Path("scenarios.py").rename("gate_scenarios.py")
    assert main(["gate", "--no-build"]) == 2
    assert "gate_baseline.json: no such baseline" in capsys.readouterr().err
    assert main(["gate", "--no-build", "--update-baseline"]) == 0
    assert Path("gate_baseline.json").read_text() == Path("baseline.json").read_text()
    assert main(["gate", "--no-build"]) == 0
    Path("gate_scenarios.py").write_text("raise SystemError")
    assert main(["gate", "--no-build"]) == 2
    Path("other.py").write_text(SCENARIOS)
    assert main(["gate", "--no-build", "--scenarios", "other.py"]) == 0


@pytest.mark.parametrize("words", [["--selftest"], ["--prove", "1"]])
def test_a_selftest_of_nothing(project: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["gate", "--no-build", *words]) == 3
    assert capsys.readouterr().out.splitlines()[0].startswith("no cells: no --scenarios, no ")


def test_an_unknown_entry_point(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "--no-build", "--scenarios", "nobody", "--baseline", "baseline.json"]) == 2
    assert "--scenarios 'nobody': neither a .py file nor one of the entry points" in capsys.readouterr().err


def test_a_base_needs_a_repository(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate("--base", "HEAD") == 2
    assert "is not a git checkout: fatal: not a git repository" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "told"), [
    (["--selftest", "--prove", "1"], "--selftest and --prove: one at a time"),
    (["--update-baseline", "--base", "HEAD"], "--base and --update-baseline do not go together"),
    (["--selftest", "--instructions"], "--instructions goes with --base REF"),
    (["--install", ""], "--install goes with --base REF"),
    (["--judge-json", "x.json"], "--judge-json HEAD... and --against BASE... go together"),
    (["--json", "scenarios.py/gate.json"], "scenarios.py/gate.json cannot be written: "),
    (["--junit", "."], ". cannot be written: "),
])
def test_what_was_asked_for_is_refused_and_not_forgotten(
        project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str],
        told: str) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert gate(*words) == 2
    captured = capsys.readouterr()
    assert f"kvmattr gate: {told}" in captured.err
    assert f"::error title=kvmattr gate::{told}" in captured.out


def test_a_gate_that_fails_itself_has_found_no_regression(
        project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("an inner error")
    monkeypatch.setattr(stages, "judge_counts", broken)
    assert gate() == 3
    captured = capsys.readouterr()
    assert "the gate itself failed: RuntimeError: an inner error" in captured.out
    assert "Traceback" in captured.err


def test_a_signal_that_became_another_error_ends_the_gate(
        project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise TypeError("what a library made of it")
    monkeypatch.setattr(stages, "judge_counts", broken)
    assert gate() == 143
    captured = capsys.readouterr()
    assert "interrupted" in captured.out
    assert captured.err.endswith("kvmattr: ended by SIGTERM\n")


def test_what_was_judged_before_an_interrupt_is_told(
        project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(stages, "judge_base", interrupted)
    subprocess.run("git init -q . && git add . && git -c user.name=n -c user.email=e commit -q -m one", shell=True,
                   check=True)
    edit("counts", "convert/32/leaf_conversions", lambda n: n - 1)
    assert gate("--base", "HEAD", "--json", "gate.json") == 130
    assert "regression  convert/32/leaf_conversions" in capsys.readouterr().out
    assert "interrupted" in [each["text"] for each in json.loads(Path("gate.json").read_text())["findings"]]


def test_another_build_than_the_asked_one(tmp_path: Path) -> None:
    (tmp_path / "kvmattr").symlink_to(installed() / "kvmattr")
    with pytest.raises(CannotTell, match=rf"^wrong build loaded: .*_core.* instead of one in {tmp_path}$"):
        Worker(tmp_path, [])


@pytest.mark.parametrize(("wrong", "text"), [
    (lambda: scenario(sizes=[]), "sizes []: a scenario needs sizes of 1 or more that rise"),
    (lambda: scenario(sizes=[1], threshold=1), "threshold 1: a ratio above 1, for example 1.10"),
    (lambda: scenario(sizes=[1], growth="slow"), "growth 'slow': one of constant, linear"),
    (lambda: scenario(sizes=[1, 2], growth="constant"), "2 sizes: a slope needs at least 5"),
    (lambda: claim(at_least=0), "at_least 0: a ratio above 0"),
])
def test_declarations_that_are_none(wrong: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        wrong()


# ---- slopes and time ----

def test_slopes() -> None:
    sizes = [10 ** n for n in range(1, 6)]
    assert slope(sizes, [5] * 5, [1] * 5) == 0.0
    assert slope(sizes, [3 * size for size in sizes], sizes) == 0.0
    assert 0.97 < slope(sizes, sizes, [1] * 5) < 1.0
    assert 1.9 < slope(sizes, [size * size for size in sizes], [1] * 5) < 2.0


def samples(pattern: list[float]) -> timing.Sample:
    state = {"next": 0}

    def sample() -> float:
        state["next"] += 1
        return pattern[(state["next"] - 1) % len(pattern)]
    return sample


@pytest.mark.parametrize(("head", "twin", "verdict"), [
    ([1.00, 1.01], [1.00, 1.01], Verdict.PASS),
    ([1.30, 1.31], [1.00, 1.01], Verdict.REGRESSION),
    ([0.50, 0.51], [1.00, 1.01], Verdict.PASS),
    ([1.12, 1.12], [1.08, 1.08], Verdict.PASS),             # the control moves as far: the threshold widens
    ([2.00, 2.00], [1.40, 1.40], Verdict.UNDECIDED),        # the machine is unfit: nothing is said
    ([4.00, 4.00], [1.40, 1.40], Verdict.REGRESSION),       # but this is not the machine
    ([1.0, 1.0, 1.4, 1.4], [1.00, 1.01], Verdict.UNDECIDED),
    ([1.22, 1.22], [1.12, 1.12], Verdict.UNDECIDED),        # below the widened limit, but too slow to pass
])
def test_time_against_a_base(head: list[float], twin: list[float], verdict: Verdict) -> None:
    assert timing.compare(samples(head), samples([1.0, 1.01]), samples(twin), 1.10)[0] is verdict


def test_rounds_go_on_only_while_the_verdict_is_open() -> None:
    pairs: list[str] = []

    def arm(name: str, pattern: list[float]) -> timing.Sample:
        sample = samples(pattern)
        return lambda: (pairs.append(name), sample())[1]
    timing.compare(arm("h", [1.0]), arm("b", [1.0]), arm("t", [1.0]), 1.10)
    assert "".join(pairs) == "hbttbh" * timing.ROUNDS
    pairs.clear()
    timing.compare(arm("h", [1.0, 1.0, 1.4, 1.4]), arm("b", [1.0]), arm("t", [1.0]), 1.10, reverse=True)
    assert "".join(pairs) == "tbhhbt" * timing.MOST_ROUNDS


@pytest.mark.parametrize(("times", "asked"), [(0.4, True), (0.6, False)])
def test_what_takes_less_than_half_is_asked_for_its_work(times: float, asked: bool) -> None:
    verdict, text, _ = timing.judge(timing.Pairs([times] * 5, [1.0] * 5, [1.0] * 5), 1.10)
    assert verdict is Verdict.PASS
    assert text.endswith("; does it still do its work? (--fail-if-faster makes this red)") is asked


def test_widening_is_symmetrical() -> None:
    assert timing.widening(Ratio(1.0, 0.8, 1.1)) == 1.25
    assert timing.widening(Ratio(1.0, 0.9, 1.25)) == 1.25
    assert timing.widening(Ratio(1.0, 1.0, 1.0)) == 1.0


# ---- pytest-benchmark's files ----

def benchmark_file(path: Path, median: float, *, python: str = "3.11.7", name: str = "bench/x.py::test_a",
                   rounds: int = 0, **machine: Any) -> str:
    data = [median * (1 + 0.01 * (i % 3)) for i in range(rounds)]
    path.write_text(json.dumps({
        "datetime": path.name,      # no two runs write the same file
        "machine_info": {"node": "n", "machine": "x86_64", "python_implementation": "CPython",
                         "python_version": python, **machine},
        "benchmarks": [{"fullname": name, "group": "g", "stats": {"median": median,
                                                                   **({"data": data} if data else {})}}]}))
    return str(path)


def judge_json(head: list[str], base: list[str], *words: str) -> int:
    return main(["gate", "--judge-json", *head, "--against", *base, *words])


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.3, 1), (0.7, 0)])
@pytest.mark.parametrize("files", [1, 2, 3, 6])
def test_benchmark_files_of_two_refs(project: Path, factor: float, code: int, files: int) -> None:
    rounds = 100 if files < 5 else 0
    medians = [1e-6 * (1 + 0.01 * (i % 2)) for i in range(files)]
    base = [benchmark_file(project / f"b{i}.json", median, rounds=rounds) for i, median in enumerate(medians)]
    head = [benchmark_file(project / f"h{i}.json", factor * median, rounds=rounds)
            for i, median in enumerate(medians)]
    assert judge_json(head, base) == code


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.3, 0), (1.6, 1)])
@pytest.mark.parametrize("files", [1, 6])
def test_a_wide_threshold_is_not_noise(project: Path, factor: float, code: int, files: int) -> None:
    """The control makes any threshold a little wider."""
    medians = [1e-6 * (1 + 0.01 * (i % 2)) for i in range(files)]
    base = [benchmark_file(project / f"b{i}.json", median, rounds=100) for i, median in enumerate(medians)]
    head = [benchmark_file(project / f"h{i}.json", factor * median, rounds=100) for i, median in enumerate(medians)]
    assert judge_json(head, base, "--threshold", "1.5") == code


def test_rounds_that_differ_by_much_tell_nothing_of_the_next_run(project: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    """Of a program that became slower the only file was made in a quieter minute: that is no pass."""
    for name, seconds in (("base", 1.0), ("head", 0.8)):
        rounds = [seconds * (1.3 if i > 4 else 1.0) for i in range(10)]
        (project / f"{name}.json").write_text(json.dumps({"results": [
            {"command": "run", "median": 1.15 * seconds, "times": rounds, "exit_codes": [0] * 10}]}))
    assert judge_json([str(project / "head.json")], [str(project / "base.json")]) == 3
    assert "limit 1.336x: too noisy, two runs of it may differ by 1.215x" in capsys.readouterr().out


@pytest.mark.slow
def test_files_that_pytest_benchmark_itself_writes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two refs of a function, one of which does half as much again: one file each, and five in turn. The clock counts
    what was done, and a little of chance."""
    Path("work.py").write_text(
        "import os, random\nelapsed, chance = 0.0, random.Random(int(os.environ['SEED']))\n"
        "def do(amount):\n    global elapsed\n    elapsed += amount * chance.uniform(0.98, 1.02)\n"
        "def clock():\n    do(1e-9)\n    return elapsed\n")
    Path("test_work.py").write_text(
        "import os, work\namount = float(os.environ['AMOUNT'])\n"
        "def test_work(benchmark): benchmark.pedantic(work.do, (amount,), rounds=20, iterations=3)\n")

    def measured(name: str, amount: float, seed: int) -> str:
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
                        "pytest_benchmark.plugin", "-c", "/dev/null", "--rootdir", ".", f"--benchmark-json={name}",
                        "--benchmark-save-data", "--benchmark-timer=work.clock", "test_work.py"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       env={**os.environ, "PYTHONPATH": ".", "AMOUNT": str(amount), "SEED": str(seed),
                            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
        return name
    rounds = [(measured(f"base{i}.json", 2e-4, i), measured(f"slow{i}.json", 3e-4, 100 + i)) for i in range(5)]
    base, slow = ([files[i] for files in rounds] for i in range(2))
    assert judge_json(slow, base) == 1
    assert re.search(r"test_work\.py::test_work: 1\.(49|50|51)", capsys.readouterr().out)
    assert judge_json(base, slow) == 0
    assert judge_json(slow[:1], base[:1]) == 1
    out = capsys.readouterr().out
    assert "in 20 rounds" in out
    assert "note: 1 file a side, fewer than 5" in out
    assert "to do: files: slower, or more memory, than the base's files" in out
    assert "twice" not in out


def test_benchmark_files_that_cannot_be_judged(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = benchmark_file(project / "one.json", 1e-6)
    assert judge_json([benchmark_file(project / "two.json", 1e-6)], [one]) == 3
    assert "0 pairs; at least 5 are needed" in capsys.readouterr().out
    other = benchmark_file(project / "other.json", 1e-6, python="3.12.1")
    assert judge_json([other], [one]) == 3
    assert (f"{other}: Python is 'CPython 3.12.1', in {one} it is 'CPython 3.11.7'. Times of two machines" in
            capsys.readouterr().out)
    renamed = benchmark_file(project / "renamed.json", 1e-6, name="bench/x.py::test_b")
    assert judge_json([renamed], [one]) == 3
    assert "the files have no benchmark in common" in capsys.readouterr().out
    assert judge_json([one, one], [one]) == 2
    assert judge_json(["scenarios.py"], [one]) == 2
    assert "scenarios.py: not a JSON file of pytest-benchmark, asv or hyperfine" in capsys.readouterr().err
    assert main(["gate", "--judge-json", one]) == 2
    assert judge_json(["nowhere.json"], [one]) == 2
    assert "nowhere.json: cannot be read: No such file" in capsys.readouterr().err
    assert main(["gate", "--same-machine"]) == 2
    assert "--same-machine is for --judge-json HEAD... --against BASE..." in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value", "told"), [
    ("cpu", {"brand_raw": "Intel Xeon", "count": 4, "arch": "X86_64"}, "CPU is 'Intel Xeon', in {} it is 'AMD EPYC'"),
    ("cpu", {"brand_raw": "AMD EPYC", "count": 8, "arch": "X86_64"}, "number of CPUs is '8', in {} it is '4'"),
    ("cpu", {"brand_raw": "AMD EPYC", "count": 4, "arch": "ARM_8"}, "architecture is 'ARM_8', in {} it is 'X86_64'"),
    ("system", "Darwin", "system is 'Darwin', in {} it is 'Linux'"),
    ("governor", "powersave", "governor is 'powersave', in {} it is 'performance'"),
    ("node", "another-name", None),         # runners of a pool have other names, and containers all the same one
])
def test_files_of_two_machines(project: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any,
                               told: str | None) -> None:
    here: dict[str, Any] = {"cpu": {"brand_raw": "AMD EPYC", "count": 4, "arch": "X86_64"}, "system": "Linux",
                            "governor": "performance", "node": "h"}
    base = [benchmark_file(project / f"b{i}.json", 1e-6, **here) for i in range(6)]
    head = [benchmark_file(project / f"h{i}.json", 1.25e-6, **{**here, key: value}) for i in range(6)]
    assert judge_json(head, base) == (1 if told is None else 3)
    if told is not None:
        assert f"{head[0]}: {told.format(base[0])}. Times of two machines" in capsys.readouterr().out
    assert judge_json(head, base, "--same-machine") == 1


@pytest.mark.parametrize(("median", "told"), [(0.0, "a median of 0 s"), (float("nan"), "a median of nan s")])
@pytest.mark.parametrize("side", ["head", "base"])
def test_medians_of_which_there_is_no_ratio(project: Path, capsys: pytest.CaptureFixture[str], median: float,
                                            told: str, side: str) -> None:
    sound = [benchmark_file(project / f"s{i}.json", 1e-6) for i in range(6)]
    broken = [benchmark_file(project / f"b{i}.json", median) for i in range(6)]
    assert judge_json(*((broken, sound) if side == "head" else (sound, broken))) == 3
    captured = capsys.readouterr()
    assert f"undecided   bench/x.py::test_a: {broken[0]}: {told}: there is no ratio of that" in captured.out
    assert captured.err == ""


def test_thresholds_of_files(project: Path) -> None:
    base = [benchmark_file(project / f"b{i}.json", 1e-6) for i in range(6)]
    head = [benchmark_file(project / f"h{i}.json", 1.25e-6) for i in range(6)]
    assert judge_json(head, base) == 1
    assert judge_json(head, base, "--threshold", "bench/x.py::test_a=1.4") == 0
    assert judge_json(head, base, "--threshold", "group:g=1.4") == 0
    assert judge_json(base, head) == 0
    assert judge_json(base, head, "--fail-if-faster", "bench/*") == 1


def test_a_file_is_not_compared_with_itself(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would pass whatever was done: `--judge-json head* --against head*`, a copy that no run has replaced."""
    base = [benchmark_file(project / f"b{i}.json", 1e-6) for i in range(5)]
    assert judge_json(base, base) == 2
    assert capsys.readouterr().err == f"kvmattr gate: {base[0]} is given twice\n"
    copies = [str(shutil.copy(each, project / f"copy{i}.json")) for i, each in enumerate(base)]
    assert judge_json(copies, base) == 2
    assert capsys.readouterr().err == (f"kvmattr gate: {copies[0]} is the same file as {base[0]}: each run of a "
                                       "benchmark has a file of its own\n")
    head = benchmark_file(project / "head.json", 1e-6)
    assert judge_json([head] * 5, base) == 2
    assert capsys.readouterr().err == f"kvmattr gate: {head} is given twice\n"


def test_files_of_two_tools(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = benchmark_file(project / "one.json", 1e-6, name="work", rounds=20)
    (project / "other.json").write_text(json.dumps({"results": [
        {"command": "work", "median": 1e-7, "times": [1e-7] * 9, "exit_codes": [0] * 9}]}))
    assert judge_json(["other.json"], [one]) == 2
    assert capsys.readouterr().err == (f"kvmattr gate: other.json is a file of hyperfine, {one} one of "
                                       "pytest-benchmark: both sides are measured by one tool\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_as_other_shells_write_them(project: Path, encoding: str) -> None:
    files = [benchmark_file(project / f"{i}.json", 1e-6 * (1.5 if i < 5 else 1)) for i in range(10)]
    for each in files:
        Path(each).write_text(Path(each).read_text(), encoding=encoding)
    assert judge_json(files[:5], files[5:]) == 1
    assert judge_json(files[5:], files[:5]) == 0


@pytest.mark.parametrize("machine_info", [None, "hidden", {}, {"cpu": "AMD EPYC"}, {"cpu": None}])
def test_files_whose_project_says_little_of_the_machine(project: Path, machine_info: Any) -> None:
    """pytest-benchmark has a hook for that."""
    files = [benchmark_file(project / f"{i}.json", 1e-6 * (1.5 if i < 5 else 1)) for i in range(10)]
    for each in files:
        Path(each).write_text(json.dumps({**json.loads(Path(each).read_text()), "machine_info": machine_info}))
    assert judge_json(files[:5], files[5:]) == 1
    assert judge_json(files[5:], files[:5]) == 0


@pytest.mark.parametrize(("text", "code", "told"), [
    ("[" * 200_000, 2, "not a JSON file of pytest-benchmark, asv or hyperfine"),
    ('{"benchmarks":' * 100_000, 2, "not a JSON file of pytest-benchmark, asv or hyperfine"),
    ('{"benchmarks": [{"fullname": "bench/x.py::test_a", "stats": {"median": 1' + "0" * 400 + "}}]}", 3,
     "a median of inf s: there is no ratio of that"),
    ('{"benchmarks": [{"fullname": "bench/x.py::test_a", "stats": {"median": 1' + "0" * 5000 + "}}]}", 2,
     "not a JSON file of pytest-benchmark, asv or hyperfine"),
])
def test_files_made_to_hurt(project: Path, capsys: pytest.CaptureFixture[str], text: str, code: int,
                            told: str) -> None:
    (project / "bad.json").write_text(text)
    assert judge_json(["bad.json"], [benchmark_file(project / "one.json", 1e-6)]) == code
    captured = capsys.readouterr()
    assert told in captured.out + captured.err
    assert "Traceback" not in captured.err


def test_names_are_words_and_no_commands(project: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter's text stands in the name: it moves no cursor, begins no line of a CI's, and ends no table's cell."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project / "summary.md"))
    files = [benchmark_file(project / f"{i}.json", 1e-6 * (1.5 if i < 5 else 1),
                            name="test_a[\x1b[2J\n::error::all is lost|`x`]") for i in range(10)]
    assert judge_json(files[:5], files[5:]) == 1
    out = capsys.readouterr().out
    assert r"regression  test_a[\x1b[2J\n::error::all is lost|`x`]: 1.500x" in out
    assert "\x1b" not in out
    assert "\n::error::" not in out
    assert r"| `test_a[\x1b[2J\n::error::all is lost\|'x']` | 1.500x" in (project / "summary.md").read_text()


def test_a_benchmark_that_is_there_twice(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The slower one must not hide behind the other."""
    def file(name: str, *factors: float) -> str:
        data = json.loads(Path(benchmark_file(project / name, 1e-6)).read_text())
        one, = data["benchmarks"]
        data["benchmarks"] = [{**one, "stats": {"median": 1e-6 * factor}} for factor in factors]
        (project / name).write_text(json.dumps(data))
        return str(project / name)
    base = [file(f"b{i}.json", 1) for i in range(5)]
    assert judge_json([file(f"h{i}.json", 1.5, 1) for i in range(5)], base) == 3
    assert "h0.json: it is there twice" in capsys.readouterr().out


def asv_file(path: Path, factor: float, cpu: str = "AMD EPYC", python: str = "3.11") -> str:
    samples = [factor * 1e-6 * (1 + 0.01 * (i % 3)) for i in range(20)]
    path.write_text(json.dumps({
        "commit_hash": "0", "env_name": "e", "version": 2,
        "params": {"arch": "x86_64", "cpu": cpu, "machine": "m", "num_cpu": "4", "os": "Linux", "python": python},
        "result_columns": ["result", "params", "version", "samples"],
        "results": {"suite.time_walk": [[factor * 1e-6, factor * 2e-6], [["1", "2"]], "v",
                                        [samples, [2 * each for each in samples]]],
                    "suite.time_ask": [[factor * 1e-6], [], "v", [samples]],
                    "suite.time_broken": [[None], [], "v"],
                    "suite.time_skipped": [[float("nan")], [], "v"],
                    "suite.track_size": [[7], [], "v"]}}))
    return str(path)


def test_files_of_asv(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, slow = asv_file(project / "base.json", 1), asv_file(project / "slow.json", 1.5)
    assert judge_json([slow], [base]) == 1
    out = capsys.readouterr().out
    assert re.search(r"regression  suite\.time_walk\(2\): 1\.500x", out)
    assert "undecided   suite.time_broken: " + base + ": no result (the benchmark failed)" in out
    assert "not judged: what every file skips (suite.time_skipped)" in out
    assert "what measures neither time nor memory (suite.track_size)" in out
    assert judge_json([base], [asv_file(project / "other.json", 1, "Intel Xeon")]) == 3
    capsys.readouterr()
    assert judge_json([base], [asv_file(project / "later.json", 1, python="3.12")]) == 3
    assert "base.json: Python is '3.11', in " in capsys.readouterr().out
    # What one side alone skips is a doubt.
    Path(slow).write_text(Path(slow).read_text().replace("[NaN]", "[1e-06]"))
    assert judge_json([base], [slow]) == 3
    assert f"undecided   suite.time_skipped: {base}: skipped: there is no ratio of that" in capsys.readouterr().out
    # Paths are no versions. (What is left undecided is the benchmark without a result.)
    there, here = (asv_file(project / f"{name}.json", 1, python=f"/{name}/bin/python") for name in ("there", "here"))
    assert judge_json([there], [here]) == 3
    assert "Python is" not in capsys.readouterr().out


def asv_row(path: Path, name: str, value: Any, *, params: list[list[str]] | None = None, version: str = "v") -> str:
    row = [value, params or [], version, path.name, 1.0]
    path.write_text(json.dumps({"params": {}, "version": 2, "results": {f"suite.{name}": row}, "result_columns": [
        "result", "params", "version", "started_at", "duration"]}))
    return str(path)


@pytest.mark.parametrize("name", ["peakmem_load", "mem_map", "PeakMemLoad", "Mem_map"])
@pytest.mark.parametrize("files", [1, 3, 5])
def test_memory_in_files_of_asv(project: Path, capsys: pytest.CaptureFixture[str], name: str, files: int) -> None:
    """It is judged as time is, by one number a file."""
    def side(word: str, size: float, noise: float = 0.01) -> list[str]:
        return [asv_row(project / f"{word}{i}.json", name, [size * (1 + noise * i)]) for i in range(files)]
    base = side("base", 1e6)
    assert judge_json(side("same", 1.02e6), base) == 0
    assert judge_json(side("more", 1.3e6), base) == 1
    assert f"regression  suite.{name}: 1.300x the base's bytes; limit 1.1" in capsys.readouterr().out
    assert judge_json(side("more", 1.3e6), base, "--threshold", f"suite.{name}=1.5") == 0
    assert judge_json(side("less", 0.5e6), base) == 0
    assert judge_json(side("less", 0.5e6), base, "--fail-if-faster", f"suite.{name}") == 1
    capsys.readouterr()
    if files > 1:
        assert judge_json(side("wild", 1e6, 1.0), base) == 3
        assert "the files of a side differ by" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "code"), [
    ("time_x", 1), ("timeraw_x", 1), ("TimeKeys", 1), ("Time_keys", 1), ("TimerawKeys", 1), ("timeless", 3),
    ("Timer", 3)])
def test_what_asv_takes_for_a_benchmark_of_time(project: Path, name: str, code: int) -> None:
    files = [[asv_row(project / f"{side}{i}.json", name, [value]) for i in range(5)]
             for side, value in (("slow", 2e-3), ("base", 1e-3))]
    assert judge_json(*files) == code


def test_files_of_the_head_are_of_one_commit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier run left there may be as fast as the base was."""
    def side(word: str, commits: str) -> list[str]:
        files = [benchmark_file(project / f"{word}{i}.json", 1e-6) for i in range(5)]
        for file, commit in zip(files, commits, strict=True):
            Path(file).write_text(json.dumps({**json.loads(Path(file).read_text()), "commit_info": {
                "id": "unversioned" if commit == "-" else commit * 40}}))
        return files
    assert judge_json(side("head", "bbbab"), side("base", "aaaaa")) == 3
    assert ("the files of the head are of several commits (aaaaaaaaaaaa, bbbbbbbbbbbb): measure them again"
            in capsys.readouterr().out)
    for head, base, noted in (("bbbbb", "ababa", False), ("-----", "-----", False), ("bbbbb", "bbbbb", True)):
        assert judge_json(side("head", head), side("base", base)) == 0
        assert ("note: both sides are of commit bbbbbbbbbbbb: one code, but for what is not committed"
                in capsys.readouterr().out) is noted


def test_files_of_two_timers_say_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [benchmark_file(project / f"{i}.json", 1e-6, rounds=20) for i in range(2)]
    for file, timer in zip(files, ("perf_counter", "process_time"), strict=True):
        data = json.loads(Path(file).read_text())
        data["benchmarks"][0]["options"] = {"timer": timer}
        Path(file).write_text(json.dumps(data))
    assert judge_json(files[:1], files[1:]) == 3
    assert "the benchmark itself is not the same in all files" in capsys.readouterr().out


def test_a_benchmark_that_was_changed_itself(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """asv keeps a digest of each benchmark's code: the time of another one says nothing of the project."""
    base = [asv_row(project / f"b{i}.json", "time_x", [1e-3]) for i in range(5)]
    assert judge_json([asv_row(project / f"h{i}.json", "time_x", [1e-3], version="w") for i in range(5)], base) == 3
    assert "undecided   suite.time_x: the benchmark itself is not the same in all files" in capsys.readouterr().out


def test_a_benchmark_that_fails_for_all_of_its_parameters(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """asv writes one null for all of them."""
    base = asv_row(project / "b.json", "time_x", [1e-3, 2e-3], params=[["1", "2"]])
    assert judge_json([asv_row(project / "h.json", "time_x", None, params=[["1", "2"]])], [base]) == 3
    out = capsys.readouterr().out
    for parameter in (1, 2):
        assert f"suite.time_x({parameter}): {project / 'h.json'}: no result (the benchmark failed)" in out


def test_memory_and_signals_in_files_of_hyperfine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def file(name: str, memory: float, code: int | None = 0) -> str:
        (project / name).write_text(json.dumps({"results": [{
            "command": "work", "median": 1.0, "times": [1 + 0.01 * (i % 3) for i in range(10)], "name": name,
            "exit_codes": [0] * 9 + [code], "memory_usage_byte": [int(memory) + i for i in range(10)]}]}))
        return name
    base = file("base.json", 1e6)
    assert judge_json([file("same.json", 1e6)], [base]) == 0
    assert judge_json([file("more.json", 1.5e6)], [base]) == 1
    assert "regression  work (memory): 1.500x the base's bytes" in capsys.readouterr().out
    assert judge_json([file("killed.json", 1e6, None)], [base]) == 3
    assert "work: killed.json: the command ended with a signal" in capsys.readouterr().out


def test_files_of_hyperfine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def file(name: str, factor: float, code: int = 0) -> str:
        times = [factor * (1 + 0.01 * (i % 3)) for i in range(10)]
        Path(name).write_text(json.dumps({"results": [{"command": "work", "mean": factor, "median": factor,
                                                       "times": times, "exit_codes": [0] * 9 + [code]}]}))
        return name
    assert judge_json([file("same.json", 1.001)], [file("base.json", 1)]) == 0
    assert "note: the files do not say on which machine they were made" in capsys.readouterr().out
    assert judge_json([file("slow.json", 1.5)], ["base.json"]) == 1
    assert judge_json([file("failed.json", 1, 2)], ["base.json"]) == 3
    assert "undecided   work: failed.json: the command ended with 2: there is no ratio of that" in (
        capsys.readouterr().out)
    twice = json.loads(Path("base.json").read_text())
    Path("twice.json").write_text(json.dumps({"results": twice["results"] * 2}))
    assert judge_json(["twice.json"], ["base.json"]) == 3
    assert ("work: twice.json: it is there twice (hyperfine: --command-name gives each command its own)"
            in capsys.readouterr().out)


# ---- what it writes ----

def mixed_judgement() -> Judgement:
    judgement = Judgement(notes=["a note"])
    judgement.add("counts", "a/1/nodes_visited", Verdict.PASS, "7")
    judgement.add("counts", "a/2/nodes_visited", Verdict.REGRESSION, "9 <> 7, 28.6 % | more")
    judgement.add("time", "a/2", Verdict.UNDECIDED, "too\nnoisy")
    return judgement


def test_an_empty_report_is_a_doubt() -> None:
    assert Judgement().exit_code == 3
    assert mixed_judgement().exit_code == 1
    assert mixed_judgement().summary == "REGRESSION: 1 cell passes, 1 regression, 1 undecided"


def test_junit_is_what_pytest_itself_writes(project: Path) -> None:
    """Same elements, and no attribute that pytest's own file has not, for a pass, a failure and an error."""
    Path("test_three.py").write_text("import pytest\n@pytest.fixture\ndef broken(): raise OSError\n"
                                     "def test_a(): pass\ndef test_b(): assert 0\ndef test_c(broken): pass\n")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null",
                    "--rootdir", ".", "--junit-xml=theirs.xml", "test_three.py"], stdout=subprocess.DEVNULL)

    def shape(path: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for element in ET.parse(path).iter():
            found.setdefault(element.tag, set()).update(element.attrib)
        return found
    Path("ours.xml").write_text(output.junit(mixed_judgement()))
    ours, theirs = shape("ours.xml"), shape("theirs.xml")
    assert ours.keys() == theirs.keys()
    assert all(ours[tag] <= theirs[tag] for tag in ours)
    suite = ET.parse("ours.xml").getroot().findall("testsuite")[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert suite[1].find("failure").get("message") == "9 <> 7, 28.6 % | more"  # type: ignore[union-attr]


def test_files_summary_and_annotations(project: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    edit("counts", "convert/32/leaf_conversions", lambda n: n - 1)
    assert gate("--json", "out/gate.json", "--junit", "out/gate.xml") == 1
    data = json.loads(Path("out/gate.json").read_text())
    assert (data["verdict"], data["exit_code"]) == ("regression", 1)
    red, = (each for each in data["findings"] if each["verdict"] == "regression")
    assert red["cell"] == "convert/32/leaf_conversions"
    assert red["measured"] == red["expected"] + 1
    assert ET.parse("out/gate.xml").getroot().find(".//failure") is not None
    assert "| regression | counts | `convert/32/leaf_conversions` |" in Path("summary.md").read_text()
    assert "::error title=kvmattr gate%3A counts::regression: convert/32/" in capsys.readouterr().out


def test_the_table_says_what_failed_and_what_to_do(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit("counts", "convert/32/leaf_conversions", lambda n: n - 1)
    edit("counts", "convert/256/leaf_conversions", lambda n: n - 1)
    edit("bytes", "look-up/8/bytes", lambda n: n + 64)
    assert gate() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "calls", "counts", "slopes", "memory", "to", "to", "REGRESSION:"]
    assert re.fullmatch(r"  regression  convert/32/leaf_conversions: \d+, the baseline has \d+ \(\+1, \+\d.*%\)",
                        lines[2])
    assert "convert/256/" in lines[3]       # sizes in their order: as text, 256 comes before 32
    assert "to do: counts: more work than the baseline has" in lines[-3]
    assert "to do: better than the baseline: --update-baseline keeps it" in lines[-2]


def test_counts_speak_first_and_time_last() -> None:
    judgement = Judgement()
    for check in ("selftest", "time", "claims", "missing", "counts"):       # claims are measured before the rest
        judgement.add(check, "a/1", Verdict.PASS, "")
    assert [check for check, _ in output.by_check(judgement)] == ["counts", "missing", "claims", "time", "selftest"]


def test_a_summary_tells_regressions_before_doubts() -> None:
    judgement = Judgement()
    for verdict in (Verdict.BETTER, Verdict.UNDECIDED, Verdict.PASS, Verdict.REGRESSION):
        judgement.add("counts", "a/1", verdict, "")
    told = re.findall(r"^\| (\w+) \| counts ", output.markdown(judgement), re.MULTILINE)
    assert told == ["regression", "undecided", "better"]


def test_junit_of_any_text_is_xml() -> None:
    judgement = Judgement()
    judgement.add("counts", "a/1/\x1b[31m", Verdict.REGRESSION, "a\x00b\ud800c\nd\u20ac")
    case = ET.fromstring(output.junit(judgement).encode())[0][0]
    assert case.get("name") == "a/1/?[31m"
    assert case[0].text == "a?b?c\nd\u20ac"


def test_instructions_of_one_side_alone_are_no_pass() -> None:
    judgement = Judgement()
    instructions.judge(judgement, {"a/1": 1000, "b/1": 5}, {"a/1": 1004, "c/1": 7})
    assert [(each.cell, each.verdict) for each in judgement.findings] == [
        ("a/1", Verdict.PASS), ("b/1", Verdict.UNDECIDED), ("c/1", Verdict.UNDECIDED)]
    assert judgement.exit_code == 3


def test_annotations_escape_what_workflow_commands_do() -> None:
    lines = output.github_errors(mixed_judgement()).splitlines()
    assert lines[0].endswith("9 <> 7, 28.6 %25 | more")
    assert lines[1].endswith("a/2: too%0Anoisy")


# ---- for others ----

def test_assert_cost() -> None:
    guest = AttributeMap(1 << 20)
    assert_cost = AssertCost()
    assert assert_cost(lambda: guest.write(0, 512, 1), guest, leaf_allocations=1)["node_allocations"] == 0
    with pytest.raises(pytest.fail.Exception, match=r"^cost: leaf_allocations [12], at most 0$"):
        assert_cost(lambda: guest.write(700, 701, 1), guest, leaf_allocations=0)
    with pytest.raises(ValueError, match=r"^counter 'leaves': this build of kvmattr counts assign_calls, assign_"):
        assert_cost(lambda: None, guest, leaves=0)
    with pytest.raises(pytest.fail.Exception, match=r"^cost: calls 3, at most 1; update_calls 3, at most 1$"):
        assert_cost(lambda: [guest.write(gfn, gfn + 1, 1) for gfn in range(3)], guest, calls=1, update_calls=1)
    with pytest.raises(ValueError, match=r"a map and a limit at least"):
        assert_cost(lambda: None, guest)


def test_assert_cost_of_slopes() -> None:
    def prepare(count: int) -> Work:
        guest = AttributeMap(512 * 4096)

        def run() -> None:
            for block in range(count):
                guest.write(512 * block + 1, 512 * block + 2, 1)
        return Work(run, [guest])
    sizes = [16, 64, 256, 1024, 4096]
    assert AssertCost().slope(prepare, sizes, "leaf_allocations", below=1.1)["leaf_allocations"] > 0.9
    with pytest.raises(pytest.fail.Exception, match=r"^cost: leaf_allocations grows with slope "):
        AssertCost().slope(prepare, sizes, "leaf_allocations")
    with pytest.raises(ValueError, match=r"^2 sizes: a slope needs at least 5$"):
        AssertCost().slope(prepare, [1, 2])


def test_the_example_project(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its baseline is what is measured, to the last number: not a worse one, which would pass as well."""
    monkeypatch.chdir(EXAMPLE)
    assert main(["gate", "--no-build"]) == 0
    assert "better" not in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
                           "pytest_kvmattr", "-c", "/dev/null", "--rootdir", ".", "tests"],
                          capture_output=True, text=True, env={"PYTHONPATH": str(installed()), "PATH": ""})
    assert "2 passed" in done.stdout, done.stdout + done.stderr


ONE_CALL_A_PAGE = """
        for gfn in range(start, stop):
            self.pages.or_(gfn, gfn + 1, GIVEN)
"""


def test_one_call_a_page_is_red_in_the_example_project(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Fifty times slower, and no node or leaf more: through the gate of a build that does not count nodes visited, and
    through assert_cost."""
    project = shutil.copytree(EXAMPLE, tmp_path / "project")
    monkeypatch.chdir(project)
    balloon = Path("balloon.py").read_text()
    planted = balloon.replace("\n        self.pages.or_(start, stop, GIVEN)\n", ONE_CALL_A_PAGE)
    assert planted != balloon
    Path("balloon.py").write_text(planted)
    assert main(["gate", "--no-build"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"regression  inflate-block/16384/update_calls: 513, the baseline has 2 \(.*\); "
                     "32.9 pages a call, 8,448 in the baseline", out), out
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_kvmattr", "-c",
                           "/dev/null", "--rootdir", ".", "tests"], capture_output=True, text=True,
                          env={"PYTHONPATH": str(installed()), "PATH": ""})
    assert done.returncode == 1
    assert "Failed: cost: calls 513, at most 2; update_calls 512, at most 1" in done.stdout, done.stdout


def test_pytest_does_not_load_kvmattr_for_its_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\ndef test_nothing():\n    loaded = {name.split('.')[0] for name in sys.modules}\n"
        "    assert 'pytest_kvmattr' in loaded\n    assert not loaded & {'kvmattr', 'numpy'}\n")
    (tmp_path / "test_cost.py").write_text(
        "def test_cost(assert_cost):\n    import sys\n    assert {'kvmattr', 'numpy'} <= set(sys.modules)\n")

    def tested(file: str) -> str:
        environment = {"PYTHONPATH": str(installed()), "PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_kvmattr",
                               "-c", "/dev/null", "--rootdir", ".", file], capture_output=True, text=True, cwd=tmp_path,
                              env=environment).stdout
    assert "1 passed" in tested("test_nothing.py"), tested("test_nothing.py")
    assert "1 passed" in tested("test_cost.py"), tested("test_cost.py")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_a_project_is_found_by_its_entry_point(
        project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really installed, and gated without naming it; its test finds assert_cost, too, by itself or by name."""
    package = tmp_path_factory.mktemp("package")
    site = tmp_path_factory.mktemp("site")
    shutil.copy(EXAMPLE / "balloon.py", package)
    shutil.copy(EXAMPLE / "gate_scenarios.py", package / "balloon_scenarios.py")
    (package / "pyproject.toml").write_text("""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "balloon-project"
version = "1"
[project.entry-points."kvmattr.gate"]
balloon = "balloon_scenarios"
[tool.setuptools]
py-modules = ["balloon", "balloon_scenarios"]
""")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
                    "--no-deps", "--no-build-isolation", f"--target={site}", str(package)], check=True,
                   stdout=subprocess.DEVNULL)

    def judged(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-P", "-m", "kvmattr", "gate", "--no-build", "--baseline",
                               str(EXAMPLE / "gate_baseline.json"), *words], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{installed()}"})
    done = judged()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one-call-beats-one-call-a-page" in done.stdout
    assert judged("--scenarios", "balloon").returncode == 0
    done = judged("--scenarios", "nobody")
    assert done.returncode == 2
    assert "nor one of the entry points ['balloon'] of 'kvmattr.gate'" in done.stderr, done.stderr


def test_the_committed_baseline_has_every_cell_of_our_own_scenarios() -> None:
    baseline = Baseline.read(ROOT / "bench" / "baseline.json")
    scenarios: list[Scenario] = found_in(own)[0]
    assert {key.rsplit("/", 1)[0] for key in baseline.counts} == {
        f"{each.name}/{size}" for each in scenarios for size in each.sizes}
    assert baseline.counted
    assert baseline.slopes


def test_a_source_tree_is_told_from_another_project(tmp_path: Path) -> None:
    assert builds.source_tree(tmp_path) is None
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert builds.source_tree(tmp_path) is None


def git(where: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(where), "-c", "user.name=n", "-c", "user.email=e", *words], check=True,
                   stdout=subprocess.DEVNULL)


def test_bases_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Usage, match=r"^--base 'HEAD': .* is not a git checkout: fatal: not a git repository"):
        builds.checkout(tmp_path, "HEAD")
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "file").write_text("not kvmattr")
    git(repository, "init", "--quiet")
    git(repository, "add", "file")
    git(repository, "commit", "--quiet", "--message=one")
    for ref in ("-x", "no-such-branch", "HEAD~1"):
        with pytest.raises(Usage, match=rf"^--base '{ref}': no such commit in .*repository"):
            builds.checkout(repository, ref)
    with pytest.raises(Usage, match=r"^--base 'HEAD' has no kvmattr sources at its root$"):
        builds.checkout(repository, "HEAD")
    shutil.rmtree(tmp_path / "cache")
    blob = subprocess.check_output(["git", "-C", str(repository), "rev-parse", "HEAD:file"], text=True).strip()
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(CannotTell, match=r"^--base 'HEAD': git archive failed: "):
        builds.checkout(repository, "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotTell, match=r"^--base HEAD: this machine has no git$"):
        builds.checkout(repository, "HEAD")


def test_a_base_that_does_not_exist_is_told_before_minutes_of_work(
        project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "measure", None)
    (project / "kvmattr").mkdir()
    (project / "kvmattr" / "_core.pyx").write_text("")
    (project / "pyproject.toml").write_text("[project]\nname = 'kvmattr'\n")
    git(project, "init", "--quiet")
    assert main(["gate", "--scenarios", "scenarios.py", "--baseline", "baseline.json", "--base", "nowhere"]) == 2
    assert "--base 'nowhere': no such commit in " in capsys.readouterr().err


@pytest.mark.skipif(builds.source_tree(ROOT) is None, reason="kvmattr's sources are not here")
def test_the_cache_forgets_what_nobody_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(builds, "_compile", lambda *_: None)
    kept = builds.build(ROOT)
    old = kept.with_name("old-plain")
    old.mkdir()
    for place in (kept, old):
        os.utime(place, (0, 0))
    assert builds.build(ROOT) == kept       # used, and nothing new is made: nothing is removed
    assert old.exists()
    builds.build(ROOT, twin=True)
    assert not old.exists()
    assert kept.exists()


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CannotTell, match=r"^builds cannot be kept: .*; XDG_CACHE_HOME names another place$"):
        builds.build(ROOT)
