"""When: the map at a line or a time, what became of a page, the timeline."""

import importlib.util
from pathlib import Path

import pytest

from kvmattr import timeline
from kvmattr.cli import main
from kvmattr.trace import machine_for, read
from kvmattr.trace.answers import Answering
from kvmattr.trace.times import Clock

RECORDINGS = Path(__file__).parent / "data" / "traces"
SIZE = 0x80000000
BOUND = "kvm_set_user_memory AddrSpace#0 Slot#0 flags={} gpa=0x0 size={} ua=0x7f0000000000 guest_memfd=16" \
        " guest_memfd_offset=0x0 ret=0"
MADE, GONE = BOUND.format("0x4", hex(SIZE)), BOUND.format("0x0", "0x0")
LOG = (f"7@1.0:{MADE}\n"
       "7@2.0:kvm_convert_memory start 0x7d000000 size 0x200000 private_to_shared\n"
       f"7@3.0:{GONE}\n"
       f"7@3.0031:{MADE}\n"
       "a line of another kind\n"
       "7@3.5:kvm_convert_memory start 0x7d000000 size 0x1000 private_to_shared\n")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "vm.log"
    path.write_text(LOG)
    return path


def show(capsys, path, *options):
    code = main(["show", str(path), *map(str, options)])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err.splitlines()


def rights(drawn):
    return [(line.split()[1], int(line.split()[2]), line.split()[3:]) for line in drawn]


@pytest.mark.parametrize(("at", "pages"), [
    ("1", [("rwxp", 524288, ["slot", "0"])]),
    ("1.5", [("rwxp", 524288, ["slot", "0"])]),
    ("2", [("rwxp", 512000, ["slot", "0"]), ("rwxs", 512, ["slot", "0"]), ("rwxp", 11776, ["slot", "0"])]),
    ("3", [("---p", 512000, ["no", "slot"]), ("---p", 11776, ["no", "slot"])]),
    ("3.003", [("---p", 512000, ["no", "slot"]), ("---p", 11776, ["no", "slot"])]),
    ("3.0031", [("rwxp", 524288, ["slot", "0"])]),
    ("5", [("rwxp", 524288, ["slot", "0"])]),
    ("9.0", [("rwxp", 512000, ["slot", "0"]), ("rwxs", 1, ["slot", "0"]), ("rwxp", 12287, ["slot", "0"])]),
    ("0.5", []),
])
def test_the_map_at_a_line_or_a_time(capsys, log, at, pages):
    code, drawn, _said = show(capsys, log, "--at", at)
    assert (code, rights(drawn)) == (0, pages)


@pytest.mark.parametrize(("at", "why"), [
    ("0", "at 0: must be a line of the 6 of {}, or a time"), ("7", "at 7: must be a line of the 6 of {}, or a time"),
    ("9" * 30, "at " + "9" * 30 + ": must be a line of the 6 of {}, or a time"),
    ("soon", "at 'soon': expected a line, or a time such as 10:00:00.5, 1234.5 or 2025-01-01T10:00:00"),
    ("-1", "at '-1': expected a line, or a time such as 10:00:00.5, 1234.5 or 2025-01-01T10:00:00"),
    ("10:00:00", "at 10:00:00: the lines of {} have seconds or dates"),
])
def test_moments_that_there_are_not(capsys, log, at, why):
    assert show(capsys, log, f"--at={at}") == (2, [], [f"kvmattr show: {why.format(log)}"])


def test_a_log_without_times_has_lines(capsys):
    path = RECORDINGS / "q35-64g.qemu.log"
    assert show(capsys, path, "--at", "1.5")[2] == [
        f"kvmattr show: at 1.5: no line of {path} has a time: give a line"]
    assert len(show(capsys, path, "--at", "1")[1]) == 1


def test_the_history_of_a_page(capsys, log):
    code, lines, _said = show(capsys, log, "--history", "0x7d000010")
    assert (code, lines) == (0, [
        "line 1  1.000000  no slot -> slot 0 rwxs",
        "line 1  1.000000  slot 0 rwxs -> slot 0 rwxp (without a line of its own)",
        "line 2  2.000000  slot 0 rwxp -> slot 0 rwxs",
        "line 3  3.000000  slot 0 rwxs -> no slot",
        "line 4  3.003100  no slot -> slot 0 rwxs, without a slot for 3.1 ms",
        "line 4  3.003100  slot 0 rwxs -> slot 0 rwxp (without a line of its own)",
        "line 6  3.500000  slot 0 rwxp -> slot 0 rwxs"])
    assert show(capsys, log, "--history", "7d000000", "--at", "2")[1] == lines[:3]
    assert show(capsys, log, "--history", "80000000")[1] == ["no line changes this page"]


