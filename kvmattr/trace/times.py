"""When a line was written, by whatever clock its writer used: an epoch, seconds since the boot, a time of day."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from kvmattr.trace.operations import NO_TIME

_SECOND: Final = 10**9
_DAY: Final = 86400 * _SECOND

_QEMU = re.compile(r"(?<![0-9])[0-9]{1,10}@([0-9]{1,11})\.([0-9]{1,9}):")
_STAP = re.compile(r"(?<![0-9])[0-9]{1,10}@([0-9]{16,19})\s")
_DATE = re.compile(r"(?<![0-9])([0-9]{4})-([0-9]{2})-([0-9]{2})[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})"
                   r"(?:[.,]([0-9]{1,9}))?")
_OF_DAY = re.compile(r"(?<![0-9:.])([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?(?![0-9:])")
_SECONDS = re.compile(r"(?<![0-9.:@(+])([0-9]{1,11})\.([0-9]{3,9})(?=[:\s])")
#: ftrace's latency format: since the trace began, with a sign of how long it was to the line before.
_MICROSECONDS = re.compile(r"\s([0-9]{1,12})(?:us[ $@*#!+]?:|\.([0-9]{3})ms \()")


def _nanoseconds(seconds: int, fraction: str | None) -> int:
    return seconds * _SECOND + int((fraction or "0")[:9].ljust(9, "0"))


def time_in(text: str) -> tuple[str, int] | None:
    """The clock and the nanoseconds of the first time in a text; None if there is none.

    >>> time_in("7@12.000005:"), time_in("7 10:00:00.5 "), time_in("2025-01-01T00:00:01Z")
    (('seconds', 12000005000), ('day', 36000500000000), ('seconds', 1735689601000000000))
    """
    time = _first_time(text)
    # What no clock shows would fit no row either.
    return time if time is not None and time[1] < 1 << 63 else None


def _first_time(text: str) -> tuple[str, int] | None:
    found = _QEMU.search(text)
    if found is not None:
        return "seconds", _nanoseconds(int(found[1]), found[2])
    found = _STAP.search(text)
    if found is not None:
        return "seconds", int(found[1])
    found = _DATE.search(text)
    if found is not None:
        try:
            date = datetime(*(int(found[group]) for group in range(1, 7)), tzinfo=UTC)  # type: ignore[arg-type,misc]
        except ValueError:
            return None
        return "seconds", _nanoseconds(int(date.timestamp()), found[7])
    found = _OF_DAY.search(text)
    if found is not None:
        hours, minutes, seconds = (int(found[group]) for group in (1, 2, 3))
        return "day", _nanoseconds(hours * 3600 + minutes * 60 + seconds, found[4])
    found = _SECONDS.search(text)
    if found is not None:
        return "seconds", _nanoseconds(int(found[1]), found[2])
    found = _MICROSECONDS.search(text)
    return None if found is None else ("seconds", int(found[1] + (found[2] or "")) * 1000)


def parse_time(text: str) -> tuple[str, int] | None:
    """A time as a user gives it: as the log writes it, or a number of seconds with a point.

    >>> parse_time("10:00:00"), parse_time("1.5"), parse_time("7")
    (('day', 36000000000000), ('seconds', 1500000000), None)
    """
    whole, point, fraction = text.partition(".")
    if point and whole.isdecimal() and len(whole) < 12 and (fraction or "0").isdecimal():
        return "seconds", _nanoseconds(int(whole), fraction)
    return time_in(text)


class Clock:
    """The clock of one log: the first that it shows. A time of day that goes back by hours is the next day's."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self._days = 0
        self._last = 0

    def read(self, *texts: str) -> int:
        """Nanoseconds of the first of these texts that has a time; NO_TIME for none or another clock's."""
        return self.take(next((time for text in texts if (time := time_in(text)) is not None), None))

    def take(self, time: tuple[str, int] | None) -> int:
        """Nanoseconds of a time on this clock; NO_TIME for none or another clock's."""
        if time is None or self.kind not in (None, time[0]):
            return NO_TIME
        self.kind, value = time
        if self.kind == "day":
            if value + self._days < self._last - _DAY // 2:
                self._days += _DAY
            value += self._days
            self._last = max(self._last, value)
        return value
