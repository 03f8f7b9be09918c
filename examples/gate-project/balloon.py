"""A balloon: the guest gives pages to the host and takes them back."""

from __future__ import annotations

from kvmattr import AttributeMap

GIVEN = 1


class Balloon:
    """Which pages of a guest the host has.

    >>> balloon = Balloon(1000)
    >>> balloon.inflate(10, 20)
    10
    >>> balloon.deflate()
    10
    """

    def __init__(self, npages: int) -> None:
        self.pages = AttributeMap(npages)

    def inflate(self, start: int, stop: int) -> int:
        """Give a range to the host; the number of pages that it has now."""
        self.pages.or_(start, stop, GIVEN)
        return self.given

    def deflate(self) -> int:
        """Take everything back; the number of pages that came back."""
        given = self.given
        self.pages.and_(0, len(self.pages), 0xFF & ~GIVEN)
        return given

    @property
    def given(self) -> int:
        return self.pages.count(0, len(self.pages), GIVEN, GIVEN)
