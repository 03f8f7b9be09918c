"""A report: what was measured and what follows from it, computed once. Renderings only draw it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvmattr.measure import checked, writing
from kvmattr.measure.checked import Field
from kvmattr.measure.extras import require
from kvmattr.study import growth, html, plots, scenarios, summary, table
from kvmattr.study.growth import Asked, Growth, Seen
from kvmattr.study.results import Comparison, Result, comparisons, load_of

#: Of the JSON that is written.
SCHEMA = 2
#: Schemas that are read.
READ = (1, 2)
_COLUMNS = ("scenario", "backend", "kind", "size", "unit", "status", "median", "p10", "p90", "low", "high",
            "operations", "overhead", "reached", "note", "host", "clock")


@dataclass(frozen=True)
class Report:
    """One run: machine, method, load, and the results. docs/report-schema.md describes the JSON."""

    machine: dict[str, Any]
    method: dict[str, Any]
    load: dict[str, float]
    results: list[Result]
    #: Ctrl-C, SIGTERM, SIGHUP or a closed pipe ended the run: the units that were done are here.
    interrupted: bool = False
    #: The scenarios of the results. Those that are not given are as this version has them; without question and
    #: expectations, where it has not.
    scenarios: Mapping[str, Asked] = field(default_factory=dict)
    #: What was asked for and is not in the results, each with its reason.
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = {name: scenarios.ALL[name].asked if name in scenarios.ALL else Asked(f"{name}?", "size", ())
                 for name in dict.fromkeys(result.scenario for result in self.results)}
        object.__setattr__(self, "scenarios", {**known, **self.scenarios})

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every ratio that may be formed."""
        return comparisons(self.results)

    @cached_property
    def ratios(self) -> dict[tuple[str, int, str], Comparison]:
        """The ratios by scenario, size and backend."""
        return {(ratio.scenario, ratio.size, ratio.backend): ratio for ratio in self.comparisons}

    @cached_property
    def seen(self) -> list[Seen]:
        """How every declared growth came out."""
        return growth.seen(self.results, self.scenarios)

    def unit_of(self, scenario: str) -> str:
        """What a scenario is measured in."""
        return next(result.unit for result in self.results if result.scenario == scenario)

    @property
    def sentences(self) -> list[str]:
        """What the run has to say, most important first."""
        return summary.sentences(self)

    def table(self, columns: int | None = None) -> str:
        """All tables as text, as wide as the terminal or as ``columns``."""
        return table.plain(self, columns)

    def figure(self, scenario: str, kind: str | None = None) -> Any:
        """A matplotlib figure of one scenario, on the backends of a kind (None: of the first that has one).

        Raises KeyError where nothing of it was measured at two sizes, ImportError without matplotlib.
        """
        for plot in plots.plots(self):
            if plot.scenario == scenario and kind in (None, plot.kind):
                return plot.figure
        raise KeyError(f"{scenario!r} was not measured at two sizes or more{(kind and f' on {kind} backends') or ''}")

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a result. Raises ImportError without pandas."""
        require("pandas")
        import pandas
        return pandas.DataFrame([result.as_record() for result in self.results])

    def html(self) -> str:
        """One self-contained page. Raises ImportError without matplotlib and jinja2."""
        return html.render(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": SCHEMA, "machine": self.machine, "method": self.method, "load": self.load,
            "interrupted": self.interrupted, "left_out": self.left_out,
            "scenarios": {name: vars(asked) | {"growths": [dataclasses.asdict(each) for each in asked.growths]}
                          for name, asked in self.scenarios.items()},
            "results": [result.as_record() for result in self.results],
            "comparisons": [ratio.as_record() for ratio in self.comparisons],
            "seen": [each.as_record() for each in self.seen],
        }

    def json(self) -> str:
        """The JSON document as text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def csv(self) -> str:
        """One line a result, without the samples, as text."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(result.as_record() for result in self.results)
        return text.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as its name ends: ``.json``, ``.csv`` or ``.html``. Raises CannotWrite, ValueError."""
        makers = {".json": self.json, ".csv": self.csv, ".html": self.html}
        suffix = Path(path).suffix
        if suffix not in makers:
            raise ValueError(f"{os.fspath(path)} ends in none of {', '.join(makers)}")
        writing.write(path, makers[suffix]())

    @classmethod
    def of(cls, record: Field) -> Report:
        """Check and take a JSON document. Raises BadField, in one line."""
        record.object()
        if "schema" not in record.object():
            record.refuse('a report, which has a "schema"')
        schema = record["schema"].integer()
        if schema not in READ:
            record["schema"].refuse(f"one of those that this version reads, {' and '.join(map(str, READ))}")
        machine = _object(record["machine"], inner=("kvm", ))
        record["machine"]["kvm"].object()
        record["machine"]["memory_bytes"].integer()
        for name in ("host", "kernel", "cpu", "python", "numpy", "kvmattr", "started"):
            record["machine"][name].text()
        record["method"]["rounds"].integer(1)
        load = {name: load_of(value) for name, value in record["load"].items()}
        for name in ("other_cpus", "stolen_cpus"):
            record["load"][name].number(0)
        results = record["results"].list(lambda each: Result.from_record(each, schema))
        _once(record["results"], results)
        asked = {} if schema == 1 else {name: _asked(each) for name, each in record["scenarios"].items()}
        left_out = [] if schema == 1 else record["left_out"].list(Field.text)
        return cls(machine, _object(record["method"]), load, results, record["interrupted"].boolean(), asked,
                   left_out)


def load(path: str | os.PathLike[str]) -> Report:
    """Read a JSON report of schema 1 or 2. Raises OSError, or ValueError that names file and field in one line."""
    return Report.of(checked.load(path))


def _once(record: Field, results: Sequence[Result]) -> None:
    """Refuse a cell that is there twice: in a comparison it would count as two runs."""
    seen = set[tuple[str, int, str]]()
    for item, result in zip(record.list(lambda each: each), results, strict=True):
        place = result.scenario, result.size, result.backend
        if place in seen:
            item.refuse(f"one result of {' '.join(map(str, place))}, not another")
        seen.add(place)


def _asked(record: Field) -> Asked:
    return Asked(record["question"].text(), record["size_name"].text(), tuple(record["growths"].list(_growth)))


def _growth(record: Field) -> Growth:
    return Growth(record["law"].one_of(list(growth.LAWS)), tuple(record["backends"].list(Field.text)),
                  record["because"].text(), record.get("since").optional(Field.integer) or 0)


def _object(record: Field, inner: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object of values that a page can show, but for ``inner`` ones, which are such objects."""
    for name, value in record.items():
        if name in inner:
            _object(value)
        elif isinstance(value.value, dict):
            value.refuse("a plain value")
    return record.object()
