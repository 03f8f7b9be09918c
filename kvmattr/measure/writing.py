"""The one way in which every command writes what it was asked to write.

A *place* is what stands behind an option: a path, or ``-`` for standard output. What is there decides how it
is written:

* a regular file, or none yet: whole or not at all. The content goes into a partial file beside it, which then
  takes its name; mode and owner of an old file stay. Symbolic links are followed, also those to nowhere.
* a device, a FIFO, ``/dev/stdout``, ``/dev/fd/N``: written into, never replaced and never truncated.
* a file that cannot be replaced (its directory is read-only, it is a mount point): written in place.

Where the user named a directory and the command the files in it, a link or a FIFO of such a name is replaced: nobody
who may write there decides what else is written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Self, TextIO, cast

Place = str | os.PathLike[str]

#: A directory of open descriptors, when every link on the way is followed.
_DESCRIPTORS = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")


class CannotWrite(OSError):
    """A place could not be written: ``str()`` is one line with the place and the reason."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"

    @classmethod
    def because(cls, place: Place, error: OSError) -> Self:
        """The error of the operating system, told of the place that the user named."""
        return cls(error.errno, error.strerror or str(error), os.fspath(place))

    @classmethod
    def reason(cls, place: Place, number: int, words: str) -> Self:
        """An error that is found without asking the operating system."""
        return cls(number, words, os.fspath(place))


def is_stdout(place: Place) -> bool:
    """Whether a place is standard output, so that what else is said must go to stderr.

    >>> is_stdout("-"), is_stdout("./-")
    (True, False)
    """
    return os.fspath(place) == "-" or _own_descriptor(place) == 1


def people(*places: Place | None) -> TextIO:
    """The stream for what people read: standard error where a file goes to standard output, else that."""
    return sys.stderr if any(place is not None and is_stdout(place) for place in places) else sys.stdout


def is_regular(place: Place) -> bool:
    """Whether a place is a regular file or will be one: it can be written as often as one likes."""
    return _target(place) is not None


def check(*places: Place | None, read: Iterable[Place] = ()) -> None:
    """Raise :class:`CannotWrite` if one of the places cannot be written; None stands for "not asked for".

    For before the first measurement. Nothing is changed: a partial file is made and removed where a regular
    file would be; devices and FIFOs are not opened. Two places that are one regular file, or ``-``, are an error, and
    so is a place that is one of the files that are ``read``: what was measured or recorded would be lost.
    """
    seen: dict[str, Place] = {}
    kept = {os.path.realpath(place) for place in read}
    for place in places:
        if place is None:
            continue
        target = _target(place)
        name = "-" if is_stdout(place) else target
        if name is not None and name in seen:
            raise CannotWrite.reason(place, errno.EEXIST, f"{os.fspath(seen[name])} writes there too")
        if name is not None:
            seen[name] = place
        if target is None:
            _check_special(place)
            continue
        if target in kept:
            raise CannotWrite.reason(place, errno.EEXIST, "it is read by this command, and would be lost")
        with _Partial(place, target):
            pass


def check_directory(place: Place | None) -> None:
    """Raise :class:`CannotWrite` if files cannot be written into a directory, which need not be there yet."""
    if place is None:
        return
    if not os.fspath(place):
        raise CannotWrite.reason("''", errno.ENOENT, "the name is empty")
    there = Path(os.path.realpath(place))
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise CannotWrite.reason(place, errno.ENOTDIR, f"{there} is not a directory")
    if not _may(there, os.W_OK | os.X_OK):
        raise CannotWrite.reason(place, errno.EACCES, f"no right to write into {there}")


def write(place: Place, content: str | bytes, *, append: bool = False, ours: bool = False) -> None:
    """Write text (as UTF-8) or bytes to a place; with ``append``, behind what is in the file.

    ``ours``: the file's name is not what the user said, but the command's own in a directory of his. What somebody has
    put there under that name, a link or a FIFO, is replaced, not followed and not written into.

    Raises :class:`CannotWrite`; then no partial file is left, and a regular file is as it was (writing in place
    apart). Where standard output was closed by its reader, BrokenPipeError.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(f"{folder}/a", "one\\n")
    ...     write(f"{folder}/a", "two\\n", append=True)
    ...     Path(f"{folder}/a").read_text()
    'one\\ntwo\\n'
    """
    # A name with bytes that are no UTF-8 must not cost the whole file.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with opened(place, append=append, ours=ours) as file:
        file.write(data)


def write_each(files: Iterable[tuple[Place, Callable[[], str | bytes]]], *, ours: bool = False) -> list[CannotWrite]:
    """Write every file, whatever becomes of the others: the errors, one a file that was not written.

    ``files``: places, each with a function that makes its content; ``ours`` as :func:`write` has it.
    """
    errors = []
    for place, make in files:
        try:
            write(place, make(), ours=ours)
        except CannotWrite as error:
            errors.append(error)
    return errors


