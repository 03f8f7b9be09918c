"""The gate in a project that is not ours: what docs/gate.md says, in a fresh git repository; --base of its own code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmattr.cli import main
from kvmattr.gate import history, repository
from kvmattr.gate.stages import installed
from kvmattr.gate.verdict import Judgement, Usage
from tests.quiet_machine import quiet_path

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "gate.md"
EXAMPLE = ROOT / "examples" / "gate-project"
WORKFLOW, GITLAB = EXAMPLE / ".github" / "workflows" / "gate.yml", EXAMPLE / ".gitlab-ci.yml"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="this machine has no git")


def section(title: str) -> str:
    """A section of the guide."""
    return re.split(r"^## ", GUIDE.read_text().partition(f"## {title}")[2], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text: language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which kvmattr and pytest are these, pip has nothing to do, and git knows who commits."""
    commands = tmp_path / "bin"
    commands.mkdir()
    python = shlex.quote(sys.executable)
    for name, text in (("pip", "exit 0"), ("kvmattr", f'exec {python} -P -m kvmattr "$@"'),
                       ("pytest", f'exec {python} -m pytest -p no:cacheprovider -p pytest_kvmattr -c /dev/null '
                                  '--rootdir . "$@"')):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(installed()),
                   "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                   "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path),
                   **{f"GIT_{who}_{what}": "n@e" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}}
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GIT_DIR"):
        environment.pop(name, None)
    return environment


def fresh(place: Path, environment: dict[str, str]) -> Path:
    place.mkdir(exist_ok=True)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", "."], cwd=place, env=environment, check=True)
    return place


def project_of(place: Path, environment: dict[str, str]) -> Path:
    shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("__pycache__"))
    fresh(place, environment)
    subprocess.run("git add . && git commit -qm one", shell=True, cwd=place, env=environment, check=True)
    return place


def ran(command: str, place: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], cwd=place, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_from_pip_install_to_the_first_red_build(tmp_path: Path, shell: dict[str, str]) -> None:
    """Every file and every command of the guide, in its order; what it promises of an exit code and of a line."""
    project = fresh(tmp_path / "project", shell)
    said, commands, times = "", 0, ""
    for language, text in blocks(section("Your project")):
        if language == "python":
            (project / text.partition("\n")[0].removeprefix("# ")).write_text(text)
        elif language == "sh":
            for line in text.splitlines():
                done = ran(line, project, shell)
                code = int(line.partition("# exit ")[2] or 0)
                assert done.returncode == code, (line, done.stdout, done.stderr)
                said, commands = done.stdout, commands + 1
                times += said if "--base" in line else ""
        else:
            for line in text.splitlines():
                assert line in said
    assert commands == 8
    assert "Failed: cost: calls 512, at most 1" in said
    # "it takes more than 50 times as long"
    assert float(re.search(r"inflate-block/16777216: ([\d.]+)x the base's time", times)[1]) > 50
    # The other commands, on a tree without the regression: none is a mistake, and none finds one.
    assert ran("git checkout -q balloon.py", project, shell).returncode == 0
    [threshold, each, plot] = "".join(text for title in ("Thresholds", "History")
                                      for _, text in blocks(section(title))).splitlines()
    shell = {**shell, "PYTHONPATH": quiet_path(tmp_path, installed())}
    for line in (threshold, each, each, plot):
        done = ran(line, project, shell)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert ("time          1 pass\n" in done.stdout) is (line == threshold), done.stdout
    assert (project / "gate_history.svg").exists() is (importlib.util.find_spec("matplotlib") is not None)


