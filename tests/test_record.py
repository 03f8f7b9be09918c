"""`kvmattr record`: a command under strace, its exit code and signals, and the summary of what it did."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kvmattr import cli
from kvmattr.bridges import kvm
from kvmattr.trace import kernel_tracing, read, record_command, record_preloaded

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
    assert f"kvmattr record: {output} written\n" in done.stderr
    assert "3 operations (3 slot calls, 0 conversions)" in done.stderr
    assert "answers: success 3" in done.stderr
    with read(output) as trace:
        assert (trace.slot_calls, trace.operations) == (3, 3)


@needs_kvm
@pytest.mark.parametrize(("words", "path"), [(["--by", "library"], None), ([], "/nowhere")],
                         ids=["asked for", "strace is not installed"])
def test_a_vmm_is_recorded_by_the_preloaded_library(tmp_path, words, path):
    output = tmp_path / "made.strace"
    environment = os.environ if path is None else {**os.environ, "PATH": path}
    done = subprocess.run([*RECORD, *words, "-o", str(output), "--", sys.executable, "-c", VMM], input="and its input",
                          capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "from the command and its input\n"
    assert re.search(rf"^kvmattr record: {re.escape(str(output))} written, \d+ calls; those of KVM_RUN left out$",
                     done.stderr, re.MULTILINE), done.stderr
    assert "3 operations (3 slot calls, 0 conversions)" in done.stderr
    assert "answers: success 3" in done.stderr
    with read(output) as trace:
        assert (trace.slot_calls, trace.operations) == (3, 3)


@needs_kvm
def test_a_program_that_never_opens_kvm_through_the_library_is_told(tmp_path):
    done = subprocess.run([*RECORD, "--by", "library", "-o", str(tmp_path / "x"), "--", sys.executable, "-c", ""],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert f"kvmattr record: {sys.executable} never opened /dev/kvm through the C library; `--by strace` sees every " \
           "call\n" in done.stderr


@needs_kvm
def test_a_recording_of_the_library_that_cannot_be_written(tmp_path, capfd):
    place = tmp_path / "none" / "x"
    assert cli.main(["record", "--by", "library", "-o", str(place), "--", sys.executable, "-c", ""]) == 2
    assert capfd.readouterr().err == f"kvmattr record: {place} cannot be written: No such file or directory\n"
    assert cli.main(["record", "--by", "library", "--events", "--", sys.executable, "-c", ""]) == 2
    assert capfd.readouterr().err == (
        "kvmattr record: --events: the kernel's events come beside strace's lines alone; the library reads the calls\n")


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
    no_strace = "kvmattr record: strace not found: install the package strace of your system (apt-get install strace)"
    assert cli.main(["record", "--by", "strace", "--", "true"]) == 2
    assert capsys.readouterr().err == f"{no_strace}\n"
    monkeypatch.setattr(record_command.shutil, "which", lambda name: name if name == "vmm" else None)
    monkeypatch.setattr(record_preloaded, "cannot", lambda name: f"{name}: it is linked statically")
    assert cli.main(["record", "--", "vmm"]) == 2
    assert capsys.readouterr().err == (
        f"{no_strace}; the preloaded library cannot stand in: vmm: it is linked statically\n")
    assert cli.main(["record", "--by", "library", "--", "vmm"]) == 2
    assert capsys.readouterr().err == "kvmattr record: vmm: it is linked statically\n"
    monkeypatch.setattr(record_command.shutil, "which", lambda name: name if name == "strace" else None)
    assert cli.main(["record", "--", "no-such-vmm"]) == 127
    assert capsys.readouterr().err == "kvmattr record: no-such-vmm: command not found\n"
    monkeypatch.setattr(record_command.shutil, "which", lambda name: name)
    assert cli.main(["record", "-o", str(tmp_path / "none" / "x"), "--", "true"]) == 2
    assert capsys.readouterr().err == (
        f"kvmattr record: {tmp_path / 'none' / 'x'} cannot be written: No such file or directory\n")


def copied(lines: list[bytes], file) -> record_command._Copy:
    """What stays of these lines, from a pipe whose writer then goes."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    ended = subprocess.Popen(["true"])
    copy = record_command._Copy(reading, file, events=False)
    copy.follow(ended)
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
    assert done.stderr == (
        "kvmattr record: /dev/full cannot be written: No space left on device: the recording is not whole\n")
    assert done.returncode == code


