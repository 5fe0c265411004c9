"""Meta's ``params.json``: few keys, whose code raises on any other and takes everything else for given.

Facts: ``ModelArgs`` of github.com/meta-llama/llama (``model.py``) and ``TransformerArgs`` of
github.com/mistralai/mistral-inference (``args.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

from drupe.errors import UnsupportedError
from drupe.readers.config import Config, Scalar, dialects
from drupe.readers.strict_json import Json

FILE = "params.json"
GIVEN: Mapping[str, Scalar] = {
    "activation": "silu",
    "attention_bias": False,
    "rope_type": "default",
    "rotary_fraction": 1.0,
    "rope_theta": 10000.0,
    "num_experts": 0,
    "num_shared_experts": 0,
    "sliding_window": 0,
}
"""What the code does without being told: may be left out when it is so."""
_FFN = ("multiple_of", "ffn_dim_multiplier")
"""From which Meta's code computes the width of the FFN, where the settings do not say it."""
_UNSAID = frozenset(
    {"vocab_size", "max_position_embeddings", "tie_word_embeddings", "vision_tower", "audio_tower"}
)
"""No setting of the sums, or shown by the tensors."""
_SILENT = frozenset(
    {
        *("architectures", "attention_dropout", "auto_map", "dtype", "initializer_range", "model_type"),
        *(
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "pretraining_tp",
            "torch_dtype",
            "transformers_version",
        ),
        *("use_cache", "mlp_bias", "rope_scaling", "rope_parameters", "_name_or_path", "max_batch_size"),
        *("multiple_of", "ffn_dim_multiplier", "max_seq_len", "_attn_implementation_autoset"),
    }
)
"""Keys of either dialect that change no sum, or whose meaning a canonical field carries."""


def is_params(config: Config | None) -> bool:
    """Whether these are Meta's settings, by the name of the file."""
    return config is not None and config.file.rpartition("/")[2] == FILE


def check_source(config: Config) -> None:
    """Raise UnsupportedError when the settings say what no key of another dialect takes."""
    _check_raw(config, "another dialect")


def settings_for(
    config: Config, target: Config, sizes: Mapping[str, int], theirs: Mapping[str, int]
) -> dict[str, Json]:
    """The model's settings in the target's few keys. ``sizes``: of the model's tensors, and of the target's.

    Raises UnsupportedError on what the keys cannot say.
    """
    _check_raw(config, FILE)
    canonical = {**sizes, **config.canonical}
    keys = target.spelled.items()
    found: dict[str, Json] = {key: canonical[field] for field, key in keys if field in canonical}
    if "vocab_size" in target.raw:  # often -1: the tokenizer's
        found["vocab_size"] = canonical.get("vocab_size", -1)
    given: dict[str, object] = {**GIVEN, "head_dim": _head_size(canonical)}
    if all(sizes.get(field) == theirs.get(field) for field in ("hidden_size", "intermediate_size")):
        found |= {key: target.raw[key] for key in _FFN if key in target.raw}
        given["intermediate_size"] = sizes.get("intermediate_size")
    lost = [
        f"{field} {value}"
        for field, value in canonical.items()
        if field not in target.spelled and field not in _UNSAID and given.get(field) != value
    ]
    if lost:
        raise UnsupportedError(f"{FILE} has no key for {', '.join(sorted(lost)[:8])}", where=config.file)
    return found


def _head_size(canonical: Mapping[str, Scalar]) -> int | None:
    """What the code computes when no key says it."""
    hidden, heads = canonical.get("hidden_size"), canonical.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None


def _check_raw(config: Config, where: str) -> None:
    known = set(config.spelled.values()) | {key.partition(".")[0] for key in config.spelled.values()}
    known |= {key for field in dialects().fields for key in field.keys if key in config.raw}
    lost = [
        key
        for key, value in config.raw.items()
        if key not in known and key not in _SILENT and value not in (None, False)
    ]
    if lost:
        problem = f"{where} has no key for {', '.join(key[:40] for key in sorted(lost)[:8])}"
        raise UnsupportedError(problem, where=config.file)
