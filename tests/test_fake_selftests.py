"""`dev.py selftests`: what it says, and the assertion function that it puts in the place of the kernel's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import selftests
from tests.selftests import Outcome, Place, ending, read, table

if not sys.platform.startswith("linux"):
    pytest.skip("for Linux", allow_module_level=True)

HERE = Path(__file__).parent
PROGRAM = """
#include <stdbool.h>
#include <errno.h>
void test_assert(bool, const char *, const char *, unsigned, const char *, ...);
#define ASSERT(e, ...) test_assert(e, #e, __FILE__, __LINE__, __VA_ARGS__)
int main(int count, char **words)
{
    (void)words;
    for (int i = 0; i < 3; i++)
        ASSERT(i < 2, "i is %d", i);
    ASSERT(count == 1, (char *)0);
    errno = 7;
    ASSERT(true, "");
    ASSERT(errno == 7, "");
    ASSERT(false, "the end");
    ASSERT(count == 1, "never");
    return 0;
}
"""


def test_every_assertion_is_told(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = tmp_path / "a_test.c"
    source.write_text(PROGRAM)
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "a_test", source,
                    HERE / "selftests_assert.c"], check=True)
    ran = subprocess.run([tmp_path / "a_test"], capture_output=True, text=True,
                         env={**os.environ, "KVMATTR_ASSERTIONS": str(tmp_path / "report")})
    assert ran.returncode == 254
    assert ran.stderr == (f"{source}:10: i < 2 (Success): i is 2\n"
                          f"{source}:15: false ({os.strerror(7)}): the end\n")
    places = list(read(tmp_path / "report"))
    assert [(place.line, place.held, place.failed, place.text) for place in places] == [
        (10, 2, 1, "i < 2"), (11, 1, 0, "count == 1"), (13, 1, 0, "true"), (14, 1, 0, "errno == 7"),
        (15, 0, 1, "false")]


def test_the_table():
    places = [Place("/k/a_test.c", 5, 3, 0, "x"), Place("/k/a_test.c", 9, 0, 1, "y"),
              Place("/k/lib/z.c", 1, 10, 0, "z")]
    lines = list(table([Outcome("a_test", 254, places, ""), Outcome("x86/b", 4, [], "1..0 # SKIP - needs cap\n")]))
    assert lines == [
        "| test | assertions reached | hold | checked | ends |", "|---|---:|---:|---:|---|",
        "| a_test | 2 | 1 | 14 | at an assertion |", "| x86/b | 0 | 0 | 0 | skipped: needs cap |", "",
        "a_test: a_test.c:9: y"]
    assert [ending(Outcome("t", code, [], "")) for code in (0, 124, 142, 3, 4)] == [
        "to its end", "waits for its guest", "ended by signal 14", "exit code 3", "skipped: by itself"]


def test_a_directory_without_selftests_is_told(tmp_path, capsys):
    assert selftests.main(["--source", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (f"dev.py selftests: {tmp_path} has no tools/testing/selftests/kvm: --source"
                                       " names an unpacked kernel source\n")
