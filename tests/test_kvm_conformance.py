"""What Linux 6.12's KVM was seen to answer, row by row.

``data/kvm-6.12/rows.md`` has the observed tables. Each of their rows is run by the function that names it, or
listed in NOT_RUN with the reason; a row that is neither fails. The raw logs behind the tables and the recorded
traces are run in ``test_kvm_recorded.py``.
"""

import errno
from pathlib import Path

import pytest

from kvmattr import VM, Access, uapi

DATA = Path(__file__).parent / "data" / "kvm-6.12"
PAGE, MIB = 4096, 1 << 20
PRIVATE = uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE
HVA = 0x7F0000000000
READONLY, LOG_DIRTY, GUEST_MEMFD = (
    uapi.KVM_MEM_READONLY,
    uapi.KVM_MEM_LOG_DIRTY_PAGES,
    uapi.KVM_MEM_GUEST_MEMFD,
)
PROBED = slice(0x100, 0x140)  # the 64 pages whose state the recording probed

ROWS = {}
NOT_RUN = {
    "ioctl from a forked child (other mm): valid, invalid, NULL pointer":
        "a forked child has a model of its own",
    "out of memory (memcg limit 32 MiB, process exempt from the OOM killer), 2^28 pages private":
        "one word here; that a failed allocation changes nothing is tested with the store",
    "same, process killable": "needs the kernel's OOM killer",
    "out of memory, 2^28 pages to SHARED with 4 pages private": "nothing is reserved to clear",
    "afterwards: small sets over the leftovers": "nothing is reserved, so nothing is left over",
    "guest_memfd fd: PUNCH_HOLE 0, plain fallocate 0, unaligned punch EINVAL, ftruncate EINVAL, mmap ENODEV,"
    " read EINVAL": "a handle is no file descriptor and has no contents",
    "guest_memfd slot over PROT_NONE memory, shared": "there are no host mappings to refuse it",
    "type-0 VM over PROT_NONE": "there are no host mappings to refuse it",
    "no memslot, PRIVATE set AFTER an MMIO access there":
        "there are no cached MMIO mappings: it is a MEMORY_FAULT at once, as VM.access says",
    "back to shared / back to private": "there are no memory contents",
    "emulated movsb from MMIO into a PRIVATE page of a plain slot": "needs KVM's instruction emulator",
    "movsb from a PRIVATE page to MMIO": "needs KVM's instruction emulator",
}


def row(case):
    """Register a function as the one that runs a row of the tables."""

    def register(function):
        assert case not in ROWS, case
        ROWS[case] = function
        return function

    return register


def recorded_rows():
    table = ""
    for line in (DATA / "rows.md").read_text().splitlines():
        if line.startswith("## "):
            table = line[3:].split(" --")[0]
        elif line.startswith("| ") and not line.startswith(("| case |", "| access |")):
            yield table, line.strip("| ").split(" | ")[0]


def answer(call, *arguments, **keywords):
    """The errno's name, or 0."""
    try:
        call(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno]
    return 0


def type1():
    """The machine of the recordings: private memory, 2^40 bytes, 64 pages in memslot 0 at 1 MiB."""
    vm = VM("linux", phys_bits=40)
    vm.set_user_memory_region(0, MIB, 64 * PAGE, HVA)
    return vm


def type0():
    vm = VM("linux", private=False, phys_bits=40)
    vm.set_user_memory_region(0, MIB, 64 * PAGE, HVA)
    return vm


def set_attributes(vm, address, size, attributes, flags=0):
    """One SET through ioctl; what fails may not have changed anything."""
    before, sequence = vm.attributes.snapshot(), vm.invalidation.sequence
    change = uapi.linux_kvm_memory_attributes(address, size, attributes, flags)
    result = answer(vm.ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES, change)
    if result:
        assert vm.attributes == before
        assert vm.invalidation.sequence == sequence
    return result


def set_slot(vm, slot, gpa, size, hva=HVA, flags=0, guest_memfd=None, offset=0):
    """One memslot call through ioctl, version 2 if a guest_memfd is named; what fails changes no memslot."""
    before = list(vm.memslots)
    if guest_memfd is None:
        region = uapi.kvm_userspace_memory_region(slot, flags, gpa, size, hva)
        result = answer(vm.ioctl, uapi.KVM_SET_USER_MEMORY_REGION, region)
    else:
        region = uapi.kvm_userspace_memory_region2(
            slot, flags, gpa, size, hva, offset, guest_memfd & 0xFFFFFFFF
        )
        result = answer(vm.ioctl, uapi.KVM_SET_USER_MEMORY_REGION2, region)
    if result:
        assert list(vm.memslots) == before
    return result


