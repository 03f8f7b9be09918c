"""``vm.ioctl`` takes and returns what ``fcntl.ioctl`` does; the methods answer and fail alike."""

import ctypes
import doctest
import errno
import re

import numpy as np
import pytest

from kvmattr import VM, AttributeMap, Operation, _vm, uapi
from kvmattr.profiles import Profile

SET, GET = uapi.KVM_SET_MEMORY_ATTRIBUTES, uapi.KVM_GET_MEMORY_ATTRIBUTES
PRIVATE = uapi.KVM_MEM_ATTR_PRIVATE


def raises(number, text):
    return pytest.raises(OSError, match=f"^{re.escape(f'[Errno {number}] {text}')}$")


def change(address=0, size=4096, attributes=PRIVATE, operation=0, flags=0):
    return uapi.kvm_memory_attributes(address, size, attributes, operation, flags)


def as_array(structure):
    return np.frombuffer(bytes(structure), uapi.MEMORY_ATTRIBUTES).copy()


FORMS = {
    "ctypes": lambda structure: structure,
    "bytearray": bytearray,
    "memoryview": lambda structure: memoryview(bytearray(structure)),
    "numpy array": as_array,
    "numpy record": lambda structure: as_array(structure).view(np.recarray)[0:1],
    "longer": lambda structure: bytearray(bytes(structure) + b"more"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_any_mutable_buffer(form):
    vm = VM()
    assert vm.ioctl(SET, form(change(8192))) == 0
    assert vm.attributes[0:4].tolist() == [0, 0, 1, 0]
    asked = form(change(0, 5 * 4096, 0xFF))
    assert vm.ioctl(GET, asked) == 0
    answer = uapi.kvm_memory_attributes.from_buffer_copy(memoryview(asked).cast("B"))
    assert (answer.address, answer.size, answer.attributes) == (0, 2 * 4096, 0)
    assert bytes(memoryview(asked).cast("B")[32:]) in (b"", b"more")


def test_read_only_buffers_come_back_as_bytes():
    vm = VM()
    request = bytes(change()) + b"more"
    assert vm.ioctl(SET, request) == request
    answer = vm.ioctl(GET, request)
    assert uapi.kvm_memory_attributes.from_buffer_copy(answer).attributes == PRIVATE
    assert answer[32:] == b"more"
    mutable = bytearray(8)
    assert vm.ioctl(uapi.KVM_SUPPORTED_MEMORY_ATTRIBUTES, mutable, False) == (15).to_bytes(8, "little")
    assert mutable == bytes(8)


BAD_BUFFERS = [
    0,
    -1,
    1 << 70,
    None,
    "text",
    1.5,
    [1],
    b"",
    bytes(31),
    bytearray(7),
    np.zeros((8, 8))[:, 0],
    object(),
]
STRUCTURES = [
    SET,
    GET,
    uapi.KVM_SET_USER_MEMORY_REGION,
    uapi.KVM_SET_USER_MEMORY_REGION2,
    uapi.KVM_CREATE_GUEST_MEMFD,
]


@pytest.mark.parametrize("request_number", [*STRUCTURES, uapi.KVM_MEMORY_ENCRYPT_REG_REGION], ids=hex)
@pytest.mark.parametrize("bad", BAD_BUFFERS, ids=repr)
def test_what_holds_no_structure_is_efault(request_number, bad):
    if isinstance(bad, bytes) and len(bad) >= 16 and request_number == uapi.KVM_MEMORY_ENCRYPT_REG_REGION:
        bad = bad[:15]
    with pytest.raises(OSError, match=r"must be|has \d+$") as caught:
        VM().ioctl(request_number, bad)
    assert caught.value.errno == errno.EFAULT


@pytest.mark.parametrize(
    "unknown", [0, -1, 0xAE00, SET + 1, 1 << 80, None, "SET", 1.5, [SET], b"x"], ids=repr
)
def test_unknown_requests_are_enotty(unknown):
    with raises(errno.ENOTTY, f"request {unknown!r}: not in the rfc profile"):
        VM().ioctl(unknown, bytearray(160))


def test_a_request_is_an_unsigned_int_of_c():
    """Python's fcntl takes the number as a C unsigned int, so the negative form of GET is GET."""
    assert VM().ioctl(GET - (1 << 32), change()) == 0


@pytest.mark.parametrize("abi", ["linux", "vsm"])
def test_the_other_profiles_lack_the_mails_calls(abi):
    vm = VM(abi)
    for request in (
        GET,
        uapi.KVM_SUPPORTED_MEMORY_ATTRIBUTES,
        uapi.KVM_MEMORY_ENCRYPT_REG_REGION,
        uapi.KVM_MEMORY_ENCRYPT_UNREG_REGION,
    ):
        with raises(errno.ENOTTY, f"request {request}: not in the {abi} profile"):
            vm.ioctl(request, bytearray(32))
    with raises(errno.ENOTTY, f"the {abi} profile has no KVM_GET_MEMORY_ATTRIBUTES"):
        vm.get_memory_attributes(0, 4096)
    assert vm.supported_attributes == vm.ioctl(uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_MEMORY_ATTRIBUTES)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"operation": 3}, "operation 3: must be 0 (WRITE), 1 (OR) or 2 (AND)"),
        ({"flags": 1}, "flags 0x1: must be 0"),
        ({"attributes": 0x10}, "attributes 0x10: must be within the supported 0xf"),
        (
            {"attributes": 1 << 63, "operation": 2},
            "attributes 0x8000000000000000: must be within the supported 0xf",
        ),
        ({"attributes": 0x11, "operation": 1}, "attributes 0x11: must be within the supported 0xf"),
        ({"size": 0}, "size 0: must be a multiple of 4096 above 0"),
        ({"address": 2**64 - 4096}, "address 0xfffffffffffff000, size 0x1000: the end must be below 2^64"),
        ({"address": 1}, "address 0x1: must be a multiple of 4096"),
        ({"size": 4097}, "size 0x1001: must be a multiple of 4096"),
        ({"attributes": 2}, "attributes 0x2: this VM cannot have the effective protection WX"),
        ({"attributes": 9}, "attributes 0x9: this VM cannot have the effective protection RW and PRIVATE"),
    ],
)
def test_einval_names_value_and_rule(arguments, text):
    vm = VM()
    structure = change(**arguments)
    fields = {name: getattr(structure, name) for name, _ in structure._fields_}
    for call in (lambda: vm.ioctl(SET, structure), lambda: vm.set_memory_attributes(**fields)):
        with raises(errno.EINVAL, text):
            call()
    records = np.frombuffer(bytes(structure), uapi.MEMORY_ATTRIBUTES)
    with raises(errno.EINVAL, text):
        vm.set_memory_attributes_many(records)
    assert vm.attributes.version == VM().attributes.version


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"address": -1}, ValueError, "address -0x1: must be in 0..0xffffffffffffffff"),
        ({"size": 1 << 64}, ValueError, "size 0x10000000000000000: must be in 0..0xffffffffffffffff"),
        ({"attributes": -(10**5000)}, ValueError, "attributes -0x"),
        ({"operation": 1 << 32}, ValueError, "operation 0x100000000: must be in 0..0xffffffff"),
        ({"flags": -5}, ValueError, "flags -0x5: must be in 0..0xffffffff"),
        ({"address": 1.0}, TypeError, "address 1.0: must be an integer"),
        ({"size": "4096"}, TypeError, "size '4096': must be an integer"),
        ({"attributes": None}, TypeError, "attributes None: must be an integer"),
    ],
)
def test_values_that_fit_no_field(arguments, error, text):
    vm = VM()
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        vm.set_memory_attributes(**{"address": 0, "size": 4096, "attributes": 1, **arguments})
    assert vm.attributes.run_count == 1