@pytest.mark.slow
def test_the_recipe_for_pytest_benchmark(tmp_path: Path, shell: dict[str, str]) -> None:
    """As it stands there, in a worktree of the base beside the project. What differs between equal sides is noise."""
    pytest.importorskip("pytest_benchmark")
    project = project_of(tmp_path / "project", shell)
    (project / "test_speed.py").write_text(
        "from balloon import Balloon\n\ndef test_inflating(benchmark):\n"
        "    benchmark.pedantic(Balloon(1 << 24).inflate, (512, 1024), rounds=20, iterations=20)\n")
    ran("git add . && git commit -qm two && git checkout -qb topic", project, shell)
    done = ran(recipe("pytest"), project, {**shell, "PYTEST_PLUGINS": "pytest_benchmark.plugin"})
    assert re.search(r"^files +1 (pass|regression|undecided)$", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert (tmp_path / "base" / "base5.json").exists()


def recipe(tool: str) -> str:
    """The commands of the guide that use this tool."""
    [found] = [text for language, text in blocks(section("Files of other tools"))
               if language == "sh" and f"{tool} " in text]
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("hyperfine") is None, reason="hyperfine is not installed")
def test_the_recipe_for_hyperfine(tmp_path: Path, shell: dict[str, str]) -> None:
    """With a program that is slower by far on one side: other work beside it may hide that, and never make it pass."""
    for side, seconds in (("base", "0.01"), ("head", "0.05")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "program").write_text(f"#!/bin/sh\nexec sleep {seconds}\n")
        (tmp_path / side / "program").chmod(0o755)
    done = ran(recipe("hyperfine"), tmp_path, shell)
    assert re.search(r"^files +1 (regression|undecided)$", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert "start: " in done.stdout


@pytest.mark.slow
def test_the_recipe_for_asv(tmp_path: Path, shell: dict[str, str]) -> None:
    """Its loop, with an ``asv`` that writes what the real one does: a file named by the commit, replaced each time."""
    project = project_of(tmp_path / "project", shell)
    ran("git checkout -qb topic && git commit --allow-empty -qm two", project, shell)
    asv = tmp_path / "bin" / "asv"
    asv.write_text(f"""#!{sys.executable}
import json, pathlib, subprocess, sys, time
assert sys.argv[1:3] == ["run", "--record-samples"] and sys.argv[3].endswith("^!")
commit = subprocess.check_output(["git", "rev-parse", sys.argv[3][:-2]], text=True).strip()
factor = 2 if sys.argv[3] == "HEAD^!" else 1
place = pathlib.Path("results", "here", commit[:8] + "-virtualenv-py3.11.json")
place.parent.mkdir(parents=True, exist_ok=True)
place.write_text(json.dumps({{
    "commit_hash": commit, "version": 2, "params": {{"cpu": "c", "machine": "here", "python": "3.11"}},
    "result_columns": ["result", "params", "started_at", "samples"],
    "results": {{"bench.time_it": [[0.001 * factor], [], time.time_ns(), [[0.001 * factor] * 10]]}}}}))
""")
    asv.chmod(0o755)
    done = ran(recipe("asv"), project, shell)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "bench.time_it: 2.000x the base's time [2.000, 2.000] in 5 rounds" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("against", ["", "--base HEAD"])
def test_what_the_workflows_run(tmp_path: Path, shell: dict[str, str], against: str) -> None:
    yaml = pytest.importorskip("ruamel.yaml").YAML(typ="safe")
    project = project_of(tmp_path / "project", shell)
    shell = {**shell, "PYTHONPATH": quiet_path(tmp_path, installed())}
    steps = yaml.load(WORKFLOW.read_text())["jobs"]["gate"]["steps"]
    asked = [step for step in steps if "run" in step]
    # What an event brings goes through the environment, not into the script's text.
    assert asked[-1]["env"] == {"AGAINST": "${{ github.base_ref && format('--base origin/{0}', github.base_ref) }}"}
    for step in asked:
        done = ran(step["run"], project, {**shell, "AGAINST": against})
        assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "gate.xml").exists()
    for command in yaml.load(GITLAB.read_text())["gate"]["script"]:
        done = ran(command, project, {**shell, **({"CI_MERGE_REQUEST_DIFF_BASE_SHA": "HEAD"} if against else {})})
        assert done.returncode == 0, done.stdout + done.stderr
    assert ("time  " in done.stdout) is bool(against)


