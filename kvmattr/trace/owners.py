"""Which VM an event is of. Events name none: what tells VMs apart is who wrote the lines, and what one VM cannot do.

Lines with other names of one kind (processes, containers, hosts) are different VMs'. Threads may be one VM's.
A memslot that is made, with success, where another one is or with another size or userspace address than it has
is what KVM refuses in one VM: then the line is of another, or lines between are lost. Where that cannot be
decided it is told, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvmattr.trace.native import Mismatch
from kvmattr.trace.operations import Record, SetAttributes, SetSlot
from kvmattr.trace.session import Guest
from kvmattr.trace.sources import Source

#: `new_guest(pid, file, line)` makes a VM and numbers it.
NewGuest = Callable[[int | None, int | None, int], Guest]
#: More VMs than one log has; each line of a new writer is held against all.
_MOST: Final = 1000
#: Writers that are remembered: more than a machine has threads.
_REMEMBERED: Final = 1 << 16
#: Threads that are named in a text.
_NAMED: Final = 8
_LOST: Final = "lines are lost, or several VMs write to this log"
#: Kinds of names that are numbers of processes.
_PROCESSES: Final = frozenset(("process", "pid", "vpid", "qemuPid", "qemu_pid", "_PID", "SYSLOG_PID"))
#: Kinds of names that several VMs may have in common.
_SHARED: Final = frozenset(("host", "hostname", "_HOSTNAME", "_SYSTEMD_UNIT", "instance", "domain"))


class Owners:
    """The VMs of lines that name none: of all events, or of what uses one descriptor that no line has made.

    `pids`: the processes or threads that are asked for, none for all. `one`: all are of one VM, whatever speaks
    against it.
    """

    def __init__(self, new_guest: NewGuest, file: int | None = None, *, pids: frozenset[int] = frozenset(),
                 one: bool = False) -> None:
        self._new_guest = new_guest
        self._file = file
        self._pids = pids
        self._one = one
        self._guests: list[Guest] = []
        self._of: dict[Source, Guest] = {}
        self._vcpus: dict[tuple[Guest, str], int] = {}
        #: The threads that changed attributes and of which no line tells the process, by VM.
        self._converting: dict[Guest, dict[int, str]] = {}
        #: Conversions of threads that were not asked for.
        self._others: dict[int, int] = {}

    @property
    def guests(self) -> list[Guest]:
        """The VMs, in the order in which they began."""
        return self._guests

    def knows(self, source: Source) -> bool:
        """Whether a line of this source was seen before."""
        return source in self._of

    def guest(self, source: Source, record: Record | None, answer: int, line: int, *, gaps: bool) -> Guest | None:
        """The VM of a line; None for one of a thread that is not asked for, where nothing else tells VMs apart.

        `gaps`: lines of the log are known to be lost. Mismatch for a line that may be of several VMs.
        """
        converts = isinstance(record, SetAttributes)
        if converts and self._pids and self._is_other(source):
            return None
        guest = self._guest(source, record, answer, line, gaps=gaps)
        if converts and source.thread is not None and not any(kind in _PROCESSES for kind, _ in source.names):
            threads = self._converting.setdefault(guest, {})
            if len(threads) < _REMEMBERED:
                threads[source.thread] = source.vcpu
        return guest

    def begin_again(self) -> None:
        """A line says that another VM begins: lines are of that one from here on."""
        self._guests, self._of = [], {}

    def finish(self, tell: Callable[[str], None]) -> None:
        """Tell where threads were taken as one VM's and nothing could have spoken against it, and what was left out."""
        for guest, threads in self._converting.items():
            if len(threads) > 1 and not guest.has_slots and not self._one:
                more = " or more" if len(threads) == _REMEMBERED else ""
                named = [f"{thread} {name}".rstrip() for thread, name in sorted(threads.items())]
                guest.trace.tell_note(0, f"conversions by {len(threads):,} threads{more} ({_listed(named)}), and no"
                                      " line tells whether they are of one VM: taken as one (--pid picks threads)")
        if self._others:
            count = sum(self._others.values())
            tell(f"{count:,} conversion{'' if count == 1 else 's'} of other threads left out:"
                 f" {_listed([str(thread) for thread in sorted(self._others)])}")

    def _is_other(self, source: Source) -> bool:
        """Whether a conversion is of a thread that was not asked for and of which nothing tells the process."""
        if source.thread is None or source.thread in self._pids or (self._guests and self._guests[-1].has_slots):
            return False
        if any(kind in _PROCESSES for kind, _ in source.names):
            return False
        if source.thread in self._others or len(self._others) < _REMEMBERED:
            self._others[source.thread] = self._others.get(source.thread, 0) + 1
        return True

    def _guest(self, source: Source, record: Record | None, answer: int, line: int, *, gaps: bool) -> Guest:
        if not self._guests:
            return self._begin(source, line)
        known = self._of.get(source)
        if known is None and (self._one or not (source.names or source.thread is not None)):
            known = self._guests[-1]
        if known is None:
            known = self._by_name(source)
        if known is not None:
            odd = known.contradicts(record, answer)
            if odd is not None:
                assert isinstance(record, SetSlot)
                if not (gaps or self._one) and known.begins_again(record):
                    return self._begin(source, line, odd)
                known.trace.tell_note(line, f"{odd}: {_LOST}")
            elif source not in self._of:
                self._remember(known, source)
            return known
        if len(self._guests) == _MOST:
            raise Mismatch(f"a call {_words(source)} behind those of {_MOST:,} VMs, which are the most that one log may"
                           " have")
        reasons = [self._against(guest, source, record, answer) for guest in self._guests]
        fitting = [guest for guest, why in zip(self._guests, reasons, strict=True) if why is None]
        if len(fitting) > 1:
            numbers = " or ".join(str(guest.number) for guest in fitting)
            raise Mismatch(f"a call {_words(source)} that may be of VM {numbers}: no line tells")
        if fitting:
            self._remember(fitting[0], source)
            return fitting[0]
        return self._begin(source, line, reasons[-1])

    def _by_name(self, source: Source) -> Guest | None:
        """The one VM that has a name of this line."""
        named = {guest for guest in self._guests for kind, name in source.names
                 if kind not in _SHARED and guest.names.get(kind) == name}
        named = {guest for guest in named if self._conflict(guest, source) is None}
        return named.pop() if len(named) == 1 else None

    def _begin(self, source: Source, line: int, why: str | None = None) -> Guest:
        guest = self._new_guest(source.thread if self._file is not None else None, self._file, 0)
        guest.first_line = line
        guest.why = why
        self._guests.append(guest)
        self._remember(guest, source)
        return guest

    def _remember(self, guest: Guest, source: Source) -> None:
        if len(self._of) == _REMEMBERED:
            return
        self._of[source] = guest
        for kind, name in source.names:
            guest.names.setdefault(kind, name)
            # Of a syslog tag the name is a number, too.
            if name.isdecimal() and len(name) <= 10:
                guest.pids.add(int(name))
        if source.thread is not None:
            guest.pids.add(source.thread)
            if source.vcpu:
                self._vcpus.setdefault((guest, source.vcpu), source.thread)

    @staticmethod
    def _conflict(guest: Guest, source: Source) -> str | None:
        for kind, name in source.names:
            other = guest.names.get(kind, name)
            if other != name:
                return f"{kind} {name}, not {other}"
        return None

    def _against(self, guest: Guest, source: Source, record: Record | None, answer: int) -> str | None:
        """Why a line of a new source is none of a VM."""
        other = self._vcpus.get((guest, source.vcpu))
        if other is not None and source.thread not in (None, other):
            return f"{source.vcpu} is thread {other} and thread {source.thread}"
        return self._conflict(guest, source) or guest.contradicts(record, answer)


def _words(source: Source) -> str:
    named = [f"{kind} {name}" for kind, name in source.names]
    return "of " + ", ".join(named + [f"thread {source.thread}"] * (source.thread is not None))


def _listed(names: list[str]) -> str:
    """
    >>> _listed(["1", "2"]), _listed([str(number) for number in range(20)])
    ('1, 2', '0, 1, 2, 3, 4, 5, 6, 7 and 12 more')
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
