"""kvmattr show: the text line by line, the shares that a picture is made of, pictures, bad words."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kvmattr import VM, AttributeMap, access_map, cli, picture, show, uapi
from kvmattr.trace import Machine, SetAttributes, SetSlot, write

RECORDINGS = Path(__file__).parent / "data" / "traces"


def run(*words):
    return cli.main(["show", *map(str, words)])


@pytest.fixture
def trace(tmp_path):
    """Slots at 0..64K and, read-only, at 80K..96K; attributes across their borders."""
    path = tmp_path / "a.trace"
    write(path, [SetSlot(0, 0, 0, 0x10000), SetSlot(7, uapi.KVM_MEM_READONLY, 0x14000, 0x4000),
                 SetAttributes(0xF000, 0x2000, 1), SetAttributes(0x13000, 0x2000, 4),
                 SetAttributes(0x1000, 0x1000, 14)],
          Machine("rfc", {}))
    return path


def test_a_trace_as_text(trace, capsys):
    assert run(trace) == 0
    assert capsys.readouterr().out == (
        "0000000000000000-0000000000001000 rwxs 1 slot 0\n"
        "0000000000001000-0000000000002000 ---s 1 slot 0\n"
        "0000000000002000-000000000000f000 rwxs 13 slot 0\n"
        "000000000000f000-0000000000010000 rwxp 1 slot 0\n"
        "0000000000010000-0000000000011000 ---p 1 no slot\n"
        "0000000000014000-0000000000015000 r-xs 1 slot 7\n"
        "0000000000015000-0000000000018000 r-xs 3 slot 7\n")


def test_a_range_is_cut_at_its_ends(trace, capsys):
    assert run(trace, "--range", "0xe000-15000") == 0
    assert capsys.readouterr().out.splitlines() == [
        "000000000000e000-000000000000f000 rwxs 1 slot 0", "000000000000f000-0000000000010000 rwxp 1 slot 0",
        "0000000000010000-0000000000011000 ---p 1 no slot", "0000000000014000-0000000000015000 r-xs 1 slot 7"]


def test_a_saved_map_as_text(tmp_path, capsys):
    saved = AttributeMap(100)
    saved.write(10, 20, 1)
    saved.write(20, 30, 8)
    saved.save(tmp_path / "map")
    assert run(tmp_path / "map") == 0
    assert run(tmp_path / "map", "--abi", "linux") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "rwxs 10", "rwxp 10", "rw-s 10", "rwxs 10", "rwxs 10", "rwxp 10"]


def test_lines_tile_the_range_and_agree_with_the_machine():
    """Whatever the slots and attributes are, page by page."""
    vm = VM(private=False)
    random = np.random.RandomState(5)
    for index in range(60):
        gfn, npages = int(random.randint(0, 240)), int(random.randint(1, 12))
        if random.randint(2):
            vm.set_memory_attributes(gfn << 12, npages << 12, [0, 4, 14][random.randint(3)])
        elif not vm.memslots.overlapping(gfn, gfn + npages):
            vm.set_user_memory_region(index, gfn << 12, npages << 12, 0x7F0000000000 + (index << 20),
                                      uapi.KVM_MEM_READONLY * int(random.randint(2)))
    shown = access_map.Shown("x", vm.attributes, vm.profile, vm.memslots)
    drawn = list(access_map.lines(shown, 3, 256))
    assert [line.start for line in drawn] == [3, *(line.stop for line in drawn[:-1])]
    assert drawn[-1].stop == 256
    for line in drawn:
        for gfn in range(line.start, line.stop):
            slot = vm.memslots.lookup(gfn)
            assert line.slot == (None if slot is None else slot.id)
            assert line.access == vm.protection(gfn << 12)


def test_shares_are_exact():
    attributes = AttributeMap(1 << 20)
    attributes.write(0, 96, 1)
    attributes.write(300, 301, 1)
    attributes.write(512, 1024, 5)
    shown = access_map.Shown("x", attributes, show.profile_named("rfc"), None)
    found = picture.shares(shown, 64, 1024, 15)
    expected = np.add.reduceat((attributes[64:1024] & 1).astype(float), np.arange(0, 960, 64)) / 64
    assert found["private"].tolist() == expected.tolist()
    assert found["no write"].tolist() == [0.0] * 7 + [1.0] * 8
    assert set(found) == {"private", "no write"}
    assert picture.shares(shown, 2048, 4096, 4)["private"].tolist() == [0.0] * 4


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.parametrize("name", ["map.png", "map.svg"])
def test_a_picture(tmp_path, name):
    assert run(RECORDINGS / "q35-64g.qemu.log", "--picture", tmp_path / name) == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert len(content) > 5000


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_picture_of_less_than_a_row(tmp_path, trace):
    assert run(trace, "--range", "0-3000", "--picture", tmp_path / "a.png") == 0


@pytest.mark.parametrize("option", ["--picture", "--timeline"])
def test_what_is_shown_is_not_written_over(option, trace, tmp_path, capsys):
    drawn, saved = tmp_path / "trace.png", tmp_path / "map.png"
    drawn.write_bytes(trace.read_bytes())
    AttributeMap(1000).save(saved)
    for path in (drawn, saved):
        before = path.read_bytes()
        assert run(path, option, path) == 2
        assert capsys.readouterr().err == (f"kvmattr show: {path} cannot be written: it is read by this command, and "
                                           "would be lost\n")
        assert path.read_bytes() == before


def test_without_matplotlib(trace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(trace, "--picture", tmp_path / "a.png") == 2
    assert capsys.readouterr().err == (
        "kvmattr show: a picture needs matplotlib: pip install 'kvmattr[study]'\n")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("words", ["1000", "0-1", "2000-1000", "x-y", "-1000-2000", "0x1000-0x1000"])
def test_wrong_ranges(words, trace, capsys):
    assert run(trace, f"--range={words}") == 2
    assert capsys.readouterr().err == (
        f"kvmattr show: range {words!r}: expected START-STOP, hexadecimal multiples of 0x1000,"
        " START below STOP\n")


def test_other_bad_words(trace, tmp_path, capsys):
    assert run(trace, "--range", "0-20000000000000") == 0
    assert run(trace, "--range", "0-10000000000001000") == 2
    assert "the map ends at 0x10000000000000000" in capsys.readouterr().err
    assert run(trace, "--abi", "linux") == 2
    assert "its vm line says rfc, abi says linux" in capsys.readouterr().err
    assert run(tmp_path / "none") == 2
    assert "No such file" in capsys.readouterr().err
