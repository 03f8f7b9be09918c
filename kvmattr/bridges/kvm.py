"""The real /dev/kvm: virtual machines of our own, opened, measured and closed again.

Nothing here touches a VM that another process owns: a :class:`KernelVM` is made by KVM_CREATE_VM and lives
until :meth:`KernelVM.close`. It answers ``ioctl`` as :class:`kvmattr.VM` does, so either can stand where the
other does.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kvmattr import uapi
from kvmattr.bridges._kvm import ioctl_many, read_private

#: The device that is opened where no other is named.
DEVICE = "/dev/kvm"


def missing(path: str = DEVICE) -> str | None:
    """Why ``path`` cannot be used here, in words, or None when it opens.

    >>> missing("/nowhere")
    '/nowhere does not exist: the kvm module is not loaded or the machine has no virtualisation'
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"{path} does not exist: the kvm module is not loaded or the machine has no virtualisation"
    except PermissionError:
        return f"no permission to open {path}: join the group that owns it (often kvm)"
    except OSError as error:
        return f"cannot open {path}: {error.strerror}"
    os.close(descriptor)
    return None


def is_fake(path: str = DEVICE) -> bool:
    """Whether ``path`` is no device of the kernel: under ``kvmattr fake`` it is the model, over a socket.

    >>> is_fake("/dev/null")
    False
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not stat.S_ISCHR(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def system_extension(capability: int, path: str = DEVICE) -> int:
    """KVM_CHECK_EXTENSION on the device itself: what the kernel has for any VM, 0 where it lacks it.

    A VM answers for its own type: a default VM has no attributes on a kernel that has them. Raises OSError.
    """
    device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, uapi.KVM_CHECK_EXTENSION, capability)
    finally:
        os.close(device)


def private_vm_type(path: str = DEVICE) -> int | None:
    """A VM type of this kernel whose memory can be private by its VM's attributes, None if there is none.

    Every type of KVM_CAP_VM_TYPES is tried by making such a VM, the software-protected one first, because it
    needs no special hardware; SEV-SNP and TDX are the others. Raises OSError if the device does not open.
    """
    offered = system_extension(uapi.KVM_CAP_VM_TYPES, path)
    types = [number for number in range(32) if offered >> number & 1]
    for vm_type in sorted(types, key=lambda number: number != uapi.KVM_X86_SW_PROTECTED_VM):
        try:
            with KernelVM(vm_type, path) as vm:
                if vm.check_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES) & uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE:
                    return vm_type
        except OSError:     # offered, but not to this process or not now
            continue
    return None


class BatchError(OSError):
    """A call of a batch failed with ``errno``; ``done`` calls before it stand."""

    def __init__(self, error: int, done: int) -> None:
        super().__init__(error, f"{os.strerror(error)}, in call {done} of a batch")
        self.done = done


class KernelVM:
    """A VM of the running kernel: KVM_CREATE_VM on construction, closed by ``close`` or ``with``, or with the object.

    ``vm_type`` is the argument of KVM_CREATE_VM: 0, or ``uapi.KVM_X86_SW_PROTECTED_VM`` for a VM whose memory
    can be private. Raises OSError with KVM's errno.
    """

    _descriptor = -1
    _vcpu: int | None = None
    _shared: mmap.mmap | None = None

    def __init__(self, vm_type: int = uapi.KVM_X86_DEFAULT_VM, path: str = DEVICE) -> None:
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._descriptor = fcntl.ioctl(device, uapi.KVM_CREATE_VM, vm_type)
            self._shared_bytes = fcntl.ioctl(device, uapi.KVM_GET_VCPU_MMAP_SIZE, 0)
        finally:
            os.close(device)

    def ioctl(self, request: int, arg: Any = 0) -> int | bytes:
        """What ``fcntl.ioctl`` does with this VM's file descriptor: bytes give bytes, all else gives int."""
        answer: int | bytes = fcntl.ioctl(self._descriptor, request, arg)
        return answer

    def ioctl_many(self, request: int, records: NDArray[Any]) -> int:
        """One call of ``request`` a record, in order, with the GIL released; returns their number.

        ``records``: a C-contiguous structured array of the request's structure (``uapi`` has the dtypes). The
        first call that fails raises :class:`BatchError`; the calls before it stand.
        """
        flat = records.view(np.uint8).reshape(len(records), records.dtype.itemsize)
        done, error = ioctl_many(self._descriptor, request, flat)
        if error:
            raise BatchError(error, done)
        return done

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when the kernel does not have the capability."""
        return int(self.ioctl(uapi.KVM_CHECK_EXTENSION, capability))

    def create_vcpu(self) -> None:
        """Give the VM one vCPU, which is never run: its presence alone lengthens some of KVM's paths."""
        if self._vcpu is not None:
            raise OSError(errno.EEXIST, "the VM has its vCPU already")
        self._vcpu = int(self.ioctl(uapi.KVM_CREATE_VCPU, 0))

    def read_private(self, gfns: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these pages KVM itself treats as private: KVM_PRE_FAULT_MEMORY on the VM's vCPU, page by page.

        The merged interface cannot read attributes back, so this asks what an access would meet. ``gfns``:
        uint64[n]; returns bool[n]. It is right where private pages have no guest_memfd behind them, as in every
        VM of the study. The first call makes a vCPU; pages become mapped where memory stands behind them. Costs
        an ioctl a page. Raises OSError: ENOTTY or EOPNOTSUPP where the kernel cannot do it (before Linux 6.11,
        or without two-dimensional paging).
        """
        if self._vcpu is None:
            self.create_vcpu()
        assert self._vcpu is not None
        if self._shared is None:
            self._shared = mmap.mmap(self._vcpu, self._shared_bytes)
        wanted = np.ascontiguousarray(gfns, np.uint64)
        private = np.zeros(len(wanted), np.uint8)
        first = 0
        while first < len(wanted):
            with memoryview(self._shared) as shared:
                done, error = read_private(self._vcpu, uapi.KVM_PRE_FAULT_MEMORY, shared, wanted[first:],
                                           private[first:])
            first += done
            if error not in (0, errno.EINTR):
                raise OSError(error, f"KVM_PRE_FAULT_MEMORY of gfn {int(wanted[first]):#x}: {os.strerror(error)}")
        return private.view(np.bool_)

    def close(self) -> None:
        """Destroy the VM. Calling it again does nothing."""
        # Forgotten first: after a signal behind os.close the number, another file's by then, would be closed again.
        shared, self._shared = self._shared, None
        vcpu, self._vcpu = self._vcpu, None
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if shared is not None:
                shared.close()
        finally:
            try:
                if vcpu is not None:
                    os.close(vcpu)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def __del__(self) -> None:
        # Whoever was refused memory between making it and `with` could not.
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