def both(make_answers):
    """The same answers of a type-0 and a type-1 machine."""
    answers = make_answers(type0())
    assert make_answers(type1()) == answers
    return answers


# KVM_SET_MEMORY_ATTRIBUTES ---------------------------------------------------------------------------------


@row("flags = 1, flags = 1<<63")
def set_flags():
    for flags in (1, 1 << 63):
        assert set_attributes(type1(), MIB, PAGE, PRIVATE, flags) == "EINVAL"


@row("attributes = each single bit 0..63 but 3; 8|1; ~0")
def set_unsupported():
    for attributes in [*(1 << bit for bit in range(64) if bit != 3), 8 | 1, 2**64 - 1]:
        assert set_attributes(type1(), MIB, PAGE, attributes) == "EINVAL"


@row("attributes = 8, 0")
def set_supported():
    vm = type1()
    assert set_attributes(vm, MIB, PAGE, 8) == 0
    assert vm.attributes[0x100] == 8
    assert set_attributes(vm, MIB, PAGE, 0) == 0
    assert vm.attributes[0x100] == 0


@row("size 0 (any attributes, also addr 0)")
def set_size_0():
    for address in (0, MIB):
        for attributes in (0, 8):
            assert set_attributes(type1(), address, 0, attributes) == "EINVAL"


@row("addr +1, +2048; size 1, 4095, 4097; addr+1 with size-1 (end aligned)")
def set_unaligned():
    for address, size in [(1, PAGE), (2048, PAGE), (0, 1), (0, 4095), (0, 4097), (1, 4095)]:
        assert set_attributes(type1(), MIB + address, size, 8) == "EINVAL"


@row("addr + size wraps past 2^64")
def set_wraps():
    assert set_attributes(type1(), 2**64 - PAGE, 2 * PAGE, 8) == "EINVAL"
    assert set_attributes(type1(), 0x1000, 2**64 - 1, 8) == "EINVAL"


@row("addr + size == 2^64 exactly (last page; 2^63 + 2^63), private or shared")
def set_last_page():
    for attributes in (0, 8):
        assert set_attributes(type1(), 2**64 - PAGE, PAGE, attributes) == "EINVAL"
        assert set_attributes(type1(), 1 << 63, 1 << 63, attributes) == "EINVAL"


@row("addr 0, size 2^64-4096, attributes 0, nothing private")
def set_everything_shared():
    vm = type1()
    assert set_attributes(vm, 0, 2**64 - PAGE, 0) == 0
    assert vm.attributes.version == type1().attributes.version


@row("page at 2^64-8192, at 2^52, at 2^40 (beyond maxphyaddr)")
def set_beyond_the_guest():
    for address in (2**64 - 8192, 1 << 52, 1 << 40):
        vm = type1()
        assert set_attributes(vm, address, PAGE, 8) == 0
        assert vm.attributes[address >> 12] == 8
        assert set_attributes(vm, address, PAGE, 0) == 0


@row("no memslot at all; half in a slot; superset of the slot")
def set_whatever_the_memslots():
    vm = type1()
    assert set_attributes(vm, 0x40000000, 0x10000, 8) == 0
    assert vm.attributes.count(0x40000, 0x40010, 8) == 16
    assert set_attributes(vm, 0x13E000, 0x4000, 8) == 0
    assert vm.attributes[PROBED].tolist().count(8) == 2
    assert set_attributes(vm, 0xFE000, 0x4000, 8) == 0
    assert vm.attributes[PROBED].tolist().count(8) == 4
    assert set_attributes(vm, 0xF0000, 0x60000, 8) == 0
    assert vm.attributes[PROBED].tolist().count(8) == 64


@row("same value again")
def set_again():
    vm = type1()
    assert set_attributes(vm, MIB, PAGE, 8) == 0
    version, sequence = vm.attributes.version, vm.invalidation.sequence
    assert set_attributes(vm, MIB, PAGE, 8) == 0
    assert (vm.attributes.version, vm.invalidation.sequence) == (version, sequence)


