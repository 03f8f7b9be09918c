"""dev.py's own manners: help, mistyped commands."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parent.parent / "dev.py"
pytestmark = pytest.mark.skipif(not DEV.exists(), reason="dev.py is not here")


def run(*words):
    return subprocess.run([sys.executable, DEV, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_is_an_answer(words):
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("One command for each thing")
    assert "python3 dev.py test " in done.stdout


def test_a_mistyped_command_is_named():
    done = run("tset", "-k", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dev.py: there is no command 'tset' (did you mean test?): the commands are study, ")
    assert run("zzzzzz").stderr.startswith("dev.py: there is no command 'zzzzzz': the commands are study, ")


def test_without_a_free_threaded_python_it_says_what_it_takes(tmp_path):
    (tmp_path / "python3.12t").touch()
    done = subprocess.run([sys.executable, DEV, "freethreaded"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == (
        "not run: there is no free-threaded Python here. It takes a CPython 3.13 or later that was configured with "
        "--disable-gil, as python3.15t, python3.14t, python3.13t on the path or by --python PATH")
    assert "--with-thread-sanitizer, by --tsan PATH" in done.stdout.splitlines()[1]


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="this Python has no GIL")
@pytest.mark.parametrize("option", ["--python", "--tsan"])
def test_a_python_with_a_gil_is_refused(option):
    done = run("freethreaded", option, sys.executable)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"dev.py: {sys.executable} has a GIL: a CPython 3.13 or later built with --disable-gil is "
                           "needed\n")
    done = run("freethreaded", option, "/nowhere/python")
    assert (done.returncode, done.stderr) == (1, "dev.py: /nowhere/python: No such file or directory\n")


def test_files_that_run_alone_are_summed_up(tmp_path, capfd):
    """Whatever becomes of one, the others run; nothing that ran is nothing that passed."""
    spec = importlib.util.spec_from_file_location("dev", DEV)
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    codes = {"a": 0, "b": 66, "c": -9, "d": 5, "e": 0}
    command = [sys.executable, "-c", "import os, sys; code = int(os.environ[sys.argv[1]]); "
               "sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)"]
    environment = {name: str(code) for name, code in codes.items()}
    with pytest.raises(SystemExit, match="1"):
        dev.each_alone(list(codes), command, cwd=tmp_path, **environment)
    assert [line.rpartition(",")[0] for line in capfd.readouterr().out.splitlines() if not line.startswith("+")] == [
        "a: passed", "b: the sanitizer found something", "c: exit code -9", "d: nothing chosen", "e: passed"]
    dev.each_alone(["a", "d", "e"], command, cwd=tmp_path, **environment)
    with pytest.raises(SystemExit, match="1"):
        dev.each_alone(["d"], command, cwd=tmp_path, **environment)


def test_every_command_that_is_written_down_exists():
    """In its own help, in the documents, in CI and in messages; and the help tells all that there are."""
    commands = set(re.search(r"the commands are (.*)$", run("zzzzzz").stderr)[1].split(", "))
    assert set(re.findall(r"^    python3 dev\.py (\w+)", run().stdout, re.MULTILINE)) == commands
    root = DEV.parent
    places = [root / name for name in ("README.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml",
                                       ".github/workflows/docs.yml", ".github/workflows/wheels.yml")]
    for pattern in ("docs/*.md", "bench/*.md", "kvmattr/**/*.py", "tests/**/*.py", "emulation/*.py"):
        places += sorted(root.glob(pattern))
    named = {(place.name, word) for place in places if place.exists() and place.name != "test_dev.py"
             for word in re.findall(r"(?:python3 |[`\"'])dev\.py (\w+)", place.read_text())}
    assert len(named) > 20
    assert {each for each in named if each[1] not in commands} == set()
