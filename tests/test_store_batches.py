"""update_many, put, put_bitmap: in order, each argument broadcast, counted operation by operation."""

import numpy as np
import pytest

from kvmattr import AttributeMap, Operation


def test_update_many_applies_in_order(Map):
    m = Map(2000)
    changed = m.update_many(np.array([0, 500, 510, 0]), np.array([1000, 520, 515, 0]), np.array([1, 2, 3, 9]))
    assert changed == 3
    assert type(changed) is int
    assert m.runs().tolist() == [
        (0, 500, 1),
        (500, 510, 2),
        (510, 515, 3),
        (515, 520, 2),
        (520, 1000, 1),
        (1000, 2000, 0),
    ]


def test_all_five_arguments_broadcast(Map):
    m = Map(1000, 0xF0)
    starts = np.array([0, 100, 200])
    operations = np.array([Operation.WRITE, Operation.OR, Operation.AND], dtype=np.uint8)
    assert m.update_many(starts, starts + 50, 0x0F, operations, np.array([0xFF, 0x03, 0x30])) == 3
    assert [m.get(int(start)) for start in starts] == [0x0F, 0xF3, 0xC0]
    m.clear()
    assert m.update_many(0, np.array([10, 20, 30]), 7) == 3
    assert m.run(0) == (0, 30, 7)
    assert m.update_many(0, 30, np.array([7, 8, 9]), operation=Operation.WRITE, mask=0xFF) == 2
    assert m.run(0) == (0, 30, 9)
    assert m.update_many(5, 6, 1) == 1
    assert m.get(5) == 1


def test_update_many_counts_operations_that_changed_something(Map):
    m = Map(1000)
    version = m.version
    assert m.update_many(np.array([0, 10, 20]), np.array([0, 10, 30]), 0) == 0
    assert m.update_many(np.empty(0, np.uint64), np.empty(0, np.uint64), 1) == 0
    assert m.version == version
    assert m.update_many(np.array([0, 0, 5]), np.array([10, 10, 6]), np.array([1, 1, 2])) == 2
    assert m.version > version


def test_put_is_in_order_and_counts_changes(Map):
    m = Map(2000)
    gfns = np.array([5, 1999, 5, 5, 512, 5], dtype=np.uint64)
    assert m.put(gfns, np.array([1, 2, 1, 3, 0, 1], dtype=np.uint8)) == 4
    assert m.get(5) == 1
    assert m.get(1999) == 2
    version = m.version
    assert m.put(gfns, np.array([1, 2, 1, 1, 0, 1], dtype=np.uint8)) == 0
    assert m.put(np.empty(0, dtype=np.int64), 1) == 0
    assert m.version == version
    m.validate()


def test_put_with_operations_and_masks(Map):
    m = Map(1024, 0xAA)
    gfns = np.array([0, 1, 2, 3, 511, 512, 513])
    assert m.put(gfns, 0x0F, Operation.OR) == 7
    assert m.take(gfns).tolist() == [0xAF] * 7
    assert m.put(gfns, 0x00, operation=Operation.AND, mask=0xA0) == 7
    assert m.take(gfns).tolist() == [0x0F] * 7
    assert (
        m.put(
            gfns, np.array([1, 2, 3, 4, 5, 6, 7]), np.array([0, 1, 2, 0, 1, 2, 0]), np.array([0xFF] * 6 + [0])
        )
        == 4
    )
    assert m.take(gfns).tolist() == [1, 0x0F, 3, 4, 0x0F, 6, 0x0F]
    m.put(5, np.array([1, 2, 4]), Operation.OR)
    assert m.get(5) == 0xAF
    m.validate()


