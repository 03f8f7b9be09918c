"""What stands behind the descriptors of a program: the device, a VM, a guest_memfd and a vCPU, as KVM has them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import weakref
from collections import Counter
from collections.abc import Generator
from errno import EEXIST, EFAULT, EINTR, EINVAL, EIO, ENODEV, ENOTTY
from functools import cached_property
from typing import Any, NamedTuple

from kvmattr import uapi
from kvmattr.fake import state
from kvmattr.fake.script import Guest, Script
from kvmattr.fake.state import Ask, State
from kvmattr.fake.wire import Question
from kvmattr.hosts import Host
from kvmattr.profiles import Profile
from kvmattr.vm import VM


class Ioctl(NamedTuple):
    """One ioctl as a program made it."""

    #: Of whom: equal for all that share an address space.
    process: object
    request: int
    argument: int
    #: The bytes of the structure, None if they could not be read.
    structure: bytearray | None
    descriptor: int = -1
    #: The number of the file that the structure's ``guest_memfd`` names, once that is known.
    bound: int | None = None


class Answer(NamedTuple):
    """What an ioctl returns, the bytes that it writes to its argument, and a file whose descriptor is the result."""

    result: int = 0
    out: bytes | bytearray | None = None
    file: File | None = None


#: A call that must ask first: it yields questions and is sent what came back, None for what is not there.
Asking = Generator[Ask, Any, Answer]
Answering = Answer | Asking


class Kept:
    """What a whole server has: how VMs are made, which were, and what was asked that the model does not have."""

    def __init__(self, profile: Profile, script: Script, host: Host, phys_bits: int) -> None:
        self.profile, self.script, self.host, self.phys_bits = profile, script, host, phys_bits
        #: In the order in which they were made; they stay when the program has closed them.
        self.vms: list[VM] = []
        self.guests: list[Guest] = []
        #: (what it was asked of, request) -> how often.
        self.unknown: Counter[tuple[str, int]] = Counter()
        #: The same of what was accepted and has no effect.
        self.without_effect: Counter[tuple[str, int]] = Counter()
        # What the device answers: KVM_CHECK_EXTENSION of it speaks of all VM types.
        self.types = {uapi.KVM_X86_DEFAULT_VM: self.make(private=False),
                      uapi.KVM_X86_SW_PROTECTED_VM: self.make(private=True)}

    @cached_property
    def other_descriptor(self) -> int:
        """A descriptor that is open here and is no guest_memfd: what a program's stands for in the model."""
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def make(self, private: bool) -> VM:
        """A machine of the server's kind."""
        return VM(self.profile, private=private, phys_bits=self.phys_bits, host=self.host)


class File:
    """An open file of the server's; it lives until the last descriptor of it is closed, in whatever process."""

    kind = "anon_inode:[kvm]"

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def ioctl(self, asked: Ioctl) -> Answering:
        """Answer a request, or raise OSError with KVM's errno."""
        raise OSError(ENOTTY, "no ioctl")

    def fallocate(self, mode: int, offset: int, size: int) -> None:
        """fallocate(2), which is for guest_memfds alone."""
        raise OSError(ENODEV, f"{self.kind}: cannot be allocated in")

    def map(self, offset: int, size: int, prot: int, flags: int) -> int:
        """mmap(2): the descriptor of the memory to map."""
        raise OSError(ENODEV, f"{self.kind}: cannot be mapped")

    @property
    def size(self) -> int | None:
        """What fstat(2) says of its size; None where that has nothing to say."""
        return None

    def closed(self) -> None:
        """Its last descriptor is gone."""

    def refused(self) -> None:
        """No descriptor of it could be given to the program: it was never made."""
        self.closed()

    def _answer_by(self, kept: State, asked: Ioctl) -> Answering | None:
        """What the file's kept state answers, None for what it does not know."""
        request, structure = asked.request, asked.structure
        answering: Answering | None = None
        if not uapi.size_of(request):
            result = kept.number(request, asked.argument)
            answering = None if result is None else Answer(result)
        elif structure is not None:
            out = kept.plain(request, structure)
            if out is not None:
                answering = Answer(0, out or None)
            else:
                listed = kept.listed(request, asked.argument, structure)
                answering = None if listed is None else _asking(listed)
        if answering is not None and kept.accepts(request):
            self.kept.without_effect[self.kind, request] += 1
        return answering

    def _missing(self, asked: Ioctl, otherwise: int = ENOTTY) -> OSError:
        """A request that this file does not have: counted, unless it is another file's."""
        if asked.request in _KNOWN:
            return OSError(otherwise, f"request {asked.request:#x}: not of {self.kind}")
        self.kept.unknown[self.kind, asked.request] += 1
        return OSError(ENOTTY, f"request {asked.request:#x}: not in the model")


