"""Layouts and request numbers against the figures of the C headers, written out by hand."""

import ctypes

import numpy as np
import pytest

from kvmattr import uapi

LAYOUTS = [
    (uapi.kvm_memory_attributes, uapi.MEMORY_ATTRIBUTES, 32,
     {"address": (0, 8), "size": (8, 8), "attributes": (16, 8), "operation": (24, 4), "flags": (28, 4)}),
    (uapi.linux_kvm_memory_attributes, uapi.LINUX_MEMORY_ATTRIBUTES, 32,
     {"address": (0, 8), "size": (8, 8), "attributes": (16, 8), "flags": (24, 8)}),
    (uapi.kvm_userspace_memory_region, uapi.USERSPACE_MEMORY_REGION, 32,
     {"slot": (0, 4), "flags": (4, 4), "guest_phys_addr": (8, 8), "memory_size": (16, 8),
      "userspace_addr": (24, 8)}),
    (uapi.kvm_userspace_memory_region2, uapi.USERSPACE_MEMORY_REGION2, 160,
     {"slot": (0, 4), "flags": (4, 4), "guest_phys_addr": (8, 8), "memory_size": (16, 8),
      "userspace_addr": (24, 8), "guest_memfd_offset": (32, 8), "guest_memfd": (40, 4), "pad1": (44, 4),
      "pad2": (48, 112)}),
    (uapi.kvm_enc_region, uapi.ENC_REGION, 16, {"addr": (0, 8), "size": (8, 8)}),
    (uapi.kvm_create_guest_memfd, uapi.CREATE_GUEST_MEMFD, 64,
     {"size": (0, 8), "flags": (8, 8), "reserved": (16, 48)}),
    (uapi.kvm_pre_fault_memory, uapi.PRE_FAULT_MEMORY, 64,
     {"gpa": (0, 8), "size": (8, 8), "flags": (16, 8), "padding": (24, 40)}),
]

#: As <linux/kvm.h> expands them on x86-64.
REQUESTS = {
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_USER_MEMORY_REGION2": 0x40A0AE49,
    "KVM_MEMORY_ENCRYPT_REG_REGION": 0x8010AEBB,
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": 0x8010AEBC,
    "KVM_SET_MEMORY_ATTRIBUTES": 0x4020AED2,
    "KVM_GET_MEMORY_ATTRIBUTES": 0xC020AED3,
    "KVM_SUPPORTED_MEMORY_ATTRIBUTES": 0x8008AED3,
    "KVM_CREATE_GUEST_MEMFD": 0xC040AED4,
    "KVM_SET_MEMORY_ATTRIBUTES2": 0xC080AED2,
    "KVM_PRE_FAULT_MEMORY": 0xC040AED5,
    "KVM_CREATE_IRQCHIP": 0xAE60,
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_RUN": 0xAE80,
    "KVM_SET_VAPIC_ADDR": 0x4008AE93,
    "KVM_IRQ_LINE": 0x4008AE61,
    "KVM_IRQ_LINE_STATUS": 0xC008AE67,
    "KVM_SIGNAL_MSI": 0x4020AEA5,
    "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_GET_MSR_FEATURE_INDEX_LIST": 0xC004AE0A,
    "KVM_GET_DIRTY_LOG": 0x4010AE42,
    "KVM_SET_NR_MMU_PAGES": 0x0000AE44,
    "KVM_SET_TSS_ADDR": 0x0000AE47,
    "KVM_SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "KVM_GET_IRQCHIP": 0xC208AE62,
    "KVM_SET_IRQCHIP": 0x8208AE63,
    "KVM_REGISTER_COALESCED_MMIO": 0x4010AE67,
    "KVM_UNREGISTER_COALESCED_MMIO": 0x4010AE68,
    "KVM_SET_GSI_ROUTING": 0x4008AE6A,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_CREATE_PIT2": 0x4040AE77,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_SET_CLOCK": 0x4030AE7B,
    "KVM_GET_CLOCK": 0x8030AE7C,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_INTERRUPT": 0x4004AE86,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_GET_FPU": 0x81A0AE8C,
    "KVM_SET_FPU": 0x41A0AE8D,
    "KVM_GET_LAPIC": 0x8400AE8E,
    "KVM_SET_LAPIC": 0x4400AE8F,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_CPUID2": 0xC008AE91,
    "KVM_TPR_ACCESS_REPORTING": 0xC028AE92,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_NMI": 0x0000AE9A,
    "KVM_SET_GUEST_DEBUG": 0x4048AE9B,
    "KVM_X86_SETUP_MCE": 0x4008AE9C,
    "KVM_X86_GET_MCE_CAP_SUPPORTED": 0x8008AE9D,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_GET_PIT2": 0x8070AE9F,
    "KVM_SET_PIT2": 0x4070AEA0,
    "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_SET_DEBUGREGS": 0x4080AEA2,
    "KVM_SET_TSC_KHZ": 0x0000AEA2,
    "KVM_GET_TSC_KHZ": 0x0000AEA3,
    "KVM_GET_XSAVE": 0x9000AEA4,
    "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_GET_XCRS": 0x8188AEA6,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_KVMCLOCK_CTRL": 0x0000AEAD,
    "KVM_GET_SREGS2": 0x8140AECC,
    "KVM_SET_SREGS2": 0x4140AECD,
    "KVM_GET_XSAVE2": 0x9000AECF,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
}