@pytest.mark.parametrize(("file", "words"), [
    (WORKFLOW, ["--builtin-schema", "vendor.github-workflows"]),
    (GITLAB, ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"]),
])
def test_the_workflows_are_valid_and_those_of_the_guide(tmp_path: Path, file: Path, words: list[str]) -> None:
    assert ("yaml", file.read_text()) in blocks(section("In your CI"))
    pytest.importorskip("check_jsonschema")

    def check(place: Path) -> int:
        return subprocess.run([sys.executable, "-m", "check_jsonschema", *words, str(place)],
                              stdout=subprocess.DEVNULL).returncode
    assert check(file) == 0
    broken = tmp_path / file.name
    broken.write_text(file.read_text().replace("runs-on:", "runs-at:").replace("script:", "scripts:"))
    assert check(broken) == 1


def test_the_shell_recipe_is_one(tmp_path: Path, shell: dict[str, str]) -> None:
    recipe = next(text for language, text in blocks(section("In your CI")) if language == "sh")
    for code in (0, 1, 2, 3):
        (tmp_path / "bin" / "kvmattr").write_text(f"#!/bin/sh\nexit {code}\n")
        assert ran(recipe, tmp_path, shell).returncode == code


GATE = "kvmattr gate --no-build --base HEAD"
FIRST = "kvmattr gate --no-build --update-baseline && git add . && git commit -qm one"
GIVEN = "        return self.given\n\n    def deflate"
SLOWER = (GIVEN, f"        for _ in range(20):\n            pass\n{GIVEN}")


@pytest.mark.slow
@pytest.mark.parametrize("packaged", [False, True])
def test_the_time_of_their_code(tmp_path: Path, shell: dict[str, str], packaged: bool) -> None:
    """As it lies there, and installed by a command; the head is what is not committed yet."""
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("__pycache__"))
    install = ""
    if packaged and importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    if packaged:
        (project / "source").mkdir()
        (project / "balloon.py").rename(project / "source" / "balloon.py")
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n[project]\n'
            'name = "balloon-project"\nversion = "1"\n[tool.setuptools]\npackage-dir = {"" = "source"}\n'
            'py-modules = ["balloon"]\n')
        words = "{python} -m pip install -q --no-index --no-deps --no-build-isolation --target {target} {source}"
        install = f" --install {shlex.quote(words)}"
    shell = {**shell, "PYTHONPATH": quiet_path(tmp_path, installed(), *([project / "source"] if packaged else []))}
    fresh(project, shell)
    assert ran("git add . && git commit -qm one", project, shell).returncode == 0
    done = ran(GATE + install, project, shell)
    assert "time          2 pass\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
    if packaged:
        assert "install of project (plain, kept in " in done.stderr
    module = project / "source" / "balloon.py" if packaged else project / "balloon.py"
    assert SLOWER[0] in module.read_text()
    module.write_text(module.read_text().replace(*SLOWER))
    done = ran(GATE + install + " --json gate.json", project, shell)
    assert done.returncode == 1, done.stdout + done.stderr
    findings = json.loads((project / "gate.json").read_text())["findings"]
    assert {each["cell"] for each in findings if each["verdict"] == "regression"} == {"inflate-block/16777216"}
    times = {each["cell"]: each["text"] for each in findings if each["check"] == "time"}
    assert times["inflate-scattered/4096"] == "1.000x the base's time [1.000, 1.000] in 10 rounds; limit 1.100x"


def measured_scenarios(project: Path) -> None:
    """One scenario of the project's module, quick to time."""
    (project / "gate_scenarios.py").write_text(
        "from balloon import Balloon\nfrom kvmattr.gate import Work, scenario\n\n"
        "@scenario(sizes=[1024, 4096])\ndef inflate(npages):\n    balloon = Balloon(npages)\n"
        "    return Work(lambda: balloon.inflate(0, 64), [balloon.pages])\n")


@pytest.mark.parametrize("way", ["PYTHONPATH", "editable"])
def test_code_that_both_sides_have_in_common_is_no_pass(tmp_path: Path, shell: dict[str, str], way: str) -> None:
    """The working tree's, by a path of the environment, or by the finder of an editable install, which comes first."""
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("__pycache__"))
    measured_scenarios(project)
    lib = project / "lib" if way == "PYTHONPATH" else tmp_path / "elsewhere"
    lib.mkdir()
    (shutil.move if way == "PYTHONPATH" else shutil.copy)(project / "balloon.py", lib / "balloon.py")
    if way == "editable":
        (lib / "sitecustomize.py").write_text(
            "import importlib.util, sys\nclass Finder:\n    def find_spec(self, name, path=None, target=None):\n"
            f"        return importlib.util.spec_from_file_location(name, {str(lib / 'balloon.py')!r}) "
            "if name == 'balloon' else None\nsys.meta_path.insert(0, Finder())\n")
    shell = {**shell, "PYTHONPATH": f"{installed()}{os.pathsep}{lib}"}
    fresh(project, shell)
    assert ran(FIRST, project, shell).returncode == 0
    done = ran(GATE, project, shell)
    assert done.returncode == 3, done.stdout + done.stderr
    assert (f"ImportError: balloon is {lib / 'balloon.py'} on both sides, so that nothing would be compared: is it on "
            "PYTHONPATH, or an editable install?") in done.stdout


