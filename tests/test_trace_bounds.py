# ruff: noqa: E501 - texts of errors are as long as they are
"""Hostile recordings: bounded in time and memory, and a clear line. No wall clock: what is counted is the work."""

import gzip
import io
import lzma
import os
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

from kvmattr.trace import TraceError, machine_for, opening, read, replay, replaying, sides

STRUCTURE = "{slot=0, flags=0, guest_phys_addr=0, memory_size=4096, userspace_addr=0x7f0000000000}"
REGION = "ioctl(8, KVM_SET_USER_MEMORY_REGION, "
LARGEST = (1 << 31) - 1
LINE = b"get 0 0x1000\n"

#: Beginnings and what is repeated behind them until a line is full; each was, or could be, quadratic.
FILLED = [
    (REGION + STRUCTURE, ")"), (REGION + STRUCTURE, ") "), (REGION, "{"), (REGION + "{", "a"), ("", "ioctl(1<"),
    ("ioctl(8", "<1"), (REGION, "/*"), (REGION, "<1"), ("kvm_set_user_memory ", "a"), ("kvm_set_user_memory Slot#", "a"),
    ("kvm_set_user_memory Slot#0 ", "a=1 "), ("", "kvm_set_user_memory Slot#0 "), ("kvm_set_user_memory", " "),
    ("kvm_convert_memory start", " "), ("", "[pid 1<"), ("", "<... ioctl resumed>"), ("", "close("), ("clone(", ","),
    ("kvm_vm_set_mem_attributes: ", "start "), ("kvm_vm_set_mem_attributes: ", "a -- "), ("kvm_vm_set_mem_attributes:", " "),
    ("", "[LOST 1"), ("", "PERF_RECORD_LOST "), ("", "Dropped_Event "), ("", ">"), ("", "> "), ("", "\x1b["), ("", "\x1b]"),
    ("", r"\x1b["), ("", "=3D"), ("", "&lt;"), ("2025-01-01T", "1"), ("", "1:"), ("", "1."), ("", "write("),
    ('{"a":', "["), ("{", '"a":'), ("set ", "1"), ("set ", "1 "), ("vm linux ", "a=1 "), ("", "qemu-system-"),
]
PROGRAM = """
import sys
from kvmattr.trace import TraceError, read
for path in sys.argv[1:]:
    try:
        read(path).close()
    except TraceError as error:
        assert str(error).startswith(path + ":"), error
        assert len(str(error)) < 1000
"""


def test_lines_of_a_mebibyte_end_in_seconds_of_computing(tmp_path):
    """All of them in one process, which the kernel kills after a minute of processor time: each is about 20 ms."""
    tail = " kvm_set_user_memory KVM_SET_USER_MEMORY_REGION"
    paths = []
    for index, (head, unit) in enumerate(FILLED):
        for size in ((1 << 20) - 100, 16_000):
            line = head + unit * ((size - len(head)) // len(unit))
            paths.append(tmp_path / f"{index}-{size}")
            paths[-1].write_text(f"{line}\n{line}{tail}\n", encoding="latin-1")
    program = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n" + PROGRAM
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()[-500:]) == (0, "")


#: A line of 16 kB of each is read by its calls, and not by its calls times its length.
CALLS = [
    "kvm_convert_memory ", "kvm_convert_memory start 0 size 0x1000 shared_to_private ", "kvm_convert_memory gpa= size= ",
    "kvm_vm_set_mem_attributes: 0 -- 1 [0x8] ", "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x0 ret=0 ",
    "1.1 kvm_convert_memory start 0 size 0x1000 shared_to_private ", "gpa=1 size=1 ",
]


