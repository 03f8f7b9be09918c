"""Random calls on a real default VM of this machine and on the model of its kernel: the same answers.

Memslots, guest_memfd and fallocate. Skipped with a word where /dev/kvm does not open. docs/profiles.md names what
a model answers otherwise than a kernel; nothing of that can show in these calls.
"""

import ctypes
import os
import random
from dataclasses import replace

import pytest

from kvmattr import VM, uapi
from kvmattr.bridges.kvm import KernelVM, missing
from kvmattr.hosts import X86_64, X86_64_LA57
from kvmattr.profiles import PROFILES
from tests.kvm_calls import GUEST_MEMFD, HVA, LOG_DIRTY, MIB, PAGE, READONLY, answer, errno_of, region, region2

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=f"no real KVM here: {missing()}"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the model of the host is x86-64's"),
]

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def real_fallocate(descriptor, mode, offset, size):
    if LIBC.fallocate(descriptor, mode, offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def bound_twice_errno(kernel):
    """What this kernel says of a file range that is bound twice, or None where nothing can be bound."""
    file = answer(kernel.ioctl, uapi.KVM_CREATE_GUEST_MEMFD, uapi.kvm_create_guest_memfd(PAGE, 0))
    if isinstance(file, str) or region2(kernel, 0, GUEST_MEMFD, 0, PAGE, HVA, file) != 0:
        return None
    try:
        return region2(kernel, 1, GUEST_MEMFD, MIB, PAGE, HVA, file)
    finally:
        os.close(file)


def the_model():
    """A model of this kernel, chosen by what its capabilities say, or a skip with a word."""
    with KernelVM() as kernel:
        said = [kernel.check_extension(cap) for cap in (uapi.KVM_CAP_GUEST_MEMFD, uapi.KVM_CAP_GUEST_MEMFD_FLAGS,
                                                        uapi.KVM_CAP_MULTI_ADDRESS_SPACE, uapi.KVM_CAP_USER_MEMORY2)]
        twice = bound_twice_errno(kernel)
        # Without two-dimensional paging KVM takes 52 bits whatever the processor has, so it is asked.
        bits = next(bits for bits in range(52, 31, -1) if region(kernel, 9, 0, (1 << bits) - PAGE, PAGE) == 0)
        change = uapi.linux_kvm_memory_attributes(0, PAGE, 0, 0)
        vm_attributes = answer(kernel.ioctl, uapi.KVM_SET_MEMORY_ATTRIBUTES, change) != "ENOTTY"
        la57 = region(kernel, 8, 0, 0, PAGE, 1 << 47) == 0
    host = replace(X86_64_LA57 if la57 else X86_64, address_spaces=max(said[2], 1))
    for profile in PROFILES.values():
        # Which attributes it was built with is the kernel's configuration, not its version.
        profile = replace(profile, vm_attributes=vm_attributes)
        if profile.mail_calls or profile.file_attributes:
            continue
        vm = VM(profile, private=False, phys_bits=bits, host=host)
        model = [vm.check_extension(cap) for cap in (uapi.KVM_CAP_GUEST_MEMFD, uapi.KVM_CAP_GUEST_MEMFD_FLAGS,
                                                     uapi.KVM_CAP_MULTI_ADDRESS_SPACE, uapi.KVM_CAP_USER_MEMORY2)]
        if model == said and (twice is None or errno_of(_twice, profile) == twice):
            return vm
    pytest.skip(f"no profile is this kernel's: capabilities {said}, a range bound twice {twice}")


def _twice(profile):
    vm = VM(profile, private=False)
    file = vm.create_guest_memfd(PAGE)
    vm.set_user_memory_region2(0, 0, PAGE, HVA, GUEST_MEMFD, file)
    vm.set_user_memory_region2(1, MIB, PAGE, HVA, GUEST_MEMFD, file)


ADDRESSES = [0, PAGE, MIB, 2 * MIB, 3 * MIB, 1 << 30, 0xFEE00000, 1 << 40, (1 << 52) - PAGE, 1 << 52, 1 << 63,
             2**64 - PAGE]
SIZES = [0, PAGE, 2 * PAGE, 16 * PAGE, MIB, MIB + PAGE, 2 * MIB, 1 << 30, 1 << 43, 1 << 63, 2**64 - PAGE]
USER = [0, HVA, HVA + PAGE, (1 << 47) - 2 * PAGE, (1 << 56) - 2 * PAGE, (1 << 57), 1 << 63, 2**64 - PAGE]
FLAGS = [0, 0, LOG_DIRTY, READONLY, READONLY | LOG_DIRTY, GUEST_MEMFD, GUEST_MEMFD, GUEST_MEMFD | READONLY, 8, 1 << 31]


def crooked(rng, value):
    """Now and then a value that is no multiple of a page."""
    return (value + rng.choice((1, 2048))) % 2**64 if rng.random() < 0.03 else value


class Both:
    """The two machines; every call on both, with the descriptors of the one and the handles of the other."""

    def __init__(self, kernel, model):
        self.kernel, self.model = kernel, model
        self.files = []  # (descriptor, handle) of those that are open

    def create(self, size, flags):
        structure = uapi.kvm_create_guest_memfd(size, flags)
        real = answer(self.kernel.ioctl, uapi.KVM_CREATE_GUEST_MEMFD, structure)
        ours = answer(self.model.ioctl, uapi.KVM_CREATE_GUEST_MEMFD, structure)
        if isinstance(real, int) and isinstance(ours, int):
            self.files.append((real, ours))
            return 0, 0
        return real, ours

    def region(self, *arguments):
        return region(self.kernel, *arguments), region(self.model, *arguments)

    def region2(self, file, offset, *arguments):
        return [region2(vm, *arguments, guest_memfd=descriptor, offset=offset)
                for vm, descriptor in zip((self.kernel, self.model), file, strict=True)]

    def fallocate(self, file, *arguments):
        return (answer(real_fallocate, file[0], *arguments),
                answer(self.model.fallocate_guest_memfd, file[1], *arguments))

    def close(self, index):
        descriptor, handle = self.files.pop(index)
        os.close(descriptor)
        return 0, answer(self.model.close_guest_memfd, handle)


def one_call(rng, both):
    """A random call as ``(what it is, the kernel's answer, the model's)``."""
    kind = rng.choice(("create", "region", "region", "region2", "region2", "region2", "delete", "delete", "fallocate",
                       "close"))
    slot = rng.choice((*range(12), 32763, 32764, 65535, 1 << 16, 1 << 16 | 3, 2 << 16))
    gpa, size = crooked(rng, rng.choice(ADDRESSES)), crooked(rng, rng.choice(SIZES))
    user, flags = crooked(rng, rng.choice(USER[:2] if rng.random() < 0.8 else USER)), rng.choice(FLAGS)
    file = rng.choice([*both.files, (-1, -1)])
    if kind == "create" and len(both.files) < 30:
        size = crooked(rng, rng.choice((0, PAGE, MIB, 2 * MIB, 1 << 40, 1 << 63, 2**63 - PAGE)))
        flags = rng.choice((0, 1, 2, 3, 4, 8, 1 << 63))
        return ("create", size, flags), *both.create(size, flags)
    if kind == "region2":
        offset = crooked(rng, rng.choice((0, PAGE, MIB // 2, MIB, 2**63, 2**64 - PAGE)))
        return ("region2", file, offset, slot, flags, gpa, size, user), *both.region2(file, offset, slot, flags, gpa,
                                                                                      size, user)
    if kind == "fallocate" and both.files:
        arguments = (rng.choice((0, 1, 2, 3, 3, 3, 7, 8, 9, 0x10, 0x20, 0x41)),
                     rng.choice((-PAGE, 0, PAGE, MIB, 1, 2**62)), rng.choice((-1, 0, 1, PAGE, MIB, 2**62, 2**63 - 1)))
        if arguments[0] == 1:
            arguments = (1, *arguments[1:2], min(arguments[2], PAGE))  # it allocates memory: a page will do
        return ("fallocate", file, *arguments), *both.fallocate(rng.choice(both.files), *arguments)
    if kind == "close" and both.files and rng.random() < 0.3:
        return ("close",), *both.close(rng.randrange(len(both.files)))
    if kind == "delete":
        flags = rng.choice((0, 0, READONLY, GUEST_MEMFD))
        return ("delete", slot, flags), *both.region(slot, flags, gpa, 0, user)
    return ("region", slot, flags, gpa, size, user), *both.region(slot, flags, gpa, size, user)


@pytest.mark.parametrize("seed", range(3))
def test_random_calls(seed):
    rng, model = random.Random(seed), the_model()
    answers = set()
    with KernelVM() as kernel:
        both = Both(kernel, model)
        try:
            for number in range(4000):
                call, real, ours = one_call(rng, both)
                assert ours == real, f"call {number} {call}: the kernel says {real}, the model {ours}"
                answers.add((call[0], real))
        finally:
            for descriptor, _ in both.files:
                os.close(descriptor)
    # The calls were worth making: each succeeded and failed in several ways.
    assert {("region", 0), ("region", "EEXIST"), ("region", "EINVAL"), ("delete", 0), ("fallocate", 0)} <= answers
    assert len(answers) > 10
    model.memslots.validate()


def test_every_number_of_a_memslot_is_used():
    """As many memslots as the capability says, and one more is EINVAL; 100 of them, from the end."""
    model = the_model()
    with KernelVM() as kernel:
        number = kernel.check_extension(uapi.KVM_CAP_NR_MEMSLOTS)
        assert model.check_extension(uapi.KVM_CAP_NR_MEMSLOTS) == number
        for place, slot in enumerate(range(number - 100, number + 2)):
            expected = 0 if slot < number else "EINVAL"
            for vm in (kernel, model):
                assert region(vm, slot, 0, place * MIB, PAGE) == expected
