"""guest_memfd files in traces: creation, KVM_SET_MEMORY_ATTRIBUTES2, holes; recorded, read from strace, replayed."""

import io
from contextlib import suppress

import numpy as np
import pytest

from kvmattr import VM, cli, uapi
from kvmattr.trace import (
    CreateFile,
    PunchHole,
    SetFileAttributes,
    SetSlot,
    Trace,
    line_of,
    machine_for,
    read,
    record,
    replay,
    summary_text,
    write,
)
from kvmattr.trace.answers import Answering
from kvmattr.trace.operations import records_of, rows_of

MIB = 1 << 20
PRIVATE = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
SHARED = uapi.GUEST_MEMFD_FLAG_INIT_SHARED
RECORDS = [CreateFile(20, MIB, SHARED), SetSlot(0, 4, 0, MIB, 0x7F0000000000, 20, 0),
           SetFileAttributes(20, 0x1000, 0x2000, PRIVATE), PunchHole(20, 0x2000, 0x1000),
           SetFileAttributes(20, 0x1000, 0x1000, 0)]


def files_of(vm):
    return [(file.size, file.flags, file.attributes.runs().tolist()) for _, file in vm.guest_memfds()]


def replayed(path, **options):
    """The machine that a trace leads to, its answers and its summary."""
    with read(path, **options) as trace:
        vm, out = machine_for(trace), io.StringIO()
        summary = replay(trace, vm, answers=out)
    return vm, [line.split()[1] for line in out.getvalue().splitlines()], summary


def test_rows_and_lines_hold_what_records_do(tmp_path):
    assert list(records_of(rows_of(RECORDS))) == RECORDS
    assert [line_of(each) for each in RECORDS] == [
        "gmem 20 0x100000 0x2", "slot 0 0x4 0x0 0x100000 0x7f0000000000 20 0x0", "gset 20 0x1000 0x2000 0x8 0x0",
        "gpunch 20 0x2000 0x1000", "gset 20 0x1000 0x1000 0x0 0x0"]
    assert write(tmp_path / "a.trace", RECORDS) == 5
    with read(tmp_path / "a.trace") as trace:
        assert list(trace) == RECORDS
        assert (trace.slot_calls, trace.file_calls, trace.file_conversions, trace.attribute_calls) == (1, 4, 2, 0)


@pytest.mark.parametrize(("line", "text"), [
    ("gset 20 0 4096 8", "expected 'gset GUEST_MEMFD OFFSET SIZE ATTRS FLAGS', found 4 numbers"),
    ("gmem -1 4096 0", "expected a decimal or 0x number for GUEST_MEMFD, found '-1'"),
    ("gpunch 20 0", "expected 'gpunch GUEST_MEMFD OFFSET SIZE', found 2 numbers")])
def test_damaged_lines_are_errors(line, text, tmp_path):
    (tmp_path / "a.trace").write_text(f"gmem 20 4096 0\n{line}\n")
    with pytest.raises(ValueError, match=r"a\.trace:2: ") as caught:
        read(tmp_path / "a.trace")
    assert str(caught.value).endswith(text)


