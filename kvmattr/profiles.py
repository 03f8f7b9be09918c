"""The interfaces that KVM has, had or was offered, one record each; or your own.

The structure of KVM_SET_MEMORY_ATTRIBUTES has the same size and request number in all of them, the bits
differ (the merged PRIVATE is the mail's NO_EXEC), so a machine never guesses which one its caller speaks.
What differs between kernels is a field of the record; no code asks for its name.

>>> [name for name in PROFILES]
['rfc', 'linux', 'linux-6.18', 'linux-7.2', 'linux-7.3', 'gmem', 'gmem-vm-attributes', 'vsm']
>>> LINUX.private, RFC.no_exec
(8, 8)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag
from errno import EEXIST, EINVAL
from functools import cache
from typing import Literal, cast

from kvmattr import uapi
from kvmattr.protection import FULL_ACCESS, Access, Capabilities, Rule, mail_rule, vsm_rule

_WORDS = ("private", "no_read", "no_write", "no_exec")


@dataclass(frozen=True, slots=True)
class Profile:
    """Which attribute bit means what, which calls there are, and which protections may be set.

    ``private``, ``no_read``, ``no_write``, ``no_exec``: one of the bits 0..7 each, all different, or 0 for a
    profile without that attribute. ``mail_calls``: whether there are the mail's operations, its getter, the
    call for the supported attributes and the two calls that it wants to retire; without them the last u64 of
    the structure must be 0. ``rule``: see :mod:`kvmattr.protection`. ``names``: what the source calls the four
    attributes, in the order of the fields. ``kernels``: where the record holds, in words.

    Where attributes are: ``vm_attributes``: KVM_SET_MEMORY_ATTRIBUTES on the VM, by gfn; ENOTTY without.
    ``file_attributes``: PRIVATE belongs to the pages of the guest_memfd, where KVM_SET_MEMORY_ATTRIBUTES2
    changes it, and no longer to the gfn.

    guest_memfd: ``guest_memfd_in_default_vms``: whether a VM without private memory may bind one.
    ``file_flags`` and ``file_flags_in_default_vms``: ``GUEST_MEMFD_FLAG_...`` that a VM with and one without
    private memory may create a file with. ``serves_shared``: whose shared pages come from the file, not from
    userspace_addr: "no" file's, those with the flag "mmap", or "all". ``bound_twice``: the errno of a second
    memslot on a bound range.

    ``clearing_reserves``: whether KVM reserves memory to make pages shared, and so may answer ENOMEM there (this
    model reserves none in either case: the field is for whoever reads the record).
    ``pre_fault``: whether vCPUs have KVM_PRE_FAULT_MEMORY. ValueError for bits and names that cannot be.

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
    names: tuple[str, str, str, str] = ("PRIVATE", "NO_READ", "NO_WRITE", "NO_EXEC")
    kernels: str = ""
    vm_attributes: bool = True
    file_attributes: bool = False
    guest_memfd_in_default_vms: bool = False
    file_flags: int = 0
    file_flags_in_default_vms: int = 0
    serves_shared: Literal["no", "mmap", "all"] = "no"
    bound_twice: int = EINVAL
    clearing_reserves: bool = True
    pre_fault: bool = False

    def __post_init__(self) -> None:
        taken = 0
        for word in _WORDS:
            bit = getattr(self, word)
            if bit not in (0, *(1 << index for index in range(8))):
                raise ValueError(f"profile {self.name!r}: {word} {bit:#x} must be one of the bits 0..7, or 0")
            if bit & taken:
                raise ValueError(f"profile {self.name!r}: {word} {bit:#x} is the bit of another attribute")
            taken |= bit
        if not self.rule(FULL_ACCESS, False, Capabilities()):
            raise ValueError(f"profile {self.name!r}: its rule refuses attributes 0, as every page starts")

        if len(self.names) != len(_WORDS) or len(set(self.names)) != len(_WORDS):
            raise ValueError(f"profile {self.name!r}: names {self.names!r} must be {len(_WORDS)} different ones")
        if self.serves_shared not in ("no", "mmap", "all"):
            raise ValueError(f"profile {self.name!r}: serves_shared {self.serves_shared!r} must be 'no', 'mmap'"
                             " or 'all'")

    def __repr__(self) -> str:
        """The name, where it holds, and the attributes with their bits.

        >>> RFC  # doctest: +NORMALIZE_WHITESPACE
        <Profile rfc: KVM_MEM_ATTR_PRIVATE=0x1, KVM_MEM_ATTR_NO_READ=0x2, KVM_MEM_ATTR_NO_WRITE=0x4,
        KVM_MEM_ATTR_NO_EXEC=0x8 (the mail of November 2022)>
        """
        bits = (getattr(self, word) for word in _WORDS)
        named = ", ".join(f"{name}={bit:#x}" for name, bit in zip(self.names, bits, strict=True) if bit)
        return f"<Profile {self.name}: {named or 'no attributes'}{f' ({self.kernels})' if self.kernels else ''}>"

    @property
    def Attributes(self) -> type[IntFlag]:
        """The profile's attributes as an IntFlag, under the names of its source.

        >>> RFC.Attributes.KVM_MEM_ATTR_NO_READ | RFC.Attributes.KVM_MEM_ATTR_PRIVATE
        <Attributes.KVM_MEM_ATTR_PRIVATE|KVM_MEM_ATTR_NO_READ: 3>
        >>> RFC.Attributes(12)
        <Attributes.KVM_MEM_ATTR_NO_WRITE|KVM_MEM_ATTR_NO_EXEC: 12>
        """
        bits = (getattr(self, word) for word in _WORDS)
        return _attributes(tuple((name, bit) for name, bit in zip(self.names, bits, strict=True) if bit))

    def supported(self, private: bool) -> int:
        """Return the attributes that the SET of a VM with or without private memory accepts, as one byte."""
        of_the_vm = 0 if self.file_attributes or not private else self.private
        return of_the_vm | self.no_read | self.no_write | self.no_exec if self.vm_attributes else 0

    def supported_by_files(self, private: bool) -> int:
        """Return the attributes that KVM_SET_MEMORY_ATTRIBUTES2 accepts on a guest_memfd of such a VM.

        >>> GMEM.supported_by_files(private=True), LINUX.supported_by_files(private=True)
        (8, 0)
        """
        return self.private if self.file_attributes and private else 0

    def guest_memfd_flags(self, private: bool) -> int:
        """Return the ``GUEST_MEMFD_FLAG_...`` that such a VM may create a file with.

        >>> [PROFILES["linux-7.2"].guest_memfd_flags(private) for private in (False, True)]
        [3, 1]
        """
        return self.file_flags if private else self.file_flags_in_default_vms

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


