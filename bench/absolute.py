"""The rows of the table that have no opponent: times of one call, against limits in seconds.

The limits are those of a machine on which numpy's scalar ``a[i]`` takes 34 ns when hot; the table scales
them by what it takes here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Thread
from time import perf_counter_ns, thread_time_ns
from typing import Any

import numpy as np

from bench.guest import Guest, alternating
from bench.rounds import Alone, Row, adding
from kvmattr import AttributeMap

#: All that this process may use, before the table keeps to one.
CPUS = os.sched_getaffinity(0)

#: ns that numpy's hot scalar a[i] takes on the machine that the limits were written for.
YARDSTICK = 34.0


#: Of each row: the work and the ns that it may take; None: told, not judged.
LIMITS: list[Row] = []
limit = adding(LIMITS, rounds=21)


def flat_in_size(name: str, limit_ns: float, make: Callable[[Guest, int], Alone]) -> None:
    """A row for 1 GiB, 64 GiB and 1 TiB each: read down, they should be one figure."""
    for words, pages in (("1 GiB", "gigabyte"), ("64 GiB", "pages"), ("1 TiB", "terabyte")):
        limit(f"{name} {words}", limit_ns)(lambda guest, pages=pages: make(guest, getattr(guest, pages)))


def write_everything(guest: Guest, pages: int) -> Alone:
    m = AttributeMap(pages)

    def work(last: int) -> None:
        for _ in range(500):
            m.write(0, pages, 1)
            m.write(0, pages, 2)
        m.write(0, pages, last)

    return Alone(draw=lambda: int(guest.rng.integers(3, 256)), work=work, calls=1001,
                 check=lambda last, _: m.uniform(0, pages) == last)


def or_everything(guest: Guest, pages: int) -> Alone:
    m = alternating(pages)

    def work(last: int) -> None:
        for _ in range(500):
            m.or_(0, pages, 2)
            m.and_(0, pages, 1)
        m.or_(0, pages, last)

    def check(last: int, _: None) -> bool:
        sound = m.values().tolist() == [last, last + 1] and m.count(0, pages, 1, 1) == pages // 2
        m.and_(0, pages, 1)
        return sound

    return Alone(draw=lambda: int(guest.rng.integers(1, 128)) * 2, work=work, calls=1001, check=check)


flat_in_size("write, uniform", 2e3, write_everything)
flat_in_size("or_, every other page set", 2e3, or_everything)


def changed(guest: Guest) -> AttributeMap:
    m = AttributeMap(guest.pages)
    m.put(guest.gfns(guest.earlier), 1)
    return m


@limit("first write after a snapshot, one page", 6e3, rounds=101)
def first_write(guest: Guest) -> Alone:
    m = changed(guest)
    kept: list[AttributeMap] = []

    def draw() -> tuple[int, int]:
        kept[:] = [m.snapshot()]
        gfn = int(guest.gfns(1)[0])
        return gfn, m[gfn] ^ 1

    return Alone(draw=draw, work=lambda drawn: m.write(drawn[0], drawn[0] + 1, drawn[1]),
                 check=lambda drawn, changed: changed and m[drawn[0]] == drawn[1] != kept[0][drawn[0]])


def scattered_puts(guest: Guest, new_map: bool) -> Alone:
    """Each round in a map of its own, or all in one that a restore has taken back after each: then what the restore
    dropped is freed by the puts of the next round, a slice after each, and the clock runs."""
    m = changed(guest)
    kept: list[AttributeMap] = []

    def draw() -> Any:
        nonlocal m
        if new_map:
            m = changed(guest)
        kept[:] = [m.snapshot()]
        gfns = np.unique(guest.gfns(guest.earlier))
        guest.rng.shuffle(gfns)
        return gfns, m.take(gfns) ^ 1

    def check(drawn: Any, count: int) -> bool:
        gfns, attributes = drawn
        sound = count == len(gfns) and np.array_equal(m.take(gfns), attributes)
        if not new_map:
            m.restore(kept[0])
        return bool(sound)

    return Alone(draw=draw, work=lambda drawn: m.put(*drawn), check=check, calls=guest.earlier)


limit("put of 1e5 random pages after a snapshot, per page", 60)(lambda guest: scattered_puts(guest, True))
limit("the same, and meanwhile what a restore dropped is freed", None)(lambda guest: scattered_puts(guest, False))


@limit("what a get waits for that finds a batch of puts at work, 90th percentile", 0.3e6, rounds=5)
def wait_for_a_batch(guest: Guest) -> Alone:
    """A batch gives the mutex to whoever waits for it after each of its groups. On the wall's clock: who waits
    does not run."""

    def draw() -> Any:
        gfns = np.unique(guest.gfns(guest.batch))
        guest.rng.shuffle(gfns)
        return AttributeMap(guest.pages), gfns, guest.rng.integers(1, 9, len(gfns)).astype(np.uint8)

    def work(drawn: Any) -> int:
        m, gfns, attributes = drawn
        writer = Thread(target=m.put, args=(gfns, attributes))
        get, clock, times = m.get, perf_counter_ns, [0]
        one = os.sched_getaffinity(0)
        os.sched_setaffinity(0, CPUS)
        writer.start()
        while writer.is_alive():
            before = clock()
            get(0)
            times.append(clock() - before)
        writer.join()
        os.sched_setaffinity(0, one)
        waits = [time for time in times if time > 2000]
        return int(np.percentile(waits or times, 90))

    return Alone(draw=draw, work=work, check=lambda drawn, _: np.array_equal(drawn[0].take(drawn[1]), drawn[2]),
                 own_clock=True)


@limit("del m of a fragmented 1 TiB guest", 50e6, rounds=3)
def delete(guest: Guest) -> Alone:
    return Alone(draw=lambda: [alternating(guest.terabyte)], work=list.clear, check=lambda kept, _: kept == [])


@limit("longest call while a fragmented 64 GiB collapses (and_, then 1000 writes)", 0.3e6)
def collapse(guest: Guest) -> Alone:
    """What the and_ drops is freed in slices: the longest of that call and of the calls after it."""
    writes = 1000

    def work(drawn: tuple[AttributeMap, list[int]]) -> int:
        m, gfns = drawn
        times = [thread_time_ns()]
        m.and_(0, guest.pages, 0xFE)
        times.append(thread_time_ns())
        for gfn in gfns:
            m.write(gfn, gfn + 1, 4)
            times.append(thread_time_ns())
        return int(np.diff(times).max())

    return Alone(
        draw=lambda: (alternating(guest.pages), np.unique(guest.gfns(writes)).tolist()),
        work=work,
        check=lambda drawn, _: (
            drawn[0].count(0, guest.pages, 4) == len(drawn[1])
            and drawn[0].count(0, guest.pages, 0) == guest.pages - len(drawn[1])
        ),
        own_clock=True,
    )