def test_methods_take_any_integer():
    vm = VM()
    assert vm.set_memory_attributes(np.uint64(4096), np.int32(4096), np.uint8(1), Operation.OR) == 0
    assert vm.attributes[1] == 1


def test_flags_of_the_merged_structure_are_one_u64():
    vm = VM("linux")
    for flags in (1, 1 << 63):
        with raises(errno.EINVAL, f"flags {flags:#x}: must be 0 in the linux profile"):
            vm.set_memory_attributes(0, 4096, 8, flags=flags)
    with raises(errno.EINVAL, "flags 0x1: must be 0 in the linux profile"):
        vm.set_memory_attributes(0, 4096, 8, Operation.OR)
    with pytest.raises(ValueError, match=r"^flags 0x1\d+: must be in"):
        vm.set_memory_attributes(0, 4096, 8, flags=1 << 64)


def test_get_extends_inside_the_asked_range():
    vm = VM()
    vm.set_memory_attributes(0x4000, 0x8000, PRIVATE)
    for address, size, attributes, extent in [
        (0, 0x1000, 0, 0x1000),
        (0, 1 << 40, 0, 0x4000),
        (0x5000, 0x2000, 1, 0x2000),
        (0x5000, 1 << 40, 1, 0x7000),
    ]:
        asked = change(address, size)
        assert vm.ioctl(GET, asked) == 0
        assert (asked.address, asked.size, asked.attributes) == (address, extent, attributes)
    for bad in (
        change(size=0),
        change(address=1),
        change(flags=1),
        change(operation=3),
        change(address=2**64 - 4096),
    ):
        before = bytes(bad)
        with pytest.raises(OSError, match="must be") as caught:
            vm.ioctl(GET, bad)
        assert caught.value.errno == errno.EINVAL
        assert bytes(bad) == before


