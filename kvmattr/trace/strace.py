"""strace logs: the calls that make, change and close a VM, as any of strace's options print them.

What names the thread (`-f`, `-o`, `-Y`), the time (`-t`, `-r`), the instruction (`-i`) or the number of the call
(`-n`) stands before the call's name; descriptors may carry what they are (`-y`, `-yy`), arguments their names
(`-N`), constants their numbers, names or both (`-X`); a time or a stack may follow (`-T`, `-k`). A call may be
cut in two by another thread's line. Of a structure that strace does not know it prints the address alone,
which is not enough to replay the call.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import NamedTuple

from kvmattr import uapi
from kvmattr.trace.calls import Call, Incomplete, descriptor
from kvmattr.trace.descriptors import Descriptors, Process
from kvmattr.trace.native import Mismatch, clip, number
from kvmattr.trace.operations import UNKNOWN, CreateFile, PunchHole, SetAttributes, SetFileAttributes, SetSlot
from kvmattr.trace.session import Guest

_SLOT = "{slot=, flags=, guest_phys_addr=, memory_size=, userspace_addr=}"
_EXPECTED = {
    "KVM_SET_USER_MEMORY_REGION": _SLOT,
    "KVM_SET_USER_MEMORY_REGION2": _SLOT[:-1] + ", guest_memfd_offset=, guest_memfd=}",
    "KVM_SET_MEMORY_ATTRIBUTES": "{address=, size=, attributes=, flags=}",
    "KVM_SET_MEMORY_ATTRIBUTES2": "{offset=, size=, attributes=, flags=}",
}
_REQUESTS = {
    uapi.KVM_SET_USER_MEMORY_REGION: "KVM_SET_USER_MEMORY_REGION",
    uapi.KVM_SET_USER_MEMORY_REGION2: "KVM_SET_USER_MEMORY_REGION2",
    uapi.KVM_SET_MEMORY_ATTRIBUTES: "KVM_SET_MEMORY_ATTRIBUTES",
    0xC080AED2: "KVM_SET_MEMORY_ATTRIBUTES2",
    uapi.KVM_CREATE_GUEST_MEMFD: "KVM_CREATE_GUEST_MEMFD",
    0xAE01: "KVM_CREATE_VM",
}
_NAMES = frozenset(_REQUESTS.values())
_FLAGS = {name: getattr(uapi, name) for name in (
    "KVM_MEM_LOG_DIRTY_PAGES", "KVM_MEM_READONLY", "KVM_MEM_GUEST_MEMFD", "KVM_MEMORY_ATTRIBUTE_PRIVATE",
    "GUEST_MEMFD_FLAG_MMAP", "GUEST_MEMFD_FLAG_INIT_SHARED")}
#: fallocate that gives pages of a file back.
_PUNCH = re.compile(r"fallocate\((?:[a-z]{1,10}=)?([0-9]{1,10}), (?:[a-z]{1,10}=)?"
                    r"([A-Z_|]*FALLOC_FL_PUNCH_HOLE[A-Z_|]*|0x3), (?:[a-z]{1,10}=)?(0x[0-9a-f]{1,16}|[0-9]{1,19}), "
                    r"(?:[a-z]{1,10}=)?(0x[0-9a-f]{1,16}|[0-9]{1,19})\)")
#: Fields of the structures that say nothing, and those that come out of the call.
_SILENT = re.compile(r"pad[0-9]*|reserved[0-9]*|error_offset")
#: Answers of a descriptor that does not know the request, or of none.
_NOT_ITS_FILE = (errno.ENOTTY, errno.EBADF)
_DIRECTIONS = {"0": 0, "_IOC_NONE": 0, "_IOC_WRITE": 1, "_IOC_READ": 2, "_IOC_READ|_IOC_WRITE": 3}

_CALL = re.compile(r"(?<![A-Za-z0-9_])(ioctl|close_range|close|dup[23]?|fcntl|clone3?|v?fork|fallocate)\(")
_RESUMED = re.compile(r"<\.\.\. (ioctl|close_range|close|dup[23]?|fcntl|clone3?|v?fork|fallocate) resumed>")
#: Cut by another thread's line, or by the end of strace itself.
_UNFINISHED = re.compile(r"\s*<(?:unfinished|detached) \.\.\.>\s*\Z")
_COMMENT = re.compile(r"/\*[^*]*\*/")
_OTHER_NAMESPACE = re.compile(r"/\* ([0-9]{1,10}) in strace's PID NS \*/")
_ANNOTATION = re.compile(r"(?<=[0-9])<(?:[^<>]|<[^<>]*>)*>")
_ARGUMENT_NAME = re.compile(r"(?:[a-z_]{1,20}=)?")
_REQUEST = re.compile(r"ioctl\((?:[a-z]{1,10}=)?(0x[0-9a-fA-F]+|[0-9]+)(?:<(?:[^<>]|<[^<>]*>)*>)?,\s*"
                      r"(?:[a-z]{1,10}=)?(_IOC\([^()]*\)|\w+)")
#: perf trace names the argument before its value, and spells a request that it does not know.
_PERF = re.compile(r"ioctl\(fd: [^,]{1,200}, cmd: (?:KVM_SET_(?:USER_MEMORY_REGION|MEMORY_ATTRIBUTES)|0x4020ae46"
                   r"|0x40a0ae49|0x4020aed2|\([A-Z|]+, (?:0xae|KVM), 0x(?:46|49|d2)\b)", re.IGNORECASE)
_NO_FILE = re.compile(r"ioctl\((?:[a-z]{1,10}=)?KVM_SET_(?:USER_MEMORY_REGION|MEMORY_ATTRIBUTES)")
_IOC = re.compile(r"_IOC\(([A-Z_|]+|0), (0x[0-9a-f]+), (0x[0-9a-f]+), (0x[0-9a-f]+|0)\)")
_RESULT = re.compile(r"\)\s*= (?:\s*)(\?|-?[0-9]+|0x[0-9a-fA-F]+)(?:\s+([A-Z][A-Z0-9_]*)|\s+\(errno ([0-9]{1,4})\))?")
#: strace itself answered, in the place of the kernel, which was not asked (`-e inject`).
_INJECTED = re.compile(r"\(INJECTED\)")
_STRUCTURE_END = re.compile(r"\}\s*\)\s*= ")
_FIELD = re.compile(r"(?<![A-Za-z0-9_])([a-z_][a-z_0-9]*)=(\[[^\]]*\]?|[^,\s}]*)")
_LEADING_PID = re.compile(r"\s*([0-9]{1,10})(?:<|\s)")


class Completed(NamedTuple):
    """A whole call: the line and process that it is of, its text from its name on."""

    process: int | None
    name: str
    text: str


class Reader:
    """Reads strace's lines; remembers the calls that have begun and not yet returned, at most one a thread."""

    def __init__(self, descriptors: Descriptors, note: Callable[[int, str], None]) -> None:
        self._descriptors = descriptors
        #: Says something of a line that is no VM's.
        self._note = note
        self._begun: dict[int | None, tuple[str, str, int]] = {}

    @property
    def waits(self) -> bool:
        """Whether a call has begun and not returned."""
        return bool(self._begun)

    def read(self, line: str, line_number: int) -> tuple[Guest, Call] | bool:
        """The call on a VM that this line completes, and that VM.

        True for a line that is understood and is no such call, the first half of one included; False for a
        line that is none of ours. Mismatch for one of ours that cannot be read.
        """
        resumed = _RESUMED.search(line)
        if resumed is not None:
            thread = thread_of(line[:resumed.start()])
            begun = self._begun.pop(thread, None)
            if begun is None or begun[0] != resumed[1]:
                return False
            return self._complete(Completed(thread, begun[0], begun[1] + line[resumed.end():]), line_number)
        # A task's name may look like a call.
        found = next((call for call in _CALL.finditer(line) if call[1] != "ioctl" or _request(line[call.start():])),
                     _CALL.search(line))
        if found is None:
            return False
        thread, text = thread_of(line[:found.start()]), line[found.start():]
        cut = _UNFINISHED.search(text) if text.rstrip().endswith(" ...>") else None
        if found[1] == "ioctl" and _request(text) is None and "KVM_" not in text and _PERF.match(text) is None:
            return False
        if cut is not None:
            self._begun[thread] = found[1], text[:cut.start()], line_number
            return True
        return self._complete(Completed(thread, found[1], text), line_number)

    def unfinished(self) -> list[tuple[Completed, int]]:
        """The calls that never returned, as if they did not tell how they went, with their line numbers."""
        calls = [(Completed(thread, name, text + ") = ?"), line)
                 for thread, (name, text, line) in self._begun.items()]
        self._begun.clear()
        return calls

    def complete(self, call: Completed, line_number: int) -> tuple[Guest, Call] | bool:
        """Read one of those."""
        return self._complete(call, line_number)

    def _complete(self, call: Completed, line_number: int) -> tuple[Guest, Call] | bool:
        process = self._descriptors.process(call.process)
        if call.name == "ioctl":
            return self._ioctl(call, process, line_number)
        if call.name == "fallocate":
            return self._fallocate(call, process)
        other = _OTHER_NAMESPACE.search(call.text)
        text = _bare(call.text)
        result = _RESULT.search(text)
        if result is None or not result[1].isdecimal():
            return False
        if result[2] is not None or _INJECTED.search(text, result.end()) is not None:
            return False
        value = int(other[1]) if other is not None else int(result[1][:20])
        arguments = text[len(call.name) + 1:result.start()].split(",")
        numbers = [_integer(argument) for argument in arguments[:2]]
        first, second = [*numbers, None, None][:2]
        if call.name == "close" and first is not None:
            return process.close(first)
        if call.name == "close_range" and first is not None and second is not None:
            if "CLOEXEC" not in text:
                process.close_range(first, second)
            return True
        if call.name.startswith("dup") or (call.name == "fcntl" and "F_DUPFD" in text):
            return first is not None and process.duplicate(first, value)
        if call.name in ("clone", "clone3", "fork", "vfork") and value:
            self._descriptors.child(process, value, shared="CLONE_FILES" in text)
            return True
        return False

    def _fallocate(self, call: Completed, process: Process) -> tuple[Guest, Call] | bool:
        text = _bare(call.text)
        found, result = _PUNCH.match(text), _RESULT.search(text)
        if found is None or result is None or _INJECTED.search(text, result.end()) is not None:
            return False
        known = process.known_file(int(found[1]))
        if known is None or known.guest is None:
            return False    # a hole in another file
        record = PunchHole(known.number, int(found[3], 0), int(found[4], 0))
        return known.guest, Call(record, _answer(result), pid=call.process)

    def _ioctl(self, call: Completed, process: Process, line_number: int) -> tuple[Guest, Call] | bool:
        text = _COMMENT.sub("", call.text)
        found = _request(text)
        if found is None:
            if _PERF.match(text) is not None:
                raise Mismatch("expected strace's 'ioctl(FD, REQUEST, {...})', found perf's, which has only the"
                               " address of the structure: record with strace")
            if _NO_FILE.match(text) is not None:
                raise Mismatch("expected 'ioctl(FD, REQUEST, {...}) = 0|-1 ERRNO|?', found no file descriptor")
            return False
        file, request = found
        opened = text.find("{")
        # What stands behind the structure may hold braces, too.
        end = _STRUCTURE_END.search(text, max(opened, 0)) if opened >= 0 else None
        closed = end.start() if end is not None else text.rfind("}")
        result = _RESULT.search(text, max(closed, 0))
        if result is None:
            raise Incomplete("expected 'ioctl(FD, REQUEST, {...}) = 0|-1 ERRNO|?', found no result")
        if _INJECTED.search(text, result.end()) is not None:
            self._note(line_number, f"{request} was answered by strace (INJECTED): nothing changed")
            return True
        answer = _answer(result)
        if answer in _NOT_ITS_FILE and not process.takes(file, of_vm=request != "KVM_SET_MEMORY_ATTRIBUTES2"):
            self._note(line_number, f"{request} on descriptor {file}, which is none that has it:"
                       f" {errno.errorcode[answer]}, nothing changed")
            return True
        if request == "KVM_CREATE_VM":
            if result[1].isdecimal() and answer == 0:
                process.create_guest(int(result[1][:10]), line_number)
            return True
        fields = dict(_FIELD.findall(text[opened:closed])) if 0 <= opened < closed else None
        if request == "KVM_CREATE_GUEST_MEMFD":
            if not result[1].isdecimal() or answer:
                return True
            guest = process.guest(file, None, answer, line_number)
            if guest is None:
                return True
            made = process.create_guest_memfd(int(result[1][:10]), guest)
            if fields is None or not {"size", "flags"} <= fields.keys():
                return True     # a file of which no line tells the size
            return guest, Call(CreateFile(made, _value(fields["size"], "size"), _value(fields["flags"], "flags")), 0,
                               pid=call.process)
        if fields is None:
            given = text[:result.start()].rpartition(",")[2].strip()
            if answer == errno.EFAULT:
                return True  # the kernel could not read the structure either: nothing happened
            raise Mismatch(f"expected {_EXPECTED[request]} in {request}, found {clip(given)}:"
                           " what strace has not read cannot be replayed")
        notes = tuple(f"unknown field {clip(name)}" for name in fields
                      if f"{name}=" not in _EXPECTED[request] and _SILENT.fullmatch(name) is None)[:4]
        if request == "KVM_SET_MEMORY_ATTRIBUTES2":
            number, guest = process.file_of_guest(file, line_number)
            words = [_value(_text(request, fields, name), name) for name in ("offset", "size", "attributes", "flags")]
            return guest is None or (
                guest, Call(SetFileAttributes(number, *words), answer, notes=notes, pid=call.process))
        record = _record(request, fields, process)
        guest = process.guest(file, record, answer, line_number)
        return guest is None or (guest, Call(record, answer, notes=notes, pid=call.process))


