"""What must be said of a model's files besides their values: the code that loading them would call for."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.report.words import Table, Words, tables

_SHOWN = 5
"""Names in one line; the document holds them all."""


def flag_lines(words: Words, side: Table) -> list[str]:
    """One line for each kind of remark and file of a side; none when there is nothing to say."""
    groups: dict[tuple[str, str], list[str]] = {}
    for flag in tables(side.get("flags", [])):
        text = str(flag["what"])
        if flag["reason"]:
            text = words("report.bracketed", text=text, inside=str(flag["reason"]))
        groups.setdefault((str(flag["kind"]), str(flag["file"])), []).append(text)
    return [_line(words, kind, file, names) for (kind, file), names in groups.items()]


def _line(words: Words, kind: str, file: str, names: list[str]) -> str:
    listed = words("report.comma").join(names[:_SHOWN])
    if len(names) > _SHOWN:
        listed = words("report.flags.more", listed=listed, count=len(names) - _SHOWN)
    sentences: Mapping[str, str] = {
        "dangerous_code": words("report.flags.dangerous_code", file=file, names=listed),
        "unknown_code": words("report.flags.unknown_code", file=file, names=listed),
        "not_read": words("report.flags.not_read", file=file, names=listed),
    }
    return sentences.get(kind, f"{kind}: {file}: {listed}")