@row("NULL / 1<<63 pointer; struct running into an unmapped page (rest garbage)")
def set_bad_pointer():
    valid = bytes(uapi.linux_kvm_memory_attributes(MIB, PAGE, 8, 0))
    for pointer in (0, 1 << 63, valid[:31], b"", None):
        vm = type1()
        assert answer(vm.ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES, pointer) == "EFAULT"
        assert vm.attributes.run_count == 1


@row("struct in read-only memory")
def set_from_read_only_memory():
    vm = type1()
    valid = bytes(uapi.linux_kvm_memory_attributes(MIB, PAGE, 8, 0))
    assert vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, valid) == valid
    assert vm.attributes[0x100] == 8
    assert answer(vm.ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES, b"\xa5" * 32) == "EINVAL"


@row("wrong fd: /dev/kvm EINVAL, vcpu EINVAL, closed EBADF, pipe ENOTTY")
def set_elsewhere():
    """The model has one kind of descriptor, the VM's; what it is not asked as a VM is ENOTTY."""
    kvm_get_api_version = 0xAE00
    assert answer(type1().ioctl, kvm_get_api_version) == "ENOTTY"


@row("nr 0xd1, nr 0xd3, nr 0xd2 as _IOWR")
def set_other_numbers():
    for request in (0x4020AED1, 0x4020AED3, 0xC020AED2):
        assert answer(type1().ioctl, request, bytearray(32)) == "ENOTTY"


@row("type-0 VM: attributes 0")
def type0_set_0():
    assert set_attributes(type0(), MIB, PAGE, 0) == 0
    assert set_attributes(type0(), 0, 2**64 - PAGE, 0) == 0


@row("type-0 VM: attributes 8 / flags 1 / size 0 / unaligned / wrap / NULL")
def type0_set():
    vm = type0()
    assert set_attributes(vm, MIB, PAGE, 8) == "EINVAL"
    assert set_attributes(vm, MIB, PAGE, 0, flags=1) == "EINVAL"
    assert set_attributes(vm, MIB, 0, 0) == "EINVAL"
    assert set_attributes(vm, MIB + 1, PAGE, 0) == "EINVAL"
    assert set_attributes(vm, 2**64 - PAGE, 2 * PAGE, 0) == "EINVAL"
    assert answer(vm.ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES, 0) == "EFAULT"


def test_attributes_outlive_memslots():
    """Life time: they survive deleting, recreating and moving the memslot, and may come before it."""
    vm = type1()
    set_attributes(vm, MIB, 3 * PAGE, 8)
    assert set_slot(vm, 0, MIB, 0) == 0
    assert set_slot(vm, 0, MIB, 64 * PAGE) == 0
    assert vm.attributes[PROBED].tolist().count(8) == 3
    assert set_slot(vm, 0, 8 * MIB, 64 * PAGE) == 0
    assert vm.attributes[0x800:0x840].tolist().count(8) == 0
    assert vm.access(8 * MIB, Access.READ) is None
    set_attributes(vm, 0x40001000, PAGE, 8)
    assert set_slot(vm, 1, 0x40000000, 3 * PAGE) == 0
    exits = [vm.access(0x40000000 + page * PAGE, Access.READ) is not None for page in range(3)]
    assert exits == [False, True, False]


# KVM_SET_USER_MEMORY_REGION and REGION2 --------------------------------------------------------------------

SLOT0 = (0, MIB, 64 * PAGE)


@row("create; identical call again")
def slot_create():
    assert both(lambda vm: [set_slot(vm, 1, 2 * MIB, MIB), set_slot(vm, 1, 2 * MIB, MIB)]) == [0, 0]


@row("gpa / size / userspace_addr unaligned, size 1")
def slot_unaligned():
    assert (
        both(
            lambda vm: [
                set_slot(vm, 1, 2 * MIB + 1, MIB),
                set_slot(vm, 1, 2 * MIB, MIB + 1),
                set_slot(vm, 1, 2 * MIB, MIB, HVA + 1),
                set_slot(vm, 1, 2 * MIB, 1),
            ]
        )
        == ["EINVAL"] * 4
    )


@row("userspace_addr 1<<63, 1<<47, or end at 1<<47 (TASK_SIZE_MAX is 2^47-4096)")
def slot_beyond_user_space():
    for hva in (1 << 63, 1 << 47, (1 << 47) - PAGE):
        assert both(lambda vm, hva=hva: set_slot(vm, 1, 2 * MIB, PAGE, hva)) == "EINVAL"
    assert both(lambda vm: set_slot(vm, 1, 2 * MIB, PAGE, (1 << 47) - 2 * PAGE)) == 0