def thread_of(prefix: str) -> int | None:
    """What names the thread before a call: `[pid 7<name>]`, or a number at the start of the line.

    >>> thread_of("[pid  101<CPU 0/KVM>] "), thread_of("101<CPU 0> 10:00:00 "), thread_of("1669155555.123 ")
    (101, 101, None)
    """
    at = prefix.rfind("[pid ")
    if at >= 0:
        digits = prefix[at + 5:at + 40].lstrip()
        length = len(digits) - len(digits.lstrip("0123456789"))
        return int(digits[:length]) if 0 < length <= 10 else None
    found = _LEADING_PID.match(prefix)
    return int(found[1]) if found is not None else None


def _bare(text: str) -> str:
    return _ANNOTATION.sub("", _COMMENT.sub("", text))


def _integer(argument: str) -> int | None:
    word = _ARGUMENT_NAME.sub("", argument.strip(), count=1)
    if word.startswith("0x") and len(word) < 20:
        try:
            return int(word, 16)
        except ValueError:
            return None
    return int(word) if word.isdecimal() and len(word) < 20 else None


def _request(text: str) -> tuple[int, str] | None:
    """The descriptor and which of our requests a call makes: by name, number, or as strace spells a number."""
    found = _REQUEST.match(text)
    if found is None or len(found[1]) > 12:
        return None
    file = int(found[1], 0) if found[1] != "0" and found[1].startswith("0x") else int(found[1])
    word = found[2]
    if word in _NAMES:
        return file, word
    spelled = _IOC.fullmatch(word)
    if spelled is not None:
        kind, command, size = (int(spelled[group][:8], 16) for group in (2, 3, 4))
        code = _DIRECTIONS.get(spelled[1], 0) << 30 | size << 16 | kind << 8 | command
    elif word.startswith("0x") and len(word) <= 18:
        try:
            code = int(word, 16)
        except ValueError:
            return None
    else:
        return None
    request = _REQUESTS.get(code)
    return None if request is None else (file, request)


