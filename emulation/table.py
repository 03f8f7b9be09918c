"""The table of instructions a conversion, from a report that the study wrote under emulation.

`python -m emulation.table results/kernel/study.json` prints it as Markdown; `--data FILE` also writes it as JSON.
Under -icount the guest's clock counts instructions, a nanosecond each. A cell is the median of its rounds, which
convert other pages each, but the same ones in every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

WAYS = {"conversion": "batched", "conversion-single": "one at a time"}
BACKENDS = {"kvm-attributes": "attributes", "kvm-memslots": "memslots", "empty-ioctl": "empty ioctl"}


def counted(report: dict[str, Any]) -> dict[str, Any]:
    """The report's cells as instructions: what README shows and the package ships.

    ValueError if the report has a cell that is wrong, or an attribute cell whose state was not checked.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in report["results"]:
        if cell["scenario"] not in WAYS or cell["backend"] not in BACKENDS:
            continue
        if cell["status"] in ("wrong", "error") or (cell["status"] == "ok" and cell["note"]):
            raise ValueError(f"{cell['backend']} in {cell['scenario']} at {cell['size']}: {cell['note']}")
        row = rows.setdefault((cell["scenario"], cell["size"]),
                              {"way": WAYS[cell["scenario"]], "earlier": cell["size"]})
        value = round(statistics.median(cell["samples"])) if cell["status"] == "ok" else cell["note"]
        row[BACKENDS[cell["backend"]].replace(" ", "_")] = value
    return {"kernel": report["machine"]["kernel"], "cpu": report["machine"]["cpu"],
            "kvmattr": report["machine"]["kvmattr"], "started": report["machine"]["started"],
            "unit": "guest instructions a conversion (QEMU's -icount: the guest's clock counts them)",
            "rows": sorted(rows.values(), key=lambda row: (row["way"] != "one at a time", row["earlier"]))}


def markdown(table: dict[str, Any]) -> str:
    """The table for README."""
    columns = [(way, name) for way in reversed(WAYS.values()) for name in ("attributes", "memslots")]
    lines = [f"| earlier conversions | {' | '.join(f'{name}, {way}' for way, name in columns)} |",
             f"|{'---:|' * (len(columns) + 1)}"]
    cells = {(row["way"], row["earlier"]): row for row in table["rows"]}
    for earlier in sorted({row["earlier"] for row in table["rows"]}):
        words = [_words(cells.get((way, earlier), {}).get(name)) for way, name in columns]
        lines.append(f"| {earlier:,} | {' | '.join(words)} |")
    return "\n".join(lines)


def _words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "")


def main(words: list[str]) -> int:
    """Print, and write the data if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--data", type=Path)
    chosen = parser.parse_args(words)
    table = counted(json.loads(chosen.report.read_text()))
    print(f"Linux {table['kernel']}, instructions a conversion\n\n{markdown(table)}")
    if chosen.data:
        chosen.data.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
