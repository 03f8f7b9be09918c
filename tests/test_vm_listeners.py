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


# calls -----------------------------------------------------------------------------------------------------


class Calls:
    """Writes down every call; ``error`` is raised at each."""

    def __init__(self, log=None, name="", error=None):
        self.log = [] if log is None else log
        self.name, self.error = name, error

    def called(self, call, numbers, answer):
        self.log.append((self.name + call, *numbers, answer))
        if self.error is not None:
            raise self.error


def told(*profile, **options):
    vm, calls = VM(*profile), Calls(**options)
    vm.add_listener(calls)
    return vm, calls.log


def test_each_call_is_told_with_its_numbers_and_its_answer():
    vm, log = told()
    vm.set_memory_attributes(np.uint64(0x1000), 0x1000, 1, Operation.OR)
    vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(0x2000, 0x1000, 4))
    vm.ioctl(uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.kvm_enc_region(0x3000, 0x1000))
    vm.get_memory_attributes(0, 0x2000)
    vm.ioctl(uapi.KVM_GET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(0, 0x4000))
    vm.set_user_memory_region(3, 0, 0x1000, flags=2)
    vm.ioctl(uapi.KVM_SET_USER_MEMORY_REGION, uapi.kvm_userspace_memory_region(4, 0, 1 << 20, 0x1000, 0x7000))
    handle = vm.create_guest_memfd(1 << 20)
    vm.set_user_memory_region2(5, 1 << 30, 1 << 20, 0x9000, uapi.KVM_MEM_GUEST_MEMFD, handle, 0)
    vm.punch_hole(handle, 0, 0x1000)
    vm.fallocate_guest_memfd(handle, uapi.FALLOC_FL_KEEP_SIZE, 0, 0x1000)
    assert log == [
        ("set_memory_attributes", 0x1000, 0x1000, 1, 1, 0), ("set_memory_attributes", 0x2000, 0x1000, 4, 0, 0),
        ("set_memory_attributes", 0x3000, 0x1000, 1, 1, 0), ("get_memory_attributes", 0, 0x2000, 0),
        ("get_memory_attributes", 0, 0x4000, 0), ("set_user_memory_region", 3, 2, 0, 0x1000, 0, 0),
        ("set_user_memory_region", 4, 0, 1 << 20, 0x1000, 0x7000, 0), ("create_guest_memfd", 1 << 20, 0, handle),
        ("set_user_memory_region2", 5, 4, 1 << 30, 1 << 20, 0x9000, handle, 0, 0),
        ("fallocate_guest_memfd", handle, 3, 0, 0x1000, 0), ("fallocate_guest_memfd", handle, 1, 0, 0x1000, 0)]
    assert {type(number) for call in log for number in call[1:]} == {int}


def test_refused_calls_are_told_and_what_is_no_call_is_not():
    vm, log = told()
    handle = vm.create_guest_memfd(1 << 20)
    log.clear()
    vm.set_user_memory_region(0, 0, 4096)
    refused = [
        (lambda: vm.set_memory_attributes(0, 4096, 0x80), errno.EINVAL),
        (lambda: vm.set_memory_attributes(0, 4096, 8), errno.EINVAL),       # this VM cannot have NO_EXEC alone
        (lambda: vm.get_memory_attributes(1, 4096), errno.EINVAL),
        (lambda: vm.set_user_memory_region(1, 0, 4096), errno.EEXIST),
        (lambda: vm.create_guest_memfd(5), errno.EINVAL),
        (lambda: vm.punch_hole(handle, 0, 5), errno.EINVAL),
    ]
    for call, number in refused:
        with pytest.raises(OSError, match=r"\S") as raised:
            call()
        assert raised.value.errno == number
    assert [call[-1] for call in log] == [0, *(-number for _, number in refused)]
    log.clear()
    for call in (lambda: vm.set_memory_attributes("0", 4096, 0), lambda: vm.set_memory_attributes(0, 1 << 64, 0),
                 lambda: vm.get_memory_attributes(None, 0), lambda: vm.set_user_memory_region(0, 0, 1 << 64),
                 lambda: vm.ioctl(0x1234), lambda: vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, b"short")):
        with pytest.raises((TypeError, ValueError, OSError)):
            call()
    assert log == []


