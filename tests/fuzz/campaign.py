"""What was counted so far: docs/fuzzing.csv holds every recorded run, and docs/trust.md its sums, between two marks.

``python -m tests.fuzz --record`` adds a line a target when its time is over; the page is written from the file anew.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from datetime import date
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
FIELDS = ("date", "store", "target", "build", "executions", "found")
BEGIN, END = "<!-- counted: begin -->", "<!-- counted: end -->"
#: What the store's leaves were when it ran: a campaign says something of the encodings that it met.
STORE = "fields of bits"
WANTED = 100_000_000


def record(target: str, build: str, executions: int, log: Path = DOCS / "fuzzing.csv") -> None:
    """Add a run in which nothing was found, and bring the page up to date."""
    with log.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(
            (date.today().isoformat(), STORE, target, build, executions, "nothing"))
    write()


def counted(log: Path = DOCS / "fuzzing.csv") -> str:
    """The table of the page."""
    sums: dict[tuple[str, str, str], int] = defaultdict(int)
    found: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    latest = ""
    with log.open(newline="") as file:
        for run in csv.DictReader(file):
            key = (run["target"], run["build"], run["store"])
            sums[key] += int(run["executions"])
            found[key] |= {run["found"]} - {"nothing"}
            latest = max(latest, run["date"])
    total, now = sum(sums.values()), sum(count for key, count in sums.items() if key[2] == STORE)
    lines = [f"Counted until {latest}, on one machine beside other work:", "",
             "| target | build | store with leaves of | executions | found |", "|---|---|---|---|---|"]
    for (target, build, store), count in sorted(sums.items()):
        findings = "; ".join(sorted(found[target, build, store])) or "nothing"
        lines.append(f"| `{target}` | {build} | {store} | {count:,} | {findings} |")
    lines += ["", f"In all {total:,}, {now:,} of them on the store as it is now. Wanted were {WANTED:,}."]
    return "\n".join(lines)


def write(page: Path = DOCS / "trust.md", log: Path = DOCS / "fuzzing.csv") -> None:
    """Put the table into the page."""
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{counted(log)}\n{END}{after}")
