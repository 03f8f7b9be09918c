"""JSON from elsewhere, read field by field: what is wrong is told in one line with the file and the field."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Read = TypeVar("Read")

#: Control characters but line ends, surrogates, and what turns the direction of writing.
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: Letters of a wrong value that an error shows.
_SHOWN = 40


class BadField(ValueError):
    """A field that is missing or is not what it must be; ``str()`` is one line."""


class Field:
    """A value of a JSON document, with its place for errors.

    >>> Field({"rounds": "many"}, "a.json")["rounds"].number()
    Traceback (most recent call last):
        ...
    kvmattr.measure.checked.BadField: a.json: rounds is 'many', expected a number
    """

    def __init__(self, value: Any, file: str, place: str = "") -> None:
        self.value = value
        self._file = file
        self._place = place

    def refuse(self, expected: str) -> NoReturn:
        """Raise :class:`BadField`: the value is not what was expected."""
        shown = ascii(self.value)       # one line, whatever is in it
        if len(shown) > _SHOWN:
            shown = f"{shown[:_SHOWN]}..."
        raise BadField(f"{self._file}: {self._place or 'the document'} is {shown}, expected {expected}")

    def _inner(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name

    def __getitem__(self, name: str) -> Field:
        """A member of an object, which must be there."""
        members = self.object()
        if name not in members:
            raise BadField(f"{self._file}: {self._inner(name)} is missing")
        return Field(members[name], self._file, self._inner(name))

    def get(self, name: str) -> Field:
        """A member of an object; of one that is not there, None."""
        return Field(self.object().get(name), self._file, self._inner(name))

    def object(self) -> dict[str, Any]:
        """As an object."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return self.value

    def items(self) -> Iterator[tuple[str, Field]]:
        """The members of an object."""
        for name, value in self.object().items():
            yield name, Field(value, self._file, self._inner(ascii(name)[1:-1]))

    def list(self, read: Callable[[Field], Read]) -> list[Read]:
        """As a list (or what Python has in its place), each of whose items is read in this way."""
        if not isinstance(self.value, (list, tuple)):
            self.refuse("a list")
        return [read(Field(item, self._file, f"{self._place}[{index}]"))
                for index, item in enumerate(self.value)]

    def text(self) -> str:
        """As a string."""
        if not isinstance(self.value, str):
            self.refuse("a string")
        return self.value

    def one_of(self, known: Sequence[str]) -> str:
        """As one of these strings."""
        if not isinstance(self.value, str) or self.value not in known:
            self.refuse(f"one of {', '.join(known)}")
        return self.value

    def boolean(self) -> bool:
        """As true or false."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def number(self, low: float = -math.inf) -> float:
        """As a finite number, at least ``low``."""
        expected = "a number" if low == -math.inf else f"a number of at least {low:g}"
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            self.refuse(expected)
        try:
            number = float(self.value)
        except OverflowError:
            self.refuse(expected)
        if not math.isfinite(number) or number < low:
            self.refuse(expected)
        return number

    def positive(self) -> float:
        """As a finite number above 0."""
        if self.number() <= 0:
            self.refuse("a number above 0")
        return self.number()

    def within(self, low: float, high: float) -> float:
        """As a number from ``low`` to ``high``, neither of which is exceeded by anything that is measured."""
        if not low <= self.number() <= high:
            self.refuse(f"a number from {low:g} to {high:g}")
        return self.number()

    def integer(self, low: int = 0) -> int:
        """As an integer of 64 bits, at least ``low``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value < 1 << 64:
            self.refuse(f"an integer of at least {low}")
        return self.value

    def whole(self) -> int:
        """As an integer, negative ones too."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.refuse("an integer")
        return self.value

    def optional(self, read: Callable[[Field], Read]) -> Read | None:
        """None where the value is null or missing, else read in this way."""
        return None if self.value is None else read(self)


def printable(value: Any) -> Any:
    """The document, with what would act on a terminal or cannot be encoded written as an escape in every string."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(name): printable(item) for name, item in value.items()}
    return value


def load(path: str | os.PathLike[str]) -> Field:
    """The document in a file. Raises OSError, or :class:`BadField` if it is no JSON."""
    name = os.fspath(path)

    def refuse(constant: str) -> NoReturn:
        raise BadField(f"{name} is not JSON: it has {constant}")
    try:
        return Field(printable(json.loads(Path(path).read_bytes(), parse_constant=refuse)), name)
    except BadField:
        raise
    except RecursionError:
        raise BadField(f"{name} is not JSON: it is nested too deeply") from None
    except ValueError as error:     # also text that is no UTF-8, and integers of thousands of digits
        raise BadField(f"{name} is not JSON: {' '.join(str(error).split())}") from None