@cache
def _attributes(members: tuple[tuple[str, int], ...]) -> type[IntFlag]:
    return cast(type[IntFlag], IntFlag("Attributes", members, module=__name__))


_LINUX_NAMES = ("KVM_MEMORY_ATTRIBUTE_PRIVATE", "KVM_MEMORY_ATTRIBUTE_NR", "KVM_MEMORY_ATTRIBUTE_NW",
                "KVM_MEMORY_ATTRIBUTE_NX")

#: The seed: the mail of November 2022, with everything that it proposes.
RFC = Profile(
    "rfc",
    private=uapi.KVM_MEM_ATTR_PRIVATE,
    no_read=uapi.KVM_MEM_ATTR_NO_READ,
    no_write=uapi.KVM_MEM_ATTR_NO_WRITE,
    no_exec=uapi.KVM_MEM_ATTR_NO_EXEC,
    names=("KVM_MEM_ATTR_PRIVATE", "KVM_MEM_ATTR_NO_READ", "KVM_MEM_ATTR_NO_WRITE", "KVM_MEM_ATTR_NO_EXEC"),
    kernels="the mail of November 2022",
)

#: What Linux 6.8 merged: one attribute, no operation, nothing to ask with. Observed on 6.12.117.
LINUX = Profile(
    "linux",
    private=uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE,
    mail_calls=False,
    names=_LINUX_NAMES,
    kernels="Linux 6.8 to 6.17",
    pre_fault=True,
)

#: The series of June 2024 for Hyper-V's virtual secure mode: protections beside the merged PRIVATE, own rule.
VSM = Profile(
    "vsm",
    private=uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE,
    no_read=uapi.KVM_MEMORY_ATTRIBUTE_NR,
    no_write=uapi.KVM_MEMORY_ATTRIBUTE_NW,
    no_exec=uapi.KVM_MEMORY_ATTRIBUTE_NX,
    mail_calls=False,
    rule=vsm_rule,
    names=_LINUX_NAMES,
    kernels="the VSM series of June 2024",
)

#: guest_memfd in every VM, with creation flags. Observed on a vendor's 6.18.44, which is built without attributes of
#: VMs, VM types with private memory and SMM: those are as an upstream kernel has them that is built with them.
LINUX_6_18 = replace(
    LINUX,
    name="linux-6.18",
    kernels="Linux 6.18 to 7.0, built with attributes of VMs and SMM",
    guest_memfd_in_default_vms=True,
    file_flags=uapi.GUEST_MEMFD_FLAG_MMAP,
    file_flags_in_default_vms=uapi.GUEST_MEMFD_FLAG_MMAP | uapi.GUEST_MEMFD_FLAG_INIT_SHARED,
)

#: A bound range is EEXIST, and a file with MMAP serves shared pages too. Observed on 7.2.13.
LINUX_7_2 = replace(LINUX_6_18, name="linux-7.2", kernels="Linux 7.1 and 7.2", serves_shared="mmap",
                    bound_twice=EEXIST)

#: Clearing reserves nothing. Observed on 7.3-rc7.
LINUX_7_3 = replace(LINUX_7_2, name="linux-7.3", kernels="Linux 7.3", clearing_reserves=False)

#: In-place conversion, queued for 7.4: attributes of files, and a kernel built without those of VMs.
GMEM = replace(
    LINUX_7_3,
    name="gmem",
    kernels="in-place conversion, queued for 7.4; built without attributes of VMs",
    vm_attributes=False,
    file_attributes=True,
    file_flags=uapi.GUEST_MEMFD_FLAG_MMAP | uapi.GUEST_MEMFD_FLAG_INIT_SHARED,
    serves_shared="all",
)

#: The same, built with them: the VM's call is there and accepts nothing but 0.
GMEM_VM_ATTRIBUTES = replace(
    GMEM, name="gmem-vm-attributes", vm_attributes=True,
    kernels="in-place conversion, queued for 7.4; built with attributes of VMs",
)

#: By the names that the command line and traces take.
PROFILES = {
    profile.name: profile
    for profile in (RFC, LINUX, LINUX_6_18, LINUX_7_2, LINUX_7_3, GMEM, GMEM_VM_ATTRIBUTES, VSM)
}


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
