"""The C API: what each function answers, what wrong input gives, who may use what, and which clients fit.

The client is compiled from an installed kvmattr with gcc and with clang; its functions take handles as
addresses.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation, get_include
from tests.embedding import building

NO_MEMORY, BAD_MAP, READ_ONLY, BAD_GFN, BAD_RANGE, BAD_OPERATION = -1, -2, -3, -4, -5, -6
BAD_PAGES, BAD_POINTER, NOT_YOURS, NOT_SHARED, NOT_IMPORTED = -7, -8, -9, -10, -11
PAGES = 5000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module", params=["gcc", "clang"])
def client(
    request: pytest.FixtureRequest, site: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModuleType:
    path = building.compile_module(
        "client",
        building.SOURCES / "client.c",
        building.include_options(site),
        tmp_path_factory.mktemp("client"),
        building.compiler(request.param),
    )
    return building.load("client", path)


def as_runs(m: AttributeMap, start: int = 0, stop: int | None = None) -> list[tuple[int, int, int]]:
    result: list[tuple[int, int, int]] = m.runs(start, stop).tolist()
    return result


def random_range(chance: random.Random, pages: int) -> tuple[int, int]:
    start = min(pages, chance.choice([0, 1, 511, 512, 513, 1024, chance.randrange(pages)]))
    stop = min(pages, start + chance.choice([0, 1, 1, 2, 40, 511, 512, 513, pages]))
    return start, stop


def test_the_headers_are_where_get_include_says() -> None:
    assert sorted(path.name for path in Path(get_include()).iterdir()) == ["kvmattr.h", "kvmattr.hpp"]


@pytest.mark.parametrize("pages", [1, 511, 512, 513, PAGES, 1 << 20, 1 << 52])
@pytest.mark.parametrize("shared", [False, True])
def test_c_and_python_see_the_same(client: ModuleType, pages: int, shared: bool) -> None:
    """Random updates from C on one map and from Python on another: same answers, same pages, sound trees."""
    chance = random.Random(pages)
    ours, theirs = AttributeMap(pages, 3), AttributeMap(pages, 3)
    handle = client.map_of(ours)
    cursor = client.cursor_open(handle)
    if shared:
        assert client.share(handle) == 0
    for _ in range(300):
        start, stop = random_range(chance, pages)
        attributes, operation, mask = chance.randrange(8), chance.randrange(3), chance.choice([0xFF, 1, 0x0E])
        before = theirs.snapshot()
        changed = theirs.update(start, stop, attributes, Operation(operation), mask)
        version = client.version(handle)
        if chance.random() < 0.5:
            assert client.update(handle, start, stop, attributes, operation, mask) == changed
        else:
            expected = theirs.diff(before).tolist() if changed else []
            assert client.update_changes(handle, start, stop, attributes, operation, mask, 0) == (
                changed,
                expected,
            )
        assert (client.version(handle) > version) == changed
        gfn = chance.choice([min(start, pages - 1), min(stop, pages - 1), chance.randrange(pages)])
        assert client.get(handle, gfn) == client.cursor_get(cursor, gfn) == theirs[gfn]
        assert client.run_at(handle, gfn) == theirs.run(gfn)
        assert client.all(handle, start, stop, attributes, mask) == theirs.all(start, stop, attributes, mask)
        assert client.runs(handle, start, stop, 0) == (0, as_runs(theirs, start, stop))
    for gfn in [*range(min(pages, 3000)), *range(max(0, pages - 600), pages)]:
        assert client.cursor_get(cursor, gfn) == theirs[gfn]
    assert client.cursor_close(cursor) == 0
    if shared:
        assert client.unshare(handle) == 0
    assert ours == theirs
    ours.validate()


def every_second(pages: int) -> AttributeMap:
    m = AttributeMap(pages)
    m[::] = np.arange(pages, dtype=np.uint8) & 1
    return m


def many_values(pages: int) -> AttributeMap:
    """Blocks in every encoding of a leaf, and uniform ones."""
    m = every_second(pages)
    chance = np.random.default_rng(pages)
    for block in range(min(pages // 512, 64)):
        if kind := block % 5:
            values = chance.integers(0, (2, 4, 200, 3)[kind - 1], 512).astype(np.uint8)
            m[block * 512 : (block + 1) * 512] = np.repeat(values[:16], 32) if kind == 4 else values
        else:
            m.write(block * 512, (block + 1) * 512, 9)
    return m


@pytest.mark.parametrize("content", [AttributeMap, every_second, many_values])
@pytest.mark.parametrize("pages", [300, 512, 1 << 16, 1 << 18, (1 << 19) + 5])
@pytest.mark.parametrize("space", [0, 1 << 25, 1 << 30, 1 << 52])
def test_get_goes_every_way(client: ModuleType, content: Any, pages: int, space: int) -> None:
    """The way of a look-up depends on height, encoding and what is pending at each level."""
    m = content(pages)
    if space:
        m = AttributeMap.from_runs(m.runs(), space)
        m.write(space // 2, space // 2 + 3, 7)
    gfns = np.unique(np.random.default_rng(1).integers(0, pages, 300, np.uint64)).tolist()
    gfns += [pages - 1, len(m) - 1, len(m) // 2, min(len(m) - 1, len(m) // 2 + 1)]
    for change in (
        lambda: None,
        lambda: m.or_(0, len(m), 4),  # pending at the root
        lambda: m.update(0, min(1 << 18, len(m)), 2, Operation.OR),  # at level 3
        lambda: m.update(0, 512 * (pages // 512), 0xFE, Operation.AND),
        lambda: m.update(0, len(m), 0x30, Operation.WRITE, 0x70),
    ):
        change()
        kept = m.snapshot()
        for handle in (client.map_of(m), client.view_of(m), client.view_of(kept)):
            assert [client.get(handle, gfn) for gfn in gfns] == m.take(np.array(gfns)).tolist()
        handle = client.map_of(m)
        assert client.share(handle) == 0
        assert [client.get(handle, gfn) for gfn in gfns] == m.take(np.array(gfns)).tolist()
        assert client.unshare(handle) == 0


@pytest.mark.parametrize("shared", [False, True])
def test_take_reads_one_moment(client: ModuleType, shared: bool) -> None:
    m = AttributeMap(PAGES)
    m[100:4000] = np.arange(3900) % 7
    handle = client.map_of(m)
    if shared:
        client.share(handle)
    gfns = np.random.default_rng(1).integers(0, PAGES, 3000).astype(np.uint64)
    for view in (handle, snapshot := client.snapshot(handle)):
        out = np.zeros(gfns.size, np.uint8)
        assert client.take(view, gfns, out) == 0
        assert np.array_equal(out, m.take(gfns))
    gfns[1700] = PAGES
    out[:] = 99
    assert client.take(handle, gfns, out) == BAD_GFN
    assert (out == 99).all()
    assert client.release(snapshot) == 0
    if shared:
        client.unshare(handle)


def test_snapshots_restore_and_differ(client: ModuleType) -> None:
    handle = client.create(PAGES, 1)
    first = client.snapshot(handle)
    client.update(handle, 100, 200, 6, 0, 0xFF)
    second = client.snapshot(handle)
    client.update(handle, 150, 3000, 8, 1, 0xFF)
    assert (client.get(first, 150), client.get(second, 150)) == (1, 6)
    assert client.diff(handle, second, 0, PAGES, 0) == (0, [(150, 200, 6, 14), (200, 3000, 1, 9)])
    assert client.diff(handle, second, 0, PAGES, 1) == (7, [(150, 200, 6, 14)])
    version = client.version(handle)
    assert client.restore(handle, second) == 0
    assert client.version(handle) > version
    assert client.diff(handle, second, 0, PAGES, 0) == (0, [])
    assert client.restore(handle, first) == 0
    assert client.all(handle, 0, PAGES, 1, 0xFF) == 1
    for snapshot in (first, second):
        assert client.release(snapshot) == 0
    assert client.destroy(handle) == 0


def test_restore_from_another_family_copies(client: ModuleType) -> None:
    source = AttributeMap(PAGES)
    source[7:900:] = np.arange(893) % 5
    handle = client.create(PAGES, 9)
    assert client.restore(handle, client.view_of(source)) == 0
    assert client.object_of(handle) == source
    assert client.destroy(handle) == 0


def test_a_map_of_c_goes_to_python_as_a_copy(client: ModuleType) -> None:
    handle = client.create(PAGES, 0)
    client.update(handle, 5, 9, 3, 0, 0xFF)
    m = client.object_of(handle)
    client.update(handle, 5, 6, 4, 0, 0xFF)
    m[8] = 1
    assert (m[5], m[8], client.get(handle, 8)) == (3, 1, 3)
    assert client.destroy(handle) == 0
    m.validate()
    with pytest.raises(ValueError, match=r"^NULL, not a map, or a map that was released or destroyed$"):
        client.object_of(0)


def test_a_callback_ends_the_walk_and_the_update_stands(client: ModuleType) -> None:
    m = AttributeMap(PAGES)
    m[::] = np.arange(PAGES) % 2
    handle = client.map_of(m)
    assert client.runs(handle, 10, 20, 3) == (7, [(10, 11, 0), (11, 12, 1), (12, 13, 0)])
    assert client.update_changes(handle, 0, PAGES, 1, 1, 0xFF, 2) == (7, [(0, 1, 0, 1), (2, 3, 0, 1)])
    assert m.uniform(0, PAGES) == 1


# ---- wrong input ----

EXTREMES = [PAGES, PAGES + 1, 1 << 52, (1 << 64) - 1]


@pytest.mark.parametrize("gfn", EXTREMES)
def test_gfns_outside(client: ModuleType, gfn: int) -> None:
    m = AttributeMap(PAGES)
    handle = client.map_of(m)
    cursor = client.cursor_open(handle)
    assert client.get(handle, gfn) == client.run_at(handle, gfn) == client.cursor_get(cursor, gfn) == BAD_GFN
    assert client.cursor_get(cursor, 0) == 0
    assert client.cursor_get(cursor, gfn) == BAD_GFN
    client.cursor_close(cursor)


@pytest.mark.parametrize(
    ("start", "stop"), [(1, 0), (PAGES, 0), (0, PAGES + 1), ((1 << 64) - 1, 1), (0, (1 << 64) - 1)]
)
def test_bad_ranges_change_nothing(client: ModuleType, start: int, stop: int) -> None:
    m = AttributeMap(PAGES)
    handle = client.map_of(m)
    assert client.update(handle, start, stop, 1, 0, 0xFF) == BAD_RANGE
    assert client.update_changes(handle, start, stop, 1, 0, 0xFF, 0) == (BAD_RANGE, [])
    assert client.all(handle, start, stop, 1, 0xFF) == BAD_RANGE
    assert client.runs(handle, start, stop, 0) == (BAD_RANGE, [])
    assert client.diff(handle, handle, start, stop, 0) == (BAD_RANGE, [])
    assert m.version == 0


@pytest.mark.parametrize("operation", [-1, 3, 1 << 30])
def test_unknown_operations(client: ModuleType, operation: int) -> None:
    m = AttributeMap(PAGES)
    assert client.update(client.map_of(m), 0, 1, 1, operation, 0xFF) == BAD_OPERATION
    assert client.update_changes(client.map_of(m), 0, 1, 1, operation, 0xFF, 0) == (BAD_OPERATION, [])
    assert m.version == 0


def test_wrong_handles(client: ModuleType) -> None:
    """NULL, and memory that is no map."""
    zeros = np.zeros(512, np.uint64)  # more than a map or a cursor has, so that nothing behind it is read
    good = client.create(PAGES, 0)
    for bad in (0, zeros.ctypes.data):
        for name in ("copy", "snapshot", "destroy", "release", "share", "unshare", "cursor_open"):
            assert getattr(client, name)(bad) == BAD_MAP, name
        assert client.pages(bad) == 0
        assert client.version(bad) is None
        assert client.get(bad, 0) == client.run_at(bad, 0) == client.all(bad, 0, 0, 0, 0) == BAD_MAP
        assert client.take(bad, b"", bytearray()) == client.update(bad, 0, 1, 1, 0, 0xFF) == BAD_MAP
        assert client.update_changes(bad, 0, 1, 1, 0, 0xFF, 0) == client.runs(bad, 0, 0, 0) == (BAD_MAP, [])
        assert client.diff(bad, good, 0, 0, 0) == client.diff(good, bad, 0, 0, 0) == (BAD_MAP, [])
        assert client.restore(bad, good) == client.restore(good, bad) == BAD_MAP
        assert client.cursor_close(bad) == BAD_POINTER
    assert client.null_pointers(good) == (BAD_POINTER,) * 7 + (0, BAD_POINTER)
    assert client.runs(good, 0, 1, -1) == client.diff(good, good, 0, 1, -1) == (BAD_POINTER, [])
    assert client.update_changes(good, 0, 1, 1, 0, 0xFF, -1) == (BAD_POINTER, [])
    assert client.get(good, 0) == 0
    assert client.destroy(good) == 0


def test_sizes_that_do_not_fit(client: ModuleType) -> None:
    assert client.create((1 << 52) + 1, 0) == BAD_PAGES
    small, large = client.create(10, 0), client.create(11, 0)
    assert client.restore(small, large) == BAD_PAGES
    assert client.diff(small, large, 0, 1, 0) == (BAD_PAGES, [])
    assert (client.destroy(small), client.destroy(large)) == (0, 0)


def test_who_owns_what(client: ModuleType) -> None:
    m = AttributeMap(PAGES)
    ours = client.create(PAGES, 0)
    snapshot = client.snapshot(ours)
    assert client.destroy(client.map_of(m)) == client.release(client.map_of(m)) == NOT_YOURS
    assert client.release(ours) == client.destroy(snapshot) == NOT_YOURS
    assert client.release(client.view_of(m.snapshot())) == NOT_YOURS
    assert client.unshare(ours) == NOT_SHARED
    assert client.release(snapshot) == client.destroy(ours) == 0


def test_snapshots_are_read_only(client: ModuleType) -> None:
    m = AttributeMap(PAGES)
    view = m.snapshot()
    for handle in (client.snapshot(client.map_of(m)), client.view_of(view)):
        assert client.update(handle, 0, 1, 1, 0, 0xFF) == READ_ONLY
        assert client.update_changes(handle, 0, 1, 1, 0, 0xFF, 0) == (READ_ONLY, [])
        assert client.restore(handle, client.map_of(m)) == READ_ONLY
        copy = client.copy(handle)
        assert client.update(copy, 0, 1, 1, 0, 0xFF) == 1
        assert client.destroy(copy) == 0
        assert client.get(handle, 0) == 0
    with pytest.raises(TypeError, match="read-only: change a copy"):
        client.map_of(view)
    copied = view.copy()
    assert client.update(client.map_of(copied), 0, 1, 1, 0, 0xFF) == 1


# ---- what may be moved ----

def sparse_snapshot() -> tuple[AttributeMap, AttributeMap]:
    """An empty map, and a snapshot that alone has what is left in slabs of which three quarters of the records went."""
    m = AttributeMap(4096 * 512)
    firsts = np.arange(0, len(m), 512, dtype=np.uint64)
    pages = np.concatenate([firsts + np.uint64(7), firsts + np.uint64(300)])
    m.put(np.sort(pages), 1)
    before = m.snapshot()
    m.put(np.sort(pages[pages // np.uint64(512) % np.uint64(4) != 0]), 0)
    snapshot = m.snapshot()
    m.fill(0)
    del before
    return m, snapshot


@pytest.mark.parametrize(("whose", "moved"), [
    ("Python's", True), ("shown to C", False), ("of one that was shown to C", False), ("C's", False),
    ("a copy of C's", True), ("a copy of C's as Python has it", True)])
def test_nothing_is_moved_that_c_looks_at_without_the_mutex(client: ModuleType, whose: str, moved: bool) -> None:
    """Records are moved together behind a map's updates, which other threads may make: those of a snapshot only as long
    as no program in C can look into it. A copy that C writes to is a map as any other, and its slabs are emptied."""
    m, kept = sparse_snapshot()
    expected = kept.to_numpy(0, len(kept))
    handle = None if whose == "Python's" else client.view_of(kept)
    if whose == "of one that was shown to C":
        kept = kept.snapshot()
        handle = client.view_of(kept)
    elif whose == "C's":
        handle = client.snapshot(handle)
        del kept
    elif whose == "a copy of C's":
        handle = client.copy(handle)
        del kept
    elif whose == "a copy of C's as Python has it":
        kept = client.object_of(handle)
        handle = client.map_of(kept)
    m[5] = 1
    left = m.stats()["slack"]           # asking tidies
    assert (left < 64 << 10) == moved, left
    m.validate()
    if handle is not None:
        seen = np.zeros(len(m), np.uint8)
        assert client.take(handle, np.arange(len(m), dtype=np.uint64), seen) == 0
        assert np.array_equal(seen, expected)
    if whose == "C's":
        client.release(handle)
    elif whose == "a copy of C's":
        client.destroy(handle)


def test_a_live_view_shows_every_change(client: ModuleType) -> None:
    m = AttributeMap(PAGES)
    view = m._readonly_view()
    handle = client.view_of(view)
    cursor = client.cursor_open(handle)
    for value in range(1, 4):
        m.write(0, 9, value)
        assert client.get(handle, 5) == client.cursor_get(cursor, 5) == value
    client.cursor_close(cursor)
    with pytest.raises(TypeError, match="read-only: change a copy"):
        client.map_of(view)


@pytest.mark.parametrize("value", [None, 5, "map"])
def test_objects_that_are_no_maps(client: ModuleType, value: Any) -> None:
    for function in (client.map_of, client.view_of):
        with pytest.raises(TypeError, match=rf"^need an AttributeMap, not {type(value).__name__}$"):
            function(value)


def test_every_error_has_its_text(client: ModuleType) -> None:
    texts = [client.error_text(code) for code in range(NOT_SHARED, 0)]
    assert len(set(texts)) == 10
    assert client.error_text(0) == client.error_text(7) == "no error"
    assert client.error_text(NOT_IMPORTED) == "kvmattr_import() was not called yet, or it failed"
    assert client.error_text(NOT_IMPORTED - 1) == "unknown error"
    assert client.error_text(BAD_RANGE) == "bad range: need start <= stop <= pages"


# ---- clients of other versions ----

FUNCTION = re.compile(r"    int \(\*cursor_close\)\(kvmattr_cursor \*cursor\);\n")


def import_with_header(site: Path, directory: Path, change: Any) -> subprocess.CompletedProcess[str]:
    """Import a client that was compiled with a changed header."""
    header = (site / "kvmattr" / "include" / "kvmattr.h").read_text()
    changed = change(header)
    assert changed != header
    (directory / "kvmattr.h").write_text(changed)
    (directory / "small.c").write_text(
        '#include <Python.h>\n#include "kvmattr.h"\n'
        'static struct PyModuleDef small = {PyModuleDef_HEAD_INIT, "small", NULL, -1, NULL, '
        "NULL, NULL, NULL, NULL};\n"
        "PyMODINIT_FUNC PyInit_small(void)\n{\n    kvmattr_map *map;\n"
        "    if (kvmattr_import() < 0)\n        return NULL;\n"
        '    if (kvmattr_create(9, 5, &map) < 0 || kvmattr_get(map, 8) != 5)\n'
        '        Py_FatalError("wrong");\n'
        "    return PyModule_Create(&small);\n}\n"
    )
    options = [f"-I{directory}", *building.include_options(site)]
    building.compile_module("small", directory / "small.c", options, directory, building.compiler("gcc"))
    return subprocess.run(
        # It does not declare that it needs no GIL: an interpreter without one takes it back and says so.
        [sys.executable, "-W", "ignore:The global interpreter lock:RuntimeWarning", "-c", "import small"],
        cwd=directory,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{directory}:{site}:{':'.join(sys.path[1:])}"},
    )


def without_cursors(header: str) -> str:
    """As an older header: without the table's last functions and what calls them."""
    header = re.sub(r"    int \(\*cursor_\w+\)\([^;]*;\n", "", header)
    header = re.sub(r"^KVMATTR_UNIMPORTED\(cursor_.*\n|^    kvmattr_no_cursor_.*\n", "", header, flags=re.MULTILINE)
    start, end = header.index("/* ---- cursors ---- */"), header.index("#endif /* KVMATTR_BUILDS_CORE */")
    return header[:start] + header[end:]


