"""A batch of SETs leaves run lists open between two records; each record sees those before it all the same.

The same records go to one machine as batches and to another one by one: attributes, sequence count and hull agree after
each batch, and what is refused is the same record for the same reason. Pages are few and far apart, so that most lie in
run lists, and many share a 2 MiB block, which the next record's invalidation asks about.
"""

import random
import re

import numpy as np
import pytest

from kvmattr import VM, uapi

GIB, BLOCK = 1 << 18, 512  # pages


def some_pages(rng: random.Random, gib: int) -> list[int]:
    """Pages of the first `gib` GiB: neighbours, ends of blocks, and pages that entries of nodes know."""
    pages = []
    for first in range(0, gib * GIB, GIB):
        for _ in range(6):
            block = first + BLOCK * rng.randrange(512)
            pages += [block, block + 1, block + 2, block + rng.randrange(BLOCK), block + BLOCK - 1]
        pages += [first, first + GIB - 1]
    return pages


@pytest.mark.parametrize("gib", [3, 80], ids=["places for all lists", "lists that share places"])
@pytest.mark.parametrize("slots", [[], [(0, 200 * GIB)], [(100, GIB), (GIB + BLOCK, GIB - BLOCK), (2 * GIB, 90 * GIB)]],
                         ids=["no memslot", "one memslot", "memslots"])
def test_a_batch_is_its_records_one_by_one_however_far_apart(gib: int, slots: list[tuple[int, int]]) -> None:
    rng = random.Random(gib)
    pages = some_pages(rng, gib)
    one, many = VM(no_exec=True), VM(no_exec=True)
    for vm in (one, many):
        for number, (start, length) in enumerate(slots):
            vm.set_user_memory_region(number, start << 12, length << 12)
    refused = 0
    for turn in range(120):
        rows = []
        likely = rng.choice([(0, 1), (1, 0, 8, 9), (0, 0, 0, 1), range(16)]) if turn % 4 else (0, 1)
        for _ in range(rng.choice([1, 64, 65, 200, 700])):
            gfn = rng.choice(pages)
            length = rng.choice([1] * 60 + [2, BLOCK, 5 * BLOCK, GIB, 3 * GIB])
            rows.append((gfn << 12, length << 12, rng.choice(likely), rng.choice([0, 0, 0, 0, 1, 2]), 0))
        if turn % 4 == 0:   # no page may be written that cannot be read: legal after the record before it, else not
            gfn = rng.choice(pages) << 12
            rows += [(gfn, 4096, uapi.KVM_MEM_ATTR_NO_WRITE, 0, 0),
                     (gfn, 4096, uapi.KVM_MEM_ATTR_NO_READ, 1, 0)]
        records = np.array(rows, uapi.MEMORY_ATTRIBUTES)
        changed = done = 0
        error = None
        for row in rows:
            version = one.attributes.version
            try:
                one.set_memory_attributes(*row)
            except OSError as caught:
                error = caught
                break
            done += 1
            changed += one.attributes.version > version
        if error is None:
            assert many.set_memory_attributes_many(records) == changed
        else:
            refused += 1
            with pytest.raises(OSError, match=re.escape(str(error))) as again:
                many.set_memory_attributes_many(records)
            assert vars(again.value)["done"] == done
        assert many.attributes == one.attributes
        assert many.invalidation.sequence == one.invalidation.sequence
        assert many.invalidation.hull == one.invalidation.hull
    many.attributes.validate()
    assert refused > 3


def test_a_batch_of_a_file_is_its_records_one_by_one() -> None:
    """One page of each GiB is in use, so that a conversion of it to private is refused."""
    rng = random.Random(4)
    size = 40 * GIB << 12
    machines = []
    for _ in range(2):
        vm = VM("gmem")
        file = vm.create_guest_memfd(size, uapi.GUEST_MEMFD_FLAG_INIT_SHARED)
        vm.set_user_memory_region2(0, 0, size, flags=uapi.KVM_MEM_GUEST_MEMFD, guest_memfd=file)
        machines.append((vm, file))
    pages = some_pages(rng, 40)
    used = [first + 3 * BLOCK + 1 for first in range(0, 40 * GIB, GIB)]
    (one, one_file), (many, many_file) = machines
    refused = 0
    for turn in range(60):
        if turn == 20:
            for vm, file in machines:
                for page in used:
                    vm.guest_memfd(file).pages.pin(page << 12, 4096)
            pages += used
        rows = np.zeros(rng.choice([1, 65, 200, 700]), uapi.MEMORY_ATTRIBUTES2)
        for row in rows:
            row["offset"] = rng.choice(pages) << 12
            row["size"] = min(rng.choice([1] * 60 + [2, BLOCK, GIB]) << 12, size - int(row["offset"]))
            row["attributes"] = rng.choice([0, uapi.KVM_MEMORY_ATTRIBUTE_PRIVATE])
        done, error = 0, None
        for row in rows:
            try:
                one.set_memory_attributes2(one_file, int(row["offset"]), int(row["size"]), int(row["attributes"]))
            except OSError as caught:
                error = caught
                break
            done += 1
        if error is None:
            many.set_memory_attributes2_many(many_file, rows)
        else:
            refused += 1
            with pytest.raises(OSError, match=re.escape(str(error))) as again:
                many.set_memory_attributes2_many(many_file, rows)
            assert vars(again.value)["done"] == done
        assert many.guest_memfd(many_file).attributes == one.guest_memfd(one_file).attributes
        assert many.invalidation.sequence == one.invalidation.sequence
        assert many.invalidation.hull == one.invalidation.hull
    assert refused > 3
