#!/usr/bin/env python3
"""Where does the store stand beside a dense numpy array, and beside its limits? One command, one table.

    python bench/table.py                                   the table; two or three minutes
    python bench/table.py --only take --only put            the rows whose names contain a word
    python bench/table.py --simd avx2,portable              the ratios under other kernels beside it
    python bench/table.py --results bench/results/NAME      writes NAME.json and NAME.txt
    python bench/table.py --quick                           a tiny guest, seconds; figures mean nothing

How to read it: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # behind an installed kvmattr: the tree's own is for work in the tree

import bench.machine  # noqa: E402, F401 - its rows
from bench.absolute import LIMITS, YARDSTICK  # noqa: E402
from bench.against_numpy import ROWS  # noqa: E402
from bench.curves import CURVES, measure_curve  # noqa: E402
from bench.guest import TINY, Guest  # noqa: E402
from bench.memory import CONTENTS, GROWTH, RESERVE, Content, weigh_apart  # noqa: E402
from bench.rounds import Row, compare, hot_scalar_ns, time_alone  # noqa: E402
from kvmattr import AttributeMap  # noqa: E402
from kvmattr.measure import writing  # noqa: E402
from kvmattr.measure.machine import Load, describe, in_words  # noqa: E402
from kvmattr.measure.rounds import undisturbed  # noqa: E402
from kvmattr.measure.statistics import Spread  # noqa: E402
from kvmattr.measure.status import overwritten  # noqa: E402
from kvmattr.measure.table import fitted  # noqa: E402
from kvmattr.measure.text import digits, quantity  # noqa: E402

Record = dict[str, Any]


# ---- measuring: a record for each row ----


def spread(samples: list[float]) -> Record:
    return asdict(Spread.of(samples))


def against_numpy(row: Row, guest: Guest, quick: bool) -> Record:
    samples = compare(row.make(guest), 2 if quick else row.rounds)
    ratio = spread(samples.ratios)
    verdict = judged(ratio["median"], row.target)
    if ratio["median"] > 1:
        verdict = f"{verdict}, slower".lstrip(", ")
    return {"kind": "ratio", "name": row.name, "target": row.target, "ratio": ratio, "form": samples.form,
            "store_ns": spread(samples.store), "numpy_ns": spread(samples.numpy), "checked": samples.checked,
            "verdict": verdict}


def against_limit(limit: Row, guest: Guest, quick: bool, scale: float) -> Record:
    samples = time_alone(limit.make(guest), 2 if quick else limit.rounds)
    time = spread(samples.store)
    target = limit.target and limit.target * scale
    return {"kind": "time", "name": limit.name, "target": target, "store_ns": time, "checked": samples.checked,
            "verdict": judged(time["median"], target)}


def against_bytes(content: Content, quick: bool) -> Record:
    weighed = weigh_apart(content, quick)
    verdict = judged(weighed["nbytes"], content.target)
    if weighed["growth"] > GROWTH * weighed["nbytes"] + RESERVE:
        verdict = "grows" if verdict == "ok" else f"{verdict}, grows"
    return {"kind": "memory", "name": content.name, "target": content.target, **weighed, "checked": 1,
            "verdict": verdict}


def judged(value: float, target: float | None) -> str:
    if target is None:
        return ""
    return "ok" if value <= target else "misses"


def measure(arguments: argparse.Namespace) -> Record:
    """All rows that were asked for, in the order of the table."""

    def wanted(rows: list[Any]) -> list[Any]:
        return [row for row in rows if not arguments.only or any(word in row.name for word in arguments.only)]

    machine = {**describe(), "kernels": AttributeMap(1).stats()["kernels"], "caches": caches()}
    load, average = Load.now(), os.getloadavg()
    guest = TINY if arguments.quick else Guest()
    rows, curves = [], []
    with undisturbed():
        machine["scalar_ns"] = yardstick = hot_scalar_ns()
        for each, measured in ((ROWS, partial(against_numpy, guest=guest)),
                               (LIMITS, partial(against_limit, guest=guest, scale=yardstick / YARDSTICK)),
                               (CONTENTS, against_bytes)):
            for row in wanted(each):
                overwritten(row.name)
                rows.append(measured(row, quick=arguments.quick))
        for curve in wanted(CURVES) if arguments.results or arguments.json else ():
            overwritten(curve.name)
            curves.append(measure_curve(curve, guest, *([2] if arguments.quick else [])))
    overwritten()
    if arguments.quick:
        for record in rows:  # a tiny guest says nothing about the targets
            record["verdict"] = ""
    return {"schema": 1, "quick": arguments.quick, "machine": machine, "rows": rows, "curves": curves,
            "load": {"average_before": average, "average_after": os.getloadavg(), **Load.now().since(load)}}


def caches() -> dict[str, str]:
    """The sizes of CPU 0's data caches as the kernel tells them; empty where it does not."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (cache / "type").read_text().strip() != "Instruction":
            found["L" + (cache / "level").read_text().strip()] = (cache / "size").read_text().strip()
    return found


