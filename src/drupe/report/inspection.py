"""What is in one model, as a list of facts."""

from __future__ import annotations

from rich.cells import cell_len

from drupe.readers.strict_json import Json
from drupe.report.adapters import adapter_lines
from drupe.report.flags import flag_lines
from drupe.report.layout import Page
from drupe.report.words import Table, Words, number, rows, table


def render_inspection(page: Page, words: Words, report: Table) -> None:
    """Fill the page from a document of kind ``inspection``."""
    model = table(report["model"])
    page.paragraph(words("report.inspection.title", model=str(model["locator"])), style="bold")
    page.paragraph(words("report.inspection.nothing_judged"), style="dim")
    page.blank()
    for line in _parts(words, model):
        page.item(line)
    _section(
        page, words("report.inspection.architecture"), _architecture(words, table(report["architecture"]))
    )
    hyper = table(table(report["architecture"])["hyper_parameters"])
    _section(
        page, words("report.inspection.hyper_parameters"), [f"{key} = {_value(hyper[key])}" for key in hyper]
    )
    storage, matrices = table(report["storage"]), table(report["matrices"])
    if storage["format"] is not None:
        form, files = str(storage["format"]), number(storage["files"])
        stored = words("report.inspection.files", format=form, files=files)
        _section(page, words("report.inspection.storage"), [stored])
    _section(page, words("report.inspection.dtypes"), _counts(table(storage["values_by_dtype"])))
    _section(page, words("report.inspection.matrices"), _counts(table(matrices["by_role"])))
    shapes = table(matrices.get("by_shape", {}))
    named = {words.name("report.inspection.shape", key): value for key, value in shapes.items()}
    _section(page, words("report.inspection.shapes"), _counts(named))
    states = {
        words.name("report.inspection.state", key): value
        for key, value in table(matrices["by_state"]).items()
    }
    _section(page, words("report.inspection.states"), _counts(states))
    if report["tokenizer"] is not None:
        _section(page, words("report.inspection.tokenizer"), [_tokenizer(words, table(report["tokenizer"]))])
    _declared(page, words, table(report["declared"]))
    _section(page, words("report.inspection.code"), [str(file) for file in rows(report["code"])])


def _parts(words: Words, model: Table) -> list[str]:
    lines = [str(model["digest"])]
    if model["revision"] is not None:
        lines.append(words("report.side.revision", revision=str(model["revision"])))
    if model["format"] is not None:
        parameters = number(model["parameters"])
        lines.append(words("report.side.weights", format=str(model["format"]), parameters=parameters))
    for part, state in table(model["parts"]).items():
        if state != "present":
            reason = words.sentence(str(state).removeprefix("absent: "))
            lines.append(words("report.side.absent", part=words.name("report.part", part), reason=reason))
    return [*lines, *adapter_lines(words, model), *flag_lines(words, model)]


def _architecture(words: Words, architecture: Table) -> list[str]:
    lines = [str(name) for name in rows(architecture["classes"])]
    if architecture["model_type"]:
        lines.append(words("report.inspection.type", type=str(architecture["model_type"])))
    if architecture["names_follow"]:
        lines.append(words("report.inspection.names_follow", scheme=str(architecture["names_follow"])))
    layers, hidden = number(architecture["layers"]), number(architecture["hidden_size"])
    design = [words.sentence(str(sentence)) for sentence in rows(architecture.get("design", []))]
    return [*lines, words("report.inspection.layers", layers=layers, hidden=hidden), *design]


def _tokenizer(words: Words, tokenizer: Table) -> str:
    pieces = number(tokenizer["pieces"])
    kind, form = str(tokenizer["kind"]), str(tokenizer["format"])
    return words("report.inspection.pieces", kind=kind, pieces=pieces, format=form)


def _declared(page: Page, words: Words, declared: Table) -> None:
    names = {
        "names": words("report.inspection.names"),
        "base_models": words("report.inspection.base_models"),
        "licences": words("report.inspection.licences"),
        "copyright": words("report.inspection.copyright"),
    }
    page.heading(words("report.inspection.declared"))
    column = max(map(cell_len, names.values())) + 2
    for key, name in names.items():
        values = [str(value) for value in rows(declared.get(key, []))]
        page.field(name, ", ".join(values) or words("report.inspection.none"), column=column, indent=2)


def _counts(values: Table) -> list[str]:
    return [", ".join(f"{key} {number(values[key])}" for key in values)] if values else []


def _value(value: Json) -> str:
    """A setting as it is written, without separators."""
    return str(value)


def _section(page: Page, title: str, lines: list[str]) -> None:
    if lines:
        page.heading(title)
    for line in lines:
        page.paragraph(line, indent=2)
