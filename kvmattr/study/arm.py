"""One backend in one unit, from opening to the check of its state; what a backend raises ends here."""

from __future__ import annotations

import copy
import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmattr.measure import ending, text
from kvmattr.measure.clock import Took, timed, yardstick
from kvmattr.measure.machine import available_bytes
from kvmattr.study.backends import Backend
from kvmattr.study.results import Result
from kvmattr.study.scenarios import ACTIONS, Scenario, Workload
from kvmattr.study.work import Batch, Failed, Footprint, Reference, Stopped, Unsupported, described, one_line

#: Where the time limit must be kept, updates go in parts that take about so long, the first of so many.
_PART_SECONDS = 0.05
_FIRST_PART = 8
#: Pages of each kind that are read back where the state cannot be listed.
_PROBED = 4096
#: So many ranges at most are left converted for the check: as many as a round converts before it takes them back.
_LEFT = 1024
#: Rounds of fewer operations are so slow that what the caches hold does not show.
_WORTH_WARMING = 64
#: From so many nanoseconds a round on, CPU time is judged: its reading costs 0.3 us, and a shorter round is
#: hardly ever interrupted.
_INTERRUPTIBLE = 1e5
#: The actions that answer many operations in one call, with the argument of a call that asks for none.
_EMPTY: dict[str, Any] = {"update": Batch.empty(), "has": Batch.empty(), "lookup": np.empty(0, np.uint64)}


