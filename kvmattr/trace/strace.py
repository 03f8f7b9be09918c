"""strace logs: the KVM ioctls of a VMM, as any of strace's options print them.

A call may be cut in two by another thread's line (`<unfinished ...>`, `<... ioctl resumed>`); numbers are
decimal or hexadecimal; flags are names or numbers; a request that strace does not know is `_IOC(...)` or a
number, and of its structure strace then prints only the address, which is not enough to replay it.
"""

from __future__ import annotations

import errno
import re

from kvmattr import uapi
from kvmattr.trace.logs import Call, descriptor
from kvmattr.trace.native import Mismatch, number
from kvmattr.trace.operations import UNKNOWN, SetAttributes, SetSlot

_SLOT = "{slot=, flags=, guest_phys_addr=, memory_size=, userspace_addr=}"
_EXPECTED = {
    "KVM_SET_USER_MEMORY_REGION": _SLOT,
    "KVM_SET_USER_MEMORY_REGION2": _SLOT[:-1] + ", guest_memfd_offset=, guest_memfd=}",
    "KVM_SET_MEMORY_ATTRIBUTES": "{address=, size=, attributes=, flags=}",
}
_REQUESTS = {getattr(uapi, name): name for name in _EXPECTED}
_FLAGS = {name: getattr(uapi, name) for name in (
    "KVM_MEM_LOG_DIRTY_PAGES", "KVM_MEM_READONLY", "KVM_MEM_GUEST_MEMFD", "KVM_MEMORY_ATTRIBUTE_PRIVATE")}

_IOCTL = re.compile(r"\bioctl\(([0-9]+)(?:<[^>]*>)?,\s*(_IOC\([^)]*\)|[^,\s)]+)(.*)", re.DOTALL)
_IOC = re.compile(r"_IOC\(([A-Z_|]+|0), (0x[0-9a-f]+), (0x[0-9a-f]+), (0x[0-9a-f]+|0)\)")
_DIRECTIONS = {"0": 0, "_IOC_NONE": 0, "_IOC_WRITE": 1, "_IOC_READ": 2, "_IOC_READ|_IOC_WRITE": 3}
_PROCESS = re.compile(r"\s*(?:\[pid\s+([0-9]+)\]|([0-9]+)\s)")
_RESUMED = re.compile(r"<\.\.\. ioctl resumed>(.*)", re.DOTALL)
_UNFINISHED = "<unfinished ...>"
_COMMENT = re.compile(r"/\*.*?\*/")
_RESULT = re.compile(r"(.*)\)\s*=\s+(-?[0-9]+|\?)(?:\s+([A-Z0-9]+))?", re.DOTALL)
_STRUCTURE = re.compile(r"\{(.*)\}", re.DOTALL)
_FIELD = re.compile(r"([a-z_0-9]+)=([^,\s}]+)")


class Reader:
    """Reads one strace log; remembers the calls that have begun and not yet resumed, at most one a thread."""

    def __init__(self) -> None:
        self._unfinished: dict[str, tuple[str, int]] = {}
        self._machine: str | None = None

    def parse(self, line: str, line_number: int) -> Call | None:
        """The call that this line completes; None for an unrelated line and for the first half of a call."""
        resumed = _RESUMED.search(line)
        if resumed is not None:
            beginning = self._unfinished.pop(_process(line), None)
            return None if beginning is None else self._call(beginning[0] + resumed[1])
        if _request(line) is None:
            return None
        if line.endswith(_UNFINISHED):
            self._unfinished[_process(line)] = (line.removesuffix(_UNFINISHED).rstrip(), line_number)
            return None
        return self._call(line)

    def awaits(self, line: str) -> bool:
        """Whether `line` is the first half of one of our calls."""
        return line.endswith(_UNFINISHED) and _request(line) is not None

    def unfinished(self) -> list[tuple[str, int]]:
        """The calls that never resumed, as lines that do not tell how they went, with their line numbers."""
        return [(beginning + ") = ?", line_number) for beginning, line_number in self._unfinished.values()]

    def _call(self, line: str) -> Call | None:
        line = _COMMENT.sub("", line)
        found, request = _IOCTL.search(line), _request(line)
        result = _RESULT.search(found[3]) if found is not None else None
        if found is None or request is None or result is None:
            raise Mismatch("expected 'ioctl(FD, REQUEST, {...}) = 0|-1 ERRNO|?', found no result")
        answer = _answer(result[2], result[3])
        structure = _STRUCTURE.search(result[1])
        if structure is None:
            if answer == errno.EFAULT:
                return None  # the kernel could not read the structure either: nothing happened
            raise Mismatch(f"expected {_EXPECTED[request]} in {request}, found {result[1].strip(', ')!r}:"
                           " what strace has not read cannot be replayed")
        if self._machine not in (None, found[1]):
            raise Mismatch(f"expected calls of one VM, on file descriptor {self._machine}, found one on"
                           f" {found[1]}: cut the recording into one file a VM")
        self._machine = found[1]
        return Call(_record(request, dict(_FIELD.findall(structure[1]))), answer)


def _process(line: str) -> str:
    found = _PROCESS.match(line)
    return (found[1] or found[2]) if found is not None else ""


def _request(line: str) -> str | None:
    """Which of our requests an ioctl line makes: by name, by number, or as strace spells one it lacks."""
    found = _IOCTL.search(line)
    if found is None:
        return None
    word = found[2]
    if word in _EXPECTED:
        return word
    spelled = _IOC.fullmatch(word)
    if spelled is not None:
        kind, command, size = (int(spelled[group], 16) for group in (2, 3, 4))
        return _REQUESTS.get(_DIRECTIONS.get(spelled[1], 0) << 30 | size << 16 | kind << 8 | command)
    return _REQUESTS.get(int(word, 16)) if word.startswith("0x") and word[2:].isalnum() else None


def _answer(result: str, name: str | None) -> int:
    if result == "?":
        return UNKNOWN
    if not result.startswith("-"):
        return 0
    code = getattr(errno, name, None) if name is not None else None
    if not isinstance(code, int):
        raise Mismatch(f"expected the name of an errno after '= -1', found {name or 'nothing'!r}")
    return code


def _record(request: str, fields: dict[str, str]) -> SetAttributes | SetSlot:
    def field(name: str, limit: int = 2**64) -> int:
        value = 0
        for word in _text(request, fields, name).split("|"):
            value |= _FLAGS[word] if word in _FLAGS else number(word, name, limit)
        return value

    if request == "KVM_SET_MEMORY_ATTRIBUTES":
        return SetAttributes(field("address"), field("size"), field("attributes"), field("flags"))
    record = SetSlot(field("slot", 2**32), field("flags", 2**32), field("guest_phys_addr"),
                     field("memory_size"), field("userspace_addr"))
    if request == "KVM_SET_USER_MEMORY_REGION":
        return record
    return record._replace(guest_memfd=descriptor(_text(request, fields, "guest_memfd")),
                           guest_memfd_offset=field("guest_memfd_offset"))


def _text(request: str, fields: dict[str, str], name: str) -> str:
    if name not in fields:
        raise Mismatch(f"expected {_EXPECTED[request]} in {request}, found no {name}")
    return fields[name]
