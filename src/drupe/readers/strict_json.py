"""JSON from strangers: bounded size, depth and memory; duplicate keys refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import numpy as np

from drupe.errors import FormatError, LimitError
from drupe.sources.interface import Blob

MAX_BYTES = 128 << 20
"""Of one JSON file; the largest tokenizer.json known is about 35 MB, the largest shard index 10 MB."""
MAX_WIDE_BYTES = 40 << 20
"""Of a JSON text with characters beyond U+FFFF; the largest known (a vocabulary of 262,144) has 33 MB."""
_SURROGATE = re.compile(rb"\\u[dD][89abAB]")
_COST = {b",": 80, b"[": 80, b"{": 80, b":": 170}
"""Measured bytes (CPython 3.11) of a further value, a list, an object, and a key with its place."""
_MEMORY_FLOOR = 80 << 20

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def read_json(blob: Blob) -> Json:
    """The parsed content of a whole file. Raises FormatError or LimitError."""
    if blob.size > MAX_BYTES:
        raise LimitError("JSON file size in bytes", limit=MAX_BYTES, actual=blob.size, where=blob.name)
    return parse_json(blob.read(0, blob.size), where=blob.name)


def read_json_object(blob: Blob) -> dict[str, Json]:
    """Like :func:`read_json`, and the top level must be an object."""
    return as_object(read_json(blob), where=blob.name)


def as_object(value: Json, where: str) -> dict[str, Json]:
    """The value when it is an object; raises FormatError otherwise."""
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, found {type(value).__name__}", where=where)
    return value


def parse_json(data: bytes, where: str) -> Json:
    """Parse UTF-8 JSON. Memory stays below 4 x the size + 100 MB whatever the text is.

    >>> parse_json(b'{"a": [1, 2]}', "example")
    {'a': [1, 2]}
    """
    _check_nodes(data, where)
    _check_width(data, where)
    try:
        text = data.decode("utf-8-sig")
        del data  # the caller may have let go of it: then only the text is held
        value: Json = json.loads(text, object_pairs_hook=_unique_keys(where))
    except RecursionError:
        limit = sys.getrecursionlimit()
        raise LimitError(
            "JSON nesting depth", limit=limit, actual=f"more than {limit}", where=where
        ) from None
    except ValueError as error:
        raise FormatError(f"not valid JSON: {str(error)[:200]}", where=where) from None
    return value


def _check_nodes(data: bytes, where: str) -> None:
    """What the parsed values will cost at least, counted from the punctuation before any is built."""
    cost = sum(bytes_each * data.count(mark) for mark, bytes_each in _COST.items())
    limit = 4 * len(data) + _MEMORY_FLOOR
    if cost > limit:
        raise LimitError(
            "bytes of memory for the values of this JSON text", limit=limit, actual=cost, where=where
        )


def _check_width(data: bytes, where: str) -> None:
    """One character beyond U+FFFF makes its string, and raw also the whole text, four bytes a character wide."""
    if len(data) <= MAX_WIDE_BYTES:
        return
    raw = not data.isascii() and int(np.frombuffer(data, np.uint8).max()) >= 0xF0
    if raw or _SURROGATE.search(data):
        what = "bytes of a JSON text with characters beyond U+FFFF"
        raise LimitError(what, limit=MAX_WIDE_BYTES, actual=len(data), where=where)


def _unique_keys(where: str) -> Callable[[list[tuple[str, Json]]], dict[str, Json]]:
    def hook(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise FormatError(f"duplicate JSON key {key[:80]!r}", where=where)
                seen.add(key)
        return result

    return hook
