# ruff: noqa: E501 - lines of recordings are as long as they are
"""Each writer of recordings and each form that it prints: docs/traces.md has the same table, a row a name here."""

import json
import random
import re
from pathlib import Path

import pytest

from kvmattr.trace import (
    CreateFile,
    SetAttributes,
    SetFileAttributes,
    SetSlot,
    TraceError,
    machine_for,
    read,
    replay,
)
from kvmattr.trace.hosts import host_for
from kvmattr.trace.operations import IMPLIED

DOCS = Path(__file__).parent.parent / "docs" / "traces.md"
MIB = 1 << 20
UA = 0x7F00_0000_0000

SLOT = f"gpa=0x0 size={MIB:#x} ua={UA:#x}"
PLAIN = SetSlot(0, 0, 0, MIB, UA)
BOUND = SetSlot(0, 4, 0, MIB, UA, 12, 0x3000)
FREE = SetSlot(0, 0, 0, MIB, UA, -1, 0)
EVENT = f"kvm_set_user_memory Slot#0 flags=0x0 {SLOT} ret=0"
QEMU_9 = f"kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x4 {SLOT} guest_memfd=12 guest_memfd_offset=0x3000 ret=0"
STRUCTURE = f"{{slot=0, flags=0, guest_phys_addr=0, memory_size={MIB}, userspace_addr={UA:#x}}}"
STRACE = f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE}) = 0"
CHANGE = SetAttributes(0x100000, 0x200000, 8)
KERNEL = "kvm_vm_set_mem_attributes: 0x0000000000000100 -- 0x0000000000000300 [0x8]"
CRI = "2025-01-01T10:00:00.000000000Z stderr"

