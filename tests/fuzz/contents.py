"""One world: a map of 1 to 256 values, its snapshots and copies, beside dense arrays."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from kvmattr import AttributeMap

Pages = NDArray[np.uint8]
SPACE = 1 << 52


def updated(old: Pages, attributes: int | Pages, operation: int, mask: int) -> Pages:
    """What an update makes of pages: WRITE, OR or AND of the bits of the mask."""
    new = (np.broadcast_to(np.uint8(attributes), old.shape), old | np.uint8(attributes), old & np.uint8(attributes))
    return (old & np.uint8(0xff ^ mask)) | (new[operation] & np.uint8(mask))


class World:
    """A map and what it should hold; ``seen`` are snapshots with theirs."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.rng = np.random.default_rng(chance.getrandbits(64))
        self.pages = chance.choice([512, 700, 4096, 512 * 512, 512 * 512 * 3 + 17, 1 << 20])
        count = chance.choice([1, 2, 3, 4, 5, 8, 16, 16, 40, 256])
        self.values = self.rng.choice(256, count, replace=False).astype(np.uint8)
        if chance.random() < .4:
            self.values = np.arange(count).astype(np.uint8)
        if chance.random() < .2:        # bits that fall on one bit of a field of four
            self.values = np.array([0, 1, 16, 17, 4], np.uint8)
        self.offset = chance.choice([0, 0, 1 << 40])
        total = SPACE if self.offset else chance.choice([self.pages, self.pages, SPACE])
        default = int(self.values[0])
        self.map = AttributeMap(total, default)
        self.array = np.full(self.pages, default, np.uint8)
        self.seen: list[tuple[AttributeMap, Pages]] = []

    def value(self) -> int:
        return int(self.chance.choice(list(self.values)))

    def window(self) -> tuple[int, int]:
        first = self.chance.randrange(self.pages)
        if self.chance.random() < .5:
            first = min(first, self.chance.randrange(2000))
        longest = self.chance.choice([1, 1, 2, 30, 300, 512, 5000, self.pages])
        return first, min(self.pages, first + 1 + self.chance.randrange(longest))

    def gfns(self) -> NDArray[np.uint64]:
        top = self.chance.choice([self.pages, min(self.pages, 600), min(self.pages, 20_000)])
        return self.rng.integers(0, top, self.chance.choice([1, 10, 100, 3000, 5000])).astype(np.uint64)

    # Each returns how many calls it made.

    def write(self) -> int:
        first, stop = self.window()
        operation, mask = self.chance.choice([0, 0, 1, 2]), self.chance.choice([255, 255, self.chance.randrange(256)])
        attributes = self.value()
        new = updated(self.array[first:stop], attributes, operation, mask)
        changed = self.map.update(first + self.offset, stop + self.offset, attributes, operation, mask)
        assert changed == bool((new != self.array[first:stop]).any())
        self.array[first:stop] = new
        return 1

    def put(self) -> int:
        gfns = self.gfns()
        operation = self.chance.choice([0, 0, 0, 1, 2])
        mask = self.chance.choice([255, 255, self.chance.randrange(256)])
        attributes = self.rng.choice(self.values, len(gfns))
        if self.chance.random() < .2:
            attributes[:] = self.value()
        changed = 0
        for gfn, value in zip(gfns.tolist(), attributes, strict=True):
            new = updated(self.array[gfn:gfn + 1], value, operation, mask)
            changed += int(new[0] != self.array[gfn])
            self.array[gfn] = new[0]
        if self.chance.random() < .7:
            assert self.map.put(gfns + np.uint64(self.offset), attributes, operation, mask) == changed
        else:
            starts = gfns + np.uint64(self.offset)
            assert self.map.update_many(starts, starts + np.uint64(1), attributes, operation, mask) == changed
        return 1

    def pages_one_by_one(self) -> int:
        for _ in range(60):
            gfn, value = self.chance.randrange(min(self.pages, 1500)), self.value()
            changed = self.map.write(gfn + self.offset, gfn + self.offset + 1, value)
            assert changed == (self.array[gfn] != value)
            self.array[gfn] = value
        return 60

    def few_pages_of_a_block(self) -> int:
        """A block of one value, a few pages in it, a state that is kept, and batches of these pages and some others."""
        first = self.chance.randrange(min(self.pages, 3000)) & ~511
        stop = min(self.pages, first + 512)
        self.array[first:stop] = self.value()
        self.map.write(first + self.offset, stop + self.offset, int(self.array[first]))
        few = self.rng.integers(first, stop, self.chance.choice([1, 1, 2, 3]))
        hot = np.append(few, self.rng.integers(first, stop, 3))
        for gfns in (few, *(self.rng.choice(hot, self.chance.choice([2, 5, 40, 200])) for _ in range(3))):
            attributes = self.rng.choice(self.values, len(gfns))
            self.map.put(gfns + self.offset, attributes)
            for gfn, value in zip(gfns.tolist(), attributes.tolist(), strict=True):
                self.array[gfn] = value
            if self.chance.random() < .5:
                self.keep()
        return 5

    def there_and_back(self) -> int:
        """Pages that are converted and converted back: lists and nodes come and go."""
        gfns = self.rng.integers(0, self.pages, self.chance.choice([2, 30, 200])).tolist()
        old = [int(self.map[gfn + self.offset]) for gfn in gfns]
        value = self.value()
        for gfn in gfns:
            self.map[gfn + self.offset] = value
        for gfn, before in zip(reversed(gfns), reversed(old), strict=True):
            self.map[gfn + self.offset] = before
        return 3 * len(gfns)

    def update_many(self) -> int:
        starts = self.rng.integers(0, self.pages, 200)
        stops = np.minimum(self.pages, starts + self.rng.integers(0, 700, 200))
        attributes = self.rng.choice(self.values, 200)
        for start, stop, value in zip(starts, stops, attributes, strict=True):
            self.array[start:stop] = value
        self.map.update_many(starts + self.offset, stops + self.offset, attributes)
        return 1

    def assign(self) -> int:
        first, stop = self.window()
        given = self.rng.choice(self.values, stop - first)
        if self.chance.random() < .5:           # few runs
            given = np.sort(given)
        self.array[first:stop] = given
        self.map[first + self.offset:stop + self.offset] = given
        return 1

    def put_bitmap(self) -> int:
        first = self.window()[0]
        bits = self.rng.random(min(self.pages - first, 3000)) < self.chance.choice([.01, .5])
        value = self.value()
        part = self.array[first:first + len(bits)]
        changed = self.map.put_bitmap(first + self.offset, np.packbits(bits, bitorder="little"), value)
        assert changed == int((part[bits] != value).sum())
        part[bits] = value
        return 1

    def keep(self) -> int:
        self.seen = [*self.seen, (self.map.snapshot(), self.array.copy())][-3:]
        return 1

    def go_back(self) -> int:
        if self.seen and self.chance.random() < .4:
            snapshot, array = self.chance.choice(self.seen)
            self.map.restore(snapshot)
            self.array = array.copy()
        return 1

    def look(self) -> None:
        gfns = self.rng.integers(0, self.pages, 3000).astype(np.uint64)
        assert np.array_equal(self.map.take(gfns + np.uint64(self.offset)), self.array[gfns])

    def look_at_everything(self) -> None:
        """Each look-up, of the whole and of a part."""
        m, a, offset = self.map, self.array, self.offset
        first, stop = self.window()
        part = a[first:stop]
        mask = self.chance.choice([255, 1, self.chance.randrange(256)])
        wanted = self.value() & mask
        m.validate()
        assert np.array_equal(m.to_numpy(offset, offset + self.pages), a)
        assert m.count(first + offset, stop + offset, wanted, mask) == int(((part & mask) == wanted).sum())
        assert m.values(first + offset, stop + offset).tolist() == np.unique(part).tolist()
        assert m.all(first + offset, stop + offset, wanted, mask) == bool(((part & mask) == wanted).all())
        runs = m.runs(first + offset, stop + offset)
        assert len(runs) == 1 + np.count_nonzero(part[1:] != part[:-1])
        assert np.array_equal(np.repeat(runs["attributes"], (runs["stop"] - runs["start"]).astype(int)), part)
        if len(m) <= 1 << 20:
            assert AttributeMap.from_bytes(m.to_bytes()) == m
        for snapshot, array in self.seen:
            assert np.array_equal(snapshot.to_numpy(offset, offset + self.pages), array)
            found = m.diff(snapshot)
            assert sum((found["stop"] - found["start"]).tolist()) == int((a != array).sum())


def contents(chance: random.Random, longest: int = 60) -> int:
    """One world of updates and look-ups; the calls that it made."""
    world = World(chance)
    calls = 0
    for _ in range(chance.randrange(8, longest)):
        step = chance.choice([world.write, world.write, world.put, world.put, world.put, world.pages_one_by_one,
                              world.few_pages_of_a_block, world.there_and_back, world.update_many, world.assign,
                              world.put_bitmap, world.keep, world.go_back])
        calls += step()
        world.look()
        if chance.random() < .2:
            world.look_at_everything()
    world.look_at_everything()
    return calls
