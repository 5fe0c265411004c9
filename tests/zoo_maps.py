"""Units, dimensions, tokens and experts: moved, left out or copied. Llama names, units of every family of the zoo."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo_exact import EMBEDDING, HEAD, WRITERS, depth
from zoo_files import Checkpoint, Tensor, Tensors

_INPUTS = r"gate_proj|up_proj|w1|w3|wi_0|wi_1|c_fc|intermediate\.dense|dense_h_to_4h"
_OUTPUTS = r"down_proj|w2|wo|mlp\.c_proj|(?<!attention\.)output\.dense|dense_4h_to_h"
_FFN = re.compile(rf"^(.*?\.)((?:mlp\.)?(?:{_INPUTS}|{_OUTPUTS}))\.(weight|bias)$")
_OUTPUT = re.compile(rf"(?:^|\.)(?:{_OUTPUTS})$")


def _stacks(tensors: Tensors) -> Mapping[str, list[tuple[str, int]]]:
    """FFN by FFN: its tensors, and which axis counts the units."""
    found: dict[str, list[tuple[str, int]]] = {}
    for name, values in tensors.items():
        hit = _FFN.match(name)
        if hit is None or ".attn." in name:
            continue
        prefix, part, kind = hit.groups()
        is_output = bool(_OUTPUT.search(part)) and "c_fc" not in part
        if is_output and kind == "bias":
            continue
        turned = "c_fc" in part or "c_proj" in part  # Conv1D
        axis = 0 if values.ndim == 1 else int(is_output != turned)
        found.setdefault(prefix.replace("intermediate.", "").removesuffix("mlp."), []).append((name, axis))
    return found


def _on_units(model: Checkpoint, choose: Callable[[int, np.random.Generator], Any], seed: int) -> Checkpoint:
    tensors, dice = dict(model.tensors), np.random.default_rng(seed)
    for members in _stacks(model.tensors).values():
        name, axis = members[0]
        order = choose(tensors[name].shape[axis], dice)
        for name, axis in members:
            tensors[name] = np.ascontiguousarray(np.take(tensors[name], order, axis=axis))
    return model.with_tensors(tensors)


def permute_any_units(model: Checkpoint, *, seed: int = 0) -> Checkpoint:
    """FFN units in another order, in every FFN and expert."""
    return _on_units(model, lambda size, dice: dice.permutation(size), seed)


def prune_units(model: Checkpoint, *, keep: float, seed: int = 0) -> Checkpoint:
    """A share of the FFN units of every layer, in their order."""
    pruned = _on_units(
        model, lambda size, dice: np.sort(dice.choice(size, round(keep * size), replace=False)), seed
    )
    sizes = {
        pruned.tensors[members[0][0]].shape[members[0][1]] for members in _stacks(pruned.tensors).values()
    }
    key = next(k for k in ("intermediate_size", "n_inner", "d_ff") if k in model.config)
    return pruned.with_tensors(pruned.tensors, **{key: sizes.pop()})


def prune_hidden(model: Checkpoint, *, keep: float, seed: int = 0) -> Checkpoint:
    """A share of the residual stream's dimensions, the same everywhere (Llama names)."""
    hidden = model.tensors[EMBEDDING].shape[1]
    kept = np.sort(np.random.default_rng(seed).choice(hidden, round(keep * hidden), replace=False))
    tensors = {}
    for name, values in model.tensors.items():
        axes = [axis for axis, size in enumerate(values.shape) if size == hidden]
        axis = 0 if any(f"{writer}." in name for writer in WRITERS) else axes[-1] if axes else None
        if values.ndim == 1 and "norm" not in name and not any(f"{writer}." in name for writer in WRITERS):
            axis = None
        tensors[name] = values if axis is None else np.ascontiguousarray(np.take(values, kept, axis=axis))
    return model.with_tensors(tensors, hidden_size=len(kept), head_dim=_head_size(model))


