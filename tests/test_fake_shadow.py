"""`kvmattr shadow`: a program's calls on the real /dev/kvm, each compared with the model's answer."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.fake import Script
from kvmattr.fake.files import Kept
from kvmattr.fake.launch import environment
from kvmattr.fake.recording import Recording
from kvmattr.fake.server import Channel, Server
from kvmattr.fake.shadow import _SEEN, Shadow, named_by_version
from kvmattr.fake.wire import Kind
from kvmattr.hosts import X86_64
from kvmattr.profiles import PROFILES
from kvmattr.trace import replay_file
from tests.test_fake import CLIENTS, SECONDS, client, kvmattr

if not sys.platform.startswith("linux"):
    pytest.skip("for Linux", allow_module_level=True)

needs_kvm = pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))
__all__ = ["client"]


# On the real device ------------------------------------------------------------------------------------------


@needs_kvm
@pytest.mark.parametrize("name", ["memory", "pointers", "copies", "processes", "beyond"])
def test_the_kernel_and_the_model_agree(name):
    ran = kvmattr("shadow", "--", sys.executable, CLIENTS, name)
    assert (ran.returncode, ": no differences\n" in ran.stderr) == (0, True), ran.stderr
    assert json.loads(ran.stdout)
    assert "telling of it" in ran.stderr


@needs_kvm
def test_calls_of_racing_threads_are_compared_in_the_kernels_order(client):
    ran = kvmattr("shadow", "--", client, "racing")
    assert (ran.returncode, ran.stdout) == (0, "racing: done\n")
    assert "1,600 of 1,601 calls compared" in ran.stderr
    assert ": no differences\n" in ran.stderr


@needs_kvm
def test_a_difference_is_told_with_its_call():
    """A model of a smaller machine than this one refuses a memslot that the kernel takes."""
    ran = kvmattr("shadow", "--phys-bits", "32", "--", sys.executable, CLIENTS, "beyond")
    assert ran.returncode == 1
    assert ("KVM_SET_USER_MEMORY_REGION2 {slot=0, flags=0x0, guest_phys_addr=0x200000000, memory_size=0x100000,"
            " userspace_addr=0x7f0000000000, guest_memfd_offset=0x0, guest_memfd=-1}: kernel success, model EINVAL\n"
            in ran.stderr)
    assert ": 1 difference\n" in ran.stderr


@needs_kvm
def test_the_recording_has_answers_and_times(tmp_path):
    recorded = tmp_path / "log"
    ran = kvmattr("shadow", "--record", recorded, "--", sys.executable, CLIENTS, "beyond")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)[:2] == [0, 0]
    lines = [line for line in recorded.read_text().splitlines() if "KVM_SET_USER_MEMORY_REGION2" in line]
    assert len(lines) == 2
    assert all(line.partition(" = ")[2].startswith("0 <0.0") for line in lines)
    assert replay_file(recorded).answers


@needs_kvm
def test_a_dead_server_costs_the_comparison_and_nothing_else():
    kept = Kept(PROFILES["linux"], Script(), X86_64, 52)
    server = Server(kept, shadow=Shadow(kept))
    serving = threading.Thread(target=server.serve)
    serving.start()
    child = subprocess.Popen([sys.executable, CLIENTS, "dying"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True,
                             env=environment(server.path, "shadow"))
    assert child.stdout.readline() == "ready\n"
    server.stop()
    serving.join()
    server.close()
    out, err = child.communicate("go\n", timeout=SECONDS)
    seen = json.loads(out)
    assert seen["after"] == [seen["before"]] * 3    # the kernel's answer, whatever that is here
    assert isinstance(seen["open"], int)
    assert err == "kvmattr: the server has gone: calls are no longer compared\n"


def test_without_a_device_it_says_so(monkeypatch, capsys):
    from kvmattr.cli import main
    monkeypatch.setattr(kvm, "missing", lambda: "/dev/kvm does not exist")
    assert main(["shadow", "--", "true"]) == 2
    assert capsys.readouterr().err == "kvmattr shadow: /dev/kvm does not exist; `kvmattr fake` needs none\n"


def test_profiles_by_version():
    assert [named_by_version(each) for each in ("5.10.1", "6.8.0", "6.17.9-x", "6.18.44", "7.0.1", "7.1", "7.2.13",
                                                "7.3.0-rc7", "8.0", "unknown")] == [
        "linux", "linux", "linux", "linux-6.18", "linux-6.18", "linux-7.2", "linux-7.2", "linux-7.3", "linux-7.3",
        "linux"]


# What is told, by hand ---------------------------------------------------------------------------------------


class Program:
    """A program that tells a shadow of calls, with the kernel's answers as given."""

    def __init__(self, abi="linux-7.2", recording=None):
        self.told = []
        kept = Kept(PROFILES[abi], Script(), X86_64, 46)
        self.shadow = Shadow(kept, recording, self.told.append)
        self.channel = object.__new__(Channel)
        self.channel.process, self.channel.pid = "one", 77

    def call(self, file, request, structure=b"", *, argument=0, result=0, error=0, made=0, bound=0, out=None):
        structure = bytes(structure)
        data = _SEEN.pack(-1 if error else result, error, len(structure), made, bound, 1, 2, 3)
        data += structure + (structure if out is None else out)
        self.shadow.note(self.channel, Kind.SEEN, file, (request, argument, 5, 0, 0, 0), memoryview(data))

    def machine(self, vm_type=1):
        self.call(0, 0, made=1)
        self.call(1, uapi.KVM_CREATE_VM, argument=vm_type, result=4, made=2)
        return self.shadow.kept.vms[0]

    def closed(self, file):
        self.shadow.note(self.channel, Kind.CLOSED, file, (0,) * 6, memoryview(b""))


