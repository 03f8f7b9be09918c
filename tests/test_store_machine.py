"""A family of stores, each shadowed by a reference: every operation, then every answer, then validate().

The campaign: KVMATTR_FUZZ_EXAMPLES=5000 python -m pytest tests/test_store_machine.py
"""

from __future__ import annotations

import os
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st

from kvmattr import AttributeMap
from tests.reference import DenseMap, ReferenceMap, SparseMap, assert_same, plain
from tests.strategies import attributes, bounds, combs, examples, gfns, masks, neighbours, operations, patterns, ranges

LARGEST_READ = 2**15
ITERATED_RUNS = 600


class Pair:
    """A store and its reference: a call goes to both, and both must answer, raise and count alike."""

    def __init__(self, store: Any, model: ReferenceMap) -> None:
        self.store = store
        self.model = model

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        versions = self.store.version, self.model.version
        wanted, wanted_error = self._answer(self.model, method, arguments, keywords)
        got, got_error = self._answer(self.store, method, arguments, keywords)
        assert got_error == wanted_error, f"{method}{arguments}: {got_error}, wanted {wanted_error}"
        assert plain(got) == plain(wanted), f"{method}{arguments}: {got!r}, wanted {wanted!r}"
        assert (self.store.version > versions[0]) == (self.model.version > versions[1]), (
            f"version: {method}{arguments}"
        )
        assert self.store.version >= versions[0], "version went back"
        return got

    @staticmethod
    def _answer(kvm_map: Any, method: str, arguments: tuple[Any, ...], keywords: Any) -> tuple[Any, Any]:
        try:
            return getattr(kvm_map, method)(*arguments, **keywords), None
        except (IndexError, ValueError, TypeError) as error:
            return None, type(error)

    def check(self) -> None:
        self.store.validate()
        assert_same(self.store, self.model)


