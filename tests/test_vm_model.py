"""The compiled machine against a slow, obviously right one: a dict of bytes and a list of memslots.

Random calls on a few 2 MiB blocks at a 1 GiB boundary; after each, errno, attributes, invalidation, faults,
protection and mapping levels of both are the same.
"""

import errno
import random
import re
from itertools import product

import numpy as np
import pytest

from kvmattr import VM, Access, uapi
from kvmattr.profiles import PROFILES
from kvmattr.protection import Capabilities

GIB, BLOCK = 1 << 18, 512  # pages
FIRST, LAST = GIB - 2 * BLOCK, GIB + 2 * BLOCK
SLOTS = {  # id: start, pages, flags; some cross huge pages, one is a whole GiB
    0: (GIB - 2 * BLOCK, BLOCK + 100, 0),
    1: (GIB - 100, 100, uapi.KVM_MEM_READONLY),
    2: (GIB, GIB, 0),
}


class Model:
    """One machine as the documents have it, without any cleverness."""

    def __init__(self, abi, capabilities):
        self.profile = PROFILES[abi]
        self.legal = self.profile.legality(True, capabilities)
        self.pages = dict.fromkeys(range(FIRST, LAST), 0)
        self.slots = {}
        self.sequence = 0
        self.hull = None

    def is_uniform(self, start, stop):
        """Pages outside those that the test touches are 0."""
        values = {self.pages.get(gfn, 0) for gfn in range(max(start, FIRST), min(stop, LAST))}
        if start < FIRST or stop > LAST:
            values.add(0)
        return len(values) <= 1

    def set(self, start, stop, attributes, operation):
        if not self.profile.mail_calls and operation:
            return "EINVAL"
        if attributes & ~self.profile.supported(True) or start >= stop:
            return "EINVAL"
        update = [lambda old: attributes, lambda old: old | attributes, lambda old: old & attributes][
            operation
        ]
        new = {gfn: update(self.pages[gfn]) for gfn in range(start, stop)}
        if not all(self.legal[value] for value in new.values()):
            return "EINVAL"
        if any(self.pages[gfn] != value for gfn, value in new.items()):
            self.invalidate(start, stop)
            self.pages.update(new)
        return 0

    def invalidate(self, start, stop):
        hull = []
        for first, pages, _ in self.slots.values():
            low, high = max(start, first), min(stop, first + pages)
            if low >= high:
                continue
            hull += [low, high]
            for size, gfn in product((BLOCK, GIB), (low, high - 1)):
                block = gfn - gfn % size
                straddles = block < low or block + size > high
                inside = first <= block and block + size <= first + pages
                if straddles and inside and self.is_uniform(block, block + size):
                    hull += [block, block + size]
        if hull:
            self.sequence += 1
            self.hull = (min(hull), max(hull))

    def slot(self, gfn):
        for first, pages, flags in self.slots.values():
            if first <= gfn < first + pages:
                return first, pages, flags
        return None

    def protection(self, gfn):
        slot = self.slot(gfn)
        if slot is None:
            return Access(0)
        allowed = self.profile.allowed(self.pages[gfn])
        return allowed & ~Access.WRITE if slot[2] & uapi.KVM_MEM_READONLY else allowed

    def mapping_level(self, gfn):
        slot = self.slot(gfn)
        level = 1
        for size in (BLOCK, GIB) if slot else ():
            block = gfn - gfn % size
            if not (
                slot[0] <= block
                and block + size <= slot[0] + slot[1]
                and self.is_uniform(block, block + size)
            ):
                break
            level += 1
        return level

    def access(self, first, last, access, private):
        """Reason, flags and page of the first page that exits, or None; no memslot has a guest_memfd."""
        for gfn in range(first, last + 1):
            page_private = bool(self.pages[gfn] & self.profile.private)
            claimed = page_private if private is None else private
            flag = 8 if claimed else 0
            slot = self.slot(gfn)
            if claimed != page_private or claimed:
                return uapi.KVM_EXIT_MEMORY_FAULT, flag, gfn
            if slot is None:
                return uapi.KVM_EXIT_MMIO, 0, gfn
            refused = access & ~self.profile.allowed(self.pages[gfn])
            if refused:
                return uapi.KVM_EXIT_MEMORY_FAULT, refused | flag, gfn
            if access & Access.WRITE and slot[2] & uapi.KVM_MEM_READONLY:
                return uapi.KVM_EXIT_MMIO, 0, gfn
        return None


def some_range(rng):
    """Ranges that begin and end at, just before or just after what matters, or anywhere."""
    edges = [FIRST, FIRST + BLOCK, GIB, GIB + BLOCK, LAST, FIRST + BLOCK + 100, GIB - 100]

    def edge():
        return min(max(rng.choice(edges) + rng.choice((-1, 0, 0, 0, 1)), FIRST), LAST)

    start = edge() if rng.random() < 0.7 else rng.randrange(FIRST, LAST)
    stop = edge() if rng.random() < 0.5 else start + rng.choice((0, 1, 1, 2, 100, BLOCK))
    return tuple(sorted((start, min(stop, LAST))))


