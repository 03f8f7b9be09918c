"""The command line: what it says, writes and returns."""

import argparse
import contextlib
import json
import os
import re
import signal as signals
import subprocess
import sys

import pytest

from kvmattr import cli
from kvmattr.measure import extras
from kvmattr.study import backends, command, measuring, plan, runner

BRIEF = ["scaling", "--quick", "--rounds", "3", "--seconds", "60"]
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
    assert re.search(r"^1 units, 2 cells of which 2 can run here, 3 rounds: 0:0\d to 0:\d\d min; a cell stops "
                     r"after 60 s$", err, re.MULTILINE)
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
    with contextlib.suppress(SystemExit):       # of argparse, with the same code
        assert cli.main(["scaling", f"--rounds={number}"]) == 2
    said = capsys.readouterr().err
    assert (f"rounds is {number}, expected a whole number above 0, at most 1,000,000" in said
            or f"argument --rounds: invalid int value: '{number}'" in said)


@pytest.mark.parametrize(("word", "complaint"), [
    ("--seconds=0", "seconds is 0.0, expected a number above 0"), ("--seconds=nan", "seconds is nan, expected"),
    ("--seconds=inf", "seconds is inf, expected a number above 0, at most 1,000,000"),
    ("--operations=store=x", "argument --operations: invalid operations value: 'store=x'"),
    ("--operations=store=3", "operations of store is 3, expected an even number: half of them convert back"),
    ("--operations=20000", "operations is 20000, expected a whole number above 0, at most 16,384"),
    ("--rounds=1000001", "rounds is 1000001, expected a whole"), ("--rounds=" + "9" * 5000, "invalid int value")])
def test_scaling_refuses_what_has_no_end(word, complaint, capsys):
    with contextlib.suppress(SystemExit):       # of argparse, with the same code
        assert cli.main(["scaling", word]) == 2
    assert complaint in capsys.readouterr().err


def test_a_part_of_a_second_is_a_limit(capsys):
    assert cli.main([*BRIEF, "--scenario", "has", "--backend", "store", "--seconds", "60.5"]) == 0
    assert "a cell stops after 60.5 s" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--plots", ""], ["--json", ""]])
def test_an_empty_name_is_no_place(words, capsys):
    assert cli.main([*SMALL, *words]) == 2
    assert capsys.readouterr().err == "kvmattr scaling: '' cannot be written: the name is empty\n"


def test_what_somebody_planted_among_the_plots_is_replaced(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    plots = tmp_path / "plots"
    plots.mkdir()
    (plots / "conversion-model.svg").symlink_to(victim)
    os.mkfifo(plots / "conversion-model.png")
    words = [*BRIEF, "--scenario", "conversion", "--backend", "store", "--plots", str(plots)]
    assert cli.main(words) == 0
    assert victim.read_text() == "precious"
    for path in plots.iterdir():
        assert path.is_file()
        assert not path.is_symlink()
        assert path.stat().st_size > 1000
        path.unlink()
    capsys.readouterr()
    (plots / "conversion-model.svg").mkdir()
    (plots / "conversion-model.png").mkdir()
    assert cli.main(words) == 2
    errors = capsys.readouterr().err
    assert "two sizes" not in errors
    for ending in ("svg", "png"):
        assert f"{plots}/conversion-model.{ending} cannot be written: Is a directory\n" in errors
    assert len(list(plots.iterdir())) == 2


def test_plots_go_where_a_link_points(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new" / "plots")
    assert cli.main([*BRIEF, "--scenario", "guest", "--backend", "store", "--plots", str(link)]) == 0
    assert f"2 files in {link}" in capsys.readouterr().err
    assert len(list((tmp_path / "new" / "plots").iterdir())) == 2


def test_html_without_the_extra_names_the_command_before_measuring(tmp_path, capsys, without, monkeypatch):
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: pytest.fail("measured"))
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
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == 2


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
    out = " ".join(capsys.readouterr().out.split())
    assert "ERROR: numpy in whole at 1 GiB and 1 more cells: RuntimeError: what nobody expected (test_cli.py:" in out
    assert "numpy at 16 GiB: RuntimeError: what nobody expected" in out


def test_a_file_that_cannot_be_written_is_told_before_measuring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: pytest.fail("measured"))
    assert cli.main([*SMALL, "--json", str(tmp_path / "none" / "a.json")]) == 2
    assert capsys.readouterr().err == (
        f"kvmattr scaling: {tmp_path}/none/a.json cannot be written: no such directory: {tmp_path}/none\n")
    assert cli.main([*SMALL, "--csv", str(tmp_path)]) == 2
    assert "is a directory, expected a file to write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_full_run_says_how_long_it_may_take(capsys, monkeypatch):
    command._announce(plan.make(["conversion"], ["store"], quick=False))
    assert ("7 units, 7 cells of which 7 can run here, 15 rounds: 0:12 to 0:12 min; a cell stops after 20 s"
            in capsys.readouterr().err)


