"""What a guest may do with its pages: attributes, what their bits mean, and memslots, as runs and as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvmattr import uapi
from kvmattr._core import AttributeMap
from kvmattr.memslots import MemslotTable
from kvmattr.profiles import Profile
from kvmattr.protection import Access
from kvmattr.vm import VM


class Shown(NamedTuple):
    """What can be drawn: attributes, what their bits mean, and the memslots, if there are any."""

    name: str
    attributes: AttributeMap
    profile: Profile
    memslots: MemslotTable | None


def effective_attributes(vm: VM) -> AttributeMap:
    """The attributes of a machine's pages, by gfn: where they are of guest_memfd files, those of what is bound there.

    For address space 0; a closed file has none. The map of the machine itself where its attributes are its own.

    >>> vm = VM("gmem")
    >>> file = vm.create_guest_memfd(1 << 20)
    >>> _ = vm.set_user_memory_region2(0, 1 << 20, 4096, 1 << 32, uapi.KVM_MEM_GUEST_MEMFD, file)
    >>> effective_attributes(vm).runs(255, 258).tolist()
    [(255, 256, 0), (256, 257, 8), (257, 258, 0)]
    """
    if not vm.profile.file_attributes:
        return vm.attributes
    found = vm.attributes.copy()
    for slot in vm.memslots.overlapping(0, len(found), 0):
        file = slot.guest_memfd
        if file is None or file.closed or file.attributes is None:
            continue
        first = slot.guest_memfd_offset >> uapi.PAGE_SHIFT
        for start, stop, attributes in file.attributes.iter_runs(first, first + slot.stop - slot.start):
            found.write(slot.start + start - first, slot.start + stop - first, attributes)
    return found


class Line(NamedTuple):
    """Pages [start, stop) with one protection: `slot` is None where no memslot is."""

    start: int
    stop: int
    access: Access
    private: bool
    slot: int | None


def end_of(shown: Shown) -> int:
    """Where what is set ends: the last attribute or memslot, at least one page."""
    attributes = shown.attributes
    last_start, _stop, last = attributes.run(len(attributes) - 1)
    end = len(attributes) if last else last_start
    slots = shown.memslots
    return max(1, end, *(slot.stop for slot in slots)) if slots is not None else max(1, end)


def lines(shown: Shown, start: int, stop: int) -> Iterator[Line]:
    """The runs of equal protection and memslot in [start, stop), in order, of address space 0.

    The effective protection is what the memslot gives and the attributes leave. Without memslots, that of a
    full one.
    """
    slots = iter(shown.memslots.overlapping(start, stop, 0) if shown.memslots is not None else ())
    slot = next(slots, None)
    for run_start, run_stop, attributes in shown.attributes.iter_runs(start, stop):
        allowed = shown.profile.allowed(attributes)
        private = bool(attributes & shown.profile.private)
        while run_start < run_stop:
            while slot is not None and slot.stop <= run_start:
                slot = next(slots, None)
            if shown.memslots is None:
                piece = Line(run_start, run_stop, allowed, private, None)
            elif slot is None or slot.start >= run_stop:
                piece = Line(run_start, run_stop, Access(0), private, None)
            elif slot.start > run_start:
                piece = Line(run_start, slot.start, Access(0), private, None)
            else:
                given = ~Access.WRITE if slot.flags & uapi.KVM_MEM_READONLY else ~Access(0)
                piece = Line(run_start, min(run_stop, slot.stop), allowed & given, private, slot.id)
            yield piece
            run_start = piece.stop


def text(shown: Shown, start: int, stop: int) -> Iterator[str]:
    """Lines as in /proc/PID/maps: addresses, rights (p private, s shared), pages, memslot.

    Where nothing is mapped and nothing is set there is no line, as there.
    """
    for line in lines(shown, start, stop):
        if shown.memslots is not None and line.slot is None and not line.private:
            continue
        letters = zip("rwx", Access, strict=True)
        rights = "".join(letter if line.access & access else "-" for letter, access in letters)
        rights += "p" if line.private else "s"
        where = "" if shown.memslots is None else " no slot" if line.slot is None else f" slot {line.slot}"
        yield f"{line.start << 12:016x}-{line.stop << 12:016x} {rights} {line.stop - line.start}{where}"
