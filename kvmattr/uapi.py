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
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_MEMORY_FAULT = 39

#: ``internal.suberror`` of KVM_EXIT_INTERNAL_ERROR: an instruction that KVM could not fetch or emulate.
KVM_INTERNAL_ERROR_EMULATION = 1

#: Flags of KVM_EXIT_MEMORY_FAULT. Linux defines PRIVATE alone; the access bits are the VSM series'.
KVM_MEMORY_EXIT_FLAG_READ = 1 << 0
KVM_MEMORY_EXIT_FLAG_WRITE = 1 << 1
KVM_MEMORY_EXIT_FLAG_EXEC = 1 << 2
KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3

#: errno of a KVM_RUN that met memory whose hardware failed; Python's errno does not name it everywhere.
EHWPOISON = 133

#: A guest's request to convert pages, and the third of its arguments (``include/uapi/linux/kvm_para.h``).
KVM_HC_MAP_GPA_RANGE = 12
KVM_MAP_GPA_RANGE_ENCRYPTED = 1 << 4
KVM_MAP_GPA_RANGE_DECRYPTED = 0 << 4
#: ``hypercall.flags``: the vCPU is in 64-bit mode.
KVM_EXIT_HYPERCALL_LONG_MODE = 1 << 0
#: What a hypercall that KVM refuses leaves in the guest's register, less than 0.
KVM_ENOSYS = 1000
KVM_EINVAL = 22

# Capabilities and VM types ---------------------------------------------------------------------------------

KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_EXT_CPUID = 7
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_MP_STATE = 14
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_SYNC_MMU = 16
KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21
KVM_CAP_USER_NMI = 22
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_PIT_STATE2 = 35
KVM_CAP_IOEVENTFD = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_INTERNAL_ERROR_DATA = 40
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_DEBUGREGS = 50
KVM_CAP_ENABLE_CAP = 54
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_TSC_CONTROL = 60
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_READONLY_MEM = 81
KVM_CAP_ENABLE_CAP_VM = 98
KVM_CAP_CHECK_EXTENSION_VM = 105
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_SREGS2 = 200
KVM_CAP_EXIT_HYPERCALL = 201
KVM_CAP_XSAVE2 = 208
KVM_CAP_USER_MEMORY2 = 231
KVM_CAP_MEMORY_FAULT_INFO = 232
KVM_CAP_MEMORY_ATTRIBUTES = 233
KVM_CAP_GUEST_MEMFD = 234
KVM_CAP_VM_TYPES = 235
KVM_CAP_PRE_FAULT_MEMORY = 236
KVM_CAP_GUEST_MEMFD_FLAGS = 244
KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES = 252

#: What KVM_GET_API_VERSION returns, ever since Linux 2.6.22.
KVM_API_VERSION = 12
#: vCPUs of a VM, and the numbers that they may have, on x86-64 as distributions build it.
KVM_MAX_VCPUS = 1024
KVM_MAX_VCPU_IDS = 4096
#: What is mapped of a vCPU on x86-64: struct kvm_run, the page of port I/O, the ring of coalesced MMIO.
KVM_VCPU_PAGES = 3

KVM_X86_DEFAULT_VM = 0
KVM_X86_SW_PROTECTED_VM = 1

# Structures ------------------------------------------------------------------------------------------------


class _Arguments:
    """The signature of a structure's constructor, made of its fields when it is asked for."""

    def __get__(self, structure: object, kind: type[_Structure]) -> object:
        import inspect  # most programs never ask

        fields = [inspect.Parameter(field[0], inspect.Parameter.POSITIONAL_OR_KEYWORD,
                                    default=0 if issubclass(field[1], ctypes._SimpleCData) else ())
                  for field in kind._fields_]
        return inspect.Signature([*fields, *(inspect.Parameter(field[0], inspect.Parameter.KEYWORD_ONLY, default=0)
                                             for union in kind._unions().values() for field in union._fields_)])


