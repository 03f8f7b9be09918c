"""The three profiles bit by bit, own profiles, and the 256-entry legality table of every machine."""

import errno
import re
from itertools import product

import pytest

from kvmattr import uapi
from kvmattr.profiles import LINUX, PROFILES, RFC, VSM, Profile, profile_named
from kvmattr.protection import FULL_ACCESS, Access, Capabilities

ALL_CAPABILITIES = [Capabilities(*flags) for flags in product((False, True), repeat=3)]


def test_bits_are_the_sources():
    assert (RFC.private, RFC.no_read, RFC.no_write, RFC.no_exec) == (1, 2, 4, 8)
    assert (LINUX.private, LINUX.no_read, LINUX.no_write, LINUX.no_exec) == (8, 0, 0, 0)
    assert (VSM.private, VSM.no_read, VSM.no_write, VSM.no_exec) == (8, 1, 2, 4)
    assert [name for name, profile in PROFILES.items() if profile.mail_calls] == ["rfc"]


@pytest.mark.parametrize(("profile", "with_private", "without"),
                         [(RFC, 0b1111, 0b1110), (LINUX, 0b1000, 0), (VSM, 0b1111, 0b0111)],
                         ids=lambda value: getattr(value, "name", ""))
def test_supported(profile, with_private, without):
    assert profile.supported(private=True) == with_private
    assert profile.supported(private=False) == without


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("private", [False, True], ids=["default", "private"])
@pytest.mark.parametrize("capabilities", ALL_CAPABILITIES, ids=str)
def test_legality_is_the_rule_on_supported_bytes(profile, private, capabilities):
    table = profile.legality(private, capabilities)
    assert len(table) == 256
    assert table[0] == 1
    for byte in range(256):
        if byte & ~profile.supported(private):
            assert table[byte] == 0
        else:
            rule = profile.rule(profile.allowed(byte), bool(byte & profile.private), capabilities)
            assert table[byte] == rule


@pytest.mark.parametrize("private", [False, True], ids=["default", "private"])
@pytest.mark.parametrize("capabilities", ALL_CAPABILITIES, ids=str)
def test_no_read_only_slot_makes_a_legal_byte_illegal(private, capabilities):
    """A read-only memslot is one more NO_WRITE: every legal byte stays legal with it, for all bytes."""
    table = RFC.legality(private, capabilities)
    for byte in range(256):
        if table[byte]:
            assert table[byte | uapi.KVM_MEM_ATTR_NO_WRITE], hex(byte)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_allowed_only_takes_away(profile):
    assert profile.allowed(0) == FULL_ACCESS
    for byte, more in product(range(16), range(16)):
        assert profile.allowed(byte | more) & ~profile.allowed(byte) == 0
    taken = Access.WRITE if profile.no_write else 0
    assert profile.allowed(profile.no_write) == FULL_ACCESS & ~taken


def test_own_profile_may_use_any_bits():
    mine = Profile("mine", private=1 << 7, no_read=1 << 6, no_write=1 << 2, no_exec=1 << 0)
    assert mine.supported(private=True) == 0b11000101
    assert mine.allowed(1 << 6 | 1 << 0) == Access.WRITE
    assert mine.legality(True, Capabilities())[1 << 6 | 1 << 2 | 1 << 0] == 1
    assert profile_named(mine) is mine


@pytest.mark.parametrize(("arguments", "message"), [
    ({"private": 3}, "profile 'mine': private 0x3 must be one of the bits 0..7, or 0"),
    ({"no_exec": 256}, "profile 'mine': no_exec 0x100 must be one of the bits 0..7, or 0"),
    ({"private": -1}, "profile 'mine': private -0x1 must be one of the bits 0..7, or 0"),
    ({"private": 1, "no_write": 1}, "profile 'mine': no_write 0x1 is the bit of another attribute"),
    ({"names": ("A", "B", "C", "C")},
     "profile 'mine': names ('A', 'B', 'C', 'C') must be 4 different ones"),
    ({"serves_shared": "some"}, "profile 'mine': serves_shared 'some' must be 'no', 'mmap' or 'all'"),
    ({"rule": lambda allowed, private, capabilities: False},
     "profile 'mine': its rule refuses attributes 0, as every page starts"),
])
def test_own_profile_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Profile("mine", **arguments)


def test_unknown_name():
    message = f"abi 'xen': must be one of {', '.join(PROFILES)}, or a Profile"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        profile_named("xen")


def test_attributes_have_their_sources_names():
    assert [(flag.name, flag.value) for flag in RFC.Attributes] == [
        ("KVM_MEM_ATTR_PRIVATE", 1), ("KVM_MEM_ATTR_NO_READ", 2), ("KVM_MEM_ATTR_NO_WRITE", 4),
        ("KVM_MEM_ATTR_NO_EXEC", 8)]
    assert [(flag.name, flag.value) for flag in LINUX.Attributes] == [("KVM_MEMORY_ATTRIBUTE_PRIVATE", 8)]
    assert {flag.name[-2:]: flag.value for flag in VSM.Attributes} == {"NR": 1, "NW": 2, "NX": 4, "TE": 8}
    assert RFC.Attributes is RFC.Attributes
    for profile in PROFILES.values():
        for flag in profile.Attributes:
            assert getattr(uapi, flag.name) == flag
    mine = Profile("mine", private=1 << 7, no_write=1 << 2)
    assert {flag.name: flag.value for flag in mine.Attributes} == {"PRIVATE": 1 << 7, "NO_WRITE": 1 << 2}


def test_what_differs_between_kernels_is_a_field():
    """The table of the notes on today's KVM."""
    mmap, shared = uapi.GUEST_MEMFD_FLAG_MMAP, uapi.GUEST_MEMFD_FLAG_INIT_SHARED
    said = {name: (profile.guest_memfd_in_default_vms, profile.guest_memfd_flags(True),
                   profile.guest_memfd_flags(False), profile.serves_shared, profile.bound_twice,
                   profile.clearing_reserves)
            for name, profile in PROFILES.items() if name.startswith("linux")}
    assert said == {
        "linux": (False, 0, 0, "no", errno.EINVAL, True),
        "linux-6.18": (True, mmap, mmap | shared, "no", errno.EINVAL, True),
        "linux-7.2": (True, mmap, mmap | shared, "mmap", errno.EEXIST, True),
        "linux-7.3": (True, mmap, mmap | shared, "mmap", errno.EEXIST, False),
    }
