"""Calls are counted where the store is entered: from Python, C and Cython, in every build."""

from __future__ import annotations

import copy
import ctypes
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvmattr import VM, AttributeMap, _core
from kvmattr.uapi import KVM_MEM_ATTR_NO_WRITE, MEMORY_ATTRIBUTES

PAGES = 1 << 20


def counted(m: AttributeMap, run: Callable[[], Any]) -> dict[str, int]:
    """What a call added to the counters of calls; those that stayed are left out."""
    before = m.stats()
    run()
    after = m.stats()
    return {name: after[name] - before[name] for name in after
            if (name == "calls" or name.rsplit("_", 1)[-1] in ("calls", "pages", "ranges") or name == "runs_runs"
                or name == "diff_runs") and after[name] != before[name]}


def refused(m: AttributeMap) -> None:
    with pytest.raises(ValueError, match="range"):
        m.write(5, 3, 1)


def each_of(m: AttributeMap) -> dict[str, tuple[Callable[[], Any], dict[str, int]]]:
    other = m.snapshot()
    bits = np.array([0b101], np.uint8)
    return {
        "get": (lambda: m.get(5), {"get_calls": 1}),
        "m[5]": (lambda: m[5], {"get_calls": 1}),
        "take": (lambda: m.take([1, 2, 3]), {"take_calls": 1, "take_pages": 3}),
        "m[[1, 2]]": (lambda: m[[1, 2]], {"take_calls": 1, "take_pages": 2}),
        "to_numpy": (lambda: m.to_numpy(3, 10), {"to_numpy_calls": 1, "to_numpy_pages": 7}),
        "m[3:10]": (lambda: m[3:10], {"to_numpy_calls": 1, "to_numpy_pages": 7}),
        "bitmap": (lambda: m.bitmap(3, 10), {"bitmap_calls": 1, "bitmap_pages": 7}),
        "uniform": (lambda: m.uniform(0, 100), {"uniform_calls": 1, "uniform_pages": 100}),
        "all": (lambda: m.all(0, 100, 1), {"search_calls": 1, "search_pages": 100}),
        "any": (lambda: m.any(0, 100, 1), {"search_calls": 1, "search_pages": 100}),
        "find": (lambda: m.find(PAGES - 10, 1), {"search_calls": 1, "search_pages": 10}),
        "count": (lambda: m.count(0, 100, 1), {"count_calls": 1, "count_pages": 100}),
        "values": (lambda: m.values(), {"values_calls": 1, "values_pages": PAGES}),
        "run": (lambda: m.run(5), {"run_calls": 1}),
        "level": (lambda: m.level(5), {"level_calls": 1}),
        "runs": (lambda: m.runs(0, 30), {"runs_calls": 1, "runs_runs": 3}),
        "iter_runs": (lambda: list(m.iter_runs(0, 30)), {"runs_calls": 1, "runs_runs": 3}),
        "run_count": (lambda: m.run_count, {"run_count_calls": 1}),
        "diff": (lambda: m.diff(other), {"diff_calls": 1}),
        "==": (lambda: m == other, {"diff_calls": 1}),
        "to_bytes": (lambda: m.to_bytes(), {"to_bytes_calls": 1}),
        "pickle": (lambda: pickle.dumps(m), {"to_bytes_calls": 1}),
        "write": (lambda: m.write(0, 512, 3), {"update_calls": 1, "update_pages": 512}),
        "or_": (lambda: m.or_(0, 1, 3), {"update_calls": 1, "update_pages": 1}),
        "and_": (lambda: m.and_(0, 2, 3), {"update_calls": 1, "update_pages": 2}),
        "update": (lambda: m.update(0, 3, 3, 1), {"update_calls": 1, "update_pages": 3}),
        "m[7] = 1": (lambda: m.__setitem__(7, 1), {"update_calls": 1, "update_pages": 1}),
        "m[7:9] = 1": (lambda: m.__setitem__(slice(7, 9), 1), {"update_calls": 1, "update_pages": 2}),
        "del m[7:9]": (lambda: m.__delitem__(slice(7, 9)), {"update_calls": 1, "update_pages": 2}),
        "fill": (lambda: m.fill(0), {"update_calls": 1, "update_pages": PAGES}),
        "clear": (lambda: m.clear(), {"update_calls": 1, "update_pages": PAGES}),
        "update_many": (lambda: m.update_many([0, 5], [4, 9], 1), {"update_many_calls": 1, "update_many_ranges": 2}),
        "put": (lambda: m.put([1, 5, 9], 1), {"put_calls": 1, "put_pages": 3}),
        "m[[1, 5]] = 2": (lambda: m.__setitem__([1, 5], 2), {"put_calls": 1, "put_pages": 2}),
        "put_bitmap": (lambda: m.put_bitmap(8, bits, 2), {"put_calls": 1, "put_pages": 2}),
        "put_bitmap of arrays": (lambda: m.put_bitmap(8, bits, np.array([1, 2, 3], np.uint8), npages=3),
                                 {"put_calls": 1, "put_pages": 2}),
        "m[2:5] = array": (lambda: m.__setitem__(slice(2, 5), np.array([1, 2, 3])),
                           {"assign_calls": 1, "assign_pages": 3}),
        "copy": (lambda: m.copy(), {"copy_calls": 1}),
        "copy.copy": (lambda: copy.copy(m), {"copy_calls": 1}),
        "copy.deepcopy": (lambda: copy.deepcopy(m), {"copy_calls": 1}),
        "snapshot": (lambda: m.snapshot(), {"snapshot_calls": 1}),
        "restore": (lambda: m.restore(other), {"restore_calls": 1}),
        "stats": (lambda: (m.stats(), m.nbytes, m.version, m.default, len(m), repr(m), m.validate()), {}),
        "refused": (lambda: refused(m), {}),
    }


