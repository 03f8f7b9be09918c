"""What was asked for, what of it will run, and what is left out and why: all known before the first measurement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmattr.measure import text
from kvmattr.study import backends, registry, scenarios
from kvmattr.study.runner import FULL, QUICK, Forecast, Options, Unit, forecast, plan

#: What a quick run leaves out: peers that answer other questions, and the variant of a row that is there already.
NOT_QUICK = ("kvm-memslots-vcpu", "mprotect", "unicorn", "pyroaring", "sortedcontainers")


@dataclass(frozen=True)
class Plan:
    """A run that can begin."""

    units: list[Unit]
    options: Options
    forecast: Forecast
    #: What was asked for by name and will not be in the results, each with the reason.
    left_out: list[str]

    @property
    def cells(self) -> int:
        """Cells of all units, those that cannot be measured here too."""
        return sum(len(unit.backends) for unit in self.units)


def make(scenario_names: Sequence[str] | None, backend_names: Sequence[str] | None, *, quick: bool,
         rounds: int | None = None, seconds: float | None = None, operations: int | Mapping[str, int] | None = None,
         files: Sequence[str] = ()) -> Plan:
    """Plan a run of these scenarios and backends (None: all). Raises ValueError where nothing would be run."""
    files = _listed(files)
    broken = registry.load(files)
    scenario_names = _known("scenario", scenario_names, scenarios.ALL, broken)
    backend_names = _known("backend", backend_names, backends.ALL, broken)
    fixed = operations if isinstance(operations, Mapping) else {} if operations is None else {"": operations}
    _known("backend", [*filter(None, fixed)] or None, backends.ALL)
    for name, count in fixed.items():
        what = f"operations{name and f' of {name}'}"
        _number(what, count, int, scenarios.MOST_OPERATIONS)
        if count % 2:
            raise ValueError(f"{what} is {count}, expected an even number: half of them convert back")
    _number("rounds", 1 if rounds is None else rounds, int)
    _number("seconds", 1 if seconds is None else seconds, (int, float))
    options = QUICK if quick else FULL
    options = Options(rounds or options.rounds, options.round_seconds, seconds or options.cell_seconds,
                      rounds or options.most, fixed)
    names = scenario_names or list(scenarios.ALL)
    chosen = backend_names or [name for name in backends.ALL if not (quick and name in NOT_QUICK)]
    units, whole = plan(names, chosen, quick, files), plan(names, chosen, False, files)
    if not whole:
        raise ValueError("; ".join(f"{name} takes part in {text.listed(places)} alone"
                                   for name in chosen if (places := _own_places(name))))
    not_quick = [name for name in names if not scenarios.ALL[name].quick_sizes] if quick else []
    if not units:
        raise ValueError(f"--quick leaves out {text.listed(not_quick)}: run it without --quick")
    them = "it" if len(not_quick) == 1 else "them"
    left_out = [*broken, *([f"{text.listed(not_quick)} (--quick leaves {them} out)"] if not_quick else [])]
    if quick and not backend_names:
        left_out.append(f"the backends {text.listed(list(NOT_QUICK))} (--quick leaves them out)")
    for name in backend_names:
        reason = backends.missing(name)
        if reason is not None:
            left_out.append(f"{name} ({reason})")
        elif not any(name in unit.backends for unit in units):
            places = _own_places(name)
            left_out.append(f"{name} ({f'takes part in {text.listed(places)} alone' if places else 'in no scenario'})")
    return Plan(units, options, forecast(units, options), left_out)


def _own_places(name: str) -> list[str]:
    return [scenario.name for scenario in scenarios.ALL.values() if name in scenario.own_backends]


def _listed(asked: Iterable[str] | None) -> list[str]:
    """Each once; a name alone is a list of one."""
    return list(dict.fromkeys([asked] if isinstance(asked, str) else asked or ()))


def _known(kind: str, asked: Iterable[str] | None, known: Collection[str], broken: Sequence[str] = ()) -> list[str]:
    names = _listed(asked)
    if not names and asked is not None:
        raise ValueError(f"no {kind} is named: expected names, or None for all")
    for name in names:
        if name not in known:
            raise ValueError("; ".join([f"unknown {kind} {name!r}: known are {', '.join(known)}", *broken]))
    return names


def _number(what: str, value: object, kind: Any, most: int = 1_000_000) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value <= most:
        whole = "a whole number" if kind is int else "a number"
        raise ValueError(f"{what} is {value!r}, expected {whole} above 0, at most {most:,}")
