"""The reference site: `python3 dev.py docs` builds it from these pages and the docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import kvmattr
import kvmattr.uapi

#: The modules whose public names are described.
PUBLIC = ["kvmattr", *(f"kvmattr.{name}" for name in (
    "memslots", "profiles", "hosts", "protection", "listeners", "faults", "uapi", "trace", "study", "study.report",
    "gate", "fake", "bridges.kvm", "bridges.unicorn", "notebook"))]

project = "kvmattr"
author = "the kvmattr authors"
release = version = kvmattr.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "ci"]
html_theme = "furo"
html_title = "kvmattr"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
myst_heading_anchors = 3
# Pages of the tree that are no part of the site (README, sources) are links for who reads the tree.
suppress_warnings = ["myst.xref_missing"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
nitpicky = False


def functions_of_header(text: str) -> str:
    """The functions of the C header as a page: name, declaration, and the comment that stands right before it."""
    page = ["# The C interface", "", "From `kvmattr.h` (`kvmattr.get_include()` is its folder; "
            "[embedding](../embedding.md) tells how to build).", ""]
    found = re.finditer(r"(?:/\*((?:(?!\*/).)*)\*/\n)?^static inline ([^{;]*?kvmattr_\w+\([^{;]*\))\s*\{", text,
                        re.DOTALL | re.MULTILINE)
    for match in found:
        comment = " ".join(line.strip(" *") for line in (match.group(1) or "").splitlines()).strip()
        declaration = " ".join(match.group(2).split())
        name = re.search(r"(\w+)\(", declaration)
        assert name
        page += [f"## `{name[1]}`", "", "```c", f"{declaration};", "```", "", comment, ""]
    return "\n".join(page) + "\n"


def names_of_uapi(text: str) -> str:
    """The constants, structures and functions of ``kvmattr.uapi`` as a page, by the sections of the source: numbers
    with their values, requests and bits in hexadecimal."""
    page = ["# Constants and structures", "", "All are names of `kvmattr.uapi`.", ""]
    comment: list[str] = []
    for line in text.splitlines():
        if section := re.match(r"# (.*?) -{9,}$", line):
            page += ["```", "", f"## {section[1]}", "", "```{eval-rst}", ".. py:currentmodule:: kvmattr.uapi", ""]
        elif line.startswith("#: "):
            comment.append(f"   {line.removeprefix('#: ')}")
            continue
        elif constant := re.match(r"([A-Z]\w*)(?:: \w+)? = (.*)", line):
            value = getattr(kvmattr.uapi, constant[1])
            page += [f".. py:data:: {constant[1]}"]
            if isinstance(value, int):
                page += [f"   :value: {hex(value) if value > 0xFFFF or '<<' in constant[2] else value}"]
            page += ["", *comment, ""]
        elif defined := re.match(r"(class|def) ([a-z]\w*)", line):
            page += [f".. auto{'class' if defined[1] == 'class' else 'function'}:: {defined[2]}", ""]
        comment = []
    page.remove("```")              # none was open before the first section
    return "\n".join([*page, "```"]) + "\n"


def missing_names(app: Sphinx, environment: BuildEnvironment) -> None:
    """Warn of each public name that is on no page; `dev.py docs` makes an error of it."""
    described = set(environment.get_domain("py").objects)
    for module in PUBLIC:
        found = importlib.import_module(module)
        names = getattr(found, "__all__", None)
        if names is None:
            names = [name for node in ast.parse(inspect.getsource(found)).body for name in defined_by(node)]
        for name in names:
            if not any(full.endswith(f".{name}") for full in described):
                logging.getLogger(__name__).warning("%s.%s is public and on no page", module, name)


def defined_by(node: ast.stmt) -> list[str]:
    """The public names that a statement at the top of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        names = [node.name]
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
    else:
        names = []
    return [name for name in names if not name.startswith("_")]


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("env-check-consistency", missing_names)


HERE = Path(__file__).parent
PACKAGE = HERE.parent / "kvmattr"
(HERE / "api" / "c.md").write_text(functions_of_header((PACKAGE / "include" / "kvmattr.h").read_text()))
(HERE / "api" / "uapi.md").write_text(names_of_uapi((PACKAGE / "uapi.py").read_text()))