class Work:
    """The work of a unit. All its arms get the same arrays, and the reference does once what several arms did."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.argument = functools.cache(workload.argument)
        self.parts = functools.cache(self._parts)
        self._outcomes: dict[tuple[int, ...], tuple[list[Any], Reference, Any, NDArray[Any]]] = {}

    def _parts(self, operations: int) -> list[Any]:
        """Half a round of so many operations, and each of its first ranges: where rounds convert and convert back, the
        first leaves hardly anything, and the second something of each update."""
        whole = self.argument(0, operations)
        half = whole.part(0, len(whole) // 2 | 1)
        if self.workload.whole:
            return [half]
        _, first = np.unique(np.stack([whole.starts, whole.stops]), axis=1, return_index=True)
        if len(first) == 1:     # its last update alone shows, which shall not be every other one
            return [Batch.joined(whole.part(1, 2), half.part(0, 1))]
        return [half, Batch.joined(*(whole.part(at, at + 1) for at in np.sort(first)[:_LEFT].tolist()))]

    def outcome(self, done: list[Any]) -> tuple[Reference, Any, NDArray[Any]]:
        """The reference after the setup and these arguments, the right answer to the last one (None: no answer), and
        the runs before it."""
        key = tuple(map(id, done))      # the arguments are kept beside it: no other one gets their place
        if key not in self._outcomes:
            batches = [argument for argument in done if isinstance(argument, Batch)]
            reference = Reference(self.workload.npages, self.workload.setup, *batches).apply(self.workload.setup)
            # A question changes nothing, and only the last answer was kept.
            changing, wanted, earlier = self.workload.action in ("update", "migrate"), None, np.empty(0)
            for argument in done if changing else done[-1:]:
                if argument is done[-1]:
                    earlier = reference.runs()
                wanted = reference.answer(self.workload.action, argument)
            self._outcomes[key] = done, reference, wanted, earlier
        return self._outcomes[key][1:]


class Arm:
    """Runs a workload on one backend. ``alive`` until something ended it; ``result`` says what came out."""

    def __init__(self, backend: type[Backend], scenario: Scenario, size: int, work: Work, seconds: float) -> None:
        self._class, self.name = backend, backend.name
        self._scenario = scenario
        self._size = size
        self._work, self._workload = work, work.workload
        self._seconds = seconds
        #: Whether nothing but this thread does the work, so that its CPU time says what it takes.
        self._alone = backend.kind != "kernel" and not backend.elsewhere
        self._spent = 0.0
        #: A Backend, from when it is made until it is closed; what it can do besides is asked for by name.
        self._backend: Any = None
        self._done: list[Any] = []
        self._answer: Any = None
        #: One a round: what it took, the yardstick just before it, and of bytes how many.
        self._rounds: list[tuple[Took, Took, float]] = []
        self._operations = work.workload.operations
        self._empty_seconds: float | None = None
        self._status = "ok"
        self._note = ""
        self._reached: int | None = None

    @property
    def alive(self) -> bool:
        """Whether it can go on."""
        return self._status == "ok"

    def open(self) -> None:
        """Make the backend and bring it to the state that the rounds start from."""
        with self._ending_here(0, "in the setup: "):
            reason = reason_against(self._class, self._workload, self._seconds)
            if reason is not None:
                self._end(*reason)
            else:
                setup = self._workload.setup
                self._backend = self._class(self._workload.npages)
                first, took = timed(self._backend.load, copy.deepcopy(setup), self._seconds)
                self._spent += took.wall / 1e9
                self._in_parts(setup.part(first, len(setup)), first, "in the setup: ")

    @property
    def seconds_in_rounds(self) -> float:
        """Wall time of the rounds so far."""
        return sum(took.wall for took, _, _ in self._rounds) / 1e9

    def warm_up(self, round_seconds: float, fixed: int = 0) -> None:
        """Find how many operations fit a round (``fixed``: it has so many), and bring code and data into the caches."""
        if self._workload.whole:
            # Where rounds alternate, this is the odd one: it finds nothing to undo, and round 0 comes next.
            argument = self._work.argument(1, self._operations)
            if self._workload.action == "update":   # in parts: nobody knows yet how long it takes
                self._in_parts(argument, len(self._workload.setup))
                self._done.append(argument)
            else:
                self._timed(argument)
        elif fixed:
            self._operations = min(fixed, self._operations)
            self._timed(self._work.argument(0, self._operations))
        else:
            operations = 2
            while self.alive:
                took = self._calibrating(self._work.argument(0, operations), round_seconds)
                if took * 2 > round_seconds or operations >= self._workload.operations:
                    break
                operations = min(operations * 4, self._workload.operations)
            fits = int(operations * round_seconds / took) if self.alive and took > 0 else operations
            fits = min(fits, self._workload.operations)
            step = self._workload.step if fits >= self._workload.step else 2
            self._operations = max(fits // step * step, 2)
        if self.alive:
            self._measure_empty_call()

    def sample(self, index: int) -> None:
        """One round, warm: the arms before it have had the caches, so a part of it goes first, untimed."""
        if not self.alive:
            return
        if self._spent > self._seconds:
            if not self._rounds:
                self._end("stopped", f"stopped after {self._seconds:g} s", len(self._workload.setup))
            return
        fixed = yardstick()
        if self._operations >= _WORTH_WARMING and not self._workload.whole:
            self._timed(self._work.argument(index, self._operations // 16 * 2))
        if self.alive:
            took = self._timed(self._work.argument(index, self._operations))
            with self._ending_here(None):
                if self.alive:
                    held = _bytes(self._answer) if self._scenario.unit == "bytes" else 0.0
                    self._rounds.append((took, fixed, held))

    def check(self) -> None:
        """Compare the last answer and the final state with the reference; a wrong backend has no samples."""
        if not self.alive or self._backend is None:
            return
        earlier = None
        if self._workload.action == "update":
            # Rounds convert and convert back: these parts of one leave what doing nothing, or some of it, would not.
            for part in self._work.parts(self._operations):
                with self._ending_here(None, "in the check: "):
                    earlier = self._backend.runs()
                if self.alive:
                    self._timed(part)
        if self.alive:
            with self._ending_here(None, "in the check: "):
                self._compare(earlier)

    def close(self) -> None:
        """Give back what the backend holds."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with self._ending_here(None, "on closing: "):
                backend.close()

    def fail(self, error: Exception) -> None:
        """End with what went wrong around the backends, unless something had ended it before."""
        self._end("error", described(error))

    def result(self) -> Result:
        """What came out, with all that a report needs."""
        of_bytes = Result(
            self._scenario.name, self._class.name, self._class.kind, self._size, self._scenario.unit,
            self._status, self._note, [held for _, _, held in self._rounds], self._operations,
            reached=self._reached, host=socket.gethostname())
        if not self._rounds or self._scenario.unit == "bytes":
            return of_bytes
        wall = [took.wall / self._operations for took, _, _ in self._rounds]
        median = float(np.median(wall)) * self._operations
        clock = "cpu" if self._alone and median >= _INTERRUPTIBLE else "wall"
        return replace(
            of_bytes, clock=clock, wall=wall, yardstick=[getattr(fixed, clock) for _, fixed, _ in self._rounds],
            samples=[getattr(took, clock) / self._operations for took, _, _ in self._rounds],
            overhead=None if self._empty_seconds is None else self._empty_seconds * 1e9 / median)

    @contextmanager
    def _ending_here(self, reached: int | None, where: str = "") -> Iterator[None]:
        """What a backend raises becomes the end of this cell, never of the run; Ctrl-C passes."""
        try:
            yield
        except Unsupported as error:
            self._end("unsupported", str(error))
        except Stopped as error:
            self._end("stopped", str(error))
        except (OSError, MemoryError) as error:
            self._end("failed", f"{where}{error}", reached)
        except KeyboardInterrupt:
            raise
        except BaseException as error:      # also SystemExit and what else a backend may raise
            ending.again()
            self._end("error", f"{where}{described(error)}", reached)

    def _compare(self, earlier: NDArray[Any] | None) -> None:
        reference, wanted, before = self._work.outcome(self._done)
        if wanted is not None and not np.array_equal(wanted, self._answer):
            self._wrong(f"{self._workload.action} gave {_unlike(self._answer, wanted)}")
            return
        runs = self._backend.runs()
        if earlier is not None and not np.array_equal(earlier, before):
            self._wrong(f"its state is {_unlike(earlier, before)}")
        elif runs is None:
            self._probe(reference, [done for done in self._done if isinstance(done, Batch)])
        elif not np.array_equal(runs, reference.runs()):
            self._wrong(f"its state is {_unlike(runs, reference.runs())}")

    def _probe(self, reference: Reference, batches: list[Batch]) -> None:
        """Compare page by page what cannot be listed: touched pages, their neighbours and a sample of the rest."""
        gfns = probed_pages(self._workload.npages, [self._workload.setup, *batches])
        try:
            seen = self._backend.probe(gfns)
        except OSError as error:
            self._note = f"its state was not checked: {error.strerror}"
            return
        if seen is None:
            if not self._class.stateless:
                self._note = "its state was not checked: it has neither runs nor single pages to show"
            return
        different = np.flatnonzero(seen != reference.lookup(gfns))
        if len(different):
            first = gfns[different[0]]
            self._wrong(f"page {first:#x} reads back as {seen[different[0]]}, should be "
                        f"{reference.lookup(gfns[different[:1]])[0]} ({len(different):,} of the {len(gfns):,} "
                        "pages that were probed differ)")

    def _in_parts(self, updates: Batch, before: int, where: str = "") -> None:
        """Do updates, of which ``before`` came earlier, keeping the time limit."""
        first, part = 0, _FIRST_PART
        while self.alive and first < len(updates):
            reached = before + first
            if self._spent > self._seconds:
                self._end("stopped", f"stopped after {self._seconds:g} s at k = {reached}", reached)
                return
            took = self._called("update", updates.part(first, first + part), reached, where)
            first += part
            if took.wall / 1e9 < _PART_SECONDS:
                part *= 2

    def _calibrating(self, argument: Any, round_seconds: float) -> float:
        """Seconds of a round, for the number of operations that fit one: an interruption must not make them few."""
        took = self._timed(argument)
        if self._alone:
            return took.cpu / 1e9
        seconds = took.wall / 1e9
        if self.alive and round_seconds / 2 < seconds < 8 * round_seconds:
            seconds = min(seconds, self._timed(argument).wall / 1e9)
        return seconds

    def _timed(self, argument: Any) -> Took:
        """What a round asks, after the setup."""
        took = self._called(self._workload.action, argument, len(self._workload.setup))
        if self.alive:
            self._done.append(argument)
        return took

    def _called(self, action: str, argument: Any, reached: int, where: str = "") -> Took:
        """One call, after so many updates: what it took. What the backend raises is the end of the cell."""
        took = Took(0.0, 0.0)
        with self._ending_here(reached, where):
            try:
                # A copy of its own: as warm for each arm, and what a backend does to it changes nobody else's.
                own = [] if argument is None else [self._prepared(copy.deepcopy(argument), action)]
                self._answer, took = timed(getattr(self._backend, action), *own)
                self._spent += took.wall / 1e9
            except Failed as failure:
                most = 0 if argument is None else len(argument)
                if failure.done in range(most + 1):
                    reached += failure.done
                    self._end("failed", f"failed at k = {reached + 1}: {failure.why}", reached)
                else:
                    self._end("error", f"it says that {failure.done!r} of {most} updates are done: {failure.why}")
        return took

    def _prepared(self, argument: Any, action: str) -> Any:
        return self._backend.prepare(argument) if are_updates(argument, action) else argument

    def _measure_empty_call(self) -> None:
        action = self._workload.action
        if action in _EMPTY:
            call = getattr(self._backend, action)
            with self._ending_here(len(self._workload.setup)):
                self._empty_seconds = min(timed(call, self._prepared(_EMPTY[action], action))[1].wall
                                          for _ in range(5)) / 1e9

    def _wrong(self, note: str) -> None:
        self._rounds = []
        self._end("wrong", note)

    def _end(self, status: str, note: str, reached: int | None = None) -> None:
        if self.alive:  # what ended it first is what is told
            self._status, self._note, self._reached = status, one_line(note), reached
        # At once: a backend that ended at a limit of the process (mprotect's regions) would starve others.
        self.close()


