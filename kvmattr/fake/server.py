"""The server: it holds the VMs, and answers every thread of every program that opened its /dev/kvm.

One loop, one thread: calls are answered in the order in which they come, and no lock is ever awaited. No client can
hold it up: it reads and writes only what is there, and who sends nonsense, or does not read his replies, is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, Protocol

from kvmattr import uapi
from kvmattr.fake.files import Answer, Asking, Failed, File, Ioctl, Kept, System
from kvmattr.fake.state import Ask
from kvmattr.fake.wire import CALL, LARGEST, REPLY, UNREADABLE, VERSION, Kind, Question

_CREDENTIALS = struct.Struct("iII")
#: Of the descriptors that we may have, how many one process's connections and files may take.
_SHARE = 0.5
#: So long after a call the next one is waited for awake: to be woken takes longer on an idle processor.
_WAKEFUL_NS = 100_000
#: A processor that comes back so late after it was yielded is wanted by others. Who sleeps is woken sooner than that,
#: so for a while nobody waits awake.
_LATE_NS, _CROWDED_NS = 50_000, 10_000_000
_DONTWAIT = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)    # the latter is not everywhere
#: The number of a descriptor that is none of ours, beyond any number of a file.
FOREIGN = 1 << 30


class Recorder(Protocol):
    """Who is told of each call and its answer."""

    def made(self, channel: Channel, parent: Made | None, asked: Ioctl, made: Made) -> None:
        """A call made a file."""

    def answered(self, channel: Channel, made: Made, asked: Ioctl, result: int, error: int) -> None:
        """A call was answered."""

    def fallocated(self, channel: Channel, made: Made, mode: int, offset: int, size: int, error: int) -> None:
        """fallocate(2) was answered."""

    def closed(self, made: Made) -> None:
        """The last descriptor of a file is gone."""


class Listener(Protocol):
    """Who takes what shadows tell."""

    def note(self, channel: Channel, kind: Kind, number: int, words: tuple[int, ...], data: memoryview) -> None:
        """Take one message; ValueError for what is none."""

    def left(self, channel: Channel) -> None:
        """A program has closed its connection."""


class Cut(Exception):
    """A client is to be cut off."""


class Channel:
    """One thread's connection."""

    __slots__ = ("asking", "owner", "pid", "process", "shadow", "socket")

    def __init__(self, connection: socket.socket, owner: int) -> None:
        self.socket = connection
        #: The process that connected, as the kernel says; `pid` is how it calls itself.
        self.owner = owner
        self.pid = owner
        #: Equal for all channels of one address space; None before the hello.
        self.process: object = None
        self.shadow = False
        #: A call that waits for the answer to its question.
        self.asking: tuple[Generator[Ask, Any, Answer], Made, Ioctl] | None = None


class Made:
    """A file that a program has open: the server's end of its descriptor's pipe."""

    __slots__ = ("end", "ended", "file", "inode", "number", "owner", "pid")

    def __init__(self, file: File, end: int, inode: int, number: int, channel: Channel) -> None:
        self.ended = False
        self.file, self.end, self.inode, self.number = file, end, inode, number
        self.owner, self.pid = channel.owner, channel.pid

    @property
    def kind(self) -> str:
        """What the file is, in a log."""
        return self.file.kind