@pytest.mark.parametrize("what", each_of(AttributeMap(PAGES)))
def test_a_call_from_python(what: str) -> None:
    m = AttributeMap(PAGES)
    m[10:20] = 3
    run, expected = each_of(m)[what]
    total = sum(number for name, number in expected.items() if name.endswith("_calls"))
    assert counted(m, run) == {**expected, **({"calls": total} if total else {})}


def test_the_family_counts_and_not_the_map() -> None:
    m = AttributeMap(PAGES)
    view = m.snapshot()
    assert counted(m, lambda: view.get(5)) == {"get_calls": 1, "calls": 1}
    assert counted(view, lambda: m.write(0, 5, 1)) == {"update_calls": 1, "update_pages": 5, "calls": 1}


def test_maps_are_those_that_are_alive() -> None:
    m = AttributeMap(PAGES)
    kept = [m.snapshot(), m.copy()]
    assert m.stats()["maps"] == 3
    del kept[0]
    assert m.stats()["maps"] == 2


def test_a_stopped_batch_was_one_call() -> None:
    m = AttributeMap(PAGES)
    with pytest.raises(IndexError):
        m.put([1, PAGES], 1)
    assert counted(m, lambda: m.put(np.arange(1000), 1)) == {"put_calls": 1, "put_pages": 1000, "calls": 1}


# ---- C ----

class Run(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("stop", ctypes.c_uint64), ("first", ctypes.c_uint8),
                ("second", ctypes.c_uint8))


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Run))
#: The table of kvmattr.h behind its two sizes, in its order.
TABLE = ["error_text", "map_of", "view_of", "object_of", "create", "copy", "destroy", "share", "unshare", "pages",
         "version", "get", "take", "all", "run", "runs", "diff", "update", "update_changes", "snapshot", "release",
         "restore", "cursor_open", "cursor_seek", "cursor_close"]
POINTER, U64, U8, INT = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint8, ctypes.c_int
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "get": (POINTER, U64), "take": (POINTER, POINTER, POINTER, ctypes.c_size_t), "all": (POINTER, U64, U64, U8, U8),
    "run": (POINTER, U64, POINTER), "runs": (POINTER, U64, U64, CALLBACK, POINTER),
    "diff": (POINTER, POINTER, U64, U64, CALLBACK, POINTER), "update": (POINTER, U64, U64, U8, INT, U8),
    "update_changes": (POINTER, U64, U64, U8, INT, U8, CALLBACK, POINTER), "snapshot": (POINTER, POINTER),
    "copy": (POINTER, POINTER), "release": (POINTER,), "destroy": (POINTER,), "restore": (POINTER, POINTER),
    "share": (POINTER,), "unshare": (POINTER,), "cursor_open": (POINTER, POINTER), "cursor_seek": (POINTER, U64),
    "cursor_close": (POINTER,),
}


CAPSULE_POINTER = ctypes.PYFUNCTYPE(POINTER, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))


