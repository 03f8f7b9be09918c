"""`kvmattr record`: a command under strace, its exit code and signals, and the summary of what it did."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kvmattr import cli
from kvmattr.bridges import kvm
from kvmattr.trace import read, record_command

RECORD = [sys.executable, "-m", "kvmattr", "record"]
needs_kvm = pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))

#: Two slots, one deleted again; what it prints and its exit code are its own.
VMM = """
import numpy as np, os, sys
from kvmattr import uapi
from kvmattr.bridges import kvm
rows = np.zeros(3, uapi.USERSPACE_MEMORY_REGION)
rows["slot"], rows["guest_phys_addr"], rows["memory_size"] = [0, 1, 1], [0, 1 << 20, 0], [1 << 20, 4096, 0]
with kvm.KernelVM() as vm:
    vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, rows)
print("from the command", sys.stdin.read())
sys.exit(7)
"""


def traced() -> bool:
    """Whether strace may trace here: containers often forbid it."""
    return shutil.which("strace") is not None and subprocess.run(
        ["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


needs_tracing = pytest.mark.skipif(not traced(), reason="strace is not here or may not trace")


@needs_tracing
@needs_kvm
def test_a_vmm_is_recorded_and_its_exit_code_passed_on(tmp_path):
    output = tmp_path / "made.strace"
    done = subprocess.run([*RECORD, "-o", str(output), "--", sys.executable, "-c", VMM], input="and its input",
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "from the command and its input\n"
    assert f"kvmattr record: {output}, without 0 calls of KVM_RUN\n" in done.stderr
    assert "3 operations (3 slot calls, 0 conversions)" in done.stderr
    assert "answers: success 3" in done.stderr
    with read(output) as trace:
        assert (trace.slot_calls, trace.operations) == (3, 3)


@needs_tracing
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 5), (signal.SIGUSR1, 6), (signal.SIGHUP, 128 + 1)])
def test_signals_reach_the_command(tmp_path, number, code):
    program = (f"trap 'exit 5' TERM; trap 'exit 6' USR1; echo ready; "
               f"i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done; echo {number}")
    process = subprocess.Popen([*RECORD, "-o", str(tmp_path / "x"), "--", "sh", "-c", program], text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code


def test_what_is_missing_is_told(tmp_path, capsys, monkeypatch):
    assert cli.main(["record"]) == 2
    assert capsys.readouterr().err == "kvmattr record: expected -- COMMAND ...\n"
    monkeypatch.setattr(record_command.shutil, "which", lambda name: None)
    assert cli.main(["record", "--", "true"]) == 2
    assert capsys.readouterr().err == (
        "kvmattr record: strace not found: install the package strace of your system (apt-get install strace)\n")
    monkeypatch.setattr(record_command.shutil, "which", lambda name: name if name == "strace" else None)
    assert cli.main(["record", "--", "no-such-vmm"]) == 127
    assert capsys.readouterr().err == "kvmattr record: no-such-vmm: command not found\n"
    monkeypatch.setattr(record_command.shutil, "which", lambda name: name)
    assert cli.main(["record", "-o", str(tmp_path / "none" / "x"), "--", "true"]) == 2
    assert capsys.readouterr().err == f"kvmattr record: {tmp_path / 'none' / 'x'}: No such file or directory\n"


def copied(lines: list[bytes], file) -> record_command._Copy:
    """What stays of these lines, from a pipe whose writer then goes."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    ended = subprocess.Popen(["true"])
    copy = record_command._Copy(reading, file, ended)
    copy.start()
    for line in lines:
        os.write(writing, line)
        time.sleep(0.001)
    os.close(writing)
    copy.join(60)
    ended.wait()
    assert not copy.is_alive()
    return copy


def test_calls_of_kvm_run_are_left_out_also_where_they_are_cut_in_two(tmp_path):
    kept = [b"1 0.1 ioctl(3<anon_inode:kvm-vm>, KVM_SET_USER_MEM", b"ORY_REGION, {slot=0}) = 0\n",
            b"1 0.2 ioctl(3, KVM_CHECK_EXTENSION, 1 <unfinished ...>\n", b"1 0.5 <... ioctl resumed>) = 1\n", b"1 last"]
    lines = [kept[0], kept[1], b"2 0.1 ioctl(9, KVM_RUN, 0) = 0\n", b"2 0.2 ioctl(9, KVM_RUN, 0 <unfinished ...>\n",
             kept[2], b"2 0.4 <... ioctl resumed>) = 0\n", kept[3],
             kept[4]]
    with (tmp_path / "x").open("w+b", buffering=0) as file:
        copy = copied(lines, file)
        file.seek(0)
        assert file.read() == b"".join(kept) + b"\n"
    assert copy.left_out == 2
    assert copy.failed is None


def test_a_full_disk_is_told_and_the_command_goes_on():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb", buffering=0) as file:
        copy = copied([b"1 0.1 ioctl(3, KVM_CREATE_VM, 0) = 4\n"] * 3, file)
    assert copy.failed is not None
    assert copy.failed.strerror == "No space left on device"


@needs_tracing
@pytest.mark.parametrize(("ended", "code"), [(3, 3), (0, 2)])
def test_the_exit_code_beside_a_recording_that_cannot_be_written(ended, code):
    done = subprocess.run([*RECORD, "-o", "/dev/full", "--", "sh", "-c", f"exit {ended}"], capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.stderr == "kvmattr record: /dev/full: No space left on device: the recording is not whole\n"
    assert done.returncode == code