def test_a_replay_leads_to_the_files_of_the_trace(tmp_path, capsys):
    write(tmp_path / "a.trace", RECORDS)
    vm, answers, summary = replayed(tmp_path / "a.trace")
    assert (vm.profile.name, set(answers)) == ("gmem", {"0"})
    assert files_of(vm) == [(MIB, SHARED, [(0, 2, 0), (2, 3, PRIVATE), (3, 256, 0)])]
    assert (summary.attribute_calls, summary.sides, summary.instructions) == (2, [], None)
    assert "not compared: its conversions are of guest_memfd files\n" in summary_text(summary)
    assert cli.main(["show", str(tmp_path / "a.trace")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0000000000000000-0000000000002000 rwxs 2 slot 0", "0000000000002000-0000000000003000 rwxp 1 slot 0",
        "0000000000003000-0000000000100000 rwxs 253 slot 0"]
    assert cli.main(["show", "--history", "0x1000", str(tmp_path / "a.trace")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "line 2  no slot -> slot 0 rwxs", "line 3  slot 0 rwxs -> slot 0 rwxp", "line 5  slot 0 rwxp -> slot 0 rwxs"]


def test_calls_on_files_are_recorded_and_replay_to_the_same(tmp_path):
    vm = VM("gmem")
    old = vm.create_guest_memfd(2 * MIB)
    vm.set_memory_attributes2(old, 0x3000, 0x1000, 0)
    vm.set_user_memory_region2(1, 4 * MIB, MIB, 0x7F0000000000, uapi.KVM_MEM_GUEST_MEMFD, old, MIB)
    with record(vm, tmp_path / "a.trace"):
        new = vm.create_guest_memfd(MIB, SHARED)
        made = uapi.kvm_create_guest_memfd(size=3 * MIB)
        other = int(vm.ioctl(uapi.KVM_CREATE_GUEST_MEMFD, made))
        vm.set_user_memory_region2(0, 0, MIB, 0x7F1000000000, uapi.KVM_MEM_GUEST_MEMFD, new)
        vm.set_memory_attributes2(new, 0x5000, 0x3000, PRIVATE)
        vm.gmem_ioctl(old, uapi.KVM_SET_MEMORY_ATTRIBUTES2, uapi.kvm_memory_attributes2(offset=0, size=0x1000))
        batch = np.zeros(3, uapi.MEMORY_ATTRIBUTES2)
        batch["offset"], batch["size"] = [0, 0x10000, 1], [0x1000, 0x1000, 0x1000]
        with pytest.raises(OSError, match="1"):
            vm.set_memory_attributes2_many(other, batch)
        vm.punch_hole(new, 0x5000, 0x1000)
        vm.fallocate_guest_memfd(new, uapi.FALLOC_FL_PUNCH_HOLE | uapi.FALLOC_FL_KEEP_SIZE, 0, 0x1000)
        vm.fallocate_guest_memfd(new, uapi.FALLOC_FL_KEEP_SIZE, 0, 0x1000)      # allocates: no line
        for bad in ((new, 1, 0x1000, 0), (new, 0, 0x1000, 1)):
            with suppress(OSError):
                vm.set_memory_attributes2(*bad)
    vm.set_memory_attributes2(new, 0, MIB, PRIVATE)     # no longer recorded
    vm.set_memory_attributes2(new, 0, MIB, 0)
    vm.set_memory_attributes2(new, 0x5000, 0x3000, PRIVATE)
    again, answers, _ = replayed(tmp_path / "a.trace")
    assert files_of(again) == files_of(vm)
    assert answers == ["0"] * 10 + ["EINVAL"] + ["0"] * 2 + ["EINVAL"] * 2
    assert [(slot.id, slot.guest_memfd_offset) for slot in again.memslots] == [(0, 0), (1, MIB)]


STRACE = [
    "7 1.0 ioctl(3</dev/kvm>, KVM_CREATE_VM, 0x1) = 9<anon_inode:kvm-vm>",
    "7 1.1 ioctl(9<anon_inode:kvm-vm>, KVM_CREATE_GUEST_MEMFD, {size=1048576, flags=GUEST_MEMFD_FLAG_INIT_SHARED})"
    " = 20",
    "7 1.2 ioctl(9, KVM_SET_USER_MEMORY_REGION2, {slot=0, flags=KVM_MEM_GUEST_MEMFD, guest_phys_addr=0,"
    " memory_size=1048576, userspace_addr=0x7f0000000000, guest_memfd_offset=0, guest_memfd=20}) = 0",
    "7 1.3 ioctl(20<anon_inode:[guest_memfd]>, KVM_SET_MEMORY_ATTRIBUTES2, {offset=0x1000, size=0x2000,"
    " attributes=KVM_MEMORY_ATTRIBUTE_PRIVATE, flags=0, error_offset=0}) = 0",
    "7 1.4 fallocate(20<anon_inode:[guest_memfd]>, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 8192, 4096) = 0",
    "7 1.5 ioctl(20, KVM_SET_MEMORY_ATTRIBUTES2, {offset=0x5000, size=0x1000, attributes=8, flags=0}) = -1 EAGAIN"
    " (Resource temporarily unavailable)",
    "7 1.6 fallocate(5</tmp/disk>, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 0, 4096) = 0",
    "7 1.7 ioctl(20, 0xc080aed2, {offset=0x1000, size=0x1000, attributes=0, flags=0}) = 0",
]


def test_an_strace_log_of_files_is_read_and_replayed(tmp_path):
    (tmp_path / "x.strace").write_text("\n".join(STRACE) + "\n")
    with read(tmp_path / "x.strace") as trace:
        found = list(trace)
        assert (trace.unread, trace.unrelated) == ([], 1)
    wanted = [*RECORDS[:4], SetFileAttributes(20, 0x5000, 0x1000, PRIVATE), RECORDS[4]]
    assert found == wanted
    vm, answers, summary = replayed(tmp_path / "x.strace")
    assert answers == ["0", "0", "0", "0", "EAGAIN", "0"]
    assert files_of(vm) == [(MIB, SHARED, [(0, 2, 0), (2, 3, PRIVATE), (3, 256, 0)])]
    assert [(each.line, each.recorded, each.replayed) for each in summary.differences] == [(6, "EAGAIN", "0")]


def test_files_of_two_vms_are_each_ones(tmp_path):
    lines = [*STRACE[:5], "7 2.0 ioctl(3</dev/kvm>, KVM_CREATE_VM, 0x1) = 10",
             "7 2.1 ioctl(10, KVM_CREATE_GUEST_MEMFD, {size=4096, flags=0}) = 21",
             "7 2.2 ioctl(21, KVM_SET_MEMORY_ATTRIBUTES2, {offset=0, size=4096, attributes=0, flags=0}) = 0"]
    (tmp_path / "x.strace").write_text("\n".join(lines) + "\n")
    with read(tmp_path / "x.strace", vm=2) as trace:
        assert list(trace) == [CreateFile(21, 4096, 0), SetFileAttributes(21, 0, 4096, 0)]


def test_a_log_that_begins_behind_the_files_creation_goes_on_with_one_of_its_own(tmp_path):
    (tmp_path / "x.strace").write_text(STRACE[3] + "\n")
    vm, answers, _ = replayed(tmp_path / "x.strace")
    assert answers == ["0"]
    [(_, file)] = vm.guest_memfds()
    assert file.attributes.get(1) == PRIVATE


@pytest.mark.parametrize(("record", "bad"), [
    (RECORDS[0], CreateFile(21, 5, 0)), (RECORDS[0], CreateFile(21, MIB, 1 << 40)),
    (RECORDS[2], SetFileAttributes(20, 1, 1, 0)), (RECORDS[3], PunchHole(20, 1, 1)),
    (RECORDS[2], SetFileAttributes(20, 1 << 63, (1 << 64) - 1, 0))])
def test_refused_calls_change_nothing_and_the_models_answer_is_kept_apart(record, bad):
    vm = VM("gmem")
    steered = Answering(vm)
    rows = rows_of([RECORDS[0], RECORDS[2]])
    steered.apply(rows)
    before = files_of(vm)
    recorded = rows_of([record, bad])
    recorded["answer"] = 12     # ENOMEM
    found = steered.apply(recorded)
    assert found.done.tolist() == [12, 12]
    assert found.modelled.tolist() == [0, 22]
    assert files_of(vm) == before
    with Trace.from_blocks("made", [rows_of([bad])]) as trace:
        assert replay(trace, VM("gmem"), compare=False).answers == {"EINVAL": 1}
