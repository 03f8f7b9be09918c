"""A report as data: what JSON and CSV hold, read back with every field checked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmattr.measure.writing import write
from kvmattr.study.results import STATUSES, Result, comparisons

SCHEMA = 1
_COLUMNS = ("scenario", "backend", "kind", "size", "unit", "status", "median", "p10", "p90", "low", "high",
            "operations", "overhead", "reached", "note", "host")


@dataclass(frozen=True)
class Report:
    """One run: machine, method, load, and the results. docs/report-schema.md describes the JSON."""

    machine: dict[str, Any]
    method: dict[str, Any]
    load: dict[str, float]
    results: list[Result]
    interrupted: bool = False

    def as_record(self) -> dict[str, Any]:
        """The JSON document."""
        return {"schema": SCHEMA, "machine": self.machine, "method": self.method, "load": self.load,
                "interrupted": self.interrupted, "results": [result.as_record() for result in self.results],
                "comparisons": [ratio.as_record() for ratio in comparisons(self.results)]}

    @classmethod
    def from_record(cls, record: Any, name: str) -> Report:
        """Check and take a JSON document; ``name`` says in errors where it came from."""
        if not isinstance(record, dict) or "schema" not in record:
            raise ValueError(f"{name} is not a report: it has no \"schema\"")
        if record["schema"] != SCHEMA:
            raise ValueError(f"{name} has schema {record['schema']!r}: this version reads schema {SCHEMA}")
        try:
            results = [Result.from_record(result) for result in record["results"]]
            report = cls(record["machine"], record["method"], record["load"], results, record["interrupted"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{name} is not a whole report: {error} is missing or wrong") from error
        unknown = {result.status for result in results} - STATUSES.keys()
        if unknown:
            known = ", ".join(STATUSES)
            raise ValueError(f"{name} has results of status {sorted(unknown)}: known are {known}")
        return report

    def as_json(self) -> str:
        """The JSON document as text."""
        return json.dumps(self.as_record(), indent=1) + "\n"

    def save_json(self, path: Path) -> None:
        """Write the JSON document."""
        write(path, self.as_json())

    def save_csv(self, path: Path) -> None:
        """Write one line a result, without the samples."""
        write(path, self.as_csv())

    def as_csv(self) -> str:
        """One line a result, without the samples, as text."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(result.as_record() for result in self.results)
        return text.getvalue()


def load(path: Path) -> Report:
    """Read a JSON report. Raises OSError, or ValueError that says what is wrong with the file."""
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return Report.from_record(record, str(path))


def names_known(kind: str, asked: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError that lists the known names if one that was asked for is not among them."""
    for name in asked:
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}: known are {', '.join(known)}")
