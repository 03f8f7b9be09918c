"""The other side of a pipe: a process that has loaded one build of kvmattr and runs scenarios in it.

Run by path, ``python -P worker.py PIPE GATE TREE (beside | alone) [PATH...]``: the kvmattr in TREE is the one that is
imported while the gate's own modules and scenarios come from GATE, whichever version the build is of. What lies in
PATHs goes before what is installed. Requests and answers are JSON, by the pipe whose descriptor is PIPE.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmattr.gate.scenario import Claim, Scenario


class Bench:
    """What is loaded, and what is prepared for timing."""

    def __init__(self, paths: Sequence[str] = (), *, beside: bool = True) -> None:
        self.paths = paths
        self.beside = beside
        self.working: Sequence[str] | None = None
        #: The scenario files, and what lies beside them and both sides have in common.
        self.sources: list[str] = []
        self.helpers: set[str] = set()
        self.scenarios: dict[str, Scenario] = {}
        self.claims: dict[str, Claim] = {}
        #: What is open, by name: ``run`` of a cell, or both ways of a claim.
        self.ways: dict[str, Callable[[], object]] = {}

    def load(self, sources: list[str], plant: str | None, working: Sequence[str] | None) -> dict[str, Any]:
        """Import the build and the scenario files; tell what they are."""
        self.working, self.sources = working, [os.path.realpath(source) for source in sources]
        from kvmattr import _core
        from kvmattr.gate.loading import load
        from kvmattr.gate.plants import planted
        for source in sources:
            scenarios, claims = load(source, beside=self.beside)
            for name in [*(each.name for each in scenarios), *(each.name for each in claims)]:
                if name in self.scenarios or name in self.claims:
                    raise ValueError(f"{source}: the name {name!r} is taken")
            self.scenarios.update((each.name, each) for each in scenarios)
            self.claims.update((each.name, each) for each in claims)
        self.check_origin()
        if plant is not None:
            self.scenarios = planted(self.scenarios, plant)
        return {
            "file": _core.__file__, "helpers": sorted(self.helpers),
            "scenarios": [{name: value for name, value in vars(each).items() if name != "prepare"}
                          for each in self.scenarios.values()],
            "claims": [{"name": each.name, "at_least": each.at_least} for each in self.claims.values()],
        }

    def check_origin(self) -> None:
        """ImportError for a module of the project that is not this side's, but both sides' alike: PYTHONPATH leads to
        the working tree, or an editable install comes before all paths."""
        if self.working is None:
            return
        tree, copy = (os.path.join(os.path.realpath(each), "") for each in self.working)
        roots = tuple(os.path.join(os.path.realpath(path), "") for path in self.paths)
        own = {name.partition(".")[0] for path in self.paths for name in os.listdir(path)
               if name.endswith((".py", ".so")) or os.path.isfile(os.path.join(path, name, "__init__.py"))}
        for name, module in sys.modules.copy().items():
            file = os.path.realpath(getattr(module, "__file__", None) or "")
            if "." in name or file.startswith(roots) or file in self.sources or name in sys.stdlib_module_names:
                continue
            tracked = file.startswith(tree) and os.path.isfile(copy + file.removeprefix(tree))
            folder = os.path.dirname(file.removesuffix(os.path.join("", "__init__.py")))
            if tracked and self.beside and folder in map(os.path.dirname, self.sources):
                self.helpers.add(name)
            elif tracked or (name in own and file):
                raise ImportError(f"{name} is {file} on both sides, so that nothing would be compared: is it on "
                                  "PYTHONPATH, or an editable install?")

    def build(self) -> dict[str, Any]:
        """Whether the build counts what it visits, and its kernels. From here on it counts calls from C: not where
        time is taken."""
        import kvmattr
        stats = kvmattr.AttributeMap(1).stats()
        return {"counting": "nodes_visited" in stats, "kernels": stats["kernels"]}

    def count(self, name: str, size: int) -> dict[str, Any]:
        """Calls, counts and bytes of one cell, and over how many operations."""
        from kvmattr.gate.counting import measure
        work = self.scenarios[name].prepare(size)
        return {**measure(work)._asdict(), "operations": work.operations}

    def open(self, name: str, size: int) -> None:
        """Prepare a cell for timing; one run, so that everything is warm and known to do what it should."""
        self.ways = {}      # what was open goes before the next comes
        work = self.scenarios[name].prepare(size)
        work.run()
        self.check_origin()
        if work.check is not None:
            work.check()
        self.ways = {"run": work.run}

    def open_claim(self, name: str) -> None:
        """Prepare a claim; both ways run once."""
        self.ways = {}
        ways = vars(self.claims[name].prepare())
        for run in ways.values():
            run()
        self.ways = ways

    def run(self, repeat: int, way: str = "run") -> float:
        """CPU seconds of so many runs of what is open; of a claim, of one way, ``faster`` or ``slower``. What else runs
        on the machine may take the CPU away, but does not count as ours."""
        run = self.ways[way]
        start = time.process_time()
        for _ in range(repeat):
            run()
        return time.process_time() - start

    def marked(self) -> None:
        """One run of what is open, between two calls of getpgrp(): callgrind cuts its profile there."""
        os.getpgrp()
        self.ways["run"]()
        os.getpgrp()


def use_gate_of(directory: str) -> None:
    """Let ``kvmattr.gate`` be the package in this directory, whatever kvmattr is imported."""
    import kvmattr
    name = "kvmattr.gate"
    spec = importlib.util.spec_from_file_location(name, os.path.join(directory, "__init__.py"),
                                                  submodule_search_locations=[directory])
    assert spec is not None
    assert isinstance(spec.loader, importlib.machinery.SourceFileLoader)
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    kvmattr.gate = package


def serve(pipe: Connection, bench: Bench) -> None:
    """Answer requests ``{"do": name, ...}`` until there are no more."""
    with contextlib.suppress(EOFError, ConnectionError):
        while words := json.loads(pipe.recv_bytes()):
            try:
                answer = {"result": getattr(bench, words.pop("do"))(**words)}
            except Exception as error:      # a scenario may raise anything: the gate tells which cell it was
                answer = {"error": f"{type(error).__name__}: {error}"}
            pipe.send_bytes(json.dumps(answer).encode())


def main() -> None:
    """Load the build, serve."""
    pipe, gate, tree, alone, *paths = sys.argv[1:]
    sys.path[:0] = [*paths, tree]
    use_gate_of(gate)
    serve(Connection(int(pipe)), Bench(paths, beside=alone == "beside"))


if __name__ == "__main__":
    main()
