"""Recordings made after public reports: what their source means is what is drawn, and what was not read is said."""

from pathlib import Path

import pytest

from kvmattr.cli import main
from kvmattr.trace import TraceError, machine_for, read, replay

CASES = Path(__file__).parent / "data" / "cases"


def show(capsys, name, *options):
    """The exit code, the map, and what is said beside it."""
    code = main(["show", str(CASES / name), *options])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), [line.removeprefix("kvmattr show: ") for line in printed.err.splitlines()]


def test_a_name_in_a_command_line_is_no_event(capsys):
    code, drawn, said = show(capsys, "event-name-in-command-line.log", "--strict")
    assert (code, drawn) == (0, ["0000000000000000-0000000080000000 rwxs 524288 slot 0"])
    assert said == ["1 line with one of our names and no call"]


@pytest.mark.parametrize("name", ["byte-order-mark.log", "kata.log"])
def test_a_name_behind_another_character(capsys, name):
    assert show(capsys, name, "--strict") == (0, [
        "0000000000000000-0000000080000000 rwxs 524288 slot 0",
        "0000000100000000-0000000100001000 rwxs 1 slot 1"], [])


def test_conversions_that_qemu_did_not_ask_for(capsys):
    code, drawn, said = show(capsys, "qemu-convert-not-done.log")
    assert (code, drawn) == (0, [
        "0000000000000000-0000000080000000 rwxp 524288 slot 0",
        "00000000fed45000-00000000fed46000 rwxs 1 slot 1"])
    assert said[1:] == [
        "line 3: conversion of [0xfed45000, 0xfed46000) to private not done: no guest_memfd is behind it, in slot 1",
        "line 5: conversion of [0xe0000000, 0xf0000000) to shared not done: no memslot is there",
        "line 6: conversion of [0xc0000000, 0xc0001000) to private not done: no memslot is there"]


def test_slots_with_a_guest_memfd_begin_private(capsys):
    code, drawn, said = show(capsys, "qemu-default-private.log")
    assert (code, drawn) == (0, [
        "0000000000000000-000000007d001000 rwxp 512001 slot 0",
        "000000007d001000-000000007d200000 rwxs 511 slot 0",
        "000000007d200000-0000000080000000 rwxp 11776 slot 0",
        "00000000ffc00000-0000000100000000 r-xs 1024 slot 1"])
    assert said == ["1 memslot set PRIVATE, as QEMU since 9.1 does to each new one with a guest_memfd without a line"
                    " (--no-default-private: not so)"]
    with read(CASES / "qemu-default-private.log") as trace:
        summary = replay(trace, machine_for(trace))
    assert (summary.operations, summary.sides[1].ioctls, summary.equal) == (4, 3, True)
    code, drawn, said = show(capsys, "qemu-default-private.log", "--no-default-private")
    assert (code, said) == (0, [])
    assert [line.split()[1] for line in drawn] == ["rwxs", "rwxp", "rwxs", "r-xs"]


def test_a_refused_call_changes_nothing(capsys):
    code, drawn, said = show(capsys, "refused-call-replayed.strace")
    assert (code, drawn) == (0, ["0000000000001000-0000000000011000 rwxs 16 slot 0"])
    assert said == ["line 2: recorded EEXIST, this machine answers 0",
                    "line 3: recorded ENOMEM, this machine answers 0",
                    "2 calls refused, which changed nothing"]
    assert show(capsys, "refused-call-replayed.strace", "--strict")[:2] == (1, drawn)
    assert main(["replay", "--strict", str(CASES / "refused-call-replayed.strace")]) == 1
    assert "line 2: recorded EEXIST, this machine answers 0" in capsys.readouterr().out
    code, drawn, said = show(capsys, "refused-call-replayed.strace", "--model-answers")
    assert (code, len(drawn), said[-1]) == (0, 3, "line 3: recorded ENOMEM, this machine answers 0")


def test_what_was_tried_for_a_refused_call_is_not_counted():
    with read(CASES / "refused-call-replayed.strace") as trace:
        summary = replay(trace, machine_for(trace))
    memslots, attributes = summary.sides
    assert summary.answers == {"0": 1, "ENOMEM": 1, "EEXIST": 1}
    assert (memslots.slots_touched, memslots.slot_changes) == (1, 1)
    assert summary.equal is True
    assert attributes.runs == memslots.runs


def test_threads_that_strace_names(capsys):
    code, drawn, said = show(capsys, "strace-decode-pids.strace")
    assert (code, drawn) == (0, ["0000000000000000-0000000000200000 rwxs 512 slot 0"])
    assert said == ["line 4: recorded EEXIST, this machine answers 0", "1 call refused, which changed nothing"]
    with read(CASES / "strace-decode-pids.strace") as trace:
        assert [(record.slot, answer) for block in trace.blocks()
                for record, answer in zip(trace, block["answer"].tolist(), strict=True)] == [(0, 0), (1, 17)]


