"""Replay: real KVM's answers, the recordings by both sides, recording and playing back, the command."""

import contextlib
import io
import json
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from kvmattr import VM, Operation, uapi
from kvmattr.cli import main
from kvmattr.hosts import Host
from kvmattr.measure.ending import signals_interrupt
from kvmattr.memslots import SplittingBaseline
from kvmattr.profiles import Profile
from kvmattr.trace import (
    GENERATORS,
    CreateFile,
    GetAttributes,
    Machine,
    SetAttributes,
    SetSlot,
    Trace,
    machine_for,
    read,
    record,
    replay,
    replay_files,
    replaying,
    write,
)
from kvmattr.trace.operations import rows_of
from kvmattr.trace.sides import HOLE, READ_ONLY, access_map

DATA = Path(__file__).parent / "data"
RECORDINGS = sorted((DATA / "traces").iterdir())
KVM_TRACES = sorted((DATA / "kvm-6.12").glob("*.trace"))
MIB = 1 << 20


def made(*records, machine=None):
    return Trace.from_blocks("made", [rows_of(records)], machine)


def answers_of(trace, vm):
    out = io.StringIO()
    replay(trace, vm, answers=out, compare=False)
    return out.getvalue()


# Answers ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", KVM_TRACES, ids=lambda path: path.stem)
def test_answers_as_the_kernel_gave_them(path, capsys):
    assert main(["replay", "--abi", "linux", "--phys-bits", "40", "--answers", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == path.with_suffix(".expected").read_text()
    assert "final access maps: equal" in printed.err


def test_there_are_kernel_answers_to_compare_with():
    assert [path.stem for path in KVM_TRACES] == [
        "attr-1", "attr-2", "slots-1", "slots-2", "sparse-1", "sparse-2"]


def test_answers_name_what_a_run_refuses():
    trace = made(SetAttributes(0x1000, 0x1000, 0x5), SetAttributes(0x2000, 0x1000, HOLE),
                 SetAttributes(0x1000, 0x1000, 1, Operation.AND), SetAttributes(0, 0x1000, 0, 3),
                 GetAttributes(0, 0x4000), GetAttributes(0, 0), GetAttributes(2**64 - 4096, 4096),
                 GetAttributes(1, 4096))
    with trace:
        assert answers_of(trace, VM()) == (
            "0 0\n1 0\n2 0\n3 EINVAL\n4 get 0x0:1:S 0x1000:1:P 0x2000:1:S-rwx 0x3000:1:S\n"
            "5 EINVAL\n6 EINVAL\n7 EINVAL\n")


def test_a_batch_goes_on_after_each_refusal():
    records = [SetAttributes(index << 12, 4096, 1 if index % 3 else 0x100) for index in range(1000)]
    vm = VM()
    with made(*records) as trace:
        summary = replay(trace, vm)
    assert summary.answers == {"0": 666, "EINVAL": 334}
    assert vm.attributes.count(0, 1000, 1) == 666
    assert summary.equal


def test_guest_memfd_slots_are_bound_to_a_file_of_the_machine():
    flags = uapi.KVM_MEM_GUEST_MEMFD
    trace = made(SetSlot(0, flags, 0, MIB, 0x10000, 12, 0), SetSlot(1, flags, MIB, MIB, 0x10000, 12, 0),
                 SetSlot(1, flags, MIB, MIB, 0x10000, 12, MIB), SetSlot(2, 0, 2 * MIB, MIB, 0, -1, 0))
    vm = VM("linux")
    with trace:
        assert answers_of(trace, vm) == "0 0\n1 EINVAL\n2 0\n3 0\n"
    assert [slot.guest_memfd_offset for slot in vm.memslots] == [0, MIB, 0]


# The machine that a trace is for ----------------------------------------------------------------------------

def test_the_machine_of_a_trace(tmp_path):
    def profile(text, **options):
        path = tmp_path / "a"
        path.write_text(text)
        with read(path) as trace:
            vm = machine_for(trace, **options)
        return vm.profile.name, vm.memslots.phys_bits, vm.memslots.private_memory

    log = "kvm_set_user_memory AddrSpace#{} Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f0000000000 ret=0\n"
    assert profile("get 0 4096\n") == ("rfc", 52, True)
    assert profile("get 0 4096\n", abi="vsm", phys_bits=40) == ("vsm", 40, True)
    assert profile("vm linux private=0 phys_bits=46\nget 0 4096\n") == ("linux", 46, False)
    assert profile("vm linux\nget 0 4096\n", abi="linux", phys_bits=39) == ("linux", 39, True)
    assert profile(log.format(0)) == ("linux", 52, True)
    assert profile(log.format(1)) == ("linux", 52, False)
    assert profile(log.format(0), abi="rfc") == ("rfc", 52, True)
    with pytest.raises(ValueError, match="its vm line says linux, abi says rfc: leave abi out"):
        profile("vm linux\nget 0 4096\n", abi="rfc")
    with pytest.raises(ValueError, match="says phys_bits=40, phys_bits says 41: leave phys_bits out"):
        profile("vm linux phys_bits=40\nget 0 4096\n", phys_bits=41)
    with pytest.raises(ValueError, match="the log's PRIVATE is 8, that of rfc is 1: use linux or vsm"):
        profile("kvm_convert_memory start 0x0 size 0x1000 shared_to_private\n", abi="rfc")
    with pytest.raises(ValueError, match="abi 'mine': must be one of rfc, linux, "):
        profile("vm mine\nget 0 4096\n")


# Slot recordings --------------------------------------------------------------------------------------------

#: Read off the recordings themselves: lines, lines that delete a slot, runs of the last memory map.
RECORDED = {"i440fx-2g.qemu.log": (37, 14, 7), "q35-4g.strace.log": (40, 15, 8),
            "q35-64g.qemu.log": (40, 15, 8), "q35-6g-vga.qemu.log": (40, 15, 8)}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_recordings_by_both_sides(path):
    with read(path) as trace:
        summary = replay(trace, machine_for(trace))
    lines, deletions, runs = RECORDED[path.name]
    memslots, attributes = summary.sides
    assert summary.answers == {"0": lines}
    assert (summary.different, summary.silent_deletions, summary.equal) == (0, 0, True)
    assert (memslots.side, memslots.ioctls, memslots.slot_changes) == ("memslots", lines, lines)
    assert memslots.slots_touched == lines - deletions
    assert memslots.pages_without_slot > 2 * MIB // 4096
    # One slot and one WRITE that closes all of it, then one WRITE a line.
    assert (attributes.side, attributes.ioctls) == ("attributes", lines + 2)
    assert (attributes.slots_touched, attributes.slot_changes, attributes.pages_without_slot) == (1, 1, 0)
    assert attributes.metadata_bytes < memslots.metadata_bytes
    assert memslots.runs == attributes.runs == runs


def test_the_access_map_of_a_table():
    vm = VM(private=False)
    vm.set_user_memory_region(0, 0x1000, 0x2000)
    vm.set_user_memory_region(1, 0x3000, 0x1000, 0x10000)
    vm.set_user_memory_region(2, 0x5000, 0x1000, 0x20000, uapi.KVM_MEM_READONLY)
    assert access_map(vm.memslots, 0, 8) == [
        (0, 1, HOLE), (1, 4, 0), (4, 5, HOLE), (5, 6, READ_ONLY), (6, 8, HOLE)]
    assert access_map(vm.memslots, 1, 8) == [(0, 8, HOLE)]


def test_moves_flags_and_two_address_spaces():
    second = 1 << 16
    trace = made(
        SetSlot(0, 0, 0, MIB), SetSlot(second, 0, 0, 2 * MIB), SetSlot(0, 0, 2 * MIB, MIB),  # moved
        SetSlot(0, uapi.KVM_MEM_LOG_DIRTY_PAGES, 2 * MIB, MIB), SetSlot(1, 2, 0, MIB),
        SetSlot(1, 0, 1 << 50, 0),
        SetSlot(1, 2, MIB // 2, MIB), SetSlot(1, 3, MIB // 2, MIB), SetSlot(5, 0, 0, 0),
        SetSlot(0, 1, 2 * MIB + MIB // 2, MIB), machine=Machine("rfc", {"private": 0}))
    with trace:
        summary = replay(trace, machine_for(trace))
    memslots, attributes = summary.sides
    assert summary.answers == {"0": 9, "EINVAL": 1}
    assert summary.equal is True
    # Given back by slot 1 at 0, and half of it again at 512 KiB; a change of flags gives nothing back.
    assert memslots.pages_without_slot == 256 + 128
    assert memslots.slot_changes == 9
    # Two slots and two WRITEs to begin with, nine lines that went well, two of which moved a slot.
    assert attributes.ioctls == 4 + 9 + 2


def test_readonly_that_qemu_changes_by_a_deletion_of_its_own(tmp_path):
    """QEMU deletes the slot without a trace line; without that deletion KVM refuses the call."""
    line = "kvm_set_user_memory Slot#0 flags={} gpa=0x0 size=0x1000 ua=0x7f0000000000 ret=0\n"
    path = tmp_path / "log"
    path.write_text(line.format("0x0") + line.format("0x2"))
    with read(path) as trace:
        summary = replay(trace, machine_for(trace))
    assert (summary.answers, summary.different) == ({"0": 2}, 0)
    assert (summary.silent_deletions, summary.equal, summary.sides[0].ioctls) == (1, True, 3)


def test_answers_that_differ_from_the_recorded_ones(tmp_path):
    """A slot over another one: KVM took it, so the other had gone; the model, which did not see that, says so."""
    line = "kvm_set_user_memory Slot#{0} flags=0x0 gpa=0x0 size=0x1000 ua=0x7f0000000000 ret={1}\n"
    path = tmp_path / "log"
    path.write_text("x\n" + line.format(0, 0) + line.format(1, -17)
                    + "".join(line.format(number, 0) for number in range(2, 14)))
    with read(path) as trace:
        vm = machine_for(trace)
        summary = replay(trace, vm)
        assert [slot.id for slot in vm.memslots] == [13]
        assert (summary.different, len(summary.differences)) == (12, 10)
        first = summary.differences[0]
        assert (first.line, first.recorded, first.replayed) == (4, "0", "EEXIST")
        assert summary.answers == {"0": 13, "EEXIST": 1}
        assert summary.equal
        vm = machine_for(trace)
        summary = replay(trace, vm, model_answers=True)
        assert [slot.id for slot in vm.memslots] == [0]
        assert (summary.different, summary.answers) == (12, {"0": 1, "EEXIST": 13})


def test_an_unequal_end_is_told(monkeypatch, capsys):
    """The comparison can fail: with a table that loses a slot it does."""
    monkeypatch.setattr(replaying, "access_map", lambda *arguments: access_map(*arguments)[1:])
    path = DATA / "traces" / "i440fx-2g.qemu.log"
    assert main(["replay", str(path)]) == 1
    assert "final access maps: NOT EQUAL, the figures above are void" in capsys.readouterr().out


# Conversions ------------------------------------------------------------------------------------------------

def test_conversions_by_splitting():
    trace = made(SetAttributes(0x2000, 0x1000, 1), SetAttributes(0x4000, 0x1000, 1, Operation.OR),
                 SetAttributes(0, 0x100000, 1, Operation.AND), SetAttributes(0x7000, 0x1000, 1),
                 SetAttributes(0, 2**64 - 4096, 0, Operation.OR))
    with trace:
        summary = replay(trace, VM())
    memslots, attributes = summary.sides
    assert summary.equal is True
    assert memslots.runs == attributes.runs == 7
    assert (attributes.ioctls, attributes.slot_changes) == (5, 0)
    baseline = SplittingBaseline(256)
    start = baseline.stats()["slots_created"]
    for gfn in (2, 4, 7):
        baseline.write(gfn, gfn + 1, 1)
    assert memslots.slots_touched == baseline.stats()["slots_created"] - start


def test_where_memslots_run_out():
    with GENERATORS["every-other-page"](256 * MIB, 20_000, 0) as trace:
        summary = replay(trace, machine_for(trace))
    memslots, attributes = summary.sides
    assert memslots.stopped is not None
    assert memslots.stopped.startswith("EINVAL after 163")
    assert summary.equal is None
    assert attributes.runs == 40_000


def test_a_guest_that_memslots_cannot_hold():
    with made(SetAttributes(1 << 60, 4096, 1)) as trace:
        summary = replay(trace, VM())
    assert summary.sides[0].stopped == f"a guest of {2**48 + 1} pages, compared are up to {2**34}"
    assert summary.equal is None


# Generators -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_generators(kind):
    make = GENERATORS[kind]
    with make(64 * MIB, 500, 7) as first, make(64 * MIB, 500, 7) as again, make(64 * MIB, 500, 8) as other:
        operations = list(first)
        assert len(operations) == 500
        assert operations == list(again)
        assert operations != list(other)
        summary = replay(first, machine_for(first))
        assert summary.answers == {"0": 500}
        assert summary.equal is True
    with pytest.raises(ValueError, match="operations 0: must be at least 1"):
        make(64 * MIB, 0, 0)
    with pytest.raises(ValueError, match="memory 1000: must be a positive multiple of 4096 bytes"):
        make(1000, 1, 0)


def test_generators_do_not_change_between_releases():
    with GENERATORS["random-conversions"](1 << 30, 3, 42) as trace:
        assert [(record.address >> 12, record.attributes) for record in trace] == [
            (37700, 0), (65504, 1), (68370, 0)]
    with GENERATORS["boot"](64 * MIB, 6, 42) as trace:
        assert [tuple(record[:4]) for record in trace][:4] == [
            (0, 0, 0, 0xA0000), (1, 2, 0xC0000, 0x40000), (2, 0, 0x100000, 63 * MIB), (1, 0, 0xC0000, 0)]


# Recording --------------------------------------------------------------------------------------------------

def test_a_recording_replays_to_the_same_machine(tmp_path):
    vm = VM("rfc", private=False, no_exec=True, phys_bits=46)
    vm.set_user_memory_region(3, 0, 16 * MIB, 0x7F0000000000)
    vm.set_memory_attributes(0x1000, 0x3000, uapi.KVM_MEM_ATTR_NO_WRITE)
    path = tmp_path / "a.trace.gz"
    with record(vm, path):
        vm.set_memory_attributes(0x5000, 0x1000, uapi.KVM_MEM_ATTR_NO_EXEC, Operation.OR)
        with pytest.raises(OSError, match="attributes"):
            vm.set_memory_attributes(0, 4096, 0x80)
        vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(0x8000, 0x2000, 4, 0, 0))
        vm.set_user_memory_region(slot=1 << 16, guest_phys_addr=0, memory_size=MIB, flags=2)
        asked = uapi.kvm_memory_attributes(address=0x8000, size=0x4000)
        vm.ioctl(uapi.KVM_GET_MEMORY_ATTRIBUTES, asked)
        vm.get_memory_attributes(0, 0x10000)
        before = vm.snapshot()
        vm.set_memory_attributes(0, 1 << 40, HOLE)
        vm.restore(before)
        with pytest.raises(TypeError):
            vm.set_memory_attributes("0", 4096, 0)
        with pytest.raises(OSError, match="request"):
            vm.ioctl(0x1234, 0)
        with pytest.raises(ValueError, match="size"):
            vm.set_memory_attributes(0, 1 << 64, 0)
    vm.set_memory_attributes(0x100000, 0x1000, HOLE)
    vm.set_memory_attributes(0x100000, 0x1000, 0)
    with read(path) as trace:
        assert trace.machine == Machine(
            "rfc", {"private": 0, "phys_bits": 46, "nr_memslots": 32764, "no_exec": 1})
        operations = list(trace)
        assert operations[:9] == [
            SetSlot(3, 0, 0, 16 * MIB, 0x7F0000000000), SetAttributes(0x1000, 0x3000, 4),
            SetAttributes(0x5000, 0x1000, 8, 1), SetAttributes(0, 4096, 0x80),
            SetAttributes(0x8000, 0x2000, 4), SetSlot(1 << 16, 2, 0, MIB, 0),
            GetAttributes(0x8000, 0x4000), GetAttributes(0, 0x10000), SetAttributes(0, 1 << 40, HOLE)]
        again = machine_for(trace)
        summary = replay(trace, again)
    assert summary.answers["EINVAL"] == 1
    assert again.attributes == vm.attributes
    assert [tuple(slot) for slot in again.memslots] == [tuple(slot) for slot in vm.memslots]
    assert "ioctl" not in vars(vm)


def test_two_recordings_of_one_machine_and_calls_of_several_threads(tmp_path):
    """Each begins with what there is and ends with its block; the lines are in the order in which calls took effect."""
    vm = VM()
    pages = np.arange(300, dtype=np.uint64) << np.uint64(12)

    def work(attributes):
        for address in pages.tolist():
            vm.set_memory_attributes(address, 4096, attributes)

    with record(vm, tmp_path / "outer"):
        vm.set_memory_attributes(0x1000, 0x1000, 5)
        with record(vm, tmp_path / "inner"):
            threads = [threading.Thread(target=work, args=(attributes,)) for attributes in (1, 4, 5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        vm.set_memory_attributes(1 << 40, 0x1000, 1)
    for name, operations in (("outer", 902), ("inner", 901)):
        with read(tmp_path / name) as trace:
            assert len(list(trace)) == operations
            again = machine_for(trace)
            replay(trace, again)
        assert again.attributes.diff(vm.attributes, 0, 1 << 28).tolist() == []


def test_a_disk_that_is_full_fails_no_call_and_is_told_at_the_end():
    vm = VM()

    def changes():
        for page in range(20_000):
            vm.set_memory_attributes(page << 12, 4096, 1 + 3 * (page & 1))

    with pytest.raises(OSError, match="No space left on device"), record(vm, "/dev/full"):
        changes()
    assert vm.attributes.run_count == 20_001
    vm.set_memory_attributes(0, 4096, 0)


def test_a_recording_names_its_host(tmp_path):
    vm = VM("linux-7.2", private=False, host="arm64")
    with record(vm, tmp_path / "a"):
        vm.set_user_memory_region(0, 0, MIB, 0xFFFC_B000_0000)
    with read(tmp_path / "a") as trace:
        assert trace.machine == Machine("linux-7.2", {"private": 0, "phys_bits": 52, "nr_memslots": 32767}, "arm64")
        again = machine_for(trace)
        assert (replay(trace, again).answers, again.host.name) == ({"0": 1}, "arm64")
        with pytest.raises(ValueError, match="its vm line says host=arm64, host says s390x: leave host out"):
            machine_for(trace, host="s390x")
    with pytest.raises(ValueError, match="host 'mine': a trace can name x86-64, x86-64-la57, arm64"), \
            record(VM(host=Host("mine")), tmp_path / "b"):
        pass


def test_memslots_of_kvm_are_not_recorded(tmp_path):
    vm = VM("linux-7.2", private=False)
    vm.create_irqchip()
    with record(vm, tmp_path / "a"):
        vm.set_user_memory_region(0, 0, MIB)
    with read(tmp_path / "a") as trace:
        assert [record.slot for record in trace] == [0]


def test_recorded_batches_stop_where_they_stopped(tmp_path):
    records = np.zeros(4, uapi.MEMORY_ATTRIBUTES)
    records["address"] = [0, 4096, 8192, 1]
    records["size"], records["attributes"] = 4096, [1, 0x80, 1, 1]
    vm = VM()
    with record(vm, tmp_path / "a"):
        with pytest.raises(OSError, match="attributes"):
            vm.set_memory_attributes_many(records)
        vm.set_memory_attributes_many(records[2:3])
    with read(tmp_path / "a") as trace:
        assert list(trace) == [SetAttributes(0, 4096, 1), SetAttributes(4096, 4096, 0x80),
                               SetAttributes(8192, 4096, 1)]


def test_registered_regions_are_recorded_once(tmp_path):
    vm = VM()
    with record(vm, tmp_path / "a"):
        vm.ioctl(uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.kvm_enc_region(0x1000, 0x2000))
        vm.ioctl(uapi.KVM_MEMORY_ENCRYPT_UNREG_REGION, uapi.kvm_enc_region(0x1000, 0x1000))
    with read(tmp_path / "a") as trace:
        assert list(trace) == [SetAttributes(0x1000, 0x2000, 1, 1), SetAttributes(0x1000, 0x1000, 14, 2)]
        again = machine_for(trace)
        replay(trace, again)
        assert again.attributes == vm.attributes


def test_refused_recordings(tmp_path):
    vm = VM()
    mine = VM(Profile("mine", private=1))
    with pytest.raises(ValueError, match=r"profile .mine.: a trace can name rfc, linux, .*, vsm alone"), \
            record(mine, tmp_path / "b"):
        pass
    handle = vm.create_guest_memfd(MIB)
    vm.set_user_memory_region2(7, 0, MIB, 0, uapi.KVM_MEM_GUEST_MEMFD, handle)
    vm.close_guest_memfd(handle)
    with pytest.raises(ValueError, match="slot 7: its guest_memfd is closed, which no trace can say"), \
            record(vm, tmp_path / "b"):
        pass
    assert not (tmp_path / "b").exists()


def test_guest_memfd_calls_are_recorded(tmp_path):
    vm = VM("linux")
    with record(vm, tmp_path / "a"):
        handle = vm.create_guest_memfd(MIB)
        vm.set_user_memory_region2(7, 0, MIB, 0, uapi.KVM_MEM_GUEST_MEMFD, handle)
        with pytest.raises(OSError, match="guest_memfd"):
            # Beyond the file.
            vm.set_user_memory_region2(8, MIB, MIB, 0, uapi.KVM_MEM_GUEST_MEMFD, handle, MIB)
    with read(tmp_path / "a") as trace:
        assert list(trace) == [CreateFile(handle, MIB), SetSlot(7, uapi.KVM_MEM_GUEST_MEMFD, 0, MIB, 0, handle, 0),
                               SetSlot(8, uapi.KVM_MEM_GUEST_MEMFD, MIB, MIB, 0, handle, MIB)]
        assert replay(trace, machine_for(trace)).answers == {"0": 2, "EINVAL": 1}


# The command ------------------------------------------------------------------------------------------------

def test_the_command_prints_a_summary_and_writes_json(tmp_path, capsys):
    path = DATA / "traces" / "q35-64g.qemu.log"
    files = ["--json", str(tmp_path / "out.json"), "--write", str(tmp_path / "n.gz")]
    assert main(["replay", str(path), *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (f"{path}: 40 operations (40 slot calls, 0 conversions), 0 unrelated lines skipped,"
                        " profile linux")
    assert lines[1] == "answers: success 40"
    assert [line.split("  ")[0] for line in lines[3:12]] == [
        "", "ioctls", "slots touched", "slot changes", "metadata bytes built",
        "guest pages without a slot meanwhile", "time, median of 9 rounds", "runs at the end",
        "kernel instructions, about"]
    assert lines[-3:-1] == [
        "final access maps: equal",
        "attributes: one memslot that stays, and a WRITE for each slot call (two where a slot moves); before them two"
        " calls, which make that memslot and close all of it"]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["schema"] == 1
    assert set(result["machine"]) == {"host", "machine", "kernel", "python"}
    assert [side["side"] for side in result["replays"][0]["sides"]] == ["memslots", "attributes"]
    with read(tmp_path / "n.gz") as written, read(path) as original:
        assert list(written) == list(original)
        assert written.machine == Machine("linux", {"private": 1, "phys_bits": 52})


def test_what_replay_writes_is_whole_or_one_line_of_error(tmp_path, capsys):
    path, here = str(RECORDINGS[0]), tmp_path / "out.json"
    here.write_text("old")
    (tmp_path / "link").symlink_to(here)
    assert main(["replay", path, "--json", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads(here.read_text())["schema"] == 1
    capsys.readouterr()
    assert main(["replay", path, "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["replays"][0]["name"] == path
    assert "final access maps: equal" in printed.err
    assert main(["replay", path, "--write", "-"]) == 0
    assert capsys.readouterr().out.startswith("vm linux private=1 phys_bits=52\nslot 0 ")
    for place, why in (("/nowhere/x", "no such directory: /nowhere"), ("/dev/full", "No space left on device")):
        for option in ("--json", "--write"):
            assert main(["replay", path, option, place]) == 2
            assert capsys.readouterr().err.endswith(f"kvmattr replay: {place} cannot be written: {why}\n")
    assert main(["replay", path, "--write", "/nowhere/x", "--no-comparison"]) == 2
    assert capsys.readouterr().out == ""    # before anything was replayed
    assert sorted(tmp_path.iterdir()) == [tmp_path / "link", here]


@pytest.mark.parametrize("option", ["--json", "--write"])
def test_a_trace_is_not_written_over(option, tmp_path, capsys):
    path, link = tmp_path / "a.log", tmp_path / "link"
    path.write_bytes(RECORDINGS[0].read_bytes())
    link.symlink_to(path)
    for place in (path, link):
        assert main(["replay", str(path), option, str(place)]) == 2
        printed = capsys.readouterr()
        assert printed.err == (f"kvmattr replay: {place} cannot be written: it is read by this command, and would be "
                               "lost\n")
        assert printed.out == ""
    assert path.read_bytes() == RECORDINGS[0].read_bytes()


def test_a_signal_that_something_cleared_ends_a_replay(monkeypatch, capsys):
    def clearing(*words, **options):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return machine_for(*words, **options)

    monkeypatch.setattr("kvmattr.trace.command.machine_for", clearing)
    assert main(["replay", str(RECORDINGS[0])]) == 143
    assert capsys.readouterr() == ("", "kvmattr: ended by SIGTERM\n")


def test_a_signal_that_became_another_error_is_no_trace_that_failed(monkeypatch):
    tried = []

    def failing(path, *_):
        tried.append(path)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise TypeError("what a library made of it")

    monkeypatch.setattr("kvmattr.trace.files.replay_file", failing)
    with pytest.raises(KeyboardInterrupt, match="ended by SIGTERM"), signals_interrupt():
        list(replay_files(RECORDINGS[:2]))
    assert tried == RECORDINGS[:1]


def test_the_time_is_the_median_of_the_rounds():
    """Everything else is the first round's, since all rounds are alike."""
    with made(SetAttributes(0x1000, 0x1000, 1)) as trace:
        summary = replay(trace, VM())
        summary.sides[0].seconds = 0.4
        replaying.time_again(summary, trace, VM, 3)
        assert summary.rounds == 3
        assert 0 < summary.sides[0].seconds < 0.4
        only = replay(trace, VM(), compare=False)
        replaying.time_again(only, trace, VM, 3)
        assert (only.rounds, only.sides) == (1, [])


def test_the_command_makes_traces(capsys):
    assert main(["replay", "--generate", "every-other-page", "--operations", "100", "--memory", "8M"]) == 0
    assert "every-other-page: 100 operations (0 slot calls, 100 conversions)" in capsys.readouterr().out
    assert main(["replay", "--generate", "boot", "--operations", "10", "--no-comparison"]) == 0
    assert "final access maps" not in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    ([], "expected one TRACE or more, or --generate KIND"),
    (["a", "--generate", "boot"], "expected one TRACE or more, or --generate KIND"),
    (["a", "b", "--write", "c"], "expected one TRACE with --write"),
    (["--generate", "boot", "--memory", "1M"], "memory 1048576: must be at least 2097152 bytes for a PC"),
    (["--generate", "confidential-boot", "--memory", "1M"],
     "memory 1048576: must be at least 33554432 bytes for a confidential guest"),
    (["--generate", "every-other-page", "--memory", "1M"],
     "operations 10000: must be at most 128, half of the pages of the memory"),
])
def test_wrong_words(words, message, capsys):
    assert main(["replay", *words]) == 2
    assert capsys.readouterr().err == f"kvmattr replay: {message}\n"


def test_a_damaged_trace_is_not_half_applied(tmp_path, capsys):
    path = tmp_path / "bad.trace"
    path.write_text("set 0 4096 1 0\nset 0x1000 0x1000 1\n")
    assert main(["replay", "--answers", "--write", str(tmp_path / "out"), str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"kvmattr replay: {path}:2: expected 'set ADDR SIZE ATTRS FLAGS', found 3 numbers\n"
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_wrong_size(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["replay", "--generate", "boot", "--memory", "4X"])
    assert "'4X': expected a number of bytes, or one with K, M, G or T" in capsys.readouterr().err


def test_write_and_read_back(tmp_path):
    records = [SetAttributes(0, 4096, 1), GetAttributes(0, 8192), SetSlot(1, 2, 0, 4096)]
    for name in ("a.trace", "b.trace.gz"):
        assert write(tmp_path / name, records, Machine("vsm", {})) == 3
        with read(tmp_path / name) as trace:
            assert list(trace) == records
            assert trace.machine == Machine("vsm", {})
