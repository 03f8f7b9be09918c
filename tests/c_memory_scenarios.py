"""Run by test_c_memory.py in a process of its own, with failing_memory.c preloaded.

python -m tests.c_memory_scenarios [NAME ...]: as memory_scenarios.py does for Python's methods, for functions of the C
API, called through the table that C clients have. Each request for memory that one makes is refused once. Then it gives
KVMATTR_NO_MEMORY (object_of: MemoryError), nothing has changed, every map is sound, and the call works again.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint8, c_uint64, c_void_p, py_object
from pathlib import Path
from typing import Any

import numpy as np

from kvmattr import AttributeMap, _core, embedding
from tests.memory_scenarios import EXTENSION, NEVER, Shim, growing_pages, scattered, three_values

PAGES = 1 << 40
MOST_REQUESTS = 400
NO_MEMORY = -1
WHOLE = (0, PAGES)


class Run(ctypes.Structure):
    """kvmattr_run."""

    _fields_ = (("start", c_uint64), ("stop", c_uint64), ("attributes", c_uint8))


class Change(ctypes.Structure):
    """kvmattr_change."""

    _fields_ = (("start", c_uint64), ("stop", c_uint64), ("before", c_uint8), ("after", c_uint8))


RUNS = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Run))
CHANGES = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Change))

#: Result and arguments of each function, by its name in the table.
TYPES: dict[str, tuple[Any, ...]] = {
    "error_text": (c_char_p, c_int),
    "map_of": (c_void_p, py_object),
    "view_of": (c_void_p, py_object),
    "object_of": (py_object, c_void_p),
    "create": (c_int, c_uint64, c_uint8, POINTER(c_void_p)),
    "copy": (c_int, c_void_p, POINTER(c_void_p)),
    "destroy": (c_int, c_void_p),
    "share": (c_int, c_void_p),
    "unshare": (c_int, c_void_p),
    "pages": (c_uint64, c_void_p),
    "version": (POINTER(c_uint64), c_void_p),
    "get": (c_int, c_void_p, c_uint64),
    "take": (c_int, c_void_p, c_void_p, c_void_p, c_size_t),
    "all": (c_int, c_void_p, c_uint64, c_uint64, c_uint8, c_uint8),
    "run": (c_int, c_void_p, c_uint64, POINTER(Run)),
    "runs": (c_int, c_void_p, c_uint64, c_uint64, RUNS, c_void_p),
    "diff": (c_int, c_void_p, c_void_p, c_uint64, c_uint64, CHANGES, c_void_p),
    "update": (c_int, c_void_p, c_uint64, c_uint64, c_uint8, c_int, c_uint8),
    "update_changes": (c_int, c_void_p, c_uint64, c_uint64, c_uint8, c_int, c_uint8, CHANGES, c_void_p),
    "snapshot": (c_int, c_void_p, POINTER(c_void_p)),
    "release": (c_int, c_void_p),
    "restore": (c_int, c_void_p, c_void_p),
    "cursor_open": (c_int, c_void_p, POINTER(c_void_p)),
    "cursor_seek": (c_int, c_void_p, c_uint64),
    "cursor_close": (c_int, c_void_p),
}
WITH_PYTHON = ("map_of", "view_of", "object_of")


def functions() -> list[str]:
    """The functions of the table, as the header has them."""
    header = (Path(embedding.get_include()) / "kvmattr.h").read_text()
    table = re.search(r"typedef struct kvmattr_api \{(.*?)\} kvmattr_api;", header, re.DOTALL)
    assert table is not None
    return re.findall(r"\(\*(\w+)\)\(", table[1])


def table() -> dict[str, Any]:
    """Each function of the C API, callable."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = c_void_p, (py_object, c_char_p)
    words = ctypes.cast(pointer(_core.C_API, b"kvmattr._core.C_API"), POINTER(c_void_p))
    made = {}
    for place, name in enumerate(functions(), start=1):     # one word is the version and the size
        kind = ctypes.PYFUNCTYPE if name in WITH_PYTHON else ctypes.CFUNCTYPE
        made[name] = kind(*TYPES[name])(words[place])
    return made


