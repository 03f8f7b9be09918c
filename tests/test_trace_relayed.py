"""Lines as others pass them on, cut them, colour them and lose them: each is read, or told as not read."""

import json
import quopri
import textwrap

import pytest

from kvmattr.trace import SetAttributes, TraceError, read

QEMU = ("kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size=0x80000000 ua=0x7f0000000000 guest_memfd=-1"
        " guest_memfd_offset=0x0 ret=0",
        "kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x4 gpa=0x100000000 size=0x80000000 ua=0x7f0080000000"
        " guest_memfd=20 guest_memfd_offset=0x0 ret=0",
        "kvm_convert_memory start 0x100000000 size 0x1000 private_to_shared")
EVENTS = ("kvm_vm_set_mem_attributes: 0x0000000000000100 -- 0x0000000000000300 [0x8]",
          "kvm_vm_set_mem_attributes: 0x0000000000000100 -- 0x0000000000000200 [0x0]")
REGION = "{slot=0, flags=0, guest_phys_addr=0, memory_size=2147483648, userspace_addr=0x7f0000000000}"
STRACE = (f"ioctl(9, KVM_SET_USER_MEMORY_REGION, {REGION}) = 0",
          "ioctl(9, KVM_SET_USER_MEMORY_REGION2, {slot=1, flags=KVM_MEM_GUEST_MEMFD, guest_phys_addr=0x100000000,"
          " memory_size=2147483648, userspace_addr=0x7f0080000000, guest_memfd_offset=0, guest_memfd=20}) = 0",
          "ioctl(9, KVM_SET_MEMORY_ATTRIBUTES, {address=0x100000000, size=0x1000,"
          " attributes=KVM_MEMORY_ATTRIBUTE_PRIVATE, flags=0}) = 0")
WRITERS = {"qemu": QEMU, "event": EVENTS, "strace": STRACE}


def coloured(line, name="\x1b[01;31m\x1b[K{}\x1b[m\x1b[K"):
    """As grep --color shows a part of a name."""
    for part in ("kvm_set", "kvm_convert", "kvm_vm", "KVM_SET"):
        line = line.replace(part, name.format(part))
    return line


def wrapped(line, width, quote=""):
    return "\n".join(quote + part for part in textwrap.wrap(line, width, break_long_words=False))


RELAYED = {
    "part of a name coloured": coloured,
    "part of a name coloured, spelled": lambda line: coloured(line, "\\u001b[31m{}\\u001b[0m"),
    "journald's bytes": lambda line: json.dumps({"MESSAGE": list(f"\x1b[1m{line}\x1b[0m".encode()), "PRIORITY": "6"}),
    "journald's bytes, compact": lambda line: json.dumps({"MESSAGE": list(line.encode())}, separators=(",", ":")),
    "a CI's debug lines": lambda line: f"##[debug]{line}",
    "a root's prompt": lambda line: f"# {line}",
    "braces": lambda line: "{" + line + "}",
    "an array of objects": lambda line: json.dumps([{"message": line}]),
    "one object of a list": lambda line: json.dumps({"message": line}) + ",",
    "JSON in JSON": lambda line: json.dumps({"log": json.dumps({"msg": line})}),
    "JSON behind a prefix": lambda line: "2025-01-01T00:00:00Z host app: " + json.dumps({"log": line}),
    "a time and a stream": lambda line: f"2025-01-01T10:00:00.123456Z 01O {line}",
    "ts": lambda line: f"Jan 01 10:00:00 {line}",
    "kubectl --prefix --timestamps": lambda line: f"[pod/a/b] 2025-01-01T10:00:00.123456789Z {line}",
    "quoted-printable": lambda line: quopri.encodestring(line.encode()).decode(),
    "mail of 76 columns": lambda line: wrapped(line, 76),
    "quoted mail": lambda line: wrapped(line, 72, "> "),
    "a table": lambda line: f"| 7 | `{line}` |",
    "grep -n": lambda line: f"vm.log:7:{line}",
    "a hyperlink": lambda line: f"\x1b]8;;http://x\x1b\\{line}\x1b]8;;\x1b\\",
}