def attributes(address, size, value):
    return uapi.linux_kvm_memory_attributes(address, size, value, 0)


def test_what_the_kernel_did_the_model_does():
    program = Program()
    vm = program.machine()
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0x1000, 0x2000, 8))
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0x1001, 0x2000, 8), error=errno.EINVAL)
    program.call(2, uapi.KVM_CHECK_EXTENSION, argument=uapi.KVM_CAP_MEMORY_ATTRIBUTES, result=8)
    assert vm.attributes.count(0, 8, 8) == 2
    assert program.told == []
    assert (program.shadow.compared, program.shadow.calls) == (3, 4)


def test_what_the_kernel_refused_does_not_stay_in_the_model():
    program = Program()
    vm = program.machine()
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0x1000, 0x2000, 8), error=errno.EPERM)
    program.call(2, uapi.KVM_SET_USER_MEMORY_REGION, uapi.kvm_userspace_memory_region(3, 0, 0, 0x1000, 0),
                 error=errno.EPERM)
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0, 0x1000, 8), error=errno.ENOMEM)
    assert vm.attributes.run_count == 1
    assert len(vm.memslots) == 0
    assert [str(each) for each in program.told] == [
        "call 2: KVM_SET_MEMORY_ATTRIBUTES {address=0x1000, size=0x2000, attributes=0x8, flags=0x0}: kernel EPERM,"
        " model success",
        "call 3: KVM_SET_USER_MEMORY_REGION {slot=3, flags=0x0, guest_phys_addr=0x0, memory_size=0x1000,"
        " userspace_addr=0x0}: kernel EPERM, model success"]
    assert dict(program.shadow.passed) == {"the kernel said ENOMEM": 1}