def test_compare_of_what_cannot_be_compared(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text("{}")
    assert cli.main(["compare", str(path), str(path)]) == 2
    assert capsys.readouterr().err == (
        f'kvmattr compare: {path}: the document is {{}}, expected a report, which has a "schema"\n')
    assert cli.main(["compare", str(tmp_path / "none"), str(path)]) == 2
    assert "No such file" in capsys.readouterr().err


def test_info_says_what_runs_here(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "store: yes" in out
    assert "vm.max_map_count" in out


def test_every_command_has_help():
    for name in cli.COMMANDS:
        module = __import__(cli.COMMANDS[name], fromlist=["HELP"])
        assert module.HELP
        module.add_arguments(argparse.ArgumentParser())


def kvmattr(command: str, **more) -> subprocess.CompletedProcess[str]:
    """A shell's command line, in which ``kvmattr`` is this one."""
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", f'kvmattr() {{ "$PYTHON" -m kvmattr "$@"; }}; {command}'], capture_output=True,
                          text=True, timeout=300, env=environment, **more)


class TestNothingIsLost:
    def test_json_to_standard_output_is_json_alone(self):
        done = kvmattr(f"kvmattr {' '.join(SMALL)} --json -")
        assert json.loads(done.stdout)["schema"] == 2
        assert "has (model)" in done.stderr
        assert done.returncode == 0

    def test_a_closed_pipe_after_the_run(self, tmp_path):
        path = tmp_path / "a.json"
        done = kvmattr(f"kvmattr {' '.join(SMALL)} --json {path} | head -1; exit ${{PIPESTATUS[0]}}")
        assert done.stdout == "has (model): Do all pages of an aligned block have these attributes (2 MiB, 1\n"
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 141)      # what fits into the pipe is written before head ends
        assert json.loads(path.read_text())["interrupted"] is False

    def test_a_pipe_that_closes_in_the_run_ends_it(self, tmp_path):
        path = tmp_path / "a.json"
        done = kvmattr(f"kvmattr {' '.join(BRIEF)} --scenario conversion --backend numpy --json {path} | true; "
                       "exit ${PIPESTATUS[0]}")
        assert done.returncode == 141
        assert "Traceback" not in done.stderr
        record = json.loads(path.read_text())
        assert record["interrupted"] is True
        assert 1 <= len(record["results"]) < 5

    def test_a_note_stands_first(self, tmp_path):
        path = tmp_path / "a.json"
        done = kvmattr(f"kvmattr {' '.join(SMALL)} --note 'On <my> machine.' --json {path}")
        assert "\n\nOn <my> machine.\n" in done.stdout
        assert json.loads(path.read_text())["method"]["note"] == "On <my> machine."
        assert "\n\nOn <my> machine.\n" in kvmattr(f"kvmattr report {path}").stdout

    def test_a_full_terminal_keeps_the_file(self, tmp_path):
        path = tmp_path / "a.json"
        done = kvmattr(f"kvmattr {' '.join(SMALL)} --json {path} > /dev/full")
        assert done.stderr.endswith("kvmattr scaling: standard output cannot be written: No space left on device\n")
        assert "Traceback" not in done.stderr
        assert (done.returncode, json.loads(path.read_text())["interrupted"]) == (2, False)

    def test_without_a_command_the_commands_are_named(self):
        done = kvmattr("kvmattr")
        assert done.returncode == 2
        assert done.stderr.endswith("kvmattr: error: expected a COMMAND: scaling, compare, report, gate, info, record,"
                                    " fake, shadow, replay, show\n")

    @pytest.mark.parametrize("buffered", ["", "1"])
    @pytest.mark.parametrize("words", ["--help", "--version", "--includes", "scaling --help"])
    def test_what_a_build_asks_for_is_written_or_told(self, words, buffered):
        done = kvmattr(f"PYTHONUNBUFFERED={buffered} kvmattr {words} > /dev/full")
        text = f"kvmattr {words.split()[0]}: standard output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (2, text)
        done = kvmattr(f"PYTHONUNBUFFERED={buffered} kvmattr {words}")
        assert done.returncode == 0
        assert done.stdout
        assert kvmattr(f"kvmattr {words} >&-").returncode == 0

    def test_a_standard_error_that_is_full_or_closed_costs_its_words_alone(self, tmp_path):
        path = tmp_path / "a.json"
        done = kvmattr(f"kvmattr {' '.join(SMALL)} --json {path} 2> /dev/full")
        assert (done.returncode, json.loads(path.read_text())["interrupted"]) == (0, False)
        assert done.stdout.startswith("has (model)")
        done = kvmattr(f"kvmattr {' '.join(SMALL)} --json - 2>&-")
        assert (done.returncode, json.loads(done.stdout)["interrupted"]) == (0, False)
        assert kvmattr(f"kvmattr {' '.join(SMALL)} --json {path} >&-").returncode == 0
        assert kvmattr(f"kvmattr report {path} >&-").returncode == 0
        done = kvmattr(f"kvmattr report {path} --json - >&-")
        assert (done.returncode, done.stderr) == (2, "kvmattr report: - cannot be written: Bad file descriptor\n")
        done = kvmattr(f"kvmattr report {path} --csv /nowhere/a.csv 2> /dev/full")
        assert done.returncode == 2
        done = kvmattr(f"kvmattr report {path} > /dev/full 2>&1")
        assert done.returncode == 2

    def test_a_file_that_is_full_keeps_the_others(self, tmp_path):
        path = tmp_path / "a.csv"
        done = kvmattr(f"kvmattr {' '.join(SMALL)} --json /dev/full --csv {path}")
        assert "kvmattr scaling: /dev/full cannot be written: No space left on device" in done.stderr
        assert f"written: {path}\n" in done.stderr
        assert (done.returncode, path.read_text().count("\n")) == (2, 3)
        assert "has (model)" in done.stdout

    @pytest.mark.parametrize(("signal", "code"), [("TERM", 143), ("HUP", 129), ("INT", 130)])
    def test_signals_keep_what_is_done(self, signal, code, tmp_path):
        path = tmp_path / "a.json"
        words = "scaling --rounds 100 --scenario conversion --backend numpy"
        done = kvmattr(f"kvmattr {words} --json {path} & pid=$!; "
                       f"until [ -s {path} ]; do sleep 0.05; done; kill -{signal} $(pgrep -P $pid); wait $pid")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        record = json.loads(path.read_text())
        assert record["interrupted"] is True
        assert 1 <= len(record["results"]) < 7
        assert "conversion (model)" in done.stdout
        assert [each.name for each in tmp_path.iterdir()] == ["a.json"]

    def test_a_signal_that_a_library_clears_ends_the_run(self, tmp_path, capsys, monkeypatch):
        real = runner.run_unit

        def clearing(unit, options):
            with contextlib.suppress(KeyboardInterrupt):
                signals.raise_signal(signals.SIGTERM)
            return real(unit, options)
        monkeypatch.setattr(runner, "run_unit", clearing)
        path = tmp_path / "a.json"
        assert cli.main([*BRIEF, "--scenario", "conversion", "--backend", "numpy", "--json", str(path)]) == 143
        record = json.loads(path.read_text())
        assert record["interrupted"] is True
        assert len(record["results"]) == 1
        assert "ended by SIGTERM: 1 of " in capsys.readouterr().err

    def test_a_directory_that_vanishes_in_the_run(self, tmp_path, capsys, monkeypatch):
        gone, kept = tmp_path / "gone", tmp_path / "a.csv"
        gone.mkdir()
        real = runner.run_unit

        def vanishing(unit, options):
            if gone.is_dir():
                for path in gone.iterdir():
                    path.unlink()
                gone.rmdir()
            return real(unit, options)
        monkeypatch.setattr(runner, "run_unit", vanishing)
        assert cli.main([*SMALL, "--json", str(gone / "a.json"), "--csv", str(kept)]) == 2
        assert f"{gone}/a.json cannot be written: no such directory: {gone}" in capsys.readouterr().err
        assert kept.read_text().count("\n") == 3