class Server:
    """A listening socket in a directory of its own, and the files of its clients.

    ``kept``: how VMs are made. ``recorder``: is told of everything. ``shadow``: takes what shadows tell.
    """

    def __init__(self, kept: Kept, recorder: Recorder | None = None, shadow: Listener | None = None) -> None:
        self.kept = kept
        self._recorder, self._shadow = recorder, shadow
        #: Called where a loop has nothing to do, at least every half second.
        self.idle: Callable[[], None] | None = None
        self.calls = 0
        #: What should never have been raised.
        self.defects: list[Exception] = []
        #: Programs that have connected, ever.
        self.clients = 0
        self._directory = tempfile.mkdtemp(prefix="kvmattr-fake-")     # mode 0700
        self.path = os.path.join(self._directory, "kvm")
        self._channels: dict[int, Channel] = {}
        self._files: dict[int, Made] = {}
        self._ends: dict[int, Made] = {}
        self._held: Counter[int] = Counter()
        self._next_number = 3
        self._buffer = bytearray(LARGEST)
        self._view = memoryview(self._buffer)
        self._system = System(kept)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._epoll = select.epoll()
        self._waker, self._woken = socket.socketpair()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._listener.bind(self.path)
            self._listener.listen(512)
        except OSError:
            self.close()
            raise
        for each in (self._listener, self._woken):
            each.setblocking(False)
            self._epoll.register(each, select.EPOLLIN)
        self._stop = False

    @property
    def in_use(self) -> bool:
        """Whether a program is connected or has a file of ours open."""
        return bool(self._channels or self._files)

    def stop(self) -> None:
        """Let :meth:`serve` return; from any thread or signal handler."""
        self._stop = True
        self.wake()

    def wake(self) -> None:
        """Let the loop look whether it is done."""
        with contextlib.suppress(OSError):
            self._waker.send(b"x", _DONTWAIT)

    def serve(self, done: Callable[[], bool] = lambda: False) -> None:
        """Answer until :meth:`stop`, or until ``done`` says so where nothing is left to answer."""
        listener, woken, channels = self._listener.fileno(), self._woken.fileno(), self._channels
        poll, message = self._epoll.poll, self._message
        wakeful = 0     # until then nobody sleeps: the next call of a program that calls again and again is near
        crowded = 0     # until then everybody does
        while not self._stop:
            try:
                events = poll(0)
                if events:
                    wakeful = time.monotonic_ns() + _WAKEFUL_NS
                elif crowded < (now := time.monotonic_ns()) < wakeful:
                    os.sched_yield()
                    if (after := time.monotonic_ns()) - now > _LATE_NS:
                        crowded = after + _CROWDED_NS
                    continue
                else:
                    events = poll(0.5)
                for descriptor, _event in events:
                    channel = channels.get(descriptor)
                    if channel is not None:
                        try:
                            message(channel)
                        except (Cut, MemoryError):      # of the latter nobody can say whether the call was made
                            self._drop(channel)
                        except Exception as error:
                            # One program's call; the others have theirs.
                            tell(f"fake: a defect of kvmattr, the program's connection is closed: {error!r}")
                            self.defects.append(error)
                            self._drop(channel)
                    elif descriptor in self._ends:
                        self._close(self._ends[descriptor])
                    elif descriptor == listener:
                        self._accept()
                    elif descriptor == woken:
                        with contextlib.suppress(BlockingIOError):
                            self._woken.recv(64)
                if not events and self.idle is not None:
                    self.idle()
            except MemoryError:
                pass        # what was not done is told again
            if done():
                break

    def close(self) -> None:
        """Give back everything; programs that are still there get EIO."""
        for channel in list(self._channels.values()):
            self._drop(channel)
        for made in list(self._files.values()):
            self._close(made)
        for each in (self._listener, self._waker, self._woken):
            each.close()
        self._epoll.close()
        os.close(self._spare)
        shutil.rmtree(self._directory, ignore_errors=True)

    # Connections -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return
            # No descriptor left: who waits is sent away, or the loop would never rest.
            os.close(self._spare)
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            return
        pid, uid, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid() or self._is_greedy(pid):
            connection.close()
            return
        connection.setblocking(False)
        self._held[pid] += 1
        self._channels[connection.fileno()] = Channel(connection, pid)
        self._epoll.register(connection, select.EPOLLIN)

    def _is_greedy(self, pid: int) -> bool:
        import resource
        return self._held[pid] >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _SHARE

    def _drop(self, channel: Channel) -> None:
        self._channels.pop(channel.socket.fileno(), None)
        self._give_back(channel.owner)
        channel.socket.close()      # which takes it out of the epoll as well
        if channel.asking is not None:
            channel.asking[0].close()
        if self._shadow is not None and channel.process is not None:
            self._shadow.left(channel)

    def _give_back(self, pid: int) -> None:
        self._held[pid] -= 1
        if not self._held[pid]:
            del self._held[pid]

    # Messages ----------------------------------------------------------------------------------------------

    def _message(self, channel: Channel) -> None:
        try:
            got = channel.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            raise Cut from None
        if got < CALL.size:
            raise Cut
        kind, flags, number, *words = CALL.unpack_from(self._buffer)
        if channel.process is None:
            self._hello(channel, kind, words)
        elif channel.shadow:
            if self._shadow is None or kind not in (Kind.SEEN, Kind.CLOSED):
                raise Cut
            try:
                self._shadow.note(channel, Kind(kind), number, tuple(words), self._view[CALL.size:got])
            except ValueError:
                raise Cut from None
        elif channel.asking is not None:
            if kind != Kind.ANSWER:
                raise Cut
            self._answered(channel, flags, number, words, bytes(self._view[CALL.size:got]))
        elif kind == Kind.IOCTL:
            self._ioctl(channel, flags, number, words, got)
        elif kind == Kind.OPEN:
            self._reply_file(channel, self._system, None, Ioctl(channel.process, 0, words[0], None))
        elif kind in (Kind.FALLOCATE, Kind.MMAP, Kind.STAT):
            self._other(channel, kind, number, words)
        else:
            raise Cut

    def _hello(self, channel: Channel, kind: int, words: list[int]) -> None:
        if kind != Kind.HELLO or words[0] != VERSION:
            raise Cut
        channel.pid, channel.process, channel.shadow = words[1] & 0x7FFFFFFF, (channel.owner, words[2]), bool(words[3])
        self.clients += 1

    def _ioctl(self, channel: Channel, flags: int, number: int, words: list[int], got: int) -> None:
        made = self._files.get(number)
        if made is None:
            self._send(channel, REPLY.pack(0, 0, Question.NOT_OURS, 0, 0))
            return
        self.calls += 1
        request, argument, descriptor, size = words[:4]
        structure = None if flags & UNREADABLE else self._buffer[CALL.size:got]
        if structure is not None and (len(structure) != size or size != uapi.size_of(request)):
            raise Cut
        asked = Ioctl(channel.process, request, argument, structure, descriptor)
        try:
            answering = made.file.ioctl(asked)
        except OSError as error:
            self._fail(channel, made, asked, error)
        else:
            if isinstance(answering, Answer):
                self._finish(channel, made, asked, answering)
            else:
                self._go_on(channel, answering, made, asked, None)

    def _go_on(self, channel: Channel, asking: Asking, made: Made, asked: Ioctl, found: object) -> None:
        """Let a call that asks have what it asked for, up to its answer or its next question."""
        try:
            question = asking.send(found)
        except StopIteration as ended:
            channel.asking = None
            self._finish(channel, made, asked, ended.value)
        except OSError as error:
            channel.asking = None
            self._fail(channel, made, asked, error)
        else:
            channel.asking = asking, made, asked
            self._send(channel, REPLY.pack(0, 0, question.question, question.address, question.length))

    def _answered(self, channel: Channel, flags: int, number: int, words: list[int], data: bytes) -> None:
        assert channel.asking is not None
        asking, made, asked = channel.asking
        found: object
        if data:
            found = data
        elif flags & UNREADABLE or words[0]:
            found = None
            asked = asked._replace(bound=-1)
        else:
            other = self._files.get(number)
            found = "another file" if other is None else other.file
            asked = asked._replace(bound=FOREIGN if other is None else other.number)
        self._go_on(channel, asking, made, asked, found)

    def _finish(self, channel: Channel, made: Made, asked: Ioctl, answer: Answer) -> None:
        if answer.file is not None:
            self._reply_file(channel, answer.file, made, asked)
            return
        if self._recorder is not None:
            self._recorder.answered(channel, made, asked, answer.result, 0)
        if answer.out is None:
            self._send(channel, REPLY.pack(answer.result, 0, 0, 0, 0))
            return
        if len(answer.out) > uapi.size_of(asked.request):
            self._send(channel, REPLY.pack(0, 0, Question.ROOM, 0, len(answer.out)))
        self._send(channel, REPLY.pack(answer.result, 0, 0, 0, len(answer.out)) + answer.out)

    def _fail(self, channel: Channel, made: Made, asked: Ioctl, error: OSError) -> None:
        number = error.errno or errno.EINVAL
        if self._recorder is not None:
            self._recorder.answered(channel, made, asked, -1, number)
        out = error.out if isinstance(error, Failed) else b""
        self._send(channel, REPLY.pack(-1, number, 0, 0, len(out)) + out)

    def _other(self, channel: Channel, kind: int, number: int, words: list[int]) -> None:
        made = self._files.get(number)
        if made is None or (kind == Kind.STAT and made.file.size is None):
            self._send(channel, REPLY.pack(0, 0, Question.NOT_OURS, 0, 0))
            return
        if kind == Kind.STAT:
            self._send(channel, REPLY.pack(made.file.size, 0, 0, 0, self.kept.host.page_size))
            return
        self.calls += 1
        refused, memory = 0, None
        mode, offset, size = (_signed(word) for word in words[:3])
        try:
            if kind == Kind.MMAP:
                memory = made.file.map(*words[:4])
            else:
                made.file.fallocate(mode, offset, size)
        except OSError as error:
            refused = error.errno or errno.EINVAL
        if kind == Kind.FALLOCATE and self._recorder is not None:
            self._recorder.fallocated(channel, made, mode, offset, size, refused)
        self._send(channel, REPLY.pack(-1 if refused else 0, refused, 0, 0, 0), memory)

    def _reply_file(self, channel: Channel, file: File, parent: Made | None, asked: Ioctl) -> None:
        """Reply with a descriptor of a new file."""
        ours = theirs = -1
        try:
            if self._is_greedy(channel.owner):
                raise OSError(errno.ENFILE, "one program has too many files")
            theirs, ours = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            made = self._enter(file, ours, os.fstat(theirs).st_ino, channel)
        except (OSError, MemoryError) as error:
            for end in (theirs, ours):
                if end >= 0:
                    os.close(end)
            file.refused()
            refused = errno.ENOMEM if isinstance(error, MemoryError) else error.errno or errno.EINVAL
            if self._recorder is not None and parent is not None:
                self._recorder.answered(channel, parent, asked, -1, refused)
            self._send(channel, REPLY.pack(-1, refused, 0, 0, 0))
            return
        try:
            if self._recorder is not None:
                self._recorder.made(channel, parent, asked, made)
            self._send(channel, REPLY.pack(0, 0, 0, 0, 0), theirs)
        finally:
            os.close(theirs)

    def _enter(self, file: File, end: int, inode: int, channel: Channel) -> Made:
        """Keep an open file until the other end of its descriptor's pipe is closed."""
        made = Made(file, end, inode, self._next_number, channel)
        self._held[channel.owner] += 1
        try:
            self._files[inode] = self._ends[end] = made
            self._epoll.register(end, 0)        # without readers it is an error, which is always told
        except (OSError, MemoryError):
            self._files.pop(inode, None)
            self._ends.pop(end, None)
            self._give_back(channel.owner)
            raise
        self._next_number += 1
        return made

    def _close(self, made: Made) -> None:
        """The last descriptor of a file was closed. Where memory is refused, it is told again in the next turn."""
        if not made.ended:
            made.file.closed()
            made.ended = True
        if self._recorder is not None:
            self._recorder.closed(made)
        del self._files[made.inode], self._ends[made.end]
        self._give_back(made.owner)
        self._epoll.unregister(made.end)
        os.close(made.end)

    def _send(self, channel: Channel, message: bytes | bytearray, descriptor: int | None = None) -> None:
        """Send without waiting: who has not read what he asked for is cut off."""
        try:
            if descriptor is None:
                channel.socket.send(message, _DONTWAIT)
            else:
                socket.send_fds(channel.socket, [message], [descriptor], _DONTWAIT)
        except OSError:
            raise Cut from None


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def tell(text: str) -> None:
    """One line for people."""
    print(f"kvmattr: {text}", file=sys.stderr, flush=True)


