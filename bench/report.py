"""How a table of the bench ends: what stands below it, and where it is written."""

from __future__ import annotations

from kvmattr import AttributeMap
from kvmattr.measure import writing
from kvmattr.measure.machine import Load, describe, in_words


def show(table: str, legend: str, began: Load, results: str | None) -> None:
    """Print a table with its legend, the machine and what else ran since, and write it to ``results``.txt if asked."""
    text = "\n".join([
        table, "", legend, f"{in_words(describe())}; {AttributeMap(1).stats()['kernels']}",
        "meanwhile: " + ", ".join(f"{name} {value:.2f}" for name, value in Load.now().since(began).items()),
    ])
    print(text)
    if results:
        writing.write(f"{results}.txt", text + "\n")
