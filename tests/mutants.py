"""python -m tests.mutants [words]: breaks one formula of the store at a time and looks whether a test sees it.

    python3 dev.py mutants                  all of them (a minute each for those of the store, seconds for a kernel's)
    python3 dev.py mutants kernels          those of the kernels alone, by tests/kernels.c
    python3 dev.py mutants "shared root"    those whose name has these words

A mutant that no test sees is a formula that may be wrong without a word: the command ends with 1. The sources are
changed in a copy. Those of the store are built as the debug build, which validates after each operation, and run
against tests/test_store_formulas.py, where each has its place; those of the kernels against each set that this
machine has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ("1", "2")      # as tests/test_kernels_in_c.py


class Mutant(NamedTuple):
    name: str
    file: str           # below kvmattr/
    text: str           # stands there once
    other: str


KERNELS = [
    Mutant("fields narrower than they are", "kernels/contract.h",
           "static const uint64_t kvmattr_field_masks[4] = {1, 3, 15, 255};",
           "static const uint64_t kvmattr_field_masks[4] = {1, 3, 7, 255};"),
    Mutant("a field's repeats", "kernels/contract.h", "{0xff, 0x55, 0x11, 1}", "{0xff, 0x55, 0x10, 1}"),
    Mutant("an update keeps what it clears", "kernels/contract.h", "uint8_t cleared = k & (uint8_t)~keep",
           "uint8_t cleared = (uint8_t)~keep"),
    Mutant("an update flips without x", "kernels/contract.h", "(uint8_t)((x & ~keep) ^ toggle)", "(uint8_t)toggle"),
    Mutant("a value that fits no field", "kernels/contract.h",
           "return ((*clear & k) ^ cleared) == 0 && ((*flip & k) ^ flipped) == 0;",
           "return ((*clear & k) ^ cleared) == 0;"),
    Mutant("clearing that fits no field", "kernels/contract.h",
           "return ((*clear & k) ^ cleared) == 0 && ((*flip & k) ^ flipped) == 0;",
           "return ((*flip & k) ^ flipped) == 0;"),
    Mutant("a leaf that is uniform in one line of the cache", "kernels/contract.h",
           "line < (uintptr_t)64 << wide; line += 64", "line < 64; line += 64"),
    Mutant("a leaf that has become uniform, never seen", "kernels/contract.h",
           "            any |= ((const uint64_t *)(own ^ line))[i] ^ word;\n    return",
           "            any |= 0;\n    return 0 &"),
    Mutant("a leaf in which a page has not changed", "kernels/contract.h",
           "    uint64_t apart = differ & kvmattr_in_any_byte(word ^ kvmattr_ror(word, 1u << wide));\n"
           "    return __builtin_expect((apart == 0) & (differ != 0), 0);",
           "    uint64_t apart = differ & kvmattr_in_any_byte(word ^ kvmattr_ror(word, 1u << wide));\n"
           "    return __builtin_expect(apart == 0, 0);"),
    Mutant("a leaf in which a page has not changed, four at a time", "kernels/avx2.h",
           "        any = _mm256_andnot_si256(_mm256_cmpeq_epi64(differ, none), any);\n", ""),
    Mutant("a leaf in which a page has not changed, eight at a time", "kernels/avx512_walk.h",
           "_mm512_test_epi64_mask(differ, differ)", "0xff"),
    Mutant("a run line's page before its run", "kernels/contract.h", "(line->starts[i] <= (int16_t)page)",
           "(line->starts[i] < (int16_t)page)"),
    Mutant("a run list's page before its run", "kernels/contract.h",
           "(starts[low + half - 1] <= page)", "(starts[low + half - 1] < page)"),
    Mutant("writing located pages counts all", "kernels/contract.h", "sum += word != old;", "sum += 1;"),
    Mutant("pages of no group: changes for each", "kernels/avx512_walk.h",
           "memcpy(x_filled, xs, step ? (size_t)n : 1);", "memcpy(x_filled, xs, 1);"),
    Mutant("a located page keeps other fields", "kernels/plain_walk.h",
           "located->keep[i] = ~((clear & mask) << (bit & 63));", "located->keep[i] = ~(clear << (bit & 63));"),
    Mutant("a located page's value that fits no field", "kernels/plain_walk.h",
           "((flip & entry >> KVMATTR_K) ^ flipped)", "0"),
    Mutant("clearing of a located page that fits no field", "kernels/plain_walk.h",
           "((clear & entry >> KVMATTR_K) ^ cleared)", "0"),
    Mutant("a located page varies in a new bit", "kernels/plain_walk.h",
           "(turned >> KVMATTR_F & ~(entry >> KVMATTR_V)) | ", ""),
    Mutant("a located page of a uniform block", "kernels/plain_walk.h",
           " |\n           ((uint64_t)(uint32_t)entry - 1) >> 32;", ";"),
    Mutant("located pages that some entry knows", "kernels/plain_walk.h",
           "known |= ((gfns[i] & 511) - 1) | ((gfns[i] ^ last) - 1);", "known |= (gfns[i] ^ last) - 1;"),
    Mutant("a located page that the map's end knows, among others", "kernels/plain_walk.h",
           "known |= ((gfns[i] & 511) - 1) | ((gfns[i] ^ last) - 1);", "known |= (gfns[i] & 511) - 1;"),
    Mutant("a located page that the map's end knows", "kernels/plain_walk.h", "return gfn == last || ", "return "),
    Mutant("a located page that a node's first entry knows", "kernels/plain_walk.h", " || !(gfn & 0x3ffff)", ""),
    Mutant("a run line's last starts, AVX2", "kernels/avx2.h", "(line->starts + 16)", "(line->starts + 12)"),
    Mutant("bits that vary no longer, of the pages asked for, AVX2", "kernels/avx2.h",
           "agree >> from << from", "agree"),
    Mutant("bits that vary no longer, words turned, AVX2", "kernels/avx2.h",
           "bits = _mm256_set1_epi64x(64)", "bits = _mm256_set1_epi64x(60)"),
    Mutant("a located page below a pending operation", "kernels/plain_walk.h",
           "(uint64_t)((entries[i] & looked_at) != KVMATTR_NO_OPERATION) << i;",
           "(uint64_t)((entries[i] & KVMATTR_IN_NODE) != 0) << i;"),
    Mutant("operations on the way down: k above and an entry's x", "kernels/plain_walk.h",
           "(entry & (k | k << (KVMATTR_X - KVMATTR_K) | 0xffffffff))",
           "(entry & (k | (uint64_t)0xff << KVMATTR_X | 0xffffffff))"),
    Mutant("operations on the way down: x above", "kernels/plain_walk.h",
           " ^ (above & (uint64_t)0xff << KVMATTR_X);\n}\n\n/* What becomes", ";\n}\n\n/* What becomes"),
    Mutant("operations on the way down: the root's", "kernels/plain_walk.h",
           "few->different = levels > 2 ? (walk->root ^ KVMATTR_NO_OPERATION) & KVMATTR_OPERATION : 0;",
           "few->different = 0;"),
    Mutant("a run list on the way down: its value", "kernels/plain_walk.h",
           "    few->different |= KVMATTR_OPERATION;\n", ""),
    Mutant("a run list on the way down: where it begins", "kernels/plain_walk.h",
           "(*last <= (gfns[i] & inside))", "(*last <= gfns[i])"),
    Mutant("a run list on the way down: halves", "kernels/plain_walk.h",
           "for (; any; any /= 2)", "for (any /= 2; any; any /= 2)"),
    Mutant("a page of the next block is located again", "kernels/plain.h",
           "((gfns[i] ^ gfn) < KVMATTR_BLOCK)", "((gfns[i] ^ gfn) <= KVMATTR_BLOCK)"),
    Mutant("eights on their way, more than there is room for", "kernels/plain_walk.h", "KVMATTR_FEWS = 64",
           "KVMATTR_FEWS = 32"),
    Mutant("the first page beyond the root", "kernels/plain_walk.h",
           "out[i] = gfns[i] < walk->span ? out[i] : walk->rest;\n}",
           "out[i] = gfns[i] <= walk->span ? out[i] : walk->rest;\n}"),
    Mutant("what is left of eights of pages", "kernels/plain_walk.h", "memcpy(out + n - rest, values, rest);", ""),
    Mutant("operations on the way down, AVX-512: x above", "kernels/avx512_walk.h",
           "_mm512_maskz_mov_epi8(at_x, above), 0x6a)", "_mm512_setzero_si512(), 0x6a)"),
    Mutant("operations on the way down, AVX-512: k above and an entry's x", "kernels/avx512_walk.h",
           "at_k_and_x = 0x3030303030303030", "at_k_and_x = 0x1010101010101010"),
    Mutant("a run list on the way down, AVX-512: where it begins", "kernels/avx512_walk.h",
           "inside[v] = _mm512_andnot_si512(above,", "inside[v] = _mm512_andnot_si512(none,"),
    Mutant("a run list on the way down, AVX-512: halves", "kernels/avx512_walk.h",
           "most; most /= 2)", "most > 1; most /= 2)"),
    Mutant("a run list on the way down, AVX-512: few pages", "kernels/avx512_walk.h",
           "kvmattr_list_raw_avx512(list, inside);", "kvmattr_list_raw_avx512(list, 0);"),
    Mutant("groups on their way, one more than there is room for", "kernels/avx512_walk.h",
           "KVMATTR_RING = KVMATTR_MOST_LEVELS + 1", "KVMATTR_RING = KVMATTR_MOST_LEVELS"),
    Mutant("the first page beyond the root, AVX-512", "kernels/avx512_walk.h",
           "gfns[i] < walk->span ? out[i] : walk->rest;\n}", "gfns[i] <= walk->span ? out[i] : walk->rest;\n}"),
    Mutant("pages in run lines, AVX-512: x", "kernels/avx512_walk.h",
           "gfns[i]) & (entry >> KVMATTR_K)) ^ (entry >> KVMATTR_X));", "gfns[i]) & (entry >> KVMATTR_K)));"),
    Mutant("a run line spread from its first page", "kernels/plain.h",
           "start = stop;", ""),
    Mutant("a run line spread, AVX-512: what 64 pages begin with", "kernels/avx512.h",
           "values[8 + run]", "values[8]"),
    Mutant("fields of two bits spread, AVX-512", "kernels/avx512.h", "by = _mm512_set1_epi32(4 << 16)",
           "by = _mm512_set1_epi32(4)"),
    Mutant("fields of two bits spread, AVX2", "kernels/avx2.h", "_mm256_srli_epi16(four, 4), 0xaa)",
           "_mm256_srli_epi16(four, 4), 0x55)"),
    Mutant("fields of four bits spread, AVX2", "kernels/avx2.h", "_mm256_or_si256(two, _mm256_slli_epi16(two, 4))",
           "two"),
    Mutant("the last run of a line, counted with AVX-512", "kernels/avx512.h",
           "_mm512_mask_mov_epi16(line, last, end)", "line"),
    Mutant("a run of a line after others, counted with AVX-512", "kernels/avx512.h", "~match & match >> 1, take)",
           "0, take)"),
    Mutant("the last run of a line, counted", "kernels/plain.h",
           "stop = i + 1 < line->count ? line->starts[i] : KVMATTR_BLOCK;", "stop = line->starts[i];"),
    Mutant("runs of a line that a mask makes one", "kernels/plain.h",
           "((line->values[run] ^ line->values[run - 1]) & kept) != 0", "line->values[run] != line->values[run - 1]"),
    Mutant("fields counted, words side by side", "kernels/plain.h", "& masked, wide) << j;", "& masked, wide);"),
    Mutant("fields of eight bits counted, AVX-512", "kernels/avx512.h",
           "some = _mm512_or_si512(some, _mm512_srli_epi64(some, 4));", ";"),
    Mutant("fields of two bits packed", "kernels/plain.h",
           "c = (c | c >> 2) & KVMATTR_REPEAT(0x03);",
           "c = c & KVMATTR_REPEAT(0x03);"),
    Mutant("bits that vary together, turned by three", "kernels/plain.h",
           "((c << 3 & KVMATTR_REPEAT(0xf8)) | (c >> 5 & KVMATTR_REPEAT(0x07)))",
           "(c << 3 & KVMATTR_REPEAT(0xf8))"),
    Mutant("what follows a splice of a run list", "kernels/avx512.h",
           "(__mmask8)(behind >> (8 * i + 1)), starts + 8 * i - by);",
           "(__mmask8)(behind >> 8 * i), starts + 8 * i - by);"),
    Mutant("what stands before a splice into another place", "kernels/avx512.h",
           "valid = kvmattr_bits_avx512(1, count);", "valid = kvmattr_bits_avx512(2, count);"),
    Mutant("a page of a list that begins a run", "kernels/contract.h", "later & (list->starts[run - later] == page);",
           "later & (list->starts[run - later] > page);"),
    Mutant("a page of a list of one run, which begins none", "kernels/contract.h",
           "later & (list->starts[run - later] == page);", "list->starts[run - later] == page;"),
    Mutant("a page of a list that ends the last run", "kernels/contract.h",
           "(ends & followed & (values[run + 1] == value))",
           "(ends & (values[run + 1] == value))"),
    Mutant("the two runs that come to a list, in turns", "kernels/avx512.h", "(short)(pair >> 8 * odd)", "(short)pair"),
    Mutant("the two starts that come to a list, in turns", "kernels/avx512.h", "page + ((odd ^ 1) | later)",
           "page + (odd | later)"),
    Mutant("the last run of its value", "kernels/avx512.h", "_mm512_mask_cmpeq_epi8_mask(valid, all,",
           "_mm512_cmpeq_epi8_mask(all,"),
    Mutant("the same, without vectors", "kernels/plain.h",
           "        memcpy(to_starts, starts, 8 * (at - 1));", "        ;"),
    Mutant("the start that a page is", "kernels/avx512_walk.h", "_mm512_mask_cmple_epu64_mask(these, some,",
           "_mm512_mask_cmplt_epu64_mask(these, some,"),
    Mutant("the values after a splice, without vectors", "kernels/plain.h", "size_t tail = count - gone - at;",
           "size_t tail = count - gone - at ? count - gone - at - 1 : 0;"),
    Mutant("the first page of a word's changes", "kernels/plain.h", "before = words[j] >> 63;", "before = 0;"),
    Mutant("what varies below a node, by F", "kernels/plain.h",
           "return (uint8_t)((any >> KVMATTR_V) | (differ >> KVMATTR_F));", "return (uint8_t)(any >> KVMATTR_V);"),
]

STORE = [
    Mutant("a run joins the one before it", "_store/leaf.pxi",
           "    if splice.at == 0 or values[splice.at - 1] != value:\n", "    if True:\n"),
    Mutant("a run joins the one after it", "_store/leaf.pxi",
           "        splice.gone += last + 1 < count and values[last + 1] == value", "        pass"),
    Mutant("free starts of a run line", "_store/leaf.pxi",
           "    for i in range(now - 1, count - 1):\n        line.starts[i] = KVMATTR_NO_START\n", ""),
    Mutant("a line that is changed for ever stays one", "_store/leaf.pxi",
           "    if turns == MOST_TURNS or (turns", "    if (turns"),
    Mutant("a border that moves is a turn", "_store/leaf.pxi",
           "    elif (now != count or begins == ends) and turns", "    elif turns"),
    Mutant("a range keeps a line's turns", "_store/leaf.pxi",
           "    if hi - lo > 1:\n        turns = 0\n    elif", "    if"),
    Mutant("V of a run list that lost a run", "_store/runlist.pxi", "    if splice.gone:  ", "    if False:  "),
    Mutant("few runs below a node: where in its block one begins", "_store/node.pxi",
           "start + block.starts[run]", "start"),
    Mutant("few runs below a node: blocks that go on as the one before", "_store/node.pxi",
           "last = entry_uniform(runs.values[runs.count - 1])", "last = entry_uniform(runs.values[0])"),
    Mutant("a page in a list of a shared node", "_store/update.pxi", "        if way.shared:\n", "        if False:\n"),
    Mutant("a shared list keeps its record", "_store/runlist.pxi", "return record.references == 1 and", "return"),
    Mutant("a page in another list than the one that has its place", "_store/openlists.pxi",
           "    if (lists.taken >> place & 1 == 0 or (lists.lists[place].gfn ^ gfn) >> shift or gfn",
           "    if (lists.taken >> place & 1 == 0 or gfn"),
    Mutant("a page of an open list that a node's first entry knows", "_store/openlists.pxi",
           " or gfn & (level_span(3) - 1) == 0\n            or gfn + 1 == map.pages):\n        return NULL",
           "\n            or gfn + 1 == map.pages):\n        return NULL"),
    Mutant("a page of an open list that the map's end knows", "_store/openlists.pxi",
           "\n            or gfn + 1 == map.pages):\n        return NULL", "):\n        return NULL"),
    Mutant("V above a list, when its own changes", "_store/update.pxi",
           "    if entry_varying(slot[0]) != entry_varying(before):\n", "    if False:\n"),
    Mutant("where a run of a list ends", "_store/runlist.pxi",
           "return runs.starts[i] if i < runs.count - 1 else span", "return runs.starts[i]"),
    Mutant("records behind seven uniform entries are moved", "kernels/contract.h",
           "for (int i = 0; i < KVMATTR_HANDLES; i++)\n        any |=", "for (int i = 0; i < 7; i++)\n        any |="),
    Mutant("a shared root in a batch", "_store/batch.pxi",
           "        if info.references == 1 and not info.shares:\n", "        if not info.shares:\n"),
    Mutant("a shared leaf in a batch", "_store/batch.pxi",
           "        ours = way_owns_leaf(family, &way)\n", "        ours = not way.shared\n"),
    Mutant("a node that shares below another", "_store/batch.pxi",
           "        if handle and level > 3 and is_node(handle) and page_info(family, handle >> 9).shares:\n"
           "            return True\n", ""),
    Mutant("attributes of a batch's later pieces", "_store/batch.pxi",
           "kvmattr_read_once(x, batch.attributes.cells + first, count)",
           "kvmattr_read_once(x, batch.attributes.cells, count)"),
    Mutant("operations of a batch's later pieces", "_store/batch.pxi",
           "batch.operations.cells + first * batch.operations.step", "batch.operations.cells"),
    Mutant("masks of a batch's later pieces", "_store/batch.pxi",
           "batch.masks.cells + first * batch.masks.step", "batch.masks.cells"),
    Mutant("integers that are no bytes, but the last", "_store/cells.pxi", "                most |= copy[i]\n",
           "                most = copy[i]\n"),
    Mutant("operations that are none", "_store/cells.pxi", "        if most > highest:", "        if most > 0xff:"),
    Mutant("differing fields, from their lowest bit", "_store/diff.pxi",
           "kvmattr_first_bit(differ) & -(1 << wide)", "kvmattr_first_bit(differ)"),
    Mutant("differing fields before the range", "_store/diff.pxi",
           "            differ &= <uint64_t>-1 << (begin & 63)\n", "            pass\n"),
    Mutant("differing fields behind the range", "_store/diff.pxi",
           "            differ &= <uint64_t>-1 >> (63 - ((end - 1) & 63))\n", "            pass\n"),
    Mutant("fields of other values, compared", "_store/diff.pxi",
           "(a ^ b) & KVMATTR_TAG == 0 and sides_operate_alike(old, new)", "(a ^ b) & KVMATTR_TAG == 0"),
    Mutant("a root that is no node comes down", "_store/change.pxi",
           "        if handle == 0 or not is_node(handle):\n            return      #",
           "        if not is_node(handle):\n            return      #"),
    Mutant("V of a node after a change of one entry", "_store/change.pxi",
           "                      | (entry_first(entries[first]) ^ entry_first(entries[0]))\n"
           "                      | (entry_first(entries[last]) ^ entry_first(entries[0]))\n", ""),
    Mutant("what follows a block in a list", "_store/assign.pxi", "        runs_append(&new, stop, old.values[i - 1])",
           "        runs_append(&new, stop, new.values[0])"),
    Mutant("pages ahead, located in a leaf that is gone", "_store/batch.pxi",
           "                    locate_block_again(map, batch, gfn, batch.done + n, following, ahead)\n", ""),
    Mutant("pages of the group, located in a leaf that is gone", "_store/batch.pxi",
           "                    agree &= ~locate_block_again(map, batch, gfn, batch.done, n, now)\n", ""),
    Mutant("a leaf of a batch that is mixed still, given up", "_store/update.pxi",
           "    if kvmattr_fields_vary(leaf_at(family, handle), wide_of(handle)) & entry_k(slot[0]):\n        return\n",
           ""),
    Mutant("a leaf that varies in hidden bits alone", "_store/update.pxi",
           "    if kvmattr_fields_vary(leaf_at(family, handle), wide_of(handle)) & entry_k(slot[0]):",
           "    if kvmattr_fields_vary(leaf_at(family, handle), wide_of(handle)):"),
    Mutant("one page, by what its word differs", "_store/update.pxi",
           "kvmattr_everywhere(kvmattr_fold(wide, held ^ turned)) & field, fields)", "old ^ word, fields)"),
    Mutant("one page of a shared leaf, by what its word differs", "_store/update.pxi",
           "(old ^ where[0]) & fields)", "old ^ where[0])"),
    Mutant("a block to be saved whose leaf is uniform", "_store/export.pxi",
           "    if memcmp(block, block + 1, PAGES_PER_BLOCK - 1) == 0:\n", "    if False:\n"),
    Mutant("pages located in fields that became a line", "_store/update.pxi",
           "not (is_line(handle) and is_line(entry_handle(slot[0])))", "not is_line(entry_handle(slot[0]))"),
    Mutant("a node that became uniform by one page", "_store/update.pxi",
           "    if way.node == NULL or node_empties(way.node) or node_became_uniform(way.node, slot - at, at, at):",
           "    if way.node == NULL or node_empties(way.node):"),
    Mutant("what the others are beside a page alone", "_store/leaf.pxi",
           "entry_x(e) ^ (0 if one else entry_k(e))", "entry_x(e)"),
    Mutant("a page alone in a leaf that a snapshot shares", "_store/update.pxi",
           "slot[0] ^ handle ^ leaf_own(family, handle), gfn", "slot[0], gfn"),
    Mutant("others like a page in another word", "_store/leaf.pxi",
           "kernels.popcount(words, 8) == (1 if words[page >> 6] >> (page & 63) & 1 else PAGES_PER_BLOCK - 1)",
           "kernels.popcount(&words[page >> 6], 1) == (1 if words[page >> 6] >> (page & 63) & 1 else 63)"),
    Mutant("a page that is not alone beside one that is", "_store/leaf.pxi",
           "(1 if words[page >> 6] >> (page & 63) & 1 else PAGES_PER_BLOCK - 1)",
           "(1 if not words[page >> 6] >> (page & 63) & 1 else PAGES_PER_BLOCK - 1)"),
    Mutant("one page of a shared leaf", "_store/descent.pxi",
           "    return not way.shared and (way.node != NULL and not way.node.shares\n"
           "                               or leaf_references(family, entry_handle(way.entry))[0] == 1)",
           "    return not way.shared"),
    Mutant("one page below a shared node", "_store/descent.pxi",
           "    return not way.shared and (way.node", "    return (way.node"),
    Mutant("a page alone in fields of more bits than one", "_store/update.pxi",
           "        if alone and wide == 0:", "        if alone:"),
    Mutant("a page alone in fields of more bits, below a node that is shared", "_store/update.pxi",
           "        elif handle & KVMATTR_TAG == 0 and page_is_alone",
           "        elif not is_line(handle) and page_is_alone"),
    Mutant("one page, a value that fits no field", "_store/update.pxi",
           "    if folded & entry_k(e) != turned or (turned", "    if (turned"),
    Mutant("one page, a bit that has not varied", "_store/update.pxi",
           " or (turned ^ entry_x(e) ^ entry_first(e)) & ~entry_varying(e):", ":"),
    Mutant("one page, what is stored and not its value", "_store/update.pxi",
           "    turned = (held ^ entry_x(e)) & k ^ x ^ entry_x(e)", "    turned = held & k ^ x ^ entry_x(e)"),
    Mutant("one page, changed where its word is", "_store/update.pxi",
           "    return <UpdateResult>(turned != held)", "    return <UpdateResult>(word != old)"),
    Mutant("one page, a version for a word", "_store/update.pxi",
           "    kvmattr_raise_version(&map.version, turned != held)",
           "    kvmattr_raise_version(&map.version, word != old)"),
    Mutant("one page by which a leaf has become uniform", "kernels/contract.h",
           "    uint64_t apart = differ & kvmattr_in_any_byte(*where ^ fields);",
           "    uint64_t apart = differ & kvmattr_in_any_byte(~fields);"),
    Mutant("a dropped node leaves the family tidy", "_store/references.pxi", "        family.untidy = True\n", ""),
    Mutant("V of the nodes on the way", "_store/update.pxi",
           "        slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | handle | <uint64_t>varying << KVMATTR_V\n"
           "        slot = &node_at",
           "        slot[0] = (slot[0] & ~<uint64_t>0xffffffff) | handle\n        slot = &node_at"),
    Mutant("a shared node on the way", "_store/descent.pxi", "way.shared |= way.node.references != 1", "pass"),
    Mutant("operations on one way down, their order", "_store/descent.pxi",
           "            toggle ^= <uint32_t>(e >> KVMATTR_X) & keep\n            keep &=",
           "            toggle ^= <uint32_t>(e >> KVMATTR_X)\n            keep &="),
    Mutant("a line that a snapshot shares becomes fields", "_store/leaf.pxi",
           "    if old and leaf_references(family, old)[0] == 1:\n        if old &", "    if old:\n        if old &"),
    Mutant("where a run begins in a word of fields", "_store/leaf.pxi",
           "(words[at >> 6] & before) | (field & ~before)", "field"),
    Mutant("where a run of fields ends", "_store/leaf.pxi",
           "else PAGES_PER_BLOCK) << wide) + 63\n", "else PAGES_PER_BLOCK) << wide)\n"),
    Mutant("a page that begins its block", "_store/update.pxi",
           "    if gfn & 511 == 0:\n        # The F of the entries above is another block's.\n        (<Entry",
           "    if False:\n        (<Entry"),
]


def broken(tree: Path, mutant: Mutant) -> str:
    """Break the copy; what its file was."""
    path = tree / "kvmattr" / mutant.file
    source = path.read_text()
    times = source.count(mutant.text)
    if times != 1:
        raise SystemExit(f"mutants: {mutant.name}: {mutant.file} has {mutant.text!r} {times} times, not once")
    path.write_text(source.replace(mutant.text, mutant.other))
    return source


def kernels_see(tree: Path) -> str:
    """Which set of kernels is found to be wrong, or nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("mutants: no C compiler")
    program = tree / "kernels"
    subprocess.run([compiler, "-O1", "-std=gnu11", "-w", "-I", tree / "kvmattr", "-o", program,
                    tree / "tests" / "kernels.c"], check=True)
    for seed in SEEDS:
        done = subprocess.run([program, seed], capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            return done.stdout.partition("\n")[0] or f"ended by signal {-done.returncode}"
    return ""


def store_sees(tree: Path) -> str:
    """The first test that fails, or nothing."""
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True,
                   env={**os.environ, "KVMATTR_BUILD": "debug"}, stdout=subprocess.DEVNULL)
    done = subprocess.run([sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header",
                           "tests/test_store_formulas.py"], cwd=tree, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(tree)})
    if done.returncode == 0:
        return ""
    if done.returncode > 1:         # no test failed and none crashed: none ran
        raise SystemExit(f"mutants: pytest ended with {done.returncode}: {done.stdout}{done.stderr}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0].partition("::")[2] if failed else f"ended with {done.returncode}"


def copy_of_the_tree(into: Path) -> Path:
    """The package with no extension but the store, and the tests."""
    tree = into / "tree"
    shutil.copytree(ROOT / "kvmattr", tree / "kvmattr", ignore=shutil.ignore_patterns("__pycache__", "*.c", "*.so"))
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__", "data"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "pytest_kvmattr.py"):
        shutil.copy(ROOT / file, tree)
    shutil.copytree(ROOT / "kvmattr" / "fake" / "client", tree / "kvmattr" / "fake" / "client", dirs_exist_ok=True)
    for source in (tree / "kvmattr").rglob("*.pyx"):
        if source.name != "_core.pyx":
            source.unlink()
    return tree


def main(words: list[str]) -> int:
    chosen = [(mutant, kernels_see) for mutant in KERNELS] + [(mutant, store_sees) for mutant in STORE]
    if words == ["kernels"]:
        chosen = [(mutant, sees) for mutant, sees in chosen if sees is kernels_see]
    elif words:
        chosen = [(mutant, sees) for mutant, sees in chosen if any(word in mutant.name for word in words)]
    if not chosen:
        raise SystemExit(f"mutants: no name has {' or '.join(words)}")
    unseen = 0
    with tempfile.TemporaryDirectory() as scratch:
        tree = copy_of_the_tree(Path(scratch))
        sound = None
        for mutant, sees in chosen:
            if sees is not sound and (seen := sees(tree)):
                raise SystemExit(f"mutants: the sources fail as they are: {seen}")
            sound = sees
            source = broken(tree, mutant)
            seen = sees(tree)
            (tree / "kvmattr" / mutant.file).write_text(source)
            (tree / "kvmattr" / "_core.pyx").touch()
            unseen += not seen
            print(f"{'seen  ' if seen else 'UNSEEN'}  {mutant.name:52}  {seen}", flush=True)
    print(f"{len(chosen) - unseen} of {len(chosen)} are seen")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
