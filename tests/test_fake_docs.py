"""docs/fake.md: its commands run and print what it says, and its test passes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_fake import SECONDS

ROOT = Path(__file__).parent.parent
DOCS, EXAMPLE = ROOT / "docs" / "fake.md", ROOT / "examples" / "fake-vmm"

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux"),
    pytest.mark.skipif(not DOCS.exists() or not EXAMPLE.exists(), reason="the documents are not here"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]


def test_the_page_is_true(tmp_path):
    project = shutil.copytree(EXAMPLE, tmp_path / "fake-vmm")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "kvmattr").write_text(f'#!/bin/sh\nexec {sys.executable} -m kvmattr "$@"\n')
    (commands / "kvmattr").chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
                   "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def shell(text):
        ran = subprocess.run(["sh", "-ec", text], cwd=project, env=environment, capture_output=True, text=True,
                             timeout=SECONDS)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    blocks = re.findall(r"^```(\w+)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    shown = 0
    for (language, text), (next_language, promise) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "sh":
            printed = shell(text)
            if next_language == "text":
                assert printed == promise
                shown += 1
    assert shown == 2
    (test,) = (text for language, text in blocks if language == "python")
    (project / "test_page.py").write_text(test)
    ran = shell(f"{sys.executable} -m pytest -q -p no:cacheprovider -p pytest_kvmattr -c /dev/null --rootdir ."
                " test_page.py")
    assert "1 passed" in ran


def test_every_line_and_exit_of_the_page_is_one():
    from kvmattr import uapi
    from kvmattr.fake import Script
    text = DOCS.read_text()
    examples = {"read GPA [SIZE] [private|shared]": "read 0x1000 8 private", "halt": "halt", "vcpu N": "vcpu 1",
                "write GPA [SIZE] [private|shared]": "write 0x1000 8 shared", "exec GPA [private|shared]": "exec 0",
                "hypercall map_gpa_range GPA PAGES private|shared": "hypercall map_gpa_range 0 1 shared"}
    table = text.partition("## The guest is a script")[2].partition("What an access meets")[0]
    lines = [each.replace("\\|", "|") for row in re.findall(r"^\| (`.*?) \| [^|]*\|?$", table, re.MULTILINE)
             for each in re.findall(r"`([^`]*)`", row)]
    assert sorted(lines) == sorted(examples)
    Script.parse("\n".join(examples.values()))
    for name in re.findall(r"^\| (KVM_EXIT_\w+) \|", text, re.MULTILINE):
        assert hasattr(uapi, name)
