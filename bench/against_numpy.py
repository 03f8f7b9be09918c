"""The rows of the table that compare the store with a dense numpy array of one byte a page.

Each row is a function of the guest that makes both sides and says what a round of either does. Where numpy
has several ways to say it, all are given and the fastest on this machine is the opponent. Rows that change
pages change them for good in every round: a write of what is there already would be a query.

A turn is as many calls as it takes to be at the store's own pace: numpy's 16 MB have pushed most of the store's
2.5 out of the caches before it. What the first calls of a turn cost is another question, and has rows of its
own ("cold").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.guest import Guest, Pages, same
from bench.rounds import Arms, Row, adding, loop
from kvmattr import AttributeMap
from kvmattr._core import RUN_DTYPE

#: Of each row: the work and the largest ratio to numpy that we aim at; None: told, not judged.
ROWS: list[Row] = []
row = adding(ROWS, rounds=22)


def equal(drawn: Any, ours: Any, theirs: Any) -> bool:
    return bool(np.array_equal(ours, theirs))


# ---- many pages in one call ----


def take(guest: Guest, m: AttributeMap, a: Pages, given: bool = True) -> Arms:
    """``given``: the answers go into an array that is there."""
    ours, theirs = (np.empty(guest.batch, np.uint8) if given else None for _ in range(2))
    return Arms(
        draw=lambda: guest.gfns(guest.batch),
        store=lambda gfns: m.take(gfns, out=ours),
        numpy={
            "a.take(i, out=, mode='wrap')": lambda gfns: a.take(gfns, out=theirs, mode="wrap"),
            "a.take(i, out=, mode='clip')": lambda gfns: a.take(gfns, out=theirs, mode="clip"),
            "a[i]": lambda gfns: a[gfns],
        },
        check=equal,
        calls=guest.batch,
    )


row("take 1e6 random: uniform", 0.65)(lambda guest: take(guest, *guest.uniform()))
row("take 1e6 random: after 1e5 random pages", 0.80)(lambda guest: take(guest, *guest.changed()))
row("take 1e6 random: fragmented", 0.80)(lambda guest: take(guest, *guest.fragmented()))


@row("put 1e6 random pages, after 1e5", 1.6)
def put_changed(guest: Guest) -> Arms:
    m, a = guest.changed()
    before = a.copy()
    put: list[Any] = []

    def draw() -> Any:
        if put:  # bring the last round's pages back
            gfns = put.pop()
            m.put(gfns, before[gfns])
            a[gfns] = before[gfns]
        put.append(guest.gfns(guest.batch))
        return put[0]

    def assign(gfns: Any) -> None:
        a[gfns] = 1

    return Arms(draw=draw, store=lambda gfns: m.put(gfns, 1),
                numpy={"a[i] = v": assign, "a.put(i, v, mode='wrap')": lambda gfns: a.put(gfns, 1, mode="wrap")},
                check=lambda gfns, ours, theirs: same(m, a), calls=guest.batch)


def update_many(guest: Guest, values: int) -> Arms:
    m, a = guest.changed()

    def draw() -> Any:
        starts, stops = guest.short_ranges(guest.batch)
        attributes = guest.rng.integers(0, values, guest.batch, np.uint8)
        return (starts, stops, attributes), list(zip(starts.tolist(), stops.tolist(), attributes.tolist(), strict=True))

    def assign(drawn: Any) -> None:
        for start, stop, attributes in drawn[1]:
            a[start:stop] = attributes

    return Arms(draw=draw, store=lambda drawn: m.update_many(*drawn[0]), numpy={"loop of a[s:e] = v": assign},
                check=lambda drawn, ours, theirs: same(m, a), calls=guest.batch)


row("update_many 1e6 ranges of 4 KiB .. 2 MiB, 2 values", 0.50, rounds=6)(lambda guest: update_many(guest, 2))
row("update_many 1e6 ranges of 4 KiB .. 2 MiB, 8 values", None, rounds=6)(lambda guest: update_many(guest, 8))


# ---- one page a call ----


def get(guest: Guest, m: AttributeMap, a: Pages, calls: int) -> Arms:
    look_up, item = m.get, a.item

    def store(gfns: list[int]) -> None:
        for gfn in gfns:
            look_up(gfn)

    def subscript(gfns: list[int]) -> None:
        for gfn in gfns:
            a[gfn]

    def items(gfns: list[int]) -> None:
        for gfn in gfns:
            item(gfn)

    return Arms(draw=lambda: guest.gfns(calls).tolist(), store=store, numpy={"a[i]": subscript, "a.item(i)": items},
                floor=loop, check=lambda gfns, ours, theirs: [look_up(gfn) for gfn in gfns] == a[gfns].tolist(),
                calls=calls)


row("get one random page, per call: uniform", 0.22)(lambda guest: get(guest, *guest.uniform(), guest.calls))
row("get one random page, per call: fragmented", 0.28)(lambda guest: get(guest, *guest.fragmented(), guest.calls))
row("get, fragmented: the first 1e4 calls of a turn (cold)", None)(
    lambda guest: get(guest, *guest.fragmented(), guest.calls // 100))


def writes(m: AttributeMap, a: Pages, draw: Callable[[], Any], calls: int, floor: Callable[[Any], Any]) -> Arms:
    """A call for each (start, stop, attributes) of one page each."""
    write = m.write

    def store(drawn: Any) -> None:
        for start, stop, attributes in drawn:
            write(start, stop, attributes)

    def assign(drawn: Any) -> None:
        for start, _, attributes in drawn:
            a[start] = attributes

    return Arms(draw, store, {"a[i] = v": assign}, check=lambda *_: same(m, a), floor=floor, calls=calls)


@row("write one random page, per call, after 1e5", 0.50)
def write_changed(guest: Guest) -> Arms:
    m, a = guest.changed()
    written: list[Any] = []

    def draw() -> Any:
        if written:  # bring the last round's pages back
            gfns, old = written.pop()
            m.put(gfns, old)
            a[gfns] = old
        gfns = np.unique(guest.gfns(guest.calls))
        guest.rng.shuffle(gfns)
        written.append((gfns, a[gfns]))
        return list(zip(gfns.tolist(), (gfns + 1).tolist(), (1 - a[gfns]).tolist(), strict=True))

    return writes(m, a, draw, guest.calls, loop)


# ---- one range a call ----


@row("write 1 TiB", 1.5e-5, rounds=10)
def write_terabyte(guest: Guest) -> Arms:
    m, a = AttributeMap(guest.terabyte), np.zeros(guest.terabyte, np.uint8)
    write, values = m.write, [1, 2] * 500

    def store(last: int) -> None:
        for value in values:
            write(0, guest.terabyte, value)
        write(0, guest.terabyte, last)

    def slice_(last: int) -> None:
        a[:] = last

    return Arms(draw=lambda: int(guest.rng.integers(3, 256)), store=store,
                numpy={"a[:] = v": slice_, "a.fill(v)": a.fill}, calls=1001, numpy_calls=1,
                check=lambda last, ours, theirs: m.uniform(0, guest.terabyte) == a[0] == a[-1] == last)


def masked_all(guest: Guest, m: AttributeMap, a: Pages) -> Arms:
    """True of every page: (page & 0xfe) == 0."""
    every = m.all
    masked, matching = np.empty(guest.gigabyte, np.uint8), np.empty(guest.gigabyte, bool)

    def reused(windows: Any) -> list[bool]:
        answers = []
        for start, stop in windows:
            np.bitwise_and(a[start:stop], 0xFE, out=masked)
            np.equal(masked, 0, out=matching)
            answers.append(bool(matching.all()))
        return answers

    def reduced(windows: Any) -> list[bool]:
        return [not np.bitwise_or.reduce(a[start:stop]) & 0xFE for start, stop in windows]

    return Arms(
        draw=lambda: guest.windows(100, aligned=False),
        store=lambda windows: [every(start, stop, 0, 0xFE) for start, stop in windows],
        numpy={
            "((a[s:e] & mask) == v).all()": lambda windows: [
                bool(((a[start:stop] & 0xFE) == 0).all()) for start, stop in windows
            ],
            "the same with out=": reused,
            "bitwise_or.reduce(a[s:e]) (for v = 0)": reduced,
        },
        floor=lambda windows: [True for _start, _stop in windows],
        check=lambda windows, ours, theirs: ours == theirs == [True] * len(windows),
        calls=100,
    )


row("all over 1 GiB with a mask: uniform", 0.02)(lambda guest: masked_all(guest, *guest.uniform()))
row("all over 1 GiB with a mask: fragmented", 0.02)(lambda guest: masked_all(guest, *guest.fragmented()))


def or_and_back(guest: Guest, m: AttributeMap, a: Pages, aligned: bool, windows: int = 500) -> Arms:
    """OR a bit over random windows of 1 GiB, and AND it away again: each of the two changes every page."""
    or_, and_ = m.or_, m.and_
    last: list[tuple[int, int]] = []

    def store(windows: Any) -> None:
        for start, stop in windows:
            or_(start, stop, 2)
            and_(start, stop, 0xFD)
        or_(*windows[0], 2)

    def in_place(windows: Any) -> None:
        for start, stop in windows:
            window = a[start:stop]
            np.bitwise_or(window, 2, out=window)
            np.bitwise_and(window, 0xFD, out=window)
        a[slice(*windows[0])] |= 2

    def augmented(windows: Any) -> None:
        for start, stop in windows:
            a[start:stop] |= 2
            a[start:stop] &= 0xFD
        a[slice(*windows[0])] |= 2

    def draw() -> Any:
        if last:  # take back the last OR of the round before, whose bit the check has seen
            start, stop = last.pop()
            m.and_(start, stop, 0xFD)
            a[start:stop] &= 0xFD
        drawn = guest.windows(windows, aligned)
        last.append(drawn[0])
        return drawn

    return Arms(draw=draw, store=store, numpy={"bitwise_or(w, v, out=w)": in_place, "a[s:e] |= v": augmented},
                check=lambda drawn, ours, theirs: same(m, a), floor=loop, calls=2 * windows + 1)


row("or_ over 1 GiB: uniform", 0.03)(lambda guest: or_and_back(guest, *guest.uniform(), aligned=False))
row("or_ over 1 GiB: fragmented, aligned", 0.04)(lambda guest: or_and_back(guest, *guest.fragmented(), aligned=True))
row("or_ over 1 GiB: fragmented, unaligned", 0.15)(lambda guest: or_and_back(guest, *guest.fragmented(), aligned=False))
row("or_, unaligned: the first 20 calls of a turn (cold)", None)(
    lambda guest: or_and_back(guest, *guest.fragmented(), aligned=False, windows=10))


def or_everywhere(guest: Guest, timed_writes: bool) -> Arms:
    """OR and AND by turns over the whole fragmented guest; before each, 10 random pages are toggled."""
    m, a = guest.fragmented()
    write, turn = m.write, [False]

    def toggle(drawn: Any) -> None:
        for gfn, value in drawn[0]:
            write(gfn, gfn + 1, value)

    def assign(drawn: Any) -> None:
        for gfn, value in drawn[0]:
            a[gfn] = value

    def draw() -> Any:
        turn[0] = not turn[0]
        gfns = np.unique(guest.gfns(10))
        drawn = list(zip(gfns.tolist(), (a[gfns] ^ 1).tolist(), strict=True)), turn[0]
        if not timed_writes:
            toggle(drawn)
            assign(drawn)
        return drawn

    def store(drawn: Any) -> None:
        if timed_writes:
            toggle(drawn)
        if drawn[1]:
            m.or_(0, guest.pages, 2)
        else:
            m.and_(0, guest.pages, 0xFD)

    def in_place(drawn: Any) -> None:
        if timed_writes:
            assign(drawn)
        if drawn[1]:
            np.bitwise_or(a, 2, out=a)
        else:
            np.bitwise_and(a, 0xFD, out=a)

    return Arms(draw=draw, store=store, numpy={"bitwise_or(a, v, out=a)": in_place},
                check=lambda drawn, ours, theirs: same(m, a))


row("or_ over fragmented 64 GiB, 10 page writes before it", 0.01, rounds=102)(
    lambda guest: or_everywhere(guest, timed_writes=False))
row("the same, with the 10 calls of write on the clock", None, rounds=102)(
    lambda guest: or_everywhere(guest, timed_writes=True))


# ---- out of the map ----


def materialise(guest: Guest, m: AttributeMap, a: Pages) -> Arms:
    ours, theirs = np.zeros(guest.gigabyte, np.uint8), np.zeros(guest.gigabyte, np.uint8)
    to_numpy = m.to_numpy

    def store(windows: Any) -> Pages:
        for start, stop in windows:
            to_numpy(start, stop, ours)
        return ours

    def copyto(windows: Any) -> Pages:
        for start, stop in windows:
            np.copyto(theirs, a[start:stop])
        return theirs

    def assign(windows: Any) -> Pages:
        for start, stop in windows:
            theirs[:] = a[start:stop]
        return theirs

    return Arms(draw=lambda: guest.windows(100, aligned=False), store=store,
                numpy={"copyto(out, a[s:e])": copyto, "out[:] = a[s:e]": assign}, check=equal, floor=loop, calls=100)


row("to_numpy of 1 GiB: uniform", 0.60)(lambda guest: materialise(guest, *guest.uniform()))
row("to_numpy of 1 GiB: fragmented", 0.85)(lambda guest: materialise(guest, *guest.fragmented()))


def runs(m: AttributeMap, a: Pages, calls: int = 1) -> Arms:
    """numpy finds only where runs start, 8 bytes a run; the store also says where they stop and what they
    hold, 17. Of the pages of the array, where the map has more.
    """

    def store(_: Any) -> Any:
        for _ in range(calls):
            found = m.runs(0, len(a))
        return found

    def compared(_: Any) -> Any:
        for _ in range(calls):
            found = np.flatnonzero(a[1:] != a[:-1])
        return found

    def differenced(_: Any) -> Any:
        for _ in range(calls):
            found = np.flatnonzero(np.diff(a))
        return found

    return Arms(
        draw=lambda: None,
        store=store,
        numpy={"flatnonzero(a[1:] != a[:-1])": compared, "flatnonzero(diff(a))": differenced},
        check=lambda _, ours, theirs: bool(
            len(ours) == len(theirs) + 1
            and (ours["start"][1:] == theirs + 1).all()
            and (ours["attributes"] == a[ours["start"].astype(np.int64)]).all()
        ),
        calls=calls,
    )


def same_runs(m: AttributeMap, a: Pages) -> Arms:
    """numpy makes what the store makes: start, stop and attributes of every run."""

    def records(_: Any) -> Any:
        changes = np.flatnonzero(a[1:] != a[:-1])
        made = np.empty(len(changes) + 1, RUN_DTYPE)
        changes += 1
        made["start"][0], made["stop"][-1] = 0, len(a)
        made["start"][1:] = changes
        made["stop"][:-1] = changes
        made["attributes"][0] = a[0]
        made["attributes"][1:] = a[changes]
        return made

    return Arms(draw=lambda: None, store=lambda _: m.runs(), numpy={"flatnonzero, then the same records": records},
                check=equal)


row("runs: 1e5", 0.20)(lambda guest: runs(*guest.changed(guest.earlier // 2), calls=10))
row("runs, 1e5: the first call of a turn (cold)", None)(lambda guest: runs(*guest.changed(guest.earlier // 2)))
row("runs: 1e5, numpy makes the same records", None)(lambda guest: same_runs(*guest.changed(guest.earlier // 2)))
row("runs: 16.8M", 0.40, rounds=8)(lambda guest: runs(*guest.fragmented()))
row("runs: 16.8M, numpy makes the same records", None, rounds=8)(lambda guest: same_runs(*guest.fragmented()))


def count(guest: Guest, calls: int) -> Arms:
    """By turns, in random order, one of the two bits that every other page has, over the whole guest."""
    m, a = guest.fragmented(value=5)
    masked, matching = np.empty(guest.pages, np.uint8), np.empty(guest.pages, bool)

    def reused(bits: Any) -> list[int]:
        counts = []
        for bit in bits:
            np.bitwise_and(a, bit, out=masked)
            np.not_equal(masked, 0, out=matching)
            counts.append(int(np.count_nonzero(matching)))
        return counts

    return Arms(
        draw=lambda: guest.rng.choice([1, 4], calls).tolist(),
        store=lambda bits: [m.count(0, guest.pages, bit, bit) for bit in bits],
        numpy={
            "count_nonzero(a & bit)": lambda bits: [int(np.count_nonzero(a & bit)) for bit in bits],
            "the same in bools, out=": reused,
        },
        check=lambda _, ours, theirs: ours == theirs == [guest.pages // 2] * calls,
        calls=calls,
    )


row("count one bit over fragmented 64 GiB", 0.04)(lambda guest: count(guest, 100))
row("count: the first call of a turn (cold)", None)(lambda guest: count(guest, 1))


# ---- whole maps ----


@row("snapshot after 1e5 changes", 3e-4)
def snapshot(guest: Guest) -> Arms:
    m, a = guest.changed()
    other = np.empty_like(a)

    def draw() -> list[AttributeMap]:
        gfns = guest.gfns(10)
        attributes = a[gfns] ^ 1
        m.put(gfns, attributes)
        a[gfns] = attributes
        return []

    def store(kept: list[AttributeMap]) -> AttributeMap:
        for _ in range(100):
            kept.append(m.snapshot())
        return kept[-1]

    def copyto(kept: list[AttributeMap]) -> Pages:
        np.copyto(other, a)
        return other

    return Arms(draw=draw, store=store, numpy={"a.copy()": lambda _: a.copy(), "copyto(b, a)": copyto},
                check=lambda kept, ours, theirs: same(ours, theirs), calls=100, numpy_calls=1)


def restore(guest: Guest, m: AttributeMap, a: Pages, changes: int) -> Arms:
    before, saved = m.snapshot(), a.copy()

    def draw() -> None:
        gfns = guest.gfns(changes)
        m.put(gfns, 2)
        a[gfns] = 2

    return Arms(draw=draw, store=lambda _: m.restore(before), numpy={"copyto(a, b)": lambda _: np.copyto(a, saved)},
                check=lambda _, ours, theirs: same(m, a))


row("restore after 10 changes", 5e-3, rounds=51)(lambda guest: restore(guest, *guest.changed(), 10))
row("restore after 1e5 changes", 0.10)(lambda guest: restore(guest, *guest.changed(), guest.earlier))


def diff(guest: Guest, changes: int) -> Arms:
    m, a = guest.fragmented()
    differ = np.empty(guest.pages, bool)

    def draw() -> tuple[AttributeMap, Pages]:
        gfns = guest.gfns(changes)
        other, b = m.copy(), a.copy()
        attributes = a[gfns] ^ 1
        other.put(gfns, attributes)
        b[gfns] = attributes
        return other, b

    def reused(drawn: Any) -> Any:
        np.not_equal(drawn[1], a, out=differ)
        return np.flatnonzero(differ)

    def starts(runs: Any) -> Any:  # neighbours that differ alike are one run: compare page by page
        return np.concatenate([np.arange(start, stop) for start, stop, _, _ in runs.tolist()])

    return Arms(
        draw=draw,
        store=lambda drawn: drawn[0].diff(m),
        numpy={
            "flatnonzero(b != a)": lambda drawn: np.flatnonzero(drawn[1] != a),
            "the same with out=": reused,
        },
        check=lambda drawn, ours, theirs: bool(np.array_equal(starts(ours), theirs)),
    )


row("diff of two fragmented maps, 1e4 pages differ", 0.15)(lambda guest: diff(guest, guest.earlier // 10))
