"""The document itself, as JSON."""

from __future__ import annotations

from drupe.document import Report, dumps
from drupe.messages import Language
from drupe.report.interface import Options


def render(report: Report, language: Language, options: Options) -> str:
    """The JSON text; it holds both languages and all rows, so neither argument changes it."""
    return dumps(report)
