"""Every backend of the study against the reference, and what the kernel's ones send at the ioctl boundary."""

import errno
from typing import ClassVar

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation, uapi
from kvmattr.bridges import kvm
from kvmattr.measure import machine
from kvmattr.study import backends, runner, scenarios, slot_plan
from kvmattr.study._xarray import XArray
from kvmattr.study.backends import kernel, kvm_attributes, kvm_memslots
from kvmattr.study.backends.kvm_attributes import KernelAttributes
from kvmattr.study.backends.kvm_memslots import KernelMemslots
from kvmattr.study.runner import Options, Unit
from kvmattr.study.slot_plan import SlotPlan
from kvmattr.study.work import Batch, Failed, Footprint, Reference, Stopped, Unsupported

NPAGES = 4096
GIB = 1 << 18  # pages
#: Backends that take any attributes and operation, and those that know one attribute and WRITE.
GENERAL = ["store", "store-get-write", "memslots", "xarray", "numpy", "sortedcontainers"]
ONE_BIT = ["pyroaring", "unicorn", "mprotect", "kvm-memslots", "kvm-memslots-vcpu"]


def random_batch(seed: int, count: int = 300, bits: int = 7, operations: int = 3) -> Batch:
    random = np.random.default_rng(seed)
    starts = random.integers(0, NPAGES, count).astype(np.uint64)
    lengths = np.choose(random.integers(0, 3, count), (1, 64, 513)).astype(np.uint64)
    return Batch(starts, np.minimum(starts + lengths, np.uint64(NPAGES)),
                 random.integers(0, bits + 1, count).astype(np.uint8),
                 random.integers(0, operations, count).astype(np.uint8))


def opened(name: str, npages: int = NPAGES) -> backends.Backend:
    reason = backends.ALL[name].missing()
    if reason is not None:
        pytest.skip(reason)
    return backends.ALL[name](npages)


def test_every_backend_is_tested_here():
    assert {*GENERAL, *ONE_BIT, "kvm-attributes", "empty-ioctl"} == backends.ALL.keys()


@pytest.mark.parametrize("name", [*GENERAL, *ONE_BIT])
def test_state_equals_the_reference(name):
    batch = random_batch(1) if name in GENERAL else random_batch(2, 60, bits=1, operations=1)
    backend = opened(name)
    try:
        backend.update(backend.prepare(batch.part(0, 40)))
        backend.update(backend.prepare(batch.part(40, len(batch))))
        assert np.array_equal(backend.runs(), Reference(NPAGES, batch).apply(batch).runs())
    finally:
        backend.close()


@pytest.mark.parametrize("name", backends.ALL)
def test_who_can_express_what(name):
    backend, one_bit = backends.ALL[name], {*ONE_BIT, "kvm-attributes"}
    assert backend.unsupported(random_batch(1, bits=1, operations=1)) is None
    assert backend.unsupported(Batch.empty()) is None
    for more in (Batch.of([0], 1, 2), Batch.of([0], 1, 1, Operation.OR)):
        assert (backend.unsupported(more) is not None) == (name in one_bit)


@pytest.mark.parametrize("name", [name for name in GENERAL if hasattr(backends.ALL[name], "lookup")])
def test_lookup_equals_the_reference(name):
    batch, gfns = random_batch(3), np.arange(NPAGES, dtype=np.uint64)
    backend = opened(name)
    backend.update(backend.prepare(batch))
    assert np.array_equal(backend.lookup(gfns), Reference(NPAGES, batch).apply(batch).lookup(gfns))


@pytest.mark.parametrize("name", [name for name, backend in backends.ALL.items()
                                  if hasattr(backend, "has") and name in GENERAL])
def test_has_equals_the_reference(name):
    setup = random_batch(4, 30, bits=1)
    blocks = np.arange(0, NPAGES, 64)
    queries = Batch.joined(Batch.of(blocks, 64, 0), Batch.of(blocks, 64, 1),
                           Batch.of(np.arange(0, NPAGES, 16), 1, 1))
    backend, reference = opened(name), Reference(NPAGES, setup, queries).apply(setup)
    backend.update(backend.prepare(setup))
    wanted = reference.has(queries)
    assert wanted.any()
    assert not wanted.all()
    assert np.array_equal(backend.has(queries), wanted)


