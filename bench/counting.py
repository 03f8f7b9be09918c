"""What does it cost to count the calls of the store? Instructions a call, with the counts and without them.

    python bench/counting.py        builds kvmattr with and without them (minutes), then counts both under valgrind

Each number is of one call and the loop around it, portable kernels, on a guest of 64 GiB in which 65,536 scattered
pages are set: the difference of 11,000 and 1,000 calls. The last column is of C functions after the first stats() of
the process, which makes them count. It takes a C compiler and valgrind.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.append(str(HERE))  # behind an installed kvmattr: the tree's own is for work in the tree

from kvmattr.gate import builds  # noqa: E402
from kvmattr.gate.instructions import SUMMARY  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402

WITHOUT = [
    ("_store/calls.pxi", "    kvmattr_add(&family.called[call].calls, 1)\n"
     "    kvmattr_add(&family.called[call].items, items)\n", "    pass\n"),
    ("_store/calls.pxi", "    kvmattr_add(&family.called[call].calls, 1)\n", "    pass\n"),
    ("_store/locking.pxi", "    if family_shared(family) and not KVMATTR_FREE_THREADED:\n"
     "        count_apart(family, call, items)\n    else:\n        count_call(family, call, items)\n", "    pass\n"),
]
#: Calls from Python, each in a loop of its own.
PYTHON = {
    "get": "guest.get(gfn)",
    "m[gfn]": "guest[gfn]",
    "take of 64": "guest.take(gfns)",
    "all of 512": "guest.all(gfn, gfn + 512, 0)",
    "run": "guest.run(gfn)",
    "write of 1": "guest.write(gfn, gfn + 1, gfn & 1)",
    "put of 64": "guest.put(gfns, gfn & 1)",
    "snapshot": "guest.snapshot()",
    "VM: access": "vm.access(gfn << 12, 4)",
    "VM: set of 1": "vm.set_memory_attributes(gfn << 12, 4096, NO_WRITE * (gfn & 1))",
}
#: Calls from C, and from Cython, where the same functions have shorter names.
C = {
    "get": "sum += kvmattr_get(at, gfn)",
    "get, snapshot": "sum += kvmattr_get(kept, gfn)",
    "take of 64": "sum += kvmattr_take(at, gfns, out, 64)",
    "all of 512": "sum += kvmattr_all(at, gfn, gfn + 512, 0, 0xfe)",
    "all of 512, snapshot": "sum += kvmattr_all(kept, gfn, gfn + 512, 0, 0xfe)",
    "run_at": "sum += kvmattr_run_at(at, gfn, &run)",
    "runs of 64": "sum += kvmattr_runs(at, gfn, gfn + 64, one, NULL)",
    "cursor_get": "sum += kvmattr_cursor_get(cursor, gfn)",
    "write of 1": "sum += kvmattr_write(own, gfn, gfn + 1, gfn & 1)",
    "snapshot": "sum += kvmattr_snapshot(own, &taken) + kvmattr_release(taken)",
}
CLIENT = """
#include <Python.h>
#include "kvmattr.h"
static int one(void *context, const kvmattr_run *run) { return 0; }
static PyObject *calls(PyObject *self, PyObject *args)
{
    PyObject *object; int of; unsigned long n, i; long sum = 0; kvmattr_map *own; kvmattr_cursor *cursor;
    if (!PyArg_ParseTuple(args, "Oik", &object, &of, &n) || kvmattr_import() < 0) return NULL;
    const kvmattr_map *at = kvmattr_map_of(object), *kept, *taken;
    kvmattr_snapshot(at, &kept); kvmattr_copy(at, &own); kvmattr_cursor_open(at, &cursor);
    uint64_t gfns[64], gfn; uint8_t out[64]; kvmattr_run run;
    for (i = 0; i < 64; i++) gfns[i] = (i * 0x9E3779B97F4A7C15) >> 41;
    for (i = 0; i < n; i++) { gfn = (i * 0x9E3779B97F4A7C15) >> 41; switch (of) { CASES } }
    kvmattr_cursor_close(cursor); kvmattr_release(kept); kvmattr_destroy(own);
    return PyLong_FromLong(sum);
}
static PyMethodDef methods[] = {{"calls", calls, METH_VARARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "client", 0, -1, methods};
PyMODINIT_FUNC PyInit_client(void) { return PyModule_Create(&module); }
""".replace("CASES", " ".join(f"case {index}: {call}; break;" for index, call in enumerate(C.values())))
#: Cut by getpgrp(), as the gate's own counts are.
RUN = """
import os, sys
import numpy as np, kvmattr
from kvmattr.uapi import KVM_MEM_ATTR_NO_WRITE as NO_WRITE
sys.path.insert(0, sys.argv[1])
import client
def gfns_of(times):
    return ((np.arange(times, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(41)).tolist()
guest, vm, gfns = kvmattr.AttributeMap(1 << 24), kvmattr.VM(), np.array(gfns_of(64), np.uint64)
guest.put((np.arange(1 << 16, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40), 1)
vm.set_user_memory_region(0, 0, 1 << 36)
loops = []
for call in PYTHON:
    exec("def loop(gfns_now):\\n    for gfn in gfns_now:\\n        " + call)
    loops.append(loop)
short, long = gfns_of(1000), gfns_of(11000)
def measured(calls):
    for call in calls:
        os.getpgrp()
        call(short)
        os.getpgrp()
        call(long)
    os.getpgrp()
from_c = [lambda gfns_now, of=of: client.calls(guest, of, len(gfns_now)) for of in range(C)]
measured([*loops, *from_c])
guest.stats()
measured(from_c)
""".replace("PYTHON", repr(list(PYTHON.values()))).replace("range(C)", f"range({len(C)})")


def without_counts(tree: Path) -> Path:
    """A copy of the sources that does not count calls."""
    shutil.copytree(HERE, tree, ignore=shutil.ignore_patterns(".*", "*.so", "build"))
    for file, text, other in WITHOUT:
        path = tree / "kvmattr" / file
        source = path.read_text()
        if text not in source:
            raise SystemExit(f"counting.py: {file} has no {text!r} any more")
        path.write_text(source.replace(text, other))
    return tree


def counted(tree: Path, scratch: Path) -> list[float]:
    """Instructions of each call: PYTHON's, C's, and C's once they count."""
    out = scratch / "profile"
    subprocess.run(["valgrind", "--quiet", "--tool=callgrind", "--dump-before=getpgrp", f"--callgrind-out-file={out}",
                    sys.executable, "-P", "-c", RUN, str(scratch)], check=True,
                   env={**os.environ, "PYTHONPATH": str(tree), "KVMATTR_SIMD": "portable", "PYTHONHASHSEED": "0"})
    parts = sorted(scratch.glob("profile.*"), key=lambda path: int(path.suffix[1:]))
    totals = [int(match[1]) for path in parts if (match := re.search(SUMMARY, path.read_text()))]
    for path in parts:
        path.unlink()
    groups, at = [], 1      # what comes before the first cut is the preparation
    for calls in (len(PYTHON) + len(C), len(C)):
        groups += [(totals[at + 2 * i + 1] - totals[at + 2 * i]) / 10_000 for i in range(calls)]
        at += 2 * calls + 1
    return groups


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        trees = [builds.build(source) for source in (without_counts(scratch / "without"), HERE)]
        (scratch / "client.c").write_text(CLIENT)
        includes = subprocess.check_output([sys.executable, "-m", "kvmattr", "--includes"], text=True, cwd=HERE)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "client.c", "-o", "client.so", *includes.split()], cwd=scratch,
                       check=True)
        before, after = (counted(tree, scratch) for tree in trees)
    names = [*(f"Python: {call}" for call in PYTHON), *(f"C: {call}" for call in C)]
    counting = [*("" for _ in PYTHON), *(f"{each:,.0f}" for each in after[len(names):])]
    rows = [[call, f"{one:,.1f}", f"{other:,.1f}", f"{100 * (other / one - 1):+.2f} %", late]
            for call, one, other, late in zip(names, before, after, counting, strict=False)]
    print(fitted(["call", "without counts", "with", "more", "after stats()"], rows, 100, left=(0,)))


if __name__ == "__main__":
    main()
