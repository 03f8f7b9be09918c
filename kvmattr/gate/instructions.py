"""Instruction counts under valgrind, where it is installed, with what makes them stable set here.

callgrind cuts its profile at each call of getpgrp(), which a worker calls before and after one run of a cell
and Python calls nowhere else. Stable means: no address randomisation, fixed hashes, the portable kernels
(valgrind has no AVX-512, and machines differ), and the first run of a cell not counted.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvmattr.gate.process import CellError, Side, Worker, without_randomisation
from kvmattr.gate.verdict import CannotTell, Judgement, Verdict

#: Instructions of the same work in two builds may differ by this much.
TOLERANCE = 0.005

SUMMARY = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


def count(tree: Path | Side, sources: Sequence[str]) -> dict[str, int]:
    """Instructions of one run of each cell that would be timed, SCENARIO/SIZE."""
    if shutil.which("valgrind") is None:
        raise CannotTell("--instructions: this machine has no valgrind")
    prefix = [*without_randomisation(), "valgrind", "--quiet", "--tool=callgrind", "--dump-before=getpgrp"]
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "profile"
        with Worker(tree, sources, prefix=[*prefix, f"--callgrind-out-file={out}"],
                    environment={"KVMATTR_SIMD": "portable"}) as worker:
            for name, size in timed_cells(worker):
                try:
                    worker.ask("open", name=name, size=size)
                except CellError:
                    continue        # the counts stage has told of it
                worker.ask("marked")    # the second of its two cuts ends what it ran
                found = SUMMARY.search(Path(f"{out}.{2 * (len(counts) + 1)}").read_text())
                if found is None:
                    raise CannotTell(f"callgrind left no summary for {name}/{size}")
                counts[f"{name}/{size}"] = int(found[1])
    return counts


def timed_cells(worker: Worker) -> list[tuple[str, int]]:
    """Each scenario that is to be timed, at its largest size."""
    return [(each["name"], each["sizes"][-1]) for each in worker.loaded["scenarios"] if each["timed"]]


def judge(judgement: Judgement, expected: dict[str, int], measured: dict[str, int]) -> None:
    """Both ways: fewer instructions than the tolerance allows are told as better."""
    for cell in sorted(expected.keys() & measured.keys()):
        now, then = measured[cell], expected[cell]
        verdict = (Verdict.REGRESSION if now / then > 1 + TOLERANCE
                   else Verdict.BETTER if now / then < 1 - TOLERANCE else Verdict.PASS)
        judgement.add("instructions", cell, verdict,
                      f"{now} instructions, {then} before ({100 * (now / then - 1):+.3f} %)", now, then)
    for cell in sorted(expected.keys() ^ measured.keys()):
        side = "only the base has it" if cell in expected else "only this run has it"
        judgement.add("instructions", cell, Verdict.UNDECIDED, f"{side}: there is nothing to compare with")
    if not expected and not measured:
        judgement.add("instructions", "all", Verdict.UNDECIDED, "no cell could be counted")
