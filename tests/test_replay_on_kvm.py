"""`kvmattr replay --on-kvm`: a recording's calls on a VM of the running kernel, beside the recorded answers."""

import errno
import json
import os
from pathlib import Path

import pytest

from kvmattr import VM, cli, uapi
from kvmattr.bridges import kvm
from kvmattr.trace import SetAttributes, SetSlot, read
from kvmattr.trace.on_kvm import on_kvm, on_kvm_text

TRACES = sorted((Path(__file__).parent / "data" / "traces").iterdir())
ANSWERED = Path(__file__).parent / "data" / "kvm-7.2"
needs_kvm = pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))

needs_attributes = pytest.mark.skipif(kvm.missing() is not None or kvm.private_vm_type() is None,
                                      reason="the running kernel has no VM whose memory can be private: `python3 dev.py"
                                      " kernel` runs this in one that has")

SLOT = ("ioctl(4, KVM_SET_USER_MEMORY_REGION, {{slot={0}, flags=0, guest_phys_addr={1:#x}, memory_size={2:#x}, "
        "userspace_addr=0x7f0000000000}}) = {3}")


@needs_kvm
@pytest.mark.parametrize("trace", TRACES, ids=[path.name for path in TRACES])
def test_recorded_boots_go_well_on_the_real_kernel(trace, capsys):
    assert cli.main(["replay", "--on-kvm", "--no-comparison", "--strict", str(trace)]) == 0
    said = capsys.readouterr().out
    assert "\non this kernel (" in said
    assert "\ntime a call: median " in said
    assert "recorded" not in said.partition("on this kernel")[2]


@needs_kvm
def test_answers_that_differ_are_told_with_their_line(tmp_path, capsys):
    log = tmp_path / "x.strace"
    log.write_text("\n".join([SLOT.format(0, 0, 0x1000, "0"), SLOT.format(1, 0x1000, 0x1000, "-1 ENOMEM (Cannot)"),
                              SLOT.format(2, 0, 0x1000, "-1 EEXIST (File exists)")]) + "\n")
    out = tmp_path / "out.json"
    assert cli.main(["replay", "--on-kvm", "--no-comparison", "--json", str(out), str(log)]) == 0
    said = capsys.readouterr().out
    assert "\nanswers: success 2, EEXIST 1\n" in said.partition("on this kernel")[2]
    assert "line 2: recorded ENOMEM, model 0, kernel 0\n" in said
    kept = json.loads(out.read_text())["replays"][0]["on_kvm"]
    assert (kept["calls"], kept["different"], kept["answers"]) == (3, 1, {"0": 2, "EEXIST": 1})
    assert kept["differences"] == [[2, "ENOMEM", "0", "0"]]
    assert kept["worst"] >= kept["p99"] >= kept["median"] > 0
    assert cli.main(["replay", "--on-kvm", "--no-comparison", "--strict", str(log)]) == 1


@needs_kvm
def test_what_this_kernel_has_no_vm_for_is_counted(monkeypatch, tmp_path):
    trace = tmp_path / "x.trace"
    trace.write_text("vm linux\nslot 0 0 0x0 0x2000\nset 0x1000 0x1000 0x8 0x0\nget 0x0 0x2000\n")
    monkeypatch.setattr(kvm, "private_vm_type", lambda: None)
    with read(trace) as made:
        result = on_kvm(made, VM("linux"))
    assert (result.calls, result.not_run, result.different) == (1, 1, 0)
    assert ": 1 call, 1 not run, because it has no VM or file for them" in next(on_kvm_text(result))


FILES = """vm gmem
gmem 12 0x200000 0x0
gmem 13 0x1001 0x0
slot 0 0x4 0x0 0x100000 0x7f0000000000 12 0x0
gpunch 12 0x1000 0x1000
gpunch 12 0x1800 0x1000
gset 12 0x0 0x1000 0x8 0x0
"""


@needs_kvm
def test_calls_on_files_are_issued_too(monkeypatch, tmp_path, capsys):
    trace = tmp_path / "x.trace"
    trace.write_text(FILES)
    with kvm.KernelVM() as vm:
        try:
            os.close(vm.ioctl(uapi.KVM_CREATE_GUEST_MEMFD, bytearray(uapi.kvm_create_guest_memfd(0x1000, 0))))
        except OSError as error:
            pytest.skip(f"the running kernel makes no guest_memfd for a default VM: {error}")
    monkeypatch.setattr(kvm, "private_vm_type", lambda: None)
    with read(trace) as made:
        result = on_kvm(made, VM("gmem"))
    # No kernel has KVM_SET_MEMORY_ATTRIBUTES2 yet; the model has.
    assert (result.calls, result.not_run, result.answers) == (6, 0, {"0": 3, "EINVAL": 2, "ENOTTY": 1})
    assert result.differences == [(7, "", "0", "ENOTTY")]


