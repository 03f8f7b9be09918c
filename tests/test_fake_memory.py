"""Out of memory in the fake's server: each request of the interpreter is refused once while one message is answered.

Then the call is answered as ever; or with an errno, and nothing has changed; or its program's connection is closed, as
that of one who sends nonsense. Other programs are served on, and nothing stays open that a program does not have. And
no message, no kind of file and no call that a file's class names is in no list.
"""

from __future__ import annotations

import gc
import inspect
import os
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from kvmattr import uapi
from kvmattr.fake import files
from kvmattr.fake.files import Kept
from kvmattr.fake.script import Script
from kvmattr.fake.server import Server
from kvmattr.fake.wire import CALL, LARGEST, REPLY, VERSION, Kind, Question
from kvmattr.hosts import X86_64
from kvmattr.profiles import profile_named
from tests.interpreter_faults import needs_a_sound_interpreter

testcapi = pytest.importorskip("_testcapi", reason="this Python has no module that refuses memory")

CLEAN = 25              # turns in a row that nothing was refused: there was no further request
MOST_REQUESTS = 5000
GMEM_FLAGS = uapi.GUEST_MEMFD_FLAG_MMAP | uapi.GUEST_MEMFD_FLAG_INIT_SHARED
REGION = uapi.kvm_userspace_memory_region(slot=2, guest_phys_addr=1 << 30, memory_size=1 << 20)
REGION2 = uapi.kvm_userspace_memory_region2(slot=3, guest_phys_addr=1 << 31, memory_size=1 << 20,
                                            flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=50)
PRIVATE = uapi.linux_kvm_memory_attributes(address=0, size=0x5000, attributes=uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)


