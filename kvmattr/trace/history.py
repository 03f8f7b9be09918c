"""What became of one page, from line to line of a recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kvmattr import uapi
from kvmattr.protection import Access
from kvmattr.trace.answers import Answering
from kvmattr.trace.moments import Until
from kvmattr.trace.operations import FILE_SET, IMPLIED, NO_TIME, SET, SLOT
from kvmattr.trace.text import time_text
from kvmattr.trace.trace import Trace
from kvmattr.vm import VM


class Page(NamedTuple):
    """The state of one page: its memslot in address space 0, None without, and its attributes."""

    slot: int | None
    readonly: bool
    attributes: int


class Change(NamedTuple):
    """A line that changed a page. `implied`: what the VMM does without a line of its own, after that one."""

    line: int
    time: int
    before: Page
    after: Page
    implied: bool


def page_of(vm: VM, gfn: int) -> Page:
    """The state of a page now."""
    slot = vm.memslots.lookup(gfn)
    if slot is None:
        return Page(None, False, vm.attributes[gfn])
    attributes, file = vm.attributes[gfn], slot.guest_memfd
    if vm.profile.file_attributes and file is not None and not file.closed and file.attributes is not None:
        attributes = file.attributes[gfn - slot.start + (slot.guest_memfd_offset >> uapi.PAGE_SHIFT)]
    return Page(slot.id, bool(slot.flags & uapi.KVM_MEM_READONLY), attributes)


def history(trace: Trace, answering: Answering, gfn: int, end: Until | None = None) -> Iterator[Change]:
    """Each change of a page, in order, while the trace runs.

    Time: that of a replay in which slot calls and calls that cover the page go one by one.
    """
    before = page_of(answering.vm, gfn)
    for block in trace.blocks():
        if end is not None:
            block = end.cut(block)
        words = block["words"]
        address = np.uint64(gfn << uapi.PAGE_SHIFT)
        # size is compared as the distance from the start, which cannot overflow.
        covers = (block["kind"] == SET) & (words[:, 0] <= address) & (address - words[:, 0] < words[:, 1])
        looked_at = np.flatnonzero(covers | ((block["kind"] >= SLOT) & (block["kind"] <= FILE_SET))).tolist()
        start = 0
        for index in looked_at:
            answering.apply(block[start:index + 1])
            start = index + 1
            after = page_of(answering.vm, gfn)
            if after != before:
                yield Change(int(block["line"][index]), int(block["time"][index]), before, after,
                             int(block["origin"][index]) == IMPLIED)
                before = after
        answering.apply(block[start:])


def history_text(vm: VM, changes: Iterator[Change], clock: str | None) -> Iterator[str]:
    """The changes for people, a line each, with how long the page had no slot."""
    gone: Change | None = None
    last: Change | None = None
    texts: dict[Page, str] = {}     # a page has few states, and may have them a hundred thousand times
    for change in changes:
        words = [f"line {change.line}"]
        if change.time != NO_TIME:
            words.append(_when(change.time, clock))
        for page in (change.before, change.after):
            if page not in texts:
                texts[page] = _page_text(vm, page)
        words.append(f"{texts[change.before]} -> {texts[change.after]}")
        text = "  ".join(words)
        if change.implied:
            text += " (without a line of its own)"
        if change.after.slot is None and change.before.slot is not None:
            gone = change
        elif gone is not None and change.after.slot is not None:
            known = NO_TIME not in (gone.time, change.time)
            since = f"for {time_text(max(0, change.time - gone.time) / 1e9)}" if known else f"since line {gone.line}"
            text += f", without a slot {since}"
            gone = None
        last = change
        yield text
    if last is None:
        yield "no line changes this page"


def _page_text(vm: VM, page: Page) -> str:
    private = bool(page.attributes & vm.profile.private)
    if page.slot is None:
        return "no slot, private" if private else "no slot"
    allowed = vm.profile.allowed(page.attributes)
    if page.readonly:
        allowed &= ~Access.WRITE
    rights = "".join(letter if allowed & access else "-" for letter, access in zip("rwx", Access, strict=True))
    return f"slot {page.slot} {rights}{'p' if private else 's'}"


def _when(time: int, clock: str | None) -> str:
    seconds, nanoseconds = divmod(time, 10**9)
    fraction = f"{nanoseconds:09}".rstrip("0").ljust(6, "0")
    if clock == "day":
        days, seconds = divmod(seconds, 86400)
        text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction}"
        return text if days == 0 else f"{text} +{days}d"
    return f"{seconds}.{fraction}"