#: (row of the table, text, operations)
FORMS = [
    # QEMU's slot event, version by version
    ("QEMU 4 to 7", EVENT, [PLAIN]),
    ("QEMU 4 to 7", f"41874@1587736345.192636:kvm_set_user_memory Slot#65539 flags=0x1 {SLOT} ret=0",
     [SetSlot(65539, 1, 0, MIB, UA)]),
    ("QEMU 8.2", f"kvm_set_user_memory AddrSpace#1 Slot#3 flags=0x2 {SLOT} ret=0", [SetSlot(65539, 2, 0, MIB, UA)]),
    ("QEMU 9.1", QEMU_9, [BOUND]),
    ("QEMU 9.1", f"kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 {SLOT} guest_memfd=-1 guest_memfd_offset=0x3e0000"
                 " ret=0", [FREE._replace(guest_memfd_offset=0x3E0000)]),
    ("trees with restricted memory", f"kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x4 {SLOT} ret=0 restricted_fd=12"
                                     " restricted_offset=0x3000", [BOUND]),
    ("trees with restricted memory", f"kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x4 {SLOT} ret=0",
     [SetSlot(0, 4, 0, MIB, UA, 1 << 24, 0)]),
    # QEMU's backends
    ("QEMU, log", f"7@1669155555.123456:{EVENT}", [PLAIN]),
    ("QEMU, log", f"2025-01-01T10:00:00.1Z vm qemu-system-x86_64: (7:CPU 0/KVM): {EVENT}", [PLAIN]),
    ("QEMU, simpletrace", f"kvm_set_user_memory 0.000 pid=7 slot=0x0 flags=0x0 guest_phys_addr=0x0 memory_size={MIB:#x}"
                          f" userspace_addr={UA:#x} ret=0x0", [PLAIN]),
    ("QEMU, simpletrace", f"kvm_set_user_memory 12.5 pid=7 as=0x0 slot=0x0 flags=0x4 guest_phys_addr=0x0"
                          f" memory_size={MIB:#x} userspace_addr={UA:#x} fd=0xc fd_offset=0x3000 ret=0x0", [BOUND]),
    ("QEMU, simpletrace", f"kvm_set_user_memory 12.5 pid=7 as=0x0 slot=0x0 flags=0x0 guest_phys_addr=0x0"
                          f" memory_size={MIB:#x} userspace_addr={UA:#x} fd=0xffffffff fd_offset=0x0"
                          " ret=0xffffffffffffffef", [FREE]),
    ("QEMU, simpletrace", "kvm_convert_memory 3.0 pid=7 start=0x100000 size=0x200000 msg=b'shared_to_private'", [CHANGE]),
    ("QEMU, simpletrace", "kvm_convert_memory 3.0 pid=7 start=0x100000 size=0x200000 msg=shared_to_private", [CHANGE]),
    ("QEMU, ftrace", f" qemu-system-x86-1624  [002] .....   12.345678: tracing_mark_write: {EVENT}", [PLAIN]),
    ("QEMU, dtrace", f"7@1669155555123456789 {EVENT}", [PLAIN]),
    ("QEMU, syslog", f"Jan  1 10:00:00 host qemu-system-x86_64[7]: {EVENT}", [PLAIN]),
    ("QEMU, LTTng", "[10:00:00.123456789] (+0.000001) host qemu:kvm_set_user_memory: { cpu_id = 1 }, { as = 0, slot = 0,"
                    f" flags = 4, guest_phys_addr = 0x0, memory_size = {MIB:#x}, userspace_addr = {UA:#x}, fd = 12,"
                    " fd_offset = 0x3000, ret = 0 }", [BOUND]),
    ("QEMU, LTTng", "[10:00:00] host qemu:kvm_convert_memory: { cpu_id = 1 }, { start = 1048576, size = 2097152,"
                    ' msg = "shared_to_private" }', [CHANGE]),
    ("QEMU, conversions", "kvm_convert_memory start 0x100000 size 0x200000 shared_to_private", [CHANGE]),
    ("QEMU, conversions", "qemu-system-x86_64: warning: memory fault: GPA 0x100000 size 0x1000 flags 0x8"
                          " kvm_convert_memory start 0x100000 size 0x200000 shared_to_private", [CHANGE]),
    # Who passes lines on
    ("logfmt", f'time="2025-01-01T10:00:00Z" level=error msg="{QEMU_9}" name=shim pid=100 qemuPid=200', [BOUND]),
    ("docker JSON", json.dumps({"log": EVENT + "\n", "stream": "stderr", "time": "2025-01-01T10:00:00Z"}), [PLAIN]),
    ("docker JSON", json.dumps({"log": f"\x1b[31m{STRACE} <0.000020>\x1b[0m\n"}), [PLAIN]),
    ("docker JSON", json.dumps({"msg": EVENT, "fields": {"raw": EVENT + "\r\n"}}), [PLAIN]),
    ("journald JSON", json.dumps({"_PID": "7", "MESSAGE": STRACE}), [PLAIN]),
    ("journald", f"Jan 01 10:00:00 host libvirtd[100]: {EVENT}", [PLAIN]),
    ("Kubernetes", f"{CRI} F {EVENT}", [PLAIN]),
    ("Kubernetes", f"{CRI} P {EVENT[:50]}\n{CRI} F {EVENT[50:]}", [PLAIN]),
    ("docker compose", f"vm-1  | {EVENT}", [PLAIN]),
    ("docker compose", f"vm-1  | 100 {STRACE}", [PLAIN]),
    ("colours", f"\x1b[1;32m{EVENT}\x1b[0m", [PLAIN]),
    ("colours", rf"\x1b[31m{EVENT}\x1b[0m", [PLAIN]),
    ("byte order mark", f"\ufeff{EVENT}", [PLAIN]),
    ("any character", f"({EVENT})", [PLAIN]),
    ("any character", f"a|{EVENT}|", [PLAIN]),
    ("any character", f"[qemu]{EVENT}]", [PLAIN]),
    ("any character", f"'{EVENT}'", [PLAIN]),
    ("any character", f"1st {EVENT}; kvm_convert_memory start 0x100000 size 0x200000 shared_to_private", None),
    ("mail", f"> > {EVENT}", [PLAIN]),
    ("mail", "> kvm_set_user_memory Slot#0 flags=0x0\n> gpa=0x0 size=0x100000\n> ua=0x7f0000000000 ret=0", [PLAIN]),
    ("mail", f"> kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x4 {SLOT} ret=0\n> restricted_fd=12"
             " restricted_offset=0x3000", [BOUND]),
    ("mail", "kvm_set_user_memory Slot#0 flags=3D0x0 gpa=3D0x0 size=3D0x1=\n00000 ua=3D0x7f0000000000 ret=3D0", [PLAIN]),
    ("mail", "> ioctl(13, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0,\n>    guest_phys_addr=0, memory_size=1048576,\n"
             ">    userspace_addr=0x7f0000000000}) = 0", [PLAIN]),
    ("mail", "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0,\n          flags=0,\n          guest_phys_addr=0x0,\n"
             "          memory_size=1048576,\n          userspace_addr=0x7f0000000000}\n     ) = 0", [PLAIN]),
    ("mail", "kvm_vm_set_mem_attributes: 0x0000000000000100 --\n0x0000000000000300 [0x8]", [CHANGE]),
    ("mail", f"&gt; 7 ioctl(8&lt;anon_inode:kvm-vm&gt;, KVM_SET_USER_MEMORY_REGION, {STRUCTURE}) = 0", [PLAIN]),
    ("UTF-16", EVENT.encode("utf-16"), [PLAIN]),
    ("UTF-16", EVENT.encode("utf-16-le"), [PLAIN]),
    ("UTF-16", b"PS C:\\> \n" + f"{EVENT}\r\n".encode("utf-16-le"), [PLAIN]),
    ("UTF-16", b"PS C:\\> \n" + f"{STRACE}\r\n".encode("utf-16-le"), [PLAIN]),
    ("colours", f"\x1b[3{EVENT}", [PLAIN]),
    ("journald", f"Jan 01 10:00:00.123456 host libvirtd[100]: {EVENT}", [PLAIN]),
    ("journald", f"Sun 2026-03-01 10:00:00 CET host vm.service[100]: {EVENT}", [PLAIN]),
    ("grep, head, tail", f"/var/log/vm.log.1:12:{EVENT}", [PLAIN]),
    ("grep, head, tail", f"==> vm.log <==\n{EVENT}", [PLAIN]),
    # strace
    ("strace", STRACE, [PLAIN]),
    ("strace -f", f"[pid  1624] {STRACE}", [PLAIN]),
    ("strace -f -o", f"1624  {STRACE}", [PLAIN]),
    ("strace -t", f"1624  10:00:00 {STRACE}", [PLAIN]),
    ("strace -tt", f"[pid 1624] 10:00:00.000001 {STRACE}", [PLAIN]),
    ("strace -ttt", f"1669155555.123456 {STRACE}", [PLAIN]),
    ("strace -r", f"     0.000123 {STRACE}", [PLAIN]),
    ("strace -r", f"10:00:00 (+     0.000123) {STRACE}", [PLAIN]),
    ("strace -T", f"{STRACE} <0.000020>", [PLAIN]),
    ("strace -i", f"[00007f12a4b1caff] {STRACE}", [PLAIN]),
    ("strace -n", f"[  16] {STRACE}", [PLAIN]),
    ("strace -y", STRACE.replace("8,", "8<anon_inode:kvm-vm>,", 1), [PLAIN]),
    ("strace -yy", STRACE.replace("8,", "8</dev/kvm<char 10:232>>,", 1), [PLAIN]),
    ("strace -Y", f"101<CPU 0/KVM> {STRACE}", [PLAIN]),
    ("strace -N", f"ioctl(fd=8, op=KVM_SET_USER_MEMORY_REGION, arg={STRUCTURE}) = 0", [PLAIN]),
    ("strace -k", f"{STRACE}\n > /usr/lib/libc.so.6(ioctl+0x3b) [0x10a4b]\n > /usr/bin/qemu(kvm_vm_ioctl+0x9e) [0x4]",
     [PLAIN]),
    ("strace -X raw", f"ioctl(0x8, 0x4020ae46, {STRUCTURE}) = 0", [PLAIN]),
    ("strace -X verbose", "ioctl(8, 0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */, {slot=0, flags=0x2 /* KVM_MEM_READONLY"
                          f" */, guest_phys_addr=0, memory_size={MIB}, userspace_addr={UA:#x}}}) = 0",
     [PLAIN._replace(flags=2)]),
    ("strace, REGION2", "ioctl(8, KVM_SET_USER_MEMORY_REGION2, {slot=0, flags=KVM_MEM_GUEST_MEMFD, guest_phys_addr=0,"
                        f" memory_size={MIB}, userspace_addr={UA:#x}, guest_memfd_offset=0x3000,"
                        " guest_memfd=12<anon_inode:[kvm-gmem]>}) = 0", [BOUND]),
    ("strace, raw requests", f"ioctl(8, _IOC(_IOC_WRITE, 0xae, 0x46, 0x20), {STRUCTURE}) = 0", [PLAIN]),
    ("strace, attributes", "ioctl(8, KVM_SET_MEMORY_ATTRIBUTES, {address=0x100000, size=0x200000,"
                           " attributes=KVM_MEMORY_ATTRIBUTE_PRIVATE, flags=0}) = 0", [CHANGE]),
    ("strace, files", "ioctl(20, KVM_SET_MEMORY_ATTRIBUTES2, {offset=0x1000, size=0x2000, attributes=8, flags=0}) = 0",
     [SetFileAttributes(20, 0x1000, 0x2000, 8)]),
    ("strace, cut calls", f"[pid 1] ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE} <unfinished ...>\n"
                          "[pid 2] ioctl(9, KVM_RUN, 0 <unfinished ...>\n[pid 2] <... ioctl resumed>) = 0\n"
                          "[pid 1] <... ioctl resumed>)             = 0", [PLAIN]),
    ("strace, cut calls", f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE}) = ? ERESTARTSYS (To be restarted)\n{STRACE}",
     [PLAIN, PLAIN]),
    ("strace -e inject", f"{STRACE} (DELAYED)", [PLAIN]),
    ("strace -e inject", f"{STRACE} (INJECTED)\n{STRACE} (INJECTED: args)", [PLAIN]),
    ("strace -e inject", f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE}) = -1 ENOMEM (Cannot) (INJECTED)\n{STRACE}", [PLAIN]),
    # The kernel's event
    ("ftrace", f" qemu-system-x86-1624  [002] .....   12.345678: {KERNEL}", [CHANGE]),
    ("ftrace", " ioctl-1624  [002] .....   12.345678: " + KERNEL, [CHANGE]),
    ("ftrace", f" kvm_set_user_me-1624  [002] .....   12.345678: {KERNEL}", [CHANGE]),
    ("event, first posting", "qemu-kvm-12693 [187] .....  1342.747651: kvm_vm_set_mem_attributes:  ."
                             " 0x00000000000100 -- 0x00000000000300 [0x8]", [CHANGE]),
    ("event, series of 2024", "qemu-1 [0] 1.0: kvm_vm_set_mem_attributes: gfn 0x100, cnt 0x200, attributes 0x8", [CHANGE]),
    ("trace-cmd", f"  qemu-system-x86-1624  [002]   12.345678: kvm_vm_set_mem_attributes: {KERNEL[27:]}", [CHANGE]),
    ("trace-cmd -R", " qemu-1624 [002] 12.3: kvm_vm_set_mem_attributes: start=0x100 end=0x300 attr=8", [CHANGE]),
    ("trace-cmd -R", " qemu-1624 [002] 12.3: kvm_vm_set_mem_attributes: attr=8 end=0x300 start=0x100", [CHANGE]),
    ("trace-cmd -R", " qemu-1624 [002] 12.3: kvm_vm_set_mem_attributes: end=768 start=256 attr=0x8", [CHANGE]),
    ("perf script", f"       CPU 0/KVM  1624 [002]    12.345678: kvm:{KERNEL}", [CHANGE]),
    ("perf trace", "     0.000 CPU 0/KVM/1624 kvm:kvm_vm_set_mem_attributes(start: 256, end: 768, attr: 8)", [CHANGE]),
    ("bpftrace", "tracepoint:kvm:" + KERNEL, [CHANGE]),
    ("bpftrace", "tracepoint:kvm:kvm_vm_set_mem_attributes: { .start = 256, .end = 768, .attr = 8 }", [CHANGE]),
    ("LTTng, kernel", "[10:00:00.1] (+0.1) host kvm_vm_set_mem_attributes: { cpu_id = 3 }, { start = 256, end = 768,"
                      " attr = 8 }", [CHANGE]),
]


