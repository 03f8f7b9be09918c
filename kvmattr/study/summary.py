"""The result in words. Every number comes from the given results; what was not measured is not said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvmattr.measure import text
from kvmattr.study.results import FLOOR, Comparison, Result

if TYPE_CHECKING:
    from kvmattr.study.growth import Asked
    from kvmattr.study.report import Report

#: More than this part of a CPU taken by others, and a reader should know.
_NOTABLE_LOAD = 0.1
#: So many of one kind are named, the rest counted.
_LISTED = 4


def sentences(report: Report) -> list[str]:
    """What the run has to say, most important first."""
    results, load = report.results, report.load
    unexpected = [f"{each.scenario}: {each.words}." for each in report.seen if not each.as_expected]
    said = [*_conversions(report), *_limits(results), *_kernel(results), *_rmw(results),
            *_defects(results, report.scenarios), *unexpected, *_untold(report), *_overhead(results, report.scenarios)]
    if not any(result.status == "ok" for result in results):
        said.insert(0, "Nothing was measured.")
    if report.method.get("note"):
        said.insert(0, str(report.method["note"]))
    if load["other_cpus"] + load["stolen_cpus"] > _NOTABLE_LOAD:
        said.append(f"The machine was not quiet: others used {load['other_cpus']:.2g} CPUs, the hypervisor "
                    f"took {load['stolen_cpus']:.2g} on average; trust the ratios more than the times.")
    return said + [f"Left out: {words}." for words in report.left_out]


def _cells(results: Sequence[Result], scenario: str, backend: str) -> dict[int, Result]:
    return {result.size: result for result in results
            if result.scenario == scenario and result.backend == backend and result.status == "ok"}


def _medians(cells: dict[int, Result], sizes: list[int]) -> str:
    return text.listed([text.quantity(cells[size].spread.median, cells[size].unit)  # type: ignore[union-attr]
                        for size in sizes])


def _place(cell: Result | Comparison, scenarios: Mapping[str, Asked]) -> str:
    return f"{cell.scenario} at {text.size(cell.size, scenarios[cell.scenario].size_name)}"


def _counts(sizes: list[int]) -> str:
    return text.listed([f"{size:,}" for size in sizes])


def _conversions(report: Report) -> list[str]:
    results = report.results
    store, slots = _cells(results, "conversion", "store"), _cells(results, "conversion", "memslots")
    both = [size for size in store if size in slots]
    ratios = {ratio.size: ratio.ratio for ratio in report.comparisons
              if ratio.scenario == "conversion" and ratio.backend == "memslots"}
    said = []
    if both:
        times = text.listed([text.digits(ratios[size].median) for size in both])
        said.append(f"After {_counts(both)} earlier conversions, converting one page costs "
                    f"{_medians(store, both)} by attributes (store) and {_medians(slots, both)} by splitting "
                    f"memslots (memslots): {times} times as much.")
    if beyond := [size for size in store if size not in slots]:
        said.append(f"By attributes (store) it {'still ' if both else ''}costs {_medians(store, beyond)} after "
                    f"{_counts(beyond)}.")
    return said


def _limits(results: Sequence[Result]) -> list[str]:
    said = []
    for backend in ("memslots", "kvm-memslots"):
        failed = [result for result in results if result.scenario == "conversion"
                  and result.backend == backend and result.status == "failed" and result.reached]
        if failed:
            first = min(failed, key=lambda result: result.reached or 0)
            where = "in this kernel" if first.kind == "kernel" else "in the model"
            said.append(f"Memslots stop working {where} ({backend}) after {first.reached:,} random "
                        f"conversions: {first.note}.")
    return said


def _kernel(results: Sequence[Result]) -> list[str]:
    said = []
    floor = _cells(results, "conversion", FLOOR)
    for backend in ("kvm-memslots", "kvm-attributes"):
        cells = _cells(results, "conversion", backend)
        sizes = [size for size in cells if size in floor]
        if sizes:
            where = "On a fake /dev/kvm" if cells[sizes[0]].through_fake else "In this kernel"
            said.append(f"{where} a conversion by {backend} takes {_medians(cells, sizes)} after "
                        f"{_counts(sizes)} earlier ones; an empty ioctl takes "
                        f"{_medians(floor, sizes[-1:])}.")
    absent = dict.fromkeys((result.note, result.backend) for result in results
                           if result.kind == "kernel" and result.status == "unavailable")
    return said + [f"{text.listed([name for why, name in absent if why == note])} did not run: {note}."
                   for note in dict.fromkeys(why for why, _ in absent)]


def _rmw(results: Sequence[Result]) -> list[str]:
    by_or, by_get = _cells(results, "rmw", "store"), _cells(results, "rmw", "store-get-write")
    sizes = [size for size in by_or if size in by_get]
    if not sizes:
        return []
    return [f"Changing one bit over {sizes[-1]:,} runs takes {_medians(by_or, sizes[-1:])} by one OR and "
            f"{_medians(by_get, sizes[-1:])} by GET and one WRITE a run."]


def _defects(results: Sequence[Result], scenarios: Mapping[str, Asked]) -> list[str]:
    """Every wrong state, and the errors by their text: a unit that broke has the same one in all its cells."""
    said = [f"WRONG: {result.backend} in {_place(result, scenarios)}: {result.note}."
            for result in results if result.status == "wrong"]
    errors: dict[str, list[Result]] = {}
    for result in results:
        if result.status == "error":
            errors.setdefault(result.note, []).append(result)
    for note, cells in errors.items():
        first = f"{cells[0].backend} in {_place(cells[0], scenarios)}"
        more = f" and {len(cells) - 1} more cells" if len(cells) > 1 else ""
        said.append(f"ERROR: {first}{more}: {note}.")
    return said


def _untold(report: Report) -> list[str]:
    untold = [ratio for ratio in report.comparisons if not ratio.ratio.told_apart]
    if not untold:
        return []
    places = [f"{ratio.backend} and {ratio.reference} in {_place(ratio, report.scenarios)}"
              for ratio in untold[:_LISTED]]
    more = f"; and {len(untold) - _LISTED} more (x...? in the tables)" if len(untold) > _LISTED else ""
    return [f"Could not be told apart: {'; '.join(places)}{more}."]


def _overhead(results: Sequence[Result], scenarios: Mapping[str, Asked]) -> list[str]:
    heavy = [result for result in results if result.overhead is not None and result.overhead > 0.05]
    if not heavy:
        return []
    worst = max(heavy, key=lambda result: result.overhead or 0)
    return [f"The fixed cost of a call is over 5 % of what was measured in {len(heavy)} cells, at most "
            f"{worst.overhead:.0%} ({worst.backend} in {_place(worst, scenarios)}): there an operation costs less."]