def under_kernels(name: str, words: list[str]) -> Record:
    """The same table from a process that was told to use other kernels."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "table.json"
        done = subprocess.run([sys.executable, __file__, "--json", str(out), *words], text=True, stdout=subprocess.PIPE,
                              env={**os.environ, "KVMATTR_SIMD": name}, check=False)
        if done.returncode:
            raise SystemExit(f"table.py: kernels {name!r} cannot be measured (see above)")
        table: Record = json.loads(out.read_text())
        return table


# ---- printing ----

#: Of each kind of row: its header, and the column after which other kernels stand.
HEADERS = {
    "ratio": (["work, 64 GiB guest", "at most", "ratio", "p10..p90", "kvmattr", "numpy", "", "numpy's form"], 6),
    "time": (["work", "at most", "time", "p10..p90", ""], 4),
    "memory": (["content", "at most", "nbytes", "process grew", "over nbytes", ""], 5),
}


def ns(value: float) -> str:
    return quantity(value, "ns")


def cells(row: Record, others: dict[str, Record]) -> list[str]:
    """A row of the table, in the words of HEADERS."""
    same = [next(other for other in table["rows"] if other["name"] == row["name"]) for table in others.values()]
    if row["kind"] == "memory":
        sizes = [quantity(row[name], "bytes") for name in ("target", "nbytes", "growth")]
        return [row["name"], *sizes, f"{row['growth'] / row['nbytes'] - 1:+.0%}", row["verdict"]]
    key, words = ("ratio", digits) if row["kind"] == "ratio" else ("store_ns", ns)
    found = row[key]
    first = [row["name"], "" if row["target"] is None else words(row["target"]), words(found["median"]),
             f"{words(found['p10'])}..{words(found['p90'])}"]
    elsewhere = [words(other[key]["median"]) for other in same]
    if row["kind"] == "time":
        return [*first, *elsewhere, row["verdict"]]
    times = [ns(row[name]["median"]) for name in ("store_ns", "numpy_ns")]
    return [*first, *times, *elsewhere, row["verdict"], row["form"]]


def printed(table: Record, others: dict[str, Record]) -> str:
    machine, load = table["machine"], table["load"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    lines = [
        in_words(machine), f"caches {caches}; kernels {machine['kernels']}",
        f"numpy's scalar a[i], hot: {machine['scalar_ns']:.1f} ns (time limits are for {YARDSTICK:.0f} ns and scaled "
        "by it)",
        f"load {load['average_before'][0]:.2f} before, {load['average_after'][0]:.2f} after; others kept "
        f"{load['other_cpus']:.2f} CPUs busy, the hypervisor took {load['stolen_cpus']:.2f}",
    ]
    if table["quick"]:
        lines.append("QUICK: a tiny guest. No figure below may be compared with a target: none is judged.")
    for kind, (header, kernels) in HEADERS.items():
        if rows := [row for row in table["rows"] if row["kind"] == kind]:
            named = [*header[:kernels], *(others if kind != "memory" else ()), *header[kernels:]]
            lines += ["", fitted(named, [cells(row, others) for row in rows], 250, left=(0, len(named) - 1))]
    trouble = [f"{row['name']} ({row['verdict']})" for row in table["rows"] if row["verdict"] not in ("ok", "")]
    if table["quick"]:
        return "\n".join(lines)
    return "\n".join([*lines, "", f"{len(table['rows']) - len(trouble)} of {len(table['rows'])} rows without trouble"
                      + (": all but " + "; ".join(trouble) if trouble else "")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny guest and two rounds")
    parser.add_argument("--only", action="append", metavar="WORD",
                        help="rows whose names contain WORD; may be repeated")
    parser.add_argument("--simd", default="", metavar="NAMES", help="also under these kernels, e.g. avx2,portable")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--results", type=Path, metavar="PATH", help="write PATH.json and PATH.txt")
    arguments = parser.parse_args()
    words = ["--quick"] * arguments.quick
    words += [word for only in arguments.only or () for word in ("--only", only)]
    table = measure(arguments)
    others = {name: under_kernels(name, words) for name in arguments.simd.split(",") if name}
    if others:
        table["kernels"] = {name: other["rows"] for name, other in others.items()}
    text = printed(table, others)
    print(text)
    as_json = json.dumps(table, indent=1) + "\n"
    files = [(arguments.json, as_json)] if arguments.json else []
    if arguments.results:                   # not with_suffix(): a name may have dots
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        files += [(f"{arguments.results}.json", as_json), (f"{arguments.results}.txt", text + "\n")]
    for place, content in files:
        writing.write(place, content)


if __name__ == "__main__":
    main()
