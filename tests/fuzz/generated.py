"""Targets that build their inputs with a structure in mind: each is a function of a seeded `random.Random` that makes
one small world, attacks it, and returns how many calls it made. What a call may raise stands beside it; all else is
a finding, and the seed brings it back.
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvmattr import VM, AttributeMap, uapi
from kvmattr.profiles import PROFILES
from kvmattr.trace import TraceError, read
from tests.fuzz.contents import contents
from tests.reference import DenseMap


def demand(truth: object, *told: object) -> None:
    """A finding, unless it is true."""
    if not truth:
        raise AssertionError(*told)


WORDS = [0, 1, 2, 7, 8, 0xFFF, 0x1000, 0x1001, 1 << 20, 1 << 21, (1 << 30) - 1, 1 << 30, 1 << 47, 1 << 51, 1 << 52]
WORDS += [(1 << 52) - 4096, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1, (1 << 31) * 4096, ((1 << 31) - 1) * 4096]


def word(chance: random.Random) -> int:
    kind = chance.random()
    if kind < 0.5:
        return chance.choice(WORDS)
    if kind < 0.8:
        return chance.randrange(64) << 12
    return chance.getrandbits(chance.randrange(1, 65))


# ---- vm.ioctl: any request, any buffer ---------------------------------------------------------------------------

REQUESTS = [value for name, value in vars(uapi).items() if name.startswith("KVM_") and value >> 8 & 0xFF == 0xAE]
ERRNOS = {errno.EINVAL, errno.EFAULT, errno.ENOTTY, errno.EEXIST, errno.EBADF, errno.ENOMEM, errno.EBUSY, errno.ENXIO}
ERRNOS |= {errno.EPERM, errno.EOPNOTSUPP, errno.EAGAIN, errno.EMFILE, errno.ENOENT}


def structure(chance: random.Random) -> bytes:
    words = b"".join(word(chance).to_bytes(8, "little") for _ in range(chance.choice([1, 2, 3, 4, 4, 4, 5, 12, 14])))
    if len(words) == 32 and chance.random() < 0.7:
        # A SET, mostly sound.
        first, pages = chance.randrange(2048), chance.randrange(1025)
        words = (
            (first << 12).to_bytes(8, "little")
            + (pages << 12).to_bytes(8, "little")
            + chance.randrange(16).to_bytes(8, "little")
            + chance.choice([0, 0, 1, 2, 3]).to_bytes(4, "little")
            + chance.choice([0, 0, 0, 1]).to_bytes(4, "little")
        )
    cut = chance.random()
    return words if cut < 0.8 else words[: chance.randrange(len(words) + 1)]


class Lying:
    """An object whose buffer is not there, or whose number changes the machine."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __index__(self) -> int:
        self.act()
        return 8

    def __hash__(self) -> int:
        return 5

    def __eq__(self, other: object) -> bool:
        self.act()
        return False


