"""What must be said of a model's files besides their values: the code that loading them would call for.

The weights come first; what lies beside them has sentences of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from drupe.report.words import Table, Words, number, tables

_SHOWN = 5
"""Names in one line; the document holds them all."""


def flag_lines(words: Words, side: Table) -> list[str]:
    """One line for each kind of remark and file of a side; none when there is nothing to say."""
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for flag in tables(side.get("flags", [])):
        text, reason = str(flag["what"]), str(flag["reason"])
        if text and reason:
            text = words("report.bracketed", text=text, inside=reason)
        place = (flag.get("beside") is True, str(flag["kind"]), str(flag["file"]))
        groups.setdefault(place, []).append(text or reason)
    lines = [
        _line(words, *place, names) for place, names in sorted(groups.items(), key=lambda item: item[0][0])
    ]
    if side.get("flags_omitted"):
        lines.append(words("report.flags.omitted", count=number(side["flags_omitted"])))
    return lines


def _line(words: Words, beside: bool, kind: str, file: str, names: list[str]) -> str:
    listed = words("report.comma").join(names[:_SHOWN])
    if len(names) > _SHOWN:
        listed = words("report.flags.more", listed=listed, count=len(names) - _SHOWN)
    if beside:
        return _beside(words, kind, file, listed)
    sentences: Mapping[str, str] = {
        "dangerous_code": words("report.flags.dangerous_code", file=file, names=listed),
        "unknown_code": words("report.flags.unknown_code", file=file, names=listed),
        "not_read": words("report.flags.not_read", file=file, names=listed),
    }
    return sentences.get(kind, f"{kind}: {file}: {listed}")


def _beside(words: Words, kind: str, file: str, listed: str) -> str:
    sentences: Mapping[str, str] = {
        "dangerous_code": words("report.flags.beside_dangerous", file=file, names=listed),
        "unknown_code": words("report.flags.beside_unknown", file=file, names=listed),
        "loader_code": words("report.flags.beside_code", file=file, names=listed),
        "not_read": words("report.flags.beside_unread", file=file, reason=listed),
    }
    return sentences.get(kind, f"{kind}: {file}: {listed}")