def trace_of(tmp_path, text, **options):
    path = tmp_path / "x.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode() + b"\n")
    return read(path, **options)


@pytest.mark.parametrize(("row", "text", "operations"), FORMS, ids=[form[0] for form in FORMS])
@pytest.mark.parametrize("end", ["", "\r"])
def test_a_form(tmp_path, row, text, operations, end):
    if isinstance(text, str):
        text = "\n".join(line + end for line in text.split("\n"))
    with trace_of(tmp_path, text, strict=True, default_private=False) as trace:
        if operations is not None:
            assert list(trace) == operations
        assert (trace.unread_count, trace.mentions) == (0, 0)


@pytest.mark.parametrize("row", sorted({form[0] for form in FORMS}))
def test_each_form_is_in_the_documentation(row):
    assert f"| {row} |" in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("line", [
    "kvm_set_user_memory", "kvm_convert_memory", "kvm_vm_set_mem_attributes", "  kvm_set_user_memory\t",
    "-trace kvm_set_user_memory \\", "-trace kvm_convert_memory", "qemu-kvm -trace enable=kvm_set_user_memory,file=x -m 4G",
    "(qemu) trace-event kvm_set_user_memory on", "kvm_set_user_memory : state 1", "kvm_convert_memory : state 0",
    '{"execute": "trace-event-set-state", "arguments": {"name": "kvm_set_user_memory", "enable": true}}',
    "/usr/bin/qemu-system-x86_64 -trace kvm_set_user_memory -m size=4G,slots=2 -smp 4",
    " qemu-1624 [002] .... 12.3: kvm_vm_set_mem_attributes <-kvm_vm_ioctl",
    " 2)   0.5 us    |  kvm_vm_set_mem_attributes();", " 2)               |  kvm_vm_set_mem_attributes() {",
    "qemu-system-x86_64: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=0, start=0x0: Invalid",
    'write(1, "KVM_SET_USER_MEMORY_REGION", 26) = 26', "echo 1 > events/kvm/kvm_vm_set_mem_attributes/enable",
])
def test_a_line_that_only_mentions_a_name_is_no_event(tmp_path, line):
    with trace_of(tmp_path, f"{line}\n{EVENT}\n{line}\n{QEMU_9}", strict=True, default_private=False) as trace:
        assert [record.slot for record in trace] == [0, 0]
        assert trace.unread_count == 0


