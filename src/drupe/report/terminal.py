"""The report for a reader at a terminal: verdict first, then what carries it, then how to check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len

from drupe.document import Report
from drupe.messages import Language
from drupe.readers.strict_json import Json
from drupe.report.adapters import adapter_lines
from drupe.report.findings import is_cut, show_fields, show_measured, show_others
from drupe.report.flags import flag_lines
from drupe.report.inspection import render_inspection
from drupe.report.interface import Options
from drupe.report.layout import Page, printable
from drupe.report.words import Table, Words, log10_p, number, percent, size, table, tables, words_of

MAP_ROWS = 5
"""Rows of a map that are shown without -v."""
DIGEST = 16
"""Hexadecimal digits of a digest that are shown without -v."""
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
    words = words_of(report, language)
    page = Page(options.width, words("report.cut"))
    if report.get("kind") == "inspection":
        render_inspection(page, words, report)
        return page.text(color=options.color)
    sections: Sequence[Callable[[Page, Words, Report, Options], None]] = (
        _headline,
        _sides,
        _components,
        _parts,
        _done,
        _findings,
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
    fields = [
        (words("report.disclosure"), _disclosure(words, verdict)),
        (words("report.own"), _own(words, own)),
    ]
    credit = words.sentences(own["credit"])
    if credit:
        fields.append((words("report.credit"), words("report.joined").join(credit)))
    show_fields(page, fields)


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
    sources = [table(report["source"]), *tables(report.get("sources", []))]
    sides = [(words("report.suspect"), table(report["suspect"]))]
    sides += [(words("report.source"), source) for source in sources]
    show_fields(page, [(title, line) for title, side in sides for line in _side(words, side, options)])


def _side(words: Words, side: Table, options: Options) -> list[str]:
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
    lines += [*adapter_lines(words, side), *flag_lines(words, side)]
    if side["digest"] is not None:
        method, _, digest = str(side["digest"]).rpartition(":")
        short = digest if options.verbose or len(digest) <= DIGEST else f"{digest[:DIGEST]}..."
        lines.append(f"{method}:{short}")
    return lines


def _components(page: Page, words: Words, report: Report, options: Options) -> None:
    page.heading(words("report.components"))
    found = []
    for component, value in table(report["components"]).items():
        judged = table(value)
        cells = [
            words.name("report.component", component),
            words.name("report.relation", str(judged["relation"])),
        ]
        for reason in words.sentences(judged["reasons"]) or [""]:
            found.append([*cells, reason])
            cells = ["", ""]
    names = ("report.component_column", "report.relation_column", "report.reason_column")
    _grid(page, [words(name) for name in names], found)


def _grid(page: Page, titles: list[str], lines: list[list[str]]) -> None:
    """A table whose last column wraps."""
    lines = [[printable(cell) for cell in line] for line in lines]
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
        share, tested = percent(weights["shared_fraction"]), log10_p(weights["log10_p"])
        proven = words("report.weights.share", share=share, log10_p=tested)
    page.paragraph(proven, indent=2)
    page.paragraph(words(f"report.direction.{weights['direction']}"), indent=2)


def _parts(page: Page, words: Words, report: Report, options: Options) -> None:
    """The parts of a model that was judged part by part."""
    parts = list(tables(table(table(report["components"])["weights"])["parts"]))
    if not parts:
        return
    page.heading(words("report.parts"))
    sources = [table(report["source"]), *tables(report.get("sources", []))]
    lines = []
    for part in parts:
        like, place = part.get("like"), part.get("source")
        origin = "-"
        if isinstance(like, str) and isinstance(place, int) and 0 <= place < len(sources):
            origin = like if len(sources) == 1 else f"{sources[place]['locator']}: {like}"
        relation = words.name("report.relation", str(part["relation"]))
        lines.append([str(part["name"]), relation, percent(part["share"]), origin])
    names = ("report.part_column", "report.relation_column", "report.share_column", "report.like_column")
    _grid(page, [words(name) for name in names], lines)


def _transformation(page: Page, words: Words, change: Table, options: Options) -> None:
    """One change with its plain parameters in brackets; maps and lists follow as rows."""
    kind, parameters = str(change["kind"]), table(change["parameters"])
    plain = [
        f"{words.name('report.parameter', key)} {_plain(words, value)}"
        for key, value in parameters.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    title = words.name("report.kind", kind)
    inside = words("report.clause").join(plain)
    text = words("report.bracketed", text=title, inside=inside) if plain else title
    page.item(text, indent=2, style="bold")
    for value in parameters.values():
        if isinstance(value, dict | list):
            _map_rows(page, words, _entries(words, kind, value), options)


def _plain(words: Words, value: Json) -> str:
    return words.name("report.permuted", value) if isinstance(value, str) else number(value)


def _entries(words: Words, kind: str, value: dict[str, Json] | list[Json]) -> list[str]:
    """The rows of a map (names: source to suspect; numbers: suspect to source) or of a list."""
    if isinstance(value, list):
        return [
            ", ".join(map(number, item.values())) if isinstance(item, dict) else number(item)
            for item in value
        ]
    mapped = kind in ("layers_dropped", "layers_reordered", "depth_upscaled", "moe_upcycled")
    if not mapped and kind != "renamed":
        return [f"{key}: {number(item)}" for key, item in value.items()]
    template = "report.map.numbers" if mapped else "report.map.names"
    return [words(template, key=key, value=_joined(item)) for key, item in value.items()]


def _joined(value: Json) -> str:
    return ", ".join(map(number, value)) if isinstance(value, list) else number(value)


def _map_rows(page: Page, words: Words, entries: Sequence[str], options: Options) -> None:
    """The first rows, and how many more there are."""
    shown = len(entries) if options.verbose else min(len(entries), MAP_ROWS)
    for entry in entries[:shown]:
        page.paragraph(entry, indent=6)
    if len(entries) > shown:
        page.paragraph(words("report.more_rows", count=len(entries) - shown), indent=6, style="dim")


def _findings(page: Page, words: Words, report: Report, options: Options) -> None:
    findings = list(tables(report["findings"]))
    measured = [finding for finding in findings if finding["status"] == "measured"]
    others = [finding for finding in findings if finding["status"] != "measured"]
    if measured:
        show_measured(page, words, measured, options)
    if others:
        show_others(page, words, others)


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
    measured = [finding for finding in tables(report["findings"]) if finding["status"] == "measured"]
    if not options.verbose and any(map(is_cut, measured)):
        page.paragraph(words("report.next_step.verbose"), indent=2)
    page.blank()
    page.paragraph(words("report.note.practice"), style="dim")