def buffer(chance: random.Random, vm: VM) -> Any:
    raw = structure(chance)
    kind = chance.randrange(20)
    if kind < 6:
        return bytearray(raw)
    if kind < 9:
        return raw
    if kind == 9:
        return memoryview(raw + raw)[:: chance.choice([1, 2, -1])]
    if kind == 10:
        return ctypes.create_string_buffer(raw, max(1, len(raw)))
    if kind == 11:
        return np.frombuffer(raw, np.uint8).copy()[:: chance.choice([1, 3, -1])]
    if kind == 12:
        return np.frombuffer(raw[: len(raw) & ~7], np.uint64).copy().reshape(-1, 1)
    if kind == 13:
        return np.array([raw, None, vm], dtype=object)
    if kind == 14:
        return np.frombuffer(raw * 2, np.uint8)
    if kind == 15:
        return np.zeros((), uapi.MEMORY_ATTRIBUTES)
    if kind == 16:
        return chance.choice([None, 0, -1, 1 << 70, 3.5, "text", [], object(), True])
    if kind == 17:
        return Lying(lambda: vm.set_memory_attributes(0, 4096, 0))
    if kind == 18:
        return np.ndarray((len(raw) // 8,), ">u8", raw[: len(raw) & ~7])
    return uapi.kvm_memory_attributes(address=word(chance), size=word(chance), attributes=chance.randrange(16))


def ioctl(chance: random.Random) -> int:
    """Result or OSError with one of KVM's errnos, and then nothing has changed."""
    profile = chance.choice(sorted(PROFILES))
    vm = VM(profile, private=chance.random() < 0.8, phys_bits=chance.choice([36, 40, 46, 52]))
    calls = chance.randrange(20, 120)
    for _ in range(calls):
        request: Any = chance.choice(REQUESTS)
        if chance.random() < 0.1:
            request = chance.choice([request | 1 << 32, ~request, 0, "x", None, 1 << 100, request ^ 1 << 16])
        argument = buffer(chance, vm)
        version, generation = vm.attributes.version, vm.memslots.generation
        lying = isinstance(argument, Lying)
        try:
            result = vm.ioctl(request, argument, chance.random() < 0.8)
        except OSError as refused:
            demand(refused.errno in ERRNOS and refused.strerror, refused)
            same = (version, generation) == (vm.attributes.version, vm.memslots.generation)
            demand(same or lying, "refused, and changed something", request, argument)
        else:
            assert isinstance(result, (int, bytes)), result
    vm.attributes.copy().validate()
    vm.memslots.validate()
    return calls


# ---- arrays that are not what they seem --------------------------------------------------------------------------


class Meddling:
    """A number whose __index__ changes the map that it is an argument of."""

    def __init__(self, value: int, act: Callable[[], Any]) -> None:
        self.value = value
        self.act = act

    def __index__(self) -> int:
        self.act()
        return self.value


class LyingSequence:
    """A sequence that tells another length than it has."""

    def __init__(self, items: list[int], length: int) -> None:
        self.items = items
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return self.items[index]


class Claiming(np.ndarray):
    """An array of a subclass with opinions of its own."""

    def __array_finalize__(self, obj: Any) -> None:
        pass

    def __len__(self) -> int:
        return 3


def pages_of(chance: random.Random, npages: int) -> np.ndarray:
    count = chance.choice([0, 1, 1, 2, 3, 7, 30, 64, 65])
    reach = chance.choice([npages, npages, npages, 600, 3]) if chance.random() < 0.93 else npages + 2
    return np.array([chance.randrange(min(reach, npages + 2)) for _ in range(count)], dtype=np.int64)


def disguised(chance: random.Random, values: np.ndarray) -> Any:
    """The same numbers in another dress, and sometimes in one that must be refused."""
    kind = chance.randrange(22)
    count = len(values)
    if kind < 4:
        return values.astype(chance.choice([np.uint64, np.int64, np.uint32, np.int32, np.uint16, np.int16]))
    if kind == 4:
        spread = np.zeros((count, 3), np.uint64)
        spread[:, 1] = values
        return spread[:, 1]
    if kind == 5:
        return values[::-1].astype(np.uint64)[::-1]
    if kind == 6:
        return values.astype(">i8")
    if kind == 7:
        held = np.zeros(8 * count + 1, np.uint8)
        unaligned = held[1:].view(np.uint64)
        unaligned[:] = values
        return unaligned
    if kind == 8:
        frozen = values.astype(np.uint64)
        frozen.flags.writeable = False
        return frozen
    if kind == 9:
        return values.astype(np.float64)
    if kind == 10:
        return values.astype(bool)
    if kind == 11:
        return values.astype(object)
    if kind == 12:
        return values.tolist()
    if kind == 13:
        return tuple(values.tolist())
    if kind == 14:
        return LyingSequence(values.tolist(), max(0, count + chance.choice([-1, 0, 1, 1000])))
    if kind == 15:
        return values.astype(np.uint64).view(Claiming)
    if kind == 16:
        return values.astype(np.uint64).reshape(-1, 1)
    if kind == 17:
        return memoryview(values.astype(np.uint64))
    if kind == 18:
        return np.lib.stride_tricks.as_strided(values.astype(np.uint64), (count,), (0,)) if count else values
    if kind == 19:
        return np.ma.array(values.astype(np.uint64))
    if kind == 20:
        return values.astype("datetime64[s]")
    return values.astype(np.uint64)


REFUSALS = (IndexError, ValueError, TypeError, BufferError)


def read_plainly(argument: Any) -> np.ndarray | None:
    """A copy of what an argument holds, by numpy's own means; None if that is not an array of integers."""
    try:
        array = np.array(argument)
    except Exception:
        return None
    return array if array.dtype.kind in "iuO" else array.astype(np.int64) if not array.size else None


def arrays(chance: random.Random) -> int:
    """The store beside a dense array: the same pages after every call, whatever was handed to it."""
    npages = chance.choice([1, 5, 512, 513, 1500, 5000])
    store, model = AttributeMap(npages), DenseMap(npages)
    calls = chance.randrange(5, 25)
    kept = [(store.snapshot(), model.to_numpy(0, npages).copy())]
    for _ in range(calls):
        gfns = disguised(chance, pages_of(chance, npages))
        how = chance.randrange(8)
        operation, mask = chance.randrange(3), chance.choice([0xFF, 0xFF, 1, 0x0F])
        attributes: Any = chance.choice([1, 3, 5, 0x80, 255, 256, -1, 2.5])
        if chance.random() < 0.4:
            attributes = disguised(chance, np.array([chance.randrange(8) for _ in range(chance.choice([1, 2, 64]))]))
        version = store.version
        call, same = attack(chance, store, model, how, gfns, attributes, operation, mask)
        try:
            call()
        except REFUSALS as refused:
            demand(str(refused), type(refused))
            demand(store.version == version or how == 6, "refused, and changed something", how, gfns, attributes)
        else:
            same()
        assert np.array_equal(store.to_numpy(0, npages), model.to_numpy(0, npages)), (how, gfns, attributes)
        if chance.random() < 0.2:
            kept.append((store.snapshot(), model.to_numpy(0, npages).copy()))
    store.validate()
    for snapshot, pages in kept:
        assert np.array_equal(snapshot.to_numpy(0, npages), pages), "a snapshot changed"
    return calls


def attack(
    chance: random.Random,
    store: AttributeMap,
    model: DenseMap,
    how: int,
    gfns: Any,
    attributes: Any,
    operation: int,
    mask: int,
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A call, and what checks it (and does the same to the model) if it did not raise."""
    npages = len(store)
    plain = read_plainly(gfns)
    answer: list[Any] = []

    def keep(value: Any) -> None:
        answer.append(value)

    def nothing() -> None:
        """For what must leave the pages alone."""

    if how == 0:
        return (
            lambda: keep(store.put(gfns, attributes, operation, mask)),
            lambda: check_equal(answer[0], model.put(plain, read_plainly(attributes), operation, mask)),
        )
    if how == 1:
        return (
            lambda: keep(store.take(gfns)),
            lambda: check_equal(answer[0], model.take(plain.ravel()).reshape(answer[0].shape)),
        )
    plainly = isinstance(gfns, np.ndarray) and gfns.dtype.kind in "iu"
    if how == 2 and plainly and gfns.flags.c_contiguous and gfns.flags.writeable:
        # `out` lies on the gfns themselves.
        whole = gfns.reshape(-1).view(np.uint8)
        offset = chance.randrange(max(1, len(whole) - gfns.size + 1))
        out = whole[offset : offset + gfns.size]
        wanted = plain.copy()
        return lambda: keep(store.take(gfns, out)), lambda: check_equal(answer[0], model.take(wanted.ravel()))
    if how == 3:
        zeros = np.zeros(npages + 1, np.uint8)
        out = chance.choice([zeros[:-1][::-1], np.zeros(npages, np.int8), zeros, bytearray(npages)])
        return lambda: keep(store.to_numpy(0, npages, out)), lambda: check_equal(answer[0], model.to_numpy(0, npages))
    if how == 4:
        starts = plain if plain is not None and plain.ndim == 1 and plain.dtype.kind in "iu" else np.array([0])
        lengths = np.array([chance.randrange(40) for _ in range(chance.choice([1, len(starts)]))])
        stops = np.minimum(starts + lengths, npages) if len(lengths) in (1, len(starts)) else lengths
        dressed: Any = disguised(chance, starts)
        held = read_plainly(dressed)
        return (
            lambda: keep(store.update_many(dressed, stops, attributes, operation, mask)),
            lambda: check_equal(answer[0], model.update_many(held, stops, read_plainly(attributes), operation, mask)),
        )
    if how == 5:
        bits = np.array([chance.randrange(256) for _ in range(chance.choice([0, 1, 8, 64, 187]))], np.uint8)
        words = bits[: len(bits) & ~7].view(np.uint64)
        raw = bits.tobytes()
        dressed = chance.choice([bits, bits[::-1], words, raw, memoryview(raw)[::2], bits.astype(bool)])
        start = chance.randrange(npages + 1)
        held = np.frombuffer(bytes(dressed), np.uint8) if not isinstance(dressed, np.ndarray) else dressed.copy()
        return (
            lambda: keep(store.put_bitmap(start, dressed, 9, operation, mask)),
            lambda: check_equal(answer[0], model.put_bitmap(start, held, 9, operation, mask)),
        )
    if how == 6:
        # A number whose __index__ writes: the call is made with what stands after it, or is refused; the map is sound.
        gfn = chance.randrange(npages)

        def act() -> None:
            store.write(0, npages, 2)
            model.write(0, npages, 2)

        number = Meddling(gfn, act)
        call = chance.choice(
            [lambda: store.write(number, npages, 1), lambda: store.get(number), lambda: store.__setitem__(number, 3)]
        )
        def settle() -> None:
            model[0:npages] = store.to_numpy(0, npages)

        return call, settle
    view = store.snapshot()
    return (lambda: view.put(gfns, attributes)), nothing


def check_equal(mine: Any, theirs: Any) -> None:
    assert np.array_equal(np.asarray(mine), np.asarray(theirs)), (mine, theirs)


# ---- traces ------------------------------------------------------------------------------------------------------

LINES = [
    "set 0x1000 0x2000 0x1 0x0",
    "get 0x1000 0x2000",
    "slot 0 0 0x0 0x100000 0x7f0000000000",
    "vm rfc private=1 phys_bits=46",
    "# a comment",
    "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x80000000 ua=0x7f0000000000 ret=0",
    "kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x4 gpa=0x0 size=0x80000000 ua=0x7f0000000000 guest_memfd=9 "
    "guest_memfd_offset=0x0 ret=0",
    "kvm_convert_memory start 0x1000 size 0x2000 shared_to_private",
    "ioctl(9, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, "
    "memory_size=1048576, userspace_addr=0x7f00}) = 0",
    "ioctl(9, KVM_SET_MEMORY_ATTRIBUTES, {address=0x1000, size=0x1000, "
    "attributes=KVM_MEMORY_ATTRIBUTE_PRIVATE, flags=0}) = 0",
    "qemu-1 [000] 1.0: kvm_vm_set_mem_attributes: start=0x1 end=0x2 attributes=0x8",
    "[pid 12] ioctl(9, KVM_SET_MEMORY_ATTRIBUTES <unfinished ...>",
    "[pid 12] <... ioctl resumed>, {address=0, size=0x1000, attributes=0x8, flags=0}) = -1 EINVAL (Invalid argument)",
]
PIECES = ["0x", "=", "{", "}", "(", ")", "<", ">", ",", " ", "\t", "\x00", "\xff"]
PIECES += ["ret=-40000", "-1", "ioctl(", "kvm_", "Slot#", "9" * 40]


def trace(chance: random.Random) -> int:
    """A trace, or TraceError that names the file."""
    lines = [chance.choice(LINES) for _ in range(chance.randrange(1, 8))]
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(lines))
        line = lines[at]
        where = chance.randrange(len(line) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            line = line[:where] + chance.choice(PIECES) * chance.choice([1, 1, 2, 50]) + line[where:]
        elif kind == 1:
            line = line[:where] + line[where + chance.randrange(1, 8) :]
        elif kind == 2:
            line = line[:where] + chance.choice(LINES)[where:]
        elif kind == 3:
            line = line.replace(chance.choice(["0x1000", "0", "1"]), hex(word(chance)), 1)
        else:
            line = line[:where]
        lines[at] = line
    data = chance.choice(["\n", "\n", "\r\n", ""]).join(lines).encode("latin-1")
    if chance.random() < 0.1:
        data = gzip.compress(data)[: chance.choice([None, -1, 20])]
    with tempfile.TemporaryDirectory(prefix="kvmattr-fuzz-") as folder:
        path = Path(folder, "fuzzed.trace")
        path.write_bytes(data)
        try:
            with read(path) as parsed:
                assert sum(1 for _ in parsed) == parsed.operations
        except TraceError as refused:
            demand(str(path) in str(refused), refused)
    return 1


TARGETS: dict[str, Callable[[random.Random], int]] = {
    "ioctl": ioctl, "arrays": arrays, "trace": trace, "contents": contents}