@row("userspace_addr 0 / unmapped")
def slot_userspace_0():
    assert both(lambda vm: set_slot(vm, 1, 2 * MIB, MIB, 0)) == 0


@row("overlap (whole, one page, superset)")
def slot_overlap():
    assert (
        both(
            lambda vm: [
                set_slot(vm, 1, MIB, 64 * PAGE),
                set_slot(vm, 1, MIB + 63 * PAGE, 2 * PAGE),
                set_slot(vm, 1, MIB - PAGE, 2 * PAGE),
                set_slot(vm, 1, 0, 8 * MIB),
            ]
        )
        == ["EEXIST"] * 4
    )


@row("adjacent")
def slot_adjacent():
    assert both(lambda vm: [set_slot(vm, 1, MIB + 64 * PAGE, PAGE), set_slot(vm, 2, MIB - PAGE, PAGE)]) == [
        0,
        0,
    ]


@row("two slots on the same userspace memory")
def slot_alias():
    assert both(lambda vm: set_slot(vm, 1, 2 * MIB, 64 * PAGE, HVA)) == 0


@row("existing slot: shrink, grow, other userspace_addr, READONLY on or off")
def slot_immutable():
    def answers(vm):
        set_slot(vm, 1, 2 * MIB, PAGE, flags=READONLY)
        return [
            set_slot(vm, 0, MIB, 63 * PAGE),
            set_slot(vm, 0, MIB, 65 * PAGE),
            set_slot(vm, *SLOT0, HVA + PAGE),
            set_slot(vm, *SLOT0, flags=READONLY),
            set_slot(vm, 1, 2 * MIB, PAGE),
        ]

    assert both(answers) == ["EINVAL"] * 5


@row("existing slot: LOG_DIRTY on/off, also together with a move")
def slot_log_dirty():
    assert (
        both(
            lambda vm: [
                set_slot(vm, *SLOT0, flags=LOG_DIRTY),
                set_slot(vm, *SLOT0),
                set_slot(vm, 0, 8 * MIB, 64 * PAGE, flags=LOG_DIRTY),
                set_slot(vm, *SLOT0),
            ]
        )
        == [0] * 4
    )


@row("move to free gpa, also overlapping its own old place")
def slot_move():
    assert both(
        lambda vm: [set_slot(vm, 0, 8 * MIB, 64 * PAGE), set_slot(vm, 0, 8 * MIB + PAGE, 64 * PAGE)]
    ) == [0, 0]


@row("move + resize")
def slot_move_and_resize():
    assert both(lambda vm: set_slot(vm, 0, 8 * MIB, 63 * PAGE)) == "EINVAL"


@row("move onto another slot")
def slot_move_onto():
    assert both(lambda vm: [set_slot(vm, 1, 2 * MIB, PAGE), set_slot(vm, 1, MIB, PAGE)]) == [0, "EEXIST"]


@row("delete (size 0), any (aligned) gpa/hva, READONLY flag set or not")
def slot_delete():
    def answers(vm):
        set_slot(vm, 1, 2 * MIB, PAGE)
        set_slot(vm, 2, 4 * MIB, PAGE, flags=READONLY)
        return [
            set_slot(vm, 0, MIB, 0),
            set_slot(vm, 1, 0, 0, 0),
            set_slot(vm, 2, 0, 0, flags=READONLY),
            len(vm.memslots),
        ]

    assert both(answers) == [0, 0, 0, 0]


@row("delete non-existing")
def slot_delete_nothing():
    assert both(lambda vm: set_slot(vm, 1, MIB, 0)) == "EINVAL"


@row("delete with unaligned gpa / unaligned hva / kernel hva / unknown flag")
def slot_delete_badly():
    assert (
        both(
            lambda vm: [
                set_slot(vm, 0, MIB + 1, 0),
                set_slot(vm, 0, MIB, 0, HVA + 1),
                set_slot(vm, 0, MIB, 0, 1 << 63),
                set_slot(vm, 0, MIB, 0, flags=8),
            ]
        )
        == ["EINVAL"] * 4
    )


@row("slot id 32763 (= NR-1)")
def slot_last_id():
    assert both(
        lambda vm: [
            set_slot(vm, 32763, 2 * MIB, PAGE),
            vm.ioctl(uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_NR_MEMSLOTS),
        ]
    ) == [0, 32764]


