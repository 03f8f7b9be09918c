"""Parsing of traces: the native format by both roads, the logs of real VMMs, and what is said of damage."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmattr.trace import (
    GetAttributes,
    Machine,
    SetAttributes,
    SetSlot,
    Trace,
    TraceError,
    _native,
    line_of,
    native,
    opening,
    read,
)
from kvmattr.trace import trace as trace_module
from kvmattr.trace.calls import Call
from kvmattr.trace.operations import ROW, UNKNOWN, records_of, rows_of, stretches
from kvmattr.trace.reading import Parser

RECORDINGS = Path(__file__).parent / "data" / "traces"
SLOT = "slot=0, flags=0, guest_phys_addr=0, memory_size=4096, userspace_addr=0x7f0000000000"
FIRST = SetSlot(0, 0, 0, 4096, 0x7F0000000000)


def trace_of(tmp_path, text, name="x.trace"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path)


def answers(trace):
    return [answer for block in trace.blocks() for answer in block["answer"].tolist()]


def error_of(tmp_path, text):
    with pytest.raises(TraceError) as caught:
        trace_of(tmp_path, text)
    return str(caught.value).replace(str(tmp_path) + "/", "")


def call_of(line):
    """The first call of a line; None where the line is read and has none."""
    parser = Parser("x", default_private=False)
    parser.feed(line.encode() + b"\n")
    try:
        with parser.finish() as trace:
            return Call(next(iter(trace)), answers(trace)[0])
    except TraceError as error:
        parser.close()
        if "found no call of ours" in str(error) or "not done" in str(error):
            return None
        raise


# The native format ----------------------------------------------------------------------------------------

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
records = st.one_of(
    st.builds(SetAttributes, u64, u64, u64, u64),
    st.builds(GetAttributes, u64, u64),
    st.tuples(u32, u32, u64, u64, u64).map(lambda words: SetSlot(*words)),
    st.tuples(u32, u32, u64, u64, u64, st.integers(-1, 2**31 - 1), u64).map(lambda words: SetSlot(*words)),
)


@settings(max_examples=30)
@given(st.lists(records, max_size=20))
def test_what_is_written_is_read_back(operations):
    text = "".join(line_of(record) + "\n" for record in operations)
    if operations:
        parser = Parser("x")
        parser.feed(text.encode())
        with parser.finish() as trace:
            assert list(trace) == operations
    assert list(records_of(rows_of(operations))) == operations


@settings(max_examples=100)
@given(st.text(alphabet="0123456789abcdefxXst gelo-+.#\t\r", max_size=40),
       st.sampled_from(["set ", "get ", "slot "]))
def test_the_quick_road_agrees_with_the_definition(tail, head):
    """Whatever the compiled parser takes, the Python one takes with the same result."""
    line = head + tail
    rows = np.zeros(1, dtype=ROW)
    _start, _line, filled = _native.parse(line.encode() + b"\n", 0, 1, rows, 0, False)
    if filled:
        assert list(records_of(rows)) == [native.parse(line.split())]


@settings(max_examples=50)
@given(records.filter(lambda record: not isinstance(record, SetSlot) or record.guest_memfd is None))
def test_the_quick_road_takes_plain_lines(record):
    rows = np.zeros(1, dtype=ROW)
    assert _native.parse(line_of(record).encode() + b"\n", 0, 7, rows, 0, False)[1:] == (8, 1)
    assert list(records_of(rows)) == [record]
    assert rows["line"][0] == 7
    assert rows["answer"][0] == UNKNOWN


def test_numbers_comments_blanks_and_line_ends(tmp_path):
    text = ("# a comment\n\n  vm linux private=1 phys_bits=40 # options\r\nset 4096 0X1000 8 0\r\n"
            "\tget 0x0 0xfffFFFFffffff000 # all\nslot 65536 2 0x1000 8192\nslot 1 0 0 0x1000 0 -1 0\n"
            "slot 2 4 0 0x1000 0x7000 5 0x2000")
    with trace_of(tmp_path, text) as trace:
        assert trace.machine == Machine("linux", {"private": 1, "phys_bits": 40})
        assert list(trace) == [
            SetAttributes(4096, 4096, 8, 0), GetAttributes(0, 2**64 - 4096),
            SetSlot(65536, 2, 0x1000, 8192, 0x7F0000000000), SetSlot(1, 0, 0, 0x1000, 0, -1, 0),
            SetSlot(2, 4, 0, 0x1000, 0x7000, 5, 0x2000)]
        assert (trace.lines, trace.unrelated, len(trace)) == (8, 0, 5)
        assert (trace.attribute_calls, trace.slot_calls, trace.is_log) == (1, 3, False)
        assert next(trace.blocks())["line"].tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(("line", "expected"), [
    ("set 0x1000 0x1000 8", "expected 'set ADDR SIZE ATTRS FLAGS', found 3 numbers"),
    ("set 0 0x1000 8 0 0", "expected 'set ADDR SIZE ATTRS FLAGS', found 5 numbers"),
    ("set", "expected 'set ADDR SIZE ATTRS FLAGS', found 0 numbers"),
    ("get 0x1000", "expected 'get ADDR SIZE', found 1 number"),
    ("set 0x1000 0x10z0 8 0", "expected a decimal or 0x number for SIZE, found '0x10z0'"),
    ("set -1 0x1000 8 0", "expected a decimal or 0x number for ADDR, found '-1'"),
    ("set 0x10000000000000000 1 8 0", "expected ADDR below 0x10000000000000000, found 0x10000000000000000"),
    ("set 18446744073709551616 1 8 0", "expected ADDR below 0x10000000000000000, found 18446744073709551616"),
    ("set 0o17 1 8 0", "expected a decimal or 0x number for ADDR, found '0o17'"),
    ("set 0x 1 8 0", "expected a decimal or 0x number for ADDR, found '0x'"),
    ("slot 0x100000000 0 0 0", "expected ID below 0x100000000, found 0x100000000"),
    ("slot 0 0x100000000 0 0", "expected FLAGS below 0x100000000, found 0x100000000"),
    ("slot 0 0 0 0 0 1",
     "expected 'slot ID FLAGS GPA SIZE [HVA [GUEST_MEMFD OFFSET]]', found 6 numbers"),
    ("slot 0 0 0 0 0 -2 0", "expected a decimal or 0x number for GUEST_MEMFD, found '-2'"),
    ("vm", "expected 'vm PROFILE [private=0|1] [no_exec=0|1] [exec_only=0|1] [write_only=0|1] [phys_bits=N]"
           " [nr_memslots=N] [host=NAME]', found no profile"),
    ("vm rfc colour=1", "expected one of private, no_exec, exec_only, write_only, phys_bits, nr_memslots, host with"
                        " '=', found 'colour=1'"),
    ("vm rfc private=2", "expected private below 0x2, found 2"),
    ("vm rfc host=vax", "expected one of x86-64, x86-64-la57, arm64, arm64-lva, arm64-16k, arm64-64k, s390 for host,"
                        " found 'vax'"),
    ("vm rfc host=s390 host=s390", "expected host once, found it again"),
    ("vm rfc private=1 private=1", "expected private once, found it again"),
])
def test_a_damaged_native_line_says_what_was_expected(tmp_path, line, expected):
    assert error_of(tmp_path, f"# one\n{line}\n") == f"x.trace:2: {expected}"


def test_the_vm_line_comes_first_and_once(tmp_path):
    expected = "expected one vm line, before the first operation"
    assert error_of(tmp_path, "get 0 4096\nvm rfc\n") == f"x.trace:2: {expected}"
    assert error_of(tmp_path, "vm rfc\nvm rfc\n") == f"x.trace:2: {expected}"


@pytest.mark.parametrize("text", ["", "hello\n", "# only a comment\n", "vm linux\n"])
def test_a_file_without_a_call_is_an_error(tmp_path, text):
    assert error_of(tmp_path, text) == (
        f"x.trace: expected a trace, found no call of ours in {text.count(chr(10))} lines"
        " (formats: native, QEMU's trace log, strace, kvm_vm_set_mem_attributes)")


def test_unrelated_lines_are_counted(tmp_path):
    text = "SeaBIOS (version 1.16)\nset 0 4096 1 0\nsettle down\nioctl(3, TCGETS, 0x7ffe) = 0\nget 0 4096\n"
    with trace_of(tmp_path, text) as trace:
        assert (len(trace), trace.unrelated, trace.lines) == (2, 3, 5)


def test_a_line_without_end_is_not_read_into_memory(tmp_path):
    assert error_of(tmp_path, b"get 0 4096\n" + b"x" * (2 * opening.PIECE + 1)) == (
        "x.trace:2: expected lines of at most 1048576 bytes, found a longer one")


def test_gzip_and_standard_input(tmp_path):
    text = b"set 0x1000 0x1000 8 0\nget 0 8192\n"
    operations = [SetAttributes(4096, 4096, 8, 0), GetAttributes(0, 8192)]
    with trace_of(tmp_path, gzip.compress(text)) as trace:
        assert list(trace) == operations
    program = "from kvmattr.trace import read; print(*read('-'), sep='\\n')"
    for data in (text, gzip.compress(text)):
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
        assert done.stdout.decode().split("\n")[:-1] == [str(operation) for operation in operations]


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(b"set 0x1000 0x1000 8 0\n" * 50)
    assert error_of(tmp_path, whole[:-9]).startswith("x.trace:1: expected more gzipped data: ")
    damaged = bytearray(whole)
    damaged[-6] ^= 0xFF
    assert error_of(tmp_path, bytes(damaged)).startswith("x.trace:1: expected more gzipped data: ")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.trace"):
        read(tmp_path / "nowhere.trace")


def test_long_traces_keep_their_rows_in_a_file(tmp_path, monkeypatch):
    """More operations than a block, more bytes than stay in memory, lines cut by the pieces that are read."""
    monkeypatch.setattr(trace_module, "IN_MEMORY", 1 << 20)
    monkeypatch.setattr(opening, "PIECE", 1009)
    count = 70_000
    text = "".join(f"set {index << 12:#x} 0x1000 {index & 1} 0\n" for index in range(count))
    seen = []
    path = tmp_path / "long.trace"
    path.write_text(text)
    with read(path, progress=seen.append) as trace:
        assert len(trace) == trace.lines == count
        assert [len(block) for block in trace.blocks()] == [65536, count - 65536]
        words = np.concatenate([block["words"] for block in trace.blocks()])
        assert (words[:, 0] == np.arange(count, dtype=np.uint64) << np.uint64(12)).all()
        assert (words[:, 2] == np.arange(count) % 2).all()
        lines = np.concatenate([block["line"] for block in trace.blocks()])
        assert (lines == np.arange(1, count + 1)).all()
    assert seen == sorted(seen)
    assert seen[-1] == count


def test_traces_made_of_blocks():
    operations = [SetAttributes(0, 4096, 1), SetAttributes(4096, 4096, 1), GetAttributes(0, 8192)]
    with Trace.from_blocks("made", [rows_of(operations[:2]), rows_of(operations[2:])]) as trace:
        assert list(trace) == list(trace) == operations
        assert trace.attribute_calls == 2
        assert [len(piece) for block in trace.blocks() for piece in stretches(block)] == [2, 1]
    assert list(stretches(rows_of([]))) == []


# QEMU and the kernel's event --------------------------------------------------------------------------------

@pytest.mark.parametrize("prefix", ["", "1624@1669155555.123456:", "[11:22:33] "])
@pytest.mark.parametrize(("rest", "record", "answer"), [
    ("Slot#65537 flags=0x2 gpa=0xc0000 size=0x20000 ua=0x7f3a41c00000 ret=0",
     SetSlot(65537, 2, 0xC0000, 0x20000, 0x7F3A41C00000), 0),
    ("AddrSpace#1 Slot#1 flags=0x2 gpa=0xc0000 size=0x20000 ua=0x7f3a41c00000 ret=-22",
     SetSlot(65537, 2, 0xC0000, 0x20000, 0x7F3A41C00000), 22),
    ("AddrSpace#0 Slot#1 flags=0x4 gpa=0x0 size=0x1000 ua=0x7f00 guest_memfd=12 guest_memfd_offset=0x3000"
     " ret=0", SetSlot(1, 4, 0, 0x1000, 0x7F00, 12, 0x3000), 0),
    ("AddrSpace#0 Slot#1 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f00 guest_memfd=-1 guest_memfd_offset=0x0 ret=0",
     SetSlot(1, 0, 0, 0x1000, 0x7F00, -1, 0), 0),
    ("AddrSpace#0 Slot#1 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f00 fd=4294967295 fd_offset=0x0 ret=0",
     SetSlot(1, 0, 0, 0x1000, 0x7F00, -1, 0), 0),
])
def test_qemu_slot_lines_of_all_versions(prefix, rest, record, answer):
    assert call_of(f"{prefix}kvm_set_user_memory {rest}") == Call(record, answer)


@pytest.mark.parametrize(("line", "record", "answer"), [
    ("kvm_convert_memory start 0x1000 size 0x200000 shared_to_private",
     SetAttributes(0x1000, 0x200000, 8, 0), UNKNOWN),
    ("9@1.000002:kvm_convert_memory start 0x0 size 0x1000 private_to_shared",
     SetAttributes(0, 0x1000, 0, 0), UNKNOWN),
    (" qemu-system-x86-1624 [002] .....   12.345678: kvm_vm_set_mem_attributes: 0x0000000000000100 --"
     " 0x0000000000000300 [0x8]", SetAttributes(0x100000, 0x200000, 8, 0), 0),
])
def test_conversions_and_the_kernel_event(line, record, answer):
    assert call_of(line) == Call(record, answer)


@pytest.mark.parametrize("line", [
    "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=0",
    " qemu-1624 [002] .... 12.3: kvm_vm_set_mem_attributes <-kvm_vm_ioctl",
    "kvm_run_exit cpu_index 0, reason 2"])
def test_lines_that_only_look_alike_are_unrelated(line):
    assert call_of(line) is None


@pytest.mark.parametrize(("line", "expected"), [
    ("kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f00",
     "expected 'kvm_set_user_memory [AddrSpace#N] Slot#N flags=0xN gpa=0xN size=0xN ua=0xN [...] ret=N',"
     " found no ret"),
    ("kvm_set_user_memory",
     "expected 'kvm_set_user_memory [AddrSpace#N] Slot#N flags=0xN gpa=0xN size=0xN ua=0xN [...] ret=N',"
     " found no Slot"),
    ("kvm_set_user_memory Slot#0 flags=0x0 gpa=0xq size=0x1000 ua=0x7f00 ret=0",
     "expected a decimal or 0x number for gpa, found '0xq'"),
    ("kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f00 ret=x",
     "expected a decimal number for ret, found 'x'"),
    ("kvm_convert_memory start 0x1000 size 0x1000",
     "expected 'kvm_convert_memory start 0xN size 0xN shared_to_private|private_to_shared',"
     " found 'kvm_convert_memory start 0x1000 size 0x1000'"),
    ("x: kvm_vm_set_mem_attributes: 0x10 -- 0x10 [0x8]",
     "expected an end gfn above the first gfn 0x10, found 0x10"),
    ("x: kvm_vm_set_mem_attributes: 0x10 0x20",
     "expected 'kvm_vm_set_mem_attributes: 0xFIRST -- 0xEND [0xATTRIBUTES]',"
     " found 'kvm_vm_set_mem_attributes: 0x10 0x20'"),
])
def test_a_damaged_log_line_says_what_was_expected(tmp_path, line, expected):
    assert error_of(tmp_path, f"{line}\n") == f"x.trace:1: {expected}"


# strace -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prefix", ["", "1624  ", "[pid  1624] ", "1624  11:22:33.123 ", "1669155555.123 "])
@pytest.mark.parametrize(("call", "record", "answer"), [
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}}) = 0", FIRST, 0),
    (f"ioctl(8<anon_inode:kvm-vm>, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}}) = 0",
     FIRST, 0),
    (f"ioctl(8, 0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */, {{{SLOT}}})   = 0",
     FIRST, 0),
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}}) = -1 EINVAL (Invalid argument)",
     FIRST, 22),
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}}) = ?", FIRST, UNKNOWN),
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}}) = 0 <0.000031>", FIRST, 0),
    ("ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0x3, flags=KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY|0x8,"
     " guest_phys_addr=0x1000, memory_size=0x2000, userspace_addr=0}) = 0",
     SetSlot(3, 11, 0x1000, 0x2000, 0), 0),
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION2, {{{SLOT}, guest_memfd_offset=0x1000, guest_memfd=9</m>}}) = 0",
     SetSlot(0, 0, 0, 4096, 0x7F0000000000, 9, 0x1000), 0),
    ("ioctl(8, KVM_SET_MEMORY_ATTRIBUTES, {address=0x1000, size=8192,"
     " attributes=KVM_MEMORY_ATTRIBUTE_PRIVATE, flags=0}) = 0", SetAttributes(0x1000, 8192, 8, 0), 0),
    ("ioctl(8, _IOC(_IOC_WRITE, 0xae, 0xd2, 0x20), {address=0x1000, size=8192, attributes=0, flags=0}) = 0",
     SetAttributes(0x1000, 8192, 0, 0), 0),
])
def test_strace_lines(prefix, call, record, answer):
    assert call_of(prefix + call) == Call(record, answer)


@pytest.mark.parametrize("line", [
    "ioctl(3, KVM_CREATE_VM, 0) = 8", "ioctl(8, 0x4020ae47, {slot=0}) = 0", "ioctl(20, KVM_RUN, 0) = 0",
    "ioctl(8, _IOC(_IOC_NONE, 0xae, 0x80, 0), 0) = 0", "write(1, \"KVM_SET_USER_MEMORY_REGION\", 26) = 26",
    "ioctl(8, KVM_SET_USER_MEMORY_REGION, NULL) = -1 EFAULT (Bad address)"])
def test_other_ioctls_are_unrelated(line):
    assert call_of(line) is None


def test_calls_cut_by_another_thread(tmp_path):
    text = (
        f"1  ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}} <unfinished ...>\n"
        "2  ioctl(9, KVM_RUN <unfinished ...>\n"
        f"3  ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT.replace('slot=0', 'slot=3')}}} <unfinished ...>\n"
        "2  <... ioctl resumed>, 0) = 0\n"
        f"4  ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT.replace('slot=0', 'slot=4')}}} <unfinished ...>\n"
        "3  <... ioctl resumed>) = -1 EEXIST (File exists)\n"
        "1  <... ioctl resumed>)    = 0\n")
    with trace_of(tmp_path, text) as trace:
        assert [record.slot for record in trace] == [3, 0, 4]
        assert answers(trace) == [17, 0, UNKNOWN]
        assert trace.unrelated == 2


def test_a_damaged_call_that_never_resumes(tmp_path):
    text = "get 0 4096\n1  ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0 <unfinished ...>\n\n\n"
    assert error_of(tmp_path, text) == (
        "x.trace:2: expected {slot=, flags=, guest_phys_addr=, memory_size=, userspace_addr=} in"
        " KVM_SET_USER_MEMORY_REGION, found '{slot=0': what strace has not read cannot be replayed")


@pytest.mark.parametrize(("line", "expected"), [
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT}",
     "expected 'ioctl(FD, REQUEST, {...}) = 0|-1 ERRNO|?', found no result"),
    ("ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0}) = 0",
     "expected {slot=, flags=, guest_phys_addr=, memory_size=, userspace_addr=}"
     " in KVM_SET_USER_MEMORY_REGION, found no guest_phys_addr"),
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION2, {{{SLOT}}}) = 0",
     "expected {slot=, flags=, guest_phys_addr=, memory_size=, userspace_addr=, guest_memfd_offset=,"
     " guest_memfd=} in KVM_SET_USER_MEMORY_REGION2, found no guest_memfd"),
    ("ioctl(8, _IOC(_IOC_WRITE, 0xae, 0xd2, 0x20), 0x7ffc12345678) = 0",
     "expected {address=, size=, attributes=, flags=} in KVM_SET_MEMORY_ATTRIBUTES, found '0x7ffc12345678':"
     " what strace has not read cannot be replayed"),
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT.replace('flags=0', 'flags=KVM_MEM_NEW')}}}) = 0",
     "expected a decimal or 0x number for flags, found 'KVM_MEM_NEW'"),
    (f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}}) = -1 EWHAT (Huh)",
     "expected the name of an errno after '= -1', found 'EWHAT'"),
])
def test_a_damaged_strace_line_says_what_was_expected(tmp_path, line, expected):
    assert error_of(tmp_path, f"{line}\n") == f"x.trace:1: {expected}"


def test_two_machines_in_one_strace_log(tmp_path):
    text = "".join(f"ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{{SLOT}}}) = 0\n" for fd in (8, 8, 11))
    assert error_of(tmp_path, text) == (
        "x.trace: expected calls of one VM, found 2 VMs: choose by --vm or --pid: VM 1 first on line 1,"
        " descriptor 8, 2 calls; VM 2 first on line 3, descriptor 11, 1 call")


# The recordings ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "count"), [
    ("i440fx-2g.qemu.log", 37), ("q35-6g-vga.qemu.log", 40), ("q35-64g.qemu.log", 40),
    ("q35-4g.strace.log", 40)])
def test_every_line_of_the_recordings_is_read(name, count):
    with read(RECORDINGS / name) as trace:
        assert (len(trace), trace.slot_calls, trace.unrelated) == (count, count, 0)
        assert trace.is_log
        assert set(answers(trace)) == {0}
