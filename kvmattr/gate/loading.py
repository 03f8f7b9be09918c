"""Where scenarios come from: kvmattr's own, a Python file, or the entry points of an installed project."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from kvmattr.gate.scenario import Claim, Scenario, found_in

GROUP = "kvmattr.gate"
OWN = "own"


def registered() -> list[str]:
    """The names in the entry-point group ``kvmattr.gate``; each stands for a module with scenarios."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(source: str, *, beside: bool = True) -> tuple[list[Scenario], list[Claim]]:
    """Scenarios and claims of ``own``, of a file that ends in .py, or of a registered name. A file may import what lies
    ``beside`` it."""
    if source == OWN:
        return found_in(importlib.import_module("kvmattr.gate.own"))
    if not source.endswith(".py"):
        for point in entry_points(group=GROUP):
            if point.name == source:
                return found_in(importlib.import_module(point.module))
        raise ValueError(f"--scenarios {source!r}: neither a .py file nor one of the entry points "
                         f"{registered()} of {GROUP!r}")
    path = Path(source).resolve()
    if not path.is_file():
        raise ValueError(f"--scenarios {source}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module         # dataclasses and pickle look their module up there
    if beside:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.msg}, which {source} needs: is the project installed (pip install .) for "
                                  f"{sys.executable}?", name=error.name) from None
    return found_in(module)
