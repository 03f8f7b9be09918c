"""Batches and bulk reads without the GIL: maps of one family in several threads, and Ctrl-C in the middle."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation

PAGES = 2**24
PATIENCE = 120  # seconds until a thread counts as stuck; no verdict depends on it otherwise


def together(*works: Callable[[], None]) -> None:
    """Run them at the same time; the first exception of any is ours."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def guarded(work: Callable[[], None]) -> None:
        try:
            barrier.wait(PATIENCE)
            work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    if failures:
        raise failures[0]


def fragmented() -> AttributeMap:
    m = AttributeMap(PAGES)
    m[0 : 2**18] = np.resize(np.array([0, 1], dtype=np.uint8), 2**18)
    m[2**19 : 2**19 + 2**16] = np.resize(np.array([1, 2, 3, 4, 5], dtype=np.uint8), 2**16)
    return m


def test_two_copies_are_written_while_a_third_thread_takes_snapshots() -> None:
    m = fragmented()
    copies = [m.copy(), m.copy()]
    pages = m.to_numpy(0, 2**20)
    wanted = [pages.copy(), pages.copy()]

    def writer(which: int) -> Callable[[], None]:
        def write() -> None:
            random = np.random.default_rng(which)
            for _ in range(12):
                gfns = random.integers(0, 2**20, 4000, dtype=np.uint64)
                values = random.integers(0, 6, 4000, dtype=np.uint8)
                copies[which].put(gfns, values)
                for gfn, value in zip(gfns.tolist(), values.tolist(), strict=True):
                    wanted[which][gfn] = value
                starts = random.integers(0, 2**20 - 3000, 500, dtype=np.uint64)
                copies[which].update_many(starts, starts + np.uint64(2999), 0x10 << which, Operation.OR)
                for start in starts.tolist():
                    wanted[which][start : start + 2999] |= 0x10 << which
                copies[which][int(gfns[0])] = 9
                wanted[which][int(gfns[0])] = 9

        return write

    def snapshots() -> None:
        kept = []
        for turn in range(400):
            kept.append(copies[turn % 2].snapshot())
            if len(kept) > 7:
                first = kept.pop(turn % 5)
                assert first == first.copy()
        assert m.run_count > 2**18

    together(writer(0), writer(1), snapshots)
    assert np.array_equal(m.to_numpy(0, 2**20), pages)
    for which in (0, 1):
        copies[which].validate()
        assert np.array_equal(copies[which].to_numpy(0, 2**20), wanted[which])


def test_a_bulk_read_sees_one_moment() -> None:
    """Every operation of the writer leaves the range with one value, so no reader may ever see two."""
    m = AttributeMap(PAGES)
    lo, hi = 300, 2**19 + 77
    stop = threading.Event()
    operations = 4000
    seen: set[int] = set()

    def write() -> None:
        try:
            for turn in range(20):
                m.update_many(lo, hi, (np.arange(operations) + turn) % 7)
        finally:
            stop.set()

    def read() -> None:
        while not stop.is_set():
            for pages in (
                m.to_numpy(lo, hi),
                m.runs(lo, hi)["attributes"],
                m.values(lo, hi),
                m.take(np.arange(lo, hi, 501)),
            ):
                distinct = np.unique(pages)
                assert len(distinct) == 1, f"a read saw {distinct}"
                seen.add(int(distinct[0]))
            assert m.count(lo, hi, m.get(lo)) in (0, hi - lo)

    together(write, read)
    m.validate()


