"""A test for each formula of the store that could be wrong and unseen: tests/mutants.py breaks them one by one."""

from __future__ import annotations

import os

import numpy as np
import pytest

from kvmattr import AttributeMap

GIB = 1 << 18
BLOCK = 512


def fragmented(pages: int, values: list[int], seed: int = 1) -> tuple[AttributeMap, np.ndarray]:
    dense = np.random.default_rng(seed).choice(np.array(values, np.uint8), pages)
    return AttributeMap.from_numpy(dense), dense


def same(m: AttributeMap, dense: np.ndarray) -> None:
    m.validate()
    assert np.array_equal(m.to_numpy(0, len(dense)), dense)


@pytest.mark.parametrize("span", [BLOCK, 4 * GIB], ids=["run line", "run list"])
def test_a_run_that_gets_its_neighbours_value_joins_it(span: int) -> None:
    """In a line and in a list, at both ends of a run, and where it was the only run between two."""
    m = AttributeMap(16 * GIB)
    step = span // 8
    for i in range(8):
        m.write(i * step, (i + 1) * step, (1, 2, 4, 8)[i % 4])
    runs = m.run_count
    assert m.write(step, step + 1, 1)                   # the run before grows
    m.validate()
    assert m.write(3 * step - 1, 3 * step, 8)           # the run after grows
    m.validate()
    assert m.run_count == runs
    assert m.write(4 * step, 5 * step, 8)               # as the run before: one run less
    m.validate()
    assert m.run_count == runs - 1
    assert m.write(6 * step, 7 * step, 8)               # as the run after: one more
    m.validate()
    assert m.run_count == runs - 2
    assert m.run(3 * step).stop == 5 * step
    assert m.run(7 * step - 1).start == 6 * step


