"""Portable facts of a signal <-> JSON: strict, typed, compact, the same bytes everywhere.

A frozen dataclass becomes an object; one nested in another becomes a row (its fields in order), because
facts hold many of them. Reading back checks every type and refuses unknown keys: a fingerprint may come
from a stranger.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache

from drupe.errors import FormatError, LimitError
from drupe.readers.strict_json import Json

MAX_ITEMS = 100_000
"""Entries of one list or object in the facts of one signal."""

T = typing.TypeVar("T")


def to_json(facts: object) -> dict[str, Json]:
    """The facts (a frozen dataclass) as a JSON object."""
    assert dataclasses.is_dataclass(facts)
    return {field.name: _encode(getattr(facts, field.name)) for field in dataclasses.fields(facts)}


def _encode(value: object) -> Json:
    if dataclasses.is_dataclass(value):
        return [_encode(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _encode(value[key]) for key in sorted(value)}
    assert value is None or isinstance(value, str | int | float | bool), type(value)
    return value


@cache
def _hints(kind: typing.Any) -> Mapping[str, object]:
    return typing.get_type_hints(kind)


def from_json(kind: type[T], value: Json, where: str) -> T:
    """The facts that :func:`to_json` wrote. Raises FormatError on anything else, naming the field."""
    if not isinstance(value, dict):
        raise FormatError(f"expected the facts of {kind.__name__}", where=where)
    anything: typing.Any = kind  # mypy does not see that classes are hashable
    hints = _hints(anything)
    if set(value) != set(hints):
        odd = sorted(set(value) ^ set(hints))[:5]
        raise FormatError(f"unknown or missing fields {odd}", where=where)
    return kind(**{name: _decode(hints[name], value[name], f"{where}: {name}") for name in hints})


def _decode(hint: typing.Any, value: Json, where: str) -> typing.Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise FormatError(f"expected one of {arguments}, found {value!r:.80}", where=where)
        return value
    if origin is tuple:
        return _decode_tuple(arguments, _listed(value, where), where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise FormatError("expected an object", where=where)
        return {key: _decode(arguments[1], item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_row(hint, _listed(value, where), where)
    return _decode_plain(hint, value, where)


def _decode_row(kind: typing.Any, row: list[Json], where: str) -> typing.Any:
    hints = _hints(kind)
    if len(row) != len(hints):
        raise FormatError(f"expected {len(hints)} entries, found {len(row)}", where=where)
    return kind(*(_decode(hint, item, where) for hint, item in zip(hints.values(), row, strict=True)))


def _decode_plain(hint: typing.Any, value: Json, where: str) -> Json:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 60 else value
    if type(value) is not hint:
        raise FormatError(f"expected {hint.__name__}, found {type(value).__name__}", where=where)
    return value


def _decode_union(arguments: tuple[typing.Any, ...], value: Json, where: str) -> typing.Any:
    for option in arguments:
        if option is type(None) and value is None:
            return None
        if option is type(value):
            return value
    rest = [option for option in arguments if option not in (str, int, float, bool, type(None))]
    if len(rest) != 1:
        raise FormatError(f"unexpected {type(value).__name__}", where=where)
    return _decode(rest[0], value, where)


def _decode_tuple(arguments: tuple[typing.Any, ...], items: list[Json], where: str) -> tuple[typing.Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(arguments[0], item, where) for item in items)
    if len(arguments) != len(items):
        raise FormatError(f"expected {len(arguments)} entries, found {len(items)}", where=where)
    return tuple(_decode(kind, item, where) for kind, item in zip(arguments, items, strict=True))


def _listed(value: Json, where: str) -> list[Json]:
    if not isinstance(value, list):
        raise FormatError(f"expected a list, found {type(value).__name__}", where=where)
    if len(value) > MAX_ITEMS:
        raise LimitError("entries of a list", limit=MAX_ITEMS, actual=len(value), where=where)
    return value
