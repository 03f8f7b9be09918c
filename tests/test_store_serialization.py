"""to_bytes, from_bytes, pickle, save, load, from_runs, from_numpy: out and in, never in from damage."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmattr import AttributeMap
from tests.reference import SparseMap, assert_same
from tests.strategies import attributes, examples, patterns, ranges


def every_kind() -> AttributeMap:
    m = AttributeMap(2**52, 3)
    m[512:1024] = np.resize(np.array([0, 1], dtype=np.uint8), 512)
    m[1024:1536] = np.resize(np.array([1, 2, 4], dtype=np.uint8), 512)
    m[1536:2048] = (np.arange(512) // 30).astype(np.uint8)
    m[2048:2560] = (np.arange(512) % 251).astype(np.uint8)
    m[2**36 + 5 : 2**45] = 7
    m[2**52 - 3 : 2**52 - 1] = np.array([8, 9], dtype=np.uint8)
    m.or_(0, 2**20, 0x40)
    return m


def test_any_buffer_is_read_also_one_with_gaps() -> None:
    data = every_kind().to_bytes()
    spread = bytearray(2 * len(data))
    spread[::2] = data
    for buffer in (bytes(spread), spread, np.frombuffer(bytes(spread), np.uint8)):
        assert AttributeMap.from_bytes(memoryview(buffer)[::2]) == every_kind()
    assert AttributeMap.from_bytes(np.frombuffer(data[::-1], np.uint8)[::-1]) == every_kind()


def test_bytes_out_and_in() -> None:
    m = every_kind()
    twin = AttributeMap.from_bytes(m.to_bytes())
    assert twin == m
    twin.validate()
    assert len(twin) == len(m)
    twin.clear()
    assert twin.uniform(0, 2**52) == 3
    assert AttributeMap.from_bytes(m.to_bytes()).to_bytes() == m.to_bytes()


@pytest.mark.parametrize("npages", [0, 1, 511, 512, 513, 2**18 - 1, 2**27 + 1, 2**52])
def test_every_size_goes_out_and_in(npages: int) -> None:
    m = AttributeMap(npages, 5)
    if npages:
        m[npages - 1] = 1
        m[0 : min(npages, 1000)] = np.resize(np.array([1, 2, 3], dtype=np.uint8), min(npages, 1000))
    twin = AttributeMap.from_bytes(m.to_bytes())
    twin.validate()
    assert twin == m


@settings(max_examples=examples(60))
@given(st.lists(st.tuples(ranges(2**30 + 3, (0, 2**27)), attributes), max_size=8), patterns(1100))
def test_anything_goes_out_and_in(writes: list[tuple[tuple[int, int], int]], pages: np.ndarray) -> None:
    m, model = AttributeMap(2**30 + 3), SparseMap(2**30 + 3)
    for each in (m, model):
        for where, value in writes:
            each.write(*where, value)
        each[2**27 - 77 : 2**27 - 77 + len(pages)] = pages
    twin = AttributeMap.from_bytes(m.to_bytes())
    twin.validate()
    assert_same(twin, model)


def test_any_damaged_byte_is_noticed() -> None:
    data = every_kind().to_bytes()
    for place in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= flip
            with pytest.raises(ValueError, match=r"damaged|version|magic|AttributeMap|long"):
                AttributeMap.from_bytes(bytes(damaged))


def test_every_truncation_and_every_tail_is_noticed() -> None:
    data = every_kind().to_bytes()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"."):
            AttributeMap.from_bytes(data[:length])
    for tail in (b"\0", data, b"x" * 1000):
        with pytest.raises(ValueError, match=r"."):
            AttributeMap.from_bytes(data + tail)


@settings(max_examples=examples(200))
@given(st.binary(max_size=300))
def test_noise_is_not_a_map(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        AttributeMap.from_bytes(data)


@pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2]])
def test_from_bytes_wants_bytes(wrong: object) -> None:
    with pytest.raises(TypeError):
        AttributeMap.from_bytes(wrong)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol: int) -> None:
    m = every_kind()
    twin = pickle.loads(pickle.dumps(m, protocol))
    assert twin == m
    twin[0] = 1
    kept = pickle.loads(pickle.dumps(m.snapshot(), protocol))
    assert kept == m
    with pytest.raises(TypeError, match="read-only"):
        kept[0] = 1


def test_pickle_out_of_band() -> None:
    m = every_kind()
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(m, protocol=5, buffer_callback=buffers.append)
    assert buffers
    assert len(data) < 300
    assert pickle.loads(data, buffers=buffers) == m


def test_save_and_load(tmp_path: Path) -> None:
    m = every_kind()
    path = tmp_path / "map"
    m.save(path)
    assert AttributeMap.load(path) == m
    assert AttributeMap.load(str(path)) == m
    m[0] = 99
    m.save(path)
    assert AttributeMap.load(path).get(0) == 99
    assert os.listdir(tmp_path) == ["map"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = every_kind()
    path = tmp_path / "map"
    m.save(path)
    before = path.read_bytes()
    m[0] = 99
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:

            def refuse(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            patched.setattr(os, name, refuse)
            with pytest.raises(OSError, match="No space"):
                m.save(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["map"]


SAVES = """
import sys
from kvmattr import AttributeMap

for value in range(1, 256):
    m = AttributeMap.from_runs([(2 * gfn, 2 * gfn + 1, value) for gfn in range(2000)], 2**40)
    m.save(sys.argv[1])
    if value == 1:
        print("saved once", flush=True)
"""


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "map"
    rounds = cut_short = 0
    while cut_short < 5:
        rounds += 1
        assert rounds < 500
        process = subprocess.Popen([sys.executable, "-c", SAVES, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "saved once\n"
        time.sleep(random.random() / 20)
        process.kill()
        process.communicate()
        m = AttributeMap.load(path)
        assert m == AttributeMap.from_runs([(2 * gfn, 2 * gfn + 1, m[0]) for gfn in range(2000)], 2**40)
        # Whoever is killed cannot clean up: what it was about to rename tells that a save was cut short.
        for left in tmp_path.glob(".kvmattr-*"):
            cut_short += 1
            left.unlink()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_bytes(b"not a map at all")
    with pytest.raises(ValueError, match="map"):
        AttributeMap.load(path)
    with pytest.raises(FileNotFoundError):
        AttributeMap.load(tmp_path / "nothing")


def test_from_numpy() -> None:
    for length in (1, 511, 512, 513, 5000):
        pages = np.random.default_rng(length).integers(0, 3, length).astype(np.uint8)
        m = AttributeMap.from_numpy(pages)
        assert len(m) == length
        assert np.array_equal(m.to_numpy(0, length), pages)
        m.validate()
    with pytest.raises(ValueError, match="256"):
        AttributeMap.from_numpy(np.array([1, 256]))
    with pytest.raises(TypeError):
        AttributeMap.from_numpy(np.array([1.5]))


def test_from_runs() -> None:
    m = every_kind()
    assert AttributeMap.from_runs(m.runs(), npages=2**52, default=3) == m
    assert AttributeMap.from_runs([(0, 5, 1), (7, 9, 2)], npages=10, default=4).runs().tolist() == [
        (0, 5, 1),
        (5, 7, 4),
        (7, 9, 2),
        (9, 10, 4),
    ]
    with pytest.raises(ValueError, match="11"):
        AttributeMap.from_runs([(0, 11, 1)], npages=10)
    with pytest.raises(ValueError, match="300"):
        AttributeMap.from_runs([(0, 5, 300)], npages=10)
