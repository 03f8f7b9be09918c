"""Docstrings of the compiled modules in their stubs, so that editors show them: ``python3 dev.py stubs`` writes them.

A stub's signatures are written by hand (stubtest compares them with the modules); its docstrings are the modules' own.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kvmattr

PACKAGE = Path(kvmattr.__file__).resolve().parent


def stubs() -> list[Path]:
    """The stubs of compiled modules."""
    return sorted(PACKAGE.rglob("_*.pyi"))


def documented(stub: Path) -> str:
    """A stub's text with the docstrings that its module has now, and no others."""
    module = importlib.import_module(".".join(("kvmattr", *stub.relative_to(PACKAGE).with_suffix("").parts)))
    text = stub.read_text(encoding="utf-8")
    lines = text.split("\n")
    # From the end, so that the places before stay where they are.
    for node, found in reversed(list(_members(ast.parse(text).body, module))):
        first, doc = node.body[0], _doc(found)
        literal = [] if doc is None else _literal(doc, " " * (node.col_offset + 4))
        rest = node.body[ast.get_docstring(node) is not None:]
        if not rest or _is_dots(rest[0]):               # nothing else: written behind the colon where undocumented
            head = lines[first.lineno - 1][:first.col_offset].rstrip()
            start = first.lineno - (1 if head else 2)   # the line with the colon
            lines[start:node.end_lineno] = ([head or lines[start], *literal] if literal
                                            else [f"{head or lines[start]} ..."])
        else:
            start = first.lineno if rest[0] is not first else min(
                [first.lineno, *(each.lineno for each in getattr(first, "decorator_list", []))])
            lines[start - 1:first.end_lineno if rest[0] is not first else start - 1] = literal
    return "\n".join(lines)


def _members(body: list[ast.stmt], owner: Any) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, Any]]:
    """Classes and functions with what they stand for, in the order of the file; of overloads the first alone."""
    seen = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in seen and not (
                node.name.startswith("__") and node.name.endswith("__")):
            seen.add(node.name)
            found = inspect.getattr_static(owner, node.name, None)
            yield node, found
            if isinstance(node, ast.ClassDef):
                yield from _members(node.body, found)


def _doc(found: Any) -> str | None:
    """Its own docstring; that of what a static or class method wraps."""
    text = getattr(getattr(found, "__func__", found), "__doc__", None)
    return inspect.cleandoc(text) if text else None


def _is_dots(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and getattr(statement.value, "value", None) is ...


def _literal(doc: str, indent: str) -> list[str]:
    quotes = 'r"""' if "\\" in doc else '"""'
    lines = f'{quotes}{doc}"""'.split("\n")
    if len(lines) > 1:
        lines[-1] = lines[-1].removesuffix('"""')
        lines.append('"""')
    return [f"{indent}{line}".rstrip() if line else "" for line in lines]


if __name__ == "__main__":
    for path in stubs():
        now = documented(path)
        if now != path.read_text(encoding="utf-8"):
            path.write_text(now, encoding="utf-8")
            print("written:", path.relative_to(PACKAGE.parent), file=sys.stderr)