def test_the_history_of_a_window_of_the_firmware(capsys):
    lines = show(capsys, RECORDINGS / "q35-64g.qemu.log", "--history", "c0000")[1]
    assert lines[:4] == [
        "line 1  no slot -> slot 0 rwxs", "line 6  slot 0 rwxs -> no slot",
        "line 8  no slot -> slot 3 rwxs, without a slot since line 6", "line 9  slot 3 rwxs -> no slot"]
    assert "slot 3 r-xs" in lines[4]


def test_the_history_of_a_native_trace(capsys, tmp_path):
    path = tmp_path / "a.trace"
    path.write_text("set 0 0xfffffffffffff000 1 0\nset 0x1000 0x1000 4 0\nget 0 4096\nset 0x2000 0x1000 4 0\n")
    assert show(capsys, path, "--history", "1fff")[1] == [
        "line 1  no slot -> no slot, private", "line 2  no slot, private -> no slot"]


@pytest.mark.parametrize("page", ["x", "-1", "10000000000000000", "f" * 100])
def test_addresses_that_there_are_not(capsys, log, page):
    code, drawn, said = show(capsys, log, f"--history={page}")
    assert (code, drawn) == (2, [])
    assert said[-1] == (f"kvmattr show: history {page[:40]!r}: expected a guest-physical address, hexadecimal, below"
                        " 0x10000000000000000")


def test_a_saved_map_has_no_moments(capsys, tmp_path):
    from kvmattr import AttributeMap

    AttributeMap(100).save(tmp_path / "map")
    for option in ("--at=1", "--history=0", "--timeline=x.png"):
        name = option.partition("=")[0]
        assert show(capsys, tmp_path / "map", option)[2] == [f"kvmattr show: {name}: a saved map has no lines"]


def test_a_time_of_day_goes_on_behind_midnight():
    clock = Clock()
    assert clock.read("23:59:59.5 ") == (86400 - 0.5) * 10**9
    assert clock.read("00:00:01 ") == 86401 * 10**9
    assert clock.read("00:00:00.9 ") == 86400.9 * 10**9
    assert clock.read("7@1.5:") == clock.read("no time") == -1
    assert clock.kind == "day"


def drawn(path, start, stop):
    with read(path) as trace:
        vm = machine_for(trace)
        return timeline.timeline(trace, Answering(vm), start, stop)


def test_a_timeline_shows_what_was_gone_for_a_moment(log):
    found = drawn(log, 0, SIZE >> 12)
    assert found.unit == "s"
    assert found.moments[-1] == pytest.approx(2.5)
    gone = found.shares["no memslot"].max(axis=0)
    # 3.1 ms of 2.5 s are within one of 200 moments.
    assert gone.tolist().count(1.0) == 1
    assert gone[159:161].max() == 1.0
    shared = (1 - found.shares["private"]).sum(axis=0) * SIZE / 256
    assert shared[100] == pytest.approx(0x200000)
    assert shared[-1] == pytest.approx(0x1000)


def test_a_timeline_by_lines():
    found = drawn(RECORDINGS / "q35-64g.qemu.log", 0, 0x200)
    assert (found.unit, found.moments[-1]) == ("line", 40.0)
    assert {"no memslot", "no write"} <= found.shares.keys()
    assert found.shares["no memslot"][:, -1].tolist() == [0.0] * 80 + [1.0] * 16 + [0.0] * 160


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_picture_of_a_timeline(capsys, log, tmp_path):
    for name in ("a.png", "a.svg"):
        assert show(capsys, log, "--timeline", tmp_path / name)[0] == 0
        assert (tmp_path / name).stat().st_size > 5000
    assert show(capsys, log, "--timeline", tmp_path / "a.txt")[2][-1] == (
        f"kvmattr show: {tmp_path}/a.txt: a picture's name ends in .png, .svg or .pdf")
    assert show(capsys, log, "--timeline", tmp_path / "b.png", "--at", "0.5")[2][-1] == (
        f"kvmattr show: {log}: no operation before the moment that was asked for")