def tell(command: str, written: Sequence[str], errors: Iterable[CannotWrite]) -> None:
    """Say on standard error which of the files were written, and a line for each that was not."""
    failed = {error.filename: error for error in errors}
    kept = [name for name in written if name not in failed]
    if kept:
        print(f"written: {', '.join(kept)}", file=sys.stderr)
    for error in failed.values():
        print(f"kvmattr {command}: {error}", file=sys.stderr)


@contextmanager
def opened(place: Place, *, append: bool = False, in_place: bool = False, ours: bool = False) -> Iterator[IO[bytes]]:
    """A binary file to write a place with, for content that comes in parts.

    A regular file takes its new content when the context ends without an exception; after one it is as it was.
    ``in_place``: what was written stands at once, and stays if the process dies; the old content is gone.
    Raises :class:`CannotWrite` on entering, in ``write``, and on leaving.
    """
    if os.fspath(place) == "-":
        with _standard_output() as file:
            yield file
        return
    target = _name(place) if ours else _target(place)
    if target is None:
        with _into(place) as raw, io.BufferedWriter(raw) as file:
            yield file
    elif append or in_place:
        with (_Behind(place, target) if append else _File(place, target, "wb")) as raw, \
                io.BufferedWriter(raw) as file:
            yield file
    else:
        with _Partial(place, target) as partial:
            with io.BufferedWriter(partial.file) as file:
                partial.file.truncate()
                yield file
            partial.take_place()