def _asking(listed: state.Listed) -> Asking:
    result, out = yield from listed
    return Answer(result, out or None)


class System(File):
    """/dev/kvm."""

    kind = "/dev/kvm"

    def ioctl(self, asked: Ioctl) -> Answer:
        """The version, capabilities, VMs and the size of a vCPU's mapping (``virt/kvm/kvm_main.c``, kvm_dev_ioctl)."""
        argument = asked.argument
        match asked.request:
            case uapi.KVM_GET_API_VERSION | uapi.KVM_GET_VCPU_MMAP_SIZE if argument:
                raise OSError(EINVAL, f"argument {argument:#x}: must be 0")
            case uapi.KVM_GET_API_VERSION:
                return Answer(uapi.KVM_API_VERSION)
            case uapi.KVM_GET_VCPU_MMAP_SIZE:
                return Answer(uapi.KVM_VCPU_PAGES * self.kept.host.page_size)
            case uapi.KVM_CHECK_EXTENSION:
                return Answer(max(check_extension(vm, argument) for vm in self.kept.types.values()))
            case uapi.KVM_CREATE_VM:
                if argument not in self.kept.types:
                    raise OSError(EINVAL, f"VM type {argument:#x}: must be one of KVM_CAP_VM_TYPES")
                vm = self.kept.make(private=argument == uapi.KVM_X86_SW_PROTECTED_VM)
                return Answer(file=VMFile(self.kept, vm, asked.process))
        if asked.structure is not None:
            answer = state.system(asked.request, asked.structure, self.kept.phys_bits)
            if answer is not None:
                return Answer(*answer)
        raise self._missing(asked, EINVAL)


class VMFile(File):
    """A VM."""

    kind = "anon_inode:kvm-vm"

    def __init__(self, kept: Kept, vm: VM, process: object) -> None:
        super().__init__(kept)
        self.vm = vm
        self.guest = Guest(vm, kept.script)
        self.process = process
        self.vcpus: set[int] = set()
        self._state = State(of_vcpu=False)
        kept.vms.append(vm)
        try:
            kept.guests.append(self.guest)
        except MemoryError:
            kept.vms.pop()
            raise

    def refused(self) -> None:
        """As if it had never been."""
        self.kept.vms.remove(self.vm)
        self.kept.guests.remove(self.guest)

    def check_process(self, asked: Ioctl) -> None:
        """KVM answers the address space that made the VM, and nobody else."""
        if asked.process != self.process:
            raise OSError(EIO, "the VM was made by another process")

    def ioctl(self, asked: Ioctl) -> Answering:
        """The model's calls, and those that make files."""
        self.check_process(asked)
        request, structure = asked.request, asked.structure
        match request:
            case uapi.KVM_CHECK_EXTENSION:
                return Answer(check_extension(self.vm, asked.argument))
            case uapi.KVM_CREATE_VCPU:
                return self._create_vcpu(asked.argument)
            case uapi.KVM_SET_USER_MEMORY_REGION2 if structure is not None:
                return self._set_region2(structure)
            case uapi.KVM_ENABLE_CAP:
                return self._enable(structure)
        if request not in self.vm.requests:
            answering = self._answer_by(self._state, asked)
            if answering is not None:
                return answering
            raise self._missing(asked)
        if uapi.size_of(request) == 0:
            return Answer(int(self.vm.ioctl(request, asked.argument)))
        if structure is None:
            raise OSError(EFAULT, f"argument {asked.argument:#x}: no structure can be read there")
        if request == uapi.KVM_CREATE_GUEST_MEMFD:
            flags = uapi.kvm_create_guest_memfd.from_buffer_copy(structure).flags
            result = int(self.vm.ioctl(request, structure))
            try:
                return Answer(file=GuestMemory(self, result, flags))
            except MemoryError:
                self.vm.close_guest_memfd(result)
                raise
        result = int(self.vm.ioctl(request, structure))
        return Answer(result, structure if uapi.comes_out(request) else None)

    def _create_vcpu(self, number: int) -> Answer:
        if number >= uapi.KVM_MAX_VCPU_IDS:
            raise OSError(EINVAL, f"vCPU {number}: must be below {uapi.KVM_MAX_VCPU_IDS}")
        if len(self.vcpus) >= uapi.KVM_MAX_VCPUS:
            raise OSError(EINVAL, f"vCPU {number}: the VM has {uapi.KVM_MAX_VCPUS} already")
        if number in self.vcpus:
            raise OSError(EEXIST, f"vCPU {number}: is there already")
        vcpu = Vcpu(self, number)
        try:
            self.vcpus.add(number)
            return Answer(file=vcpu)
        except MemoryError:
            vcpu.refused()
            raise

    def _set_region2(self, structure: bytearray) -> Asking:
        """The program's descriptor becomes the model's handle."""
        region = uapi.kvm_userspace_memory_region2.from_buffer_copy(structure)
        if region.flags & uapi.KVM_MEM_GUEST_MEMFD:
            file = yield Ask(Question.WHICH, region.guest_memfd)
            if isinstance(file, GuestMemory):
                region.guest_memfd = file.handle
            elif file is None:
                region.guest_memfd = 0xFFFFFFFF
            else:   # a descriptor of something else: any that is open here
                region.guest_memfd = self.kept.other_descriptor
        return Answer(int(self.vm.ioctl(uapi.KVM_SET_USER_MEMORY_REGION2, bytearray(region))))

    def _enable(self, structure: bytearray | None) -> Answer:
        if structure is None:
            raise OSError(EFAULT, "no structure can be read")
        enabled = uapi.kvm_enable_cap.from_buffer_copy(structure)
        if enabled.cap != uapi.KVM_CAP_EXIT_HYPERCALL or enabled.flags:
            raise OSError(EINVAL, f"capability {enabled.cap}, flags {enabled.flags:#x}: cannot be enabled")
        if enabled.args[0] & ~(1 << uapi.KVM_HC_MAP_GPA_RANGE):
            raise OSError(EINVAL, f"hypercalls {enabled.args[0]:#x}: KVM_HC_MAP_GPA_RANGE alone leaves to user space")
        self.guest.exits_on_hypercalls = enabled.args[0]
        return Answer()