@needs_kvm
def test_calls_on_a_file_that_this_kernel_does_not_make_are_counted(monkeypatch, tmp_path):
    trace = tmp_path / "x.trace"
    trace.write_text(FILES)
    plain = kvm.KernelVM.ioctl

    def ioctl(vm, request, arg=0):
        if request == uapi.KVM_CREATE_GUEST_MEMFD:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return plain(vm, request, arg)

    monkeypatch.setattr(kvm.KernelVM, "ioctl", ioctl)
    with read(trace) as made:
        result = on_kvm(made, VM("gmem"))
    assert (result.calls, result.not_run, result.answers) == (2, 4, {"ENOTTY": 2})
    assert ": 2 calls, 4 not run, because it has no VM or file for them" in next(on_kvm_text(result))


def test_the_mails_attributes_are_not_the_kernels(tmp_path, capsys):
    trace = tmp_path / "x.trace"
    trace.write_text("set 0x1000 0x1000 0x1 0x0\n")
    assert cli.main(["replay", "--on-kvm", str(trace)]) == 2
    assert f"{trace} speaks rfc: the kernel's attributes are those of linux" in capsys.readouterr().err


def as_strace(name, out):
    """The operations and answers of a real Linux 7.2.13 as the log that an strace which knows the structures writes."""
    answers = dict(line.split(None, 1) for line in (ANSWERED / f"{name}.expected").read_text().splitlines())
    with read(ANSWERED / f"{name}.trace") as trace, out.open("w") as file:
        file.write("7 1.0 ioctl(3, KVM_CREATE_VM, 0x1) = 4\n")
        for index, record in enumerate(trace):
            answer = answers[str(index)]
            result = "0" if answer == "0" else f"-1 {answer} (...)"
            if isinstance(record, SetAttributes):
                call = (f"KVM_SET_MEMORY_ATTRIBUTES, {{address={record.address:#x}, size={record.size:#x}, "
                        f"attributes={record.attributes:#x}, flags={record.flags:#x}}}")
            elif isinstance(record, SetSlot):
                call = (f"KVM_SET_USER_MEMORY_REGION, {{slot={record.slot}, flags={record.flags:#x}, guest_phys_addr="
                        f"{record.guest_phys_addr:#x}, memory_size={record.memory_size:#x}, userspace_addr="
                        f"{record.userspace_addr:#x}}}")
            else:
                continue
            file.write(f"7 {1 + index / 1000:.6f} ioctl(4, {call}) = {result}\n")


@pytest.mark.parametrize("name", ["attr-201", "sparse-201", "slots-201"])
def test_recorded_attributes_are_answered_alike_by_the_model(name, tmp_path, capsys):
    log = tmp_path / "x.strace"
    as_strace(name, log)
    options = ["--phys-bits", "40", "--no-comparison", "--strict", "--json", str(tmp_path / "x.json")]
    assert cli.main(["replay", *options, str(log)]) == 0
    kept = json.loads((tmp_path / "x.json").read_text())["replays"][0]
    assert (kept["different"], kept["recorded"]) == (0, True)
    assert kept["attribute_calls"] > 1000
    assert ("EINVAL" in kept["answers"]) == (name != "sparse-201")


@needs_attributes
@pytest.mark.parametrize("name", ["attr-201", "sparse-201", "slots-201"])
def test_recorded_attributes_are_answered_alike_by_a_kernel_that_has_them(name, tmp_path, capsys):
    log = tmp_path / "x.strace"
    as_strace(name, log)
    options = ["--phys-bits", "40", "--no-comparison", "--strict", "--json", str(tmp_path / "x.json")]
    code = cli.main(["replay", "--on-kvm", *options, str(log)])
    print(capsys.readouterr().out)
    kept = json.loads((tmp_path / "x.json").read_text())["replays"][0]["on_kvm"]
    assert (kept["not_run"], kept["different"], kept["differences"]) == (0, 0, [])
    assert code == 0
    assert sum(kept["answers"].values()) == kept["calls"] > 2000
    assert kept["worst"] >= kept["p99"] >= kept["median"] > 0
