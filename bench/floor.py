#!/usr/bin/env python3
"""What does this machine take for the last load of a look-up, and nothing else? A row a size of a leaf's fields.

    python bench/floor.py                              the table; a minute; needs a C compiler (cc, or CC=...)
    python bench/floor.py --results bench/results/NAME

A million random pages of a 64 GiB guest, as in contents.py, but each page is one byte loaded from a table as large as
the guest's leaves are in all: no tree, no fields, no Python. `load` leaves the order to the processor, `ahead` asks for
each byte 64 pages before; both in ns and beside numpy's `take` from the dense array, in interleaved rounds of one
process. A `take` of such a guest has this to do and the tree besides. `alone` is one such load that has to wait for the
one before it. `get` and `write` are calls from Python of functions in C that read such a byte, or replace it and say
whether it changed, and look after nothing; beside numpy's `a[i]` and `a[i] = v`, as in contents.py, the loop taken off
both. Tables lie in huge pages where the system gives them, as numpy's arrays and full leaves do.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

from bench.against_numpy import get  # noqa: E402
from bench.contents import write_arms  # noqa: E402
from bench.guest import TINY, Gfns, Guest, Pages  # noqa: E402
from bench.report import asked, show  # noqa: E402
from bench.rounds import Alone, Arms, compare, time_alone  # noqa: E402
from kvmattr.measure.machine import Load  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402

SOURCE = r"""
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#define EACH for (size_t i = 0; i < n; i++)
void load(const uint8_t *table, int shift, const uint64_t *gfns, size_t n, uint8_t *out)
{ EACH out[i] = table[gfns[i] >> shift]; }
void ahead(const uint8_t *table, int shift, const uint64_t *gfns, size_t n, uint8_t *out)
{
    EACH {
        __builtin_prefetch(table + (gfns[i + 64 < n ? i + 64 : i] >> shift), 0, 2);
        out[i] = table[gfns[i] >> shift];
    }
}
/* The table is zeros, which the compiler does not know. */
void alone(const uint8_t *table, int shift, const uint64_t *gfns, size_t n, uint8_t *out)
{ uint64_t last = 0; EACH last = out[i] = table[(gfns[i] >> shift) + last]; }

/* The calls. */
static uint8_t *aimed;
static int aimed_shift;
void aim(uint8_t *table, int shift) { aimed = table; aimed_shift = shift; }
static PyObject *get(PyObject *module, PyObject *gfn)
{
    (void)module;
    return PyLong_FromLong(aimed[PyLong_AsUnsignedLong(gfn) >> aimed_shift]);
}
static PyObject *write_one(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    PyObject *const truths[] = {Py_False, Py_True};
    uint8_t *page = aimed + (PyLong_AsUnsignedLong(given[0]) >> aimed_shift), old = *page;
    (void)module, (void)count;
    *page = (uint8_t)PyLong_AsLong(given[2]);
    return Py_NewRef(truths[old != *page]);
}
static PyMethodDef calls[] = {
    {"get", get, METH_O, 0}, {"write", (PyCFunction)(void *)write_one, METH_FASTCALL, 0}, {0}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "floor_calls", 0, -1, calls, 0, 0, 0, 0};
PyMODINIT_FUNC PyInit_floor_calls(void) { return PyModule_Create(&definition); }
"""
#: Bits of a field, and what is left of 8 of them.
FIELDS = {1: 3, 2: 2, 4: 1, 8: 0}
ROUNDS = 12


def compiled(directory: str) -> tuple[ctypes.CDLL, Any]:
    """The library, and as a module of Python its calls."""
    source, library = Path(directory, "floor.c"), Path(directory, "floor.so")
    source.write_text(SOURCE)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    options = ["-O2", "-fno-tree-vectorize", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
    subprocess.run([*compiler, *options, "-o", str(library), str(source)], check=True)
    spec = importlib.util.spec_from_file_location("floor_calls", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ctypes.CDLL(str(library)), module


def a_call(arms: Arms, rounds: int) -> str:
    samples = compare(arms, rounds)
    return f"{np.median(samples.store):.0f} ns, {np.median(samples.ratios):.2f}"


def measure(library: ctypes.CDLL, module: Any, bits: int, guest: Guest, rounds: int) -> list[str]:
    table, dense = np.full(guest.pages * bits // 8, 0, np.uint8), np.full(guest.pages, 0, np.uint8)
    out = np.empty(guest.batch, np.uint8)

    def run(name: str, gfns: Gfns) -> Pages:
        library[name](*(ctypes.c_void_p(table.ctypes.data), FIELDS[bits], ctypes.c_void_p(gfns.ctypes.data),
                        ctypes.c_size_t(len(gfns)), ctypes.c_void_p(out.ctypes.data)))
        return out

    def against_take(name: str) -> str:
        samples = compare(Arms(draw=lambda: guest.gfns(guest.batch), store=lambda gfns: run(name, gfns),
                               numpy={"take": lambda gfns: np.take(dense, gfns, mode="wrap")},
                               check=lambda gfns, ours, theirs: bool(np.array_equal(ours, theirs)),
                               calls=guest.batch), rounds)
        return f"{np.median(samples.store):.1f} ns, {np.median(samples.ratios):.2f}"

    waiting = time_alone(Alone(draw=lambda: guest.gfns(guest.batch), work=lambda gfns: run("alone", gfns),
                               check=lambda gfns, ours: not ours.any(), calls=guest.batch), rounds)
    library.aim(ctypes.c_void_p(table.ctypes.data), FIELDS[bits])
    calls, expected = replace(guest, calls=guest.calls // 4), table.copy()
    looks = get(calls, module, dense, calls.calls)
    writes = write_arms(calls, module, dense.copy(), (0, 1, 4))

    def written(drawn: Any, *_: Any) -> bool:
        starts, _stops, attributes = np.array(drawn).T
        expected[starts >> FIELDS[bits]] = attributes
        return bool(np.array_equal(table, expected))

    return [f"{bits} bit{'s' if bits > 1 else ''}, {len(table) / 1e6:.1f} MB", against_take("load"),
            against_take("ahead"), f"{np.median(waiting.store):.0f} ns", a_call(looks, rounds),
            a_call(replace(writes, check=written), rounds)]


def main() -> None:
    words = asked(__doc__)
    guest, rounds = (TINY, 2) if words.quick else (Guest(), ROUNDS)
    load = Load.now()
    with tempfile.TemporaryDirectory() as directory:
        library, module = compiled(directory)
        rows = [measure(library, module, bits, guest, rounds) for bits in FIELDS]
    show(fitted(["a page's field, all leaves", "load, / numpy's take", "ahead, / numpy's take", "alone",
                 "get, / numpy's a[i]", "write, / a[i] = v"], rows, 140),
         "the last load of a look-up and nothing else", load, words.results)


if __name__ == "__main__":
    main()
