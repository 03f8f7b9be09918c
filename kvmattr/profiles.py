"""The interfaces that KVM has or was offered, one record each: ``rfc``, ``linux``, ``vsm``; or your own.

The structure of KVM_SET_MEMORY_ATTRIBUTES has the same size and request number in all of them, the bits
differ (the merged PRIVATE is the mail's NO_EXEC), so a machine never guesses which one its caller speaks.

>>> [name for name in PROFILES]
['rfc', 'linux', 'vsm']
>>> LINUX.private, RFC.no_exec
(8, 8)
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmattr import uapi
from kvmattr.protection import FULL_ACCESS, Access, Capabilities, Rule, mail_rule, vsm_rule


@dataclass(frozen=True, slots=True)
class Profile:
    """Which attribute bit means what, which calls there are, and which protections may be set.

    ``private``, ``no_read``, ``no_write``, ``no_exec``: one of the bits 0..7 each, all different, or 0 for a
    profile without that attribute. ``mail_calls``: whether there are the mail's operations, its getter, the
    call for the supported attributes and the two calls that it wants to retire; without them the last u64 of
    the structure must be 0. ``rule``: see :mod:`kvmattr.protection`. ValueError for bits that cannot be.

    >>> mine = Profile("mine", private=1 << 7, no_write=1 << 0)
    >>> mine.supported(private=True), mine.allowed(1 << 0)
    (129, <Access.READ|EXEC: 5>)
    """

    name: str
    private: int = 0
    no_read: int = 0
    no_write: int = 0
    no_exec: int = 0
    mail_calls: bool = True
    rule: Rule = mail_rule

    def __post_init__(self) -> None:
        taken = 0
        for word in ("private", "no_read", "no_write", "no_exec"):
            bit = getattr(self, word)
            if bit not in (0, *(1 << index for index in range(8))):
                raise ValueError(f"profile {self.name!r}: {word} {bit:#x} must be one of the bits 0..7, or 0")
            if bit & taken:
                raise ValueError(f"profile {self.name!r}: {word} {bit:#x} is the bit of another attribute")
            taken |= bit
        if not self.rule(FULL_ACCESS, False, Capabilities()):
            raise ValueError(f"profile {self.name!r}: its rule refuses attributes 0, as every page starts")

    def supported(self, private: bool) -> int:
        """Return the attributes that a machine with or without private memory accepts, as one byte."""
        return (self.private if private else 0) | self.no_read | self.no_write | self.no_exec

    def allowed(self, attributes: int) -> Access:
        """Return what an attribute byte leaves of a memslot that allows everything."""
        allowed = FULL_ACCESS
        bits = (self.no_read, self.no_write, self.no_exec)
        for bit, access in zip(bits, Access, strict=True):
            if attributes & bit:
                allowed &= ~access
        return allowed

    def legality(self, private: bool, capabilities: Capabilities) -> bytes:
        """Return the table of a machine: 256 bytes, 1 where that attribute byte may be stored.

        >>> table = RFC.legality(private=True, capabilities=Capabilities())
        >>> [byte for byte in range(256) if table[byte]]  # RWX, RX and none, each shared and private
        [0, 1, 4, 5, 14, 15]
        """
        supported = self.supported(private)
        return bytes(
            not byte & ~supported and self.rule(self.allowed(byte), bool(byte & self.private), capabilities)
            for byte in range(256)
        )


#: The seed: the mail of November 2022, with everything that it proposes.
RFC = Profile(
    "rfc",
    private=uapi.KVM_MEM_ATTR_PRIVATE,
    no_read=uapi.KVM_MEM_ATTR_NO_READ,
    no_write=uapi.KVM_MEM_ATTR_NO_WRITE,
    no_exec=uapi.KVM_MEM_ATTR_NO_EXEC,
)

#: What Linux 6.8 merged: one attribute, no operation, nothing to ask with.
LINUX = Profile("linux", private=uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE, mail_calls=False)

#: The series of June 2024 for Hyper-V's virtual secure mode: protections beside the merged PRIVATE, own rule.
VSM = Profile(
    "vsm",
    private=uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE,
    no_read=uapi.KVM_MEMORY_ATTRIBUTE_NR,
    no_write=uapi.KVM_MEMORY_ATTRIBUTE_NW,
    no_exec=uapi.KVM_MEMORY_ATTRIBUTE_NX,
    mail_calls=False,
    rule=vsm_rule,
)

PROFILES = {profile.name: profile for profile in (RFC, LINUX, VSM)}


def profile_named(abi: str | Profile) -> Profile:
    """Return the profile of that name, or the given profile itself; ValueError for a name that is none.

    >>> profile_named("vsm").no_write
    2
    """
    if isinstance(abi, Profile):
        return abi
    if abi not in PROFILES:
        raise ValueError(f"abi {abi!r}: must be one of {', '.join(PROFILES)}, or a Profile")
    return PROFILES[abi]
