"""The one way in which every command writes what it was asked to write.

A *place* is what stands behind an option: a path, or ``-`` for standard output. What is there decides how it
is written:

* a regular file, or none yet: whole or not at all. The content goes into a partial file beside it, which then
  takes its name; mode and owner of an old file stay. Symbolic links are followed, also those to nowhere.
* a device, a FIFO, ``/dev/stdout``, ``/dev/fd/N``: written into, never replaced and never truncated.
* a file that cannot be replaced (its directory is read-only, it is a mount point): written in place.
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
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

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
        name = "-" if is_stdout(place) else None if target is None else str(target)
        if name is not None and name in seen:
            raise CannotWrite.reason(place, errno.EEXIST, f"{os.fspath(seen[name])} writes there too")
        if name is not None:
            seen[name] = place
        if target is None:
            _check_special(place)
            continue
        if str(target) in kept:
            raise CannotWrite.reason(place, errno.EEXIST, "it is read by this command, and would be lost")
        descriptor, partial = _partial(place, target)
        os.close(descriptor)
        if partial is not None:
            partial.unlink(missing_ok=True)


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


def write(place: Place, content: str | bytes, *, append: bool = False) -> None:
    """Write text (as UTF-8) or bytes to a place; with ``append``, behind what is in the file.

    Raises :class:`CannotWrite`; then no partial file is left, and a regular file is as it was (appending and
    writing in place apart). Where standard output was closed by its reader, BrokenPipeError.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(f"{folder}/a", "one\\n")
    ...     write(f"{folder}/a", "two\\n", append=True)
    ...     Path(f"{folder}/a").read_text()
    'one\\ntwo\\n'
    """
    # A name with bytes that are no UTF-8 must not cost the whole file.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with opened(place, append=append) as file:
        file.write(data)


def write_each(files: Iterable[tuple[Place, Callable[[], str | bytes]]]) -> list[CannotWrite]:
    """Write every file, whatever becomes of the others: the errors, one a file that was not written.

    ``files``: places, each with a function that makes its content.
    """
    errors = []
    for place, make in files:
        try:
            write(place, make())
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
def opened(place: Place, *, append: bool = False, in_place: bool = False) -> Iterator[IO[bytes]]:
    """A binary file to write a place with, for content that comes in parts.

    A regular file takes its new content when the context ends without an exception; after one it is as it was.
    ``in_place``: what was written stands at once, and stays if the process dies; the old content is gone.
    Raises :class:`CannotWrite` on entering, in ``write``, and on leaving.
    """
    if os.fspath(place) == "-":
        with _standard_output() as file:
            yield file
        return
    target = _target(place)
    partial: Path | None = None
    try:
        if target is None:
            descriptor = _open_special(place)
        elif append or in_place:
            descriptor = _open_in_place(place, target, append)
        else:
            descriptor, partial = _partial(place, target)
            if partial is None:
                os.ftruncate(descriptor, 0)
        with io.BufferedWriter(_File(descriptor, place)) as file:
            yield file
        if partial is not None and target is not None:
            _take_place(place, partial, target)
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()


@contextmanager
def _standard_output() -> Iterator[IO[bytes]]:
    """Its buffer, behind what was printed before. A reader that went away is for the whole command to know."""
    if sys.stdout is None:      # closed before Python began
        raise CannotWrite.reason("standard output", errno.EBADF, "is closed")
    try:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except (BrokenPipeError, CannotWrite):
        raise
    except OSError as error:
        raise CannotWrite.because("standard output", error) from None


class _File(io.FileIO):
    """A descriptor whose errors name the place."""

    def __init__(self, descriptor: int, place: Place) -> None:
        super().__init__(descriptor, "wb")
        self._place = place

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
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


def _target(place: Place) -> Path | None:
    """The regular file that a place is or will be, every link followed; None: something to write into."""
    if os.fspath(place) == "-" or _own_descriptor(place) is not None:
        return None
    if not os.fspath(place):
        raise CannotWrite.reason("''", errno.ENOENT, "the name is empty")
    try:
        mode = os.stat(place).st_mode
    except FileNotFoundError:
        # A link to nowhere: the file is made where the link points.
        return Path(os.path.realpath(place))
    except OSError as error:
        raise CannotWrite.because(place, error) from None
    if stat.S_ISDIR(mode):
        raise CannotWrite.reason(place, errno.EISDIR, "is a directory, expected a file to write")
    return Path(os.path.realpath(place)) if stat.S_ISREG(mode) else None


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


def _open_special(place: Place) -> int:
    number = _own_descriptor(place)
    for stream in (sys.stdout, sys.stderr):     # what was printed before comes before
        if stream is not None:
            stream.flush()
    try:
        return os.dup(number) if number is not None else os.open(place, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotWrite.because(place, error) from None


def _open_in_place(place: Place, target: Path, append: bool) -> int:
    how = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if append else os.O_TRUNC)
    try:
        return os.open(target, how, 0o666)
    except OSError as error:
        raise CannotWrite.because(place, error) from None


def _partial(place: Place, target: Path) -> tuple[int, Path | None]:
    """An open partial file beside the target, with the target's mode and owner; or, where none can be made, the
    target itself (then None), still with its old content."""
    try:
        old = target.stat() if target.exists() else None
        if old is not None and not _may(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        partial = target.with_name(f".kvmattr-{secrets.token_hex(4)}.partial")
        try:
            # 0666: the umask takes away what it does from every new file.
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except PermissionError:
            if old is None:
                raise
            return os.open(target, os.O_WRONLY | os.O_CLOEXEC), None
        if old is not None:
            with contextlib.suppress(OSError):
                os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise CannotWrite.reason(place, errno.ENOENT, f"no such directory: {target.parent}") from None
        raise CannotWrite.because(place, error) from None
    return descriptor, partial


def _take_place(place: Place, partial: Path, target: Path) -> None:
    try:
        try:
            partial.replace(target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(partial, target)     # a mount point: it can be written, not replaced
    except OSError as error:
        raise CannotWrite.because(place, error) from None


def _may(path: Place, right: int) -> bool:
    return os.access(path, right, effective_ids=os.access in os.supports_effective_ids)
