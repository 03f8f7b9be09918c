"""The reference site: every page is in its contents, and every public name on a page."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not (DOCS / "index.md").exists(), reason="docs are not part of the sdist's tests")


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")
             if not {"_build", "ci"} & set(path.relative_to(DOCS).parts)}
    assert pages - {"index"} <= listed
    assert listed - {"api/c", "api/uapi"} <= pages          # these are made from sources


@pytest.mark.parametrize("module", ["kvmattr", "kvmattr.memslots"])
def test_every_public_name_is_on_a_page(module):
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    for name in importlib.import_module(module).__all__:
        assert re.search(rf":: {module}(\.\w+)*\.{name}$|:: kvmattr\.trace$" if name == "record"
                         else rf":: {module}\.{name}$", text, re.MULTILINE), name


@pytest.mark.parametrize("module", ["profiles", "hosts", "protection", "listeners", "uapi", "trace", "study", "gate"])
def test_every_public_module_is_on_a_page(module):
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    assert f":: kvmattr.{module}\n" in text
