"""The report for a reader at a terminal: verdict first, then what carries it, then how to check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len

from drupe.document import Report
from drupe.messages import Language
from drupe.readers.strict_json import Json
from drupe.report.inspection import render_inspection
from drupe.report.interface import Options
from drupe.report.layout import Page
from drupe.report.words import Table, Words, number, percent, rows, size, table, tables, words_of

ROWS, EVIDENCE_ROWS = 5, 3
"""Rows of a map and of the evidence of one finding that are shown without -v."""
ALL_ROWS = 2000
"""... and with -v: a report may hold any number."""
# No red: a relation is a fact, not an offence.
_STYLES = {
    "copy": "bold yellow",
    "derivative": "bold cyan",
    "wrapper": "bold yellow",
    "same_design": "bold green",
    "unrelated": "bold green",
    "inconclusive": "bold",
}
_RELATED = frozenset({"identical", "equivalent", "derived", "partial", "common_source"})


def render(report: Report, language: Language, options: Options) -> str:
    """The whole report as text; a document of kind ``inspection`` is shown as a list of facts."""
    page, words = Page(options.width), words_of(report, language)
    if report.get("kind") == "inspection":
        render_inspection(page, words, report)
        return page.text(color=options.color)
    sections: Sequence[Callable[[Page, Words, Report, Options], None]] = (
        _headline,
        _sides,
        _components,
        _done,
        _evidence,
        _skipped,
        _caveats,
        _coverage,
        _next,
    )
    for section in sections:
        section(page, words, report, options)
    return page.text(color=options.color)


def _headline(page: Page, words: Words, report: Report, options: Options) -> None:
    verdict, own = table(report["verdict"]), table(report["originality"])
    label = str(verdict["label"])
    page.paragraph(f"{words.name('report.label', label)}  [{label}]", style=_STYLES.get(label, "bold"))
    sides = {key: str(table(report[key])["locator"]) for key in ("suspect", "source")}
    page.paragraph(words("report.against", **sides))
    page.blank()
    page.paragraph(str(table(verdict["summary"])[words.language]))
    page.blank()
    fields = [(words("report.disclosure"), _disclosure(words, verdict)), (words("report.own"), _own(words, own))]
    credit = words.sentences(own["credit"])
    if credit:
        fields.append((words("report.credit"), words("report.joined").join(credit)))
    _fields(page, fields)


def _fields(page: Page, fields: Sequence[tuple[str, str]], *, indent: int = 0, style: str = "") -> None:
    column = max((cell_len(label) for label, _ in fields), default=0) + 2
    for label, text in fields:
        page.field(label, text, column=column, indent=indent, style=style)


def _disclosure(words: Words, verdict: Table) -> str:
    label, disclosure = verdict["label"], str(verdict["disclosure"])
    if label in ("unrelated", "inconclusive"):
        return words("report.disclosed.not_asked")
    if label == "same_design" and disclosure == "undisclosed":
        return words("report.disclosed.undisclosed_design")
    return words(f"report.disclosed.{disclosure}")


def _own(words: Words, own: Table) -> str:
    inherited, code, surface = own["weights_inherited"], own["code_inherited"], own["surface_only"]
    if inherited is None:
        parts = [words("report.originality.inherited_unknown")]
    else:
        parts = [words("report.originality.inherited", share=percent(inherited))]
    if inherited and surface is not None:
        parts.append(words("report.originality.surface" if surface else "report.originality.beyond"))
    if code is not None:
        parts.append(words("report.originality.code", share=percent(code)))
    return words("report.joined").join(parts)


def _sides(page: Page, words: Words, report: Report, options: Options) -> None:
    page.blank()
    labels = [words("report.suspect"), words("report.source")]
    column = max(map(cell_len, labels)) + 2
    for label, key in zip(labels, ("suspect", "source"), strict=True):
        for line in _side(words, table(report[key])):
            page.field(label, line, column=column)
            label = ""


def _side(words: Words, side: Table) -> list[str]:
    lines = [str(side["locator"])]
    if side["revision"] is not None:
        lines.append(words("report.side.revision", revision=str(side["revision"])))
    if side["format"] is not None:
        parameters = number(side["parameters"])
        lines.append(words("report.side.weights", format=str(side["format"]), parameters=parameters))
    parts = {words.name("report.part", part): str(state) for part, state in table(side["parts"]).items()}
    present = [part for part, state in parts.items() if state == "present"]
    if present:
        lines.append(words("report.side.present", parts=words("report.comma").join(present)))
    for part, state in parts.items():
        if state != "present":
            reason = words.sentence(state.removeprefix("absent: "))
            lines.append(words("report.side.absent", part=part, reason=reason))
    if side["digest"] is not None:
        lines.append(str(side["digest"]))
    return lines


def _components(page: Page, words: Words, report: Report, options: Options) -> None:
    page.heading(words("report.components"))
    found = []
    for component, value in table(report["components"]).items():
        judged = table(value)
        reasons = words.sentences(judged["reasons"])
        relation = words.name("report.relation", str(judged["relation"]))
        found.append([words.name("report.component", component), relation, reasons[0] if reasons else ""])
    names = ("report.component_column", "report.relation_column", "report.reason_column")
    _grid(page, [words(name) for name in names], found)


def _grid(page: Page, titles: list[str], lines: list[list[str]]) -> None:
    """A table whose last column wraps."""
    widths = [max(cell_len(line[i]) for line in [titles, *lines]) + 2 for i in range(len(titles) - 1)]
    widths = [min(width, page.width // 3) for width in widths]
    page.row(titles, widths, indent=2, styles=["dim"] * len(titles))
    for line in lines:
        page.row(line, widths, indent=2, styles=["", "bold", *[""] * (len(titles) - 2)])


def _done(page: Page, words: Words, report: Report, options: Options) -> None:
    weights = table(table(report["components"])["weights"])
    if weights["relation"] not in _RELATED:
        return
    page.heading(words("report.done"))
    changes = list(tables(weights["transformations"]))
    for change in changes:
        _transformation(page, words, change, options)
    if not changes:
        page.item(words("report.weights.nothing"), indent=2)
    if weights["log10_p"] is None:
        proven = words("report.weights.share_untested", share=percent(weights["shared_fraction"]))
    else:
        log10_p = number(weights["log10_p"])
        proven = words("report.weights.share", share=percent(weights["shared_fraction"]), log10_p=log10_p)
    page.paragraph(proven, indent=2)
    page.paragraph(words(f"report.direction.{weights['direction']}"), indent=2)
    for reason in words.sentences(weights["reasons"]):
        page.item(reason, indent=2)
    parts = [
        [str(part["name"]), words.name("report.relation", str(part["relation"])), percent(part["share"])]
        for part in tables(weights["parts"])
    ]
    if parts:
        names = ("report.part_column", "report.relation_column", "report.share_column")
        _grid(page, [words(name) for name in names], parts)


def _transformation(page: Page, words: Words, change: Table, options: Options) -> None:
    """One change with its plain parameters in brackets; maps and lists follow as rows."""
    kind, parameters = str(change["kind"]), table(change["parameters"])
    plain = [
        f"{words.name('report.parameter', key)} {_plain(words, value)}"
        for key, value in parameters.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    title = words.name("report.kind", kind)
    page.item(f"{title} ({', '.join(plain)})" if plain else title, indent=2, style="bold")
    for value in parameters.values():
        if isinstance(value, dict | list):
            _limited(page, words, _entries(words, kind, value), ROWS, options)


def _plain(words: Words, value: Json) -> str:
    return words.name("report.permuted", value) if isinstance(value, str) else number(value)


def _entries(words: Words, kind: str, value: dict[str, Json] | list[Json]) -> list[str]:
    """The rows of a map (names: source to suspect; numbers: suspect to source) or of a list."""
    if isinstance(value, list):
        return [", ".join(map(number, item.values())) if isinstance(item, dict) else number(item) for item in value]
    mapped = kind in ("layers_dropped", "layers_reordered", "depth_upscaled", "moe_upcycled")
    if not mapped and kind != "renamed":
        return [f"{key}: {number(item)}" for key, item in value.items()]
    template = "report.map.numbers" if mapped else "report.map.names"
    return [words(template, key=key, value=_joined(item)) for key, item in value.items()]


def _joined(value: Json) -> str:
    return ", ".join(map(number, value)) if isinstance(value, list) else number(value)


def _limited(
    page: Page, words: Words, entries: Sequence[str], limit: int, options: Options, indent: int = 6
) -> None:
    """The first rows, and how many more there are."""
    shown = min(len(entries), ALL_ROWS if options.verbose else limit)
    for entry in entries[:shown]:
        page.paragraph(entry, indent=indent)
    if len(entries) > shown:
        key = "report.more" if options.verbose else "report.more_rows"
        page.paragraph(words(key, count=len(entries) - shown), indent=indent, style="dim")


def _measured(report: Report) -> list[Table]:
    return [finding for finding in tables(report["findings"]) if finding["status"] == "measured"]


def _evidence(page: Page, words: Words, report: Report, options: Options) -> None:
    findings = _measured(report)[:ALL_ROWS]
    if not findings:
        return
    page.heading(words("report.evidence"))
    for index, finding in enumerate(findings):
        if index:
            page.blank()
        _finding(page, words, finding, options)


def _finding(page: Page, words: Words, finding: Table, options: Options) -> None:
    signal, component = str(finding["signal"]), str(finding["component"])
    title = words.name("report.signal", signal)
    named = f"{title} ({signal})" if title != signal else title
    page.paragraph(f"{words.name('report.component', component)}: {named}", indent=2, style="bold")
    fields = [
        (words("report.finding.result"), _numbers(words, finding)),
        (words("report.finding.null"), words.sentence(str(finding["null"]))),
    ]
    if finding["baseline"] is not None:
        fields.append((words("report.finding.baseline"), _baseline(words, table(finding["baseline"]))))
    places = [
        (words("report.finding.place"), words("report.item", name=str(row["where"]), text=words.sentence(str(row["what"]))))
        for row in tables(finding["evidence"])
    ]
    shown = min(len(places), ALL_ROWS if options.verbose else EVIDENCE_ROWS)
    fields += places[:shown]
    if len(places) > shown:
        key = "report.more" if options.verbose else "report.more_rows"
        fields.append(("", words(key, count=len(places) - shown)))
    fields += [(words("report.finding.caveat"), caveat) for caveat in words.sentences(finding["caveats"])]
    _fields(page, _without_repeats(fields), indent=4)


def _without_repeats(fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """A label stands once above the rows that share it."""
    labels = ["", *(label for label, _ in fields)]
    return [("" if label == before else label, text) for before, (label, text) in zip(labels, fields, strict=False)]


def _numbers(words: Words, finding: Table) -> str:
    statistic, sample_size = number(finding["statistic"]), number(finding["sample_size"])
    parts = [words("report.finding.numbers", statistic=statistic, sample_size=sample_size)]
    if finding["log10_p"] is None:
        parts.append(words("report.finding.no_test"))
    else:
        parts.append(words("report.finding.log10_p", log10_p=number(finding["log10_p"])))
    if finding["effect"] is not None:
        effect = {key: number(value) for key, value in table(finding["effect"]).items()}
        parts.append(words("report.finding.effect", **effect))
    return words("report.joined").join(parts)


def _baseline(words: Words, baseline: Table) -> str:
    what, q50, q99 = words.sentence(str(baseline["what"])), number(baseline["q50"]), number(baseline["q99"])
    return words("report.finding.baseline_text", what=what, q50=q50, q99=q99)


def _skipped(page: Page, words: Words, report: Report, options: Options) -> None:
    others = [finding for finding in tables(report["findings"]) if finding["status"] != "measured"]
    if not others:
        return
    page.heading(words("report.skipped"))
    for finding in others[:ALL_ROWS]:
        reason = words.sentence(str(finding["reason"]))
        text = words("report.failed", reason=reason) if finding["status"] == "failed" else reason
        name = words.name("report.signal", str(finding["signal"]))
        page.item(words("report.item", name=name, text=text), indent=2)


def _caveats(page: Page, words: Words, report: Report, options: Options) -> None:
    caveats = words.sentences(table(report["verdict"])["caveats"])
    if caveats:
        page.heading(words("report.caveats"))
    for caveat in caveats:
        page.item(caveat, indent=2)


def _coverage(page: Page, words: Words, report: Report, options: Options) -> None:
    coverage = table(report["coverage"])
    page.heading(words("report.coverage"))
    text = words(
        "report.coverage_text.read",
        bytes=size(coverage["bytes_read"]),
        requests=number(coverage["requests"]),
        share=percent(coverage["share"]),
        level=words.name("report.level", str(coverage["level"])),
    )
    page.paragraph(text, indent=2)


def _next(page: Page, words: Words, report: Report, options: Options) -> None:
    page.heading(words("report.next"))
    page.paragraph(words("report.next_step.save"), indent=2)
    if not options.verbose and any(len(rows(found["evidence"])) > EVIDENCE_ROWS for found in _measured(report)):
        page.paragraph(words("report.next_step.verbose"), indent=2)
    page.blank()
    page.paragraph(words("report.note.practice"), style="dim")