def test_a_signal_while_a_command_is_imported(capsys, monkeypatch):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: signals.raise_signal(signals.SIGTERM))
    assert cli.main(["info"]) == 143
    assert capsys.readouterr().err == "kvmattr: ended by SIGTERM\n"


def test_what_is_left_out_is_said(capsys):
    assert cli.main([*BRIEF, "--scenario", "has", "--scenario", "export", "--backend", "store", "--backend", "xarray",
                     "--backend", "store-get-write"]) == 0
    out, err = capsys.readouterr()
    for words in ("export (--quick leaves it out)", "store-get-write (takes part in rmw alone)"):
        assert f"left out: {words}\n" in err
        assert f"Left out: {words}." in out


def test_nothing_measured_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr(backends.ALL["numpy"], "missing", classmethod(lambda cls: "no memory of that kind"))
    assert cli.main([*BRIEF, "--scenario", "has", "--backend", "numpy"]) == 3
    out, err = capsys.readouterr()
    assert "left out: numpy (no memory of that kind)" in err
    assert "Nothing was measured." in out


def test_report_draws_again(tmp_path, capsys):
    path, again = tmp_path / "a.json", tmp_path / "b.json"
    assert cli.main([*SMALL, "--json", str(path)]) == 0
    first = capsys.readouterr().out
    assert cli.main(["report", str(path), "--json", str(again), "--csv", "/dev/null"]) == 0
    out, err = capsys.readouterr()
    assert out == first
    assert again.read_text() == path.read_text()
    assert err == f"written: {again}, /dev/null\n"


