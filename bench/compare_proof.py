#!/usr/bin/env python3
"""Is `kvmattr compare` right? Unchanged code, quiet against loaded, and a planted change, on this machine.

    python bench/compare_proof.py --out bench/results/compare-proof.txt      some five minutes on a quiet machine

Runs of one unchanged build are taken in turns: one as the machine is, one while every CPU copies memory, and one
in which some look-ups and queries take 1.3 times their CPU time. Each is a process of its own. Then 20 comparisons
draw their sides from these runs: quiet against quiet, quiet against loaded, quiet against planted. Every verdict of the
first two kinds is wrong. Drawn sides share runs, so the 20 are not independent of one another.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

from kvmattr import study  # noqa: E402
from kvmattr.measure import machine, writing  # noqa: E402
from kvmattr.study import backends  # noqa: E402
from kvmattr.study.comparing import compare  # noqa: E402
from kvmattr.study.report import Report  # noqa: E402

SCENARIOS = ["guest", "lookup", "has"]
BACKENDS = ["store", "memslots", "xarray", "numpy", "empty-ioctl"]
PLANTED = {("lookup", "store"), ("lookup", "xarray"), ("has", "xarray")}
AGAIN = 0.3
COMPARISONS = 20


def plant() -> None:
    """Let some calls take 1.3 times their time, to the clock's step; their answers stay as they are.

    Doing a part of the work again would be less than that: what was just looked up lies in the caches. The clock is
    one that is read without the kernel, whose entry would make the calls of others slower.
    """

    def slower(call: Any) -> Any:
        def longer(self: Any, argument: Any) -> Any:
            began = time.perf_counter_ns()
            answer = call(self, argument)
            ended = time.perf_counter_ns()
            until = ended + round((ended - began) * AGAIN)
            while time.perf_counter_ns() < until:
                pass
            return answer

        return longer

    for action, name in PLANTED:
        backend = backends.ALL[name]
        setattr(backend, action, slower(getattr(backend, action)))


def copy_for_ever(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    words = np.zeros(1 << 22, np.uint64)
    while True:
        words[:] = words[::-1].copy()


@contextmanager
def load() -> Iterator[None]:
    """Every CPU copies memory: half of the time of whoever is measured, and what its caches held."""
    processes = [multiprocessing.Process(target=copy_for_ever, args=(cpu,), daemon=True)
                 for cpu in os.sched_getaffinity(0)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def one_run(path: Path, kind: str) -> None:
    # Words of one length: a longer command line moves all that a process has in memory.
    words = [sys.executable, str(Path(__file__)), "--one", str(path), "--kind", f"{kind:-<8}"]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


def runs_of_each(number: int, folder: Path) -> dict[str, list[Report]]:
    found: dict[str, list[Report]] = {"quiet": [], "loaded": [], "planted": []}
    for index in range(number):
        for kind in found:
            print(f"{kind} {index + 1}/{number}", file=sys.stderr)
            path = folder / f"{kind:-<8}{index:03}.json"
            if kind == "loaded":
                with load():
                    one_run(path, kind)
            else:
                one_run(path, kind)
            found[kind].append(study.load(path))
    return found


def told(found: dict[str, list[Report]], runs: int) -> list[str]:
    lines = []
    for kind in found:
        used = np.mean([report.load["other_cpus"] + report.load["stolen_cpus"] for report in found[kind]])
        lines.append(f"{kind}: {len(found[kind])} runs, others took {used:.2f} CPUs on average")
    for kind, reports in found.items():
        draw = random.Random(0)
        verdicts = {"slower": 0, "faster": 0, "same": 0, "open": 0}
        hits = wanted = cells = 0
        for _ in range(COMPARISONS):
            a = draw.sample(found["quiet"], runs)
            rest = [report for report in reports if all(report is not one for one in a)]
            compared = compare(a, draw.sample(rest, min(runs, len(rest))))
            for row in compared.rows:
                planted = kind == "planted" and (row.scenario, row.backend) in PLANTED
                if planted:
                    wanted += 1
                    hits += row.verdict == "slower"
                elif row.verdict in verdicts:
                    verdicts[row.verdict] += 1
                    cells += 1
        wrong = verdicts["slower"] + verdicts["faster"]
        lines += [
            "",
            f"quiet against {kind}, {COMPARISONS} comparisons of {runs} runs a side:",
            f"  {wrong} of {cells} ratios of unchanged code got a verdict ({wrong / cells:.2%}; at most 5 % may): "
            f"{verdicts['slower']} slower, {verdicts['faster']} faster",
            f"  {verdicts['same']} the same, {verdicts['open']} could not be told",
        ]
        if wanted:
            lines.append(f"  {hits} of {wanted} planted changes of {1 + AGAIN:g}x were found")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="where the outcome is written, beside standard output")
    parser.add_argument("--runs", type=int, default=10, help="runs a side (default: %(default)s)")
    parser.add_argument("--spare", type=int, default=10, help="more runs of each kind, to draw from (%(default)s)")
    parser.add_argument("--keep", type=Path, help="a directory for the reports")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        if arguments.kind.startswith("planted"):
            plant()
        study.run(SCENARIOS, BACKENDS, quick=True).save(arguments.one)
        return
    writing.check(arguments.out)
    described = machine.in_words(machine.describe())
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = runs_of_each(arguments.runs + arguments.spare, folder)
    lines = ["kvmattr compare on unchanged code and on a planted change: python bench/compare_proof.py",
             described, "", *told(found, arguments.runs)]
    print(*lines, sep="\n")
    if arguments.out:
        writing.write(arguments.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
