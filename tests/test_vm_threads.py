"""A machine in several threads, under signals and across fork: its lock is never lost, no change is half done."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

import kvmattr
from kvmattr import VM, Access, AttributeMap, Operation, uapi
from tests.test_embedding_threads import in_child

MIB = 1 << 20
PATIENCE = 120  # seconds until a thread counts as stuck; no verdict depends on it otherwise
HERE = os.path.dirname(kvmattr.__file__)


class Heard:
    """A listener that counts its calls: each prepared chunk is to be committed or aborted, once."""

    def __init__(self) -> None:
        self.prepared: list[bytes] = []
        self.committed: list[bytes] = []
        self.aborted: list[bytes] = []

    def prepare(self, changes):
        self.prepared.append(changes.tobytes())

    def commit(self, changes):
        self.committed.append(changes.tobytes())

    def abort(self, changes):
        self.aborted.append(changes.tobytes())


class Called:
    """A listener of calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...], int]] = []

    def called(self, call: str, numbers: tuple[int, ...], answer: int) -> None:
        self.calls.append((call, numbers, answer))


def records(count: int, attributes: int = 1) -> np.ndarray:
    array = np.zeros(count, uapi.MEMORY_ATTRIBUTES)
    array["address"], array["size"], array["attributes"] = np.arange(count) * 8192, 4096, attributes
    return array


# ---- a signal at any bytecode ----


class Interrupted(BaseException):
    """What a signal's handler raises."""


def interrupted_at(place: int, work: Callable[[], object]) -> bool | None:
    """Do the work, raising before the place-th bytecode that is executed in the package's files.

    False if it raised so, True if it ended before, None if what was raised never came out of it.
    """
    left = place
    raised = False

    def trace(frame, event, argument):
        nonlocal left, raised
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not raised:
            left -= 1
            if left < 0:
                raised = True
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        work()
    except Interrupted:
        return False
    finally:
        sys.settrace(None)
    return None if raised else True


CHANGES: dict[str, Callable[[VM], object]] = {
    "set": lambda vm: vm.set_memory_attributes(0, 0x3000, 5),
    "many": lambda vm: vm.set_memory_attributes_many(records(3, 5)),
    "ioctl": lambda vm: vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(0, 0x3000, 5)),
    "restore": lambda vm: vm.restore(AttributeMap()),
    "memslot": lambda vm: vm.set_user_memory_region(7, 1 << 30, MIB),
    "memslot ioctl": lambda vm: vm.ioctl(
        uapi.KVM_SET_USER_MEMORY_REGION, uapi.kvm_userspace_memory_region(7, 0, 1 << 30, MIB, 0)
    ),
    "delete": lambda vm: vm.set_user_memory_region(1, 0, 0),
    "create guest_memfd": lambda vm: vm.create_guest_memfd(MIB),
    "close guest_memfd": lambda vm: vm.close_guest_memfd(vm.bound),
    "add": lambda vm: vm.add_listener(Heard()),
    "replay": lambda vm: vm.add_listener(vm.second, replay=True),
    "remove": lambda vm: vm.remove_listener(vm.first),
}


class Machine(VM):
    """A machine with a memslot, a bound guest_memfd, some attributes and a listener."""

    def __init__(self) -> None:
        super().__init__()
        self.set_user_memory_region(1, 1 << 28, MIB)
        self.bound = self.create_guest_memfd(MIB)
        self.set_user_memory_region2(0, 0, MIB, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=self.bound)
        self.set_memory_attributes(0x1000, 0x4000, 1)
        self.first, self.second, self.calls = Heard(), Heard(), Called()
        self.add_listener(self.first)
        self.add_listener(self.calls)


