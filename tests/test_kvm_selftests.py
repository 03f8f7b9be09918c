"""The sequences of KVM's own selftests of memslots, attributes and guest_memfd, in our words, on the model.

CASES lists every case of each selftest: the function that runs its calls here, or the reason why it cannot run
without a vCPU, memory contents or a host mapping. A case that is neither run nor listed fails. The programs are in
the kernel's ``tools/testing/selftests/kvm``; guest_memfd_conversions is that of the series queued for 7.4.
"""

import errno
import random

import pytest

from kvmattr import VM, Access, uapi
from tests.kvm_calls import GIB, GUEST_MEMFD, HVA, LOG_DIRTY, MIB, PAGE, READONLY, answer, errno_of, region, region2

PRIVATE = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
MMAP, INIT_SHARED = uapi.GUEST_MEMFD_FLAG_MMAP, uapi.GUEST_MEMFD_FLAG_INIT_SHARED
READ, WRITE = Access.READ, Access.WRITE
LINUX = ("linux", "linux-6.18", "linux-7.2", "linux-7.3")
FAULT = uapi.KVM_EXIT_MEMORY_FAULT

CONTENTS = "needs memory contents"
VCPU = "needs a running vCPU"
MAPPING = "needs a mapping of user space"
THREADS = "needs vCPUs that run at the same time"

CASES = {}


def case(program, name, *profiles):
    """Register a function as the one that runs a case, once for each profile."""

    def register(function):
        CASES.setdefault(program, {})[name] = (function, profiles)
        return function

    return register


def listed(program, **reasons):
    for name, reason in reasons.items():
        CASES.setdefault(program, {})[name] = reason


# set_memory_region_test ------------------------------------------------------------------------------------

REGION = "set_memory_region_test"


@case(REGION, "zero_memory_regions", *LINUX)
def no_memslots(abi):
    vm = VM(abi, private=False)
    assert vm.access(0, READ).reason == uapi.KVM_EXIT_MMIO
    assert region(vm, 0, 0, 0, 0) == "EINVAL"


@case(REGION, "invalid_memory_region_flags", *LINUX)
def invalid_flags(abi):
    for private in (False, True):
        vm = VM(abi, private=private)
        for bit in range(32):
            flags = 1 << bit
            legal = flags in (LOG_DIRTY, READONLY)
            assert region(vm, 0, flags, 0, PAGE) == (0 if legal else "EINVAL")
            if legal:
                region(vm, 0, 0, 0, 0)
            if flags != GUEST_MEMFD:
                assert region2(vm, 0, flags, 0, PAGE) == (0 if legal else "EINVAL")
                if legal:
                    region(vm, 0, 0, 0, 0)
        if vm.check_extension(uapi.KVM_CAP_GUEST_MEMFD):
            file = vm.create_guest_memfd(MIB)
            for flags in (LOG_DIRTY, READONLY):
                assert region2(vm, 0, GUEST_MEMFD | flags, 0, PAGE, HVA, file) == "EINVAL"


@case(REGION, "add_max_memory_regions", *LINUX)
def as_many_as_there_are(abi):
    vm = VM(abi)
    number = vm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS)
    for slot in range(number):
        assert region(vm, slot, 0, slot * 2 * MIB, 2 * MIB) == 0
    assert region(vm, number, 0, number * 2 * MIB, 2 * MIB) == "EINVAL"


@case(REGION, "add_private_memory_region", *LINUX)
def files_of_memslots(abi):
    vm, other = VM(abi), VM(abi)
    file = vm.create_guest_memfd(4 * MIB)
    with open(__file__) as plain:
        assert region2(vm, 0, GUEST_MEMFD, 0, 2 * MIB, HVA, plain.fileno()) == "EINVAL"
    assert region2(vm, 0, GUEST_MEMFD, 0, 2 * MIB, HVA, other.create_guest_memfd(4 * MIB)) == "EINVAL"
    for offset in range(1, PAGE, 61):
        assert region2(vm, 0, GUEST_MEMFD, 0, 2 * MIB, HVA, file, offset) == "EINVAL"
    assert region2(vm, 0, GUEST_MEMFD, 0, 2 * MIB, HVA, file) == 0
    vm.close_guest_memfd(file)


