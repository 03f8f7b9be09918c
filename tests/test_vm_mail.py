"""The mail's own examples and rules, in its words, each a single ioctl; docs/mail.md points here."""

import errno
import re
from itertools import product
from pathlib import Path

import pytest

from kvmattr import VM, Access, Operation, uapi
from kvmattr.profiles import PROFILES
from kvmattr.protection import Capabilities, mail_rule

PRIVATE, NO_READ = uapi.KVM_MEM_ATTR_PRIVATE, uapi.KVM_MEM_ATTR_NO_READ
NO_WRITE, NO_EXEC = uapi.KVM_MEM_ATTR_NO_WRITE, uapi.KVM_MEM_ATTR_NO_EXEC
NONE = NO_READ | NO_WRITE | NO_EXEC
R, W, X = Access.READ, Access.WRITE, Access.EXEC
MIB = 1 << 20


@pytest.fixture
def vm():
    vm = VM(no_exec=True)
    vm.set_user_memory_region(0, 0, 64 * MIB)
    vm.set_user_memory_region(1, 64 * MIB, 64 * MIB, flags=uapi.KVM_MEM_READONLY)
    return vm


def ioctl(vm, attributes, operation=Operation.WRITE, address=0, size=2 * MIB):
    change = uapi.kvm_memory_attributes(address, size, attributes, operation, 0)
    return vm.ioctl(uapi.KVM_SET_MEMORY_ATTRIBUTES, change)


def test_rw_private_to_ro_shared(vm):
    """Quoting "converting from RW+PRIVATE => RO+SHARED"."""
    ioctl(vm, PRIVATE | NO_EXEC)
    assert vm.protection(0) == R | W
    assert ioctl(vm, NO_WRITE | NO_EXEC) == 0
    assert vm.protection(0) == R
    assert vm.access(0, R) is None


def test_rw_private_to_none_shared(vm):
    """Quoting "or even RW+PRIVATE => NONE+SHARED so that the guest can't write/access the memory"."""
    ioctl(vm, PRIVATE | NO_EXEC)
    assert ioctl(vm, NONE) == 0
    assert vm.protection(0) == Access(0)
    for access in Access:
        assert vm.access(0x10, access) == (uapi.KVM_EXIT_MEMORY_FAULT, access, 0, 4096, access == W)


def test_rwx_to_r(vm):
    """Quoting "dropping from RWX=>R, i.e. dropping WX permissions, would also be a common operation"."""
    ioctl(vm, PRIVATE, address=MIB, size=4096)
    assert ioctl(vm, NO_WRITE | NO_EXEC, Operation.OR) == 0
    assert vm.protection(0) == R
    assert vm.attributes[MIB >> 12] == PRIVATE | NO_WRITE | NO_EXEC


def test_block_a_range_for_a_while(vm):
    """Quoting "to temporarily block access to memory without needing to delete the memslot"."""
    ioctl(vm, PRIVATE, address=MIB, size=4096)
    before, memslots = vm.snapshot(), list(vm.memslots)
    assert ioctl(vm, NONE, Operation.OR) == 0
    assert vm.protection(0) == vm.protection(MIB) == Access(0)
    assert ioctl(vm, vm.supported_attributes & ~NONE, Operation.AND) == 0
    assert vm.protection(0) == R | W | X
    assert vm.attributes == before
    assert list(vm.memslots) == memslots


def test_a_read_only_memslot_is_never_writable(vm):
    """Quoting "a read-only memslot couldn't be made writable via attributes"."""
    for attributes in range(16):
        if vm.profile.legality(True, Capabilities(no_exec=True))[attributes]:
            ioctl(vm, attributes, address=64 * MIB)
            assert not vm.protection(64 * MIB) & W
            assert vm.protection(64 * MIB) == vm.profile.allowed(attributes) & ~W


def test_dropping_one_protection_leaves_the_other_attributes(vm):
    """Quoting "setting/clearing individual flags": the other bits need not be known."""
    ioctl(vm, PRIVATE, address=4096, size=4096)
    ioctl(vm, NO_EXEC, Operation.OR)
    assert vm.attributes[0:3].tolist() == [NO_EXEC, PRIVATE | NO_EXEC, NO_EXEC]


