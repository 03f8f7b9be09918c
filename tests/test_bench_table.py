"""bench/table.py on a tiny guest: every row runs, is checked and written; its figures are not looked at."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench" / "table.py"


def run_table(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TABLE), *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    results = tmp_path_factory.mktemp("results") / "tiny-0.1"
    done = run_table("--quick", "--results", str(results))
    assert done.returncode == 0, done.stderr
    return json.loads(Path(f"{results}.json").read_text()), done.stdout, results


def test_every_row_was_measured_and_checked(quick: tuple[dict[str, Any], str, Path]) -> None:
    table, _, _ = quick
    importlib.import_module("bench.machine")  # adds its rows to the limits
    declared = [
        row.name
        for module, name in (("against_numpy", "ROWS"), ("absolute", "LIMITS"), ("memory", "CONTENTS"))
        for row in getattr(importlib.import_module(f"bench.{module}"), name)
    ]
    assert [row["name"] for row in table["rows"]] == declared
    assert len(set(declared)) == len(declared)
    for row in [*table["rows"], *table["curves"]]:
        assert row["checked"] >= 1, row["name"]
    assert [curve["name"] for curve in table["curves"]] == [
        curve.name for curve in importlib.import_module("bench.curves").CURVES
    ]


def test_the_print_names_every_row_and_the_machine(quick: tuple[dict[str, Any], str, Path]) -> None:
    table, printed, results = quick
    assert Path(f"{results}.txt").read_text() == printed
    for row in table["rows"]:
        assert row["name"] in printed
    for word in (table["machine"]["cpu"], table["machine"]["kernels"], f"numpy {np.__version__}"):
        assert word in printed
    assert "none is judged" in printed
    assert {row["verdict"] for row in table["rows"]} == {""}


def test_rows_can_be_chosen_and_other_kernels_asked_for() -> None:
    done = run_table("--quick", "--only", "snapshot after", "--simd", "portable")
    assert done.returncode == 0, done.stderr
    assert "portable" in done.stdout
    assert "snapshot after 1e5 changes" in done.stdout
    assert "take" not in done.stdout


def test_unknown_kernels_are_told() -> None:
    done = run_table("--quick", "--only", "snapshot after", "--simd", "neon")
    assert done.returncode == 1
    assert "kernels 'neon' cannot be measured" in done.stderr


def test_wrong_work_is_not_timed() -> None:
    """An arm that answers wrongly, or leaves its work undone, ends the run."""
    rounds = importlib.import_module("bench.rounds")
    arms = rounds.Arms(
        draw=lambda: 3,
        store=lambda n: n + 1,
        numpy={"n": lambda n: n},
        check=lambda n, ours, theirs: ours == theirs,
    )
    with pytest.raises(rounds.WrongResult, match="the store and 'n' differ"):
        rounds.compare(arms, 1)
    with pytest.raises(rounds.WrongResult, match="did not do what was timed"):
        rounds.time_alone(
            rounds.Alone(draw=lambda: 3, work=lambda n: n, check=lambda n, answer: answer != n), 1
        )


def test_a_ratio_is_of_a_pair_of_rounds_one_in_each_order() -> None:
    rounds = importlib.import_module("bench.rounds")
    order: list[str] = []
    arms = rounds.Arms(
        draw=lambda: order.append("|"),
        store=lambda drawn: order.append("s"),
        numpy={"n": lambda drawn: order.append("n")},
        check=lambda drawn, ours, theirs: True,
    )
    samples = rounds.compare(arms, 3)
    assert "".join(order[9:]) == "|sn|ns|sn|ns"
    assert len(samples.store) == 4
    samples.store, samples.numpy = [1.0, 3.0, 8.0, 4.0], [4.0, 4.0, 1.0, 2.0]
    assert samples.ratios == [0.5, 4.0]


def test_the_plot_is_drawn_from_results(quick: tuple[dict[str, Any], str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "costs.svg"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "bench" / "plot.py"),
            str(f"{quick[2]}.json"),
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    drawn = out.read_text()
    for word in ("restore of a fragmented guest", "take 1e6 random: uniform", "kvmattr"):
        assert word in drawn


COMPILES = pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc").split()[0]), reason="needs a C compiler")


@pytest.mark.parametrize(("script", "words"), [
    ("contents", ["uniform, in 2^52 pages", "every other page", "16 values", "256 values", "1e5 ranges of 16 values"]),
    pytest.param("floor", ["1 bit, 0.0 MB", "8 bits, 0.3 MB", "ahead, / numpy's take"], marks=COMPILES),
    ("conversions", ["single, k = 1,000", "batch, k = 10", "SET batch"]),
    ("small_batches", ["1,000", "put, each", "put, int64", "take"]),
])
def test_a_table_is_printed_and_written(tmp_path: Path, script: str, words: list[str]) -> None:
    done = subprocess.run([sys.executable, f"bench/{script}.py", "--quick", "--results", tmp_path / "quick"],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "quick.txt").read_text()
    assert table.rstrip() == done.stdout.rstrip()
    assert [word for word in words if word not in table] == []
