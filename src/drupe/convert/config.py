"""The configuration of a converted model: its own values, under the keys of the target's dialect."""

from __future__ import annotations

import json

from drupe.convert.blueprint import Blueprint
from drupe.convert.plan import Plan
from drupe.readers.config import Config
from drupe.readers.strict_json import Json

_LEFT_OUT = frozenset({"auto_map", "_name_or_path", "quantization_config"})
"""What speaks of the old files: code to be loaded, a path, a packing that was undone."""
_TIED = "tie_word_embeddings"
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
"""Their defaults are those of a published vocabulary: what the model does not say must be said not to be there."""


def converted(config: Config | None, target: Blueprint, made: Plan) -> bytes | None:
    """``config.json``; None when the model has no configuration to begin with."""
    if config is None:
        return None
    theirs = target.config
    raw: dict[str, Json] = (
        {} if _is_foreign(config) else {k: v for k, v in config.raw.items() if k not in _LEFT_OUT}
    )
    for field, key in config.spelled.items():
        new = theirs.spelled.get(field, key) if theirs else key
        if "." in new or ("." in key and not _is_foreign(config)):
            continue  # nested: stays where it is
        value = raw.pop(key, config.canonical[field])
        raw.setdefault(new, value)
    if theirs is not None:
        raw["model_type"] = theirs.model_type or raw.get("model_type")
        raw["architectures"] = list(theirs.architectures) or raw.get("architectures")
    if any(source.piece.key[0] == "embed" for output in made.outputs for source in output.sources):
        has_head = any(s.piece.key[0] == "head" for output in made.outputs for s in output.sources)
        raw[_TIED] = not has_head
    plain: dict[str, object] = {key: value for key, value in raw.items() if value is not None}
    plain |= dict.fromkeys(_TOKENS if theirs is not None else (), None) | plain
    return (json.dumps(plain, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8")


def _is_foreign(config: Config) -> bool:
    """Whether the keys are those of another kind of file (a GGUF header)."""
    return not config.file.endswith(".json")