def test_there_is_no_unset_and_no_need_for_one(vm):
    """Quoting "No need if the setter operates on all attributes": WRITE 0 clears them all."""
    ioctl(vm, PRIVATE | NO_EXEC)
    assert ioctl(vm, 0) == 0
    assert vm.attributes.uniform(0, 512) == 0


DISALLOWED = {  # effective protection -> attributes, the capabilities that make it possible
    "R": (NO_WRITE | NO_EXEC, {"no_exec"}),
    "RW": (NO_EXEC, {"no_exec"}),
    "W": (NO_READ | NO_EXEC, {"write_only"}),
    "WX": (NO_READ, {"write_only", "exec_only"}),
    "X": (NO_READ | NO_WRITE, {"exec_only"}),
}


@pytest.mark.parametrize("flags", list(product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("protection", DISALLOWED)
@pytest.mark.parametrize("private", [0, PRIVATE], ids=["shared", "private"])
def test_disallowed_effective_protections(protection, flags, private):
    """Quoting "disallow unsupported combinations": WRITE, OR and AND alike, and nothing changes."""
    attributes, needs = DISALLOWED[protection]
    capabilities = Capabilities(*flags)
    vm = VM(**capabilities._asdict())
    allowed = needs <= {name for name in capabilities._fields if getattr(capabilities, name)}
    ioctl(vm, NONE, address=MIB, size=4096)  # a page that OR cannot make worse
    before = vm.snapshot()

    def try_to(attributes, operation):
        try:
            ioctl(vm, attributes, operation)
        except OSError as error:
            refused = error
        else:
            return True
        assert refused.errno == errno.EINVAL
        assert str(refused).endswith(
            f"cannot have the effective protection {protection}" + (" and PRIVATE" if private else "")
        )
        assert vm.attributes == before
        return False

    assert try_to(attributes | private, Operation.WRITE) == allowed
    if allowed:
        assert vm.protection(0) == Access(0)  # no memslot there
    vm.restore(before)
    assert try_to(attributes | private, Operation.OR) == allowed
    vm.restore(before)
    if not private:
        # From everything forbidden, AND gives back what the protection has.
        vm.set_memory_attributes(0, 2 * MIB, NONE)
        before = vm.snapshot()
        assert try_to(attributes, Operation.AND) == allowed


def test_and_takes_the_complement(vm):
    """Quoting "setting/clearing individual flags": AND ~PRIVATE as one writes it in Python."""
    ioctl(vm, PRIVATE | NO_EXEC)
    assert vm.set_memory_attributes(0, 2 * MIB, ~PRIVATE, Operation.AND) == 0
    assert vm.attributes.uniform(0, 512) == NO_EXEC
    flag = vm.profile.Attributes.KVM_MEM_ATTR_NO_EXEC
    assert vm.set_memory_attributes(0, 2 * MIB, ~flag, Operation.AND) == 0
    assert vm.attributes.uniform(0, 512) == 0
    before = vm.snapshot()
    with pytest.raises(OSError, match="the complement of 0x10, which must be within the supported 0xf") as caught:
        vm.set_memory_attributes(0, 2 * MIB, ~0x10, Operation.AND)
    assert caught.value.errno == errno.EINVAL
    # The u64 of the structure has no sign, and only AND has a complement.
    with pytest.raises(OSError, match="attributes 0xfffffffffffffffe: must be within the supported 0xf"):
        ioctl(vm, 2**64 - 2, Operation.AND)
    for operation in (Operation.WRITE, Operation.OR):
        with pytest.raises(ValueError, match="attributes -0x2"):
            vm.set_memory_attributes(0, 2 * MIB, ~PRIVATE, operation)
    with pytest.raises(ValueError, match="attributes -0x2"):
        VM("linux").set_memory_attributes(0, 2 * MIB, ~PRIVATE)
    assert vm.attributes == before


def test_the_query_of_combinations():
    """A bit of the mask may be refused alone; legal_attributes says what is not."""
    for flags in product((False, True), repeat=3):
        vm = VM(**dict(zip(("no_exec", "exec_only", "write_only"), flags, strict=True)))
        for attributes in range(16):
            try:
                ioctl(vm, attributes)
            except OSError:
                assert attributes not in vm.legal_attributes
            else:
                assert attributes in vm.legal_attributes
        assert max(vm.legal_attributes) < 16
    assert VM("gmem").legal_attributes == (0,)


def test_the_old_calls_without_private_memory():
    """REG and UNREG are not at odds: PRIVATE is unsupported, so both are refused."""
    vm = VM(private=False)
    for request in (uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.KVM_MEMORY_ENCRYPT_UNREG_REGION):
        with pytest.raises(OSError, match="attributes 0x1: must be within the supported 0xe") as caught:
            vm.ioctl(request, uapi.kvm_enc_region(0, 4096))
        assert caught.value.errno == errno.EINVAL


def test_the_rule_is_three_rules():
    """docs/mail.md, the reading of the brackets: each property of the hardware lifts one of them."""
    for access in range(8):
        for flags in product((False, True), repeat=3):
            has = Capabilities(*flags)
            read, write, execute = (bool(access & bit) for bit in (R, W, X))
            broken = [write and not read and not has.write_only, execute and not read and not has.exec_only,
                      read and not execute and not has.no_exec]
            assert mail_rule(Access(access), False, has) == (not any(broken))


def test_or_and_and_on_mixed_ranges_look_at_every_page():
    vm = VM()
    ioctl(vm, NO_WRITE, size=1 << 40)
    ioctl(vm, NO_WRITE | PRIVATE, Operation.OR, address=1 << 30, size=4096)
    # RX everywhere: taking READ and EXEC too leaves nothing, which is legal, on every page at once.
    assert ioctl(vm, NO_READ | NO_EXEC, Operation.OR, size=1 << 40) == 0
    # One page back to RWX: now the same OR would leave W there.
    ioctl(vm, 0, address=1 << 35, size=4096)
    before = vm.snapshot()
    with pytest.raises(OSError, match=r"cannot have the effective protection W$"):
        ioctl(vm, NO_READ | NO_EXEC, Operation.OR, size=1 << 40)
    assert vm.attributes == before
    assert ioctl(vm, NO_READ | NO_EXEC, Operation.OR, size=1 << 35) == 0


@pytest.mark.parametrize("abi", PROFILES)
def test_memslot_calls_never_read_attributes(abi):
    """Closure: whatever is stored, a memslot may become read-only, writable, go and come."""
    for flags in product((False, True), repeat=3):
        capabilities = Capabilities(*flags)
        vm = VM(abi, **capabilities._asdict())
        legal = vm.profile.legality(True, capabilities)
        for attributes in range(256):
            if not legal[attributes] or not vm.profile.vm_attributes:
                continue
            vm.set_memory_attributes(0, 4096, attributes)
            for slot_flags in (0, uapi.KVM_MEM_READONLY):
                vm.set_user_memory_region(0, 0, 4096, flags=slot_flags)
                assert vm.protection(0) & ~vm.profile.allowed(attributes) == 0
                vm.set_user_memory_region(0, 0, 0)
            assert vm.attributes[0] == attributes


def test_vsm_rule():
    vm = VM("vsm")
    nr, nw, nx = uapi.KVM_MEMORY_ATTRIBUTE_NR, uapi.KVM_MEMORY_ATTRIBUTE_NW, uapi.KVM_MEMORY_ATTRIBUTE_NX
    for legal in (0, nw, nx, nw | nx, nr | nw | nx, uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE):
        assert vm.set_memory_attributes(0, 4096, legal) == 0
    for illegal in (nr, nr | nw, nr | nx, 8 | nw, 8 | nx, 8 | nr | nw | nx):
        with pytest.raises(OSError, match="cannot have the effective protection") as caught:
            vm.set_memory_attributes(0, 4096, illegal)
        assert caught.value.errno == errno.EINVAL


def test_the_page_about_the_mail_names_tests_that_exist():
    """docs/mail.md: every test that it names is in this suite."""
    here = Path(__file__).parent
    named = set(re.findall(r"`(test_\w+)`", (here.parent / "docs" / "mail.md").read_text()))
    suite = "".join(path.read_text() for path in here.glob("test_*.py"))
    written = set(re.findall(r"^def (test_\w+)", suite, re.MULTILINE))
    assert len(named) > 15
    assert named <= written