FILE_CHANGES: dict[str, Callable[[VM], object]] = {
    "convert": lambda vm: vm.set_memory_attributes2(vm.bound, 0, 0x3000, 0),
    "convert many": lambda vm: vm.set_memory_attributes2_many(vm.bound, conversions(3)),
    "convert ioctl": lambda vm: vm.gmem_ioctl(
        vm.bound, uapi.KVM_SET_MEMORY_ATTRIBUTES2, uapi.kvm_memory_attributes2(size=0x3000)
    ),
    "punch": lambda vm: vm.punch_hole(vm.bound, 0, 0x3000),
    "fallocate": lambda vm: vm.fallocate_guest_memfd(vm.bound, uapi.FALLOC_FL_KEEP_SIZE, 0, 0x3000),
    "fail": lambda vm: vm.fail_page(vm.bound, 0x1000),
    "link": lambda vm: vm.link_guest_memfd(vm.elsewhere),
    "memslot": lambda vm: vm.set_user_memory_region2(
        7, 1 << 30, MIB, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=vm.create_guest_memfd(MIB)
    ),
    "close": lambda vm: vm.close_guest_memfd(vm.bound),
    "irqchip": lambda vm: vm.create_irqchip(),
}

#: What leaves the machine as it is.
LOOKS = {
    "access", "attributes", "check_extension", "get_memory_attributes", "guest_memfd", "guest_memfds", "host",
    "invalidation", "is_private", "legal_attributes", "mapping_level", "memslots", "pre_fault_memory",
    "profile", "protection", "requests", "snapshot", "supported_attributes", "vcpu_ioctl",
}


def conversions(count: int) -> np.ndarray:
    array = np.zeros(count, uapi.MEMORY_ATTRIBUTES2)
    array["offset"], array["size"] = np.arange(count) * 8192, 4096
    return array


class FileMachine(Machine):
    """One whose attributes belong to its files, each with another machine's beside it."""

    def __init__(self) -> None:
        VM.__init__(self, "gmem")
        self.bound = self.create_guest_memfd(MIB)
        self.set_user_memory_region2(0, 0, MIB, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=self.bound)
        self.other = VM("gmem")
        self.elsewhere = self.other.create_guest_memfd(MIB)
        self.linked = self.other.link_guest_memfd(self.bound)
        self.pages = self.guest_memfd(self.bound)
        self.first, self.second, self.calls = Heard(), Heard(), Called()
        self.add_listener(self.first)
        self.add_listener(self.calls)


def state(vm: Machine) -> tuple[object, ...]:
    if not isinstance(vm, FileMachine):
        return vm.attributes.runs().tobytes(), [slot[:6] for slot in vm.memslots]
    return (
        vm.pages.attributes.runs().tobytes(),
        [slot[:6] for slot in vm.memslots],
        str(vm.access(0x1000, Access.READ, private=True)),
        vm.invalidation.sequence,
    )


def test_every_call_is_in_a_list() -> None:
    """Each public name of a machine changes it, and is interrupted at each bytecode below, or does not."""
    changes = "".join(inspect.getsource(sys.modules[__name__]).partition("CHANGES:")[2].partition("LOOKS =")[0])
    public = {name for name in dir(VM) if not name.startswith("_")}
    assert {name for name in public - LOOKS if f"vm.{name}(" not in changes} == set()
    assert public >= LOOKS


@pytest.mark.parametrize(
    ("make", "change"),
    [(Machine, change) for change in CHANGES.values()] + [(FileMachine, change) for change in FILE_CHANGES.values()],
    ids=[*CHANGES, *(f"file: {name}" for name in FILE_CHANGES)],
)
def test_a_signal_at_any_bytecode_leaves_the_machine_whole(
    make: type[Machine], change: Callable[[VM], object]
) -> None:
    done = make()
    change(done)
    places = 0
    while True:
        vm = make()
        before = state(vm)
        ended = interrupted_at(places, lambda vm=vm: change(vm))
        assert vm.invalidation.in_progress == 0
        after = state(vm)
        assert after in (before, state(done))
        for heard in (vm.first, vm.second):
            assert heard.committed + heard.aborted == heard.prepared
            assert not (heard.committed and heard.aborted)
        for call, _, answer in vm.calls.calls:  # what was answered stands; the file that a memslot needs comes first
            assert call == "create_guest_memfd" or answer < 0 or after == state(done)
        # Its lock is free: another thread can change it.
        other = threading.Thread(target=vm.set_user_memory_region, args=(9, 1 << 40, 4096), daemon=True)
        other.start()
        other.join(PATIENCE)
        assert vm.memslots.slot(9).npages == 1
        vm.memslots.validate()
        vm.attributes.validate()
        if ended:
            assert after == state(done)
            break
        places += 1


