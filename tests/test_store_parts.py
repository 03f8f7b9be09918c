"""The parts of the store use only what stands above them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "kvmattr"
pytestmark = pytest.mark.skipif(not (SOURCES / "_core.pyx").exists(), reason="the sources of the store are not here")

INCLUDE = re.compile(r'^include "(_store/\w+\.pxi)"$', re.MULTILINE)
TEXT = re.compile(r'("""|\'\'\')(?:\\.|.)*?\1|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*', re.DOTALL)
NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
#: What a statement declares: a type, an alias, a pointer to a function, a function.
DECLARATIONS = [re.compile(pattern) for pattern in (
    r"(?:c?p?def |ctypedef )?(?:packed )?(?:class|struct|union|enum) (\w+)",
    r"(?:ctypedef|cdef) [^(=]*\(\*(\w+)\)",
    r"ctypedef .*?(\w+)$",
    r"(?:cdef|cpdef|def) [^(=]*?(\w+)\(",
)]
C_FUNCTION = re.compile(r" {4}[^(=]*?(\w+)(?: \"\")?\(")      # in a block of C that is used


def code_of(source: str) -> str:
    """The source without comments, docstrings and other text; a statement that goes on in a bracket is one line."""
    source = TEXT.sub(lambda found: "" if found[0].startswith("#") else '""', source)
    lines: list[str] = []
    depth = 0
    for line in filter(str.strip, source.splitlines()):
        if depth:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
        depth += len(re.findall(r"[(\[{]", line)) - len(re.findall(r"[)\]}]", line))
    return "\n".join(lines)


def variables(statement: str) -> set[str]:
    """The names in ``int a, b[2] = c`` or ``PAGE_FREE = 0``, the types left out."""
    names = re.sub(r"\[[^\]]*\]|=[^,]*|\"\"", "", statement).split(",")
    return {found[1] for name in names if (found := re.search(r"(\w+)\s*$", name))}


def defined(code: str) -> set[str]:
    """The functions, types, constants and variables that a part makes known to those below it."""
    names: set[str] = set()
    declares = False        # inside of a block whose lines declare names of the module: an enum, the C that is used
    for line in code.splitlines():
        statement = line.strip()
        if not line[0].isspace():
            declares = statement.startswith(("cdef enum", "cdef extern"))
        elif not (declares and line[4] != " "):
            continue
        if statement.startswith("cdef extern") or statement in ("cdef enum:", "enum:", "pass"):
            continue
        if statement.startswith("enum:"):
            names |= variables(statement[5:])
        elif found := C_FUNCTION.match(line) or next(filter(None, (p.match(statement) for p in DECLARATIONS)), None):
            names.add(found[1])
        elif statement.startswith("cdef ") or declares or re.match(r"\w+ *=", statement):
            names |= variables(statement)
    return names


def used_from_below(parts: dict[str, str]) -> list[str]:
    """Each name that a part uses and that only a part below it makes known; parts from the top to the bottom."""
    codes = {part: code_of(source) for part, source in parts.items()}
    owner: dict[str, str] = {}
    found = []
    for part in reversed(codes):
        own = defined(codes[part])
        found += [f"{name} is made known in {part} and in {owner[name]}" for name in sorted(own & owner.keys())]
        uses = {match[0] for match in NAME.finditer(codes[part])} - own
        found += [f"{part} uses {name}, which stands below it in {owner[name]}" for name in sorted(uses & owner.keys())]
        owner |= dict.fromkeys(own, part)
    return found


def store_parts() -> dict[str, str]:
    return {part: (SOURCES / part).read_text() for part in INCLUDE.findall((SOURCES / "_core.pyx").read_text())}


def test_parts_use_only_what_stands_above_them() -> None:
    assert used_from_below(store_parts()) == []


def test_every_part_is_included_once() -> None:
    included = INCLUDE.findall((SOURCES / "_core.pyx").read_text())
    assert sorted(included) == sorted(f"_store/{path.name}" for path in (SOURCES / "_store").glob("*.pxi"))


def test_the_names_of_each_part_are_found() -> None:
    """What the check knows of the store: it sees nothing in a part whose names it cannot read."""
    parts = store_parts()
    names = {part.removeprefix("_store/"): defined(code_of(source)) for part, source in parts.items()}
    assert {"entry_k", "level_span", "Change", "change_of"} <= names["entry.pxi"]
    assert {"mmap", "MAP_FAILED", "PAGE_BYTES", "RESERVE_PAGES", "PageKind", "zero_page"} <= names["pages.pxi"]
    assert {"class_bytes", "Record"} <= names["slabs.pxi"]
    assert {"families", "families_mutex", "pthread_self", "family_new"} <= names["family.pxi"]
    assert {"get_entering", "api_get", "call_run"} <= names["c_calls.pxi"]
    assert {"KVMATTR_AND", "kvmattr_run_callback", "SEAL_OURS", "opened"} <= names["c_handles.pxi"]
    assert {"AttributeMap", "iterate_runs", "BARE", "rebuild"} <= names["attribute_map.pxi"]
    assert {"RUN_DTYPE", "gfn_of", "GFN_LIMIT"} <= names["arguments.pxi"]
    assert all(len(names[part]) > 1 for part in names)


@pytest.mark.parametrize("line", [
    "x = below(3)",
    "cdef Below b",
    "cdef int x = FIRST + 1",
    "cdef int f(int *where = &variable) noexcept:\n    pass",
])
def test_a_name_from_below_is_found(line: str) -> None:
    lower = "cdef struct Below:\n    int a\n\ncdef enum:\n    FIRST = 1\n\ncdef int variable = 0\n\n" \
            "cdef int below(int a) noexcept nogil:\n    return a\n"
    [found] = used_from_below({"upper": line, "lower": lower})
    assert re.fullmatch(r"upper uses (below|Below|FIRST|variable), which stands below it in lower", found)
    assert used_from_below({"lower": lower, "upper": line}) == []
    assert used_from_below({"upper": f"# {line}\n", "lower": lower}) == []


def test_a_name_made_known_twice_is_found() -> None:
    source = "cdef int f() noexcept:\n    return 0\n"
    assert used_from_below({"a": source, "b": source}) == ["f is made known in a and in b"]
