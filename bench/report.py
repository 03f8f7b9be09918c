"""What the tables of the bench have in common: their options, what stands below them, and where they are written."""

from __future__ import annotations

import argparse

from kvmattr import AttributeMap
from kvmattr.measure import writing
from kvmattr.measure.machine import Load, describe, in_words


def asked(description: str | None) -> argparse.Namespace:
    """The options of a table; ``description`` is the script's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def show(table: str, legend: str, began: Load, results: str | None) -> None:
    """Print a table with its legend, the machine and what else ran since, and write it to ``results``.txt if asked."""
    text = "\n".join([
        table, "", legend, f"{in_words(describe())}; {AttributeMap(1).stats()['kernels']}",
        "meanwhile: " + ", ".join(f"{name} {value:.2f}" for name, value in Load.now().since(began).items()),
    ])
    print(text)
    if results:
        writing.write(f"{results}.txt", text + "\n")
