"""`kvmattr fake`: programs whose /dev/kvm is the model."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kvmattr import AttributeMap, uapi
from kvmattr.fake import CannotCatch, FakeKVM, ScriptError, server
from kvmattr.fake.launch import check_program, library
from kvmattr.fake.wire import CALL, REPLY, Kind
from kvmattr.trace import replay_file

if not sys.platform.startswith("linux"):
    pytest.skip("for Linux", allow_module_level=True)

HERE = Path(__file__).parent
CLIENTS = HERE / "fake_clients.py"
#: Seconds that no test needs: a hang is a failure, not a wait.
SECONDS = 120
PAGE = 4096


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The client in C, built as distributions build."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    program = tmp_path_factory.mktemp("fake") / "client"
    subprocess.run([compiler, "-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-Wall", "-Werror", "-rdynamic",
                    "-o", program, HERE / "fake_client.c", "-lpthread"], check=True)
    return program


def seen_by(fake, name, **options):
    """What a function of fake_clients.py saw."""
    ran = fake.run([sys.executable, CLIENTS, name], capture_output=True, text=True, timeout=SECONDS,
                   **options)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return json.loads(ran.stdout)


def kvmattr(*words, **options):
    return subprocess.run([sys.executable, "-m", "kvmattr", *map(str, words)], capture_output=True, text=True,
                          timeout=SECONDS, **options)


def eventually(condition):
    """The server hears of a closed descriptor a moment later."""
    for _ in range(SECONDS * 50):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("did not become true")


# The calls ---------------------------------------------------------------------------------------------------


def test_the_device():
    with FakeKVM() as fake:
        assert seen_by(fake, "system") == {
            "version": 12, "version of 1": "EINVAL", "mapping": 12288,
            "types": [False, False, True, True, True, True], "memory call": "EINVAL", "unknown": "ENOTTY",
            "not KVM's": "ENOTTY", "read": "EAGAIN", "written": "EBADF", "mapped": "ENODEV", "allocated": "ENODEV"}
        assert fake.unknown == {("/dev/kvm", 0xAE7E): 1}
        assert [vm.memslots.private_memory for vm in fake.vms] == [False, True]


def test_capabilities_are_those_that_a_real_7_2_gave():
    recorded = {}
    for kind, name, value in re.findall(r"^CAP vmtype=(-?[0-9]+) (\w+)=([0-9]+)$",
                                        (HERE / "data" / "kvm-7.2" / "caps.txt").read_text(), re.MULTILINE):
        recorded.setdefault(kind, {})[name] = int(value)
    with FakeKVM("linux-7.2") as fake:
        assert seen_by(fake, "capabilities") == recorded


def test_memory_calls_reach_the_model():
    with FakeKVM() as fake:
        assert seen_by(fake, "memory") == {
            "plain": 0, "again": 0, "overlap": "EEXIST", "bound": 0, "bound twice": "EEXIST", "closed": "EBADF",
            "no file": "EBADF", "device": "EINVAL", "another kind": "EINVAL", "foreign": "EINVAL", "private": 0,
            "flags": "EINVAL", "unaligned": "EINVAL", "on the file": "ENOTTY", "on a pipe": "ENOTTY",
            "on a socket": "ENOTTY", "file flags": "EINVAL", "hole": 0, "half a hole": "EINVAL",
            "truncated": "EINVAL", "size": [1 << 20, 4096], "mapped": "ENODEV"}
        vm = fake.vms[0]
        assert vm.attributes.runs(0, 6).tolist() == [(0, 1, 0), (1, 4, 8), (4, 6, 0)]
        assert [(slot.id, slot.start, slot.stop) for slot in vm.memslots] == [(0, 0, 256), (2, 256, 512)]


def test_bad_pointers_are_efault_and_the_program_lives():
    with FakeKVM() as fake:
        assert seen_by(fake, "pointers") == {
            "null": "EFAULT", "kernel": "EFAULT", "over the end": "EFAULT", "at the end": 0,
            "unknown request": "ENOTTY", "region": "EFAULT", "answer nowhere": "EFAULT", "alive": 0}
        assert fake.vms[0].attributes.count(0, 8, 8) == 2


def test_a_child_is_another_address_space():
    with FakeKVM() as fake:
        assert seen_by(fake, "processes") == {"child": ["EIO", "EIO", 0], "parent": 0}
        assert [vm.attributes.count(0, 8, 8) for vm in fake.vms] == [2, 1]


def test_copies_of_a_descriptor_are_one_file():
    with FakeKVM() as fake:
        assert seen_by(fake, "copies") == {"answers": [0] * 5, "closed": "EBADF"}
        assert fake.vms[0].attributes.count(0, 8, 8) == 5


def test_attributes_of_files_and_a_file_that_is_passed_on():
    with FakeKVM("gmem") as fake:
        assert seen_by(fake, "files") == {
            "private": [0, 0], "on the VM": "ENOTTY", "beyond": ["EINVAL", 0], "child": [0, 0], "mapping": "hello",
            "hole": [0] * 5, "private mapping": "EINVAL"}
        (slot,) = fake.vms[0].memslots
        assert slot.guest_memfd.attributes.runs(0, 16).tolist() == [
            (0, 1, 0), (1, 3, 8), (3, 8, 0), (8, 9, 8), (9, 16, 0)]
        eventually(lambda: slot.guest_memfd.closed)


def test_names_of_the_device():
    with FakeKVM() as fake:
        assert seen_by(fake, "opening") == {"versions": [12] * 4, "others": ["ENOENT", "ENOTDIR", "ENOENT"],
                                            "inherited": True, "closed on exec": True,
                                            # By a link and by "..": never the kernel's own.
                                            "kinds": [True, True] if os.access("/dev/kvm", os.R_OK | os.W_OK) else []}


def test_a_descriptor_that_is_kept_over_exec():
    with FakeKVM() as fake:
        assert seen_by(fake, "executed") == {"vm": "EIO", "version": 12}


@pytest.mark.parametrize(("name", "said"), [
    ("threads", "threads: 0 failed\n"), ("signals", "signals: done\n"), ("closing", "closing: 12 1\n"),
    ("numbers", "numbers: -1 Too many open files, then 1\n")])
def test_a_client_in_c(client, name, said):
    limit = ["sh", "-c", 'ulimit -n 100; exec "$0" "$1"'] if name == "numbers" else []
    with FakeKVM() as fake:
        ran = fake.run([*limit, client, name], capture_output=True, text=True, timeout=SECONDS)
        assert (ran.stdout, ran.stderr, ran.returncode) == (said, "", 0)
        if name == "threads":
            expected = AttributeMap(1 << 52)
            expected.put(np.arange(8 * 2000, dtype=np.uint64) * 2, 8)
            assert fake.vms[0].attributes == expected


def test_programs_of_one_server_have_their_own_vms(client):
    with FakeKVM() as fake:
        running = [subprocess.Popen([client, "threads"], env=fake.environment, stdout=subprocess.DEVNULL)
                   for _ in range(3)]
        # However long a busy machine takes for their calls.
        assert [each.wait() for each in running] == [0, 0, 0]
        assert [vm.attributes.count(0, 1 << 20, 8) for vm in fake.vms] == [16000] * 3


def test_on_a_crowded_machine_nobody_waits_awake(client, monkeypatch):
    """Who yields a processor that others want has it back late, and is woken sooner: so threads and server sleep."""
    yields, message = [], server.Server._message

    def late():
        yields.append(time.monotonic_ns())
        time.sleep(0.001)

    def slowly(*words):
        time.sleep(0.0005)      # else the answer is often there before anyone had to wait
        message(*words)

    monkeypatch.setattr(server.os, "sched_yield", late)
    with FakeKVM() as fake:
        fake.run([client, "crowded"], check=True, capture_output=True, timeout=SECONDS)
    monkeypatch.setattr(server.Server, "_message", slowly)
    with FakeKVM() as fake:
        ran = fake.run([client, "crowded"], capture_output=True, text=True, timeout=SECONDS)
    said, number = ran.stdout.split()
    assert said == "crowded:"
    assert int(number) <= 130 / (1 + 64)
    assert np.diff(yields).min(initial=server._CROWDED_NS) >= server._CROWDED_NS


def test_what_is_set_up_before_the_first_run_is_kept():
    with FakeKVM() as fake:
        seen = seen_by(fake, "kept")
        for name in ("REGS", "SREGS", "SREGS2", "FPU", "LAPIC", "MP_STATE", "VCPU_EVENTS", "DEBUGREGS", "XSAVE", "XCRS",
                     "CLOCK", "PIT2"):
            assert seen.pop(name) == [True, 0, 0, True], name
        assert seen == {
            "too short": "E2BIG", "cpuid": [0, 10], "kept cpuid": [0, 0, True], "set msrs": 2, "msrs": [2, 77, 88],
            "list nowhere": "EFAULT", "list past the end": ["EFAULT", 12],
            "too many": ["E2BIG", "E2BIG"], "tsc": [0, 1234], "chip": [0, "EINVAL"],
            "accepted": [0, 0, 0], "elsewhere": ["ENOTTY", "EINVAL", "EINVAL"]}
        assert set(fake.without_effect) == {
            ("anon_inode:kvm-vm", uapi.KVM_IOEVENTFD), ("anon_inode:kvm-vm", uapi.KVM_SET_TSS_ADDR),
            ("anon_inode:kvm-vcpu", uapi.KVM_NMI)}
        assert fake.unknown == {}


def test_a_mapping_of_a_private_file_is_sigbus():
    with FakeKVM("linux-7.2") as fake:
        assert seen_by(fake, "whole_files") == {"ends": [0, signal.SIGBUS], "vm": True}


# Who cannot be caught ----------------------------------------------------------------------------------------


def program(path, head):
    path.write_bytes(head)
    path.chmod(0o755)
    return str(path)


def elf(machine, bits=2, kinds=(1, 3)):
    """The head of an ELF program with these program headers."""
    own = Path(sys.executable).read_bytes()[:20]
    headers = b"".join(struct.pack("<I52x", kind) for kind in kinds)
    return (own[:4] + bytes([bits]) + own[5:18] + struct.pack("<H", machine) + bytes(12) + struct.pack("<Q", 64)
            + bytes(14) + struct.pack("<HH", 56, len(kinds)) + bytes(6) + headers)


OWN = struct.unpack_from("<H", Path(sys.executable).read_bytes(), 18)[0] if sys.platform.startswith("linux") else 0


def test_a_static_program_is_told(tmp_path):
    static = program(tmp_path / "static", elf(OWN, kinds=(1, 1)))
    text = (f"{static}: {static} is linked statically, so nothing can be preloaded into it: link it dynamically"
            " (its ELF header has no PT_INTERP)")
    with FakeKVM() as fake, pytest.raises(CannotCatch) as raised:
        fake.run([static])
    assert str(raised.value) == text
    ran = kvmattr("fake", "--", static)
    assert (ran.returncode, ran.stderr) == (2, f"kvmattr fake: {text}\n")
    check_program(program(tmp_path / "dynamic", elf(OWN)))
    script = program(tmp_path / "script", b"#!" + static.encode() + b"\n")
    with pytest.raises(CannotCatch, match="linked statically"):
        check_program(script)


@pytest.mark.parametrize("head", [elf(OWN + 1), elf(OWN, bits=1)])
def test_a_program_for_another_machine_is_told(tmp_path, head):
    with pytest.raises(CannotCatch, match="is a program for another machine than this Python's"):
        check_program(program(tmp_path / "other", head))


def test_a_setuid_program_is_told(tmp_path, monkeypatch):
    path = program(tmp_path / "setuid", elf(OWN))
    Path(path).chmod(0o4755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotCatch, match=r"runs with its owner's rights \(setuid\), and such programs preload"):
        check_program(path)


def test_elsewhere_than_on_linux_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CannotCatch, match=r"^fake and shadow are for programs of Linux, this is darwin$"):
        library()


def test_the_command_says_so_elsewhere(monkeypatch, capsys):
    from kvmattr.cli import main
    monkeypatch.setattr(sys, "platform", "darwin")
    for name in ("fake", "shadow"):
        if name == "shadow":
            from kvmattr.bridges import kvm
            monkeypatch.setattr(kvm, "missing", lambda: None)
        assert main([name, "--", "true"]) == 2
        assert capsys.readouterr().err == (f"kvmattr {name}: fake and shadow are for programs of Linux, this is"
                                           " darwin\n")


def test_a_path_that_ld_preload_would_part(tmp_path, monkeypatch):
    from kvmattr.fake import launch
    place = tmp_path / "a b:c"
    place.mkdir()
    shutil.copy(library(), place)
    monkeypatch.setattr(launch, "_LIBRARY", place / library().name)
    with FakeKVM() as fake:
        assert " " not in fake.environment["LD_PRELOAD"]
        assert seen_by(fake, "executed") == {"vm": "EIO", "version": 12}


def test_what_was_preloaded_before_stays(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/a.so /nowhere/b.so")
    with FakeKVM() as fake:
        assert fake.environment["LD_PRELOAD"] == f"{library()}:/nowhere/a.so:/nowhere/b.so"


# The server's end ---------------------------------------------------------------------------------------------


def test_a_dead_server_is_eio_and_told_once():
    fake = FakeKVM()
    child = subprocess.Popen([sys.executable, CLIENTS, "dying"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True,
                             env=fake.environment)
    assert child.stdout.readline() == "ready\n"
    fake.close()
    fake.close()
    out, err = child.communicate("go\n", timeout=SECONDS)
    assert json.loads(out) == {"before": 0, "after": ["EIO"] * 3, "open": "EIO"}
    assert err == "kvmattr: the server has gone: every call on KVM fails with EIO\n"


@pytest.fixture(autouse=True)
def _close_what_tests_opened():
    yield
    while OPEN:
        OPEN.pop().close()


#: Sockets and files of the running test.
OPEN = []


def connected(fake):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(fake.environment["KVMATTR_FAKE_SOCKET"])
    connection.settimeout(SECONDS)
    OPEN.append(connection)
    return connection


def hello(connection):
    connection.send(CALL.pack(Kind.HELLO, 0, 0, 1, os.getpid(), 7, 0, 0, 0))
    return connection


def is_cut(connection):
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


HOSTILE = {
    "nothing": b"x",
    "an older version": CALL.pack(Kind.HELLO, 0, 0, 99, 1, 7, 0, 0, 0),
    "a call before the hello": CALL.pack(Kind.OPEN, 0, 0, 0, 0, 0, 0, 0, 0),
}
AFTER_HELLO = {
    "no kind": CALL.pack(77, 0, 0, 0, 0, 0, 0, 0, 0),
    "an answer without a question": CALL.pack(Kind.ANSWER, 0, 0, 0, 0, 0, 0, 0, 0),
    "a shadow's message": CALL.pack(Kind.SEEN, 0, 0, 0, 0, 0, 0, 0, 0) + bytes(80),
    "a second hello": CALL.pack(Kind.HELLO, 0, 0, 1, 1, 7, 0, 0, 0),
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
def test_who_sends_nonsense_is_cut_off(message):
    with FakeKVM() as fake:
        connection = connected(fake)
        connection.send(message)
        assert is_cut(connection)
        assert seen_by(fake, "executed") == {"vm": "EIO", "version": 12}


@pytest.mark.parametrize("message", AFTER_HELLO.values(), ids=AFTER_HELLO)
def test_who_sends_nonsense_after_the_hello_is_cut_off(message):
    with FakeKVM() as fake:
        connection = hello(connected(fake))
        connection.send(message)
        assert is_cut(connection)


def opened(connection):
    """A descriptor of the device, by hand: its inode."""
    connection.send(CALL.pack(Kind.OPEN, 0, 0, 0, 0, 0, 0, 0, 0))
    _, files, _, _ = socket.recv_fds(connection, REPLY.size, 1)
    OPEN.append(os.fdopen(files[0], "rb", 0))
    return os.fstat(files[0]).st_ino


@pytest.mark.parametrize(("size", "bytes_sent"), [(32, 8), (8, 32), (1 << 40, 32), (0, 0)])
def test_a_structure_of_another_size_than_it_says_is_cut_off(size, bytes_sent):
    with FakeKVM() as fake:
        connection = hello(connected(fake))
        inode = opened(connection)
        connection.send(CALL.pack(Kind.IOCTL, 0, inode, uapi.KVM_SET_MEMORY_ATTRIBUTES, 0, 3, size, 0, 0)
                        + bytes(bytes_sent))
        assert is_cut(connection)


def test_who_does_not_read_his_replies_holds_nobody_up():
    with FakeKVM() as fake:
        deaf = hello(connected(fake))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        inode = opened(deaf)
        call = CALL.pack(Kind.IOCTL, 0, inode, uapi.KVM_GET_API_VERSION, 0, 3, 0, 0, 0)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(200_000):
                deaf.send(call)
            pytest.fail("was never cut off")
        assert seen_by(fake, "executed") == {"vm": "EIO", "version": 12}


def test_who_takes_every_descriptor_leaves_some_for_others(monkeypatch):
    monkeypatch.setattr(server, "_SHARE", 20 / resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with FakeKVM() as fake:
        greedy = hello(connected(fake))
        answers, held = [], []
        for _ in range(30):
            greedy.send(CALL.pack(Kind.OPEN, 0, 0, 0, 0, 0, 0, 0, 0))
            reply, files, _, _ = socket.recv_fds(greedy, REPLY.size, 1)
            answers.append(REPLY.unpack(reply)[1])
            held += files
        try:
            assert answers == [0] * 19 + [errno.ENFILE] * 11
            assert seen_by(fake, "executed") == {"vm": "EIO", "version": 12}
        finally:
            for each in held:
                os.close(each)


def test_a_defect_costs_one_connection_and_is_told(monkeypatch, capfd):
    def broken(self, capability):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("kvmattr.vm.VM.check_extension", broken)
    with FakeKVM() as fake:
        connection = hello(connected(fake))
        inode = opened(connection)
        connection.send(CALL.pack(Kind.IOCTL, 0, inode, uapi.KVM_CHECK_EXTENSION, 3, 3, 0, 0, 0))
        assert is_cut(connection)
        assert seen_by(fake, "executed") == {"vm": "EIO", "version": 12}
    assert capfd.readouterr().err == ("kvmattr: fake: a defect of kvmattr, the program's connection is closed:"
                                      " ZeroDivisionError('planted')\n")


def requests():
    """Every request that the server may know, and a few that it does not."""
    return sorted({value for name, value in vars(uapi).items() if uapi.is_request(name, value)} | {0xAE7E, 0x4020AE7F})


@pytest.mark.parametrize("abi", ["linux-7.2", "gmem", "rfc"])
def test_no_structure_whatever_is_a_defect(abi):
    """Random bytes, and bytes near to sense, as the structure of every request, on every kind of file."""
    random = np.random.default_rng(21)
    with FakeKVM(abi, script="write 0 8\nhypercall map_gpa_range 0 1 private\nread 0x1000\nhalt") as fake:
        connection = hello(connected(fake))
        device = opened(connection)

        def call(inode, request, argument, structure=b"", kind=Kind.IOCTL):
            """The reply's result or -errno; questions are answered at random."""
            words = (request, argument, 3, len(structure) if kind == Kind.IOCTL else 1, 0, 0)
            connection.send(CALL.pack(kind, 0, inode, *words) + structure)
            while True:
                reply, files, _, _ = socket.recv_fds(connection, 1 << 17, 1)
                result, error, question, _, length = REPLY.unpack_from(reply)
                made.extend(files)
                if question in (1, 2):
                    other = inodes[int(random.integers(len(inodes)))]
                    data = random.bytes(min(length, 4096)) if question == 2 else b""
                    connection.send(CALL.pack(Kind.ANSWER, int(random.integers(2)), other, 0, 0, 0, 0, 0, 0) + data)
                elif question != 3:
                    return -error if error else result

        made, inodes = [], [device]
        try:
            for parent, request, argument, structure in [
                (0, uapi.KVM_CREATE_VM, 1, b""), (1, uapi.KVM_CREATE_VCPU, 0, b""),
                (1, uapi.KVM_CREATE_GUEST_MEMFD, 0, bytes(uapi.kvm_create_guest_memfd(1 << 20)))]:
                assert call(inodes[parent], request, argument, structure) == 0
                inodes.append(os.fstat(made[-1]).st_ino)
            for _ in range(60):
                for request in requests():
                    structure = bytearray(random.bytes(uapi.size_of(request)))
                    if random.integers(2):      # small numbers, in pages
                        words = np.frombuffer(structure, np.uint8, len(structure) // 8 * 8).view(np.uint64)
                        words[:] = random.integers(0, 4, len(words), np.uint64) * np.uint64(random.choice([1, PAGE]))
                    call(inodes[int(random.integers(len(inodes)))], request, int(random.integers(0, 300)), structure)
                    while len(made) > 3:
                        os.close(made.pop())
                for kind in (Kind.FALLOCATE, Kind.MMAP, Kind.STAT):
                    call(inodes[int(random.integers(len(inodes)))], int(random.integers(4)), 0, b"", kind)
                    while len(made) > 3:
                        os.close(made.pop())
        finally:
            for each in made:
                os.close(each)
        assert fake._server.defects == []
        for vm in fake.vms:
            vm.attributes.validate()
            vm.memslots.validate()


def test_the_socket_is_its_users_alone():
    with FakeKVM() as fake:
        path = Path(fake.environment["KVMATTR_FAKE_SOCKET"])
        assert path.parent.stat().st_mode & 0o777 == 0o700
        if os.geteuid() == 0:   # even where the directory is opened
            path.parent.chmod(0o755)
            path.chmod(0o777)
            script = ("import os, socket; os.setuid(65534);"
                      " s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
                      f" s.connect({str(path)!r}); print(s.recv(1))")
            ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS)
            assert (ran.stdout == "b''\n" or "Reset" in ran.stderr), ran.stderr
    assert not path.parent.exists()


