"""Truth is data: every pair of tests/cases gives its label, relation, transformations and exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cases_loader import Case, load_cases, materialise
from drupe import cli, document, workflows

CASES = load_cases()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Reports by case name, made once."""
    return {"folder": tmp_path_factory.mktemp("cases")}


def report_of(case: Case, reports: dict[str, Any]) -> Any:
    if case.name not in reports:
        suspect, source = materialise(case, reports["folder"] / case.name)
        reports[case.name] = workflows.compare(str(suspect), str(source))
    return reports[case.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pair_is_judged_as_the_truth_table_says(case: Case, reports: dict[str, Any]) -> None:
    report = report_of(case, reports)
    weights = report["components"]["weights"]
    assert report["verdict"]["label"] in case.labels
    assert weights["relation"] in case.relations
    assert cli.exit_code(report, None) in case.exits
    kinds = [item["kind"] for item in weights["transformations"]]
    assert case.kinds_match(kinds), kinds


def test_no_independent_pair_is_ever_called_related(reports: dict[str, Any]) -> None:
    """The worst failure, counted over every case whose truth is independent or a shared start."""
    innocent = [case for case in CASES if case.exit == 0]
    accused = [
        case.name
        for case in innocent
        if report_of(case, reports)["verdict"]["label"] in ("copy", "derivative")
    ]
    assert len(innocent) >= 30
    assert accused == []


def test_reports_survive_being_saved(reports: dict[str, Any], tmp_path: Path) -> None:
    report = report_of(CASES[0], reports)
    assert document.loads(document.dumps(report).encode(), "saved") == report