def are_updates(argument: Any, action: str) -> bool:
    """Whether a round's argument is updates: ranges that are only looked up go to the backend as they are."""
    return isinstance(argument, Batch) and action != "has"


def probed_pages(npages: int, batches: list[Batch]) -> NDArray[np.uint64]:
    """The pages to read back after these updates: uint64, ascending, distinct.

    The first and the last of each update, the pages beside them and as many anywhere; of more than 4,096 in the
    setup, in the rounds and in the last round, so many of each chosen at random.
    """
    random = np.random.default_rng(len(batches))
    found = [random.integers(0, npages, _PROBED, dtype=np.uint64)]
    setup, rounds, last = batches[:1], batches[1:-1], batches[1:][-1:]
    for group in (setup, rounds, last):
        for batch in group:
            most = max(_PROBED // len(group), 1)
            chosen = random.choice(len(batch), most, replace=False) if len(batch) > most else np.arange(len(batch))
            first, end = batch.starts[chosen], batch.stops[chosen]
            found += [first, end - np.uint64(1), first[first > 0] - np.uint64(1), end[end < npages]]
    return np.unique(np.concatenate(found))


def unbroken_seconds(backend: type[Backend], workload: Workload) -> float:
    """Seconds in which nothing can stop a backend, at least: its longest update, there and back."""
    a_page = backend.seconds_a_page()
    if not a_page > 0:      # nor where it is no number
        return 0.0
    argument = workload.argument(0, 2)
    batches = [workload.setup, *([argument] if are_updates(argument, workload.action) else [])]
    longest = max((int((batch.stops - batch.starts).max()) for batch in batches if len(batch)), default=0)
    return 2 * longest * a_page


def reason_against(backend: type[Backend], workload: Workload, seconds: float) -> tuple[str, str] | None:
    """Why a cell cannot be measured, known before it starts: the status that it ends with, and the words.

    ``seconds`` is the time limit of a cell. What a backend raises when it is asked is the end of this cell alone.
    """
    try:
        if not hasattr(backend, workload.action):
            return "unsupported", f"has no {ACTIONS[workload.action]}"
        reason = backend.missing()
        if reason is not None:
            return "unavailable", reason
        argument = workload.argument(0, workload.operations)
        more = argument if are_updates(argument, workload.action) else Batch.empty()
        reason = backend.unsupported(more) or backend.unsupported(workload.setup)
        if reason is not None:
            return "unsupported", reason
        needed, free = backend.bytes_needed(Footprint(workload.npages, workload.setup, more)), available_bytes()
        if needed > free // 4:
            return "refused", f"would take {text.quantity(needed, 'bytes')} of {text.quantity(free, 'bytes')} free"
        unbroken = unbroken_seconds(backend, workload)
        if unbroken > seconds:
            return "refused", (f"would take {text.digits(unbroken)} s in calls that nothing can interrupt, "
                               f"of {seconds:g} s")
        return None
    except Exception as error:
        ending.again()
        return "error", described(error)


def _bytes(answer: Any) -> float:
    """What a backend says that it takes."""
    if not 0 <= answer < 1 << 64:
        raise ValueError(f"{_short(answer)} is no number of bytes")
    return float(answer)


def _unlike(found: Any, wanted: Any) -> str:
    """What is and what should be, from the first difference on where both are arrays of one kind."""
    if all(isinstance(each, np.ndarray) and each.ndim == 1 for each in (found, wanted)) and found.dtype == wanted.dtype:
        least = min(len(found), len(wanted))
        same = int(np.argmax(np.append(found[:least] != wanted[:least], True)))
        if same:
            return f"{_short(found[same:])} from [{same:,}] on, should be {_short(wanted[same:])}"
    return f"{_short(found)}, should be {_short(wanted)}"


def _short(value: Any) -> str:
    text = one_line(value)
    return text if len(text) <= 80 else text[:77] + "..."
