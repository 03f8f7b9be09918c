"""Listeners hear of changed runs only, in two phases, and cannot change what they hear of."""

import errno
import gc
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from kvmattr import VM, AttributeMap, Operation, _vm, uapi
from kvmattr.listeners import MAX_RUNS

MIB, GIB = 1 << 20, 1 << 30


class Log:
    """Writes down every call; ``refuse`` and ``fail`` name the call at which to raise."""

    def __init__(self, log=None, name="", refuse=None, fail=None):
        self.log = [] if log is None else log
        self.name, self.refuse, self.fail = name, refuse, fail
        self.count = 0

    def prepare(self, changes):
        if self.refuse == self.count:
            raise RuntimeError("no room")
        self.count += 1
        self.log.append((self.name + "prepare", changes.tolist()))

    def commit(self, changes):
        self.log.append((self.name + "commit", changes.tolist()))
        if self.fail == "commit":
            raise RuntimeError("too late")

    def abort(self, changes):
        self.log.append((self.name + "abort", changes.tolist()))
        if self.fail == "abort":
            raise RuntimeError("too late")


def listening(**options):
    vm, log = VM(), Log(**options)
    vm.add_listener(log)
    return vm, log


def test_only_changed_runs():
    vm, log = listening()
    vm.set_memory_attributes(0x4000, 0x2000, 1)
    vm.set_memory_attributes(0, 0x10000, 1)
    assert log.log[2:] == [(phase, [(0, 4, 0, 1), (6, 16, 0, 1)]) for phase in ("prepare", "commit")]


def test_nothing_for_what_does_not_change():
    vm, log = listening()
    vm.set_memory_attributes(0, 1 << 40, 0)
    vm.set_memory_attributes(0, 1 << 40, 15, Operation.AND)
    assert log.log == []
    with pytest.raises(OSError, match="must be"):
        vm.set_memory_attributes(0, 0, 0)
    with pytest.raises(OSError, match="cannot have"):
        vm.set_memory_attributes(0, 4096, 2)
    with pytest.raises(OSError, match="cannot have"):
        vm.set_memory_attributes(0, 4096, 2, Operation.OR)
    assert log.log == []


