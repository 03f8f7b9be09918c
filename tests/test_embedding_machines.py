"""Where the store would give wrong answers it is not compiled: the compiler says which machine it needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvmattr import get_include
from tests.embedding import building

POINTERS = (
    '#error "kvmattr needs pointers of 64 bits: a map of 2^52 pages has no length, and no room, where they are shorter"'
)
ORDER = (
    '#error "kvmattr needs a little-endian machine: it reads bitmaps and leaves as little-endian words of 64 bits"'
)


def refusals(tmp_path: Path, command: str, *options: str) -> list[str]:
    """What a compiler says to a file that includes the header, and the store does."""
    source = tmp_path / "client.c"
    source.write_text('#include "kvmattr.h"\n')
    done = subprocess.run(
        [building.compiler(command), *options, "-E", f"-I{get_include()}", source, "-o", tmp_path / "client.i"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "kvmattr needs" in line and "#error" not in line[:4]]
    # gcc shows each error twice: its text, and the line of the source under it.
    messages = sorted({line[line.index("kvmattr needs") :].rstrip('"') for line in said})
    assert (done.returncode == 0) == (not messages), done.stderr
    return messages


def text(error: str) -> str:
    return error.removeprefix('#error "').removesuffix('"')


@pytest.mark.parametrize("command", ["gcc", "clang"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], []),
        (["-m32"], [POINTERS]),
        (["-mx32"], [POINTERS]),
        (["-U__SIZEOF_POINTER__", "-D__SIZEOF_POINTER__=4"], [POINTERS]),
        (["-U__BYTE_ORDER__", "-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__"], [ORDER]),
    ],
    ids=lambda value: " ".join(value)[:30] or "this machine",
)
def test_a_machine_that_cannot_work_is_refused_when_compiling(
    tmp_path: Path, command: str, options: list[str], expected: list[str]
) -> None:
    if options and options[0] in ("-m32", "-mx32") and building.machine() != "x86_64":
        pytest.skip("-m32 is an option of compilers for x86")
    assert refusals(tmp_path, command, *options) == [text(error) for error in expected]


def test_the_store_itself_includes_the_header_that_refuses() -> None:
    generated = building.PACKAGE / "_core.c"
    if not generated.exists():
        pytest.skip("an installed kvmattr has no generated sources")
    with generated.open() as lines:
        assert any(line.startswith('#include "kvmattr.h"') for line in lines)