@needs_tracing
def test_a_name_of_its_own_takes_nobodys_file(tmp_path, monkeypatch, capfd):
    """Not a recording of the same second, and not what somebody's link names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record_command.time, "strftime", lambda form: "20261129-120000")
    (tmp_path / "another's").write_text("precious")
    (tmp_path / "sh-20261129-120000.strace").symlink_to("another's")
    (tmp_path / "sh-20261129-120000-2.strace").symlink_to("nowhere")
    for number in (3, 4):
        assert cli.main(["record", "--", "sh", "-c", "exit 0"]) == 0
        assert f"kvmattr record: sh-20261129-120000-{number}.strace" in capfd.readouterr().err
    assert (tmp_path / "another's").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@needs_tracing
def test_a_directory_that_is_gone(tmp_path, monkeypatch, capfd):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main(["record", "--", "sh", "-c", ""]) == 2
    assert re.fullmatch(r"kvmattr record: sh-[\d-]+\.strace cannot be written: No such file or directory\n",
                        capfd.readouterr().err)


# The kernel's events ----------------------------------------------------------------------------------------

def tracefs(root, event="kvm/kvm_vm_set_mem_attributes"):
    (root / "instances").mkdir(parents=True)
    (root / "events" / event).mkdir(parents=True)
    return root


def test_where_the_events_cannot_be_recorded_a_sentence_says_why(tmp_path, capsys, monkeypatch):
    root = tmp_path / "tracing"
    assert kernel_tracing.missing(root) == f"{root} is not there: mount -t tracefs nodev {root} (as root)"
    assert kernel_tracing.missing(tracefs(root)) is None
    assert kernel_tracing.missing(root, "kvm/other") == (
        "this kernel has no event kvm:other (Linux 6.17 and later, with attributes)")
    with monkeypatch.context() as patched:
        patched.setattr(kernel_tracing.os, "access", lambda path, mode: False)
        assert kernel_tracing.missing(root) == f"no right to write into {root / 'instances'}: root has it"
    monkeypatch.setattr(record_command.kernel_tracing, "missing", lambda: "no right to write there: root has it")
    assert cli.main(["record", "--events", "-o", str(tmp_path / "x"), "--", "true"]) == 2
    assert capsys.readouterr().err == "kvmattr record: --events: no right to write there: root has it\n"
    assert not (tmp_path / "x").exists()


def strace(second, micros, words, result="0"):
    return f"7 {second}.{micros:06} ioctl(9<anon_inode:kvm-vm>, {words}) = {result}".encode()


def slot(number):
    return (f"KVM_SET_USER_MEMORY_REGION, {{slot={number}, flags=0, guest_phys_addr={number << 12}, memory_size=4096,"
            " userspace_addr=0x7f0000000000}")


def event(second, micros, first):
    line = (f"        vcpu-7       [000] ..... {second}.{micros:06}: kvm_vm_set_mem_attributes: {first:#018x} --"
            f" {first + 1:#018x} [0x8]")
    return second * 10**9 + micros * 1000, line.encode()


#: Seconds since 1970, where a test's clock stands.
NOW = 1_800_000_000


@pytest.fixture
def copying(tmp_path, monkeypatch):
    """Copies to a file, with events and a clock that the test itself gives."""
    monkeypatch.setattr(record_command.time, "time_ns", lambda: NOW * 10**9)
    reading, writing = os.pipe()
    os.close(writing)
    with (tmp_path / "x.strace").open("wb", buffering=0) as file:
        yield lambda events: record_command._Copy(reading, file, events=events)
    os.close(reading)


def test_events_come_into_their_place_by_their_time(copying, tmp_path):
    copy, now = copying(events=True), NOW
    copy._keep_event(*event(now, 300, 1))
    copy._keep([strace(now, 1, "KVM_CREATE_VM, 0x1", "9<anon_inode:kvm-vm>"), strace(now, 100, slot(0)),
                strace(now, 200, slot(1)), strace(now, 250, "_IOC(_IOC_WRITE, 0xae, 0xd2, 0x20), 0x7ffd"),
                f"7 {now}.000260 ioctl(9, 0x4020aed2 <unfinished ...>".encode(),
                f"7 {now}.000270 <... ioctl resumed>, 0x7ffd) = 0".encode(),
                strace(now, 350, "KVM_SET_MEMORY_ATTRIBUTES, 0x7ffd", "-1 EINVAL (Invalid argument)"),
                strace(now, 400, slot(2))])
    copy._keep_event(*event(now, 150, 0))
    copy._keep_event(0, b"CPU:0 [LOST 5 EVENTS]")
    copy.finish()
    times = re.findall(rf"{now}\.([0-9]+)", (tmp_path / "x.strace").read_text())
    assert times == ["000001", "000100", "000150", "000200", "000300", "000350", "000400"]
    assert copy.conversions == 3
    with read(tmp_path / "x.strace") as trace:
        assert [type(record).__name__ for record in trace] == [
            "SetSlot", "SetAttributes", "SetSlot", "SetAttributes", "SetSlot"]
        assert [text.partition(",")[0] for _, text in trace.unread] == [
            "5 events or lines were lost here", "expected {address="]


def test_lines_are_written_when_they_are_a_second_old(copying, tmp_path):
    copy = copying(events=True)
    copy._keep([strace(NOW - 2, 999_999, slot(0)), strace(NOW - 1, 0, slot(1)), strace(NOW, 0, slot(2))])
    assert re.findall(rb"slot=(\d)", (tmp_path / "x.strace").read_bytes()) == [b"0"]


def test_without_events_the_calls_stay_and_are_counted(copying, tmp_path):
    copy = copying(events=False)
    copy._keep([strace(1, 0, "KVM_SET_MEMORY_ATTRIBUTES, 0x7ffd"), strace(1, 0, "KVM_RUN, 0")])
    assert (copy.conversions, copy.left_out, copy.events) == (1, 1, 0)
    assert b"KVM_SET_MEMORY_ATTRIBUTES" in (tmp_path / "x.strace").read_bytes()


def test_the_clocks_are_compared_where_nothing_comes_between(monkeypatch):
    """Else the kernel's lines are told by as much too late as this process had to wait for the processor."""
    now, steps = [0], iter([10, 50_000_000, 10, *[10] * 100])

    def later(ahead):
        now[0] += next(steps)
        return now[0] + ahead
    monkeypatch.setattr(kernel_tracing.time, "monotonic_ns", lambda: later(0))
    monkeypatch.setattr(kernel_tracing.time, "time_ns", lambda: later(NOW * 10**9))
    assert kernel_tracing._wall_beyond_monotonic() == NOW * 10**9 + 10


@pytest.mark.skipif(kernel_tracing.missing(event="sched/sched_process_exec") is not None,
                    reason=str(kernel_tracing.missing(event="sched/sched_process_exec")))
def test_a_real_instance_records_children_alone_and_goes():
    kept = []
    events = kernel_tracing.Events(lambda time_ns, line: kept.append((time_ns, line)), event="sched/sched_process_exec")
    before = time.time_ns()
    events.start()
    subprocess.run(["true"], check=True)
    events.stop()
    assert events.count == 1
    [(time_ns, line)] = [each for each in kept if each[0]]
    assert b"sched_process_exec: filename=" in line
    assert before - 10**7 < time_ns < time.time_ns() + 10**7
    assert b" %d.%06d: " % (time_ns // 10**9, time_ns % 10**9 // 1000) in line
    assert not list((kernel_tracing.ROOT / "instances").glob(f"kvmattr-{os.getpid()}"))
