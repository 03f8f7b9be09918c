"""Which question: do the sizes of the arena's segments, and the special cases for a way of four levels, pay for guests
of every size, or for the fragmented guest of 64 GiB alone?

    python bench/segments.py                    builds the store once for each variant (a minute each), then measures
    python bench/segments.py --rounds 60        more rounds, for a machine that does other things too

How to read it: a cell is the least time of a variant by the least of the store as it is, over rounds in which all are
measured in turns; above 1.00 the variant is slower. `noise` is a second build of the store as it is: what differs from
1.00 by no more than that says nothing. Guests are as fragmented as a guest can be up to 1 TiB, every other
page; of larger ones every eighth GiB is. The clock is the thread's CPU time. Results are written beside the constants:
_store/pages.pxi, kernels/contract.h, kernels/plain_walk.h.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import thread_time_ns
from typing import Any

HERE = Path(__file__).resolve().parents[1]
GIB = 1 << 18  # pages
GUESTS = {"1 GiB": GIB, "16 GiB": 16 * GIB, "64 GiB": 64 * GIB, "256 GiB": 256 * GIB, "1 TiB": 1024 * GIB,
          "4 TiB": 4096 * GIB, "16 TiB": 16384 * GIB}
WHOLE = 1024 * GIB  # guests up to this are fragmented everywhere
#: What each variant changes: file, text, other text.
VARIANTS: dict[str, list[tuple[str, str, str]]] = {
    "as it is": [],
    "noise": [("_store/pages.pxi", "SECOND_SEGMENT_PAGES = 1024", "SECOND_SEGMENT_PAGES = 1024")],
    "second segment 1 MiB": [("_store/pages.pxi", "SECOND_SEGMENT_PAGES = 1024", "SECOND_SEGMENT_PAGES = 256")],
    "second segment 16 MiB": [("_store/pages.pxi", "SECOND_SEGMENT_PAGES = 1024", "SECOND_SEGMENT_PAGES = 4096")],
    "no segment foreseen": [("kernels/contract.h", "if (__builtin_expect(segment == 2, 1)) {",
                             "return kvmattr_words(bias, handle);\n    if (segment == 2) {")],
    "levels not constant": [("kernels/plain_walk.h", "&& walk->level == 4)", "&& walk->level == 99)")],
}


def build(name: str, changes: list[tuple[str, str, str]], into: Path) -> Path:
    """A copy of the tree with only the store compiled anew."""
    print(f"building: {name}", file=sys.stderr, flush=True)
    tree = into / name.replace(" ", "-")
    shutil.copytree(HERE / "kvmattr", tree / "kvmattr", ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "pytest_kvmattr.py"):
        shutil.copy(HERE / file, tree)
    for source in (tree / "kvmattr").rglob("*.pyx"):
        if source.name != "_core.pyx":
            source.unlink()
    for file, text, other in changes:
        path = tree / "kvmattr" / file
        source = path.read_text()
        if text not in source:
            raise SystemExit(f"segments.py: {file} has no {text!r} any more")
        path.write_text(source.replace(text, other))
    (tree / "kvmattr" / "_core.pyx").touch()
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True,
                   stdout=subprocess.DEVNULL)
    return tree


def measure(pages: int) -> None:
    """The process of one variant: makes the guest, then answers each line with the times of one round."""
    import numpy as np

    from kvmattr import AttributeMap

    m = AttributeMap(pages)
    bits = np.full(GIB // 8, 0xAA, np.uint8)
    fragmented = [start for start in range(0, pages, GIB) if pages <= WHOLE or start // GIB % 8 == 0]
    for start in fragmented:
        m.put_bitmap(start, bits, 1)
    rng = np.random.default_rng(1)
    where = np.array(fragmented, np.uint64)

    def gfns(count: int) -> Any:
        return rng.choice(where, count) + rng.integers(0, GIB, count).astype(np.uint64)

    for _ in sys.stdin:
        times = {}
        many, few = gfns(200_000), gfns(20_000).tolist()
        get = m.get
        begin = thread_time_ns()
        for gfn in few:
            get(gfn)
        times["get"] = (thread_time_ns() - begin) / len(few)
        begin = thread_time_ns()
        m.take(many)
        times["take"] = (thread_time_ns() - begin) / len(many)
        begin = thread_time_ns()
        m.put(many, 1)
        times["put"] = (thread_time_ns() - begin) / len(many)
        m.put(many[many & np.uint64(1) == 0], 0)
        print(json.dumps(times), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    if not list((HERE / "kvmattr").glob("_core.*.so")):
        raise SystemExit("segments.py: needs a tree that is built in place: python setup.py build_ext --inplace")
    with tempfile.TemporaryDirectory() as scratch:
        trees = {name: build(name, changes, Path(scratch)) for name, changes in VARIANTS.items()}
        names = [name for name in VARIANTS if VARIANTS[name]]
        print(f"{'guest':>8} {'':5}" + "".join(f"{name:>24}" for name in names) + "     ns as it is")
        for guest, pages in GUESTS.items():
            workers = {name: subprocess.Popen([sys.executable, __file__, "--measure", str(pages)], text=True,
                                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                              env={**os.environ, "PYTHONPATH": str(tree)})
                       for name, tree in trees.items()}
            rounds: list[dict[str, dict[str, float]]] = []
            for _ in range(arguments.rounds + 1):
                answers = {}
                for name, worker in workers.items():
                    assert worker.stdin
                    assert worker.stdout
                    print("go", file=worker.stdin, flush=True)
                    answers[name] = json.loads(worker.stdout.readline())
                rounds.append(answers)
            for worker in workers.values():
                assert worker.stdin
                worker.stdin.close()
                worker.wait()
            for work in ("get", "take", "put"):
                least = {name: min(answers[name][work] for answers in rounds[1:]) for name in trees}
                cells = [least[name] / least["as it is"] for name in names]
                print(f"{guest:>8} {work:5}" + "".join(f"{cell:24.2f}" for cell in cells)
                      + f"{least['as it is']:12.1f}", flush=True)


if __name__ == "__main__":
    main()