def filled(m: AttributeMap) -> AttributeMap:
    """Scattered pages, and blocks of several values on both sides of a gibibyte's edge."""
    m.put(scattered(800), 3)
    m[2**20:2**20 + 3000] = three_values(3000)
    m[2**27 - 700:2**27 + 700] = np.resize(np.array([0, 1], dtype=np.uint8), 1400)
    return m


class World:
    """A map with a snapshot and a copy, a map of another family, a cursor; and what the callbacks heard."""

    def __init__(self, c: dict[str, Any]) -> None:
        self.c = c
        self.object, self.other = filled(AttributeMap(PAGES)), AttributeMap(PAGES)
        self.other.put(scattered(2000, seed=9), 5)
        self.other[2**21:2**21 + 3000] = three_values(3000)
        self.kept = self.object.snapshot()
        self.object.or_(2**20 + 5, 2**20 + 600, 8)
        self.map, self.far = c["map_of"](self.object), c["map_of"](self.other)
        self.made: list[c_void_p] = []
        self.heard: list[tuple[int, ...]] = []
        self.own, self.snapshot, self.cursor = c_void_p(), c_void_p(), c_void_p()
        assert c["copy"](self.map, byref(self.own)) == 0
        assert c["snapshot"](self.map, byref(self.snapshot)) == 0
        assert c["cursor_open"](self.map, byref(self.cursor)) == 0
        grow(self)
        self.on_run = RUNS(lambda _, run: self.hear(run[0].start, run[0].attributes))
        self.on_change = CHANGES(lambda _, change: self.hear(change[0].start, change[0].after))

    def hear(self, *told: int) -> int:
        """What a callback does: it goes on."""
        self.heard.append(told)
        return 0

    def pointer(self) -> c_void_p:
        """Where a call puts what it makes."""
        self.made.append(c_void_p())
        return self.made[-1]

    def new(self, name: str, *arguments: Any) -> int:
        """A call whose last argument is where it puts what it makes; that stays NULL where it fails."""
        there = self.pointer()
        result: int = self.c[name](*arguments, byref(there))
        assert (result >= 0) == bool(there.value), (name, result, there)
        return result

    def state(self) -> tuple[Any, ...]:
        """Content of every map, through Python."""
        return tuple((m.runs().tobytes(), m.version) for m in (self.object, self.other, self.kept))

    def sound(self) -> None:
        """What the tree promises, of every map."""
        for m in (self.object, self.other, self.kept):
            m.validate()


def grow(world: World) -> None:
    """Write pages that cost until the next would ask for memory, in this world as in the first."""
    global growth
    pages = growing_pages().tolist()
    for gfn in pages[:growth] if growth >= 0 else ():
        world.object[gfn] = 5
    if growth >= 0:
        return
    shim = Shim()
    for number, gfn in enumerate(pages):
        shim.arm(EXTENSION, NEVER, 0)
        world.object[gfn] = 5
        if shim.disarm():
            growth = number
            return
    raise AssertionError("600 nodes and as many slabs need no memory")


#: Pages that `grow` writes; below zero until the first world has found out.
growth = -1


def page(w: World) -> int:
    """A value that is new to its block, which the snapshots share."""
    result: int = w.c["update"](w.map, 2**20 + 71, 2**20 + 72, 99, 0, 0xFF)
    return result


def taken(w: World) -> Any:
    gfns, out = scattered(3000), np.empty(3000, np.uint8)
    return w.c["take"](w.map, gfns.ctypes.data, out.ctypes.data, len(gfns)), out.tobytes()


def sought(w: World) -> list[int]:
    return [w.c["cursor_seek"](w.cursor, gfn) for gfn in (0, 2**20 + 7, 2**27 - 3, PAGES - 1)]


def at(w: World) -> tuple[int, ...]:
    found = Run()
    return w.c["run"](w.map, 2**20 + 7, byref(found)), found.start, found.stop, found.attributes


