"""Reports from elsewhere: a damaged one is one line with file and field, a hostile one does no harm."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from typing import Any

import pytest

from kvmattr import cli, study
from kvmattr.study.report import Report

WORD = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict[str, Any]:
    """A report as a run writes it."""
    report = study.run(["has"], ["store", "xarray", "memslots"], quick=True, rounds=3)
    return report.to_dict()


def changed(document: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The document with one field set; ``DELETED`` takes it away."""
    new = copy.deepcopy(document)
    inner, *names = new, *re.findall(r"\w+", place)
    for name in names[:-1]:
        inner = inner[int(name) if isinstance(inner, list) else name]
    name = int(names[-1]) if isinstance(inner, list) else names[-1]
    if value is DELETED:
        del inner[name]
    else:
        inner[name] = value
    return new


DELETED = object()


@pytest.mark.parametrize(("place", "value", "complaint"), [
    ("schema", 3, "schema is 3, expected one of those that this version reads, 1 and 2"),
    ("schema", True, "schema is True, expected an integer of at least 0"),
    ("machine", [], "machine is [], expected an object"),
    ("machine.host", DELETED, "machine.host is missing"),
    ("machine.cpu", 7, "machine.cpu is 7, expected a string"),
    ("machine.memory_bytes", -1, "machine.memory_bytes is -1, expected an integer of at least 0"),
    ("machine.kvm", "none", "machine.kvm is 'none', expected an object"),
    ("machine.extra", {"a": 1}, "machine.extra is {'a': 1}, expected a plain value"),
    ("method.rounds", 0, "method.rounds is 0, expected an integer of at least 1"),
    ("load.other_cpus", "few", "load.other_cpus is 'few', expected a number"),
    ("load.stolen_cpus", DELETED, "load.stolen_cpus is missing"),
    ("interrupted", 0, "interrupted is 0, expected true or false"),
    ("left_out", [3], "left_out[0] is 3, expected a string"),
    ("results", {}, "results is {}, expected a list"),
    ("results[0]", None, "results[0] is None, expected an object"),
    ("results[1].scenario", ["x" * 100], f"results[1].scenario is ['{'x' * 38}..., expected a string"),
    ("results[0].kind", "robot", "results[0].kind is 'robot', expected one of model, kernel, library"),
    ("results[0].status", {}, "results[0].status is {}, expected one of ok, failed, stopped, refused, "),
    ("results[0].size", 1.5, "results[0].size is 1.5, expected an integer of at least 0"),
    ("results[0].size", 1 << 64, "results[0].size is 18446744073709551616, expected an integer of at least 0"),
    ("results[0].samples[1]", 0, "results[0].samples[1] is 0, expected a number above 0"),
    ("results[0].samples[1]", 10 ** 400, "results[0].samples[1] is 1"),
    ("results[0].samples[1]", 5e-324, "results[0].samples[1] is 5e-324, expected a number from 1e-06 to 1e+18"),
    ("results[0].samples[1]", 1.7e308, "results[0].samples[1] is 1.7e+308, expected a number from 1e-06 to 1e+18"),
    ("results[0].yardstick[2]", 1.7e308, "results[0].yardstick[2] is 1.7e+308, expected a number from 1e-06 to 1e+18"),
    ("results[0].load.other_cpus", 1e99, "results[0].load.other_cpus is 1e+99, expected a number from 0 to 1e+09"),
    ("load.other_cpus", 1.7e308, "load.other_cpus is 1.7e+308, expected a number from 0 to 1e+09"),
    ("results[1].backend", "store",
     "results[1] is {'scenario': 'has', 'backend': 'store', ..., expected one result of has 512 store, not another"),
    ("results[0].samples", [], "results[0].samples is [], expected samples, as the status is ok"),
    ("results[0].samples", DELETED, "results[0].samples is missing"),
    ("results[0].yardstick", [1.0], "results[0].yardstick is [1.0], expected as many as samples, 3"),
    ("results[0].clock", "sun", "results[0].clock is 'sun', expected one of cpu, wall, "),
    ("results[0].load", [1], "results[0].load is [1], expected an object"),
    ("results[0].note", "a\nb", None),
    ("results[0].operations", "a\nb", "results[0].operations is 'a\\nb', expected an integer of at least 0"),
    ("scenarios.has.growths[0].law", "x", "scenarios.has.growths[0].law is 'x', expected one of not growing, "),
    ("scenarios.has.size_name", 5, "scenarios.has.size_name is 5, expected a string"),
])
def test_a_damaged_field_is_one_line_with_its_place(document, place, value, complaint, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(changed(document, place, value)))
    for words in (["report", str(path)], ["compare", str(path), str(path)]):
        code = cli.main(words)
        err = capsys.readouterr().err
        if complaint is None:
            assert (code, err) == (0 if words[0] == "report" else 3, "")
        else:
            assert code == 2
            assert err.startswith(f"kvmattr {words[0]}: {path}: {complaint}")
            assert err.count("\n") == 1


