"""The result of one cell: a scenario, at a size, by a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from kvmattr.measure.checked import Field
from kvmattr.measure.statistics import Ratio, Spread

#: How a cell ended. Only ``ok`` has a median.
STATUSES = {
    "ok": "measured",
    "failed": "the backend refused an update",
    "stopped": "the time limit of a cell was reached",
    "refused": "would have taken over a quarter of the free memory, or longer than its limit in one call",
    "unavailable": "cannot run on this machine",
    "unsupported": "cannot do what the scenario asks",
    "wrong": "its state or answer differs from the reference",
    "error": "something raised what it should not have: a defect, of the backend or of the study",
}

#: Nothing was tried: the backend is not here, or not made for this.
NOT_HERE = ("unavailable", "unsupported")

#: A run that has one of these did not go as it should: the exit code says so.
DEFECTS = ("wrong", "error")

#: What the backends of a kind have in common; ratios are formed within one of them.
KINDS = {"model": "compiled data structures in this process",
         "kernel": "calls into the running kernel",
         "library": "Python libraries, called once an operation"}

#: What the others of a kind are compared with.
REFERENCES = {"model": "store", "kernel": "kvm-attributes"}

#: The floor of every kernel row: a call that does nothing.
FLOOR = "empty-ioctl"

#: The part of a run's rounds that a comparison looks at: what is slower may be disturbed.
FASTEST = 0.1

#: What samples are of: CPU time of the thread, wall time, or no time at all (bytes).
CLOCKS = ("cpu", "wall", "")


@dataclass(frozen=True)
class Result:
    """One cell. ``samples``: nanoseconds (or bytes) an operation, one a round; see docs/report-schema.md."""

    scenario: str
    backend: str
    kind: str
    size: int
    unit: str
    status: str
    note: str = ""
    samples: list[float] = field(default_factory=list)
    #: Operations that each sample is the mean of.
    operations: int = 0
    #: What an empty call took, as a part of a round: the most that the harness can have added.
    overhead: float | None = None
    #: How many earlier updates stood when the cell failed or was stopped.
    reached: int | None = None
    host: str = ""
    #: The clock of ``samples`` and ``yardstick``.
    clock: str = ""
    #: Wall nanoseconds an operation, one a round.
    wall: list[float] = field(default_factory=list)
    #: What 1,000 steps of the yardstick took just before each sample, in nanoseconds.
    yardstick: list[float] = field(default_factory=list)
    #: While the unit ran: ``seconds``, ``other_cpus``, ``stolen_cpus``, ``mhz``.
    load: dict[str, float] | None = None

    @property
    def through_fake(self) -> bool:
        """Whether this is a row of /dev/kvm where that was the model's (`kvmattr fake`)."""
        return self.kind == "model" and (self.backend == FLOOR or self.backend.startswith("kvm-"))

    @cached_property
    def spread(self) -> Spread | None:
        """Median and quantiles, None without samples."""
        return Spread.of(self.samples) if self.samples else None

    @property
    def fastest(self) -> float:
        """What a comparison goes by: the fastest tenth of the rounds; of bytes, which nothing disturbs, the median."""
        return float(np.quantile(self.samples, 0.5 if self.unit == "bytes" else FASTEST))

    def as_record(self) -> dict[str, Any]:
        """The JSON object: the fields and, where measured, the medians."""
        return asdict(self) | (asdict(self.spread) if self.spread else
                               dict.fromkeys(each.name for each in fields(Spread)))

    @classmethod
    def from_record(cls, record: Field, schema: int) -> Result:
        """The inverse of :meth:`as_record`; raises BadField for what no run writes."""
        rules = _FIELDS | (_FIELDS_SINCE_2 if schema > 1 else {})
        values = {name: rule(record[name]) for name, rule in rules.items()}
        number = _nanoseconds if values["unit"] != "bytes" else lambda item: item.within(0, 2.0 ** 64)
        samples = values["samples"] = record["samples"].list(number)
        if values["status"] == "ok" and not samples:
            record["samples"].refuse("samples, as the status is ok")
        for name in ("wall", "yardstick"):
            if values.get(name) and len(values[name]) != len(samples):
                record[name].refuse(f"as many as samples, {len(samples)}")
        return cls(**values)


def load_of(record: Field) -> float:
    """CPUs, MHz or seconds: no machine has a billion."""
    return record.within(0, 1e9)


def _nanoseconds(record: Field) -> float:
    record.positive()
    return record.within(1e-6, 1e18)


#: What the JSON of a result must hold; the samples by their unit.
_FIELDS: dict[str, Callable[[Field], Any]] = {
    **dict.fromkeys(("scenario", "backend", "unit", "note", "host"), Field.text),
    **dict.fromkeys(("size", "operations"), Field.integer),
    "kind": lambda record: record.one_of(list(KINDS)), "status": lambda record: record.one_of(list(STATUSES)),
    "overhead": lambda record: record.optional(lambda each: each.number(0)),
    "reached": lambda record: record.optional(Field.integer)}
_FIELDS_SINCE_2: dict[str, Callable[[Field], Any]] = {
    "clock": lambda record: record.one_of(CLOCKS),
    **dict.fromkeys(("wall", "yardstick"), lambda record: record.list(_nanoseconds)),
    "load": lambda record: record.optional(lambda each: {name: load_of(value) for name, value in each.items()})}


@dataclass(frozen=True)
class Comparison:
    """A backend against the reference of its kind in one unit."""

    scenario: str
    size: int
    backend: str
    reference: str
    ratio: Ratio

    def as_record(self) -> dict[str, Any]:
        """The JSON object."""
        return vars(self) | {"ratio": self.ratio.median, "low": self.ratio.low, "high": self.ratio.high,
                             "told_apart": self.ratio.told_apart}


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """Every ratio that may be formed: both arms of one kind, both measured in the same rounds."""
    measured = {(cell.scenario, cell.size, cell.backend): cell for cell in results if cell.status == "ok"}
    found = []
    for (scenario, size, backend), cell in measured.items():
        reference = measured.get((scenario, size, REFERENCES.get(cell.kind, "")))
        if reference and reference is not cell and backend != FLOOR and min(reference.samples) > 0:
            found.append(Comparison(scenario, size, backend, reference.backend,
                                    Ratio.of(cell.samples, reference.samples)))
    return found