def test_an_old_client_works_with_this_library(site: Path, tmp_path: Path) -> None:
    done = import_with_header(site, tmp_path, without_cursors)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_with_functions_that_we_lack_is_refused(site: Path, tmp_path: Path) -> None:
    done = import_with_header(
        site,
        tmp_path,
        lambda header: FUNCTION.sub(lambda match: match[0] + "    int (*later)(void);\n", header).replace(
            "kvmattr_no_cursor_close,\n", "kvmattr_no_cursor_close, 0,\n"),
    )
    assert done.returncode == 1
    assert re.search(
        r"ImportError: the installed kvmattr is older than the one that this module was compiled with: "
        r"its C API has \d+ bytes, \d+ are needed",
        done.stderr,
    )


def test_a_client_of_another_abi_is_refused(site: Path, tmp_path: Path) -> None:
    done = import_with_header(
        site,
        tmp_path,
        lambda header: header.replace("#define KVMATTR_ABI_VERSION 1\n", "#define KVMATTR_ABI_VERSION 2\n"),
    )
    assert done.returncode == 1
    assert (
        "ImportError: the installed kvmattr has C API version 1: this module was compiled for version 2"
        in done.stderr
    )


def test_the_headers_compile_without_python(site: Path, tmp_path: Path) -> None:
    """Only the file that imports needs Python.h; the others share its table."""
    (tmp_path / "plain.c").write_text(
        '#include "kvmattr.h"\n'
        "int look(const kvmattr_map *map);\n"
        "int look(const kvmattr_map *map) { return kvmattr_get(map, 0); }\n"
    )
    (tmp_path / "plain.cpp").write_text(
        '#include "kvmattr.hpp"\n'
        "int look(const kvmattr::View &map);\n"
        "int look(const kvmattr::View &map) { return map.get(0); }\n"
    )
    include = f"-I{site / 'kvmattr' / 'include'}"
    for command, source, standard in [
        ("gcc", "plain.c", "c11"),
        ("clang", "plain.c", "c11"),
        ("gcc", "plain.c", "c99"),
        ("g++", "plain.cpp", "c++17"),
        ("clang++", "plain.cpp", "c++20"),
    ]:
        building.run(
            building.compiler(command),
            f"-std={standard}",
            "-pedantic",
            *building.WARNINGS,
            "-c",
            include,
            source,
            "-o",
            "plain.o",
            cwd=tmp_path,
        )