def test_files_are_known_by_what_they_are():
    program = Program("gmem")
    program.machine()
    file = uapi.kvm_create_guest_memfd(1 << 20, uapi.GUEST_MEMFD_FLAG_MMAP)
    program.call(2, uapi.KVM_CREATE_GUEST_MEMFD, file, result=9, made=3)
    region = uapi.kvm_userspace_memory_region2(0, uapi.KVM_MEM_GUEST_MEMFD, 0, 1 << 20, 0x7F0000000000, 0, 9)
    program.call(2, uapi.KVM_SET_USER_MEMORY_REGION2, region, bound=3)
    program.call(2, uapi.KVM_SET_USER_MEMORY_REGION2, region, error=errno.EINVAL, bound=3)      # immutable
    region.slot, region.guest_phys_addr = 1, 1 << 30
    program.call(2, uapi.KVM_SET_USER_MEMORY_REGION2, region, error=errno.EBADF)
    program.call(2, uapi.KVM_SET_USER_MEMORY_REGION2, region, error=errno.EINVAL)
    change = uapi.kvm_memory_attributes2(offset=0, size=0x2000, attributes=0)
    program.call(3, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change)
    program.call(3, uapi.KVM_SET_MEMORY_ATTRIBUTES2, uapi.kvm_memory_attributes2(offset=0, size=1, attributes=0),
                 error=errno.EINVAL)
    program.call(3, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change, error=errno.EAGAIN)
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change, error=errno.ENOTTY)
    punch = (3).to_bytes(8, "little") + bytes(8) + (0x1000).to_bytes(8, "little")
    program.call(3, Kind.FALLOCATE, punch[:12], out=punch[12:])
    program.call(3, Kind.FALLOCATE, punch[:12], out=punch[12:], error=errno.EPERM)
    assert [str(each).rpartition(": ")[2] for each in program.told] == ["kernel EPERM, model success"]
    (slot,) = program.shadow.kept.vms[0].memslots
    assert slot.guest_memfd.attributes.runs(0, 4).tolist() == [(0, 2, 0), (2, 4, 8)]
    program.closed(3)
    assert slot.guest_memfd.closed


def test_another_process_is_eio_and_its_end_is_not_the_vms():
    program = Program()
    vm = program.machine()
    program.channel.process = "two"
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0, 0x1000, 8), error=errno.EIO)
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0, 0x1000, 8))
    program.shadow.left(program.channel)
    program.channel.process = "one"
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0, 0x1000, 8))
    assert [str(each).rpartition(": ")[2] for each in program.told] == ["kernel success, model EIO"]
    assert vm.attributes.count(0, 8, 8) == 1
    program.shadow.left(program.channel)
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0, 0x1000, 0))
    assert dict(program.shadow.passed) == {"on a descriptor that nobody was seen to make": 1}


def test_unreadable_structures_and_requests_of_other_kernels():
    program = Program()
    program.machine()
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, error=errno.EFAULT)
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES2, error=errno.ENOTTY)
    program.call(1, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0, 0x1000, 8), error=errno.EINVAL)
    assert program.told == []
    program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, error=errno.EINVAL)
    assert [each.model for each in program.told] == ["EFAULT"]


@pytest.mark.parametrize("data", [b"", bytes(55), _SEEN.pack(0, 0, 32, 0, 0, 0, 0, 0) + bytes(32)])
def test_a_message_that_is_none(data):
    program = Program()
    with pytest.raises(ValueError, match=r"^a (message without its answer|structure of another size)"):
        program.shadow.note(program.channel, Kind.SEEN, 0, (0,) * 6, memoryview(data))


def test_a_recording_by_hand(tmp_path):
    with Recording(tmp_path / "log") as recording:
        program = Program(recording=recording)
        program.machine()
        program.call(2, uapi.KVM_SET_MEMORY_ATTRIBUTES, attributes(0x1000, 0x2000, 8))
        program.closed(2)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[2] == ("77 0.000000 ioctl(4<anon_inode:kvm-vm>, KVM_SET_MEMORY_ATTRIBUTES, {address=0x1000,"
                        " size=0x2000, attributes=0x8, flags=0x0}) = 0 <0.000000002>")
    assert lines[3].endswith("close(4<anon_inode:kvm-vm>) = 0")


def test_a_kernel_that_was_built_without_attributes(monkeypatch):
    from kvmattr.fake import shadow
    answers = {uapi.KVM_CAP_MEMORY_ATTRIBUTES: 0, uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: 0,
               uapi.KVM_CAP_MULTI_ADDRESS_SPACE: 0, uapi.KVM_CAP_NR_MEMSLOTS: 32764}
    monkeypatch.setattr(shadow.kvm, "system_extension", answers.get)
    assert shadow.profile_of_kernel("6.18.44") == replace(
        PROFILES["linux-6.18"], name="linux-6.18 without attributes of VMs", vm_attributes=False)
    assert shadow.host_of_kernel() == replace(X86_64, address_spaces=1)
    answers[uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES] = 8
    assert shadow.profile_of_kernel("7.4.0") == PROFILES["gmem"]
