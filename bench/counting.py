#!/usr/bin/env python3
"""What does it cost to count the calls of the store? Instructions a call from C, with the counts and without them.

    python bench/counting.py        builds the store without the counts (a minute), then counts both under valgrind

Each number is of one call and the loop around it, portable kernels, on a guest of 64 GiB in which 65,536 scattered
pages are set: the difference of 11,000 and 1,000 calls. It takes a tree that is built in place, a C compiler and
valgrind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.append(str(HERE))  # behind an installed kvmattr: the tree's own is for work in the tree

from bench.segments import build  # noqa: E402
from kvmattr.gate.instructions import SUMMARY  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402

WITHOUT = [
    ("_store/calls.pxi", "    family.called[call].calls += 1\n    family.called[call].items += items\n", "    pass\n"),
    ("_store/calls.pxi", "    family.called[call].calls += 1\n", "    pass\n"),
    ("_store/locking.pxi", "    if not family_shared(family):\n        count_call(family, call, items)\n",
     "    pass\n"),
]
CALLS = {
    "get": "sum += kvmattr_get(at, gfn)",
    "take of 64": "sum += kvmattr_take(at, gfns, out, 64)",
    "all of 512": "sum += kvmattr_all(at, gfn, gfn + 512, 0, 0xfe)",
    "run_at": "sum += kvmattr_run_at(at, gfn, &run)",
}
CLIENT = """
#include <Python.h>
#include "kvmattr.h"
static PyObject *calls(PyObject *self, PyObject *args)
{
    PyObject *object; int of, snapshot; unsigned long n, i; long sum = 0;
    if (!PyArg_ParseTuple(args, "Oiik", &object, &of, &snapshot, &n) || kvmattr_import() < 0) return NULL;
    kvmattr_map *map = kvmattr_map_of(object);
    const kvmattr_map *at = map, *taken = NULL;
    if (snapshot) { kvmattr_snapshot(map, &taken); at = taken; }
    uint64_t gfns[64], gfn; uint8_t out[64]; kvmattr_run run;
    for (i = 0; i < 64; i++) gfns[i] = (i * 0x9E3779B97F4A7C15) >> 41;
    for (i = 0; i < n; i++) { gfn = (i * 0x9E3779B97F4A7C15) >> 41; switch (of) { CASES } }
    if (taken) kvmattr_release(taken);
    return PyLong_FromLong(sum);
}
static PyMethodDef methods[] = {{"calls", calls, METH_VARARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "client", 0, -1, methods};
PyMODINIT_FUNC PyInit_client(void) { return PyModule_Create(&module); }
""".replace("CASES", " ".join(f"case {index}: {call}; break;" for index, call in enumerate(CALLS.values())))
#: Cut by getpgrp(), as the gate's own counts are.
RUN = """
import os, sys
import numpy as np, kvmattr
sys.path.insert(0, sys.argv[1])
import client
guest = kvmattr.AttributeMap(1 << 24)
guest.put((np.arange(1 << 16, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40), 1)
os.getpgrp()
for of in range(int(sys.argv[2])):
    for snapshot in (0, 1):
        for times in (1000, 11000):
            client.calls(guest, of, snapshot, times)
            os.getpgrp()
"""


def counted(tree: Path, scratch: Path) -> list[float]:
    """Instructions of each call in a map and in a snapshot of it, in the order of CALLS."""
    out = scratch / "profile"
    subprocess.run(["valgrind", "--quiet", "--tool=callgrind", "--dump-before=getpgrp", f"--callgrind-out-file={out}",
                    sys.executable, "-P", "-c", RUN, str(scratch), str(len(CALLS))], check=True,
                   env={**os.environ, "PYTHONPATH": str(tree), "KVMATTR_SIMD": "portable", "PYTHONHASHSEED": "0"})
    totals = [int(match[1]) for index in range(2, 4 * len(CALLS) + 2)
              if (match := re.search(SUMMARY, (scratch / f"profile.{index}").read_text()))]
    return [(long - short) / 10_000 for short, long in zip(totals[::2], totals[1::2], strict=True)]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        without = build("without counts", WITHOUT, scratch)
        (scratch / "client.c").write_text(CLIENT)
        includes = subprocess.check_output([sys.executable, "-m", "kvmattr", "--includes"], text=True, cwd=HERE)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "client.c", "-o", "client.so", *includes.split()], cwd=scratch,
                       check=True)
        sides = [counted(tree, scratch) for tree in (without, HERE)]
    rows = [[f"{call}, {place}", f"{without:.0f}", f"{counting:.0f}", f"{100 * (counting / without - 1):+.1f} %"]
            for (call, place), without, counting in zip(
                ((call, place) for call in CALLS for place in ("map", "snapshot")), *sides, strict=True)]
    print(fitted(["from C", "without counts", "with", "more"], rows, 100))


if __name__ == "__main__":
    main()
