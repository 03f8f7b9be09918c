"""The conversion loop of vmm.c, without a kernel: the guest is a script, the VM an object that can be asked."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
PRIVATE = 8


@pytest.fixture(scope="module")
def vmm(tmp_path_factory):
    program = tmp_path_factory.mktemp("vmm") / "vmm"
    subprocess.run([shutil.which("cc") or "gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program,
                    HERE / "vmm.c"], check=True)
    return program


def run(kvm, vmm, *words):
    return kvm.run([vmm, *words], capture_output=True, text=True, timeout=60)


def test_the_guest_of_the_readme(fake_kvm, vmm):
    kvm = fake_kvm(abi="linux-7.2", script=(HERE / "guest.script").read_text())
    assert run(kvm, vmm).stdout.splitlines() == [
        "private [0x1000, 0x2000)", "private [0x100000, 0x200000)", "shared [0x140000, 0x150000)",
        "mmio write 0xfee00300", "halted"]
    assert kvm.vms[0].attributes.runs(0, 0x200).tolist() == [
        (0, 1, 0), (1, 2, PRIVATE), (2, 0x100, 0), (0x100, 0x140, PRIVATE), (0x140, 0x150, 0),
        (0x150, 0x200, PRIVATE)]


def test_pages_that_the_guest_asks_for_become_shared(fake_kvm, vmm):
    kvm = fake_kvm(script="""
        hypercall map_gpa_range 0x0 0x1000 private
        hypercall map_gpa_range 0x100000 0x100 shared
        read 0x100000 4096 shared
        halt""")
    assert run(kvm, vmm).returncode == 0
    assert kvm.vms[0].attributes.uniform(0x100, 0x200) == 0
    assert kvm.vms[0].attributes.count(0, 0x1000, PRIVATE) == 0xF00
    assert [each.result for each in kvm.guests[0].hypercalls] == [0, 0]


def test_where_attributes_belong_to_files_the_file_is_converted(fake_kvm, vmm):
    kvm = fake_kvm(abi="gmem", script="""
        hypercall map_gpa_range 0x100000 0x100 shared
        write 0x100000 8 shared
        write 0x200000 8 private
        halt""")
    assert run(kvm, vmm).stdout.splitlines() == ["shared [0x100000, 0x200000)", "halted"]
    (slot,) = kvm.vms[0].memslots
    assert slot.guest_memfd.attributes.runs().tolist() == [
        (0, 0x100, PRIVATE), (0x100, 0x200, 0), (0x200, 0x1000, PRIVATE)]


def test_a_range_beyond_memory_is_the_guests_mistake(fake_kvm, vmm):
    kvm = fake_kvm(script="hypercall map_gpa_range 0xfff000 2 private\nhalt")
    assert run(kvm, vmm, "16").stdout.splitlines() == ["halted"]
    assert [each.result for each in kvm.guests[0].hypercalls] == [-22]
    assert kvm.vms[0].attributes.run_count == 1


def test_a_guest_that_ends_without_hlt_is_an_error(fake_kvm, vmm):
    ran = run(fake_kvm(script="read 0x1000"), vmm)
    assert (ran.returncode, ran.stderr) == (1, "KVM_RUN: Protocol error, exit reason 8\n")


def test_a_kernel_without_private_memory(fake_kvm, vmm):
    from kvmattr.profiles import Profile
    ran = run(fake_kvm(abi=Profile("old", mail_calls=False)), vmm)
    assert (ran.returncode, ran.stderr) == (1, "no private memory: Operation not supported\n")
