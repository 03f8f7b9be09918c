"""The fuzzing targets themselves: a few worlds of each on every run; a finding is told and can be had again."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from kvmattr import AttributeMap
from tests.fuzz import campaign, generated, native

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("target", generated.TARGETS)
@pytest.mark.parametrize("seed", range(15))
def test_a_few_worlds(target: str, seed: int) -> None:
    assert generated.TARGETS[target](random.Random(f"{target} {seed}")) > 0


def mended(data: bytes) -> bytes:
    """As fuzz/reader.c does: the header's lengths and checksums fit again."""
    if len(data) < 44 or not data.startswith(b"kvmattr\x1a"):
        return data
    body = data[44:]
    header = data[:28] + struct.pack("<IQ", zlib.crc32(body), len(body))
    return header + struct.pack("<I", zlib.crc32(header)) + body


def test_the_corpus_of_the_reader_gives_maps_or_value_errors() -> None:
    maps = 0
    for path in sorted((native.CORPUS / "reader").iterdir()):
        try:
            m = AttributeMap.from_bytes(mended(path.read_bytes()))
        except ValueError:
            continue
        m.validate()
        assert AttributeMap.from_bytes(m.to_bytes()) == m
        maps += 1
    assert maps > 3


def run_fuzz(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from tests.fuzz import generated, __main__ as fuzz\n"
        f"{code}\n"
        f"sys.argv = ['fuzz', *{words!r}]; fuzz.main()\n"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_run_counts_its_executions() -> None:
    done = run_fuzz("ioctl", "--seed", "7")
    assert done.returncode == 0, done.stderr
    expected = generated.ioctl(random.Random("ioctl 7"))
    assert done.stdout == f"ioctl: {expected:,} executions, nothing found\nin all {expected:,}\n"


def test_a_finding_is_told_with_its_seed() -> None:
    """A worker that dies, as of a crash in C: the seed that it had begun is told."""
    worker = subprocess.run(
        [sys.executable, "-c", "import os; print('41 10'); print('42 17', flush=True); os.abort()"],
        capture_output=True,
        text=True,
        check=False,
    )
    code = (
        "import subprocess\n"
        f"subprocess.run = lambda *a, **k: subprocess.CompletedProcess(a, {worker.returncode}, {worker.stdout!r})"
    )
    done = run_fuzz("arrays", "--seconds", "1", code=code)
    assert done.returncode == 1
    assert done.stdout == "arrays: a finding; again: python -m tests.fuzz arrays --seed 42\n"


def test_every_native_target_has_a_harness_and_a_corpus() -> None:
    for target in native.TARGETS:
        assert (native.HERE / f"{target}.c").exists()
        assert len(list((native.CORPUS / target).iterdir())) > 10


@pytest.mark.skipif(not campaign.DOCS.exists(), reason="the documents are not here")
def test_the_page_tells_what_the_file_counts(tmp_path: Path) -> None:
    page = (campaign.DOCS / "trust.md").read_text()
    assert campaign.counted() in page, "python -m tests.fuzz --record writes it"
    log, copy = tmp_path / "fuzzing.csv", tmp_path / "trust.md"
    log.write_text((campaign.DOCS / "fuzzing.csv").read_text() + f"2026-12-01,{campaign.STORE},capi,hand,12345678,x\n")
    copy.write_text(page)
    campaign.write(copy, log)
    assert f"| `capi` | hand | {campaign.STORE} | 12,345,678 | x |" in copy.read_text()
    assert copy.read_text().split(campaign.BEGIN)[0] == page.split(campaign.BEGIN)[0]
