"""Run by test_machine_memory.py in a process of its own, with failing_memory.c preloaded.

python -m tests.machine_memory_scenarios NAME: as memory_scenarios.py does for the store, for what stands above it. Each
request that the package's extensions make is refused once. Then MemoryError or ENOMEM, nothing has changed, everything
is sound and the call works again; or somebody could do without, and it has done what it always does.
"""

from __future__ import annotations

import errno
import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import kvmattr
from kvmattr import VM, Operation, uapi
from kvmattr.memslots import GuestMemfd, MemslotTable, SplittingBaseline
from kvmattr.profiles import GMEM
from kvmattr.trace import SetAttributes, record, write
from tests.memory_scenarios import Shim

MOST_REQUESTS = 1500
PAGE = uapi.PAGE_SIZE
GIB = 1 << 30


class Listener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []

    def prepare(self, changes: Any) -> None:
        self.heard.append(("prepare", changes.tobytes()))

    def commit(self, changes: Any) -> None:
        self.heard.append(("commit", changes.tobytes()))

    def abort(self, changes: Any) -> None:
        self.heard.append(("abort", changes.tobytes()))


def every(step: int, attributes: int) -> Any:
    """Records that set every so many-th page."""
    records = np.zeros(3000 // step, uapi.MEMORY_ATTRIBUTES)
    records["address"] = np.arange(3000 // step) * step * PAGE
    records["size"], records["attributes"] = PAGE, attributes
    return records


class World:
    """A machine with slots, a guest_memfd, fragmented attributes; and beside it what some calls need."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="kvmattr-memory-")
        self.vm = VM(no_exec=True)
        self.handle = self.vm.create_guest_memfd(GIB)
        flags = uapi.KVM_MEM_GUEST_MEMFD
        self.vm.set_user_memory_region2(0, 0, GIB, 1 << 40, flags, guest_memfd=self.handle)
        self.vm.set_user_memory_region(1, 2 * GIB, GIB, 1 << 41)
        self.vm.set_memory_attributes_many(every(7, uapi.KVM_MEM_ATTR_PRIVATE))
        self.saved = self.vm.snapshot()
        self.vm.set_memory_attributes_many(every(5, uapi.KVM_MEM_ATTR_NO_WRITE))
        self.listener = Listener()
        self.table = MemslotTable(64)
        for slot in range(12):
            self.table.set_region(slot, 0, slot * GIB, 1 << 28, slot * GIB)
        self.file = GuestMemfd(self.table, 1 << 20)
        self.baseline = SplittingBaseline(1 << 16)
        starts = np.arange(0, 3000, 20)
        self.baseline.update_many(starts, starts + 7, starts % 5)
        self.records = np.zeros(30, uapi.MEMORY_ATTRIBUTES)
        self.records["address"] = np.arange(30) * 4 * PAGE
        self.records["size"] = PAGE
        self.records["attributes"] = np.arange(30) % 2

    def state(self) -> tuple[Any, ...]:
        vm = self.vm
        counts = vm.invalidation
        return (
            vm.attributes.runs().tobytes(),
            [tuple(slot)[:6] for slot in vm.memslots],
            counts.in_progress,
            [tuple(slot)[:6] for slot in self.table],
            self.file.closed,
            self.baseline.runs().tobytes(),
            self.told(),
        )

    def told(self) -> list[tuple[str, bytes]]:
        """What the listener knows: a `prepare` that was aborted left nothing."""
        known: list[tuple[str, bytes]] = []
        for what, changes in self.listener.heard:
            if what == "abort":
                assert known[-1:] == [("prepare", changes)] or ("prepare", changes) in known
                known.remove(("prepare", changes))
            else:
                known.append((what, changes))
        return known

    def sound(self) -> None:
        self.vm.attributes.copy().validate()
        self.vm.memslots.validate()
        self.table.validate()
        self.baseline.validate()
        assert self.vm.invalidation.in_progress == 0

    def end(self) -> None:
        self.folder.cleanup()


def ioctl(world: World, request: int, structure: Any) -> Any:
    result = world.vm.ioctl(request, structure)
    return result, bytes(structure)


def listening(world: World) -> World:
    world.vm.add_listener(world.listener)
    return world


def told(world: World, call: Callable[[VM], Any], vm: VM | None = None) -> Any:
    """A call that a listener of calls hears of. What is told was answered, and what was answered is told."""
    vm = world.vm if vm is None else vm
    heard: list[tuple[str, int]] = []

    class Calls:
        def called(self, name: str, numbers: tuple[int, ...], answer: int) -> None:
            heard.append((name, min(answer, 1)))

    vm.add_listener(Calls())
    answer = call(vm)
    return answer, heard


def told_in_file(world: World) -> Any:
    vm = VM(GMEM)
    handle = vm.create_guest_memfd(1 << 22, uapi.GUEST_MEMFD_FLAG_INIT_SHARED)
    return told(world, lambda vm: vm.set_memory_attributes2_many(handle, file_records()), vm)


def set_many(world: World) -> Any:
    return world.vm.set_memory_attributes_many(world.records)


def recorded(world: World) -> Any:
    path = Path(world.folder.name, "recorded.trace")
    with record(VM(), path) as vm:  # of its own: files older than a recording cannot be recorded
        vm.set_memory_attributes(0, 9 * PAGE, 1)
    return path.read_bytes()


def written(world: World) -> Any:
    path = Path(world.folder.name, "written.trace")
    write(path, [SetAttributes(address=0, size=PAGE, attributes=1)] * 5)
    return path.read_bytes()


def reported(world: World) -> Any:
    from kvmattr.measure import writing

    path = Path(world.folder.name, "report.json")
    writing.write(path, "{}\n" * 100)
    return path.read_text()


def pre_faulted(world: World, asked: Any = None) -> Any:
    vm = VM("linux-7.2")
    vm.set_user_memory_region(0, 0, 1 << 20)
    if asked is None:
        return vm.pre_fault_memory(0, 9 * PAGE)
    return vm.vcpu_ioctl(uapi.KVM_PRE_FAULT_MEMORY, asked), asked.gpa, asked.size


def in_file(world: World) -> Any:
    """Attributes of a guest_memfd's own."""
    vm = VM(GMEM)
    file = vm.create_guest_memfd(1 << 20)
    asked = uapi.kvm_memory_attributes2(offset=0, size=9 * PAGE, attributes=uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    return vm.gmem_ioctl(file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, asked)


def guest(world: World) -> Any:
    """A Unicorn guest that trips NO_EXEC, made and run."""
    from unicorn import UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL, Uc

    from kvmattr.bridges.unicorn import Guest

    vm = VM(no_exec=True)
    vm.set_user_memory_region(0, 0, 1 << 20)
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.mem_map(0, 1 << 20, UC_PROT_ALL)
    engine.mem_write(0x1000, b"\x90\x90")
    with Guest(vm, engine) as made:
        first = made.run(0x1000, 0x1002)
        saved = made.snapshot()
        vm.set_memory_attributes(0x1000, PAGE, uapi.KVM_MEM_ATTR_NO_EXEC)
        second = made.run(0x1000, 0x1002)
        made.restore(saved)
        return first, second, made.protections(0x1000, PAGE).tobytes(), made.pc


def with_file(call: Callable[[VM, int], Any]) -> Callable[[World], Any]:
    """A call on a machine whose attributes belong to a file; what the file holds afterwards is part of the answer."""

    def made(world: World) -> Any:
        vm = VM(GMEM)
        handle = vm.create_guest_memfd(1 << 22, uapi.GUEST_MEMFD_FLAG_INIT_SHARED)
        return call(vm, handle), vm.guest_memfd(handle).attributes.runs().tobytes()

    return made


def file_records() -> Any:
    records = np.zeros(20, uapi.MEMORY_ATTRIBUTES2)
    records["offset"] = np.arange(20) * 2 * PAGE
    records["size"], records["attributes"] = PAGE, uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
    return records


#: Name: the call; what it must leave is what it leaves in a world where nothing is refused. The key's words before a
#: colon are the public operation.
SCENARIOS: dict[str, Callable[[World], Any]] = {
    "VM": lambda w: bool(VM("linux", nr_memslots=8)),
    "VM.set_memory_attributes": lambda w: w.vm.set_memory_attributes(100 * PAGE, 900 * PAGE, 1),
    "VM.set_memory_attributes: or": lambda w: w.vm.set_memory_attributes(7 * PAGE, GIB, 8, Operation.OR),
    "VM.set_memory_attributes: listener": lambda w: listening(w).vm.set_memory_attributes(0, 900 * PAGE, 1),
    "VM.set_memory_attributes: told": lambda w: told(w, lambda vm: vm.set_memory_attributes(0, 900 * PAGE, 1)),
    "VM.get_memory_attributes: told": lambda w: told(w, lambda vm: len(vm.get_memory_attributes(0, 900 * PAGE))),
    "VM.set_user_memory_region: told": lambda w: told(w, lambda vm: vm.set_user_memory_region(5, 8 * GIB, GIB)),
    # What of it cannot be told for want of memory goes to sys.unraisablehook.
    "VM.restore: told": lambda w: told(w, lambda vm: vm.restore(w.saved))[0],
    "VM.set_memory_attributes2_many: told": told_in_file,
    "VM.set_memory_attributes_many": set_many,
    "VM.set_memory_attributes_many: listener": lambda w: set_many(listening(w)),
    "VM.get_memory_attributes": lambda w: w.vm.get_memory_attributes(0, 3000 * PAGE).tobytes(),
    "VM.supported_attributes": lambda w: w.vm.supported_attributes,
    "VM.set_user_memory_region": lambda w: w.vm.set_user_memory_region(5, 8 * GIB, GIB, 1 << 42),
    "VM.set_user_memory_region: dirty log": lambda w: w.vm.set_user_memory_region(
        1, 2 * GIB, GIB, 1 << 41, uapi.KVM_MEM_LOG_DIRTY_PAGES
    ),
    "VM.set_user_memory_region: move": lambda w: w.vm.set_user_memory_region(1, 5 * GIB, GIB, 1 << 41),
    "VM.set_user_memory_region: delete": lambda w: w.vm.set_user_memory_region(1, 0, 0),
    "VM.set_user_memory_region2": lambda w: w.vm.set_user_memory_region2(5, 9 * GIB, GIB, 1 << 42),
    "VM.create_guest_memfd": lambda w: w.vm.create_guest_memfd(1 << 20) > 0,
    "VM.close_guest_memfd": lambda w: w.vm.close_guest_memfd(w.handle),
    "VM.fallocate_guest_memfd": lambda w: w.vm.fallocate_guest_memfd(w.handle, uapi.FALLOC_FL_KEEP_SIZE, 0, PAGE),
    "VM.punch_hole": lambda w: w.vm.punch_hole(w.handle, 0, 100 * PAGE),
    "VM.create_irqchip": lambda w: VM("linux-7.2").create_irqchip(),
    "VM.pre_fault_memory": pre_faulted,
    "VM.vcpu_ioctl": lambda w: pre_faulted(w, uapi.kvm_pre_fault_memory(gpa=0, size=9 * PAGE)),
    "VM.gmem_ioctl": in_file,
    "VM.fail_page": with_file(lambda vm, handle: vm.fail_page(handle, PAGE)),
    "VM.link_guest_memfd": with_file(lambda vm, handle: VM(GMEM).link_guest_memfd(handle) != handle),
    "VM.guest_memfds": with_file(lambda vm, handle: [file.size for _, file in vm.guest_memfds()]),
    "VM.guest_memfd": with_file(lambda vm, handle: vm.guest_memfd(handle).size),
    "VM.is_private": lambda w: w.vm.is_private(7 * PAGE),
    "VM.set_memory_attributes2": with_file(lambda vm, handle: vm.set_memory_attributes2(handle, PAGE, 9 * PAGE, 8)),
    "VM.set_memory_attributes2_many": with_file(
        lambda vm, handle: vm.set_memory_attributes2_many(handle, file_records())
    ),
    "GuestMemfd.pin": with_file(lambda vm, handle: vm.guest_memfd(handle).pin(PAGE)),
    "GuestMemfd.unpin": with_file(
        lambda vm, handle: (vm.guest_memfd(handle).pin(PAGE), vm.guest_memfd(handle).unpin(PAGE))
    ),
    "VM.snapshot": lambda w: w.vm.snapshot().run_count,
    "VM.restore": lambda w: w.vm.restore(w.saved),
    "VM.restore: listener": lambda w: listening(w).vm.restore(w.saved),
    "VM.add_listener": lambda w: w.vm.add_listener(w.listener),
    "VM.add_listener: replay": lambda w: w.vm.add_listener(w.listener, replay=True),
    "VM.remove_listener": lambda w: listening(w).vm.remove_listener(w.listener),
    "VM.access": lambda w: (w.vm.access(0, 3, private=True), w.vm.access(7 * GIB, 1)),
    "VM.protection": lambda w: w.vm.protection(5 * PAGE),
    "VM.mapping_level": lambda w: w.vm.mapping_level(5 * PAGE),
    "VM.check_extension": lambda w: w.vm.check_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES),
    "VM.ioctl": lambda w: ioctl(
        w, uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(address=0, size=90 * PAGE, attributes=1)
    ),
    "VM.ioctl: get": lambda w: ioctl(
        w, uapi.KVM_GET_MEMORY_ATTRIBUTES, uapi.kvm_memory_attributes(address=0, size=90 * PAGE)
    ),
    "VM.ioctl: region": lambda w: ioctl(
        w,
        uapi.KVM_SET_USER_MEMORY_REGION,
        uapi.kvm_userspace_memory_region(slot=9, guest_phys_addr=9 * GIB, memory_size=GIB),
    ),
    "VM.ioctl: register": lambda w: ioctl(
        w, uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.kvm_enc_region(addr=PAGE, size=90 * PAGE)
    ),
    "MemslotTable": lambda w: len(MemslotTable(500)),
    "MemslotTable.set_region": lambda w: w.table.set_region(20, 0, 20 * GIB, GIB),
    "MemslotTable.set_region: delete": lambda w: w.table.set_region(3, 0, 0, 0, 0),
    "MemslotTable.own_regions": lambda w: w.table.own_regions([(500 * GIB, PAGE), (501 * GIB, GIB)]),
    "MemslotTable.lookup": lambda w: w.table.lookup(5 << 18),
    "MemslotTable.slot": lambda w: w.table.slot(5),
    "MemslotTable.overlapping": lambda w: [slot.id for slot in w.table.overlapping(0, 1 << 30)],
    "MemslotTable.stats": lambda w: w.table.stats(),
    "MemslotTable.validate": lambda w: w.table.validate(),
    "GuestMemfd": lambda w: GuestMemfd(w.table, 1 << 21).size,
    "GuestMemfd.close": lambda w: w.file.close(),
    "SplittingBaseline": lambda w: SplittingBaseline(500).run_count,
    "SplittingBaseline.update": lambda w: w.baseline.update(5, 3000, 1, Operation.OR),
    "SplittingBaseline.update_many": lambda w: w.baseline.update_many([5, 7000], [3000, 7005], [1, 3], Operation.OR),
    "SplittingBaseline.write": lambda w: w.baseline.write(5, 2000, 9),
    "SplittingBaseline.or_": lambda w: w.baseline.or_(5, 2000, 8),
    "SplittingBaseline.and_": lambda w: w.baseline.and_(5, 2000, 8),
    "SplittingBaseline.get": lambda w: w.baseline.get(5),
    "SplittingBaseline.take": lambda w: w.baseline.take([5, 7, 21]).tobytes(),
    "SplittingBaseline.runs": lambda w: w.baseline.runs().tobytes(),
    "SplittingBaseline.stats": lambda w: w.baseline.stats()["memslots"],
    "SplittingBaseline.validate": lambda w: w.baseline.validate(),
    "record": recorded,
    "trace.write": written,
    "measure.writing.write": reported,
    "bridges.unicorn.Guest": guest,
}

#: Batches may stop between two operations, and tell where.
BATCHES = {
    "VM.set_memory_attributes_many",
    "VM.set_memory_attributes_many: listener",
    "SplittingBaseline.update_many",
    "VM.set_memory_attributes2_many",
}

def out_of_memory(error: BaseException) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        error = error.__cause__ or error.__context__
    return False


def run(name: str) -> int:
    """The number of requests for memory that were refused in turn."""
    call = SCENARIOS[name]
    shim = Shim()
    package = str(Path(kvmattr.__file__).parent).encode()
    call(World())  # what is made once, lazily, is there
    twin = World()
    expected = repr(call(twin))
    after = twin.state()
    gc.disable()
    for number in range(1, MOST_REQUESTS):
        world = World()
        before = world.state()
        error: BaseException | None = None
        answer = None
        shim.arm(package, number, 0)
        try:
            answer = call(world)
        except BaseException as caught:
            error = caught
        requests = shim.disarm()
        world.sound()
        if error is None:
            assert world.state() == after, f"{name}: request {number} was refused, it returned, and did something else"
            assert repr(answer) == expected, f"{name}: request {number}: {answer!r}, not {expected}"
        else:
            assert out_of_memory(error), f"{name}: request {number} was refused: {error!r}"
            if name not in BATCHES or not hasattr(error, "done"):
                assert world.state() == before, f"{name}: something changed when request {number} was refused"
            else:
                assert error.done >= 0
            error = None
            assert repr(call(world)) == expected or name in BATCHES, name
            assert world.state()[:-1] == after[:-1], f"{name}: after request {number} it does something else"
        world.end()
        if requests < number:
            return number - 1
    raise AssertionError(f"{name} makes {MOST_REQUESTS} requests and more")


if __name__ == "__main__":
    print(run(sys.argv[1]))