def test_a_value_that_goes_takes_its_bits_along() -> None:
    """V of a run list is exact: a bit that one run alone had varies no longer without it."""
    m = AttributeMap(16 * GIB)
    for i, value in enumerate((1, 2, 0x80, 2, 1)):
        m.write((i + 1) * GIB // 4, (i + 2) * GIB // 4, value)
    m.write(3 * GIB // 4, GIB, 2)
    m.validate()
    assert not m.any(0, 16 * GIB, 0x80, 0x80)


def test_the_last_run_of_a_list_ends_where_the_list_ends() -> None:
    m = AttributeMap(16 * GIB)
    m.write(5, 6, 1)
    m.write(GIB - 1, GIB, 3)
    assert m.write(GIB - 3, GIB - 1, 3)
    m.validate()
    assert m.run(GIB - 2) == (GIB - 3, GIB, 3)


def test_an_array_in_a_list_leaves_what_follows_it() -> None:
    m = AttributeMap(4 * GIB, default=9)
    m.write(100, 3000, 5)
    m[200:210] = np.array([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], np.uint8)
    m.validate()
    assert m.to_numpy(198, 213).tolist() == [5, 5, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 5, 5, 5]


@pytest.mark.parametrize("many", [False, True], ids=["one by one", "in a batch"])
@pytest.mark.parametrize("pages", [BLOCK, BLOCK + 1, GIB, 3 * GIB])
def test_what_a_snapshot_shares_is_copied_first(pages: int, many: bool) -> None:
    """The root alone is shared, then the nodes and leaves below the copied root."""
    m, dense = fragmented(pages, [0, 1, 4])
    rng = np.random.default_rng(2)
    for _ in range(3):
        before, kept = m.snapshot(), dense.copy()
        gfns = rng.integers(0, pages, 200).astype(np.uint64)
        values = rng.choice(np.array([0, 1, 4], np.uint8), 200)
        if many:
            m.put(gfns, values)
        else:
            for gfn, value in zip(gfns.tolist(), values.tolist(), strict=True):
                m.write(gfn, gfn + 1, value)
        for gfn, value in zip(gfns.tolist(), values.tolist(), strict=True):
            dense[gfn] = value
        same(before, kept)
        same(m, dense)


@pytest.mark.parametrize("many", [False, True], ids=["one by one", "in a batch"])
@pytest.mark.parametrize("pages", [20, 1000], ids=["a list at the root", "lists below a node"])
def test_a_list_that_a_snapshot_shares_is_copied_first(pages: int, many: bool) -> None:
    rng = np.random.default_rng(3)
    m = AttributeMap(64 * GIB)
    written = rng.integers(0, 64 * GIB, pages).astype(np.uint64)
    m.put(written, 1)
    for _ in range(3):
        before, kept = m.snapshot(), m.runs().tolist()
        gfns = np.concatenate([rng.choice(written, 20), rng.integers(0, 64 * GIB, 20).astype(np.uint64)])
        values = rng.integers(0, 3, 40).astype(np.uint8)
        if many:
            m.put(np.tile(gfns, 3), np.tile(values, 3))
        else:
            for gfn, value in zip(gfns.tolist(), values.tolist(), strict=True):
                m.write(gfn, gfn + 1, value)
        m.validate()
        before.validate()
        assert before.runs().tolist() == kept
        last = dict(zip(gfns.tolist(), values.tolist(), strict=True))
        assert m.take(np.array(list(last), np.uint64)).tolist() == list(last.values())


def test_pages_that_share_the_place_of_a_list_or_are_known_above_it_beside_open_lists() -> None:
    """80 lists below a node, which share 64 places in a batch; the first page of a GiB and the map's last."""
    rng = np.random.default_rng(3)
    m = AttributeMap(80 * GIB)
    inside = (np.arange(80)[:, None] * GIB + rng.integers(1, GIB - 1, (80, 4))).ravel()
    m.put(inside, 1)
    gfns = np.concatenate([inside, np.arange(80) * GIB, np.full(40, 80 * GIB - 1)])
    for turn in range(4):
        order = rng.choice(gfns, 3000)
        order[:2] = inside[-1], 80 * GIB - 1            # the map's last page lies in a list that is open
        values = rng.choice(np.array([0, 1, 6], np.uint8), 3000)
        values[order == order[1]] = turn % 2
        m.put(order, values)
        m.validate()
        last = dict(zip(order.tolist(), values.tolist(), strict=True))
        assert m.take(list(last)).tolist() == list(last.values())


@pytest.mark.parametrize("value", [2, 4])
def test_a_bit_that_comes_to_a_list_comes_to_what_is_above_it(value: int) -> None:
    m = AttributeMap(64 * GIB)
    m.put(np.random.default_rng(5).integers(0, 64 * GIB, 600).astype(np.uint64), 1)
    page = 9 * GIB + 12345
    for new in (value, 0, value):
        m.write(page, page + 1, new)
        m.validate()
        assert m.any(0, 64 * GIB, value, value) == (new != 0)
        assert m.find(0, new, mask=value) == (page if new else 0)


def test_a_node_that_still_shares_is_found_below_one_that_is_ours() -> None:
    """All that a batch looks at in one GiB has become ours, the leaves of another GiB have not."""
    m, dense = fragmented(2 * GIB, [0, 1])
    before, kept = m.snapshot(), dense.copy()
    first = np.arange(0, GIB, BLOCK, dtype=np.uint64) + np.uint64(7)
    m.write(GIB + 9, GIB + 10, 1 - int(dense[GIB + 9]))     # copies the second node and one of its leaves
    dense[GIB + 9] ^= 1
    for turn in range(12):                              # every leaf of the first, and then enough looks at them
        gfns = first + np.uint64(turn)
        values = 1 - dense[gfns.astype(np.int64)]
        m.put(gfns, values)
        dense[gfns.astype(np.int64)] = values
    gfns = np.arange(GIB + 20 * BLOCK, GIB + 30 * BLOCK, dtype=np.uint64)
    values = 1 - dense[GIB + 20 * BLOCK:GIB + 30 * BLOCK]
    m.put(gfns, values)
    dense[GIB + 20 * BLOCK:GIB + 30 * BLOCK] = values
    same(before, kept)
    same(m, dense)


@pytest.mark.parametrize("value", [2, 3, 5, 8, 0xF0])
def test_one_page_whose_value_fits_no_field_of_its_leaf(value: int) -> None:
    m, dense = fragmented(4 * BLOCK, [0, 1])
    assert m.write(700, 701, value)
    dense[700] = value
    same(m, dense)


def test_a_page_that_would_be_alone_if_its_leaf_had_one_bit_a_page() -> None:
    """Its fields have two: the first half of the leaf has one bit set, that of page 201 in a leaf of one bit."""
    dense = np.zeros(4 * BLOCK, np.uint8)
    dense[100] = 2
    dense[256:BLOCK] = np.arange(256) % 4
    m = AttributeMap.from_numpy(dense)
    assert m.write(201, 202, 4)
    dense[201] = 4
    same(m, dense)


@pytest.mark.parametrize("value", [1, 2])
def test_one_page_whose_value_has_one_of_two_bits_that_vary_together(value: int) -> None:
    """Of the values 0 and 3 a field has one bit, which stands for both."""
    m, dense = fragmented(4 * BLOCK, [0, 3])
    assert m.write(700, 701, value)
    dense[700] = value
    same(m, dense)


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize(("method", "operand"), [("or_", 4), ("and_", 4), ("and_", 1), ("or_", 1)])
def test_one_page_in_fields_stored_as_what_differs_from_the_first(first: int, method: str, operand: int) -> None:
    m, dense = fragmented(4 * BLOCK, [0, 1, 4, 5])
    dense[BLOCK] = first
    m[0:4 * BLOCK] = dense
    for page in range(BLOCK + 1, BLOCK + 9):
        getattr(m, method)(page, page + 1, operand)
        dense[page] = dense[page] | operand if method == "or_" else dense[page] & operand
    same(m, dense)


def test_one_page_of_which_an_operation_hid_bits_is_not_changed_by_its_own_value() -> None:
    """An AND over a part of a leaf leaves bits in its fields that its entry leaves out."""
    m, dense = fragmented(4 * BLOCK, [0, 1, 2, 3])
    m.and_(0, BLOCK, 2)
    m.and_(BLOCK + 1, 2 * BLOCK, 2)
    dense[:BLOCK] &= 2
    dense[BLOCK + 1:2 * BLOCK] &= 2
    for page in range(2 * BLOCK):
        version = m.version
        assert not m.write(page, page + 1, int(dense[page])), page
        assert m.version == version
    same(m, dense)


def test_what_a_restored_state_replaced_is_known_to_be_tidied() -> None:
    m = AttributeMap(3 * GIB)
    empty = m.snapshot()
    m.put(np.arange(0, 3 * GIB, 2), 1)
    m.restore(empty)
    m.validate()


def test_one_page_that_has_a_bit_again() -> None:
    """Two bits a page: a bit that no page has any more fits the field, but does not vary until one has it again."""
    m, dense = fragmented(4 * BLOCK, [0, 1])
    for value in (2, 0, 2):
        m.write(700, 701, value)
        dense[700] = value
        same(m, dense)
        assert m.any(0, 4 * BLOCK, 2, 2) == (value == 2)


def test_one_page_that_is_the_first_to_have_a_bit() -> None:
    """Four bits a page: the value fits the field, but no page below the entries above varied in that bit yet."""
    m, dense = fragmented(3 * GIB, [0, 1, 2])
    m.validate()
    for page, value in ((GIB + 700, 8), (GIB + 701, 0), (GIB + 1300, 4)):
        m.write(page, page + 1, value)
        dense[page] = value
        assert m.all(page, page + 1, value)
        assert m.any(0, 3 * GIB, value)
    same(m, dense)


def test_a_second_value_in_a_uniform_block_is_known_above() -> None:
    m, dense = fragmented(2 * GIB, [0, 1])
    m.write(40 * BLOCK, 60 * BLOCK, 0)
    dense[40 * BLOCK:60 * BLOCK] = 0
    assert m.write(50 * BLOCK + 3, 50 * BLOCK + 4, 0x40)
    dense[50 * BLOCK + 3] = 0x40
    assert m.any(0, 2 * GIB, 0x40, 0x40)
    same(m, dense)


def test_operations_on_the_way_down_are_done_in_their_order() -> None:
    m, dense = fragmented(3 * GIB, [0, 1, 2, 3])
    for lo, hi, mask in ((GIB, 2 * GIB, 2), (0, 3 * GIB, 1), (0, 3 * GIB, 2), (GIB, 2 * GIB, 1)):
        m.or_(lo, hi, mask)
        m.update(lo, hi, mask << 2, 1)
        dense[lo:hi] |= mask | mask << 2
        m.and_(0, 3 * GIB, 0xFF & ~mask)
        dense &= 0xFF & ~mask
        for gfn in (5, GIB - 1, GIB, GIB + 777, 2 * GIB - 1, 2 * GIB, 3 * GIB - 1):
            assert m.get(gfn) == dense[gfn]
    m.update(0, 3 * GIB, 0xFF, 0, 0x0F)
    dense = dense & 0xF0 | 0x0F
    same(m, dense)


def test_one_page_that_begins_its_block_is_known_to_its_entry() -> None:
    m, dense = fragmented(2 * GIB, [0, 1])
    for block in (3, 600, 601, 1000):
        page = block * BLOCK
        m.write(page, page + 1, 1 - int(dense[page]))
        dense[page] ^= 1
        m.validate()
    same(m, dense)


def test_a_leaf_that_moves_is_located_again() -> None:
    """An array swung in leaves dead nodes that have the leaves too for a while. A value that varies in a new bit copies
    such a leaf; the pages after it in the batch were located in what is dead now."""
    m, dense = fragmented(3 * GIB, [0, 1, 4])
    rng = np.random.default_rng(5)
    for block in (1, 200, 300, 400, 500, 511, 513, 700, 800, 900, 1000, 1022):
        at = 3 * BLOCK
        dense[at:at + BLOCK] = rng.choice(np.array([0, 1, 4], np.uint8), BLOCK)
        dense[GIB + at:GIB + at + BLOCK] = dense[at:at + BLOCK]
        m[at:GIB + at + BLOCK] = dense[at:GIB + at + BLOCK]
        gfns = block * BLOCK + rng.permutation(BLOCK)[:64]
        values = rng.choice(np.array([0, 1, 4], np.uint8), 64)
        values[9] = 2
        m.put(gfns, values)
        dense[gfns] = values
        same(m, dense)


def test_a_node_that_becomes_uniform_while_a_dead_one_leads_to_it_too() -> None:
    """An array swung in leaves dead nodes on six levels, which are taken apart by and by. A node that they and the map
    share becomes uniform meanwhile, and other nodes are made: its memory may not be theirs yet."""
    m = AttributeMap(1 << 52)
    for level in range(3, 6):
        for i in range(60):
            m.write((i << 9 * level) + 5, (i << 9 * level) + 6, 1)
    few, many = 27, 60                          # pages: of a run list, and too many for one
    nodes, lists = range(300 * GIB, 304 * GIB, GIB), range(900 * GIB, 904 * GIB, GIB)
    for pages, bases in ((many, nodes), (few, lists)):
        for base in bases:
            for page in range(base + 5, base + 5 + pages * 2 * BLOCK, 2 * BLOCK):
                m.write(page, page + 1, 1)
    for turn, (node, grows) in enumerate(zip(nodes, lists, strict=True)):
        for page in range(node + 5 + 2 * BLOCK, node + 5 + many * 2 * BLOCK, 2 * BLOCK):
            m.write(page, page + 1, 0)
        m.stats()                               # nothing waits to be tidied
        m[7:9] = np.array([turn, turn + 1], np.uint8)
        m.write(node + 5, node + 6, 0)
        for page in range(grows + 5 + few * 2 * BLOCK, grows + 5 + (few + 4) * 2 * BLOCK, 2 * BLOCK):
            m.write(page, page + 1, 1)
        for value in range(20):
            m.write(9, 10, value)
        m.validate()
        assert m.count(node, node + GIB, 1) == 0
        assert m.count(grows, grows + GIB, 1) == few + 4


@pytest.mark.parametrize("update", ["write", "put"])
@pytest.mark.parametrize("values", [(0, 1), (0, 1, 4, 6)], ids=len)
def test_a_node_below_which_few_runs_are_left_is_a_list_again(values: tuple[int, ...], update: str) -> None:
    """A gigabyte of scattered pages bursts into a node of leaves; when smaller waves have come and gone, what stays is
    one record. Neighbours and a block's last page are among it, and a block that an operation made another."""
    rng = np.random.default_rng(len(values))
    dense = np.zeros(2 * GIB, np.uint8)
    m = AttributeMap(2 * GIB)

    def write(gfns: np.ndarray, attributes: np.ndarray) -> None:
        dense[gfns] = attributes
        if update == "put":
            m.put(gfns, attributes)
        else:
            for gfn, value in zip(gfns.tolist(), attributes.tolist(), strict=True):
                m.write(gfn, gfn + 1, value)

    stay = GIB + np.array([7, 8, 5 * BLOCK, 7 * BLOCK + 511])
    write(stay, np.resize(np.array(values[1:], np.uint8), 4))
    others = GIB + 20 * BLOCK + rng.choice(400, 40, replace=False) * BLOCK + rng.integers(0, BLOCK, 40)
    m.or_(GIB + 5 * BLOCK, GIB + 6 * BLOCK, 0x20)
    dense[5 * BLOCK + GIB:6 * BLOCK + GIB] |= 0x20
    burst = listed = 0
    for turn in range(60):
        few = others[turn % 8:][:18] if turn % 8 else others
        write(few, np.resize(np.array(values[1:], np.uint8), len(few)))
        burst += m.stats()["nodes"] == 2
        write(few, np.zeros(len(few), np.uint8))
        same(m, dense)
        listed += m.stats()["nodes"] == 1 and m.stats()["run_lists"] == 1
    assert burst > 7
    assert listed > 7


@pytest.mark.parametrize("update", ["put", "write", "update_many"])
@pytest.mark.parametrize("values", [(0, 1, 4), (0, 8, 128, 255), tuple(range(16)), tuple(range(256))], ids=len)
def test_a_line_whose_pages_come_and_go_becomes_fields(values: tuple[int, ...], update: str) -> None:
    rng = np.random.default_rng(len(values))
    dense = np.resize(np.repeat(np.array([0, 1, 4], np.uint8), 80), 4 * BLOCK)
    m = AttributeMap.from_numpy(dense)
    assert m.stats()["run_lines"] == 4
    for _ in range(12):
        gfns = rng.choice(np.array([130, 340, 341, 700], np.uint64), 100)
        attributes = rng.choice(np.array(values, np.uint8), 100)
        if update == "put":
            m.put(gfns, attributes)
        elif update == "update_many":
            m.update_many(gfns, gfns + np.uint64(1), attributes)
        for gfn, value in zip(gfns.tolist(), attributes.tolist(), strict=True):
            if update == "write":
                m.write(gfn, gfn + 1, value)
            dense[gfn] = value
        same(m, dense)
    assert m.stats()["run_lines"] == 2              # of the blocks to which nothing was written
    m.write(120, 350, 6)                            # a range makes the choice anew
    dense[120:350] = 6
    same(m, dense)
    assert m.stats()["run_lines"] == 3


def test_pages_in_order_stay_a_line_and_ranges_begin_the_count_of_turns_anew() -> None:
    dense = np.repeat(np.arange(14, dtype=np.uint8), 37)[:BLOCK]
    m = AttributeMap(BLOCK)
    for gfn in range(BLOCK):
        m.write(gfn, gfn + 1, int(dense[gfn]))
    same(m, dense)
    assert m.stats()["run_lines"] == 1
    for _ in range(40):
        m.write(300, 301, 77)
        m.write(500, 510, 1)
        m.write(500, 510, int(dense[500]))
        m.write(300, 301, int(dense[300]))
        same(m, dense)
    assert m.stats()["run_lines"] == 1


@pytest.mark.parametrize("kept", [False, True])
def test_few_runs_become_a_line_and_fields_again(kept: bool) -> None:
    """A line has the size of a leaf of one bit, so the record stays if no other map has it."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        dense = np.zeros(BLOCK, np.uint8)
        for place, at in enumerate(np.sort(rng.choice(np.arange(1, 500), 10, replace=False))):
            dense[at:] = 1 - place % 2
        m = AttributeMap.from_numpy(dense)
        before, shared, shown = m.stats(), m.snapshot() if kept else None, dense.copy()
        assert before["bitmap_leaves"] == 1
        for value, kind in ((4, "run_lines"), (1, "bitmap_leaves"), (4, "run_lines"), (0, "bitmap_leaves")):
            m.write(500, BLOCK, value)
            dense[500:] = value
            same(m, dense)
            assert m.stats()[kind] == 1 + (kept and kind == "bitmap_leaves")
        assert kept or m.stats()["leaf_allocations"] == before["leaf_allocations"]
        assert m.stats()["leaf_conversions"] - before["leaf_conversions"] == 3 + (not kept)
        first = int(rng.integers(1, 490))
        m.write(first, first + 20, 2)
        dense[first:first + 20] = 2
        same(m, dense)
        assert m.stats()["two_bit_leaves"] == 1
        if shared is not None:
            same(shared, shown)


@pytest.mark.parametrize("place", range(8))
def test_records_are_moved_together_wherever_their_entries_stand(place: int) -> None:
    """Of eight neighbouring blocks one is mixed; of these most become uniform again, which leaves slabs sparse, and
    more runs below a node than would make it a run list."""
    m = AttributeMap(64 * GIB)
    gfns = (np.arange(8 * BLOCK) * 8 + place) * BLOCK + 9
    m.put(gfns, 1)
    m.put(gfns[np.arange(len(gfns)) % 4 != 1], 0)
    stats = m.stats()
    m.validate()
    assert m.count(0, 64 * GIB, 1) == stats["bitmap_leaves"] == len(gfns) // 4
    assert stats["slack"] <= m.nbytes // 8 + 16 * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("kept", [False, True], ids=["alone", "snapshot kept"])
@pytest.mark.parametrize("values", [(0, 1), (0, 1, 4), (1, 2, 4, 8), tuple(range(16)), (0, 3, 48, 128, 255)], ids=len)
@pytest.mark.parametrize("blocks", [300, 1100], ids=["one node", "nodes"])
def test_pages_that_come_and_go_beside_others(values: tuple[int, ...], kept: bool, blocks: int) -> None:
    """Some blocks go uniform and mixed by turns, others lose a bit and have it again, while pages of these and of other
    blocks are written in the same groups."""
    rng = np.random.default_rng(len(values) + blocks)
    dense = np.zeros((blocks, BLOCK), np.uint8)
    dense[::3] = rng.integers(0, 2, dense[::3].shape, dtype=np.uint8)
    dense = dense.ravel()
    m = AttributeMap.from_numpy(dense)
    first = dense.copy()
    own = m.snapshot() if kept else None
    uniform, mixed = (BLOCK * rng.choice(np.arange(start, blocks, 3), 3) for start in (1, 0))
    hot = np.concatenate([uniform + 7, mixed + 9])
    hot = np.concatenate([hot, hot[:2] + 1, [0, 1, len(dense) - 1, BLOCK * 262 + 511]])
    for turn in range(60):
        few = rng.choice(hot, 1 + turn % 5)
        often, again = rng.random(300) < (.1, .5, .9)[turn % 3], rng.choice(few, 300)
        gfns = np.where(often, again, rng.integers(0, len(dense), 300))
        attributes = rng.choice(np.array(values, np.uint8), 300)
        if turn % 4 == 0:
            attributes = np.where(np.isin(gfns, hot), attributes, dense[gfns])
        if turn % 2:
            m.put(gfns, attributes)
        else:
            m.update_many(gfns, gfns + 1, attributes)
        for gfn, value in zip(gfns.tolist(), attributes.tolist(), strict=True):
            dense[gfn] = value
        m.validate()
        assert np.array_equal(m.to_numpy(0, len(dense)), dense)
    assert own is None or np.array_equal(own.to_numpy(0, len(first)), first)


@pytest.mark.parametrize("road", ["put", "write", "or_"])
def test_a_page_that_alone_has_its_value_takes_one_after_another(road: str) -> None:
    for others, background in (((), 0), ((), 5), (range(512), 3)):
        for page in (0, 5, 64, 511):
            dense = np.resize(np.array([0, 1], np.uint8), 200 * BLOCK)      # too many runs for a run list
            dense[512:1024] = background
            if others:                              # all but this page have the second value of the leaf
                dense[512:1024] = 2
                dense[512 + page] = 3
            m = AttributeMap.from_numpy(dense)
            for value in (1, 2, 4, 8, 16, 32, 64, 128, 255, 6, 5, 3, 2, 9):
                gfn = 512 + page
                if road == "put":
                    m.put([gfn], [value])
                elif road == "write":
                    m.write(gfn, gfn + 1, value)
                else:
                    m.or_(gfn, gfn + 1, value)
                dense[gfn] = dense[gfn] | value if road == "or_" else value
                m.validate()
                assert np.array_equal(m.to_numpy(0, len(dense)), dense)


@pytest.mark.parametrize("kept", ["snapshot", "copy"])
@pytest.mark.parametrize("pages", [5, 600, 2**20, 2**40])
@pytest.mark.parametrize("alone", [0, 1, 3])
def test_a_batch_goes_on_beside_a_page_that_alone_had_its_value(kept: str, pages: int, alone: int) -> None:
    """It gets another value by its entry: the fields of the others, which follow, may be a snapshot's as well."""
    m = AttributeMap(pages)
    m.write(alone, alone + 1, 7)
    before = m.snapshot() if kept == "snapshot" else m.copy()
    was = np.where(np.arange(5) == alone, 7, 0)
    m.put([alone, 3, 2, 4, 0, 1] * 20, [128, 128, 128, 7, 0, 128] * 20)
    m.validate()
    assert before.to_numpy(0, 5).tolist() == was.tolist()
    assert m.to_numpy(0, 5).tolist() == [0, 128, 128, 128, 7]


def mixed_blocks(dense: np.ndarray) -> int:
    blocks = dense.reshape(-1, BLOCK)
    return int((blocks != blocks[:, :1]).any(1).sum())


def leaves(m: AttributeMap) -> int:
    stats = m.stats()
    kinds = ("bitmap_leaves", "two_bit_leaves", "four_bit_leaves", "byte_leaves", "run_lines")
    return sum(stats[kind] for kind in kinds)


@pytest.mark.parametrize("road", ["put", "update_many", "write"])
@pytest.mark.parametrize("kept", ["alone", "a copy written, too"])
@pytest.mark.parametrize("values", [1, 2, 3, 5, 16, 256])
def test_a_few_pages_of_each_block_change_again_and_again(values: int, kept: str, road: str) -> None:
    """What varies in a block comes and goes, and V keeps it. A block that becomes uniform by any of its pages is no
    leaf any more, whether they follow each other in a group or not."""
    rng = np.random.default_rng(values)
    dense = np.zeros((120, BLOCK), np.uint8)
    dense[::2] = rng.integers(0, 2, dense[::2].shape, dtype=np.uint8)       # too many runs for a run list
    dense = dense.ravel()
    m = AttributeMap.from_numpy(dense)
    maps = [(m, dense)] if kept == "alone" else [(m, dense), (m.copy(), dense.copy())]
    block = np.arange(1, 120, 2).repeat(4)
    page = np.tile([0, 5, 6, 500], 60)
    hot = (block * BLOCK + page)[np.tile(np.arange(4), 60) < rng.integers(1, 5, 60).repeat(4)]  # one to four of them
    for turn in range(24):
        for each, pages in maps:
            gfns = rng.permutation(hot)[:len(hot) if turn % 3 else 20]
            attributes = rng.integers(0, values, len(gfns)).astype(np.uint8) + np.uint8(values == 1)
            attributes[rng.random(len(gfns)) < (.1, .5, .95)[turn // 2 % 3]] = 0
            if road == "put":
                each.put(gfns, attributes)
            elif road == "update_many":
                each.update_many(gfns, gfns + 1, attributes)
            else:
                for gfn, value in zip(gfns.tolist(), attributes.tolist(), strict=True):
                    each.write(gfn, gfn + 1, value)
            pages[gfns] = attributes
        for each, pages in maps:
            same(each, pages)
        assert len(maps) > 1 or leaves(m) == mixed_blocks(dense)
    same_as_new(m, dense)


def same_as_new(m: AttributeMap, dense: np.ndarray) -> None:
    """A map that never was other than it is answers the same, whatever bits V has kept."""
    new = AttributeMap.from_numpy(dense)
    same(m, dense)
    assert m == new
    assert m.to_bytes() == new.to_bytes()
    assert m.run_count == new.run_count
    assert np.array_equal(m.runs(), new.runs())
    assert not list(m.diff(new))
    for mask in (1, 4, 0x81, 0xFF):
        assert m.count(0, len(dense), mask & 5, mask) == new.count(0, len(dense), mask & 5, mask)
        for start in range(0, len(dense), BLOCK):
            stop = start + BLOCK
            assert m.find(start, mask & 5, mask=mask, stop=stop) == new.find(start, mask & 5, mask=mask, stop=stop)
    for start in range(0, len(dense), BLOCK):
        assert m.uniform(start, start + BLOCK) == new.uniform(start, start + BLOCK)
        assert m.level(start + 7) == new.level(start + 7)


@pytest.mark.parametrize("values", [3, 5, 16, 256])
@pytest.mark.parametrize("above", ["block", "blocks", "map"])
def test_an_operation_that_takes_away_all_that_varies_where_V_has_more(values: int, above: str) -> None:
    m, dense = fragmented(40 * BLOCK, list(range(values)))
    hot = np.arange(4 * BLOCK, 8 * BLOCK)
    dense[hot] &= 2
    m.put(hot, dense[hot])                          # of all that V has bit 1 varies
    same_as_new(m, dense)
    start, stop = {"block": (5 * BLOCK, 6 * BLOCK), "blocks": (5 * BLOCK, 7 * BLOCK), "map": (0, 40 * BLOCK)}[above]
    m.and_(start, stop, 0xFD)
    dense[start:stop] &= 0xFD
    same_as_new(m, dense)
    for value in (8, 0):
        m.put(hot, value)
        dense[hot] = value
        same_as_new(m, dense)
    assert leaves(m) == mixed_blocks(dense)


@pytest.mark.parametrize("road", ["put", "and_"])
@pytest.mark.parametrize("shared", [False, True])
def test_fields_of_which_an_operation_hid_bits_become_uniform(road: str, shared: bool) -> None:
    """What the fields still have beside that varies, but in no page's value. Of a leaf that is ours alone, and of one
    that a snapshot has too when its last page goes."""
    m, dense = fragmented(40 * BLOCK, [0, 1, 2, 3])
    m.and_(5 * BLOCK, 6 * BLOCK, 1)
    dense[5 * BLOCK:6 * BLOCK] &= 1
    pages = np.flatnonzero(dense[5 * BLOCK:6 * BLOCK]) + 5 * BLOCK
    for some in (pages[:-1], pages[-1:]):
        before = m.snapshot() if shared else None
        if road == "put":
            m.put(some, 0)
        else:
            for gfn in some.tolist():
                m.and_(gfn, gfn + 1, 0xFE)
        if before is not None:
            assert np.array_equal(before.to_numpy(0, len(dense)), dense)
        before = None       # with its leaves
        dense[some] = 0
    same_as_new(m, dense)
    assert leaves(m) == mixed_blocks(dense) == 39


@pytest.mark.parametrize("road", ["put", "write"])
def test_nodes_go_with_the_last_page_below_them(road: str) -> None:
    pages = np.concatenate([base + 5 + 2 * BLOCK * np.arange(60) for base in (0, 3 * GIB, 1000 * GIB)]).tolist()
    m = AttributeMap(1 << 40)
    for value in (1, 0):
        for page in pages:
            if road == "put":
                m.put([page], [value])
            else:
                m.write(page, page + 1, value)
        m.validate()
        assert m.run_count == (2 * len(pages) + 1 if value else 1)
        stats = m.stats()
        assert (stats["nodes"] > 0, stats["bitmap_leaves"] > 0, stats["height"] > 1) == (value == 1,) * 3


@pytest.mark.parametrize("count", [1, 7, 32, 33, 100, 10_000])
def test_what_a_batch_is_given_for_each_operation_or_for_all(count: int) -> None:
    """Attributes, operations and masks as one, as bytes, and as wider integers; longer batches are read in pieces."""
    random = np.random.default_rng(count)
    gfns = random.permutation(20_000)[:count]

    def one_or_each(most: int) -> list:
        each = random.integers(0, most + 1, count)
        return [most // 2, each[:1], each.astype(np.uint8), each, each.astype(np.uint64), each.tolist()]

    first = random.integers(0, 256, 20_000).astype(np.uint8)
    for attributes in one_or_each(255):
        for operation in one_or_each(2)[::2]:
            for mask in one_or_each(255)[1::2]:
                old = first[gfns]
                values, bits = (np.broadcast_to(np.asarray(given, np.uint8), count) for given in (attributes, mask))
                new = np.choose(np.asarray(operation, int), [values, old | values, old & values])
                dense = first.copy()
                dense[gfns] = old & ~bits | new & bits
                for road in ("put", "update_many"):
                    m = AttributeMap.from_numpy(first)
                    if road == "put":
                        assert m.put(gfns, attributes, operation, mask) == np.count_nonzero(dense != first)
                    else:
                        m.update_many(gfns, gfns + 1, attributes, operation, mask)
                    assert np.array_equal(m.to_numpy(0, len(dense)), dense)


@pytest.mark.parametrize("count", [1, 64, 65, 5000])
def test_the_first_that_is_too_much_is_named(count: int) -> None:
    random = np.random.default_rng(count)
    gfns = np.arange(count)
    for at in {0, count // 2, count - 1}:
        for dtype, wrong in ((np.int64, -3), (np.int64, 256), (np.uint64, 1 << 63), (np.int16, 300), (object, 1 << 70)):
            given = np.full(count, 255).astype(dtype)
            given[at:] = wrong
            given[at + 1:] = random.choice([255, 999], count - at - 1)     # not all that follow, and perhaps none
            for name, call in (("attributes", lambda m: m.put(gfns, given)),                    # noqa: B023
                               ("mask", lambda m: m.update_many(gfns, gfns + 1, 1, 0, given))):     # noqa: B023
                m = AttributeMap(count)
                with pytest.raises(ValueError, match=rf"^{name} {wrong} is outside 0\.\.255$"):
                    call(m)
                assert m.version == 0
        operations = np.zeros(count, np.uint8)
        operations[at] = 3
        with pytest.raises(ValueError, match=r"^operation 3 is none of WRITE = 0, OR = 1, AND = 2$"):
            AttributeMap(count).put(gfns, 1, operations)


@pytest.mark.parametrize("values", [2, 4, 16, 256])
def test_differences_of_leaves_whose_fields_are_as_wide(values: int) -> None:
    random = np.random.default_rng(values)
    first = random.integers(0, values, 8 * BLOCK).astype(np.uint8)
    old = AttributeMap.from_numpy(first)
    for turn in range(40):
        new = old.copy()
        gfns = random.integers(0, len(first), 1 + 5 * turn)
        new.put(gfns, random.integers(0, values, len(gfns)))
        if turn % 5 == 0 and values < 256:       # a leaf with the same fields for other values
            new[BLOCK:2 * BLOCK] = first[BLOCK:2 * BLOCK] | 0x80
        sides = [old.copy(), new]
        if turn % 3 == 0:       # under an operation that merges values
            for m in sides:
                m.and_(0, len(first), 0xff & ~(values // 2))
        before, after = (m.to_numpy(0, len(first)) for m in sides)
        start, stop = sorted(random.integers(0, len(first) + 1, 2).tolist())
        for lo, hi in ((0, len(first)), (start, stop), (start, min(start + 3, len(first)))):
            dense = before.copy()
            for piece in sides[1].diff(sides[0], lo, hi):
                at = slice(int(piece["start"]), int(piece["stop"]))
                assert (before[at] == piece["old"]).all()
                assert (after[at] == piece["new"]).all()
                assert piece["old"] != piece["new"]
                dense[at] = after[at]
            assert np.array_equal(dense[lo:hi], after[lo:hi])
            assert np.array_equal(dense[:lo], before[:lo])
            assert np.array_equal(dense[hi:], before[hi:])


def test_a_root_that_became_uniform_by_the_last_node_that_went() -> None:
    """Level by level the root comes down, and its family gives all pages back meanwhile: there is none to ask."""
    m = AttributeMap(1 << 52)
    m.write(0, 1 << 27, 5)
    for gfn in range(1 << 27, (1 << 27) + 100 * 1024, 1024):
        m.write(gfn + 3, gfn + 600, 1)
    m.write(1 << 27, 1 << 52, 7)
    assert m.runs().tolist() == [(0, 1 << 27, 5), (1 << 27, 1 << 52, 7)]
    m.validate()
    m.write(5, 6, 1)
    assert m.run_count == 4
    m.validate()
