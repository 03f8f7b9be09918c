"""The model beside a real /dev/kvm: each memory call that the kernel has answered is asked of the model too.

The preloaded library tells what it asked and what it got; nobody waits for us. The kernel's answer steers: what it
refused does not stay in the model either, and what differs is told with the call.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kvmattr import uapi
from kvmattr.bridges import kvm
from kvmattr.fake.files import Ioctl, Kept
from kvmattr.fake.recording import Recording, argument_of, name_of, result_of
from kvmattr.fake.server import FOREIGN, Channel
from kvmattr.fake.wire import Kind
from kvmattr.hosts import X86_64, Host
from kvmattr.measure import text
from kvmattr.profiles import PROFILES, Profile
from kvmattr.vm import VM

#: struct seen of ``client/shadow.c``: result, errno, bytes, made, bound, time, nanoseconds, noting.
_SEEN = struct.Struct("<qiI5Q")
#: What a kernel or its machine may say of any call, and no model foresees.
_NOT_FORESEEN = frozenset({errno.ENOMEM, errno.EINTR, errno.ENFILE, errno.EMFILE, errno.ENOSPC})
#: Capabilities that the model answers for the kernel, and not for the hardware.
_COMPARED = frozenset({
    uapi.KVM_CAP_USER_MEMORY, uapi.KVM_CAP_NR_MEMSLOTS, uapi.KVM_CAP_SYNC_MMU,
    uapi.KVM_CAP_DESTROY_MEMORY_REGION_WORKS, uapi.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, uapi.KVM_CAP_READONLY_MEM,
    uapi.KVM_CAP_MULTI_ADDRESS_SPACE, uapi.KVM_CAP_USER_MEMORY2, uapi.KVM_CAP_MEMORY_FAULT_INFO,
    uapi.KVM_CAP_MEMORY_ATTRIBUTES, uapi.KVM_CAP_GUEST_MEMFD, uapi.KVM_CAP_GUEST_MEMFD_FLAGS,
    uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES})


class Twin:
    """What a descriptor of the program is, and what stands for it in the model."""

    def __init__(self, number: int, kind: str, pid: int, process: object, vm: VM | None = None,
                 handle: int = 0) -> None:
        #: Its number in the recording.
        self.number = number
        self.kind = kind
        self.pid = pid
        #: Whose address space made it, and all that have it open.
        self.process = process
        self.holders = {process}
        self.vm = vm
        #: Of a guest_memfd.
        self.handle = handle


class Difference(NamedTuple):
    """A call that the kernel and the model answered differently."""

    call: int
    text: str
    kernel: str
    model: str

    def __str__(self) -> str:
        return f"call {self.call}: {self.text}: kernel {self.kernel}, model {self.model}"


class Answered(NamedTuple):
    """One call that the kernel has answered."""

    request: int
    argument: int
    descriptor: int
    result: int
    error: int
    #: As it went in, and as it came out; None if it could not be read.
    structure: bytearray | None
    out: bytearray | None
    made: int
    bound: int
    time: int
    nanoseconds: int


class Shadow:
    """The models of all VMs of the programs, and how they compare.

    ``kept``: how VMs are made. ``tell``: is given each difference as it is found.
    """

    def __init__(self, kept: Kept, recording: Recording | None = None,
                 tell: Callable[[Difference], None] = lambda difference: None) -> None:
        self.kept = kept
        self._recording, self._tell = recording, tell
        self._twins: dict[int, Twin] = {}
        self._next_number = 3
        self.calls = 0
        self.compared = 0
        self.differences: list[Difference] = []
        #: Why calls were not compared -> how many.
        self.passed: Counter[str] = Counter()
        #: Nanoseconds that the kernel took for each call, and telling us of it.
        self.took = array("Q")
        self.noting = array("Q")

    # What the server calls -----------------------------------------------------------------------------------

    def note(self, channel: Channel, kind: Kind, number: int, words: tuple[int, ...], data: memoryview) -> None:
        """Take one message; ValueError for what is none."""
        if kind == Kind.CLOSED:
            self._closed(self._twins.get(number), number, channel.process)
            return
        if len(data) < _SEEN.size:
            raise ValueError("a message without its answer")
        result, error, size, made, bound, time, nanoseconds, noting = _SEEN.unpack_from(data)
        rest = data[_SEEN.size:]
        if len(rest) != 2 * size:
            raise ValueError("a structure of another size than the message says")
        seen = Answered(words[0], words[1], words[2], result, error, bytearray(rest[:size]) if size else None,
                    bytearray(rest[size:]) if size else None, made, bound, time, nanoseconds)
        if noting:
            self.noting.append(noting)
        self._seen(channel, number, seen)

    def left(self, channel: Channel) -> None:
        """A program has ended, or closed its connection."""
        for number, twin in list(self._twins.items()):
            if channel.process in twin.holders:
                self._closed(twin, number, channel.process)

    # Calls ---------------------------------------------------------------------------------------------------

    def _seen(self, channel: Channel, number: int, seen: Answered) -> None:
        if seen.request == 0:
            twin = self._new(channel, seen.made, "/dev/kvm")
            self._write(channel, seen, f'openat(AT_FDCWD, "/dev/kvm", O_RDWR) = {twin.number}<{twin.kind}>')
            return
        twin_of = self._twins.get(number)
        self.calls += 1
        self.took.append(seen.nanoseconds)
        if twin_of is None:
            self.passed["on a descriptor that nobody was seen to make"] += 1
            return
        if seen.request == Kind.FALLOCATE:
            self._fallocate(channel, twin_of, seen)
            return
        asked = self._asked(channel, seen)
        made = None
        if seen.error == 0 and seen.made:
            made = self._make(channel, twin_of, seen)
        self._record(channel, twin_of, asked, seen, made)
        if made is None:
            self._compare(channel, twin_of, asked, seen)

    def _asked(self, channel: Channel, seen: Answered) -> Ioctl:
        bound = None
        if seen.request == uapi.KVM_SET_USER_MEMORY_REGION2 and seen.structure is not None:
            region = uapi.kvm_userspace_memory_region2.from_buffer(seen.structure)
            if region.flags & uapi.KVM_MEM_GUEST_MEMFD:
                file = self._twins.get(seen.bound)
                bound = -1 if seen.error == errno.EBADF else FOREIGN if file is None else file.number
        return Ioctl(channel.process, seen.request, seen.argument, seen.structure, seen.descriptor, bound)

    def _make(self, channel: Channel, parent: Twin, seen: Answered) -> Twin:
        """A call that made a file."""
        if seen.request == uapi.KVM_CREATE_VM:
            vm = self.kept.make(private=seen.argument != uapi.KVM_X86_DEFAULT_VM)
            self.kept.vms.append(vm)
            return self._new(channel, seen.made, "anon_inode:kvm-vm", vm)
        if seen.request == uapi.KVM_CREATE_GUEST_MEMFD and parent.vm is not None and seen.structure is not None:
            file = uapi.kvm_create_guest_memfd.from_buffer_copy(seen.structure)
            handle = 0
            try:
                handle = parent.vm.create_guest_memfd(file.size, file.flags)
                self.compared += 1
            except OSError as error:
                self._differ(seen, "success", errno_name(error.errno or 0))
            return self._new(channel, seen.made, "anon_inode:[kvm-gmem]", parent.vm, handle)
        return self._new(channel, seen.made, "anon_inode:kvm-vcpu", parent.vm)

    def _new(self, channel: Channel, number: int, kind: str, vm: VM | None = None, handle: int = 0) -> Twin:
        twin = Twin(self._next_number, kind, channel.pid, channel.process, vm, handle)
        self._next_number += 1
        self._twins[number] = twin
        return twin

    def _compare(self, channel: Channel, twin: Twin, asked: Ioctl, seen: Answered) -> None:
        why = self._why_not(twin, seen)
        if why is not None:
            self.passed[why] += 1
            return
        model = self._model(channel, twin, seen)
        if model is None:
            return
        self.compared += 1
        kernel = seen.result if seen.error == 0 else -seen.error
        if kernel != model:
            name = str if seen.request == uapi.KVM_CHECK_EXTENSION else answer_name
            self._differ(seen, name(kernel), name(model), argument_of(asked))

    def _why_not(self, twin: Twin, seen: Answered) -> str | None:
        if seen.error in _NOT_FORESEEN:
            return f"the kernel said {errno_name(seen.error)}"
        if seen.request == uapi.KVM_CHECK_EXTENSION:
            return None if seen.argument in _COMPARED else "capabilities that are not of memory"
        if seen.request in (uapi.KVM_CREATE_VM, uapi.KVM_CREATE_VCPU):
            return f"{name_of(seen.request)} failed"
        if seen.request == uapi.KVM_PRE_FAULT_MEMORY:
            return "KVM_PRE_FAULT_MEMORY, which hangs on the host's memory"
        return None

    def _model(self, channel: Channel, twin: Twin, seen: Answered) -> int | None:
        """The model's answer, -errno for an error; None where it has none."""
        request, structure = seen.request, seen.structure
        if request == uapi.KVM_CHECK_EXTENSION:
            vms = list(self.kept.types.values()) if twin.vm is None else [twin.vm]
            return max(vm.check_extension(seen.argument) for vm in vms)
        vm = twin.vm
        if vm is None or twin.kind == "anon_inode:kvm-vcpu":
            return -errno.EINVAL
        if twin.kind == "anon_inode:[kvm-gmem]":
            return self._of_file(vm, twin, seen)
        if channel.process != twin.process:
            return -errno.EIO
        if request not in vm.requests:
            return -errno.ENOTTY
        if structure is None and uapi.size_of(request):
            return -errno.EFAULT
        if request == uapi.KVM_SET_USER_MEMORY_REGION2:
            structure = self._bound(seen)
        return self._asked_of(vm, seen, lambda: vm.ioctl(request, seen.argument if structure is None else structure))

    def _asked_of(self, vm: VM, seen: Answered, ask: Callable[[], int | bytes]) -> int:
        """Ask, and take back what the kernel has refused."""
        before = vm.snapshot()
        slot = None if seen.structure is None else int.from_bytes(seen.structure[:4], "little")
        slots = {each.id for each in vm.memslots} if slot is not None and seen.error else set()
        try:
            answer = int(ask())
        except OSError as error:
            return -(error.errno or errno.EINVAL)
        if seen.error:
            vm.restore(before)
            if seen.request != uapi.KVM_SET_MEMORY_ATTRIBUTES and slot is not None and slot not in slots:
                vm.set_user_memory_region(slot, 0, 0)
        return answer

    def _of_file(self, vm: VM, twin: Twin, seen: Answered) -> int:
        if seen.request != uapi.KVM_SET_MEMORY_ATTRIBUTES2 or not vm.profile.file_attributes:
            return -errno.ENOTTY
        if seen.structure is None:
            return -errno.EFAULT
        if seen.error == errno.EAGAIN:      # a page that somebody refers to, which only the kernel knows
            self.passed["the kernel said EAGAIN"] += 1
            return -errno.EAGAIN
        try:
            return int(vm.gmem_ioctl(twin.handle, seen.request, bytearray(seen.structure)))
        except OSError as error:
            return -(error.errno or errno.EINVAL)

    def _bound(self, seen: Answered) -> bytearray:
        """The structure with the model's handle in place of the program's descriptor."""
        assert seen.structure is not None
        region = uapi.kvm_userspace_memory_region2.from_buffer_copy(seen.structure)
        if region.flags & uapi.KVM_MEM_GUEST_MEMFD:
            file = self._twins.get(seen.bound)
            if file is not None and file.handle:
                region.guest_memfd = file.handle
            else:
                region.guest_memfd = 0xFFFFFFFF if seen.error == errno.EBADF else self.kept.other_descriptor
        return bytearray(region)

    def _fallocate(self, channel: Channel, twin: Twin, seen: Answered) -> None:
        if seen.structure is None or seen.out is None:
            return
        mode, offset, size = struct.unpack("<Qqq", bytes(seen.structure + seen.out))
        asked = f"fallocate({twin.number}<{twin.kind}>, {mode:#x}, {offset}, {size})"
        self._write(channel, seen, f"{asked} = {result_of(seen.result, seen.error)}")
        if twin.vm is None or not twin.handle or seen.error in _NOT_FORESEEN:
            return
        self.compared += 1
        try:
            twin.vm.fallocate_guest_memfd(twin.handle, mode, offset, size)
            model = 0
        except OSError as error:
            model = -(error.errno or errno.EINVAL)
        if model != -seen.error:
            self._differ(seen, answer_name(-seen.error), answer_name(model), asked)

    def _closed(self, twin: Twin | None, number: int, process: object) -> None:
        if twin is None:
            return
        twin.holders.discard(process)
        if twin.holders:
            return
        del self._twins[number]
        if twin.handle and twin.vm is not None:
            twin.vm.close_guest_memfd(twin.handle)
        if self._recording is not None:
            self._recording.closed(twin)

    def _differ(self, seen: Answered, kernel: str, model: str, argument: str = "") -> None:
        call = argument if seen.request == Kind.FALLOCATE else f"{name_of(seen.request)} {argument}".rstrip()
        difference = Difference(self.calls, call, kernel, model)
        self.differences.append(difference)
        self._tell(difference)

    # The recording -------------------------------------------------------------------------------------------

    def _record(self, channel: Channel, twin: Twin, asked: Ioctl, seen: Answered, made: Twin | None) -> None:
        if self._recording is None:
            return
        answer = f"{made.number}<{made.kind}>" if made is not None else result_of(seen.result, seen.error)
        self._write(channel, seen, f"ioctl({twin.number}<{twin.kind}>, {name_of(asked.request)}, {argument_of(asked)})"
                                   f" = {answer}")

    def _write(self, channel: Channel, seen: Answered, line: str) -> None:
        if self._recording is not None:
            self._recording.raw(channel.pid, f"{line} <{seen.nanoseconds / 1e9:.9f}>", seen.time)

    def cost_text(self) -> str:
        """What the calls took, and telling us of them: medians."""
        if not self.took or not self.noting:
            return "no call was told of"
        took, noting = (text.quantity(float(np.median(each)), "ns") for each in (self.took, self.noting))
        return f"a call took the kernel {took}, telling of it {noting} more (medians)"


