"""State that travels: files and pickles written by the first version load for ever; processes hand maps on.

The fixtures were written once, by ``save`` and ``pickle.dumps(protocol=5)`` of what ``content`` describes.
They are never written again.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvmattr import AttributeMap

DATA = Path(__file__).parent / "data"


def content() -> AttributeMap:
    """Every encoding: uniform, two values, four values, many values, and pages scattered over a gigabyte."""
    m = AttributeMap(1 << 24, default=2)
    m.write(1000, 1 << 20, 5)
    m[1 << 13 : (1 << 13) + 512] = np.arange(512) % 2
    m[1 << 14 : (1 << 14) + 512] = np.arange(512) % 4
    m[1 << 15 : (1 << 15) + 512] = np.arange(512) // 2 % 256
    m.or_(1 << 23, 1 << 24, 0x80)
    for gfn in range(1 << 21, 1 << 22, 99991):
        m[gfn] = 7
    return m


def loaded(name: str) -> AttributeMap:
    path = DATA / name
    if path.suffix == ".pickle":
        result = pickle.loads(path.read_bytes())
        assert isinstance(result, AttributeMap)
        return result
    return AttributeMap.load(path)


@pytest.mark.parametrize("name", ["saved-v1.kvmattr", "pickled-v1.pickle"])
def test_what_the_first_version_wrote_loads(name: str) -> None:
    m = loaded(name)
    m.validate()
    assert (len(m), m.default) == (1 << 24, 2)
    assert (m[999], m[1000], m[(1 << 15) + 511], m[1 << 21], m[(1 << 24) - 1]) == (2, 5, 255, 7, 0x82)
    assert m.run_count == 1 + 1 + 512 + 1 + 512 + 1 + 256 + 1 + 1 + 2 * 21 + 1
    assert m == content()
    m.clear()
    assert m.uniform(0, 1 << 24) == 2


def test_a_map_goes_to_another_process_and_back(tmp_path: Path) -> None:
    program = (
        "import pickle, sys\n"
        "m = pickle.load(sys.stdin.buffer)\n"
        "m.or_(5, 1 << 23, 0x40)\n"
        "sys.stdout.buffer.write(pickle.dumps(m, protocol=5))\n"
    )
    sent = content()
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(sent, protocol=5),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        check=True,
    )
    back = pickle.loads(done.stdout)
    sent.or_(5, 1 << 23, 0x40)
    assert back == sent
    back.validate()