class _Structure(ctypes.Structure):
    """What the structures have in common: they show their numbers in hexadecimal, and have a signature.

    >>> kvm_memory_attributes(0x1000, 0x2000, KVM_MEM_ATTR_PRIVATE)
    kvm_memory_attributes(address=0x1000, size=0x2000, attributes=0x1, operation=0x0, flags=0x0)
    >>> kvm_memory_attributes2(offset=0x5000, size=0x1000)
    kvm_memory_attributes2(offset=0x5000, size=0x1000, attributes=0x0, flags=0x0, error_offset=0x0)
    """

    __signature__ = _Arguments()

    @classmethod
    def _unions(cls) -> dict[str, type[ctypes.Union]]:
        """The unions whose fields are named as if they were the structure's own."""
        return {field[0]: field[1] for field in cls._fields_
                if field[0] in getattr(cls, "_anonymous_", ()) and issubclass(field[1], ctypes.Union)}

    def __repr__(self) -> str:
        unions = self._unions()
        numbers = [unions[field[0]]._fields_[0][0] if field[0] in unions else field[0] for field in self._fields_
                   if field[0] in unions or issubclass(field[1], ctypes._SimpleCData)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name):#x}' for name in numbers)})"


class kvm_memory_attributes(_Structure):
    """The mail's argument of KVM_SET_MEMORY_ATTRIBUTES and KVM_GET_MEMORY_ATTRIBUTES (32 bytes)."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("attributes", ctypes.c_uint64),
        ("operation", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class linux_kvm_memory_attributes(_Structure):
    """The same 32 bytes as Linux 6.8 merged them: no operation, one u64 of flags that must be 0."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("attributes", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class kvm_userspace_memory_region(_Structure):
    """The argument of KVM_SET_USER_MEMORY_REGION (32 bytes)."""

    _fields_ = (
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    )


class kvm_userspace_memory_region2(_Structure):
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


class supported_memory_attributes(_Structure):
    """The u64 that KVM_SUPPORTED_MEMORY_ATTRIBUTES fills; the mail leaves its layout open."""

    _fields_ = (("attributes", ctypes.c_uint64),)


class kvm_enc_region(_Structure):
    """The argument of KVM_MEMORY_ENCRYPT_REG_REGION and KVM_MEMORY_ENCRYPT_UNREG_REGION (16 bytes)."""

    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


class kvm_create_guest_memfd(_Structure):
    """The argument of KVM_CREATE_GUEST_MEMFD (64 bytes)."""

    _fields_ = (
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 6),
    )


class _offset_or_address(ctypes.Union):
    _fields_ = (("offset", ctypes.c_uint64), ("address", ctypes.c_uint64))


class kvm_memory_attributes2(_Structure):
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