# ---- Cython ----

CYTHON_CLIENT = """
# cython: language_level=3
from libc.stdint cimport uint8_t, uint64_t

cimport kvmattr

kvmattr.import_api()

cdef int add(void *context, const kvmattr.Run *run) noexcept nogil:
    (<uint64_t *>context)[0] += (run.stop - run.start) * run.attributes
    return 0

def total(attribute_map):
    cdef const kvmattr.Map *map = kvmattr.view_of(attribute_map)
    cdef uint64_t result = 0
    cdef uint64_t slow = 0
    cdef uint64_t gfn
    cdef kvmattr.Cursor *cursor
    if kvmattr.cursor_open(map, &cursor) < 0 or kvmattr.runs(map, 0, kvmattr.pages(map), add, &result) < 0:
        raise MemoryError
    for gfn in range(kvmattr.pages(map)):
        slow += kvmattr.cursor_get(cursor, gfn)
    kvmattr.cursor_close(cursor)
    return result, slow

def change(attribute_map, start, stop, attributes):
    cdef int result = kvmattr.update(kvmattr.map_of(attribute_map), start, stop, attributes, kvmattr.OR, 0xff)
    if result < 0:
        raise ValueError(kvmattr.error_text(result).decode())
    return result
"""


def test_another_package_may_cimport_kvmattr(site: Path, tmp_path: Path) -> None:
    """With the installed .pxd and headers alone; without numpy's."""
    pytest.importorskip("Cython")
    (tmp_path / "other.pyx").write_text(CYTHON_CLIENT)
    building.run(sys.executable, "-m", "cython", "-3", "-Werror", "other.pyx", cwd=tmp_path, site=site)
    assert "numpy" not in (tmp_path / "other.c").read_text()
    for command in ("gcc", "clang"):
        building.run(
            building.compiler(command),
            "-std=c11",
            "-O2",
            "-Wall",
            "-Werror",
            "-fPIC",
            "-shared",
            *building.include_options(site),
            "other.c",
            "-o",
            f"other{building.SUFFIX}",
            cwd=tmp_path,
        )
        other = building.load("other", tmp_path / f"other{building.SUFFIX}")
        m = AttributeMap(PAGES, 2)
        assert other.change(m, 10, 20, 1) == 1
        assert other.total(m) == (2 * PAGES + 10,) * 2
        with pytest.raises(ValueError, match=r"^bad range: need start <= stop <= pages$"):
            other.change(m, 0, PAGES + 1, 1)
        with pytest.raises(TypeError, match="read-only"):
            other.change(m.snapshot(), 0, 1, 1)