# The command -------------------------------------------------------------------------------------------------


def test_the_command_records_what_replay_reads(tmp_path):
    recorded = tmp_path / "calls.log"
    ran = kvmattr("fake", "--abi", "linux-7.2", "--record", recorded, "--", sys.executable, CLIENTS, "pointers")
    assert ran.returncode == 0
    assert ran.stderr == ("kvmattr: fake: 11 calls answered as linux-7.2, 1 VM\n"
                          "kvmattr: fake: not in the model, ENOTTY: _IOC(_IOC_WRITE, 0xae, 0x7e, 0x20) on"
                          " anon_inode:kvm-vm, 1 time\n")
    text = recorded.read_text()
    assert re.search(r"^\d+ \d+\.\d{6} ioctl\(4<anon_inode:kvm-vm>, KVM_SET_MEMORY_ATTRIBUTES, \{address=0x5000,"
                     r" size=0x1000, attributes=0x8, flags=0x0\}\) = 0$", text, re.MULTILINE)
    assert "KVM_SET_MEMORY_ATTRIBUTES, 0x0) = -1 EFAULT (Bad address)" in text
    summary = replay_file(recorded, abi="linux-7.2")
    assert summary is not None


def test_a_guest_memfd_in_a_recording_is_its_number(tmp_path):
    recorded = tmp_path / "calls.log"
    assert kvmattr("fake", "--record", recorded, "--", sys.executable, CLIENTS, "memory").returncode == 0
    text = recorded.read_text()
    made = re.search(r"KVM_CREATE_GUEST_MEMFD, \{size=0x100000, flags=0x0\}\) = (\d+)<anon_inode:\[kvm-gmem\]>", text)
    assert f"guest_memfd={made[1]}}}) = 0" in text
    assert "guest_memfd=-1}) = -1 EBADF (Bad file descriptor)" in text
    assert f"fallocate({made[1]}<anon_inode:[kvm-gmem]>, 0x3, 0, 4096) = 0\n" in text
    assert f"fallocate({made[1]}<anon_inode:[kvm-gmem]>, 0x3, 0, 1) = -1 EINVAL (Invalid argument)\n" in text


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -TERM $$", 143), ("true", 0)])
def test_the_exit_code_is_the_programs(command, code):
    ran = kvmattr("fake", "--", "sh", "-c", command)
    assert ran.returncode == code
    assert ran.stderr == "kvmattr: fake: sh never opened /dev/kvm through the C library: nothing was answered\n"


