"""The stubs show the docstrings that the compiled modules have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stubs import PACKAGE, documented, stubs


@pytest.mark.parametrize("stub", stubs(), ids=lambda stub: str(stub.relative_to(PACKAGE)))
def test_docstrings_are_those_of_the_module(stub: Path) -> None:
    assert stub.read_text() == documented(stub), "python3 dev.py stubs writes them"


def test_an_editor_shows_what_help_shows() -> None:
    text = (PACKAGE / "_core.pyi").read_text()
    for line in ("def snapshot(self) -> AttributeMap:", "def run_count(self) -> int:"):
        assert line + '\n        """' in text