def test_a_name_alone_at_the_end_is_a_call_that_was_cut(tmp_path):
    with trace_of(tmp_path, f"{EVENT}\nkvm_set_user_memory") as trace:
        assert [told.line for told in trace.unread] == [2]


NAMES = re.compile("(?:kvm_set_user_memory|kvm_convert_memory|kvm_vm_set_mem_attributes)(?![A-Za-z0-9_])"
                   "|KVM_SET_USER_MEMORY_REGION|KVM_SET_MEMORY_ATTRIBUTES")


@pytest.mark.parametrize("seed", range(4))
def test_no_damaged_line_with_a_name_is_lost_silently(tmp_path, seed):
    """Cut, joined with another's half, with other characters: read, told or counted as a mention."""
    rng = random.Random(seed)
    lines = [text.partition("\n")[0] for _, text, _ in FORMS if isinstance(text, str)]
    letters = "0123456789abcdefx #=@:.-_[](){}<>|\"'\\\t\r,KVMkvm/\x1b\x00\ufeff%&;*"
    first = f"kvm_set_user_memory Slot#900 flags=0x0 gpa=0x7000000000 size=0x1000 ua={UA:#x} ret=0"
    tried = 0
    for _ in range(150):
        line = rng.choice(lines)
        for _ in range(rng.randrange(1, 4)):
            at, other = rng.randrange(len(line) + 1), rng.choice(lines)
            half = rng.randrange(len(other) + 1)
            line = rng.choice((line[:at] + line[at + 1:], line[:at] + rng.choice(letters) + line[at:], line[:at], line[at:],
                               line[:at] + rng.choice(letters) + line[at + 1:], line[:at] + other[half:],
                               other[:half] + line[at:], line[:at] + line[at:at + rng.randrange(30)] + line[at:]))
        if NAMES.search(line) is None:
            continue
        try:
            with trace_of(tmp_path, f"{first}\n{line}\n{first}", one_vm=True, vm=1) as trace:
                tried += 1
                assert trace.unrelated == 0, line
        except TraceError:
            continue    # of several VMs, which is told, too
    assert tried > 50


