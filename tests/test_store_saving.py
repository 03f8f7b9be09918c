"""save() respects its target: what a path leads to, its mode and owner; and an error leaves everything as it was."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmattr import AttributeMap

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root may give files to others")


def a_map(value: int = 3) -> AttributeMap:
    m = AttributeMap(1 << 20)
    m[::] = value
    m[100:200] = 7
    return m


def scattered() -> AttributeMap:
    """Some megabytes, so that progress is called more than once."""
    m = AttributeMap(1 << 24)
    m.put(list(range(0, 1 << 24, 512)), 1)
    m.put(list(range(5, 1 << 24, 512)), 2)
    m.put(range_of_bytes(), 3)
    return m


def range_of_bytes() -> list[int]:
    return [gfn for block in range(0, 1 << 21, 512) for gfn in range(block + 10, block + 500, 2)]


def nothing_else_in(directory: Path, *names: str) -> bool:
    return sorted(path.name for path in directory.iterdir()) == sorted(names)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_mode_of_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_bytes(b"old")
    for mode in (0o600, 0o640, 0o444 if ROOT else 0o644, 0o666):
        path.chmod(mode)
        a_map().save(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert AttributeMap.load(path) == a_map()
    assert nothing_else_in(tmp_path, "map")


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    script = ("import os, sys; from kvmattr import AttributeMap; os.umask(int(sys.argv[2], 8)); "
              "AttributeMap(5).save(sys.argv[1]); print(oct(os.umask(0)))")
    for mask, mode in (("022", 0o644), ("077", 0o600), ("002", 0o664)):
        path = tmp_path / mask
        done = subprocess.run([sys.executable, "-c", script, str(path), mask], capture_output=True, text=True)
        assert done.stdout == f"{oct(int(mask, 8))}\n", done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(mask: int) -> int:
        raise AssertionError("the umask belongs to the whole process")

    monkeypatch.setattr(os, "umask", touched)
    a_map().save(tmp_path / "map")


@needs_root
def test_the_owner_of_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    a_map().save(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o640)


AS_NOBODY = """
import os, sys
from kvmattr import AttributeMap
m = AttributeMap(5)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    m.save(sys.argv[1])
    print("saved")
except OSError as error:
    print(type(error).__name__, error.errno, error.strerror, error.filename)
"""


def as_nobody(path: Path) -> str:
    return subprocess.run([sys.executable, "-c", AS_NOBODY, str(path)], capture_output=True, text=True,
                          check=True).stdout.rstrip("\n")


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that others reach; pytest's own belong to its user alone."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@needs_root
def test_what_another_user_may_not_do_is_told_before_anything_is_replaced(room: Path) -> None:
    path = room / "map"
    path.write_bytes(b"old")
    path.chmod(0o666)
    room.chmod(0o777)
    assert as_nobody(path) == f"PermissionError {errno.EPERM} its owner 0:0 cannot be kept {path}"
    path.chmod(0o644)
    assert as_nobody(path) == f"PermissionError {errno.EACCES} Permission denied {path}"
    # It may write into the directory, but not read it: the rename could not be made safe.
    os.chown(path, 65534, 65534)
    room.chmod(0o733)
    assert as_nobody(path) == f"PermissionError {errno.EACCES} Permission denied {path}"
    assert path.read_bytes() == b"old"
    assert nothing_else_in(room, "map")
    room.chmod(0o777)
    assert as_nobody(path) == "saved"


def test_a_link_planted_under_the_name_beside_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can know that name; who guesses it all the same gains nothing."""
    (tmp_path / "victim").write_bytes(b"victim")
    (tmp_path / "map").write_bytes(b"old")
    monkeypatch.setattr(os, "urandom", lambda nbytes: b"\0" * nbytes)
    (tmp_path / f".kvmattr-{'00' * 8}").symlink_to("victim")
    with pytest.raises(FileExistsError):
        a_map(1).save(tmp_path / "map")
    assert (tmp_path / "victim").read_bytes() == b"victim"
    assert (tmp_path / "map").read_bytes() == b"old"
    assert os.path.islink(tmp_path / f".kvmattr-{'00' * 8}")


def test_links_are_followed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to("there/map")
    (tmp_path / "second").symlink_to("link")
    a_map(1).save(tmp_path / "second")          # it leads nowhere yet
    assert (tmp_path / "link").is_symlink()
    assert AttributeMap.load(there / "map") == a_map(1)
    (there / "map").chmod(0o600)
    a_map(2).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((there / "map").stat().st_mode) == 0o600
    assert AttributeMap.load(tmp_path / "second") == a_map(2)
    assert nothing_else_in(there, "map")
    assert nothing_else_in(tmp_path, "there", "link", "second")


def test_another_name_of_the_file_keeps_the_old_content(tmp_path: Path) -> None:
    a_map(1).save(tmp_path / "map")
    os.link(tmp_path / "map", tmp_path / "other")
    a_map(2).save(tmp_path / "map")
    assert AttributeMap.load(tmp_path / "other") == a_map(1)


