"""Fit the parameters of `kvmattr.trace.instructions` to counted calls, and judge them by recordings.

`python -m emulation.fit results/kernel/calls.json` prints what each kind of work takes and how far each recording's
estimate is off; `--data kvmattr/trace/linux-VERSION.json` writes what the package ships. A road counts with the inverse
of its instructions, so that the fit is of relative errors; recordings take no part in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emulation.calls import fitted, recordings
from kvmattr.trace import machine_for, replay
from kvmattr.trace.instructions import ATTRIBUTE_WORK, SLOT_WORK, Estimating, Parameters

_WORK = {"attributes": ATTRIBUTE_WORK, "memslots": SLOT_WORK}


def solved(names: Sequence[str], work: Sequence[dict[str, float]], instructions: Sequence[int]) -> dict[str, float]:
    """The least squares of the relative errors, without parameters below 0: work takes no less than nothing."""
    matrix = np.array([[each.get(name, 0) for name in names] for each in work], np.float64)
    matrix /= np.array(instructions, np.float64)[:, None]
    kept = list(range(len(names)))
    while True:
        found = np.linalg.lstsq(matrix[:, kept], np.ones(len(work)), rcond=None)[0]
        if found.min() >= 0:
            return dict.fromkeys(names, 0.0) | {
                names[index]: round(float(value), 4) for index, value in zip(kept, found, strict=True)}
        kept.pop(int(found.argmin()))


def fit(counted: dict[str, Any]) -> Parameters:
    """The parameters, by the roads that are for fitting; each must be one of those that this tree makes."""
    instructions = {(road["side"], road["name"]): road["instructions"] for road in counted["roads"]
                    if not road["held_out"]}
    roads = {side: [road for road in fitted() if road.side == side] for side in _WORK}
    found = {side: solved(_WORK[side], [road.work() for road in roads[side]],
                          [instructions[side, road.name] for road in roads[side]]) for side in _WORK}
    return Parameters(counted["kernel"], counted["cpu"], found["attributes"], found["memslots"], 0.0)


def _residuals(counted: dict[str, Any], parameters: Parameters) -> list[tuple[float, str]]:
    instructions = {(road["side"], road["name"]): road["instructions"] for road in counted["roads"]}
    of = {"attributes": parameters.of_attributes, "memslots": parameters.of_memslots}
    return [(of[road.side](road.work()) / instructions[road.side, road.name] - 1, f"{road.side}, {road.name}")
            for road in fitted()]


def judged(counted: dict[str, Any], parameters: Parameters) -> list[dict[str, Any]]:
    """The recordings that were counted, each side with its estimate and how far that is off."""
    instructions = {(road["side"], road["name"]): road["instructions"] for road in counted["roads"]
                    if road["held_out"]}
    rows = []
    for name, trace, abi in recordings():
        with trace:
            watch = Estimating()
            replay(trace, machine_for(trace, abi), watch=watch)
        for side, estimate in (("attributes", parameters.of_attributes(watch.attribute_work())),
                               ("memslots", parameters.of_memslots(watch.memslots))):
            if (side, name) in instructions:
                took = instructions[side, name]
                rows.append({"name": name, "side": side, "counted": took, "estimate": round(estimate),
                             "error": round(estimate / took - 1, 4)})
    return rows


def main(words: list[str]) -> int:
    """Fit, judge, print; write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counted", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="show so many of the roads that fit worst")
    chosen = parser.parse_args(words)
    counted = json.loads(chosen.counted.read_text())
    parameters = fit(counted)
    for side, values in (("attributes", parameters.attributes), ("memslots", parameters.memslots)):
        print(f"{side}: " + ", ".join(f"{name} {value:,.4g}" for name, value in values.items()))
    for error, name in sorted(_residuals(counted, parameters), key=lambda row: -abs(row[0]))[:chosen.worst]:
        print(f"{error:>+8.1%}  fitted: {name}")
    rows = judged(counted, parameters)
    for row in rows:
        print(f"{row['error']:>+8.1%}  {row['counted']:>15,}  {row['side']} of {row['name']}")
    if chosen.data:
        result = {"kernel": parameters.kernel, "cpu": parameters.cpu,
                  "unit": "guest instructions (QEMU's -icount: the guest's clock counts them)",
                  "attributes": parameters.attributes, "memslots": parameters.memslots,
                  "error": max(abs(row["error"]) for row in rows), "held_out": rows}
        chosen.data.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