@pytest.mark.parametrize("values", [[1], [0, 1], [1, 2, 4], list(range(200))], ids=len)
def test_puts_build_and_undo_every_kind_of_block(Map, values):
    """Scattered pages one after another through a block, then back again: it ends uniform."""
    n = 3 * 512
    random = np.random.default_rng(len(values))
    order = random.permutation(n)
    pages = random.choice(np.array(values, dtype=np.uint8), n)
    m = Map(n)
    assert m.put(order, pages[order]) == np.count_nonzero(pages)
    m.validate()
    assert np.array_equal(m.to_numpy(0, n), pages)
    again = random.permutation(n)
    assert m.put(again, 0) == np.count_nonzero(pages)
    m.validate()
    assert m.uniform(0, n) == 0
    assert m.run_count == 1
    assert m.level(0) == 2


def test_put_finds_pages_again_when_their_leaves_are_moved_meanwhile(Map):
    gib = 1 << 18
    m = Map(3 * gib)
    dense = np.zeros(3 * gib, np.uint8)
    # A ninth of the leaves stays, spread over all slabs, so that these are emptied after the others were dropped: a
    # node after every update, the last one's, which has nearly all of them, after the first pages of the batch.
    kept = 2 * gib + 512 * np.arange(128) + 7
    dropped = np.concatenate([first * gib + 512 * np.arange(1, 509) + 9 for first in (0, 1)])
    leaves = np.concatenate([[5, gib + 5, kept[127]], np.c_[kept[:127], dropped.reshape(127, 8)].ravel()])
    m.put(leaves, 1)
    dense[leaves] = 1
    for first in (0, gib):
        m.write(first + 512, first + gib, 0)
        dense[first + 512 : first + gib] = 0
    gfns = np.c_[kept + 1, 512 * np.arange(1, 129) + 5].ravel()
    m.put(gfns, 1)
    dense[gfns] = 1
    m.validate()
    assert (m.to_numpy(0, 3 * gib) == dense).all()


def test_put_finds_pages_again_when_a_leaf_is_copied_that_only_a_dead_node_shares(Map):
    """An array written to another block leaves the old node to be taken apart later: its leaves count twice."""
    m = Map(1 << 18)
    block = np.arange(512).astype(np.uint8) % 32
    for at in range(3, 512, 7):
        m[at * 512:(at + 1) * 512] = block
    for at in range(3, 512, 7):
        m[512:1024] = block % (at % 30 + 1)
        gfns = np.arange(at * 512 + 10, at * 512 + 13, dtype=np.uint64)
        assert m.put(gfns, np.array([0x40, 3, 9], np.uint8)) == 3       # the first has a bit that did not vary there
        assert m.take(gfns).tolist() == [0x40, 3, 9]
    m.validate()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64, ">u8"])
def test_put_takes_any_integer_type_and_stride(Map, dtype):
    m = Map(128)
    gfns = np.arange(0, 100).astype(dtype)
    assert m.put(gfns[::-7], np.arange(1, 16).astype(dtype)) == 15
    assert m.take(np.arange(99, 0, -7)).tolist() == list(range(1, 16))


def test_put_bitmap_sets_the_pages_whose_bit_is_one(Map):
    m = Map(3000)
    wanted = np.random.default_rng(2).integers(0, 2, 1600).astype(np.uint8)
    packed = np.packbits(wanted, bitorder="little")
    assert m.put_bitmap(777, packed, 5) == wanted.sum()
    assert np.array_equal(m.to_numpy(777, 777 + 1600), wanted * 5)
    assert m.count(0, 3000, 5) == wanted.sum()
    version = m.version
    assert m.put_bitmap(777, packed, 5) == 0
    assert m.version == version
    assert m.put_bitmap(777, packed, 2, Operation.OR) == wanted.sum()
    assert m.put_bitmap(777, packed, 0, operation=Operation.AND, mask=4) == wanted.sum()
    assert np.array_equal(m.to_numpy(777, 777 + 1600), wanted * 3)
    m.validate()


