"""Files in which other tools keep times: pytest-benchmark's, asv's and hyperfine's JSON, read to one form."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmattr.gate.verdict import Usage

#: What has to be equal in files that are compared, in the words of the messages.
FINGERPRINT = ("CPU", "number of CPUs", "architecture", "system", "governor", "machine", "Python")


@dataclass(frozen=True)
class Times:
    """One benchmark of one file: seconds. ``trouble`` says why they cannot be used; ``skipped``: on purpose."""

    median: float
    samples: tuple[float, ...] = ()
    group: str | None = None
    trouble: str | None = None
    skipped: bool = False

    @property
    def wrong(self) -> str | None:
        """What keeps them from being compared: a ratio to 0 or to NaN says nothing."""
        if self.trouble is not None:
            return self.trouble
        for words, value in [("a median", self.median), *(("a round", each) for each in self.samples)]:
            if not (math.isfinite(value) and value > 0):
                return f"{words} of {value:g} s"
        return None


@dataclass(frozen=True)
class TimeFile:
    """What a file says: its benchmarks, and what is known of the machine that made it (keys of FINGERPRINT)."""

    path: Path
    times: dict[str, Times]
    machine: dict[str, str]
    host: str | None = None


def read(path: Path) -> TimeFile:
    """Read a file of any of the three tools; Usage if it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError
        if isinstance(data.get("benchmarks"), list):
            return _pytest_benchmark(path, data)
        if isinstance(data.get("results"), list):
            return _hyperfine(path, data)
        if isinstance(data.get("results"), dict):
            return _asv(path, data)
        raise TypeError
    except OSError as error:
        raise Usage(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise Usage(f"{path}: not a JSON file of pytest-benchmark, asv or hyperfine") from None


def _known(words: dict[str, Any]) -> dict[str, str]:
    return {word: str(value) for word, value in words.items() if value not in (None, "")}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _pytest_benchmark(path: Path, data: dict[str, Any]) -> TimeFile:
    machine = data["machine_info"]
    cpu = machine.get("cpu") or {}
    python = [machine.get("python_implementation"), machine.get("python_version")]
    times = {}
    for each in data["benchmarks"]:
        stats = each["stats"]
        times[each["fullname"]] = Times(_number(stats["median"]), tuple(map(_number, stats.get("data") or ())),
                                        each.get("group"))
    return TimeFile(path, times, _known({
        "CPU": cpu.get("brand_raw") or cpu.get("brand"), "number of CPUs": cpu.get("count"),
        "architecture": cpu.get("arch"), "system": machine.get("system"),
        "governor": cpu.get("governor") or machine.get("governor"), "machine": machine.get("machine"),
        "Python": " ".join(word for word in python if word)}), machine.get("node"))


def _hyperfine(path: Path, data: dict[str, Any]) -> TimeFile:
    """It knows nothing of the machine. A command may be there with several parameters."""
    times = {}
    for each in data["results"]:
        words = [each["command"], *(f"{name}={value}" for name, value in (each.get("parameters") or {}).items()
                                    if str(value) not in each["command"])]
        failed = sorted({code for code in each.get("exit_codes") or () if code})
        trouble = f"the command ended with {', '.join(map(str, failed))}" if failed else None
        name = " ".join(words)
        if name in times:
            trouble = "it is there twice (--command-name gives each command its own)"
        times[name] = Times(_number(each["median"]), tuple(map(_number, each.get("times") or ())), trouble=trouble)
    return TimeFile(path, times, {})


def _asv(path: Path, data: dict[str, Any]) -> TimeFile:
    """A result file of one commit; what measures no time (mem_, peakmem_, track_) is not looked at."""
    columns = data.get("result_columns", ["result", "params"])
    times = {}
    for name, found in data["results"].items():
        if not name.rpartition(".")[2].startswith("time"):
            continue
        if isinstance(found, list):
            row = dict(zip(columns, found, strict=False))
        else:
            row = found if isinstance(found, dict) else {"result": [found]}
        results = row["result"] if isinstance(row["result"], list) else [row["result"]]
        samples = row.get("samples") or [None] * len(results)
        cells = list(itertools.product(*(row.get("params") or [])))
        for cell, median, rounds in zip(cells, results, samples, strict=False):
            full = f"{name}({', '.join(map(str, cell))})" if cell else name
            skipped = median is not None and math.isnan(median)     # asv writes null for one that failed
            trouble = "no result (the benchmark failed)" if median is None else "skipped" if skipped else None
            times[full] = Times(_number(median), tuple(map(_number, rounds or ())), None, trouble, skipped)
    machine = data.get("params") or {}
    python = str(machine.get("python") or data.get("python") or "")
    return TimeFile(path, times, _known({
        "CPU": machine.get("cpu"), "number of CPUs": machine.get("num_cpu"), "architecture": machine.get("arch"),
        "system": machine.get("os"),
        # Where it was told to use an environment that exists, asv has its path: that may differ for one Python.
        "Python": "" if "/" in python else python}), machine.get("machine"))


def differences(files: list[TimeFile]) -> Iterator[tuple[str, TimeFile, TimeFile]]:
    """What is known of two files' machines and differs: the word, the first file that knows it, and another."""
    for word in FINGERPRINT:
        known = [each for each in files if word in each.machine]
        for each in known[1:]:
            if each.machine[word] != known[0].machine[word]:
                yield word, known[0], each
                break