def records(path, lines):
    path.write_text("\n".join(lines) + "\n")
    with read(path) as trace:
        return list(trace), [text for _, text in trace.unread]


@pytest.mark.parametrize("relayed", RELAYED.values(), ids=RELAYED)
@pytest.mark.parametrize("lines", WRITERS.values(), ids=WRITERS)
def test_relayed_lines_are_the_calls_that_they_were(lines, relayed, tmp_path):
    plain, told = records(tmp_path / "plain.log", lines)
    assert (len(plain), told) == (len(lines) + ("guest_memfd=20" in lines[1] and lines is QEMU), [])
    assert records(tmp_path / "relayed.log", map(relayed, lines)) == (plain, [])


def test_comments_of_a_native_trace_stay_comments(tmp_path):
    lines = [f"# from {QEMU[0]}", "set 0x1000 0x1000 0x1 0x0", f"# {EVENTS[0]}"]
    assert records(tmp_path / "x.trace", lines) == ([SetAttributes(0x1000, 0x1000, 1)], [])


def test_calls_behind_comment_signs_come_in_their_order(tmp_path):
    lines = [f"# {EVENTS[0]}", EVENTS[1]]
    assert records(tmp_path / "x.log", lines)[0] == records(tmp_path / "y.log", EVENTS)[0]


OTHER_FORMS = {
    "strace --decode-fds with a context": STRACE[0].replace("9,", "9</dev/kvm [system_u:object_r:kvm_device_t:s0]>,"),
    "a context for the thread": "101 [unconfined_t] " + STRACE[0],
    "a task named like a call": "101<ioctl(> " + STRACE[0],
    "injected": STRACE[0] + " (INJECTED: args)",
    "detached": STRACE[0].replace(") = 0", " <detached ...>"),
    "trace-cmd that knows no format": "q-1 [000] 1.5: kvm_vm_set_mem_attributes: [FAILED TO PARSE] start=0x100"
                                      " end=0x300 attr=0x8",
    "bpftrace print(args)": "tracepoint:kvm:kvm_vm_set_mem_attributes { .start = 256, .end = 768, .attr = 8 }",
    "the graph tracer's comment": f" 0)               |  /* {EVENTS[0]} */",
}