@pytest.mark.parametrize("start", [0, 1, 7, 63, 64, 65, 511, 512])
def test_put_bitmap_takes_bytes_and_words(Map, start):
    """QEMU and KVM keep dirty logs as little-endian 64-bit words; byte by byte they are the same bits."""
    words = np.array([0x8000000000000001, 0, 0xFFFFFFFFFFFFFFFF, 0xAAAAAAAAAAAAAAAA], dtype="<u8")
    by_words, by_bytes = Map(1024), Map(1024)
    assert by_words.put_bitmap(start, words, 1) == by_bytes.put_bitmap(start, words.view(np.uint8), 1) == 98
    assert by_words == by_bytes
    assert by_words.get(start) == by_words.get(start + 63) == 1
    assert by_words.get(start + 1) == by_words.get(start + 64) == 0
    by_words.validate()


def test_put_bitmap_and_bitmap_are_inverse(Map):
    m, twin = Map(5000), Map(5000)
    m.put(np.random.default_rng(3).integers(0, 5000, 1500), 1)
    packed = m.bitmap(0, 5000)
    assert twin.put_bitmap(0, np.frombuffer(bytes(packed), np.uint8), 1, npages=5000) == m.count(0, 5000, 1)
    assert twin == m


def test_put_bitmap_refuses_set_bits_that_have_no_page(Map):
    m = Map(1000)
    version = m.version
    for start, bits, npages in ((993, [0xFF], None), (0, [0xFF], 7), (1000, [1], None), (996, [0xFF], 8)):
        with pytest.raises(ValueError, match=r"\d"):
            m.put_bitmap(start, np.array(bits, dtype=np.uint8), 1, npages=npages)
    assert m.version == version
    assert m.run_count == 1
    assert m.put_bitmap(992, np.array([0xFF], dtype=np.uint8), 1) == 8
    assert m.put_bitmap(0, np.array([0x7F], dtype=np.uint8), 1, npages=7) == 7
    assert m.put_bitmap(1000, np.array([0], dtype=np.uint8), 1) == 0
    assert m.put_bitmap(996, np.array([0x0F], dtype=np.uint8), 1) == 0


def test_array_index_forms_are_put_and_take(Map):
    m = Map(1000)
    gfns = np.array([3, 1, 999])
    m[gfns] = np.array([5, 6, 7])
    assert m[gfns].tolist() == [5, 6, 7]
    m[gfns] = 8
    assert m[gfns].tolist() == [8, 8, 8]
    m[np.array([2, 2])] = np.array([1, 2])
    assert m.get(2) == 2


def test_put_bitmap_raises_the_version_however_many_bits_a_block_has(Map):
    """One bit, a few, many, all: each way of writing a block tells that it changed."""
    for bits in (1, 3, 6, 7, 8, 100, 511, 512):
        m = Map(2048)
        assert m.run_count == 1
        version = m.version
        assert m.put_bitmap(512, np.packbits(np.arange(512) < bits, bitorder="little"), 1) == bits
        assert m.version > version
        assert m.run_count == 3
        m.validate()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ranges", [False, True])
def test_pages_of_few_run_lists_in_one_batch(Map, seed, ranges):
    """First conversions and back: lists are opened, overflow, become uniform and close, beside a snapshot or alone."""
    rng = np.random.default_rng(seed)
    pages = [1 << 18, 1 << 24, 1 << 26][seed % 3]
    m, a = Map(pages), np.zeros(pages, np.uint8)
    # Few places, so that pages come again and runs join; edges of lists and of the map among them.
    places = np.concatenate([rng.integers(0, pages, 1500), np.arange(0, pages, 1 << 18)[:20],
                             rng.integers(0, pages, 1) + np.arange(-40, 40), [pages - 1, 1, 2, 3]])
    places = np.unique(places.clip(0, pages - 1))
    seen = []
    for most, operated in ((2, False), (1, False), (4, False), (2, True), (1, False), (3, True)):
        gfns = rng.choice(places, 1800).astype(np.uint64)
        values = rng.integers(0, most, len(gfns)).astype(np.uint8)
        operations = (rng.integers(0, 3, len(gfns)) * operated).astype(np.uint8)
        before, changed = m.version, 0
        if seed % 2 or most == 4:
            seen.append((m.snapshot(), a[places]))
        for gfn, value, operation in zip(gfns.tolist(), values.tolist(), operations.tolist(), strict=True):
            new = (value, a[gfn] | value, a[gfn] & value)[operation]
            changed += int(new != a[gfn])
            a[gfn] = new
        if ranges:
            assert m.update_many(gfns, gfns + np.uint64(1), values, operations) == changed
        else:
            assert m.put(gfns, values, operations) == changed
        assert m.version > before
        m.validate()
        assert np.array_equal(m.take(places), a[places])
        assert m.count(0, pages, 0) == pages - np.count_nonzero(a[places])
    for snapshot, then in seen:
        assert np.array_equal(snapshot.take(places), then)


