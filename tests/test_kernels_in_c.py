"""The kernels, called directly from C: kernels.c has what each of them means, page by page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "kvmattr"
SETS = ["portable", "avx2", "avx512"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    if not (SOURCES / "kernels" / "choose.h").exists():
        pytest.skip("the sources of the kernels are not here")
    built = tmp_path_factory.mktemp("kernels") / "kernels"
    subprocess.run([compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", SOURCES, "-o", built,
                    Path(__file__).parent / "kernels.c"], check=True)
    return built


@pytest.mark.parametrize("seed", [1, 2])
def test_every_set_does_what_the_kernels_mean(program: Path, seed: int) -> None:
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "portable: as it should be"
    assert [line.split(": ")[0] for line in lines] == SETS
    assert {line.split(": ")[1] for line in lines} <= {"as it should be", "not of this machine"}