def test_lines_full_of_calls_end_in_a_second_of_computing(tmp_path):
    """A bomb of a kilobyte unpacks to four times that: up to 60 s where a call looked through all of its line."""
    paths = []
    for index, unit in enumerate(CALLS):
        paths.append(tmp_path / str(index))
        line = "kvm_convert_memory " + unit * (16_000 // len(unit)) + "\n"
        paths[-1].write_text(line * ((1 << 18) // len(line)))
    program = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (15, 15))\n" + PROGRAM
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()[-500:]) == (0, "")


def test_a_call_before_one_that_the_next_lines_go_on_with_is_taken_once(tmp_path):
    text = ("7@1.000000:kvm_convert_memory start 0x1000 size 0x1000 shared_to_private 7@2.000000:kvm_set_user_memory Slot#0"
            " flags=0x0\n gpa=0x0\n size=0x100000 ua=0x0 ret=0\n")
    with trace_of(tmp_path, text) as trace:
        assert [type(record).__name__ for record in trace] == ["SetAttributes", "SetSlot"]
        assert np.concatenate([block["time"] for block in trace.blocks()]).tolist() == [10**9, 2 * 10**9]


def test_a_character_of_html_with_thousands_of_digits_is_text(tmp_path):
    line = "kvm_convert_memory start 0x1000 size 0x1000 shared_to_private &lt;&#" + "1" * 5000 + ";&#x41;&gt;\n"
    with trace_of(tmp_path, line) as trace:
        assert len(trace) == 1


def error_of(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(TraceError) as caught:
        read(path)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def zstd(data):
    module = opening._ZSTD_MODULE
    if module is None:
        pytest.skip("no zstd")
    return module.compress(data)


COMPRESSED = {"gzipped": gzip.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_recordings(tmp_path, name):
    path = tmp_path / "x"
    for data in (LINE, LINE * 100_000):
        path.write_bytes(COMPRESSED[name](data) + COMPRESSED[name](data))
        with read(path) as trace:
            assert len(trace) == 2 * len(data) // len(LINE)
    done = subprocess.run([sys.executable, "-c", "from kvmattr.trace import read; print(len(read('-')))"],
                          input=path.read_bytes(), capture_output=True, check=True)
    assert done.stdout == b"200000\n"


@pytest.mark.parametrize("name", COMPRESSED)
def test_damaged_compressed_recordings(tmp_path, name):
    whole = bytearray(COMPRESSED[name](os.urandom(3000).hex().encode() + b"\n" + LINE))
    assert f": expected more {name} data: " in error_of(tmp_path, bytes(whole[:-9]))
    for at in range(8, len(whole), 97):
        damaged = whole.copy()
        damaged[at] ^= 0xFF
        (tmp_path / "x").write_bytes(damaged)
        # Whatever it is, it is no other error; a flipped bit of a header may also do no harm.
        with suppress(TraceError):
            read(tmp_path / "x").close()


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, name):
    monkeypatch.setattr(opening, "UNPACKED", 1 << 20)
    bomb = COMPRESSED[name](LINE * 2_000_000)
    text = error_of(tmp_path, bomb)
    line, rest = text.removeprefix("x:").split(":", 1)
    assert rest == f" expected {name} data that grow to at most 250 times their size, and 1 MiB: unpack the file first"
    assert int(line) * len(LINE) < (1 << 20) + 250 * len(bomb)


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_kilobyte_with_megabytes_of_calls_is_not_read(tmp_path, name):
    """What is looked at costs a second a mebibyte; lines that are not are quick."""
    line = b"kvm_convert_memory start 0 size 0x1000 shared_to_private\n"
    for calls in (b"dup(\n", line)[:1 if name == "gzipped" else 2]:    # gzip packs no line of a call so well
        text = error_of(tmp_path, COMPRESSED[name](calls * (2_000_000 // len(calls))))
        number, rest = text.removeprefix("x:").split(":", 1)
        assert rest == (" expected compressed data with at most 1280 times their size in lines that may be calls: unpack"
                        " the file first")
        assert int(number) * (len(calls) + 11) <= 1280 * max(1024, (tmp_path / "x").stat().st_size) + 100
    (tmp_path / "x").write_bytes(COMPRESSED[name](line + b"# nothing\n" * 300_000))
    with read(tmp_path / "x") as trace:
        assert len(trace) == 1


def test_as_many_calls_as_gzip_packs_are_read(tmp_path):
    line = b"kvm_convert_memory start 0x1000 size 0x1000 shared_to_private\n"
    (tmp_path / "x").write_bytes(gzip.compress(line * 20_000))
    assert len(line) * 20_000 > 200 * (tmp_path / "x").stat().st_size
    with read(tmp_path / "x") as trace:
        assert len(trace) == 20_000


def test_zstd_without_a_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_ZSTD_MODULE", None)
    assert error_of(tmp_path, b"\x28\xb5\x2f\xfd1234") == (
        "x:1: zstd needs Python 3.14 or the package zstandard: pip install 'kvmattr[zstd]'")


def trace_of(tmp_path, text):
    path = tmp_path / "x"
    path.write_text(text)
    return read(path)


def test_metadata_of_memslots_is_bounded(tmp_path):
    many = "".join(f"slot {index} 0 {index << 43:#x} {LARGEST << 12:#x}\n" for index in range(256))
    with trace_of(tmp_path, many) as trace, pytest.raises(TraceError) as caught:
        replay(trace, machine_for(trace))
    assert str(caught.value) == (f"{tmp_path}/x:9: expected memslots that need at most 134,217,728 bytes of metadata,"
                                 " found 150,994,935 bytes of metadata")
    again = f"slot 0 0 0 {LARGEST << 12:#x}\nslot 0 0 0 0\n" * 1000
    with trace_of(tmp_path, again) as trace, pytest.raises(TraceError) as caught:
        replay(trace, machine_for(trace))
    assert str(caught.value) == (f"{tmp_path}/x:257: expected memslots that need at most 2,147,483,648 bytes of metadata"
                                 " in all, found 2,164,260,735 bytes of metadata in all")


def test_guests_that_are_too_large_to_compare(tmp_path):
    with trace_of(tmp_path, "set 0x7fffffffd000 0x1000 1 0\n") as trace:
        summary = replay(trace, machine_for(trace))
    assert summary.sides[0].stopped == f"a guest of {2**35 - 2} pages, compared are up to {2**34}"
    with trace_of(tmp_path, "slot 0 0 0x7fffffffd000 0x1000\n") as trace:
        summary = replay(trace, machine_for(trace))
    assert (summary.equal, summary.sides[1].stopped) == (None, f"a guest of {2**35 - 2} pages, compared are up to {2**34}")


def test_splitting_stops_where_its_metadata_grows_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sides, "BUILT", 1 << 22)
    monkeypatch.setattr(sides, "BUILT_EACH", 0)
    text = "set 0x10000000000 0x1000 0 0\n" + "".join(
        f"set 0x8000000000 0x1000 {index % 2} 0\n" for index in range(1, 100)) + "set 0xfffffff000 0x1000 1 0\n"
    with trace_of(tmp_path, text) as trace:
        summary = replay(trace, machine_for(trace))
    stopped = summary.sides[0].stopped
    assert stopped.endswith("bytes of metadata built after 2 conversions")
    assert summary.equal is None


def test_a_long_replay_is_not_timed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(replaying, "LONG", -1.0)
    with trace_of(tmp_path, "set 0x1000 0x1000 1 0\n") as trace:
        summary = replay(trace, machine_for(trace))
        replaying.time_again(summary, trace, lambda: machine_for(trace), 3)
    assert summary.rounds == 1


def test_a_boundless_line_of_standard_input(monkeypatch, tmp_path):
    """Nothing is kept of what follows: the reader stops."""
    file = io.BufferedReader(io.BytesIO(b"x" * (4 * opening.PIECE)))
    with pytest.raises(opening.Damaged, match="expected lines of at most 1048576 bytes, found a longer one"):
        list(opening.pieces(file))
    assert file.tell() <= 3 * opening.PIECE


@pytest.mark.parametrize(("start", "told"), [
    (b"BZh91AY&SY", "found bzip2 data: bunzip2 first"),
    (b"PK\x03\x04\x14\0", "found a zip archive: unzip it first"),
    (b"\x17\x08Dtracing7\0", "found trace-cmd's binary recording: trace-cmd report first"),
    (b"PERFILE2h\0", "found perf's binary recording: perf script first"),
    (b"\xff" * 8 + b"\xb4\x29\xa4\x0a\xcb\x77\xb1\xf2", "found QEMU's binary recording: scripts/simpletrace.py first"),
    (b"vm.strace.100".ljust(257, b"\0") + b"ustar", "found a tar archive: unpack it first"),
])
def test_what_is_no_text_is_told_with_what_helps(tmp_path, start, told):
    """Text in a tar archive would be read, as of one process."""
    text = start + b'\nioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=4096,' \
                   b' userspace_addr=4096}) = 0\n'
    for compress in (bytes, gzip.compress):
        (tmp_path / "x").write_bytes(compress(text))
        with pytest.raises(TraceError, match=rf"x:1: expected .*, {told}\Z"):
            read(tmp_path / "x")