def test_a_list_is_opened_and_stored_once():
    """Of 1,000 conversions in one run list its record is made a few times, not a thousand."""
    m = AttributeMap(1 << 18)
    gfns = np.arange(10, 50, 2, dtype=np.uint64).repeat(50)
    values = np.tile(np.arange(50, dtype=np.uint8) & 1, 20)
    m.write(100_000, 100_001, 1)
    before = m.stats()["leaf_allocations"]
    assert m.put(gfns, values) == len(gfns) - 20
    assert m.stats()["leaf_allocations"] - before <= 3
    assert m.count(0, 1 << 18, 1) == 21


FAMILIES = ("alone", "snapshot kept", "half of it copied", "snapshot dropped", "two snapshots, one dropped", "restored",
            "assigned", "assigned, alone")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_that_was_located_is_written_where_it_lies_by_then(family):
    """A group of pages is located before any of them is written. What one of them does to the leaf of another, or to
    a node above it (a copy, another width, a line, a uniform block), must not be missed, whoever shares it."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        pages = [1 << 19, 1 << 11][seed % 4 == 3]
        m, a = AttributeMap(pages), np.zeros(pages, np.uint8)
        blocks = rng.choice(pages // 512, min(pages // 512, 5), replace=False)
        for kind, block in enumerate(blocks):
            cells = a[block * 512:(block + 1) * 512]
            if kind == 0:
                cells[:] = rng.integers(0, 2, 512)
            elif kind == 1:
                cells[:] = rng.integers(0, 16, 512)
            elif kind == 2:                             # a run line
                cells[100:200], cells[300:301] = 1, 2
            elif kind == 3:                             # one page keeps it from being uniform
                cells[rng.integers(0, 512)] = 1
        m[:] = a
        seen = []
        if "alone" not in family:
            seen.append((m.snapshot(), a.copy()))
        if family.startswith("two"):
            m.put(blocks[:2] * 512 + 7, 1)
            a[blocks[:2] * 512 + 7] = 1
            seen.append((m.snapshot(), a.copy()))
        if family == "half of it copied":
            m.put(blocks[:3] * 512 + 5, 1)
            a[blocks[:3] * 512 + 5] = 1
        elif family == "restored":
            m.fill(3)
            m.restore(seen[0][0])
        elif "assigned" in family:                      # the old nodes are dead, and not taken apart yet
            stop = 512 * min(int(blocks.min()), pages // 1024) + 100
            a[:stop] = 1 - a[:stop].clip(0, 1)
            m[0:stop] = a[:stop]
        if "dropped" in family:
            del seen[0]
        for most in (2, 2, 3, 16, 1, 2, 256, 2):
            gfns = rng.choice(blocks, 400) * 512 + rng.integers(0, 512, 400)
            if most == 1:                               # blocks become uniform in the midst of a group
                gfns = np.concatenate([np.arange(512) + 512 * block for block in blocks[:2]])
            values = rng.integers(0, most, len(gfns)).astype(np.uint8)
            m.put(gfns, values)
            a[gfns] = values
            assert np.array_equal(m.to_numpy(0, pages), a), (seed, most)
        m.validate()
        for snapshot, then in seen:
            assert np.array_equal(snapshot.to_numpy(0, pages), then)