class World:
    """A server in this thread, a program with a VM, a guest_memfd and a vCPU, and another that has nothing."""

    def __init__(self, abi: str = "linux-7.2") -> None:
        self.server = Server(Kept(profile_named(abi), Script.parse("write 0 8\nread 0x1000\nhalt"), X86_64, 52))
        self.descriptors: list[int] = []
        self.inodes: dict[str, int] = {}
        self.other, self.program = self.connected(), self.connected()
        self.keep("device", Kind.OPEN)
        self.keep("vm", Kind.IOCTL, "device", uapi.KVM_CREATE_VM, uapi.KVM_X86_SW_PROTECTED_VM)
        self.keep("gmem", Kind.IOCTL, "vm", uapi.KVM_CREATE_GUEST_MEMFD, 0,
                  uapi.kvm_create_guest_memfd(1 << 20, GMEM_FLAGS if abi == "gmem" else 0))
        self.keep("vcpu", Kind.IOCTL, "vm", uapi.KVM_CREATE_VCPU)
        assert self.ask(Kind.IOCTL, "vm", uapi.KVM_SET_USER_MEMORY_REGION, 0,
                        uapi.kvm_userspace_memory_region(memory_size=1 << 20)) == (0, 0)

    def turn(self) -> None:
        self.server.serve(lambda: True)

    def connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.server.path)
        connection.setblocking(False)
        self.turn()
        connection.send(CALL.pack(Kind.HELLO, 0, 0, VERSION, os.getpid(), 7, 0, 0, 0))
        self.turn()
        return connection

    def send(self, kind: Kind, of: str = "", *words: int, structure: Any = b"") -> None:
        data = bytes(structure)
        if kind == Kind.IOCTL:
            words = (*words, *[0] * (2 - len(words)), 3, len(data))
        self.program.send(CALL.pack(kind, 0, self.inodes.get(of, 0), *words, *[0] * (6 - len(words))) + data)

    def received(self) -> tuple[int, int] | None:
        """(result, errno) of the reply; None if the connection was closed. Questions are answered."""
        while True:
            try:
                reply, given, _, _ = socket.recv_fds(self.program, LARGEST, 1)
            except BlockingIOError:     # the room for what comes is told first
                self.turn()
                continue
            except ConnectionResetError:
                return None
            self.descriptors += given
            if not reply:
                return None
            result, error, question, _, length = REPLY.unpack_from(reply)
            if question in (Question.WHICH, Question.READ):
                data = bytes(length) if question == Question.READ else b""
                self.program.send(CALL.pack(Kind.ANSWER, 0, self.inodes["gmem"], *[0] * 6) + data)
                self.turn()
            elif question != Question.ROOM:
                return result, error

    def ask(self, kind: Kind, of: str = "", request: int = 0, argument: int = 0, structure: Any = b"") -> Any:
        self.send(kind, of, request, argument, structure=structure)
        self.turn()
        return self.received()

    def keep(self, name: str, *words: Any) -> None:
        assert self.ask(*words) == (0, 0), name
        self.inodes[name] = os.fstat(self.descriptors[-1]).st_ino

    def state(self) -> Any:
        kept = self.server.kept
        return ([vm.attributes.runs().tolist() for vm in kept.vms],
                [[tuple(slot)[:6] for slot in vm.memslots] for vm in kept.vms],
                [sorted(file.size for _, file in vm.guest_memfds()) for vm in kept.vms], len(kept.guests))

    def end(self) -> None:
        """Everything that a program had is given back."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.other.close()
        self.program.close()
        for _ in range(20):
            if not self.server.in_use:
                break
            self.turn()
        assert not self.server.in_use
        # What CPython makes of it where it has no memory for a frame, and ctypes for an argument.
        assert all(isinstance(defect, SystemError) or "MemoryError" in str(defect) for defect in self.server.defects)
        self.server.close()


Message = tuple[Any, ...]


def ioctl(of: str, request: int, argument: int = 0, structure: Any = b"") -> Message:
    return Kind.IOCTL, of, request, argument, structure


#: What is sent; the words before a colon are the kind of message.
MESSAGES: dict[str, Message] = {
    "OPEN": (Kind.OPEN,),
    "IOCTL: of the device": ioctl("device", uapi.KVM_GET_API_VERSION),
    "IOCTL: vCPU mapping": ioctl("device", uapi.KVM_GET_VCPU_MMAP_SIZE),
    "IOCTL: capability of the device": ioctl("device", uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_NR_MEMSLOTS),
    "IOCTL: a VM": ioctl("device", uapi.KVM_CREATE_VM, 0),
    "IOCTL: a list of the device": ioctl("device", uapi.KVM_GET_MSR_INDEX_LIST, 0, bytes(4)),
    "IOCTL: a capability": ioctl("vm", uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_MEMORY_ATTRIBUTES),
    "IOCTL: a vCPU": ioctl("vm", uapi.KVM_CREATE_VCPU, 1),
    "IOCTL: a guest_memfd": ioctl("vm", uapi.KVM_CREATE_GUEST_MEMFD, 0, uapi.kvm_create_guest_memfd(1 << 21)),
    "IOCTL: a memslot": ioctl("vm", uapi.KVM_SET_USER_MEMORY_REGION, 0, REGION),
    "IOCTL: attributes": ioctl("vm", uapi.KVM_SET_MEMORY_ATTRIBUTES, 0, PRIVATE),
    "IOCTL: hypercalls": ioctl("vm", uapi.KVM_ENABLE_CAP, 0, uapi.kvm_enable_cap(
        cap=uapi.KVM_CAP_EXIT_HYPERCALL, args=(1 << uapi.KVM_HC_MAP_GPA_RANGE,))),
    "IOCTL: kept": ioctl("vm", uapi.KVM_SET_CLOCK, 0, bytes(uapi.size_of(uapi.KVM_SET_CLOCK))),
    "IOCTL: a run": ioctl("vcpu", uapi.KVM_RUN),
    "IOCTL: pre-fault": ioctl("vcpu", uapi.KVM_PRE_FAULT_MEMORY, 0, uapi.kvm_pre_fault_memory(gpa=0, size=0x3000)),
    "IOCTL: what is not in the model": ioctl("vm", 0xAE7E),
    "IOCTL: an error": ioctl("vm", uapi.KVM_SET_MEMORY_ATTRIBUTES, 0, bytes(32)),
    "ANSWER: a memslot with private memory": ioctl("vm", uapi.KVM_SET_USER_MEMORY_REGION2, 0, REGION2),
    "ANSWER: a list": ioctl("vcpu", uapi.KVM_SET_CPUID2, 0x1000, (3).to_bytes(8, "little")),
    "FALLOCATE": (Kind.FALLOCATE, "gmem", uapi.FALLOC_FL_PUNCH_HOLE | uapi.FALLOC_FL_KEEP_SIZE, 0),
    "MMAP": (Kind.MMAP, "gmem"),
    "MMAP: a vCPU": (Kind.MMAP, "vcpu"),
    "STAT": (Kind.STAT, "gmem"),
}
#: Not calls: how a program comes, what a shadow tells, how a file goes.
OTHERS = {"HELLO", "SEEN", "CLOSED"}
#: Where attributes are of files.
IN_FILES: dict[str, Message] = {
    "IOCTL: attributes of a file": ioctl("gmem", uapi.KVM_SET_MEMORY_ATTRIBUTES2, 0, uapi.kvm_memory_attributes2(
        offset=0, size=0x5000, attributes=uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)),
    "MMAP: of a file": (Kind.MMAP, "gmem"),
}


def test_no_message_and_no_call_is_in_no_list() -> None:
    assert {name.partition(":")[0] for name in MESSAGES} | OTHERS == set(Kind.__members__)
    requests = {value for name, value in vars(uapi).items() if uapi.is_request(name, value)}
    named = {number for number in map(vars(uapi).get, re.findall(r"uapi\.(KVM_\w+)", inspect.getsource(files)))
             if number in requests}
    asked = {message[2] for message in (*MESSAGES.values(), *IN_FILES.values()) if message[0] == Kind.IOCTL}
    assert named - asked == set()
    assert {each.__name__ for each in files.File.__subclasses__()} == {"System", "VMFile", "GuestMemory", "Vcpu"}


def each_refused(make: Callable[[], World], act: Callable[[World], None], judge: Callable[[World, int], bool]) -> None:
    """``act`` on a world of its own, with each request refused; ``judge`` whether something was."""
    gc.collect()
    gc.freeze()
    number = clean = 0
    some = False
    idle = len(os.listdir("/proc/self/fd"))
    try:
        while clean < CLEAN:
            world = make()
            testcapi.set_nomemory(number, number + 1)
            try:
                act(world)
            except MemoryError:     # before the loop began
                pass
            finally:
                testcapi.remove_mem_hooks()
            was = judge(world, number)
            world.end()
            del world       # with what its server holds of errors
            gc.collect()
            assert len(os.listdir("/proc/self/fd")) == idle, number
            some, clean = some or was, 0 if was else clean + 1
            number += 1 if number < 300 else 23     # a machine is made with three thousand
            assert number < MOST_REQUESTS
    finally:
        gc.unfreeze()
    assert some


@needs_a_sound_interpreter
# What was refused memory on its way is closed when it is dropped, with Python's warning.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("name", [*MESSAGES, *IN_FILES])
def test_each_request_for_memory_may_fail(name: str) -> None:
    message = (MESSAGES | IN_FILES)[name]
    abi = "gmem" if name in IN_FILES else "linux-7.2"
    twin = World(abi)
    before = twin.state()
    expected = twin.ask(*message)
    after = twin.state()
    twin.end()

    def made() -> World:
        world = World(abi)
        kind, of, *words = (*message, "") if len(message) == 1 else message
        structure = words.pop() if len(words) == 3 else b""
        world.send(kind, of, *words, structure=structure)
        return world

    def judge(world: World, number: int) -> bool:
        if not readable(world.program):     # poll itself was refused: the next turn has it
            world.turn()
        answer = world.received()
        if answer is not None and answer != expected:
            assert answer[1], (number, answer)
            assert world.state() == before, (number, answer)
            assert world.ask(*message) == expected, number
        if answer is not None:
            assert world.state() == after, number
        world.program, kept = world.other, world.program
        assert world.ask(Kind.OPEN) == (0, 0), number       # the other is served on
        world.other = kept
        return answer != expected

    each_refused(made, World.turn, judge)


def readable(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) is not None
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