@pytest.mark.parametrize("kind", ["put", "put_bitmap", "put_bitmap: many bits a block"])
def test_an_unmoved_version_promises_unmoved_pages(kind: str) -> None:
    """What a software TLB does: version, pages, version; equal versions mean pages of that state."""
    m = AttributeMap(PAGES)
    stop = threading.Event()
    many = "many" in kind   # which is another way to write them, and takes long enough for a reader to come between
    pages = 2**23 if many else 2**20
    gfns = np.arange(5, pages, pages // 256 - 3, dtype=np.uint64)
    bits = np.full(pages, many, dtype=np.uint8)
    bits[::7] = 0           # a block that is set as a whole is another way again
    bits[gfns] = 1
    packed = np.packbits(bits, bitorder="little")

    def write() -> None:    # as long as somebody reads: it is quick
        for turn in itertools.count():
            if kind == "put":
                m.put(gfns, turn % 200)
            else:
                m.put_bitmap(0, packed, turn % 200)
            if stop.is_set():
                break

    def read() -> None:
        known: dict[int, bytes] = {}
        met = set()
        try:
            while len(met) < 100:
                before = m.version
                met.add(before)
                found = m.take(gfns).tobytes()
                if m.version == before:
                    assert known.setdefault(before, found) == found
        finally:
            stop.set()

    together(write, read)
    m.validate()


def test_the_number_of_runs_beside_a_writer() -> None:
    """It is kept with the version that it belongs to, whichever of several threads counted last."""
    m = AttributeMap(PAGES)
    read = threading.Semaphore(0)

    def write() -> None:  # version v has 2 * v + 1 runs; as long as somebody counts: it is quick
        ended = 0
        for page in range(PAGES // 2):
            m[1 + 2 * page] = 1
            ended += read.acquire(blocking=False)
            if ended == 2:
                break

    def count() -> None:
        met = set()
        try:
            while len(met) < 20:
                before = m.version
                met.add(before)
                counted = m.run_count
                assert 2 * before + 1 <= counted <= 2 * m.version + 1
        finally:
            read.release()

    together(write, count, count)
    assert m.run_count == 2 * m.version + 1


def test_maps_of_different_families_do_not_meet() -> None:
    first, second = fragmented(), fragmented()
    gfns = np.random.default_rng(3).integers(0, PAGES, 50_000, dtype=np.uint64)
    together(
        lambda: first.put(gfns, 3) and None,
        lambda: second.restore(first.snapshot()),
        lambda: first.diff(second).tolist() and None,
    )
    first.validate()
    second.validate()
    second.restore(first)
    assert first == second


def test_maps_die_in_threads_of_their_own() -> None:
    m = fragmented()

    def churn(seed: int) -> Callable[[], None]:
        def work() -> None:
            random = np.random.default_rng(seed)
            for _ in range(60):
                twin = m.copy()
                twin.put(random.integers(0, PAGES, 300, dtype=np.uint64), seed)
                del twin

        return work

    pages = m.runs().tobytes()
    live = m.nbytes
    together(churn(1), churn(2), churn(3))
    m.validate()
    assert m.runs().tobytes() == pages
    assert m.nbytes == live


@pytest.mark.parametrize("kind", ["put", "put_bitmap"])
def test_who_waits_has_its_turn_within_a_batch(kind: str) -> None:
    """A batch gives the mutex up between its groups: an update beside it need not wait for its end. How long it waits
    is a matter of time, which no test can ask for on a busy machine (bench/threads.py)."""
    m = AttributeMap(2**22)
    gfns = np.arange(0, 2**21, dtype=np.uint64)
    bits = np.full(2**18, 0xFF, dtype=np.uint8)
    ended = threading.Event()

    def batches() -> None:
        value = 0
        while not ended.is_set():
            value ^= 3
            if kind == "put":
                m.put(gfns, value)
            else:
                m.put_bitmap(0, bits, value)

    def update() -> None:
        try:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                m.write(2**22 - 1, 2**22, 1)
                state = m.snapshot()
                if state.uniform(0, 2**21) is None:
                    return  # the batch was in its middle, and had not ended
                m.write(2**22 - 1, 2**22, 0)
            raise AssertionError("no update ever came into the middle of a batch")
        finally:
            ended.set()

    together(batches, update)
    m.validate()


def test_two_writers_of_single_pages_lose_nothing() -> None:
    m = AttributeMap(PAGES)

    def writing(first: int) -> Callable[[], None]:
        def work() -> None:
            for gfn in range(first, first + 6000, 2):
                assert m.write(gfn, gfn + 1, 1)
                assert m.get(gfn) == 1

        return work

    together(writing(1), writing(2))
    assert m.count(0, PAGES, 1) == m.version == 6000
    m.validate()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
@pytest.mark.parametrize("kind", ["put", "update_many", "put_bitmap"])
def test_ctrl_c_stops_a_batch_between_two_operations(kind: str) -> None:
    """The signal comes later and later in longer and longer batches until it hits one: a prefix stands."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pages = 2**24
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for count, delay in itertools.product(
            (2**19, 2**21, 2**23), (0.002 * 2**power for power in range(9))
        ):
            m = AttributeMap(pages)
            gfns = np.arange(0, 2 * count, 2, dtype=np.uint64)
            stops = gfns + np.uint64(1)
            bits = np.full(count // 4, 0x55, dtype=np.uint8)
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                if kind == "put":
                    m.put(gfns, 1)
                elif kind == "update_many":
                    m.update_many(gfns, stops, 1)
                else:
                    m.put_bitmap(0, bits, 1)
                while True:
                    # A signal just before pause() would be waited for in vain.
                    time.sleep(0.001)
            except KeyboardInterrupt as stopped:
                done = getattr(stopped, "done", count)
                assert m.count(0, pages, 1) in (0, done)
                if 0 < done < count:
                    assert m.get(2 * (done - 1)) == 1
                    assert m.get(2 * done) == 0
                    m.validate()
                    return
        raise AssertionError("no batch, however long, was ever interrupted")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
