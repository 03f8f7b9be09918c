"""Every constant, structure and request number of the KVM interface; no other file of kvmattr holds any.

Names are the sources' own: the mail's for the ``rfc`` interface (``KVM_MEM_ATTR_...``), the kernel's
``include/uapi/linux/kvm.h`` for the merged one (``KVM_MEMORY_ATTRIBUTE_PRIVATE``), the VSM series' for its
three inverted protections. Structures are ctypes types with the C layout; each has a numpy dtype of the same
layout beside it, so that ``vm.ioctl`` takes either.

>>> hex(KVM_SET_MEMORY_ATTRIBUTES), hex(KVM_GET_MEMORY_ATTRIBUTES)
('0x4020aed2', '0xc020aed3')
>>> MEMORY_ATTRIBUTES.itemsize, MEMORY_ATTRIBUTES.fields["operation"][1]
(32, 24)
"""

from __future__ import annotations

import ctypes

import numpy as np

# Pages -----------------------------------------------------------------------------------------------------

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
#: Guest frame numbers of a 64-bit address space: gfn < 2^52.
MAX_NPAGES = 1 << (64 - PAGE_SHIFT)

# Attributes ------------------------------------------------------------------------------------------------

#: The mail: PRIVATE is BIT(0); the protections follow it, inverted "for backwards compatibility".
KVM_MEM_ATTR_PRIVATE = 1 << 0
KVM_MEM_ATTR_NO_READ = 1 << 1
KVM_MEM_ATTR_NO_WRITE = 1 << 2
KVM_MEM_ATTR_NO_EXEC = 1 << 3

#: Merged in Linux 6.8. The same byte is the mail's NO_EXEC: a bit means nothing without its profile.
KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3

#: The VSM series of June 2024 gives the low bits that Linux left free to the inverted protections.
KVM_MEMORY_ATTRIBUTE_NR = 1 << 0
KVM_MEMORY_ATTRIBUTE_NW = 1 << 1
KVM_MEMORY_ATTRIBUTE_NX = 1 << 2

# Memslots --------------------------------------------------------------------------------------------------

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEM_GUEST_MEMFD = 1 << 2

#: Slots that x86 keeps for itself: APIC access page, identity map, TSS.
KVM_INTERNAL_MEM_SLOTS = 3
#: Slots that user space may have: SHRT_MAX less those.
KVM_USER_MEM_SLOTS = 32767 - KVM_INTERNAL_MEM_SLOTS
#: Pages of the largest memslot.
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
#: The upper half of the structure's ``slot``; a VM with private memory has one address space, others two.
KVM_ADDRESS_SPACE_SHIFT = 16
KVM_MAX_NR_ADDRESS_SPACES = 2
#: x86 with 4-level paging: ``userspace_addr`` plus ``memory_size`` may not pass it.
TASK_SIZE_MAX = (1 << 47) - PAGE_SIZE

# guest_memfd -----------------------------------------------------------------------------------------------

#: Creation flags, since Linux 6.18: user space may map the file; its pages begin shared.
GUEST_MEMFD_FLAG_MMAP = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 1

#: fallocate(2) on a guest_memfd.
FALLOC_FL_KEEP_SIZE = 1 << 0
FALLOC_FL_PUNCH_HOLE = 1 << 1
FALLOC_FL_COLLAPSE_RANGE = 1 << 3
FALLOC_FL_ZERO_RANGE = 1 << 4
FALLOC_FL_INSERT_RANGE = 1 << 5
FALLOC_FL_UNSHARE_RANGE = 1 << 6

# Exits of a vCPU -------------------------------------------------------------------------------------------

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_MMIO = 6
KVM_EXIT_MEMORY_FAULT = 39

#: Flags of KVM_EXIT_MEMORY_FAULT. Linux defines PRIVATE alone; the access bits are the VSM series'.
KVM_MEMORY_EXIT_FLAG_READ = 1 << 0
KVM_MEMORY_EXIT_FLAG_WRITE = 1 << 1
KVM_MEMORY_EXIT_FLAG_EXEC = 1 << 2
KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3

#: errno of a KVM_RUN that met memory whose hardware failed; Python's errno does not name it everywhere.
EHWPOISON = 133

# Capabilities and VM types ---------------------------------------------------------------------------------

KVM_CAP_USER_MEMORY = 3
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_SYNC_MMU = 16
KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21
KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30
KVM_CAP_READONLY_MEM = 81
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_USER_MEMORY2 = 231
KVM_CAP_MEMORY_FAULT_INFO = 232
KVM_CAP_MEMORY_ATTRIBUTES = 233
KVM_CAP_GUEST_MEMFD = 234
KVM_CAP_VM_TYPES = 235
KVM_CAP_PRE_FAULT_MEMORY = 236
KVM_CAP_GUEST_MEMFD_FLAGS = 244
KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES = 252

KVM_X86_DEFAULT_VM = 0
KVM_X86_SW_PROTECTED_VM = 1

# Structures ------------------------------------------------------------------------------------------------


class kvm_memory_attributes(ctypes.Structure):
    """The mail's argument of KVM_SET_MEMORY_ATTRIBUTES and KVM_GET_MEMORY_ATTRIBUTES (32 bytes)."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("attributes", ctypes.c_uint64),
        ("operation", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class linux_kvm_memory_attributes(ctypes.Structure):
    """The same 32 bytes as Linux 6.8 merged them: no operation, one u64 of flags that must be 0."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("attributes", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class kvm_userspace_memory_region(ctypes.Structure):
    """The argument of KVM_SET_USER_MEMORY_REGION (32 bytes)."""

    _fields_ = (
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    )


