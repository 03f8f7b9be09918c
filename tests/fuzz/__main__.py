"""python -m tests.fuzz [TARGET] [--seconds N] [--plain] [--seed N]: run the fuzzing targets, each for so long.

What a target finds ends the run with exit code 1 and with what brings it back: a file for the coverage-guided
ones, a seed for those that generate.
"""

from __future__ import annotations

import argparse
import random
import secrets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.fuzz import campaign, generated, native


def generate(target: str, seconds: float, seed: int | None) -> int:
    """A process of its own, so that a crash can be told and brought back."""
    first = secrets.randbits(32) if seed is None else seed
    words = ["--worker", target, str(first), "1" if seed is not None else "0", str(seconds)]
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    last, calls = done.stdout.split()[-2:]
    if done.returncode:
        print(f"{target}: a finding; again: python -m tests.fuzz {target} --seed {last}")
        raise subprocess.CalledProcessError(done.returncode, target)
    return int(calls)


def work(target: str, first: str, only: str, seconds: str) -> None:
    calls, seed, end = 0, int(first), time.monotonic() + float(seconds)
    while True:
        # Before the attack, so that the last line tells which one crashed.
        sys.stdout.write(f"{seed} {calls}\n")
        sys.stdout.flush()
        calls += generated.TARGETS[target](random.Random(f"{target} {seed}"))
        seed += 1
        if only == "1" or time.monotonic() > end:
            break
    print(seed, calls)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(*sys.argv[2:])
    targets = [*native.TARGETS, *generated.TARGETS]
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=targets)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--plain", action="store_true", help="without sanitizers: more executions, for campaigns")
    parser.add_argument("--record", action="store_true", help="add what was counted to docs/fuzzing.csv and trust.md")
    parser.add_argument("--seed", type=int, help="one world of a generating target, again")
    asked = parser.parse_args()
    lacking = native.missing()
    total = 0
    for target in [asked.target] if asked.target else targets:
        if target in native.TARGETS and lacking:
            print(f"{target}: not run: {lacking}")
            continue
        try:
            if target in native.TARGETS:
                count = native.fuzz(target, asked.seconds, Path(np.__file__).parent.parent, not asked.plain)
            else:
                count = generate(target, asked.seconds, asked.seed)
        except subprocess.CalledProcessError:
            raise SystemExit(1) from None
        print(f"{target}: {count:,} executions, nothing found", flush=True)
        if asked.record:
            build = "python" if target in generated.TARGETS else "plain" if asked.plain else "sanitized"
            campaign.record(target, build, count)
        total += count
    print(f"in all {total:,}")


if __name__ == "__main__":
    main()
