from array import array
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from typing import Any, Final, SupportsIndex, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvmattr.notebook import Picture
from kvmattr.profiles import Profile
from kvmattr.run import Run

RUN_DTYPE: Final[np.dtype[np.void]]
DIFF_DTYPE: Final[np.dtype[np.void]]
GFN_LIMIT: Final[int]
C_API: Final[object]

_Progress = Callable[[int, int], object]
_Gfns = list[int] | range | memoryview | array[int] | NDArray[Any]       # and what has __array__, as a Series
_Path = str | bytes | PathLike[str] | PathLike[bytes]

@final
class AttributeMap:
    """One attribute byte for each page of a guest: ``AttributeMap(npages=2**52, default=0)``.

    npages: the number of 4 KiB pages, 0 .. 2^52 (gfns are 0 <= gfn < npages). default: the attributes that every
    page begins with and that ``del m[...]`` brings back, 0..255.

    Ranges are half-open [start, stop) in gfns. An update costs the height of the tree, however many pages it
    names and however fragmented they are. A call that raises has changed nothing; only batches (``put``,
    ``update_many``) may stop between two operations, and tell in the exception's ``done`` how many were
    applied. gfns outside the map are IndexError, bad ranges, attributes and masks ValueError.

    The operations are those of KVM_SET_MEMORY_ATTRIBUTES as the mail of November 2022 proposes it.

    >>> m = AttributeMap(1 << 24)                       # a 64 GiB guest
    >>> m.write(0, 1 << 24, 1)                          # all of it private: did anything change?
    True
    >>> m.or_(0x100, 0x200, 4), m[0xff], m[0x100]
    (True, 1, 5)
    >>> m.run(0x180)
    Run(start=256, stop=512, attributes=5)
    """
    def __new__(cls, npages: SupportsIndex = ..., default: SupportsIndex = 0) -> AttributeMap: ...
    def write(self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, /) -> bool:
        """Give the pages [start, stop) these attributes; True if any page changed.

        Cost: the height of the tree. Raises ValueError for a bad range or attributes outside 0..255. From
        the mail: the WRITE operation.

        >>> m = AttributeMap(1000)
        >>> m.write(10, 20, 3), m.write(10, 20, 3)
        (True, False)
        """
    def or_(self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, /) -> bool:
        """Set these attribute bits on the pages [start, stop); True if any page changed.

        Cost: the height of the tree, also over a fragmented terabyte. Raises ValueError as ``write``. From
        the mail: "support WRITE/OR/AND to allow setting/clearing individual flags".

        >>> m = AttributeMap(1000, default=1)
        >>> m.or_(0, 1000, 8), m[5]
        (True, 9)
        """
    def and_(self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, /) -> bool:
        """Keep only these attribute bits on the pages [start, stop); True if any page changed.

        Cost: the height of the tree. Raises ValueError as ``write``. From the mail: the AND operation.

        >>> m = AttributeMap(1000, default=9)
        >>> m.and_(0, 1000, 0xff & ~8), m[5]
        (True, 1)
        """
    def update(
        self,
        start: SupportsIndex,
        stop: SupportsIndex,
        attributes: SupportsIndex,
        operation: SupportsIndex = 0,
        mask: SupportsIndex = 0xFF,
    ) -> bool:
        """The general update of [start, stop): bits outside ``mask`` never change; True if any page changed.

        operation: ``Operation.WRITE``, ``OR`` or ``AND``. Cost: the height of the tree. Raises ValueError for a
        bad range, attributes or mask outside 0..255, an unknown operation.

        >>> m = AttributeMap(1000, default=0b1100)
        >>> m.update(0, 10, 0b0011, Operation.WRITE, mask=0b0110), bin(m[0])
        (True, '0b1010')
        """
    def update_many(
        self,
        starts: ArrayLike,
        stops: ArrayLike,
        attributes: ArrayLike,
        operation: ArrayLike = 0,
        mask: ArrayLike = 0xFF,
    ) -> int:
        """Many updates in order, in one call without the GIL; the number of those that changed something.

        All five arguments are scalars or arrays and broadcast. Everything is checked first. Cost: as many
        ``update`` calls; up to 32 keep the GIL, as one does. Running out of memory or Ctrl-C stops between two
        operations: those before stand, and the exception's ``done`` counts them.

        >>> m = AttributeMap(1000)
        >>> m.update_many([0, 5, 7], [10, 6, 7], [1, 1, 2])
        1
        """
    def put(
        self, gfns: ArrayLike, attributes: ArrayLike, operation: ArrayLike = 0, mask: ArrayLike = 0xFF
    ) -> int:
        """Update single pages in order, in one call without the GIL; the number of operations that changed one.

        gfns: integers of any dtype (uint64 and int64 are not copied); attributes, operation and mask broadcast. Up to
        32 pages keep the GIL. Raises IndexError for a gfn outside the map, before anything is done; stops as
        ``update_many`` does.

        >>> m = AttributeMap(1000)
        >>> m.put([1, 3, 3], [7, 7, 8]), m.run_count
        (3, 5)
        """
    def put_bitmap(
        self,
        start: SupportsIndex,
        bits: NDArray[np.uint8] | NDArray[np.uint64] | bytes | bytearray | memoryview,
        attributes: SupportsIndex,
        operation: SupportsIndex = 0,
        mask: SupportsIndex = 0xFF,
        npages: SupportsIndex | None = None,
    ) -> int:
        r"""Update the pages whose bit is 1; the number of pages that changed. Without the GIL.

        bits: packed little-endian, bit i of the array is page start + i, as in QEMU's and KVM's dirty logs; a
        uint8 or uint64 array or any buffer of bytes. attributes, operation and mask: one for all, or arrays with a cell
        for each bit, which cost as ``put``. npages: how many bits count, None for all. Cost: blocks with set bits. A
        set bit beyond npages or the map is a ValueError. Stops as ``update_many`` does.

        >>> m = AttributeMap(1000)
        >>> m.put_bitmap(8, b"\x05", 3), m.runs(8, 12)["attributes"].tolist()
        (2, [3, 0, 3, 0])
        """
    def fill(self, attributes: SupportsIndex, /) -> None:
        """Give every page these attributes. Cost: constant, plus freeing what was stored, in later calls.

        >>> m = AttributeMap(1000)
        >>> m.fill(3); m.uniform(0, 1000)
        3
        """
    def clear(self) -> None:
        """Give every page the default again. Cost: as ``fill``."""
    def get(self, gfn: SupportsIndex, /) -> int:
        """The attributes of one page. Cost: the height of the tree. Raises IndexError outside the map.

        >>> AttributeMap(1000, default=5).get(999)
        5
        """
    def take(self, gfns: ArrayLike, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The attributes of many pages as a uint8 array of the shape of ``gfns``, without the GIL.

        gfns: integers of any dtype (uint64 and int64 are not copied). out: a contiguous uint8 array to write to.
        Raises IndexError if any gfn is outside the map.

        >>> m = AttributeMap(1000)
        >>> m[10:20] = 3
        >>> m.take([9, 10, 19, 20])
        array([0, 3, 3, 0], dtype=uint8)
        """
    def to_numpy(
        self, start: SupportsIndex, stop: SupportsIndex, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The attributes of the pages [start, stop) as a uint8 array, without the GIL.

        out: a contiguous uint8 array of that many cells to write to. Cost: what it writes, less than a copy of
        a dense array. Raises ValueError for a bad range or array.

        >>> AttributeMap(1000, default=2).to_numpy(3, 6)
        array([2, 2, 2], dtype=uint8)
        """
    def bitmap(self, start: SupportsIndex, stop: SupportsIndex, mask: SupportsIndex = 0xFF) -> NDArray[np.uint8]:
        """Which pages of [start, stop) have any bit of ``mask``: packed little-endian bits, padding 0.

        ceil((stop - start) / 8) uint8 cells; bit i is page start + i, as in KVM's dirty log. Cost: the blocks of the
        range, without the GIL. Raises ValueError for a bad range or mask.

        >>> m = AttributeMap(1000); m[3:6] = 4
        >>> m.bitmap(0, 10, mask=4)
        array([56,  0], dtype=uint8)
        """
    def uniform(self, start: SupportsIndex, stop: SupportsIndex, /) -> int | None:
        """The one value of the pages [start, stop), or None if they are mixed or the range is empty.

        Cost: the height of the tree, plus what single-page updates left loose. Raises ValueError for a bad range.

        >>> m = AttributeMap(1000); m[10] = 1
        >>> m.uniform(0, 10), m.uniform(0, 11)
        (0, None)
        """
    def all(
        self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, mask: SupportsIndex = 0xFF
    ) -> bool:
        """Whether every page of [start, stop) has ``(page & mask) == attributes``; True for an empty range.

        Cost: the height of the tree where the masked bits do not vary. Semantics: KVM's
        kvm_range_has_memory_attributes (virt/kvm/kvm_main.c). Raises ValueError.

        >>> AttributeMap(1000, default=5).all(0, 1000, 4, mask=4)
        True
        """
    def any(
        self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, mask: SupportsIndex = 0xFF
    ) -> bool:
        """Whether some page of [start, stop) has ``(page & mask) == attributes``; False for an empty range.

        Cost and errors: as ``all``.
        """
    def find(
        self,
        start: SupportsIndex,
        attributes: SupportsIndex,
        *,
        mask: SupportsIndex = 0xFF,
        stop: SupportsIndex | None = None,
    ) -> int:
        """The first gfn in [start, stop) with ``(page & mask) == attributes``, or -1.

        stop: None for the end of the map. Cost: the height of the tree, plus the mixed subtrees that V and F leave
        open on the way. Raises ValueError.

        >>> m = AttributeMap(); m[1 << 51] = 4
        >>> m.find(0, 4) == 1 << 51
        True
        """
    def count(
        self, start: SupportsIndex, stop: SupportsIndex, attributes: SupportsIndex, mask: SupportsIndex = 0xFF
    ) -> int:
        """The number of pages of [start, stop) with ``(page & mask) == attributes``, without the GIL.

        Cost: the nodes and leaves in which the masked bits vary. Raises ValueError.

        >>> m = AttributeMap(); m[0:1 << 40] = 3
        >>> m.count(5, 1 << 52, 1, mask=1) == (1 << 40) - 5
        True
        """
    def values(self, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> NDArray[np.uint8]:
        """The distinct attributes of the pages [start, stop), a sorted uint8 array, without the GIL.

        stop: None for the end of the map. Cost: the nodes and leaves that are mixed. Raises ValueError.

        >>> m = AttributeMap(); m[5] = 9
        >>> m.values()
        array([0, 9], dtype=uint8)
        """
    def run(self, gfn: SupportsIndex, /) -> Run:
        """The run that holds a page, the widest range with its value: a named tuple ``(start, stop, attributes)``.

        Cost: as ``find``, both ways. Raises IndexError outside the map.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> m.run(12)
        Run(start=10, stop=20, attributes=3)
        """
    def runs(self, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> NDArray[np.void]:
        """The runs of [start, stop), clipped to it, as a packed array ``start <u8, stop <u8, attributes u1``.

        Runs of attributes 0 are included, so the runs tile the range. stop: None for the end of the map. Cost: what
        it writes, without the GIL. Raises ValueError for a bad range.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> m.runs().tolist()
        [(0, 10, 0), (10, 20, 3), (20, 1000, 0)]
        """
    def iter_runs(
        self, start: SupportsIndex = 0, stop: SupportsIndex | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """The runs of [start, stop) one by one as ``(start, stop, attributes)``, in bounded memory.

        They are those of the moment of the call: it holds a snapshot. Raises ValueError for a bad range.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> next(m.iter_runs(5))
        (5, 10, 0)
        """
    @property
    def run_count(self) -> int:
        """The number of runs, which is the number of memslots that a VMM without attributes would need.

        Cost: nodes and leaves, never pages; then kept until ``version`` moves.

        >>> m = AttributeMap(); m[10:20] = 3
        >>> m.run_count
        3
        """
    def plot(
        self, start: SupportsIndex = 0, stop: SupportsIndex | None = None, *, abi: str | Profile | None = None
    ) -> Picture:
        """Draw the pages [start, stop), each kind of page in a panel: a `kvmattr.notebook.Picture`.

        A notebook shows it by itself; its ``save(path)`` writes PNG, SVG or PDF. stop: None for where what is set ends.
        abi: what the bits mean, a profile or its name, ``rfc`` by default. Cost: by the number of runs. Raises
        ImportError without matplotlib, ValueError for a bad range.
        """
    def to_frame(self, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> Any:
        """The runs of [start, stop) as a pandas DataFrame: start, stop and pages (u64) and attributes (u8) of each.

        stop: None for the end of the map. Cost: what it writes. Raises ImportError without pandas, ValueError for a bad
        range.
        """
    def level(self, gfn: SupportsIndex, /) -> int:
        """The highest level whose naturally aligned block around a page is uniform and lies in the map.

        1 is a 4 KiB page, 2 a 2 MiB block, 3 is 1 GiB, ... as in KVM's page tables; at most 6 in 2^52 pages. Cost: as
        ``run``. Raises IndexError outside the map.

        >>> m = AttributeMap(); m[512] = 1
        >>> m.level(0), m.level(513), m.level(1 << 18), m.level(1 << 51)
        (2, 1, 3, 6)
        """
    def copy(self) -> AttributeMap:
        """A map of its own with the same content, writable. Cost: constant; nodes are shared until changed.

        >>> m = AttributeMap(1000); c = m.copy(); c[5] = 1
        >>> m[5], c[5]
        (0, 1)
        """
    def snapshot(self) -> AttributeMap:
        """The present state as a read-only map. Cost: constant. Writing to it is a TypeError.

        >>> m = AttributeMap(1000); before = m.snapshot(); m[5] = 1
        >>> before[5], m == before
        (0, False)
        """
    def _readonly_view(self) -> AttributeMap:
        """A read-only map that always shows this map's current state (the VM's ``attributes``)."""
    def restore(self, other: AttributeMap, /) -> None:
        """Take over the content of another map of as many pages; ``version`` rises.

        Cost: constant plus freeing what differs if ``other`` is a copy or snapshot of this map's family, else a copy
        of its runs. Raises TypeError if it is no AttributeMap, ValueError for another number of pages.

        >>> m = AttributeMap(1000); before = m.snapshot(); m[5] = 1
        >>> m.restore(before); m[5]
        0
        """
    def diff(
        self, other: AttributeMap, start: SupportsIndex = 0, stop: SupportsIndex | None = None
    ) -> NDArray[np.void]:
        """Where this map differs from another of as many pages, as runs ``start, stop, old, new``.

        A packed array ``start <u8, stop <u8, old u1, new u1``: old is ``other``'s value, new this map's. Subtrees that
        the two share are passed over, so between a map and its snapshot the cost is what differs. Without the
        GIL. Raises TypeError and ValueError as ``restore``, ValueError for a bad range.

        >>> m = AttributeMap(1000); before = m.snapshot(); m[10:20] = 3
        >>> m.diff(before).tolist()
        [(10, 20, 0, 3)]
        """
    @classmethod
    def from_runs(
        cls,
        runs: NDArray[np.void] | Iterable[tuple[int, int, int]],
        npages: SupportsIndex | None = None,
        default: SupportsIndex = 0,
    ) -> AttributeMap:
        """A map made of runs: an array as of ``runs()``, a DataFrame as of ``to_frame()``, or rows of three.

        A row is (start, stop, attributes). npages: None for the largest stop. Pages that no run names have the
        default; of runs that overlap the later one counts. Raises ValueError for a bad run.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> AttributeMap.from_runs(m.runs()) == m
        True
        """
    @classmethod
    def from_numpy(cls, attributes: ArrayLike, default: SupportsIndex = 0) -> AttributeMap:
        """A map of as many pages as a 1-d array of attributes has cells, with these attributes.

        >>> AttributeMap.from_numpy(np.array([1, 1, 2], np.uint8)).run_count
        2
        """
    def to_bytes(self) -> bytes:
        """The map as bytes: versioned, checksummed, of no machine in particular; see ``from_bytes``.

        Cost: runs and mixed blocks, without the GIL; a fully fragmented 64 GiB guest takes 2.2 MB.

        >>> m = AttributeMap(1000); m[10:20] = 3
        >>> AttributeMap.from_bytes(m.to_bytes()) == m
        True
        """
    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, /) -> AttributeMap:
        """The map that ``to_bytes`` wrote. data: bytes or any buffer.

        Raises ValueError, telling what is wrong, for anything that is damaged, cut short, or of another format.
        """
    def save(self, path: _Path, progress: _Progress | None = None) -> None:
        """Write the map to a file, at once and for good: after a crash there is the old file or the new one.

        path: str, bytes or path-like. Links are followed; a file that is there keeps its mode and owner; a device, a
        FIFO or a descriptor's name (/dev/fd/N) is written into. A crash may leave a file ``.kvmattr-...`` beside the
        target, which hinders nothing and may be deleted. progress: called as ``progress(done, total)`` with bytes.
        Raises OSError with the path, as the file system does, which leaves the old file as it was; PermissionError
        if its owner cannot be kept. Other names of the same file (hard links) keep the old content.
        """
    @classmethod
    def load(cls, path: _Path, progress: _Progress | None = None) -> AttributeMap:
        """The map that ``save`` wrote. path, progress: as in ``save``.

        The header is checked before the rest is read. Raises OSError, and ValueError as ``from_bytes``.
        """
    @property
    def default(self) -> int:
        """The attributes that every page began with and that ``del m[...]`` brings back."""
    @property
    def version(self) -> int:
        """A number that rises with every effective change and never goes back.

        It rises after the last page of the change, so whoever reads it before the pages can trust what he cached
        for as long as it stays.
        """
    @property
    def nbytes(self) -> int:
        """Bytes of live nodes and leaves, each once for the whole family, plus the map itself."""
    def stats(self) -> dict[str, Any]:
        """What the map's family holds and has done, as a dict of ints (``kernels`` a str).

        The present state: bytes, slack (resident bytes of the arena that hold nothing live), runs (of this map),
        height, nodes, the leaves with fields of 1, 2, 4 and 8 bits a page (bitmap_leaves, two_bit_leaves,
        four_bit_leaves, byte_leaves), those that are a line of few runs (run_lines), and the run lists in place of
        nodes (run_lists). Since the family began: allocations, frees, copies (of nodes, on write) and conversions (of
        leaves that no other map shares, to another width or to or from a line). The counting build
        (KVMATTR_BUILD=counting) has nodes_visited and pages_compared too; what stats() itself looks at is not in
        them.

        maps is how many there are in the family: this one, its copies and its snapshots. calls is how often they were
        called, from Python, C and Cython, and update_calls, update_pages, get_calls, put_calls, put_pages, take_calls,
        runs_calls, runs_runs, snapshot_calls, ... how often in which way and about how many pages, runs or ranges.
        These are modulo 2^64; what stats, nbytes, version and validate() are asked is not in them. Calls from C and
        Cython are counted from the first stats() of the process on, of whichever map: what two of them differ by is
        exact.

        >>> AttributeMap(1000).stats()["nodes"]
        0
        """
    def validate(self) -> None:
        """Compute every invariant of the whole family anew; AssertionError names the first that is broken.

        Cost: everything that the family holds. For tests and for whoever suspects memory corruption.
        """
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: int | np.integer[Any], /) -> int: ...
    @overload
    def __getitem__(self, key: slice | _Gfns, /) -> NDArray[np.uint8]: ...
    def __setitem__(self, key: SupportsIndex | slice | _Gfns, value: ArrayLike, /) -> None: ...
    def __delitem__(self, key: SupportsIndex | slice | _Gfns, /) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __copy__(self) -> AttributeMap: ...
    def __deepcopy__(self, memo: object) -> AttributeMap: ...
    __array_ufunc__: None
    __hash__: None  # type: ignore[assignment]
    __iter__: None
    __reversed__: None
    __contains__: None

def iterate_runs(snapshot: AttributeMap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The generator behind iter_runs: a few thousand runs at a time."""
def rebuild(data: bytes | bytearray | memoryview, frozen: bool) -> AttributeMap:
    """Unpickle: the map that was pickled, read-only if it was."""
