"""Which question: do the sizes of the arena's segments, and the special cases for a way of four levels, pay for guests
of every size, or for the fragmented guest of 64 GiB alone?

    python bench/segments.py                    builds the store once for each variant, then measures (a minute)
    python bench/segments.py --rounds 200       more rounds, for a machine that does other things too
    KVMATTR_SIMD=avx2 python bench/segments.py  with the kernels of another set; --keep DIR builds only once

How to read it: all variants are loaded into one process and measured in turns, a few milliseconds each. A cell is the
median, over the rounds, of a variant's time by that of the store as it is in the same round, and the interval that
holds this median with 95 % certainty: what happens on the machine meanwhile falls on both sides of a ratio. `pays`
tells that the whole interval is above 1.02, so that what the variant takes away is worth having; `costs` that it is
below 0.98. `noise` is a second build of the store as it is: it must pay and cost nowhere. Guests are as fragmented as
a guest can be up to 1 TiB, every other page; of larger ones every eighth GiB is. The clock is the thread's CPU time.
The results are in results/segments.txt. Up to 64 GiB no variant's batches differ from the store as it is by more than
5 %. Of larger guests nothing can be told yet: `noise` itself differs there by up to 31 %, by which pages of memory a
build's guest was given. So no size is justified by these results over another.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import thread_time_ns
from typing import Any

import numpy as np

import kvmattr  # noqa: F401 - each build of the store imports it, and is told from the one that is imported here

HERE = Path(__file__).resolve().parents[1]
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
    "no segment foreseen": [("kernels/contract.h", "if (__builtin_expect(segment == 2, 1)) {",
                             "return kvmattr_words(bias, handle);\n    if (segment == 2) {")],
    "levels not constant": [("kernels/plain_walk.h", "&& walk->level == 4)", "&& walk->level == 99)")],
}


def build(name: str, changes: list[tuple[str, str, str]], into: Path) -> Path:
    """A copy of the tree with only the store compiled anew."""
    tree = into / name.replace(" ", "-")
    if tree.exists():
        return tree
    print(f"building: {name}", file=sys.stderr, flush=True)
    shutil.copytree(HERE / "kvmattr", tree / "kvmattr", ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "pytest_kvmattr.py"):
        shutil.copy(HERE / file, tree)
    for module in (tree / "kvmattr").rglob("*.pyx"):
        if module.name != "_core.pyx":
            module.unlink()
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


def timed(call: Any) -> int:
    begin = thread_time_ns()
    call()
    return thread_time_ns() - begin


def one_by_one(get: Any, gfns: list[int]) -> None:
    for gfn in gfns:
        get(gfn)


def median_and_interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median and the order statistics that hold it with 95 % certainty."""
    ratios = sorted(ratios)
    n = len(ratios)
    away = int(0.98 * n**0.5 + 0.5)
    return statistics.median(ratios), ratios[max(n // 2 - away, 0)], ratios[min((n - 1) // 2 + away, n - 1)]


def verdict(low: float, high: float) -> str:
    return "pays" if low > 1.02 else "costs" if high < 0.98 else ""


def measure(pages: int, variants: dict[str, Any], rounds: int) -> dict[str, dict[str, list[float]]]:
    """The times of each work and variant, round for round, in ns a page."""
    guests = {name: guest_of(variant, pages) for name, variant in variants.items()}
    where = fragmented(pages)
    rng = np.random.default_rng(1)
    times: dict[str, dict[str, list[float]]] = {work: {name: [] for name in guests} for work in ("get", "take", "put")}
    names = list(guests)
    for turn in range(rounds + 2):              # the first two warm up
        many = rng.choice(where, MANY) + rng.integers(0, GIB, MANY).astype(np.uint64)
        few = many[:FEW].tolist()
        value = turn & 1
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            guest = guests[name]
            for work, pages_asked, call in (("get", FEW, partial(one_by_one, guest.get, few)),
                                            ("take", MANY, partial(guest.take, many)),
                                            ("put", MANY, partial(guest.put, many, value))):
                took = timed(call)
                if turn > 1:
                    times[work][name].append(took / pages_asked)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="build here, and take what was built here before")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        where = arguments.keep or Path(scratch)
        variants = {name: loaded(build(name, changes, where)) for name, changes in VARIANTS.items()}
    names = [name for name in variants if VARIANTS[name]]
    print(f"{'guest':>8} {'':5}" + "".join(f"{name:>28}" for name in names) + "     ns as it is")
    for guest, pages in GUESTS.items():
        for work, times in measure(pages, variants, arguments.rounds).items():
            line = f"{guest:>8} {work:5}"
            for name in names:
                ratios = [other / ours for other, ours in zip(times[name], times["as it is"], strict=True)]
                median, low, high = median_and_interval(ratios)
                line += f"{median:10.2f} {low:5.2f}-{high:4.2f} {verdict(low, high):5}"
            print(f"{line}{statistics.median(times['as it is']):14.1f}", flush=True)


if __name__ == "__main__":
    main()