def _head_size(model: Checkpoint) -> int:
    stated = model.config.get("head_dim")
    return int(stated or model.config["hidden_size"] // model.config["num_attention_heads"])


def permute_hidden(model: Checkpoint, *, flip: bool = False, seed: int = 0) -> Checkpoint:
    """The residual stream's dimensions in another order, with random signs when ``flip``; gains move along."""
    dice = np.random.default_rng(seed)
    hidden = model.tensors[EMBEDDING].shape[1]
    order = dice.permutation(hidden)
    signs = (dice.integers(0, 2, hidden) * 2 - 1 if flip else np.ones(hidden)).astype(np.float32)
    tensors = dict(model.tensors)
    for name, values in model.tensors.items():
        if any(f"{writer}." in name for writer in WRITERS):
            moved = values[order] * (signs[:, None] if values.ndim == 2 else signs)
        elif values.ndim == 2:
            moved = values[:, order] * signs
        elif "layernorm" in name or name.endswith("model.norm.weight"):
            moved = values[order]
        else:
            continue
        tensors[name] = np.ascontiguousarray(moved)
    return model.with_tensors(tensors)


def rescale_heads(model: Checkpoint, *, spread: float = 0.5, seed: int = 0) -> Checkpoint:
    """Queries times s and keys divided by it, values times t and outputs divided by it, per layer."""
    tensors, dice = dict(model.tensors), np.random.default_rng(seed)
    for layer in range(depth(tensors)):
        base = f"model.layers.{layer}.self_attn."
        for first, second in (("q_proj", "k_proj"), ("v_proj", "o_proj")):
            factor = np.float32(np.exp(spread * dice.standard_normal()))
            for kind in ("weight", "bias"):
                if f"{base}{first}.{kind}" in tensors:
                    tensors[f"{base}{first}.{kind}"] = tensors[f"{base}{first}.{kind}"] * factor
            tensors[f"{base}{second}.weight"] = tensors[f"{base}{second}.weight"] / factor
            if second == "k_proj" and f"{base}k_proj.bias" in tensors:
                tensors[f"{base}k_proj.bias"] = tensors[f"{base}k_proj.bias"] / factor
    return model.with_tensors(tensors)


def permute_vocabulary(model: Checkpoint, *, seed: int = 0) -> Checkpoint:
    """Tokens under other ids, in the tables and in the tokenizer."""
    tensors, rows = dict(model.tensors), model.tensors[EMBEDDING].shape[0]
    order = np.random.default_rng(seed).permutation(rows)  # new id -> old id
    for name in (EMBEDDING, HEAD):
        if name in tensors:
            tensors[name] = np.ascontiguousarray(tensors[name][order])
    tokenizer = model.tokenizer
    if tokenizer is not None:
        inner, new = dict(tokenizer["model"]), np.argsort(order)
        vocabulary = {piece: int(new[k]) for piece, k in inner["vocab"].items()}
        added = [{**entry, "id": int(new[entry["id"]])} for entry in tokenizer.get("added_tokens", [])]
        tokenizer = {**tokenizer, "model": {**inner, "vocab": vocabulary}, "added_tokens": added}
    return Checkpoint(tensors, model.config, tokenizer, model.dtype, model.shards, model.extras)


def permute_experts(model: Checkpoint, *, seed: int = 0) -> Checkpoint:
    """The experts of every layer in another order, the router's rows with them (Mixtral names)."""
    dice, tensors = np.random.default_rng(seed), dict(model.tensors)
    for layer in range(depth(tensors)):
        base = f"model.layers.{layer}.block_sparse_moe."
        if f"{base}gate.weight" not in tensors:
            continue  # a dense layer
        order = dice.permutation(model.tensors[f"{base}gate.weight"].shape[0])  # new number -> old number
        tensors[f"{base}gate.weight"] = np.ascontiguousarray(model.tensors[f"{base}gate.weight"][order])
        for new, old in enumerate(order):
            for part in ("w1", "w2", "w3"):
                tensors[f"{base}experts.{new}.{part}.weight"] = model.tensors[
                    f"{base}experts.{old}.{part}.weight"
                ]
    return model.with_tensors(tensors)


def to_experts(
    model: Checkpoint, *, experts: int = 4, sigma: float = 0.0, share: float = 1.0, seed: int = 0
) -> Checkpoint:
    """A Llama's FFN as the experts of a Mixtral: copies, with noise, or each a slice of the units."""
    dice, tensors = np.random.default_rng(seed), dict[str, Tensor]()
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    kept: dict[tuple[str, int], Any] = {}
    units = 0
    for name, values in model.tensors.items():
        hit = re.match(r"(model\.layers\.\d+\.)mlp\.(gate_proj|up_proj|down_proj)\.weight", name)
        if hit is None:
            tensors[name] = values
            continue
        axis = int(hit[2] == "down_proj")
        units = round(share * values.shape[axis])
        for expert in range(experts):
            if (hit[1], expert) not in kept:
                kept[hit[1], expert] = np.sort(dice.choice(values.shape[axis], units, replace=False))
            part = np.take(values, kept[hit[1], expert], axis=axis)
            part = part + np.float32(sigma * values.std()) * dice.standard_normal(
                part.shape, dtype=np.float32
            )
            tensors[f"{hit[1]}block_sparse_moe.experts.{expert}.{names[hit[2]]}.weight"] = part
        router = 0.02 * dice.standard_normal((experts, model.tensors[EMBEDDING].shape[1]))
        tensors[f"{hit[1]}block_sparse_moe.gate.weight"] = router.astype(np.float32)
    kind = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "intermediate_size": units}
    return model.with_tensors(tensors, **kind, num_local_experts=experts, num_experts_per_tok=2)