def test_every_line_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["scaling", "--list"], [*BRIEF, "--scenario", "has", "--scenario", "memory"]):
        assert cli.main(words) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_version(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert re.fullmatch(r"kvmattr \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(("line", "wanted"), [
    ("kvmattr sc", {"scaling"}), ("kvmattr scaling --ba", {"--backend"}),
    ("kvmattr scaling --backend kvm-", {"kvm-attributes", "kvm-memslots", "kvm-memslots-vcpu"}),
    ("kvmattr scaling --scenario sl", {"slot", "slots"}),
])
def test_the_shell_completes(line, wanted, tmp_path):
    pytest.importorskip("argcomplete")
    done = subprocess.run(
        [sys.executable, "-m", "kvmattr"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"),
             "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
             "COMP_POINT": str(len(line)), "COMP_TYPE": "9"})
    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "out").read_text().split()) == wanted


@pytest.mark.parametrize(("words", "said"), [
    (["scalin"], "kvmattr: error: there is no command 'scalin' (did you mean scaling?): the commands are "
                 f"{', '.join(cli.COMMANDS)}"),
    (["xyzzy", "--quick"], f"kvmattr: error: there is no command 'xyzzy': the commands are {', '.join(cli.COMMANDS)}"),
    (["scaling", "--quik"], "kvmattr scaling: error: unrecognized arguments: --quik (did you mean --quick?)"),
    (["gate", "--thresold=3"], "kvmattr gate: error: unrecognized arguments: --thresold=3 (did you mean --threshold?)"),
    (["info", "what"], "kvmattr info: error: unrecognized arguments: what"),
])
def test_a_mistyped_word_names_the_command_and_what_it_may_have_been(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == said