def test_what_lies_beside_the_scenarios_of_an_installed_project_is_named(tmp_path: Path, shell: dict[str, str]) -> None:
    project = tmp_path / "project"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("__pycache__"))
    measured_scenarios(project)
    fresh(project, shell)
    assert ran(FIRST, project, shell).returncode == 0
    done = ran(f"{GATE} --install 'mkdir {{target}}/x'", project, shell)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert ("what lies beside the scenarios and is not installed (balloon): both sides have the working tree's"
            in done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("words", "code", "told"), [
    ("--base nowhere", 2, r"--base 'nowhere': no such commit in .*project"),
    ("--base HEAD --project nowhere", 2, r"--project nowhere: no such directory"),
    ("--base empty", 3, r"--base 'empty': [0-9a-f]{40} has no files"),
    ("--install x", 2, r"--install goes with --base REF"),
    ("--base HEAD --install '{sauce}'", 2, r"--install \{sauce\}: \{python\}, \{source\} and \{target\} are filled in"),
    ("--base HEAD --install no-such-command", 2, r"--install no-such-command: \[Errno 2\] No such file"),
    ("--base HEAD --install 'sh -c \"echo broken; exit 7\"'", 3, r"(?s)command of .* failed \(7\): .*\n +brok"),
])
def test_bases_of_a_project_that_cannot_be_had(tmp_path: Path, shell: dict[str, str], words: str, code: int,
                                               told: str) -> None:
    project = project_of(tmp_path / "project", shell)
    ran("git tag empty $(git commit-tree -m empty $(git mktree </dev/null))", project, shell)
    done = ran(f"kvmattr gate --no-build {words}", project, shell)
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(told, done.stdout + done.stderr), done.stdout + done.stderr


def test_gits_own_remedy_is_printed_whole(tmp_path: Path, shell: dict[str, str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    project = project_of(tmp_path / "project", shell)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Usage, match=r"(?s)detected dubious ownership.*git config --global --add safe\.directory \S+$"):
        repository.checkout(project, "HEAD")


def test_a_history_of_commits(tmp_path: Path, shell: dict[str, str], monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    project = project_of(tmp_path / "project", shell)
    monkeypatch.chdir(project)
    gate = ["gate", "--no-build", "--history", "gate.jsonl"]
    assert main(gate) == 0
    Path("gate.jsonl").write_text(Path("gate.jsonl").read_text().rstrip("\n"))     # a run that was killed
    balloon = Path("balloon.py").read_text()
    Path("balloon.py").write_text(balloon.replace("self.pages.or_(start", "self.pages.copy(); self.pages.or_(start"))
    assert main(gate) == 1
    runs = history.read(Path("gate.jsonl"))
    assert [run["exit_code"] for run in runs] == [0, 1]
    assert runs[0]["commit"] + "+" == runs[1]["commit"]
    assert history.moved(runs)["inflate-block"]["16384/copy_calls"] == [0.0, 1.0]
    capsys.readouterr()
    assert main(["gate", "--history", "gate.jsonl", "--plot-history", "gate.svg"]) == 0
    assert re.search(r"gate.svg: \d+ numbers that moved in 2 runs", capsys.readouterr().out)
    assert "inflate-block" in Path("gate.svg").read_text() or "<svg" in Path("gate.svg").read_text()


@pytest.mark.parametrize(("text", "code", "told"), [
    (None, 2, "gate.jsonl: no history: "),
    ("[]\n", 2, "gate.jsonl: line 1 is not a line of a history"),
    ('{"schema": 9}\n', 2, "gate.jsonl: line 1 has schema 9; this gate reads schema 1"),
    ("", 3, "gate.jsonl: 0 runs; a plot over commits needs 2 or more"),
])
def test_histories_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                 text: str | None, code: int, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("gate.jsonl").write_text(text)
    assert main(["gate", "--history", "gate.jsonl", "--plot-history", "gate.svg"]) == code
    captured = capsys.readouterr()
    assert told in captured.out + captured.err
    assert main(["gate", "--plot-history", "gate.svg"]) == 2
    assert "--plot-history PICTURE draws --history FILE" in capsys.readouterr().err
    assert Judgement().exit_code == 3
