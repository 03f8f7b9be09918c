# ruff: noqa: E501 - lines of recordings are as long as they are
"""The quick road for logs reads a line as the general one does, or not at all."""

import random

import pytest

from kvmattr.trace import plain, read

UA = 0x7F00_0000_0000
SLOT = f"gpa=0x100000 size=0x100000 ua={UA:#x}"
FILE = "guest_memfd=12 guest_memfd_offset=0x3000"
STRUCTURE = f"{{slot=1, flags=0, guest_phys_addr=0x100000, memory_size=1048576, userspace_addr={UA:#x}}}"
KERNEL = "kvm_vm_set_mem_attributes: 0x0000000000000100 -- 0x0000000000000300 [0x8]"
#: Lines that the quick road takes.
TAKEN = [
    f"kvm_set_user_memory Slot#1 flags=0x0 {SLOT} ret=0",
    f"kvm_set_user_memory Slot#1 flags=0x2 {SLOT} ret=-17\r",
    f"7@1000.000001:kvm_set_user_memory AddrSpace#1 Slot#2 flags=0x0 {SLOT} guest_memfd=-1 guest_memfd_offset=0x0 ret=0",
    f"8@1700000000.000001:kvm_set_user_memory AddrSpace#0 Slot#2 flags=0x4 {SLOT} {FILE} ret=0",
    "7@1000.000001:kvm_convert_memory start 0x100000 size 0x2000 shared_to_private",
    "kvm_convert_memory start 0x100000 size 0x1000 private_to_shared",
    f" qemu-system-x86-1624  [002] .....   12.345678: {KERNEL}",
    f"       CPU 0/KVM-1624  (   1620) [002] d..1.   12.345678: {KERNEL}",
    f"  qemu-system-x86-1624  [002]   12.345678901: {KERNEL}",
    f"<...>-1624  (-------) [002] .....   12.345678: {KERNEL}".replace("<...>", "qemu"),
    f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE}) = 0",
    f"7  10:00:00.000001 ioctl(8<anon_inode:kvm-vm>, KVM_SET_USER_MEMORY_REGION, {STRUCTURE.replace('flags=0', 'flags=KVM_MEM_READONLY')}) = 0 <0.000020>",
    f"[pid  1624] 1669155555.123456 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE})   = 0",
]
#: Those that it leaves to the general one.
LEFT = [
    f"kvm_set_user_memory AddrSpace#0 Slot#2 flags=0x4 {SLOT} ret=0",
    f"kvm_set_user_memory Slot#1 flags=0x0 {SLOT} ret=0 colour=7",
    f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE}) = -1 EEXIST (File exists)",
    f"7 ioctl(8, KVM_SET_USER_MEMORY_REGION, {STRUCTURE} <unfinished ...>",
    "7 <... ioctl resumed>) = 0", "close(8) = 0", "7 ioctl(3, KVM_CREATE_VM, 0) = 8", "nothing of ours", "",
    f"<...>-1624  (-------) [002] .....   12.345678: {KERNEL}",
    f" qemu-1  [002] .....   12.345678: {KERNEL.replace('300', '0ff')}",
]
FIRST = f"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua={UA:#x} ret=0"


def told(path, **options):
    try:
        with read(path, **options) as trace:
            rows = [[row[name].tolist() for name in row.dtype.names] for block in trace.blocks() for row in block]
            return rows, trace.unread, trace.notes, trace.mentions, trace.unrelated, trace.lines, trace.clock
    except ValueError as error:
        return str(error)


@pytest.fixture
def both(tmp_path, monkeypatch):
    """What each road makes of lines."""
    def read_twice(lines, **options):
        path = tmp_path / "x.log"
        path.write_text("\n".join(lines) + "\n")
        quick = told(path, **options)
        with monkeypatch.context() as context:
            context.setattr(plain, "ROADS", ())
            return quick, told(path, **options)
    return read_twice


@pytest.mark.parametrize("line", TAKEN)
def test_a_plain_line_is_read_alike(line, both):
    assert any(road(line.encode() + b"\n", 0) is not None for road in plain.ROADS)
    quick, general = both([FIRST, line], one_vm=True)
    assert quick == general
    if isinstance(quick, str):      # a descriptor's VM and that of an event
        quick, general = both([FIRST, line], vm=2)
        assert quick == general
        assert quick[0]


@pytest.mark.parametrize("line", LEFT)
def test_other_lines_are_left_to_the_general_road(line):
    assert all(road(line.encode() + b"\n", 0) is None for road in plain.ROADS)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_and_mixed_lines_are_read_alike(seed, both):
    rng = random.Random(seed)
    letters = "0123456789abcdefx #=@:.-_[](){}<>|\"'\\\t\r,KVMkvm/"
    for _ in range(25):
        lines = [FIRST]
        for _ in range(rng.randrange(2, 9)):
            line = rng.choice(TAKEN + LEFT)
            for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
                at = rng.randrange(len(line) + 1)
                line = rng.choice((line[:at] + line[at + 1:], line[:at] + rng.choice(letters) + line[at:],
                                   line[:at] + rng.choice(letters) + line[at + 1:], line[:at], line[at:],
                                   line.replace("0x", "", 1), line.replace("0", "99999999999", 1), line + " " + line[:at]))
            lines.append(line)
        for options in ({"one_vm": True}, {"vm": 1}, {"vm": 2}, {"pid": 7}, {"one_vm": True, "vm": 1, "strict": True}):
            quick, general = both(lines, **options)
            assert quick == general, lines
