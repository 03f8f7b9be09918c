"""The command line: what it says, writes and returns."""

import argparse
import json
import subprocess
import sys

import pytest

from kvmattr import cli
from kvmattr.study import backends, command, extras, runner
from kvmattr.study.runner import Options

BRIEF = ["scaling", "--quick", "--rounds", "3", "--seconds", "5"]
SMALL = [*BRIEF, "--scenario", "has", "--backend", "store", "--backend", "xarray"]


@pytest.fixture
def without(monkeypatch):
    """Hide optional libraries."""
    real = extras.importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(extras.importlib.util, "find_spec",
                            lambda name, *rest: None if name in names else real(name, *rest))
    return hide


def test_scaling_prints_a_table_and_writes_json_and_csv(tmp_path, capsys):
    json_path, csv_path = tmp_path / "a.json", tmp_path / "a.csv"
    assert cli.main([*SMALL, "--json", str(json_path), "--csv", str(csv_path)]) == 0
    out, err = capsys.readouterr()
    assert "has (model): Do all pages of an aligned block" in out
    assert "1 units, 2 cells of which 2 can run here, 3 rounds: 0.0 to 0.0 min; a cell stops after 5 s" in err
    record = json.loads(json_path.read_text())
    assert [(result["backend"], result["status"]) for result in record["results"]] == [
        ("store", "ok"), ("xarray", "ok")]
    assert all(len(result["samples"]) == 3 for result in record["results"])
    assert record["machine"]["kvm"]
    assert csv_path.read_text().count("\n") == 3


def test_scaling_lists_what_it_knows(capsys):
    assert cli.main(["scaling", "--list"]) == 0
    out = capsys.readouterr().out
    assert "conversion         What does converting one random 4 KiB page cost" in out
    assert "empty-ioctl        [kernel] the floor" in out


@pytest.mark.parametrize(("words", "complaint"), [
    (["--scenario", "nope"], "unknown scenario 'nope': known are conversion, conversion-single, "),
    (["--backend", "nope"], "unknown backend 'nope': known are store, store-get-write, memslots, "),
    (["--backend", "store-get-write", "--scenario", "guest"], "store-get-write takes part in rmw alone"),
    (["--quick", "--scenario", "export"], "--quick leaves out export: run it without --quick"),
])
def test_scaling_names_what_is_known(words, complaint, capsys):
    assert cli.main(["scaling", *words]) == 2
    assert capsys.readouterr().err.startswith(f"kvmattr scaling: {complaint}")


@pytest.mark.parametrize("number", ["0", "-3", "many", "1.5"])
def test_scaling_refuses_a_number_that_is_none(number, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["scaling", f"--rounds={number}"])
    assert raised.value.code == 2
    assert f"{number} is not a positive number" in capsys.readouterr().err


def test_html_without_the_extra_names_the_command_before_measuring(tmp_path, capsys, without, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    without("matplotlib", "jinja2")
    assert cli.main([*SMALL, "--html", str(tmp_path / "a.html")]) == 2
    assert capsys.readouterr().err == (
        "kvmattr scaling: matplotlib and jinja2 not installed: pip install 'kvmattr[study]'\n")


def test_table_and_json_need_no_extra(tmp_path):
    # A process of its own, where the libraries cannot be imported at all.
    program = ("import sys\nfor name in ('matplotlib', 'jinja2', 'rich', 'scipy'): sys.modules[name] = None\n"
               "from kvmattr.cli import main\nsys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", program, *SMALL, "--json", str(tmp_path / "a.json")],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "has (model)" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == 1


def test_ctrl_c_writes_what_is_done(tmp_path, capsys, monkeypatch):
    real = runner.run_unit

    def interrupted(unit, options):
        if unit.size > 1:
            raise KeyboardInterrupt
        return real(unit, options)
    monkeypatch.setattr(runner, "run_unit", interrupted)
    path = tmp_path / "a.json"
    assert cli.main([*BRIEF, "--scenario", "conversion", "--backend", "numpy", "--json", str(path)]) == 130
    record = json.loads(path.read_text())
    assert record["interrupted"] is True
    assert [result["size"] for result in record["results"]] == [1]
    out, err = capsys.readouterr()
    assert "interrupted: 1 of 5 cells are done" in err
    assert "conversion (model)" in out


def test_an_error_in_a_cell_is_written_and_told_by_the_exit_code(tmp_path, capsys, monkeypatch):
    def broken(self, prepared):
        raise RuntimeError("what nobody expected")
    monkeypatch.setattr(backends.ALL["numpy"], "update", broken)
    path = tmp_path / "a.json"
    words = [*BRIEF, "--scenario", "whole", "--backend", "store", "--backend", "numpy", "--json", str(path)]
    assert cli.main(words) == 1
    record = json.loads(path.read_text())
    assert [(result["backend"], result["status"]) for result in record["results"]] == [
        ("store", "ok"), ("numpy", "error")] * 2
    out = capsys.readouterr().out
    assert "ERROR: numpy in whole at 1 GiB and 1 more cells: RuntimeError: what nobody expected (test_cli.py:" in out
    assert "numpy at 16 GiB: RuntimeError: what nobody expected" in out


def test_a_file_that_cannot_be_written_is_told_before_measuring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    assert cli.main([*SMALL, "--json", str(tmp_path / "none" / "a.json")]) == 2
    assert capsys.readouterr().err == (
        f"kvmattr scaling: {tmp_path}/none/a.json cannot be written: no such directory: {tmp_path}/none\n")
    assert cli.main([*SMALL, "--csv", str(tmp_path)]) == 2
    assert "is a directory, expected a file to write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_full_run_says_how_long_it_may_take(capsys, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda units, options, started: iter([]))
    command.measure(runner.plan(["conversion"], ["store"], quick=False), Options())
    assert ("7 units, 7 cells of which 7 can run here, 15 rounds: 0.2 to 0.2 min; a cell stops after 20 s"
            in capsys.readouterr().err)


def test_compare_of_what_cannot_be_compared(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text("{}")
    assert cli.main(["compare", str(path), str(path)]) == 2
    assert capsys.readouterr().err == f'kvmattr compare: {path} is not a report: it has no "schema"\n'
    assert cli.main(["compare", str(tmp_path / "none"), str(path)]) == 2
    assert "No such file" in capsys.readouterr().err


def test_info_says_what_runs_here(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "store: yes" in out
    assert "vm.max_map_count" in out


def test_every_command_has_help():
    parser = argparse.ArgumentParser()
    for name in ("scaling", "compare", "info"):
        module = __import__(cli.COMMANDS[name], fromlist=["HELP"])
        assert module.HELP
        module.add_arguments(parser.add_argument_group(name))
