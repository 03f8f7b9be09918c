"""A client that nobody here wrote: QEMU, beside the real KVM and on the model alone."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from kvmattr.bridges import kvm
from kvmattr.trace import replay_file
from tests.test_fake import kvmattr

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux"),
    pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64"),
]
GUEST = ["-m", "256", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none", "-no-reboot",
         "-cpu", "host", "-accel", "kvm"]


@pytest.mark.parametrize("machine", ["pc", "q35,kernel-irqchip=off"])
def test_qemu_comes_to_its_guest_and_to_its_end_on_the_model(tmp_path, machine):
    """It makes its VM, memslots and vCPU; the guest reads where no memory is and then triple-faults, so QEMU ends."""
    script, log = tmp_path / "guest", tmp_path / "log"
    script.write_text("read 0xfff0 4\nwrite 0xfee00300 4\nread 0xe0000000 4\n")
    ran = kvmattr("fake", "--script", script, "--record", log, "--", "timeout", "60", QEMU, *GUEST, "-machine", machine)
    assert ran.returncode == 0, ran.stderr
    assert "not in the model" not in ran.stderr
    text = log.read_text()
    assert text.count("KVM_CREATE_VCPU") == 1
    slots = re.findall(r"KVM_SET_USER_MEMORY_REGION, \{slot=\d+.*\}\) = (\S+)", text)
    assert len(slots) > 3
    assert set(slots) == {"0"}
    assert replay_file(log).answers == {"0": len(slots)}


@pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))
@pytest.mark.parametrize("machine", ["q35"])
def test_the_kernel_and_the_model_agree_on_a_firmware_boot(tmp_path, machine):
    log = tmp_path / "log"
    ran = kvmattr("shadow", "--record", log, "--", "timeout", "--signal=KILL", "5", QEMU, *GUEST, "-machine", machine)
    assert ran.returncode == 137, ran.stderr
    found = re.search(r"shadow: (\d+) of \d+ calls compared with .*, 1 VM: no differences", ran.stderr)
    assert found is not None, ran.stderr
    assert int(found[1]) > 15
    assert "KVM_SET_USER_MEMORY_REGION" in log.read_text()
