#!/usr/bin/env python3
"""Do two threads do more than one, and how long does the one wait for the other, on CPython without the GIL?

    python bench/threads.py                                  the table; half a minute
    python bench/threads.py --results bench/results/NAME     writes NAME.txt too
    python bench/threads.py --quick                          seconds; figures mean nothing

The first table has the calls a second of two threads, over those of one. 2 is the best there is; below 1 two threads
get less done together than one alone. Rounds of one thread and of two take turns, so that what the machine does beside
is in both; the median of their ratios stands there, with the limit that the project set itself. It takes two free
CPUs: the load that was there meanwhile is printed below. With a GIL the rows of batches alone can pass 1.

The second table has what a call takes, now and then, while the other thread works without a pause.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

from bench.report import asked, show  # noqa: E402
from kvmattr import VM, AttributeMap  # noqa: E402
from kvmattr.measure.machine import Load  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402

Work = Callable[[], object]
#: Called in the thread that will do the work. A bound method such as ``m.get`` is an object with a count of references
#: that each call changes: two of one thread's may lie in one cache line, or it may be one that both threads use. Then
#: two threads take turns at that line and do together what one does alone (measured here: 0.9 to 1.1 in place of 1.9).
Maker = Callable[[], Work]
PAGES = 1 << 24


def fragmented() -> AttributeMap:
    m = AttributeMap(PAGES)
    m.put(np.arange(0, 1 << 18, 2), 1)
    # Pages that nobody writes: with a 2 in each block, what is written elsewhere changes no encoding. What one round
    # leaves would decide what the next one measures (8 times as much).
    m.put(np.arange(20, 1 << 18, 40), 2)
    return m


def getting(m: AttributeMap) -> Work:
    get = m.get

    def work() -> None:
        for gfn in range(0, 77_000, 77):
            get(gfn)

    return work


def taking(m: AttributeMap) -> Work:
    gfns = np.random.default_rng(1).integers(0, 1 << 18, 100_000, dtype=np.uint64)
    return lambda: m.take(gfns)


def taking_turns(one: int, other: int, change: Callable[[int], object]) -> Work:
    """To change pages to the one value and to the other by turns: every call changes them."""
    values = itertools.cycle([other, one])
    return lambda: change(next(values))


def putting(m: AttributeMap, first: int) -> Work:
    """Two threads have pages of their own."""
    gfns = np.arange(first, 200_000, 40, dtype=np.uint64)[:2000]
    return taking_turns(1, 2, lambda value: m.put(gfns, value))


def writing(m: AttributeMap, first: int) -> Work:
    write = m.write

    def change(value: int) -> None:
        for gfn in range(first, first + 500):
            write(gfn, gfn + 1, value)

    return taking_turns(1, 0, change)


def accessing(vm: VM) -> Work:
    access = vm.access

    def work() -> None:
        for gpa in range(0, 500 << 12, 4096):
            access(gpa, 1)

    return work


def setting(vm: VM, first: int) -> Work:
    set_one = vm.set_memory_attributes

    def change(value: int) -> None:
        for address in range(first, first + (500 << 12), 4096):
            set_one(address, 4096, value)

    return taking_turns(1, 0, change)


def rows() -> dict[str, tuple[Maker, Maker, float]]:
    """What one thread does, what the other does beside it, and the limit."""
    m, other, written, also = (fragmented() for _ in range(4))
    snapshot = m.snapshot()
    vm = VM()
    vm.set_user_memory_region(0, 0, 1 << 30)
    table: dict[str, tuple[Callable[..., Work], tuple[Any, ...], tuple[Any, ...], float]] = {
        "get, a map each": (getting, (m,), (other,), 1.7),
        "get, one map": (getting, (m,), (m,), 1.3),
        "get, one snapshot": (getting, (snapshot,), (snapshot,), 1.3),
        "take of 1e5 pages, a map each": (taking, (m,), (other,), 1.9),
        "take of 1e5 pages, one map": (taking, (m,), (m,), 1.3),
        "put of 2e3 pages, a map each": (putting, (written, 0), (also, 0), 1.9),
        "put of 2e3 pages, one map": (putting, (written, 0), (written, 1), 0.8),
        "write of a page, a map each": (writing, (written, 1 << 20), (also, 1 << 20), 1.7),
        "write of a page, one map": (writing, (written, 1 << 20), (written, 1 << 21), 0.8),
        "access of one machine": (accessing, (vm,), (vm,), 1.3),
        "SET of a page, one machine": (setting, (vm, 0), (vm, 1 << 28), 0.8),
    }
    return {name: (partial(work, *one), partial(work, *two), limit) for name, (work, one, two, limit) in table.items()}


def waits() -> dict[str, tuple[Maker, Callable[[], Callable[[int], object]]]]:
    """What one thread does without a pause, and a call of the other beside it."""
    m = fragmented()
    gfns = np.random.default_rng(2).integers(0, 1 << 18, 1_000_000, dtype=np.uint64)

    def get() -> Callable[[int], object]:
        get = m.get
        return lambda turn: get(7 * turn)

    def write() -> Callable[[int], object]:
        write = m.write
        return lambda turn: write((1 << 21) + turn, (1 << 21) + turn + 1, turn & 1)

    return {
        "get beside put of 1e6 pages": (partial(taking_turns, 1, 3, lambda value: m.put(gfns, value)), get),
        "write beside put of 1e6 pages": (partial(taking_turns, 1, 3, lambda value: m.put(gfns, value)), write),
        "get beside writes": (partial(writing, m, 1 << 20), get),
        "write beside writes": (partial(writing, m, 1 << 20), write),
    }


def pinned(cpu: int, work: Work) -> threading.Thread:
    """A thread, not yet started, that does the work on one of the CPUs that we may use: the first, the second ..."""
    cpus = sorted(os.sched_getaffinity(0))

    def run() -> None:
        os.sched_setaffinity(0, {cpus[cpu % len(cpus)]})  # of this thread alone
        work()

    return threading.Thread(target=run)


def waited(beside: Maker, call: Callable[[], Callable[[int], object]], turns: int) -> list[float]:
    """What each call took, in microseconds, from the shortest to the longest."""
    taken: list[float] = []
    ended = False

    def other() -> None:
        work = beside()
        while not ended:
            work()

    def calls() -> None:
        once = call()
        for turn in range(turns):
            began = time.perf_counter_ns()
            once(turn)
            taken.append((time.perf_counter_ns() - began) / 1000)
            time.sleep(20e-6)

    threads = pinned(0, other), pinned(-1, calls)
    for thread in threads:
        thread.start()
    threads[1].join()
    ended = True
    threads[0].join()
    return sorted(taken)


def rate(makers: tuple[Maker, ...], seconds: float) -> float:
    """How often a second the works were done, by a thread each, on a CPU each."""
    barrier = threading.Barrier(len(makers) + 1)
    ended = False
    done = [0] * len(makers)

    def repeat(which: int) -> None:
        count, work = 0, makers[which]()
        barrier.wait()
        while not ended:
            work()
            count += 1
        done[which] = count

    threads = [pinned(which, partial(repeat, which)) for which in range(len(makers))]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    ended = True
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def main() -> None:
    words, load = asked(__doc__), Load.now()
    rounds, seconds = (2, 0.02) if words.quick else (11, 0.1)
    table = []
    for name, (one, two, limit) in rows().items():
        ratios = sorted(rate((one, two), seconds) / rate((one,), seconds) for _ in range(rounds))
        middle = ratios[rounds // 2]
        table.append([name, f"{middle:.2f}", f"{ratios[0]:.2f} .. {ratios[-1]:.2f}",
                      f"{limit:.1f}{'' if middle >= limit else ' *'}"])
        print(f"{name}: done", file=sys.stderr, flush=True)
    turns = 100 if words.quick else 5000
    times = [[name, f"{taken[turns // 2]:.1f}", f"{taken[turns * 99 // 100]:.0f}"]
             for name, (beside, call) in waits().items() for taken in [waited(beside, call, turns)]]
    gil = "with" if getattr(sys, "_is_gil_enabled", lambda: True)() else "without"
    show(f"{fitted(['two threads / one', 'median', 'of all rounds', 'limit'], table, 100)}\n\n* below its limit\n\n"
         f"{fitted(['us a call', 'median', '99 of 100'], times, 100)}", f"{gil} the GIL", load, words.results)


if __name__ == "__main__":
    main()