@pytest.mark.parametrize(("structure", "dtype", "size", "fields"), LAYOUTS,
                         ids=[structure.__name__ for structure, *_ in LAYOUTS])
def test_layout(structure, dtype, size, fields):
    assert ctypes.sizeof(structure) == dtype.itemsize == size
    assert [name for name, _ in structure._fields_] == list(dtype.names) == list(fields)
    for name, (offset, length) in fields.items():
        field = getattr(structure, name)
        assert (field.offset, field.size) == (offset, length), name
        assert (dtype.fields[name][1], dtype.fields[name][0].itemsize) == (offset, length), name


def test_layout_of_what_a_vcpu_shares():
    run, exits = uapi.kvm_run, uapi.kvm_run(exit_reason=39)
    places = {name: getattr(run, name).offset for name in ("immediate_exit", "exit_reason", "cr8", "apic_base", "exit")}
    assert places == {"immediate_exit": 1, "exit_reason": 8, "cr8": 16, "apic_base": 24, "exit": 32}
    exits.exit.mmio.len, exits.exit.mmio.is_write = 8, 1
    assert bytes(exits)[48:53] == b"\x08\0\0\0\x01"
    exits.exit.hypercall.args[2], exits.exit.hypercall.ret, exits.exit.hypercall.flags = 3, 4, 5
    assert [bytes(exits)[at] for at in (40 + 16, 40 + 48, 40 + 56)] == [3, 4, 5]
    exits.exit.memory_fault.size = 0x1000
    assert bytes(exits)[48:50] == b"\0\x10"
    assert ctypes.sizeof(uapi.kvm_enable_cap) == 104
    assert uapi.kvm_enable_cap.args.offset == 8


def test_layout_with_a_union():
    """KVM_SET_MEMORY_ATTRIBUTES2's structure, whose first word has two names; numpy has one of them."""
    structure, dtype = uapi.kvm_memory_attributes2, uapi.MEMORY_ATTRIBUTES2
    assert ctypes.sizeof(structure) == dtype.itemsize == 128
    assert structure.offset.offset == structure.address.offset == 0
    for place, name in enumerate(dtype.names):
        assert getattr(structure, name).offset == dtype.fields[name][1] == 8 * place
    assert structure(address=0x5000).offset == 0x5000


@pytest.mark.parametrize("name", REQUESTS)
def test_request_number(name):
    assert getattr(uapi, name) == REQUESTS[name]


def test_every_request_number_is_checked():
    ours = {name for name, value in vars(uapi).items()
            if name.startswith("KVM_") and isinstance(value, int) and value >> 8 & 0xFF == uapi.KVMIO}
    assert ours == set(REQUESTS)


def test_the_same_byte_means_different_things():
    assert uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE == uapi.KVM_MEM_ATTR_NO_EXEC == 8


def test_structures_and_arrays_share_bytes():
    one = uapi.kvm_memory_attributes(address=1 << 12, size=2 << 12, attributes=3, operation=2, flags=5)
    record = np.frombuffer(one, dtype=uapi.MEMORY_ATTRIBUTES)[0]
    assert record.tolist() == (1 << 12, 2 << 12, 3, 2, 5)
    merged = uapi.linux_kvm_memory_attributes.from_buffer(one)
    assert merged.flags == 2 | 5 << 32