class kvm_pre_fault_memory(_Structure):
    """The argument of a vCPU's KVM_PRE_FAULT_MEMORY (64 bytes); what is left to do comes out."""

    _fields_ = (
        ("gpa", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("padding", ctypes.c_uint64 * 5),
    )


class kvm_enable_cap(_Structure):
    """The argument of KVM_ENABLE_CAP (104 bytes)."""

    _fields_ = (
        ("cap", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("args", ctypes.c_uint64 * 4),
        ("pad", ctypes.c_uint8 * 64),
    )


class _run_mmio(ctypes.Structure):
    _fields_ = (("phys_addr", ctypes.c_uint64), ("data", ctypes.c_uint8 * 8), ("len", ctypes.c_uint32),
                ("is_write", ctypes.c_uint8))


class _run_hypercall(ctypes.Structure):
    _fields_ = (("nr", ctypes.c_uint64), ("args", ctypes.c_uint64 * 6), ("ret", ctypes.c_uint64),
                ("flags", ctypes.c_uint64))


class _run_memory_fault(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("gpa", ctypes.c_uint64), ("size", ctypes.c_uint64))


class _run_internal(ctypes.Structure):
    _fields_ = (("suberror", ctypes.c_uint32), ("ndata", ctypes.c_uint32), ("data", ctypes.c_uint64 * 16))


class _run_exit(ctypes.Union):
    _fields_ = (("internal", _run_internal), ("mmio", _run_mmio), ("hypercall", _run_hypercall),
                ("memory_fault", _run_memory_fault), ("padding", ctypes.c_uint8 * 256))


class kvm_run(_Structure):
    """What a vCPU's first mapped page begins with: why KVM_RUN returned. The exits that the model has."""

    _fields_ = (
        ("request_interrupt_window", ctypes.c_uint8),
        ("immediate_exit", ctypes.c_uint8),
        ("padding1", ctypes.c_uint8 * 6),
        ("exit_reason", ctypes.c_uint32),
        ("ready_for_interrupt_injection", ctypes.c_uint8),
        ("if_flag", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("cr8", ctypes.c_uint64),
        ("apic_base", ctypes.c_uint64),
        ("exit", _run_exit),
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


def is_request(name: str, value: object) -> bool:
    """Whether a name of this module with its value is a request of KVM."""
    return name.startswith("KVM_") and isinstance(value, int) and value >= KVMIO << 8 and value >> 8 & 0xFF == KVMIO


def size_of(request: int) -> int:
    """Bytes of a request's structure, 0 if it takes none."""
    return request >> 16 & 0x3FFF


def comes_out(request: int) -> bool:
    """Whether a request writes its structure."""
    return bool(request >> 30 & _READ)


KVM_GET_API_VERSION = _request(0, 0x00, 0)
KVM_CREATE_VM = _request(0, 0x01, 0)
KVM_CHECK_EXTENSION = _request(0, 0x03, 0)
KVM_GET_VCPU_MMAP_SIZE = _request(0, 0x04, 0)
KVM_CREATE_VCPU = _request(0, 0x41, 0)
KVM_SET_USER_MEMORY_REGION = _request(_WRITE, 0x46, ctypes.sizeof(kvm_userspace_memory_region))
KVM_SET_USER_MEMORY_REGION2 = _request(_WRITE, 0x49, ctypes.sizeof(kvm_userspace_memory_region2))
KVM_CREATE_IRQCHIP = _request(0, 0x60, 0)
KVM_RUN = _request(0, 0x80, 0)
KVM_ENABLE_CAP = _request(_WRITE, 0xA3, ctypes.sizeof(kvm_enable_cap))
KVM_MEMORY_ENCRYPT_REG_REGION = _request(_READ, 0xBB, ctypes.sizeof(kvm_enc_region))
KVM_MEMORY_ENCRYPT_UNREG_REGION = _request(_READ, 0xBC, ctypes.sizeof(kvm_enc_region))
KVM_SET_MEMORY_ATTRIBUTES = _request(_WRITE, 0xD2, ctypes.sizeof(kvm_memory_attributes))
KVM_GET_MEMORY_ATTRIBUTES = _request(_READ | _WRITE, 0xD3, ctypes.sizeof(kvm_memory_attributes))
KVM_SUPPORTED_MEMORY_ATTRIBUTES = _request(_READ, 0xD3, ctypes.sizeof(supported_memory_attributes))
KVM_CREATE_GUEST_MEMFD = _request(_READ | _WRITE, 0xD4, ctypes.sizeof(kvm_create_guest_memfd))
KVM_SET_MEMORY_ATTRIBUTES2 = _request(_READ | _WRITE, 0xD2, ctypes.sizeof(kvm_memory_attributes2))
KVM_PRE_FAULT_MEMORY = _request(_READ | _WRITE, 0xD5, ctypes.sizeof(kvm_pre_fault_memory))

# State that a program sets up before its first KVM_RUN, by the sizes of x86-64's structures; MSRs and CPUID follow a
# header of that size.
KVM_GET_MSR_INDEX_LIST = _request(_READ | _WRITE, 0x02, 4)
KVM_GET_SUPPORTED_CPUID = _request(_READ | _WRITE, 0x05, 8)
KVM_GET_MSR_FEATURE_INDEX_LIST = _request(_READ | _WRITE, 0x0a, 4)
KVM_GET_DIRTY_LOG = _request(_WRITE, 0x42, 16)
KVM_SET_NR_MMU_PAGES = _request(0, 0x44, 0)
KVM_SET_TSS_ADDR = _request(0, 0x47, 0)
KVM_SET_IDENTITY_MAP_ADDR = _request(_WRITE, 0x48, 8)
KVM_IRQ_LINE = _request(_WRITE, 0x61, 8)
KVM_GET_IRQCHIP = _request(_READ | _WRITE, 0x62, 520)
KVM_SET_IRQCHIP = _request(_READ, 0x63, 520)
KVM_IRQ_LINE_STATUS = _request(_READ | _WRITE, 0x67, 8)
KVM_REGISTER_COALESCED_MMIO = _request(_WRITE, 0x67, 16)
KVM_UNREGISTER_COALESCED_MMIO = _request(_WRITE, 0x68, 16)
KVM_SET_GSI_ROUTING = _request(_WRITE, 0x6a, 8)
KVM_IRQFD = _request(_WRITE, 0x76, 32)
KVM_CREATE_PIT2 = _request(_WRITE, 0x77, 64)
KVM_IOEVENTFD = _request(_WRITE, 0x79, 64)
KVM_SET_CLOCK = _request(_WRITE, 0x7b, 48)
KVM_GET_CLOCK = _request(_READ, 0x7c, 48)
KVM_GET_REGS = _request(_READ, 0x81, 144)
KVM_SET_REGS = _request(_WRITE, 0x82, 144)
KVM_GET_SREGS = _request(_READ, 0x83, 312)
KVM_SET_SREGS = _request(_WRITE, 0x84, 312)
KVM_INTERRUPT = _request(_WRITE, 0x86, 4)
KVM_GET_MSRS = _request(_READ | _WRITE, 0x88, 8)
KVM_SET_MSRS = _request(_WRITE, 0x89, 8)
KVM_SET_SIGNAL_MASK = _request(_WRITE, 0x8b, 4)
KVM_GET_FPU = _request(_READ, 0x8c, 416)
KVM_SET_FPU = _request(_WRITE, 0x8d, 416)
KVM_GET_LAPIC = _request(_READ, 0x8e, 1024)
KVM_SET_LAPIC = _request(_WRITE, 0x8f, 1024)
KVM_SET_CPUID2 = _request(_WRITE, 0x90, 8)
KVM_GET_CPUID2 = _request(_READ | _WRITE, 0x91, 8)
KVM_TPR_ACCESS_REPORTING = _request(_READ | _WRITE, 0x92, 40)
KVM_SET_VAPIC_ADDR = _request(_WRITE, 0x93, 8)
KVM_GET_MP_STATE = _request(_READ, 0x98, 4)
KVM_SET_MP_STATE = _request(_WRITE, 0x99, 4)
KVM_NMI = _request(0, 0x9a, 0)
KVM_SET_GUEST_DEBUG = _request(_WRITE, 0x9b, 72)
KVM_X86_SETUP_MCE = _request(_WRITE, 0x9c, 8)
KVM_X86_GET_MCE_CAP_SUPPORTED = _request(_READ, 0x9d, 8)
KVM_GET_VCPU_EVENTS = _request(_READ, 0x9f, 64)
KVM_SET_VCPU_EVENTS = _request(_WRITE, 0xa0, 64)
KVM_GET_PIT2 = _request(_READ, 0x9f, 112)
KVM_SET_PIT2 = _request(_WRITE, 0xa0, 112)
KVM_GET_DEBUGREGS = _request(_READ, 0xa1, 128)
KVM_SET_DEBUGREGS = _request(_WRITE, 0xa2, 128)
KVM_SET_TSC_KHZ = _request(0, 0xa2, 0)
KVM_GET_TSC_KHZ = _request(0, 0xa3, 0)
KVM_GET_XSAVE = _request(_READ, 0xa4, 4096)
KVM_SET_XSAVE = _request(_WRITE, 0xa5, 4096)
KVM_GET_XCRS = _request(_READ, 0xa6, 392)
KVM_SET_XCRS = _request(_WRITE, 0xa7, 392)
KVM_SIGNAL_MSI = _request(_WRITE, 0xA5, 32)
KVM_KVMCLOCK_CTRL = _request(0, 0xad, 0)
KVM_GET_SREGS2 = _request(_READ, 0xcc, 320)
KVM_SET_SREGS2 = _request(_WRITE, 0xcd, 320)
KVM_GET_XSAVE2 = _request(_READ, 0xcf, 4096)
