"""Names of the tensors of an adapter file -> module of the base and what the tensor is to it.

PEFT: ``base_model.model.MODULE.lora_A.weight`` (huggingface.co/docs/peft/developer_guides/checkpoint). sd-scripts and
LyCORIS: ``lora_unet_MODULE_WITH_UNDERSCORES.lora_down.weight``, ``.lora_up.weight``, ``.alpha``
(github.com/kohya-ss/sd-scripts, networks/lora.py). diffusers: ``unet.MODULE.lora.down.weight``,
``transformer.MODULE.lora_A.weight``, ``MODULE.processor.to_q_lora.down.weight`` (github.com/huggingface/diffusers,
loaders/lora_conversion_utils.py). The part of a pipeline becomes ``unet:``, as its folder is called.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_SLOTS = {
    "lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up",
    "lora_embedding_A": "table_down", "lora_embedding_B": "table_up",
    "lora_magnitude_vector": "magnitude", "alpha": "alpha", "ia3_l": "ia3",
    "hada_w1_a": "hada_w1_a", "hada_w1_b": "hada_w1_b", "hada_w2_a": "hada_w2_a", "hada_w2_b": "hada_w2_b",
}  # fmt: skip
_UNREAD = frozenset(
    {
        *("lora_a", "lora_b", "lora_mid", "dora_scale", "hada_t1", "hada_t2", "lora_E", "lora_ranknum"),
        *("trainable_tokens_delta", "prompt_embeddings", "vera_lambda_b", "vera_lambda_d"),
    }
)
_UNREAD_STARTS = ("lokr_", "oft_", "boft_", "fourierft_", "hra_", "vblora_", "randlora_")
_PARTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior")
_KOHYA = {
    "lora_unet_": "unet:", "lora_te1_": "text_encoder:", "lora_te2_": "text_encoder_2:",
    "lora_te3_": "text_encoder_3:", "lora_te_": "text_encoder:", "lora_transformer_": "transformer:",
    "lora_prior_unet_": "prior:", "lycoris_": "lycoris:",
}  # fmt: skip
UNREAD = "unread"
"""The slot of a tensor that belongs to an adapter and is not read."""


_HINT = re.compile(
    "lora|hada_|ia3_l|lokr_|oft_|fourierft_|hra_|vera_|prompt_embeddings|trainable_tokens_delta"
)


def is_likely(name: str) -> bool:
    """Whether a name may belong to an adapter: asked of every tensor of every model, so it must cost nothing."""
    return _HINT.search(name) is not None


class Key(NamedTuple):
    """``module`` of the base, ``slot`` of the tensor in its change (None: a tensor saved whole), and the layout."""

    module: str
    slot: str | None
    layout: str


def parse(name: str) -> Key:
    """What one tensor of an adapter file is.

    >>> parse("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    Key(module='model.layers.0.self_attn.q_proj', slot='down', layout='peft')
    >>> parse("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha")
    Key(module='text_encoder:text_model_encoder_layers_0_mlp_fc1', slot='alpha', layout='kohya')
    >>> parse("unet.mid_block.attentions.0.to_out.0.lora.up.weight").module
    'unet:mid_block.attentions.0.to_out.0'
    """
    parts = name.split(".")
    if len(parts) > 1 and parts[0].startswith(tuple(_KOHYA)):
        return _key(parts[:1], parts[1], _slot(parts[1], parts[2:]) or UNREAD)
    for place, part in enumerate(parts):
        slot = _slot(part, parts[place + 1 :]) if _may_mark(part) else None
        if slot is not None:
            return _key(parts[:place], part, slot)
    module = ".".join(parts).removeprefix("base_model.model.").replace(".base_layer.", ".")
    return Key(module.replace(".modules_to_save.default.", "."), None, "peft")


@lru_cache(maxsize=4096)
def _may_mark(part: str) -> bool:
    """Whether a part of a name may say what a tensor is: few different ones fill all names."""
    return (
        part in _SLOTS
        or part in _UNREAD
        or part in ("lora", "lora_linear_layer")
        or part.endswith("_lora")
        or part.startswith(_UNREAD_STARTS)
    )


def _slot(part: str, rest: list[str]) -> str | None:
    if part in ("lora", "lora_linear_layer") or part.endswith("_lora"):
        return {"down": "down", "up": "up"}.get(rest[0]) if rest else None
    if part in _SLOTS:
        return UNREAD if rest and rest[-1] == "bias" else _SLOTS[part]
    return UNREAD if part in _UNREAD or part.startswith(_UNREAD_STARTS) else None


def _key(path: list[str], mark: str, slot: str) -> Key:
    for start, part in _KOHYA.items() if len(path) == 1 else ():
        if path[0].startswith(start):
            return Key(part + path[0].removeprefix(start), slot, "kohya")
    if "base_layer" in path:  # adapters of stacked parameters, one inside the other
        slot = UNREAD
    layout = "peft" if path[:2] == ["base_model", "model"] else "diffusers"
    if layout == "peft":
        path = path[2:]
    if mark.endswith("_lora"):  # diffusers before 0.22: the projections of an attention processor
        path = [part for part in path if part != "processor"]
        path += ["to_out", "0"] if mark == "to_out_lora" else [mark.removesuffix("_lora")]
    if layout == "diffusers" and len(path) > 1 and path[0] in _PARTS:
        return Key(f"{path[0]}:{'.'.join(path[1:])}", slot, layout)
    return Key(".".join(path), slot, layout)