class Guarded:
    """A stream that is written to within a context, which says what becomes of the errors."""

    def __init__(self, stream: TextIO, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream, self._context = stream, context

    def write(self, words: str) -> int:
        """Write; what the context let get lost counts as written."""
        with self._context():
            self._stream.write(words)
        return len(words)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        with self._context():
            self._stream.writelines(lines)

    def flush(self) -> None:
        """Flush."""
        with self._context():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _naming() -> Iterator[None]:
    """Errors name standard output: a command that reads files, too, could not tell whose they are."""
    try:
        yield
    except (BrokenPipeError, CannotWrite):
        raise
    except OSError as error:
        raise CannotWrite.because("standard output", error) from None


@contextmanager
def named_stdout() -> Iterator[None]:
    """Within it what cannot be written to standard output is :class:`CannotWrite`; a reader that went away is
    BrokenPipeError, as ever."""
    before = sys.stdout
    if before is not None:
        sys.stdout = cast(TextIO, Guarded(before, _naming))
    try:
        yield
    finally:
        sys.stdout = before


@contextmanager
def _standard_output() -> Iterator[IO[bytes]]:
    """Its buffer, behind what was printed before. A reader that went away is for the whole command to know."""
    if sys.stdout is None:      # closed before Python began
        raise CannotWrite.reason("standard output", errno.EBADF, "is closed")
    with _naming():
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


class _File(io.FileIO):
    """A file of the system whose errors name the place. It is owned from its first moment on, whatever comes then."""

    def __init__(self, place: Place, name: str | int, mode: str, flags: int | None = None) -> None:
        """``flags``: of open(2), in place of those of the mode. A number is not closed: it is not ours."""
        self._place = place
        try:
            super().__init__(name, mode, closefd=not isinstance(name, int),
                             opener=None if flags is None else lambda path, _: os.open(path, flags | os.O_CLOEXEC))
        except OSError as error:
            raise CannotWrite.because(place, error) from None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise CannotWrite.because(self._place, error) from None

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            raise CannotWrite.because(self._place, error) from None

    def close(self) -> None:
        if self.closed:
            return
        try:
            # What a disk refuses late (a quota, a network's disk) is told here, before the name is taken.
            if stat.S_ISREG(os.fstat(self.fileno()).st_mode):
                os.fsync(self.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):   # file systems without it
                raise CannotWrite.because(self._place, error) from None
        finally:
            super().close()


class _Behind(_File):
    """A file that is written behind its end: all of it, or what was there."""

    def __init__(self, place: Place, name: str) -> None:
        super().__init__(place, name, "ab")
        self._added = 0
        self._failed: CannotWrite | None = None
        self._size = os.fstat(self.fileno()).st_size

    def write(self, data: Any, /) -> int:
        if self._failed is not None:    # the buffer's rest, once more
            raise self._failed
        try:
            written = super().write(data)
        except CannotWrite as error:
            self._failed = error
            # What somebody else has written behind it meanwhile is not taken away.
            with contextlib.suppress(OSError):
                if os.fstat(self.fileno()).st_size == self._size + self._added:
                    self.truncate(self._size)
            raise
        self._added += written
        return written


class _Partial:
    """A partial file beside its target, with the target's mode and owner; or, where none can be made, the target.

    As a context it leaves nothing behind that has not taken the target's place.
    """

    #: What has to be removed, known before it is made; and what has to be closed.
    _name: str | None = None
    file: _File

    def __init__(self, place: Place, target: str) -> None:
        self._place, self._target = place, target
        self._name = os.path.join(os.path.dirname(target), f".kvmattr-{secrets.token_hex(4)}.partial")

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._remove()
            raise
        return self

    def _open(self) -> None:
        assert self._name is not None
        old = None
        with contextlib.suppress(OSError):      # none yet, or none that could be made: told below
            old = os.lstat(self._target)
        if old is not None and not stat.S_ISREG(old.st_mode):
            old = None
        if old is not None and not _may(self._target, os.W_OK):
            raise CannotWrite.reason(self._place, errno.EACCES, os.strerror(errno.EACCES))
        try:
            self.file = _File(self._place, self._name, "xb")
        except CannotWrite as error:
            if error.errno == errno.ENOENT:
                raise CannotWrite.reason(self._place, errno.ENOENT,
                                         f"no such directory: {os.path.dirname(self._target)}") from None
            if error.errno not in (errno.EACCES, errno.EPERM) or old is None:
                raise
            self._name = None
            self.file = _File(self._place, self._target, "wb", os.O_WRONLY | os.O_NOFOLLOW)
            return
        if old is not None:
            try:
                with contextlib.suppress(OSError):
                    os.fchown(self.file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(self.file.fileno(), stat.S_IMODE(old.st_mode))
            except OSError as error:
                raise CannotWrite.because(self._place, error) from None

    def take_place(self) -> None:
        """Give the file, which was closed, the name that it was made for."""
        if (name := self._name) is None:
            return
        try:
            try:
                os.replace(name, self._target)
                self._name = None
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                shutil.copyfile(name, self._target)     # a mount point: it can be written, not replaced
        except OSError as error:
            raise CannotWrite.because(self._place, error) from None

    def __exit__(self, *_: object) -> None:
        self._remove()

    def __del__(self) -> None:
        # Whoever was refused memory in its end, or heard a signal there, could not.
        self._remove()

    def _remove(self) -> None:
        try:
            if hasattr(self, "file"):
                self.file.close()
        finally:
            if self._name is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._name)
                self._name = None


def _target(place: Place) -> str | None:
    """The regular file that a place is or will be, every link followed; None: something to write into."""
    if os.fspath(place) == "-" or _own_descriptor(place) is not None:
        return None
    if not os.fspath(place):
        raise CannotWrite.reason("''", errno.ENOENT, "the name is empty")
    try:
        mode = os.stat(place).st_mode
    except FileNotFoundError:
        # A link to nowhere: the file is made where the link points.
        return os.path.realpath(place)
    except OSError as error:
        raise CannotWrite.because(place, error) from None
    if stat.S_ISDIR(mode):
        raise CannotWrite.reason(place, errno.EISDIR, "is a directory, expected a file to write")
    return os.path.realpath(place) if stat.S_ISREG(mode) else None


def _name(place: Place) -> str:
    """The place itself: links are followed up to its directory."""
    directory, name = os.path.split(os.fspath(place))
    return os.path.join(os.path.realpath(directory), name)


def _own_descriptor(place: Place) -> int | None:
    """The number behind ``/dev/stdout``, ``/dev/fd/N`` and the like, if it is this process's.

    Opening such a name again would begin at the file's start, and truncate it; a socket's cannot be opened.
    """
    path = os.fspath(place)
    for _ in range(40):         # as many links as the kernel follows
        folder, name = os.path.split(path)
        match = _DESCRIPTORS.fullmatch(os.path.realpath(folder))
        if match is not None:
            return int(name) if name.isdecimal() and int(match[1]) == os.getpid() else None
        try:
            path = os.path.join(folder, os.readlink(path))
        except OSError:
            return None
    return None


def _check_special(place: Place) -> None:
    number = 1 if os.fspath(place) == "-" else _own_descriptor(place)
    if number is not None:
        import fcntl
        try:
            readable_only = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        except OSError as error:
            raise CannotWrite.because(place, error) from None
        if readable_only:
            raise CannotWrite.reason(place, errno.EBADF, "is open for reading alone")
    elif not _may(place, os.W_OK):
        raise CannotWrite.reason(place, errno.EACCES, os.strerror(errno.EACCES))


def _into(place: Place) -> _File:
    """What stands behind a place that is no regular file."""
    for stream in (sys.stdout, sys.stderr):     # what was printed before comes before
        if stream is not None:
            stream.flush()
    number = _own_descriptor(place)
    if number is not None:
        return _File(place, number, "wb")
    return _File(place, os.fspath(place), "wb", os.O_WRONLY | os.O_NOCTTY)


def _may(path: Place, right: int) -> bool:
    return os.access(path, right, effective_ids=os.access in os.supports_effective_ids)
