"""Every value of a closed list has a name in both languages, and so has every signal that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drupe import workflows
from drupe.document import json_schema
from drupe.errors import FormatError
from drupe.fingerprint import PARTS
from drupe.messages import LANGUAGES, Language, catalogue
from drupe.report.words import Words, rows, words_of
from drupe.uninformative import State
from golden_reports import CASES, load

SCHEMA: dict[str, Any] = json_schema()
DEFINITIONS, TOP = SCHEMA["$defs"], SCHEMA["properties"]
LISTS = {
    "report.label": TOP["verdict"]["properties"]["label"]["enum"],
    "report.disclosed": TOP["verdict"]["properties"]["disclosure"]["enum"],
    "report.level": TOP["coverage"]["properties"]["level"]["enum"],
    "report.relation": DEFINITIONS["relation"]["enum"],
    "report.component": DEFINITIONS["component_name"]["enum"],
    "report.kind": DEFINITIONS["transformation"]["properties"]["kind"]["enum"],
    "report.parameter": list(DEFINITIONS["parameters"]["properties"]),
    "report.permuted": DEFINITIONS["parameters"]["properties"]["what"]["enum"],
    "report.direction": DEFINITIONS["weights"]["properties"]["direction"]["enum"],
    "report.part": list(PARTS),
    "report.inspection.state": [state.name.lower() for state in State],
}


@pytest.mark.parametrize("prefix", LISTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_value_of_a_closed_list_has_a_name(prefix: str, language: Language) -> None:
    names = catalogue(language)
    assert not [value for value in LISTS[prefix] if f"{prefix}.{value}" not in names]


def test_the_labels_are_those_of_the_contract() -> None:
    names = [catalogue("zh")[f"report.label.{label}"] for label in LISTS["report.label"]]
    assert names == ["同一权重", "衍生权重", "同构，权重独立", "接口转发", "未见关联", "无法判定"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_signal_that_runs_has_a_title(language: Language) -> None:
    models = Path(__file__).parents[1] / "models"
    reports: list[Any] = [load(case) for case in CASES]
    reports.append(workflows.compare(str(models / "w0"), str(models / "g0"), offline=True))
    signals = {finding["signal"] for report in reports for finding in report["findings"]}
    assert not [signal for signal in signals if f"report.signal.{signal}" not in catalogue(language)]


def test_a_value_of_an_open_list_stands_for_itself() -> None:
    assert Words("zh", {}).name("report.signal", "third.party") == "third.party"


def test_a_document_of_another_shape_is_a_typed_error() -> None:
    with pytest.raises(FormatError):
        words_of({"translations": []}, "zh")
    with pytest.raises(FormatError):
        rows({})
