"""What careless programs in C and C++ do: errors that nobody looks at, maps that end in their own walk, forks.

Each has the answer that the header gives it, and the program goes on.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.embedding import building

#: What a C program does, and what it prints of Python's errors meanwhile.
CARELESS = {
    "nothing was made": "",
    "null everywhere": """\
TypeError: need an AttributeMap, not NULL
TypeError: need an AttributeMap, not NULL
AttributeError: 'NoneType' object has no attribute 'map'
ValueError: NULL, not a map, or a map that was released or destroyed
""",
    "end in callback": "",
    "another interpreter": "ImportError: .*(interpreter|once per process).*\n",        # which, depends on the Python
    "after the end": "",
    "fork beside a writer": "",
    "odd but right": "",
    "a small stack": "",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def careless(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.compile_program(building.SOURCES / "careless.c", building.include_options(site),
                                    tmp_path_factory.mktemp("careless"), building.compiler("gcc"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize("name", CARELESS)
def test_the_program_goes_on(careless: Path, site: Path, name: str) -> None:
    told = building.run(careless, name, cwd=careless.parent, site=site)
    assert re.fullmatch(f"{CARELESS[name]}goes on\n", told)


def test_the_program_in_cpp_goes_on(site: Path, tmp_path: Path) -> None:
    options = ["-std=c++17", *building.include_options(site)]
    program = building.compile_program(building.SOURCES / "careless.cpp", options, tmp_path, building.compiler("g++"))
    assert building.run(program, cwd=tmp_path, site=site) == "goes on\n"