def test_a_fifo_is_written_into(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[AttributeMap] = []
    reader = threading.Thread(target=lambda: read.append(AttributeMap.load(fifo)))
    reader.start()
    a_map().save(fifo)
    reader.join()
    assert read[0] == a_map()
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_devices_are_written_into() -> None:
    before = os.stat("/dev/null")
    a_map().save("/dev/null")
    assert os.path.samestat(before, os.stat("/dev/null"))
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '/dev/full'$"):
        a_map().save("/dev/full")


def test_a_descriptors_name_is_written_into(tmp_path: Path) -> None:
    with open(tmp_path / "map", "w+b") as file:
        a_map().save(f"/dev/fd/{file.fileno()}")
        assert os.path.samestat(os.fstat(file.fileno()), (tmp_path / "map").stat())
    assert AttributeMap.load(tmp_path / "map") == a_map()
    read, write = os.pipe()
    AttributeMap(5).save(f"/proc/self/fd/{write}")
    assert AttributeMap.from_bytes(os.read(read, 1000)) == AttributeMap(5)
    os.close(read)
    os.close(write)


def test_paths_of_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("map", b"map", Path("map"), os.fsencode(tmp_path) + b"/map", b"m\xffap"):
        a_map().save(path)
        assert AttributeMap.load(path) == a_map()
    Path(os.fsdecode(b"m\xffap")).write_bytes(b"old")
    with pytest.raises(ValueError, match=r"^m\udcffap: not a saved AttributeMap: 3 bytes, the header has 44$"):
        AttributeMap.load(b"m\xffap")


def test_errors_name_the_path_that_was_given(tmp_path: Path) -> None:
    for path, name in ((tmp_path / "nowhere" / "map", "No such file or directory"), (tmp_path, "Is a directory"),
                       (Path("/dev/null/map"), "Not a directory")):
        with pytest.raises(OSError, match=name) as raised:
            a_map().save(path)
        assert raised.value.filename == str(path)
        assert raised.value.strerror == name


@pytest.mark.parametrize("path", ["", b""])
def test_an_empty_path_is_named(path: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as raised:
        a_map().save(path)
    assert str(raised.value) == f"[Errno 2] the path is empty: {path!r}"
    assert nothing_else_in(tmp_path)


FULL = """
import resource, sys
from kvmattr import AttributeMap
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
m = AttributeMap(1 << 24)
m.put(list(range(0, 1 << 20, 3)), 1)
try:
    m.save(sys.argv[1])
except OSError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert done.stdout == f"[Errno {errno.EFBIG}] File too large: '{path}'\n", done.stderr
    assert path.read_bytes() == b"old"
    assert nothing_else_in(tmp_path, "map")


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(5, "mine"), OSError("no number"), SystemExit(3)])
def test_what_progress_raises_leaves_the_old_file(tmp_path: Path, trouble: BaseException) -> None:
    path = tmp_path / "map"
    path.write_bytes(b"old")
    m = scattered()
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        if done >= total or len(calls) == 2:
            raise trouble

    descriptors = open_descriptors()
    with pytest.raises(type(trouble)) as raised:
        m.save(path, progress)
    assert raised.value is trouble
    assert path.read_bytes() == b"old"
    assert nothing_else_in(tmp_path, "map")
    assert open_descriptors() == descriptors
    done: list[int] = []
    m.save(path, lambda upto, total: done.append(upto))
    assert done == sorted(set(done))
    assert done[-1] == path.stat().st_size
    with pytest.raises(type(trouble)) as raised:
        AttributeMap.load(path, progress)
    assert raised.value is trouble
    assert open_descriptors() == descriptors


class Interrupted(BaseException):
    """What a signal's handler raises."""


@pytest.mark.parametrize("call", ["save", "load"])
def test_a_signal_at_any_bytecode_leaves_one_whole_file(tmp_path: Path, call: str) -> None:
    """Of all Python code that runs within the call, the interpreter's own library included."""
    path = tmp_path / "map"
    old, new = a_map(1), a_map(2)
    place = 0
    while True:
        if not place or AttributeMap.load(path) != old:
            old.save(path)
        descriptors = open_descriptors()
        left = place
        raised = ended = False

        def trace(frame: Any, event: str, argument: object) -> Any:
            nonlocal left, raised
            frame.f_trace_opcodes = True
            if event == "opcode" and not raised:
                left -= 1
                if left < 0:
                    raised = True
                    raise Interrupted
            return trace

        try:
            sys.settrace(trace)
            if call == "save":
                new.save(path, lambda done, total: None)
            else:
                AttributeMap.load(path, lambda done, total: None)
            sys.settrace(None)
            ended = not raised
        except Interrupted:
            sys.settrace(None)
        assert open_descriptors() == descriptors
        assert nothing_else_in(tmp_path, "map")
        assert AttributeMap.load(path) in ([new] if ended and call == "save" else [old, new])
        if ended:
            break
        place += 1
    assert place > 5


def test_a_file_that_a_crash_left_does_not_hinder(tmp_path: Path) -> None:
    (tmp_path / ".kvmattr-0123456789abcdef").write_bytes(b"half")
    a_map().save(tmp_path / "map")
    assert nothing_else_in(tmp_path, "map", ".kvmattr-0123456789abcdef")


def test_load_looks_at_the_header_before_it_reads_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "map"
    sound = a_map().to_bytes()
    path.write_bytes(b"#!/bin/sh" + sound)
    os.truncate(path, 1 << 40)          # all holes: whoever reads it runs out of memory
    with pytest.raises(ValueError, match=rf"^{path}: not a saved AttributeMap: begins with b'#!/bin/s', need "):
        AttributeMap.load(path)
    path.write_bytes(sound)
    os.truncate(path, 1 << 40)
    with pytest.raises(ValueError, match=rf"^{path}: saved AttributeMap is damaged: {(1 << 40) - 44} bytes after the "
                                         rf"header, which announces {len(sound) - 44}$"):
        AttributeMap.load(path)
    path.write_bytes(sound[:50])
    with pytest.raises(ValueError, match=r"is damaged: 6 bytes after the header"):
        AttributeMap.load(path)
