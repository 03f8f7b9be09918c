"""Which question: do the sizes of the arena's segments pay for guests of every size, or for the fragmented guest of
64 GiB alone?

    python bench/segments.py                    builds the store once for each variant, then measures (a minute)
    python bench/segments.py --rounds 200       more rounds, for a machine that does other things too
    KVMATTR_SIMD=avx2 python bench/segments.py  with the kernels of another set; --keep DIR builds only once

How to read it: all variants are loaded into one process and measured in turns, a few milliseconds each. A cell is the
median, over the rounds, of a variant's time by that of the store as it is in the same round, with its interval at 95 %:
what happens on the machine meanwhile falls on both sides of a ratio. `pays` tells that the whole interval is above
1.02, so that what the variant takes away is worth having; `costs` that it is below 0.98. `noise` is a second build of
the store as it is: it must pay and cost nowhere. Guests are as fragmented as a guest can be up to 1 TiB, every other
page; of larger ones every eighth GiB is. The clock is the thread's CPU time.
The results are in results/segments.txt. Up to 64 GiB no variant's batches differ from the store as it is by more than
5 %. Of larger guests nothing can be told yet: `noise` itself differs there by up to 31 %, by which pages of memory a
build's guest was given. So no size is justified by these results over another. Their last two columns were two special
cases, a segment that was foreseen and heights of four as constants: they paid nowhere, and the store has them no more.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import thread_time_ns
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path.append(str(HERE))  # behind an installed kvmattr: the tree's own is for work in the tree

import numpy as np  # noqa: E402

# Each build of the store imports kvmattr, and is told from the one that is imported here.
from kvmattr.measure.rounds import turns  # noqa: E402
from kvmattr.measure.statistics import Ratio  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402
from tests.mutants import copy_of_the_tree  # noqa: E402

GIB = 1 << 18  # pages
GUESTS = {"1 GiB": GIB, "16 GiB": 16 * GIB, "64 GiB": 64 * GIB, "1 TiB": 1024 * GIB, "16 TiB": 16384 * GIB}
MANY, FEW = 50_000, 5_000  # pages of a batch, and pages one by one
WHOLE = 1024 * GIB  # guests up to this are fragmented everywhere
#: What each variant changes: file, text, other text.
VARIANTS: dict[str, list[tuple[str, str, str]]] = {
    "as it is": [],
    "noise": [("_store/pages.pxi", "SECOND_SEGMENT_PAGES = 1024", "SECOND_SEGMENT_PAGES = 1024")],
    "second segment 1 MiB": [("_store/pages.pxi", "SECOND_SEGMENT_PAGES = 1024", "SECOND_SEGMENT_PAGES = 256")],
    "second segment 16 MiB": [("_store/pages.pxi", "SECOND_SEGMENT_PAGES = 1024", "SECOND_SEGMENT_PAGES = 4096")],
}


def build(name: str, changes: list[tuple[str, str, str]], into: Path) -> Path:
    """A copy of the tree with only the store compiled anew."""
    folder = into / name.replace(" ", "-")
    if folder.exists():
        return folder / "tree"
    print(f"building: {name}", file=sys.stderr, flush=True)
    tree = copy_of_the_tree(folder)
    for file, text, other in changes:
        path = tree / "kvmattr" / file
        source = path.read_text()
        if text not in source:
            raise SystemExit(f"segments.py: {file} has no {text!r} any more")
        path.write_text(source.replace(text, other))
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True,
                   stdout=subprocess.DEVNULL)
    return tree


def loaded(tree: Path) -> Any:
    """The AttributeMap of a variant: each build has memory and constants of its own."""
    [library] = (tree / "kvmattr").glob("_core.*.so")
    spec = importlib.util.spec_from_loader("_core", importlib.machinery.ExtensionFileLoader("_core", str(library)))
    assert spec
    module = importlib.util.module_from_spec(spec)
    assert spec.loader
    spec.loader.exec_module(module)
    return module.AttributeMap


def fragmented(pages: int) -> np.ndarray:
    """The first page of each GiB that is fragmented."""
    starts = range(0, pages, GIB)
    return np.array([start for start in starts if pages <= WHOLE or start // GIB % 8 == 0], np.uint64)


def guest_of(attribute_map: Any, pages: int) -> Any:
    guest = attribute_map(pages)
    bits = np.full(GIB // 8, 0xAA, np.uint8)
    for start in fragmented(pages).tolist():
        guest.put_bitmap(start, bits, 1)
    return guest


def one_by_one(get: Any, gfns: list[int]) -> None:
    for gfn in gfns:
        get(gfn)


def cell(ratio: Ratio) -> str:
    verdict = " pays" if ratio.low > 1.02 else " costs" if ratio.high < 0.98 else ""
    return f"{ratio.median:.2f} {ratio.low:.2f}-{ratio.high:.2f}{verdict}"


def measure(pages: int, variants: dict[str, Any], rounds: int) -> dict[str, dict[str, list[float]]]:
    """The times of each work and variant, round for round, in ns a page."""
    guests = {name: guest_of(variant, pages) for name, variant in variants.items()}
    where = fragmented(pages)
    rng = np.random.default_rng(1)
    times: dict[str, dict[str, list[float]]] = {work: {name: [] for name in guests} for work in ("get", "take", "put")}
    drawn, many = -1, where
    for turn, name in turns(list(guests), rounds + 2):              # the first two warm up
        if turn > drawn:
            drawn, many = turn, rng.choice(where, MANY) + rng.integers(0, GIB, MANY).astype(np.uint64)
        guest, few = guests[name], many[:FEW].tolist()
        for work, pages_asked, call in (("get", FEW, partial(one_by_one, guest.get, few)),
                                        ("take", MANY, partial(guest.take, many)),
                                        ("put", MANY, partial(guest.put, many, turn & 1))):
            begin = thread_time_ns()
            call()
            times[work][name].append((thread_time_ns() - begin) / pages_asked)
    return {work: {name: each[2:] for name, each in of.items()} for work, of in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="build here, and take what was built here before")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        where = arguments.keep or Path(scratch)
        variants = {name: loaded(build(name, changes, where)) for name, changes in VARIANTS.items()}
    names = [name for name in variants if VARIANTS[name]]
    rows = [[f"{guest} {work}", *(cell(Ratio.of(times[name], times["as it is"])) for name in names),
             f"{np.median(times['as it is']):.1f}"]
            for guest, pages in GUESTS.items() for work, times in measure(pages, variants, arguments.rounds).items()]
    print(fitted(["guest", *names, "ns as it is"], rows, 180))


if __name__ == "__main__":
    main()