@pytest.mark.parametrize("line", ["set up the network", "slot 3 is free", "get 5", "vm started", "vm linux", "set", "vm 1"])
def test_native_words_in_a_log_are_no_operations(tmp_path, line):
    for text in (f"{line}\n{EVENT}", f"{EVENT}\n{line}", f"{line}\n{STRACE}\n{line}\nset 0 4096 1 0"):
        with trace_of(tmp_path, text, strict=True) as trace:
            assert list(trace) == [PLAIN]
            assert trace.machine is None


FORM = "{} with its fields, in a form that is not known"


@pytest.mark.parametrize(("line", "why"), [
    (EVENT.replace(" ret=0", ""),
     "expected 'kvm_set_user_memory [AddrSpace#N] Slot#N flags=0xN gpa=0xN size=0xN ua=0xN [...] ret=N', found no ret"),
    (EVENT.replace("gpa", "gpb"),
     "expected 'kvm_set_user_memory [AddrSpace#N] Slot#N flags=0xN gpa=0xN size=0xN ua=0xN [...] ret=N', found no gpa"),
    (EVENT.replace("ret=0", "ret=-40000"), "expected 0 or a negative errno, down to -4095, for ret, found '-40000'"),
    (EVENT.replace("ret=0", "ret=7"), "expected 0 or a negative errno, down to -4095, for ret, found '7'"),
    (EVENT.replace("size=0x", "size=" + "9" * 5000), "expected size below 0x10000000000000000, found a number of 5006 digits"),
    ("kvm_set_user_memory AddrS",
     "expected 'kvm_set_user_memory [AddrSpace#N] Slot#N flags=0xN gpa=0xN size=0xN ua=0xN [...] ret=N', found no Slot"),
    (f'write(2, "{EVENT}\\n", 90) = 90', "kvm_set_user_memory inside of what another call has written or read"),
    ("     0.050 ( 0.003 ms): qemu-system-x86/1234 ioctl(fd: 17<anon_inode:kvm-vm>, cmd: KVM_SET_USER_MEMORY_REGION,"
     " arg: 0x7ffc12345678) = 0", "expected strace's 'ioctl(FD, REQUEST, {...})', found perf's, which has only the address"
     " of the structure: record with strace"),
    ("ioctl(KVM_SET_USER_MEMORY_REGION, {slot=1, guest_phys_addr=0x80000000, memory_size=4096, ...}) = -1 EINVAL",
     "expected 'ioctl(FD, REQUEST, {...}) = 0|-1 ERRNO|?', found no file descriptor"),
    ("ioctl(8, _IOC(_IOC_WRITE, 0xae, 0xd2, 0x20), 0x7ffc12345678) = 0",
     "expected {address=, size=, attributes=, flags=} in KVM_SET_MEMORY_ATTRIBUTES, found '0x7ffc12345678': what strace has"
     " not read cannot be replayed"),
    # No tool writes these, and none is guessed.
    ("kvm_convert_memory size 0x1000 start 0x40000 private_to_shared", FORM.format("kvm_convert_memory")),
    ("kvm_convert_memory start:262144 size:4096 private_to_shared", FORM.format("kvm_convert_memory")),
    (" qemu-1 [0] 1.0: kvm_vm_set_mem_attributes: (kvm_vm_ioctl+0x1) end=0x500 start=0x400",
     FORM.format("kvm_vm_set_mem_attributes")),
    ("CPU:2 [LOST 1234 EVENTS]", "1234 events or lines were lost here"),
    ("CPU:2 [12 EVENTS DROPPED]", "12 events or lines were lost here"),
    ("  qemu 1624 [002] 12.3: PERF_RECORD_LOST lost 12", "12 events or lines were lost here"),
    ("LOST 12 events!", "12 events or lines were lost here"),
    ("Lost 12 events", "12 events or lines were lost here"),
    ("Dropped_Event 1.0 pid=7 num_events_dropped=0xc", "12 events or lines were lost here"),
    ("Jan 01 10:00:00 host systemd-journald[1]: Suppressed 12 messages from vm.service",
     "12 events or lines were lost here"),
])
def test_what_is_not_read_is_told_with_its_line(tmp_path, line, why):
    text = f"x\n{EVENT}\n{line}\nnothing\n{QEMU_9}"
    with trace_of(tmp_path, text, default_private=False) as trace:
        assert list(trace) == [PLAIN, BOUND]
        assert trace.unread == [(3, why)]
        assert trace.unread_count == 1
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        trace_of(tmp_path, text, strict=True)
    assert str(caught.value) == f"{tmp_path / 'x.log'}:3: {why}"


def test_an_unknown_field_is_told_and_the_call_read(tmp_path):
    line = EVENT.replace(" ret", " colour=7 ret")
    with trace_of(tmp_path, line) as trace:
        assert list(trace) == [PLAIN]
        assert trace.unread == [(1, "unknown field 'colour'")]
    with pytest.raises(ValueError, match=r"x\.log:1: unknown field 'colour'"):
        trace_of(tmp_path, line, strict=True)


def test_two_starts_in_a_log_of_libvirt_are_two_vms(tmp_path):
    start = "2025-06-01 10:00:00.000+0000: starting up libvirt version: 10.0.0, qemu version: 9.1.0, hostname: host\n"
    text = f"{start}{EVENT}\n2025-06-01: shutting down, reason=crashed\n{start}{QEMU_9}"
    with pytest.raises(ValueError, match="found 2 VMs: choose by --vm or --pid: VM 1 first on line 2, 1 call; VM 2 first"):
        trace_of(tmp_path, text)
    with trace_of(tmp_path, text, vm=2, default_private=False) as trace:
        assert list(trace) == [BOUND]


