"""The committed baseline: exact calls, counts and bytes, and slopes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmattr.gate.counting import COUNTING_ONLY, ITEMS, slopes
from kvmattr.gate.limits import Limits
from kvmattr.gate.scenario import GROWTH
from kvmattr.gate.verdict import Judgement, Usage, Verdict
from kvmattr.measure import checked, writing
from kvmattr.measure.checked import BadField, Field
from kvmattr.measure.text import digits, reason

SCHEMA = 2
#: Its calls were not counted yet: a run against it says what to do.
WITHOUT_CALLS = 1

#: What is counted of a cell; and how each part of a baseline is read, with the form of its keys.
_COUNTED = ("calls", "counts", "bytes")
_PARTS: dict[str, tuple[Callable[[Field], Any], str]] = {
    **dict.fromkeys(_COUNTED, (Field.whole, "SCENARIO/SIZE/COUNTER")), "slopes": (Field.number, "SCENARIO/COUNTER")}

#: A slope may move by this much from the baseline's before it counts as another growth.
_SLOPE_CHANGE = 0.1


@dataclass
class Baseline:
    """Keys are SCENARIO/SIZE/COUNTER in calls, counts and bytes, SCENARIO/COUNTER in slopes. Calls that were not made
    have no key; ``without_calls``: it is from before they were counted."""

    calls: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    without_calls: bool = False

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a baseline file; Usage tells what is wrong with it."""
        try:
            data = checked.load(path)
            schema = data["schema"].integer()
            if schema not in (WITHOUT_CALLS, SCHEMA):
                data["schema"].refuse(f"{SCHEMA}, which this gate reads (or {WITHOUT_CALLS}, an older one)")
            unknown = sorted(set(data.object()) - {"schema", *_PARTS})
            if unknown:
                raise Usage(f"{path}: unknown part {unknown[0]!r}; a baseline has calls, counts, bytes and slopes, and "
                            "never times or instructions")
            older = schema == WITHOUT_CALLS
            return cls(**{part: _numbers(data[part], *how) for part, how in _PARTS.items()
                          if not (older and part == "calls")}, without_calls=older)
        except FileNotFoundError:
            raise Usage(f"{path}: no such baseline; --update-baseline writes one") from None
        except (OSError, BadField) as error:
            raise Usage(f"not a baseline: {reason(error)}") from None

    @property
    def counted(self) -> bool:
        """Whether it has what only the counting build counts."""
        return any(key.rsplit("/", 1)[-1] in COUNTING_ONLY for key in self.counts)

    def add(self, scenario: str, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Take in what a worker counted of a scenario, by its sizes; from two sizes on with the slopes."""
        for size, answer in answers.items():
            for part in _COUNTED:
                getattr(self, part).update({f"{scenario}/{size}/{name}": value for name, value in answer[part].items()})
        if len(answers) > 1:
            found = slopes(list(answers), [{**answer["counts"], **answer["calls"]} for answer in answers.values()],
                           [answer["operations"] for answer in answers.values()])
            self.slopes.update({f"{scenario}/{name}": value for name, value in found.items()})

    def write(self, path: Path) -> None:
        """Write it, sorted, so that a change reads well as a diff."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {part: getattr(self, part) for part in _PARTS}
        writing.write(path, json.dumps(parts | {"schema": SCHEMA}, indent=1, sort_keys=True) + "\n")


def _numbers(part: Field, read: Callable[[Field], Any], form: str) -> dict[str, Any]:
    """A part of the file; what belongs to nothing would never be judged."""
    numbers = {}
    for key, value in part.items():
        if key.count("/") != form.count("/"):
            value.refuse(f"a key of the form {form}")
        numbers[key] = read(value)
    return numbers


def judge_exact(judgement: Judgement, check: str, expected: dict[str, int], measured: dict[str, int],
                limits: Limits, more: Callable[[str], str] = lambda key: "") -> None:
    """Every number of the baseline against what was measured, exactly; ``more``: what else there is to say of one."""
    for key in sorted(measured.keys() & expected.keys(), key=_by_size):
        now, then = measured[key], expected[key]
        if now == then:
            judgement.add(check, key, Verdict.PASS, str(now), now, then)
            continue
        text = f"{now}, the baseline has {then}{_change(now, then)}"
        verdict = Verdict.REGRESSION if now > then else Verdict.BETTER
        if verdict is Verdict.BETTER and check != "memory" and limits.working(key.rsplit("/", 1)[0]):
            verdict, text = Verdict.REGRESSION, f"{text}; it must do its work (fail if faster)"
        judgement.add(check, key, verdict, text + more(key), now, then)


def judge_calls(judgement: Judgement, expected: Baseline, measured: Baseline, cells: set[str], limits: Limits) -> None:
    """The calls of these SCENARIO/SIZE cells, which both sides have: a kind that one side has not was not called
    there."""
    if expected.without_calls:
        judgement.add("missing", "calls", Verdict.UNDECIDED,
                      "the baseline is from before calls were counted: --update-baseline adds them")
        return
    now, then = measured.calls, expected.calls
    keys = {key for key in now.keys() | then.keys() if key.rsplit("/", 1)[0] in cells}
    for cell in sorted(cells, key=lambda each: _by_size(f"{each}/")):
        made, before = (sum(value for key, value in side.items() if key.rsplit("/", 1)[0] == cell
                            and key.endswith("_calls")) for side in (now, then))
        if before and not made:
            judgement.add("calls", cell, Verdict.REGRESSION, f"no call of the store is left of {before}: a cell that "
                          "does nothing measures nothing", 0, before)
    judge_exact(judgement, "calls", {key: then.get(key, 0) for key in keys}, {key: now.get(key, 0) for key in keys},
                limits, lambda key: _a_call(key, now, then))


def _a_call(key: str, now: dict[str, int], then: dict[str, int]) -> str:
    """How much a call of a kind is about, on both sides: one page a call is what an embedder has to see."""
    for item in ITEMS:
        items = f"{key.removesuffix('_calls')}_{item}"
        if items in now or items in then:
            sides = [digits(side.get(items, 0) / side[key]) if side.get(key) else "no call" for side in (now, then)]
            return f"; {sides[0]} {item} a call, {sides[1]} in the baseline"
    return ""


def judge_presence(judgement: Judgement, expected: set[str], measured: set[str]) -> None:
    """What only one side has was not judged, and a gate that judges nothing must not be green. Not so for the
    counters of the counting build: where one side was made without it, the verdict says so."""
    expected_extra, measured_extra = ({key for key in side if key.rsplit("/", 1)[1] in COUNTING_ONLY}
                                      for side in (expected, measured))
    words = " and ".join(name.replace("_", " ") for name in COUNTING_ONLY)
    if not measured_extra:
        expected = expected - expected_extra
        judgement.not_judged.append(f"{words} (only a counting build counts them: --source DIR)")
    elif not expected_extra:
        measured = measured - measured_extra
        judgement.not_judged.append(f"{words} (the baseline has none: --update-baseline adds them)")
    for keys, words in ((expected - measured, "the baseline has it, this run did not measure it"),
                        (measured - expected, "not in the baseline: --update-baseline accepts it")):
        for cell in sorted({key.rsplit("/", 1)[0] for key in keys}, key=_by_size):
            judgement.add("missing", cell, Verdict.UNDECIDED, words)


def judge_slopes(judgement: Judgement, expected: dict[str, float], measured: dict[str, float],
                 scenarios: Iterable[Mapping[str, Any]]) -> None:
    """Each slope against the growth that its scenario declares, and against the baseline's."""
    growth = {each["name"]: each["growth"] for each in scenarios}
    for key, now in sorted(measured.items()):
        declared = growth.get(key.rsplit("/", 1)[0])
        then = expected.get(key)
        if declared and now >= GROWTH[declared]:
            judgement.add("slopes", key, Verdict.REGRESSION,
                          f"{now:.3f}; declared {declared} allows less than {GROWTH[declared]}", now, then)
        elif then is not None and now > then + _SLOPE_CHANGE:
            judgement.add("slopes", key, Verdict.REGRESSION, f"{now:.3f}, the baseline has {then:.3f}", now, then)
        elif declared or then is not None:
            judgement.add("slopes", key, Verdict.PASS, f"{now:.3f}", now, then)


def _by_size(key: str) -> list[tuple[int, str]]:
    """For sorting: scenario, then size as a number, then counter."""
    return [(int(word), "") if word.isdigit() else (0, word) for word in key.split("/")]


def _change(now: int, then: int) -> str:
    """
    >>> _change(525, 517), _change(513, 2), _change(3, 0)
    (' (+8, +1.5 %)', ' (+511, 256 times as many)', ' (+3)')
    """
    relative = (f", {digits(now / then)} times as many" if now >= 10 * then > 0 else
                f", {100 * (now - then) / then:+.1f} %" if then else "")
    return f" ({now - then:+}{relative})"
