"""Guest scripts, KVM_RUN, the fixture, and the example project that uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from errno import EFAULT
from pathlib import Path

import pytest

from kvmattr import VM, uapi
from kvmattr.fake import Script, ScriptError
from kvmattr.fake.script import Guest
from tests.test_fake import SECONDS, FakeKVM, seen_by

if not sys.platform.startswith("linux"):
    pytest.skip("for Linux", allow_module_level=True)

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "fake-vmm"
GUEST = """
write 0xfee00000 4           # no memory there
write 0x1000 8
write 0x100000 8 private     # not private yet
hypercall map_gpa_range 0x1000 2 shared
halt
vcpu 1
exec 0x200000
"""


def test_a_vcpu_plays_its_lines():
    with FakeKVM(script=GUEST) as fake:
        assert seen_by(fake, "playing") == {
            "enabled": 0, "argument": "EINVAL",
            "mmio": [0, uapi.KVM_EXIT_MMIO, 0xFEE00000, 4, 1],
            "private": [["EFAULT", uapi.KVM_EXIT_MEMORY_FAULT, 8, 0x100000, 0x1000]] * 2,
            "hypercall": [0, uapi.KVM_EXIT_HYPERCALL, uapi.KVM_HC_MAP_GPA_RANGE, 0, 1, 0x1000, 2, 0],
            "immediate": ["EINTR", uapi.KVM_EXIT_INTR],
            "halt": [0, uapi.KVM_EXIT_HLT], "end": [[0, uapi.KVM_EXIT_SHUTDOWN]] * 2,
            "other": ["EEXIST", "EINVAL", "EINVAL", "ENOTTY"],
            "second": [0, uapi.KVM_EXIT_INTERNAL_ERROR]}
        (guest,) = fake.guests
        assert [(each.call.gpa, each.call.npages, each.result) for each in guest.hypercalls] == [(0x1000, 2, -22)]
        assert (guest.line(0), guest.line(1), guest.line(7)) == (None, 8, None)


def test_a_hypercall_that_does_not_leave_is_answered_by_kvm():
    script = ("hypercall map_gpa_range 0x1000 1 private\nread 0x100\n"
              "hypercall map_gpa_range 0x1001 1 private\nhypercall map_gpa_range 0x1000 0 private\nread 0x200")
    with FakeKVM(script=script) as fake:
        assert seen_by(fake, "refusing") == {"first": [0, 6, 0x100, 1, 0], "bad": ["EINVAL"] * 3,
                                             "then": [0, 6, 0x200, 1, 0]}
        assert [each.result for each in fake.guests[0].hypercalls] == [-1000, -22, -22]


def test_a_vcpu_says_what_stopped_pre_fault():
    with FakeKVM() as fake:
        assert seen_by(fake, "faulting") == [
            [0, 0x2000, 0x2000, 0], ["EFAULT", 0x2000, 0x1000, uapi.KVM_EXIT_MEMORY_FAULT],
            ["ENOENT", 0x8000, 0x1000, 0], ["EINVAL", 1, 0x1000, 0]]


def test_the_errno_of_failed_memory_is_its_own():
    vm = VM("linux-7.2")
    file = vm.create_guest_memfd(1 << 20)
    vm.set_user_memory_region2(0, 0, 1 << 20, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=file)
    vm.set_memory_attributes(0, 1 << 20, 8)
    vm.fail_page(file, 0)
    guest = Guest(vm, Script.parse("read 0x10\nread 0x1000\nread 0x1000 shared"))
    assert guest.run(0).errno == uapi.EHWPOISON
    vm.punch_hole(file, 0, 0x1000)
    stop = guest.run(0)
    assert (stop.errno, stop.fields, guest.line(0)) == (EFAULT, {"flags": 0, "gpa": 0x1000, "size": 0x1000}, 3)


@pytest.mark.parametrize(("line", "wrong"), [
    ("jump 0", "'jump': expected read, write, exec, hypercall, halt or vcpu"),
    ("read", "expected 'read GPA [SIZE] [private|shared]', found 'read'"),
    ("read 1 2 3", "expected 'read GPA [SIZE] [private|shared]', found 'read 1 2 3'"),
    ("write here", "'here': expected a decimal or 0x number for GPA"),
    ("write -1", "'-1': expected a decimal or 0x number for GPA"),
    ("write 0x10000000000000000", "'0x10000000000000000': expected a decimal or 0x number for GPA"),
    ("write 99999999999999999999", "GPA 99999999999999999999: must be below 0x10000000000000000"),
    ("read 0 0", "GPA 0x0, SIZE 0x0: must be at least 1 byte and end at or below 2^64"),
    ("read 0xffffffffffffffff 2", "GPA 0xffffffffffffffff, SIZE 0x2: must be at least 1 byte and end at or below 2^64"),
    ("exec 0 1", "expected 'exec GPA [private|shared]', found 'exec 0 1'"),
    ("hypercall map_gpa_range 0 1", "expected 'hypercall map_gpa_range GPA PAGES private|shared',"
                                    " found 'hypercall map_gpa_range 0 1'"),
    ("hypercall other 0 1 private", "expected 'hypercall map_gpa_range GPA PAGES private|shared',"
                                    " found 'hypercall other 0 1 private'"),
    ("halt 1", "expected 'halt', found 'halt 1'"),
    ("vcpu", "expected 'vcpu N'"),
    ("vcpu 4096", "N 4096: must be below 0x1000"),
])
def test_a_line_that_says_nothing(line, wrong):
    with pytest.raises(ScriptError) as raised:
        Script.parse(f"# a guest\n\n{line}  # here\n", "guest")
    assert str(raised.value) == f"guest:3: {wrong}"


def test_a_script_that_is_no_text(tmp_path):
    (tmp_path / "guest").write_bytes(b"\xff\xfe")
    with pytest.raises(ScriptError, match=r"guest: is no text$"):
        Script.read(tmp_path / "guest")


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not here")
def test_the_example_project(tmp_path):
    """As its README says: its tests, and the commands."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    project = shutil.copytree(EXAMPLE, tmp_path / "fake-vmm")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def ran(*words):
        return subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=SECONDS)

    tested = ran(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_kvmattr", "-c",
                 os.devnull, "--rootdir", ".", "tests")
    assert "6 passed" in tested.stdout, tested.stdout + tested.stderr
    assert ran(compiler, "-o", "vmm", "vmm.c").returncode == 0
    plain = ran(sys.executable, "-m", "kvmattr", "fake", "--script", "guest.script", "--", "./vmm")
    assert plain.stdout.splitlines()[-1] == "halted"
    files = ran(sys.executable, "-m", "kvmattr", "fake", "--abi", "gmem", "--script", "guest.script", "--", "./vmm")
    # A new file is private already.
    assert (files.returncode, files.stdout.splitlines()[:2]) == (
        0, ["private [0x100000, 0x200000)", "shared [0x140000, 0x150000)"])


def test_the_fixture_is_found_and_ends_its_servers(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys, pathlib\n"
        "seen = []\n"
        "def test_one(fake_kvm):\n"
        "    kvm = fake_kvm()\n"
        "    program = \"import os, fcntl; fcntl.ioctl(os.open('/dev/kvm', 2), 0xae01, 1)\"\n"
        "    kvm.run([sys.executable, '-c', program], check=True, timeout=60)\n"
        "    assert len(kvm.vms) == 1\n"
        "    seen.append(kvm.environment['KVMATTR_FAKE_SOCKET'])\n"
        "def test_two():\n"
        "    assert not pathlib.Path(seen[0]).exists()\n")
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_kvmattr", "-c",
                          os.devnull, "--rootdir", ".", "."], cwd=tmp_path, capture_output=True, text=True,
                         timeout=SECONDS, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_plugin_does_not_import_kvmattr():
    code = """import pytest_kvmattr, sys, json
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in ("kvmattr", "pytest_kvmattr"))))"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert json.loads(ran.stdout) == ["pytest_kvmattr"]