# VMs and files of strace ------------------------------------------------------------------------------------

def region(file, slot, pid=None, result="0"):
    prefix = "" if pid is None else f"{pid}  "
    return (f"{prefix}ioctl({file}, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, guest_phys_addr={slot * MIB:#x},"
            f" memory_size={MIB}, userspace_addr={UA:#x}}}) = {result}\n")


def slots(trace):
    with trace:
        return [record.slot for record in trace]


def test_two_processes_with_a_vm_each(tmp_path):
    text = ("100  ioctl(3, KVM_CREATE_VM, 0) = 4\n200  ioctl(3, KVM_CREATE_VM, 0) = 4\n"
            + region(4, 1, 100) + region(4, 2, 200) + region(4, 3, 100))
    with pytest.raises(ValueError, match="VM 1 made on line 1 by process 100, descriptor 4, 2 calls; VM 2 made on line 2"):
        trace_of(tmp_path, text)
    assert slots(trace_of(tmp_path, text, pid=100)) == [1, 3]
    assert slots(trace_of(tmp_path, text, pid=200)) == [2]
    assert slots(trace_of(tmp_path, text, vm=2)) == [2]


def test_a_thread_has_its_processes_files(tmp_path):
    thread = ("100  ioctl(3, KVM_CREATE_VM, 0) = 4\n"
              "100  clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, stack=0x7f}, 88) = 101\n")
    assert slots(trace_of(tmp_path, thread + region(4, 1, 101) + region(4, 2, 100))) == [1, 2]
    # Without the line that makes the thread, the descriptor is the only one that there is.
    assert slots(trace_of(tmp_path, thread.splitlines()[0] + "\n" + region(4, 1, 101))) == [1]
    # A forked child has a copy: what it closes and makes is its own.
    fork = ("100  ioctl(3, KVM_CREATE_VM, 0) = 4\n100  fork() = 102\n102  close(4) = 0\n"
            "102  ioctl(3, KVM_CREATE_VM, 0) = 4\n")
    text = fork + region(4, 1, 100) + region(4, 2, 102)
    assert slots(trace_of(tmp_path, text, pid=102)) == [2]


def test_a_descriptor_of_two_vms_in_a_thread_that_nobody_made_is_told(tmp_path):
    text = ("100  ioctl(3, KVM_CREATE_VM, 0) = 4\n200  ioctl(3, KVM_CREATE_VM, 0) = 4\n" + region(4, 1, 100)
            + region(4, 7, 300))
    with trace_of(tmp_path, text, vm=1) as trace:
        assert [told.line for told in trace.unread] == [4]
        assert trace.unread[0].text.startswith("descriptor 4 is another file in each of 2 processes, and no line tells")


@pytest.mark.parametrize("copy", ["dup(4) = 9", "dup2(4, 9) = 9", "dup3(4, 9, O_CLOEXEC) = 9",
                                  "fcntl(4, F_DUPFD_CLOEXEC, 0) = 9<anon_inode:kvm-vm>"])
def test_a_copy_of_a_descriptor_is_the_same_vm(tmp_path, copy):
    text = f"ioctl(3, KVM_CREATE_VM, 0) = 4\n{copy}\nclose(4) = 0\n" + region(9, 1) + region(9, 2)
    assert slots(trace_of(tmp_path, text)) == [1, 2]


def test_a_vm_that_is_closed_and_one_that_no_line_has_made(tmp_path):
    text = region(8, 1) + "close(8) = 0\n" + region(8, 2)
    with pytest.raises(ValueError, match="VM 1 first on line 1, descriptor 8, 1 call; VM 2 first on line 3"):
        trace_of(tmp_path, text)
    text = "ioctl(3, KVM_CREATE_VM, 0) = -1 EBUSY (Device or resource busy)\n" + region(8, 1)
    assert slots(trace_of(tmp_path, text)) == [1]


def test_a_guest_memfd_with_the_number_of_another_is_another_file(tmp_path):
    def bind(slot):
        return (f"ioctl(4, KVM_SET_USER_MEMORY_REGION2, {{slot={slot}, flags=KVM_MEM_GUEST_MEMFD,"
                f" guest_phys_addr={slot * MIB:#x}, memory_size={MIB}, userspace_addr={UA:#x}, guest_memfd_offset=0,"
                " guest_memfd=12}) = 0\n")
    make = f"ioctl(4, KVM_CREATE_GUEST_MEMFD, {{size={MIB}, flags=0}}) = 12\n"
    text = "ioctl(3, KVM_CREATE_VM, 0x1) = 4\n" + make + bind(0) + "close(12) = 0\n" + make + bind(1)
    with trace_of(tmp_path, text) as trace:
        made = [record.guest_memfd for record in trace if isinstance(record, CreateFile)]
        bound = [record.guest_memfd for record in trace if isinstance(record, SetSlot)]
        assert made == bound
        assert bound[0] == 12
        assert bound[1] != 12
        summary = replay(trace, machine_for(trace))
    assert (summary.answers, summary.different) == ({"0": 4}, 0)


# What QEMU does without a line --------------------------------------------------------------------------------