# ---- the debug build ----

RELEASED = """
import client
from kvmattr import AttributeMap
m = AttributeMap(1000)
handle = client.map_of(m)
for turn in range(50):
    snapshot = client.snapshot(handle)
    cursor = client.cursor_open(handle)
    assert client.update(handle, turn, turn + 2, turn, 0, 255) >= 0
    assert client.release(snapshot) == client.cursor_close(cursor) == 0
    churn = [client.snapshot(handle) for _ in range(8)]
    assert client.get(snapshot, 0) == client.release(snapshot) == -2
    assert client.restore(handle, snapshot) == client.cursor_open(snapshot) == -2
    assert client.cursor_close(cursor) == -8
    assert [client.release(each) for each in churn] == [0] * 8
print("caught")
"""


@pytest.mark.slow
def test_a_released_snapshot_is_caught_in_the_debug_build(site: Path, tmp_path: Path) -> None:
    debug = building.rebuilt_core(site, tmp_path, "-DKVMATTR_DEBUG=1")
    building.compile_module(
        "client",
        building.SOURCES / "client.c",
        building.include_options(site),
        tmp_path,
        building.compiler("gcc"),
    )
    (tmp_path / "released.py").write_text(RELEASED)
    assert building.run(sys.executable, "released.py", cwd=tmp_path, site=debug) == "caught\n"
