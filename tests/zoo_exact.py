"""Rewrites that leave the computed function as it is: permutations, rotation, rescaling (Llama, Qwen2).

``zoo_forward.logits`` proves it in ``test_zoo.py``. Conventions: weights are (out, in); q, k and v rows are
grouped by head; head h of the queries reads key/value head h // (heads / kv).
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from zoo_files import Checkpoint, Tensor, Tensors

Order = NDArray[np.intp]
EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
# What reads the residual stream, and behind which norm; what writes to it.
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def depth(tensors: Tensors) -> int:
    """The number of layers, for ``layers.N``, ``layer.N`` and ``h.N`` names."""
    found = (re.search(r"\b(?:layers|layer|h)\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(hit.group(1)) for hit in found if hit), default=-1)


def _permute(tensors: Tensors, name: str, order: Order, axis: int) -> None:
    if name in tensors:
        tensors[name] = np.take(tensors[name], order, axis=axis)


def permute_units(model: Checkpoint, *, seed: int = 0) -> Checkpoint:
    """FFN units in another order per layer; Llama, Qwen2 and GPT-2 (whose Conv1D is (in, out))."""
    tensors, dice = dict(model.tensors), np.random.default_rng(seed)
    for layer in range(depth(tensors)):
        gpt2 = f"transformer.h.{layer}.mlp."
        base = f"model.layers.{layer}.mlp."
        if gpt2 + "c_fc.weight" in tensors:
            order = dice.permutation(tensors[gpt2 + "c_fc.weight"].shape[1])
            _permute(tensors, gpt2 + "c_fc.weight", order, 1)
            _permute(tensors, gpt2 + "c_fc.bias", order, 0)
            _permute(tensors, gpt2 + "c_proj.weight", order, 0)
            continue
        order = dice.permutation(tensors[base + "up_proj.weight"].shape[0])
        _permute(tensors, base + "gate_proj.weight", order, 0)
        _permute(tensors, base + "up_proj.weight", order, 0)
        _permute(tensors, base + "down_proj.weight", order, 1)
    return model.with_tensors(tensors)


def permute_heads(model: Checkpoint, *, seed: int = 0) -> Checkpoint:
    """Key/value heads in another order, and the query heads of each in another order."""
    tensors, dice = dict(model.tensors), np.random.default_rng(seed)
    heads, kv = int(model.config["num_attention_heads"]), int(model.config["num_key_value_heads"])
    group = heads // kv
    for layer in range(depth(tensors)):
        base = f"model.layers.{layer}.self_attn."
        width = tensors[base + "q_proj.weight"].shape[0] // heads
        keys = dice.permutation(kv)
        queries = np.concatenate([key * group + dice.permutation(group) for key in keys])
        rows = (queries[:, None] * width + np.arange(width)).ravel()
        kv_rows = (keys[:, None] * width + np.arange(width)).ravel()
        for part, order in (("q", rows), ("k", kv_rows), ("v", kv_rows)):
            _permute(tensors, f"{base}{part}_proj.weight", order, 0)
            _permute(tensors, f"{base}{part}_proj.bias", order, 0)
        _permute(tensors, base + "o_proj.weight", rows, 1)
    return model.with_tensors(tensors)


def fold_gains(model: Checkpoint) -> Checkpoint:
    """Norm gains multiplied into the matrices behind them; every gain becomes 1. Unties the head."""
    tensors = dict(model.tensors)
    for layer in range(depth(tensors)):
        base = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            gain = tensors[f"{base}{norm}.weight"]
            for reader in readers:
                tensors[f"{base}{reader}.weight"] = tensors[f"{base}{reader}.weight"] * gain
            tensors[f"{base}{norm}.weight"] = np.ones_like(gain)
    gain = tensors[FINAL_NORM]
    tensors[HEAD] = tensors.get(HEAD, tensors[EMBEDDING]) * gain
    tensors[FINAL_NORM] = np.ones_like(gain)
    return model.with_tensors(tensors, tie_word_embeddings=False)


def orthogonal(size: int, seed: int) -> NDArray[np.float64]:
    """A uniformly distributed orthogonal matrix (QR of a Gaussian one, signs fixed)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)), dtype=np.float64)


def rotate(model: Checkpoint, *, seed: int = 0) -> Checkpoint:
    """The residual stream in a random orthogonal basis Q, gains folded first (RMSNorm(xQ) = RMSNorm(x)Q)."""
    folded = fold_gains(model)
    tensors = dict(folded.tensors)
    Q = orthogonal(tensors[EMBEDDING].shape[1], seed)

    def turned(values: NDArray[np.float64]) -> Tensor:
        return values.astype(np.float32)

    for name in (EMBEDDING, HEAD):
        tensors[name] = turned(tensors[name] @ Q)
    for layer in range(depth(tensors)):
        base = f"model.layers.{layer}."
        for reader in (name for names in READERS.values() for name in names):
            tensors[f"{base}{reader}.weight"] = turned(tensors[f"{base}{reader}.weight"] @ Q)
        for writer in WRITERS:
            tensors[f"{base}{writer}.weight"] = turned(Q.T @ tensors[f"{base}{writer}.weight"])
    return folded.with_tensors(tensors)


def rescale_units(model: Checkpoint, *, spread: float = 0.5, seed: int = 0) -> Checkpoint:
    """Each FFN unit's up row times s and its down column divided by s, log s ~ N(0, spread)."""
    tensors, dice = dict(model.tensors), np.random.default_rng(seed)
    for layer in range(depth(tensors)):
        up, down = (f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("up", "down"))
        factors = np.exp(spread * dice.standard_normal(tensors[up].shape[0])).astype(np.float32)
        tensors[up] = tensors[up] * factors[:, None]
        tensors[down] = tensors[down] / factors
    return model.with_tensors(tensors)