class GuestMemory(File):
    """A guest_memfd. The model keeps no contents: a mapping is a memory file of its own."""

    kind = "anon_inode:[kvm-gmem]"

    def __init__(self, machine: VMFile, handle: int, flags: int) -> None:
        super().__init__(machine.kept)
        self.machine, self.handle, self.flags = machine, handle, flags
        self._memory: int | None = None

    def ioctl(self, asked: Ioctl) -> Answer:
        """KVM_SET_MEMORY_ATTRIBUTES2 in a profile whose attributes are of files; nobody asks whose process it is."""
        profile = self.machine.vm.profile
        if asked.request != uapi.KVM_SET_MEMORY_ATTRIBUTES2 or not profile.file_attributes:
            raise self._missing(asked)
        structure = asked.structure
        if structure is None:
            raise OSError(EFAULT, f"argument {asked.argument:#x}: no structure can be read there")
        try:
            return Answer(int(self.machine.vm.gmem_ioctl(self.handle, asked.request, structure)))
        except OSError as error:
            # With error_offset, as the model left it there.
            raise Failed(error.errno or EINVAL, str(error), structure) from None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.machine.vm.guest_memfd(self.handle).size

    def fallocate(self, mode: int, offset: int, size: int) -> None:
        """Pages given back, or allocated, of the model and of what the program has mapped."""
        self.machine.vm.fallocate_guest_memfd(self.handle, mode, offset, size)
        if self._memory is not None and mode & uapi.FALLOC_FL_PUNCH_HOLE and os.fstat(self._memory).st_size:
            _fallocate(self._memory, mode, offset, size)

    def map(self, offset: int, size: int, prot: int, flags: int) -> int:
        """With GUEST_MEMFD_FLAG_MMAP, and shared.

        Where a file is shared or private as a whole, a private one is mapped and every access is SIGBUS: what stands
        behind it is empty. Single private pages are not kept from the program (docs/fake.md).
        """
        if not self.flags & uapi.GUEST_MEMFD_FLAG_MMAP:
            raise OSError(ENODEV, "the guest_memfd was made without GUEST_MEMFD_FLAG_MMAP")
        if flags & (mmap.MAP_SHARED | mmap.MAP_PRIVATE) == mmap.MAP_PRIVATE:
            raise OSError(EINVAL, "a guest_memfd is mapped shared")
        if self._memory is None:
            shared = self.flags & uapi.GUEST_MEMFD_FLAG_INIT_SHARED or self.machine.vm.profile.file_attributes
            self._memory = sealed_memory("guest_memfd", self.size if shared else 0)
        return self._memory

    def closed(self) -> None:
        """Its memslots have no private memory any more."""
        if self._memory is not None:
            os.close(self._memory)
        self.machine.vm.close_guest_memfd(self.handle)


class Failed(OSError):
    """An error of a call that writes to its argument all the same."""

    def __init__(self, number: int, text: str, out: bytes | bytearray) -> None:
        super().__init__(number, text)
        self.out = out


