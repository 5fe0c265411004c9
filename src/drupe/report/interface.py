"""What a renderer is, and which there are. A renderer turns a document into text and computes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from drupe.errors import UsageError
from drupe.messages import Language

if TYPE_CHECKING:
    from drupe.document import Report

RENDERERS: Mapping[str, str] = {"terminal": "drupe.report.terminal", "json": "drupe.report.json_text"}
"""Format name -> module with a function ``render``; imported when asked for."""
MIN_WIDTH, MAX_WIDTH = 40, 100
"""Cells of a line; longer lines are hard to read."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a document is shown. ``width`` in cells; ``verbose``: all rows; ``color``: ANSI sequences."""

    width: int = 80
    verbose: bool = False
    color: bool = False


class Renderer(Protocol):
    """Report -> text in one language."""

    def __call__(self, report: Report, language: Language, options: Options) -> str:
        """The whole text, ending in a newline. Raises FormatError on a document of an unknown shape."""


def renderer(name: str) -> Renderer:
    """The renderer of a format. Raises UsageError on a name that is none."""
    if name not in RENDERERS:
        raise UsageError(f"unknown format {name[:40]!r}", hint=f"formats: {', '.join(RENDERERS)}")
    render: Renderer = import_module(RENDERERS[name]).render
    return render


def render(
    report: Report, format_name: str, *, language: Language, verbose: bool = False, to_file: bool = False
) -> str:
    """The report as text, for a file or for the terminal at hand."""
    options = Options(verbose=verbose) if to_file else options_of_terminal(verbose=verbose)
    return renderer(format_name)(report, language, options)


def options_of_terminal(*, verbose: bool = False) -> Options:
    """Width and colour of stdout: plain at 80 cells when nobody watches; NO_COLOR (no-color.org) counts."""
    if not sys.stdout.isatty():
        return Options(verbose=verbose)
    width = shutil.get_terminal_size((80, 24)).columns
    color = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Options(max(MIN_WIDTH, min(width, MAX_WIDTH)), verbose, color)
