"""Files in which other tools keep times: pytest-benchmark's, asv's and hyperfine's JSON, read to one form."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmattr.gate.verdict import Usage

#: What has to be equal in files that are compared, in the words of the messages.
FINGERPRINT = ("CPU", "number of CPUs", "architecture", "system", "governor", "machine", "Python")

_TWICE = "it is there twice (hyperfine: --command-name gives each command its own)"


@dataclass(frozen=True)
class Times:
    """One benchmark of one file: seconds, or the ``bytes`` that it took. ``trouble`` says why they cannot be used;
    ``skipped``: on purpose; ``version``: of the benchmark's own code, or its timer, where the tool keeps one."""

    median: float
    samples: tuple[float, ...] = ()
    group: str | None = None
    trouble: str | None = None
    skipped: bool = False
    version: str | None = None
    unit: str = "s"

    @property
    def wrong(self) -> str | None:
        """What keeps them from being compared: a ratio to 0 or to NaN says nothing."""
        if self.trouble is not None:
            return self.trouble
        for words, value in [("a median", self.median), *(("a round", each) for each in self.samples)]:
            if not (math.isfinite(value) and value > 0):
                return f"{words} of {value:g} {self.unit}"
        return None


@dataclass(frozen=True)
class TimeFile:
    """What a file says: its benchmarks, what is known of the machine that made it (keys of FINGERPRINT), and the names
    of what measures neither time nor memory."""

    path: Path
    tool: str
    times: dict[str, Times]
    machine: dict[str, str]
    others: tuple[str, ...] = ()
    digest: bytes = b""
    commit: str | None = None

    @classmethod
    def of(cls, path: Path, tool: str, found: Iterable[tuple[str, Times]], machine: dict[str, Any],
           others: Iterable[str] = ()) -> TimeFile:
        """Names that are there twice are told, and what a terminal or a CI would obey is spelled."""
        times: dict[str, Times] = {}
        for raw, each in found:
            name = _spelled(raw)
            times[name] = each if name not in times else dataclasses.replace(each, trouble=_TWICE)
        known = {word: str(value) for word, value in machine.items() if value not in (None, "")}
        return cls(path, tool, times, known, tuple(map(_spelled, others)))


def read(path: Path) -> TimeFile:
    """Read a file of any of the three tools; Usage if it is none."""
    try:
        raw = path.read_bytes()
        data = json.loads(raw)      # in UTF-8 or UTF-16, with a byte order mark or without
        if not isinstance(data, dict):
            raise TypeError
        if isinstance(data.get("benchmarks"), list):
            found, commit = _pytest_benchmark(path, data), _mapping(data.get("commit_info")).get("id")
        elif isinstance(data.get("results"), list):
            found, commit = _hyperfine(path, data), None
        elif isinstance(data.get("results"), dict):
            found, commit = _asv(path, data), data.get("commit_hash")
        else:
            raise TypeError
    except OSError as error:
        raise Usage(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise Usage(f"{path}: not a JSON file of pytest-benchmark, asv or hyperfine") from None
    return dataclasses.replace(found, digest=hashlib.sha256(raw).digest(),
                               commit=str(commit) if commit not in (None, "", "unversioned") else None)


def _spelled(name: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


def _number(value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:       # an integer of hundreds of digits
        return math.inf


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(_number, values or ()))


def _pytest_benchmark(path: Path, data: dict[str, Any]) -> TimeFile:
    # A project's hook may put anything in the place of what pytest-benchmark knows of the machine.
    machine = _mapping(data.get("machine_info"))
    cpu = _mapping(machine.get("cpu")) or {"brand": machine.get("cpu")}
    python = [machine.get("python_implementation"), machine.get("python_version")]
    found = ((each["fullname"], Times(_number(each["stats"]["median"]), _numbers(each["stats"].get("data")),
                                      each.get("group"), version=_mapping(each.get("options")).get("timer")))
             for each in data["benchmarks"])
    return TimeFile.of(path, "pytest-benchmark", found, {
        "CPU": cpu.get("brand_raw") or cpu.get("brand"), "number of CPUs": cpu.get("count"),
        "architecture": cpu.get("arch"), "system": machine.get("system"),
        "governor": cpu.get("governor") or machine.get("governor"), "machine": machine.get("machine"),
        "Python": " ".join(word for word in python if word)})


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _hyperfine(path: Path, data: dict[str, Any]) -> TimeFile:
    """It knows nothing of the machine. A command may be there with several parameters; later ones have its memory."""
    found = []
    for each in data["results"]:
        words = [each["command"], *(f"{name}={value}" for name, value in (each.get("parameters") or {}).items()
                                    if str(value) not in each["command"])]
        codes = each.get("exit_codes") or ()
        failed = [str(code) for code in sorted({code for code in codes if code})]
        if None in codes:
            failed.append("a signal")
        trouble = f"the command ended with {', '.join(failed)}" if failed else None
        name = " ".join(words)
        found.append((name, Times(_number(each["median"]), _numbers(each.get("times")), trouble=trouble)))
        if memory := _numbers(each.get("memory_usage_byte")):
            found.append((f"{name} (memory)", Times(statistics.median(memory), trouble=trouble, unit="bytes")))
    return TimeFile.of(path, "hyperfine", found, {})


#: What the name of an asv benchmark of time or memory begins with.
_ASV_NAME = re.compile(r"(?:time(?:raw)?|peakmem|mem)_|(?:Time(?:raw)?|PeakMem|Mem)[A-Z_]")


def _asv(path: Path, data: dict[str, Any]) -> TimeFile:
    """A result file of one commit; what measures neither time nor memory (track_) is not judged."""
    columns = data.get("result_columns", ["result", "params"])
    times, others = [], []
    for name, found in data["results"].items():
        kind = _ASV_NAME.match(name.rpartition(".")[2])
        if kind is None:
            others.append(name)
            continue
        unit = "s" if kind[0].startswith(("t", "T")) else "bytes"
        if isinstance(found, list):
            row = dict(zip(columns, found, strict=False))
        else:
            row = found if isinstance(found, dict) else {"result": [found]}
        cells = list(itertools.product(*(row.get("params") or [])))
        # One that failed for all of its parameters has one null.
        results = row["result"] if isinstance(row["result"], list) else [row["result"]] * len(cells)
        samples = row.get("samples") or [None] * len(results)
        for cell, median, rounds in zip(cells, results, samples, strict=False):
            full = f"{name}({', '.join(map(str, cell))})" if cell else name
            skipped = median is not None and math.isnan(median)     # asv writes null for one that failed
            trouble = "no result (the benchmark failed)" if median is None else "skipped" if skipped else None
            times.append((full, Times(_number(median), _numbers(rounds), None, trouble, skipped, row.get("version"),
                                      unit)))
    machine = data.get("params") or {}
    python = str(machine.get("python") or data.get("python") or "")
    return TimeFile.of(path, "asv", times, {
        "CPU": machine.get("cpu"), "number of CPUs": machine.get("num_cpu"), "architecture": machine.get("arch"),
        "system": machine.get("os"),
        # Where it was told to use an environment that exists, asv has its path: that may differ for one Python.
        "Python": "" if "/" in python else python}, others)