@row("slot id 32764 (= NR_MEMSLOTS), 32766, 32767, 65535")
def slot_id_beyond():
    for number in (32764, 32766, 32767, 65535):
        assert both(lambda vm, number=number: set_slot(vm, number, 2 * MIB, PAGE)) == "EINVAL"


@row("address space 1 (slot 1<<16)")
def slot_address_space_1():
    assert set_slot(type0(), 1 << 16, MIB, PAGE) == 0
    assert set_slot(type1(), 1 << 16, MIB, PAGE) == "EINVAL"
    spaces = [
        vm.ioctl(uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_MULTI_ADDRESS_SPACE) for vm in (type0(), type1())
    ]
    assert spaces == [2, 1]


@row("address space 2, 0xffff")
def slot_address_space_beyond():
    assert (
        both(lambda vm: [set_slot(vm, 2 << 16, MIB, PAGE), set_slot(vm, 0xFFFF << 16, MIB, PAGE)])
        == ["EINVAL"] * 2
    )


@row("2^31 pages (size 2^43)")
def slot_too_large():
    vm = VM("linux")
    assert set_slot(vm, 0, 0, 1 << 43, 0) == "EINVAL"


@row("2^31-1 pages")
def slot_largest():
    assert both(lambda vm: set_slot(vm, 1, 2 * MIB, (1 << 43) - PAGE, 0)) == "EINVAL"
    assert set_slot(VM("linux"), 0, 0, (1 << 43) - PAGE, 0) == 0


@row("size 2^40 at 0 (exactly maxphyaddr), one page at 2^40-4096")
def slot_up_to_maxphyaddr():
    assert (
        both(
            lambda vm: [
                set_slot(vm, 0, 0, 0),
                set_slot(vm, 0, 0, 1 << 40, 0),
                set_slot(vm, 0, 0, 0),
                set_slot(vm, 0, (1 << 40) - PAGE, PAGE),
            ]
        )
        == [0] * 4
    )


@row("one page at 2^40; two pages straddling 2^40")
def slot_beyond_maxphyaddr():
    assert (
        both(lambda vm: [set_slot(vm, 1, 1 << 40, PAGE), set_slot(vm, 1, (1 << 40) - PAGE, 2 * PAGE)])
        == ["EINVAL"] * 2
    )


@row("gpa+size wraps; gpa+size == 2^64")
def slot_wraps():
    assert (
        both(
            lambda vm: [
                set_slot(vm, 1, 2**64 - PAGE, 2 * PAGE),
                set_slot(vm, 1, 2**64 - PAGE, PAGE),
                set_slot(vm, 1, 1 << 63, 1 << 63, 0),
            ]
        )
        == ["EINVAL"] * 3
    )


@row("v1 flags: bits 0,1 (LOG_DIRTY, READONLY)")
def slot_v1_flags():
    assert both(
        lambda vm: [set_slot(vm, 1, 2 * MIB, PAGE, flags=1), set_slot(vm, 2, 3 * MIB, PAGE, flags=2)]
    ) == [0, 0]


@row("v1 flags: bit 2 (GUEST_MEMFD) and every other bit")
def slot_v1_unknown_flags():
    for bit in range(2, 32):
        assert both(lambda vm, bit=bit: set_slot(vm, 1, 2 * MIB, PAGE, flags=1 << bit)) == "EINVAL"


@row("v2 flags: bits 0,1")
def slot_v2_flags():
    assert both(
        lambda vm: [
            set_slot(vm, 1, 2 * MIB, PAGE, flags=1, guest_memfd=-1),
            set_slot(vm, 2, 3 * MIB, PAGE, flags=2, guest_memfd=-1),
        ]
    ) == [0, 0]


@row("v2 flags: bit 2 with fd -1")
def slot_v2_no_file():
    assert set_slot(type0(), 1, 2 * MIB, PAGE, flags=GUEST_MEMFD, guest_memfd=-1) == "EINVAL"
    assert set_slot(type1(), 1, 2 * MIB, PAGE, flags=GUEST_MEMFD, guest_memfd=-1) == "EBADF"


@row("v2 flags: bits 3..31")
def slot_v2_unknown_flags():
    for bit in range(3, 32):
        assert (
            both(lambda vm, bit=bit: set_slot(vm, 1, 2 * MIB, PAGE, flags=1 << bit, guest_memfd=-1))
            == "EINVAL"
        )