def test_what_is_wrong_is_said(tmp_path):
    script = tmp_path / "guest"
    script.write_text("read 0x1000\n\njump 0\n")
    for words, code, text in [
        ([], 2, "expected -- COMMAND ..."),
        (["--", "no-such-program"], 127, "no-such-program: command not found"),
        (["--script", tmp_path / "none", "--", "true"], 2, f"{tmp_path}/none: No such file or directory"),
        (["--script", script, "--", "true"], 2,
         f"{script}:3: 'jump': expected read, write, exec, hypercall, halt or vcpu"),
        (["--record", tmp_path / "no" / "where", "--", "true"], 2,
         f"{tmp_path}/no/where cannot be written: No such file or directory"),
    ]:
        ran = kvmattr("fake", *words)
        assert (ran.returncode, ran.stderr) == (code, f"kvmattr fake: {text}\n")


def test_a_full_disk_costs_the_recording_and_nothing_else():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    said = "/dev/full cannot be written: No space left on device: the recording is not whole\n"
    ran = kvmattr("fake", "--record", "/dev/full", "--", sys.executable, CLIENTS, "copies")
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["answers"] == [0] * 5
    assert ran.stderr.endswith(f"kvmattr fake: {said}")
    # One that fails keeps its own exit code.
    ran = kvmattr("fake", "--record", "/dev/full", "--", "sh", "-c", f"{sys.executable} {CLIENTS} copies; exit 7")
    assert (ran.returncode, ran.stderr.endswith(f"kvmattr: {said}")) == (7, True)