# ---- real signals ----

INTERRUPTED = """
    import signal, sys, threading
    from kvmattr import VM, uapi
    vm = VM()
    class Nothing:
        def prepare(self, changes): pass
        commit = abort = prepare
    vm.add_listener(Nothing())
    turn = -1
    try:
        print("ready", flush=True)
        while True:
            turn += 1
            vm.set_user_memory_region(turn % 5, (turn % 5) << 30, 0 if turn // 5 % 2 else 4096)
            vm.set_memory_attributes(turn % 7 << 12, 4096, turn % 2)
            vm.close_guest_memfd(vm.create_guest_memfd(4096))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        sys.exit(f"turn {turn}: {error}")
    assert vm.invalidation.in_progress == 0
    def use():
        vm.set_memory_attributes(0, 4096, 5)
        vm.set_user_memory_region(9, 9 << 30, 4096)
        print("usable", flush=True)
    other = threading.Thread(target=use, daemon=True)
    other.start()
    other.join(60)
"""


@pytest.mark.parametrize("turn", range(8))
def test_ctrl_c_loses_no_lock(turn: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(0.003 * turn + 0.001)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "usable\n"
    assert process.returncode == 0


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    """Has SIGALRM raise KeyboardInterrupt, and sends one as soon as it is called and again until it was heard."""

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def test_who_waits_for_a_machine_hears_a_signal(alarm: Callable[[], None]) -> None:
    vm = VM()
    inside, go_on = threading.Event(), threading.Event()
    heard = Heard()

    def wait(changes):
        inside.set()
        assert go_on.wait(PATIENCE)

    heard.prepare = wait
    vm.add_listener(heard)
    first = threading.Thread(target=vm.set_memory_attributes, args=(0, 4096, 1), daemon=True)
    first.start()
    assert inside.wait(PATIENCE)

    def change() -> None:
        alarm()     # here, as it may come at once
        vm.set_memory_attributes(0, 8192, 5)
    with pytest.raises(KeyboardInterrupt):
        change()
    go_on.set()
    first.join(PATIENCE)
    assert vm.attributes.runs(0, 3).tolist() == [(0, 1, 1), (1, 3, 0)]
    assert vm.set_memory_attributes(0, 8192, 5) == 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("how", ["set", "many", "restore", "replay"])
def test_an_interrupt_within_commit_comes_after_the_change(kind: type, how: str) -> None:
    """All hear of it, the invalidation ends, and it is neither lost nor taken for a refusal."""
    vm = VM()
    vm.set_user_memory_region(0, 0, MIB)
    if how == "replay":
        vm.set_memory_attributes(0, 4096, 1)
    first, second = Heard(), Heard()
    fired = []

    def interrupted(changes):
        first.committed.append(changes.tobytes())
        if not fired:
            fired.append(True)
            raise kind("now")

    first.commit = interrupted
    if how != "replay":
        vm.add_listener(first)
        vm.add_listener(second)
    sequence = vm.invalidation.sequence
    other = AttributeMap()
    other[0] = 1
    change: dict[str, Callable[[], object]] = {
        "set": lambda: vm.set_memory_attributes(0, 4096, 1),
        "many": lambda: vm.set_memory_attributes_many(records(4)),
        "restore": lambda: vm.restore(other),
        "replay": lambda: vm.add_listener(first, replay=True),
    }
    with pytest.raises(kind, match="now") as caught:
        change[how]()
    assert vm.attributes.runs(0, 8).tolist() == [(0, 1, 1), (1, 8, 0)]
    assert vm.invalidation.in_progress == 0
    assert vm.invalidation.sequence == sequence + (how != "replay")
    assert first.committed == first.prepared
    assert second.committed == second.prepared
    assert first.aborted == second.aborted == []
    if how == "many":
        assert caught.value.done == 1
    if how == "replay":  # the listener is registered
        vm.set_memory_attributes(0, 4096, 5)
        assert len(first.committed) == 2
    assert vm.set_memory_attributes(0, 8192, 4) == 0


def test_an_interrupt_within_abort_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    vm, first, second = VM(), Heard(), Heard()

    def refuse(changes):
        raise RuntimeError("no room")

    def interrupted(changes):
        raise KeyboardInterrupt

    first.abort, second.prepare = interrupted, refuse
    vm.add_listener(first)
    vm.add_listener(second)
    with pytest.raises(KeyboardInterrupt) as caught:
        vm.set_memory_attributes(0, 4096, 1)
    assert isinstance(caught.value.__context__, RuntimeError)
    assert reported == []
    assert vm.attributes[0] == 0


# ---- two machines ----


def test_listeners_of_two_machines_that_change_each_other() -> None:
    """One of the two is told; the other goes on."""
    machines = [VM(), VM()]
    barrier = threading.Barrier(2)
    errors: list[OSError] = []

    class Crossing(Heard):
        def __init__(self, other: VM) -> None:
            super().__init__()
            self.other = other

        def prepare(self, changes):
            super().prepare(changes)
            barrier.wait(PATIENCE)
            self.other.set_user_memory_region(1, 1 << 30, 4096)

    for vm, other in zip(machines, machines[::-1], strict=True):
        vm.add_listener(Crossing(other))

    def change(vm: VM) -> None:
        try:
            vm.set_memory_attributes(0, 4096, 1)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(vm,), daemon=True) for vm in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert [error.errno for error in errors] == [errno.EDEADLK]
    assert errors[0].strerror == (
        "this VM is being changed by a thread that waits for this one: listeners of two VMs may not change each other's"
    )
    assert sorted(vm.attributes[0] for vm in machines) == [0, 1]
    assert [len(vm.memslots) for vm in machines] != [0, 0]
    for vm in machines:
        assert vm.set_user_memory_region(2, 2 << 30, 4096) == 0


