"""Flags as facts: the gravest first, bounded in number and size, portable. What is shown is what is kept.

A file may hold thousands of dangerous names; a fingerprint has room for some. The same list is shown of a model and
of its fingerprint, and the number of those that are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from drupe.errors import FormatError, LimitError
from drupe.facts import from_json, to_json
from drupe.readers.interface import Flag, FlagKind
from drupe.readers.strict_json import Json

MAX_FLAGS = 200
MAX_BYTES = 4096
"""Of all flags in a fingerprint."""
MAX_TEXT = 200
"""Characters of a name or a reason; a name in a pickle may have thousands."""
_ORDER = tuple(FlagKind)


@dataclass(frozen=True, slots=True)
class Flags:
    """What is kept of the remarks on a model's files, and how many more there were."""

    kept: tuple[Flag, ...] = ()
    omitted: int = 0


NOTHING = Flags()


@dataclass(frozen=True, slots=True)
class _Group:
    """Flags that follow one another and differ in name and position only."""

    kind: str
    file: str
    beside: bool
    reason: str
    names: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class _Facts:
    groups: tuple[_Group, ...]
    omitted: int


def keep(found: Iterable[Flag]) -> Flags:
    """The gravest flags, those of the weights before others, each once, as many as there is room for."""
    ranked = sorted(dict.fromkeys(map(_shortened, found)), key=lambda f: (_ORDER.index(f.kind), f.beside))
    kept = ranked[:MAX_FLAGS]
    while kept and _size(kept) > MAX_BYTES:
        del kept[len(kept) * 7 // 8 :]
    return Flags(tuple(kept), len(ranked) - len(kept))


def _shortened(flag: Flag) -> Flag:
    file, what, reason = map(_short, (flag.file, flag.what, flag.reason))
    return Flag(flag.kind, file, what, flag.position, reason, flag.beside)


def _short(text: str) -> str:
    """Text that a file can hold: half a surrogate pair is none."""
    text = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}…{text[1 - MAX_TEXT // 2 :]}"
    return text.encode("utf-8", "replace").decode()


def _size(flags: Iterable[Flag]) -> int:
    return len(json.dumps(encode(Flags(tuple(flags))), separators=(",", ":"), ensure_ascii=False).encode())


def encode(flags: Flags) -> dict[str, Json]:
    """The flags as a JSON object."""
    groups = groupby(flags.kept, lambda f: (f.kind.value, f.file, f.beside, f.reason))
    return to_json(
        _Facts(
            tuple(_Group(*key, tuple((flag.what, flag.position) for flag in each)) for key, each in groups),
            flags.omitted,
        )
    )


def decode(value: Json, where: str) -> Flags:
    """The flags that :func:`encode` wrote. Raises FormatError on anything else, LimitError on too many."""
    facts = from_json(_Facts, value, where)
    count = sum(len(group.names) for group in facts.groups)
    if count > MAX_FLAGS:
        raise LimitError("flags", limit=MAX_FLAGS, actual=count, where=where)
    if facts.omitted < 0:
        raise FormatError("a number of omitted flags below zero", where=where)
    kept = tuple(
        Flag(FlagKind(group.kind), group.file, what, _position(position, where), group.reason, group.beside)
        for group in facts.groups
        for what, position in group.names
    )
    if _size(kept) > MAX_BYTES:
        raise LimitError("bytes of all flags", limit=MAX_BYTES, actual=_size(kept), where=where)
    return Flags(kept, facts.omitted)


def _position(position: int | None, where: str) -> int | None:
    if position is not None and position < 0:
        raise FormatError("the position of a flag is below zero", where=where)
    return position