def errno_name(number: int) -> str:
    """The errno's name, as Linux has it."""
    return "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))


def answer_name(answer: int) -> str:
    """An answer in words: a result, or an errno that is negative.

    >>> answer_name(0), answer_name(-errno.EEXIST), answer_name(8)
    ('success', 'EEXIST', '8')
    """
    if answer < 0:
        return errno_name(-answer)
    return str(answer) if answer else "success"


def profile_of_kernel(release: str | None = None) -> Profile:
    """The profile of a running kernel: by its version, and by what it says of attributes of VMs and of files.

    ``release``: the running kernel's by default. Raises OSError if /dev/kvm does not open.
    """
    profile = PROFILES[named_by_version(os.uname().release if release is None else release)]
    if profile.name == "linux-7.3" and kvm.system_extension(uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES):
        profile = PROFILES["gmem"]
    if profile.vm_attributes and not kvm.system_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES):
        # CONFIG_KVM_SW_PROTECTED_VM and its like are off, and so the call is not there.
        profile = replace(profile, name=f"{profile.name} without attributes of VMs", vm_attributes=False)
    return profile


def host_of_kernel() -> Host:
    """The machine of the running kernel: x86-64 with the memslots and the address spaces that it says it has.

    Raises OSError if /dev/kvm does not open.
    """
    spaces = kvm.system_extension(uapi.KVM_CAP_MULTI_ADDRESS_SPACE)     # 0 of a kernel without CONFIG_KVM_SMM
    return replace(X86_64, address_spaces=min(max(spaces, 1), uapi.KVM_MAX_NR_ADDRESS_SPACES),
                   nr_memslots=kvm.system_extension(uapi.KVM_CAP_NR_MEMSLOTS))


def named_by_version(release: str) -> str:
    """The name of the profile of a kernel's version.

    >>> named_by_version("6.12.117"), named_by_version("6.18.44-cloud"), named_by_version("7.2.13")
    ('linux', 'linux-6.18', 'linux-7.2')
    """
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal()]
    version = tuple(numbers) if len(numbers) == 2 else (0, 0)
    if version < (6, 18):
        return "linux"
    if version < (7, 1):
        return "linux-6.18"
    return "linux-7.2" if version < (7, 3) else "linux-7.3"