def test_a_listener_that_comes_while_a_batch_runs_misses_nothing_after_it() -> None:
    """What the map shows after add_listener returned and what the listener then heard make up the map at the end."""
    batch = records(1 << 16)
    for _ in range(5):
        vm = VM()
        heard = Heard()
        started = threading.Event()

        def work(vm: VM = vm, started: threading.Event = started) -> None:
            started.set()
            vm.set_memory_attributes_many(batch)

        writer = threading.Thread(target=work, daemon=True)
        writer.start()
        assert started.wait(PATIENCE)
        vm.add_listener(heard, replay=True)
        writer.join(PATIENCE)
        mirror = AttributeMap()
        for changes in heard.committed:
            rows = np.frombuffer(changes, [("start", "<u8"), ("stop", "<u8"), ("old", "u1"), ("new", "u1")])
            mirror.update_many(rows["start"], rows["stop"], rows["new"])
        assert mirror == vm.attributes


def test_who_waits_gets_the_lock_in_a_batch() -> None:
    """A batch leaves it to others between its slices; they need not wait for its end."""
    vm = VM()
    batch = records(1 << 20)
    started, changed = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        while not changed.is_set():
            vm.set_memory_attributes_many(batch)

    writer = threading.Thread(target=work, daemon=True)
    writer.start()
    assert started.wait(PATIENCE)
    for turn in range(30):
        vm.set_user_memory_region(turn, turn << 30, 4096)
    changed.set()
    writer.join(PATIENCE)
    assert not writer.is_alive()
    assert len(vm.memslots) == 30