def test_a_log_that_begins_in_the_middle_says_so(tmp_path):
    text = (f"kvm_set_user_memory Slot#3 flags=0x0 gpa=0x0 size=0x0 ua={UA:#x} ret=0\n" + EVENT
            + "\nkvm_convert_memory start 0x80000000 size 0x1000 shared_to_private\n")
    with trace_of(tmp_path, text) as trace:
        assert trace.begins_in_the_middle == 1
        assert trace.notes == [(1, "slot 3 is deleted, which no line made: the log begins in the middle")]
        vm = machine_for(trace)
        summary = replay(trace, vm)
    assert (summary.answers, summary.different) == ({"0": 3}, 0)
    assert vm.attributes[0x80000] == 8


def test_a_slot_that_is_made_again_is_private_again(tmp_path):
    gone = QEMU_9.replace(f"size={MIB:#x}", "size=0x0").replace("flags=0x4", "flags=0x0")
    shared = f"kvm_convert_memory start 0x0 size {MIB:#x} private_to_shared"
    with trace_of(tmp_path, "\n".join([QEMU_9, shared, gone, QEMU_9])) as trace:
        assert trace.default_private == 2
        assert [int(origin) for block in trace.blocks() for origin in block["origin"]] == [0, IMPLIED, 0, 0, 0, IMPLIED]
        vm = machine_for(trace)
        replay(trace, vm)
    assert vm.attributes.all(0, 256, 8)


@pytest.mark.parametrize(("start", "size", "why"), [
    (0x1000, 0, "its size is 0"), (0x800, 0x1000, "it is not of whole pages"), (0, 0x1800, "it is not of whole pages")])
def test_conversions_of_no_pages(tmp_path, start, size, why):
    line = f"kvm_convert_memory start {start:#x} size {size:#x} shared_to_private"
    with trace_of(tmp_path, f"{QEMU_9}\n{line}") as trace:
        assert trace.not_done == 1
        assert trace.notes == [(2, f"conversion of [{start:#x}, {start + size:#x}) to private not done: {why}")]


def test_a_default_vm_with_guest_memfds_and_two_address_spaces(tmp_path):
    text = QEMU_9 + "\n" + QEMU_9.replace("AddrSpace#0", "AddrSpace#1").replace("=12", "=13")
    with trace_of(tmp_path, text) as trace:
        vm = machine_for(trace)
        summary = replay(trace, vm)
    assert (summary.profile, summary.answers, summary.different) == ("linux-6.18", {"0": 2}, 0)
    assert (summary.default_private, vm.attributes.values().tolist()) == (0, [0])


def test_what_a_kernel_with_other_rules_took_is_there(tmp_path):
    """A read-only slot with private memory, as the trees of 2023 had."""
    with trace_of(tmp_path, QEMU_9.replace("flags=0x4", "flags=0x6"), default_private=False) as trace:
        vm = machine_for(trace)
        summary = replay(trace, vm)
    assert [(slot.id, slot.flags) for slot in vm.memslots] == [(0, 2)]
    assert [(d.recorded, d.replayed) for d in summary.differences] == [("0", "EINVAL")]


@pytest.mark.parametrize("line", [
    f"7@99999999999.999999:{EVENT}", f"7@9999999999999999999 {EVENT}", f"99999999999.999999 {STRACE}",
    f"2025-99-99T00:00:00Z {EVENT}", f"99:99:99 {STRACE}", "kvm_set_user_memory AddrSpace#65535 Slot#4294967295 flags=0x4"
    f" {SLOT} ret=0"])
def test_numbers_that_fit_no_clock_and_no_row(tmp_path, line):
    with trace_of(tmp_path, line) as trace:
        assert len(trace) == 1
        replay(trace, machine_for(trace))


CREATED = "ioctl(3, KVM_CREATE_VM, 0x1) = 4\n"
SET2 = "KVM_SET_MEMORY_ATTRIBUTES2, {offset=0, size=4096, attributes=0x8, flags=0}"


@pytest.mark.parametrize(("line", "what"), [
    (f"ioctl(4, {SET2}) = -1 ENOTTY (Inappropriate ioctl for device)", "KVM_SET_MEMORY_ATTRIBUTES2 on descriptor 4"),
    (f"ioctl(9, {SET2}) = -1 ENOTTY (Inappropriate ioctl for device)", "KVM_SET_MEMORY_ATTRIBUTES2 on descriptor 9"),
    ("ioctl(4, _IOC(_IOC_READ|_IOC_WRITE, 0xae, 0xd2, 0x80), 0x7ffe) = -1 ENOTTY (Inappropriate ioctl for device)",
     "KVM_SET_MEMORY_ATTRIBUTES2 on descriptor 4"),
    (f"ioctl(3, KVM_SET_USER_MEMORY_REGION, {STRUCTURE}) = -1 ENOTTY (Inappropriate ioctl for device)",
     "KVM_SET_USER_MEMORY_REGION on descriptor 3"),
    ("ioctl(3, KVM_CREATE_GUEST_MEMFD, {size=0x1000, flags=0}) = -1 ENOTTY (Inappropriate ioctl for device)",
     "KVM_CREATE_GUEST_MEMFD on descriptor 3")])
def test_a_descriptor_that_does_not_know_a_request_is_no_second_vm(tmp_path, line, what):
    with trace_of(tmp_path, CREATED + line + "\n" + region(4, 0)) as trace:
        assert [record.slot for record in trace] == [0]
        assert trace.unread == []
        assert trace.notes == [(2, f"{what}, which is none that has it: ENOTTY, nothing changed")]


