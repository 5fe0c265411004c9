"""What a model folder says about its quantisation: hints, which the shapes of the tensors overrule."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.errors import LimitError
from drupe.readers.strict_json import Json, read_json_object
from drupe.sources.interface import Tree

MAX_BYTES = 4 << 20
"""Of a quantisation's own configuration; a few hundred bytes as a rule, more with settings per layer."""
_FILES = ("quantize_config.json", "quant_config.json")
_KEYS = ("quantization_config", "compression_config", "quantization", "quantize_config")
_NESTED = ("text_config", "language_config", "llm_config")


def settings_of(tree: Tree, raw: Mapping[str, Json]) -> Mapping[str, Json]:
    """The raw configuration, and under ``quantize_config`` the file that older tools wrote instead."""
    if any(key in raw for key in _KEYS):
        return raw
    found = [path for path in tree.files() if path.rpartition("/")[2] in _FILES]
    if not found:
        return raw
    blob = tree.open(min(found, key=lambda path: (path.count("/"), path)))
    if blob.size > MAX_BYTES:
        raise LimitError(
            "size of a configuration in bytes", limit=MAX_BYTES, actual=blob.size, where=blob.name
        )
    return {**raw, "quantize_config": read_json_object(blob)}


def quantisation(settings: Mapping[str, Json]) -> Mapping[str, Json]:
    """The part of a configuration that speaks of quantisation; empty when there is none."""
    for inner in (settings, *(settings.get(name) for name in _NESTED)):
        for key in _KEYS:
            found = inner.get(key) if isinstance(inner, Mapping) else None
            if isinstance(found, dict):
                return found
    return {}


def number(table: Mapping[str, Json], *keys: str) -> int | None:
    """The first positive whole number among the keys.

    >>> number({"bits": True, "w_bit": 4}, "bits", "w_bit")
    4
    """
    for key in keys:
        value = table.get(key)
        if type(value) is int and 0 < value < 1 << 31:
            return value
    return None
