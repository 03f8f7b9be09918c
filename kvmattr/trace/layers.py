"""What stands around a line of a log: quotes, JSON, colours, and the prefixes of those that pass it on.

Nothing here knows our calls. A layer is taken off only where its own form is certain; a reader looks for its
call at any place of what is left, so a prefix that nobody knows does no harm.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# Colours and other sequences that terminals obey, and the byte order mark that editors write.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|\ufeff")
_SPELLED_ESCAPES = re.compile(r"\\(?:x1b|u001[bB]|033|e)\[[0-9;]*[A-Za-z]")
_QUOTES = re.compile(r"(?:[ \t]?>)+[ \t]?")
_SOFT = re.compile(r"=([0-9A-F]{2})")
# No longer than what HTML has: a number of thousands of digits is none.
_ENTITY = re.compile(r"&(?:[A-Za-z]{1,31}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
# The prefixes, each from the start of a line: Kubernetes' container logs, docker compose, journald and syslog.
_CRI = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(?:Z|[+-][0-9:]+) (stdout|stderr) ([FP]) ")
_COMPOSE = re.compile(r"([\w.-]{1,80}) {1,40}\| ")
_KUBECTL = re.compile(r"\[((?:pod|container)/[\w./-]{1,255})\] ")
_SYSLOG = re.compile(r"(?:<[0-9]{1,3}>)?(?:[A-Z][a-z]{2} [ 0-9][0-9] (?:[0-9]{4} )?[0-9]{2}:[0-9:]{5}(?:\.[0-9]{1,9})?"
                     r"|(?:[A-Z][a-z]{2} )?[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]{8}(?:[.,][0-9]{1,9})?"
                     r"(?: ?(?:Z|[A-Z]{2,5}|[+-][0-9:]{2,6}))?)\s([\w.-]{1,255})\s(?!kvm_)([^\s\[\]:]{1,80})"
                     r"(?:\[([0-9]{1,10})\])?:\s")
_SYSLOG_5424 = re.compile(r"<[0-9]{1,3}>1 \S{1,64} (\S{1,255}) (\S{1,48}) (\S{1,128}) \S{1,32} "
                          r"(?:-|\[[^\]]{0,1000}\]) ")
# grep's file name before each line, without the number of a rotated file; the hour of a time is no number of a line.
_GREP = re.compile(r"([\w./+-]{0,255}\.(?:log|txt|out|err|trace|strace))(?:\.[0-9]{1,3})?:"
                   r"(?:[0-9]{1,10}:(?![0-9]{2}:[0-9]{2}(?!:)))?(?![/\\])")
#: The fields of JSON lines that name whose they are: journald's, docker's, those of Kubernetes and of runtimes.
_NAMES = frozenset((
    "pid", "syslog_pid", "systemd_unit", "hostname", "host", "container_id_full", "container_id", "container_name",
    "containerid", "docker_id", "qemupid", "qemu_pid", "pod", "pod_name", "pod_id", "sandbox", "sandbox_id", "vm",
    "vm_id", "domain", "instance"))
#: Quoted-printable cuts lines so that they have at most 76 characters, the equals sign at their end included.
_SOFT_COLUMNS = range(70, 77)
_JSON_DEPTH = 8


# The same in bytes: a highlighter may stand in the middle of a name.
_COLOURS = re.compile(rb"\x1b\[[0-9;:]*[mK]|\\(?:x1b|u001[bB]|033|e)\[[0-9;]*[mK]")


class Text(NamedTuple):
    """A line without its layers. `partial`: who passed it on says that the next line goes on with it.

    `names`: how those that passed it on name whose line it was: a kind and a name each.
    """

    text: str
    partial: bool = False
    names: tuple[tuple[str, str], ...] = ()


def uncoloured(text: bytes) -> bytes:
    """Text without the colours that terminals, grep and loggers put into it.

    >>> uncoloured(b"\\x1b[31mkvm_set\\x1b[m_user_memory")
    b'kvm_set_user_memory'
    """
    if b"\x1b[" in text or b"1b[" in text or b"1B[" in text or b"\\033[" in text or b"\\e[" in text:
        return _COLOURS.sub(b"", text)
    return text


def plain(text: str) -> str:
    """A line without colours, byte order marks and what HTML and mail programs do to characters.

    >>> plain("\\ufeff\\x1b[31ma=3D1 &lt;b&gt;\\r")
    'a=1 <b>'
    """
    if "\x1b" in text or "\ufeff" in text:
        text = _ESCAPES.sub("", text)
    if "\\" in text:
        text = _SPELLED_ESCAPES.sub("", text)
    if "=3D" in text:
        text = _SOFT.sub(lambda found: chr(int(found[1], 16)), text)
    if "&lt;" in text or "&gt;" in text or "&quot;" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return text.rstrip("\r\n\0")


def texts(line: str) -> Iterator[Text]:
    """The texts of a line: itself, or the strings in it where it is a JSON object.

    >>> [text.text for text in texts('{"log":"one\\\\ntwo\\\\n","stream":"stderr"}')]
    ['one', 'two', 'stderr']
    """
    whole = line.rstrip("\r\n")
    soft = whole.endswith("=") and ("=3D" in line or len(whole) in _SOFT_COLUMNS)
    line = plain(line)
    if soft:
        # Quoted-printable: the line was cut where it stands.
        text, names = without_prefix(line[:-1])
        yield Text(text, True, names)
        return
    found = _json_object(line)
    if found is not None:
        # Some write their message twice, as text and as a field: one line is one call.
        given: dict[str, str] = {}
        strings = list(dict.fromkeys(_strings(found, 0, given)))
        names = tuple(given.items())
        for text in strings:
            yield Text(text, names=names)
        return
    cri = _CRI.match(line)
    if cri is not None:
        yield Text(line[cri.end():], cri[2] == "P")
    else:
        text, names = without_prefix(line)
        yield Text(text, names=names)


def without_prefix(line: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A line without the prefixes of mail, docker compose, kubectl, syslog and journald; whom these name.

    >>> without_prefix("> > Jan 01 10:00:00 host qemu[7]: kvm")
    ('kvm', (('host', 'host'), ('qemu', '7')))
    >>> without_prefix("vm-1  | kvm")
    ('kvm', (('container', 'vm-1'),))
    """
    names: tuple[tuple[str, str], ...] = ()
    found = _QUOTES.match(line)
    if found is not None:
        line = line[found.end():]
    for prefix in (_COMPOSE, _KUBECTL):
        found = prefix.match(line)
        if found is not None:
            line, names = line[found.end():], (*names, ("container", found[1]))
    found = _GREP.match(line)
    if found is not None:
        line, names = line[found.end():], (*names, ("file", found[1]))
    found = _SYSLOG.match(line) or _SYSLOG_5424.match(line)
    if found is not None:
        # Only a tag with a number tells one writer from the next.
        line, names = line[found.end():], (*names, ("host", found[1]), *(((found[2], found[3]),) if found[3] else ()))
    return line, names


def _json_object(line: str) -> dict[str, Any] | None:
    """The object that a line is, alone or in an array; None for all else."""
    text = line.strip().removesuffix(",")
    if not (text.startswith(("{", "[{")) and text.endswith(("}", "}]"))):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return {"": found} if isinstance(found, list) else found


def _strings(value: Any, depth: int, names: dict[str, str]) -> Iterator[str]:
    if isinstance(value, list) and value and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        # journalctl's way with a message that is not all printable.
        value = bytes(value).decode(errors="replace")
    if isinstance(value, str):
        for line in value.splitlines():
            text = plain(line)
            inner = _json_object(text) if depth < _JSON_DEPTH else None
            if inner is None:
                yield text
            else:
                yield from _strings(inner, depth + 1, names)
    elif isinstance(value, dict) and depth < _JSON_DEPTH:
        for name, item in value.items():
            if name.lstrip("_").lower() in _NAMES and isinstance(item, str | int):
                names.setdefault(name, str(item))
            yield from _strings(item, depth + 1, names)
    elif isinstance(value, list) and depth < _JSON_DEPTH:
        for item in value:
            yield from _strings(item, depth + 1, names)