@pytest.mark.parametrize("name", [name for name, backend in backends.ALL.items()
                                  if hasattr(backend, "mixed")])
def test_mixed_blocks_equal_a_dense_array(name):
    npages = 2 * GIB + 700
    setup = Batch.joined(Batch.of([0], GIB // 2, 1), Batch.of([512 * 7], 512, 2),
                         Batch.of([512 * 9 + 3], 4, 5), Batch.of([GIB], GIB, 3),
                         Batch.of([2 * GIB + 600], 10, 1))
    backend = opened(name, npages)
    backend.update(backend.prepare(setup))
    pages = Reference(npages, setup).apply(setup).lookup(np.arange(npages, dtype=np.uint64))
    expected = []
    for block in (512, GIB):
        blocks = pages[:npages // block * block].reshape(-1, block)
        expected += (blocks != blocks[:, :1]).any(axis=1).tolist()
    assert expected.count(True) == 2
    assert backend.mixed().tolist() == expected


@pytest.mark.parametrize("name", [name for name, backend in backends.ALL.items()
                                  if hasattr(backend, "migrate")])
def test_migrate_counts_changed_pages_and_snapshot_restore_leaves_none(name):
    setup, changes = random_batch(5), random_batch(6)
    backend, reference = opened(name), Reference(NPAGES, setup, changes).apply(setup)
    backend.update(backend.prepare(setup))
    backend.snapshot_restore(backend.prepare(changes))
    assert np.array_equal(backend.runs(), reference.runs())
    assert backend.migrate(backend.prepare(changes)) == reference.migrate(changes)
    assert np.array_equal(backend.export(), reference.runs())


class TestXArray:
    """The counts of the kernel's structure: 64 entries a node, a node of 576 bytes freed when it is empty."""

    @staticmethod
    def update(array: XArray, batch: Batch) -> None:
        assert array.update_many(batch.starts, batch.stops, batch.attributes, batch.operations) == len(batch)

    @pytest.mark.parametrize(("start", "pages", "nodes"), [
        (0, 1, 1), (0, 64, 1), (63, 2, 3), (64, 1, 2), (0, 4096, 65), (4096, 1, 3), (0, 512, 9),
        (1 << 28, 1, 5), ((1 << 52) - 1, 1, 9),
    ])
    def test_nodes(self, start, pages, nodes):
        array = XArray()
        self.update(array, Batch.of([start], pages, 1))
        assert array.nodes == nodes
        assert array.nbytes == 576 * nodes
        self.update(array, Batch.of([start], pages, 0))
        assert array.nodes == 0

    def test_height_shrinks_with_what_is_stored(self):
        array = XArray()
        self.update(array, Batch.of([3, 1 << 30], 1, 1))
        self.update(array, Batch.of([1 << 30], 1, 0))
        assert array.nodes == 1
        starts, attributes = array.runs(100)
        assert (starts.tolist(), attributes.tolist()) == ([0, 3, 4], [0, 1, 0])

    def test_equal_value_allocates_nothing(self):
        array = XArray()
        self.update(array, Batch.of([0], 1 << 40, 0))
        assert array.nodes == 0


class TestSlotPlan:
    """The calls of a VMM: deletions first, then the new pieces; a list of the slots that stay."""

    @staticmethod
    def calls(plan: SlotPlan, batch: Batch) -> list[tuple[int, ...]]:
        records, _ = plan.plan(batch)
        return [(int(record["slot"]), int(record["flags"]), int(record["guest_phys_addr"]) >> 12,
                 int(record["memory_size"]) >> 12) for record in records]

    def test_split_and_merge(self):
        plan = SlotPlan(100, 1 << 40)
        assert self.calls(plan, Batch.of([10], 5, 1)) == [
            (0, 0, 0, 0), (0, 0, 0, 10), (1, uapi.KVM_MEM_READONLY, 10, 5), (2, 0, 15, 85)]
        assert self.calls(plan, Batch.of([10], 5, 1)) == []
        assert self.calls(plan, Batch.of([10], 5, 0)) == [
            (0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0), (2, 0, 0, 100)]
        assert plan.runs().tolist() == [(0, 100, 0)]

    def test_user_addresses_follow_guest_addresses(self):
        plan = SlotPlan(100, 1 << 40)
        records, ends = plan.plan(Batch.of([10, 20], 5, 1))
        created = records[records["memory_size"] > 0]
        assert (created["userspace_addr"] - created["guest_phys_addr"] == 1 << 40).all()
        assert ends.tolist() == [4, 8]

    def test_a_guest_longer_than_a_slot_has_several(self, monkeypatch):
        assert slot_plan.SLOT_PAGES <= uapi.KVM_MEM_MAX_NR_PAGES
        assert slot_plan.SLOT_PAGES % GIB == 0
        sixteen = SlotPlan(16 << 28, 0).slots()
        assert (sixteen["memory_size"] >> 12).tolist() == [slot_plan.SLOT_PAGES] * 2 + [2 << 18]
        monkeypatch.setattr(slot_plan, "SLOT_PAGES", 40)
        plan = SlotPlan(100, 0)
        assert plan.runs().tolist() == [(0, 100, 0)]
        assert self.calls(plan, Batch.of([35], 10, 1)) == [
            (0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 35), (0, uapi.KVM_MEM_READONLY, 35, 5),
            (3, uapi.KVM_MEM_READONLY, 40, 5), (4, 0, 45, 35)]
        assert plan.runs().tolist() == [(0, 35, 0), (35, 45, 1), (45, 100, 0)]
        plan.plan(Batch.of([0], 100, 0))
        assert (plan.slots()["memory_size"] >> 12).tolist() == [40, 40, 20]
        random, reference = random_batch(11, 200, bits=1, operations=1), SlotPlan(NPAGES, 0)
        reference.plan(random)
        assert np.array_equal(reference.runs(), Reference(NPAGES, random).apply(random).runs())
        slots = reference.slots()
        assert (slots["guest_phys_addr"] // (40 << 12) == (slots["guest_phys_addr"] + slots["memory_size"] - 1)
                // (40 << 12)).all()

    def test_load_stops_below_the_limit(self):
        plan = SlotPlan(100, 0)
        done, slots = plan.load(Batch.of(np.arange(1, 100, 2), 1, 1), 8)
        assert (done, len(slots)) == (4, 9)


class FakeVM:
    """The ioctl boundary: a VM of the merged interface that keeps attributes in a map and notes its slots."""

    instances: ClassVar[list["FakeVM"]] = []
    capability = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
    fail_at: int | None = None
    #: KVM_CAP_VM_TYPES, and the types that cannot be made although it names them.
    types = 1 << 0 | 1 << 1
    broken: ClassVar[tuple[int, ...]] = ()

    def __init__(self, vm_type: int = 0, path: str = "") -> None:
        if vm_type in self.broken:
            raise OSError(errno.EINVAL, "no such type")
        self.vm_type, self.closed = vm_type, False
        self.map, self.slots = AttributeMap(1 << 30), []
        self.instances.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def check_extension(self, capability):
        known = {uapi.KVM_CAP_MEMORY_ATTRIBUTES: self.capability, uapi.KVM_CAP_NR_MEMSLOTS: 32764}
        return known.get(capability, 1)

    def read_private(self, gfns):
        return self.map.take(gfns) == uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE

    def ioctl_many(self, request, records):
        for done, record in enumerate(records):
            if done == self.fail_at:
                raise kvm.BatchError(errno.ENOMEM, done)
            if request == uapi.KVM_SET_MEMORY_ATTRIBUTES:
                assert record["flags"] == 0
                first = int(record["address"]) >> 12
                self.map.write(first, first + (int(record["size"]) >> 12), int(record["attributes"]))
            else:
                assert request == uapi.KVM_SET_USER_MEMORY_REGION
                self.slots.append(record)
        return len(records)

    def close(self):
        self.closed = True


@pytest.fixture
def fake_vm(monkeypatch):
    monkeypatch.setattr(kvm, "KernelVM", FakeVM)
    monkeypatch.setattr(kvm, "missing", lambda: None)
    monkeypatch.setattr(FakeVM, "instances", [])
    monkeypatch.setattr(kvm, "system_extension", lambda capability, path="": {
        uapi.KVM_CAP_VM_TYPES: FakeVM.types, uapi.KVM_CAP_MEMORY_ATTRIBUTES: FakeVM.capability}.get(capability, 1))
    return FakeVM


class TestKernelAttributes:
    """kvm-attributes on a kernel that has them, which the machine that runs the tests need not be."""

    def test_sends_one_set_an_update_over_one_slot(self, fake_vm):
        assert KernelAttributes.missing() is None
        backend = KernelAttributes(NPAGES)
        vm = fake_vm.instances[-1]
        batch = random_batch(8, bits=1, operations=1)
        backend.update(backend.prepare(batch))
        assert vm.vm_type == uapi.KVM_X86_SW_PROTECTED_VM
        assert [int(slot["memory_size"]) for slot in vm.slots] == [NPAGES * 4096]
        expected = Reference(NPAGES, batch).apply(batch).runs()
        expected["attributes"] *= uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
        assert np.array_equal(vm.map.runs(0, NPAGES), expected)
        backend.close()
        assert all(vm.closed for vm in fake_vm.instances)

    def test_says_what_the_kernel_lacks(self, fake_vm, monkeypatch):
        monkeypatch.setattr(fake_vm, "broken", (0, 1))
        assert KernelAttributes.missing() == "kernel has attributes, but makes no VM whose memory can be private"
        monkeypatch.setattr(fake_vm, "capability", 0)
        assert KernelAttributes.missing() == (
            "kernel has no KVM_CAP_MEMORY_ATTRIBUTES with PRIVATE (Linux 6.8 and later with "
            "CONFIG_KVM_SW_PROTECTED_VM have it; `python3 dev.py kernel` emulates one)")

    def test_any_vm_type_with_private_memory_will_do(self, fake_vm, monkeypatch):
        assert kvm.private_vm_type() == uapi.KVM_X86_SW_PROTECTED_VM
        monkeypatch.setattr(fake_vm, "types", 1 << 1 | 1 << 2 | 1 << 4)
        monkeypatch.setattr(fake_vm, "broken", (1, 2))
        assert kvm.private_vm_type() == 4
        assert KernelAttributes.missing() is None
        backend = KernelAttributes(NPAGES)
        assert fake_vm.instances[-1].vm_type == 4
        backend.close()

    @pytest.mark.parametrize("name", ["conversion", "conversion-single", "whole"])
    def test_a_kernel_that_does_nothing_is_wrong(self, fake_vm, monkeypatch, name):
        options = Options(rounds=2, round_seconds=0.001, cell_seconds=30)
        unit = Unit(name, 1 << 9 if name == "whole" else 100, ("kvm-attributes", ))
        assert [result.status for result in runner.run_unit(unit, options)] == ["ok"]
        monkeypatch.setattr(fake_vm, "ioctl_many", lambda vm, request, records: len(records))
        result, = runner.run_unit(unit, options)
        assert result.status == "wrong"
        assert "reads back as 0, should be 1" in result.note

    def test_slots_beyond_the_physical_addresses(self, fake_vm, monkeypatch):
        def refuse(vm, request, records):
            raise kvm.BatchError(errno.EINVAL, 0)
        monkeypatch.setattr(fake_vm, "ioctl_many", refuse)
        monkeypatch.setattr(kernel, "physical_address_bits", lambda: 40)
        with pytest.raises(Unsupported) as raised:
            KernelAttributes(4 << 28)
        assert str(raised.value) == "this machine has 40 bits of physical address: KVM refuses memslots beyond 1 TiB"
        with pytest.raises(kvm.BatchError):     # a guest below them was refused for another reason
            KernelAttributes(1 << 28)
        assert all(vm.closed for vm in fake_vm.instances)

    def test_a_failing_call_says_how_many_stand(self, fake_vm, monkeypatch):
        backend = KernelAttributes(NPAGES)
        monkeypatch.setattr(fake_vm, "fail_at", 2)
        with pytest.raises(Failed, match="failed after 2 updates: ENOMEM"):
            backend.update(backend.prepare(Batch.of([1, 3, 5], 1, 1)))


class TestKernelMemslots:
    """Real memslots, where /dev/kvm opens."""

    def test_loaded_and_split_states_are_the_same(self):
        setup = random_batch(9, 40, bits=1, operations=1)
        loaded, split = opened("kvm-memslots"), opened("kvm-memslots")
        assert loaded.load(setup, seconds=60) == len(setup)
        split.update(split.prepare(setup))
        assert np.array_equal(loaded.runs(), split.runs())
        loaded.close()
        split.close()

    def test_loading_keeps_the_time_limit(self, fake_vm):
        setup = Batch.of(np.arange(0, NPAGES, 2), 1, 1)
        with pytest.raises(Stopped, match=r"stopped after 0 s with 32 of 4096 slots created"):
            KernelMemslots(NPAGES).load(setup, seconds=0)

    def test_runs_sees_a_slot_that_is_not_there(self):
        backend = opened("kvm-memslots")
        backend.update(backend.prepare(Batch.of([10], 5, 1)))
        gone = backend._plan.slots()[1:2]
        gone["memory_size"] = 0
        backend._vm.ioctl_many(uapi.KVM_SET_USER_MEMORY_REGION, gone)
        assert backend.runs().tolist() == [(0, 10, 0), (15, NPAGES, 0)]
        backend.close()

    def test_failure_names_the_update(self, fake_vm, monkeypatch):
        backend = KernelMemslots(NPAGES)
        prepared = backend.prepare(Batch.of([10, 20, 30], 1, 1))
        monkeypatch.setattr(fake_vm, "fail_at", 6)
        with pytest.raises(Failed) as raised:
            backend.update(prepared)
        assert (raised.value.done, raised.value.why) == (1, "ENOMEM")

    def test_why_it_is_missing(self, monkeypatch):
        monkeypatch.setattr(kvm, "missing", lambda: "no permission to open /dev/kvm")
        assert kvm_memslots.KernelMemslots.missing() == "no permission to open /dev/kvm"
        assert kvm_attributes.KernelAttributes.missing() == "no permission to open /dev/kvm"
        assert backends.ALL["empty-ioctl"].missing() == "no permission to open /dev/kvm"


def test_bytes_needed_grows_with_what_a_backend_stores():
    whole = Footprint(1 << 30, Batch.of([0], 1 << 30, 1), Batch.empty())
    nothing = Footprint(1 << 30, Batch.empty(), Batch.empty())
    at_once = Footprint(1 << 30, Batch.empty(), Batch.of([0], 1 << 30, 1))
    assert backends.ALL["numpy"].bytes_needed(nothing) == 2 << 30
    assert backends.ALL["xarray"].bytes_needed(whole) > 9 * (1 << 30)
    assert backends.ALL["xarray"].bytes_needed(at_once) == backends.ALL["xarray"].bytes_needed(whole)
    assert backends.ALL["xarray"].bytes_needed(nothing) < 4096
    assert backends.ALL["unicorn"].bytes_needed(nothing) > 4096 << 30
    assert backends.ALL["store"].bytes_needed(whole) == 0


def test_the_kernels_metadata_counts_by_how_it_pages(monkeypatch):
    for said, bytes_a_page in (("Y\n", 0), ("N\n", 10)):
        monkeypatch.setattr(machine.Path, "exists", lambda path: True)
        monkeypatch.setattr(machine.Path, "read_text", lambda path, said=said: said)
        assert machine.memslot_bytes(1 << 30) == (1 << 30) // 512 * 4 + 4096 * 4 + (bytes_a_page << 30)
        # Where the first splits are no dearer, nobody expects them to be.
        growth = scenarios._real_slots("falling", "the first are dear")
        assert growth.law == ("falling" if bytes_a_page else "not growing")
    monkeypatch.setattr(machine.Path, "exists", lambda path: False)
    assert machine.memslot_bytes(1 << 30) > 10 << 30
    whole = Footprint(1 << 30, Batch.empty(), Batch.empty())
    assert backends.ALL["kvm-memslots"].bytes_needed(whole) == machine.memslot_bytes(1 << 30)