@row("READONLY+LOG_DIRTY")
def slot_readonly_and_log_dirty():
    assert both(lambda vm: set_slot(vm, 1, 2 * MIB, PAGE, flags=3, guest_memfd=-1)) == 0


@row("bad pointer v1, v2")
def slot_bad_pointer():
    for request, size in ((uapi.KVM_SET_USER_MEMORY_REGION, 32), (uapi.KVM_SET_USER_MEMORY_REGION2, 160)):
        for pointer in (0, 1 << 63, bytes(size - 1), bytearray(size - 1), None):
            assert (
                both(lambda vm, request=request, pointer=pointer: answer(vm.ioctl, request, pointer))
                == "EFAULT"
            )


# guest_memfd -----------------------------------------------------------------------------------------------


def create_file(vm, size, flags=0):
    return answer(vm.ioctl, uapi.KVM_CREATE_GUEST_MEMFD, uapi.kvm_create_guest_memfd(size, flags))


def bind(vm, slot, gpa, size, guest_memfd, offset=0, hva=HVA, flags=GUEST_MEMFD):
    return set_slot(vm, slot, gpa, size, hva, flags, guest_memfd, offset)


def with_file():
    """A type-1 machine and the handle of a guest_memfd of 1 MiB."""
    vm = type1()
    return vm, vm.ioctl(uapi.KVM_CREATE_GUEST_MEMFD, uapi.kvm_create_guest_memfd(MIB, 0))


@row("CREATE_GUEST_MEMFD: size 1M, also on t0 (!), size 2^63-4096")
def file_create():
    assert both(lambda vm: [create_file(vm, MIB), create_file(vm, (1 << 63) - PAGE)]) == [0, 0]


@row("CREATE_GUEST_MEMFD: size 0, unaligned, 1<<63, flags 1")
def file_create_badly():
    assert (
        both(
            lambda vm: [
                create_file(vm, 0),
                create_file(vm, MIB + 1),
                create_file(vm, 1 << 63),
                create_file(vm, MIB, 1),
                create_file(vm, 0, 1),
            ]
        )
        == ["EINVAL"] * 5
    )


@row("GUEST_MEMFD on t0, anything")
def file_on_type0():
    vm = type0()
    file = vm.create_guest_memfd(MIB)
    for guest_memfd, flags in ((file, 0), (file, READONLY), (file, LOG_DIRTY), (-1, 0), (0, 0)):
        assert bind(vm, 1, 2 * MIB, PAGE, guest_memfd, flags=GUEST_MEMFD | flags) == "EINVAL"


@row("t1 GUEST_MEMFD+READONLY, +LOG_DIRTY")
def file_alone():
    vm, file = with_file()
    assert bind(vm, 1, 2 * MIB, PAGE, file, flags=GUEST_MEMFD | READONLY) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, PAGE, file, flags=GUEST_MEMFD | LOG_DIRTY) == "EINVAL"


@row("t1 guest_memfd offset unaligned, offset+size wraps, beyond file size, hva unaligned")
def file_range():
    vm, file = with_file()
    assert bind(vm, 1, 2 * MIB, PAGE, file, offset=1) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, 2 * PAGE, file, offset=2**64 - PAGE) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, 2 * PAGE, file, offset=MIB - PAGE) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, 2 * MIB, file) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, PAGE, file, hva=HVA + 1) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, MIB, file) == 0


@row("t1 bad fd")
def file_bad():
    vm, file = with_file()
    for guest_memfd in (-1, 1 << 29, file + 1000):
        assert bind(vm, 1, 2 * MIB, PAGE, guest_memfd) == "EBADF"


@row("t1 fd of another kind / of another VM")
def file_of_others():
    vm, _ = with_file()
    _, others = with_file_kept = with_file()
    assert bind(vm, 1, 2 * MIB, PAGE, others) == "EINVAL"
    del with_file_kept
    with open(__file__) as something_else:
        assert bind(vm, 1, 2 * MIB, PAGE, something_else.fileno()) == "EINVAL"


@row("t1 guest_memfd with userspace_addr 0")
def file_userspace_0():
    vm, file = with_file()
    assert bind(vm, 1, 2 * MIB, PAGE, file, hva=0) == 0