@pytest.mark.parametrize(("content", "complaint"), [
    (b"", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
    (b"{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    (b"\xff\xfe\x00", "is not JSON: 'utf-16-le' codec can't decode byte 0x00 in position 2"),
    (b"\x80", "is not JSON: 'utf-8' codec can't decode byte 0x80 in position 0: invalid start byte"),
    (b"[" * 100_000, "is not JSON: it is nested too deeply"),
    (b'{"schema": NaN}', "is not JSON: it has NaN"),
    (b'{"schema": ' + b"9" * 10_000 + b"}", "is not JSON: Exceeds the limit"),
    (b"[]", ": the document is [], expected an object"),
    (b"{}", ': the document is {}, expected a report, which has a "schema"'),
    (b'{"schema": 2}', ": machine is missing"),
])
def test_what_is_no_report(content, complaint, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert cli.main(["compare", str(path), str(path)]) == 2
    err = capsys.readouterr().err
    joined = "" if complaint.startswith(":") else " "
    assert err.startswith(f"kvmattr compare: {path}{joined}{complaint}")
    assert err.count("\n") == 1


def test_schema_1_is_still_read(document, tmp_path):
    old = {name: value for name, value in copy.deepcopy(document).items()
           if name not in ("scenarios", "left_out", "seen")}
    old["schema"] = 1
    for result in old["results"]:
        for name in ("clock", "wall", "yardstick", "load"):
            result.pop(name, None)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(old))
    report = study.load(path)
    assert [result.backend for result in report.results] == ["store", "xarray", "memslots"]
    assert report.scenarios["has"].question.startswith("Do all pages")
    assert cli.main(["compare", str(path), str(path)]) == 3     # no yardstick: nothing can be judged


def hostile(document: dict[str, Any]) -> dict[str, Any]:
    """Markup, formulas and paths wherever a report has text."""
    new = json.loads(json.dumps(document).replace('"has"', json.dumps(f"../{WORD}$x_1$"))
                     .replace('"xarray"', json.dumps(f"_{WORD}$")))
    new["results"] += [{**each, "size": each["size"] * 8} for each in new["results"]]
    for result in new["results"]:
        result["note"] = result["note"] and f"{WORD} {{{{ 7 * 7 }}}}"
        result["host"] = WORD
    for name in ("host", "kernel", "cpu", "started"):
        new["machine"][name] = WORD
    new["machine"][WORD] = WORD
    new["method"][WORD] = WORD
    new["left_out"] = [WORD]
    for asked in new["scenarios"].values():
        asked["question"] = asked["size_name"] = WORD
        asked["growths"] = [{"law": "not growing", "backends": ["store"], "because": WORD}]
    return new


def test_the_page_and_the_plots_take_text_as_text(document, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(hostile(document)))
    plots, page = tmp_path / "plots", tmp_path / "a.html"
    assert cli.main(["report", str(path), "--html", str(page), "--plots", str(plots)]) == 0
    content = page.read_text()
    assert content.count("<script>") == 1       # the page's own
    assert "&lt;script&gt;alert(" in content
    assert "{{ 7 * 7 }}" in content             # a template in a report is text
    assert {each.parent for each in tmp_path.rglob("*.svg")} == {plots}
    assert all(WORD not in each.read_text() for each in plots.glob("*.svg"))
    assert study.load(path).figure(f"../{WORD}$x_1$").axes


@pytest.mark.parametrize("place", [
    "machine.host", "machine.cpu", "results[0].note", "results[0].backend", "results[0].scenario", "left_out[0]",
    "scenarios.has.question", "scenarios.has.size_name"])
def test_nothing_acts_on_a_terminal_or_cannot_be_printed(document, place, tmp_path, capsys):
    """Escape sequences, control characters, right-to-left writing, surrogates."""
    path, page = tmp_path / "a.json", tmp_path / "a.html"
    value = "\x1b[2Jx\x07\x00\t\u202ey\ud800\x9bz"
    damaged = changed({**document, "left_out": ["x"]}, place, value)
    damaged["results"] += [{**each, "size": each["size"] * 8} for each in damaged["results"]]
    path.write_text(json.dumps(damaged))
    page_of = ["--html", str(page)] if importlib.util.find_spec("matplotlib") else []
    assert cli.main(["report", str(path), *page_of]) == 0
    assert cli.main(["compare", str(path), str(path)]) == 3
    out, err = capsys.readouterr()
    shown = out + err + (page.read_text() if page_of else "")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", shown)
    if place != "scenarios.has.size_name" or page_of:
        assert "2Jx" in shown


def test_no_bytes_at_all(document, tmp_path):
    """A backend may say that it holds nothing: there is no ratio to it, and no growth from it."""
    new = copy.deepcopy(document)
    new["results"] = [{**each, "scenario": "memory", "unit": "bytes", "clock": "", "wall": [], "yardstick": [],
                       "size": size, "samples": [0.0] * 3} for each in new["results"] for size in (10, 100)]
    path, written = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(json.dumps(new))
    assert cli.main(["report", str(path), "--json", str(written)]) == 0
    assert study.load(written).comparisons == []
    assert "NaN" not in written.read_text()
    assert "Infinity" not in written.read_text()


@pytest.mark.parametrize("words", [["report", "{a}", "--csv", "{link}"], ["report", "{a}", "--json", "{a}"],
                                   ["compare", "{a}", "{a}", "--json", "{link}"]])
def test_what_is_read_is_not_overwritten(document, words, tmp_path, capsys):
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    path.write_text(json.dumps(document))
    link.symlink_to(path)
    before = path.read_bytes()
    place = link if "{link}" in words else path
    assert cli.main([word.format(a=path, link=link) for word in words]) == 2
    assert capsys.readouterr().err == (
        f"kvmattr {words[0]}: {place} cannot be written: it is read by this command, and would be lost\n")
    assert path.read_bytes() == before


def test_a_table_of_anything_is_printed(document):
    from kvmattr.measure.checked import Field
    report = Report.of(Field(hostile(document), "a.json"))
    assert "scaling" not in report.table(80)
    assert any("not as expected" in words or "not growing" in words for words in map(str, report.seen))