class Embedder:
    """A program that has the map of a Python object."""

    def __init__(self, m: AttributeMap) -> None:
        address = CAPSULE_POINTER(_core.C_API, b"kvmattr._core.C_API")
        self.table = (ctypes.c_void_p * len(TABLE)).from_address(address + 8)
        self.map = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(self.table[TABLE.index("map_of")])(m)
        self.view = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(self.table[TABLE.index("view_of")])

    def asked(self, name: str, *words: Any) -> int:
        result: int = ctypes.PYFUNCTYPE(ctypes.c_int, *SIGNATURES[name])(self.table[TABLE.index(name)])(*words)
        return result

    def call(self, name: str, *words: Any) -> int:
        result = self.asked(name, *words)
        assert result >= 0
        return result

    def made(self, name: str, end: str) -> None:
        where = ctypes.c_void_p()
        self.call(name, self.map, ctypes.addressof(where))
        self.call(end, where)


@pytest.mark.parametrize("shared", [False, True])
def test_a_call_from_c(shared: bool) -> None:
    m = AttributeMap(PAGES)
    m[10:20] = 3
    before = m.snapshot()
    c = Embedder(m)
    go_on = CALLBACK(lambda context, run: 0)
    gfns, run = (ctypes.c_uint64 * 3)(1, 2, 3), Run()
    if shared:
        c.call("share", c.map)
    for call, expected in [
        (lambda: c.call("get", c.map, 11), {"get_calls": 1}),
        (lambda: c.call("take", c.map, gfns, (ctypes.c_uint8 * 3)(), 3), {"take_calls": 1, "take_pages": 3}),
        (lambda: c.call("all", c.map, 0, 9, 0, 255), {"search_calls": 1, "search_pages": 9}),
        (lambda: c.call("run", c.map, 11, ctypes.addressof(run)), {"run_calls": 1}),
        (lambda: c.call("runs", c.map, 0, 30, go_on, None), {"runs_calls": 1, "runs_runs": 3}),
        (lambda: c.call("update", c.map, 0, 512, 1, 0, 255), {"update_calls": 1, "update_pages": 512}),
        (lambda: c.call("update", c.map, 5, 6, 2, 0, 255), {"update_calls": 1, "update_pages": 1}),
        (lambda: c.call("update_changes", c.map, 0, 512, 8, 1, 255, go_on, None),
         {"update_calls": 1, "update_pages": 512}),
        (lambda: c.call("diff", c.map, c.view(before), 0, 512, go_on, None), {"diff_calls": 1, "diff_runs": 5}),
        (lambda: c.made("snapshot", "release"), {"snapshot_calls": 1}),
        (lambda: c.made("copy", "destroy"), {"copy_calls": 1}),
        (lambda: c.call("restore", c.map, c.view(before)), {"restore_calls": 1}),
        (lambda: c.call("get", c.view(before), 11), {"get_calls": 1}),
        (lambda: c.call("all", c.view(before), 0, 9, 0, 255), {"search_calls": 1, "search_pages": 9}),
        (lambda: c.call("take", c.view(before), gfns, (ctypes.c_uint8 * 3)(), 3), {"take_calls": 1, "take_pages": 3}),
        (lambda: c.call("run", c.view(before), 11, ctypes.addressof(run)), {"run_calls": 1}),
    ]:
        total = sum(number for name, number in expected.items() if name.endswith("_calls"))
        assert counted(m, call) == {**expected, "calls": total}
    if shared:
        c.call("unshare", c.map)


def test_a_cursor_counts_when_it_looks_anew() -> None:
    m = AttributeMap(PAGES)
    m[0:PAGES:1] = np.arange(PAGES, dtype=np.uint8) & 1
    c, cursor = Embedder(m), ctypes.c_void_p()
    c.call("cursor_open", c.map, ctypes.addressof(cursor))
    assert counted(m, lambda: c.call("cursor_seek", cursor, 5)) == {"seek_calls": 1, "calls": 1}
    c.call("cursor_close", cursor)


