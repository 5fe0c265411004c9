"""The document: what is written conforms to the published schema, what is read is checked against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe import document, workflows
from drupe.diagnose import Kind
from drupe.document import Report
from drupe.document_schema import ANNOTATIONS, KEYWORDS, Checker
from drupe.errors import DrupeError, FormatError
from drupe.signals.interface import Component
from drupe.verdict import Disclosure, Label, Relation
from golden_reports import CASES, FOLDER

BUSY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])  # shared cores
MODELS = Path(__file__).parent / "models"
PAIRS = [("r0_ft", "r0"), ("r1", "r0"), ("r3", "r0"), ("r0", "r0"), ("w0", "r0")]
SCHEMA: dict[str, Any] = document.json_schema()


def golden(case: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{case}.json").read_text("utf-8"))


def read(report: object) -> Report:
    return document.loads(json.dumps(report).encode(), "report.json")


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, child in children for found in places(child, (*path, key)))]


def changed(report: dict[str, Any], path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path; the marker ``DELETED`` removes the key."""
    if not path:
        return value
    copy = json.loads(json.dumps(report))
    node = copy
    for key in path[:-1]:
        node = node[key]
    if value is DELETED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return copy


DELETED = object()
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        2.5,
        3.0,
        "",
        "present",
        "absent: ",
        "copy",
        "measured",
        [],
        {},
        [1],
        {"x": 1},
        DELETED,
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    report = golden(draw(st.sampled_from(CASES)))
    return changed(report, draw(st.sampled_from(places(report))), draw(ODD))


@pytest.mark.parametrize(("suspect", "source"), PAIRS)
def test_real_reports_conform_and_survive_the_round_trip(suspect: str, source: str) -> None:
    report = workflows.compare(str(MODELS / suspect), str(MODELS / source), offline=True)
    jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)
    assert document.loads(document.dumps(report).encode(), "report.json") == report


@pytest.mark.parametrize("kind", document.KINDS)
def test_the_published_schema_is_a_schema(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(document.json_schema(kind))


@pytest.mark.parametrize("kind", document.KINDS)
def test_the_schema_uses_only_what_is_checked_when_reading(kind: str) -> None:
    def schemas(node: Any) -> list[dict[str, Any]]:
        if not isinstance(node, dict):
            return []
        inner = [node.get(key) for key in ("additionalProperties", "items", "if", "then", "else")]
        inner += [child for key in ("properties", "$defs") for child in node.get(key, {}).values()]
        return [node, *(found for child in inner for found in schemas(child))]

    assert {
        keyword for schema in schemas(document.json_schema(kind)) for keyword in schema
    } <= KEYWORDS | ANNOTATIONS


def test_every_key_is_described_and_every_object_closed() -> None:
    def check(node: Any, path: str) -> None:
        if not isinstance(node, dict):
            return
        for key, child in node.get("properties", {}).items():
            if path != "/if":
                assert child.get("description"), f"{path}/{key} has no description"
        if "properties" in node and not path.endswith("/if"):
            assert node.get("additionalProperties") is False, f"{path} is open"
        for key in ("properties", "$defs"):
            for name, child in node.get(key, {}).items():
                check(child, f"{path}/{name}")
        for key in ("items", "additionalProperties", "then", "else"):
            check(node.get(key), f"{path}/{key}")

    check(SCHEMA, "")


def test_closed_lists_are_those_of_the_code() -> None:
    definitions, top = SCHEMA["$defs"], SCHEMA["properties"]
    assert definitions["relation"]["enum"] == [item.value for item in Relation]
    assert definitions["component_name"]["enum"] == [item.value for item in Component]
    assert definitions["transformation"]["properties"]["kind"]["enum"] == [item.value for item in Kind]
    assert top["verdict"]["properties"]["label"]["enum"] == [item.value for item in Label]
    assert top["verdict"]["properties"]["disclosure"]["enum"] == [item.value for item in Disclosure]
    assert top["components"]["required"] == [item.value for item in Component]


@BUSY
@given(damaged())
def test_the_check_agrees_with_the_jsonschema_package(report: Any) -> None:
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(report)
    try:
        Checker(SCHEMA, "report.json").check(report, SCHEMA)
    except FormatError:
        assert not valid
    else:
        assert valid


@pytest.mark.parametrize("path", [(), ("verdict",), ("components", "weights"), ("findings", 0), ("suspect",)])
def test_an_unknown_key_is_refused_unless_the_report_is_newer(path: tuple[Any, ...]) -> None:
    report = changed(golden("copy"), (*path, "new_key"), {"any": ["thing"]})
    with pytest.raises(FormatError, match="new_key"):
        read(report)
    assert read({**report, "schema": "drupe/report/1.7"}) == {**report, "schema": "drupe/report/1.7"}


@pytest.mark.parametrize(
    "path",
    [("translations",), ("verdict", "label"), ("components", "code"), ("findings", 0, "null"), ("kind",)],
)
@pytest.mark.parametrize("schema", ["drupe/report/1.0", "drupe/report/1.7"])
def test_a_missing_key_is_refused_and_named(path: tuple[Any, ...], schema: str) -> None:
    with pytest.raises(FormatError, match=repr(path[-1])):
        read({**changed(golden("copy"), path, DELETED), "schema": schema})


@pytest.mark.parametrize(
    "schema",
    [
        *("drupe/report/2.0", "drupe/report/0.9", "drupe/report/1", "drupe/report/1.", "drupe/report/1.x"),
        *("drupe/report/1.0\n", "drupe/report/1.٣", f"drupe/report/1.{'9' * 5000}", "other/1.0", None, 1),
    ],
)
def test_another_version_is_refused(schema: object) -> None:
    with pytest.raises(FormatError, match="schema"):
        read({**golden("copy"), "schema": schema})


def test_an_error_names_the_file_and_the_place() -> None:
    with pytest.raises(
        FormatError, match=r"report\.json: report\.findings\[2\]\.sample_size: expected integer, found"
    ) as error:
        read(changed(golden("copy"), ("findings", 2, "sample_size"), "many"))
    assert "damaged" in str(error.value)


def test_an_error_shows_no_control_character() -> None:
    for report in (
        changed(golden("copy"), ("verdict", "label"), "\x1b[31mcopy\u202e"),
        changed(golden("copy"), ("verdict", "\x1b[31m"), 1),
        changed(golden("copy"), ("suspect", "parts", "\x1b[31m"), 1),
    ):
        with pytest.raises(FormatError) as error:
            read(report)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "-1e999", "1" + "0" * 400])