def test_batches_files_and_restores_are_told_call_by_call():
    vm, log = told()
    before = vm.snapshot()
    alternate(vm, 4)
    assert log == [("set_memory_attributes", page << 12, 4096, 1, 0, 0) for page in (0, 2)]
    log.clear()
    vm.restore(before)
    assert log == [("set_memory_attributes", page << 12, 4096, 0, 0, 0) for page in (0, 2)]
    records = np.zeros(3, uapi.MEMORY_ATTRIBUTES)
    records["size"], records["attributes"] = 4096, [1, 0x80, 1]
    log.clear()
    with pytest.raises(OSError, match="0x80") as stopped:
        vm.set_memory_attributes_many(records)
    assert stopped.value.done == 1
    assert [call[3:] for call in log] == [(1, 0, 0), (0x80, 0, -errno.EINVAL)]

    vm, log = told("gmem")
    handle = vm.create_guest_memfd(1 << 20, uapi.GUEST_MEMFD_FLAG_INIT_SHARED)
    private = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
    log.clear()
    vm.set_memory_attributes2(handle, 0x1000, 0x1000, private)
    vm.gmem_ioctl(handle, uapi.KVM_SET_MEMORY_ATTRIBUTES2, uapi.kvm_memory_attributes2(offset=0x1000, size=0x1000))
    vm.guest_memfd(handle).pin(0x5000)
    with pytest.raises(OSError, match="in use"):
        vm.set_memory_attributes2(handle, 0, 1 << 20, private)
    many = np.zeros(2, uapi.MEMORY_ATTRIBUTES2)
    many["size"], many["reserved"][1, 10] = 0x1000, 7
    with pytest.raises(OSError, match="reserved"):
        vm.set_memory_attributes2_many(handle, many)
    name = "set_memory_attributes2"
    assert log == [
        (name, handle, 0x1000, 0x1000, private, 0, 0), (name, handle, 0x1000, 0x1000, 0, 0, 0),
        (name, handle, 0, 1 << 20, private, 0, -errno.EAGAIN), (name, handle, 0, 0x1000, 0, 0, 0),
        (name, handle, 0, 0x1000, 0, 0, *[0] * 10, 7, -errno.EINVAL)]


def test_a_call_is_told_after_its_change_was_committed():
    log = []
    vm = VM()
    vm.add_listener(Calls(log, "first "))
    vm.add_listener(Log(log))
    vm.add_listener(Calls(log, "second "))
    vm.set_memory_attributes(0, 4096, 1)
    assert [entry[0] for entry in log] == ["prepare", "commit", "first set_memory_attributes",
                                           "second set_memory_attributes"]
    both = Calls()
    both.prepare = both.commit = lambda changes: both.log.append(changes.tolist())
    both.abort = None
    with pytest.raises(TypeError, match=r"a listener has prepare, commit and abort, this lacks abort$"):
        vm.add_listener(both)
    both.abort = both.commit
    vm.add_listener(both, replay=True)
    vm.set_memory_attributes(0, 4096, 0)
    assert both.log == [[(0, 1, 0, 1)]] * 2 + [[(0, 1, 1, 0)]] * 2 + [("set_memory_attributes", 0, 4096, 0, 0, 0)]
    vm.remove_listener(both)
    with pytest.raises(TypeError, match=r"a listener has prepare, commit and abort, or called, this has none of them$"):
        vm.add_listener(object())


STANDS = {
    "set": lambda vm: vm.set_memory_attributes(0, 4096, 1),
    "memslot": lambda vm: vm.set_user_memory_region(0, 0, 4096),
    "get": lambda vm: vm.get_memory_attributes(0, 4096),
    "create": lambda vm: vm.create_guest_memfd(4096),
    "batch": lambda vm: alternate(vm, 2),
    "restore": lambda vm: vm.restore(AttributeMap()),
}


@pytest.mark.parametrize("call", STANDS.values(), ids=STANDS)
@pytest.mark.parametrize("error", [RuntimeError("too late"), KeyboardInterrupt()], ids=["error", "signal"])
def test_what_a_listener_of_calls_raises(call, error, monkeypatch):
    """An error goes to the hook, what is no Exception to the caller; the call stands, the others hear of it."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: reported.append(found.exc_value))
    vm, later = VM(), Calls()
    vm.set_memory_attributes(1 << 40, 4096, 4)
    vm.add_listener(Calls(error=error))
    vm.add_listener(later)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            call(vm)
        assert reported == []
    else:
        call(vm)
        assert reported == [error]
    assert [entry[-1] >= 0 for entry in later.log] == [True]
    assert vm._locked(None, (), lambda: "free") == "free"


def test_a_refused_call_ends_with_what_its_listener_raised():
    vm, _ = told(error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as raised:
        vm.set_memory_attributes(0, 4096, 0x80)
    assert isinstance(raised.value.__cause__, OSError)
    assert vm.attributes.run_count == 1


def test_a_listener_of_calls_may_ask_and_not_change():
    vm, seen = VM(), []

    class Asks:
        def called(self, call, numbers, answer):
            seen.append((call, vm.get_memory_attributes(0, 4096).tolist()))
            with pytest.raises(OSError, match="a listener may not change it"):
                vm.set_memory_attributes(0, 4096, 0)

    vm.add_listener(Asks())
    vm.set_memory_attributes(0, 4096, 1)
    assert seen == [("set_memory_attributes", [(0, 4096, 1)])]
