"""Numbers, and what went wrong, as people read them."""

from __future__ import annotations

import os

from kvmattr import uapi

_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
#: Sizes that are counted in pages and read as memory.
MEMORY_SIZES = ("guest size", "block size")
#: Powers of 2.
_MEMORY = ((60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB"))


def scale(value: float, unit: str) -> tuple[float, str]:
    """The divisor and the name of the unit in which ``value`` (ns or bytes) is best read."""
    steps = _BYTES if unit == "bytes" else _TIMES
    for divisor, name in steps:
        if value >= divisor:
            return divisor, name
    return steps[-1]


def digits(value: float) -> str:
    """Three digits that count.

    >>> digits(45.23), digits(1234.5), digits(0.0123)
    ('45.2', '1,234', '0.0123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    """A time or a number of bytes.

    >>> quantity(1234, "ns/conversion"), quantity(2_500_000, "bytes")
    ('1.23 us', '2.5 MB')
    """
    divisor, name = scale(value, unit)
    return f"{digits(value / divisor)} {name}"


def spread(median: float, low: float, high: float, unit: str) -> str:
    """A median with its range in one unit; without the range where it is the median.

    >>> spread(1200, 1100, 1500, "ns/x")
    '1.2 us (1.1..1.5)'
    """
    divisor, name = scale(median, unit)
    if low == high:
        return quantity(median, unit)
    return f"{digits(median / divisor)} {name} ({digits(low / divisor)}..{digits(high / divisor)})"


def size(value: int, size_name: str) -> str:
    """A size: pages as memory, everything else as a count.

    >>> size(1 << 18, "guest size"), size(10_000, "earlier conversions")
    ('1 GiB', '10,000')
    """
    return memory(value * uapi.PAGE_SIZE) if size_name in MEMORY_SIZES else f"{value:,}"


def memory(count: int) -> str:
    """A number of bytes in powers of 1024, as guests have them.

    >>> memory(4096), memory(3 << 30), memory(1 << 64), memory(1000)
    ('4 KiB', '3 GiB', '16 EiB', '1000 bytes')
    """
    for shift, unit in _MEMORY:
        if count >> shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} bytes"


def tick(value: int, size_name: str) -> str:
    """A size beside an axis, where seven of them must find room.

    >>> tick(1 << 18, "guest size"), tick(10_000, "runs"), tick(1_000_000, "runs")
    ('1 GiB', '10k', '1M')
    """
    if size_name in MEMORY_SIZES:
        return size(value, size_name)
    return next((f"{value / divisor:g}{letter}" for divisor, letter in ((1_000_000, "M"), (1_000, "k"))
                 if value >= divisor), f"{value}")


def listed(words: list[str]) -> str:
    """Words with commas and an "and".

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def reason(error: BaseException) -> str:
    """An error in one line: of a file, its name and the system's words for it, without a number.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.json")), reason(ValueError("size 0"))
    ('a.json: No such file or directory', 'size 0')
    """
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.filename and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)
