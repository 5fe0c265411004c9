from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from drupe import document
from drupe.errors import UsageError
from drupe.report.interface import MAX_WIDTH, RENDERERS, Options, render, renderer
from golden_reports import CASES, load

WIDTH_AND_COLOR = (
    "from drupe.report.interface import options_of_terminal as o; x = o(); print(x.width, x.color, x.verbose)"
)


def in_terminal(columns: int, **environment: str) -> str:
    """What a process sees whose stdout is a terminal of that width."""
    ours, theirs = pty.openpty()
    try:
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in ("NO_COLOR", "COLUMNS", "LINES", "TERM")
        }
        subprocess.run(
            [sys.executable, "-c", WIDTH_AND_COLOR],
            stdout=theirs,
            env={**kept, "COLUMNS": str(columns), "TERM": "xterm", **environment},
            check=True,
        )
        return os.read(ours, 1000).decode().strip()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("name", RENDERERS)
@pytest.mark.parametrize("case", CASES)
def test_every_renderer_gives_text_and_leaves_the_document_alone(name: str, case: str) -> None:
    report = load(case)
    before = document.dumps(report)
    for language in ("en", "zh"):
        text = renderer(name)(report, language, Options())
        assert text.endswith("\n")
        text.encode("utf-8")
    assert document.dumps(report) == before


def test_an_unknown_format_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(UsageError, match="terminal, json"):
        renderer("xml")


def test_json_is_the_document() -> None:
    report = load("copy")
    text = render(report, "json", language="zh")
    assert text == document.dumps(report)
    assert document.loads(text.encode(), "report.json") == report


def test_plain_and_80_cells_wide_when_nobody_watches() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WIDTH_AND_COLOR], capture_output=True, text=True, check=True
    )
    assert result.stdout == "80 False False\n"


def test_a_terminal_gets_color_and_its_own_width() -> None:
    assert in_terminal(66) == "66 True False"
    assert in_terminal(300) == f"{MAX_WIDTH} True False"
    assert in_terminal(7) == "40 True False"


def test_no_color_is_respected() -> None:
    assert in_terminal(80, NO_COLOR="1") == "80 False False"
    assert in_terminal(80, NO_COLOR="") == "80 True False"
    assert in_terminal(80, TERM="dumb") == "80 False False"
