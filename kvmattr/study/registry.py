"""Backends and scenarios of others: by entry points of installed packages, and from files.

A package declares them in its ``pyproject.toml``: ``[project.entry-points."kvmattr.backends"]`` names classes,
``[project.entry-points."kvmattr.scenarios"]`` names :class:`~kvmattr.study.scenarios.Scenario` objects. Of a
file, every class and scenario counts that it defines itself.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import zlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from kvmattr.measure import ending
from kvmattr.measure.checked import Field
from kvmattr.study import backends, scenarios
from kvmattr.study.backends import Backend
from kvmattr.study.growth import Growth
from kvmattr.study.results import KINDS
from kvmattr.study.scenarios import Scenario
from kvmattr.study.work import one_line

#: What a report needs of a backend and of a scenario.
_TEXTS = {"backend": ("kind", "about"), "scenario": ("question", "size_name", "unit")}
_SIZES = ("sizes", "quick_sizes")
#: What was loaded so far, files by their path and entry points by their group, with what is wrong with it.
_loaded: dict[str, list[str]] = {}


def load(files: Iterable[str] = ()) -> list[str]:
    """Add what installed packages register and what ``files`` define to the known backends and scenarios.

    Once is enough; again is nothing. Returns what is wrong with entry points, a line each: a package of somebody else
    that is broken stops nothing. Raises ValueError, which names the file and the rule, for a file.
    """
    for group, wanted in (("kvmattr.backends", "a class that derives from Backend"),
                          ("kvmattr.scenarios", "a Scenario")):
        if group not in _loaded:
            _loaded[group] = []
            for point in entry_points(group=group):
                try:
                    _load_point(point, group, wanted)
                except ValueError as error:
                    _loaded[group].append(one_line(error))
    for file in files:
        path = str(Path(file).resolve())
        if path not in _loaded:
            _load_file(path)
            _loaded[path] = []
    return [trouble for troubles in _loaded.values() for trouble in troubles]


def add(found: type[Backend] | Scenario, where: str) -> None:
    """Make one backend or scenario known. Raises ValueError if its name is taken or it lacks something."""
    known: dict[str, Any] = backends.ALL if isinstance(found, type) else scenarios.ALL
    what = "backend" if isinstance(found, type) else "scenario"
    name = getattr(found, "name", None)
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"{where}: {what} {found!r} has no name that can be printed")
    if known.get(name, found) is not found:
        raise ValueError(f"{where}: there is a {what} {name!r} already")
    asked = (*_TEXTS[what], *_SIZES, "growths", "own_backends")
    field = Field({each: getattr(found, each, None) for each in asked}, where, f"{what} {name}")
    for each in _TEXTS[what]:
        field[each].text()
    if isinstance(found, type):
        field["kind"].one_of(list(KINDS))
        if inspect.isabstract(found):
            raise ValueError(f"{where}: backend {name!r} has no {', '.join(sorted(found.__abstractmethods__))}")
    else:
        for each in _SIZES:
            sizes = field[each].list(Field.integer)
            if len(set(sizes)) < len(sizes) or not (sizes or each == "quick_sizes"):
                field[each].refuse("distinct sizes" if sizes else "at least one size")
        field["own_backends"].list(Field.text)
        field["growths"].list(lambda each: isinstance(each.value, Growth) or each.refuse("a Growth"))
    known[name] = found


def _is_backend(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Backend)


def _load_point(point: EntryPoint, group: str, wanted: str) -> None:
    where = f"entry point {point.name} in {group}"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        ending.again()
        raise ValueError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (_is_backend(found) if group == "kvmattr.backends" else isinstance(found, Scenario)):
        raise ValueError(f"{where} is {found!r}, expected {wanted}")
    add(found, where)


def _load_file(path: str) -> None:
    name = f"kvmattr_plugin_{zlib.crc32(path.encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module      # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    found = [each for each in vars(module).values()
             if isinstance(each, Scenario) or (_is_backend(each) and each.__module__ == name)]
    if not found:
        raise ValueError(f"{path} defines no backend and no scenario")
    for each in found:
        add(each, path)
