"""What the README and the docstrings show is what happens."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
from pathlib import Path

import pytest

import kvmattr
from kvmattr import AttributeMap

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
                                                           "version", "nbytes", "validate"}:
            without.append(member)
    assert runner.summarize(verbose=False).failed == 0
    assert without == []
