"""A judgement written down for people, machines and CI: table, JSON, Markdown, JUnit XML, GitHub annotations."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator

from kvmattr.gate.verdict import Finding, Judgement, Verdict

#: Table and step summary tell this many findings of one check and count the rest; JSON and JUnit have all.
_SHOWN = 20

_TOLD = (Verdict.REGRESSION, Verdict.UNDECIDED, Verdict.BETTER)
_ALWAYS_TOLD = ("claims", "time", "files", "instructions", "baseline", "history")

#: In this order, whichever spoke first: counts are the verdict, time comes last.
_ORDER = ("calls", "counts", "slopes", "memory", "missing", "claims", "time", "files", "instructions")

#: What to do about a verdict, told once below the table.
_ADVICE = {
    "calls": "the store is called more often, or about more pages, than the baseline has: one call a page in place of "
             "one a range? Mend it, or accept it with --update-baseline and commit the new baseline",
    "counts": "more work than the baseline has: find out why, or accept it with --update-baseline and commit "
              "the new baseline",
    "slopes": "the cost grows faster with the size than the scenario declares or the baseline has",
    "memory": "more bytes than the baseline has: find out why, or accept it with --update-baseline",
    "claims": "the way that is claimed to be faster is not, by that much",
    "time": "slower than the base twice, the second time in fresh processes and in reverse order",
    "files": "slower, or more memory, than the base's files, beyond what those differ by among themselves: measure "
             "both refs in turn again, on one machine, and judge those files; --threshold NAME=X allows one more",
    "instructions": "the same work takes more instructions than it did",
}

#: And where a cell that must do its work did less of it, or was faster: what these checks judge.
_MAY_DO_LESS = ("calls", "counts", "time", "files")
_ADVICE_LESS = ("less work than before in a cell that must do its work: what no longer runs? If it is meant, take "
                "--fail-if-faster or must_work away from it, or accept it with --update-baseline")

#: What JUnit XML calls them.
_JUNIT = {Verdict.REGRESSION: "failure", Verdict.UNDECIDED: "error"}

#: Characters that no XML 1.0 document may hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def by_check(judgement: Judgement) -> Iterator[tuple[str, list[Finding]]]:
    """The findings of each check, checks in the order of their weight."""
    order = list(dict.fromkeys([*_ORDER, *(finding.check for finding in judgement.findings)]))
    for check in order:
        if findings := [finding for finding in judgement.findings if finding.check == check]:
            yield check, findings


def _tally(findings: list[Finding]) -> str:
    counted = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counted[verdict]} {verdict.value}" for verdict in Verdict if verdict in counted)


def table(judgement: Judgement) -> str:
    """For people: one line a check, then what did not simply pass and the few that are always told."""
    lines = []
    for check, findings in by_check(judgement):
        lines.append(f"{check:12}  {_tally(findings)}")
        told = [each for each in findings if each.verdict in _TOLD or check in _ALWAYS_TOLD]
        told.sort(key=lambda each: _TOLD.index(each.verdict) if each.verdict in _TOLD else len(_TOLD))
        lines += [textwrap.indent(f"{each.verdict.value:10}  {each.cell}: {each.text}", "  ") for each in told[:_SHOWN]]
        if len(told) > _SHOWN:
            lines.append(f"  ... and {len(told) - _SHOWN} more (--json has all)")
    lines += [f"note: {note}" for note in judgement.notes]
    lines += [f"to do: {advice}" for advice in _advice(judgement)]
    return "\n".join([*lines, judgement.summary])


def _advice(judgement: Judgement) -> Iterator[str]:
    for check, findings in by_check(judgement):
        less = {finding.less and check in _MAY_DO_LESS for finding in findings
                if finding.verdict is Verdict.REGRESSION}
        if check in _ADVICE and False in less:
            yield f"{check}: {_ADVICE[check]}"
        if True in less:
            yield f"{check}: {_ADVICE_LESS}"
    if any(finding.check in ("calls", "counts", "memory") for finding in judgement.of(Verdict.BETTER)):
        yield "better than the baseline: --update-baseline keeps it, and then it cannot creep back unseen"


def as_json(judgement: Judgement) -> str:
    """For machines: everything."""
    return json.dumps({
        "verdict": judgement.summary.partition(":")[0].lower(),
        "exit_code": judgement.exit_code,
        "not_judged": judgement.not_judged,
        "notes": judgement.notes,
        "findings": [{**dataclasses.asdict(finding), "verdict": finding.verdict.value}
                     for finding in judgement.findings],
    }, indent=1) + "\n"


def markdown(judgement: Judgement) -> str:
    """For a CI step's summary."""
    lines = [f"### kvmattr gate: {judgement.summary}", "", "| check | cells |", "|---|---|"]
    lines += [f"| {check} | {_tally(findings)} |" for check, findings in by_check(judgement)]
    told = judgement.of(*_TOLD)
    if told:
        lines += ["", "| | check | cell | what |", "|---|---|---|---|"]
        lines += [f"| {each.verdict.value} | {each.check} | `{_cell(each.cell)}` | {_cell(each.text)} |"
                  for each in told[:_SHOWN]]
    if len(told) > _SHOWN:
        lines += ["", f"... and {len(told) - _SHOWN} more."]
    lines += ["", *(f"* {note}" for note in [*judgement.notes, *_advice(judgement)])]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def junit(judgement: Judgement) -> str:
    """JUnit XML: one suite a check, one case a cell; a regression is a failure, a doubt an error."""
    suites = ET.Element("testsuites", name="kvmattr gate")
    for check, findings in by_check(judgement):
        suite = ET.SubElement(suites, "testsuite", name=check, tests=str(len(findings)), skipped="0",
                              failures=str(sum(each.verdict is Verdict.REGRESSION for each in findings)),
                              errors=str(sum(each.verdict is Verdict.UNDECIDED for each in findings)))
        for each in findings:
            case = ET.SubElement(suite, "testcase", classname=f"gate.{check}", name=_xml(each.cell), time="0")
            if each.verdict in _JUNIT:
                ET.SubElement(case, _JUNIT[each.verdict], message=_xml(each.text)).text = _xml(each.text)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)


def github_errors(judgement: Judgement) -> str:
    """Workflow commands of GitHub Actions, one line a finding that does not pass."""
    told = judgement.of(Verdict.REGRESSION, Verdict.UNDECIDED)
    lines = [github_error(f"kvmattr gate: {each.check}", f"{each.verdict.value}: {each.cell}: {each.text}")
             for each in told[:_SHOWN]]
    if len(told) > _SHOWN:
        lines.append(github_error("kvmattr gate", f"... and {len(told) - _SHOWN} more: {judgement.summary}"))
    return "\n".join(lines)


def github_error(title: str, text: str) -> str:
    """One workflow command."""
    title, text = (each.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A") for each in (title, text))
    return f"::error title={title.replace(':', '%3A').replace(',', '%2C')}::{text}"