def test_changes_of_two_threads_are_all_made() -> None:
    vm = VM()
    vm.set_user_memory_region(0, 0, 1 << 30)
    pages = 3000
    failures = []

    def work(first: int) -> None:
        try:
            for address in range(first, first + pages * 4096, 4096):
                assert vm.set_memory_attributes(address, 4096, 1) == 0
                assert vm.is_private(address)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(first,), daemon=True) for first in (0, 256 * MIB, 512 * MIB)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    assert vm.invalidation.sequence == vm.attributes.version == vm.attributes.count(0, 1 << 18, 1) == 3 * pages


# ---- fork ----


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("where", ["prepare", "commit", "batch"])
def test_a_child_can_use_a_machine_that_another_thread_was_changing(where: str) -> None:
    vm = VM()
    vm.set_user_memory_region(0, 0, 1 << 30)
    heard = Heard()
    inside, go_on = threading.Event(), threading.Event()

    def wait(changes):
        inside.set()
        assert go_on.wait(PATIENCE)

    def work() -> None:
        if where != "batch":
            vm.set_memory_attributes(0, 4096, 1)
        while not go_on.is_set():
            vm.set_memory_attributes_many(batch)
            inside.set()

    batch = records(1 << 15)
    if where != "batch":
        setattr(heard, where, wait)
        vm.add_listener(heard)

    def use() -> None:
        assert vm.invalidation.in_progress == 0
        assert (vm.attributes[0] == 1) == (where != "prepare")
        if where != "batch":
            setattr(heard, where, lambda changes: None)
        sequence = vm.invalidation.sequence
        vm.set_memory_attributes(0, 8192, 5)
        assert vm.invalidation.retry(sequence)
        vm.set_user_memory_region(1, 1 << 40, 4096)
        vm.set_memory_attributes_many(batch)
        vm.attributes.validate()
        vm.memslots.validate()

    writer = threading.Thread(target=work, daemon=True)
    writer.start()
    try:
        assert inside.wait(PATIENCE)
        statuses = [in_child(use) for _ in range(12)]
    finally:
        go_on.set()
        writer.join(PATIENCE)
    assert statuses == [0] * 12
    assert vm.invalidation.in_progress == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_listener_that_forks_still_has_the_lock_in_the_child() -> None:
    vm = VM()
    statuses: list[int] = []

    def use() -> None:
        with pytest.raises(OSError, match="a listener may not change it"):
            vm.set_memory_attributes(0, 4096, 0)

    heard = Heard()
    heard.prepare = lambda changes: statuses.append(in_child(use))
    vm.add_listener(heard)
    assert vm.set_memory_attributes(0, 4096, 1) == 0
    assert statuses == [0]


# ---- reads beside changes ----


def test_iterating_memslots_beside_a_change_loses_none() -> None:
    vm = VM()
    for slot in range(40):
        vm.set_user_memory_region(slot, slot << 30, MIB)
    stop = threading.Event()
    before = sys.getswitchinterval()

    # As many slots that come and go lie between them, so that a walk mostly stands on one of those.
    def change() -> None:
        while not stop.is_set():
            for slot in range(40):
                vm.set_user_memory_region(100 + slot, (slot << 30) + (1 << 29), 0 if slot in there else MIB)
                there.symmetric_difference_update({slot})

    there: set[int] = set()
    writer = threading.Thread(target=change, daemon=True)
    sys.setswitchinterval(1e-6)
    writer.start()
    try:
        for _ in range(2000):
            assert {slot.id for slot in vm.memslots} >= set(range(40))
            found = vm.memslots.overlapping(0, 1 << 40)
            assert {slot.id for slot in found} >= set(range(40))
            assert all(slot.npages == 256 for slot in found)
    finally:
        sys.setswitchinterval(before)
        stop.set()
        writer.join(PATIENCE)
    vm.memslots.validate()