def object_of(w: World) -> bytes:
    made: AttributeMap = w.c["object_of"](w.map)
    return made.runs().tobytes()


#: Name: the call. The words before a colon are a function of the table.
SCENARIOS: dict[str, Callable[[World], Any]] = {
    "error_text": lambda w: w.c["error_text"](NO_MEMORY),
    "map_of": lambda w: w.c["map_of"](w.object) == w.map,
    "view_of": lambda w: bool(w.c["view_of"](w.kept)),
    "object_of": object_of,
    "create": lambda w: w.new("create", PAGES, 3),
    "copy": lambda w: w.new("copy", w.map),
    "destroy": lambda w: w.c["destroy"](w.own),
    "share": lambda w: (w.c["share"](w.map), w.c["get"](w.map, 2**20 + 9)),
    "unshare": lambda w: (w.c["share"](w.map), w.c["unshare"](w.map)),
    "pages": lambda w: w.c["pages"](w.map),
    "version": lambda w: w.c["version"](w.map)[0],
    "get": lambda w: w.c["get"](w.map, 2**20 + 9),
    "take": taken,
    "all": lambda w: w.c["all"](w.map, *WHOLE, 0, 0xFF),
    "run": at,
    "runs": lambda w: (w.c["runs"](w.map, *WHOLE, w.on_run, None), hash(tuple(w.heard))),
    "diff": lambda w: (w.c["diff"](w.map, w.snapshot, *WHOLE, w.on_change, None), len(w.heard)),
    "diff: another family": lambda w: (w.c["diff"](w.map, w.far, *WHOLE, w.on_change, None), hash(tuple(w.heard))),
    "update": lambda w: w.c["update"](w.map, 2**20 + 100, 2**27 + 3, 9, 0, 0xFF),
    "update: page": page,
    "update: or": lambda w: w.c["update"](w.map, 2**20 + 100, 2**27 + 3, 16, 1, 0xFF),
    "update_changes": lambda w: (
        w.c["update_changes"](w.map, 2**20 + 100, 2**27 + 3, 64, 1, 0xFF, w.on_change, None), hash(tuple(w.heard))
    ),
    "snapshot": lambda w: w.new("snapshot", w.map),
    "release": lambda w: w.c["release"](w.snapshot),
    "restore": lambda w: w.c["restore"](w.map, w.c["view_of"](w.kept)),
    "restore: another family": lambda w: w.c["restore"](w.map, w.far),
    "cursor_open": lambda w: w.new("cursor_open", w.map),
    "cursor_seek": sought,
    "cursor_close": lambda w: w.c["cursor_close"](w.cursor),
}


def failed(answer: Any) -> bool:
    """Whether a call said that memory was refused."""
    return (answer[0] if isinstance(answer, tuple) else answer) == NO_MEMORY and not isinstance(answer, bool)


def run(name: str) -> int:
    """The number of requests for memory that were refused in turn."""
    call, shim, c = SCENARIOS[name], Shim(), table()
    World(c)                        # finds how much it may grow
    twin = World(c)
    expected = call(twin)
    assert not failed(expected), name
    after, refused = twin.state(), 0
    for number in range(1, MOST_REQUESTS):
        world = World(c)
        before = world.state()
        shim.arm(EXTENSION, number, 0)
        try:
            answer = call(world)
        except MemoryError:
            answer = NO_MEMORY
        requests = shim.disarm()
        world.sound()
        if failed(answer):
            refused += 1
            assert world.state() == before, f"{name}: something changed when request {number} was refused"
            assert world.heard == [], f"{name}: request {number} was refused, and the callback was called"
            answer = call(world)
        assert answer == expected, f"{name}: request {number}: {answer!r}, not {expected!r}"
        assert world.state() == after, f"{name}: request {number} was refused, and it does something else"
        world.sound()
        if requests < number:
            return refused
    raise AssertionError(f"{name} makes {MOST_REQUESTS} requests and more")


if __name__ == "__main__":
    for asked in sys.argv[1:] or SCENARIOS:
        print(asked, run(asked))
