"""The gate before memslots (sync.h): what looks at them without a lock, on Pythons without a GIL, never meets a change.

With a GIL there is no gate, and without one `test_vm_threads.py` meets a missing one by luck alone: so here the gate
itself is compiled as for a Python without a GIL, and where it stands is read from the sources.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.embedding import building

PACKAGE = Path(__file__).parent.parent / "kvmattr"
pytestmark = pytest.mark.skipif(not (PACKAGE / "_vm.pyx").exists(), reason="the sources are not here")
PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>
#include "sync.h"

static kvmattr_gate gate;
static volatile int one, other, stop, torn, looks;

static void *look(void *unused)
{
    while (!stop) {
        uint64_t *inside = GATE(enter)(&gate);
        if (one != other)
            torn = 1;
        GATE(leave)(inside);
        looks++;
    }
    return unused;
}

int main(void)
{
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], 0, look, 0);
    for (int i = 0; i < 300; i++) {
        int before = looks;
        GATE(close)(&gate);
        one++;
        usleep(20);             /* whoever is not kept out looks now */
        other++;
        GATE(open)(&gate);
        while (looks == before)
            usleep(1);          /* and who waited has looked */
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], 0);
    printf("%s\n", torn ? "torn" : "whole");
    return 0;
}
"""
WITHOUT = """
static uint64_t *no_enter(kvmattr_gate *gate) { (void)gate; return 0; }
static void no_leave(uint64_t *inside) { (void)inside; }
static void no_close(kvmattr_gate *gate) { (void)gate; }
static void no_open(kvmattr_gate *gate) { (void)gate; }
"""


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_who_looks_through_the_gate_sees_no_half_of_a_change(gated: bool, tmp_path: Path) -> None:
    """And without one the same program tells: a check that cannot fail is none."""
    source = PROGRAM.replace("static kvmattr_gate gate;", f"static kvmattr_gate gate;\n{'' if gated else WITHOUT}")
    (tmp_path / "gate.c").write_text(source)
    name = "kvmattr_gate_##call" if gated else "no_##call"
    building.run(building.compiler("gcc"), "-O1", "-pthread", "-DKVMATTR_LOCKING", f"-DGATE(call)={name}",
                 f"-I{PACKAGE}", tmp_path / "gate.c", "-o", tmp_path / "gate", cwd=tmp_path)
    done = subprocess.run([tmp_path / "gate"], capture_output=True, text=True, check=True)
    assert done.stdout == ("whole\n" if gated else "torn\n")


def outside(source: str, begin: str, end: str, calls: str) -> list[str]:
    """The lines with one of the calls that stand behind no `begin`, or behind an `end` since."""
    inside, found = False, []
    for line in source.splitlines():
        if re.match(r"\s*(cdef|cpdef|def|cimport)\b.*\)( noexcept| except|:)", line):
            inside = False
        if re.search(begin, line):
            inside = True
        elif re.search(end, line):
            inside = False
        elif re.search(calls, line) and not inside and not re.match(r"\s*(cdef inline|#)", line):
            found.append(line.strip())
    return found


def test_every_change_of_a_memslot_closes_the_gate() -> None:
    changes = r"\b(slot_create|slot_move|slot_change_flags|slot_delete)\(|\.flags &= "
    for name in ("region.pxi", "guest_memfd.pxi"):
        source = (PACKAGE / "_slots" / name).read_text()
        assert re.search(changes, source) is not None
        assert outside(source, "kvmattr_gate_close", "kvmattr_gate_open", changes) == []
    # And the check tells.
    assert outside(source.replace("kvmattr_gate_close", ""), "kvmattr_gate_close", "kvmattr_gate_open", changes) != []


def test_every_look_at_a_memslot_passes_the_gate() -> None:
    """Or has the table's section, or is the change's own, which has the machine's lock."""
    source = (PACKAGE / "_vm.pyx").read_text()
    looks, enters = r"\bslot_(at|after)\(", r"kvmattr_gate_enter|critical_section\(self\.memslots\)"
    owned = re.search(r"cdef void invalidate_space\(.*?\n\n", source, re.DOTALL)
    assert owned is not None
    found = outside(source, enters, "kvmattr_gate_leave", looks)
    assert found == [line.strip() for line in owned[0].splitlines() if re.search(looks, line)]
    assert len(outside(source.replace("kvmattr_gate_enter", ""), enters, "kvmattr_gate_leave", looks)) > len(found) + 3