def test_get_all_runs():
    vm = VM()
    vm.set_memory_attributes(0x4000, 0x8000, PRIVATE)
    runs = vm.get_memory_attributes(0x5000, 1 << 30)
    assert runs.dtype.names == ("address", "size", "attributes")
    assert runs.tolist() == [(0x5000, 0x7000, 1), (0xC000, (1 << 30) + 0x5000 - 0xC000, 0)]
    with raises(errno.EINVAL, "size 0: must be a multiple of 4096 above 0"):
        vm.get_memory_attributes(0, 0)
    with pytest.raises(ValueError, match=r"^address -0x1000: must be in"):
        vm.get_memory_attributes(-4096, 4096)


def test_supported_is_one_bitmask():
    for vm, mask in [(VM(), 15), (VM(private=False), 14), (VM(no_exec=True), 15)]:
        supported = ctypes.c_uint64()
        assert vm.ioctl(uapi.KVM_SUPPORTED_MEMORY_ATTRIBUTES, supported) == 0
        assert supported.value == vm.supported_attributes == mask
        assert vm.ioctl(uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_MEMORY_ATTRIBUTES) == mask


def test_encrypt_regions_are_or_and_and():
    vm = VM(no_exec=True)
    vm.set_memory_attributes(0, 0x4000, uapi.KVM_MEM_ATTR_NO_EXEC)
    assert vm.ioctl(uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.kvm_enc_region(0x1000, 0x2000)) == 0
    assert vm.attributes[0:5].tolist() == [8, 9, 9, 8, 0]
    assert vm.ioctl(uapi.KVM_MEMORY_ENCRYPT_UNREG_REGION, uapi.kvm_enc_region(0x2000, 0x2000)) == 0
    assert vm.attributes[0:5].tolist() == [8, 9, 8, 8, 0]
    with raises(errno.EINVAL, "size 0: must be a multiple of 4096 above 0"):
        vm.ioctl(uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.kvm_enc_region(0, 0))
    with raises(errno.EINVAL, "attributes 0x1: must be within the supported 0xe"):
        VM(private=False).ioctl(uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.kvm_enc_region(0, 4096))


@pytest.mark.parametrize(
    ("capability", "with_private", "without"),
    [
        ("KVM_CAP_MEMORY_ATTRIBUTES", 8, 0),
        ("KVM_CAP_NR_MEMSLOTS", 32764, 32764),
        ("KVM_CAP_READONLY_MEM", 1, 1),
        ("KVM_CAP_USER_MEMORY2", 1, 1),
        ("KVM_CAP_GUEST_MEMFD", 1, 0),
        ("KVM_CAP_MULTI_ADDRESS_SPACE", 1, 2),
        ("KVM_CAP_VM_TYPES", 3, 3),
    ],
)
def test_check_extension(capability, with_private, without):
    number = getattr(uapi, capability)
    assert VM("linux").ioctl(uapi.KVM_CHECK_EXTENSION, number) == with_private
    assert VM("linux", private=False).ioctl(uapi.KVM_CHECK_EXTENSION, number) == without


