"""The study from Python, and with backends and scenarios of others."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kvmattr import cli, study
from kvmattr.study import backends, registry, scenarios
from kvmattr.study.backends import Backend
from kvmattr.study.report import Report
from kvmattr.study.scenarios import Scenario, Workload
from kvmattr.study.work import Batch


@pytest.fixture
def known(monkeypatch):
    """What is registered in a test is forgotten after it."""
    monkeypatch.setattr(backends, "ALL", dict(backends.ALL))
    monkeypatch.setattr(scenarios, "ALL", dict(scenarios.ALL))
    monkeypatch.setattr(registry, "_loaded", {})
    yield
    for name in [name for name in sys.modules if name.startswith("kvmattr_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def report() -> Report:
    return study.run(["has", "whole"], ["store", "numpy"], quick=True, rounds=5)


class TestReport:
    def test_results(self, report):
        assert [(result.scenario, result.backend, result.status) for result in report.results] == [
            ("has", "store", "ok"), ("has", "numpy", "ok")] + [("whole", "store", "ok"), ("whole", "numpy", "ok")] * 2
        assert not report.interrupted
        for result in report.results:
            assert len(result.samples) == len(result.wall) == len(result.yardstick) == 5
            assert result.clock in ("cpu", "wall")
            assert {"seconds", "other_cpus", "stolen_cpus"} <= set(result.load)

    def test_there_and_back(self, report, tmp_path):
        path = tmp_path / "a.json"
        report.save(path)
        again = study.load(path)
        assert again == report
        assert again.to_dict() == report.to_dict()

    def test_forms(self, report, tmp_path):
        assert "has (model)" in report.table(80)
        assert report.to_dict()["schema"] == 2
        report.save(tmp_path / "a.csv")
        assert (tmp_path / "a.csv").read_text().count("\n") == 7
        with pytest.raises(ValueError, match=r"a\.txt ends in none of \.json, \.csv, \.html"):
            report.save(tmp_path / "a.txt")

    def test_frame(self, report):
        pandas = pytest.importorskip("pandas")
        frame = report.to_frame()
        assert isinstance(frame, pandas.DataFrame)
        assert frame["backend"].tolist() == ["store", "numpy"] * 3
        assert frame.loc[0, "median"] == report.results[0].spread.median

    def test_frame_without_pandas_names_the_extra(self, report, monkeypatch):
        from kvmattr.measure import extras
        monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pandas not installed: pip install 'kvmattr\[pandas\]'"):
            report.to_frame()

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="unknown scenario 'nope': known are conversion, "):
            study.run(["nope"])

    def test_operations_are_the_same_in_every_run(self):
        report = study.run(["conversion", "whole"], ["store", "xarray", "numpy"], quick=True, rounds=3,
                           operations={"": 64, "numpy": 6})
        assert {(result.backend, result.operations) for result in report.results if result.scenario == "conversion"
                } == {("store", 64), ("xarray", 64), ("numpy", 6)}
        assert report.method["operations"] == "all others 64, numpy 6"
        assert {result.operations for result in study.run(["whole"], ["store"], quick=True, rounds=3, operations=10
                                                          ).results} == {10}

    @pytest.mark.parametrize(("asked", "said"), [
        ({"rounds": -1}, "rounds is -1, expected a whole number above 0, at most 1,000,000"),
        ({"rounds": 2.5}, "rounds is 2.5, expected a whole number above 0, at most 1,000,000"),
        ({"rounds": True}, "rounds is True, expected a whole number above 0, at most 1,000,000"),
        ({"seconds": 0}, "seconds is 0, expected a number above 0, at most 1,000,000"),
        ({"seconds": "1"}, "seconds is '1', expected a number above 0, at most 1,000,000"),
        ({"operations": 3}, "operations is 3, expected an even number: half of them convert back"),
        ({"operations": {"store": 1 << 20}}, "operations of store is 1048576, expected a whole number above 0, at"),
        ({"operations": {"nope": 2}}, "unknown backend 'nope': known are store"),
        ({"backends": []}, "no backend is named: expected names, or None for all"),
        ({"files": "none.py"}, "none.py cannot be loaded: FileNotFoundError")])
    def test_what_cannot_be_asked_for(self, asked, said):
        with pytest.raises(ValueError, match=re.escape(said)):
            study.run(**{"scenarios": ["whole"], "backends": ["store"], "quick": True, **asked})

    def test_a_name_is_a_list_of_one_and_counts_once(self, tmp_path):
        report = study.run("has", ["store", "numpy", "store"], quick=True, rounds=3)
        assert [result.backend for result in report.results] == ["store", "numpy"]
        report.save(tmp_path / "a.json")
        assert study.load(tmp_path / "a.json") == report

    def test_growth_is_judged(self, report):
        seen = {(each.scenario, each.backend): each for each in report.seen}
        assert seen["whole", "store"].as_expected
        assert seen["whole", "numpy"].law == "in proportion"
        assert ("has", "store") not in seen     # one size


PLUGIN = '''
import numpy as np
from kvmattr.study.backends import Backend
from kvmattr.study.backends.dense import Dense
from kvmattr.study.growth import Growth
from kvmattr.study.scenarios import Scenario, Workload
from kvmattr.study.work import Batch


class Twice(Dense):
    """Every update twice."""

    name = "twice"
    about = "a dense array that does everything twice"

    def update(self, prepared):
        super().update(prepared)
        super().update(prepared)


def make(size, random):
    def argument(index, operations):
        pair = Batch.joined(Batch.of([5], size, 1), Batch.of([5], size, 0))
        return Batch.joined(*[pair] * (operations // 2))
    return Workload(100_000, Batch.empty(), "update", argument, 64)


mine = Scenario("mine", "What does an update of so many pages cost?", (Growth("in proportion", ("twice", )), ),
                "pages", "ns/update", (1_000, 10_000), (1_000, 10_000), make)
'''


class TestPlugins:
    def test_a_file_on_the_command_line(self, known, tmp_path, capsys):
        path = tmp_path / "mine.py"
        path.write_text(PLUGIN)
        assert cli.main(["scaling", "--with", str(path), "--quick", "--rounds", "3", "--scenario", "mine",
                         "--backend", "twice", "--backend", "numpy", "--json", str(tmp_path / "a.json")]) == 0
        out = capsys.readouterr().out
        assert "mine (model): What does an update of so many pages cost?" in out
        assert "twice: expected in proportion, seen " in out
        # The report says what the scenario was, to whoever does not have the file.
        scenarios.ALL.pop("mine")
        assert study.load(tmp_path / "a.json").scenarios["mine"].size_name == "pages"

    def test_entry_points(self, known, monkeypatch, capsys):
        namespace = {"__name__": "a_package"}
        exec(PLUGIN, namespace)

        class Point:
            def __init__(self, name, value):
                self.name, self.value = name, value

            def load(self):
                if isinstance(self.value, Exception):
                    raise self.value
                return self.value
        points = {"kvmattr.backends": [Point("twice", namespace["Twice"])],
                  "kvmattr.scenarios": [Point("mine", namespace["mine"])]}
        monkeypatch.setattr(registry, "entry_points", lambda group: points[group])
        report = study.run(["mine"], ["twice"], quick=True, rounds=3)
        assert [result.status for result in report.results] == ["ok", "ok"]
        assert cli.main(["info"]) == 0
        assert "\n  twice: yes\n" in capsys.readouterr().out
        for value, complaint in ((ImportError("no module"), "cannot be loaded: ImportError: no module"),
                                 (3, "is 3, expected a class that derives from Backend")):
            registry._loaded.clear()
            points["kvmattr.backends"] = [Point("bad", value)]
            said = f"entry point bad in kvmattr.backends {complaint}"
            assert registry.load() == [said]
            # What somebody else's package has broken stops nothing, and is told.
            report = study.run(["mine"], ["store"], quick=True, rounds=3)
            assert [result.status for result in report.results] == ["ok", "ok"]
            assert report.left_out == [said]
            assert cli.main(["scaling", "--list"]) == 0
            assert capsys.readouterr().err == f"left out: {said}\n"
            with pytest.raises(ValueError, match=f"^unknown backend 'bad': known are store, .*; {said}$"):
                study.run(["mine"], ["bad"], quick=True)
            assert cli.main(["info"]) == 0
            assert f"kvmattr info: entry point bad in kvmattr.backends {complaint}" in capsys.readouterr().err

    @pytest.mark.parametrize(("content", "complaint"), [
        ("x = 1", "defines no backend and no scenario"),
        ("import nothing_of_that_name", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
        ("def f(:", "cannot be loaded: SyntaxError: invalid syntax"),
        (PLUGIN.replace('"twice"', '"store"', 1), "there is a backend 'store' already"),
        (PLUGIN.replace('Scenario("mine"', 'Scenario("has"'), "there is a scenario 'has' already"),
        (PLUGIN.replace("    about =", "    kind = 'robot'\n    about ="),
         "backend twice.kind is 'robot', expected one of model, kernel, library"),
        (PLUGIN.replace("    about =", "    about = 5  #"), "backend twice.about is 5, expected a string"),
        (PLUGIN.replace('"twice"', '"tw\\x1bice"', 1), "has no name that can be printed"),
        (PLUGIN.replace("(1_000, 10_000), make", "(-1, ), make"),
         "scenario mine.quick_sizes[0] is -1, expected an integer of at least 0"),
        (PLUGIN.replace("(1_000, 10_000), (", "(), ("), "scenario mine.sizes is (), expected at least one size"),
        (PLUGIN.replace("(1_000, 10_000), (", "(4, 4), ("), "scenario mine.sizes is (4, 4), expected distinct sizes"),
        (PLUGIN.replace("make)\n", "make, 'twice')\n"), "scenario mine.own_backends is 'twice', expected a list"),
        (PLUGIN.replace('("twice", )', '"twice"'), "ValueError: backends is 'twice', expected a tuple of names"),
        (PLUGIN.replace('"ns/update"', "None"), "scenario mine.unit is None, expected a string"),
        (PLUGIN.replace('(Growth("in proportion", ("twice", )), )', '["growing"]'),
         "scenario mine.growths[0] is 'growing', expected a Growth"),
        ("from kvmattr.study.backends import Backend\nclass Half(Backend):\n    name = kind = about = 'model'\n",
         "backend 'model' has no __init__, runs, update"),
    ])
    def test_a_file_that_is_no_good(self, content, complaint, known, tmp_path, capsys):
        path = tmp_path / "bad.py"
        path.write_text(textwrap.dedent(content))
        assert cli.main(["scaling", "--with", str(path), "--list"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"kvmattr scaling: {path}")
        assert complaint in err

    def test_a_file_that_is_not_there(self, known, tmp_path, capsys):
        assert cli.main(["scaling", "--with", str(tmp_path / "none.py"), "--list"]) == 2
        assert "none.py cannot be loaded: FileNotFoundError" in capsys.readouterr().err
        assert cli.main(["scaling", "--with", str(tmp_path / "none.txt"), "--list"]) == 2
        assert "none.txt is no Python file: expected a name that ends in .py" in capsys.readouterr().err

    @pytest.mark.parametrize(("method", "scenario", "end"), [
        ("@classmethod\n    def missing(cls): raise OSError(5, 'boo')", "mine", "OSError: [Errno 5] boo (lies.py:"),
        ("@classmethod\n    def missing(cls): return False", "mine", "False"),
        ("@classmethod\n    def bytes_needed(cls, footprint): return 'much'", "mine", "TypeError: '>' not supported"),
        ("@classmethod\n    def unsupported(cls, batch): raise ValueError('no')", "mine", "ValueError: no (lies.py:"),
        ("def nbytes(self): return float('nan')", "memory", "ValueError: nan is no number of bytes"),
        ("def nbytes(self): return -5", "memory", "ValueError: -5 is no number of bytes"),
        ("def update(self, prepared): raise GeneratorExit", "memory", "in the setup: GeneratorExit: (lies.py:"),
        ("def update(self, prepared): raise Failed(-5, 'no')", "memory", "it says that -5 of 8 updates are done: no"),
        ("def update(self, prepared): raise Failed(3, 'no\\x1b[2J')", "memory", r"failed at k = 4: no\x1b[2J"),
        ("def prepare(self, batch):\n        batch.attributes[:] = 0\n        return super().prepare(batch)", "memory",
         "its state is ["),
        ("runs = lambda self: None", "memory", "its state was not checked: it has neither runs nor single pages to "),
    ])
    def test_a_backend_that_lies_costs_its_own_cells(self, known, tmp_path, method, scenario, end):
        path = tmp_path / "lies.py"
        # In the class's own lines, before its update.
        path.write_text(PLUGIN.replace("    def update", f"    {method}\n\n    def update" if "update" not in method
                                       else f"    {method}\n\n    def no_update")
                        .replace("import Batch", "import Batch, Failed"))
        report = study.run([scenario], ["store", "twice"], quick=True, rounds=3, files=[str(path)])
        for result in report.results:
            if result.backend == "store":
                assert result.status in ("ok", "unsupported"), result
            else:
                assert result.note.startswith(end), result
        # What was measured can be read again.
        report.save(tmp_path / "a.json")
        assert [result.note for result in study.load(tmp_path / "a.json").results] == [
            result.note for result in report.results]

    def test_a_scenario_that_cannot_be_made_costs_its_own_cells(self, known, tmp_path, capsys):
        path = tmp_path / "lies.py"
        path.write_text(PLUGIN.replace("    def argument(", "    raise RuntimeError('no\\nwork')\n    def argument("))
        report = study.run(["mine", "memory"], ["store"], quick=True, rounds=3, files=[str(path)])
        assert [(result.scenario, result.status) for result in report.results] == [
            ("mine", "error"), ("mine", "error"), ("memory", "ok")]
        assert report.results[0].note.startswith("RuntimeError: no work (lies.py:")

    def test_a_worker_loads_the_file_too(self, known, tmp_path):
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        path = tmp_path / "mine.py"
        path.write_text(PLUGIN)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            report = study.run(["mine"], ["twice"], quick=True, rounds=3, files=[str(path)], executor=pool)
        assert [result.status for result in report.results] == ["ok", "ok"]


def test_names_that_are_taken_twice(known):
    class Other(Backend):
        name, kind, about = "other", "model", "a backend"

        def __init__(self, npages):
            self.npages = npages

        def update(self, prepared):
            pass

        def runs(self):
            return None
    registry.add(Other, "here")
    registry.add(Other, "here")
    with pytest.raises(ValueError, match="here: there is a scenario 'has' already"):
        registry.add(Scenario("has", "?", (), "n", "ns", (1, ), (),
                              lambda size, random: Workload(1, Batch.empty(), "update", lambda *_: None, 1)), "here")
    assert np.array_equal(list(backends.ALL)[-1:], ["other"])


ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documents are not part of the sdist's tests")
class TestDocuments:
    def program(self, heading: str) -> str:
        page = (ROOT / "docs" / "study.md").read_text()
        return page.partition(f"\n## {heading}\n")[2].partition("```python\n")[2].partition("```")[0]

    def test_from_python_runs_as_printed(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        exec(compile(self.program("From Python"), "study.md", "exec"), {})
        out = capsys.readouterr().out
        assert out.startswith("whole 262144 store ok 5\nwhole 262144 numpy ok 5\n")
        assert "whole (model): What does setting a whole guest" in out
        assert [each.name for each in tmp_path.iterdir()] == ["whole.json"]

    def test_a_backend_and_a_scenario_run_as_printed(self, known, tmp_path, capsys):
        path = tmp_path / "mine.py"
        path.write_text(self.program("Backends and scenarios of your own"))
        assert cli.main(["scaling", "--with", str(path), "--quick", "--rounds", "3", "--scenario", "stretches",
                         "--backend", "store", "--backend", "dict", "--json", str(tmp_path / "a.json")]) == 0
        assert {result.status for result in study.load(tmp_path / "a.json").results} == {"ok"}
        out = capsys.readouterr().out
        assert "dict: expected in proportion, seen " in out
        assert "store: expected not growing, seen " in out
