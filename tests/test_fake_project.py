"""The project's own clients of /dev/kvm through a fake one: as "model" in every report, never as "kernel"."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_fake import SECONDS, kvmattr

if not sys.platform.startswith("linux"):
    pytest.skip("for Linux", allow_module_level=True)

HERE = Path(__file__).parent


def through_fake(*words, abi="linux-7.2"):
    return kvmattr("fake", "--abi", abi, "--", sys.executable, *words, cwd=HERE.parent)


def test_the_bridge_and_what_is_compared_with_the_kernel():
    """Tests that need a device run on every machine; the model is compared with itself, through every layer."""
    ran = through_fake("-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", "tests/test_bridge_kvm.py",
                       "tests/test_kvm_differential.py", "tests/test_replay_on_kvm.py")
    assert ran.returncode == 0, ran.stdout
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 20
    assert int(re.search(r"fake: ([\d,]+) calls answered as linux-7.2", ran.stderr)[1].replace(",", "")) > 1000


def test_rows_of_the_study_are_the_models(tmp_path):
    ran = through_fake("-m", "kvmattr", "scaling", "--quick", "--rounds", "1", "--seconds", "1", "--scenario", "slots",
                       "--backend", "kvm-attributes", "--backend", "kvm-memslots", "--backend", "empty-ioctl",
                       "--backend", "store", "--json", tmp_path / "report.json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"]["kvm"]["fake"] == "the model, by kvmattr fake"
    cells = {(cell["backend"], cell["kind"], cell["status"]) for cell in report["results"]}
    assert {kind for _, kind, _ in cells} == {"model"}
    assert ("kvm-attributes", "model", "ok") in cells
    assert {cell["clock"] for cell in report["results"] if cell["backend"] != "store" and cell["samples"]} == {"wall"}
    assert not [each for each in report["seen"] if each["backend"].startswith("kvm-")]
    assert "kernel" not in re.sub(r"\(model: store, kernel: kvm-attributes\)", "", " ".join(ran.stdout.split()))


def test_the_list_and_info_say_so():
    listed = through_fake("-m", "kvmattr", "scaling", "--list").stdout
    assert "kvm-attributes     [model] kvm-attributes on a fake /dev/kvm: the model, a" in listed
    assert "  fake: the model, by kvmattr fake\n" in through_fake("-m", "kvmattr", "info").stdout


@pytest.mark.skipif(not (HERE.parent / "examples" / "vmm.py").exists(), reason="the examples are not here")
def test_the_example_vmm():
    ran = through_fake(HERE.parent / "examples" / "vmm.py", "--conversions", "100")
    assert re.fullmatch(r"100 conversions took \d+ memslot calls; the kernel holds \d+ slots\n", ran.stdout), ran.stderr


def test_a_device_of_the_kernel_is_no_fake():
    code = "from kvmattr.bridges import kvm; print(kvm.is_fake(), kvm.is_fake('/dev/zero'), kvm.is_fake('/none'))"
    assert through_fake("-c", code).stdout == "True False False\n"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert plain.stdout == "False False False\n"
