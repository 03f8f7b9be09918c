"""A replay's summary in words and figures; nothing is said that the summary does not hold."""

from __future__ import annotations

from collections.abc import Iterator

from kvmattr.trace.instructions import Estimate
from kvmattr.trace.replaying import Summary
from kvmattr.trace.sides import Cost
from kvmattr.trace.trace import Told


def summary_text(summary: Summary) -> str:
    """The summary for people: what was replayed, the answers, what each side cost, whether they agree."""
    return "\n".join(_lines(summary)) + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    unread = f" {_count(summary.unread_count, 'line')} not read," if summary.unread_count else ""
    yield (f"{summary.name}: {_count(summary.operations, 'operation')}"
           f" ({_count(summary.slot_calls, 'slot call')}, {_count(summary.attribute_calls, 'conversion')}),"
           f" {_count(summary.unrelated, 'unrelated line')} skipped,{unread} profile {summary.profile}")
    answers = {name if name != "0" else "success": count for name, count in summary.answers.items()}
    yield "answers: " + ", ".join(f"{name} {count:,}" for name, count in answers.items())
    yield from remarks(summary)
    if summary.not_compared:
        yield f"memslots and attributes are not compared: {summary.not_compared}"
    if summary.sides:
        yield ""
        yield from _table(summary)
        yield ""
        yield _verdict(summary)
        yield _compared(summary)
        if summary.instructions is not None:
            yield _ground(summary.instructions)


def remarks(summary: Summary) -> Iterator[str]:
    """What must be known of a replay beside its figures: lines not read, what was added, what differs."""
    yield from _told(summary.unread, summary.unread_count, "line {}: not read: {}", "such line")
    if summary.mentions:
        yield f"{_count(summary.mentions, 'line')} with one of our names and no call"
    if summary.machine_why:
        yield f"host {summary.machine}, {summary.machine_why} (--host says otherwise)"
    if summary.default_private:
        yield (f"{_count(summary.default_private, 'memslot')} set PRIVATE, as QEMU since 9.1 does to each new one with"
               " a guest_memfd without a line (--no-default-private: not so)")
    if summary.silent_deletions:
        yield (f"{_count(summary.silent_deletions, 'deletion')} added that QEMU makes without a line,"
               " where READONLY changes")
    yield from _told(summary.notes, summary.note_count, "line {}: {}", "such line")
    for difference in summary.differences:
        yield (f"line {difference.line}: recorded {difference.recorded},"
               f" this machine answers {difference.replayed}")
    if summary.different > len(summary.differences):
        yield f"... and {_count(summary.different - len(summary.differences), 'more such answer')}"
    refused = sum(count for name, count in summary.answers.items() if name != "0")
    if refused and summary.recorded:
        yield f"{_count(refused, 'call')} refused, which changed nothing"


def _told(told: list[Told], count: int, form: str, word: str) -> Iterator[str]:
    for line, text in told:
        yield form.format(line, text) if line else text
    if count > len(told):
        yield f"... and {_count(count - len(told), 'more ' + word)}"


def _count(number: int, word: str) -> str:
    """
    >>> _count(1, "slot call"), _count(2000, "slot call")
    ('1 slot call', '2,000 slot calls')
    """
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _table(summary: Summary) -> Iterator[str]:
    sides, rounds = summary.sides, summary.rounds
    time = "time" if rounds == 1 else f"time, median of {rounds} rounds"
    rows = [
        ("", *(side.side for side in sides)),
        ("ioctls", *(f"{side.ioctls:,}" for side in sides)),
        ("slots touched", *(f"{side.slots_touched:,}" for side in sides)),
        ("slot changes", *(f"{side.slot_changes:,}" for side in sides)),
        ("metadata bytes built", *(f"{side.metadata_bytes:,}" for side in sides)),
        ("guest pages without a slot meanwhile", *(f"{side.pages_without_slot:,}" for side in sides)),
        (time, *(time_text(side.seconds) for side in sides)),
        ("runs at the end", *(f"{side.runs:,}" for side in sides)),
    ]
    estimate = summary.instructions
    if estimate is not None and (estimate.memslots, estimate.attributes) != (None, None):
        rows.append(("kernel instructions, about", *_instructions(sides, estimate)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *cells in rows:
        yield name.ljust(widths[0]) + "".join(
            f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))


def _instructions(sides: list[Cost], estimate: Estimate) -> Iterator[str]:
    for side in sides:
        value = estimate.memslots if side.side == "memslots" else estimate.attributes
        yield "-" if value is None else _rounded(value)


def _rounded(number: int) -> str:
    """
    >>> _rounded(1234567), _rounded(89)
    ('1,230,000', '89')
    """
    keep = max(len(str(number)) - 3, 0)
    return f"{round(number, -keep):,}"


def _ground(estimate: Estimate) -> str:
    """What the estimate rests on, or why there is none."""
    if estimate.attributes is None and estimate.memslots is None:
        return f"kernel instructions are not estimated: {estimate.why}"
    return (f"kernel instructions: estimated for Linux {estimate.kernel} without a vCPU, off by at most"
            f" {estimate.error:.0%} on recordings that were counted"
            + "; that kernel stores attributes page by page" * (estimate.attributes is not None)
            + f"; {estimate.why}" * bool(estimate.why))


def _compared(summary: Summary) -> str:
    """What the side that was not recorded does in place of the one that was."""
    if summary.attribute_calls:
        return ("memslots: each conversion splits and merges memslots; the one that is there before the first"
                " is on neither side")
    return ("attributes: one memslot that stays, and a WRITE for each slot call (two where a slot moves); before them"
            " two calls, which make that memslot and close all of it")


def time_text(seconds: float) -> str:
    """A time with its unit.

    >>> time_text(0.00012), time_text(2.5)
    ('120.0 us', '2.50 s')
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _verdict(summary: Summary) -> str:
    for side in summary.sides:
        if side.stopped is not None:
            return f"{side.side}: {side.stopped}; the final access maps are not compared"
    return f"final access maps: {'equal' if summary.equal else 'NOT EQUAL, the figures above are void'}"