def test_what_strace_answered_itself_changed_nothing(tmp_path):
    """With `-e inject` the kernel is not asked; the VMM believes that it was."""
    text = (CREATED + region(4, 0) + "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=0,"
            " userspace_addr=NULL}) = 0 (INJECTED)\nclose(4) = 0 (INJECTED)\nioctl(3, KVM_CREATE_VM, 0) = 5 (INJECTED)\n"
            + region(4, 1))
    with trace_of(tmp_path, text, strict=True) as trace:
        assert [record.slot for record in trace] == [0, 1]
        assert trace.notes == [(3, "KVM_SET_USER_MEMORY_REGION was answered by strace (INJECTED): nothing changed"),
                               (5, "KVM_CREATE_VM was answered by strace (INJECTED): nothing changed")]


def test_a_pointer_of_null_is_a_number(tmp_path):
    deletion = ("ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=0,"
                " userspace_addr=NULL}) = 0\n")
    with trace_of(tmp_path, CREATED + region(4, 0) + deletion, strict=True) as trace:
        assert list(trace)[1] == SetSlot(0, 0, 0, 0, 0)


def test_an_address_that_no_host_has_names_no_host(tmp_path):
    with trace_of(tmp_path, EVENT.replace(f"{UA:#x}", "0xffffffffff000000")) as trace:
        found = host_for(trace)
        assert (found.host.name, found.why) == ("x86-64", "")


def test_a_descriptor_that_is_closed_is_no_second_vm(tmp_path):
    line = region(4, 1, result="-1 EBADF (Bad file descriptor)")
    with trace_of(tmp_path, CREATED + region(4, 0) + "close(4) = 0\n" + line) as trace:
        assert [record.slot for record in trace] == [0]
        assert [told.line for told in trace.notes] == [4]


def test_attributes_of_a_file_on_a_vm_that_went_well_are_not_read(tmp_path):
    with trace_of(tmp_path, f"{CREATED}{region(4, 0)}ioctl(4, {SET2}) = 0\n{region(4, 1)}") as trace:
        assert [record.slot for record in trace] == [0, 1]
        assert trace.unread == [(3, "descriptor 4 is a VM, not a guest_memfd")]


GUEST = f"kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x4 {SLOT} guest_memfd=12 guest_memfd_offset=0x0 ret=0"
ASKED = "kvm_convert_memory start 0x1000 size 0x2000 private_to_shared"


@pytest.mark.parametrize(("said", "answers", "note"), [
    ("failed to set memory (0x1000+0x2000) with attr 0x0 error 'Cannot allocate memory'", [0, -1, 12], None),
    (f"failed to set memory (0x0+{MIB:#x}) with attr 0x8 error 'Invalid argument'", [0, 22, -1], None),
    ("failed to set memory (0x1000+0x2000) with attr 0x0 error 'Speicher ist voll'", [0, -1],
     (2, "conversion of [0x1000, 0x3000) to shared not done: Speicher ist voll")),
    ("Convert non guest_memfd backed memory region (0x1000 ,+ 0x2000) to shared", [0, -1],
     (2, "conversion of [0x1000, 0x3000) to shared not done: no guest_memfd is behind it")),
    ("failed to set memory (0x1000+0x1000) with attr 0x0 error 'Cannot allocate memory'", [0, -1, -1], None),
])
def test_what_qemu_says_behind_a_conversion_counts(tmp_path, said, answers, note):
    """The event is written before KVM is asked: the message behind it tells how that went."""
    with trace_of(tmp_path, f"{GUEST}\n{ASKED}\nqemu-system-x86_64: {said}") as trace:
        assert [int(answer) for block in trace.blocks() for answer in block["answer"]] == answers
        assert trace.notes == ([note] if note else [])
        assert trace.not_done == bool(note)


def test_a_refusal_is_heard_behind_any_number_of_rows(tmp_path):
    said = "failed to set memory (0x1000+0x2000) with attr 0x0 error 'Cannot allocate memory'"
    with trace_of(tmp_path, "\n".join([GUEST, *[ASKED] * 4094, said])) as trace:
        answers = [int(answer) for block in trace.blocks() for answer in block["answer"]]
        assert (answers[-2:], len(answers)) == ([-1, 12], 4096)


@pytest.mark.parametrize(("times", "note"), [
    ((5.0, 6.0, 5.5, 4.25), (3, "older than a line before it (2 lines are), by up to 1.750 s: lines count in the order in"
                                " which they stand")),
    ((5.0, 6.0, 5.98), (3, "older than a line before it, by up to 0.020 s: lines count in the order in which they stand")),
    ((5.0, 6.0, 5.995), None),       # threads that write at once
    ((50000.0, 60000.0, 5.0, 6.0), None),       # another clock
    ((7200.0, 3600.1), None),       # another zone, or the end of summer time
])
def test_lines_that_are_not_in_order_are_told(tmp_path, times, note):
    """As the buffers of several CPUs, or the files of several threads, one behind the other are."""
    with trace_of(tmp_path, "\n".join(f" q-7 [000] ..... {time:.6f}: {KERNEL}" for time in times)) as trace:
        assert (trace.operations, trace.notes) == (len(times), [note] if note else [])
