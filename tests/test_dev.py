"""dev.py's own manners: help, mistyped commands."""

import subprocess
import sys
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
