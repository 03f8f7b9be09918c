# ruff: noqa: E501 - lines of recordings are as long as they are
"""Logs of several VMs: told apart or told, never merged without a word, in each form and by each writer."""

import json

import pytest

from kvmattr import cli
from kvmattr.trace import SetAttributes, owners, read

MIB = 1 << 20
#: User space of two runs of QEMU: it differs from run to run.
UA, OTHER = 0x7F00_0000_0000, 0x7E00_0000_0000


def slot(number, ua=UA, size=MIB, gpa=None):
    gpa = number * MIB if gpa is None else gpa
    return f"kvm_set_user_memory AddrSpace#0 Slot#{number} flags=0x0 gpa={gpa:#x} size={size:#x} ua={ua + gpa:#x} guest_memfd=-1 guest_memfd_offset=0x0 ret=0"


def event(gfn, attributes=8):
    return f"kvm_vm_set_mem_attributes: {gfn:#016x} -- {gfn + 1:#016x} [{attributes:#x}]"


def region(number, ua=UA, answer="0"):
    return (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={number}, flags=0, guest_phys_addr={number * MIB:#x},"
            f" memory_size={MIB}, userspace_addr={ua + number * MIB:#x}}}) = {answer}")


def lines_of(tmp_path, lines, **options):
    """The lines that the chosen VM's operations stand on, and the trace."""
    path = tmp_path / "x.log"
    path.write_text("\n".join(lines) + "\n")
    with read(path, **options) as trace:
        return [int(line) for block in trace.blocks() for line in block["line"]], trace


def refused(tmp_path, lines, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        lines_of(tmp_path, lines, **options)
    return str(caught.value).removeprefix(f"{tmp_path / 'x.log'}: ")


#: Two VMs' lines, by turns. Each form names its process, container or host.
WRITTEN = {
    "simpletrace": [f"kvm_set_user_memory 12.5 pid={pid} as=0x0 slot={number:#x} flags=0x0 guest_phys_addr={number * MIB:#x} memory_size={MIB:#x}"
                    f" userspace_addr={UA:#x} fd=0xffffffff fd_offset=0x0 ret=0x0" for number in (0, 1) for pid in (7, 9)],
    "dtrace": [f"{pid}@1700000000000000001 {slot(number)}" for number in (0, 1) for pid in (7, 9)],
    "LTTng": [f"[10:00:00] host qemu:kvm_set_user_memory: {{ cpu_id = 1 }}, {{ vpid = {pid}, vtid = {pid + number} }}, {{ as = 0, slot = {number}, flags = 0,"
              f" guest_phys_addr = {number * MIB:#x}, memory_size = {MIB:#x}, userspace_addr = {UA:#x}, fd = -1, fd_offset = 0, ret = 0 }}"
              for number in (0, 1) for pid in (7, 9)],
    "syslog": [f"Jan 01 10:00:00 host qemu-system-x86[{pid}]: {slot(number)}" for number in (0, 1) for pid in (7, 9)],
    "hosts": [f"2025-01-01T10:00:00Z {host} qemu: {slot(number)}" for number in (0, 1) for host in ("a", "b")],
    "docker compose": [f"{name}-1  | {slot(number)}" for number in (0, 1) for name in ("red", "green")],
    "kubectl": [f"[pod/{name}/compute] {slot(number)}" for number in (0, 1) for name in ("red", "green")],
    "Kata": [f'time="2025-01-01T10:00:00Z" level=info msg="{slot(number)}" name=containerd-shim-v2 pid=100 qemuPid={pid} sandbox=a{pid}'
             for number in (0, 1) for pid in (7, 9)],
    "journald JSON": [json.dumps({"_PID": str(pid), "MESSAGE": slot(number)}) for number in (0, 1) for pid in (7, 9)],
    "journald -o short-precise": [f"Mar 01 10:00:00.123456 host qemu-system-x86_64[{pid}]: {slot(number)}" for number in (0, 1) for pid in (7, 9)],
    "journald -o with-unit": [f"Sun 2026-03-01 10:00:00 CET host vm.service[{pid}]: {slot(number)}" for number in (0, 1) for pid in (7, 9)],
    "syslog, RFC 5424": [f"<30>1 2026-03-01T10:00:00.123Z host qemu {pid} - - {slot(number)}" for number in (0, 1) for pid in (7, 9)],
    "Graylog JSON": [json.dumps({"host": "n", "short_message": slot(number), "_container_name": name}) for number in (0, 1) for name in ("a", "b")],
    "grep of two files": [f"/var/log/{name}.log:{number}:{slot(number)}" for number in (1, 2) for name in ("a", "b")],
    "fluentd JSON": [json.dumps({"log": slot(number) + "\n", "kubernetes": {"pod_name": name, "host": "n1"}})
                     for number in (0, 1) for name in ("red", "green")],
    "ftrace": [f" qemu-system-x86-{pid + number} ({pid:7}) [002] .....   12.345678: {event(number)}" for number in (0, 1) for pid in (700, 900)],
    "perf": [f" CPU 0/KVM  {pid}/{pid + number} [002]    12.345678: kvm:{event(number)}" for number in (0, 1) for pid in (700, 900)],
    "bpftrace": [f"pid={pid} tid={pid + number} {event(number)}" for number in (0, 1) for pid in (700, 900)],
    "LTTng, kernel": [f"[10:00:00.1] (+0.1) host kvm_vm_set_mem_attributes: {{ cpu_id = 3 }}, {{ pid = {pid} }}, {{ start = {number}, end = 256, attr = 8 }}"
                      for number in (0, 1) for pid in (700, 900)],
    "QEMU 10.2, guests": [f"{name} qemu-system-x86_64: {slot(number)}" for number in (0, 1) for name in ("red", "green")],
    "QEMU 10.2, threads": [f"qemu-system-x86_64: ({pid}:main): {slot(number)}" for number in (0, 1) for pid in (700, 900)],
    # What differs here is what one VM cannot do.
    "QEMU, log": [f"{pid}@1000.{number:06}:{slot(number, ua)}" for number in (0, 1) for pid, ua in ((7, UA), (9, OTHER))],
    "QEMU, ftrace": [f" qemu-{pid} [002] ..... 12.3: tracing_mark_write: {slot(number, ua)}" for number in (0, 1) for pid, ua in ((7, UA), (9, OTHER))],
    "strace": [f"{pid}  {region(number, ua)}" for number in (0, 1) for pid, ua in ((7, UA), (9, OTHER))],
    "vCPU threads": [f" CPU {number}/KVM-{pid + number} [002] .....   12.345678: {event(number)}" for number in (0, 0) for pid in (700, 900)],
}


@pytest.mark.parametrize("form", WRITTEN)
def test_lines_of_two_vms_by_turns(tmp_path, form):
    lines = WRITTEN[form]
    said = refused(tmp_path, lines)
    assert said.startswith("expected calls of one VM, found 2 VMs: choose by --vm or --pid: VM 1 first on line 1"), said
    assert "; VM 2 first on line 2" in said
    assert lines_of(tmp_path, lines, vm=1)[0] == [1, 3]
    assert lines_of(tmp_path, lines, vm=2)[0] == [2, 4]


@pytest.mark.parametrize("form", [form for form in WRITTEN if form != "strace"])
def test_all_as_of_one_vm_if_that_is_asked(tmp_path, form):
    assert lines_of(tmp_path, WRITTEN[form], one_vm=True)[0] == [1, 2, 3, 4]


@pytest.mark.parametrize(("form", "pid"), [
    ("simpletrace", 9), ("dtrace", 9), ("LTTng", 9), ("syslog", 9), ("Kata", 9), ("journald JSON", 9), ("ftrace", 900), ("ftrace", 901),
    ("perf", 900), ("QEMU 10.2, threads", 900), ("bpftrace", 901), ("LTTng, kernel", 900), ("QEMU, log", 9), ("QEMU, ftrace", 9), ("strace", 9)])
def test_one_is_picked_by_its_process_or_thread(tmp_path, form, pid):
    assert lines_of(tmp_path, WRITTEN[form], pid=pid)[0] == [2, 4]


def test_files_that_tail_and_head_name(tmp_path):
    lines = ["==> a.log <==", slot(0), "", "==> /var/log/b.log <==", slot(0), slot(1), "", "==> a.log <==", slot(1)]
    assert "VM 1 first on line 2, file 'a.log', 2 calls; VM 2 first on line 5, file '/var/log/b.log', 2 calls" in refused(tmp_path, lines)
    assert lines_of(tmp_path, lines, vm=1)[0] == [2, 9]
    assert lines_of(tmp_path, lines, vm=2)[0] == [5, 6]


def test_a_rotated_file_is_the_same_one(tmp_path):
    assert lines_of(tmp_path, [f"vm.log.1:{slot(0)}", f"vm.log:{slot(1)}"])[0] == [1, 2]


def test_what_each_vm_is_called_by(tmp_path):
    assert refused(tmp_path, WRITTEN["QEMU, log"]).partition("--pid: ")[2] == (
        "VM 1 first on line 1 by thread 7, 2 calls; VM 2 first on line 2 by thread 9, 2 calls (slot 0 is made again elsewhere, and no"
        " line has deleted it); --one-vm takes QEMU's and the kernel's events as of one VM")
    assert refused(tmp_path, WRITTEN["docker compose"]).partition("--pid: ")[2] == (
        "VM 1 first on line 1, container 'red-1', 2 calls; VM 2 first on line 2, container 'green-1', 2 calls (container green-1, not"
        " red-1); --one-vm takes QEMU's and the kernel's events as of one VM")
    assert "(CPU 0/KVM is thread 700 and thread 900)" in refused(tmp_path, WRITTEN["vCPU threads"])
    assert refused(tmp_path, WRITTEN["ftrace"], pid=5).startswith("expected calls of one VM, found none for --pid 5: choose")


def test_another_run_in_the_same_log(tmp_path):
    """A log that QEMU's output was appended to: nothing but the memslots tells that another VM begins."""
    lines = [slot(0), slot(1), slot(1, size=0, gpa=MIB), slot(0, OTHER), slot(1, OTHER)]
    assert "VM 2 first on line 4, 2 calls (slot 0 is made again elsewhere, and no line has deleted it)" in refused(tmp_path, lines)
    assert lines_of(tmp_path, lines, vm=1)[0] == [1, 2, 3]
    assert lines_of(tmp_path, lines, vm=2)[0] == [4, 5]
    read_as_one, trace = lines_of(tmp_path, lines, one_vm=True)
    assert read_as_one == [1, 2, 3, 4, 5]
    assert trace.notes == [(4, "slot 0 is made again elsewhere, and no line has deleted it: lines are lost, or several VMs write to this"
                               " log")]
    # In a container each run's thread has the same number.
    assert "VM 2 first on line 4" in refused(tmp_path, [f"7@1.0:{line}" for line in lines])


def test_what_lost_lines_explain_is_no_second_vm(tmp_path):
    lines = [slot(0), slot(1), "CPU:1 [LOST 3 EVENTS]", slot(0, OTHER), slot(1, gpa=0)]
    found, trace = lines_of(tmp_path, lines)
    assert found == [1, 2, 4, 5]
    assert trace.notes == [
        (4, "slot 0 is made again elsewhere, and no line has deleted it: lines are lost, or several VMs write to this log"),
        (5, "slot 1 is made again elsewhere, and no line has deleted it: lines are lost, or several VMs write to this log")]


def test_a_slot_over_another_is_told(tmp_path):
    found, trace = lines_of(tmp_path, [slot(0), slot(1), slot(2, gpa=MIB)])
    assert found == [1, 2, 3]
    assert trace.notes == [(3, "slot 2 is made over slot 1, which no line has deleted: lines are lost, or several VMs write to this log")]


def test_threads_of_one_vm_are_one(tmp_path):
    """The main thread and a vCPU's change memslots of one VM; so do lines that name less than others."""
    off = slot(1, size=0, gpa=MIB)
    lines = [f"7@1.0:{slot(0)}", f"7@1.1:{slot(1)}", f"8@1.2:{off}", f"8@1.3:{slot(2, gpa=MIB)}", slot(3),
             f"Jan 01 10:00:00 host qemu[9]: {slot(4)}"]
    found, trace = lines_of(tmp_path, lines)
    assert (found, trace.notes) == ([1, 2, 3, 4, 5, 6], [])


def test_a_call_that_may_be_of_either_vm_is_told(tmp_path):
    lines = [*WRITTEN["QEMU, log"], f"11@1001.0:{slot(9)}", "11@1001.1:kvm_convert_memory start 0x0 size 0x1000 shared_to_private"]
    found, trace = lines_of(tmp_path, lines, vm=1)
    assert found == [1, 3]
    assert trace.unread == [(5, "a call of thread 11 that may be of VM 1 or 2: no line tells"),
                            (6, "a call of thread 11 that may be of VM 1 or 2: no line tells")]
    with pytest.raises(ValueError, match=r"x\.log:5: a call of thread 11 that may be of VM 1 or 2: no line tells"):
        lines_of(tmp_path, lines, vm=1, strict=True)


@pytest.mark.parametrize("form", [" {1}-{0} [002] .....   12.3: {2}", " {1}  {0} [002]   12.3: kvm:{2}", "tid={0} {2}"])
def test_conversions_by_threads_of_which_nothing_is_known(tmp_path, form):
    lines = [form.format(thread, "qemu-system-x86", event(gfn)) for gfn, thread in enumerate((101, 102, 201))]
    found, trace = lines_of(tmp_path, lines)
    assert found == [1, 2, 3]
    assert trace.notes == [(0, "conversions by 3 threads (101, 102, 201), and no line tells whether they are of one VM: taken as one"
                               " (--pid picks threads)")]
    found, trace = lines_of(tmp_path, lines, pid=[101, 102])
    assert found == [1, 2]
    assert trace.notes == [
        (0, "1 conversion of other threads left out: 201"),
        (0, "conversions by 2 threads (101, 102), and no line tells whether they are of one VM: taken as one (--pid picks threads)")]


def test_the_command_line_picks_threads(tmp_path, capsys):
    path = tmp_path / "x.log"
    path.write_text("\n".join(f" qemu-{thread} [002] ..... 12.3: {event(gfn)}" for gfn, thread in enumerate((101, 102, 201))) + "\n")
    assert cli.main(["show", str(path), "--pid", "101", "--pid", "102"]) == 0
    said = capsys.readouterr()
    assert said.out.split()[:2] == ["0000000000000000-0000000000002000", "rwxp"]
    assert "1 conversion of other threads left out: 201\n" in said.err
    assert cli.main(["show", str(path), "--one-vm"]) == 0
    said = capsys.readouterr()
    assert said.out.split()[:2] == ["0000000000000000-0000000000003000", "rwxp"]
    assert "threads" not in said.err


def test_a_descriptor_that_another_process_uses_for_its_own_vm(tmp_path):
    lines = ["7  ioctl(3, KVM_CREATE_VM, 0) = 8", f"7  {region(0)}", f"9  {region(0, OTHER)}", f"9  {region(1, OTHER)}", f"7  {region(1)}"]
    assert "VM 1 made on line 1 by process 7, descriptor 8, 2 calls; VM 2 first on line 3 by process 9, descriptor 8, 2 calls" in refused(
        tmp_path, lines)
    assert lines_of(tmp_path, lines, pid=9)[0] == [3, 4]


def test_lines_beyond_a_thousand_vms_are_told(tmp_path):
    lines = [f"{pid}@1700000000000000001 {slot(0)}" for pid in range(1, 1002)]
    found, trace = lines_of(tmp_path, lines, vm=1)
    assert found == [1]
    assert trace.unread == [(1001, "a call of process 1001 behind those of 1,000 VMs, which are the most that one log may have")]


def test_threads_beyond_those_that_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "_REMEMBERED", 10)
    lines = [f" qemu-{thread} [002] ..... 12.3: {event(thread)}" for thread in range(100, 130)]
    found, trace = lines_of(tmp_path, lines)
    assert len(found) == 30
    assert trace.notes[0].text.startswith("conversions by 10 threads or more (100, 101, ")
    assert len(lines_of(tmp_path, lines, pid=[100, 129])[0]) == 2


def test_a_second_machine_in_a_native_trace_is_an_error(tmp_path):
    lines = ["vm linux", "set 0x0 0x1000 0x8 0x0", "vm linux", "set 0x0 0x1000 0x0 0x0"]
    with pytest.raises(ValueError, match=r"x\.log:3: expected one vm line, before the first operation"):
        lines_of(tmp_path, lines)


def test_an_event_of_another_process_is_not_the_recorded_vms(tmp_path):
    """strace has told which thread is whose: an event of a thread that it has not seen is not merged."""
    lines = ["7  ioctl(3, KVM_CREATE_VM, 0) = 8", f"7  {region(0)}", f" qemu-7 [002] ..... 12.3: {event(1)}", f" qemu-9 [002] ..... 12.3: {event(2)}"]
    assert "VM 2 first on line 4 by thread 9, 1 call" in refused(tmp_path, lines)
    with read(tmp_path / "x.log", vm=1) as trace:
        assert [record for record in trace if isinstance(record, SetAttributes)] == [SetAttributes(0x1000, 0x1000, 8)]