@case(REGION, "add_overlapping_private_memory_regions", *LINUX)
def overlapping_files(abi):
    vm = VM(abi)
    taken = {"linux": "EINVAL", "linux-6.18": "EINVAL"}.get(abi, "EEXIST")
    file = vm.create_guest_memfd(8 * MIB)
    for slot, gpa in ((0, 0), (1, 8 * MIB)):
        assert region2(vm, slot, GUEST_MEMFD, gpa, 4 * MIB, HVA, file, slot * 4 * MIB) == 0
    # The first one deleted: its range is free, and what overlaps it and the second one is not.
    assert region(vm, 0, 0, 0, 0) == 0
    assert region2(vm, 0, GUEST_MEMFD, 0, 4 * MIB, HVA, file, 2 * MIB) == taken
    assert region2(vm, 0, GUEST_MEMFD, 0, 4 * MIB, HVA, file, 4 * MIB) == taken
    assert region2(vm, 0, GUEST_MEMFD, 0, 2 * MIB, HVA, file, 6 * MIB) == taken
    assert region2(vm, 0, GUEST_MEMFD, 0, 4 * MIB, HVA, file, 0) == 0


@case(REGION, "move_memory_region", *LINUX)
def move(abi):
    """The move itself, with its invalidation; the test has a vCPU that reads meanwhile."""
    vm = VM(abi, private=False)
    gpa = 0xC0000000
    assert region(vm, 10, 0, gpa, 2 * MIB) == 0
    assert vm.access(gpa, READ, 8) is None
    assert region(vm, 10, 0, gpa - PAGE, 2 * MIB) == 0
    assert vm.access(gpa + 2 * MIB - PAGE, READ, 8).reason == uapi.KVM_EXIT_MMIO
    assert region(vm, 10, 0, gpa, 2 * MIB) == 0
    assert vm.access(gpa + 2 * MIB - PAGE, READ, 8) is None


@case(REGION, "delete_memory_region", *LINUX)
def delete(abi):
    vm = VM(abi, private=False)
    gpa = 0xC0000000
    for _ in range(2):
        assert region(vm, 10, 0, gpa, 2 * MIB) == 0
        assert vm.access(gpa, READ, 8) is None
        assert region(vm, 10, 0, 0, 0) == 0
        assert vm.access(gpa, READ, 8).reason == uapi.KVM_EXIT_MMIO


listed(REGION, delete_memory_region_with_and_without_the_zap_all_quirk="the quirk decides what KVM zaps: " + VCPU,
       mmio_during_vectoring=VCPU)

# private_mem_conversions_test ------------------------------------------------------------------------------

CONVERSIONS = "private_mem_conversions_test"
RANGES = ((0, PAGE), (0, 2 * MIB), (PAGE, PAGE), (PAGE, 2 * MIB), (2 * MIB, PAGE))


class Both:
    """Conversions of guest-physical ranges, by the VM's attributes or by those of its file, as a VMM does them."""

    def __init__(self, abi, size, memslots=1, gpa=4 * GIB):
        self.vm = VM(abi)
        self.gpa = gpa
        self.file = self.vm.create_guest_memfd(size)
        piece = size // memslots // PAGE * PAGE
        for slot in range(memslots):
            start = slot * piece
            stop = size if slot == memslots - 1 else start + piece
            assert region2(self.vm, slot, GUEST_MEMFD, gpa + start, stop - start, HVA + start, self.file, start) == 0
        self.convert(0, size, 0)

    def convert(self, offset, size, attributes):
        if self.vm.profile.file_attributes:
            return self.vm.set_memory_attributes2(self.file, offset, size, attributes)
        return self.vm.set_memory_attributes(self.gpa + offset, size, attributes)

    def private(self, start, stop):
        return [self.vm.is_private(self.gpa + offset) for offset in range(start, stop, PAGE)]


