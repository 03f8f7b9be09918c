"""The one writer of files: what it replaces, what it writes into, and what is left when it cannot."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvmattr.measure import writing
from kvmattr.measure.writing import CannotWrite, check, check_directory, is_stdout, opened, write, write_each


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def python(program: str, *words: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60,
                          **more)


class TestRegularFiles:
    def test_a_new_file_has_the_mode_of_any_new_file(self, tmp_path):
        (tmp_path / "plain").write_text("")
        write(tmp_path / "a", "one\n")
        assert (tmp_path / "a").read_text() == "one\n"
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert names(tmp_path) == ["a", "plain"]

    def test_mode_is_kept_and_the_file_is_replaced_whole(self, tmp_path):
        path = tmp_path / "a"
        path.write_text("old")
        path.chmod(0o640)
        before = path.stat().st_ino
        with path.open() as reader:
            write(path, b"new")
            assert reader.read() == "old"       # who has it open still sees it whole
        assert path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert path.stat().st_ino != before

    def test_links_are_followed(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a").write_text("old")
        (tmp_path / "link").symlink_to("real/a")
        (tmp_path / "nowhere").symlink_to("real/new")
        for name in ("link", "nowhere"):
            check(tmp_path / name)
            write(tmp_path / name, "new")
            assert (tmp_path / name).is_symlink()
        assert (tmp_path / "real" / "a").read_text() == (tmp_path / "real" / "new").read_text() == "new"
        assert names(tmp_path / "real") == ["a", "new"]

    def test_a_link_planted_under_the_partial_name_is_not_followed(self, tmp_path, monkeypatch):
        """Nobody can know that name; who guesses it all the same gains nothing."""
        (tmp_path / "victim").write_text("victim")
        (tmp_path / "a").write_text("old")
        monkeypatch.setattr(writing.secrets, "token_hex", lambda nbytes: "guessed")
        (tmp_path / ".kvmattr-guessed.partial").symlink_to("victim")
        with pytest.raises(CannotWrite, match="File exists"):
            write(tmp_path / "a", "new")
        assert (tmp_path / "victim").read_text() == "victim"
        assert (tmp_path / "a").read_text() == "old"

    def test_nothing_changes_when_the_writer_fails(self, tmp_path):
        path = tmp_path / "a"
        path.write_text("old")
        for error in (ValueError, KeyboardInterrupt):
            with pytest.raises(error):
                self.half(path, error)
            assert path.read_text() == "old"
            assert names(tmp_path) == ["a"]

    def half(self, path, error):
        with opened(path) as file:
            file.write(b"half")
            raise error

    def test_append_and_in_place(self, tmp_path):
        path = tmp_path / "a"
        write(path, "one\n", append=True)
        write(path, "two\n", append=True)
        assert path.read_text() == "one\ntwo\n"
        with opened(path, in_place=True) as file:
            file.write(b"three\n")
            file.flush()
            assert path.read_text() == "three\n"

    def test_a_letter_that_utf8_lacks_costs_that_letter(self, tmp_path):
        write(tmp_path / "a", "x\udcffy")
        assert (tmp_path / "a").read_text() == "x\\udcffy"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_rights(self, tmp_path):
        self.rights(tmp_path)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
    def test_rights_of_somebody_else(self, tmp_path):
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(CannotWrite, match="Permission denied"):
                write(tmp_path / "new", "x")
        finally:
            os.seteuid(0)
        assert names(tmp_path) == []
        own = tmp_path / "own"
        own.mkdir()
        os.chown(own, 65534, 65534)
        os.seteuid(65534)
        try:
            self.rights(own)
        finally:
            os.seteuid(0)

    def rights(self, tmp_path):
        read_only, closed = tmp_path / "read-only", tmp_path / "closed"
        read_only.write_text("old")
        read_only.chmod(0o444)
        closed.mkdir()
        (closed / "a").write_text("old")
        closed.chmod(0o555)
        for act in (check, lambda path: write(path, "new")):
            with pytest.raises(CannotWrite, match="read-only cannot be written: Permission denied"):
                act(read_only)
            with pytest.raises(CannotWrite, match="new cannot be written: Permission denied"):
                act(closed / "new")
            act(closed / "a")       # cannot be replaced, can be written
        assert (closed / "a").read_text() == "new"
        assert read_only.read_text() == "old"
        assert names(closed) == ["a"]


class TestSpecialFiles:
    def test_devices_are_written_into(self):
        before = os.stat("/dev/null")
        check("/dev/null", "/dev/null")
        write("/dev/null", "x")
        assert os.stat("/dev/null") == before or stat.S_ISCHR(os.stat("/dev/null").st_mode)
        check("/dev/full")
        with pytest.raises(CannotWrite) as raised:
            write("/dev/full", "x")
        assert str(raised.value) == "/dev/full cannot be written: No space left on device"
        assert raised.value.errno == errno.ENOSPC

    def test_a_link_to_a_device_is_one(self, tmp_path):
        (tmp_path / "null").symlink_to("/dev/null")
        write(tmp_path / "null", "x")
        assert names(tmp_path) == ["null"]
        assert (tmp_path / "null").is_symlink()

    def test_a_fifo_is_written_into_and_not_opened_by_the_check(self, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        check(path)
        got = []
        reader = threading.Thread(target=lambda: got.append(path.read_text()))
        reader.start()
        write(path, "through")
        reader.join(30)
        assert got == ["through"]
        assert stat.S_ISFIFO(path.stat().st_mode)

    def test_descriptors_are_shared_not_opened_again(self, tmp_path):
        with (tmp_path / "a").open("wb") as file:
            file.write(b"before\n")
            file.flush()
            place = f"/dev/fd/{file.fileno()}"
            check(place)
            write(place, "within\n")
            file.write(b"after\n")
        assert (tmp_path / "a").read_text() == "before\nwithin\nafter\n"
        (tmp_path / "link").symlink_to("/dev/fd")
        reader, writer = os.pipe()
        write(tmp_path / "link" / str(writer), "x")
        assert os.read(reader, 10) == b"x"
        with pytest.raises(CannotWrite, match="is open for reading alone"):
            check(f"/dev/fd/{reader}")
        os.close(reader)
        with pytest.raises(CannotWrite, match="Broken pipe"):
            write(f"/proc/self/fd/{writer}", "x")
        os.close(writer)
        with pytest.raises(CannotWrite, match="Bad file descriptor"):
            check(f"/dev/fd/{writer}")

    def test_a_socket_of_ours_can_be_written_and_one_in_the_file_system_is_an_error(self, tmp_path):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            write(f"/dev/fd/{ours.fileno()}", "x")
            assert theirs.recv(10) == b"x"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(tmp_path / "socket"))
            with pytest.raises(CannotWrite, match="socket cannot be written: No such device or address"):
                write(tmp_path / "socket", "x")
        assert names(tmp_path) == ["socket"]

    @pytest.mark.parametrize("place", ["-", "/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
    def test_standard_output_keeps_its_order(self, place, tmp_path):
        program = ("import sys\nfrom kvmattr.measure.writing import check, is_stdout, write\n"
                   "check(sys.argv[1])\nassert is_stdout(sys.argv[1])\n"
                   "print('before')\nwrite(sys.argv[1], 'within\\n')\nprint('after')")
        assert python(program, place).stdout == "before\nwithin\nafter\n"
        with (tmp_path / "out").open("w") as out:       # a regular file behind it is not replaced either
            subprocess.run([sys.executable, "-c", program, place], stdout=out, check=True, timeout=60)
        assert (tmp_path / "out").read_text() == "before\nwithin\nafter\n"

    def test_standard_output_that_is_full_or_closed(self):
        program = ("import os, sys\nfrom kvmattr.measure.writing import write\n"
                   "try: write('-', 'x' * 100_000)\n"
                   "except OSError as error: print(error, file=sys.stderr)\n"
                   "finally: sys.stderr.flush(); os._exit(0)")
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.stderr == "standard output cannot be written: No space left on device\n"
        closed = subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, program], stderr=subprocess.PIPE,
                                text=True)
        assert closed.stderr == "standard output cannot be written: is closed\n"


class TestErrors:
    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, tmp_path):
        # RLIMIT_FSIZE refuses as a full disk does: some bytes are written, the rest is not.
        path = tmp_path / "a"
        path.write_text("old")
        program = ("import resource, signal, sys\nfrom kvmattr.measure.writing import write_each\n"
                   "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                   "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
                   "for error in write_each([(sys.argv[1], lambda: 'x' * 100_000), (sys.argv[2], lambda: 'y')]):\n"
                   "    print(error)")
        done = python(program, str(path), str(tmp_path / "b"))
        assert done.stdout == f"{path} cannot be written: File too large\n", done.stderr
        assert path.read_text() == "old"
        assert (tmp_path / "b").read_text() == "y"
        assert names(tmp_path) == ["a", "b"]

    def test_a_full_disk_takes_no_part_of_what_is_appended(self, tmp_path):
        path = tmp_path / "a"
        path.write_text("old\n" * 1000)
        program = ("import resource, signal, sys\nfrom kvmattr.measure.writing import CannotWrite, write\n"
                   "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                   "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
                   "for text in 'x' * 100, 'y' * 90:\n"
                   "    try:\n"
                   "        write(sys.argv[1], text, append=True)\n"
                   "    except CannotWrite as error:\n"
                   "        print(error)")
        done = python(program, str(path))
        assert done.stdout == f"{path} cannot be written: File too large\n", done.stderr
        assert path.read_text() == "old\n" * 1000 + "y" * 90

    def test_a_directory_that_vanished_is_one_error_and_the_rest_is_written(self, tmp_path):
        gone = tmp_path / "gone" / "a"
        errors = write_each([(gone, lambda: "x"), ("/dev/full", lambda: "x"), (tmp_path / "b", lambda: "y")])
        assert [str(error) for error in errors] == [
            f"{gone} cannot be written: no such directory: {gone.parent}",
            "/dev/full cannot be written: No space left on device"]
        assert names(tmp_path) == ["b"]

    def test_a_disk_that_refuses_late(self, tmp_path, monkeypatch):
        def refuse(descriptor):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        monkeypatch.setattr(writing.os, "fsync", refuse)
        with pytest.raises(CannotWrite, match="a cannot be written: Disk quota exceeded"):
            write(tmp_path / "a", "x")
        assert names(tmp_path) == []

    def test_a_mount_point_is_written_in_place(self, tmp_path, monkeypatch):
        path = tmp_path / "a"
        path.write_text("old")

        def busy(self, target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        monkeypatch.setattr(Path, "replace", busy)
        write(path, "new")
        assert path.read_text() == "new"
        assert names(tmp_path) == ["a"]

    @pytest.mark.parametrize(("name", "reason"), [
        ("none/a", "no such directory: {0}/none"),
        (".", "is a directory, expected a file to write"),
        ("file/a", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
    ])
    def test_the_check_says_what_writing_would(self, name, reason, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / "loop").symlink_to("loop")
        place = f"{tmp_path}/{name}"
        before = names(tmp_path)
        for act in (check, lambda place: write(place, "x")):
            with pytest.raises(CannotWrite, match=f"^{re.escape(place)} cannot be written: "
                                                  f"{re.escape(reason.format(tmp_path))}$"):
                act(place)
        assert names(tmp_path) == before

    def test_no_name(self):
        with pytest.raises(CannotWrite, match="'' cannot be written: the name is empty"):
            check("")

    def test_two_places_that_are_one_file(self, tmp_path):
        (tmp_path / "link").symlink_to("a")
        for one, other in ((tmp_path / "a", tmp_path / "link"), ("-", "/dev/stdout")):
            with pytest.raises(CannotWrite, match=re.escape(f"{other} cannot be written: {one} writes there too")):
                check(one, None, other)
        check(None, None, tmp_path / "a", tmp_path / "b")
        assert names(tmp_path) == ["link"]

    def test_directories(self, tmp_path):
        (tmp_path / "file").write_text("")
        check_directory(None)
        check_directory(tmp_path / "new" / "newer")
        assert names(tmp_path) == ["file"]
        with pytest.raises(CannotWrite, match="file is not a directory"):
            check_directory(tmp_path / "file" / "plots")


def test_is_stdout():
    assert is_stdout("-")
    assert not is_stdout("/dev/stderr")
    assert not is_stdout("/dev/null")