@row("t1 existing guest_memfd slot: identical call, drop flag (v1 or v2), add LOG_DIRTY, move")
def file_immutable():
    vm, file = with_file()
    assert bind(vm, 1, 2 * MIB, PAGE, file) == 0
    assert bind(vm, 1, 2 * MIB, PAGE, file) == "EINVAL"
    assert set_slot(vm, 1, 2 * MIB, PAGE) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, PAGE, -1, flags=0) == "EINVAL"
    assert bind(vm, 1, 2 * MIB, PAGE, -1, flags=LOG_DIRTY) == "EINVAL"
    assert bind(vm, 1, 8 * MIB, PAGE, file) == "EINVAL"
    assert bind(vm, 1, 8 * MIB, PAGE, -1, flags=0) == "EINVAL"


@row("t1 add GUEST_MEMFD to a plain slot")
def file_for_a_plain_slot():
    vm, file = with_file()
    assert bind(vm, *SLOT0, file) == "EINVAL"


@row("t1 second slot on an already bound file range")
def file_bound_twice():
    vm, file = with_file()
    assert bind(vm, 1, 2 * MIB, 2 * PAGE, file, offset=PAGE) == 0
    assert bind(vm, 2, 4 * MIB, 2 * PAGE, file, offset=2 * PAGE) == "EINVAL"
    assert bind(vm, 2, 4 * MIB, 2 * PAGE, file) == "EINVAL"
    assert bind(vm, 2, 4 * MIB, 2 * PAGE, file, offset=3 * PAGE) == 0


@row("t1 delete guest_memfd slot (flags 0, or GUEST_MEMFD with fd -1)")
def file_slot_deleted():
    vm, file = with_file()
    assert [bind(vm, 1, 2 * MIB, PAGE, file), bind(vm, 2, 4 * MIB, PAGE, file, offset=PAGE)] == [0, 0]
    assert set_slot(vm, 1, 2 * MIB, 0) == 0
    assert bind(vm, 2, 4 * MIB, 0, -1) == 0
    assert bind(vm, 1, 2 * MIB, 2 * PAGE, file) == 0


def test_which_error_wins():
    vm, file = with_file()
    assert bind(vm, 1, 2 * MIB, PAGE, file) == 0
    assert set_slot(vm, 2, MIB, PAGE, flags=8) == "EINVAL"
    assert bind(vm, 2, MIB, PAGE, -1) == "EEXIST"
    assert bind(vm, 2, MIB, PAGE, file) == "EEXIST"
    assert set_slot(vm, 2, MIB, 1 << 40, 0) == "EEXIST"
    assert bind(vm, 2, 1 << 40, PAGE, -1) == "EBADF"


# Faults ----------------------------------------------------------------------------------------------------

PLAIN, RO, FILE, HOLE = 0x8000, 3 * MIB, 4 * MIB, 7 * MIB


def guest():
    """A plain memslot with the page PLAIN, a read-only one, one with a guest_memfd, and a hole."""
    vm = type1()
    set_slot(vm, 0, MIB, 0)
    assert set_slot(vm, 0, 0, MIB) == 0
    assert set_slot(vm, 1, RO, MIB, flags=READONLY) == 0
    file = vm.create_guest_memfd(MIB)
    assert bind(vm, 2, FILE, MIB, file) == 0
    return vm, file


def fault(gpa, is_write=False):
    """The MEMORY_FAULT of every observed row: flags 8, the page, 4096 bytes."""
    return (uapi.KVM_EXIT_MEMORY_FAULT, 8, gpa & -PAGE, PAGE, is_write)


def make_private(vm, gpa):
    assert set_attributes(vm, gpa & -PAGE, PAGE, PRIVATE) == 0


def make_shared(vm, gpa):
    assert set_attributes(vm, gpa & -PAGE, PAGE, 0) == 0


@row("shared, plain slot")
def access_plain():
    vm, _ = guest()
    for access in Access:
        assert vm.access(PLAIN, access) is None


@row("PRIVATE, slot without guest_memfd: read / write / instruction fetch")
def access_private_without_file():
    vm, _ = guest()
    make_private(vm, PLAIN)
    assert vm.access(PLAIN, Access.READ) == fault(PLAIN)
    assert vm.access(PLAIN + 0x10, Access.WRITE) == fault(PLAIN, is_write=True)
    assert vm.access(PLAIN, Access.EXEC) == fault(PLAIN)


@row("run again without fixing")
def access_again():
    vm, _ = guest()
    make_private(vm, PLAIN)
    assert vm.access(PLAIN, Access.READ) == vm.access(PLAIN, Access.READ) == fault(PLAIN)


