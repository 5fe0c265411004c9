"""The configuration of a converted model: its own values, under the keys of the target's dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping

from drupe.convert import params
from drupe.convert.blueprint import Blueprint
from drupe.convert.pieces import Inventory, Piece
from drupe.convert.plan import Plan
from drupe.errors import UnsupportedError
from drupe.readers.config import Config, config_of
from drupe.readers.strict_json import Json

_LEFT_OUT = frozenset({"auto_map", "_name_or_path", "quantization_config"})
"""What speaks of the old files: code to be loaded, a path, a packing that was undone."""
_TIED = "tie_word_embeddings"
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
"""Their defaults are those of a published vocabulary: what the model does not say must be said not to be there."""


def converted(
    config: Config | None, target: Blueprint, made: Plan, parts: Inventory
) -> tuple[str, bytes] | None:
    """Name and content of the configuration; None when the model has none to begin with.

    Raises UnsupportedError when a value of the model cannot be said in the target's keys.
    """
    if config is None:
        return None
    theirs, sizes = target.config, sizes_of(parts)
    if theirs is not None and params.is_params(theirs):
        settings = params.settings_for(config, theirs, sizes, sizes_of(target.parts))
        return params.FILE, _text(settings)
    if params.is_params(config):
        params.check_source(config)
    foreign = params.is_params(config) or not config.file.endswith(".json")  # or the keys of a GGUF header
    raw = {} if foreign else {key: value for key, value in config.raw.items() if key not in _LEFT_OUT}
    for field, key in config.spelled.items():
        if "." in key and not foreign:
            _check_nested(key, target)
            continue  # in a nested object, which stays as it is
        known = theirs is not None and key in theirs.raw  # some classes keep a generic key beside their own
        new = theirs.spelled.get(field, field if foreign else key) if theirs and not known else key
        value = raw.pop(key, config.canonical[field])
        raw.setdefault(new.rpartition(".")[2], value)  # nested keys are understood at the top as well
    if theirs is not None:
        unsaid = [field for field in sizes if field not in config.canonical and field in theirs.spelled]
        raw |= {theirs.spelled[field]: sizes[field] for field in unsaid}
        raw["model_type"] = theirs.model_type or raw.get("model_type")
        raw["architectures"] = list(theirs.architectures) or raw.get("architectures")
    if any(config.raw.get(key) for key in ("quantization_config", "compression_config")):
        raw = {
            key: value for key, value in raw.items() if key not in ("dtype", "torch_dtype")
        }  # they are decoded
    roles = {source.piece.key[0] for output in made.outputs for source in output.sources}
    if "embed" in roles:
        raw[_TIED] = "head" not in roles
    plain: dict[str, Json] = {key: value for key, value in raw.items() if value is not None}
    _check(config, plain, target)
    text: dict[str, object] = dict.fromkeys(_TOKENS if theirs is not None else (), None) | plain
    return "config.json", _text(text)


def sizes_of(parts: Inventory) -> dict[str, int]:
    """What the tensors of the main tower show, by the canonical field that states it."""
    first: dict[str, Piece] = {}
    for (role, _), piece in parts.pieces.items():
        if piece.columns:
            first.setdefault(role, piece)
    found = {
        "vocab_size": first["embed"].part.rows if "embed" in first else None,
        "hidden_size": first["embed"].columns if "embed" in first else None,
        "intermediate_size": first["up"].part.rows if "up" in first else None,
    }
    return {field: size for field, size in found.items() if size}


def _text(settings: Mapping[str, object]) -> bytes:
    return (json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8")


def _check_nested(key: str, target: Blueprint) -> None:
    """Raise UnsupportedError when settings lie in an object that the target does not have."""
    outer = key.partition(".")[0]
    if target.config is not None and outer not in target.config.raw and not outer.startswith("rope_"):
        raise UnsupportedError(
            f"the settings lie in {outer!r}, where {target.title} has none", where="config.json"
        )


def _check(config: Config, raw: dict[str, Json], target: Blueprint) -> None:
    """Whether the result, read again, says what the model says."""
    again = config_of("config.json", raw).canonical
    lost = [
        field for field, value in config.canonical.items() if field != _TIED and again.get(field) != value
    ]
    if lost:
        problem = f"the configuration of {target.title} has no key for {', '.join(sorted(lost)[:8])}"
        raise UnsupportedError(problem, where=config.file)
