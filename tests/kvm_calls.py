"""KVM's memory calls on a model or on a real VM, with the errno's name as the answer: for the tests of both."""

import errno

from kvmattr import uapi

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30
HVA = 0x7F0000000000
READONLY, LOG_DIRTY, GUEST_MEMFD = uapi.KVM_MEM_READONLY, uapi.KVM_MEM_LOG_DIRTY_PAGES, uapi.KVM_MEM_GUEST_MEMFD


def answer(call, *arguments, **keywords):
    """The errno's name, or what the call returns, with None as 0."""
    try:
        return call(*arguments, **keywords) or 0
    except OSError as error:
        # Linux has one number for two names, and says EOPNOTSUPP of files.
        return errno.errorcode[error.errno].replace("ENOTSUP", "EOPNOTSUPP")


def errno_of(call, *arguments, **keywords):
    """The errno's name, or 0, whatever the call returns."""
    result = answer(call, *arguments, **keywords)
    return result if isinstance(result, str) else 0


def region(vm, slot, flags, gpa, size, hva=HVA):
    """KVM_SET_USER_MEMORY_REGION."""
    structure = uapi.kvm_userspace_memory_region(slot, flags, gpa, size, hva)
    return answer(vm.ioctl, uapi.KVM_SET_USER_MEMORY_REGION, structure)


def region2(vm, slot, flags, gpa, size, hva=HVA, guest_memfd=-1, offset=0):
    """KVM_SET_USER_MEMORY_REGION2."""
    structure = uapi.kvm_userspace_memory_region2(slot, flags, gpa, size, hva, offset, guest_memfd & 0xFFFFFFFF)
    return answer(vm.ioctl, uapi.KVM_SET_USER_MEMORY_REGION2, structure)