def check_reads(vm, model, rng):
    assert vm.attributes[FIRST:LAST].tolist() == list(model.pages.values())
    assert vm.invalidation.sequence == model.sequence
    assert vm.invalidation.hull == model.hull
    assert vm.invalidation.in_progress == 0
    for _ in range(20):
        first, last = sorted(rng.randrange(FIRST, LAST) for _ in range(2))
        last = min(last, first + rng.choice((0, 1, 5, 2000)))
        access, private = Access(rng.randrange(1, 8)), rng.choice((None, None, False, True))
        offset = rng.randrange(4096)
        size = last - first << 12 or rng.randrange(1, 4097 - offset)
        last = (first << 12) + offset + size - 1 >> 12
        exit = vm.access((first << 12) + offset, access, size, private)
        expected = (
            model.access(first, min(last, LAST - 1), access, private)
            if last < LAST
            else exit and (exit.reason, exit.flags, exit.gpa >> 12)
        )
        assert (exit and (exit.reason, exit.flags, exit.gpa >> 12)) == expected
        assert vm.protection((first << 12) + offset) == model.protection(first)
        assert vm.mapping_level((first << 12) + offset) == model.mapping_level(first)


@pytest.mark.parametrize("listening", [False, True], ids=["direct", "listening"])
@pytest.mark.parametrize(
    ("abi", "capabilities"),
    [
        ("rfc", Capabilities()),
        ("rfc", Capabilities(no_exec=True)),
        ("rfc", Capabilities(exec_only=True)),
        ("rfc", Capabilities(True, True, True)),
        ("linux", Capabilities()),
        ("vsm", Capabilities()),
    ],
    ids=str,
)
def test_random_calls(abi, capabilities, listening):
    rng = random.Random(f"{abi}{capabilities}")
    vm = VM(abi, **capabilities._asdict())
    model = Model(abi, capabilities)
    heard = Heard(vm) if listening else None
    if listening:
        vm.add_listener(heard)
    for _ in range(120):
        if rng.random() < 0.15:
            slot = rng.choice(list(SLOTS))
            start, pages, flags = SLOTS[slot]
            exists = slot in model.slots
            vm.set_user_memory_region(slot, start << 12, 0 if exists else pages << 12, start << 12, flags)
            if exists:
                del model.slots[slot]
            else:
                model.slots[slot] = SLOTS[slot]
        start, stop = some_range(rng)
        operation = rng.randrange(3) if abi == "rfc" else rng.choice((0, 0, 0, 1))
        attributes = rng.choice((0, 1, 2, 4, 8, 12, 14, 15, 16, rng.randrange(16)))
        try:
            result = vm.set_memory_attributes(start << 12, stop - start << 12, attributes, operation)
        except OSError as error:
            result = errno.errorcode[error.errno]
        assert result == model.set(start, stop, attributes, operation)
        check_reads(vm, model, rng)
    if listening:
        assert heard.pages == {gfn: value for gfn, value in model.pages.items() if value}


class Heard:
    """A listener that keeps the attributes of every page by what it hears, and checks each phase."""

    def __init__(self, vm):
        self.vm = vm
        self.pages = {}
        self.prepared = []

    def prepare(self, changes):
        for start, stop, old, new in changes.tolist():
            assert old != new
            assert self.vm.attributes.uniform(start, stop) == old
        self.prepared.append(changes)

    def commit(self, changes):
        assert changes is self.prepared.pop(0)
        for start, stop, _, new in changes.tolist():
            assert self.vm.attributes.uniform(start, stop) == new
            for gfn in range(start, stop):
                if new:
                    self.pages[gfn] = new
                else:
                    self.pages.pop(gfn, None)

    def abort(self, changes):
        raise AssertionError("nothing refuses")


def test_a_batch_is_its_records_one_by_one():
    rng = random.Random(7)
    one, many = VM(no_exec=True), VM(no_exec=True)
    for vm in (one, many):
        vm.set_user_memory_region(0, FIRST << 12, LAST - FIRST << 12)
    rows = []
    for _ in range(5000):
        start, stop = some_range(rng)
        rows.append((start << 12, max(stop - start, 1) << 12, rng.randrange(16), rng.randrange(3), 0))
    records = np.array(rows, uapi.MEMORY_ATTRIBUTES)
    done = changed = 0
    for address, size, attributes, operation, flags in rows:
        version = one.attributes.version
        try:
            one.set_memory_attributes(address, size, attributes, operation, flags)
        except OSError as error:
            refused = error
        else:
            changed += one.attributes.version > version
            continue
        with pytest.raises(OSError, match=re.escape(str(refused))) as caught:
            many.set_memory_attributes_many(records[done:])
        done += caught.value.done + 1
        assert rows[done - 1] == (address, size, attributes, operation, flags)
        assert many.attributes == one.attributes
        assert many.invalidation.sequence == one.invalidation.sequence
        assert many.invalidation.hull == one.invalidation.hull
        changed = 0
    assert many.set_memory_attributes_many(records[done:]) == changed
    assert many.attributes == one.attributes
    assert done > 100