def test_sequence_and_hull_beside_a_batch() -> None:
    """Who sees an unmoved sequence, with no change in progress, has seen no half of a change."""
    vm = VM()
    vm.set_user_memory_region(0, 0, 1 << 30)
    stop = threading.Event()
    sets = [records(4096, value) for value in (1, 5)]

    def change() -> None:
        while not stop.is_set():
            for batch in sets:
                vm.set_memory_attributes_many(batch)

    writer = threading.Thread(target=change, daemon=True)
    writer.start()
    try:
        known: dict[int, int] = {}
        for _ in range(20000):
            sequence = vm.invalidation.sequence
            page = vm.attributes[0]
            if not vm.invalidation.retry(sequence, 0):
                assert known.setdefault(sequence, page) == page
            hull = vm.invalidation.hull
            assert hull is None or hull[0] < hull[1]
    finally:
        stop.set()
        writer.join(PATIENCE)


@pytest.mark.parametrize(
    "call",
    [
        lambda vm: vm.get_memory_attributes(0, 4096),
        lambda vm: vm.set_user_memory_region(1, 0, 4096),
        lambda vm: vm.set_user_memory_region2(1, 0, 4096),
        lambda vm: vm.ioctl(uapi.KVM_GET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(0, 4096)),
    ],
)
def test_a_listener_of_calls_that_is_taken_away_meanwhile(call: Callable[[VM], object]) -> None:
    """At any bytecode: what another thread may do between the look and the call."""
    for place in range(40):
        vm, listener = VM(), Called()
        vm.add_listener(listener)
        left = place

        def trace(frame, event, argument, vm=vm, listener=listener):
            nonlocal left
            frame.f_trace_opcodes = frame.f_code.co_filename.startswith(HERE)
            if event == "opcode":
                left -= 1
                if left < 0 and listener is not None:
                    with suppress(ValueError, OSError):  # taken away already; or the call has the lock
                        vm.remove_listener(listener)
            return trace

        sys.settrace(trace)
        try:
            call(vm)
        finally:
            sys.settrace(None)
        assert len(listener.calls) <= 1


# ---- what is no machine ----


@pytest.mark.parametrize(
    "use",
    [
        lambda vm: vm.access(0, 1),
        lambda vm: vm.protection(0),
        lambda vm: vm.is_private(0),
        lambda vm: vm.mapping_level(0),
        lambda vm: vm.set_memory_attributes(0, 4096, 1),
        lambda vm: vm.set_memory_attributes_many(records(1)),
        lambda vm: vm.add_listener(Heard()),
    ],
)
def test_a_class_that_does_not_call_our_init(use: Callable[[VM], object]) -> None:
    class V(VM):
        def __init__(self) -> None:
            pass

    with pytest.raises(RuntimeError, match=r"^V object is no machine yet: its __init__ must call VM.__init__$"):
        use(V())


def test_a_machine_is_made_once() -> None:
    vm = VM()
    with pytest.raises(RuntimeError, match=r"^this VM is made already: __init__ can be called once$"):
        vm.__init__()  # type: ignore[misc]


def test_restore_without_memory_is_enomem() -> None:
    class Saved:
        def snapshot(self) -> AttributeMap:
            raise MemoryError("out of memory for a map")

    vm = VM()
    with pytest.raises(OSError, match="out of memory for a map") as caught:
        vm._restore(Saved())  # type: ignore[arg-type]
    assert caught.value.errno == errno.ENOMEM
    assert vm.set_memory_attributes(0, 4096, 1) == 0