class Vcpu(File):
    """A vCPU: the script is its guest."""

    kind = "anon_inode:kvm-vcpu"

    def __init__(self, machine: VMFile, number: int) -> None:
        super().__init__(machine.kept)
        self.machine, self.number = machine, number
        self._state = State(of_vcpu=True)
        size = uapi.KVM_VCPU_PAGES * machine.kept.host.page_size
        self._memory = sealed_memory(f"kvm-vcpu:{number}", size)
        try:
            self._mapped = mmap.mmap(self._memory, size)
            self._run = uapi.kvm_run.from_buffer(self._mapped)
        except BaseException:
            os.close(self._memory)
            raise

    def ioctl(self, asked: Ioctl) -> Answering:
        """KVM_RUN, and KVM_PRE_FAULT_MEMORY where the profile has it."""
        self.machine.check_process(asked)
        if asked.request == uapi.KVM_RUN:
            if asked.argument:
                raise OSError(EINVAL, f"argument {asked.argument:#x}: must be 0")
            return self._play()
        if asked.request != uapi.KVM_PRE_FAULT_MEMORY or not self.machine.vm.profile.pre_fault:
            answering = self._answer_by(self._state, asked)
            if answering is not None:
                return answering
            raise self._missing(asked, EINVAL)
        if asked.structure is None:
            raise OSError(EFAULT, f"argument {asked.argument:#x}: no structure can be read there")
        return self._pre_fault(asked.structure)

    def _play(self) -> Answer:
        run, guest = self._run, self.machine.guest
        guest.complete(self.number, lambda: ctypes.c_int64(run.exit.hypercall.ret).value)
        if run.immediate_exit:
            run.exit_reason = uapi.KVM_EXIT_INTR
            raise OSError(EINTR, "immediate_exit is set")
        stop = guest.run(self.number)
        self._leave(stop.reason, stop.fields)
        if stop.errno:
            raise OSError(stop.errno, "the guest's access is for user space to resolve")
        return Answer()

    def _leave(self, reason: int, fields: dict[str, int]) -> None:
        run = self._run
        run.exit_reason = reason
        ctypes.memset(ctypes.addressof(run.exit), 0, ctypes.sizeof(run.exit))
        part: Any = {uapi.KVM_EXIT_MMIO: run.exit.mmio, uapi.KVM_EXIT_HYPERCALL: run.exit.hypercall,
                     uapi.KVM_EXIT_INTERNAL_ERROR: run.exit.internal,
                uapi.KVM_EXIT_MEMORY_FAULT: run.exit.memory_fault}.get(reason)
        for name, value in fields.items():
            if name.startswith("args"):
                part.args[int(name[4:])] = value
            else:
                setattr(part, name, value)

    def _pre_fault(self, structure: bytearray) -> Answer:
        vm = self.machine.vm
        asked = uapi.kvm_pre_fault_memory.from_buffer_copy(structure)
        # KVM says there what stopped it, also where it returns success.
        self._run.exit_reason = uapi.KVM_EXIT_UNKNOWN
        try:
            return Answer(int(vm.vcpu_ioctl(uapi.KVM_PRE_FAULT_MEMORY, structure)), structure)
        except OSError as error:
            if error.errno == EFAULT:
                stopped = vm.access(asked.gpa, 1, asked.size)
                if stopped is not None and stopped.reason == uapi.KVM_EXIT_MEMORY_FAULT:
                    self._leave(stopped.reason, {"flags": stopped.flags, "gpa": stopped.gpa, "size": stopped.size})
            raise

    def map(self, offset: int, size: int, prot: int, flags: int) -> int:
        """struct kvm_run and what stands behind it."""
        return self._memory

    def closed(self) -> None:
        """The mapping of a program that still has one stays."""
        del self._run
        with contextlib.suppress(BufferError):      # a call that failed may still be held with what it looked at
            self._mapped.close()
        os.close(self._memory)

    def refused(self) -> None:
        """Its number is free again."""
        self.closed()
        self.machine.vcpus.discard(self.number)


def sealed_memory(name: str, size: int) -> int:
    """A memory file whose size nobody changes, so that what is mapped of it is there."""
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _fallocate(descriptor: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2), which Python's os module has without its modes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def check_extension(vm: VM, capability: int) -> int:
    """KVM_CHECK_EXTENSION: the model's memory, and what this server has beside it."""
    return vm.check_extension(capability) or _CAPABILITIES.get(capability, 0)


_CAPABILITIES = {
    uapi.KVM_CAP_NR_VCPUS: os.cpu_count() or 1,
    uapi.KVM_CAP_MAX_VCPUS: uapi.KVM_MAX_VCPUS,
    uapi.KVM_CAP_MAX_VCPU_ID: uapi.KVM_MAX_VCPU_IDS,
    uapi.KVM_CAP_ENABLE_CAP_VM: 1,
    uapi.KVM_CAP_IMMEDIATE_EXIT: 1,
    uapi.KVM_CAP_EXIT_HYPERCALL: 1 << uapi.KVM_HC_MAP_GPA_RANGE,
} | state.CAPABILITIES

#: Requests that some file of some profile has: on another file they are KVM's error, not a hole of the model.
_KNOWN = frozenset(value for name, value in vars(uapi).items() if uapi.is_request(name, value))