def machine(npages: int, model: type[ReferenceMap], bases: tuple[int, ...], largest_pattern: int) -> Any:
    """The state machine for maps of `npages` pages whose operations meet about `bases`."""
    a_range, a_bound, a_gfn = ranges(npages, bases), bounds(npages, bases), gfns(npages, bases)

    class StoreMachine(stateful.RuleBasedStateMachine):
        maps = stateful.Bundle("maps")

        def __init__(self) -> None:
            super().__init__()
            self.family: list[Pair] = []

        def join(self, pair: Pair) -> Pair:
            self.family.append(pair)
            return pair

        @stateful.initialize(target=maps, default=attributes)
        def create(self, default: int) -> Pair:
            return self.join(Pair(AttributeMap(npages, default), model(npages, default)))

        # Update.

        @stateful.rule(pair=maps, where=a_range, attributes=attributes, operation=operations, mask=masks)
        def update(
            self, pair: Pair, where: tuple[int, int], attributes: int, operation: int, mask: int
        ) -> None:
            pair.call("update", *where, attributes, operation, mask)

        @stateful.rule(
            pair=maps, where=a_range, attributes=attributes, method=st.sampled_from(["write", "or_", "and_"])
        )
        def plain_update(self, pair: Pair, where: tuple[int, int], attributes: int, method: str) -> None:
            pair.call(method, *where, attributes)

        @stateful.rule(pair=maps, gfn=a_gfn, attributes=attributes, operation=operations, mask=masks)
        def update_page(self, pair: Pair, gfn: int, attributes: int, operation: int, mask: int) -> None:
            pair.call("update", gfn, gfn + 1, attributes, operation, mask)

        @stateful.rule(pair=maps, gfn=a_gfn, attributes=attributes)
        def set_page(self, pair: Pair, gfn: int, attributes: int) -> None:
            pair.call("__setitem__", gfn, attributes)

        @stateful.rule(pair=maps, start=a_bound, pages=patterns(largest_pattern))
        def assign(self, pair: Pair, start: int, pages: np.ndarray) -> None:
            pages = pages[: npages - start]
            pair.call("__setitem__", slice(start, start + len(pages)), pages)

        @stateful.rule(pair=maps, where=a_range)
        def delete(self, pair: Pair, where: tuple[int, int]) -> None:
            pair.call("__delitem__", slice(*where))

        @stateful.rule(
            pair=maps,
            comb=combs(npages, bases),
            palette=st.lists(attributes, min_size=1, max_size=5),
            operation=operations,
            mask=masks,
        )
        def update_comb(
            self,
            pair: Pair,
            comb: tuple[np.ndarray, np.ndarray],
            palette: list[int],
            operation: int,
            mask: int,
        ) -> None:
            starts, stops = comb
            pair.call(
                "update_many",
                starts,
                stops,
                np.resize(np.array(palette, dtype=np.uint8), len(starts)),
                operation,
                mask,
            )

        @stateful.rule(
            pair=maps, calls=st.lists(st.tuples(a_range, attributes, operations, masks), max_size=12)
        )
        def update_many(self, pair: Pair, calls: list[Any]) -> None:
            starts = np.array([where[0] for where, *_ in calls], dtype=np.uint64)
            stops = np.array([where[1] for where, *_ in calls], dtype=np.uint64)
            columns = [np.array([call[i] for call in calls], dtype=np.uint8) for i in (1, 2, 3)]
            pair.call("update_many", starts, stops, *columns)

        @stateful.rule(
            pair=maps,
            puts=st.lists(st.tuples(a_gfn, attributes), max_size=40),
            operation=operations,
            mask=masks,
        )
        def put(self, pair: Pair, puts: list[tuple[int, int]], operation: int, mask: int) -> None:
            pair.call(
                "put",
                np.array([gfn for gfn, _ in puts], dtype=np.uint64),
                np.array([value for _, value in puts], dtype=np.uint8),
                operation,
                mask,
            )

        @stateful.rule(
            pair=maps,
            seed=st.integers(0, 2**32),
            where=a_range,
            operation=operations,
            mask=masks,
            palette=st.lists(attributes, min_size=1, max_size=6),
            count=st.sampled_from([60, 700]),
        )
        def scatter(
            self,
            pair: Pair,
            seed: int,
            where: tuple[int, int],
            operation: int,
            mask: int,
            palette: list[int],
            count: int,
        ) -> None:
            start, stop = where
            if start == stop:
                return
            random = np.random.default_rng(seed)
            pair.call(
                "put",
                random.integers(start, stop, count, dtype=np.uint64),
                random.choice(np.array(palette, dtype=np.uint8), count),
                operation,
                mask,
            )

        @stateful.rule(
            pair=maps,
            start=a_bound,
            words=st.lists(st.integers(0, 2**64 - 1), max_size=20),
            attributes=attributes,
            operation=operations,
            mask=masks,
        )
        def put_bitmap(
            self, pair: Pair, start: int, words: list[int], attributes: int, operation: int, mask: int
        ) -> None:
            pair.call("put_bitmap", start, np.array(words, dtype="<u8"), attributes, operation, mask)

        @stateful.rule(pair=maps, attributes=attributes)
        def fill(self, pair: Pair, attributes: int) -> None:
            pair.call("fill", attributes)

        @stateful.rule(pair=maps)
        def clear(self, pair: Pair) -> None:
            pair.call("clear")

        # Whole maps.

        @stateful.rule(target=maps, pair=maps)
        def copy(self, pair: Pair) -> Pair:
            return self.join(Pair(pair.store.copy(), pair.model.copy()))

        @stateful.rule(target=maps, pair=maps)
        def snapshot(self, pair: Pair) -> Pair:
            return self.join(Pair(pair.store.snapshot(), pair.model.snapshot()))

        @stateful.rule(target=maps, pair=maps)
        def rebuild(self, pair: Pair) -> Pair:
            """A map of its own family with the same pages."""
            runs = pair.model.runs()
            twin = Pair(AttributeMap(npages), model(npages))
            twin.call("update_many", runs["start"].copy(), runs["stop"].copy(), runs["attributes"].copy())
            return self.join(twin)

        @stateful.rule(target=maps, pair=maps)
        def reload(self, pair: Pair) -> Pair:
            """The same map by way of its bytes."""
            return self.join(Pair(AttributeMap.from_bytes(pair.store.to_bytes()), pair.model.copy()))

        @stateful.rule(pair=maps, other=maps)
        def restore(self, pair: Pair, other: Pair) -> None:
            versions = pair.store.version, pair.model.version
            errors = []
            for kvm_map, source in ((pair.model, other.model), (pair.store, other.store)):
                try:
                    assert kvm_map.restore(source) is None
                    errors.append(None)
                except TypeError as error:
                    errors.append(type(error))
            assert errors[0] == errors[1]
            assert (pair.store.version > versions[0]) == (pair.model.version > versions[1])

        @stateful.precondition(lambda self: len(self.family) > 1)
        @stateful.rule(pair=stateful.consumes(maps))
        def drop(self, pair: Pair) -> None:
            self.family.remove(pair)

        @stateful.rule(pair=maps, other=maps)
        def compare(self, pair: Pair, other: Pair) -> None:
            assert (pair.store == other.store) == (pair.model == other.model)

        @stateful.rule(pair=maps, other=maps, where=a_range)
        def diff(self, pair: Pair, other: Pair, where: tuple[int, int]) -> None:
            wanted = pair.model.diff(other.model, *where)
            assert plain(pair.store.diff(other.store, *where)) == plain(wanted)

        # Look up.

        @stateful.rule(pair=maps, where=a_range, attributes=attributes, mask=masks)
        def ask(self, pair: Pair, where: tuple[int, int], attributes: int, mask: int) -> None:
            start, stop = where
            runs = pair.model.runs(start, stop)
            for wanted in {attributes, *(int(value) & mask for value in runs["attributes"][:2])}:
                for method in ("all", "any", "count"):
                    pair.call(method, start, stop, wanted, mask)
                pair.call("find", start, wanted, mask=mask, stop=stop)
                pair.call("find", start, wanted, mask=mask)
            pair.call("uniform", start, stop)
            pair.call("values", start, stop)
            pair.call("runs", start, stop)
            some = islice(pair.store.iter_runs(start, stop), ITERATED_RUNS)
            assert list(some) == runs[:ITERATED_RUNS].tolist()
            assert pair.store.run_count == pair.model.run_count

        @stateful.rule(pair=maps, where=a_range, mask=masks)
        def read(self, pair: Pair, where: tuple[int, int], mask: int) -> None:
            start, stop = where
            end = min(stop, start + LARGEST_READ)
            pair.call("to_numpy", start, end)
            pair.call("bitmap", start, end, mask)
            points = neighbours([start, stop, *pair.model.runs(start, stop)["start"][:20].tolist()], npages)
            pair.call("take", np.array(points, dtype=np.uint64))
            for gfn in points[:12]:
                pair.call("get", gfn)
                pair.call("run", gfn)
                pair.call("level", gfn)

        @stateful.invariant()
        def all_are_sound(self) -> None:
            for pair in self.family:
                pair.check()

        def teardown(self) -> None:
            """Maps go one by one, in any order of birth: those that are left do not notice."""
            while self.family:
                self.family.pop(len(self.family) // 2)
                self.all_are_sound()

    return StoreMachine


SIZES = {
    "1 page": (1, DenseMap, (0,), 1),
    "under a leaf": (511, DenseMap, (0,), 511),
    "a leaf": (512, DenseMap, (0,), 512),
    "over a leaf": (513, DenseMap, (0,), 513),
    "over a node": (2**18 + 3, DenseMap, (0, 2**17, 2**18), 2**18 + 3),
    "three levels": (2**27 + 5, SparseMap, (0, 2**18, 2**27), 1100),
    "odd height": (2**36 - 511, SparseMap, (0, 2**18, 2**27, 2**36 - 512), 1100),
    "everything": (2**52, SparseMap, (0, 2**27, 2**36, 2**45, 2**52), 1100),
}


@pytest.mark.parametrize("size", SIZES)
def test_store_is_what_the_reference_is(size: str) -> None:
    stateful.run_state_machine_as_test(
        machine(*SIZES[size]),
        settings=settings(
            max_examples=int(os.environ.get("KVMATTR_FUZZ_EXAMPLES", examples(20))),
            stateful_step_count=int(os.environ.get("KVMATTR_FUZZ_STEPS", 40)),
        ),
    )