@row("set to shared, run again")
def access_when_shared_again():
    vm, _ = guest()
    make_private(vm, PLAIN)
    make_shared(vm, PLAIN)
    assert vm.access(PLAIN, Access.READ) is None


@row("page mapped earlier as shared, then made PRIVATE")
def access_mapped_earlier():
    vm, _ = guest()
    mapped_at = vm.invalidation.sequence
    assert vm.access(PLAIN, Access.READ) is None
    make_private(vm, PLAIN)
    assert vm.invalidation.retry(mapped_at, PLAIN >> 12)
    assert vm.access(PLAIN, Access.READ) == fault(PLAIN)


@row("2-byte write straddling shared then private page")
def access_straddling():
    vm, _ = guest()
    make_private(vm, PLAIN)
    assert vm.access(PLAIN - 1, Access.WRITE, 2) == fault(PLAIN, is_write=True)


@row("no memslot, shared")
def access_hole():
    vm, _ = guest()
    assert vm.access(HOLE + 5, Access.READ) == (uapi.KVM_EXIT_MMIO, 0, HOLE + 5, 1, False)
    assert vm.access(HOLE + 5, Access.WRITE) == (uapi.KVM_EXIT_MMIO, 0, HOLE + 5, 1, True)


@row("no memslot, PRIVATE, never accessed before")
def access_private_hole():
    vm, _ = guest()
    make_private(vm, HOLE)
    assert vm.access(HOLE, Access.READ) == fault(HOLE)
    assert vm.access(HOLE, Access.WRITE) == fault(HOLE, is_write=True)


@row("READONLY slot, shared: read / write")
def access_read_only():
    vm, _ = guest()
    assert vm.access(RO, Access.READ) is None
    assert vm.access(RO, Access.WRITE) == (uapi.KVM_EXIT_MMIO, 0, RO, 1, True)


@row("READONLY slot, PRIVATE: read, write")
def access_private_read_only():
    vm, _ = guest()
    make_private(vm, RO)
    assert vm.access(RO, Access.READ) == fault(RO)
    assert vm.access(RO, Access.WRITE) == fault(RO, is_write=True)


@row("guest_memfd slot, shared")
def access_file_shared():
    vm, _ = guest()
    assert vm.access(FILE, Access.READ) is None


@row("guest_memfd slot, PRIVATE")
@row("same, PRIVATE")
def access_file_private():
    vm, _ = guest()
    make_private(vm, FILE)
    assert vm.access(FILE, Access.READ) is None
    assert vm.access(FILE, Access.WRITE) is None


@row("guest_memfd closed while bound: PRIVATE / shared")
def access_file_closed():
    vm, file = guest()
    make_private(vm, FILE)
    vm.close_guest_memfd(file)
    assert vm.access(FILE, Access.READ) == fault(FILE)
    make_shared(vm, FILE)
    assert vm.access(FILE, Access.READ) is None


@row(
    "PRE_FAULT_MEMORY: shared 0; PRIVATE no gmem EFAULT and run->exit_reason=39; 8 pages with 5th private:"
    " 0 with 4 done; no slot ENOENT; no slot PRIVATE EFAULT; gmem PRIVATE 0"
)
def access_ahead():
    vm, _ = guest()
    make_private(vm, 0x5000 + 4 * PAGE)
    make_private(vm, HOLE)
    make_private(vm, FILE)
    assert vm.pre_fault_memory(0, PAGE) == PAGE
    assert answer(vm.pre_fault_memory, 0x5000 + 4 * PAGE, PAGE) == "EFAULT"
    assert vm.pre_fault_memory(0x5000, 8 * PAGE) == 4 * PAGE
    assert answer(vm.pre_fault_memory, HOLE + PAGE, PAGE) == "ENOENT"
    assert answer(vm.pre_fault_memory, HOLE, PAGE) == "EFAULT"
    assert vm.pre_fault_memory(FILE, PAGE) == PAGE


# The tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "case"), list(recorded_rows()), ids=[case[:60] for _, case in recorded_rows()]
)
def test_row(table, case):
    if case in NOT_RUN:
        pytest.skip(f"not a row of the model: {NOT_RUN[case]}")
    assert case in ROWS, f"{table}: no function runs this row, and NOT_RUN does not list it"
    ROWS[case]()


def test_no_row_is_named_that_was_not_recorded():
    cases = {case for _, case in recorded_rows()}
    assert set(ROWS) <= cases
    assert set(NOT_RUN) <= cases
    assert not set(ROWS) & set(NOT_RUN)