class kvm_userspace_memory_region2(ctypes.Structure):
    """The argument of KVM_SET_USER_MEMORY_REGION2 (160 bytes); the first 32 are the older structure."""

    _fields_ = (
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
        ("guest_memfd_offset", ctypes.c_uint64),
        ("guest_memfd", ctypes.c_uint32),
        ("pad1", ctypes.c_uint32),
        ("pad2", ctypes.c_uint64 * 14),
    )


class supported_memory_attributes(ctypes.Structure):
    """The u64 that KVM_SUPPORTED_MEMORY_ATTRIBUTES fills; the mail leaves its layout open."""

    _fields_ = (("attributes", ctypes.c_uint64),)


class kvm_enc_region(ctypes.Structure):
    """The argument of KVM_MEMORY_ENCRYPT_REG_REGION and KVM_MEMORY_ENCRYPT_UNREG_REGION (16 bytes)."""

    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


class kvm_create_guest_memfd(ctypes.Structure):
    """The argument of KVM_CREATE_GUEST_MEMFD (64 bytes)."""

    _fields_ = (
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 6),
    )


class _offset_or_address(ctypes.Union):
    _fields_ = (("offset", ctypes.c_uint64), ("address", ctypes.c_uint64))


class kvm_memory_attributes2(ctypes.Structure):
    """The argument of KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd (128 bytes): a range of the file in bytes.

    ``error_offset`` comes out: where in the file a call without success got stuck.
    """

    _anonymous_ = ("place",)
    _fields_ = (
        ("place", _offset_or_address),
        ("size", ctypes.c_uint64),
        ("attributes", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("error_offset", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 11),
    )


class kvm_pre_fault_memory(ctypes.Structure):
    """The argument of a vCPU's KVM_PRE_FAULT_MEMORY (64 bytes); what is left to do comes out."""

    _fields_ = (
        ("gpa", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("padding", ctypes.c_uint64 * 5),
    )


#: The same layouts for numpy: arrays of structures, and ``set_memory_attributes_many``.
MEMORY_ATTRIBUTES = np.dtype(kvm_memory_attributes)
LINUX_MEMORY_ATTRIBUTES = np.dtype(linux_kvm_memory_attributes)
USERSPACE_MEMORY_REGION = np.dtype(kvm_userspace_memory_region)
USERSPACE_MEMORY_REGION2 = np.dtype(kvm_userspace_memory_region2)
ENC_REGION = np.dtype(kvm_enc_region)
CREATE_GUEST_MEMFD = np.dtype(kvm_create_guest_memfd)
#: numpy has no unions: ``address`` of the structure is ``offset`` here.
MEMORY_ATTRIBUTES2 = np.dtype([
    ("offset", "<u8"), ("size", "<u8"), ("attributes", "<u8"), ("flags", "<u8"), ("error_offset", "<u8"),
    ("reserved", "<u8", (11,)),
])
PRE_FAULT_MEMORY = np.dtype(kvm_pre_fault_memory)

# Request numbers -------------------------------------------------------------------------------------------

KVMIO = 0xAE

_WRITE = 1  # user space writes, the kernel reads
_READ = 2


def _request(direction: int, number: int, size: int) -> int:
    """The kernel's _IOC(direction, KVMIO, number, size)."""
    return direction << 30 | size << 16 | KVMIO << 8 | number


KVM_CREATE_VM = _request(0, 0x01, 0)
KVM_CHECK_EXTENSION = _request(0, 0x03, 0)
KVM_GET_VCPU_MMAP_SIZE = _request(0, 0x04, 0)
KVM_CREATE_VCPU = _request(0, 0x41, 0)
KVM_SET_USER_MEMORY_REGION = _request(_WRITE, 0x46, ctypes.sizeof(kvm_userspace_memory_region))
KVM_SET_USER_MEMORY_REGION2 = _request(_WRITE, 0x49, ctypes.sizeof(kvm_userspace_memory_region2))
KVM_CREATE_IRQCHIP = _request(0, 0x60, 0)
KVM_MEMORY_ENCRYPT_REG_REGION = _request(_READ, 0xBB, ctypes.sizeof(kvm_enc_region))
KVM_MEMORY_ENCRYPT_UNREG_REGION = _request(_READ, 0xBC, ctypes.sizeof(kvm_enc_region))
KVM_SET_MEMORY_ATTRIBUTES = _request(_WRITE, 0xD2, ctypes.sizeof(kvm_memory_attributes))
KVM_GET_MEMORY_ATTRIBUTES = _request(_READ | _WRITE, 0xD3, ctypes.sizeof(kvm_memory_attributes))
KVM_SUPPORTED_MEMORY_ATTRIBUTES = _request(_READ, 0xD3, ctypes.sizeof(supported_memory_attributes))
KVM_CREATE_GUEST_MEMFD = _request(_READ | _WRITE, 0xD4, ctypes.sizeof(kvm_create_guest_memfd))
KVM_SET_MEMORY_ATTRIBUTES2 = _request(_READ | _WRITE, 0xD2, ctypes.sizeof(kvm_memory_attributes2))
KVM_PRE_FAULT_MEMORY = _request(_READ | _WRITE, 0xD5, ctypes.sizeof(kvm_pre_fault_memory))
