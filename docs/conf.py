"""The reference site: `python3 dev.py docs` builds it from these pages and the docstrings."""

from __future__ import annotations

import re
from pathlib import Path

import kvmattr

project = "kvmattr"
author = "the kvmattr authors"
release = version = kvmattr.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "ci"]
html_theme = "furo"
html_title = "kvmattr"
myst_heading_anchors = 3
# Pages of the tree that are no part of the site (README, sources) are links for who reads the tree.
suppress_warnings = ["myst.xref_missing"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
nitpicky = False


def functions_of_header(text: str) -> str:
    """The functions of the C header as a page: each declaration, and the comment that stands right before it."""
    page = ["# The C interface", "", "From `kvmattr.h` (`kvmattr.get_include()` is its folder; "
            "[embedding](../embedding.md) tells how to build).", ""]
    found = re.finditer(r"(?:/\*((?:(?!\*/).)*)\*/\n)?^static inline ([^{;]*?kvmattr_\w+\([^{;]*\))\s*\{", text,
                        re.DOTALL | re.MULTILINE)
    for match in found:
        comment = " ".join(line.strip(" *") for line in (match.group(1) or "").splitlines()).strip()
        page += ["```c", " ".join(match.group(2).split()) + ";", "```", "", comment, ""]
    return "\n".join(page) + "\n"


HERE = Path(__file__).parent
(HERE / "api" / "c.md").write_text(functions_of_header((HERE.parent / "kvmattr" / "include" / "kvmattr.h").read_text()))