@pytest.mark.parametrize(
    ("request_", "structure"),
    [
        (uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes),
        (uapi.KVM_GET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes),
        (uapi.KVM_SET_USER_MEMORY_REGION, uapi.kvm_userspace_memory_region),
    ],
)
def test_a_buffer_of_python_objects(request_: int, structure: type) -> None:
    objects = [object() for _ in range(8)]
    array = np.array(objects, dtype=object)
    fields = np.zeros(8, [("Offset", "<u8"), ("what", object)])
    for buffer in (array, memoryview(array), fields):
        with pytest.raises(OSError, match="Python objects") as caught:
            VM().ioctl(request_, buffer)
        assert caught.value.errno == errno.EFAULT
    assert list(array) == objects
    numbers = np.zeros(8, [("Offset", "<u8")])
    with pytest.raises(OSError, match="must be") as caught:
        VM().ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, numbers)
    assert caught.value.errno == errno.EINVAL


def test_an_and_beside_listeners_still_answers() -> None:
    vm = VM()
    vm.add_listener(Heard())
    assert vm.set_memory_attributes(0, 4096, 5) == 0
    assert vm.set_memory_attributes(0, 4096, 1, Operation.AND) == 0
    assert vm.attributes[0] == 1


# ---- without the GIL, or beside a batch that has given it up ----


class Several:
    """Threads that do their work again and again until the block ends; what one of them raises, the block raises."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self.ended = False
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self.repeat, args=(work,), daemon=True) for work in works]

    def repeat(self, work: Callable[[], object]) -> None:
        try:
            while not self.ended:
                work()
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Several:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        for thread in self.threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self.threads)
        if self.errors:
            raise self.errors[0]


def test_a_memslot_that_stays_is_found_beside_those_that_come_and_go() -> None:
    """Whatever looks at it: accesses, levels and protections without a lock, the table's own calls."""
    vm = VM()
    vm.set_user_memory_region(7, 7 << 30, 1 << 30)
    there: set[int] = set()

    def change() -> None:
        for slot in (*range(1, 7), *range(8, 40)):
            vm.set_user_memory_region(slot, slot << 30, 0 if slot in there else 1 << 21)
            there.symmetric_difference_update({slot})

    def look() -> None:
        for gpa in range(7 << 30, (7 << 30) + (10 << 12), 4096):
            assert vm.access(gpa, 1) is None
            assert vm.access(gpa, 3, 8192) is None
            assert vm.protection(gpa) == 7
            assert vm.mapping_level(gpa) == 3
            found = vm.memslots.lookup(gpa >> 12)
            assert found is not None
            assert found[:4] == (7, 0, 7 << 18, 8 << 18)
            assert vm.access(100 << 30, 1) is not None

    with Several(change, look, look):
        for _ in range(20):
            look()
            assert {slot.id for slot in vm.memslots} >= {7}
            assert vm.memslots.stats()["memslots"] >= 1
    vm.memslots.validate()


@pytest.mark.parametrize("abi", ["gmem", "gmem-vm-attributes"])
def test_files_of_attributes_beside_conversions(abi: str) -> None:
    """Memslots with guest_memfds come and go, pages are converted in batches, pinned and looked at."""
    vm = VM(abi)
    size = 4 << 20
    batch = np.zeros(1024, uapi.MEMORY_ATTRIBUTES2)
    batch["offset"], batch["size"] = np.arange(1024) << 12, 4096
    back = batch.copy()
    batch["attributes"] = 8
    stays = vm.create_guest_memfd(size)
    vm.set_user_memory_region2(1, 0, size, 0, uapi.KVM_MEM_GUEST_MEMFD, stays)

    def convert() -> None:
        vm.set_memory_attributes2_many(stays, back)
        vm.set_memory_attributes2_many(stays, batch)

    def come_and_go() -> None:
        handle = vm.create_guest_memfd(size)
        vm.set_user_memory_region2(2, 1 << 30, size, 0, uapi.KVM_MEM_GUEST_MEMFD, handle)
        assert vm.guest_memfd(handle).bindings == ((0, size, 2),)
        vm.close_guest_memfd(handle)
        vm.set_user_memory_region2(2, 0, 0)

    def look() -> None:
        for page in range(0, 1024, 37):
            vm.access(page << 12, 1, 3 * 4096)
            vm.access((1 << 30) + (page << 12), 1, 4096, private=True)
            assert vm.is_private(page << 12) in (True, False)
            assert vm.mapping_level(page << 12) in (1, 2)
        assert vm.guest_memfd(stays).bindings == ((0, size, 1),)

    def set_attributes() -> None:
        if vm.profile.vm_attributes:
            vm.set_memory_attributes_many(records(500, vm.supported_attributes & -vm.supported_attributes))

    with Several(convert, come_and_go, look, set_attributes):
        for _ in range(20):
            look()
    vm.memslots.validate()
    vm.guest_memfd(stays).attributes.validate()