@pytest.mark.parametrize("unknown", [0, -1, 12345, 1 << 70, b"buffer", None], ids=repr)
def test_check_extension_of_the_unknown_is_0(unknown):
    assert VM().ioctl(uapi.KVM_CHECK_EXTENSION, unknown) == 0


def test_batches_take_arrays_of_structures_only():
    vm = VM()
    assert vm.set_memory_attributes_many(np.zeros(0, uapi.MEMORY_ATTRIBUTES)) == 0
    assert vm.set_memory_attributes_many((uapi.kvm_memory_attributes * 2)(change(), change(4096))) == 2
    rows = np.zeros(8, uapi.LINUX_MEMORY_ATTRIBUTES)
    rows["address"], rows["size"] = np.arange(8) * 4096, 4096
    assert vm.set_memory_attributes_many(rows[::2]) == 1
    assert vm.attributes[0:2].tolist() == [0, 1]
    for bad in (None, [1, 2], np.zeros((2, 2), uapi.MEMORY_ATTRIBUTES), np.zeros(4, "u8"), change()):
        with pytest.raises(
            TypeError, match=r"^records of .*must be one-dimensional, of uapi.MEMORY_ATTRIBUTES"
        ):
            vm.set_memory_attributes_many(bad)


def test_a_batch_stops_at_the_first_errno():
    vm = VM()
    records = np.zeros(10_000, uapi.MEMORY_ATTRIBUTES)
    records["address"], records["size"], records["attributes"] = np.arange(10_000) * 8192, 4096, 1
    records["attributes"][7000] = 2
    with raises(errno.EINVAL, "attributes 0x2: this VM cannot have the effective protection WX") as caught:
        vm.set_memory_attributes_many(records)
    assert caught.value.done == 7000
    assert vm.attributes.count(0, 20_000, 1) == 7000


def test_attributes_are_a_live_read_only_map():
    vm = VM()
    attributes = vm.attributes
    assert isinstance(attributes, AttributeMap)
    vm.set_memory_attributes(0, 4096, 1)
    assert attributes[0] == 1
    with pytest.raises(TypeError, match="read-only"):
        attributes[0] = 0
    copy = attributes.copy()
    copy[0] = 0
    assert (attributes[0], copy[0]) == (1, 0)
    assert vm.attributes is attributes


def test_own_profile():
    mine = Profile("mine", private=1 << 7, no_write=1 << 5)
    vm = VM(mine)
    assert vm.set_memory_attributes(0, 4096, 1 << 5, Operation.OR) == 0
    assert vm.ioctl(uapi.KVM_MEMORY_ENCRYPT_REG_REGION, uapi.kvm_enc_region(0, 4096)) == 0
    assert vm.attributes[0] == 1 << 7 | 1 << 5


@pytest.mark.parametrize(
    "arguments", [{"phys_bits": 53}, {"nr_memslots": 0}, {"abi": "kvm"}, {"phys_bits": -1}], ids=str
)
def test_machines_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="must be"):
        VM(**arguments)


def test_the_compiled_examples():
    """pytest collects the doctests of .py files; those of the compiled part run here."""
    results = doctest.testmod(_vm)
    assert results.attempted > 20
    assert results.failed == 0


def test_memory_that_holds_references_is_no_buffer():
    """Found by fuzzing: bytes written over the references of an object array crashed when it was freed."""
    vm = VM()
    things = np.array([None, "text", vm], dtype=object)
    for request in (uapi.KVM_SUPPORTED_MEMORY_ATTRIBUTES, uapi.KVM_GET_MEMORY_ATTRIBUTES):
        with pytest.raises(OSError, match=r"holds references to Python objects, must be plain memory$") as caught:
            vm.ioctl(request, things)
        assert caught.value.errno == errno.EFAULT
    assert things.tolist() == [None, "text", vm]
    named = np.zeros(1, [("Offset", "<u8"), ("More", "<u8")])
    assert vm.ioctl(uapi.KVM_SUPPORTED_MEMORY_ATTRIBUTES, named) == 0
    assert named["Offset"] == 15
