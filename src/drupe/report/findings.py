"""The findings of a report at a terminal: each number with its null, baseline, places and caveats."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from drupe.report.interface import Options
from drupe.report.layout import Page
from drupe.report.words import Table, Words, log10_p, number, rows, table, tables

EVIDENCE_ROWS = 3
"""Places of one finding that are shown without -v."""
Fields = list[tuple[str, str]]


def show_measured(page: Page, words: Words, findings: Sequence[Table], options: Options) -> None:
    """The section of the numbers."""
    page.heading(words("report.evidence"))
    for index, finding in enumerate(findings):
        if index:
            page.blank()
        _show(page, words, finding, options)


def show_others(page: Page, words: Words, findings: Sequence[Table]) -> None:
    """What was skipped or failed, with the reason: a compact list."""
    page.heading(words("report.skipped"))
    for finding in findings:
        reason = words.sentence(str(finding["reason"]))
        text = words("report.failed", reason=reason) if finding["status"] == "failed" else reason
        name = words.name("report.signal", str(finding["signal"]))
        page.item(words("report.item", name=name, text=text), indent=2)


def is_cut(finding: Table) -> bool:
    """Whether places of a finding are left out without -v."""
    return len(rows(finding["evidence"])) > EVIDENCE_ROWS


def show_fields(page: Page, fields: Fields, *, indent: int = 0) -> None:
    """Labels and texts in two columns; a label stands once above the rows that share it."""
    column = max((cell_len(label) for label, _ in fields), default=0) + 2
    before = ""
    for label, text in fields:
        page.field("" if label == before else label, text, column=column, indent=indent)
        before = label


def _show(page: Page, words: Words, finding: Table, options: Options) -> None:
    page.paragraph(_title(words, finding), indent=2, style="bold")
    fields = [
        (words("report.finding.result"), _numbers(words, finding)),
        (words("report.finding.null"), words.sentence(str(finding["null"]))),
    ]
    if finding["baseline"] is not None:
        fields.append((words("report.finding.baseline"), _baseline(words, table(finding["baseline"]))))
    fields += _places(words, finding, options)
    fields += [(words("report.finding.caveat"), caveat) for caveat in words.sentences(finding["caveats"])]
    show_fields(page, fields, indent=4)


def _title(words: Words, finding: Table) -> str:
    signal, component = str(finding["signal"]), str(finding["component"])
    name = words.name("report.signal", signal)
    text = name if name == signal else words("report.bracketed", text=name, inside=signal)
    return words("report.item", name=words.name("report.component", component), text=text)


def _numbers(words: Words, finding: Table) -> str:
    statistic, sample_size = number(finding["statistic"]), number(finding["sample_size"])
    parts = [words("report.finding.numbers", statistic=statistic, sample_size=sample_size)]
    if finding["log10_p"] is not None:
        parts.append(words("report.finding.log10_p", log10_p=log10_p(finding["log10_p"])))
    if finding["effect"] is not None:
        effect = table(finding["effect"])
        numbers = {key: number(effect[key]) for key in ("estimate", "low", "high")}
        parts.append(words("report.finding.effect", **numbers))
    return words("report.joined").join(parts)


def _baseline(words: Words, baseline: Table) -> str:
    what, q50, q99 = words.sentence(str(baseline["what"])), number(baseline["q50"]), number(baseline["q99"])
    return words("report.finding.baseline_text", what=what, q50=q50, q99=q99)


def _places(words: Words, finding: Table, options: Options) -> Fields:
    label, evidence = words("report.finding.place"), list(tables(finding["evidence"]))
    shown = len(evidence) if options.verbose else EVIDENCE_ROWS
    places = [
        (label, words("report.item", name=str(row["where"]), text=words.sentence(str(row["what"]))))
        for row in evidence[:shown]
    ]
    left = len(evidence) - len(places)
    return [*places, (label, words("report.more_rows", count=left))] if left else places