def test_pins_of_several_threads_are_all_counted() -> None:
    vm = VM("gmem")
    handle = vm.create_guest_memfd(64 << 12)
    file = vm.guest_memfd(handle)
    batch = np.zeros(64, uapi.MEMORY_ATTRIBUTES2)
    batch["offset"], batch["size"] = np.arange(64) << 12, 4096

    def hold() -> None:
        file.pin(0, 64 << 12)
        file.pin(4096)
        file.unpin(0, 64 << 12)
        file.unpin(4096)

    with Several(hold, hold, lambda: vm.set_memory_attributes2_many(handle, batch)):
        for _ in range(200):
            hold()
    with pytest.raises(ValueError, match=r"^page 0x0 is not pinned$"):
        file.unpin(0)
    assert vm.set_memory_attributes2(handle, 0, 64 << 12, 8) == 0


def test_listeners_of_calls_and_changes_that_come_and_go() -> None:
    vm = VM()

    def swap() -> None:
        called = Called()
        vm.add_listener(called)
        vm.remove_listener(called)
        assert all(answer == 0 for _, _, answer in called.calls)
        listener = Heard()
        vm.add_listener(listener)
        vm.remove_listener(listener)
        assert listener.committed == listener.prepared

    def change() -> None:
        vm.set_memory_attributes(0, 4096, 1)
        vm.set_memory_attributes(0, 4096, 0)
        vm.set_memory_attributes_many(records(100))

    with Several(swap, change, change):
        for _ in range(200):
            change()
    assert vm.invalidation.in_progress == 0


def test_a_machine_that_shares_pages_hears_of_every_conversion_from_then_on() -> None:
    """It binds them while another machine's batch runs; whoever reads its sequence after that sees it move."""
    for _ in range(5):
        one, other = VM("gmem"), VM("gmem")
        size = 1 << 30
        handle = one.create_guest_memfd(size)
        batch = np.zeros(1 << 15, uapi.MEMORY_ATTRIBUTES2)
        batch["offset"], batch["size"] = np.arange(1 << 15) << 12, 4096
        started = threading.Event()

        def work(one: VM = one, handle: int = handle, batch: np.ndarray = batch,
                 started: threading.Event = started) -> None:
            started.set()
            one.set_memory_attributes2_many(handle, batch)

        writer = threading.Thread(target=work, daemon=True)
        writer.start()
        assert started.wait(PATIENCE)
        linked = other.link_guest_memfd(handle)
        other.set_user_memory_region2(0, 0, size, 0, uapi.KVM_MEM_GUEST_MEMFD, linked)
        sequence = other.invalidation.sequence
        private = other.guest_memfd(linked).attributes.count(0, 1 << 15, 8)
        writer.join(PATIENCE)
        assert other.guest_memfd(linked).attributes.count(0, 1 << 15, 8) == 0
        assert other.invalidation.sequence - sequence >= private
