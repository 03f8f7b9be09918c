"""`kvmattr replay --on-kvm`: a recording's calls on a VM of the running kernel, beside the recorded answers."""

import json
from pathlib import Path

import pytest

from kvmattr import VM, cli
from kvmattr.bridges import kvm
from kvmattr.trace import read
from kvmattr.trace.on_kvm import on_kvm, on_kvm_text

TRACES = sorted((Path(__file__).parent / "data" / "traces").iterdir())
needs_kvm = pytest.mark.skipif(kvm.missing() is not None, reason=str(kvm.missing()))

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
    assert ": 1 call, 1 not run, because it has no VM for them" in next(on_kvm_text(result))


def test_the_mails_attributes_are_not_the_kernels(tmp_path, capsys):
    trace = tmp_path / "x.trace"
    trace.write_text("set 0x1000 0x1000 0x1 0x0\n")
    assert cli.main(["replay", "--on-kvm", str(trace)]) == 2
    assert f"{trace} speaks rfc: the kernel's attributes are those of linux" in capsys.readouterr().err