def test_two_vms_of_one_descriptor(capsys):
    name = "closed-and-made-again.strace"
    code, drawn, said = show(capsys, name)
    assert (code, drawn) == (2, [])
    assert said == [f"{CASES / name}: expected calls of one VM, found 2 VMs: choose by --vm or --pid:"
                    " VM 1 made on line 2, descriptor 4, 1 call; VM 2 made on line 7, descriptor 4, 1 call"]
    assert show(capsys, name, "--vm", "1") == (0, ["0000000000000000-0000000000001000 rwxs 1 slot 0"], [])
    assert show(capsys, name, "--vm", "2") == (0, ["0000000000000000-00000000000a0000 rwxs 160 slot 0"], [])
    with pytest.raises(TraceError, match="found none for --vm 3: choose by"):
        read(CASES / name, vm=3)


def test_another_host_has_a_larger_user_space(capsys):
    drawn = ["0000000080000000-0000000380000000 rwxs 3145728 slot 0"]
    code, found, said = show(capsys, "arm64-userspace-address.strace")
    assert (code, found) == (0, drawn)
    assert said == ["host arm64, by the accepted userspace_addr of line 1, which ends at 0xffffb0000000 (--host says"
                    " otherwise)"]
    assert show(capsys, "arm64-userspace-address.strace", "--host", "arm64") == (0, drawn, [])
    code, found, said = show(capsys, "arm64-userspace-address.strace", "--host", "x86-64", "--strict")
    assert said == ["line 1: recorded 0, this machine answers EINVAL"]
    assert (code, found) == (1, drawn)


def test_a_log_in_the_native_format_has_the_same_end(capsys, tmp_path):
    """Its host, what QEMU did without a line, and no call that was refused."""
    for name in ("arm64-userspace-address.strace", "qemu-default-private.log", "refused-call-replayed.strace"):
        native = tmp_path / "n.trace"
        assert main(["replay", str(CASES / name), "--write", str(native), "--no-comparison"]) == 0
        capsys.readouterr()
        _code, drawn, _said = show(capsys, name)
        assert main(["show", str(native)]) == 0
        assert capsys.readouterr().out.splitlines() == drawn
    assert native.read_text().splitlines() == [
        "vm linux private=1 phys_bits=52", "slot 0 0x0 0x1000 0x10000 0x7f0000000000",
        "# refused, EEXIST: slot 1 0x0 0xf977e000 0x6882000 0x7f1000000000",
        "# refused, ENOMEM: slot 2 0x0 0x100000000 0x1000 0x7f2000000000"]


def test_a_summary_counts_what_was_not_read(capsys, tmp_path):
    path = tmp_path / "vm.log"
    text = (CASES / "qemu-default-private.log").read_text()
    path.write_text(text + "CPU:2 [LOST 7 EVENTS]\n")
    assert main(["replay", str(path), "--no-comparison"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (f"{path}: 4 operations (2 slot calls, 2 conversions), 0 unrelated lines skipped,"
                        " 1 line not read, profile linux")
    assert lines[2] == "line 5: not read: 7 events or lines were lost here"
    assert main(["replay", "--strict", str(path)]) == 2
    assert capsys.readouterr().err == f"kvmattr replay: {path}:5: 7 events or lines were lost here\n"


def test_a_real_recording_of_threads_with_all_that_strace_decodes(capsys):
    """QEMU 7.2 on real KVM under strace 6.1 -f -tt -T -yy -Y: the lines of our calls and of what makes its threads."""
    name = "q35-512m.strace"
    code, drawn, said = show(capsys, name, "--strict")
    assert (code, said) == (0, [])
    assert [line.split(maxsplit=1)[1] for line in drawn] == [
        "rwxs 160 slot 0", "rwxs 10 slot 2", "rwxs 3 slot 4", "rwxs 27 slot 5", "rwxs 8 slot 6", "rwxs 16 slot 7",
        "rwxs 130816 slot 8", "rwxs 4096 slot 3", "r-xs 64 slot 1"]
    with read(CASES / name, strict=True) as trace:
        summary = replay(trace, machine_for(trace))
    assert (summary.answers, summary.different, summary.equal) == ({"0": 37}, 0, True)
    assert show(capsys, name, "--pid", "22372")[1] == drawn
    page = show(capsys, name, "--history", "c0000")[1]
    assert page[0].endswith("no slot -> slot 0 rwxs")
    assert page[-1].split()[2] > "17:30:13.7"
    assert any(line.split("without a slot for ")[-1].endswith(("us", "ms")) for line in page)
