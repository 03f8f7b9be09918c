"""The bridge to /dev/kvm: its refusals anywhere, real VMs where the device opens."""

import errno

import numpy as np
import pytest

from kvmattr import uapi
from kvmattr.bridges import kvm

needs_kvm = pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))


def regions(*rows: tuple[int, int, int, int]) -> np.ndarray:
    """(slot, flags, guest_phys_addr, memory_size) as structures."""
    records = np.zeros(len(rows), uapi.USERSPACE_MEMORY_REGION)
    for record, row in zip(records, rows, strict=True):
        record["slot"], record["flags"], record["guest_phys_addr"], record["memory_size"] = row
    return records


def test_missing_says_why(tmp_path, monkeypatch):
    assert kvm.missing(str(tmp_path / "none")).endswith(
        "does not exist: the kvm module is not loaded or the machine has no virtualisation")

    def refuse(path, flags):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(kvm.os, "open", refuse)
    assert kvm.missing() == "no permission to open /dev/kvm: join the group that owns it (often kvm)"


def test_a_signal_in_close_closes_no_descriptor_twice(monkeypatch):
    """By then the number may be that of another file."""
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda device, request, *argument: kvm.os.dup(device))
    vm = kvm.KernelVM(path="/dev/null")
    vm.create_vcpu()
    closed, close = [], kvm.os.close

    def then_a_signal(descriptor):
        close(descriptor)
        closed.append(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(kvm.os, "close", then_a_signal)
    with pytest.raises(KeyboardInterrupt):
        vm.close()
    vm.close()
    assert len(closed) == len(set(closed)) > 0


def test_a_device_that_is_not_kvm_is_refused():
    with pytest.raises(OSError, match="Inappropriate ioctl") as raised:
        kvm.KernelVM(path="/dev/null")
    assert raised.value.errno == errno.ENOTTY


@needs_kvm
def test_capabilities_and_memslots():
    with kvm.KernelVM() as vm:
        assert vm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS) > 32
        two = regions((0, 0, 0, 4096), (1, 0, 4096, 4096))
        assert vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, two) == 2
        with pytest.raises(OSError, match="exists") as raised:
            vm.ioctl(uapi.KVM_SET_USER_MEMORY_REGION, regions((2, 0, 0, 8192)).tobytes())
        assert raised.value.errno == errno.EEXIST


@needs_kvm
def test_a_batch_stops_at_the_first_failure():
    with kvm.KernelVM() as vm:
        with pytest.raises(kvm.BatchError) as raised:
            vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION,
                          regions((0, 0, 0, 4096), (1, 0, 4096, 1), (2, 0, 8192, 4096)))
        assert (raised.value.errno, raised.value.done) == (errno.EINVAL, 1)
        # The first stands, the third was never asked for: deleting them says so.
        assert vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, regions((0, 0, 0, 0))) == 1
        with pytest.raises(kvm.BatchError):
            vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, regions((2, 0, 0, 0)))


@needs_kvm
def test_closing_twice_and_a_second_vcpu():
    vm = kvm.KernelVM()
    vm.create_vcpu()
    with pytest.raises(OSError, match="the VM has its vCPU already"):
        vm.create_vcpu()
    vm.close()
    vm.close()
    with pytest.raises((OSError, ValueError)):
        vm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS)
