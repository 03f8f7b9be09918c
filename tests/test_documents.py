"""What the README and the docstrings show is what happens."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import pkgutil
import re
import typing
from pathlib import Path

import pytest

import kvmattr
from kvmattr import AttributeMap, cli, uapi

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MODULES = sorted(module.name for module in pkgutil.walk_packages(kvmattr.__path__, "kvmattr.")
                 if module.name != "kvmattr.__main__")


@pytest.mark.skipif(not README.exists(), reason="the README is not part of the sdist's tests")
def test_readme_example_prints_what_it_says():
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, str(README), "exec"), {})
    promised = re.findall(r"^print\(.*\) +# (.*)$", block, re.MULTILINE)
    assert len(promised) == 3
    for line, promise in zip(printed.getvalue().splitlines(), promised, strict=True):
        head, dots, _ = promise.partition("...")
        assert line == promise if not dots else line.startswith(head)


@pytest.mark.skipif(not (ROOT / "docs" / "unicorn.md").exists(), reason="docs are not part of the sdist's tests")
def test_the_unicorn_page_prints_what_it_says(capsys):
    pytest.importorskip("unicorn")
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "unicorn.md").read_text(), re.DOTALL).group(1)
    exec(compile(block, "docs/unicorn.md", "exec"), {})
    refused, allowed = capsys.readouterr().out.splitlines()
    assert refused.startswith("Exit(MEMORY_FAULT, flags=EXEC, gpa=0x1000, ")
    assert allowed == "None"


def readme_commands() -> list[object]:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL) if README.exists() else []
    lines = [line.partition("#")[0].split() for block in blocks for line in block.splitlines()]
    return [pytest.param(words, id=" ".join(words), marks=[pytest.mark.slow] if "scaling" in words else [])
            for words in lines if words[:1] == ["kvmattr"]]


@pytest.mark.parametrize("words", readme_commands())
def test_readme_commands_run(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(words[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    if name == "kvmattr.bridges.unicorn" and importlib.util.find_spec("unicorn") is None:
        pytest.skip("needs the extra unicorn")
    try:
        module = importlib.import_module(name)
    except ImportError as missing:
        pytest.skip(f"needs an extra: {missing}")
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in finder.find(module, name, globs={**vars(kvmattr), **vars(module)}):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_methods_of_the_store_have_examples_that_run():
    """doctest's finder passes over the methods of compiled classes, so they are looked up here."""
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner()
    names = {**vars(kvmattr), **vars(importlib.import_module("kvmattr._core"))}
    without = []
    for member in sorted(vars(AttributeMap)):
        text = getattr(getattr(AttributeMap, member), "__doc__", None) or ""
        if ">>>" in text:
            runner.run(parser.get_doctest(text, dict(names), member, None, 0))
        elif not member.startswith("_") and member not in {"clear", "any", "from_bytes", "save", "load", "default",
                                                           "version", "nbytes", "validate", "plot", "to_frame"}:
            without.append(member)
    assert runner.summarize(verbose=False).failed == 0
    assert without == []


def public_names(module: str) -> list[str]:
    found = importlib.import_module(module)
    return getattr(found, "__all__", None) or [
        name for name, value in vars(found).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module]


@pytest.mark.parametrize("module", ["kvmattr", *(name for name in MODULES if not re.search(r"\._", name))])
def test_every_public_callable_has_a_signature(module):
    """But for exceptions, which are caught and not called."""
    try:
        owner = importlib.import_module(module)
    except ImportError as missing:
        pytest.skip(f"needs an extra: {missing}")
    without = []
    for name in public_names(module):
        one = getattr(owner, name)
        members = [getattr(one, member) for member in vars(one)
                   if not member.startswith("_")] if isinstance(one, type) else []
        for each in filter(callable, [one, *members]):
            # An alias for annotations is no callable; nor is a type variable.
            if typing.get_origin(each) or isinstance(each, typing.TypeVar) or (
                    isinstance(each, type) and issubclass(each, BaseException)):
                continue
            try:
                inspect.signature(each)
            except ValueError:
                without.append(f"{name}: {each}")
    assert without == []


def test_signatures_say_what_is_given_and_how():
    assert str(inspect.signature(AttributeMap)) == "(npages=4503599627370496, default=0)"
    assert str(inspect.signature(AttributeMap.find)) == "(self, /, start, attributes, *, mask=255, stop=None)"
    assert not AttributeMap.__doc__.startswith("AttributeMap(")
    assert str(inspect.signature(uapi.kvm_memory_attributes)) == (
        "(address=0, size=0, attributes=0, operation=0, flags=0)")
    assert str(inspect.signature(uapi.kvm_memory_attributes2)) == (
        "(place=(), size=0, attributes=0, flags=0, error_offset=0, reserved=(), *, offset=0, address=0)")


def test_maps_show_themselves():
    m = AttributeMap(1 << 20)
    m[100:200] = 3
    assert repr(m) == f"<AttributeMap of 1,048,576 pages, 3 runs, {m.nbytes:,} bytes>"
    assert repr(m.snapshot()).startswith("<read-only AttributeMap of 1,048,576 pages, 3 runs, ")
    assert repr(AttributeMap(1)) == f"<AttributeMap of 1 page, 1 run, {AttributeMap(1).nbytes:,} bytes>"
    m.put(range(0, 1000, 2), 1)
    html = m._repr_html_()
    assert html.count("<tr>") == 22
    assert f"and {m.run_count - 20:,} more" in html
    assert type(m.run(5)).__name__ == "Run"
    assert m.run(5)._fields == ("start", "stop", "attributes")