@case(CONVERSIONS, "explicit_conversions", *LINUX, "gmem")
def explicit_conversions(abi):
    for memslots in (1, 3):
        guest = Both(abi, 2 * MIB + PAGE + 2 * MIB, memslots)
        for offset, size in RANGES:
            around = range(max(offset - PAGE, 0), offset + size + PAGE, PAGE)
            guest.convert(offset, size, PRIVATE)
            assert all(guest.private(offset, offset + size))
            assert guest.private(around[0], around[-1] + PAGE).count(False) == len(around) - size // PAGE
            assert guest.vm.access(guest.gpa + offset, WRITE, size) is None
            for page in range(offset + PAGE, offset + size, 2 * PAGE):
                guest.convert(page, PAGE, 0)
            expected = [place % 2 == 0 for place in range(size // PAGE)]
            assert guest.private(offset, offset + size) == expected
            guest.convert(offset, size, 0)
            assert not any(guest.private(around[0], around[-1] + PAGE))
            # With fallocate: the pages are given back before or allocated after, and stay what they are.
            guest.vm.punch_hole(guest.file, offset, size)
            guest.convert(offset, size, PRIVATE)
            guest.vm.fallocate_guest_memfd(guest.file, uapi.FALLOC_FL_KEEP_SIZE, offset, size)
            assert all(guest.private(offset, offset + size))
            guest.convert(offset, size, 0)
        guest.vm.memslots.validate()


@case(CONVERSIONS, "punch_hole", *LINUX, "gmem")
def punch_holes(abi):
    """Precise and not: a hole of the whole file or of the range, which leaves attributes alone."""
    guest = Both(abi, 4 * MIB + PAGE)
    for offset, size in RANGES:
        for hole in ((offset, size), (0, 4 * MIB + PAGE)):
            guest.convert(offset, size, PRIVATE)
            sequence = guest.vm.invalidation.sequence
            guest.vm.punch_hole(guest.file, *hole)
            assert guest.vm.invalidation.sequence == sequence + 1
            assert all(guest.private(offset, offset + size))
            assert guest.vm.access(guest.gpa + offset, READ, size) is None
            guest.convert(offset, size, 0)


@case(CONVERSIONS, "a_memslot_smaller_than_its_huge_page", *LINUX, "gmem")
def head_and_tail_at_once(abi):
    """The read out of bounds that KASAN found: a single huge page that is head and tail of a memslot."""
    guest = Both(abi, 2 * MIB, gpa=GIB)
    guest.convert(0, PAGE, PRIVATE)
    assert guest.vm.mapping_level(GIB) == 1
    guest.convert(0, 2 * MIB, PRIVATE)
    assert guest.vm.mapping_level(GIB) == 2
    guest.convert(2 * MIB - PAGE, PAGE, 0)
    assert guest.vm.mapping_level(GIB) == 1


listed(CONVERSIONS, implicit_conversions="the guest writes and reads what it converts: " + CONTENTS,
       several_vcpus=THREADS, backing_sources="needs a mapping of user space of each kind")

# private_mem_kvm_exits_test --------------------------------------------------------------------------------

EXITS = "private_mem_kvm_exits_test"


@case(EXITS, "private_access_memslot_deleted", *LINUX)
def deleted_under_a_private_access(abi):
    guest = Both(abi, MIB)
    guest.convert(0, MIB, PRIVATE)
    assert guest.vm.access(guest.gpa, READ) is None
    assert region(guest.vm, 0, 0, 0, 0) == 0
    left = guest.vm.access(guest.gpa, READ)
    assert left == (FAULT, PRIVATE, guest.gpa, PAGE, False)
    assert left.errno == errno.EFAULT


@case(EXITS, "private_access_memslot_deleted, attributes of files", "gmem")
def deleted_with_attributes_of_files(abi):
    """There a hole counts as shared: MMIO."""
    guest = Both(abi, MIB)
    guest.convert(0, MIB, PRIVATE)
    assert region(guest.vm, 0, 0, 0, 0) == 0
    assert guest.vm.access(guest.gpa, READ) == (uapi.KVM_EXIT_MMIO, 0, guest.gpa, 1, False)


@case(EXITS, "private_access_memslot_not_private", *LINUX)
def private_without_a_file(abi):
    vm = VM(abi)
    assert region(vm, 0, 0, 0, MIB) == 0
    vm.set_memory_attributes(0, MIB, PRIVATE)
    assert vm.access(0x10, READ) == (FAULT, PRIVATE, 0, PAGE, False)


# guest_memfd_test ------------------------------------------------------------------------------------------

FILE = "guest_memfd_test"


@case(FILE, "create_guest_memfd_invalid_sizes", *LINUX, "gmem")
def invalid_sizes(abi):
    vm = VM(abi)
    for size in range(1, PAGE, 37):
        assert errno_of(vm.create_guest_memfd, size) == "EINVAL"
    for size in (0, 1 << 63, 2**64 - PAGE):
        assert errno_of(vm.create_guest_memfd, size) == "EINVAL"


@case(FILE, "guest_memfd_flags", *LINUX, "gmem")
def flags_of_files(abi):
    for private in (False, True):
        vm = VM(abi, private=private)
        known = vm.check_extension(uapi.KVM_CAP_GUEST_MEMFD_FLAGS)
        for bit in range(64):
            assert errno_of(vm.create_guest_memfd, PAGE, 1 << bit) == (0 if 1 << bit & known else "EINVAL")


@case(FILE, "create_guest_memfd_multiple", *LINUX, "gmem")
def files_are_not_one(abi):
    vm = VM(abi)
    one, other = vm.create_guest_memfd(PAGE), vm.create_guest_memfd(2 * PAGE)
    assert one != other
    assert [vm.guest_memfd(file).size for file in (one, other)] == [PAGE, 2 * PAGE]


@case(FILE, "fallocate", *LINUX, "gmem")
def fallocate(abi):
    vm = VM(abi)
    file = vm.create_guest_memfd(4 * PAGE)
    keep, punch = uapi.FALLOC_FL_KEEP_SIZE, uapi.FALLOC_FL_KEEP_SIZE | uapi.FALLOC_FL_PUNCH_HOLE
    calls = [((keep, 0, 4 * PAGE), 0), ((punch, PAGE - 1, PAGE), "EINVAL"), ((keep, 4 * PAGE, PAGE), "EINVAL"),
             ((keep, 5 * PAGE, PAGE), "EINVAL"), ((punch, 4 * PAGE, PAGE), 0), ((punch, 5 * PAGE, PAGE), 0),
             ((punch, PAGE, PAGE - 1), "EINVAL"), ((punch, PAGE, PAGE), 0), ((keep, PAGE, PAGE), 0)]
    for arguments, expected in calls:
        assert answer(vm.fallocate_guest_memfd, file, *arguments) == expected


@case(FILE, "invalid_punch_hole", *LINUX, "gmem")
def unaligned_holes(abi):
    vm = VM(abi)
    file = vm.create_guest_memfd(4 * PAGE)
    for offset, size in ((0, 1), (0, PAGE - 1), (0, PAGE + 1), (1, 1), (1, PAGE), (PAGE, 1), (PAGE, PAGE - 1)):
        assert answer(vm.punch_hole, file, offset, size) == "EINVAL"


listed(FILE, file_read_write="a handle is no file descriptor", file_size_by_fstat_and_ftruncate="the same",
       mmap_supported=MAPPING, mmap_not_supported=MAPPING, mmap_cow=MAPPING, fault_overflow=MAPPING,
       fault_private=MAPPING, numa_policy=MAPPING, guest_memfd_guest=CONTENTS, collapse=MAPPING)

# guest_memfd_conversions_test ------------------------------------------------------------------------------

IN_PLACE = "guest_memfd_conversions_test"
NPAGES = 4


def converting(flags=MMAP, npages=NPAGES):
    vm = VM("gmem")
    file = vm.create_guest_memfd(npages * PAGE, flags)
    assert region2(vm, 0, GUEST_MEMFD, GIB, npages * PAGE, HVA, file) == 0
    return vm, file


def pages(vm, file):
    return vm.guest_memfd(file).attributes[0:NPAGES].tolist()


@case(IN_PLACE, "init_private", "gmem")
def begins_private(abi):
    vm, file = converting()
    assert pages(vm, file) == [PRIVATE] * NPAGES
    assert vm.access(GIB, WRITE) is None
    assert vm.set_memory_attributes2(file, 0, PAGE, 0) == 0
    assert not vm.is_private(GIB)
    assert vm.set_memory_attributes2(file, 0, PAGE, PRIVATE) == 0
    assert pages(vm, file) == [PRIVATE] * NPAGES


@case(IN_PLACE, "init_shared", "gmem")
def begins_shared(abi):
    vm, file = converting(MMAP | INIT_SHARED)
    assert pages(vm, file) == [0] * NPAGES
    assert vm.access(GIB, WRITE, private=True) == (FAULT, PRIVATE, GIB, PAGE, True)
    vm.set_memory_attributes2(file, 0, PAGE, PRIVATE)
    assert vm.access(GIB, WRITE, private=True) is None
    assert vm.access(GIB, WRITE, private=False) == (FAULT, 0, GIB, PAGE, True)


@case(IN_PLACE, "indexing", "gmem")
def each_page_alone(abi):
    for page in range(NPAGES):
        vm, file = converting(MMAP | INIT_SHARED)
        vm.set_memory_attributes2(file, page * PAGE, PAGE, PRIVATE)
        expected = [PRIVATE if other == page else 0 for other in range(NPAGES)]
        assert pages(vm, file) == expected
        assert [vm.is_private(GIB + other * PAGE) for other in range(NPAGES)] == [bool(value) for value in expected]
        vm.set_memory_attributes2(file, page * PAGE, PAGE, 0)
        assert pages(vm, file) == [0] * NPAGES


@case(IN_PLACE, "before_allocation", "gmem")
def nobody_has_used_it(abi):
    vm = VM("gmem")
    file = vm.create_guest_memfd(NPAGES * PAGE, MMAP | INIT_SHARED)
    assert vm.set_memory_attributes2(file, 0, NPAGES * PAGE, PRIVATE) == 0
    assert region2(vm, 0, GUEST_MEMFD, GIB, NPAGES * PAGE, HVA, file) == 0
    assert vm.access(GIB, READ, NPAGES * PAGE, private=True) is None


@case(IN_PLACE, "unallocated_folios", "gmem")
def some_pages_allocated(abi):
    vm, file = converting(MMAP | INIT_SHARED)
    for allocated in range(NPAGES):
        vm.fallocate_guest_memfd(file, uapi.FALLOC_FL_KEEP_SIZE, allocated * PAGE, PAGE)
        assert vm.set_memory_attributes2(file, 0, NPAGES * PAGE, PRIVATE) == 0
        assert vm.set_memory_attributes2(file, 0, NPAGES * PAGE, 0) == 0
        vm.punch_hole(file, 0, NPAGES * PAGE)
        assert pages(vm, file) == [0] * NPAGES


@case(IN_PLACE, "truncate", "gmem")
def holes_leave_attributes(abi):
    vm, file = converting(MMAP | INIT_SHARED)
    vm.set_memory_attributes2(file, PAGE, PAGE, PRIVATE)
    for hole in (0, PAGE):
        vm.punch_hole(file, hole, PAGE)
        assert pages(vm, file) == [0, PRIVATE, 0, 0]


@case(IN_PLACE, "elevated_refcount_single", "gmem")
def one_page_in_use(abi):
    vm, file = converting(MMAP | INIT_SHARED)
    for page in range(NPAGES):
        vm.guest_memfd(file).pin(page * PAGE)
        change = uapi.kvm_memory_attributes2(offset=page * PAGE, size=PAGE, attributes=PRIVATE, error_offset=-1)
        assert answer(vm.gmem_ioctl, file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change) == "EAGAIN"
        assert change.error_offset == page * PAGE
        assert pages(vm, file) == [0] * NPAGES
        vm.guest_memfd(file).unpin(page * PAGE)
        assert answer(vm.gmem_ioctl, file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change) == 0
        vm.set_memory_attributes2(file, 0, NPAGES * PAGE, 0)


@case(IN_PLACE, "elevated_refcount_bulk", "gmem")
def a_range_with_a_page_in_use(abi):
    for page in range(NPAGES):
        vm, file = converting(MMAP | INIT_SHARED)
        vm.guest_memfd(file).pin(page * PAGE)
        change = uapi.kvm_memory_attributes2(offset=0, size=NPAGES * PAGE, attributes=PRIVATE)
        assert answer(vm.gmem_ioctl, file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change) == "EAGAIN"
        assert change.error_offset == page * PAGE
        assert pages(vm, file) == [0] * NPAGES
        vm.guest_memfd(file).unpin(page * PAGE)
        assert answer(vm.gmem_ioctl, file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, change) == 0
        assert pages(vm, file) == [PRIVATE] * NPAGES


listed(IN_PLACE, forked_accesses="a host access of a child to a page that became private is SIGBUS: " + MAPPING,
       the_contents_that_survive_a_conversion=CONTENTS)

# pre_fault_memory_test -------------------------------------------------------------------------------------

PRE_FAULT = "pre_fault_memory_test"


@case(PRE_FAULT, "pre_fault_memory, shared and private", *LINUX, "gmem")
def pre_fault(abi):
    size = 2 * MIB + 4 * PAGE
    for attributes in (0, PRIVATE):
        guest = Both(abi, size)
        guest.convert(0, size, attributes)
        for offset, length, left in ((0, 2 * MIB, 0), (2 * MIB, 2 * PAGE, 0), (2 * MIB, 6 * PAGE, 2 * PAGE)):
            asked = uapi.kvm_pre_fault_memory(gpa=guest.gpa + offset, size=length)
            assert guest.vm.vcpu_ioctl(uapi.KVM_PRE_FAULT_MEMORY, asked) == 0
            assert (asked.size, asked.gpa) == (left, guest.gpa + offset + length - left)
        asked = uapi.kvm_pre_fault_memory(gpa=guest.gpa + size, size=PAGE)
        assert answer(guest.vm.vcpu_ioctl, uapi.KVM_PRE_FAULT_MEMORY, asked) == "ENOENT"
        assert (asked.size, asked.gpa) == (PAGE, guest.gpa + size)
        assert answer(guest.vm.pre_fault_memory, guest.gpa + 1, PAGE) == "EINVAL"
        assert answer(guest.vm.pre_fault_memory, guest.gpa, 0) == "EINVAL"
        assert answer(guest.vm.pre_fault_memory, guest.gpa, PAGE, flags=1) == "EINVAL"
        assert answer(guest.vm.pre_fault_memory, 2**64 - PAGE, PAGE) == "EINVAL"
        assert answer(guest.vm.vcpu_ioctl, uapi.KVM_PRE_FAULT_MEMORY, 0) == "EFAULT"
        assert answer(guest.vm.vcpu_ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES, bytearray(32)) == "ENOTTY"


listed(PRE_FAULT, memslots_that_are_deleted_meanwhile=THREADS)

# memslot_perf_test and memslot_modification_stress_test ----------------------------------------------------

PERF = "memslot_perf_test"


def many_memslots(size, memslots):
    """An area of ``size`` bytes in as many equal memslots, and one at the end of the guest that is not used."""
    vm = VM("linux-7.2", private=False)
    piece = size // memslots
    for slot in range(memslots):
        assert region(vm, slot, 0, GIB + slot * piece, piece, HVA + slot * piece) == 0
    return vm, piece


@case(PERF, "map, unmap, RW", "linux-7.2")
def areas(abi):
    vm, piece = many_memslots(32 * MIB, 512)
    for start in (0, 16 * MIB):
        assert vm.access(GIB + start, WRITE, 16 * MIB) is None
        assert vm.protection(GIB + start) == READ | WRITE | Access.EXEC
    assert vm.memslots.lookup((GIB + 5 * piece) >> 12).id == 5


@case(PERF, "unmap chunked", "linux-7.2")
def in_chunks(abi):
    """What the host unmaps is not KVM's to refuse: an invalidation for each 2 MiB."""
    vm, _ = many_memslots(32 * MIB, 16)
    first = vm.invalidation.sequence
    for chunk in range(16):
        vm.invalidation.begin()
        vm.invalidation.add((GIB + chunk * 2 * MIB) >> 12, (GIB + (chunk + 1) * 2 * MIB) >> 12)
        assert vm.invalidation.retry(first, (GIB + chunk * 2 * MIB) >> 12)
        vm.invalidation.end()
    assert vm.invalidation.sequence == first + 16


@case(PERF, "move active and inactive area", "linux-7.2")
def moves(abi):
    vm, piece = many_memslots(2 * MIB, 512)
    last = 511
    for _ in range(50):
        for gpa in (GIB + last * piece + piece, GIB + last * piece):
            assert region(vm, last, 0, gpa, piece, HVA + last * piece) == 0
            assert vm.access(gpa, WRITE, piece) is None
    assert vm.memslots.stats()["slots_moved"] == 100


listed(PERF, iterations_in_a_given_time="a measurement: `kvmattr scaling` is that")

STRESS = "memslot_modification_stress_test"


@case(STRESS, "a memslot added and removed while others are used", *LINUX)
def dummy_memslot(abi):
    vm = VM(abi, private=False)
    assert region(vm, 0, 0, GIB, 64 * MIB) == 0
    rng = random.Random(7)
    for _ in range(200):
        gpa = GIB - MIB - rng.randrange(256) * PAGE
        assert region(vm, 7, 0, gpa, PAGE) == 0
        assert vm.access(gpa, READ) is None
        assert vm.access(GIB + rng.randrange(64 * MIB), WRITE) is None
        assert region(vm, 7, 0, gpa, 0) == 0
        assert vm.access(gpa, READ).reason == uapi.KVM_EXIT_MMIO
    vm.memslots.validate()


listed(STRESS, vcpus_that_write_meanwhile=THREADS)

#: What each program goes through: every name here is a function above, or has its reason.
PROGRAMS = {
    REGION: {
        "zero_memory_regions",
        "invalid_memory_region_flags",
        "add_max_memory_regions",
        "add_private_memory_region",
        "add_overlapping_private_memory_regions",
        "move_memory_region",
        "delete_memory_region",
        "delete_memory_region_with_and_without_the_zap_all_quirk",
        "mmio_during_vectoring",
    },
    CONVERSIONS: {
        "explicit_conversions",
        "punch_hole",
        "a_memslot_smaller_than_its_huge_page",
        "implicit_conversions",
        "several_vcpus",
        "backing_sources",
    },
    EXITS: {
        "private_access_memslot_deleted",
        "private_access_memslot_deleted, attributes of files",
        "private_access_memslot_not_private",
    },
    FILE: {
        "create_guest_memfd_invalid_sizes",
        "guest_memfd_flags",
        "create_guest_memfd_multiple",
        "fallocate",
        "invalid_punch_hole",
        "file_read_write",
        "file_size_by_fstat_and_ftruncate",
        "mmap_supported",
        "mmap_not_supported",
        "mmap_cow",
        "fault_overflow",
        "fault_private",
        "numa_policy",
        "guest_memfd_guest",
        "collapse",
    },
    IN_PLACE: {
        "init_private",
        "init_shared",
        "indexing",
        "before_allocation",
        "unallocated_folios",
        "truncate",
        "elevated_refcount_single",
        "elevated_refcount_bulk",
        "forked_accesses",
        "the_contents_that_survive_a_conversion",
    },
    PRE_FAULT: {
        "pre_fault_memory, shared and private",
        "memslots_that_are_deleted_meanwhile",
    },
    PERF: {
        "map, unmap, RW",
        "unmap chunked",
        "move active and inactive area",
        "iterations_in_a_given_time",
    },
    STRESS: {
        "a memslot added and removed while others are used",
        "vcpus_that_write_meanwhile",
    },
}


@pytest.mark.parametrize(("program", "name", "profile"), [
    (program, name, profile) for program, cases in CASES.items() for name, found in cases.items()
    for profile in (found[1] if isinstance(found, tuple) else ("-",))
])
def test_case(program, name, profile):
    found = CASES[program][name]
    if isinstance(found, str):
        pytest.skip(f"not on a model: {found}")
    found[0](profile)


def test_every_case_is_run_or_listed():
    assert {program: set(cases) for program, cases in CASES.items()} == PROGRAMS
    for cases in CASES.values():
        for found in cases.values():
            assert found if isinstance(found, str) else found[1]