@pytest.mark.parametrize("line", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_other_forms_are_read(line, tmp_path):
    found, told = records(tmp_path / "x.log", [line])
    assert (len(found), told) == (1, [])


LOST = {
    "CPU:2 [LOST EVENTS]": "events or lines were lost here",
    "CPU:2 [EVENTS DROPPED]": "events or lines were lost here",
    "Processed 12 events and lost 3 chunks!": "3 events or lines were lost here",
    "q 1 1.5: PERF_RECORD_LOST_SAMPLES lost 12": "12 events or lines were lost here",
    "Possibly lost 12 samples": "12 events or lines were lost here",
    "host systemd-journald: Missed 12 kernel messages": "12 events or lines were lost here",
    "host rsyslogd: imjournal: 1234 messages lost due to rate-limiting": "1234 events or lines were lost here",
    "Jan 01 10:00:00 h last message repeated 3 times": "the call of the line before was made 3 more times",
    f"Jan 01 10:00:00 h q: message repeated 3 times: [ {EVENTS[0]}]": "this call was made 3 times, and is read once",
    f"101 <... ioctl resumed>{REGION}) = 0": "the end of a call whose beginning the log lacks",
    f"{STRACE[0]} {STRACE[0]}": "another call stands in this line behind the first: not read",
    f"__x64_sys_{STRACE[0]}": "a request of ours with its structure, in a form that is not known",
    "q-1 [000] 1.5: probe: (kvm_vm_set_mem_attributes+0x0/0x300) start=0x100 end=0x300 attr=0x8":
        "kvm_vm_set_mem_attributes with its fields, in a form that is not known",
    "[warning] Tracer discarded 12 events between [1] and [2]": "12 events or lines were lost here",
    "WARNING: Tracer may have discarded events between": "events or lines were lost here",
    "[ 1.5] ** 12 printk messages dropped **": "12 events or lines were lost here",
    "overrun: 12": "12 events or lines were lost here",
    "rsyslogd: imuxsock[pid 7]: begin to drop messages due to rate-limiting": "events or lines were lost here",
    "# entries-in-buffer/entries-written: 2/5000   #P:4":
        "4998 events of 5000 were overwritten: the buffer was too small",
    "q-1 [000] 1.5: kvm_vm_set_mem_attributes 0x100 0x300 0x8":
        "kvm_vm_set_mem_attributes with its fields, in a form that is not known",
    '{"event": "kvm:kvm_vm_set_mem_attributes", "start": 256, "end": 512, "attr": 8}':
        "kvm_vm_set_mem_attributes with its fields, in a form that is not known",
    '{"event":"kvm_set_user_memory","slot":0,"flags":0,"guest_phys_addr":0,"memory_size":4096,"userspace_addr":8192}':
        "kvm_set_user_memory with its fields, in a form that is not known",
    "1.5;kvm_convert_memory;0x1000;0x1000;shared_to_private":
        "kvm_convert_memory with its fields, in a form that is not known",
    "[vmm] kvm_userspace_memory_region { slot: 0, flags: 0, guest_phys_addr: 0, memory_size: 4096, userspace_addr: 1 }":
        "a request of ours with its structure, in a form that is not known",
    "7 SYS_ioctl(9, 0x4020ae46, 0x7ffd) = 0": "a request of ours by its number, in a form that is not known",
    "7 10:00:00.1 3 q (7) > ioctl fd=9(<a>kvm-vm) request=4020AE46 argument=7FFD":
        "a request of ours by its number, in a form that is not known",
    "[1.5] qemu:kvm_set_user_memory:": "kvm_set_user_memory with its fields, in a form that is not known",
    "ioctl(0x9, 0x4020AE46, 0x7ffd12345678) = 0":
        "expected {slot=, flags=, guest_phys_addr=, memory_size=, userspace_addr=} in KVM_SET_USER_MEMORY_REGION, found"
        " '0x7ffd12345678': what strace has not read cannot be replayed",
    "0.000 ( 0.004 ms): qemu/101 ioctl(fd: 9, cmd: (READ|WRITE, 0xae, 0x46, 0x20), arg: 0x7ffd) = 0":
        "expected strace's 'ioctl(FD, REQUEST, {...})', found perf's, which has only the address of the structure:"
        " record with strace",
}


@pytest.mark.parametrize(("line", "told"), LOST.items(), ids=range(len(LOST)))
def test_what_is_lost_is_told(line, told, tmp_path):
    first = STRACE[0] if line.startswith("ioctl") else EVENTS[0]
    found, unread = records(tmp_path / "x.log", [first, line])
    assert len(found) >= 1
    assert unread == [told]
    with pytest.raises(TraceError, match=r"x\.log:2: "):
        read(tmp_path / "x.log", strict=True)


@pytest.mark.parametrize("line", [
    "qemu-system-x86_64 -trace kvm_set_user_memory -device pcie-root-port,slot=1 -m size=4G",
    "echo 1 > /sys/kernel/tracing/events/kvm/kvm_vm_set_mem_attributes/enable", "name: kvm_vm_set_mem_attributes",
    "     12      kvm:kvm_vm_set_mem_attributes", "@[tracepoint:kvm:kvm_vm_set_mem_attributes]: 12",
    " 0)   0.5 us    |  kvm_vm_set_mem_attributes();", "message repeated 3 times: [ lost ]"])
def test_mentions_are_no_calls_and_no_losses(line, tmp_path):
    found, unread = records(tmp_path / "x.log", [EVENTS[0], "something else", line])
    assert (len(found), unread) == (1, [])


@pytest.mark.parametrize("number", ["", "3:"])
def test_a_time_behind_greps_file_name_is_read(number, tmp_path):
    (tmp_path / "x.log").write_text(f"vm.strace:{number}10:00:02.5 {STRACE[0]}\n")
    with read(tmp_path / "x.log") as trace:
        assert [int(time) for block in trace.blocks() for time in block["time"]] == [36_002_500_000_000]
