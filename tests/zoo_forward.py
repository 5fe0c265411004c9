"""A forward pass of Llama and Qwen2 in numpy: slow, and enough to prove that a rewrite changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_exact import EMBEDDING, FINAL_NORM, HEAD, depth
from zoo_files import Checkpoint, Tensors

Array = NDArray[np.float64]


def _norm(x: Array, gain: Array, epsilon: float) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain)


def _rope(x: Array, theta: float) -> Array:
    """Rotary positions on (heads, time, width), the two halves of a head as pairs (Hugging Face's layout)."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


Seen = dict[str, list[Array]]
"""The inputs of every weight, by its name."""


def _linear(tensors: Tensors, name: str, x: Array, seen: Seen | None) -> Array:
    if seen is not None:
        seen.setdefault(name, []).append(x)
    return np.asarray(x @ tensors[name].astype(np.float64).T)


def _heads(tensors: Tensors, base: str, part: str, x: Array, count: int, seen: Seen | None) -> Array:
    y = _linear(tensors, f"{base}{part}_proj.weight", x, seen)
    if f"{base}{part}_proj.bias" in tensors:
        y = y + tensors[f"{base}{part}_proj.bias"]
    return y.reshape(len(x), count, -1).transpose(1, 0, 2)


def _attention(tensors: Tensors, config: dict[str, Any], base: str, x: Array, seen: Seen | None) -> Array:
    heads, kv = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    theta = float((config.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    q = _rope(_heads(tensors, base, "q", x, heads, seen), theta)
    k = _rope(_heads(tensors, base, "k", x, kv, seen), theta).repeat(heads // kv, axis=0)
    v = _heads(tensors, base, "v", x, kv, seen).repeat(heads // kv, axis=0)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], dtype=bool), 1)] = -np.inf
    mixed = (_softmax(scores) @ v).transpose(1, 0, 2).reshape(len(x), -1)
    return _linear(tensors, base + "o_proj.weight", mixed, seen)


def logits(model: Checkpoint, ids: list[int], seen: Seen | None = None) -> Array:
    """The next-token logits at every position, (time, vocabulary); the inputs of each weight go to ``seen``."""
    tensors, config = model.tensors, model.config
    epsilon = float(config["rms_norm_eps"])
    x = tensors[EMBEDDING][ids].astype(np.float64)
    for layer in range(depth(tensors)):
        base = f"model.layers.{layer}."
        y = _norm(x, tensors[base + "input_layernorm.weight"].astype(np.float64), epsilon)
        x = x + _attention(tensors, config, base + "self_attn.", y, seen)
        y = _norm(x, tensors[base + "post_attention_layernorm.weight"].astype(np.float64), epsilon)
        gate = _linear(tensors, base + "mlp.gate_proj.weight", y, seen)
        hidden = gate / (1 + np.exp(-gate)) * _linear(tensors, base + "mlp.up_proj.weight", y, seen)
        x = x + _linear(tensors, base + "mlp.down_proj.weight", hidden, seen)
    x = _norm(x, tensors[FINAL_NORM].astype(np.float64), epsilon)
    return np.asarray(x @ tensors.get(HEAD, tensors[EMBEDDING]).T)