def _answer(result: re.Match[str]) -> int:
    value, name, code = result.groups()
    if value == "?":
        # A call that a signal stopped and that is made anew has done nothing.
        return errno.EINTR if name is not None and name.startswith("ERESTART") else UNKNOWN
    if not value.startswith("-"):
        return 0
    if code is not None and 0 < int(code) < 4096:
        return int(code)
    known = getattr(errno, name, None) if name is not None else None
    if not isinstance(known, int):
        raise Mismatch(f"expected the name of an errno after '= -1', found {clip(name or 'nothing')}")
    return known


def _text(request: str, fields: dict[str, str], name: str) -> str:
    if name not in fields:
        raise Mismatch(f"expected {_EXPECTED[request]} in {request}, found no {name}")
    return fields[name]


def _value(text: str, name: str, limit: int = 2**64) -> int:
    """A number, or flags by their names; a pointer of 0 has a name, too."""
    value = 0
    for word in ("0" if text == "NULL" else text).split("|"):
        value |= _FLAGS[word] if word in _FLAGS else number(word, name, limit)
    return value


def _record(request: str, fields: dict[str, str], process: Process) -> SetAttributes | SetSlot:
    def text(name: str) -> str:
        return _text(request, fields, name)

    def field(name: str, limit: int = 2**64) -> int:
        return _value(text(name), name, limit)

    if request == "KVM_SET_MEMORY_ATTRIBUTES":
        return SetAttributes(field("address"), field("size"), field("attributes"), field("flags"))
    record = SetSlot(field("slot", 2**32), field("flags", 2**32), field("guest_phys_addr"),
                     field("memory_size"), field("userspace_addr"))
    if request == "KVM_SET_USER_MEMORY_REGION":
        return record
    file = text("guest_memfd")
    return record._replace(guest_memfd=process.guest_memfd(descriptor(file)),
                           guest_memfd_offset=field("guest_memfd_offset"))