def test_what_c_is_refused_is_not_counted() -> None:
    m = AttributeMap(PAGES)
    c, other, cursor = Embedder(m), AttributeMap(5), ctypes.c_void_p()
    c.call("cursor_open", c.map, ctypes.addressof(cursor))
    stop = CALLBACK(lambda context, run: -7)
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("get", (c.map, PAGES)), ("take", (c.map, (ctypes.c_uint64 * 1)(PAGES), (ctypes.c_uint8 * 1)(), 1)),
        ("all", (c.map, 5, 3, 0, 255)), ("run", (c.map, 5, None)), ("runs", (c.map, 5, 3, stop, None)),
        ("runs", (c.map, 0, 3, CALLBACK(), None)), ("diff", (c.map, c.view(other), 0, 5, stop, None)),
        ("update", (c.map, 0, 5, 1, 3, 255)), ("update_changes", (c.map, 5, 3, 1, 0, 255, stop, None)),
        ("snapshot", (c.map, None)), ("copy", (c.map, None)), ("restore", (c.map, c.view(other))),
        ("cursor_seek", (cursor, PAGES)), ("get", (None, 5)), ("runs", (None, 0, 3, stop, None)),
        ("cursor_seek", (None, 5))]
    for name, words in wrong:
        results: list[int] = []
        assert counted(m, lambda: results.append(c.asked(name, *words))) == {}  # noqa: B023
        assert results[0] < 0, name
    # What a callback returns is no refusal, whatever it is; it may end the map that is walked.
    assert counted(m, lambda: c.asked("runs", c.map, 0, 3, stop, None)) == {
        "runs_calls": 1, "runs_runs": 1, "calls": 1}
    own = ctypes.c_void_p()
    c.call("copy", c.map, ctypes.addressof(own))
    ending = CALLBACK(lambda context, run: c.asked("destroy", own) + 1)
    assert counted(m, lambda: c.call("runs", own, 0, 3, ending, None)) == {"runs_calls": 1, "runs_runs": 1, "calls": 1}
    c.call("cursor_close", cursor)


#: A program that had the library's table before anybody asked for counts.
EARLY = """
from tests.test_store_calls import Embedder, counted
from kvmattr import AttributeMap
m = AttributeMap(100)
c = Embedder(m)
for _ in range(3):
    c.call("get", c.map, 5)
assert m.stats()["get_calls"] == 0
assert counted(m, lambda: c.call("get", c.map, 5)) == {"get_calls": 1, "calls": 1}
"""


#: The first stats() of a process comes while other threads are in the C functions.
MEANWHILE = """
import ctypes, threading
from kvmattr import AttributeMap
from tests.test_store_calls import PAGES, POINTER, TABLE, U8, U64, Embedder
m = AttributeMap(PAGES)
c = Embedder(m)
c.call("share", c.map)
GET = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, U64)      # which gives the GIL up
ALL = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, U64, U64, U8, U8)
begun = threading.Barrier(4)

def look():
    begun.wait()
    for gfn in range(5000):
        assert GET(c.table[TABLE.index("get")])(c.map, gfn) == 0
        assert ALL(c.table[TABLE.index("all")])(c.map, gfn, gfn + 2, 0, 0xff) == 1

def three(meanwhile):
    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait()
    while any(thread.is_alive() for thread in threads):
        meanwhile()
    for thread in threads:
        thread.join()

three(m.stats)
before = m.stats()
three(m.stats)
after = m.stats()
found = {name: after[name] - before[name] for name in ("get_calls", "search_calls", "search_pages", "calls")}
assert found == {"get_calls": 15000, "search_calls": 15000, "search_pages": 30000, "calls": 30000}, found
m.validate()
"""


@pytest.mark.parametrize("program", [EARLY, MEANWHILE], ids=["then", "meanwhile"])
def test_c_is_counted_from_the_first_stats_on(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- Cython ----

def test_a_call_from_cython() -> None:
    """The VM is written in Cython and calls the store as other Cython code does. Its own calls are counted beside."""
    vm = VM()
    vm.set_user_memory_region(0, 0, 1 << 30)
    found = counted(vm.attributes, lambda: vm.set_memory_attributes(0, 1 << 21, KVM_MEM_ATTR_NO_WRITE))
    assert (found["update_calls"], found["update_pages"]) == (1, 512)
    assert (found["vm_set_calls"], found["vm_set_ranges"]) == (1, 1)
    records = np.zeros(512, MEMORY_ATTRIBUTES)
    records["address"], records["size"] = np.arange(512) << 12, 1 << 12
    found = counted(vm.attributes, lambda: vm.set_memory_attributes_many(records))
    assert (found["update_calls"], found["update_pages"]) == (512, 512)
    assert (found["vm_set_calls"], found["vm_set_ranges"]) == (1, 512)