def alternate(vm, npages):
    """Every other page of [0, npages) private."""
    records = np.zeros(npages // 2, uapi.MEMORY_ATTRIBUTES)
    records["address"], records["size"], records["attributes"] = np.arange(npages // 2) * 8192, 4096, 1
    vm.set_memory_attributes_many(records)


def test_a_fragmented_gib_is_a_few_calls():
    vm = VM()
    alternate(vm, 1 << 18)
    lengths = []
    log = Log()
    log.prepare = lambda changes: lengths.append(("prepare", len(changes)))
    log.commit = lambda changes: lengths.append(("commit", len(changes)))
    vm.add_listener(log)
    vm.set_memory_attributes(0, GIB, 4, Operation.OR)
    assert lengths == [("prepare", MAX_RUNS)] * 4 + [("commit", MAX_RUNS)] * 4
    lengths.clear()
    vm.set_memory_attributes(0, GIB - 4096, 0)
    assert [length for _, length in lengths] == ([MAX_RUNS] * 3 + [MAX_RUNS - 1]) * 2


class Keep:
    """Keeps what it hears, and refuses the ``refuse``-th prepare."""

    def __init__(self, refuse=None):
        self.heard = {"prepare": [], "commit": [], "abort": []}
        self.refuse = refuse

    def prepare(self, changes):
        if len(self.heard["prepare"]) == self.refuse:
            raise RuntimeError("no room")
        self.heard["prepare"].append(changes)

    def commit(self, changes):
        self.heard["commit"].append(changes)

    def abort(self, changes):
        self.heard["abort"].append(changes)


def same_chunks(ours, theirs):
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


@pytest.mark.parametrize("how", ["set", "restore", "replay"])
def test_the_chunks_are_the_difference_and_come_again(how):
    """Also where a chunk ends at the end of a run list, a block or the change."""
    chance = np.random.default_rng(5)
    for pages in (2 * MAX_RUNS, 2 * MAX_RUNS + 2, 6 * MAX_RUNS):
        vm = VM(no_exec=True)
        gfns = np.unique(chance.integers(0, 1 << 21, pages // 2)) if pages > 3 * MAX_RUNS else np.arange(0, pages, 2)
        records = np.zeros(len(gfns), uapi.MEMORY_ATTRIBUTES)
        records["address"], records["size"] = gfns << 12, 4096
        records["attributes"] = chance.choice([1, 8, 9, 4], len(gfns))
        vm.set_memory_attributes_many(records)
        first, second = Keep(), Keep()
        before = vm.snapshot()
        if how == "set":
            vm.add_listener(first)
            vm.add_listener(second)
            vm.set_memory_attributes(0, pages << 12, 5)
            differs = vm.attributes.diff(before)
        elif how == "restore":
            vm.add_listener(first)
            vm.add_listener(second)
            vm.restore(AttributeMap())
            differs = vm.attributes.diff(before)
        else:
            vm.add_listener(first, replay=True)
            vm.add_listener(second, replay=True)
            differs = before.diff(AttributeMap())
        expected = [differs[at : at + MAX_RUNS] for at in range(0, len(differs), MAX_RUNS)]
        for heard in (first.heard, second.heard):
            assert same_chunks(heard["prepare"], expected)
            assert same_chunks(heard["commit"], expected)
            assert heard["abort"] == []


def test_a_refused_chunk_aborts_exactly_those_before_it():
    vm = VM()
    alternate(vm, 1 << 18)
    first, second = Keep(), Keep(refuse=2)
    vm.add_listener(first)
    vm.add_listener(second)
    with pytest.raises(RuntimeError, match="no room"):
        vm.set_memory_attributes(0, GIB, 4, Operation.OR)
    assert [len(keep.heard["prepare"]) for keep in (first, second)] == [3, 2]
    for keep in (first, second):
        assert same_chunks(keep.heard["prepare"], keep.heard["abort"])
        assert keep.heard["commit"] == []


@pytest.mark.parametrize("how", ["set", "refused", "restore", "replay"])
def test_memory_is_bounded_however_many_runs_change(how):
    """A change of 2^20 runs, 19 MB of records, has no more than three chunks of 1.2 MB at a time."""
    vm = VM()
    alternate(vm, 1 << 20)
    log = Log()
    log.prepare = log.commit = log.abort = lambda changes: None
    if how == "refused":
        calls = iter(range(16))
        log.prepare = lambda changes: 1 // (12 - next(calls))
    if how != "replay":
        vm.add_listener(log)
    gc.collect()
    tracemalloc.start()
    try:
        if how == "set":
            vm.set_memory_attributes(0, 4 * GIB, 4, Operation.OR)
        elif how == "refused":
            with pytest.raises(ZeroDivisionError):
                vm.set_memory_attributes(0, 4 * GIB, 4, Operation.OR)
        elif how == "restore":
            vm.restore(AttributeMap())
        else:
            vm.add_listener(log, replay=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_RUNS * 18


def test_without_memory_for_a_chunk_the_hook_hears_of_it(monkeypatch):
    """The change stands or not, as it did; only what remained to be told is lost."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    vm = VM()
    alternate(vm, 1 << 18)
    keep = Keep()
    vm.add_listener(keep)
    real, calls = _vm.first_changes, iter(range(100))

    def scarce(*arguments):
        if next(calls) == 6:  # four chunks and the end are prepared, one is committed
            raise MemoryError("no memory")
        return real(*arguments)

    monkeypatch.setattr(_vm, "first_changes", scarce)
    assert vm.set_memory_attributes(0, GIB, 4, Operation.OR) == 0
    assert [hook.exc_type for hook in reported] == [MemoryError]
    assert [len(heard) for heard in keep.heard.values()] == [4, 1, 0]
    assert vm.attributes.all(0, 1 << 18, 4, 4)


def test_all_prepare_then_the_change_then_all_commit():
    vm = VM()
    order = []

    class Watch(Log):
        def prepare(self, changes):
            order.append((self.name, "prepare", vm.attributes[0], vm.invalidation.in_progress))

        def commit(self, changes):
            order.append((self.name, "commit", vm.attributes[0], vm.invalidation.in_progress))

    vm.set_user_memory_region(0, 0, MIB)
    vm.add_listener(Watch(name="a"))
    vm.add_listener(Watch(name="b"))
    vm.set_memory_attributes(0, 4096, 1)
    assert order == [
        ("a", "prepare", 0, 0),
        ("b", "prepare", 0, 0),
        ("a", "commit", 1, 1),
        ("b", "commit", 1, 1),
    ]
    assert vm.invalidation.in_progress == 0


@pytest.mark.parametrize("refused_at", range(4))
def test_a_raise_in_prepare_changes_nothing(refused_at):
    vm = VM()
    vm.set_user_memory_region(0, 0, GIB)
    alternate(vm, 1 << 18)
    before, sequence, version = vm.snapshot(), vm.invalidation.sequence, vm.attributes.version
    log = Log(refuse=refused_at)
    vm.add_listener(log)
    with pytest.raises(RuntimeError, match="no room"):
        vm.set_memory_attributes(0, GIB, 4, Operation.OR)
    calls = [name for name, _ in log.log]
    assert calls == ["prepare"] * refused_at + ["abort"] * refused_at
    assert [runs for _, runs in log.log[:refused_at]] == [runs for _, runs in log.log[refused_at:]]
    assert vm.attributes == before
    assert (vm.invalidation.sequence, vm.attributes.version) == (sequence, version)
    log.refuse = None
    assert vm.set_memory_attributes(0, GIB, 4, Operation.OR) == 0


def test_the_others_hear_abort_when_one_refuses():
    log = []
    vm = VM()
    vm.add_listener(Log(log, "a "))
    vm.add_listener(Log(log, "b ", refuse=0))
    vm.add_listener(Log(log, "c "))
    with pytest.raises(RuntimeError, match="no room"):
        vm.set_memory_attributes(0, 4096, 1)
    assert log == [("a prepare", [(0, 1, 0, 1)]), ("a abort", [(0, 1, 0, 1)])]
    assert vm.attributes[0] == 0


def test_a_raise_in_commit_or_abort_goes_to_the_hook(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    log = []
    vm = VM()
    vm.add_listener(Log(log, "a ", fail="commit"))
    vm.add_listener(Log(log, "b "))
    assert vm.set_memory_attributes(0, 4096, 1) == 0
    assert [name for name, _ in log] == ["a prepare", "b prepare", "a commit", "b commit"]
    assert [(hook.exc_type, str(hook.exc_value)) for hook in reported] == [(RuntimeError, "too late")]
    assert vm.attributes[0] == 1
    log.clear()
    vm = VM()
    vm.add_listener(Log(log, "a ", fail="abort"))
    vm.add_listener(Log(log, "b ", refuse=0))
    with pytest.raises(RuntimeError, match="no room"):
        vm.set_memory_attributes(0, 4096, 1)
    assert [name for name, _ in log] == ["a prepare", "a abort"]
    assert len(reported) == 2


CHANGES_FROM_INSIDE = {
    "set": lambda vm: vm.set_memory_attributes(0, 4096, 0),
    "ioctl": lambda vm: vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(0, 4096, 0)),
    "no change": lambda vm: vm.set_memory_attributes(1 << 40, 4096, 0),
    "batch": lambda vm: vm.set_memory_attributes_many(
        np.frombuffer(uapi.kvm_memory_attributes(0, 4096, 0), uapi.MEMORY_ATTRIBUTES)
    ),
    "restore": lambda vm: vm.restore(AttributeMap()),
    "memslot": lambda vm: vm.set_user_memory_region(0, 0, 4096),
    "guest_memfd": lambda vm: vm.create_guest_memfd(4096),
    "add": lambda vm: vm.add_listener(Log()),
    "remove": lambda vm: vm.remove_listener(None),
}


@pytest.mark.parametrize("phase", ["prepare", "commit", "abort"])
@pytest.mark.parametrize("change", CHANGES_FROM_INSIDE.values(), ids=CHANGES_FROM_INSIDE)
def test_an_update_from_inside_is_ebusy(phase, change):
    vm, caught = VM(), []

    def try_to_change(changes):
        with pytest.raises(OSError, match="a listener may not change it") as refused:
            change(vm)
        caught.append(refused.value.errno)

    log = Log()
    setattr(log, phase, try_to_change)
    vm.add_listener(log)
    if phase == "abort":
        vm.add_listener(Log(refuse=0))
        with pytest.raises(RuntimeError, match="no room"):
            vm.set_memory_attributes(0, 4096, 1)
    else:
        vm.set_memory_attributes(0, 4096, 1)
    assert caught == [errno.EBUSY]
    vm.remove_listener(log)
    assert vm.attributes[0] == (phase != "abort")


def test_reads_from_inside_see_the_state():
    vm = VM()
    vm.set_user_memory_region(0, 0, MIB)
    seen = []
    log = Log()
    log.prepare = lambda changes: seen.append((vm.access(0, 2), vm.get_memory_attributes(0, 4096).tolist()))
    log.commit = lambda changes: seen.append(
        (vm.access(0, 2).flags, vm.get_memory_attributes(0, 4096).tolist())
    )
    vm.add_listener(log)
    vm.set_memory_attributes(0, 4096, 4)
    assert seen == [(None, [(0, 4096, 0)]), (2, [(0, 4096, 4)])]


def test_another_thread_waits_for_the_listener():
    vm = VM()
    inside, go_on = threading.Event(), threading.Event()
    log = Log()
    first_log = log.prepare

    def wait(changes):
        inside.set()
        assert go_on.wait(30)
        first_log(changes)

    log.prepare = wait
    vm.add_listener(log)
    first = threading.Thread(target=vm.set_memory_attributes, args=(0, 4096, 1))
    first.start()
    assert inside.wait(30)
    log.prepare = first_log
    second = threading.Thread(target=vm.set_memory_attributes, args=(0, 8192, 5))
    second.start()
    assert vm.attributes[0] == 0
    go_on.set()
    first.join(30)
    second.join(30)
    assert [runs for name, runs in log.log if name == "commit"] == [
        [(0, 1, 0, 1)],
        [(0, 1, 1, 5), (1, 2, 0, 5)],
    ]


def test_replay():
    vm = VM()
    vm.set_memory_attributes(0x3000, 0x1000, 1)
    vm.set_memory_attributes(1 << 40, 1 << 30, 4)
    log = Log()
    vm.add_listener(log, replay=True)
    stored = [(3, 4, 0, 1), (1 << 28, (1 << 28) + (1 << 18), 0, 4)]
    assert log.log == [("prepare", stored), ("commit", stored)]
    silent = Log()
    VM().add_listener(silent, replay=True)
    assert silent.log == []


def test_a_replay_that_is_refused_registers_nobody():
    vm = VM()
    vm.set_memory_attributes(0, 4096, 1)
    log = Log(refuse=0)
    with pytest.raises(RuntimeError, match="no room"):
        vm.add_listener(log, replay=True)
    log.refuse = None
    vm.set_memory_attributes(0, 4096, 0)
    assert log.log == []


def test_removed_listeners_hear_no_more():
    vm, log = listening()
    vm.remove_listener(log)
    vm.set_memory_attributes(0, 4096, 1)
    assert log.log == []
    with pytest.raises(ValueError, match=r"is not registered$"):
        vm.remove_listener(log)


def test_what_is_no_listener():
    class Half:
        def prepare(self, changes):
            pass

    with pytest.raises(TypeError, match=r"a listener has prepare, commit and abort, this lacks commit$"):
        VM().add_listener(Half())


def test_changes_cannot_be_written():
    vm, log = listening()
    log.commit = lambda changes: log.log.append(changes)
    vm.set_memory_attributes(0, 4096, 1)
    with pytest.raises(ValueError, match="read-only"):
        log.log[-1]["new"] = 0


def test_a_batch_announces_each_record():
    vm, log = listening()
    alternate(vm, 8)
    assert [runs for name, runs in log.log if name == "commit"] == [
        [(page, page + 1, 0, 1)] for page in (0, 2, 4, 6)
    ]


# snapshot and restore --------------------------------------------------------------------------------------


def test_restore_is_one_change():
    vm, log = listening()
    vm.set_user_memory_region(0, 0, GIB)
    vm.set_memory_attributes(0, 4096, 1)
    saved = vm.snapshot()
    vm.set_memory_attributes(0, 8192, 4)
    vm.set_memory_attributes(1 << 20, 4096, 5)
    sequence, version = vm.invalidation.sequence, vm.attributes.version
    log.log.clear()
    vm.restore(saved)
    runs = [(0, 1, 4, 1), (1, 2, 4, 0), (256, 257, 5, 0)]
    assert log.log == [("prepare", runs), ("commit", runs)]
    assert vm.attributes == saved
    assert vm.invalidation.sequence == sequence + 1
    assert vm.attributes.version > version
    log.log.clear()
    vm.restore(saved)
    assert log.log == []


def test_restore_from_another_machine_or_map():
    other = AttributeMap()
    other.write(0, 512, 1)
    vm = VM()
    vm.restore(other)
    assert vm.attributes == other
    other.write(0, 512, 0)
    assert vm.attributes[0] == 1


def test_restore_that_is_refused_changes_nothing():
    vm, log = listening()
    vm.set_memory_attributes(0, 4096, 1)
    before = vm.snapshot()
    log.log.clear()
    illegal = AttributeMap()
    illegal.write(1 << 30, 1 << 31, 2)
    with pytest.raises(
        OSError, match="attributes 0x2: this VM cannot have the effective protection WX"
    ) as caught:
        vm.restore(illegal)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match=f"^a map of 512 pages: must have {1 << 52}$"):
        vm.restore(AttributeMap(512))
    with pytest.raises(TypeError, match=r"^None: must be an AttributeMap$"):
        vm.restore(None)
    log.refuse = 1
    with pytest.raises(RuntimeError, match="no room"):
        vm.restore(AttributeMap())
    assert vm.attributes == before
    assert log.log == []


def test_a_vm_in_a_reference_cycle_is_collected_whole():
    """Its live view shares the store's map: the collector must not free that twice."""
    gc.collect()
    for _ in range(20):
        vm = VM()
        vm.set_memory_attributes(0, 0x1000, 1)
        vm.itself = (vm, vm.attributes)
    gone = weakref.ref(vm)
    del vm
    gc.collect()
    assert gone() is None