def test_a_daemon_is_served_after_the_command_has_ended(tmp_path):
    daemon = tmp_path / "daemon.py"
    daemon.write_text("import fcntl, os, pathlib, time\n"
                      "kvm = os.open('/dev/kvm', os.O_RDWR)\n"
                      "pathlib.Path('up').touch()\n"
                      "while os.getppid() == int(os.environ['STARTER']):\n"
                      "    time.sleep(0.02)\n"
                      "pathlib.Path('out').write_text(str(fcntl.ioctl(kvm, 0xAE00, 0)))\n")
    ran = kvmattr("fake", "--", "sh", "-c", f"STARTER=$$ {sys.executable} {daemon} >/dev/null 2>&1 &"
                  " while [ ! -e up ]; do sleep 0.02; done", cwd=tmp_path)
    assert ran.returncode == 0
    assert (tmp_path / "out").read_text() == "12"
    assert ran.stderr == "kvmattr: fake: 1 call answered as linux-7.2, 0 VMs\n"


def test_errors_have_names():
    with pytest.raises(ScriptError, match=r"^<script>:1: expected 'halt', found 'halt now'$"):
        FakeKVM(script="halt now")
    with pytest.raises(ValueError, match="abi 'linux-9': must be one of"):
        FakeKVM("linux-9")
    assert errno.errorcode[errno.EIO] == "EIO"