@pytest.mark.parametrize("schema", ["1.0", "1.7"])
def test_numbers_are_finite(text: str, schema: str) -> None:
    data = json.dumps({**golden("copy"), "schema": f"drupe/report/{schema}"})
    for key in ('"sample_size": 29', '"log10_p": -17.'):
        assert key in data
    damaged_text = data.replace('"sample_size": 29', f'"sample_size": {text}')
    with pytest.raises(FormatError, match="sample_size"):
        document.loads(damaged_text.encode(), "report.json")


def test_what_a_newer_report_carries_along_can_be_written_again() -> None:
    newer = {**golden("copy"), "schema": "drupe/report/1.7"}
    text = json.dumps(newer)[:-1]
    with pytest.raises(FormatError):
        document.loads((text + ', "new": NaN}').encode(), "report.json")
    for depth in (10, 300, 600, 900, 980, 20_000):
        try:
            report = document.loads(
                (text + ', "new": ' + "[" * depth + "]" * depth + "}").encode(), "report.json"
            )
        except DrupeError:
            assert depth > 100
        else:
            assert document.dumps(report)


def test_text_that_utf8_cannot_hold_survives() -> None:
    report = changed(golden("copy"), ("suspect", "locator"), "odd\udcff name")
    text = document.dumps(report)
    assert document.loads(text.encode("utf-8"), "report.json") == report


def test_chinese_stays_readable_in_the_file() -> None:
    assert "同" in document.dumps(golden("same_design"))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b'{"schema": "drupe/report/1.0"}'])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        document.loads(data, "report.json")


@pytest.mark.parametrize("pair", PAIRS[:2])
def test_every_sentence_has_its_chinese(pair: tuple[str, str]) -> None:
    report: Any = workflows.compare(str(MODELS / pair[0]), str(MODELS / pair[1]), offline=True)
    chinese = report["translations"]["zh"]
    sentences = [*report["verdict"]["caveats"], *report["originality"]["credit"]]
    for component in report["components"].values():
        sentences += component["reasons"]
    for side in ("suspect", "source"):
        sentences += [state[8:] for state in report[side]["parts"].values() if state.startswith("absent: ")]
    for finding in report["findings"]:
        sentences += [finding[key] for key in ("null", "reason") if key in finding]
        sentences += [row["what"] for row in finding.get("evidence", [])] + finding.get("caveats", [])
        if finding.get("baseline"):
            sentences.append(finding["baseline"]["what"])
    assert not [sentence for sentence in sentences if sentence not in chinese]
